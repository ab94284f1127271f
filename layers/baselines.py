"""Baselines: what a score-function estimator subtracts from the loss, so that it varies less."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from spigot.polytopes import Polytope
from spigot.polytopes.settings import Interval
from spigot.pullback.roads import road
from spigot.pullback.slope import column

__all__ = ["Baseline", "LeaveOneOut", "MinimumVariance", "RunningMean", "SelfCritical"]

AVERAGED = Interval("lie in (0, 1]", high=1.0, with_high=True)


class Baseline(nn.Module):
    """b in (l(z) - b) * score(z). The score has mean 0, so any b that is independent of z will do.

    Example:
        One of your own is a class with `forward`:

        >>> from spigot.layers import Baseline, ScoreFunction
        >>> from spigot.polytopes import Simplex
        >>> class Half(Baseline):
        ...     def forward(self, losses, best, score):
        ...         return losses.new_tensor(0.5)
        >>> ScoreFunction(Simplex(3), baseline=Half())
        ScoreFunction(Simplex(d=3), samples=1, baseline=Half())
    """

    def check(self, polytope: Polytope, samples: int) -> None:
        """Raises where it cannot be had for that polytope and number of samples.

        Args:
            polytope: M.
            samples: K.
        """

    def forward(self, losses: Tensor, best: Callable[[], Tensor], score: Tensor) -> Tensor:
        """The baselines.

        Args:
            losses: `(samples, n)`, without a graph.
            best: gives each instance's loss at its MAP, `(n,)`.
            score: of the draws, `(samples, n, *event)`.

        Returns:
            What broadcasts to `(samples, n)`; or, one a part, to `(samples, n, *event)`, with as many
            dimensions.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class RunningMean(Baseline):
    """The mean of the losses of earlier calls, with exponentially decaying weights.

    A call is compared with those before it (the first with 0) and then, in train mode, enters the
    buffers with the weight `momentum`. Losses that are not finite are left out.

    Args:
        momentum: in (0, 1].

    Raises:
        ValueError: momentum out of range.
        TypeError: momentum that is no number.

    Example:
        >>> import torch
        >>> from spigot.layers import RunningMean, ScoreFunction
        >>> from spigot.polytopes import Simplex
        >>> layer = ScoreFunction(Simplex(2), baseline=RunningMean(0.1))
        >>> for _ in range(2):  # first without a baseline, then with the mean loss
        ...     scores = torch.zeros(10000, 2, requires_grad=True)
        ...     rng = torch.Generator().manual_seed(0)
        ...     layer(scores, lambda z: 10 + z[:, 0], generator=rng).sum().backward()
        ...     scores.grad[:, 0].mean().round(decimals=1), scores.grad[:, 0].std().round()
        (tensor(0.2000), tensor(5.))
        (tensor(0.2000), tensor(0.))

    References:
        Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
        learning" (1992).
    """

    total: Tensor
    weight: Tensor

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum: float = _share(self, momentum)
        self.register_buffer("total", torch.tensor(0.0))
        self.register_buffer("weight", torch.tensor(0.0))

    def __repr__(self) -> str:
        return f"RunningMean({self.momentum})"

    def forward(self, losses: Tensor, best: Callable[[], Tensor], score: Tensor) -> Tensor:
        """The mean so far, `()`."""
        mean = torch.where(self.weight > 0, self.total / self.weight, 0.0)
        finite = losses[losses.isfinite()]
        if self.training and len(finite):
            self.total.lerp_(finite.mean().to(self.total), self.momentum)
            self.weight.lerp_(torch.ones_like(self.weight), self.momentum)
        return mean.to(losses)


