"""Budgets in compiled loops: the projection that clips at a threshold, and the largest parts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.dispatch import Road
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import budget
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.structures.budget import Budget

__all__ = ["Clipping", "Largest", "rows_and_lengths"]


class _Counted(Road):
    """A road over a polytope that has a `budget`, each instance with a total of its own."""

    cost = "O(d)"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})

    def totals(self, problem: Problem) -> Tensor:
        """How many parts each instance chooses, `(n,)`, once it has parts enough."""
        raise NotImplementedError


class Clipping(_Counted):
    """y = clip(s - tau, 0, 1): the Euclidean projection."""

    name = "Newton on the multiplier of sum(y)"

    def solve(self, problem: Problem) -> Solution:
        """Only parts near the threshold are looked at more than once."""
        rows, lengths = rows_and_lengths(problem)
        n = len(rows)
        y, multipliers, objective = np.zeros_like(rows), np.zeros((n, 2)), np.zeros(n)
        totals, at_most = contiguous(self.totals(problem)), _budget(problem).at_most
        results = y, multipliers, objective
        over_instances(budget.project, n, rows, lengths, totals, at_most, *results)
        value = tensor(y)
        return Solution.closed_form(
            value, tensor(objective), value, duals=tensor(multipliers), owned=True
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The parts between their bounds centred, where the budget binds."""
        assert solution.duals is not None
        rows, lengths = rows_and_lengths(problem)
        pulled = np.zeros_like(rows)
        over_instances(
            budget.pull,
            len(rows),
            rows,
            lengths,
            contiguous(solution.duals),
            _budget(problem).at_most,
            tie_tolerance(problem.scores.dtype),
            contiguous(grad.to(problem.scores.dtype)),
            pulled,
        )
        return tensor(pulled)


class Largest(_Counted):
    """The largest parts, the first ones of equals."""

    name = "largest parts"

    def solve(self, problem: Problem) -> Solution:
        """Those above the score of the last rank chosen, found without a sort."""
        rows, lengths = rows_and_lengths(problem)
        y = np.zeros_like(rows)
        totals = contiguous(self.totals(problem))
        at_most = _budget(problem).at_most
        over_instances(budget.select, len(rows), rows, lengths, totals, at_most, y)
        value = tensor(y)
        return Solution.closed_form(value, (problem.scores * value).sum(1))


def _budget(problem: Problem) -> Budget:
    found: Budget = getattr(problem.polytope, "budget")  # noqa: B009
    return found


def rows_and_lengths(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Scores `(n, d)`, -inf where excluded, and lengths `(n,)`."""
    n, d = problem.scores.shape
    scores, keep = problem.scores.detach(), problem.keep
    rows = contiguous(scores if keep is None else scores.masked_fill(~keep, -torch.inf))
    return rows, np.full(n, d) if problem.lengths is None else contiguous(problem.lengths)
