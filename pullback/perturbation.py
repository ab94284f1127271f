"""Scores under several draws of noise at once, as one larger batch: what perturbed layers share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import implicit
from spigot.polytopes.base import empty_or
from spigot.polytopes.dispatch import Road
from spigot.polytopes.problem import Problem
from spigot.polytopes.settings import counts
from spigot.pullback.noise import Noise, Normal

__all__ = ["Perturbation"]


@dataclass(frozen=True)
class Perturbation:
    """Several draws e of noise for every instance, and how they move its scores s.

    Additive noise gives s + e. Multiplicative noise, for `Normal(scale)` alone, gives
    s * exp(e - scale^2 / 2): a factor of mean 1, under which scores keep their signs and zeros stay.

    Args:
        noise: the distribution of e.
        samples: how many draws.
        antithetic: whether draws come in pairs e, -e.
        multiplicative: whether the noise multiplies.

    Raises:
        TypeError: noise that is no `Noise`.
        ValueError: samples below 1, or odd though antithetic; antithetic pairs of noise that is not
            symmetric; multiplicative noise that is not normal.

    Example:
        >>> from spigot.pullback import Normal
        >>> from spigot.pullback.perturbation import Perturbation
        >>> Perturbation(Normal(), samples=4, antithetic=True).noise
        Normal(scale=1.0)
    """

    noise: Noise
    samples: int
    antithetic: bool = False
    multiplicative: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.noise, Noise):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"noise must be an object such as Gumbel(), got {self.noise!r}.")
        counts("Perturbation", samples=self.samples)
        if self.antithetic and not self.noise.symmetric:
            raise ValueError(
                f"antithetic=True pairs e with -e, which are not equally likely for {self.noise}.\n"
                "Use noise=Normal(), or antithetic=False."
            )
        if self.antithetic and self.samples % 2:
            raise ValueError(f"antithetic=True draws in pairs: make samples={self.samples} even.")
        if self.multiplicative and not isinstance(self.noise, Normal):
            raise ValueError(
                f"multiplicative=True multiplies by exp(e - scale^2 / 2), of mean 1 for normal noise "
                f"only; got {self.noise}.\nUse noise=Normal(), or multiplicative=False."
            )

    def check_score(self) -> None:
        """Raises UnsupportedProblem where the noise has no score, and so the expectation no gradient."""
        self.noise.score(torch.zeros(1))

    def draw(self, problem: Problem, generator: torch.Generator | None) -> Tensor:
        """The noise, `(samples, n, *event)`, zero at parts that cannot be used."""
        scores = problem.scores.detach()
        count = self.samples // 2 if self.antithetic else self.samples
        draws = self.noise.draw((count, *scores.shape), scores, generator)
        draws = torch.cat([draws, -draws]) if self.antithetic else draws
        return draws if problem.mask is None else torch.where(problem.mask, draws, 0.0)

    def perturbed(self, problem: Problem, draws: Tensor) -> Problem:
        """The perturbed scores of all draws as one batch, `(samples * n, *event)`."""
        if self.multiplicative:
            noisy = problem.scores * (draws - self.noise.scale**2 / 2).exp()
        else:
            noisy = problem.scores + draws
        rows = torch.arange(problem.size, device=problem.scores.device).repeat(len(draws))
        return problem.take(rows).with_scores(noisy.flatten(0, 1))

    def maximizers(self, problem: Problem, draws: Tensor, way: Road) -> Tensor:
        """The vertex of each draw, `(samples, n, *event)`, all found in one call."""
        value = empty_or(way, self.perturbed(problem.linear(problem.scores.detach()), draws)).value
        return value.to(problem.scores).reshape(draws.shape)

    def score(self, problem: Problem, draws: Tensor) -> Tensor:
        """Minus the gradient of the log-density of the perturbed scores by s, `(samples, n, *event)`.

        For multiplicative noise log|s| is what is shifted, which makes it score(e) / s. Zero scores
        are not moved by their noise; theirs is 0.
        """
        score = self.noise.score(draws)
        if not self.multiplicative:
            return score
        scores = problem.scores.detach()
        return torch.where(scores == 0, 0.0, score / scores)

    def conjugate(self, problem: Problem, way: Road, generator: torch.Generator | None) -> Tensor:
        """The mean over draws of max over y in M of <perturbed s, y>, `(n,)`.

        Its gradient by the scores is the mean of the perturbed maximisers; for multiplicative noise,
        of each of them times its own factor.
        """
        posed = self.perturbed(problem.asking(None), self.draw(problem, generator))
        return implicit.conjugate(posed, way).reshape(self.samples, problem.size).mean(0)
