"""Noise on scores: perturb-and-MAP draws a structure by maximising noisy scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spigot.polytopes import UnsupportedProblem
from spigot.polytopes.settings import POSITIVE, counts

__all__ = ["Gumbel", "Logistic", "Noise", "Normal", "SumOfGamma"]

EULER = 0.5772156649015329


@dataclass(frozen=True)
class Noise:
    """Independent noise for every part, of mean 0: draws of any shape, `(samples, *batch, *event)` say.

    Args:
        scale: what the draws are multiplied by, above 0.

    Raises:
        ValueError: a scale that is not positive.
        TypeError: a scale that is no number.

    Example:
        >>> import torch
        >>> from spigot.pullback import Gumbel, Noise, Normal
        >>> isinstance(Gumbel(), Noise), Gumbel.symmetric, Normal.symmetric
        (True, False, True)
        >>> rng = torch.Generator().manual_seed(0)
        >>> Normal(scale=3.0).draw((10000,), torch.empty(0), rng).std().round()
        tensor(3.)
    """

    scale: float = 1.0
    symmetric: ClassVar[bool] = False
    """Whether e and -e are equally likely."""

    def __post_init__(self) -> None:
        POSITIVE.check(self, scale=self.scale)

    def draw(
        self, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws of that shape, in the dtype and on the device of `like`.

        Args:
            shape: a tuple.
            like: a tensor.
            generator: torch's own where there is none.
        """
        device = like.device if generator is None else generator.device
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        unit = self._unit(torch.empty(shape, dtype=dtype, device=device), generator)
        return (self.scale * unit).to(like)

    def score(self, noise: Tensor) -> Tensor:
        """Minus the gradient of the log-density at the draws: what a score-function estimator needs.

        Raises:
            UnsupportedProblem: the density has none in closed form.
        """
        return self._unit_score(noise / self.scale) / self.scale

    def _unit(self, empty: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError

    def _unit_score(self, noise: Tensor) -> Tensor:
        raise UnsupportedProblem(
            f"{self} has no score in closed form, minus the gradient of its log-density.\n"
            "Use Gumbel() or Normal()."
        )


@dataclass(frozen=True)
class Gumbel(Noise):
    """Gumbel noise less its mean: on the simplex, perturb-and-MAP draws exactly from the softmax.

    Args:
        scale: what the draws are multiplied by, above 0: the softmax's temperature.

    Raises:
        ValueError: a scale that is not positive.
        TypeError: a scale that is no number.

    Example:
        >>> import torch
        >>> from spigot.pullback import Gumbel
        >>> rng = torch.Generator().manual_seed(0)
        >>> Gumbel().draw((10000,), torch.empty(0), rng).std().round(decimals=1)
        tensor(1.3000)

    References:
        Papandreou and Yuille, "Perturb-and-MAP random fields" (ICCV 2011).
    """

    def _unit(self, empty: Tensor, generator: torch.Generator | None) -> Tensor:
        tiny = torch.finfo(empty.dtype).tiny
        return -empty.exponential_(generator=generator).clamp_min(tiny).log() - EULER

    def _unit_score(self, noise: Tensor) -> Tensor:
        return 1 - (-noise - EULER).exp()


@dataclass(frozen=True)
class Logistic(Noise):
    """Logistic noise: on the hypercube, perturb-and-MAP draws each part with probability sigmoid(s).

    It is the difference of two Gumbel draws.

    Args:
        scale: what the draws are multiplied by, above 0.

    Raises:
        ValueError: a scale that is not positive.
        TypeError: a scale that is no number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Hypercube
        >>> from spigot.pullback import Logistic
        >>> scores = torch.full((10000, 1), 2.0)
        >>> noise = Logistic().draw((10000, 1), scores, torch.Generator().manual_seed(0))
        >>> Hypercube(1).maximize(scores + noise).mean().round(decimals=1), scores[0].sigmoid()
        (tensor(0.9000), tensor([0.8808]))
    """

    symmetric: ClassVar[bool] = True

    def _unit(self, empty: Tensor, generator: torch.Generator | None) -> Tensor:
        tiny = torch.finfo(empty.dtype).tiny
        one, other = (
            torch.empty_like(empty).exponential_(generator=generator).clamp_min(tiny) for _ in range(2)
        )
        return one.log() - other.log()

    def _unit_score(self, noise: Tensor) -> Tensor:
        return (0.5 * noise).tanh()


@dataclass(frozen=True)
class Normal(Noise):
    """Normal noise of standard deviation `scale`.

    Args:
        scale: above 0.

    Raises:
        ValueError: a scale that is not positive.
        TypeError: a scale that is no number.

    Example:
        >>> import torch
        >>> from spigot.pullback import Normal
        >>> Normal(scale=2.0).score(torch.tensor([4.0]))
        tensor([1.])
    """

    symmetric: ClassVar[bool] = True

    def _unit(self, empty: Tensor, generator: torch.Generator | None) -> Tensor:
        return empty.normal_(generator=generator)

    def _unit_score(self, noise: Tensor) -> Tensor:
        return noise


@dataclass(frozen=True)
class SumOfGamma(Noise):
    """Noise of which the sum of k independent draws is a Gumbel draw (less its mean).

    A structure of k parts then has a Gumbel score. A draw is the sum over i = 1, 2, ... of
    (G_i - 1 / k) / i with G_i ~ Gamma(1 / k), cut off after `terms`.

    Args:
        scale: what the draws are multiplied by, above 0.
        k: how many parts a structure has, at least 1.
        terms: how many are added, at least 1; the rest is replaced by its mean, 0.

    Raises:
        ValueError: a scale that is not positive, k or terms below 1.
        TypeError: a scale that is no number, k or terms that are no whole numbers.

    Example:
        >>> import torch
        >>> from spigot.pullback import SumOfGamma
        >>> rng = torch.Generator().manual_seed(0)
        >>> draws = SumOfGamma(k=5).draw((10000, 5), torch.empty(0), rng)
        >>> draws.sum(1).std().round(decimals=1)  # a Gumbel's is 1.28
        tensor(1.3000)

    References:
        Niepert, Minervini and Franceschi, "Implicit MLE" (NeurIPS 2021), theorem 1.
    """

    k: int = 1
    terms: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        counts(self, k=self.k, terms=self.terms)

    def _unit(self, empty: Tensor, generator: torch.Generator | None) -> Tensor:
        steps = torch.arange(1, self.terms + 1, dtype=empty.dtype, device=empty.device)
        rates = empty.new_full((*empty.shape, self.terms), 1 / self.k)
        drawn = torch._standard_gamma(rates, generator=generator)  # pyright: ignore
        return ((drawn - 1 / self.k) / steps).sum(-1)
