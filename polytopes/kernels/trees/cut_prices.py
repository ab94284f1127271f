r"""The best multipliers of a few cuts: a convex, piecewise quadratic minimum by semismooth Newton.

With multipliers l_S >= 0 for the cuts at hand, every word's heads are a sparsemax of its scores, each
arc inside S lowered by l_S, and the dual

    D(l) = sum over words of the conjugate of sparsemax + sum over S of l_S (|S| - 1)

is to be minimised. Newton's step is cut off at 0 (Bertsekas' projected Newton: multipliers that should
fall to 0 by themselves go there at once); where it does not help, a line search follows D's slope.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.cholesky import substitute
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.separation import Cuts, Use

__all__ = ["Columns", "Trial", "curvature", "heads", "hold", "minimise", "solve"]

Array = np.ndarray
STEPS, HALVINGS, PROBES = 100, 6, 60
FLAT = 1e-11  # a pivot of a direction without curvature: entries are sums of 1 and of 1 / size
NEAR = 1e3  # tolerances: as good as rounding allows, where no more steps help


class Columns(NamedTuple):
    """The words' scores, the cuts that hold them, and the heads that a sparsemax has to look at."""

    scores: Array  # (n, n), [dependent, head], the dependent itself for the root; 0 at the best
    holding: Array  # (n, cuts), int32: the cuts that hold a word,
    held: Array  # (n,), int32: and how many these are
    lowered: Array  # (n,): the scores of the word just looked at less the cuts' prices,
    near: Array  # (n,), int32: its candidates,
    short: Array  # (n,): and their lowered scores, 0 at the best
    level: Array  # (n,): each word's threshold


class Trial(NamedTuple):
    """Newton's work space, an entry a cut."""

    slope: Array
    steep: Array
    price: Array
    free: Array  # int32
    common: Array  # (2, cuts), int32
    order: Array  # int32
    move: Array
    matrix: Array  # (cuts, cuts)


@kernel
def _copy(source: Array, count: int, target: Array) -> None:
    """The first entries; assigning a slice would compile its error messages too."""
    for k in range(count):
        target[k] = source[k]


@kernel
def hold(columns: Columns, m: int, cuts: Cuts, count: int) -> None:
    """Lists the cuts that hold each word."""
    for d in range(m):
        columns.held[d] = 0
    for k in range(count):
        for j in range(cuts.members[k, -1]):
            d = cuts.members[k, j]
            columns.holding[d, columns.held[d]] = k
            columns.held[d] += 1


