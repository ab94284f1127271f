"""Affine images of a polytope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import lacking
from spigot.polytopes.arrays import distinct, first_part, library
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, choose, generic_roads, rule
from spigot.polytopes.errors import unsupported
from spigot.polytopes.listing import distinct_vertices
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs, Regularizer

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Affine"]


@dataclass(frozen=True, eq=False)
class Affine(Polytope):
    """{A z + b : z in M}: pooled parts, reflected ones, features of a structure. Labels are vectors.

    MAP pulls the scores back, <s, A z + b> = <A's, z> + <s, b>, and everything that an oracle
    answers follows from it. Where A'A = c I, projections go M's own road; where distinct vertices of
    M have distinct images, so do marginals, samples and the k best.

    Parts: `(m,)`, one a row of A.

    Args:
        polytope: M, its parts taken in C order.
        matrix: A, `(m, d)`.
        offset: b, `(m,)`; 0 by default.

    Raises:
        ValueError: a wrong shape, or a number that is not finite.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Affine, Simplex
        >>> signs = Affine(Simplex(2), -2 * torch.eye(2), torch.ones(2))  # one of two is -1
        >>> signs.maximize(torch.tensor([0.3, -0.1]))
        tensor([ 1., -1.])
        >>> signs.project(torch.tensor([0.5, 0.0]))
        tensor([ 0.2500, -0.2500])
    """

    polytope: Polytope
    matrix: Tensor | Sequence[Any]
    offset: Tensor | Sequence[Any] | None = None

    def __post_init__(self) -> None:
        matrix = torch.as_tensor(self.matrix).detach().double().cpu()
        d = torch.Size(self.polytope.event_shape).numel()
        if matrix.dim() != 2 or matrix.shape[1] != d or not len(matrix):
            raise ValueError(f"Affine: the matrix must be (m, {d}), got {tuple(matrix.shape)}.")
        offset = torch.zeros(len(matrix)) if self.offset is None else torch.as_tensor(self.offset)
        offset = offset.detach().double().cpu()
        if offset.shape != matrix.shape[:1]:
            raise ValueError(f"Affine: the offset must be ({len(matrix)},), got {tuple(offset.shape)}.")
        for name, values in (("matrix", matrix), ("offset", offset)):
            bad = ~values.isfinite()
            if bool(bad.any()):
                at = first_part(bad)
                raise ValueError(
                    f"Affine: the {name} must be finite, got {values[at].item():g} at {at}."
                )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "offset", offset)

    def __repr__(self) -> str:
        return f"Affine({self.polytope}, {self.A.shape[0]} x {self.A.shape[1]})"

    @property
    def A(self) -> Tensor:
        """The matrix, `(m, d)` float64."""
        assert isinstance(self.matrix, Tensor)
        return self.matrix

    @property
    def b(self) -> Tensor:
        """The offset, `(m,)` float64."""
        assert isinstance(self.offset, Tensor)
        return self.offset

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (len(self.A),)

    @property
    def facts(self) -> frozenset[str]:
        """M's, and `argmax`, by M's own MAP."""
        return self.polytope.facts | {"argmax"}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """What M's bounds allow."""
        if "bounds" not in self.scratch:
            low, high = (end.flatten() for end in self.polytope.bounds)
            up, down = self.A.clamp_min(0), self.A.clamp_max(0)
            lower = torch.nan_to_num(up * low + down * high, nan=0.0, neginf=-torch.inf).sum(1) + self.b
            upper = torch.nan_to_num(up * high + down * low, nan=0.0, posinf=torch.inf).sum(1) + self.b
            self.scratch["bounds"] = lower, upper
        return self.scratch["bounds"]

    @cached_property
    def scale(self) -> float:
        """C where A'A = c I, else 0."""
        gram = self.A.t() @ self.A
        c = float(gram.diagonal().mean())
        off = (gram - c * torch.eye(len(gram)).double()).abs().max()
        return c if bool(off <= 1e-12 * c) else 0.0

    @cached_property
    def injective(self) -> bool:
        """Whether distinct vertices of M are known to have distinct images."""
        if int(np.linalg.matrix_rank(self.A.numpy())) == self.A.shape[1]:
            return True
        if "vertices" not in self.polytope.facts:
            return False
        points = distinct_vertices(self.polytope)
        return len(distinct((points @ self.A.t()).round(decimals=9))[0]) == len(points)

    def image(self, z: Tensor) -> Tensor:
        """A z + b, `(*, *event of M) -> (*, m)`."""
        dims = len(self.polytope.event_shape)
        return z.double().flatten(-dims) @ self.A.t().to(z.device) + self.b.to(z.device)

    def pulled(self, scores: Tensor) -> Tensor:
        """A's, `(*, m) -> (*, *event of M)`."""
        back = scores.double() @ self.A.to(scores.device)
        return back.reshape(*scores.shape[:-1], *self.polytope.event_shape)

    def argmax(self, scores: Tensor) -> Tensor:
        """The image of M's best vertex."""
        problem = Problem(self.polytope, self.pulled(scores), None)
        return self.image(choose(self.polytope, None).solve(problem).value).to(scores)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """M's on z, and y = A z + b."""
        cp = library("cvxpy")

        z: Any = cp.Variable(self.polytope.event_shape)
        image = self.A.numpy() @ cp.vec(z, order="C") + self.b.numpy()
        return [*self.polytope.constraints(z), y == image]

    def vertices(self) -> Tensor:
        """The images of M's (some of them may lie inside the image)."""
        return self.image(self.polytope.vertices())


