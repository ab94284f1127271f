"""How long a projection takes to a gap: from nothing, and from a slightly older solution."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.workload import FORWARD, Check, Family, Kind, Method, Workload, largest
from spigot.polytopes import Arborescence, Euclidean, Polytope, Regularizer, Sequence
from spigot.polytopes.solvers import ActiveSet

GAPS = (1e-2, 1e-4, 1e-8)
OLDER = 0.01  # how far the scores have moved since, relative to their N(0, 1)


def _structures(smoke: bool) -> Iterator[tuple[str, Polytope, Regularizer, int]]:
    for n in (5,) if smoke else (20, 40):
        yield f"tree of {n}", Arborescence(n), Euclidean(), 2 if smoke else 16
    size = 4 if smoke else 20
    yield f"chain {size} x {size}", Sequence(size, size), Euclidean(of=Sequence.tags), 2 if smoke else 16


def _anytime(smoke: bool) -> Iterator[Workload]:
    for name, polytope, omega, batch in _structures(smoke):
        generator = torch.Generator().manual_seed(batch)
        shape = (batch, *polytope.event_shape)
        scores = torch.randn(shape, dtype=torch.float64, generator=generator)
        before = scores + OLDER * torch.randn(shape, dtype=torch.float64, generator=generator)
        for gap in GAPS:
            methods = tuple(_methods(polytope, omega, scores, before, gap))
            yield Workload({"structure": name, "gap": gap}, methods)


def _methods(
    polytope: Polytope, omega: Regularizer, scores: Tensor, before: Tensor, gap: float
) -> Iterator[Method]:
    solver = ActiveSet(tolerance=gap)
    older = polytope.solve(before, omega, solver=solver)
    roads: dict[str, Callable[[], Tensor]] = {
        "active set, warm": lambda: polytope.maximize(scores, omega, solver=solver, start=older),
        "active set, cold": lambda: polytope.maximize(scores, omega, solver=solver),
        polytope.which(omega).rule: lambda: polytope.maximize(scores, omega),
    }
    for name, road in roads.items():
        kind = Kind.OURS if name.endswith("warm") else Kind.PEER

        def reached(road: Callable[[], Tensor] = road) -> float:
            y = road()
            energy = (scores * y).flatten(1).sum(1)
            return largest(polytope.gap(y, scores, omega) / (1 + energy.abs())) / gap

        yield Method(name, kind, {FORWARD: road}, len(scores), reached)


FAMILIES = (
    Family(
        "trees-anytime",
        (
            Check(
                "gap / asked",
                "the certificate relative to 1 + |<s, y>| as a multiple of the gap asked for; N(0,"
                " 1) scores, float64, an older solution's 1% away; the fast rule has one answer, "
                "an exact one; lp-sparsemap cannot be installed, so its 50 steps are not here",
                1.0,
            ),
        ),
        _anytime,
        curve="gap",
        seconds=85,
    ),
)
