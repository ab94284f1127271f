"""The Fenchel-Young loss whose regularizer is given by noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from spigot.layers.targets import TargetLoss, inner
from spigot.polytopes import Polytope
from spigot.polytopes.dispatch import Solver
from spigot.pullback.noise import Gumbel, Noise
from spigot.pullback.perturbation import Perturbation
from spigot.pullback.roads import road

__all__ = ["PerturbedLoss"]

GUMBEL = Gumbel()


class PerturbedLoss(TargetLoss):
    """E[max over z in M of <s + e, z>] - <s, y>, whose gradient is E[MAP(s + e)] - y.

    That is the Fenchel-Young loss of the Omega whose maximiser is the perturbed maximum, of which only
    MAP need be known: no marginals, no projection. Value and gradient are means over draws of the noise
    e, the same in both, without bias; noise needs no score here. (Omega(y) counts as 0, as for Gibbs in
    `FenchelYoungLoss`. The expectation is nonnegative, for the noise has mean 0; on the simplex with
    `Gumbel()` it is cross-entropy.)

    The noise is part of the loss: train and eval mode both draw. For a value that can be repeated use
    `generator=`.

    Args:
        polytope: M.
        noise: the distribution of e: `Gumbel()`, `Normal()`, `SumOfGamma(k=k)`. Its `scale` is the
            temperature.
        samples: how many draws, all solved in one call of MAP.
        antithetic: whether draws come in pairs e, -e; for symmetric noise.
        multiplicative: whether the scores are s * exp(e - scale^2 / 2) instead of s + e, for `Normal`;
            the gradient is then the mean of the factors times the structures, less y.
        reduction: "mean" or "sum" over the batch, or "none".
        validate: whether targets are checked to lie in M, at the cost of a projection.
        solver: forces a generic road to MAP.

    Raises:
        TypeError: noise that is no `Noise`, or samples that are no whole number.
        ValueError: an unknown reduction; samples below 1, or odd though antithetic; noise that does not
            allow what was asked.
        UnsupportedProblem: when the loss is made, for a polytope without MAP.

    Example:
        >>> import torch
        >>> from spigot.layers import PerturbedLoss
        >>> from spigot.polytopes import Simplex
        >>> loss = PerturbedLoss(Simplex(3), samples=100000)
        >>> scores, labels = torch.tensor([2.0, 0.0, 0.0]), torch.tensor(0)
        >>> rng = torch.Generator().manual_seed(0)
        >>> loss(scores, labels=labels, generator=rng).round(decimals=2)
        tensor(0.2400)
        >>> torch.nn.functional.cross_entropy(scores, labels).round(decimals=2)
        tensor(0.2400)

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, "Learning with differentiable perturbed
        optimizers" (NeurIPS 2020), section 4.
    """

    def __init__(
        self,
        polytope: Polytope,
        noise: Noise = GUMBEL,
        samples: int = 10,
        *,
        antithetic: bool = False,
        multiplicative: bool = False,
        reduction: str = "mean",
        validate: bool = True,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(polytope, reduction=reduction, validate=validate, solver=solver)
        self.perturbation: Perturbation = Perturbation(noise, samples, antithetic, multiplicative)

    def _settings(self) -> list[str]:
        held = self.perturbation
        flags = [name for name in ("antithetic", "multiplicative") if getattr(held, name)]
        return [str(held.noise), f"samples={held.samples}", *(f"{name}=True" for name in flags)]

    def forward(
        self,
        scores: Tensor,
        target: Tensor | None = None,
        *,
        labels: Any = None,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The loss.

        Args:
            scores: `(*batch, *event)`.
            target: y in M, `(*batch, *event)`; vertices or mixtures.
            labels: instead of a target, in the form that `polytope.encode` takes.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names.
            generator: for the noise.

        Returns:
            A scalar, or `(*batch,)` with `reduction="none"`.

        Raises:
            TypeError: scores, target, labels or masks of another kind.
            ValueError: neither or both of target and labels, a wrong shape, or a target outside M.
        """
        problem, y = self.posed(scores, target, labels, lengths, keep, params)
        way = road(self.polytope, None, self.solver)
        value = self.perturbation.conjugate(problem, way, generator) - inner(problem.scores, y)
        return self.reduced(value, problem, scores.dtype)
