r"""Bregman projections onto {l <= y <= u, R y = or <= limits}, and their derivative.

    maximise  <s, y> - sum of phi(y_k)   over that set

For multipliers v of the rows (>= 0 for inequalities) the best y is phi' inverted at s - R'v, clipped
to the bounds, and v minimises the convex dual, whose slope is limits - R y. Its generalised Hessian
is R D R', D holding 1 / phi'' at the parts that are not clipped: for `Euclidean` it is piecewise
constant, so that the method ends with a point that is exact.

Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the projector over the
Birkhoff polytope" (2020); Bertsekas, "Projected Newton methods for optimization problems with
simple constraints" (1982).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.bounds import at_most, bounded, crosses, hold, within
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.curves import (
    EUCLIDEAN,
    Curve,
    conjugate,
    mirror,
    phi,
    spread,
    spread_at,
)
from spigot.polytopes.kernels.rows.elimination import (
    Factor,
    System,
    apply,
    apply_both,
    factor,
    forget,
    new_factor,
    product,
    solve,
)
from spigot.polytopes.kernels.rows.row_interior import Inside, interior, new_inside
from spigot.polytopes.kernels.vectors import between, copy, fill, subtract

__all__ = ["GIVEN", "LOWER", "UPPER", "Box", "Case", "case_at", "project", "pull"]

TRIALS = 40
FEW_ROUNDS = 3  # in which multipliers that a step sends beyond their bound are held there,
MANY_ROUNDS = 60  # and more where the dual does not fall along it
TARGET = 2e-15  # of a row's error, relative to what its sum is made of
STALLED = 1e-10
EXACT = 5e-15
POLISHES = 4
TIE = 2e-9  # a multiplier or slack this small may be 0,
ROUNDING = 7e-15  # or one this small relative to the scores
CLEAR = 1e3  # an interior point's multiplier this far above its slack binds
FLAT = 1e-9  # the ridge that tells directions in which nothing moves, squared in effect
PUSHES = 12
MOVED = 1e-3  # what counts as moved, and what as still, relative to the largest move
STILL = 1e-9
LARGE = 5.0  # the scores that a problem around its own answer needs
INNER = 80  # steps of the interior point
PATIENCE = 25  # steps before the interior point takes over,
LONGER = 40  # or these where phi is not quadratic, and its multipliers are but a start
ATTEMPTS = 3  # of Newton's method; before the last two come interior points

LOWER, BETWEEN, UPPER, GIVEN = -1, 0, 1, 2
QUADRATIC = Curve(EUCLIDEAN, 2.0, False)


class Box(NamedTuple):
    """The limits of a batch: one row for all instances, or one each."""

    limit: np.ndarray  # (n or 1, rows)
    lower: np.ndarray  # (n or 1, d)
    upper: np.ndarray
    least: np.ndarray  # (n or 1, d), phi' at the lower end
    most: np.ndarray


class Case(NamedTuple):
    """One instance; where there are auxiliary variables they have bounds too, after the d parts'."""

    scores: np.ndarray  # (d,)
    live: np.ndarray  # (d,), bool: the parts that masks leave; the others are 0
    limit: np.ndarray  # (rows,)
    lower: np.ndarray  # (variables,)
    upper: np.ndarray
    least: np.ndarray  # (d,), phi' at the lower end
    most: np.ndarray


@kernel
def case_at(
    i: int, box: Box, scores: np.ndarray, keep: np.ndarray, live: np.ndarray
) -> tuple[Case, float]:
    """Instance i, whose `live` this fills in, and the size of its largest score."""
    own, place = (i if len(box.limit) > 1 else 0), (i if len(box.lower) > 1 else 0)
    largest = 0.0
    for k in range(len(live)):
        live[k] = keep.shape[0] == 0 or keep[i, k]
        largest = max(largest, abs(scores[i, k]) if live[k] else 0.0)
    case = Case(
        scores[i],
        live,
        box.limit[own],
        box.lower[place],
        box.upper[place],
        box.least[place],
        box.most[place],
    )
    return case, largest


class Point(NamedTuple):
    """Multipliers and what follows from them."""

    v: np.ndarray  # (rows,)
    x: np.ndarray  # (d,), s - R'v
    y: np.ndarray  # (d,)
    excess: np.ndarray  # (rows,), R y - limits
    size: np.ndarray  # (rows,), what rounding may move it by, over the unit roundoff


