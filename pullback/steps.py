r"""Steps from a start point towards the pulled-back target, in one of several geometries.

    target = argmin over y in M of  eta <g, y> + D_phi(y, mu)  =  maximize(M, grad phi(mu) - eta g, phi)

(Mihaylova, Niculae and Martins 2020, section 4). A step carries grad phi(mu), not mu: for Gibbs and
without a geometry the scores, for the others what their solver hands back, which is right where y
underflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import Polytope, Regularizer, UnsupportedProblem
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs, Separable
from spigot.polytopes.settings import counts
from spigot.pullback.roads import road
from spigot.pullback.slope import column

__all__ = ["FrankWolfeSteps", "Geometry", "Point", "Steps", "Unconstrained", "check_start", "steps_of"]


@dataclass(frozen=True, eq=False)
class Point:
    """A point mu `(n, *event)` with the coordinates `dual` in which the next step is taken."""

    mu: Tensor
    dual: Tensor


class Steps:
    """A geometry: where its steps may start, and what one step does."""

    def check(self, polytope: Polytope, solver: Solver | None) -> None:
        """Raises UnsupportedProblem where the polytope cannot take such steps.

        Args:
            polytope: M.
            solver: forces a generic road.
        """

    def refusal(self, start: Regularizer | None) -> tuple[str, str] | None:
        """Why steps cannot start at maximize(M, s, start), and the way out; None if they can."""
        return None

    def point(self, problem: Problem, solution: Solution) -> Point:
        """The start point.

        Args:
            problem: the batch.
            solution: its answer for the pull-back's `start`.
        """
        mu = solution.value.to(problem.scores)
        return Point(mu, mu)

    def step(self, problem: Problem, point: Point, shift: Tensor, solver: Solver | None) -> Point:
        """One step by -shift = -eta g; instances whose shift is 0 stay exactly where they are.

        Args:
            problem: the batch.
            point: where the step begins.
            shift: eta g, `(n, *event)`.
            solver: forces a generic road.
        """
        raise NotImplementedError


Geometry = Regularizer | Steps | None
"""Where a pull-back's steps go: a regularizer's mirror steps, `Unconstrained()`, `FrankWolfeSteps()`, or
None for steps carried in the scores."""


def steps_of(geometry: Geometry) -> Steps:
    """The steps that a geometry stands for.

    Raises:
        TypeError: for what is no geometry.
    """
    if isinstance(geometry, Steps):
        return geometry
    if not isinstance(geometry, Regularizer | None):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            "geometry must be a regularizer's object such as Euclidean(), Unconstrained(), "
            f"FrankWolfeSteps() or None; got {geometry!r}."
        )
    if geometry is None or isinstance(geometry, Gibbs):
        return _InScores(geometry)
    return _Mirror(geometry)


@dataclass(frozen=True)
class Unconstrained(Steps):
    """Euclidean distance without the constraint y in M: target = mu - eta g, all `(*batch, *event)`.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import PullBack, Unconstrained
        >>> free = PullBack(geometry=Unconstrained(), step_size=2.0)
        >>> free.path(Simplex(2), torch.tensor([1.0, 0.0]), lambda mu: mu[..., 0])  # out of M
        tensor([[ 1.,  0.],
                [-1.,  0.]])
    """

    def step(self, problem: Problem, point: Point, shift: Tensor, solver: Solver | None) -> Point:
        """Mu - shift."""
        moved = point.mu - shift
        return Point(moved, moved)


@dataclass(frozen=True)
class FrankWolfeSteps(Steps):
    """The projection of mu - eta g onto M, approached by Frank-Wolfe iterates from mu.

    An iterate costs one call of MAP: v = MAP(x - y) at the iterate y with x = mu - eta g, and y moves
    towards v as far as decreases |y - x| most. They tend to the projection, so to `Euclidean()`. All
    are `(*batch, *event)`.

    Args:
        inner: how many iterates a step takes.

    Raises:
        ValueError: inner below 1.
        TypeError: inner is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import FrankWolfeSteps, PullBack
        >>> scores, wanted = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.2, 0.3, 0.5])
        >>> PullBack(geometry=FrankWolfeSteps(inner=3)).path(
        ...     Simplex(3), scores, lambda mu: (mu - wanted).square().sum(-1)
        ... )
        tensor([[1.0000, 0.0000, 0.0000],
                [0.0000, 0.3000, 0.7000]])
    """

    inner: int = 1

    def __post_init__(self) -> None:
        counts(self, inner=self.inner)

    def check(self, polytope: Polytope, solver: Solver | None) -> None:
        """It needs MAP alone."""
        road(polytope, None, solver)

    def step(self, problem: Problem, point: Point, shift: Tensor, solver: Solver | None) -> Point:
        """The iterates for the instances that move."""

        def approach(part: Problem, start: Point, shift: Tensor) -> Point:
            y, wanted = start.mu, start.mu - shift
            for _ in range(self.inner):
                y = _towards(part, y, wanted - y, solver)
            return Point(y, y)

        return _moved(problem, point, shift, approach)


def _towards(part: Problem, y: Tensor, slope: Tensor, solver: Solver | None) -> Tensor:
    """Towards v = MAP(slope), as far as the quadratic with that slope at y grows."""
    vertex = road(part.polytope, None, solver).solve(part.linear(slope)).value.to(y)
    way = vertex - y
    rise = (slope * way).flatten(1).sum(1)
    length = (way * way).flatten(1).sum(1)
    gamma = torch.where(rise > 0, rise / length, 0.0).clamp(0.0, 1.0)
    return y + column(gamma, y) * way


@dataclass(frozen=True)
class _InScores(Steps):
    """Steps carried in the scores: mu = maximize(M, theta, geometry), theta - eta g the next theta."""

    geometry: Gibbs | None

    def check(self, polytope: Polytope, solver: Solver | None) -> None:
        road(polytope, self.geometry, solver)

    def refusal(self, start: Regularizer | None) -> tuple[str, str] | None:
        if self.geometry is None or start == self.geometry:
            return None
        return "Gibbs steps are carried in the scores", _start_at(self.geometry)

    def point(self, problem: Problem, solution: Solution) -> Point:
        return Point(solution.value.to(problem.scores), problem.scores)

    def step(self, problem: Problem, point: Point, shift: Tensor, solver: Solver | None) -> Point:
        def answer(part: Problem, start: Point, shift: Tensor) -> Point:
            theta = start.dual - shift
            solution = road(part.polytope, self.geometry, solver).solve(_posed(part, theta))
            return Point(solution.value, theta)

        return _moved(problem.asking(self.geometry), point, shift, answer)


@dataclass(frozen=True)
class _Mirror(Steps):
    """Mirror steps of a separable regularizer over M."""

    geometry: Regularizer

    def check(self, polytope: Polytope, solver: Solver | None) -> None:
        road(polytope, self.geometry, solver)

    def refusal(self, start: Regularizer | None) -> tuple[str, str] | None:
        if not isinstance(self.geometry, Separable):
            return (
                f"{self.geometry} has no mirror map",
                "Use Euclidean(), Tsallis(alpha), Shannon(), FermiDirac() or Gibbs().",
            )
        if self.geometry.steep and start != self.geometry:
            return f"the gradient of {self.geometry} is infinite at a vertex", _start_at(self.geometry)
        return None

    def point(self, problem: Problem, solution: Solution) -> Point:
        assert isinstance(self.geometry, Separable)
        mu = solution.value.to(problem.scores)
        dual = solution.gradient if self.geometry.steep else self.geometry.gradient(mu)
        assert dual is not None
        return Point(mu, dual.to(mu))

    def step(self, problem: Problem, point: Point, shift: Tensor, solver: Solver | None) -> Point:
        def answer(part: Problem, start: Point, shift: Tensor) -> Point:
            posed = _posed(part, start.dual - shift)
            return self.point(posed, road(part.polytope, self.geometry, solver).solve(posed))

        return _moved(problem.asking(self.geometry), point, shift, answer)


def _start_at(geometry: Regularizer) -> str:
    return f"Start at maximize(M, s, {geometry}): start={geometry}."


def _moved(
    problem: Problem, point: Point, shift: Tensor, answer: Callable[[Problem, Point, Tensor], Point]
) -> Point:
    """`answer` for the instances whose shift is not 0, the others where they were."""
    rows = (shift != 0).flatten(1).any(1).nonzero().flatten()
    if len(rows) == problem.size:
        there = answer(problem, point, shift)
        return Point(there.mu.to(point.mu), there.dual.to(point.dual))
    if not len(rows):
        return point
    there = answer(problem.take(rows), Point(point.mu[rows], point.dual[rows]), shift[rows])
    mu = point.mu.index_copy(0, rows, there.mu.to(point.mu))
    return Point(mu, point.dual.index_copy(0, rows, there.dual.to(point.dual)))


def _posed(part: Problem, dual: Tensor) -> Problem:
    """With zeros at excluded parts, where a steep gradient is -inf."""
    return part.with_scores(dual if part.mask is None else torch.where(part.mask, dual, 0.0))


def check_start(start: Regularizer | None, geometry: Geometry) -> None:
    """Refuses a geometry whose gradient is infinite or unknown at the start point.

    Raises:
        UnsupportedProblem: with the start that works.
    """
    refusal = steps_of(geometry).refusal(start)
    if refusal is None:
        return
    found, way_out = refusal
    raise UnsupportedProblem(
        f"A pull-back in the geometry {geometry} cannot start at {'MAP' if start is None else start}: "
        f"{found}.\n{way_out}"
    )
