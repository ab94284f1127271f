"""`Estimator`: what every backward of `spigot.layers.Argmax` has in common."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from spigot.polytopes import Polytope, Regularizer
from spigot.polytopes.arrays import numbers
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.settings import counts
from spigot.pullback.downstream import Downstream
from spigot.pullback.noise import Noise
from spigot.pullback.reduction import Reduction, check_reduction, divisor
from spigot.pullback.roads import Solutions, road
from spigot.pullback.slope import Slope, column

__all__ = ["Estimator"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimator:
    """A recipe for the backward of `spigot.layers.Argmax`.

    It takes the upstream gradient to the surrogate gradient of the scores, both `(*batch, *event)`.

    Args:
        forward: what the layer returns: None for MAP (a vertex), or maximize(M, s, forward).
        noise: added to the scores in train mode, in the forward and in the backward alike: the
            forward is then perturb-and-MAP.
        samples: over how many draws of the noise the surrogate gradient is a mean; the forward's
            value is that of the first.
        reduction: what the loss was divided by: "mean" (the number of instances), "sum" (1), a
            number, a 0-dim tensor, or a callable that returns one. g is multiplied by it first
            and the surrogate divided by it last, so step sizes do not depend on the batch size.
        residual: with `downstream`, whether the part of the upstream gradient that the closure does
            not see is kept.
        name: how it prints.

    Raises:
        ValueError: samples below 1, or several without noise; a reduction that is none.
        TypeError: samples that are no whole number, or noise that is no `Noise`.

    Example:
        One of your own is a class with `surrogate`, given the scores' solutions and g:

        >>> from dataclasses import dataclass
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Gibbs, Simplex
        >>> from spigot.pullback import Estimator
        >>> @dataclass(frozen=True, kw_only=True, repr=False)
        ... class Damped(Estimator):  # g, less where the marginals are small
        ...     def surrogate(self, solutions, slope):
        ...         p = solutions.at(Gibbs()).value
        ...         return p * slope.at(solutions.at(self.forward).value)
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> Argmax(Simplex(2), Damped())(scores)[0].backward()
        >>> scores.grad
        tensor([0.5000, 0.0000])
    """

    forward: Regularizer | None = None
    noise: Noise | None = None
    samples: int = 1
    reduction: Reduction = "mean"
    residual: bool = True
    name: str = ""

    rows: ClassVar[dict[str, dict[str, Any]]] = {}
    """By name, what a named estimator sets."""

    def __post_init__(self) -> None:
        check_reduction(self.reduction)
        counts(self, samples=self.samples)
        if not isinstance(self.noise, Noise | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"noise must be an object such as Gumbel(), got {self.noise!r}.")
        if self.samples > 1 and self.noise is None:
            raise ValueError(
                f"samples={self.samples} without noise would all be the same: give noise=Gumbel(), say."
            )

    def __repr__(self) -> str:
        name = self.name or type(self).__name__
        row = self.rows.get(name, {})
        shown: list[str] = []
        for field in sorted(fields(self), key=_order):
            usual = row.get(field.name, field.default)
            if field.name == "name":
                continue
            if field.name == "step_size" or not _same(getattr(self, field.name), usual):
                shown.append(self._spelled(field.name, usual))
        return f"{name}({', '.join(shown)})"

    def _spelled(self, field: str, usual: object) -> str:
        return f"{field}={_shown(getattr(self, field))}"

    def check(self, polytope: Polytope) -> None:
        """Raises UnsupportedProblem where the polytope cannot do what this needs."""
        road(polytope, self.forward)

    def check_downstream(self, downstream: object) -> None:
        """Raises ValueError where `downstream` is needed and missing."""

    def draw(self, problem: Problem, generator: torch.Generator | None) -> tuple[Tensor, ...]:
        """The noise of each sample, `(n, *event)`: none without noise.

        Args:
            problem: the batch.
            generator: for the draws.
        """
        if self.noise is None:
            return ()
        scores = problem.scores.detach()
        draws = self.noise.draw((self.samples, *scores.shape), scores, generator)
        return tuple(draws if problem.mask is None else torch.where(problem.mask, draws, 0.0))

    def backward(
        self,
        problem: Problem,
        forward: Solution,
        grad: Tensor,
        downstream: Downstream | None = None,
        draws: tuple[Tensor, ...] = (),
    ) -> Tensor:
        """The surrogate gradient of the scores.

        Args:
            problem: the flat scores `(n, *event)` and masks, without noise.
            forward: the layer's solution.
            grad: the upstream gradient G `(n, *event)`.
            downstream: the loss as a function of the structure.
            draws: the noise, the forward's first.

        Returns:
            `(n, *event)`; NaN for instances with a non-finite gradient.
        """
        scale = divisor(self.reduction, problem.size, grad)
        slope = Slope(problem, forward.value, grad * scale, downstream, self.residual)
        total = self.surrogate(_noisy(problem, draws, 0, ((self.forward, forward),)), slope)
        for sample in range(1, len(draws)):
            total = total + self.surrogate(_noisy(problem, draws, sample), slope)
        mean = (total / max(len(draws), 1)).masked_fill(column(slope.bad, total), torch.nan)
        self.record(mean)
        return (mean / scale).to(problem.scores)  # a road may work in float64

    def surrogate(self, solutions: Solutions, slope: Slope) -> Tensor:
        """The surrogate gradient at one batch of scores, not yet divided, `(n, *event)`.

        Args:
            solutions: `solutions.at(regularizer)` is the `Solution` at these scores, found once.
            slope: `slope.at(mu)` is g, the gradient of each instance's own loss, `(n, *event)`.
        """
        raise NotImplementedError

    def record(self, surrogate: Tensor) -> None:
        """Called with each backward's surrogate, for what adapts."""


def _noisy(
    problem: Problem,
    draws: tuple[Tensor, ...],
    sample: int,
    known: tuple[tuple[Regularizer | None, Solution], ...] = (),
) -> Solutions:
    if draws:
        problem = problem.with_scores(problem.scores + draws[sample])
    return Solutions(problem, known)


def _order(field: Any) -> int:
    """What is common to all comes last, but for the forward."""
    return field.name != "forward" and field.name in Estimator.__annotations__


def _shown(value: object) -> str:
    """A function by its name, a tensor by its numbers, anything else by its repr."""
    if isinstance(value, Tensor):
        return f"tensor({numbers(value)})" if value.numel() <= 4 else f"tensor of {tuple(value.shape)}"
    return getattr(value, "__name__", repr(value))


def _same(value: object, default: object) -> bool:
    return value is default or (not isinstance(value, Tensor) and bool(value == default))
