"""The cone program through cvxpylayers: a peer to check against, and the derivative of `Convex`."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import library
from spigot.polytopes.canonical import per_thread
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.errors import NoStructure
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Convex, Regularizer, Separable
from spigot.polytopes.solvers.cone import ConeProgram

__all__ = ["CvxpyLayers"]


@dataclass(frozen=True)
class CvxpyLayers(Solver):
    """Agrawal et al.'s differentiable cone programs, forward and backward.

    Slower and looser than the other roads (errors of about 1e-4 are common), and independent of
    them: use it to check one.

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

    name: ClassVar[str] = "cvxpylayers"
    cost: ClassVar[str] = "one cone program an instance, and one linear system backward"
    exact: ClassVar[bool] = False
    needs: ClassVar[frozenset[str]] = frozenset({"constraints", "vertices"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Separable, Convex)

    def solve(self, problem: Problem) -> Solution:
        """The layer's forward pass."""
        with torch.no_grad():
            value = _forward(problem, problem.flat_scores.detach().double().cpu())
        scores = problem.flat_scores.double().cpu()
        penalty = torch.stack([_penalty(problem, row) for row in value])
        shaped = value.reshape(problem.scores.shape)
        omega = problem.regularizer
        gradient = omega.gradient(shaped) if isinstance(omega, Separable) else None
        return Solution.closed_form(shaped, (scores * value).sum(1) - penalty, gradient)

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


def _forward(problem: Problem, scores: Tensor) -> Tensor:  # (n, d) -> (n, d)
    keep = problem.flat_keep
    if keep is None:
        return _parts(problem, np.ones(scores.shape[1], dtype=bool), scores)
    rows: list[Tensor] = []
    for i in range(len(scores)):
        kept = keep[i].cpu()
        part = _parts(problem, kept.numpy(), scores[i : i + 1, kept])
        rows.append(torch.zeros_like(scores[i : i + 1]).index_add(1, kept.nonzero().flatten(), part))
    return torch.cat(rows)


def _parts(problem: Problem, kept: np.ndarray, scores: Tensor) -> Tensor:
    if not kept.any():
        return scores  # every part is excluded: nothing to choose
    key = ("cvxpylayers", problem.regularizer, kept.tobytes())
    layer, columns = per_thread(problem.polytope.scratch, key, lambda: _layer(problem, kept))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (x,) = layer(scores)
    return x[:, columns]


def _layer(problem: Problem, kept: np.ndarray) -> tuple[Any, np.ndarray]:
    program = ConeProgram(problem, kept)
    if program.form is None:
        raise NoStructure(f"keep leaves no structure of {problem.polytope}.")
    torch_layer = library("cvxpylayers.torch").CvxpyLayer
    layer = torch_layer(program.problem, parameters=[program.scores], variables=[program.x])
    return layer, program.form.columns
