"""Dependency trees: best trees, marginals and projections; projective and constituency trees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    Scaled,
    Target,
    Workload,
    calls,
    largest,
)
from spigot.polytopes import Arborescence, ConstituencyTree, Euclidean, Polytope, ProjectiveTree

BATCH = 64
CALL = "at n = 10 half of the time is the call itself"
FEW = 4  # instances whose error is looked at
IMPOSSIBLE = -1e9
LABELS = 5  # of a constituency tree's spans
NETWORKX = {10: 16, 20: 4, 40: 2, 80: 1}  # instances, for it takes seconds
LPSMAP = {40: 1432 / 5.9, 80: 20974 / 21.2}
"""lp-sparsemap's projection at a certificate of 1e-8, in times that ufal's best trees take."""


def _scores(n: int, batch: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return scale * torch.randn(batch, n, n, dtype=dtype, generator=generator)


def _total(scores: Tensor, arcs: Tensor) -> Tensor:
    return (scores.double() * arcs.double()).sum((-2, -1))


# --- best trees -------------------------------------------------------------------------------


def _rooted(scores: Tensor) -> np.ndarray:
    """[dependent, head], the root first, as ufal has it."""
    batch, n, _ = scores.shape
    whole = np.full((batch, n + 1, n + 1), IMPOSSIBLE)
    whole[:, 1:, 1:] = scores.mT.numpy()
    whole[:, 1:, 0] = scores.diagonal(dim1=1, dim2=2).numpy()
    whole[:, range(n + 1), range(n + 1)] = IMPOSSIBLE
    return whole


def _of_heads(heads: Any) -> Tensor:
    """ufal's heads as arcs."""
    return Arborescence(len(heads) - 1).encode([int(head) - 1 for head in heads[1:]])


def _ufal(scores: Tensor) -> Iterator[Method]:
    ufal = peer("ufal.chu_liu_edmonds")
    if ufal:
        best, rooted = ufal.chu_liu_edmonds, _rooted(scores)

        def theirs() -> object:
            return [best(matrix)[0] for matrix in rooted]

        def wrong() -> float:
            arcs = torch.stack([_of_heads(best(matrix)[0]) for matrix in rooted[:FEW]])
            return _worse(scores[:FEW], arcs)

        yield Method("ufal.chu_liu_edmonds", Kind.PEER, {FORWARD: theirs}, len(scores), wrong)


def _worse(scores: Tensor, arcs: Tensor) -> float:
    """The largest |<s, y> - <s, z>| relative to 1 + |<s, z>|, z the best tree of ours."""
    best = _total(scores, Arborescence(scores.shape[-1]).maximize(scores))
    return largest((_total(scores, arcs) - best) / (1 + best.abs()))


def _networkx(scores: Tensor, instances: int) -> Iterator[Method]:
    networkx = peer("networkx")
    if networkx:
        few = scores[:instances]
        listed = [matrix.tolist() for matrix in few]

        def arcs_of(matrix: list[list[float]]) -> Any:
            graph = networkx.DiGraph()
            for head, row in enumerate(matrix):
                for word, score in enumerate(row):
                    graph.add_edge("root" if head == word else head, word, weight=score)
            return networkx.maximum_spanning_arborescence(graph)

        def theirs() -> object:
            return [arcs_of(matrix) for matrix in listed]

        def wrong() -> float:
            arcs = torch.zeros_like(few[:FEW])
            for own, matrix in zip(arcs, listed, strict=False):
                for head, word in arcs_of(matrix).edges:
                    own[word if head == "root" else head, word] = 1.0
            return _worse(few[:FEW], arcs)

        yield Method("networkx", Kind.PEER, {FORWARD: theirs}, instances, wrong)


def _maps(smoke: bool) -> Iterator[Workload]:
    for n in (5,) if smoke else (10, 20, 40, 80):
        scores = _scores(n, 2 if smoke else BATCH)
        polytope = Arborescence(n)

        def ours(s: Tensor, polytope: Polytope = polytope) -> Tensor:
            return polytope.maximize(s)

        def wrong(scores: Tensor = scores, polytope: Polytope = polytope) -> float:
            best = polytope.maximize(scores[:FEW])
            bound = polytope.solve(scores[:FEW]).gap
            assert bound is not None
            return _worse(scores[:FEW], best) + largest(bound)

        calls_ = calls(ours, scores, backward=False)
        methods = [Method("spigot", Kind.OURS, calls_, len(scores), wrong), *_ufal(scores)]
        methods += _networkx(scores, NETWORKX.get(n, 2))
        targets = (Target("ufal.chu_liu_edmonds", at_least=5), Target("networkx", at_least=1000))
        yield Workload({"n": n}, tuple(methods), targets)


# --- marginals --------------------------------------------------------------------------------


