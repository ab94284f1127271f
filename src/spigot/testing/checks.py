"""The checks themselves: every verb, by every road, on every case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import (
    ConvergenceError,
    Euclidean,
    Gibbs,
    Polytope,
    Regularizer,
    Status,
    UnsupportedProblem,
    dispatch,
)
from spigot.polytopes.arrays import numbers
from spigot.polytopes.dispatch import Road
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.solvers import Cvxpy, CvxpyLayers
from spigot.testing.batches import check_batch, check_labels, check_sizes
from spigot.testing.bench import Bench, worst
from spigot.testing.cases import REGULARIZERS, Case, cases
from spigot.testing.gibbs import check_peaked, check_samples, check_values
from spigot.testing.report import Counterexample, Finding, Report
from spigot.testing.shrink import shrink

__all__ = ["check"]

ERROR = 1e-6  # of an answer, relative to 1 + the largest score
CERTIFICATE = 1e-12  # proves an error of 1e-6 for a point of M,
NOISE = 1e-5  # so that a difference this small is the reference's own (at ties)
LOOSE = 1e-3  # for cvxpylayers, whose own error is about 1e-4
INTERIOR = 1e-5  # for cone programs that auxiliary variables leave without a polish
GRADIENT = 1e-4
NOT_A_VERTEX = "not a vertex"  # of whatever value: the reference's own may be the same point


def check(
    polytope: Polytope, against: Polytope | None = None, *, seed: int = 0, count: int = 8
) -> Report:
    """Runs every fact and fast rule against the generic roads and against cvxpy.

    Random and adversarial scores (ties, zeros, all equal, repeated, one huge entry, tiny ones, masks)
    go through every road of every verb. Answers are compared with Clarabel at tolerances of 1e-12 on
    the declaration itself, with the other declaration's roads, and with the certificate.

    Args:
        polytope: what is checked.
        against: another declaration of the same set, such as `Facets` or `Hull`.
        seed: of the random scores.
        count: how many random ones.

    Returns:
        A `Report`: `passed`, and as text a table with the smallest counterexample found of each
        failure.

    Raises:
        UnsupportedProblem, InfeasiblePolytope, UnboundedPolytope: the declaration is no polytope.

    Example:
        >>> from spigot.polytopes import Simplex
        >>> from spigot.testing import check
        >>> check(Simplex(3), count=2).passed
        True
    """
    bench = Bench(polytope, against)
    instances = cases(polytope, seed, count)
    findings: list[Finding] = []
    for regularizer in REGULARIZERS:
        roads = _roads(polytope, regularizer)
        findings += [_check_road(bench, road, regularizer, instances) for road in roads]
        if regularizer is not None and roads:
            findings += [_check_gradient(bench, road, regularizer, instances) for road in roads]
    findings += [*check_batch(bench, instances), *check_sizes(bench), *check_labels(bench, instances)]
    for look in (check_values, check_samples):
        findings += look(bench, instances)
    findings += check_peaked(bench)
    return Report(repr(polytope), tuple(findings), tuple(_notes(bench, instances)))


def _roads(polytope: Polytope, regularizer: Regularizer | None) -> list[Road]:
    try:
        dispatch.check_domain(polytope, regularizer)
    except UnsupportedProblem:
        return []
    return list(dispatch.roads(polytope, regularizer))


def _pose(bench: Bench, case: Case, regularizer: Regularizer | None) -> Problem:
    keep = None if case.keep is None else case.keep[None]
    scores = case.scores if case.keep is None else torch.where(case.keep, case.scores, 0.0)
    return Problem(bench.polytope, scores[None], regularizer, keep, batch_shape=(1,))


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One instance by one road: how wrong, and whether that is too wrong."""

    value: Tensor
    error: float
    certificate: float
    reason: str