class Work(NamedTuple):
    """Workspace of a slice."""

    point: Point
    trial: Point
    weights: np.ndarray  # (d,)
    spare: np.ndarray  # (d,)
    held: np.ndarray  # (rows,)
    step: np.ndarray  # (rows,)
    made: Factor
    at: Inside
    move: Inside


@kernel
def _new_point(rows: int, d: int) -> Point:
    """An empty workspace."""
    return Point(np.zeros(rows), np.zeros(d), np.zeros(d), np.zeros(rows), np.zeros(rows))


@kernel
def _take(source: Point, target: Point) -> None:
    """All of a point but its sizes."""
    copy(source.v, target.v, len(source.v))
    copy(source.x, target.x, len(source.x))
    copy(source.y, target.y, len(source.x))
    copy(source.excess, target.excess, len(source.v))


@kernel
def _new_work(system: System, d: int) -> Work:
    """An empty workspace."""
    rows = len(system.low)
    return Work(
        _new_point(rows, d),
        _new_point(rows, d),
        np.zeros(d),
        np.zeros(d),
        np.zeros(rows),
        np.zeros(rows),
        new_factor(system),
        new_inside(rows, d, d),
        new_inside(rows, d, d),
    )


@kernel
def _evaluate(system: System, curve: Curve, case: Case, noise: float, point: Point) -> float:
    """Everything at point.v; returns the dual."""
    product(system, point.v, point.x)
    subtract(case.scores, point.x)
    dual = _on_parts(curve, case, point.v, point.x, point.y)
    apply_both(system, point.y, point.y, point.excess, point.size)
    _on_rows(case.limit, system.reach, noise, point.excess, point.size)
    return dual


