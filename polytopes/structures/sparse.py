"""Sparsemax and entmax in compiled loops: maps onto the simplex that leave few parts."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.dispatch import Road
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import entmax
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Tsallis
from spigot.polytopes.structures.clipping import rows_and_lengths

__all__ = ["Sparse"]


class Sparse(Road):
    """y = ((alpha - 1)(s - tau))_+ ^ (1 / (alpha - 1)), alpha = 2 for `Euclidean`."""

    name = "Newton on the multiplier of sum(y)"
    cost = "O(d)"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"lengths"})

    def solve(self, problem: Problem) -> Solution:
        """A row is read once; the parts that are not zero are written, and kept in a list."""
        rows, lengths = rows_and_lengths(problem)
        n, alpha, slack = len(rows), _alpha(problem), tie_tolerance(problem.scores.dtype)
        y, levels, objective = np.zeros_like(rows), np.zeros((n, 2)), np.zeros(n)
        parts, counts = np.empty((n, entmax.LISTED + 1), np.int32), np.zeros(n, np.int64)
        results = y, parts, counts, levels, objective
        over_instances(entmax.project, n, rows, lengths, alpha, slack, *results)
        if isinstance(problem.regularizer, Tsallis):
            objective += 1 / (alpha * (alpha - 1))
        return Solution.closed_form(
            tensor(y), tensor(objective), duals=tensor(levels), listed=(parts, counts), owned=True
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """(D - D 1 1' D / 1' D 1) grad with D = y^(2 - alpha), over the parts listed."""
        assert solution.duals is not None and solution.listed is not None
        rows, lengths = rows_and_lengths(problem)
        pulled, grads = np.zeros_like(rows), contiguous(grad.to(problem.scores.dtype))
        known = *solution.listed, contiguous(solution.duals)
        omega = _alpha(problem), tie_tolerance(problem.scores.dtype)
        over_instances(entmax.pull, len(rows), rows, lengths, *omega, *known, grads, pulled)
        return tensor(pulled)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """By the value, which the user has been given and may have written into."""
        return super().curve(problem, replace(solution, value=self.solve(problem).value), u, v)


def _alpha(problem: Problem) -> float:
    omega = problem.regularizer
    return float(omega.alpha) if isinstance(omega, Tsallis) else 2.0
