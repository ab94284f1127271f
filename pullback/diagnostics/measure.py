"""What is said about one estimator on one problem."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes import UnsupportedProblem
from spigot.polytopes.settings import POSITIVE, counts
from spigot.polytopes.solvers import ActiveSet
from spigot.polytopes.tally import tally
from spigot.pullback.diagnostics.bench import Bench, seeded
from spigot.pullback.diagnostics.probe import Estimated, chunked, estimate, noise_of, resting
from spigot.pullback.diagnostics.stated import Exact
from spigot.pullback.estimator import Estimator

__all__ = [
    "Protocol",
    "Reading",
    "Row",
    "cosine_of",
    "measure",
    "norm_of",
    "null_share",
    "ratio",
    "sizes",
]

TRIED = 16  # draws along which a step is taken: each evaluates the objective


@dataclass(frozen=True)
class Reading:
    """One estimator with one knob turned.

    Attributes:
        knob: `step size`, `batch` or `tolerance`.
        value: what it was set to.
        cosine: as in the row.
        null: as in the row.
        change: how far the gradient moved, |g' - g| / |g| with the same draws; NaN where g is 0.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import BlackBox
        >>> from spigot.pullback.diagnostics import compare
        >>> scores, costs = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.0, 0.0])
        >>> found = compare(Simplex(3), scores, lambda mu: mu @ costs, [BlackBox()])
        >>> [found.rows[0].reading("step size", size).null for size in (0.1, 10.0)]
        [1.0, 0.0]
    """

    knob: str
    value: float
    cosine: float
    null: float
    change: float


@dataclass(frozen=True)
class Row:
    r"""One estimator's surrogate g against the exact gradient G, over a batch of n instances.

    All gradients are those of each instance's own loss. Norms and sums are over the whole batch;
    shares and cosines are means over the instances where G is not 0. NaN where there is none.

    Attributes:
        case: the problem's name.
        estimator: its name.
        bias: \|E g - G\| / \|G\|, E the mean over the draws.
        bias_error: what of the bias is to be expected of an unbiased estimator: the standard error of
            the mean and of G, over \|G\|.
        variance: E \|g - E g\|^2 / \|G\|^2; 0 without randomness.
        cosine: of E g with G; 0 where E g is 0.
        draw_cosine: of a single draw with G, in the mean.
        norm: \|E g\| / \|G\|.
        null: the share of gradients that are exactly 0.
        falls: the share of single draws, of the first 16, along which a step lowers the objective.
        draws: how many the means are over; 1 without randomness.
        solves: what a forward and a backward ask of the polytope, an instance each, by the
            regularizer's name (`MAP`, `Gibbs`, `sample`).
        seconds: of a forward and a backward over the whole batch, the loss's evaluations included.
        readings: sensitivity to step size, batch size and solver tolerance.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STEMarginals
        >>> from spigot.pullback.diagnostics import compare
        >>> scores, costs = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.0, 0.0])
        >>> row = compare(Simplex(3), scores, lambda mu: mu @ costs, [STEMarginals()]).rows[0]
        >>> round(row.bias, 6), round(row.cosine, 6)  # exact for a loss that is linear
        (0.0, 1.0)
        >>> row.solves
        (('Gibbs', 1.0), ('MAP', 1.0))
    """

    case: str
    estimator: str
    bias: float
    bias_error: float
    variance: float
    cosine: float
    draw_cosine: float
    norm: float
    null: float
    falls: float
    draws: int
    solves: tuple[tuple[str, float], ...]
    seconds: float
    readings: tuple[Reading, ...] = ()

    def reading(self, knob: str, value: float) -> Reading | None:
        """The reading at one setting, None where it was not measured.

        Args:
            knob: `step size`, `batch` or `tolerance`.
            value: what it was set to.
        """
        found = (each for each in self.readings if (each.knob, each.value) == (knob, value))
        return next(found, None)


@dataclass(frozen=True)
class Protocol:
    """How a comparison is made; the arguments of `compare`."""

    samples: int = 64
    step: float = 1.0
    step_sizes: Sequence[float] = (0.1, 1.0, 10.0)
    batch_sizes: Sequence[int] = (1,)
    tolerances: Sequence[float] = (1e-2,)
    reduction: str = "mean"
    downstream: bool = False

    def __post_init__(self) -> None:
        counts(self, 2, samples=self.samples)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {self.reduction!r}.')
        for name in ("step_sizes", "batch_sizes", "tolerances"):
            wrong = [each for each in getattr(self, name) if not each > 0]
            if wrong:
                raise ValueError(f"{name} must be positive, got {wrong[0]}.")
        POSITIVE.check(self, step=self.step)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Gradients of the same seeds, `(draws, n, d)` in float64, and what the first one cost."""

    gradients: Tensor
    random: bool
    solves: Counter[str]
    seconds: float


