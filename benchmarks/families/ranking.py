"""Soft ranks and soft sorts by projections onto the permutahedron."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.peers import peer
from benchmarks.workload import (
    BOTH,
    FORWARD,
    Check,
    Family,
    Growth,
    Kind,
    Method,
    Target,
    Workload,
    calls,
    largest,
)
from spigot.layers import SoftRank, SoftSort

ROWS = 128
LAYERS: dict[str, Callable[[], nn.Module]] = {"soft_rank": SoftRank, "soft_sort": SoftSort}


def _workloads(smoke: bool) -> Iterator[Workload]:
    for d in (10,) if smoke else (10, 100, 1000):
        scores = torch.randn(8 if smoke else ROWS, d, generator=torch.Generator().manual_seed(d))
        for verb, layer in LAYERS.items():
            targets = (
                Target(f"torchsort.{verb}", FORWARD, at_least=1.3),
                Target(f"torchsort.{verb}", BOTH, at_least=1.3),
                Target("torch.argsort", at_most=1.3),
            )
            yield Workload({"verb": verb, "d": d}, tuple(_methods(verb, layer(), scores)), targets)


def _methods(verb: str, layer: nn.Module, scores: Tensor) -> Iterator[Method]:
    n = len(scores)
    expected = layer(scores.double())

    def wrong(function: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        return lambda: largest((function(scores).double() - expected) / expected.abs().max())

    yield Method("spigot", Kind.OURS, calls(layer, scores), n, wrong(layer))
    torchsort = peer("torchsort")
    if torchsort:
        function = getattr(torchsort, verb)
        yield Method(f"torchsort.{verb}", Kind.PEER, calls(function, scores), n, wrong(function))
    bound = calls(lambda s: s.argsort(-1), scores, backward=False)
    yield Method("torch.argsort", Kind.BOUND, bound, n)


_SORT = "d log d is a power of 1.2 or so here; a call's own costs weigh at d = 10"

FAMILIES = (
    Family(
        "permutahedron",
        (
            Check(
                "error",
                "largest |y - y64| over the largest |y64|, against our own answer in float64",
                1e-5,
            ),
        ),
        _workloads,
        (Growth("d", 1.2, note=_SORT), Growth("d", 1.2, BOTH, _SORT)),
        seconds=95,
    ),
)
