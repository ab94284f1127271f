"""The structured hinge loss: a margin that grows with the cost of a mistake."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spigot.layers.targets import TargetLoss, inner
from spigot.polytopes import Polytope, Regularizer
from spigot.polytopes.arrays import first_part, numbers, rows_where
from spigot.polytopes.bounds import part_range, parts_outside
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.errors import unsupported
from spigot.polytopes.linear import LinearMap
from spigot.polytopes.posing import check_finite
from spigot.polytopes.problem import Problem

__all__ = ["StructuredHingeLoss"]


class StructuredHingeLoss(TargetLoss):
    """max over z in M of <s, z> + cost(z, y) - <s, y>: margin rescaling.

    The cost decomposes over parts, so the maximiser is one MAP, at the scores plus the cost's slope c.
    The gradient is z - y. For a vertex y it is 0 where y beats every z by at least cost(z, y), and at
    least cost(MAP(s), y) everywhere.

    The cost is the weighted Hamming distance,

        cost(z, y) = sum of w_i (y_i (1 - z_i) + (1 - y_i) z_i) = <w, y> + <c, z>,  c = w (1 - 2 y),

    for M in [0, 1]^d, or what each call brings as `cost=`: cost(z, y) = <c, z>. Where y is a mixture
    of structures the Hamming cost is its mean over them (it is linear in y), and the loss is the mean
    cost of mistakes against them: nonnegative, but above 0 even at the best scores.

    Args:
        polytope: M.
        regularizer: Omega, for a smooth maximum of <s, z> + cost(z, y) - Omega(z); with `Gibbs()` this
            is the softmax-margin of a CRF. None for the hinge.
        weight: w >= 0, a number or a tensor that broadcasts to the event shape (to that of T z with
            `of`); None if every call brings its `cost=`.
        of: a linear map T that the structure declares, to count the Hamming cost in T z and T y:
            `Sequence.tags` counts wrong tags instead of wrong arcs.
        reduction: "mean" or "sum" over the batch, or "none".
        validate: whether targets are checked to lie in M, at the cost of a projection.
        solver: forces a generic road.

    Raises:
        ValueError: an unknown reduction; weights that are negative, not finite or of another shape.
        TypeError: `of` is no `LinearMap`, or a polytope, regularizer or solver is none.
        UnsupportedProblem: when the loss is made, if no road leads to the maximum, or a Hamming cost
            is asked for where a part leaves [0, 1].

    Example:
        >>> import torch
        >>> from spigot.layers import StructuredHingeLoss
        >>> from spigot.polytopes import Subset
        >>> loss = StructuredHingeLoss(Subset(4, 2))
        >>> scores = torch.tensor([3.0, 1.5, 1.0, 0.0], requires_grad=True)
        >>> value = loss(scores, labels=torch.tensor([0, 1]))  # part 2 comes within the margin of 2
        >>> value.item()
        1.5
        >>> value.backward()
        >>> scores.grad
        tensor([ 0., -1.,  1.,  0.])

    References:
        Taskar, Guestrin and Koller, "Max-margin Markov networks" (NIPS 2003); Tsochantaridis, Joachims,
        Hofmann and Altun, "Large margin methods for structured and interdependent output variables"
        (JMLR 2005), margin rescaling; Gimpel and Smith, "Softmax-margin CRFs" (NAACL 2010).
    """

    weight: float | Tensor | None

    def __init__(
        self,
        polytope: Polytope,
        regularizer: Regularizer | None = None,
        *,
        weight: float | Tensor | None = 1.0,
        of: LinearMap | None = None,
        reduction: str = "mean",
        validate: bool = True,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(polytope, regularizer, reduction=reduction, validate=validate, solver=solver)
        self.weight = weight
        self.of = of
        if of is not None:
            _check_map(polytope, of)
        if weight is not None:
            _check_weight(weight, tuple(self._image(torch.empty(1, *polytope.event_shape)).shape[1:]))
            if of is None and not polytope.varies:  # else until the parameters are known
                _check_domain(polytope)

    def _settings(self) -> list[str]:
        shown = [] if self.regularizer is None else [str(self.regularizer)]
        weight = self.weight
        if isinstance(weight, Tensor):
            few = weight.numel() <= 4
            text = f"torch.tensor({numbers(weight)})" if few else f"tensor of {tuple(weight.shape)}"
            shown.append(f"weight={text}")
        elif weight != 1.0:
            shown.append(f"weight={weight}")
        return shown if self.of is None else [*shown, f"of={self.of}"]

    def forward(
        self,
        scores: Tensor,
        target: Tensor | None = None,
        *,
        labels: Any = None,
        cost: Tensor | None = None,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            scores: `(*batch, *event)`.
            target: y in M, `(*batch, *event)`.
            labels: instead of a target, in the form that `polytope.encode` takes.
            cost: c, broadcast to the scores, instead of the Hamming cost: cost(z, y) = <c, z>. It should
                be 0 on y's parts and at least 0 on the others. It gets no gradient.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names.

        Returns:
            A scalar, or `(*batch,)` with `reduction="none"`.

        Raises:
            TypeError: scores, target, labels, cost or masks of another kind.
            ValueError: neither or both of target and labels, a wrong shape, a target outside M or beyond
                [0, 1] with a Hamming cost, or no cost.
        """
        problem, y = self.posed(scores, target, labels, lengths, keep, params)
        slope, own = self._hamming(problem, y) if cost is None else _given(problem, scores, y, cost)
        slope = slope if problem.mask is None else torch.where(problem.mask, slope, 0.0)
        moved = problem.with_scores(problem.scores + slope)
        return self.reduced(self.excess(moved, y) + own, problem, scores.dtype)

    def _hamming(self, problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
        """The cost's slope in z `(n, *event)`, and cost(y, y) `(n,)`."""
        if self.weight is None:
            raise ValueError(f"{self} has no cost of its own: call it with cost=, (*batch, *event).")
        image = self._image(y)
        outside = ((image < -1e-4) | (image > 1 + 1e-4)).flatten(1).any(1)
        if bool(outside.any()):
            raise ValueError(
                f"target leaves [0, 1] in {problem.describe(rows_where(outside))}, where there is no "
                "Hamming cost: hand the loss cost=, (*batch, *event), instead."
            )
        weight = torch.as_tensor(self.weight).to(y)
        slope, own = weight * (1 - 2 * image), 2 * inner(weight * image, 1 - image)
        return (slope if self.of is None else self.of.adjoint(slope, tuple(y.shape[1:]))), own

    def _image(self, y: Tensor) -> Tensor:
        return y if self.of is None else self.of.apply(y)


def _given(problem: Problem, scores: Tensor, y: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
    """The user's c `(n, *event)`, and <c, y> `(n,)`."""
    if not isinstance(cost, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"cost must be a torch.Tensor, got {type(cost).__name__}.")
    try:
        slope = cost.detach().to(problem.scores).expand(scores.shape)
    except RuntimeError:
        raise ValueError(
            f"cost of shape {tuple(cost.shape)} does not broadcast to the scores' shape "
            f"{tuple(scores.shape)}."
        ) from None
    check_finite(slope, torch.Size(problem.batch_shape), "cost")
    slope = slope.reshape(problem.scores.shape)
    return slope, inner(slope, y)


def _check_map(polytope: Polytope, of: object) -> None:
    if not isinstance(of, LinearMap):
        raise TypeError(
            f"of must be a LinearMap that a structure declares, such as Sequence.tags; got {of!r}."
        )
    if not of.fits(polytope.event_shape):
        raise unsupported(
            polytope,
            None,
            f"{of} does not take parts of shape {polytope.event_shape}.",
            "Use a linear map that the polytope's own class declares.",
        )


def _check_weight(weight: float | Tensor, shape: tuple[int, ...]) -> None:
    """Weights of the Hamming cost: at least 0, and of the parts' shape."""
    values = torch.as_tensor(weight)
    if not bool((values >= 0).all()) or not bool(values.isfinite().all()):
        raise ValueError(f"weight must be finite and at least 0, got {weight}.")
    try:
        values.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"weight of shape {tuple(values.shape)} does not broadcast to the parts' shape {shape}."
        ) from None


def _check_domain(polytope: Polytope) -> None:
    """Refuses a part that is known to leave [0, 1]; an oracle's parts show in the targets alone."""
    lower, upper = polytope.bounds
    outside = parts_outside(polytope, 0.0, 1.0, lower.isfinite() & upper.isfinite())
    if bool(outside.any()):
        part = first_part(outside)
        low, high = part_range(polytope, part)
        raise unsupported(
            polytope,
            None,
            f"part {part} ranges over [{low:g}, {high:g}], and the Hamming cost is for parts in [0, 1].",
            "Make the loss with weight=None and hand it cost=, (*batch, *event), at every call.",
        )