@kernel
def heads(
    columns: Columns, first: int, last: int, m: int, cuts: Cuts, price: Array, slack: float, use: Use
) -> int:
    """The sparsemax over each word's heads, into rows of `use`; words first to last - 1.

    Thresholds go to `columns.level`. Returns how many candidates the last word has: the heads within
    1 + slack of the best one.
    """
    scores, holding, held, lowered, near, short, level = columns
    inside, head, share, size = cuts.inside, use.head, use.share, use.size
    number = 0
    for d in range(first, last):
        for h in range(m):
            lowered[h] = scores[d, h]
        for j in range(held[d]):
            k = holding[d, j]
            cost = price[k]
            if cost != 0.0:
                for h in range(m):
                    lowered[h] -= cost * inside[k, h]
        lowered[d] = scores[d, d]
        a, b = lowered[0], lowered[0]  # the largest, by two chains of comparisons
        for j in range(m // 2):
            a, b = max(a, lowered[2 * j]), max(b, lowered[2 * j + 1])
        best = max(max(a, b), lowered[m - 1])
        least = best - 1.0 - slack
        number = 0
        for h in range(m):
            near[number], short[number] = h, lowered[h] - best
            number += lowered[h] >= least
        bound, active = -2.0, number + 1
        while True:  # means over ever fewer heads
            total, kept = 0.0, 0
            for j in range(number):
                if short[j] > bound:
                    total += short[j]
                    kept += 1
            if kept >= active:
                break
            bound, active = (total - 1.0) / kept, kept
        kept = 0
        for j in range(number):
            if short[j] > bound:
                head[d, kept], share[d, kept] = near[j], short[j] - bound
                kept += 1
        size[d] = kept
        level[d] = best + bound
    return number


@kernel
def _evaluate(
    columns: Columns, m: int, cuts: Cuts, price: Array, count: int, use: Use, slope: Array
) -> float:
    """The dual's value and its gradient `slope`: |S| - 1 less the arcs inside S."""
    heads(columns, 0, m, m, cuts, price, 0.0, use)
    value = 0.0
    inside, members, holding, held, level = (
        cuts.inside, cuts.members, columns.holding, columns.held, columns.level,
    )  # fmt: skip
    head, share, size = use.head, use.share, use.size
    for k in range(count):
        slope[k] = members[k, -1] - 1.0
        value += price[k] * slope[k]
    for d in range(m):
        value += level[d]
        for e in range(size[d]):
            part = share[d, e]
            value += 0.5 * part * part
            h = head[d, e]
            for j in range(held[d] if h != d else 0):
                k = holding[d, j]
                slope[k] -= part * inside[k, h]
    return value


@kernel
def curvature(
    m: int, inside: Array, use: Use, free: Array, number: int, shift: float, common: Array, matrix: Array
) -> None:
    """The dual's generalised Hessian on the free cuts: a word's is sparsemax's, I - 1 1' / size.

    A cut that holds all of a word's heads in use, or none, has none there. `common` (2, cuts) is
    workspace.
    """
    for a in range(number):
        for b in range(a):
            matrix[a, b] = 0.0
        matrix[a, a] = shift
    head, sizes = use.head, use.size
    for d in range(m):
        size: int = sizes[d]
        if size == 1:
            continue
        found = 0
        for a in range(number):
            k = free[a]
            if not inside[k, d]:
                continue
            here = 0
            for e in range(size):
                h = head[d, e]
                here += h != d and inside[k, h] != 0
            if 0 < here < size:
                common[0, found], common[1, found] = a, here
                found += 1
        for i in range(found):
            a = common[0, i]
            for j in range(i + 1):
                b = common[0, j]
                both = 0
                for e in range(size):
                    h = head[d, e]
                    both += h != d and inside[free[a], h] != 0 and inside[free[b], h] != 0
                matrix[a, b] += both - common[1, i] * common[1, j] / size


@kernel
def solve(matrix: Array, number: int, move: Array) -> None:
    """matrix x = move by Cholesky's factors, in place, 0 along flat directions; reads the lower half."""
    for a in range(number):
        for b in range(a + 1):
            total = matrix[a, b]
            for c in range(b):
                total -= matrix[a, c] * matrix[b, c]
            if a == b:
                matrix[a, a] = np.sqrt(total) if total > FLAT else np.inf
            else:
                matrix[a, b] = total / matrix[b, b]
    substitute(matrix, number, move)


@kernel
def _residual(price: Array, slope: Array, count: int, equation: bool, tolerance: float) -> float:
    """How far the multipliers are from optimal."""
    worst = 0.0
    for k in range(count):
        if price[k] > 0.0 or slope[k] < -tolerance or (equation and k == 0):
            worst = max(worst, abs(slope[k]))
    return worst


@kernel
def _direct(
    m: int, cuts: Cuts, count: int, equation: bool, residual: float, tolerance: float, use: Use,
    trial: Trial,
) -> int:  # fmt: skip
    """Newton's move on the multipliers that may move; how many these are.

    One that Newton's method on it alone would take to 0 or below goes to 0.
    """
    number = 0
    for k in range(count):
        if cuts.price[k] > 0.0 or trial.slope[k] < -tolerance or (equation and k == 0):
            trial.free[number] = k
            number += 1
    shift = 1e-9 + 1e-4 * min(1.0, residual)
    curvature(m, cuts.inside, use, trial.free, number, shift, trial.common, trial.matrix)
    kept, ends = 0, number
    for a in range(number):
        k = trial.free[a]
        ending = cuts.price[k] > 0.0 and cuts.price[k] * trial.matrix[a, a] <= trial.slope[k]
        if ending and not (equation and k == 0):
            continue
        trial.common[0, kept] = a
        for b in range(kept + 1):
            trial.matrix[kept, b] = trial.matrix[a, trial.common[0, b]]
        kept += 1
    for a in range(number - 1, -1, -1):  # those that end go last
        if kept > 0 and trial.common[0, kept - 1] == a:
            kept -= 1
            trial.order[kept] = trial.free[a]
        else:
            ends -= 1
            trial.order[ends] = trial.free[a]
    _copy(trial.order, number, trial.free)
    for a in range(number):
        k = trial.free[a]
        trial.move[a] = -trial.slope[k] if a < ends else -cuts.price[k]
    solve(trial.matrix, ends, trial.move)
    return number


@kernel
def _shoot(
    columns: Columns, m: int, cuts: Cuts, count: int, equation: bool, number: int, value: float,
    residual: float, tolerance: float, use: Use, trial: Trial,
) -> float:  # fmt: skip
    """A part of Newton's move, cut off at 0, that lowers D or the residual; D there, inf if none."""
    noise = 1e-13 * (1.0 + abs(value))
    for k in range(count):
        noise += 1e-15 * abs(cuts.price[k]) * cuts.members[k, -1]
    t = 1.0
    for _ in range(HALVINGS):
        _copy(cuts.price, count, trial.price)
        gain = 0.0
        for k in range(count):
            gain += trial.slope[k] * cuts.price[k]
        for a in range(number):
            k = trial.free[a]
            moved = cuts.price[k] + t * trial.move[a]
            trial.price[k] = moved if equation and k == 0 else max(moved, 0.0)
            gain -= trial.slope[k] * trial.price[k]
        reached = _evaluate(columns, m, cuts, trial.price, count, use, trial.steep)
        if gain > 0.0 and reached <= value - 1e-4 * gain:
            return reached
        closer = _residual(trial.price, trial.steep, count, equation, tolerance) < 0.5 * residual
        if closer and reached <= value + noise:
            return reached
        t *= 0.5
    return np.inf


@kernel
def _search(
    columns: Columns, m: int, cuts: Cuts, count: int, equation: bool, number: int, use: Use, trial: Trial
) -> float:
    """Along the move to where D's slope has all but vanished, or the first price meets 0; D there."""
    _copy(cuts.price, count, trial.price)
    falling = 0.0
    for a in range(number):
        k = trial.free[a]
        if cuts.price[k] <= 0.0 and trial.move[a] < 0.0 and not (equation and k == 0):
            trial.move[a] = 0.0
        falling += trial.slope[k] * trial.move[a]
    if falling >= 0.0:
        falling = 0.0
        for a in range(number):
            trial.move[a] = -trial.slope[trial.free[a]]
            falling -= trial.move[a] * trial.move[a]
    reach, last = np.inf, -1
    for a in range(number):
        k = trial.free[a]
        if trial.move[a] < 0.0 and not (equation and k == 0) and -cuts.price[k] / trial.move[a] < reach:
            reach, last = -cuts.price[k] / trial.move[a], k
    low, at_low, high, at_high = 0.0, falling, np.inf, np.inf
    t, reached = min(1.0, reach), 0.0
    for _ in range(PROBES):
        for a in range(number):
            trial.price[trial.free[a]] = cuts.price[trial.free[a]] + t * trial.move[a]
        if t == reach:
            trial.price[last] = 0.0
        reached = _evaluate(columns, m, cuts, trial.price, count, use, trial.steep)
        along = 0.0
        for a in range(number):
            along += trial.steep[trial.free[a]] * trial.move[a]
        if abs(along) <= 0.1 * abs(falling) or (along < 0.0 and t == reach):
            break
        if along < 0.0:
            low, at_low = t, along
        else:
            high, at_high = t, along
        if high - low <= 1e-15 * high:
            break
        share = 0.5 if high == np.inf else at_low / (at_low - at_high)
        t = min(4.0 * t, reach) if high == np.inf else low + (high - low) * min(max(share, 0.05), 0.95)
    return reached


@kernel
def minimise(
    columns: Columns, m: int, cuts: Cuts, count: int, equation: bool, tolerance: float, goal: float,
    use: Use, trial: Trial,
) -> tuple[int, float]:  # fmt: skip
    """Moves the prices towards D's minimum over prices >= 0, the first of either sign with `equation`.

    Until no cut is violated by more than `goal`, which is at least the tolerance of rounding.

    Returns the steps taken, and the largest violation left.
    """
    hold(columns, m, cuts, count)
    value = _evaluate(columns, m, cuts, cuts.price, count, use, trial.slope)
    residual = _residual(cuts.price, trial.slope, count, equation, tolerance)
    for step in range(STEPS):
        if residual <= goal:
            return step, residual
        number = _direct(m, cuts, count, equation, residual, tolerance, use, trial)
        reached = _shoot(
            columns, m, cuts, count, equation, number, value, residual, tolerance, use, trial
        )
        if reached == np.inf:
            if residual <= NEAR * tolerance:
                return step, residual
            reached = _search(columns, m, cuts, count, equation, number, use, trial)
        _copy(trial.price, count, cuts.price)
        _copy(trial.steep, count, trial.slope)
        value = reached
        residual = _residual(cuts.price, trial.slope, count, equation, tolerance)
    return STEPS, residual
