r"""Mirror steps from a start point towards the pulled-back target.

    target = argmin over y in M of  eta <g, y> + D_phi(y, mu)  =  maximize(M, grad phi(mu) - eta g, phi)

(Mihaylova, Niculae and Martins 2020, section 4). A step carries grad phi(mu), not mu: for Gibbs the
scores, for the others what their solver hands back, which is right where y underflows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spigot.polytopes import Polytope, Regularizer, UnsupportedProblem
from spigot.polytopes.base import Checked
from spigot.polytopes.dispatch import Road, Solver, choose
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs, Separable

__all__ = ["Geometry", "Point", "Unconstrained", "advance", "check_start", "point_of", "road"]


@dataclass(frozen=True)
class Unconstrained:
    """Euclidean distance without the constraint y in M: target = mu - eta g."""


Geometry = Regularizer | Unconstrained


@dataclass(frozen=True, eq=False)
class Point:
    """A point mu `(n, *event)` with grad phi(mu), in which the next step is taken."""

    mu: Tensor
    dual: Tensor


def road(polytope: Polytope, regularizer: Regularizer | None, solver: Solver | None) -> Road:
    """The road, raising where it did not converge; a solver that was asked for may be truncated."""
    return Checked(choose(polytope, regularizer, solver), truncated=solver is not None)


def check_start(start: Regularizer | None, geometry: Geometry) -> None:
    """Refuses geometries whose gradient is infinite or unknown at the start point.

    Raises:
        UnsupportedProblem: with the start that works.
    """
    if isinstance(geometry, Gibbs):
        valid, found = start == geometry, "Gibbs steps are carried in the scores"
    elif isinstance(geometry, Separable) and geometry.steep:
        valid, found = start == geometry, f"the gradient of {geometry} is infinite at a vertex"
    else:
        valid, found = (
            isinstance(geometry, Separable | Unconstrained),
            f"{geometry} has no mirror map",
        )
    if not valid:
        name = "MAP" if start is None else str(start)
        way_out = (
            f"Start at maximize(M, s, {geometry}): start={geometry}."
            if isinstance(geometry, Gibbs | Separable)
            else "Use Euclidean(), Tsallis(alpha), Shannon(), FermiDirac() or Gibbs()."
        )
        raise UnsupportedProblem(
            f"A pull-back in the geometry {geometry} cannot start at {name}: {found}.\n{way_out}"
        )


def point_of(problem: Problem, solution: Solution, geometry: Geometry) -> Point:
    """The start point with its dual coordinates."""
    mu = solution.value.to(problem.scores)
    if isinstance(geometry, Gibbs):
        return Point(mu, problem.scores)
    if isinstance(geometry, Separable):
        dual = solution.gradient if geometry.steep else geometry.gradient(mu)
        assert dual is not None
        return Point(mu, dual.to(mu))
    return Point(mu, mu)


def advance(
    problem: Problem, point: Point, shift: Tensor, geometry: Geometry, solver: Solver | None
) -> Point:
    """One mirror step by -shift = -eta g; instances whose shift is 0 stay exactly where they are."""
    if isinstance(geometry, Unconstrained):
        moved = point.mu - shift
        return Point(moved, moved)
    dual = point.dual - shift
    rows = (shift != 0).flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        return point
    part = replace(problem.take(rows), regularizer=geometry)
    part = part.with_scores(_finite(part, dual[rows]))
    solution = road(problem.polytope, geometry, solver).solve(part)
    mu = point.mu.index_copy(0, rows, solution.value.to(point.mu))
    if isinstance(geometry, Gibbs):
        return Point(mu, dual)
    assert solution.gradient is not None
    return Point(mu, point.dual.index_copy(0, rows, solution.gradient.to(point.dual)))


def _finite(problem: Problem, dual: Tensor) -> Tensor:
    """Zero at excluded parts, where a steep gradient is -inf."""
    return dual if problem.mask is None else torch.where(problem.mask, dual, 0.0)
