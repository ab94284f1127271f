"""What is measured: families of workloads, the methods that do each, and the ratios to reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "BOTH",
    "FORWARD",
    "Check",
    "Family",
    "Growth",
    "Kind",
    "Method",
    "Scaled",
    "Target",
    "Workload",
    "calls",
    "largest",
]

FORWARD = "forward"
BOTH = "forward + backward"


class Kind(Enum):
    """What a method is to us."""

    OURS = "ours"
    PEER = "peer"
    BOUND = "bound"
    SCALED = "scaled"


@dataclass(frozen=True)
class Method:
    """One way to do a workload.

    Args:
        name: as the table prints it.
        kind: ours (the first one is what ratios are taken to), a peer, or a lower bound.
        calls: by measure (`FORWARD`, `BOTH` or a name of the family's own), a function that does it
            once for the first `instances` of the batch.
        instances: how many instances a call does; times are an instance's.
        error: the answer's figures, one for each of the family's checks; None for a bound.
    """

    name: str
    kind: Kind
    calls: Mapping[str, Callable[[], object]]
    instances: int = 1
    error: Callable[[], float | tuple[float, ...]] | None = None


@dataclass(frozen=True)
class Scaled:
    """A peer that is not at hand, as a multiple of one that is, measured together elsewhere."""

    name: str
    of: str
    factor: float
    measure: str = FORWARD


@dataclass(frozen=True)
class Target:
    """A ratio to reach: a peer's time over ours `at_least`, or ours over a bound's `at_most`."""

    method: str
    measure: str = FORWARD
    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Growth:
    """How our cost should grow with a size: time ~ size^expected, the others held fixed.

    `note` explains a fitted exponent that differs.
    """

    axis: str
    expected: float
    measure: str = FORWARD
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """One line of a family: its sizes, the methods, ours first, and the targets."""

    sizes: Mapping[str, int | float | str]
    methods: tuple[Method, ...]
    targets: tuple[Target, ...] = ()
    scaled: tuple[Scaled, ...] = ()

    @property
    def name(self) -> str:
        """The sizes, as text."""
        return ", ".join(f"{key} = {size}" for key, size in self.sizes.items())


@dataclass(frozen=True)
class Check:
    """A column beside the times: its heading, what it says of an answer, the most that ours may have."""

    column: str
    says: str
    most: float


@dataclass(frozen=True)
class Family:
    """Workloads of one kind.

    Args:
        name: what `--only` selects.
        checks: what stands beside a time: an error, a certificate.
        workloads: made one at a time; with `smoke` few and small.
        growth: the axes along which our cost is fitted.
        threads: how many threads to measure with, where more than the command's make no sense.
        curve: a size along which every method's time is drawn, in a figure of the family's own.
        seconds: how long it takes for one number of threads, about; what the time left is told by.
    """

    name: str
    checks: tuple[Check, ...]
    workloads: Callable[[bool], Iterator[Workload]]
    growth: tuple[Growth, ...] = field(default=())
    threads: tuple[int, ...] | None = None
    curve: str = ""
    seconds: float = 10.0


def calls(
    function: Callable[[Tensor], Any], scores: Tensor, *, backward: bool = True
) -> dict[str, Callable[[], object]]:
    """A differentiable function's two measures; the gradient of its value is a fixed N(0, 1)."""
    leaf = scores.detach().clone().requires_grad_()
    upstream: list[Tensor] = []

    def forward() -> object:
        with torch.no_grad():
            return function(scores)

    def both() -> object:
        leaf.grad = None
        value = function(leaf)
        if not upstream:
            generator = torch.Generator().manual_seed(1)
            upstream.append(torch.randn(value.shape, generator=generator).to(value))
        value.backward(upstream[0])
        return leaf.grad

    return {FORWARD: forward, BOTH: both} if backward else {FORWARD: forward}


def largest(difference: Tensor) -> float:
    """The largest part of a difference, as an error."""
    return float(difference.detach().double().abs().max()) if difference.numel() else 0.0
