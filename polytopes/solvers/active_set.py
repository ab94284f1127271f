"""Projections by an oracle alone: the active-set (min-norm point) method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.dispatch import Solver, choose
from spigot.polytopes.faces import pull_through_faces, pull_through_map
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, EuclideanOf, Regularizer, Separable, Smooth
from spigot.polytopes.solvers.completion import exposed_faces
from spigot.polytopes.solvers.corral import Corral
from spigot.polytopes.solvers.mixture import Mixture

__all__ = ["ActiveSet", "MixtureSolver"]


@dataclass(frozen=True)
class MixtureSolver(Solver):
    """What methods that hold a mixture of vertices share: their outer loop and their derivative.

    Each step asks the oracle for the best vertex v at the slope s - phi'(y) of every unfinished
    instance, in one call. <slope, v - y> is the certificate; while it is above the tolerance v
    joins the mixture, whose weights are then made the best ones.
    """

    tolerance: float = 1e-12
    max_steps: int | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"argmax", "vertices"})
    plausible: ClassVar[float] = 1e-9  # a relative gap where rounding, not optimality, may stop it

    def starts(self, problem: Problem) -> Sequence[Corral | Mixture]:
        """A mixture for every instance."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        """The outer loop."""
        local = problem.on_cpu()
        mixtures = self.starts(local)
        n, d = local.flat_scores.shape
        gaps, steps = np.zeros(n), np.zeros(n, dtype=np.int64)
        status = np.full(n, int(Status.STOPPED))
        rows = np.arange(n)
        limit = 20 * d + 100 if self.max_steps is None else self.max_steps
        for step in range(limit + 1):
            slopes = np.stack([mixtures[int(i)].slope() for i in rows])
            best = linear_oracle(local, slopes, rows)
            unfinished: list[int] = []
            for i, slope, vertex in zip(rows, slopes, best, strict=True):
                mixture, steps[i] = mixtures[int(i)], step
                gaps[i] = mixture.gap(slope, vertex)
                scale = 1 + abs(float(mixture.scores @ mixture.y))
                if gaps[i] <= self.tolerance * scale:
                    status[i] = Status.CONVERGED
                elif mixture.holds(vertex):
                    near = gaps[i] <= max(self.plausible, self.tolerance) * scale
                    status[i] = Status.CONVERGED if near else Status.INACCURATE
                elif step < limit:
                    mixture.add(vertex)
                    mixture.correct()
                    unfinished.append(int(i))
            rows = np.array(unfinished, dtype=np.int64)
            if not unfinished:
                break
        return _solution(problem, mixtures, gaps, steps, status)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The exposed face's derivative, its directions completed by the oracle first."""
        faces = exposed_faces(problem.on_cpu(), solution)
        regularizer = problem.regularizer
        if isinstance(regularizer, EuclideanOf):
            return pull_through_map(faces, grad, regularizer.of, problem.keep)
        assert isinstance(regularizer, Separable)
        spread = regularizer.spread(solution.value.flatten(1))
        pulled = pull_through_faces(faces, grad.flatten(1), spread, problem.flat_keep)
        return pulled.reshape(grad.shape)


@dataclass(frozen=True)
class ActiveSet(MixtureSolver):
    """Euclidean projection by the min-norm-point method: finitely many steps, then exact.

    So for `Euclidean(of=T)`, quadratic in T y only: T y and the support are exact.

    Args:
        tolerance: on the certificate, relative to 1 + |<s, y>|. A certificate c bounds the error of
            y by sqrt(c).
        max_steps: oracle calls an instance; the truncated answer lies in M and says its gap.

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

    def starts(self, problem: Problem) -> Sequence[Mixture]:
        """The best vertex."""
        regularizer = problem.regularizer
        assert isinstance(regularizer, Euclidean | EuclideanOf)
        scores = problem.flat_scores.numpy()
        best = linear_oracle(problem, scores, np.arange(len(scores)))
        event = tuple(problem.scores.shape[1:])
        return [
            Mixture(regularizer, row, vertex, event) for row, vertex in zip(scores, best, strict=True)
        ]


ROUNDING = 1e-13


def linear_oracle(problem: Problem, slopes: np.ndarray, rows: np.ndarray) -> np.ndarray:  # (m, d)
    """The best vertices of some instances at these slopes, by the polytope's own MAP road."""
    part = problem.take(tensor(rows)).linear(tensor(slopes))
    return choose(problem.polytope, None).solve(part).value.flatten(1).double().numpy()


def _solution(
    problem: Problem,
    mixtures: Sequence[Corral | Mixture],
    gaps: np.ndarray,
    steps: np.ndarray,
    status: np.ndarray,
) -> Solution:
    regularizer, shape = problem.regularizer, problem.scores.shape
    assert isinstance(regularizer, Smooth)
    most = max(len(mixture.weights) for mixture in mixtures)
    weights = np.zeros((len(mixtures), most))
    support = np.zeros((len(mixtures), most, problem.flat_scores.shape[1]))
    for i, mixture in enumerate(mixtures):
        weights[i, : len(mixture.weights)] = mixture.weights
        support[i, : len(mixture.weights)] = mixture.vertices
    value = tensor(np.stack([mixture.y for mixture in mixtures]))
    if isinstance(regularizer, Separable) and not regularizer.steep and regularizer.domain[0] == 0:
        value = torch.where(value < ROUNDING, 0.0, value)  # 1 / phi'' may be infinite at 0
    scores = problem.flat_scores.double().cpu()
    shaped = value.reshape(shape)
    return Solution(
        shaped,
        tensor(status),
        tensor(steps),
        gap=tensor(gaps),
        objective=(scores * value).sum(1) - regularizer.total(shaped),
        gradient=tensor(np.stack([mixture.gradient() for mixture in mixtures])).reshape(shape),
        support=tensor(support).reshape(len(mixtures), most, *shape[1:]),
        weights=tensor(weights),
    )
