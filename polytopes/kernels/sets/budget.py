r"""Projections onto {0 <= y <= 1 : sum y = k} or {.. <= k}, and their best vertices.

y = clip(s - tau, 0, 1) with one multiplier tau, a root of the decreasing F(tau) = sum y - k, which is
linear between the points s and s - 1: Newton's method, kept inside a bracket, ends at its root
exactly. It runs twice, the second time on s less the first root, a difference that is exact where it
matters. Where scores lie so far apart that Newton's steps lead nowhere the second run starts from the
k-th largest score c instead: tau lies in [c - 1, c].

A score of -inf excludes its part. Sums are taken in lanes, and indices are unsigned (they need no check
for negative ones), so that the loops run in vectors.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.sets.selection import BINS, kth_largest

__all__ = ["project", "pull", "select"]

LANES = 16
FEW_STEPS = 40  # from afar; about 10 are usual
MAX_STEPS = 200  # bisection of [-1, 0] alone needs about 60
NARROW = 1e-17
NEAR = 1e-3  # of a root that is taken as the centre
FAR = 1e300  # a multiplier that settles every part


@kernel
def _gather(row: np.ndarray, values: np.ndarray) -> int:
    """The scores above -inf in `values`, and how many they are."""
    count = 0
    for score in row:
        values[count] = score
        count += 1 if score > -np.inf else 0
    return count


@kernel
def _shift(row: np.ndarray, centre: float, rest: np.ndarray) -> None:
    """rest = row - centre, -inf from there on."""
    size = np.uint64(len(row))
    for j in range(size):
        rest[j] = np.float64(row[j]) - centre
    for j in range(size, np.uint64(len(rest))):
        rest[j] = -np.inf


@kernel
def _total(lane: np.ndarray) -> float:
    total = 0.0
    for value in lane:
        total += value
    return total


@kernel
def _shares(rest: np.ndarray, tau: float, lanes: np.ndarray) -> tuple[float, float, float]:
    """The sum of clip(rest - tau, 0, 1), how many are between their bounds, and how many at 1."""
    lanes[:] = 0.0
    total, inner, above = lanes[0], lanes[1], lanes[2]
    lane = np.uint64(LANES)
    for start in range(np.uint64(0), np.uint64(len(rest)), 2 * lane):
        for j in range(lane):  # two at once: the lanes are in memory
            one, two = rest[start + j] - tau, rest[start + lane + j] - tau
            up = (1.0 if one >= 1.0 else 0.0) + (1.0 if two >= 1.0 else 0.0)
            one, two = one if one > 0.0 else 0.0, two if two > 0.0 else 0.0
            one, two = one if one < 1.0 else 1.0, two if two < 1.0 else 1.0
            total[j] += one + two
            above[j] += up
            inner[j] += (1.0 if one > 0.0 else 0.0) + (1.0 if two > 0.0 else 0.0) - up
    return _total(total), _total(inner), _total(above)


@kernel
def _root(
    rest: np.ndarray,
    goal: float,
    tau: float,
    low: float,
    high: float,
    steps: int,
    reach: float,
    lanes: np.ndarray,
) -> tuple[float, bool, bool]:
    """A tau in [low, high] at which the shares sum to `goal`; whether it is one, and a corner.

    A bracket may be infinite; then the search gives up where Newton's step is of no use. With a
    `reach` it ends where Newton's step is no longer.
    """
    last, known = np.inf, (-1.0, -1.0)
    for _ in range(steps):
        total, inner, above = _shares(rest, tau, lanes)
        excess = total - goal
        if known == (inner, above) or excess == 0.0:
            return tau, True, inner == 0.0
        low = tau if excess >= 0.0 else low
        high = tau if excess <= 0.0 else high
        if high - low <= NARROW:
            return tau, True, inner == 0.0
        target = tau + excess / inner if inner > 0.0 else np.inf
        newton = low <= target <= high and abs(excess) <= 0.5 * last and target < np.inf
        if not newton and high - low == np.inf:
            return tau, False, False
        if newton and abs(target - tau) < reach:
            return target, True, False
        known = (inner, above) if newton else (-1.0, -1.0)
        tau, last = target if newton else 0.5 * low + 0.5 * high, abs(excess)
    return tau, False, False


@kernel
def _centred(rest: np.ndarray, tau: float) -> float:
    """The middle of the interval that is as good as tau, where no part is between its bounds."""
    least, most = -np.inf, np.inf
    for value in rest:
        left = value - tau
        if left <= 0.0:
            least = max(least, left)
        else:
            most = min(most, left - 1.0)
    return tau + 0.5 * (least + most)


@kernel
def _ends(rest: np.ndarray, lanes: np.ndarray) -> tuple[float, float, int]:
    """The least and the largest number above -inf, and how many there are."""
    least, most, count = lanes[0], lanes[1], lanes[2]
    least[:], most[:], count[:] = np.inf, -np.inf, 0.0
    for start in range(np.uint64(0), np.uint64(len(rest)), np.uint64(LANES)):
        for j in range(np.uint64(LANES)):
            value = rest[start + j]
            usable = value > -np.inf
            count[j] += 1.0 if usable else 0.0
            low = value if usable else np.inf
            least[j] = low if low < least[j] else least[j]
            most[j] = value if value > most[j] else most[j]
    return least.min(), most.max(), int(_total(count))


@kernel
def _multiplier(
    row: np.ndarray, total: int, at_most: bool, rest: np.ndarray, lanes: np.ndarray, bins: np.ndarray
) -> tuple[float, float]:
    """The multiplier of the budget as centre + offset: s - centre is exact where it matters."""
    rest = rest[: 2 * LANES * ((len(row) + 2 * LANES - 1) // (2 * LANES))]
    goal = np.float64(total)
    _shift(row, 0.0, rest)
    if at_most and _shares(rest, 0.0, lanes)[0] <= goal:
        return 0.0, 0.0
    least, most, count = _ends(rest, lanes)
    if total == 0 or total >= count:
        return 0.0, FAR if total == 0 else -FAR
    middle = 0.5 * least + 0.5 * most
    centre = _root(rest, goal, middle, least - 1.0, most, FEW_STEPS, NEAR, lanes)[0]
    _shift(row, centre, rest)
    tau, found, corner = _root(rest, goal, 0.0, -np.inf, np.inf, FEW_STEPS, 0.0, lanes)
    if not found:
        centre = kth_largest(rest, _gather(row, rest), total, bins)
        _shift(row, centre, rest)
        tau, found, corner = _root(rest, goal, -1.0, -1.0, 0.0, MAX_STEPS, 0.0, lanes)
    if corner:
        tau = _centred(rest, tau)
    return (centre, max(tau, -centre)) if at_most else (centre, tau)


@kernel
def project(
    first: int,
    last: int,
    scores: np.ndarray,
    lengths: np.ndarray,
    totals: np.ndarray,
    at_most: bool,
    y: np.ndarray,
    multipliers: np.ndarray,
    objective: np.ndarray,
) -> None:
    """y `(n, d)`, the budgets' multipliers `(n, 2)`, and <s, y> - |y|^2 / 2 `(n,)`.

    Parts from `lengths` on are left alone.
    """
    rest, bins = np.empty(scores.shape[1] + 2 * LANES), np.empty(BINS, np.int64)
    lanes = np.empty((3, LANES))
    for i in range(first, last):
        row, own = scores[i, : lengths[i]], y[i]
        centre, offset = _multiplier(row, totals[i], at_most, rest, lanes, bins)
        multipliers[i, 0], multipliers[i, 1] = centre, offset
        for j in range(np.uint64(len(row))):
            share = (np.float64(row[j]) - centre) - offset
            share = share if share > 0.0 else 0.0
            share = share if share < 1.0 else 1.0
            own[j] = share
            worth = share * (np.float64(row[j]) - 0.5 * share)
            rest[j] = worth if share > 0.0 else 0.0
        objective[i] = _sum(rest, len(row), lanes[0])


@kernel
def _sum(values: np.ndarray, count: int, lane: np.ndarray) -> float:
    """The sum of the first values; `values` has room for LANES more, which are overwritten."""
    size, lane[:] = np.uint64(count), 0.0
    for j in range(size, size + np.uint64(LANES)):
        values[j] = 0.0
    for start in range(np.uint64(0), size, np.uint64(LANES)):
        for j in range(np.uint64(LANES)):
            lane[j] += values[start + j]
    return _total(lane)


@kernel
def pull(
    first: int,
    last: int,
    scores: np.ndarray,
    lengths: np.ndarray,
    multipliers: np.ndarray,
    at_most: bool,
    slack: float,
    grad: np.ndarray,
    pulled: np.ndarray,
) -> None:
    """grad at the parts whose own bounds have no multiplier, less its mean where the budget binds."""
    free, along = np.empty(scores.shape[1] + 2 * LANES), np.empty(scores.shape[1] + 2 * LANES)
    lane = np.empty(LANES)
    for i in range(first, last):
        g, out, size = grad[i], pulled[i], np.uint64(lengths[i])
        centre, offset = multipliers[i, 0], multipliers[i, 1]
        for j in range(size):
            rest = (np.float64(scores[i, j]) - centre) - offset
            free[j] = 1.0 if (rest >= -slack) & (rest <= 1.0 + slack) else 0.0
            along[j] = free[j] * g[j]
        total, count = _sum(along, lengths[i], lane), _sum(free, lengths[i], lane)
        binds = count > 0.0 and (not at_most or centre + offset > slack)
        mean = total / count if binds else 0.0
        for j in range(size):
            out[j] = (g[j] - mean) * free[j] + 0.0  # not -0.0


@kernel
def select(
    first: int,
    last: int,
    scores: np.ndarray,
    lengths: np.ndarray,
    totals: np.ndarray,
    at_most: bool,
    y: np.ndarray,
) -> None:
    """1 at the `totals` largest parts, the first ones of equals; with `at_most` above 0 alone."""
    values, bins = np.empty(scores.shape[1]), np.empty(BINS, np.int64)
    for i in range(first, last):
        row = scores[i, : lengths[i]]
        count = _gather(row, values)
        total = min(totals[i], count)
        if total == 0:
            continue
        least = kth_largest(values, count, total, bins)
        if at_most and least <= 0.0:
            for j, score in enumerate(row):
                y[i, j] = 1.0 if score > 0.0 else 0.0
            continue
        ties = total
        for score in row:
            ties -= 1 if score > least else 0
        for j, score in enumerate(row):
            y[i, j] = 1.0 if score > least else 0.0
            if score == least and ties > 0:
                y[i, j] = 1.0
                ties -= 1
