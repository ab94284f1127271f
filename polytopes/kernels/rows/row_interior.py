r"""Bregman projections onto {l <= x <= u, R x = or <= limits} by an interior-point method.

    maximise  <s, y> - sum of phi(y_k)   over that set,  x = (y, z)

z are auxiliary variables that the objective does not see; each step leaves them near where they are,
or the systems could not be solved (a proximal term that moves with the iterate).

It costs about twice what Newton's method on the dual does, whatever the scores, and its multipliers
end inside the set of all optimal ones: a row or bound that every point of the exposed face meets with
equality has one, also where Newton's method ends at an edge of that set. So it says which face it is.

Mehrotra, "On the implementation of a primal-dual interior point method" (1992); Pougkakiotis and
Gondzio, "An interior point-proximal method of multipliers for convex quadratic programming" (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.curves import EUCLIDEAN, FERMI_DIRAC, Curve, slope, spread_at
from spigot.polytopes.kernels.rows.elimination import (
    Factor,
    System,
    apply,
    factor,
    product,
    solve,
)
from spigot.polytopes.kernels.vectors import copy

__all__ = ["Inside", "interior", "new_inside"]

CENTRED = 1e-17  # the mean product of a slack and its multiplier that ends the steps, relative
SETTLED = 1e-9  # of the dual's rows, relative to the scores
SHORTEST = 1e-6  # of a step: rounding has taken over
CENTRAL = 1e-3  # of the mean product: the least that a step aims at
NEAR = 1e-3  # the proximal term of an auxiliary variable, relative to the scores


class Inside(NamedTuple):
    """A problem, and slacks and multipliers of the bounds of its parts and of its rows."""

    parts: int  # of the d variables the first ones; the others are auxiliary
    scores: np.ndarray  # (d,), 0 at auxiliary ones
    low: np.ndarray  # (d,)
    high: np.ndarray  # (d,), equal to `low` where a variable is given
    limit: np.ndarray  # (rows,)
    equal: np.ndarray  # (rows,), bool: the rows that are equations

    y: np.ndarray  # (d,)
    below: np.ndarray  # (d,), y - l
    above: np.ndarray  # (d,), u - y
    lower: np.ndarray  # (d,), multipliers; 0 where there is no bound
    upper: np.ndarray
    slack: np.ndarray  # (rows,), of an inequality
    v: np.ndarray  # (rows,)
    missing: np.ndarray  # (rows,), limit - R y - slack
    goal: np.ndarray  # (rows,)
    rest: np.ndarray  # (rows,)


@kernel
def new_inside(rows: int, d: int, parts: int) -> Inside:
    """An empty workspace."""
    return Inside(
        parts,
        np.zeros(d),
        np.zeros(d),
        np.zeros(d),
        np.zeros(rows),
        np.zeros(rows, np.bool_),
        np.zeros(d),
        np.zeros(d),
        np.zeros(d),
        np.zeros(d),
        np.zeros(d),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(rows),
    )


@kernel
def _bent(curve: Curve, at: Inside, k: int) -> float:
    """phi' at a part that is not given."""
    y = at.y[k]
    return slope(curve, y, at.above[k] if at.high[k] == 1.0 else 1.0 - y)


@kernel
def _curvature(curve: Curve, at: Inside, k: int, near: float) -> float:
    """phi'' there, or the proximal term's."""
    if k >= at.parts:
        return near
    y = at.y[k]
    if curve.kind == FERMI_DIRAC:
        return 1.0 / y + 1.0 / (at.above[k] if at.high[k] == 1.0 else 1.0 - y)
    return 1.0 / spread_at(curve, y)