class MinimumVariance(Baseline):
    """For each part i the constant of least variance, E[score_i^2 l] / E[score_i^2], by running means.

    The gradient's part i is (l(z) - b_i) score_i(z), whatever b_i, and its second moment is least there.
    For exact samples the score is z - marginals(s); on `Hypercube` this is the minimum-variance unbiased
    estimator of stochastic binary neurons. A call is compared with those before it (the first with 0)
    and then, in train mode, enters the buffers with the weight `momentum`, all its instances alike.
    Losses that are not finite are left out.

    The buffers have the parts' shape, and are made when the layer is.

    Args:
        momentum: in (0, 1].

    Raises:
        ValueError: momentum out of range, or two layers of different parts that share it.
        TypeError: momentum that is no number.

    Example:
        >>> import torch
        >>> from spigot.layers import MinimumVariance, ScoreFunction
        >>> from spigot.polytopes import Hypercube
        >>> neurons = ScoreFunction(Hypercube(2), baseline=MinimumVariance(0.1))
        >>> scores = torch.zeros(10000, 2, requires_grad=True)
        >>> rng = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     estimate = neurons(scores, lambda h: 5 + h[:, 0], generator=rng)
        >>> round(neurons.baseline.mean[0].item(), 1)
        5.5

    References:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
        for conditional computation" (2013), on the unbiased estimator for binary neurons.
    """

    weighted: Tensor
    weight: Tensor

    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum: float = _share(self, momentum)

    def __repr__(self) -> str:
        return f"MinimumVariance({self.momentum})"

    def check(self, polytope: Polytope, samples: int) -> None:
        """Makes the buffers: E[score^2 l] and E[score^2] of each part.

        Raises:
            ValueError: it has buffers already, of another shape.
        """
        event = polytope.event_shape
        if "weight" not in self._buffers:
            self.register_buffer("weighted", torch.zeros(event))
            self.register_buffer("weight", torch.zeros(event))
        elif tuple(self.weight.shape) != event:
            raise ValueError(
                f"{self} holds means for parts of shape {tuple(self.weight.shape)}; make another for "
                f"{polytope}, whose parts have shape {event}."
            )

    @property
    def mean(self) -> Tensor:
        """b, `(*event)`; 0 before the first call, and where a part has never varied."""
        return torch.where(self.weight > 0, self.weighted / self.weight, 0.0)

    def forward(self, losses: Tensor, best: Callable[[], Tensor], score: Tensor) -> Tensor:
        """The means so far, `(1, 1, *event)`."""
        mean = self.mean
        finite = losses.isfinite()
        if self.training and bool(finite.any()):
            squares = score[finite].square()  # (m, *event)
            weighted = (column(losses[finite], squares) * squares).mean(0)
            self.weighted.lerp_(weighted.to(self.weighted), self.momentum)
            self.weight.lerp_(squares.mean(0).to(self.weight), self.momentum)
        return mean.to(losses)[None, None]


class LeaveOneOut(Baseline):
    """For each sample the mean loss of the instance's other samples; needs at least two.

    Example:
        >>> import torch
        >>> from spigot.layers import LeaveOneOut, ScoreFunction
        >>> from spigot.polytopes import Simplex
        >>> for baseline in (None, LeaveOneOut()):
        ...     scores = torch.zeros(10000, 2, requires_grad=True)
        ...     layer = ScoreFunction(Simplex(2), samples=2, baseline=baseline)
        ...     rng = torch.Generator().manual_seed(0)
        ...     layer(scores, lambda z: 10 + z[:, 0], generator=rng).sum().backward()
        ...     scores.grad[:, 0].mean().round(decimals=1), scores.grad[:, 0].std().round(decimals=1)
        (tensor(0.2000), tensor(3.7000))
        (tensor(0.2000), tensor(0.2000))

    References:
        Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for free!" (2019).
    """

    def check(self, polytope: Polytope, samples: int) -> None:
        """Raises ValueError for a single sample."""
        if samples < 2:
            raise ValueError(
                f"LeaveOneOut() compares a sample with the others: make samples={samples} at least 2."
            )

    def forward(self, losses: Tensor, best: Callable[[], Tensor], score: Tensor) -> Tensor:
        """The means of the others, `(samples, n)`."""
        return (losses.sum(0) - losses) / (len(losses) - 1)


class SelfCritical(Baseline):
    """The loss at MAP, at one more call of the loss: what the model would get without sampling.

    Example:
        >>> import torch
        >>> from spigot.layers import ScoreFunction, SelfCritical
        >>> from spigot.polytopes import Simplex
        >>> layer = ScoreFunction(Simplex(2), baseline=SelfCritical())
        >>> scores = torch.tensor([9.0, 0.0], requires_grad=True)
        >>> rng = torch.Generator().manual_seed(0)
        >>> layer(scores, lambda z: 10 + z[0], generator=rng).backward()
        >>> scores.grad  # the sample is the MAP: nothing to learn from it
        tensor([0., -0.])

    References:
        Rennie, Marcheret, Mroueh, Ross and Goel, "Self-critical sequence training for image captioning"
        (CVPR 2017).
    """

    def check(self, polytope: Polytope, samples: int) -> None:
        """Raises UnsupportedProblem for a polytope without MAP."""
        road(polytope, None)

    def forward(self, losses: Tensor, best: Callable[[], Tensor], score: Tensor) -> Tensor:
        """The losses at MAP, `(n,)`."""
        return best()


def _share(baseline: Baseline, momentum: float) -> float:
    """The momentum, if it is one."""
    AVERAGED.check(baseline, momentum=momentum)
    return momentum
