r"""Bregman projections onto {y : (y, z) in {l <= x <= u, R x = or <= limits} for some z}, compiled.

    maximise  <s, y> - sum of phi(y_k)   over that set

The interior-point method ends inside the optimal faces, z among them, and so says which rows and
bounds bind on the exposed face. On that face Newton's method on the multipliers v of its rows, with
a proximal term on the z that are not held, leaves rounding alone:

    y = phi' inverted at s - R'v,   z moves until its share of R'v vanishes.

Where the rows that are loose hold too, and no multiplier has the wrong sign, the answer is proven;
z need not be unique.

Rockafellar, "Augmented Lagrangians and applications of the proximal point algorithm in convex
programming" (1976).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.curves import EUCLIDEAN, Curve, mirror, phi, spread
from spigot.polytopes.kernels.rows.elimination import (
    Factor,
    System,
    apply,
    factor,
    forget,
    new_factor,
    product,
    solve,
)
from spigot.polytopes.kernels.rows.row_interior import Inside, interior, new_inside
from spigot.polytopes.kernels.rows.row_newton import (
    BETWEEN,
    CLEAR,
    GIVEN,
    LOWER,
    ROUNDING,
    TIE,
    UPPER,
    Box,
    Case,
    case_at,
)
from spigot.polytopes.kernels.vectors import copy

__all__ = ["project_lifted"]

STEPS = 30
EXACT = 4e-15
REFACTOR = 1e-9  # the error below which a curved phi's factor stays
NEAR = 1e-6  # the proximal term of an auxiliary variable
TIED = 1e-6  # a multiplier and slack below this, relative to the scores, and alike are a tie
CORRECTIONS = 12  # of the set of what binds
WRONG = 1e-11  # by how much a row may be off before it is said to bind


class Work(NamedTuple):
    """Workspace of a slice."""

    state: np.ndarray  # (variables,), which bounds hold the answer,
    tight: np.ndarray  # (rows,), and which rows
    v: np.ndarray  # (rows,)
    x: np.ndarray  # (variables,)
    slope: np.ndarray  # (variables,), s - R'v
    excess: np.ndarray  # (rows,), R x - limits
    size: np.ndarray  # (rows,), what rounding may move it by, over the unit roundoff
    best: np.ndarray  # (rows,), the multipliers of the best point,
    place: np.ndarray  # (variables,), and its x
    weights: np.ndarray  # (variables,)
    spare: np.ndarray  # (variables,)
    held: np.ndarray  # (rows,)
    step: np.ndarray  # (rows,)
    made: Factor
    at: Inside
    move: Inside


@kernel
def _new_work(system: System, variables: int, parts: int) -> Work:
    """An empty workspace."""
    rows = len(system.low)
    return Work(
        np.zeros(variables, np.int8),
        np.zeros(rows, np.bool_),
        np.zeros(rows),
        np.zeros(variables),
        np.zeros(variables),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(rows),
        np.zeros(variables),
        np.zeros(variables),
        np.zeros(variables),
        np.zeros(rows),
        np.zeros(rows),
        new_factor(system),
        new_inside(rows, variables, parts),
        new_inside(rows, variables, parts),
    )


@kernel
def _pose(system: System, case: Case, at: Inside) -> None:
    """The problem for the interior point."""
    parts = len(case.scores)
    for k in range(len(at.low)):
        live = k >= parts or case.live[k]
        at.low[k] = case.lower[k] if live else 0.0
        at.high[k] = case.upper[k] if live else 0.0
        at.scores[k] = case.scores[k] if k < parts and live else 0.0
    for i in range(len(case.limit)):
        at.limit[i] = case.limit[i]
        at.equal[i] = system.low[i] < 0.0


@kernel
def _guess(case: Case, scale: float, state: np.ndarray, tight: np.ndarray, work: Work) -> bool:
    """What binds as the interior point has it, its point and multipliers; whether that is clear.

    Multipliers end where as many as can be are positive: what has as little multiplier as slack is a
    tie. It does not bind on the exposed face, which `state` and `tight` are, but holds the answer.
    """
    at, parts = work.at, len(case.scores)
    clear = True
    for k in range(len(state)):
        state[k] = work.state[k] = BETWEEN
        work.x[k] = at.y[k]
        if at.high[k] <= at.low[k]:
            state[k] = work.state[k] = GIVEN
            work.x[k] = at.low[k]
            continue
        if at.lower[k] > 0.0 and not (k < parts and case.least[k] == -np.inf):
            binds = _binds(at.lower[k], at.below[k], scale)
            if binds >= 0:
                work.state[k] = LOWER
                work.x[k] = at.low[k]
            if binds == 1:
                state[k] = LOWER
            clear = clear and (binds != 0 or at.lower[k] <= TIED * scale)
        if at.upper[k] > 0.0 and not (k < parts and case.most[k] == np.inf):
            binds = _binds(at.upper[k], at.above[k], scale)
            if binds >= 0:
                work.state[k] = UPPER
                work.x[k] = at.high[k]
            if binds == 1:
                state[k] = UPPER
            clear = clear and (binds != 0 or at.upper[k] <= TIED * scale)
    for i in range(len(tight)):
        binds = 1 if at.equal[i] else _binds(at.v[i], at.slack[i], scale)
        tight[i], work.tight[i] = binds == 1, binds >= 0
        work.v[i] = at.v[i] if binds >= 0 else 0.0
        clear = clear and (binds != 0 or at.v[i] <= TIED * scale)
    return clear


@kernel
def _binds(multiplier: float, slack: float, scale: float) -> int:
    """1 for what binds, -1 for what does not, 0 where multiplier and slack are alike."""
    if multiplier > CLEAR * scale * slack:
        return 1
    return -1 if scale * slack > CLEAR * multiplier else 0


@kernel
def _evaluate(system: System, curve: Curve, case: Case, noise: float, work: Work) -> float:
    """Everything at v and z; the largest error of the dual's rows of z that is not held."""
    parts, x, slope, state = len(case.scores), work.x, work.slope, work.state
    product(system, work.v, slope)
    largest = 1.0 + noise
    for i in range(len(work.v)):
        largest = max(largest, abs(work.v[i]))
    worst = 0.0
    for k in range(len(x)):
        slope[k] = (case.scores[k] if k < parts else 0.0) - slope[k]
        if state[k] == BETWEEN:
            if k < parts:
                x[k] = mirror(curve, slope[k])
            else:
                worst = max(worst, abs(slope[k]) / largest)
    for i in range(len(work.v)):
        total, size = -case.limit[i], abs(case.limit[i])
        for e in range(system.start[i], system.start[i + 1]):
            term = system.entry[e] * x[system.column[e]]
            total += term
            size += abs(term)
        work.excess[i] = total
        work.size[i] = size + noise * system.reach[i] + 1e-290
    return worst


