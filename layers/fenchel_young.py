"""Fenchel-Young losses: the perceptron's, the CRF's and SparseMAP's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spigot.layers.targets import TargetLoss
from spigot.polytopes import Polytope, Regularizer
from spigot.polytopes.dispatch import Solver

__all__ = ["FenchelYoungLoss"]


class FenchelYoungLoss(TargetLoss):
    """Omega*(s) + Omega(y) - <s, y>, whose gradient is maximize(M, s, Omega) - y.

    None gives the perceptron loss, `Gibbs()` the CRF's negative log-likelihood, `Euclidean()`
    SparseMAP's loss. It is nonnegative, and zero where y = maximize(M, s, Omega). (With Gibbs,
    Omega(y) counts as 0, which is exact at vertices; elsewhere the value is up to that constant.)

    Args:
        polytope: M.
        regularizer: Omega; None for the perceptron loss.
        reduction: "mean" or "sum" over the batch, or "none".
        validate: whether targets are checked to lie in M, at the cost of a projection.
        solver: forces a generic road.

    Raises:
        TypeError: a polytope, regularizer or solver that is none.
        ValueError: an unknown reduction.
        UnsupportedProblem: when the loss is made, if no road leads there.

    Example:
        >>> import torch
        >>> from spigot.layers import FenchelYoungLoss
        >>> from spigot.polytopes import Gibbs, Simplex
        >>> loss = FenchelYoungLoss(Simplex(3), Gibbs())
        >>> scores = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
        >>> value = loss(scores, labels=torch.tensor([0]))
        >>> value.allclose(torch.nn.functional.cross_entropy(scores, torch.tensor([0])))
        True

    References:
        Blondel, Martins and Niculae, "Learning with Fenchel-Young losses" (JMLR 2020), definition 2.
    """

    def __init__(
        self,
        polytope: Polytope,
        regularizer: Regularizer | None = None,
        *,
        reduction: str = "mean",
        validate: bool = True,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(polytope, regularizer, reduction=reduction, validate=validate, solver=solver)

    def _settings(self) -> list[str]:
        return [str(self.regularizer)]

    def forward(
        self,
        scores: Tensor,
        target: Tensor | None = None,
        *,
        labels: Any = None,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            scores: `(*batch, *event)`.
            target: y in M, `(*batch, *event)`; vertices or mixtures.
            labels: instead of a target, in the form that `polytope.encode` takes.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names.

        Returns:
            A scalar, or `(*batch,)` with `reduction="none"`.

        Raises:
            TypeError: scores, target, labels or masks of another kind.
            ValueError: neither or both of target and labels, a wrong shape, or a target outside M
                or excluded by `keep` (the instance is named).
        """
        problem, y = self.posed(scores, target, labels, lengths, keep, params)
        return self.reduced(self.excess(problem, y), problem, scores.dtype)
