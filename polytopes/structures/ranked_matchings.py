"""The k best matchings, by splitting what is left into smaller assignment problems."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

import numpy as np

from spigot.polytopes.kernels.bipartite.assignment import assign

__all__ = ["ranked_matchings"]


@dataclass(order=True)
class _Node:
    """A set of matchings, those within `allowed`, and the best of it; the best set comes first."""

    loss: float
    number: int
    match: np.ndarray = field(compare=False)  # (k,), each row's column
    allowed: np.ndarray = field(compare=False)  # (k, m)


def ranked_matchings(scores: np.ndarray, keep: np.ndarray, perfect: bool, k: int) -> list[np.ndarray]:
    """Up to k matchings (rows,), each row's column or -1, best first, of one instance `(rows, columns)`.

    Each set is split by its best matching: one part for every row, in which the rows before keep their
    columns and this one gets another. A row that may stay unmatched gets a column of its own.

    Murty, "An algorithm for ranking all the assignments in order of increasing cost" (1968).
    """
    rows, columns = scores.shape
    if rows > columns:
        turned = ranked_matchings(scores.T, keep.T, perfect, k)
        return [_inverse(match, rows) for match in turned]
    if not perfect:
        scores = np.concatenate([scores, np.zeros((rows, rows))], axis=1)
        keep = np.concatenate([keep, np.eye(rows, dtype=np.bool_)], axis=1)
    numbers = count()
    waiting: list[_Node] = []
    found: list[np.ndarray] = []
    _solve(scores, np.ascontiguousarray(keep)[None], waiting, numbers)
    while waiting and len(found) < k:
        node = heappop(waiting)
        found.append(np.where(node.match < columns, node.match, -1))
        if len(found) < k:
            _solve(scores, _parts(node), waiting, numbers)
    return found


def _inverse(match: np.ndarray, rows: int) -> np.ndarray:
    """Each row's column from each column's row."""
    turned = np.full(rows, -1, dtype=np.int64)
    turned[match[match >= 0]] = np.flatnonzero(match >= 0)
    return turned


def _parts(node: _Node) -> np.ndarray:  # (parts, k, m)
    """What the node's set holds besides its best matching, in disjoint parts."""
    rows = len(node.match)
    parts = np.repeat(node.allowed[None], rows, axis=0)
    for row, column in enumerate(node.match):
        parts[row, row, column] = False
        parts[row + 1 :, row, :] = False
        parts[row + 1 :, :, column] = False
        parts[row + 1 :, row, column] = True
    return parts


def _solve(scores: np.ndarray, allowed: np.ndarray, waiting: list[_Node], numbers: count[int]) -> None:
    """The best matching of each part that has one joins the heap."""
    n, (rows, columns) = len(allowed), scores.shape
    match = np.full((n, rows), -1, dtype=np.int64)
    prices = np.zeros((n, rows)), np.zeros((n, columns))
    found = np.zeros(n, dtype=np.bool_)
    batch = np.repeat(scores[None], n, axis=0)
    sizes = np.full((n, 2), (rows, columns), dtype=np.int64)
    assign(0, n, batch, allowed, True, sizes, True, match, *prices, found)
    for i in np.flatnonzero(found):
        value = float(scores[np.arange(rows), match[i]].sum())
        heappush(waiting, _Node(-value, next(numbers), match[i], allowed[i]))