def measure(
    name: tuple[str, str],
    estimated: Estimated,
    bench: Bench,
    exact: Exact,
    protocol: Protocol,
    seeds: Sequence[int],
) -> Row:
    """One row of the table.

    Args:
        name: of the case and of the estimator.
        estimated: the estimator.
        bench: the problem.
        exact: the gradient that it is held against.
        protocol: how.
        seeds: the random states of the draws, the same for all estimators.
    """
    n = bench.problem.size
    drawn = _drawn(resting(estimated), bench, protocol, seeds)
    found, true = drawn.gradients, exact.gradient.flatten(1)
    mean, size = found.mean(0), norm_of(true)
    spread = found.var(0).sum() if len(found) > 1 else size.new_zeros(())
    error = (spread / len(found) + (exact.error**2).sum()).sqrt()
    return Row(
        *name,
        bias=ratio(norm_of(mean - true), size),
        bias_error=ratio(error, size),
        variance=ratio(spread, size**2),
        cosine=cosine_of(mean[None], true),
        draw_cosine=cosine_of(found, true),
        norm=ratio(norm_of(mean), size),
        null=null_share(found, true),
        falls=_falls(found, exact, bench, protocol.step),
        draws=len(found),
        solves=tuple((kind, count / n) for kind, count in sorted(drawn.solves.items())),
        seconds=drawn.seconds,
        readings=tuple(_readings(estimated, bench, true, drawn, protocol, seeds)),
    )


def _drawn(estimated: Estimated, bench: Bench, protocol: Protocol, seeds: Sequence[int]) -> _Drawn:
    """A draw a seed; a single one where no randomness was used."""
    device = bench.problem.scores.device
    found: list[Tensor] = []
    seconds: list[float] = []
    used = False
    spent: Counter[str] = Counter()
    for seed in seeds:
        with seeded(seed, device), tally() as solves:
            before, started = _random_state(device), time.perf_counter()
            gradient = _whole(estimated, bench, protocol)
            seconds.append(time.perf_counter() - started)
            used = used or any(
                not torch.equal(*pair) for pair in zip(before, _random_state(device), strict=True)
            )
        spent = spent if found else solves
        found.append(gradient)
        if not used and len(found) == 2:  # the first was there to warm up
            break
    gradients = torch.stack(found if used else found[:1])
    return _Drawn(gradients, used, spent, min(seconds))


def _random_state(device: torch.device) -> tuple[Tensor, ...]:
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


def _whole(estimated: Estimated, bench: Bench, protocol: Protocol) -> Tensor:  # (n, d)
    scale = float(bench.problem.size) if protocol.reduction == "mean" else 1.0
    draws = noise_of(estimated, bench)
    return estimate(estimated, bench, scale, draws, protocol.downstream).double().flatten(1)