@kernel
def _on_parts(curve: Curve, case: Case, v: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    """y at x; returns the dual."""
    live, least, most, lower, upper = case.live, case.least, case.most, case.lower, case.upper
    dual = 0.0
    for k in range(len(y)):
        t = x[k]
        if not live[k]:
            y[k] = 0.0
        elif t <= least[k] or t >= most[k]:
            y[k] = lower[k] if t <= least[k] else upper[k]
            dual += t * y[k] - phi(curve, y[k])
        else:
            y[k] = mirror(curve, t)
            dual += conjugate(curve, t, y[k])
    for i in range(len(v)):
        dual += case.limit[i] * v[i]
    return dual


@kernel
def _on_rows(
    limit: np.ndarray, reach: np.ndarray, noise: float, excess: np.ndarray, size: np.ndarray
) -> None:
    """From R y and its mass the rows' excess and its size."""
    for i in range(len(limit)):
        excess[i] -= limit[i]
        size[i] += abs(limit[i]) + noise * reach[i] + 1e-290


@kernel
def _error(low: np.ndarray, v: np.ndarray, excess: np.ndarray, size: np.ndarray) -> float:
    """The largest error of a row, relative to its size; it may fall short where v is at its bound."""
    worst = 0.0
    for i in range(len(v)):
        if not abs(excess[i]) < np.inf:
            return np.inf
        if v[i] > low[i] or excess[i] > 0.0:
            worst = max(worst, abs(excess[i]) / size[i])
    return worst


@kernel
def _slope(low: np.ndarray, v: np.ndarray, excess: np.ndarray, step: np.ndarray) -> float:
    """The dual's slope along a step, over the multipliers that it can move."""
    total = 0.0
    for i in range(len(step)):
        if v[i] > low[i] or step[i] > 0.0:
            total -= excess[i] * step[i]
    return total


@kernel
def _spreads(curve: Curve, case: Case, point: Point, out: np.ndarray) -> None:
    """D at this point."""
    for k in range(len(out)):
        t = point.x[k]
        out[k] = 0.0
        if case.live[k] and case.least[k] < t and t < case.most[k]:
            out[k] = spread(curve, t, point.y[k])


@kernel
def _direction(
    system: System,
    steep: bool,
    point: Point,
    weights: np.ndarray,
    ridge: float,
    rounds: int,
    held: np.ndarray,
    step: np.ndarray,
    spare: np.ndarray,
    made: Factor,
) -> None:
    """(R D R' + ridge)^-1 excess; multipliers that it would send beyond their bound go there."""
    rows = len(step)
    for i in range(rows):
        held[i] = 1.0 if point.v[i] <= system.low[i] and point.excess[i] <= 0.0 else 0.0
        step[i] = 0.0
    for _ in range(rounds):
        given = False
        for i in range(rows):
            step[i] = system.low[i] - point.v[i] if held[i] else 0.0
            given = given or step[i] != 0.0
        factor(system, weights, weights[:0], held, ridge, steep, made)
        if given:
            product(system, step, spare)
            for k in range(len(spare)):
                spare[k] *= weights[k]
            apply(system, spare, step)
            for i in range(rows):
                step[i] = point.excess[i] - step[i]
        else:
            copy(point.excess, step, rows)
        solve(system, made, step)
        for i in range(rows):
            if held[i]:
                step[i] = system.low[i] - point.v[i]
        part = at_most(point.v, system.low, step, held, rows)
        if part == 1.0:
            break
        hold(part, point.v, system.low, step, held, rows)


@kernel
def _slope_ahead(
    limit: np.ndarray, live: np.ndarray, y: np.ndarray, x: np.ndarray, end: np.ndarray, step: np.ndarray
) -> float:
    """`_slope` at y by the parts alone: along a step that meets no bound R'step is what x loses."""
    total = 0.0
    for i in range(len(step)):
        total += limit[i] * step[i]
    for k in range(len(end)):
        if live[k]:
            total -= y[k] * (x[k] - end[k])
    return total


@kernel
def _minimise(
    system: System,
    curve: Curve,
    case: Case,
    noise: float,
    target: float,
    limit: int,
    work: Work,
) -> tuple[int, float]:
    """The dual's minimiser from work.point.v on; steps and the error."""
    point, trial, step, end = work.point, work.trial, work.step, work.spare
    rows = len(step)
    dual = _evaluate(system, curve, case, noise, point)
    error = _error(system.low, point.v, point.excess, point.size)
    stalls, rounds = 0, FEW_ROUNDS
    for count in range(limit):
        if error <= target or stalls > 3:
            return count, error
        _spreads(curve, case, point, work.weights)
        ridge = min(1e-3, 0.1 * error) + 1e-12
        _direction(
            system,
            curve.steep,
            point,
            work.weights,
            ridge,
            rounds,
            work.held,
            step,
            work.spare,
            work.made,
        )
        slope = _slope(system.low, point.v, point.excess, step)
        alpha, low, high, slope_low = 1.0, 0.0, np.inf, slope
        rounding, enough = 1e-14 * (1.0 + abs(dual)), 0.7 * abs(slope)
        value, reached, lower = dual, error, False
        free = not crosses(point.v, system.low, step, rows)
        for left in range(TRIALS - 1, -1, -1):
            for i in range(rows):
                trial.v[i] = bounded(point.v[i] + alpha * step[i], system.low[i])
            if free and alpha < 1.0:
                between(point.x, end, alpha, trial.x)
            else:
                product(system, trial.v, trial.x)
                subtract(case.scores, trial.x)
            if alpha == 1.0:
                copy(trial.x, end, len(end))
            value = _on_parts(curve, case, trial.v, trial.x, trial.y)
            lower = value <= dual + 1e-4 * alpha * min(slope, 0.0) + rounding
            along, whole = 0.0, True
            if free and alpha <= 1.0:
                along = _slope_ahead(case.limit, case.live, trial.y, point.x, end, step)
                whole = left == 0 or (lower and (alpha == 1.0 or abs(along) <= enough))
            if whole:
                apply_both(system, trial.y, trial.y, trial.excess, trial.size)
                _on_rows(case.limit, system.reach, noise, trial.excess, trial.size)
                along = _slope(system.low, trial.v, trial.excess, step)
                reached = _error(system.low, trial.v, trial.excess, trial.size)
                if lower and (reached <= 0.5 * error or abs(along) <= enough):
                    break
            if lower and along < 0.0:
                low, slope_low = alpha, along
            else:
                high = alpha
            alpha = alpha * 4.0 if high == np.inf else within(low, high, slope_low, along)
        if not lower and not reached < error:
            if rounds == MANY_ROUNDS:
                return count, error
            rounds = MANY_ROUNDS
            continue
        rounds = FEW_ROUNDS
        stalls = stalls + 1 if error <= STALLED and reached >= 0.5 * error else 0
        dual, error = value, reached
        _take(trial, point)
        copy(trial.size, point.size, rows)
    return limit, error


@kernel
def _pose(system: System, case: Case, point: Point, around: bool, noise: float, at: Inside) -> None:
    """The projection for the interior point: of the scores, or `around` an answer y of what is y too.

    That is y + s - phi'(y), which exposes the same face. R'v is left out, for it is constant over the
    points that meet the rows with v > 0 as equations, and what is far beyond a bound is as well a
    little beyond it.
    """
    tie = TIE + ROUNDING * noise
    far = LARGE
    for k in range(len(case.live)):
        far = max(far, LARGE * abs(point.y[k]))
    for k in range(len(case.live)):
        live = case.live[k]
        at.low[k] = case.lower[k] if live else 0.0
        at.high[k] = case.upper[k] if live else 0.0
        at.scores[k] = case.scores[k] if live else 0.0
        if around and live:
            beyond = point.x[k] - min(max(point.x[k], case.least[k]), case.most[k])
            at.scores[k] = min(max(point.y[k] + beyond, at.low[k] - far), at.high[k] + far)
    for i in range(len(case.limit)):
        at.limit[i] = case.limit[i]
        at.equal[i] = system.low[i] < 0.0 or (around and point.v[i] > tie)


@kernel
def _classify(
    system: System,
    case: Case,
    point: Point,
    noise: float,
    state: np.ndarray,
    tight: np.ndarray,
) -> bool:
    """Which bounds and rows have multipliers; whether none is near 0 with no slack."""
    tie = TIE + ROUNDING * noise
    clear = True
    for k in range(len(state)):
        x = point.x[k]
        state[k] = BETWEEN
        if not case.live[k]:
            continue
        if case.least[k] >= case.most[k]:
            state[k] = GIVEN
        elif x < case.least[k] - tie:
            state[k] = LOWER
        elif x > case.most[k] + tie:
            state[k] = UPPER
        elif x <= case.least[k] + tie or x >= case.most[k] - tie:
            clear = False
    for i in range(len(tight)):
        tight[i] = system.low[i] < 0.0 or point.v[i] > tie
        if not tight[i] and -point.excess[i] <= TIE * point.size[i]:
            clear = False
    return clear


@kernel
def _ties(case: Case, noise: float, state: np.ndarray, tight: np.ndarray, work: Work) -> None:
    """The ties as pushes of size 1: of parts, down or up, into `spare`; of rows into `held` as -1.

    `weights` is 1 at the parts between their bounds, `held` 1 at the rows that are loose.
    """
    point = work.point
    tie = TIE + ROUNDING * noise
    for k in range(len(state)):
        x = point.x[k]
        work.weights[k] = work.spare[k] = 0.0
        if case.live[k] and state[k] == BETWEEN:
            if x <= case.least[k] + tie:
                work.spare[k] = 1.0
            elif x >= case.most[k] - tie:
                work.spare[k] = -1.0
            else:
                work.weights[k] = 1.0
    for i in range(len(tight)):
        loose = -point.excess[i] > TIE * point.size[i]
        work.held[i] = 0.0 if tight[i] else 1.0 if loose else -1.0


@kernel
def _moved(system: System, q: np.ndarray, k: int) -> float:
    """(R'q)_k."""
    total = 0.0
    for e in range(system.first[k], system.first[k + 1]):
        total += q[system.row[e]] * system.weight[e]
    return total


@kernel
def _push(
    system: System, case: Case, noise: float, state: np.ndarray, tight: np.ndarray, work: Work
) -> bool:
    """Whether one change of the multipliers gives every tie one; they all bind then.

    The change is a sum of pushes, one a tie, projected onto those that leave the parts between their
    bounds where they are: its image under the ridge times the inverse of R D R' + ridge, twice. A tie
    that it does not move is pushed harder.
    """
    q, push, out, pushed = work.step, work.spare, work.trial.size, work.trial.v
    _ties(case, noise, state, tight, work)
    for i in range(len(q)):
        out[i] = 1.0 if work.held[i] > 0.0 else 0.0
        pushed[i] = np.sqrt(system.square[i]) if work.held[i] < 0.0 else 0.0
    factor(system, work.weights, push[:0], out, FLAT, False, work.made)
    for _ in range(PUSHES):
        copy(pushed, q, len(q))
        for k in range(len(push)):
            if push[k] != 0.0:
                for e in range(system.first[k], system.first[k + 1]):
                    q[system.row[e]] += push[k] * system.weight[e]
        for again in range(2):
            for i in range(len(q)):
                q[i] *= FLAT * (system.square[i] if again else 1.0)
            solve(system, work.made, q)
        largest = 0.0
        for i in range(len(q)):
            largest = max(largest, abs(q[i]) * np.sqrt(system.square[i]))
        done = largest > 0.0
        for k in range(len(push)):
            if push[k] != 0.0 and not np.sign(push[k]) * _moved(system, q, k) > MOVED * largest:
                push[k] *= 2.0
                done = False
            elif work.weights[k] > 0.0 and not abs(_moved(system, q, k)) <= STILL * largest:
                return False
        for i in range(len(q)):
            if pushed[i] > 0.0 and not q[i] * np.sqrt(system.square[i]) > MOVED * largest:
                pushed[i] *= 2.0
                done = False
        if done:
            _all_bind(case, state, tight, work)
            return True
    return False


@kernel
def _all_bind(case: Case, state: np.ndarray, tight: np.ndarray, work: Work) -> None:
    """Every tie binds."""
    for k in range(len(state)):
        if work.spare[k] != 0.0:
            state[k] = LOWER if work.spare[k] > 0.0 else UPPER
            work.point.y[k] = case.lower[k] if work.spare[k] > 0.0 else case.upper[k]
    for i in range(len(tight)):
        tight[i] = work.held[i] <= 0.0


@kernel
def _settle(
    case: Case, at: Inside, point: Point, noise: float, state: np.ndarray, tight: np.ndarray
) -> bool:
    """Which ties bind on the exposed face, as the interior point has it; whether it agrees."""
    tie = TIE + ROUNDING * noise
    scale = 1.0
    for k in range(len(state)):
        scale = max(scale, abs(point.y[k]))
    for k in range(len(state)):
        if not case.live[k] or state[k] != BETWEEN:
            continue
        if not abs(at.y[k] - point.y[k]) <= 1e-5 * scale:
            return False
        x = point.x[k]
        if x <= case.least[k] + tie and at.lower[k] > CLEAR * at.below[k]:
            state[k] = LOWER
            point.y[k] = case.lower[k]
        elif x >= case.most[k] - tie and at.upper[k] > CLEAR * at.above[k]:
            state[k] = UPPER
            point.y[k] = case.upper[k]
    for i in range(len(tight)):
        if not tight[i] and -point.excess[i] <= TIE * point.size[i]:
            tight[i] = at.v[i] > CLEAR * at.slack[i]
    return True


@kernel
def _polish(
    system: System,
    case: Case,
    noise: float,
    state: np.ndarray,
    tight: np.ndarray,
    error: float,
    work: Work,
) -> float:
    """The projection onto the face of what binds, where it lies in the set; the error then."""
    point, trial = work.point, work.trial
    copy(point.v, trial.v, len(tight))
    for k in range(len(state)):
        work.weights[k] = 1.0 if case.live[k] and state[k] == BETWEEN else 0.0
    for i in range(len(tight)):
        work.held[i] = 0.0 if tight[i] else 1.0
    factor(system, work.weights, work.spare[:0], work.held, 1e-12, False, work.made)
    for _ in range(POLISHES):
        product(system, trial.v, trial.x)
        for k in range(len(state)):
            trial.x[k] = case.scores[k] - trial.x[k]
            trial.y[k] = trial.x[k] if work.weights[k] > 0.0 else point.y[k]
        apply(system, trial.y, trial.excess)
        worst = 0.0
        for i in range(len(tight)):
            trial.excess[i] -= case.limit[i]
            if tight[i] or trial.excess[i] > 0.0:
                worst = max(worst, abs(trial.excess[i]) / point.size[i])
        for k in range(len(state)):
            if work.weights[k] > 0.0:
                y = trial.y[k]
                beyond = max(case.lower[k] - y, y - case.upper[k])
                worst = max(worst, beyond / (1.0 + noise))
                trial.y[k] = min(max(y, case.lower[k]), case.upper[k])
        if worst < error:
            error = worst
            _take(trial, point)
        copy(trial.excess, work.step, len(tight))
        solve(system, work.made, work.step)
        for i in range(len(tight)):
            if tight[i]:
                trial.v[i] += work.step[i]
    return error


@kernel
def project(
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
    """Maximisers, phi' at them before clipping, the rows' multipliers and excess, steps and errors.

    Also the objectives <s, y> - Omega(y).

    `keep` may have no rows. `multiplier` is where the search starts. Writes which bounds and rows
    bind on the exposed face, `state` (n, d) and `tight` (n, rows), and whether that is `clear` (n,).
    """
    d, rows = scores.shape[1], len(system.low)
    work = _new_work(system, d)
    point, at = work.point, work.at
    live = np.ones(d, np.bool_)
    quadratic = curve.kind == EUCLIDEAN
    for i in range(first, last):
        case, largest = case_at(i, box, scores, keep, live)
        noise = 0.0 if curve.steep else largest
        target = TARGET * (1.0 + largest) if curve.steep else TARGET
        copy(multiplier[i], point.v, rows)
        forget(work.made)
        steps[i] = 0
        for _ in range(ATTEMPTS):
            patience = limit if steps[i] else min(limit, PATIENCE if quadratic else LONGER)
            taken, error[i] = _minimise(system, curve, case, noise, target, patience, work)
            clear[i] = _classify(system, case, point, noise, state[i], tight[i])
            steps[i] += taken
            around = error[i] <= STALLED
            if (clear[i] and around) or steps[i] >= limit:
                break
            if around and _push(system, case, noise, state[i], tight[i], work):
                clear[i] = True
                break
            _pose(system, case, point, around, noise, at)
            steps[i] += interior(
                system, QUADRATIC, INNER, at, work.move, work.weights, work.spare, work.made
            )
            if around:
                clear[i] = _settle(case, at, point, noise, state[i], tight[i])
                break
            for r in range(rows):
                point.v[r] = max(at.v[r], system.low[r])
        if quadratic and clear[i] and error[i] > EXACT:
            error[i] = _polish(system, case, noise, state[i], tight[i], error[i], work)
        copy(point.y, value[i], d)
        objective[i] = 0.0
        for k in range(d):
            if live[k]:
                objective[i] += scores[i, k] * point.y[k] - phi(curve, point.y[k])
        copy(point.x, slope[i], d)
        copy(point.v, multiplier[i], rows)
        copy(point.excess, excess[i], rows)


REFINEMENTS = 30
NEAR = 1e-3  # the proximal term of an auxiliary variable


@kernel
def pull(
    first: int,
    last: int,
    system: System,
    curve: Curve,
    value: np.ndarray,
    inside: np.ndarray,
    loose: np.ndarray,
    grad: np.ndarray,
    out: np.ndarray,
    error: np.ndarray,
) -> None:
    """y = D (g - R'v) with R (y, z) = 0 and R'v = 0 at z, over the rows that are not `loose`.

    D holds 1 / phi'' at the parts `inside` (n, variables) their bounds, and 0 elsewhere; z are the
    auxiliary variables inside theirs. The factor's small ridge, and the proximal term that z gets,
    leave an error that refinement removes, for dependent rows as well.
    """
    parts, rows, variables = grad.shape[1], len(system.low), inside.shape[1]
    made = new_factor(system)
    v, rest, scale = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    left, size, weights = np.zeros(variables), np.zeros(variables), np.zeros(variables)
    z = np.zeros(variables - parts)
    for i in range(first, last):
        for k in range(variables):
            weights[k] = 0.0
            if inside[i, k]:
                weights[k] = spread_at(curve, value[i, k]) if k < parts else 1.0 / NEAR
        factor(system, weights, v[:0], loose[i], 1e-11, True, made)
        fill(v, rows, 0.0)
        fill(z, len(z), 0.0)
        error[i] = np.inf
        for _ in range(REFINEMENTS):
            product(system, v, left)
            for k in range(parts):
                size[k] = weights[k] * (abs(grad[i, k]) + abs(left[k]))
                left[k] = weights[k] * (grad[i, k] - left[k])
            for k in range(parts, variables):
                z[k - parts] -= weights[k] * left[k]
                left[k] = z[k - parts] - weights[k] * left[k]
                size[k] = abs(left[k])
            worst = 0.0
            apply_both(system, left, size, rest, scale)
            for r in range(rows):
                if loose[i, r]:
                    rest[r] = 0.0
                worst = max(worst, abs(rest[r]) / (scale[r] + 1e-290))
            if worst >= 0.5 * error[i] and worst <= 1e-13:
                break
            error[i] = worst
            for k in range(parts):
                out[i, k] = left[k]
            if worst <= 1e-15:
                break
            solve(system, made, rest)
            for r in range(rows):
                v[r] += rest[r]