@kernel
def _on_face(
    system: System,
    curve: Curve,
    case: Case,
    noise: float,
    work: Work,
) -> float:
    """Newton's method on the face from v and z on; the error it ends with."""
    state, tight = work.state, work.tight
    parts, rows, variables = len(case.scores), len(tight), len(state)
    x, slope, weights, step, spare = work.x, work.slope, work.weights, work.step, work.spare
    loose = 1.0 / NEAR
    error, stalls = np.inf, 0
    for i in range(rows):
        work.held[i] = 0.0 if tight[i] else 1.0
    for count in range(STEPS):
        worst = _evaluate(system, curve, case, noise, work)
        for i in range(rows):
            if tight[i]:
                worst = max(worst, abs(work.excess[i]) / work.size[i])
        if not worst < np.inf:
            break
        stalls = stalls + 1 if worst > 0.8 * error else 0
        if worst < error:
            error = worst
            copy(work.v, work.best, rows)
            copy(x, work.place, variables)
        if error <= EXACT or stalls > 2:
            break
        if count == 0 or (curve.kind != EUCLIDEAN and worst > REFACTOR):
            for k in range(variables):
                weights[k] = 0.0
                if state[k] == BETWEEN:
                    weights[k] = spread(curve, slope[k], x[k]) if k < parts else loose
            factor(system, weights, spare[:0], work.held, 1e-12, curve.steep, work.made)
        for k in range(variables):
            spare[k] = x[k]
            if k >= parts and state[k] == BETWEEN:
                spare[k] += loose * slope[k]
        apply(system, spare, step)
        for i in range(rows):
            step[i] -= case.limit[i]
        solve(system, work.made, step)
        product(system, step, spare)
        for k in range(parts, variables):
            if state[k] == BETWEEN:
                x[k] += loose * (slope[k] - spare[k])
        for i in range(rows):
            if tight[i]:
                work.v[i] += step[i]
    copy(work.best, work.v, rows)
    copy(work.place, x, variables)
    return max(error, _evaluate(system, curve, case, noise, work))


