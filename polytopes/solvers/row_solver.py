"""What the solvers that work from rows share: limits of each instance's own, and derivatives by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from spigot.polytopes import limits
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.families import family_of, shares_matrix, violation
from spigot.polytopes.problem import Problem, Solution

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["RowSolver", "known_rows"]


def known_rows(polytope: Polytope) -> Canonical | None:
    """The rows, at any value of the parameters; None where they are not known yet."""
    if not polytope.varies:
        return polytope.canonical
    family = family_of(polytope, polytope.parameters)
    return family.base if family is not None and family.shares_matrix else None


@dataclass(frozen=True)
class RowSolver(Solver):
    """A solver of `families.instances` or `families.batch_form`.

    Where parameters move limits alone, one set-up serves every instance, and the batch is not split.
    """

    def reads(self, problem: Problem) -> frozenset[str]:
        """Parameters too, where they stand in right-hand sides and bounds."""
        return self.native | {"params"} if shares_matrix(problem) else self.native

    def residual(self, problem: Problem, solution: Solution) -> Tensor | None:
        """By how much the answer breaks its rows, where they are declared."""
        if "constraints" not in problem.polytope.facts:
            return None
        return violation(problem, solution.value)

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """Through the multipliers of the rows that bind."""
        return limits.pull(problem, self, solution, grad)

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """Likewise."""
        return limits.envelope(problem, self, solution)