@kernel
def _begin(system: System, curve: Curve, at: Inside, scale: float) -> None:
    """The middle of the box, multipliers of the scores' size."""
    low, high = at.low, at.high
    for k in range(len(at.y)):
        wish = at.scores[k] if curve.kind == EUCLIDEAN else 0.0
        if low[k] > -np.inf and high[k] < np.inf:
            at.y[k] = 0.5 * (low[k] + high[k])
        elif low[k] > -np.inf:
            at.y[k] = max(low[k] + 1.0, wish)
        elif high[k] < np.inf:
            at.y[k] = min(high[k] - 1.0, wish)
        else:
            at.y[k] = wish
        at.below[k] = at.y[k] - low[k]
        at.above[k] = high[k] - at.y[k]
        at.lower[k] = scale if low[k] > -np.inf and high[k] > low[k] else 0.0
        at.upper[k] = scale if high[k] < np.inf and high[k] > low[k] else 0.0
    apply(system, at.y, at.missing)
    for i in range(len(at.v)):
        at.missing[i] = at.limit[i] - at.missing[i]
        at.v[i] = at.slack[i] = 0.0
        if not at.equal[i]:
            at.slack[i] = max(at.missing[i], np.sqrt(system.square[i]))
            at.v[i] = scale / np.sqrt(system.square[i]) if system.square[i] > 0.0 else scale
            at.missing[i] -= at.slack[i]


@kernel
def _mean(at: Inside, move: Inside, length: float) -> float:
    """The mean product of slacks and multipliers after that step."""
    total, count = 0.0, 0
    for k in range(len(at.y)):
        if at.lower[k] > 0.0:
            total += (at.below[k] + length * move.y[k]) * (at.lower[k] + length * move.lower[k])
            count += 1
        if at.upper[k] > 0.0:
            total += (at.above[k] - length * move.y[k]) * (at.upper[k] + length * move.upper[k])
            count += 1
    for i in range(len(at.v)):
        if not at.equal[i]:
            total += (at.slack[i] + length * move.slack[i]) * (at.v[i] + length * move.v[i])
            count += 1
    return total / count if count else 0.0


@kernel
def _shorten(value: float, change: float, length: float) -> float:
    """The longest step up to that length which leaves the value nonnegative."""
    return -value / change if value + length * change < 0.0 else length


@kernel
def _length(at: Inside, move: Inside) -> float:
    """The longest step, at most 1, that leaves everything nonnegative."""
    length = 1.0
    for k in range(len(at.y)):
        if at.lower[k] > 0.0:
            length = _shorten(at.below[k], move.y[k], length)
            length = _shorten(at.lower[k], move.lower[k], length)
        if at.upper[k] > 0.0:
            length = _shorten(at.above[k], -move.y[k], length)
            length = _shorten(at.upper[k], move.upper[k], length)
    for i in range(len(at.v)):
        if not at.equal[i]:
            length = _shorten(at.slack[i], move.slack[i], length)
            length = _shorten(at.v[i], move.v[i], length)
    return length


@kernel
def _direct(
    system: System,
    curve: Curve,
    at: Inside,
    move: Inside,
    weights: np.ndarray,
    shift: np.ndarray,
    centre: float,
    again: bool,
    made: Factor,
) -> None:
    """The Newton direction towards products equal to `centre`; the factor stands already.

    `again` takes in the second-order terms of the direction that stands.
    """
    second = 1.0 if again else 0.0
    product(system, at.v, shift)
    for k in range(len(shift)):
        total = at.scores[k] - shift[k]
        if at.high[k] <= at.low[k]:
            total = 0.0
        elif k < at.parts:
            total -= _bent(curve, at, k)
        if at.lower[k] > 0.0:
            total += (centre - second * move.y[k] * move.lower[k]) / at.below[k]
        if at.upper[k] > 0.0:
            total -= (centre + second * move.y[k] * move.upper[k]) / at.above[k]
        shift[k] = total
        move.below[k] = weights[k] * total
    rhs, goal = move.missing, move.slack
    apply(system, move.below, rhs)
    for i in range(len(rhs)):
        rhs[i] -= at.missing[i]
        if not at.equal[i]:
            goal[i] = (centre - second * move.slack[i] * move.v[i]) / at.v[i] - at.slack[i]
            rhs[i] += goal[i]
    copy(rhs, at.goal, len(rhs))
    solve(system, made, rhs)
    if again:
        _refine(system, at, move, weights, made)
    product(system, rhs, move.below)
    for k in range(len(shift)):
        step = weights[k] * (shift[k] - move.below[k])
        if at.lower[k] > 0.0:
            below = centre - second * move.y[k] * move.lower[k]
            move.lower[k] = (below - at.lower[k] * step) / at.below[k] - at.lower[k]
        if at.upper[k] > 0.0:
            above = centre + second * move.y[k] * move.upper[k]
            move.upper[k] = (above + at.upper[k] * step) / at.above[k] - at.upper[k]
        move.y[k] = step
    for i in range(len(rhs)):
        move.v[i] = rhs[i]
        if not at.equal[i]:
            move.slack[i] = goal[i] - at.slack[i] / at.v[i] * rhs[i]


