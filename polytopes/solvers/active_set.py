"""Projections by an oracle alone: the active-set (min-norm point) method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.dispatch import Solver, choose
from spigot.polytopes.faces import pull_through_faces
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, Regularizer, Separable
from spigot.polytopes.solvers.completion import exposed_faces
from spigot.polytopes.solvers.corral import Corral

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

    def starts(self, problem: Problem) -> list[Corral]:
        """A mixture for every instance."""
        raise NotImplementedError

    def solve(self, problem: Problem) -> Solution:
        """The outer loop."""
        local = problem.on_cpu()
        corrals = self.starts(local)
        n, d = local.flat_scores.shape
        gaps, steps = np.zeros(n), np.zeros(n, dtype=np.int64)
        status = np.full(n, int(Status.STOPPED))
        rows = np.arange(n)
        limit = 20 * d + 100 if self.max_steps is None else self.max_steps
        for step in range(limit + 1):
            slopes = np.stack([corrals[i].slope() for i in rows])
            best = linear_oracle(local, slopes, rows)
            unfinished: list[int] = []
            for i, slope, vertex in zip(rows, slopes, best, strict=True):
                corral, steps[i] = corrals[i], step
                gaps[i] = corral.gap(slope, vertex)
                scale = 1 + abs(float(corral.scores @ corral.y))
                if gaps[i] <= self.tolerance * scale:
                    status[i] = Status.CONVERGED
                elif corral.holds(vertex):
                    near = gaps[i] <= max(self.plausible, self.tolerance) * scale
                    status[i] = Status.CONVERGED if near else Status.INACCURATE
                elif step < limit:
                    corral.add(vertex)
                    corral.correct()
                    unfinished.append(int(i))
            rows = np.array(unfinished, dtype=np.int64)
            if not unfinished:
                break
        return _solution(problem, corrals, gaps, steps, status)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The exposed face's derivative, its directions completed by the oracle first."""
        assert isinstance(problem.regularizer, Separable)
        faces = exposed_faces(problem.on_cpu(), solution)
        spread = problem.regularizer.spread(solution.value.flatten(1))
        pulled = pull_through_faces(faces, grad.flatten(1), spread, problem.flat_keep)
        return pulled.reshape(grad.shape)


@dataclass(frozen=True)
class ActiveSet(MixtureSolver):
    """Euclidean projection by the min-norm-point method: finitely many steps, then exact.

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
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Euclidean,)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})  # as its oracle reads them

    def starts(self, problem: Problem) -> list[Corral]:
        """The best vertex."""
        scores = problem.flat_scores.numpy()
        best = linear_oracle(problem, scores, np.arange(len(scores)))
        free = np.ones(scores.shape[1], dtype=bool)
        return [
            Corral(Euclidean(), row, vertex[None], free)
            for row, vertex in zip(scores, best, strict=True)
        ]


ROUNDING = 1e-13


def linear_oracle(problem: Problem, slopes: np.ndarray, rows: np.ndarray) -> np.ndarray:  # (m, d)
    """The best vertices of some instances at these slopes, by the polytope's own MAP road."""
    part = problem.take(tensor(rows)).linear(tensor(slopes))
    return choose(problem.polytope, None).solve(part).value.flatten(1).double().numpy()


def _solution(
    problem: Problem, corrals: list[Corral], gaps: np.ndarray, steps: np.ndarray, status: np.ndarray
) -> Solution:
    regularizer, shape = problem.regularizer, problem.scores.shape
    assert isinstance(regularizer, Separable)
    most = max(len(corral.weights) for corral in corrals)
    weights = np.zeros((len(corrals), most))
    support = np.zeros((len(corrals), most, problem.flat_scores.shape[1]))
    for i, corral in enumerate(corrals):
        weights[i, : len(corral.weights)] = corral.weights
        support[i, : len(corral.weights)] = corral.vertices
    value = tensor(np.stack([corral.y for corral in corrals]))
    if not regularizer.steep and regularizer.domain[0] == 0:
        value = torch.where(value < ROUNDING, 0.0, value)  # 1 / phi'' may be infinite at 0
    scores = problem.flat_scores.double().cpu()
    return Solution(
        value.reshape(shape),
        tensor(status),
        tensor(steps),
        gap=tensor(gaps),
        objective=(scores * value - regularizer.value(value.clamp_min(regularizer.domain[0]))).sum(1),
        gradient=tensor(np.stack([corral.gradient() for corral in corrals])).reshape(shape),
        support=tensor(support).reshape(len(corrals), most, *shape[1:]),
        weights=tensor(weights),
    )