def _readings(
    estimated: Estimated,
    bench: Bench,
    true: Tensor,
    drawn: _Drawn,
    protocol: Protocol,
    seeds: Sequence[int],
) -> Iterator[Reading]:
    """Every knob that this estimator has, at every setting."""

    def read(knob: str, value: float, found: Tensor) -> Reading:
        change = ratio(
            norm_of(found - drawn.gradients[: len(found)]), norm_of(drawn.gradients[: len(found)])
        )
        return Reading(
            knob, float(value), cosine_of(found.mean(0)[None], true), null_share(found, true), change
        )

    for knob, value, turned in _turned(estimated, bench, protocol):
        used = seeds if drawn.random else seeds[:1]
        found = _each(turned, used, bench, lambda one: _whole(one, bench, protocol))
        yield read(knob, value, found)
    if drawn.random and not isinstance(estimated, Estimator):
        return  # its draws for a part of the batch would be others
    for size in protocol.batch_sizes:
        if protocol.reduction == "mean" and not _per_instance(estimated):
            yield read("batch", size, _each(estimated, seeds[:1], bench, _chunks(bench, size, protocol)))


def _each(
    estimated: Estimated, seeds: Sequence[int], bench: Bench, one: Callable[[Estimated], Tensor]
) -> Tensor:
    """A gradient a seed."""
    at_rest, found = resting(estimated), list[Tensor]()
    for seed in seeds:
        with seeded(seed, bench.problem.scores.device):
            found.append(one(at_rest))
    return torch.stack(found)


def _chunks(bench: Bench, size: int, protocol: Protocol) -> Callable[[Estimated], Tensor]:
    def one(estimated: Estimated) -> Tensor:
        draws = noise_of(estimated, bench)
        return chunked(estimated, bench, int(size), draws, protocol.downstream).double().flatten(1)

    return one


def _turned(
    estimated: Estimated, bench: Bench, protocol: Protocol
) -> Iterator[tuple[str, float, Estimator]]:
    """The estimator with other step sizes and with solvers of other tolerances, where it has them."""
    settings: list[tuple[str, str, float, Any]] = [
        ("step size", "step_size", value, float(value)) for value in protocol.step_sizes
    ]
    settings += [
        ("tolerance", "solver", value, ActiveSet(tolerance=float(value)))
        for value in protocol.tolerances
    ]
    for knob, field, value, setting in settings:
        if not isinstance(estimated, Estimator) or not hasattr(estimated, field):
            continue
        turned = replace(estimated, **{field: setting})
        try:
            turned.check(bench.polytope)
        except UnsupportedProblem:  # that solver does not solve what this one asks
            continue
        yield knob, value, turned


def _per_instance(estimated: Estimated) -> bool:
    step_size: Any = getattr(estimated, "step_size", None)
    return isinstance(step_size, Tensor) and step_size.dim() > 0


def sizes(values: Tensor) -> Tensor:
    """Norms along the last dimension."""
    return (values * values).sum(-1).sqrt()


def norm_of(values: Tensor) -> Tensor:
    """The Euclidean norm of all numbers."""
    return (values * values).sum().sqrt()


def ratio(part: Tensor, whole: Tensor) -> float:
    """NaN where there is no whole."""
    return part.item() / whole.item() if whole.item() else torch.nan


def cosine_of(found: Tensor, true: Tensor) -> float:  # (r, n, d), (n, d)
    """The mean cosine over instances whose true gradient is not 0; that of 0 is 0."""
    size, live = sizes(found) * sizes(true), _live(true)
    cosine = (found * true).sum(2) / size.masked_fill(size == 0, 1.0)
    return cosine[:, live].mean().item()


def null_share(found: Tensor, true: Tensor) -> float:  # (r, n, d), (n, d)
    """The share of gradients that are exactly 0, among instances whose true one is not."""
    return (found == 0).all(2)[:, _live(true)].double().mean().item()


def _falls(found: Tensor, exact: Exact, bench: Bench, step: float) -> float:
    """The share of draws along which a step as long as `step` times G lowers the objective."""
    true = exact.gradient.flatten(1)
    live = _live(true)
    scores = bench.problem.scores.double()
    shares: list[Tensor] = []
    for gradient in found[:TRIED]:
        length = sizes(gradient)
        way = gradient * (step * sizes(true) / length.masked_fill(length == 0, 1.0))[:, None]
        shares.append((exact.value(scores - way.reshape(scores.shape)) < exact.here)[live])
    return torch.stack(shares).double().mean().item()


def _live(true: Tensor) -> Tensor:
    return (true != 0).any(1)
