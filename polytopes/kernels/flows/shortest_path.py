"""Cheapest paths in networks: by topological order, Dijkstra's, and Bellman and Ford's potentials."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.heap import lower, pop
from spigot.polytopes.kernels.flows.network import Network, Search

__all__ = ["FOUND", "NEGATIVE_CYCLE", "UNREACHABLE", "cheapest_path"]

UNREACHABLE, FOUND, NEGATIVE_CYCLE = 0, 1, 2


@kernel
def cheapest_path(
    nodes: int,
    order: np.ndarray,
    source: int,
    target: int,
    network: Network,
    cost: np.ndarray,
    search: Search,
) -> int:
    """Leaves in `search.pred` the arcs of a cheapest path, its fewest at ties; inf excludes an arc.

    `order` is a topological order of the nodes, empty if there is none. Costs are overwritten.
    """
    acyclic = len(order) > 0
    if (
        not acyclic
        and _some_negative(nodes, network, cost)
        and not _reduce(nodes, network, cost, search)
    ):
        return NEGATIVE_CYCLE
    search.dist[:nodes] = np.inf
    search.pred[:nodes] = -1
    search.dist[source] = 0.0
    search.hops[source] = 0
    if acyclic:
        _in_order(order, target, network, cost, search)
    else:
        _dijkstra(source, target, network, cost, search)
    return FOUND if search.dist[target] < np.inf else UNREACHABLE


@kernel
def _closer(search: Search, u: int, v: int, length: float) -> bool:
    """Whether an arc of this length makes the way to v by u better, and then takes it."""
    dist, hops = search.dist[u] + length, search.hops[u] + 1
    if dist < search.dist[v] or (dist == search.dist[v] and dist < np.inf and hops < search.hops[v]):
        search.dist[v] = dist
        search.hops[v] = hops
        return True
    return False


@kernel
def _in_order(
    order: np.ndarray, target: int, network: Network, cost: np.ndarray, search: Search
) -> None:
    """One pass over the nodes, up to the target."""
    for u in order:
        if u == target:
            break
        if search.dist[u] < np.inf:
            for k in range(network.start[u], network.start[u + 1]):
                if _closer(search, u, network.heads[k], cost[k]):
                    search.pred[network.heads[k]] = k


@kernel
def _dijkstra(source: int, target: int, network: Network, cost: np.ndarray, search: Search) -> None:
    """Until the target comes out of the heap."""
    size = lower(search, 0, source)
    while size:
        u = pop(search, size)
        size -= 1
        if u == target:
            break
        for k in range(network.start[u], network.start[u + 1]):
            v = network.heads[k]
            if _closer(search, u, v, cost[k]):
                search.pred[v] = k
                size = lower(search, size, v)
    for i in range(size):
        search.place[search.heap[i]] = -1


@kernel
def _some_negative(nodes: int, network: Network, cost: np.ndarray) -> bool:
    """Whether an arc has a negative cost."""
    lowest = 0.0
    for k in range(network.start[nodes]):
        lowest = min(lowest, cost[k])
    return lowest < 0.0


@kernel
def _reduce(nodes: int, network: Network, cost: np.ndarray, search: Search) -> bool:
    """Adds differences of potentials so that no cost is negative; False where a cycle is.

    Bellman and Ford's, from a root with a free arc to every node. A negative cycle makes a cycle of
    predecessors, which ends it early.
    """
    potential, pred, mark = search.dist, search.pred, search.heap
    potential[:nodes] = 0.0
    pred[:nodes] = -1
    changed, passes = True, 0
    while changed:
        changed = False
        for u in range(nodes):
            for k in range(network.start[u], network.start[u + 1]):
                v = network.heads[k]
                if potential[u] + cost[k] < potential[v]:
                    potential[v] = potential[u] + cost[k]
                    pred[v] = u
                    changed = True
        passes += 1
        if changed and (passes > nodes or _cyclic(nodes, pred, mark)):
            return False
    for u in range(nodes):
        for k in range(network.start[u], network.start[u + 1]):
            cost[k] = max(cost[k] + potential[u] - potential[network.heads[k]], 0.0)
    return True


@kernel
def _cyclic(nodes: int, pred: np.ndarray, mark: np.ndarray) -> bool:
    """Whether following the predecessors goes round."""
    mark[:nodes] = -1
    for v in range(nodes):
        u = v
        while u >= 0 and mark[u] < 0:
            mark[u] = v
            u = pred[u]
        if u >= 0 and mark[u] == v:
            return True
    return False
