r"""`matrix_tree` in logarithms, each with its derivative along a direction: right at any scores.

The derivatives of logarithms are averages of the direction's entries and of their differences, so
they stay bounded where probabilities do not. One root arc only: root scores are lowered by so much
that a second root arc would cost more than all other choices together can win.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.matrix_tree import halves

__all__ = ["NEGLIGIBLE", "add", "log_marginals", "root_cost"]

Array = np.ndarray

NEGLIGIBLE = -40.0  # exp of it is nothing beside 1


@kernel
def add(a: float, da: float, b: float, db: float) -> tuple[float, float]:
    """log(exp a + exp b) and its derivative."""
    if b > a:
        a, da, b, db = b, db, a, da
    gap = b - a
    if not gap > NEGLIGIBLE:
        return a, da
    share = np.exp(gap)
    return a + np.log1p(share), (da + share * db) / (1.0 + share)


@kernel
def _redirect(
    logs: Array, slopes: Array, to: int, via: int, share: float, slope: float, first: int, k: int
) -> None:
    """Row `to` gains `share` times row `via`, from column `first` on."""
    for x in range(first, k):
        gain = share + logs[via, x]
        if gain > logs[to, x] + NEGLIGIBLE:
            logs[to, x], slopes[to, x] = add(logs[to, x], slopes[to, x], gain, slope + slopes[via, x])


@kernel
def _censor(logs: Array, slopes: Array, pivots: Array, count: int, k: int) -> None:
    """Eliminates the first `count` of k words; column k is the root."""
    for a in range(count):
        total, slope = -np.inf, 0.0
        for x in range(a + 1, k + 1):
            total, slope = add(total, slope, logs[a, x], slopes[a, x])
        pivots[a] = total
        for x in range(a + 1, k + 1):
            logs[a, x] -= total
            slopes[a, x] -= slope
        for b in range(a + 1, k):
            if logs[b, a] > -np.inf:
                _redirect(logs, slopes, b, a, logs[b, a], slopes[b, a], a + 1, k + 1)
    for a in range(count - 2, -1, -1):
        for b in range(a + 1, count):
            if logs[a, b] > -np.inf:
                _redirect(logs, slopes, a, b, logs[a, b], slopes[a, b], count, k + 1)


@kernel
def _gather(chain: Array, m: int, low: int, k: int, turn: int, part: Array) -> None:
    """The chain on k words from `low` on, in cyclic order from the one number `turn` on."""
    for a in range(k):
        source = low + (a + turn) % k
        part[a, k] = chain[source, m]
        for b in range(k):
            part[a, b] = chain[source, low + (b + turn) % k]


@kernel
def _scatter(
    part: Array,
    count: int,
    k: int,
    low: int,
    turn: int,
    chain: Array,
    m: int,
    reach: Array,
    loop: float,
) -> None:
    """Back: the censored chain of the words left, and the arrivals of those eliminated."""
    for a in range(k):
        source = low + (a + turn) % k
        if a < count:
            reach[source] = part[a, k]
        else:
            chain[source, m] = part[a, k]
        for b in range(count, k):
            chain[source, low + (b + turn) % k] = part[a, b] if a != b else loop


@kernel
def _arrive(
    chain: Array,
    turns: Array,
    reach: Array,
    slope: Array,
    start: int,
    stop: int,
    low: int,
    high: int,
    escape: Array,
    slopes: Array,
) -> None:
    """`escape` from the words in start..stop before those in low..high, by where they arrive first."""
    for a in range(start, stop):
        for m in range(low, high):
            escape[a, m] = reach[a]
            slopes[a, m] = slope[a]
        for b in range(low, high):
            if chain[a, b] > -np.inf:
                _redirect(escape, slopes, a, b, chain[a, b], turns[a, b], low, high)


@kernel
def root_cost(scores: Array, m: int) -> float:
    """More than all choices of heads can win: what a second root arc has to cost."""
    cost = 50.0 + m * np.log(m + 1.0)
    for d in range(m):
        low, high = np.inf, -np.inf
        for h in range(m):
            value = np.float64(scores[h, d])
            if value > -np.inf:
                low, high = min(low, value), max(high, value)
        cost += high - low
    return cost


@kernel
def log_marginals(
    first: int,
    last: int,
    rows: Array,
    scores: Array,
    directions: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    derivative: Array,
    log_total: Array,
) -> None:
    """The marginals of these rows, their derivative along `directions`, and log Z.

    Arrays as for `linear_marginals`; every instance has a tree.
    """
    n = scores.shape[1]
    chain, turns = np.empty((n, n + 1)), np.empty((n, n + 1))
    escape, slopes = np.empty((n, n)), np.empty((n, n))
    part, tilt = np.empty((n, n + 1)), np.empty((n, n + 1))
    other, slant = np.empty((n, n + 1)), np.empty((n, n + 1))
    pivots = np.empty(n)
    reach, slope = np.empty((64, n)), np.empty((64, n))
    low, high, level = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    for row in range(first, last):
        i: int = rows[row]
        m: int = lengths[i]
        cost = root_cost(scores[i], m) if single_root else 0.0
        for h in range(m):
            for d in range(m):
                chain[d, h] = scores[i, h, d]
                turns[d, h] = directions[i, h, d]
        for d in range(m):
            chain[d, m], turns[d, m] = chain[d, d] - cost, turns[d, d]
            chain[d, d], turns[d, d] = -np.inf, 0.0
        count = halves(m, low, high, level)
        total = cost
        for node in range(count):
            start, k = low[node], high[node] - low[node]
            half = k // 2
            _gather(chain, m, start, k, 0, part)
            _gather(turns, m, start, k, 0, tilt)
            _gather(chain, m, start, k, half, other)
            _gather(turns, m, start, k, half, slant)
            _censor(part, tilt, pivots, half, k)
            if high[node] == m:
                total += pivots[:half].sum()
            _censor(other, slant, pivots, k - half, k)
            _scatter(part, half, k, start, 0, chain, m, reach[level[node]], -np.inf)
            _scatter(tilt, half, k, start, 0, turns, m, slope[level[node]], 0.0)
            _scatter(other, k - half, k, start, half, chain, m, reach[level[node]], -np.inf)
            _scatter(slant, k - half, k, start, half, turns, m, slope[level[node]], 0.0)
        log_total[i] = total + chain[m - 1, m]
        for a in range(m):
            escape[a, a], slopes[a, a] = -np.inf, 0.0
        for node in range(count - 1, -1, -1):
            start, stop, depth = low[node], high[node], level[node]
            middle = (start + stop) // 2
            _arrive(
                chain, turns, reach[depth], slope[depth], start, middle, middle, stop, escape, slopes
            )
            _arrive(
                chain, turns, reach[depth], slope[depth], middle, stop, start, middle, escape, slopes
            )
        for d in range(m):
            escape[d, d] = -cost
            norm, mean = -np.inf, 0.0
            for h in range(m):
                escape[h, d] += scores[i, h, d]
                slopes[h, d] += directions[i, h, d]
                norm, mean = add(norm, mean, escape[h, d], slopes[h, d])
            for h in range(m):
                share = np.exp(escape[h, d] - norm)
                out[i, h, d] = share
                derivative[i, h, d] = share * (slopes[h, d] - mean)