@kernel
def _refine(system: System, at: Inside, move: Inside, weights: np.ndarray, made: Factor) -> None:
    """Takes the error of the factor out of the step: or it would add up in the rows."""
    step, rest = move.missing, at.rest
    product(system, step, move.below)
    for k in range(len(weights)):
        move.below[k] *= weights[k]
    apply(system, move.below, rest)
    for i in range(len(rest)):
        rest[i] = at.goal[i] - rest[i]
        if not at.equal[i]:
            rest[i] -= at.slack[i] / at.v[i] * step[i]
    solve(system, made, rest)
    for i in range(len(rest)):
        step[i] += rest[i]


@kernel
def _unbalanced(system: System, curve: Curve, at: Inside, shift: np.ndarray) -> float:
    """The largest error of s - phi'(y) - R'v + lower - upper."""
    worst = 0.0
    product(system, at.v, shift)
    for k in range(len(shift)):
        if at.high[k] > at.low[k]:
            total = at.scores[k] - shift[k] + at.lower[k] - at.upper[k]
            worst = max(worst, abs(total - (_bent(curve, at, k) if k < at.parts else 0.0)))
    return worst


@kernel
def _advance(at: Inside, move: Inside, length: float) -> None:
    """That much of the direction."""
    for k in range(len(at.y)):
        at.y[k] += length * move.y[k]
        at.below[k] += length * move.y[k]
        at.above[k] -= length * move.y[k]
        if at.lower[k] > 0.0:
            at.lower[k] += length * move.lower[k]
        if at.upper[k] > 0.0:
            at.upper[k] += length * move.upper[k]
    for i in range(len(at.v)):
        at.v[i] += length * move.v[i]
        at.missing[i] *= 1.0 - length
        if not at.equal[i]:
            at.slack[i] += length * move.slack[i]


@kernel
def interior(
    system: System,
    curve: Curve,
    limit: int,
    at: Inside,
    move: Inside,
    weights: np.ndarray,
    spare: np.ndarray,
    made: Factor,
) -> int:
    """Mehrotra's predictor and corrector on the problem that `at` holds; the steps taken.

    What is missing in the rows shrinks with every step and is never computed anew.
    """
    low, high, scores = at.low, at.high, at.scores
    extra, none = move.limit, at.equal[:0]
    scale = 1.0
    for k in range(len(scores)):
        if high[k] > low[k]:
            scale = max(scale, abs(scores[k]))
    _begin(system, curve, at, scale)
    first = _mean(at, move, 0.0)
    error = np.inf
    for step in range(limit):
        mean = _mean(at, move, 0.0)
        if not mean > CENTRED * first:
            before, error = error, _unbalanced(system, curve, at, spare)
            if not SETTLED * scale < error < 0.5 * before:
                return step
        for k in range(len(weights)):
            weights[k] = 0.0
            if high[k] > low[k]:
                curvature = _curvature(curve, at, k, NEAR * scale)
                if at.lower[k] > 0.0:
                    curvature += at.lower[k] / at.below[k]
                if at.upper[k] > 0.0:
                    curvature += at.upper[k] / at.above[k]
                weights[k] = 1.0 / curvature
        for i in range(len(extra)):
            extra[i] = at.slack[i] / at.v[i] if not at.equal[i] else 0.0
        factor(system, weights, extra, none, 1e-13, True, made)
        centre, length = 0.0, 0.0
        for again in range(2):
            _direct(system, curve, at, move, weights, spare, centre, again == 1, made)
            length = _length(at, move)
            if again == 0:
                least = CENTRAL if mean > CENTRED * first else 1.0
                centre = mean * max((_mean(at, move, length) / mean) ** 3, least)
        if not length > SHORTEST:
            return step
        _advance(at, move, length * max(0.99, min(1.0 - mean / first, 0.99999)))
    return limit