def _run(bench: Bench, road: Road, regularizer: Regularizer | None, case: Case) -> _Outcome | None:
    """None where the road itself says that it did not converge."""
    try:
        solution = road.solve(_pose(bench, case, regularizer))
    except ConvergenceError:
        return None
    if int(solution.status[0]) != Status.CONVERGED:
        return None
    value = solution.value[0].double()
    expected = bench.expected(case, regularizer)
    gap = bench.certificate(case, regularizer, value)
    scale = 1 + float(case.scores.abs().max())
    error = _error(regularizer, value, expected, gap)
    limit = _limit(bench, road)
    reason = _reason(bench, case, value, error / scale, abs(gap) / scale, limit, regularizer is None)
    return _Outcome(value, error, gap, reason)


def _limit(bench: Bench, road: Road) -> float:
    """What a road's answer may be off by."""
    if isinstance(road, CvxpyLayers):
        return LOOSE
    polytope = bench.polytope
    lifted = (
        "constraints" not in polytope.facts or polytope.canonical.variables > polytope.bounds[0].numel()
    )
    return INTERIOR if isinstance(road, Cvxpy) and lifted else ERROR


def _error(regularizer: Regularizer | None, value: Tensor, expected: Tensor | None, gap: float) -> float:
    if regularizer is None:
        return abs(gap)
    return torch.nan if expected is None else float((value - expected).abs().max())


def _reason(
    bench: Bench,
    case: Case,
    value: Tensor,
    error: float,
    gap: float,
    limit: float,
    vertex: bool,
) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if not bool(torch.isfinite(value).all()):
        return "not finite"
    if case.keep is not None and bool((value[~case.keep] != 0).any()):
        return "an excluded part is used"
    if error > limit and not (error <= NOISE and gap <= CERTIFICATE):
        return f"off by {error:.1e}, relative to 1 + the largest score"
    if error != error and gap > (LOOSE if limit == LOOSE else 1e-8):
        return f"not optimal: the certificate is {gap:.1e}"
    if error != error and not bench.inside(case, value, 10 * limit):
        return "outside M"
    if vertex and not _is_vertex(bench, value):
        return NOT_A_VERTEX
    return ""


def _is_vertex(bench: Bench, value: Tensor) -> bool:
    """Among the declared vertices; or nothing else attains the sum of facets that are tight there."""
    for twin in bench.twins:
        if "vertices" in twin.facts:
            points = twin.vertices().double().flatten(1)
            if float((points - value.flatten()).abs().amax(1).min()) > 1e-7:
                return False
    for twin in bench.twins:
        if "constraints" in twin.facts:
            return _tight_rank(twin, value)
    return True


def _tight_rank(polytope: Polytope, value: Tensor) -> bool:
    """Whether the rows tight at y leave it no direction; unknown (true) with auxiliary variables."""
    import numpy as np

    from spigot.polytopes.solvers.rows import stacked_rows

    rows = stacked_rows(polytope.canonical)
    if len(rows.auxiliary) or rows.matrix.shape[0] * rows.matrix.shape[1] > 1_000_000:
        return True
    matrix = rows.matrix[:, rows.form.columns]
    slack = rows.limits - matrix @ value.flatten().numpy()
    tight = matrix[np.abs(slack) <= 1e-7].toarray()
    return bool(slack.min() >= -1e-7 and np.linalg.matrix_rank(tight, tol=1e-9) == matrix.shape[1])


def _check_road(
    bench: Bench, road: Road, regularizer: Regularizer | None, instances: list[Case]
) -> Finding:
    slow = isinstance(road, CvxpyLayers)
    chosen = instances[:3] if slow else instances
    outcomes = [(case, _run(bench, road, regularizer, case)) for case in chosen]
    done = [(case, outcome) for case, outcome in outcomes if outcome is not None]
    failed = next((case for case, outcome in done if outcome.reason), None)
    example = None
    if failed is not None:
        example = _counterexample(bench, road, regularizer, failed)
    verb: dict[type | None, str] = {Euclidean: "project", Gibbs: "marginals"}
    return Finding(
        verb.get(None if regularizer is None else type(regularizer), "maximize"),
        "" if regularizer is None else str(regularizer),
        road.name,
        len(done),
        worst([outcome.error for _, outcome in done]),
        worst([abs(outcome.certificate) for _, outcome in done]),
        len(outcomes) - len(done),
        example,
    )


