r"""Fully-corrective Frank-Wolfe for a batch: a vertex joins each mixture, Newton corrects the weights.

minimise F(w) = sum phi(y) - <s, y>, y = sum w_k v_k, over w >= 0, sum w = 1. With the differences D of
the vertices to the heaviest one, Newton's step on the other weights solves
(D H D') u = D (s - phi'(y)), H = phi''(y). The matrix is summed part by part over the vertices that
differ there, so sparse structures cost little.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.cholesky import factor, substitute
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.curves import Curve, phi, slope, spread_at
from spigot.polytopes.kernels.mixtures.min_norm import (
    CONVERGED,
    CROWDED,
    GOING,
    INACCURATE,
    STOPPED,
    trade,
)
from spigot.polytopes.kernels.mixtures.mixtures import Mixtures, drop, join, meet, mix
from spigot.polytopes.kernels.mixtures.patience import Patience, waited

__all__ = ["Goal", "advance", "gradients", "pull", "settle"]

FLOOR = 1e-10  # a part closer to the end of a steep domain is at that end, for all that follows
INSIDE = 0.99  # a steep regularizer's step ends this far on the way out of its domain
TINY, ROUND = 1e-100, 2.0**-53  # the nearest that float64 comes to 0 and to 1
BLURRED = 1e-14  # nearer to 1 a part has no digits left that a step could respect
ENOUGH = 0.1  # of the gap: what a correction may leave while vertices are still missing
SETTLED = 1e-26  # a decrement, relative to (1 + max |s|)^2: nothing is left
NEWTON_STEPS, HALVINGS = 100, 40
IDLE = 5  # steps that do nothing (the vertex is held, or leaves at once): rounding has the last word
RESTING = 1e-10  # likewise a gap this small, relative, that has not been halved for
STILL, LONG = 10, 50  # steps; and a plausible one after this many
NOTHING = 1e-14  # a weight this small is none, where the regularizer is not steep
RIDGE = 1e-13  # of a matrix whose diagonal is 1
REFINEMENTS = 4
STIFF = 1e-11  # a spread, relative to the largest one: below, the derivative is found as if it were so


class Goal(NamedTuple):
    """What is minimised: sum phi(y) - <s, y> over the free parts of n instances."""

    curve: Curve
    low: float  # phi's domain
    high: float
    scores: np.ndarray  # (n, d)
    free: np.ndarray  # (n, d), bool: the parts that are not the same in every structure
    exact: np.ndarray  # (n,), bool: whether the weights are the best ones but for rounding
    idle: np.ndarray  # (n,), the latest steps that could not do anything
    patience: Patience


class Columns(NamedTuple):
    """The vertices' differences to the heaviest, part by part, and a matrix of their size."""

    first: np.ndarray  # (d + 1,), where a part's entries begin
    vertex: np.ndarray  # (entries,), of which vertex
    value: np.ndarray  # (entries,)
    matrix: np.ndarray  # (m, m)
    scale: np.ndarray  # (m,), the roots of its diagonal
    column: np.ndarray  # (4, m)


@kernel
def _inside(goal: Goal, y: float, floor: float, room: float) -> float:
    """Y, or the nearest point that far inside a steep domain."""
    if not goal.curve.steep:
        return y
    return min(max(y, goal.low + floor), goal.high - room)


@kernel
def _slope(goal: Goal, y: float) -> float:
    """phi'(y); rounding may have left y below 0."""
    return slope(goal.curve, y if goal.low < 0.0 else max(y, 0.0), 1.0 - y)


@kernel
def gradients(
    first: int, last: int, rows: np.ndarray, goal: Goal, y: np.ndarray, out: np.ndarray
) -> None:
    """phi'(y) of some instances, y at least FLOOR inside a steep domain; `out` is (r, d)."""
    for r in range(first, last):
        for j in range(y.shape[1]):
            out[r, j] = _slope(goal, _inside(goal, y[rows[r], j], FLOOR, FLOOR))


@kernel
def settle(first: int, last: int, goal: Goal, state: Mixtures, y: np.ndarray) -> None:
    """The best weights on the vertices taken, and the points y that they make."""
    for i in range(first, last):
        mix(i, state, y[i])
        _correct(i, goal, 0.0, state, y[i])