@kernel
def _corrected(case: Case, noise: float, low: np.ndarray, work: Work) -> int:
    """How many rows and bounds hold the answer that should not, or the reverse; they change."""
    parts, x, slope, state, tight = len(case.scores), work.x, work.slope, work.state, work.tight
    tie = TIE + ROUNDING * noise
    changes = 0
    for k in range(len(state)):
        part = k < parts
        steady = WRONG * (1.0 + noise + abs(x[k]))
        if state[k] == BETWEEN:
            if x[k] < case.lower[k] - steady or x[k] > case.upper[k] + steady:
                state[k] = LOWER if x[k] < case.lower[k] else UPPER
                x[k] = case.lower[k] if state[k] == LOWER else case.upper[k]
                changes += 1
        else:
            least = case.least[k] if part else 0.0
            most = case.most[k] if part else 0.0
            low_wrong = state[k] == LOWER and slope[k] > least + tie
            if low_wrong or (state[k] == UPPER and slope[k] < most - tie):
                state[k] = BETWEEN
                changes += 1
    for i in range(len(tight)):
        if tight[i]:
            if low[i] == 0.0 and work.v[i] < -tie:
                tight[i] = False
                work.v[i] = 0.0
                changes += 1
        elif work.excess[i] > WRONG * work.size[i]:
            tight[i] = True
            changes += 1
    return changes


@kernel
def _agrees(case: Case, scale: float, state: np.ndarray, tight: np.ndarray, work: Work) -> bool:
    """Whether what holds the answer differs from the exposed face in ties alone."""
    parts = len(case.scores)
    for k in range(len(state)):
        if state[k] != work.state[k]:
            beyond = work.slope[k]
            if k < parts:
                beyond -= case.least[k] if work.state[k] == LOWER else case.most[k]
            if state[k] != BETWEEN or abs(beyond) > TIED * scale:
                return False
    for i in range(len(tight)):
        if tight[i] != work.tight[i] and (tight[i] or abs(work.v[i]) > TIED * scale):
            return False
    return True


@kernel
def project_lifted(
    first: int,
    last: int,
    system: System,
    curve: Curve,
    box: Box,
    scores: np.ndarray,
    keep: np.ndarray,
    limit: int,
    value: np.ndarray,
    slope: np.ndarray,
    multiplier: np.ndarray,
    excess: np.ndarray,
    state: np.ndarray,
    tight: np.ndarray,
    clear: np.ndarray,
    steps: np.ndarray,
    error: np.ndarray,
    objective: np.ndarray,
) -> None:
    """As `row_newton.project`, over variables of which the scores' are the first.

    `value`, `slope` and `state` are `(n, variables)`: the slope of an auxiliary variable is its own
    multiplier. `error` is infinite where the set of what binds could not be found.
    """
    parts, rows, variables = scores.shape[1], len(system.low), value.shape[1]
    work = _new_work(system, variables, parts)
    live = np.ones(parts, np.bool_)
    for i in range(first, last):
        case, largest = case_at(i, box, scores, keep, live)
        noise = 0.0 if curve.steep else largest
        forget(work.made)
        _pose(system, case, work.at)
        steps[i] = interior(
            system, curve, limit, work.at, work.move, work.weights, work.spare, work.made
        )
        scale = max(1.0, largest)
        clear[i] = _guess(case, scale, state[i], tight[i], work)
        error[i] = np.inf
        for _ in range(CORRECTIONS):
            reached = _on_face(system, curve, case, noise, work)
            if _corrected(case, noise, system.low, work) == 0:
                error[i] = reached
                break
        clear[i] = clear[i] and _agrees(case, scale, state[i], tight[i], work)
        copy(work.x, value[i], variables)
        copy(work.slope, slope[i], variables)
        copy(work.v, multiplier[i], rows)
        copy(work.excess, excess[i], rows)
        objective[i] = 0.0
        for k in range(parts):
            if live[k]:
                y = min(max(work.x[k], case.lower[k]), case.upper[k])
                value[i, k] = y
                objective[i] += scores[i, k] * y - phi(curve, y)
