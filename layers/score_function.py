"""The score-function estimator (REINFORCE) of an expected loss over structures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spigot.layers.baselines import Baseline
from spigot.polytopes import Gibbs, Polytope, opaque
from spigot.polytopes.base import empty_or
from spigot.polytopes.dispatch import choose
from spigot.polytopes.posing import detached, pose
from spigot.polytopes.problem import Problem
from spigot.polytopes.settings import counts
from spigot.pullback.noise import Noise
from spigot.pullback.objective import Loss, Objective, loss_at
from spigot.pullback.perturbation import Perturbation
from spigot.pullback.roads import road
from spigot.pullback.slope import column

__all__ = ["ScoreFunction"]

GIBBS = Gibbs()


class ScoreFunction(Objective):
    """E[l(z)] over random structures z, with the score-function estimate of its gradient.

    Over K samples the value is the mean of l(z_k), and its gradient by the scores the mean of
    (l(z_k) - b_k) times the score of the k-th draw. It is unbiased and asks nothing of l, which may jump
    or be a reward that is only observed. Either

    - z is an exact sample of p(z) ~ exp<s, z>, whose score is z - marginals(s); or,
    - with `noise=`, z = MAP(s + e) with the noise's own score, minus the gradient of its log-density at
      e. The objective is then E[l(MAP(s + e))] itself, on any polytope that has MAP.

    Train and eval mode differ by the baseline's running value alone.

    Args:
        polytope: M.
        noise: None for exact samples, or the distribution of e, such as `Gumbel()`.
        samples: K.
        baseline: what is subtracted from the loss: None, `RunningMean()`,
            `MinimumVariance()`, `LeaveOneOut()` or `SelfCritical()`. None changes the gradient's mean.

    Raises:
        TypeError: a baseline that is no `Baseline`, noise that is no `Noise`, or samples that are no
            whole number.
        ValueError: samples below 1, or below 2 with `LeaveOneOut()`.
        UnsupportedProblem: when the layer is made: no exact samples and no noise, or noise without a
            score, such as `SumOfGamma`.

    Example:
        >>> import torch
        >>> from spigot.layers import LeaveOneOut, ScoreFunction
        >>> from spigot.polytopes import Simplex
        >>> layer = ScoreFunction(Simplex(2), samples=10000, baseline=LeaveOneOut())
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> rng = torch.Generator().manual_seed(0)
        >>> layer(scores, lambda z: z[..., 0], generator=rng).backward()
        >>> scores.grad.round(decimals=2)
        tensor([ 0.2500, -0.2500])

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning" (1992).
    """

    def __init__(
        self,
        polytope: Polytope,
        noise: Noise | None = None,
        *,
        samples: int = 1,
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(baseline, Baseline | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"baseline must be an object such as LeaveOneOut(), got {baseline!r}.")
        counts(self, samples=samples)
        self.polytope = polytope
        self.perturbation: Perturbation | None = None if noise is None else Perturbation(noise, samples)
        self.samples = samples
        self.baseline = baseline
        road(polytope, None if noise else GIBBS)
        if self.perturbation is not None:
            self.perturbation.check_score()
        if baseline is not None:
            baseline.check(polytope, samples)

    def __repr__(self) -> str:
        noise = "" if self.perturbation is None else f", {self.perturbation.noise}"
        baseline = "" if self.baseline is None else f", baseline={self.baseline}"
        return f"ScoreFunction({self.polytope}{noise}, samples={self.samples}{baseline})"

    @opaque.uncompiled
    def forward(
        self,
        scores: Tensor,
        loss: Loss,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean loss over the samples, `(*batch,)`.

        Args:
            scores: `(*batch, *event)`.
            loss: z `(*batch, *event)` -> each instance's own loss `(*batch,)`; called once a sample, and
                once more by `SelfCritical()`. Where it is not finite the instance's gradient is NaN.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names; they get no gradient.
            generator: for the samples.

        Raises:
            ValueError: bad input as for `Polytope.solve`, or a loss of another shape than the batch's.
        """
        regularizer = GIBBS if self.perturbation is None else None
        problem = pose(self.polytope, scores, regularizer, lengths, keep, params)
        structures, score = self._drawn(detached(problem), generator)
        found = torch.stack([loss_at(loss, sample, scores) for sample in structures])
        value = found.mean(0)
        if not (torch.is_grad_enabled() and scores.requires_grad):
            return value
        with torch.no_grad():
            losses = found.reshape(self.samples, problem.size).to(problem.scores)
            drawn = score()
            estimate = _mean(losses, self._baselines(losses, loss, problem, scores, drawn), drawn)
            estimate = estimate.masked_fill(column(~losses.isfinite().all(0), estimate), torch.nan)
        estimated: Tensor = cast(Any, _Estimated).apply(value, problem.scores, estimate)
        return estimated

    def _drawn(
        self, problem: Problem, generator: torch.Generator | None
    ) -> tuple[Tensor, Callable[[], Tensor]]:
        """The structures `(samples, n, *event)`, and what computes their scores."""
        if self.perturbation is None:
            return _exact(problem, self.samples, generator)
        draws = self.perturbation.draw(problem, generator)
        found = self.perturbation.maximizers(problem, draws, road(self.polytope, None))
        return found, partial(self.perturbation.score, problem, draws)

    def _baselines(
        self, losses: Tensor, loss: Loss, problem: Problem, scores: Tensor, drawn: Tensor
    ) -> Tensor:
        def best() -> Tensor:
            structures = empty_or(road(self.polytope, None), detached(problem).asking(None)).value
            return loss_at(loss, structures, scores).reshape(problem.size).to(losses)

        return losses.new_zeros(()) if self.baseline is None else self.baseline(losses, best, drawn)


def _mean(losses: Tensor, baseline: Tensor, drawn: Tensor) -> Tensor:  # (n, *event)
    """The mean over samples of (l - b) times the score, b one a sample or one a part."""
    if baseline.dim() <= losses.dim():
        return torch.einsum("kn,kn...->n...", losses - baseline, drawn) / len(losses)
    spread = losses.reshape(*losses.shape, *[1] * (drawn.dim() - 2))
    return ((spread - baseline) * drawn).mean(0)


def _exact(
    problem: Problem, samples: int, generator: torch.Generator | None
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Samples of p(z) ~ exp<s, z> and, when asked, z - marginals(s)."""
    if not problem.size:
        none = problem.scores.new_zeros(samples, *problem.scores.shape)
        return none, lambda: none
    found = choose(problem.polytope, GIBBS).sample(problem, samples, generator).to(problem.scores)

    def score() -> Tensor:
        return found - road(problem.polytope, GIBBS).solve(problem).value.to(found)

    return found, score


class _Estimated(torch.autograd.Function):
    """A value `(*batch,)` whose gradient by the scores `(n, *event)` is an estimate."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, _scores: Tensor, estimate: Tensor) -> Tensor:
        ctx.save_for_backward(estimate)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (estimate,) = ctx.saved_tensors
        return grad, column(grad.reshape(-1).to(estimate), estimate) * estimate, None