@kernel
def advance(
    first: int,
    last: int,
    rows: np.ndarray,  # (r,), the instances
    goal: Goal,
    slope_at: np.ndarray,  # (r, d)
    best: np.ndarray,  # (r, d), the best vertices at these slopes
    tolerance: float,
    plausible: float,
    more: bool,
    state: Mixtures,
    y: np.ndarray,  # (n, d)
    gaps: np.ndarray,  # (n,)
    verdicts: np.ndarray,  # (n,)
) -> None:
    """One step: the certificate, and where it is too large the vertex joins and weights are corrected.

    While vertices are missing a correction leaves a part of the gap; before an answer is given the
    weights are corrected for good. Then, where the vertex is in the mixture already, or the gap
    falls no more, rounding has the last word: that is convergence if the gap is `plausible`.
    """
    room, d = state.slots.shape[1], y.shape[1]
    row = np.empty(room)
    for r in range(first, last):
        i = rows[r]
        gap, along = _gap(i, goal, slope_at[r], best[r], y[i]), 0.0
        for j in range(d):
            along += goal.scores[i, j] * y[i, j]
        gaps[i] = gap
        scale = 1.0 + abs(along)
        if gap <= tolerance * scale and (goal.exact[i] or not more):
            verdicts[i] = CONVERGED
            continue
        if state.held[i] == room:
            verdicts[i] = CROWDED
            continue
        still = waited(i, gap, goal.patience)
        rests = gap <= max(RESTING, plausible) * scale
        rests = rests and still >= (STILL if gap <= RESTING * scale else LONG)
        done = rests or gap <= tolerance * scale
        fresh = not done and meet(i, best[r], best[r], state)
        if goal.idle[i] >= IDLE or (goal.exact[i] and not fresh):
            verdicts[i] = CONVERGED if gap <= max(tolerance, plausible) * scale else INACCURATE
        elif not more:
            verdicts[i] = STOPPED
        else:
            verdicts[i] = GOING
            if fresh and _gain(i, goal, gap, state, y[i], row):
                goal.idle[i] = 0
            else:
                goal.idle[i] += 1
                _correct(i, goal, 0.0, state, y[i])


@kernel
def _gap(i: int, goal: Goal, slope_at: np.ndarray, vertex: np.ndarray, y: np.ndarray) -> float:
    r"""A bound on F(y) - min F, the vertex being the best one at this slope.

    For any theta, Fenchel's inequality gives  min F >= -sum phi*(theta) - max over v <s - theta, v>,
    so with theta = phi'(y')  F(y) - min F <= <s - theta, v - y> + sum D_phi(y, y'). Where y is less
    than FLOOR inside a steep domain, y' is FLOOR inside: the slope at y itself would say nothing.
    """
    curve, gap = goal.curve, 0.0
    for j in range(len(y)):
        gap += slope_at[j] * (vertex[j] - y[j])
        moved = _inside(goal, y[j], FLOOR, FLOOR)
        if moved != y[j] and goal.free[i, j]:
            held = min(max(y[j], goal.low), goal.high)
            gap += phi(curve, held) - phi(curve, moved) - _slope(goal, moved) * (y[j] - moved)
    return gap


@kernel
def _gain(i: int, goal: Goal, gap: float, state: Mixtures, y: np.ndarray, row: np.ndarray) -> bool:
    """The vertex just met joins with the best weight on the way from y; then all are corrected.

    (Newton's method alone could not leave y_i = 0 where phi'' is infinite there.) Where it depends
    on others, one of those leaves and y stays. Returns whether it is still held.
    """
    held, slots = state.held[i], state.slots[i]
    fresh = slots[held]
    weight = _share(i, goal, state.vertices[i, fresh], y)
    for k in range(held):
        state.weights[i, k] *= 1.0 - weight
    while not join(i, weight, state, row):
        taken = trade(i, state, row)
        if taken < 0.0:
            break
        weight += taken
    _normalise(i, goal.curve.steep, state)
    mix(i, state, y)
    _correct(i, goal, ENOUGH * gap, state, y)
    return bool(np.any(slots[: state.held[i]] == fresh))


@kernel
def _share(i: int, goal: Goal, vertex: np.ndarray, y: np.ndarray) -> float:
    """About the best weight of a vertex on the way to it, by bisection."""
    low, high = 0.0, 1.0
    parts = np.flatnonzero((vertex != y) & goal.free[i])
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        rising = 0.0
        for j in parts:
            way = vertex[j] - y[j]
            point = _inside(goal, y[j] + middle * way, TINY, ROUND)
            rising += way * (goal.scores[i, j] - _slope(goal, point))
        if rising > 0.0:
            low = middle
        else:
            high = middle
        if high - low <= 0.1 * low:
            break
    return 0.5 * (low + high)


