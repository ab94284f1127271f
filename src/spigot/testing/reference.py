"""What cvxpy says of a polytope, from its own declaration: nothing of ours takes part.

Clarabel runs with its three tolerances at 1e-12; an answer that it does not call optimal is no
reference.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes import Polytope
from spigot.polytopes.arrays import library, tensor
from spigot.polytopes.regularizers import Separable

__all__ = ["Reference"]

TIGHT = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)


class Reference:
    """cvxpy problems over the declared constraints, or over mixtures of the declared vertices."""

    def __init__(self, polytope: Polytope) -> None:
        cp = library("cvxpy")

        self.polytope = polytope
        self.available: bool = bool(polytope.facts & {"constraints", "vertices"})
        if not self.available:
            return
        event = polytope.event_shape
        self.y: Any = cp.Variable(event)
        self.scores: Any = cp.Parameter(event)
        self.excluded: Any = cp.Parameter(event, nonneg=True)
        self.set: list[Any] = [*self._declared(), cp.multiply(self.excluded, self.y) == 0]
        self.problems: dict[Separable | None, Any] = {}

    def _declared(self) -> list[Any]:
        cp = library("cvxpy")

        if "constraints" in self.polytope.facts:
            return list(self.polytope.constraints(self.y))
        points = self.polytope.vertices().double().flatten(1).numpy()
        weights: Any = cp.Variable(len(points), nonneg=True)
        mixture = cp.reshape(points.T @ weights, self.polytope.event_shape, order="C")
        return [self.y == mixture, cp.sum(weights) == 1]

    def solve(self, scores: Tensor, regularizer: Separable | None, keep: Tensor | None) -> Tensor | None:
        """The maximiser (of MAP: one of them), or None where cvxpy does not reach its tolerance."""
        cp = library("cvxpy")

        if not self.available:
            return None
        self.scores.value = scores.numpy()
        excluded = torch.zeros_like(scores) if keep is None else (~keep).double()
        self.excluded.value = excluded.numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._problem(regularizer).solve(solver=cp.CLARABEL, **TIGHT)
            except cp.SolverError:
                return None
        if self._problem(regularizer).status != "optimal":
            return None
        return tensor(np.asarray(self.y.value, dtype=np.float64).copy())

    def _problem(self, regularizer: Separable | None) -> Any:
        cp = library("cvxpy")

        if regularizer not in self.problems:
            objective: Any = cp.sum(cp.multiply(self.scores, self.y))
            if regularizer is not None:
                objective = objective - regularizer.expression(self.y)
            self.problems[regularizer] = cp.Problem(cp.Maximize(objective), self.set)
        return self.problems[regularizer]

    def best(self, slope: Tensor, keep: Tensor | None) -> float | None:
        """max over v in M of <slope, v>."""
        vertex = self.solve(slope, None, keep)
        return None if vertex is None else float((slope * vertex).sum())
