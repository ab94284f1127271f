r"""Projections onto {0 <= y <= 1 : sum y = k} or {.. <= k}, and their best vertices.

With c the k-th largest score, y = clip(s - c - tau, 0, 1), and tau lies in [-1, 0]: scores above
c + 1 are at 1 and those below c - 1 at 0 whatever tau is, so that what is left, usually little, is
gathered and the rest never looked at again. The decreasing F(tau) = sum y - k is linear between the
scores: Newton's method, kept inside a bracket, ends at its root exactly; parts that the bracket
decides are dropped as it shrinks.

A score of -inf excludes its part. Loops over parts multiply by 0 or 1 where a branch would be
mispredicted half of the time.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.selection import BINS, kth_largest

__all__ = ["project", "pull", "select"]

MAX_STEPS = 200  # bisection alone needs at most about 60
NARROW = 1e-17
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
def _root(part: np.ndarray, count: int, goal: float) -> float:
    """A tau in [-1, 0] at which the clipped parts sum to `goal`."""
    low, high, tau = -1.0, 0.0, -1.0
    total, size, settled = 0.0, 0.0, 0.0  # parts that are between their bounds, or at 1, for good
    last, known = np.inf, (-1.0, -1.0)
    for _ in range(MAX_STEPS):
        inside, inner, above = total, size, settled
        for i in range(count):
            up = 1.0 if part[i] - tau >= 1.0 else 0.0
            between = (1.0 if part[i] > tau else 0.0) - up
            above += up
            inner += between
            inside += part[i] * between
        if known == (inner, above):
            return tau  # the root of the linear piece that it lies on
        excess = inside - inner * tau + above - goal
        low = tau if excess >= 0.0 else low
        high = tau if excess <= 0.0 else high
        if high - low <= NARROW:
            return tau
        target = (inside + above - goal) / inner if inner > 0.0 else 2.0
        newton = low <= target <= high and abs(excess) <= 0.5 * last
        known = (inner, above) if newton else (-1.0, -1.0)
        tau, last = target if newton else 0.5 * (low + high), abs(excess)
        left = 0
        for i in range(count):
            value = part[i]
            up = 1.0 if value >= 1.0 + high else 0.0
            between = 1.0 if (value >= high) & (value <= 1.0 + low) else 0.0
            settled += up
            size += between
            total += value * between
            part[left] = value
            left += 1 if (value > low) & (up + between == 0.0) else 0
        count = left
    return tau


@kernel
def _centred(row: np.ndarray, centre: float, tau: float) -> float:
    """tau; the middle of the interval that is as good, where no part is between its bounds."""
    least, most = -np.inf, np.inf
    for score in row:
        rest = (score - centre) - tau
        if 0.0 < rest < 1.0:
            return tau
        if rest <= 0.0:
            least = max(least, rest)
        else:
            most = min(most, rest - 1.0)
    return tau + 0.5 * (least + most)


@kernel
def _multiplier(
    row: np.ndarray, total: int, at_most: bool, values: np.ndarray, bins: np.ndarray
) -> tuple[float, float]:
    """The multiplier of the budget as centre + offset: s - centre is exact where it matters."""
    if at_most:
        free = 0.0
        for score in row:
            free += min(max(np.float64(score), 0.0), 1.0)
        if free <= total:
            return 0.0, 0.0
    count = _gather(row, values)
    if total == 0 or total >= count:
        return 0.0, FAR if total == 0 else -FAR
    centre = kth_largest(values, count, total, bins)
    left, above = 0, 0
    for score in row:
        rest = score - centre
        above += 1 if rest >= 1.0 else 0
        values[left] = rest
        left += 1 if (rest > -1.0) & (rest < 1.0) else 0
    tau = _centred(row, centre, _root(values, left, np.float64(total - above)))
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
    values, bins = np.empty(scores.shape[1]), np.empty(BINS, np.int64)
    for i in range(first, last):
        row = scores[i, : lengths[i]]
        centre, offset = _multiplier(row, totals[i], at_most, values, bins)
        multipliers[i, 0], multipliers[i, 1] = centre, offset
        best = 0.0
        for j, score in enumerate(row):
            share = min(max((score - centre) - offset, 0.0), 1.0)
            y[i, j] = share
            best += share * ((score if score > -np.inf else 0.0) - 0.5 * share)
        objective[i] = best


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
    for i in range(first, last):
        row, g, out = scores[i, : lengths[i]], grad[i], pulled[i]
        centre, offset = multipliers[i, 0], multipliers[i, 1]
        total, size = 0.0, 0.0
        for j, score in enumerate(row):
            rest = (score - centre) - offset
            free = 1.0 if (rest >= -slack) & (rest <= 1.0 + slack) else 0.0
            total += g[j] * free
            size += free
        binds = size > 0.0 and (not at_most or centre + offset > slack)
        mean = total / size if binds else 0.0
        for j, score in enumerate(row):
            rest = (score - centre) - offset
            free = 1.0 if (rest >= -slack) & (rest <= 1.0 + slack) else 0.0
            out[j] = (g[j] - mean) * free + 0.0  # not -0.0


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