@kernel
def _normalise(i: int, steep: bool, state: Mixtures) -> None:
    """Vertices without weight leave, and the weights sum to 1.

    (A steep regularizer may have all of a part in a tiny weight.)
    """
    least = 0.0 if steep else NOTHING
    k = 0
    while k < state.held[i]:
        if state.weights[i, k] <= least and state.held[i] > 1:
            drop(i, k, state)
        else:
            k += 1
    total = 0.0
    for k in range(state.held[i]):
        total += state.weights[i, k]
    for k in range(state.held[i]):
        state.weights[i, k] /= total


@kernel
def _correct(i: int, goal: Goal, enough: float, state: Mixtures, y: np.ndarray) -> None:
    """Newton's method on the weights until a step from a decrement of `enough`; those at 0 leave."""
    steep, d = goal.curve.steep, len(y)
    largest = 0.0
    for j in range(d):
        largest = max(largest, abs(goal.scores[i, j]))
    settled = SETTLED * (1.0 + largest) ** 2
    goal.exact[i] = False
    size = state.slots.shape[1]
    heavy, stale = int(np.argmax(state.weights[i, : state.held[i]])), False
    columns = _columns(i, state, heavy)
    move, way = np.zeros(size), np.zeros(d)
    curvature, along = np.zeros(d), np.zeros(size)
    for _ in range(NEWTON_STEPS):
        held = state.held[i]
        if held == 1:
            goal.exact[i] = True
            return
        weights = state.weights[i]
        newest = int(np.argmax(weights[:held]))  # as the origin, or small weights drown in rounding
        if stale or 2.0 * weights[heavy] < weights[newest]:
            heavy, stale = newest, False
            columns = _columns(i, state, heavy)
        parts = state.parts[i, : state.used[i]]
        for k in range(held):
            along[k] = 0.0
        for j in parts:
            curvature[j] = 0.0
            if goal.free[i, j]:
                point = _inside(goal, float(y[j]), TINY, ROUND)
                curvature[j] = 1.0 / max(spread_at(goal.curve, point), TINY)
                rise = goal.scores[i, j] - _slope(goal, point)
                for e in range(columns.first[j], columns.first[j + 1]):
                    along[columns.vertex[e]] += columns.value[e] * rise
        _factorise(parts, curvature, held, columns)
        for k in range(held):
            move[k] = along[k]
        _solve(columns, held, move)
        move[heavy] = 0.0
        decrement, total = 0.0, 0.0
        for k in range(held):
            decrement += along[k] * move[k]
            total += move[k]
        if not decrement > settled:
            goal.exact[i] = True
            return
        room = np.inf
        for j in parts:
            way[j] = 0.0
            for e in range(columns.first[j], columns.first[j + 1]):
                way[j] += columns.value[e] * move[columns.vertex[e]]
            if steep and goal.free[i, j]:
                if way[j] < 0.0:
                    room = min(room, -(y[j] - goal.low) / way[j])
                elif way[j] > 0.0 and goal.high - y[j] > BLURRED:
                    room = min(room, (goal.high - y[j]) / way[j])
        move[heavy] = -total
        reach = np.inf
        for k in range(held):
            if move[k] < 0.0:
                reach = min(reach, -weights[k] / move[k])
        most = float(min(1.0, reach, INSIDE * room))
        step = _backtrack(i, goal, state, y, way, most, decrement)
        if step == 0.0:
            goal.exact[i] = True
            return
        for k in range(held):
            moved = weights[k] + step * move[k]
            if moved < 0.0 or (step == reach and move[k] < 0.0 and moved <= 1e-14 * weights[k]):
                moved = 0.0
            weights[k] = moved
        _normalise(i, steep, state)
        stale = state.held[i] != held
        mix(i, state, y)
        if decrement <= enough:
            return


@kernel
def _backtrack(
    i: int, goal: Goal, state: Mixtures, y: np.ndarray, way: np.ndarray, step: float, decrement: float
) -> float:
    """The longest step, halved again and again, that lowers F by enough; 0 if none does."""
    start = _value(i, goal, state, y, way, 0.0)
    noise = 1e-15 * (1.0 + abs(start))
    least = 1e-12 * step
    while step > least:
        if _value(i, goal, state, y, way, step) <= start - 1e-4 * step * decrement + noise:
            return step
        step *= 0.5
    return 0.0


@kernel
def _value(i: int, goal: Goal, state: Mixtures, y: np.ndarray, way: np.ndarray, step: float) -> float:
    """F at y + step way, over the parts that move; infinite outside the domain."""
    total = 0.0
    for j in state.parts[i, : state.used[i]]:
        if goal.free[i, j]:
            point = float(y[j] + step * way[j])
            if point < goal.low - 1e-12 or point > goal.high + 1e-12:
                return np.inf
            point = min(max(point, goal.low), goal.high)
            total += phi(goal.curve, point) - goal.scores[i, j] * point
    return total


