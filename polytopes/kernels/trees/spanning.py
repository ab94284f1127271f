"""Kruskal's algorithm over edges that are in order."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["constrained", "find", "kruskal"]


@kernel
def find(parent: np.ndarray, node: int) -> int:
    """The representative of a node's component; paths are halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@kernel
def kruskal(
    first: int,
    last: int,
    order: np.ndarray,
    counts: np.ndarray,
    ends: np.ndarray,
    nodes: int,
    y: np.ndarray,
    sizes: np.ndarray,
) -> None:
    """The best forests `(n, m)`, and how many edges each has `(n,)`: nodes - 1 for a tree.

    `order` `(n, m)` lists the `counts` edges that may be used, the best first; `ends` is `(m, 2)`.
    """
    parent = np.empty(nodes, np.int64)
    for i in range(first, last):
        for node in range(nodes):
            parent[node] = node
        size = 0
        for k in range(counts[i]):
            edge = order[i, k]
            a, b = find(parent, ends[edge, 0]), find(parent, ends[edge, 1])
            if a != b:
                parent[a] = b
                y[i, edge] = 1.0
                size += 1
                if size == nodes - 1:
                    break
        sizes[i] = size


@kernel
def constrained(
    order: np.ndarray,
    ends: np.ndarray,
    status: np.ndarray,
    parent: np.ndarray,
    chosen: np.ndarray,
) -> int:
    """The best forest with the edges of status 1 and without those of -1, and its size."""
    for node in range(len(parent)):
        parent[node] = node
    size = 0
    for wanted in (1, 0):
        for edge in order:
            if status[edge] != wanted:
                continue
            a, b = find(parent, ends[edge, 0]), find(parent, ends[edge, 1])
            if a != b:
                parent[a] = b
                chosen[edge] = True
                size += 1
    return size
