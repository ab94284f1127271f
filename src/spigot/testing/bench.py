"""The subject of a check, its twin, and what is known about both."""

from __future__ import annotations

import torch
from torch import Tensor

from spigot.polytopes import Euclidean, Polytope, Regularizer
from spigot.polytopes.arrays import distinct
from spigot.polytopes.regularizers import Separable
from spigot.testing.cases import Case
from spigot.testing.reference import Reference

__all__ = ["Bench", "worst"]


class Bench:
    """The subject, its twin, and their references."""

    def __init__(self, polytope: Polytope, against: Polytope | None) -> None:
        self.polytope = polytope
        self.twins: list[Polytope] = [polytope] if against is None else [polytope, against]
        usable = [Reference(twin) for twin in reversed(self.twins)]
        self.reference: Reference = next((r for r in usable if r.available), usable[0])
        self.known: dict[tuple[Case, Regularizer | None], Tensor | None] = {}

    def expected(self, case: Case, regularizer: Regularizer | None) -> Tensor | None:
        """The reference answer: cvxpy's, or for Gibbs the sum over declared vertices."""
        key = (case, regularizer)
        if key not in self.known:
            self.known[key] = self._expected(case, regularizer)
        return self.known[key]

    def _expected(self, case: Case, regularizer: Regularizer | None) -> Tensor | None:
        if regularizer is None or isinstance(regularizer, Separable):
            return self.reference.solve(case.scores, regularizer, case.keep)
        points = self.listed(case.keep)
        if points is None:
            return None
        chance = (points * case.scores).flatten(1).sum(1).softmax(0)
        return (chance.reshape(-1, *[1] * case.scores.dim()) * points).sum(0)

    def listed(self, keep: Tensor | None = None) -> Tensor | None:  # (m, *event)
        """The structures that a mask leaves, where one of the twins lists them."""
        listed = [twin for twin in self.twins if "vertices" in twin.facts]
        if not listed:
            return None
        points = distinct(listed[-1].vertices().double())[0]
        return points if keep is None else points[((points == 0) | keep).flatten(1).all(1)]

    def inside(self, case: Case, y: Tensor, limit: float) -> bool:
        """Whether y is its own projection by cvxpy; true where cvxpy has no answer."""
        nearest = self.reference.solve(y, Euclidean(), case.keep)
        return nearest is None or bool((nearest - y).abs().max() <= limit * (1 + y.abs().max()))

    def certificate(self, case: Case, regularizer: Regularizer | None, y: Tensor) -> float:
        """The gap by cvxpy's own linear program, or by the polytope's MAP if it has no other."""
        if regularizer is not None and not isinstance(regularizer, Separable):
            return torch.nan
        slope = case.scores
        if regularizer is not None:
            if regularizer.steep:
                return torch.nan  # infinite slopes where y underflows: the answers are compared
            slope = slope - regularizer.gradient(y)
        if case.keep is not None:
            slope = torch.where(case.keep, slope, 0.0)
        best = self.reference.best(slope, case.keep)
        if best is None:
            best = float((slope * self.polytope.maximize(slope, keep=case.keep)).sum())
        return best - float((slope * y).sum())


def worst(values: list[float]) -> float:
    """The largest number that is one, or nan."""
    known = [value for value in values if value == value]
    return max(known) if known else torch.nan
