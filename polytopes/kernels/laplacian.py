"""Factors of weighted graph Laplacians, for any weights on one pattern.

Elimination adds positive terms only (a pivot is the sum of its column, as in the algorithm of
Grassmann, Taksar and Heyman for Markov chains), so that every entry keeps its relative accuracy at
weights of any range: a weight of 1e30 joins two nodes, one of 0 parts them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["Pattern", "factor", "pattern_of", "substitute"]


class Pattern(NamedTuple):
    """The columns of the factor, in the order of elimination: those of k are `start[k]:start[k + 1]`."""

    place: np.ndarray  # (nodes,): when each node is eliminated
    start: np.ndarray  # (nodes + 1,)
    rows: np.ndarray  # (entries,), ascending in each column
    slots: np.ndarray  # (arcs,): the entry of each arc, -1 for a loop


@kernel
def pattern_of(tails: np.ndarray, heads: np.ndarray, place: np.ndarray) -> Pattern:
    """The fill that this order of elimination makes."""
    nodes, arcs = len(place), len(tails)
    begin = np.zeros(nodes + 1, np.int64)
    for k in range(arcs):
        begin[min(place[tails[k]], place[heads[k]]) + 1] += 1
    for k in range(nodes):
        begin[k + 1] += begin[k]
    fill, upper = begin.copy(), np.empty(arcs, np.int64)
    for k in range(arcs):
        a, b = place[tails[k]], place[heads[k]]
        upper[fill[min(a, b)]] = max(a, b)
        fill[min(a, b)] += 1
    start = np.zeros(nodes + 1, np.int64)
    rows = np.empty(8 * (nodes + arcs), np.int32)
    child, sibling = np.full(nodes, -1, np.int64), np.full(nodes, -1, np.int64)
    mark, column = np.full(nodes, -1, np.int64), np.empty(nodes, np.int64)
    for k in range(nodes):
        count = 0
        mark[k] = k
        for j in range(begin[k], begin[k + 1]):
            if mark[upper[j]] != k:
                mark[upper[j]] = k
                column[count] = upper[j]
                count += 1
        c = child[k]
        while c >= 0:
            for j in range(start[c], start[c + 1]):
                if mark[rows[j]] != k:
                    mark[rows[j]] = k
                    column[count] = rows[j]
                    count += 1
            c = sibling[c]
        start[k + 1] = start[k] + count
        if start[k + 1] > len(rows):
            longer = np.empty(2 * len(rows) + count, np.int32)
            longer[: start[k]] = rows[: start[k]]
            rows = longer
        if count:
            rows[start[k] : start[k + 1]] = column[:count]
            parent = nodes
            for j in range(count):
                parent = min(parent, column[j])
            sibling[k] = child[parent]
            child[parent] = k
    rows = _sorted(start, rows[: start[nodes]])
    slots = np.full(arcs, -1, np.int64)
    for k in range(arcs):
        a, b = min(place[tails[k]], place[heads[k]]), max(place[tails[k]], place[heads[k]])
        low, high = start[a], start[a + 1] - 1
        while low < high:
            middle = (low + high) >> 1
            if rows[middle] < b:
                low = middle + 1
            else:
                high = middle
        if a != b:
            slots[k] = low
    return Pattern(place, start, rows, slots)


@kernel
def _sorted(start: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows of each column in ascending order: the pattern transposed, and back."""
    nodes = len(start) - 1
    count = np.zeros(nodes + 1, np.int64)
    for j in range(len(rows)):
        count[rows[j] + 1] += 1
    for k in range(nodes):
        count[k + 1] += count[k]
    columns, ends = np.empty(len(rows), np.int64), count.copy()
    for k in range(nodes):
        for j in range(start[k], start[k + 1]):
            columns[ends[rows[j]]] = k
            ends[rows[j]] += 1
    ordered, place = np.empty(len(rows), np.int32), start.copy()
    for row in range(nodes):
        for j in range(count[row], count[row + 1]):
            ordered[place[columns[j]]] = row
            place[columns[j]] += 1
    return ordered


@kernel
def factor(
    pattern: Pattern, weights: np.ndarray, values: np.ndarray, pivots: np.ndarray, work: np.ndarray
) -> None:
    """Eliminates all nodes: column k of `values` (negated) and `pivots[k]`. `work` is (3, nodes)."""
    start, rows = pattern.start, pattern.rows
    nodes = len(pivots)
    column, link, position = work[0], work[1], work[2]
    values[:] = 0.0
    for k in range(len(weights)):
        if pattern.slots[k] >= 0:
            values[pattern.slots[k]] += weights[k]
    link[:nodes] = -1.0  # the columns whose next row is this one
    for k in range(nodes):
        for j in range(start[k], start[k + 1]):
            column[rows[j]] = values[j]
        c = int(link[k])
        while c >= 0:
            after = int(link[c])
            j = int(position[c])
            if pivots[c] > 0.0:
                share = values[j] / pivots[c]
                if share > 0.0:
                    for i in range(j + 1, start[c + 1]):
                        column[rows[i]] += share * values[i]
            if j + 1 < start[c + 1]:
                position[c] = j + 1
                link[c] = link[rows[j + 1]]
                link[rows[j + 1]] = c
            c = after
        total = 0.0
        for j in range(start[k], start[k + 1]):
            values[j] = column[rows[j]]
            total += values[j]
        pivots[k] = total
        if start[k] < start[k + 1]:
            position[k] = start[k]
            link[k] = link[rows[start[k]]]
            link[rows[start[k]]] = k


@kernel
def substitute(pattern: Pattern, values: np.ndarray, pivots: np.ndarray, x: np.ndarray) -> None:
    """Solves over x, in the order of elimination; the last node of each component gets 0."""
    start, rows = pattern.start, pattern.rows
    for k in range(len(pivots)):
        if pivots[k] > 0.0:
            x[k] /= pivots[k]
            for j in range(start[k], start[k + 1]):
                x[rows[j]] += values[j] * x[k]
        else:
            x[k] = 0.0
    for k in range(len(pivots) - 1, -1, -1):
        if pivots[k] > 0.0:
            total = 0.0
            for j in range(start[k], start[k + 1]):
                total += values[j] * x[rows[j]]
            x[k] += total / pivots[k]
