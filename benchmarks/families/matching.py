"""Doubly stochastic matrices: the projection, Sinkhorn's scaling, and the assignment itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
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
from spigot.polytopes import Euclidean, Matching, Regularizer, Shannon
from spigot.polytopes.arrays import library, tensor

BATCH = 32
SIZES = (5, 10, 20, 50)
CHECKED = 2  # instances that Clarabel solves
OSQP_NEAR = {"eps_abs": 1e-10, "eps_rel": 1e-10, "max_iter": 20_000}
OSQP_USUAL = {"eps_abs": 1e-6, "eps_rel": 1e-6, "max_iter": 20_000}
SCALING = 1e-9  # the marginal error at which POT stops


def _scores(n: int, batch: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return scale * torch.randn(batch, n, n, generator=generator, dtype=torch.float64)


def _ours(n: int, omega: Regularizer | None) -> Callable[[Tensor], Tensor]:
    polytope = Matching(n)
    return lambda scores: polytope.maximize(scores, omega)


def _sums(n: int) -> Any:  # (2n, n^2), sparse
    """The matrix of all row sums and column sums."""
    sp = library("scipy.sparse")
    one, every = np.ones((1, n)), sp.identity(n)
    return sp.vstack([sp.kron(every, one), sp.kron(one, every)], format="csc")


# --- the Euclidean projection ------------------------------------------------------------------------


def _projection(smoke: bool) -> Iterator[Workload]:
    for n in (4,) if smoke else SIZES:
        scores = _scores(n, 4 if smoke else BATCH)
        ours = _ours(n, Euclidean())
        methods = [Method("spigot", Kind.OURS, calls(ours, scores), len(scores), _wrong(scores, ours))]
        targets: list[Target] = []
        for name, settings in (("OSQP, as near as it gets", OSQP_NEAR), ("OSQP at 1e-6", OSQP_USUAL)):
            if peer("OSQP"):
                theirs = _osqp(n, settings)
                call = calls(theirs, scores, backward=False)
                methods.append(Method(name, Kind.PEER, call, len(scores), _wrong(scores, theirs)))
            targets.append(Target(name, at_least=15))
        yield Workload({"n": n}, tuple(methods), tuple(targets))


def _wrong(scores: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[], tuple[float, float]]:
    """The distance of the first instances from Clarabel's answer, and the certificate of all."""

    def figures() -> tuple[float, float]:
        found, n = function(scores), scores.shape[1]
        expected = torch.stack([_clarabel(row) for row in scores[:CHECKED]])
        gap = Matching(n).gap(found, scores, Euclidean())
        outside = (found.sum(1) - 1, found.sum(2) - 1, found.clamp_max(0.0))
        relative = largest(gap / (1 + (scores * found).sum((1, 2)).abs()))
        return largest(found[:CHECKED] - expected), max(relative, *map(largest, outside))

    return figures


def _clarabel(scores: Tensor) -> Tensor:  # (n, n) -> (n, n)
    """The projection, by an interior point method at tolerances of 1e-12."""
    clarabel, sp = library("clarabel"), library("scipy.sparse")
    n = len(scores)
    rows = sp.vstack([_sums(n)[:-1], -sp.identity(n * n)], format="csc")
    limits = np.concatenate([np.ones(2 * n - 1), np.zeros(n * n)])
    settings: Any = clarabel.DefaultSettings()
    settings.verbose = False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = 1e-12
    cones = [clarabel.ZeroConeT(2 * n - 1), clarabel.NonnegativeConeT(n * n)]
    linear = -scores.numpy().ravel()
    solver = clarabel.DefaultSolver(
        sp.identity(n * n, format="csc"), linear, rows, limits, cones, settings
    )
    return tensor(np.array(solver.solve().x)).reshape(n, n)


