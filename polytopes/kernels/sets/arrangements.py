"""Sums over all the ways to hand sorted weights to items: a programme over sets of items.

before[S] = log of the sum, over the orders in which the first |S| weights go to the items of S, of
exp(sum of weight times score), and after[S] the same for the weights that are left and the items
outside S. One step to the set S takes an item i and multiplies by exp(weights[|S|] s_i), less what
the best arrangement, the sorted one, has there: so large scores lose no digits. All of it is in log
space, so peaked scores stay right.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["chances", "draw"]


@kernel
def _sizes(most: int) -> np.ndarray:
    """How many items each set has."""
    sizes = np.zeros(1 << most, np.int64)
    for s in range(1, 1 << most):
        sizes[s] = sizes[s >> 1] + (s & 1)
    return sizes


@kernel
def _energy(row: np.ndarray, items: np.ndarray, count: int, k: int, i: int) -> float:
    """What item i loses or wins by the weight of rank k; 0 in the best arrangement.

    Items and weights are sorted, and a constant more on all weights changes all arrangements alike.
    """
    return (row[k] - row[count - 1]) * (items[i] - items[k])


@kernel
def _fill(
    items: np.ndarray,
    count: int,
    row: np.ndarray,
    sizes: np.ndarray,
    moving: bool,
    speed: np.ndarray,
    forwards: bool,
    table: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """`before` (forwards) or `after`, and with `moving` their derivatives along `speed`."""
    last = (1 << count) - 1
    for step in range(last + 1):
        s = step if forwards else last - step
        if step == 0:
            table[s], slopes[s] = 0.0, 0.0
            continue
        k = sizes[s] - 1 if forwards else sizes[s]
        top = -np.inf
        for i in range(count):
            bit = 1 << i
            if ((s & bit) != 0) == forwards:
                top = max(top, table[s ^ bit] + _energy(row, items, count, k, i))
        total, slope = 0.0, 0.0
        for i in range(count):
            bit = 1 << i
            if ((s & bit) != 0) == forwards:
                part = np.exp(table[s ^ bit] + _energy(row, items, count, k, i) - top)
                total += part
                if moving:
                    slope += part * (slopes[s ^ bit] + row[k] * speed[i])
        table[s], slopes[s] = top + np.log(total), slope / total


@kernel
def _gather(values: np.ndarray, order: np.ndarray, count: int, items: np.ndarray) -> None:
    for i in range(count):
        items[i] = values[order[i]]


@kernel
def chances(
    first: int,
    last: int,
    scores: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    direction: np.ndarray,
    total: np.ndarray,
    chance: np.ndarray,
    moved: np.ndarray,
) -> None:
    """log of the sum `(n,)`, and the chance `(n, d, d)` that item i has weight k.

    With a direction `(n, d)`, not `(0, d)`, `moved` `(n, d, d)` is the chances' derivative along it.
    """
    most = 0
    for i in range(first, last):
        most = max(most, counts[i])
    sizes = _sizes(most)
    before, after = np.empty(1 << most), np.empty(1 << most)
    dbefore, dafter = np.empty(1 << most), np.empty(1 << most)
    items, speed = np.empty(most), np.zeros(most)
    shared = weights.shape[0] == 1
    moving = direction.shape[0] > 0
    for i in range(first, last):
        row = weights[0 if shared else i]
        count = counts[i]
        _gather(scores[i], order[i], count, items)
        if moving:
            _gather(direction[i], order[i], count, speed)
        _fill(items, count, row, sizes, moving, speed, True, before, dbefore)
        _fill(items, count, row, sizes, moving, speed, False, after, dafter)
        every = (1 << count) - 1
        total[i] = before[every] + (row[:count] * items[:count]).sum()
        for s in range(every):
            k = sizes[s]
            for j in range(count):
                bit = 1 << j
                if s & bit:
                    continue
                log = before[s] + _energy(row, items, count, k, j) + after[s | bit]
                part = np.exp(log - before[every])
                item = order[i, j]
                chance[i, item, k] += part
                if moving:
                    slope = dbefore[s] + row[k] * speed[j] + dafter[s | bit] - dbefore[every]
                    moved[i, item, k] += part * slope


@kernel
def draw(
    first: int,
    last: int,
    scores: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    uniform: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Samples `(m, n, d)` from uniform numbers of that shape: who has the last weight, and so on."""
    most = 0
    for i in range(first, last):
        most = max(most, counts[i])
    sizes = _sizes(most)
    before, slopes = np.empty(1 << most), np.empty(1 << most)
    items = np.empty(most)
    shared = weights.shape[0] == 1
    for i in range(first, last):
        row = weights[0 if shared else i]
        count = counts[i]
        _gather(scores[i], order[i], count, items)
        _fill(items, count, row, sizes, False, items, True, before, slopes)
        for m in range(uniform.shape[0]):
            s = (1 << count) - 1
            for k in range(count - 1, -1, -1):
                left = uniform[m, i, k]
                chosen = -1
                for j in range(count):
                    bit = 1 << j
                    if s & bit:
                        chosen = j
                        energy = _energy(row, items, count, k, j)
                        left -= np.exp(before[s ^ bit] + energy - before[s])
                        if left < 0:
                            break
                drawn[m, i, order[i, chosen]] = row[k]
                s ^= 1 << chosen
