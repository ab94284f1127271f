"""Directed networks as sorted arcs, and the workspaces of searches on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = [
    "Network",
    "Search",
    "grid_links",
    "new_network",
    "new_search",
    "split_cells",
    "topological",
    "transpose",
]


class Network(NamedTuple):
    """Arcs sorted by tail: those that leave v are `start[v] .. start[v + 1]`."""

    start: np.ndarray  # (nodes + 1,)
    tails: np.ndarray  # (arcs,)
    heads: np.ndarray  # (arcs,)
    start_in: np.ndarray  # (nodes + 1,), into
    incoming: np.ndarray  # (arcs,), the arcs sorted by head


class Search(NamedTuple):
    """The state of a search by distance from a node, `(nodes,)` each."""

    dist: np.ndarray
    hops: np.ndarray
    pred: np.ndarray  # the arc that a node was reached by, -1 at the root
    heap: np.ndarray
    place: np.ndarray  # where in the heap a node stands, -1 outside


@kernel
def new_network(nodes: int, arcs: int) -> Network:
    """Room for a network of this size."""
    return Network(
        np.zeros(nodes + 1, np.int32),
        np.zeros(arcs, np.int32),
        np.zeros(arcs, np.int32),
        np.zeros(nodes + 1, np.int32),
        np.zeros(arcs, np.int32),
    )


@kernel
def new_search(nodes: int) -> Search:
    """An empty workspace."""
    return Search(
        np.full(nodes, np.inf),
        np.zeros(nodes, np.int32),
        np.full(nodes, -1, np.int32),
        np.zeros(nodes, np.int32),
        np.full(nodes, -1, np.int32),
    )


@kernel
def grid_links(h: int, w: int, moves: np.ndarray, network: Network) -> None:
    """The moves of an h by w grid, from each cell in row order to its neighbours."""
    k = 0
    for r in range(h):
        for c in range(w):
            cell = r * w + c
            network.start[cell] = k
            for m in range(len(moves)):
                y, x = r + moves[m, 0], c + moves[m, 1]
                if 0 <= y < h and 0 <= x < w:
                    network.tails[k] = cell
                    network.heads[k] = y * w + x
                    k += 1
    network.start[h * w] = k


@kernel
def split_cells(cells: int, links: Network, split: Network) -> None:
    """Each cell v as an arc from 2v to 2v + 1, and each move from u to v as one from 2u + 1 to 2v."""
    k = 0
    for v in range(cells):
        split.start[2 * v] = k
        split.tails[k], split.heads[k] = 2 * v, 2 * v + 1
        k += 1
        split.start[2 * v + 1] = k
        for e in range(links.start[v], links.start[v + 1]):
            split.tails[k], split.heads[k] = 2 * v + 1, 2 * links.heads[e]
            k += 1
    split.start[2 * cells] = k
    transpose(2 * cells, split)


@kernel
def transpose(nodes: int, network: Network) -> None:
    """Sorts the arcs by head, in a stable way."""
    start, heads = network.start_in, network.heads
    arcs = network.start[nodes]
    start[: nodes + 1] = 0
    for k in range(arcs):
        start[heads[k] + 1] += 1
    for v in range(nodes):
        start[v + 1] += start[v]
    for k in range(arcs):
        network.incoming[start[heads[k]]] = k
        start[heads[k]] += 1
    for v in range(nodes, 0, -1):
        start[v] = start[v - 1]
    start[0] = 0


@kernel
def topological(nodes: int, network: Network, order: np.ndarray) -> bool:
    """Writes the nodes so that tails come before heads; False where there is a cycle."""
    waiting = network.start_in[1:] - network.start_in[:-1]
    count = 0
    for v in range(nodes):
        if waiting[v] == 0:
            order[count] = v
            count += 1
    done = 0
    while done < count:
        u = order[done]
        done += 1
        for k in range(network.start[u], network.start[u + 1]):
            v = network.heads[k]
            waiting[v] -= 1
            if waiting[v] == 0:
                order[count] = v
                count += 1
    return count == nodes