def _osqp(n: int, settings: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Its own API: set up once, then a new linear term an instance."""
    sp = library("scipy.sparse")
    rows = sp.vstack([_sums(n), sp.identity(n * n)], format="csc")
    low = np.concatenate([np.ones(2 * n), np.zeros(n * n)])
    high = np.concatenate([np.ones(2 * n), np.full(n * n, np.inf)])
    solver: Any = library("osqp").OSQP()
    quadratic = sp.identity(n * n, format="csc")
    solver.setup(quadratic, np.zeros(n * n), rows, low, high, verbose=False, **settings)

    def solve(scores: Tensor) -> Tensor:
        found = np.empty((len(scores), n * n))
        for i, row in enumerate(scores.numpy()):
            solver.update(q=-row.ravel())
            found[i] = solver.solve().x
        return tensor(found).reshape(scores.shape)

    return solve


# --- the entropic one --------------------------------------------------------------------------------


def _shannon(smoke: bool) -> Iterator[Workload]:
    for scale, sizes in ((1.0, (4,)),) if smoke else ((1.0, SIZES), (4.0, (20,))):
        for n in sizes:
            scores = _scores(n, 4 if smoke else BATCH, scale)
            ours = _ours(n, Shannon())
            own = Method("spigot", Kind.OURS, calls(ours, scores), len(scores), _residual(scores, ours))
            peers = [
                Method(name, Kind.PEER, calls(theirs, scores), len(scores), _residual(scores, theirs))
                for name, theirs in (_pot() if peer("POT") else {}).items()
            ]
            targets = [
                Target(method.name, measure, at_least=5)
                for method in peers
                for measure in (FORWARD, BOTH)
                if scale == 1.0
            ]
            yield Workload({"n": n, "scale": scale}, (own, *peers), tuple(targets))


def _pot() -> dict[str, Callable[[Tensor], Tensor]]:
    ot, batch = peer("POT"), peer("POT", "batch")
    assert ot is not None

    def looped(scores: Tensor) -> Tensor:
        ones = scores.new_ones(scores.shape[1])
        plans = [ot.sinkhorn(ones, ones, -s, 1.0, stopThr=SCALING, numItermax=100_000) for s in scores]
        return torch.stack(plans)

    def batched(scores: Tensor) -> Tensor:
        ones, options = scores.new_ones(scores.shape[:2]), {"tol": SCALING, "max_iter": 100_000}
        grad = "autodiff" if scores.requires_grad else "detach"
        assert batch is not None
        return batch.solve_batch(-scores, 1.0, ones, ones, method="sinkhorn", grad=grad, **options).plan

    return {"ot.sinkhorn": looped} | ({"ot.batch.solve_batch": batched} if batch else {})


def _residual(scores: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[], float]:
    """How far all sums are from 1, and log y - s from a sum of one term a row and one a column."""

    def error() -> float:
        found = function(scores)
        sums = max(largest(found.sum(1) - 1), largest(found.sum(2) - 1))
        rest = found.log() - scores
        return max(sums, largest(rest - rest[:, :1] - rest[:, :, :1] + rest[:, :1, :1]))

    return error


# --- the assignment itself ---------------------------------------------------------------------------


def _map(smoke: bool) -> Iterator[Workload]:
    for n in (4,) if smoke else (*SIZES, 100, 200):
        scores = _scores(n, 4 if smoke else BATCH)
        ours, bound = _ours(n, None), _assignments
        expected = (scores * bound(scores)).sum((1, 2))

        def short(
            scores: Tensor = scores,
            ours: Callable[[Tensor], Tensor] = ours,
            expected: Tensor = expected,
        ) -> float:
            return largest((scores * ours(scores)).sum((1, 2)) - expected)

        own = Method("spigot", Kind.OURS, calls(ours, scores, backward=False), len(scores), short)
        scipys = calls(bound, scores, backward=False)
        yield Workload({"n": n}, (own, Method(SCIPY, Kind.BOUND, scipys, len(scores))))


SCIPY = "scipy.optimize.linear_sum_assignment"


def _assignments(scores: Tensor) -> Tensor:
    solve = library("scipy.optimize").linear_sum_assignment
    found = np.zeros(scores.shape)
    for matrix, row in zip(found, scores.numpy(), strict=True):
        matrix[solve(row, maximize=True)] = 1.0
    return tensor(found)


_SWEEPS = "a call's own cost is most of it up to n = 20; rows fill vectors better with n: 1.5 above 50"
_SOLVED = "as the forward up to n = 20; n^3 / 3 of elimination is still small: n^1.7 from 50 to 100"
_ASSIGNED = "n^3 is the worst case: augmenting paths of N(0, 1) scores are short, n^1.9 from 20 to 100"

FAMILIES = (
    Family(
        "matching-projection",
        (
            Check("error", "largest |y - y*|, y* by Clarabel at 1e-12, first instances", 1e-7),
            Check(
                "certificate",
                "relative to 1 + |<s, y>|, or how far sums are from 1 and parts below 0, if that "
                "is more",
                1e-8,
            ),
        ),
        _projection,
        (
            Growth("n", 3.0, note="a step is n^2 at small n, n^3 / 3 from n = 20 on"),
            Growth("n", 3.0, BOTH, note="as the forward"),
        ),
        seconds=55,
    ),
    Family(
        "matching-shannon",
        (Check("error", "largest error of a row or column sum, and of log y = s - u - v", 1e-9),),
        _shannon,
        (Growth("n", 2.0, note=_SWEEPS), Growth("n", 3.0, BOTH, _SOLVED)),
        seconds=100,
    ),
    Family(
        "matching-map",
        (Check("error", "what the score falls short of scipy's assignment", 1e-9),),
        _map,
        (Growth("n", 3.0, note=_ASSIGNED),),
        seconds=40,
    ),
)
