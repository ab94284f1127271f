"""MAP of paths: the cheapest path, or the cheapest flow where cycles pay; and a vertex as a path."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.grid_sweeps import sweep_cells
from spigot.polytopes.kernels.flows.min_cost_flow import Flow, cheapest_flow, new_flow
from spigot.polytopes.kernels.flows.network import (
    Network,
    grid_links,
    new_network,
    new_search,
    split_cells,
)
from spigot.polytopes.kernels.flows.shortest_path import NEGATIVE_CYCLE, UNREACHABLE, cheapest_path

__all__ = ["best_arcs", "best_cells", "follow_arcs", "follow_cells"]


@kernel
def _costs(i: int, part: np.ndarray, scores: np.ndarray, keep: np.ndarray, cost: np.ndarray) -> None:
    """Instance i's cost of each arc, inf where it is not kept; no rows of `keep` keep all."""
    for k in range(len(part)):
        cost[k] = -scores[i, part[k]]
        if keep.shape[0] and not keep[i, part[k]]:
            cost[k] = np.inf


@kernel
def best_arcs(
    first: int,
    last: int,
    network: Network,
    order: np.ndarray,
    part: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    feasible: np.ndarray,
) -> None:
    """The arcs of a best unit flow; `part` says which part each arc of the network is."""
    nodes, arcs = len(network.start) - 1, len(part)
    cost = np.empty(arcs)
    search, state = new_search(nodes), new_flow(nodes, arcs)
    for i in range(first, last):
        _costs(i, part, scores, keep, cost)
        found = cheapest_path(nodes, order, source[i], target[i], network, cost, search)
        feasible[i] = found != UNREACHABLE
        if found == NEGATIVE_CYCLE:
            _costs(i, part, scores, keep, cost)
            state.excess[:] = 0
            state.excess[source[i]] += 1
            state.excess[target[i]] -= 1
            feasible[i] = cheapest_flow(nodes, network, cost, state)
            for k in range(arcs):
                out[i, part[k]] = state.flow[k]
        elif feasible[i]:
            v = target[i]
            while v != source[i]:
                out[i, part[search.pred[v]]] = 1
                v = network.tails[search.pred[v]]


