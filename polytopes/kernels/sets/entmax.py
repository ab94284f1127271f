r"""Sparse maps onto the simplex: y = (u - t)_+^p with p = 1 / (alpha - 1), u = (alpha - 1)(s - max s).

alpha = 2 is the Euclidean projection (sparsemax), 1.5 entmax. The level t lies in [-1, 0), where the
decreasing f(t) = sum y - 1 has its root: Newton's method from the left, monotone for p >= 1 where f
is convex, kept inside a bracket otherwise.

A row is read once. Its parts fall into about 4 sqrt(d) groups, part j into group j modulo their
number, and the first pass finds each group's largest part: those alone have a level that is too low,
close to the root, and only groups whose largest part lies above it are looked at again. What is
written are the few parts of y that are not zero.

A score of -inf excludes its part. Indices of the inner loops are unsigned, so that they need no
check for negative ones and the loops run in vectors.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["LISTED", "project", "pull"]

LISTED = 64
LANES = 16
MAX_STEPS = 200  # bisection alone needs about 55
NARROW = 1e-16
TIED = 1e-15  # u - t that may be zero: for alpha > 2 its power is large


@kernel
def _fold(row: np.ndarray, tops: np.ndarray) -> None:
    """tops[j] = the largest of row[j], row[j + w], row[j + 2 w] ..., w = len(tops) <= len(row)."""
    size, width = np.uint64(len(row)), np.uint64(len(tops))
    for j in range(width):
        tops[j] = row[j]
    for start in range(width, size, width):
        for j in range(min(width, size - start)):
            score = row[start + j]
            tops[j] = score if score > tops[j] else tops[j]


@kernel
def _largest(values: np.ndarray, lanes: np.ndarray) -> float:
    few = lanes[: min(len(values), LANES)]
    _fold(values, few)
    best = few[0]
    for value in few:
        best = max(best, value)
    return np.float64(best)


@kernel
def _above(values: np.ndarray, top: float, floor: float, found: np.ndarray) -> int:
    """Where values - top >= floor, and how many."""
    count = 0
    for j in range(np.uint64(len(values))):
        found[count] = j
        count += 1 if np.float64(values[j]) - top >= floor else 0
    return count


@kernel
def _members(
    row: np.ndarray, width: int, groups: np.ndarray, top: float, floor: float, found: np.ndarray
) -> int:
    """The parts of these groups, of `width`, where row - top >= floor, and how many."""
    count = 0
    for group in groups:
        for j in range(np.uint64(group), np.uint64(len(row)), np.uint64(width)):
            found[count] = j
            count += 1 if np.float64(row[j]) - top >= floor else 0
    return count


@kernel
def _gather(
    values: np.ndarray, found: np.ndarray, count: int, top: float, scale: float, u: np.ndarray
) -> None:
    """u = scale (values - top) at the parts found."""
    for k in range(count):
        u[k] = scale * (np.float64(values[found[k]]) - top)


@kernel
def _level(u: np.ndarray, count: int, low: float, power: float) -> float:
    """The root t of sum (u - t)_+^power = 1, from a `low` that is no larger; u is overwritten."""
    t, high, last = low, 0.0, np.inf
    for _ in range(MAX_STEPS):
        total, slope, left = 0.0, 0.0, 0
        for k in range(count):
            value = u[k]
            u[left] = value
            left += 1 if value > low else 0
            rest = value - t
            if power == 1.0:
                total += rest if rest > 0.0 else 0.0
                slope += 1.0 if rest > 0.0 else 0.0
            elif power == 2.0:
                rest = rest if rest > 0.0 else 0.0
                total += rest * rest
                slope += 2.0 * rest
            elif rest > 0.0:
                share = rest**power
                total += share
                slope += power * share / rest
        count = left
        excess = total - 1.0
        low = t if excess >= 0.0 else low
        high = t if excess <= 0.0 else high
        step = excess / slope
        if high - low <= NARROW or abs(step) <= NARROW:
            return t
        gains = power >= 1.0 or abs(excess) <= 0.5 * last
        newton = low <= t + step <= high and gains
        t, last = t + step if newton else 0.5 * (low + high), abs(excess)
    return t


@kernel
def project(
    first: int,
    last: int,
    scores: np.ndarray,
    lengths: np.ndarray,
    alpha: float,
    slack: float,
    y: np.ndarray,
    parts: np.ndarray,
    counts: np.ndarray,
    levels: np.ndarray,
    objective: np.ndarray,
) -> None:
    """y `(n, d)`, which holds zeros, and what the derivative needs.

    That is: the parts with u >= t - slack, `counts` `(n,)` of them, listed in `parts`
    `(n, LISTED + 1)` if they are no more than `LISTED`; and `levels` `(n, 2)`, the largest score and
    t. `objective` `(n,)` is <s, y> - sum y^alpha / (alpha (alpha - 1)).
    """
    d = scores.shape[1]
    scale = alpha - 1.0
    power = 1.0 / scale
    width = min(d, LANES * int(np.ceil(np.sqrt(d) / 4)))
    tops, lanes = np.empty(width, scores.dtype), np.empty(LANES, scores.dtype)
    groups, found = np.empty(width + 1, np.int32), np.empty(d + 1, np.int32)
    u = np.empty(d)
    for i in range(first, last):
        row = scores[i, : lengths[i]]
        own = tops[: min(width, len(row))]
        _fold(row, own)
        top = _largest(own, lanes)
        count = _above(own, top, -power, groups)
        _gather(own, groups, count, top, scale, u)
        t = _level(u, count, -1.0, power)
        floor = t / scale - slack
        many = _above(own, top, floor, groups)
        count = _members(row, len(own), groups[:many], top, floor, found)
        _gather(row, found, count, top, scale, u)
        t = _level(u, count, t, power)
        left, best = 0, 0.0
        for k in range(count):
            j = found[k]
            score = np.float64(row[j])
            rest = scale * (score - top) - t
            parts[i, min(left, LISTED)] = j
            left += 1 if rest >= -slack else 0
            if rest > TIED:
                share = rest if power == 1.0 else rest * rest if power == 2.0 else rest**power
                y[i, j] = share
                best += share * (score - rest / (alpha * scale))
        counts[i], objective[i] = left, best
        levels[i, 0], levels[i, 1] = top, t


@kernel
def pull(
    first: int,
    last: int,
    scores: np.ndarray,
    lengths: np.ndarray,
    alpha: float,
    slack: float,
    parts: np.ndarray,
    counts: np.ndarray,
    levels: np.ndarray,
    grad: np.ndarray,
    pulled: np.ndarray,
) -> None:
    """D (grad - its mean weighted by D) at the parts that count; zeros stay elsewhere.

    D = y^(2 - alpha). Parts that are too many for the list are looked for again.
    """
    scale = alpha - 1.0
    power = 1.0 / scale - 1.0
    weights, found = np.empty(scores.shape[1]), np.empty(scores.shape[1] + 1, np.int32)
    for i in range(first, last):
        top, t = levels[i, 0], levels[i, 1]
        own, count = parts[i], counts[i]
        if count > LISTED:
            own, count = found, _above(scores[i, : lengths[i]], top, t / scale - slack, found)
        total, size = 0.0, 0.0
        for k in range(count):
            j = own[k]
            rest = scale * (np.float64(scores[i, j]) - top) - t
            if power != 0.0:  # of an alpha that is not 2
                weight = 0.0 if rest <= TIED else rest if power == 1.0 else rest**power
            else:
                weight = 1.0
            weights[k] = weight
            size += weight
            total += weight * grad[i, j]
        mean = total / size
        for k in range(count):
            j = own[k]
            pulled[i, j] = weights[k] * (grad[i, j] - mean) + 0.0  # not -0.0
