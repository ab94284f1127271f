"""Sums over all matchings, by a programme over subsets of the smaller side.

The larger side's members q are taken one by one. forward[q, S] is the sum over matchings of the first q
with the subset S of the smaller side, backward[S] that over matchings of the others with the rest. A
matched pair weighs exp(s_pq - u_p - v_q), an unmatched member exp(-its price), u and v being the prices
of the best matching: every factor is at most 1 and the best matching's product is 1, so that nothing
overflows, and as nothing is subtracted every sum keeps its relative accuracy. What the best matching
holds weighs exactly 1, and nothing weighs more, also where scores are so large that prices are rounded.

The permanent's own programme: Ryser, "Combinatorial mathematics" (1963), chapter 2, without signs.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["draw", "expect"]


@kernel
def _weights(
    i: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    flip: bool,
    k: int,
    m: int,
    row_price: np.ndarray,
    column_price: np.ndarray,
    best: np.ndarray,
    pair: np.ndarray,
    alone: np.ndarray,
    left: np.ndarray,
) -> float:
    """Weights of pairs (m, k), of the larger side's unmatched members (m,) and of the smaller's (k,).

    Returns the logarithm that all matchings' weights were divided by.
    """
    total = 0.0
    left[:k] = 1.0
    alone[:m] = 1.0
    for q in range(m):
        for p in range(k):
            r, c = (q, p) if flip else (p, q)
            row, column = row_price[i, r], column_price[i, c]
            if best[i, r, c] > 0.5:
                pair[q, p] = 1.0
                left[p] = np.exp(min(-(column if flip else row), 0.0))
                alone[q] = np.exp(min(-(row if flip else column), 0.0))
                total += scores[i, r, c]
            elif masked and not keep[i, r, c]:
                pair[q, p] = 0.0
            else:
                pair[q, p] = np.exp(min(scores[i, r, c] - row - column, 0.0))
    return total


@kernel
def _ends(k: int, perfect: bool, left: np.ndarray, ends: np.ndarray) -> None:
    """What each subset weighs at the end: the product over its complement, or only the whole one."""
    for subset in range(1 << k):
        weight = 1.0
        for p in range(k):
            if not (subset >> p) & 1:
                weight *= 0.0 if perfect else left[p]
        ends[subset] = weight


@kernel
def _forward(
    k: int,
    m: int,
    skip: bool,
    pair: np.ndarray,
    alone: np.ndarray,
    grad: np.ndarray,
    along: bool,
    table: np.ndarray,
    moved: np.ndarray,
) -> None:
    """forward[q, S], and its derivative along `grad` (m, k)."""
    count = 1 << k
    table[0, :count] = 0.0
    table[0, 0] = 1.0
    if along:
        moved[0, :count] = 0.0
    for q in range(m):
        for subset in range(count):
            table[q + 1, subset] = table[q, subset] * alone[q] if skip else 0.0
            if along:
                moved[q + 1, subset] = moved[q, subset] * alone[q] if skip else 0.0
        for subset in range(count):
            weight = table[q, subset]
            if weight == 0.0:
                continue
            for p in range(k):
                if not (subset >> p) & 1:
                    grown = subset | (1 << p)
                    table[q + 1, grown] += weight * pair[q, p]
                    if along:
                        slope = moved[q, subset] + weight * grad[q, p]
                        moved[q + 1, grown] += slope * pair[q, p]


@kernel
def expect(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    sizes: np.ndarray,
    perfect: bool,
    width: int,
    depth: int,
    row_price: np.ndarray,
    column_price: np.ndarray,
    best: np.ndarray,
    grad: np.ndarray,
    along: bool,
    value: np.ndarray,
    pulled: np.ndarray,
    log_total: np.ndarray,
) -> None:
    """Marginals, and where `along` their derivative along `grad` (n, N, M).

    The smaller sides have at most `width` members and the larger ones `depth`. Writes `value` or
    `pulled` (n, N, M) in the leading block, and the log-partition `log_total` (n,).
    """
    count = 1 << width
    pair, slopes, shares = np.empty((depth, width)), np.zeros((depth, width)), np.empty(width)
    moving = np.empty(width)
    alone, left = np.empty(depth), np.empty(width)
    table = np.empty((depth + 1, count))
    moved = np.empty((depth + 1, count) if along else (1, 1))
    after, before = np.empty(count), np.empty(count)
    after_moved, before_moved = np.empty(count), np.empty(count)
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        skip = not perfect or k < m
        shift = _weights(
            i, scores, keep, masked, flip, k, m, row_price, column_price, best, pair, alone, left
        )
        if along:
            for q in range(m):
                for p in range(k):
                    slopes[q, p] = grad[i, q, p] if flip else grad[i, p, q]
        _forward(k, m, skip, pair, alone, slopes, along, table, moved)
        _ends(k, perfect, left, after)
        count = 1 << k
        total, change = 0.0, 0.0
        for subset in range(count):
            after_moved[subset] = 0.0
            total += table[m, subset] * after[subset]
            if along:
                change += moved[m, subset] * after[subset]
        log_total[i] = np.log(total) + shift
        for q in range(m - 1, -1, -1):
            shares[:k] = 0.0
            moving[:k] = 0.0
            for subset in range(count):
                reach = after[subset] * alone[q] if skip else 0.0
                slope = after_moved[subset] * alone[q] if skip else 0.0
                for p in range(k):
                    if (subset >> p) & 1:
                        continue
                    grown, weight = subset | (1 << p), pair[q, p]
                    reach += weight * after[grown]
                    shares[p] += table[q, subset] * weight * after[grown]
                    if along:
                        step = after_moved[grown] + slopes[q, p] * after[grown]
                        slope += weight * step
                        moving[p] += weight * (moved[q, subset] * after[grown] + table[q, subset] * step)
                before[subset] = reach
                before_moved[subset] = slope
            after, before = before, after
            after_moved, before_moved = before_moved, after_moved
            for p in range(k):
                r, c = (q, p) if flip else (p, q)
                share = shares[p] / total
                if along:
                    pulled[i, r, c] = moving[p] / total - share * (change / total)
                else:
                    value[i, r, c] = share


@kernel
def draw(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    sizes: np.ndarray,
    perfect: bool,
    width: int,
    depth: int,
    row_price: np.ndarray,
    column_price: np.ndarray,
    best: np.ndarray,
    uniform: np.ndarray,
    match: np.ndarray,
) -> None:
    """Exact samples `match` (count, n, N), -1 at unmatched rows, by `uniform` (count, n, depth + 1)."""
    pair, nothing = np.empty((depth, width)), np.empty((1, 1))
    alone, left = np.empty(depth), np.empty(width)
    table, ends = np.empty((depth + 1, 1 << width)), np.empty(1 << width)
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        skip = not perfect or k < m
        _weights(i, scores, keep, masked, flip, k, m, row_price, column_price, best, pair, alone, left)
        _forward(k, m, skip, pair, alone, nothing, False, table, nothing)
        _ends(k, perfect, left, ends)
        total = 0.0
        for subset in range(1 << k):
            ends[subset] *= table[m, subset]
            total += ends[subset]
        for t in range(len(match)):
            rest, subset = uniform[t, i, m] * total, 0
            for candidate in range(1 << k):
                if ends[candidate] > 0.0:
                    subset = candidate
                    rest -= ends[candidate]
                    if rest < 0.0:
                        break
            for q in range(m - 1, -1, -1):
                rest = uniform[t, i, q] * table[q + 1, subset]
                chosen = -1
                if skip:
                    rest -= table[q, subset] * alone[q]
                if not skip or rest >= 0.0:
                    for p in range(k):
                        if (subset >> p) & 1:
                            weight = table[q, subset ^ (1 << p)] * pair[q, p]
                            if weight > 0.0:
                                chosen = p
                                rest -= weight
                                if rest < 0.0:
                                    break
                if chosen >= 0:
                    subset ^= 1 << chosen
                    if flip:
                        match[t, i, q] = chosen
                    else:
                        match[t, i, chosen] = q
