"""Logic factors against lists of their assignments, by every reduction that masks and sizes make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax
from spigot.polytopes import (
    AndOut,
    AtMostOne,
    Euclidean,
    Gibbs,
    Hull,
    Imply,
    NoStructure,
    Or,
    OrOut,
    Simplex,
    Subset,
    Xor,
    XorOut,
)
from spigot.polytopes.problem import Problem
from spigot.polytopes.solvers import ActiveSet, Clarabel
from spigot.polytopes.structures.logic import BatchedProjection, Logic, LogicProjection
from spigot.pullback import SPIGOT
from tests.structures import binary

HOLDS: dict[type[Logic], Callable[[Tensor], Tensor]] = {
    Xor: lambda z: z.sum(1) == 1,
    Or: lambda z: z.any(1),
    AtMostOne: lambda z: z.sum(1) <= 1,
    Imply: lambda z: ~z[:, :-1].all(1) | z[:, -1],
    XorOut: lambda z: z[:, :-1].sum(1) == z[:, -1],
    OrOut: lambda z: z[:, :-1].any(1) == z[:, -1],
    AndOut: lambda z: z[:, :-1].all(1) == z[:, -1],
}
FACTORS = [
    factor(d, negated)
    for factor in HOLDS
    for d, negated in ((2, ()), (4, ()), (4, (True, False, True, False)), (3, (False, False, True)))
]
every_factor = pytest.mark.parametrize("factor", FACTORS, ids=str)


def listed(factor: Logic) -> Tensor:
    points = binary(factor.d)
    literals = points.bool() ^ torch.tensor(factor.negated or [False] * factor.d)
    return points[HOLDS[type(factor)](literals)]


def scored(n: int, d: int, seed: int = 0) -> Tensor:
    """Random scores of several sizes, and scores full of ties and zeros."""
    rng = torch.Generator().manual_seed(seed)
    normal = torch.randn(4, n, d, generator=rng, dtype=torch.float64)
    sizes = torch.tensor([1.0, 0.1, 10.0, 1e6]).double()[:, None, None]
    ties = torch.randint(-2, 4, (n, d), generator=rng).double() / 2
    return torch.cat([(sizes * normal).flatten(0, 1), ties, torch.zeros(1, d, dtype=torch.float64)])


def masks(vertices: Tensor, n: int, seed: int = 0) -> Tensor:
    """Random masks, each around a structure."""
    rng = torch.Generator().manual_seed(seed)
    chosen = vertices[torch.randint(len(vertices), (n,), generator=rng)]
    return (chosen > 0) | (torch.rand(n, vertices.shape[1], generator=rng) < 0.5)


@every_factor
def test_vertices_are_the_fulfilling_assignments(factor: Logic) -> None:
    expected = {tuple(row.tolist()) for row in listed(factor)}
    assert {tuple(row.tolist()) for row in factor.vertices()} == expected


@every_factor
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_answers_are_those_of_the_list(factor: Logic, masked: bool) -> None:
    scores = scored(12, factor.d)
    twin = Hull(listed(factor))
    keep = masks(twin.vertices(), len(scores)) if masked else None
    kept = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
    best = factor.maximize(scores, keep=keep)
    energies = (scores * kept) @ twin.vertices().t()
    energies = energies.masked_fill(((twin.vertices()[None] > 0) & ~kept[:, None]).any(2), -torch.inf)
    torch.testing.assert_close((scores * best).sum(1), energies.amax(1), rtol=1e-12, atol=1e-12)
    assert bool((best[~kept] == 0).all())
    torch.testing.assert_close(factor.marginals(scores, keep=keep), twin.marginals(scores, keep=keep))
    torch.testing.assert_close(
        factor.log_partition(scores, keep=keep), energies.logsumexp(1), rtol=1e-12, atol=1e-9
    )
    modest = scores.clamp(-20, 20)
    torch.testing.assert_close(
        factor.project(modest, keep=keep), twin.project(modest, keep=keep), rtol=0, atol=1e-8
    )


@every_factor
def test_the_compiled_and_the_batched_projection_agree(factor: Logic) -> None:
    scores = scored(60, factor.d)
    grad = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).double()
    sizes = torch.randint(factor.length_range[0], factor.d + 1, (len(scores),))
    for keep, lengths in ((None, None), (masks(factor.vertices(), len(scores)), None), (None, sizes)):
        inside = torch.ones_like(scores, dtype=torch.bool) if keep is None else keep
        if lengths is not None:
            inside = torch.arange(factor.d) < lengths[:, None]
        problem = Problem(factor, torch.where(inside, scores, 0.0), Euclidean(), keep, lengths)
        answers = [road.solve(problem) for road in (LogicProjection(), BatchedProjection())]
        torch.testing.assert_close(answers[0].value, answers[1].value, rtol=0, atol=1e-9)
        pulled = [road().vjp(problem, answers[0], grad * inside) for road in ROADS]
        torch.testing.assert_close(pulled[0], pulled[1], rtol=0, atol=1e-12)


ROADS = (LogicProjection, BatchedProjection)


@every_factor
def test_derivatives_at_ties_are_those_of_the_generic_roads(factor: Logic) -> None:
    rng = torch.Generator().manual_seed(2)
    scores = torch.randint(-2, 4, (40, factor.d), generator=rng).double() / 2
    weights = torch.randn(scores.shape, generator=rng, dtype=torch.float64)
    gradients: list[Tensor] = []
    for solver in (None, ActiveSet(), Clarabel()):
        leaf = scores.clone().requires_grad_()
        (factor.maximize(leaf, Euclidean(), solver=solver) * weights).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=0, atol=1e-7)


@every_factor
def test_gradients_pass_gradcheck(factor: Logic) -> None:
    scores = torch.randn(5, factor.d, generator=torch.Generator().manual_seed(3)).double()
    leaf = scores.requires_grad_()
    for verb in (factor.project, factor.marginals, factor.log_partition, factor.entropy):
        assert torch.autograd.gradcheck(verb, leaf)


@every_factor
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
def test_peaked_marginals_keep_their_accuracy(factor: Logic, scale: float) -> None:
    """Against sums in 60 digits, relative where they can be represented."""
    from mpmath import mp

    rng = torch.Generator().manual_seed(4)
    scores = scale * torch.randn(3, factor.d, generator=rng, dtype=torch.float64)
    leaf = scores.clone().requires_grad_()
    marginals = factor.marginals(leaf)
    vertices = listed(factor)
    with mp.workdps(60):
        for row, found in zip(scores.tolist(), marginals.tolist(), strict=True):
            chances = [
                mp.exp(mp.fsum(mp.mpf(s) for s, on in zip(row, z, strict=True) if on))
                for z in vertices.tolist()
            ]
            total = mp.fsum(chances)
            for i, value in enumerate(found):
                exact = mp.fsum(c for c, z in zip(chances, vertices, strict=True) if z[i]) / total
                assert abs(value - exact) <= 1e-11 * max(float(exact), 1e-3)
    assert bool(((marginals >= 0) & (marginals <= 1)).all())
    (marginals * torch.arange(factor.d)).sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    assert bool(factor.log_partition(scores.float()).isfinite().all())


@every_factor
def test_sizes_are_those_of_the_smaller_factor(factor: Logic) -> None:
    low, high = factor.length_range
    sizes = torch.arange(low, high + 1)
    scores = torch.randn(len(sizes), factor.d, generator=torch.Generator().manual_seed(5)).double()
    for regularizer in (None, Euclidean(), Gibbs()):
        together = factor.maximize(scores, regularizer, lengths=sizes)
        for i, size in enumerate(sizes.tolist()):
            alone = replace(factor, d=size, negated=factor.negated[:size])
            expected = alone.maximize(scores[i, :size], regularizer)
            torch.testing.assert_close(together[i, :size], expected)
            assert bool((together[i, size:] == 0).all())
    best = factor.maximize(scores, lengths=sizes)
    labels = factor.decode(best, sizes)
    assert torch.equal(factor.encode(labels, sizes).double(), best)


@every_factor
def test_samples_and_the_best_are_structures(factor: Logic) -> None:
    vertices = listed(factor)
    scores = torch.randn(2, factor.d, generator=torch.Generator().manual_seed(6)).double()
    drawn = factor.sample(scores, (3000,), generator=torch.Generator().manual_seed(7))
    member = (drawn[:, :, None] == vertices).all(3).any(2)
    assert bool(member.all())
    spread = 6 / 3000**0.5
    torch.testing.assert_close(drawn.mean(0), factor.marginals(scores), rtol=0, atol=spread)
    ranked = factor.top_k(scores, len(vertices))
    values = (ranked * scores).sum(2)
    torch.testing.assert_close(values, (scores @ vertices.t()).sort(1, descending=True).values.t())
    with pytest.raises(ValueError, match=f"only {len(vertices)}"):
        factor.top_k(scores, len(vertices) + 1)


def test_they_agree_with_the_structures_they_generalise() -> None:
    scores = scored(20, 5)[:60]
    for factor, same in ((Xor(5), Simplex(5)), (AtMostOne(5), Subset(5, 1, at_most=True))):
        for regularizer in (None, Euclidean(), Gibbs()):
            torch.testing.assert_close(
                factor.maximize(scores, regularizer), same.maximize(scores, regularizer)
            )


def test_a_mask_without_an_assignment_names_the_instance() -> None:
    keep = torch.tensor([[True, True], [False, False]])
    for factor in (Xor(2), Or(2)):
        for verb in (factor.maximize, factor.project, factor.marginals):
            with pytest.raises(NoStructure, match="instance 1"):
                verb(torch.zeros(2, 2), keep=keep)
    with pytest.raises(NoStructure):  # both are excluded, and so true in a negated form
        Xor(2, (True, True)).project(torch.zeros(2), keep=torch.tensor([False, False]))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Or(0), ValueError, "at least 1"),
        (lambda: OrOut(1), ValueError, "at least 2"),
        (lambda: Imply(1), ValueError, "at least 2"),
        (lambda: Xor(2.0), TypeError, "whole number"),  # pyright: ignore[reportArgumentType]
        (lambda: Xor(2, (True,)), ValueError, "2 entries"),
        (lambda: Xor(2, (1, 0)), TypeError, "bools"),  # pyright: ignore[reportArgumentType]
        (lambda: Xor(3).encode(torch.tensor([0, 1, -1])), ValueError, "structure"),
        (lambda: Xor(2).encode([[0, -1], [1, 0]]), ValueError, r"Xor.*; instance 1 has \[1, 0\]\."),
        (lambda: Or(3).encode(torch.tensor([0, 0, -1])), ValueError, "twice"),
        (lambda: Or(3).encode(torch.tensor([0, 3, -1])), ValueError, "below 3"),
    ],
)
def test_bad_input_is_refused(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


def test_large_factors_stay_linear_in_memory_and_exact() -> None:
    factor = Or(20_000)
    scores = torch.randn(8, 20_000, generator=torch.Generator().manual_seed(8)) - 6
    projected = factor.project(scores)
    torch.testing.assert_close(projected.sum(1), torch.ones(8), rtol=0, atol=1e-5)
    assert "vertices" not in factor.facts
    leaf = scores.clone().requires_grad_()
    Argmax(factor, SPIGOT())(leaf).square().sum().backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    assert np.isfinite(float(factor.log_partition(scores)[0]))