@kernel
def _columns(i: int, state: Mixtures, heavy: int) -> Columns:
    """The entries of the differences to one of the vertices, by part."""
    held, slots, d = state.held[i], state.slots[i], state.vertices.shape[2]
    parts = state.parts[i, : state.used[i]]
    base = state.vertices[i, slots[heavy]]
    first = np.zeros(d + 1, dtype=np.int64)
    for k in range(held):
        vertex = state.vertices[i, slots[k]]
        for j in parts:
            if vertex[j] != base[j]:
                first[j + 1] += 1
    for j in range(d):
        first[j + 1] += first[j]
    entries, ends = first[d], first[:d].copy()
    which, value = np.empty(entries, dtype=np.int64), np.empty(entries)
    for k in range(held):
        vertex = state.vertices[i, slots[k]]
        for j in parts:
            if vertex[j] != base[j]:
                which[ends[j]], value[ends[j]] = k, vertex[j] - base[j]
                ends[j] += 1
    return Columns(first, which, value, np.empty((held, held)), np.empty(held), np.empty((4, held)))


@kernel
def _factorise(parts: np.ndarray, curvature: np.ndarray, held: int, columns: Columns) -> None:
    """The Cholesky factor of D H D', its diagonal scaled to 1: parts of y may be 1e-40 and 1.

    The heaviest vertex, whose row is 0, gets a 1.
    """
    matrix, scale = columns.matrix, columns.scale
    for k in range(held):
        for l in range(k + 1):
            matrix[k, l] = 0.0
    for j in parts:
        weight = curvature[j]
        if weight == 0.0:
            continue
        start, end = columns.first[j], columns.first[j + 1]
        for a in range(start, end):
            scaled, row = weight * columns.value[a], matrix[columns.vertex[a]]
            for b in range(start, a + 1):
                row[columns.vertex[b]] += scaled * columns.value[b]
    for k in range(held):
        scale[k] = np.sqrt(matrix[k, k]) if matrix[k, k] > TINY else 1.0
    for k in range(held):
        for l in range(k):
            matrix[k, l] /= scale[k] * scale[l]
        matrix[k, k] = 1.0 + RIDGE
    factor(matrix, held, columns.column)


@kernel
def _solve(columns: Columns, held: int, x: np.ndarray) -> None:
    """D H D' inverted, over x."""
    for k in range(held):
        x[k] /= columns.scale[k]
    substitute(columns.matrix, held, x)
    for k in range(held):
        x[k] /= columns.scale[k]


@kernel
def pull(
    first: int, last: int, spread: np.ndarray, grad: np.ndarray, state: Mixtures, out: np.ndarray
) -> None:
    r"""D' (D H D')^-1 D grad for each instance, D spanning its face and H = 1 / spread; all `(n, d)`.

    Refined with residuals that round along D only, where the factor's own conditioning is no matter.
    """
    d = spread.shape[1]
    rest, way, curvature = np.empty(d), np.empty(d), np.empty(d)
    for i in range(first, last):
        for j in range(d):
            out[i, j] = 0.0
        held, parts = state.held[i], state.parts[i, : state.used[i]]
        if held < 2:
            continue
        heavy = int(np.argmax(state.weights[i, :held]))
        columns = _columns(i, state, heavy)
        largest = 0.0
        for j in parts:
            largest = max(largest, spread[i, j])
        for j in parts:
            curvature[j] = 1.0 / max(spread[i, j], STIFF * largest, TINY)
            rest[j], way[j] = grad[i, j], 0.0
        _factorise(parts, curvature, held, columns)
        shift, total = np.empty(held), np.zeros(held)
        for _ in range(REFINEMENTS):
            for k in range(held):
                shift[k] = 0.0
            for j in parts:
                for e in range(columns.first[j], columns.first[j + 1]):
                    shift[columns.vertex[e]] += columns.value[e] * rest[j]
            _solve(columns, held, shift)
            for k in range(held):
                total[k] += shift[k]
            for j in parts:
                way[j] = 0.0
                for e in range(columns.first[j], columns.first[j + 1]):
                    way[j] += columns.value[e] * total[columns.vertex[e]]
                rest[j] = grad[i, j] - curvature[j] * way[j]
        for j in parts:
            out[i, j] = spread[i, j] * curvature[j] * way[j]
