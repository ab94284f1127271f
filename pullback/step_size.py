"""How far a step goes: a number, one an instance, found by line search, or adapted as training goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from spigot.polytopes.problem import Problem
from spigot.polytopes.settings import FRACTION, POSITIVE, Interval, counts
from spigot.pullback.slope import Slope, column, lengths
from spigot.pullback.steps import Point

__all__ = ["Adaptive", "LineSearch", "StepSize", "check_step_size", "record", "stepped"]

BELOW_ONE = Interval("lie in [0, 1)", high=1.0, with_low=True)

Step = Callable[[Tensor], Point]  # shift (n, *event) -> the point there


@dataclass(frozen=True)
class LineSearch:
    """The largest step of initial * shrink^j, j = 0, 1, ..., along which each instance's loss falls.

    A step from mu to mu' will do where l(mu') <= l(mu) + sufficient * <g, mu' - mu>, with l the
    `downstream` loss, `(*batch,)`, and what it does not see linear. An instance without such a step
    among `tries` stays where it is, and its gradient is that of staying.

    Args:
        initial: the first step size, above 0.
        shrink: the ratio of successive ones, in (0, 1).
        sufficient: Armijo's constant, in [0, 1).
        tries: how many are tried at most.

    Raises:
        ValueError: one of these out of range.
        TypeError: one that is no number, or tries that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Hypercube
        >>> from spigot.pullback import SPIGOT, LineSearch
        >>> wanted = torch.tensor([0.6, 0.4])
        >>> SPIGOT(step_size=LineSearch(initial=4.0)).path(  # 4, 2 and 1 go too far
        ...     Hypercube(2), torch.tensor([1.0, -1.0]), lambda y: (y - wanted).square().sum(-1)
        ... )
        tensor([[1.0000, 0.0000],
                [0.6000, 0.4000]])

    References:
        Armijo (1966); on projected steps Bertsekas, "Nonlinear programming" (1999), section 2.3.
    """

    initial: float = 1.0
    shrink: float = 0.5
    sufficient: float = 1e-4
    tries: int = 10

    def __post_init__(self) -> None:
        POSITIVE.check(self, initial=self.initial)
        FRACTION.check(self, shrink=self.shrink)
        BELOW_ONE.check(self, sufficient=self.sufficient)
        counts(self, tries=self.tries)

    def stepped(self, problem: Problem, slope: Slope, point: Point, g: Tensor, step: Step) -> Point:
        """The point of the largest step that will do.

        Args:
            problem: the batch.
            slope: the loss and its gradient.
            point: where the step begins.
            g: the gradient there, `(n, *event)`.
            step: shift `(n, *event)` -> the point there.
        """
        here = slope.loss(point.mu)
        eta = here.new_full(here.shape, self.initial)
        for left in reversed(range(self.tries)):
            there = step(slope.sound(column(eta, g) * g))
            rise = (g * (there.mu - point.mu)).flatten(1).sum(1)
            falls = slope.loss(there.mu) <= here + self.sufficient * rise
            if bool(falls.all()):
                return there
            eta = torch.where(falls, eta, self.shrink * eta if left else 0.0)
        return step(slope.sound(column(eta, g) * g))


class Adaptive(nn.Module):
    """A step size that keeps the surrogate gradient's size near a target as training goes.

    After each backward in train mode, eta is multiplied by (target_norm / size)^rate, where size is
    the mean over the batch of the surrogate's norm, an instance each, before the loss's division: too
    short a step leaves the structure as it is and gives no gradient, too long a one always the same.
    The factor lies within [1 - rate, 1 + rate]. eta is the buffer `value`, `()`, so it is in the layer's
    `state_dict`; in eval mode it stands still. This is the one place where a batch's instances
    influence each other, and by the running value alone.

    Args:
        target_norm: the size to keep to, above 0; a structure that changes in two of its parts has
            norm sqrt(2).
        initial: the first value, above 0.
        rate: how fast it adapts, in (0, 1).
        per_instance: whether each instance's step is value * |s| / |g|, relative to its own scores
            and gradient, instead of the value itself.

    Raises:
        ValueError: one of these out of range.
        TypeError: one that is no number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import Adaptive, BlackBox
        >>> layer = Argmax(Simplex(2), BlackBox(step_size=Adaptive(initial=0.5, rate=0.5)))
        >>> for _ in range(3):  # a step too short to change the structure grows
        ...     scores = torch.tensor([1.0, 0.0], requires_grad=True)
        ...     layer(scores)[0].backward()
        ...     scores.grad, layer.step_size.value.clone()
        (tensor([0., 0.]), tensor(0.7500))
        (tensor([0., 0.]), tensor(1.1250))
        (tensor([ 1., -1.]), tensor(0.9460))
        >>> list(layer.state_dict())
        ['step_size.value']

    References:
        Minervini, Franceschi and Niepert, "Adaptive perturbation-based gradient estimation for discrete
        latent variable models" (AAAI 2023), section 3.
    """

    value: Tensor

    def __init__(
        self,
        target_norm: float = 1.0,
        initial: float = 1.0,
        rate: float = 0.1,
        per_instance: bool = False,
    ) -> None:
        super().__init__()
        POSITIVE.check(self, target_norm=target_norm, initial=initial)
        FRACTION.check(self, rate=rate)
        self.target_norm = target_norm
        self.initial = initial
        self.rate = rate
        self.per_instance = per_instance
        self.register_buffer("value", torch.tensor(float(initial)))

    def __repr__(self) -> str:
        shown = f"target_norm={self.target_norm}, initial={self.initial}, rate={self.rate}"
        return f"Adaptive({shown}{', per_instance=True' if self.per_instance else ''})"

    def stepped(self, problem: Problem, slope: Slope, point: Point, g: Tensor, step: Step) -> Point:
        """The point one such step away.

        Args:
            problem: the batch.
            slope: the loss and its gradient.
            point: where the step begins.
            g: the gradient there, `(n, *event)`.
            step: shift `(n, *event)` -> the point there.
        """
        eta = self.value.to(g)
        if self.per_instance:
            length = lengths(g)
            relative = lengths(problem.scores) / length
            eta = eta * column(torch.where(length > 0, relative, 0.0).to(g), g)
        return step(slope.sound(eta * g))

    def record(self, surrogate: Tensor) -> None:
        """Adapts the value to what came out, `(n, *event)`, in the instances that are finite."""
        sizes = lengths(surrogate.detach())
        sizes = sizes[sizes.isfinite()]
        if not self.training or not len(sizes):
            return
        ratio = self.target_norm / sizes.mean().clamp_min(torch.finfo(sizes.dtype).tiny)
        self.value *= (ratio**self.rate).clamp(1 - self.rate, 1 + self.rate).to(self.value)


StepSize = float | Tensor | LineSearch | Adaptive


def check_step_size(step_size: Any) -> None:
    """Refuses what is no positive number, tensor, `LineSearch` or `Adaptive`.

    Raises:
        ValueError: a number out of range.
        TypeError: anything else.
    """
    if isinstance(step_size, LineSearch | Adaptive):
        return
    if isinstance(step_size, Tensor):
        if not bool(((step_size >= 0) & step_size.isfinite()).all()):
            raise ValueError(f"step_size must be finite and at least 0, got {step_size}.")
        return
    if isinstance(step_size, bool) or not isinstance(step_size, Real):
        raise TypeError(
            f"step_size must be a number, a tensor, LineSearch() or Adaptive(), got {step_size!r}."
        )
    POSITIVE.check("an estimator", step_size=float(step_size))


def stepped(step_size: StepSize, problem: Problem, slope: Slope, point: Point, step: Step) -> Point:
    """The point one step away."""
    if isinstance(step_size, LineSearch | Adaptive):
        return step_size.stepped(problem, slope, point, slope.at(point.mu), step)
    return step(slope.scaled(point.mu, _sizes(step_size, problem, slope.grad)))


def record(step_size: StepSize, surrogate: Tensor) -> None:
    """Tells a step size that adapts what came out."""
    if isinstance(step_size, Adaptive):
        step_size.record(surrogate)


def _sizes(step_size: float | Tensor, problem: Problem, like: Tensor) -> Tensor:
    """One number, or one an instance."""
    eta = torch.as_tensor(step_size, dtype=like.dtype, device=like.device).detach()
    if eta.dim() and tuple(eta.shape) != problem.batch_shape:
        raise ValueError(
            f"step_size of shape {tuple(eta.shape)} must be 0-dim or have the batch shape "
            f"{problem.batch_shape}."
        )
    return column(eta.reshape(-1), like) if eta.dim() else eta
