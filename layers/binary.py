"""Stochastic binary neurons: where the four families of Bengio, Leonard and Courville (2013) are.

A neuron has a score a and fires with probability sigmoid(a); a layer of d of them is `Hypercube(d)`.

| family                              | here                                                      |
| ----------------------------------- | --------------------------------------------------------- |
| minimum-variance unbiased estimator | `ScoreFunction(Hypercube(d), baseline=MinimumVariance())` |
| stochastic times smooth             | `StochasticTimesSmooth(d)`                                |
| noise injection                     | `Argmax(Hypercube(d), NoiseInjection())`                  |
| straight-through                    | `Argmax(Hypercube(d), STEIdentity(noise=Logistic()))`, or |
|                                     | `STEMarginals(noise=Logistic())` with sigmoid's slope     |

All but stochastic-times-smooth are rows that serve any polytope.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spigot.polytopes import Hypercube, opaque
from spigot.polytopes.posing import pose

__all__ = ["StochasticTimesSmooth"]


class StochasticTimesSmooth(nn.Module):
    """h = b sqrt(p) with p = sigmoid(a) and b ~ Bernoulli(sqrt(p)), differentiated through sqrt(p).

    The neuron is off, exactly 0, with probability 1 - sqrt(p), and its mean is p. The draws b count as
    constants in the backward, dh/da = b sqrt(p) (1 - p) / 2. That leaves out how a moves the chance of
    firing, the other half: for a loss linear in h the mean gradient is half the true one.

    In eval mode there is no noise, and h is the mean p.

    Args:
        d: how many neurons.

    Raises:
        TypeError, ValueError: d is no whole number of at least 1.

    Example:
        >>> import torch
        >>> from spigot.layers import StochasticTimesSmooth
        >>> neurons = StochasticTimesSmooth(3)
        >>> neurons
        StochasticTimesSmooth(3)
        >>> scores = torch.zeros(3, requires_grad=True)
        >>> neurons(scores, generator=torch.Generator().manual_seed(0)).detach()
        tensor([0.7071, 0.0000, 0.7071])
        >>> neurons.eval()(scores).detach()
        tensor([0.5000, 0.5000, 0.5000])

    References:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
        for conditional computation" (2013), on stochastic-times-smooth units.
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        self.polytope: Hypercube = Hypercube(d)

    def __repr__(self) -> str:
        return f"StochasticTimesSmooth({self.polytope.event_shape[0]})"

    @opaque.uncompiled
    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The neurons' values, `(*batch, d)`, in [0, 1].

        Args:
            scores: a, `(*batch, d)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded neurons are 0 with gradient exactly 0.
            generator: for the draws.

        Raises:
            TypeError, ValueError: bad input as for `Polytope.solve`.
        """
        problem = pose(self.polytope, scores, None, lengths, keep)
        root = (0.5 * nn.functional.logsigmoid(problem.scores)).exp()  # right where p underflows
        h = (_fires(root, generator) if self.training else root) * root
        h = h if problem.mask is None else torch.where(problem.mask, h, 0.0)
        return h.reshape(scores.shape).to(scores.dtype)


def _fires(chance: Tensor, generator: torch.Generator | None) -> Tensor:
    """1 with that chance, else 0."""
    device = chance.device if generator is None else generator.device
    uniform = torch.empty_like(chance, device=device).uniform_(generator=generator)
    return (uniform.to(chance.device) < chance.detach()).to(chance)