def _counterexample(
    bench: Bench, road: Road, regularizer: Regularizer | None, case: Case
) -> Counterexample:
    def fails(smaller: Case) -> bool:
        try:
            outcome = _run(bench, road, regularizer, smaller)
        except ValueError:  # the mask or the scores no longer make sense
            return False
        return outcome is not None and bool(outcome.reason)

    small = shrink(case, fails)
    outcome = _run(bench, road, regularizer, small)
    assert outcome is not None
    expected = None if outcome.reason == NOT_A_VERTEX else bench.expected(small, regularizer)
    return Counterexample(case.name, small.scores, small.keep, outcome.value, expected, outcome.reason)


def _check_gradient(
    bench: Bench, road: Road, regularizer: Regularizer, instances: list[Case]
) -> Finding:
    """J d by the road's vector-Jacobian product (J is symmetric) and by central differences.

    The preferred road gives the differences, at instances where halving the step changes nothing.
    """
    best = dispatch.choose(bench.polytope, regularizer)
    rng = torch.Generator().manual_seed(1)
    errors: list[float] = []
    example: Counterexample | None = None
    stopped = 0
    chosen = [case for case in instances if case.generic][: 2 if isinstance(road, CvxpyLayers) else 6]
    for case in chosen:
        problem = _pose(bench, case, regularizer)
        direction = torch.randn(problem.scores.shape, generator=rng, dtype=torch.float64)
        if problem.keep is not None:
            direction = direction * problem.keep
        try:
            pulled = road.vjp(problem, road.solve(problem), direction)
            slope = _difference(best, problem, direction, 1e-5)
            finer = _difference(best, problem, direction, 5e-6)
        except (ConvergenceError, UnsupportedProblem):
            stopped += 1
            continue
        if float((slope - finer).abs().max()) > 1e-5:
            continue  # a kink lies between the two points
        error = float((pulled - finer).abs().max())
        errors.append(error)
        limit = 1e-2 if isinstance(road, CvxpyLayers) else GRADIENT
        if not error <= limit and example is None:
            reason = f"the Jacobian times a direction is off by {error:.1e}"
            example = Counterexample(case.name, case.scores, case.keep, pulled[0], finer[0], reason)
    error = worst(errors)
    return Finding(
        "gradient", str(regularizer), road.name, len(errors), error, torch.nan, stopped, example
    )


def _difference(road: Road, problem: Problem, direction: Tensor, step: float) -> Tensor:
    def at(shift: float) -> Tensor:
        solution: Solution = road.solve(problem.with_scores(problem.scores + shift * direction))
        if bool((solution.status != Status.CONVERGED).any()):
            raise ConvergenceError("a finite difference did not converge")
        return solution.value.double()

    return (at(step) - at(-step)) / (2 * step)


def _notes(bench: Bench, instances: list[Case]) -> Iterator[str]:
    """Fractional vertices, and what could not be compared."""
    for case in instances:
        vertex = bench.polytope.maximize(case.scores, keep=case.keep)
        if bool(((vertex - vertex.round()).abs() > 1e-7).any()):
            yield (
                f"M has fractional vertices, such as {numbers(vertex.flatten())}: if structures are "
                "meant to be 0/1, the constraints are a relaxation (see IntegerHull)."
            )
            break
    if not bench.reference.available:
        yield (
            "only `argmax` is declared, so nothing says whether it is right: answers were checked "
            "against it. Pass against=Facets(...) or Hull(...) to check the oracle itself."
        )
