"""A binary heap of nodes by distance, ties by the number of arcs, then as they stand."""

from __future__ import annotations

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.network import Search

__all__ = ["lower", "pop"]


@kernel
def _before(search: Search, a: int, b: int) -> bool:
    """Whether node a comes out before node b."""
    if search.dist[a] != search.dist[b]:
        return bool(search.dist[a] < search.dist[b])
    return bool(search.hops[a] < search.hops[b])


@kernel
def _up(search: Search, i: int) -> None:
    """Moves the entry i to where its parent comes before it."""
    heap, place = search.heap, search.place
    node = heap[i]
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(search, node, heap[parent]):
            break
        heap[i] = heap[parent]
        place[heap[i]] = i
        i = parent
    heap[i] = node
    place[node] = i


@kernel
def _down(search: Search, size: int, i: int) -> None:
    """Moves the entry i to where it comes before its children."""
    heap, place = search.heap, search.place
    node = heap[i]
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        if child + 1 < size and _before(search, heap[child + 1], heap[child]):
            child += 1
        if not _before(search, heap[child], node):
            break
        heap[i] = heap[child]
        place[heap[i]] = i
        i = child
    heap[i] = node
    place[node] = i


@kernel
def lower(search: Search, size: int, node: int) -> int:
    """Takes in a node, or one whose distance fell; the new size."""
    i = search.place[node]
    if i < 0:
        i = size
        search.heap[i] = node
        size += 1
    _up(search, i)
    return size


@kernel
def pop(search: Search, size: int) -> int:
    """Takes out the first node of a heap of this size."""
    first = search.heap[0]
    search.place[first] = -1
    if size > 1:
        search.heap[0] = search.heap[size - 1]
        _down(search, size - 1, 0)
    return int(first)