@kernel
def _best_cycles(
    i: int,
    h: int,
    w: int,
    width: int,
    s: int,
    t: int,
    split: Network,
    scores: np.ndarray,
    keep: np.ndarray,
    cost: np.ndarray,
    state: Flow,
    out: np.ndarray,
) -> bool:
    """The cells of a cheapest flow of instance i, on its cells split in two."""
    cells = h * w
    cost[: split.start[2 * cells]] = 0.0
    for v in range(cells):
        cell = (v // w) * width + v % w
        k = split.start[2 * v]
        cost[k] = -scores[i, cell]
        if v in (s, t) or (keep.shape[0] and not keep[i, cell]):
            cost[k] = np.inf
    state.excess[:] = 0
    if s != t:
        state.excess[2 * s + 1] = 1
        state.excess[2 * t] = -1
    found = cheapest_flow(2 * cells, split, cost, state)
    for v in range(cells):
        if state.flow[split.start[2 * v]]:
            out[i, (v // w) * width + v % w] = 1
    return found


@kernel
def best_cells(
    first: int,
    last: int,
    moves: np.ndarray,
    width: int,
    sizes: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    feasible: np.ndarray,
) -> None:
    """The cells of a best flow in the leading `sizes[i]` block of a grid of this width."""
    left = np.zeros(last, np.bool_)
    sweep_cells(first, last, moves, width, sizes, source, target, scores, keep, out, feasible, left)
    most = 0
    for i in range(first, last):
        most = max(most, sizes[i, 0] * sizes[i, 1]) if left[i] else most
    links, search = new_network(most, most * len(moves)), new_search(most)
    split, state = new_network(most - most, most - most), new_flow(most - most, most - most)
    cost = np.empty(most * (len(moves) + 1))
    order = np.empty(0, np.int32)
    h, w, is_split = 0, 0, False
    for i in range(first, last):
        if not left[i]:
            continue
        if sizes[i, 0] != h or sizes[i, 1] != w:
            h, w, is_split = sizes[i, 0], sizes[i, 1], False
            grid_links(h, w, moves, links)
        s, t = source[i, 0] * w + source[i, 1], target[i, 0] * w + target[i, 1]
        ends = source[i, 0] * width + source[i, 1], target[i, 0] * width + target[i, 1]
        feasible[i] = keep.shape[0] == 0 or (keep[i, ends[0]] and keep[i, ends[1]])
        if not feasible[i]:
            continue
        for k in range(links.start[h * w]):
            cell = (links.heads[k] // w) * width + links.heads[k] % w
            cost[k] = -scores[i, cell]
            if keep.shape[0] and not keep[i, cell]:
                cost[k] = np.inf
        found = cheapest_path(h * w, order, s, t, links, cost, search)
        feasible[i] = found != UNREACHABLE
        if found == NEGATIVE_CYCLE:
            if len(state.excess) == 0:
                split = new_network(2 * most, most * (len(moves) + 1))
                state = new_flow(2 * most, most * (len(moves) + 1))
            if not is_split:
                split_cells(h * w, links, split)
                is_split = True
            feasible[i] = _best_cycles(i, h, w, width, s, t, split, scores, keep, cost, state, out)
        elif feasible[i]:
            v = t
            while v != s:
                out[i, (v // w) * width + v % w] = 1
                v = links.tails[search.pred[v]]
        out[i, ends[0]] = out[i, ends[1]] = 1


@kernel
def follow_arcs(
    first: int,
    last: int,
    network: Network,
    part: np.ndarray,
    source: np.ndarray,
    vertices: np.ndarray,
    walk: np.ndarray,
    length: np.ndarray,
) -> None:
    """The nodes of a shortest path from the source on the arcs chosen, to where a unit is left."""
    nodes, arcs = len(network.start) - 1, len(part)
    cost = np.empty(arcs)
    search = new_search(nodes)
    balance = np.empty(nodes, np.int64)
    order = np.empty(0, np.int32)
    for i in range(first, last):
        balance[:] = 0
        s, t = source[i], source[i]
        for k in range(arcs):
            chosen = vertices[i, part[k]] > 0.5
            cost[k] = 0.0 if chosen else np.inf
            balance[network.tails[k]] += chosen
            balance[network.heads[k]] -= chosen
        for v in range(nodes):
            if balance[v] > 0:
                s = v
            elif balance[v] < 0:
                t = v
        if balance[s] == 0:
            s = t = source[i]
        length[i] = 0
        if cheapest_path(nodes, order, s, t, network, cost, search) == UNREACHABLE:
            continue
        length[i] = search.hops[t] + 1
        v = t
        for j in range(length[i] - 1, -1, -1):
            walk[i, j] = v
            if j:
                v = network.tails[search.pred[v]]


PATIENCE = 50  # steps a cell of the search for a path through all cells


@kernel
def _through_all(
    s: int, t: int, count: int, links: Network, chosen: np.ndarray, step: np.ndarray, walk: np.ndarray
) -> bool:
    """Searches for a path from s to t through all the cells chosen, in depth, for a while."""
    depth, budget = 0, PATIENCE * count
    walk[0] = s
    if s == t:
        return count == 1
    chosen[s] = False
    step[s] = links.start[s]
    while depth >= 0 and budget > 0:
        budget -= 1
        u = walk[depth]
        if u == t and depth == count - 1:
            return True
        moved = False
        while u != t and step[u] < links.start[u + 1]:
            v = links.heads[step[u]]
            step[u] += 1
            if chosen[v] and (v != t or depth == count - 2):
                depth += 1
                walk[depth] = v
                chosen[v] = False
                step[v] = links.start[v]
                moved = True
                break
        if not moved:
            chosen[u] = True
            depth -= 1
    return False


@kernel
def follow_cells(
    first: int,
    last: int,
    moves: np.ndarray,
    width: int,
    sizes: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    vertices: np.ndarray,
    walk: np.ndarray,
    length: np.ndarray,
) -> None:
    """A path through all the cells chosen if a search finds one, else a shortest one."""
    most = walk.shape[1]
    links, search = new_network(most, most * len(moves)), new_search(most)
    cost, order = np.empty(most * len(moves)), np.empty(0, np.int32)
    chosen, step, cells = np.zeros(most, np.bool_), np.zeros(most, np.int64), np.zeros(most, np.int64)
    for i in range(first, last):
        h, w = sizes[i, 0], sizes[i, 1]
        grid_links(h, w, moves, links)
        s, t = source[i, 0] * w + source[i, 1], target[i, 0] * w + target[i, 1]
        count = 0
        for v in range(h * w):
            chosen[v] = vertices[i, (v // w) * width + v % w] > 0.5
            count += chosen[v]
        for k in range(links.start[h * w]):
            cost[k] = 0.0 if chosen[links.heads[k]] else np.inf
        length[i] = 0
        if not (chosen[s] and chosen[t]):
            continue
        if _through_all(s, t, count, links, chosen, step, cells):
            length[i] = count
        elif cheapest_path(h * w, order, s, t, links, cost, search) != UNREACHABLE:
            length[i] = search.hops[t] + 1
            v = t
            for j in range(length[i] - 1, -1, -1):
                cells[j] = v
                if j:
                    v = links.tails[search.pred[v]]
        for j in range(length[i]):
            walk[i, j, 0], walk[i, j, 1] = cells[j] // w, cells[j] % w
