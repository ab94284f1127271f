"""SPO+: scores are judged by the decision that they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spigot.layers.targets import TargetLoss, inner, same_shape
from spigot.polytopes import Polytope
from spigot.polytopes.base import empty_or
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.posing import detached, pose
from spigot.polytopes.problem import Problem
from spigot.pullback.roads import road

__all__ = ["SPOPlusLoss"]


class SPOPlusLoss(TargetLoss):
    """max over z in M of <2 s - t, z> - <2 s - t, z*>, for true scores t and z* = MAP(t).

    What matters of predicted scores s is how good MAP(s) is at the true scores. That is the regret
    <t, z* - MAP(s)>, which is constant almost everywhere in s. SPO+ bounds it from above, is convex in
    s, and 0 where 2 s - t leads to z* too, as at s = t. One subgradient is 2 (MAP(2 s - t) - z*).

    The paper minimises costs: with predicted costs -s and true costs -t its loss
    max over z of <t', z> - <2 s', z> + 2 <s', z*> - <t', z*>, for s' = -s and t' = -t, is this one.

    z* is a constant to the gradient, by `params=` too: where parameters with a gradient move the set,
    they receive that of the first maximum alone.

    Args:
        polytope: M.
        reduction: "mean" or "sum" over the batch, or "none".
        validate: whether targets are checked to lie in M, at the cost of a projection.
        solver: forces a generic road.

    Raises:
        TypeError: a polytope or solver that is none.
        ValueError: an unknown reduction.
        UnsupportedProblem: when the loss is made, if no road leads to MAP.

    Example:
        >>> import torch
        >>> from spigot.layers import SPOPlusLoss
        >>> from spigot.polytopes import Simplex
        >>> loss = SPOPlusLoss(Simplex(3))
        >>> true = torch.tensor([1.0, 3.0, 0.0])
        >>> scores = torch.tensor([2.0, 1.5, 0.0], requires_grad=True)
        >>> loss.regret(scores, true)
        tensor(2.)
        >>> value = loss(scores, true)
        >>> value.item()
        3.0
        >>> value.backward()
        >>> scores.grad
        tensor([ 2., -2.,  0.])

    References:
        Elmachtoub and Grigas, "Smart 'predict, then optimize'" (Management Science 2022),
        definition 3 and proposition 3 (the bound, convexity, a subgradient).
    """

    def __init__(
        self,
        polytope: Polytope,
        *,
        reduction: str = "mean",
        validate: bool = True,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(polytope, reduction=reduction, validate=validate, solver=solver)

    def forward(
        self,
        scores: Tensor,
        true_scores: Tensor,
        target: Tensor | None = None,
        *,
        labels: Any = None,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            scores: s, `(*batch, *event)`.
            true_scores: t, `(*batch, *event)`, finite; they get no gradient.
            target: z*, a structure of largest true score, if known; else MAP(t) is computed.
            labels: instead of a target, in the form that `polytope.encode` takes.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores. A score of -inf excludes the part from z* too.
            params: per-instance values of what `polytope.parameters` names.

        Returns:
            A scalar, or `(*batch,)` with `reduction="none"`.

        Raises:
            TypeError: scores, target, labels or masks of another kind.
            ValueError: both target and labels, a wrong shape, scores that are not finite, or a target
                outside M.
        """
        problem, true, best = self._posed_with(
            scores, true_scores, target, labels, lengths, keep, params
        )
        moved = problem.with_scores(2 * problem.scores - true)
        return self.reduced(self.excess(moved, best), problem, scores.dtype)

    @torch.no_grad()
    def regret(
        self,
        scores: Tensor,
        true_scores: Tensor,
        target: Tensor | None = None,
        *,
        labels: Any = None,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """<t, z*> - <t, MAP(s)>, reduced as the loss is, without a gradient.

        It is at least 0 and at most the loss, whichever structure MAP returns at ties.

        Args:
            scores: s, `(*batch, *event)`.
            true_scores: t, `(*batch, *event)`, finite.
            target: z*, if known.
            labels: instead of a target.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names.

        Returns:
            A scalar, or `(*batch,)` with `reduction="none"`.

        Raises:
            TypeError, ValueError: as for the loss.
        """
        problem, true, best = self._posed_with(
            scores, true_scores, target, labels, lengths, keep, params
        )
        return self.reduced(inner(true, best - self._map(problem)), problem, scores.dtype)

    def _posed_with(
        self,
        scores: Tensor,
        true_scores: Tensor,
        target: Tensor | None,
        labels: Any,
        lengths: Tensor | None,
        keep: Tensor | None,
        params: Mapping[str, Tensor] | None,
    ) -> tuple[Problem, Tensor, Tensor]:
        """The problem, t zero at excluded parts, and z*, `(n, *event)` both."""
        if target is None and labels is None:
            problem = pose(self.polytope, scores, None, lengths, keep, params)
            true = self._true(problem, scores, true_scores)
            return problem, true, self._map(problem.with_scores(true))
        problem, best = self.posed(scores, target, labels, lengths, keep, params)
        return problem, self._true(problem, scores, true_scores), best

    def _true(self, problem: Problem, scores: Tensor, true_scores: Tensor) -> Tensor:
        true = same_shape(problem, scores, true_scores, "true_scores")
        return true if problem.mask is None else torch.where(problem.mask, true, 0.0)

    def _map(self, problem: Problem) -> Tensor:
        solution = empty_or(road(self.polytope, None, self.solver), detached(problem))
        return solution.value.to(problem.scores)
