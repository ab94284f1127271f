"""Projections by an oracle alone: the active-set (min-norm point) method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.dispatch import Solver, choose
from spigot.polytopes.faces import pull_through_map
from spigot.polytopes.kernels.mixtures.min_norm import GOING
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, EuclideanOf, Regularizer, Separable, Smooth
from spigot.polytopes.solvers.completion import ExposedFaces, exposed_faces
from spigot.polytopes.solvers.mixture import Mixed, QuadraticMixtures

__all__ = ["ActiveSet", "MixtureSolver"]


@dataclass(frozen=True)
class MixtureSolver(Solver):
    """What methods that hold a mixture of vertices share: their outer loop and their derivative.

    Each step asks the oracle for the best vertex v at the slope s - phi'(y) of every unfinished
    instance, in one call. <slope, v - y> is the certificate; while it is above the tolerance v
    joins the mixture, whose weights are then made the best ones.
    """

    tolerance: float = 1e-14
    max_steps: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"argmax", "vertices"})
    plausible: ClassVar[float] = 1e-9  # a relative gap where rounding, not optimality, may stop it

    def begin(self, problem: Problem) -> Mixed:
        """Mixtures for every instance."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        """The outer loop."""
        local = problem.on_cpu()
        mixtures = self.begin(local)
        n, d = local.flat_scores.shape
        steps = np.zeros(n, dtype=np.int64)
        verdicts = np.full(n, GOING)
        rows = np.arange(n)
        limit = 20 * d + 100 if self.max_steps is None else self.max_steps
        for step in range(limit + 1):
            slopes = mixtures.slopes(rows)
            best = linear_oracle(local, slopes, rows)
            steps[rows] = step
            mixtures.advance(rows, slopes, best, self.tolerance, self.plausible, step < limit, verdicts)
            rows = rows[verdicts[rows] >= GOING]
            if not len(rows):
                break
        supports = [mixtures.mixture(i) for i in range(n)]
        if problem.start is not None:
            problem.start.remember(problem, supports)
        return _solution(problem, mixtures, supports, steps, verdicts)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The exposed face's derivative, its directions completed by the oracle first."""
        local, regularizer = problem.on_cpu(), problem.regularizer
        if isinstance(regularizer, EuclideanOf):
            return pull_through_map(exposed_faces(local, solution), grad, regularizer.of, problem.keep)
        assert isinstance(regularizer, Separable)
        faces, along = ExposedFaces(local, solution), contiguous(grad.double().flatten(1))
        if isinstance(regularizer, Euclidean):
            pulled = faces.along(along)
        else:  # y may be rounded out of the domain
            spread = regularizer.spread(solution.value.double().flatten(1)).clamp_min(0)
            pulled = faces.curved(along, contiguous(spread))
        return tensor(pulled).to(grad).reshape(grad.shape)


@dataclass(frozen=True)
class ActiveSet(MixtureSolver):
    """Euclidean projection by the min-norm-point method: finitely many steps, then exact.

    So for `Euclidean(of=T)`, quadratic in T y only: T y and the support are exact.

    Args:
        tolerance: on the certificate, relative to 1 + |<s, y>|. A certificate c bounds the error of
            y by sqrt(c). At the default the steps end by themselves: the best vertex is held already.
        max_steps: oracle calls an instance; the truncated answer lies in M and says its gap.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import ActiveSet
        >>> scores = torch.tensor([0.5, 0.25, -1.0])
        >>> Subset(3, 1).maximize(scores, Euclidean(), solver=ActiveSet())
        tensor([0.6250, 0.3750, 0.0000])

    References:
        Wolfe, "Finding the nearest point in a polytope" (1976).
        Niculae, Martins, Blondel and Cardie, "SparseMAP" (ICML 2018), section 3.2.
    """

    name: ClassVar[str] = "active set on the oracle"
    cost: ClassVar[str] = "one oracle call a vertex of the support"
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Euclidean, EuclideanOf)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})  # as its oracle reads them

    def begin(self, problem: Problem) -> QuadraticMixtures:
        """The vertices that the start leaves; where there are none, the best vertex."""
        regularizer = problem.regularizer
        assert isinstance(regularizer, Euclidean | EuclideanOf)
        scores, event = contiguous(problem.flat_scores), tuple(problem.scores.shape[1:])
        known = None if problem.start is None else problem.start.recall(problem)
        vertices, weights = known or (
            np.zeros((len(scores), 1, scores.shape[1])),
            np.zeros((len(scores), 1)),
        )
        cold = np.flatnonzero(weights.sum(1) <= 0)
        if len(cold):
            vertices[cold, 0], weights[cold, 0] = linear_oracle(problem, scores[cold], cold), 1.0
        return QuadraticMixtures(regularizer, scores, event, vertices, weights)


ROUNDING = 1e-13


def linear_oracle(problem: Problem, slopes: np.ndarray, rows: np.ndarray) -> np.ndarray:  # (m, d)
    """The best vertices of some instances at these slopes, by the polytope's own MAP road."""
    part = problem.take(tensor(rows)).linear(tensor(slopes))
    return contiguous(choose(problem.polytope, None).solve(part).value.flatten(1).double())


def _solution(
    problem: Problem,
    mixtures: Mixed,
    found: list[tuple[np.ndarray, np.ndarray]],
    steps: np.ndarray,
    verdicts: np.ndarray,
) -> Solution:
    regularizer, shape = problem.regularizer, problem.scores.shape
    assert isinstance(regularizer, Smooth)
    most = max(len(held) for _, held in found)
    weights = np.zeros((len(found), most))
    support = np.zeros((len(found), most, problem.flat_scores.shape[1]))
    for i, (vertices, held) in enumerate(found):
        weights[i, : len(held)], support[i, : len(held)] = held, vertices
    value = tensor(mixtures.y)
    if isinstance(regularizer, Separable) and not regularizer.steep and regularizer.domain[0] == 0:
        value = torch.where(value < ROUNDING, 0.0, value)  # 1 / phi'' may be infinite at 0
    scores = problem.flat_scores.double().cpu()
    shaped = value.reshape(shape)
    gradient = tensor(mixtures.gradient()).reshape(shape)
    if problem.mask is not None:
        gradient = gradient.masked_fill(~problem.mask.cpu(), 0.0)
    return Solution(
        shaped,
        tensor(verdicts),
        tensor(steps),
        gap=tensor(mixtures.gaps),
        objective=(scores * value).sum(1) - regularizer.total(shaped),
        gradient=gradient,
        support=tensor(support).reshape(len(found), most, *shape[1:]),
        weights=tensor(weights),
    )
