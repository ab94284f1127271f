"""Minimum-cost flow in networks of unit capacities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.heap import lower, pop
from spigot.polytopes.kernels.flows.network import Network, Search, new_search

__all__ = ["Flow", "cheapest_flow", "new_flow"]

NEARBY = 1000  # nodes that a search from a single node may visit at first


class Flow(NamedTuple):
    """A 0/1 flow with what is still to be moved, and potentials that prove it optimal so far."""

    flow: np.ndarray  # (arcs,)
    excess: np.ndarray  # (nodes,)
    potential: np.ndarray  # (nodes,)
    search: Search
    seen: np.ndarray  # (nodes,), those that a search has reached
    root: np.ndarray  # (nodes,), the node of excess that each was reached from
    end: np.ndarray  # (nodes,), the deficit found from a node of excess, or -1
    roots: np.ndarray  # (nodes,), those that a search starts from


@kernel
def new_flow(nodes: int, arcs: int) -> Flow:
    """An empty workspace."""
    return Flow(
        np.zeros(arcs, np.int8),
        np.zeros(nodes, np.int32),
        np.zeros(nodes),
        new_search(nodes),
        np.zeros(nodes, np.int32),
        np.zeros(nodes, np.int32),
        np.full(nodes, -1, np.int32),
        np.zeros(nodes, np.int32),
    )


@kernel
def cheapest_flow(nodes: int, network: Network, cost: np.ndarray, state: Flow) -> bool:
    """A flow of least cost that turns `state.excess` into 0; False where there is none.

    Arcs of negative cost are filled first. What they leave at their ends is moved to the nearest
    deficits in the residual network, by searches on costs that potentials keep from being negative:
    first from one node at a time, while a deficit is nearby; then from all at once, along the trees
    of one search. A cost of inf excludes an arc.
    """
    _fill(nodes, network, cost, state)
    roots = state.roots
    for u in range(nodes):
        while state.excess[u] > 0:
            roots[0] = u
            if not _forest(1, NEARBY, network, cost, state):
                break
            _augment(1, network, state)
    while True:
        count = 0
        for u in range(nodes):
            if state.excess[u] > 0:
                roots[count] = u
                count += 1
        if count == 0:
            return True
        if not _forest(count, nodes, network, cost, state):
            return False
        _augment(count, network, state)


@kernel
def _fill(nodes: int, network: Network, cost: np.ndarray, state: Flow) -> None:
    """The flow of all arcs of negative cost."""
    state.search.dist[:nodes] = np.inf
    state.potential[:nodes] = 0.0
    for u in range(nodes):
        for k in range(network.start[u], network.start[u + 1]):
            state.flow[k] = cost[k] < 0.0
            if state.flow[k]:
                state.excess[u] -= 1
                state.excess[network.heads[k]] += 1


@kernel
def _augment(count: int, network: Network, state: Flow) -> None:
    """Moves a unit from each root to the deficit found from it."""
    for i in range(count):
        root = state.roots[i]
        v = state.end[root]
        if v < 0:
            continue
        state.end[root] = -1
        state.excess[root] -= 1
        state.excess[v] += 1
        while v != root:
            k = state.search.pred[v]
            state.flow[k] = 1 - state.flow[k]
            v = network.tails[k] if network.heads[k] == v else network.heads[k]


@kernel
def _forest(count: int, limit: int, network: Network, cost: np.ndarray, state: Flow) -> int:
    """Grows shortest trees from the roots; how many of them found a deficit of their own.

    Dijkstra's search, until all have or `limit` nodes are done. Updates the potentials.
    """
    search, potential, excess = state.search, state.potential, state.excess
    dist, hops = search.dist, search.hops
    size = 0
    for i in range(count):
        u = state.roots[i]
        state.seen[i], state.root[u] = u, u
        dist[u], hops[u] = 0.0, 0
        size = lower(search, size, u)
    seen, found, done, radius = count, 0, 0, 0.0
    while size and found < count and done < limit:
        u = pop(search, size)
        size -= 1
        done += 1
        radius = dist[u]
        if excess[u] < 0 and state.end[state.root[u]] < 0:
            state.end[state.root[u]] = u
            found += 1
        for side in range(2):  # arcs that leave u and are empty, arcs that enter it and are full
            first = network.start[u] if side == 0 else network.start_in[u]
            last = network.start[u + 1] if side == 0 else network.start_in[u + 1]
            for j in range(first, last):
                k = j if side == 0 else network.incoming[j]
                if state.flow[k] != side or cost[k] == np.inf:
                    continue
                v = network.heads[k] if side == 0 else network.tails[k]
                length = (cost[k] if side == 0 else -cost[k]) + potential[u] - potential[v]
                reach = radius + max(length, 0.0)
                if reach < dist[v] or (reach == dist[v] and hops[u] + 1 < hops[v]):
                    if dist[v] == np.inf:
                        state.seen[seen] = v
                        seen += 1
                    dist[v], hops[v] = reach, hops[u] + 1
                    search.pred[v], state.root[v] = k, state.root[u]
                    if count == 1 and excess[v] < 0 and reach == radius:
                        state.end[state.root[u]] = v
                        found = 1
                        break
                    size = lower(search, size, v)
            if count == 1 and found:
                break
    for i in range(seen):
        v = state.seen[i]
        potential[v] += min(dist[v] - radius, 0.0)
        dist[v] = np.inf
        search.place[v] = -1
    return found