def _affine(problem: Problem) -> Affine:
    assert isinstance(problem.polytope, Affine)
    return problem.polytope


def _generic(problem: Problem) -> Road:
    """A mask of the image is no mask of the polytope: a road from the image's own facts."""
    for solver in generic_roads():
        if not solver.lacks(problem.polytope, problem.regularizer):
            return solver
    raise unsupported(
        problem.polytope,
        problem.regularizer,
        "with a mask it needs the image's own vertices.",
        "Declare `vertices`, or mask the polytope before its image is taken (Masked).",
    )


class Pulled(Road):
    """The polytope's own road at pulled-back scores; with a mask, a generic one."""

    def _within(self, problem: Problem) -> tuple[Road, Problem]:
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        """The image of the answer."""
        if problem.keep is not None:
            return _generic(problem).solve(problem)
        road, part = self._within(problem)
        answer = road.solve(part)
        y = _affine(problem).image(answer.value)
        scores = problem.scores.double()
        return replace(self._solution(problem, answer, scores, y), answers=(answer,))

    def _solution(self, problem: Problem, answer: Solution, scores: Tensor, y: Tensor) -> Solution:
        raise NotImplementedError

    def _factor(self, polytope: Affine) -> float:
        raise NotImplementedError

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """A J A' grad, scaled."""
        if solution.answers is None:
            return _generic(problem).vjp(problem, solution, grad)
        polytope = _affine(problem)
        road, part = self._within(problem)
        inner = road.vjp(part, solution.answers[0], polytope.pulled(grad).to(part.scores))
        return self.pushed(polytope, inner)

    def pushed(self, polytope: Affine, inner: Tensor) -> Tensor:
        """A times a derivative of M's, scaled."""
        return (polytope.image(inner) - polytope.b.to(inner.device)) * self._factor(polytope)


@rule(Affine, Gibbs)
class PulledSum(Pulled):
    """Sums over the polytope's structures, whose images are distinct."""

    name = "the polytope's own sum, scores pulled back"
    cost = "the polytope's"

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """Distinct images, or what the polytope lacks."""
        assert isinstance(polytope, Affine)
        if not polytope.injective:
            return "distinct vertices may have the same image."
        return lacking(polytope.polytope, regularizer)

    def _within(self, problem: Problem) -> tuple[Road, Problem]:
        polytope = _affine(problem)
        part = replace(problem, polytope=polytope.polytope, scores=polytope.pulled(problem.scores))
        return choose(polytope.polytope, problem.regularizer), part

    def _solution(self, problem: Problem, answer: Solution, scores: Tensor, y: Tensor) -> Solution:
        assert answer.objective is not None
        shift = scores @ _affine(problem).b.to(scores.device)
        return Solution(y, answer.status, answer.iterations, objective=answer.objective + shift)

    def _factor(self, polytope: Affine) -> float:
        return 1.0

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """A times the polytope's own at A'u and A'v."""
        if solution.answers is None:
            return _generic(problem).curve(problem, solution, u, v)
        road, part = self._within(problem)
        u, v = (_affine(problem).pulled(grad).to(part.scores) for grad in (u, v))
        return self.pushed(_affine(problem), road.curve(part, solution.answers[0], u, v))

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Images of the polytope's samples."""
        if problem.keep is not None:
            return _generic(problem).sample(problem, count, generator)
        road, part = self._within(problem)
        return _affine(problem).image(road.sample(part, count, generator))

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Images of the polytope's k best."""
        if problem.keep is not None:
            return _generic(problem).top_k(problem, k)
        road, part = self._within(problem)
        return _affine(problem).image(road.top_k(part, k))


@rule(Affine, Euclidean)
class PulledProjection(Pulled):
    """|s - A z - b|^2 = c |z - A'(s - b) / c|^2 + constant, where A'A = c I."""

    name = "the polytope's own projection, rotated"
    cost = "the polytope's"

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """A'A = c I, or what the polytope lacks."""
        assert isinstance(polytope, Affine)
        if not polytope.scale:
            return "A'A is no multiple of the identity."
        return lacking(polytope.polytope, regularizer)

    def _within(self, problem: Problem) -> tuple[Road, Problem]:
        polytope = _affine(problem)
        centred = problem.scores.double() - polytope.b.to(problem.scores.device)
        part = replace(
            problem, polytope=polytope.polytope, scores=polytope.pulled(centred) / polytope.scale
        )
        return choose(polytope.polytope, problem.regularizer), part

    def _solution(self, problem: Problem, answer: Solution, scores: Tensor, y: Tensor) -> Solution:
        gap = None if answer.gap is None else answer.gap * _affine(problem).scale
        objective = (scores * y - 0.5 * y * y).sum(1)
        return Solution(y, answer.status, answer.iterations, gap=gap, objective=objective, gradient=y)

    def _factor(self, polytope: Affine) -> float:
        return 1 / polytope.scale
