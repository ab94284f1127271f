"""The cone program through cvxpylayers: a peer to check against, and the derivative of `Convex`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import library, tensor
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.errors import ConvergenceError
from spigot.polytopes.families import nothing
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Convex, Regularizer, Separable
from spigot.polytopes.solvers.cone import ConeProgram, cone_forms, cone_program
from spigot.polytopes.solvers.highs import feasible
from spigot.polytopes.solvers.row_solver import RowSolver

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["CvxpyLayers"]


@dataclass(frozen=True)
class CvxpyLayers(RowSolver):
    """Agrawal et al.'s differentiable cone programs, forward and backward.

    Slower and looser than the other roads (errors of about 1e-4 are common), and independent of
    them: use it to check one. The layer keeps its own status and steps to itself: the certificate,
    one MAP call, decides whether an answer has converged.

    Args:
        tolerance: on the certificate, relative to 1 + |<s, y>|, and on how far the answer leaves M.

    Raises:
        ValueError: a tolerance that float64 cannot reach.
        UnsupportedProblem: when asked for, if cvxpylayers is not installed.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Simplex
        >>> from spigot.polytopes.solvers import CvxpyLayers
        >>> s = torch.tensor([0.0, 0.5], dtype=torch.float64)
        >>> Simplex(2).maximize(s, Euclidean(), solver=CvxpyLayers()).round(decimals=3)
        tensor([0.2500, 0.7500], dtype=torch.float64)

    References:
        Agrawal, Amos, Barratt, Boyd, Diamond and Kolter, "Differentiable convex optimization
        layers" (NeurIPS 2019).
    """

    tolerance: float = 1e-2
    name: ClassVar[str] = "cvxpylayers"
    cost: ClassVar[str] = "one cone program an instance, and one linear system backward"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"constraints", "vertices"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Separable, Convex)

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What keeps it from that problem."""
        if find_spec("cvxpylayers") is None or find_spec("diffcp") is None:
            return "cvxpylayers is not installed (pip install cvxpylayers diffcp)."
        return super().lacks(polytope, regularizer)

    def solve(self, problem: Problem) -> Solution:
        """The layer's forward pass."""
        from spigot.polytopes.base import certificate

        with torch.no_grad():
            value = _forward(problem, problem.flat_scores.detach().double().cpu())
        local = problem.on_cpu()
        scores, shaped = local.flat_scores, value.reshape(problem.scores.shape)
        penalty = torch.stack([_penalty(problem, row) for row in value])
        omega = problem.regularizer
        zeros = torch.zeros(problem.size, dtype=torch.int64)
        solution = Solution(shaped, zeros, zeros, objective=(scores * value).sum(1) - penalty)
        if not isinstance(omega, Separable):
            return solution
        inside = shaped.clamp(*omega.domain)
        gradient = omega.gradient(inside)
        gap = certificate(local, inside, gradient)
        poor = gap.abs() > self.tolerance * (1 + (scores * value).sum(1).abs())
        status = torch.where(poor, int(Status.INACCURATE), int(Status.CONVERGED))
        return replace(solution, status=status, gap=gap, gradient=gradient)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The layer's backward pass."""
        with torch.enable_grad():
            scores = problem.flat_scores.detach().double().cpu().requires_grad_()
            value = _forward(problem, scores)
            (pulled,) = torch.autograd.grad(value, scores, grad.flatten(1).double().cpu())
        return pulled.to(grad).reshape(grad.shape)


def _penalty(problem: Problem, y: Tensor) -> Tensor:
    regularizer: Any = problem.regularizer
    point: Tensor = y.clamp(*regularizer.domain).reshape(problem.polytope.event_shape)
    return regularizer.value(point).sum()


@dataclass(frozen=True, eq=False)
class _Asked:
    """One instance of a layer: its number, the rows of its set, and the limits that the layer takes."""

    row: int
    form: Canonical
    limits: np.ndarray


def _forward(problem: Problem, scores: Tensor) -> Tensor:  # (n, d) -> (n, d)
    """The instances that share a mask and the rows' pattern go through one layer together."""
    together: dict[tuple[ConeProgram, bytes], list[_Asked]] = {}
    for i, kept, _, form in cone_forms(problem):
        if form is None or (not kept.all() and not feasible(form)):
            raise nothing(problem, i)
        if kept.any():
            program = cone_program(problem, kept, form)
            asked = _Asked(i, form, program.rows.limits)
            together.setdefault((program, kept.tobytes()), []).append(asked)
    value = torch.zeros_like(scores)
    for (program, mask), members in together.items():
        rows = torch.tensor([asked.row for asked in members])
        kept = tensor(np.frombuffer(mask, dtype=bool).copy()).nonzero().flatten()
        limits = tensor(np.stack([asked.limits for asked in members]))
        try:
            part = _parts(program, scores[rows][:, kept], limits)
        except library("diffcp").SolverError as error:
            raise _failure(problem, members, error) from error
        value = value.index_put((rows[:, None], kept[None]), part)
    return value


def _parts(program: ConeProgram, scores: Tensor, limits: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (x,) = program.layer(*([scores, limits] if program.constraints else [scores]))
    return x[:, program.rows.form.columns]


def _failure(problem: Problem, members: list[_Asked], error: Exception) -> Exception:
    """The error for the first of these instances that has no point; else the layer's own, placed."""
    for asked in members:
        if not feasible(asked.form):
            return nothing(problem, asked.row)
    return ConvergenceError(
        f"cvxpylayers gave up on {problem.describe([asked.row for asked in members])} of "
        f"{problem.polytope} with {problem.regularizer}: {error}\n"
        "Leave `solver` out, or rescale the scores."
    )
