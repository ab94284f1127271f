"""Sparsemax and 1.5-entmax over rows, and the projection onto subsets of k."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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
from spigot.polytopes import Euclidean, Regularizer, Simplex, Subset, Tsallis

ROWS = 1024


def _rows(d: int, rows: int) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(d))


def _over_simplex(
    omega: Regularizer, peer_name: str, targets: Callable[[int], tuple[Target, ...]]
) -> Callable[[bool], Iterator[Workload]]:
    def workloads(smoke: bool) -> Iterator[Workload]:
        for d in (20,) if smoke else (100, 1000, 10_000, 32_000):
            scores = _rows(d, 8 if smoke else ROWS)
            yield Workload({"d": d}, tuple(_methods(omega, peer_name, scores)), targets(d))

    return workloads


def _methods(omega: Regularizer, peer_name: str, scores: Tensor) -> Iterator[Method]:
    n, d = scores.shape
    polytope = Simplex(d)
    few = scores[:16]
    expected = polytope.maximize(few.double(), omega)

    def ours(s: Tensor) -> Tensor:
        return polytope.maximize(s, omega)

    def wrong(function: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        return lambda: largest(function(few).double() - expected)

    yield Method("spigot", Kind.OURS, calls(ours, scores), n, wrong(ours))
    entmax = peer("entmax")
    if entmax:
        function = getattr(entmax, peer_name)

        def theirs(s: Tensor) -> Tensor:
            return function(s, -1)

        yield Method(f"entmax.{peer_name}", Kind.PEER, calls(theirs, scores), n, wrong(theirs))
    yield Method("torch.softmax", Kind.BOUND, calls(lambda s: s.softmax(-1), scores), n)


def _sparsemax_targets(d: int) -> tuple[Target, ...]:
    bound = {1000: 2.5, 32_000: 1.0}.get(d)
    if bound is None:
        return ()
    return (
        Target("entmax.sparsemax", FORWARD, at_least=20),
        Target("torch.softmax", FORWARD, at_most=bound),
        Target("entmax.sparsemax", BOTH, at_least=15),
    )


def _entmax_targets(d: int) -> tuple[Target, ...]:
    if d not in (1000, 32_000):
        return ()
    return tuple(Target("entmax.entmax15", measure, at_least=10) for measure in (FORWARD, BOTH))


def _subsets(smoke: bool) -> Iterator[Workload]:
    """A tenth of the parts, in single and, where they are few, double precision."""
    for d in (20,) if smoke else (100, 1000, 10_000):
        for dtype in (torch.float32, torch.float64) if d <= 1000 else (torch.float32,):
            scores = _rows(d, 8 if smoke else 128).to(dtype)
            targets = (Target("entmax.budget_bisect", at_least=8),) if d == 1000 else ()
            sizes = {"d": d, "dtype": str(dtype).removeprefix("torch.")}
            yield Workload(sizes, tuple(_subset_methods(d // 10, scores)), targets)


def _subset_methods(k: int, scores: Tensor) -> Iterator[Method]:
    n, d = scores.shape
    polytope = Subset(d, k)
    expected = polytope.project(scores.double())

    def wrong(function: Callable[[Tensor], Tensor]) -> Callable[[], float]:
        return lambda: largest(function(scores).double() - expected)

    yield Method("spigot", Kind.OURS, calls(polytope.project, scores), n, wrong(polytope.project))
    entmax = peer("entmax")
    if entmax:

        def theirs(s: Tensor) -> Tensor:
            return entmax.budget_bisect(s, k, dim=-1)

        yield Method("entmax.budget_bisect", Kind.PEER, calls(theirs, scores), n, wrong(theirs))
    top = calls(lambda s: s.topk(k, -1), scores, backward=False)
    yield Method("torch.topk", Kind.BOUND, top, n)


_ONCE = "a row is read once, at memory's pace; a call's and a row's own costs weigh at d = 100"

FAMILIES = (
    Family(
        "sparsemax",
        (
            Check(
                "error",
                "largest |y - y64|, float32 against our own answer in float64 (itself tested "
                "against cvxpy)",
                1e-5,
            ),
        ),
        _over_simplex(Euclidean(), "sparsemax", _sparsemax_targets),
        (Growth("d", 1.0, note=_ONCE), Growth("d", 1.0, BOTH, _ONCE)),
        seconds=115,
    ),
    Family(
        "entmax15",
        (
            Check(
                "error",
                "largest |y - y64|, float32 against our own answer in float64 (itself tested "
                "against cvxpy)",
                1e-5,
            ),
        ),
        _over_simplex(Tsallis(1.5), "entmax15", _entmax_targets),
        (Growth("d", 1.0, note=_ONCE), Growth("d", 1.0, BOTH, _ONCE)),
        seconds=125,
    ),
    Family(
        "subset",
        (
            Check(
                "error",
                "largest |y - y64|, against our own answer in float64 (itself tested against cvxpy)",
                1e-5,
            ),
        ),
        _subsets,
        (Growth("d", 1.0, note=_ONCE), Growth("d", 1.0, BOTH, _ONCE)),
        seconds=65,
    ),
)