def _reference(scores: Tensor, digits: int = 0) -> tuple[Tensor, Tensor]:
    """Marginals and log Z of some trees by the matrix-tree theorem; with `digits` in mpmath."""
    found = [_exact(s, digits) if digits else _float64(s) for s in scores]
    marginals, log_z = zip(*found, strict=True)
    return torch.stack(marginals), torch.stack(log_z)


def _float64(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The same with numpy's inverse: for scores at which it has digits to spare."""
    weights = scores.double().exp()
    roots = weights.diagonal()
    between = weights - roots.diag()
    laplacian = (roots + between.sum(0)).diag() - between
    inverse = laplacian.inverse()
    marginals = between * (inverse.diagonal() - inverse.mT) + (roots * inverse.diagonal()).diag()
    return marginals, laplacian.logdet()


def _exact(scores: Tensor, digits: int) -> tuple[Tensor, Tensor]:
    import mpmath

    n = len(scores)
    with mpmath.workdps(digits):
        rows: list[list[float]] = scores.double().tolist()
        weights = [[mpmath.exp(score) for score in row] for row in rows]
        laplacian = mpmath.matrix(n, n)
        for d in range(n):
            laplacian[d, d] = mpmath.fsum(weights[h][d] for h in range(n))
            for h in range(n):
                if h != d:
                    laplacian[h, d] = -weights[h][d]
        inverse = laplacian**-1
        marginals = torch.zeros(n, n, dtype=torch.float64)
        for h in range(n):
            for d in range(n):
                less = inverse[d, h] if h != d else 0
                marginals[h, d] = float(weights[h][d] * (inverse[d, d] - less))
        return marginals, torch.tensor(float(mpmath.log(mpmath.det(laplacian))), dtype=torch.float64)


Function = Callable[[Tensor], Tensor]


def _against(
    ours: Function,
    theirs: Function | None,
    name: str,
    scores: Tensor,
    wrong: Callable[[Function], float],
) -> Iterator[Method]:
    """Ours and a peer's on the same scores."""
    yield Method("spigot", Kind.OURS, calls(ours, scores), len(scores), lambda: wrong(ours))
    if theirs:
        yield Method(name, Kind.PEER, calls(theirs, scores), len(scores), lambda: wrong(theirs))


def _structs(cls: str, verb: str, **options: Any) -> Function | None:
    struct = peer("torch-struct")
    if struct is None:
        return None
    distribution = getattr(struct, cls)

    def theirs(s: Tensor) -> Tensor:
        # DependencyCRF fails on leaves without a gradient
        leaf = s if s.requires_grad else s.detach().clone().requires_grad_()
        return getattr(distribution(leaf, **options), verb)

    return theirs


VERBS = {"marginals": "marginals", "log_partition": "partition"}  # ours and torch-struct's


def _marginals(smoke: bool) -> Iterator[Workload]:
    for index, (verb, theirs) in enumerate(VERBS.items()):
        for n in (5,) if smoke else (10, 20, 40, 80):
            scores = _scores(n, 2 if smoke else BATCH, torch.float32)
            expected = _reference(scores[:FEW])[index]
            targets: tuple[Target, ...] = ()
            if n != 20:
                faster = 1.0 if n == 10 else 1.5
                targets = tuple(Target("torch-struct", each, faster) for each in (FORWARD, BOTH))
            yield _summed(verb, theirs, scores, expected, {"verb": verb, "n": n}, targets)


def _peaked(smoke: bool) -> Iterator[Workload]:
    for n in (5,) if smoke else (20, 50):
        scores = _scores(n, 2 if smoke else BATCH, torch.float32, 20.0)
        expected = _reference(scores[: FEW // 2], 60 + 20 * n)
        for index, (verb, theirs) in enumerate(VERBS.items()):
            yield _summed(verb, theirs, scores, expected[index], {"verb": verb, "n": n}, ())


def _summed(
    verb: str,
    theirs: str,
    scores: Tensor,
    expected: Tensor,
    sizes: Mapping[str, int | str],
    targets: tuple[Target, ...],
) -> Workload:
    polytope = Arborescence(scores.shape[-1])

    def ours(s: Tensor) -> Tensor:
        return getattr(polytope, verb)(s)

    def wrong(function: Function) -> float:
        """Infinite where anything is not finite, in the gradient too."""
        leaf = scores.detach().clone().requires_grad_()
        value = function(leaf)
        value.sum().backward()
        assert leaf.grad is not None
        if not bool(torch.isfinite(value).all() and torch.isfinite(leaf.grad).all()):
            return float("inf")
        return largest((value[: len(expected)].double() - expected) / expected.abs().clamp_min(1.0))

    peers = _structs("NonProjectiveDependencyCRF", theirs, multiroot=True)
    methods = tuple(_against(ours, peers, "torch-struct", scores, wrong))
    return Workload(sizes, methods, targets)


# --- projections ------------------------------------------------------------------------------


def _projections(smoke: bool) -> Iterator[Workload]:
    for n in (5,) if smoke else (40, 80):
        for scale in (1, 4):
            scores = _scores(n, 2 if smoke else BATCH, scale=scale)
            polytope = Arborescence(n)
            best = tuple(_ufal(scores))
            lpsmap = Scaled("lp-sparsemap", "ufal.chu_liu_edmonds", LPSMAP.get(n, 1.0))
            yield Workload(
                {"scale": scale, "n": n},
                (
                    Method(
                        "spigot",
                        Kind.OURS,
                        calls(polytope.project, scores),
                        len(scores),
                        _certificate(polytope, scores),
                    ),
                    *best,
                ),
                (Target(lpsmap.name, at_least=40 if n == 40 else 200),) if best and not smoke else (),
                (lpsmap,) if best and not smoke else (),
            )


def _certificate(polytope: Polytope, scores: Tensor) -> Callable[[], float]:
    """The largest gap relative to 1 + |<s, y>|."""

    def relative() -> float:
        y = polytope.project(scores)
        gap = polytope.gap(y, scores, Euclidean())
        return largest(gap / (1 + _total(scores, y).abs()))

    return relative


# --- trees without crossing arcs --------------------------------------------------------------


def _projective(smoke: bool) -> Iterator[Workload]:
    for n in (4,) if smoke else (10, 40):
        scores = _scores(n, 2 if smoke else BATCH, torch.float32)
        yield from _dynamic(
            "projective", ProjectiveTree(n), "DependencyCRF", scores, {"multiroot": True}
        )
        spans = torch.stack([scores.roll(k, 0) for k in range(LABELS)], -1)
        yield from _dynamic("constituency", ConstituencyTree(n, LABELS), "TreeCRF", spans, {})


def _dynamic(
    name: str, polytope: Polytope, cls: str, scores: Tensor, options: dict[str, Any]
) -> Iterator[Workload]:
    n = scores.shape[2]
    exact = scores[:FEW].double()

    def wrong(verb: str) -> Callable[[Function], float]:
        def error(function: Function) -> float:
            value, expected = function(scores[:FEW]).double(), getattr(polytope, verb)(exact)
            if verb == "maximize":
                value, expected = ((exact * y).flatten(1).sum(1) for y in (value, expected))
            return largest((value - expected) / expected.abs().clamp_min(1.0))

        return error

    for verb, theirs in (("maximize", "argmax"), *VERBS.items()):
        methods = _against(
            getattr(polytope, verb),
            _structs(cls, theirs, **options),
            "torch-struct",
            scores,
            wrong(verb),
        )
        if verb == "maximize":
            methods = (
                Method(m.name, m.kind, {FORWARD: m.calls[FORWARD]}, m.instances, m.error)
                for m in methods
            )
        yield Workload({"structure": name, "verb": verb, "n": n}, tuple(methods))


FAMILIES = (
    Family(
        "arborescence-map",
        (
            Check(
                "error",
                "largest difference of <s, y> from ours, relative to 1 + |<s, y>|; batch of 64, float64",
                1e-12,
            ),
        ),
        _maps,
        (Growth("n", 2.0, note=CALL),),
        seconds=40,
    ),
    Family(
        "arborescence-marginals",
        (
            Check(
                "error",
                "largest difference from the inverse of the Laplacian in float64, relative above "
                "1; batch of 64, float32",
                1e-5,
            ),
        ),
        _marginals,
        tuple(
            Growth("n", 3.0, each, CALL + "; exp is n^2, and rows fill vectors")
            for each in (FORWARD, BOTH)
        ),
        seconds=95,
    ),
    Family(
        "arborescence-marginals-peaked",
        (
            Check(
                "error",
                "20 x N(0, 1): largest difference from mpmath's 60 + 20 n digits, relative above "
                "1, infinite where a value or gradient is not finite; batch of 64, float32",
                1e-5,
            ),
        ),
        _peaked,
        seconds=50,
    ),
    Family(
        "arborescence-projection",
        (
            Check(
                "certificate",
                "largest certificate relative to 1 + |<s, y>|, for ufal that of its best trees; "
                "batch of 64, float64; lp-sparsemap cannot be installed, its time is ufal's times "
                "what they took together",
                1e-8,
            ),
        ),
        _projections,
        seconds=40,
    ),
    Family(
        "projective-trees",
        (
            Check(
                "error",
                "largest difference from our own answer in float64, relative above 1; batch of 64,"
                " float32",
                1e-5,
            ),
        ),
        _projective,
        seconds=130,
    ),
)
