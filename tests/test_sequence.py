"""Sequences: MAP, sums, samples, projections of arcs and of tags, by every road, at every scale."""

from __future__ import annotations

import tracemalloc
from itertools import product
from typing import Any

import mpmath
import networkx as nx
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax, FenchelYoungLoss, Relaxed
from spigot.polytopes import (
    Euclidean,
    Gibbs,
    NoStructure,
    Regularizer,
    Sequence,
    Simplex,
    UnsupportedProblem,
)
from spigot.polytopes.linear import LinearMap
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import EuclideanOf
from spigot.polytopes.solvers import ActiveSet, Clarabel, Cvxpy
from spigot.polytopes.structures.scan import ScannedForwardBackward, ScannedViterbi
from spigot.polytopes.structures.sequence import ForwardBackward, TrellisProjection, Viterbi
from spigot.pullback import SPIGOT
from tests.references import Reference
from tests.structures import sequences
from tests.tensors import normal

OF_TAGS = Euclidean(of=Sequence.tags)
PROJECTIONS: list[Regularizer] = [Euclidean(), OF_TAGS]
every_projection = pytest.mark.parametrize("omega", PROJECTIONS, ids=str)


def special(length: int, tags: int) -> Tensor:
    """Random, tied, equal and huge scores."""
    shape = (length, tags, tags)
    integers = torch.round(2 * normal(6, *shape, seed=1))
    spike = normal(1, *shape, seed=2)
    spike[0, -1, 0, 0] = 1e6
    rows = [normal(4, *shape), integers, torch.zeros(1, *shape), torch.full((1, *shape), 0.7), spike]
    return torch.cat([*rows, 1e-4 * normal(1, *shape), 1e4 * normal(2, *shape)]).double()


def tagged(arcs: Tensor) -> Tensor:
    return Sequence.tags.apply(arcs)


def seen(omega: Regularizer, arcs: Tensor) -> Tensor:
    """What is unique at the maximum."""
    return arcs if isinstance(omega, Euclidean) else tagged(arcs)


# --- scores, labels ----------------------------------------------------------------------------


def test_packed_scores_add_up_to_those_of_the_sequence() -> None:
    chain = Sequence(4, 3)
    unary, steps = normal(2, 4, 3), normal(2, 3, 3, 3, seed=1)
    start, end = normal(3, seed=2), normal(3, seed=3)
    lengths = torch.tensor([4, 2])
    ids = torch.tensor([[0, 2, 1, 1], [2, 0, -1, -1]])
    z = chain.encode(ids, lengths).double()
    for transition in (steps, steps[0, 0]):
        leaves = [x.clone().requires_grad_() for x in (unary, transition, start, end)]
        scores = Sequence.pack(leaves[0], leaves[1], leaves[2], leaves[3], lengths=lengths)
        found = (scores * z).sum((1, 2, 3))
        for b, size in enumerate(lengths.tolist()):
            tags = ids[b, :size].tolist()
            expected = start[tags[0]] + end[tags[-1]] + sum(unary[b, t, k] for t, k in enumerate(tags))
            for t in range(1, size):
                step = transition[b, t - 1] if transition.dim() == 4 else transition
                expected = expected + step[tags[t - 1], tags[t]]
            torch.testing.assert_close(found[b].detach(), expected)
        found.sum().backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="transition scores of shape"):
        Sequence.pack(torch.zeros(4, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="start must have the shape"):
        Sequence.pack(torch.zeros(4, 3), torch.zeros(3, 3), torch.zeros(2))
    with pytest.raises(ValueError, match="length, tags"):
        Sequence.pack(torch.zeros(3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="at least 1"):
        Sequence(0, 2)
    with pytest.raises(TypeError, match="tags must be a whole number"):
        Sequence(2, 1.5)  # pyright: ignore[reportArgumentType]


def test_labels_round_trip_in_ragged_batches() -> None:
    chain = Sequence(5, 4)
    lengths = torch.tensor([[5, 1], [3, 4]])
    ids = torch.randint(0, 4, (2, 2, 5), generator=torch.Generator().manual_seed(0))
    ids = torch.where(torch.arange(5) < lengths[..., None], ids, -1)
    vertices = chain.encode(ids, lengths)
    assert vertices.shape == (2, 2, 5, 4, 4)
    assert torch.equal(chain.decode(vertices), ids)
    assert torch.equal(chain.maximize(vertices, lengths=lengths), vertices)
    for wrong, message in ((ids + 1, "0..3"), (torch.where(ids == 0, -1, ids), r"instance")):
        with pytest.raises(ValueError, match=message):
            chain.encode(wrong, lengths)
    also = r"Also wrong: instances \(1, 0\), \(1, 1\)\."
    with pytest.raises(ValueError, match=rf"instance \(0, 1\) has -1 at position 1\. {also}"):
        chain.encode(ids)
    with pytest.raises(TypeError, match="tag ids"):
        chain.encode(ids.double())
    with pytest.raises(ValueError, match="length 5"):
        chain.encode(ids[..., :4])


# --- MAP ------------------------------------------------------------------------------------------


def test_viterbi_finds_the_longest_path() -> None:
    chain = Sequence(6, 4)
    for scores in (normal(6, 4, 4), torch.round(normal(6, 4, 4, seed=1))):
        graph = nx.DiGraph()
        for t, j in product(range(6), range(4)):
            for i in range(4) if t else (0,):
                graph.add_edge(
                    ("start" if t == 0 else (t - 1, i)), (t, j), weight=-float(scores[t, i, j])
                )
        for j in range(4):
            graph.add_edge((5, j), "end", weight=0.0)
        best = -nx.bellman_ford_path_length(graph, "start", "end")
        assert float((scores * chain.maximize(scores)).sum()) == pytest.approx(best)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ties_give_the_same_vertex_in_every_batch(dtype: torch.dtype) -> None:
    chain = Sequence(7, 3)
    scores = torch.round(normal(40, 7, 3, 3)).to(dtype)
    together = chain.maximize(scores)
    assert torch.equal(together, torch.stack([chain.maximize(row) for row in scores]))
    assert torch.equal(together.flip(0), chain.maximize(scores.flip(0)))
    assert bool((chain.decode(chain.maximize(torch.zeros(7, 3, 3))) == 0).all())


def test_long_chains_are_quick_and_small() -> None:
    chain = Sequence(10_000, 20)
    scores = torch.randn(1, 10_000, 20, 20, generator=torch.Generator().manual_seed(0))
    tags = chain.decode(chain.maximize(scores))
    assert tags.shape == (1, 10_000)
    tracemalloc.start()
    leaf = scores.requires_grad_()
    marginals = chain.marginals(leaf)
    marginals.square().sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * 2 * scores.numel() * 4
    torch.testing.assert_close(marginals.sum((2, 3)), torch.ones(1, 10_000), atol=1e-4, rtol=0)
    torch.testing.assert_close(tagged(marginals)[:, :-1], marginals.sum(3)[:, 1:], atol=1e-4, rtol=0)
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


# --- Gibbs ----------------------------------------------------------------------------------------


def precise(scores: Tensor, keep: Tensor | None = None) -> tuple[Tensor, float, float]:
    """Marginals, log Z and the entropy by a sum over all sequences with 80 digits."""
    points = sequences(*scores.shape[:2]).vertices()
    if keep is not None:
        points = points[((points == 0) | keep).flatten(1).all(1)]
    with mpmath.workdps(80):
        exact = [mpmath.mpf(x) for x in scores.double().flatten().tolist()]
        energies = [
            mpmath.fsum(exact[k] for k in row.nonzero().flatten().tolist()) for row in points.flatten(1)
        ]
        top = max(energies)
        weights = [mpmath.exp(energy - top) for energy in energies]
        total = mpmath.fsum(weights)
        chances = [weight / total for weight in weights]
        entropy = -mpmath.fsum(p * mpmath.log(p) for p in chances)
        chance = torch.tensor([float(p) for p in chances], dtype=torch.float64)
        marginals = (chance @ points.flatten(1)).reshape(scores.shape)
        return marginals, float(top + mpmath.log(total)), float(entropy)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("road", [ForwardBackward, ScannedForwardBackward])
def test_marginals_stay_right_at_peaked_scores(
    scale: float, dtype: torch.dtype, road: type[ForwardBackward]
) -> None:
    chain = Sequence(4, 3)
    scores = (scale * normal(4, 3, 3, seed=3)).to(dtype)
    keep = (chain.maximize(normal(4, 3, 3, seed=4)) > 0) | (normal(4, 3, 3, seed=5) > -0.5)
    for mask in (None, keep):
        expected, log_z, _ = precise(scores, mask)
        problem = Problem(chain, scores[None], Gibbs(), None if mask is None else mask[None])
        solution = road().solve(problem)
        value = solution.value[0].double()
        assert bool(((value >= 0) & (value <= 1)).all())
        tight = dtype == torch.float64
        torch.testing.assert_close(value, expected, atol=1e-11 if tight else 1e-5 * scale**0.5, rtol=0)
        assert solution.objective is not None
        assert float(solution.objective[0]) == pytest.approx(log_z, rel=1e-12 if tight else 1e-6)
        grad = road().vjp(problem, solution, normal(1, 4, 3, 3, seed=6).to(dtype))
        assert grad.isfinite().all()
        if mask is not None:
            assert bool((grad[0][~mask] == 0).all())


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_entropy_loses_no_digits_to_large_scores(scale: float, dtype: torch.dtype) -> None:
    chain = Sequence(4, 3)
    for seed in range(3):
        scores = (scale * normal(4, 3, 3, seed=seed)).to(dtype)
        scores[3] = scores[3, :1].clone()  # some choice is left at every scale
        scores[3, :, 1] = scores[3, :, 0] - 0.5
        leaf = scores.requires_grad_()
        entropy = chain.entropy(leaf)
        assert entropy.item() == pytest.approx(precise(scores.detach())[2], abs=1e-12, rel=1e-6)
        entropy.backward()
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_probability_space_and_log_space_agree() -> None:
    from spigot.polytopes.arrays import contiguous
    from spigot.polytopes.kernels.dynamic.chain import forward_backward

    scores = normal(5, 9, 7, 7)
    scores[1:3] *= 15
    sizes = torch.tensor([9, 9, 4, 1, 9])
    answers: list[tuple[Tensor, Tensor]] = []
    for limits in ((200.0, 0.0), (-1.0, 200.0), (-1.0, -1.0)):
        marginals, log_z = torch.zeros_like(scores), torch.zeros(5, dtype=torch.float64)
        arcs, lengths = contiguous(scores), contiguous(sizes)
        forward_backward(0, 5, arcs, lengths, *limits, marginals.numpy(), log_z.numpy())
        answers.append((marginals, log_z))
    for answer in answers[1:]:
        torch.testing.assert_close(answers[0], answer, atol=1e-12, rtol=1e-12)


def test_marginals_pass_gradcheck() -> None:
    chain = Sequence(4, 3)
    scores = normal(2, 4, 3, 3)
    lengths = torch.tensor([4, 3])

    def inside(s: Tensor) -> Tensor:
        return chain.marginals(s, lengths=lengths)

    assert torch.autograd.gradcheck(inside, scores.requires_grad_())
    assert torch.autograd.gradcheck(lambda s: chain.entropy(s, lengths=lengths), scores)
    assert torch.autograd.gradgradcheck(lambda s: chain.log_partition(s, lengths=lengths), scores)


def test_samples_follow_the_distribution_and_k_best_are_sorted() -> None:
    chain = Sequence(4, 3)
    scores, lengths = normal(2, 4, 3, 3), torch.tensor([4, 2])
    rng = torch.Generator().manual_seed(0)
    drawn = chain.sample(scores, (4000,), lengths=lengths, generator=rng)
    marginals = chain.marginals(scores, lengths=lengths)
    assert float((drawn.mean(0) - marginals).abs().max()) < 0.04
    again = chain.sample(scores, (4000,), lengths=lengths, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    best = chain.top_k(scores, 9, lengths=lengths)
    values = (best * scores).sum((2, 3, 4))
    assert bool((values[:-1] >= values[1:]).all())
    assert torch.equal(best[0], chain.maximize(scores, lengths=lengths))
    with pytest.raises(ValueError, match="only 9"):
        chain.top_k(scores, 10, lengths=lengths)


@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_and_compiled_roads_agree(scale: float, masked: bool) -> None:
    chain = Sequence(6, 4)
    scores = torch.round(scale * normal(20, 6, 4, 4))
    lengths = torch.arange(20) % 6 + 1
    kept = chain.maximize(normal(20, 6, 4, 4, seed=1)) > 0
    keep = kept | (normal(20, 6, 4, 4, seed=2) > 0) if masked else None
    problem = Problem(chain, scores, Gibbs(), keep, lengths)
    assert torch.equal(Viterbi().solve(problem).value, ScannedViterbi().solve(problem).value)
    answers = [road().solve(problem) for road in (ForwardBackward, ScannedForwardBackward)]
    torch.testing.assert_close(answers[0].value, answers[1].value, atol=1e-11, rtol=0)
    torch.testing.assert_close(answers[0].objective, answers[1].objective)
    grad = normal(20, 6, 4, 4, seed=3)
    pulled = [
        road().vjp(problem, answer, grad)
        for road, answer in zip((ForwardBackward, ScannedForwardBackward), answers, strict=True)
    ]
    torch.testing.assert_close(pulled[0], pulled[1], atol=1e-11, rtol=0)
    drawn = ScannedForwardBackward().sample(problem, 3000, torch.Generator().manual_seed(0))
    assert float((drawn.mean(0) - answers[0].value).abs().max()) < 0.06
    whole = Problem(chain, scores, Gibbs())
    best = [road().top_k(whole, 5) for road in (ForwardBackward, ScannedForwardBackward)]
    torch.testing.assert_close(*((found * scores).sum((2, 3, 4)) for found in best))


# --- projections ------------------------------------------------------------------------------------


@every_projection
@pytest.mark.parametrize(("length", "tags"), [(1, 4), (2, 1), (3, 2), (5, 3)])
def test_projections_equal_those_of_the_active_set(omega: Regularizer, length: int, tags: int) -> None:
    chain = Sequence(length, tags)
    scores = special(length, tags)
    ours = chain.maximize(scores, omega)
    theirs = chain.maximize(scores, omega, solver=ActiveSet())
    torch.testing.assert_close(seen(omega, ours), seen(omega, theirs), atol=1e-7, rtol=0)


def exposed(slopes: Tensor) -> Tensor:  # (length, tags, tags) -> (directions, d)
    """An orthonormal basis of the face where <slopes, y> is largest."""
    points = sequences(*slopes.shape[:2]).vertices().flatten(1)
    values = points @ slopes.flatten()
    face = points[values >= values.max() - 1e-8 * (1 + slopes.abs().max())]
    _, size, right = torch.linalg.svd(face - face[0])
    return right[: int((size > 1e-9).sum())]


@every_projection
@pytest.mark.parametrize(("length", "tags"), [(1, 4), (2, 1), (3, 2), (5, 3)])
def test_derivatives_are_those_of_the_exposed_face(omega: Regularizer, length: int, tags: int) -> None:
    """U (U' H U)^+ U' of the listed face, at ties and zeros too."""
    assert isinstance(omega, Euclidean | EuclideanOf)
    scores = special(length, tags).requires_grad_()
    value = Sequence(length, tags).maximize(scores, omega)
    weight = normal(*scores.shape, seed=9)
    (value * weight).sum().backward()
    assert scores.grad is not None
    slopes = (scores - omega.gradient(value)).detach()
    for slope, direction, found in zip(slopes, weight, scores.grad, strict=True):
        basis = exposed(slope)
        image = seen(omega, basis.reshape(-1, *slope.shape)).flatten(1)
        inverse = torch.linalg.pinv(image @ image.t(), rtol=1e-9, hermitian=True)
        expected = basis.t() @ (inverse @ (basis @ direction.flatten()))
        torch.testing.assert_close(found.flatten(), expected, atol=1e-6, rtol=0)


def test_the_few_tags_with_flow_are_found_among_many() -> None:
    """The kernels for few tags and for all of them agree; where the first leaves one out, it says so."""
    from spigot.polytopes.kernels.dynamic.narrow import project_narrow
    from spigot.polytopes.kernels.dynamic.trellis import UNSOLVED, project

    scores = torch.cat([scale * normal(3, 9, 12, 12, seed=3) for scale in (0.0, 1.0, 8.0)])
    rounded, masked = scores.round(), scores.masked_fill(normal(*scores.shape, seed=4) > 0.2, -torch.inf)
    masked[:, :, :, 2] = scores[:, :, :, 2]
    masked[0, 4] = -torch.inf
    arcs = torch.cat([scores, rounded, masked]).numpy()
    lengths, count = torch.tensor([9, 1, 5] * 9).numpy(), len(arcs)
    answers: list[Tensor] = []
    statuses: list[Tensor] = []
    kernels: list[tuple[Any, tuple[int, ...]]] = [(project_narrow, ()), (project, (0,))]
    for solve, options in kernels:
        values, status = torch.zeros(arcs.shape, dtype=torch.float64), torch.full((count,), UNSOLVED)
        steps = torch.zeros(count, dtype=torch.int64)
        solve(0, count, arcs, lengths, *options, values.numpy(), status.numpy(), steps.numpy())
        answers.append(values)
        statuses.append(status)
    few, all_tags = statuses
    solved = few == 0
    assert int(solved.sum()) >= 24
    assert few[18] == all_tags[18] == 3  # no path is left
    torch.testing.assert_close(answers[0][solved], answers[1][solved], atol=1e-11, rtol=0)
    assert not bool(answers[0][~solved].any())


@every_projection
def test_mixtures_of_sequences_equal_the_interior_point(omega: Regularizer) -> None:
    """At ties, masks and unary scores too; what is left to the other is left without an answer."""
    from spigot.polytopes.kernels.dynamic.path_mixtures import project_mixtures
    from spigot.polytopes.kernels.dynamic.trellis import UNSOLVED, project

    scores = torch.cat([scale * normal(8, 11, 7, 7, seed=5) for scale in (0.0, 1e-4, 1.0, 5.0, 1e5)])
    unary = scores[:, :, :1].expand_as(scores)
    masked = scores.masked_fill(normal(*scores.shape, seed=6) > 0.2, -torch.inf)
    masked[:, :, :, 2] = scores[:, :, :, 2]
    masked[0, 4] = -torch.inf
    arcs = torch.cat([scores, scores.round(), unary, masked]).numpy()
    lengths, count = torch.tensor([11, 1, 6, 11, 2] * 32).numpy(), len(arcs)
    answers: list[Tensor] = []
    statuses: list[Tensor] = []
    inner = int(isinstance(omega, EuclideanOf))
    for solve in (project_mixtures, project):
        values, status = torch.zeros(arcs.shape, dtype=torch.float64), torch.full((count,), UNSOLVED)
        steps = torch.zeros(count, dtype=torch.int64)
        solve(0, count, arcs, lengths, inner, values.numpy(), status.numpy(), steps.numpy())
        answers.append(values)
        statuses.append(status)
    few, everything = statuses
    assert few[120] == everything[120] == 3  # no path is left
    solved = few == 0
    assert int(solved.sum()) >= 120
    assert bool(solved[16:32].all())
    assert bool((~solved).any())
    ours, theirs = (seen(omega, answer[solved]) for answer in answers)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    assert not bool(answers[0][~solved].any())


def test_projections_equal_those_of_other_solvers() -> None:
    chain = Sequence(4, 3)
    scores = torch.cat([normal(3, 4, 3, 3), 10 * normal(3, 4, 3, 3, seed=1)])
    ours = chain.project(scores)
    torch.testing.assert_close(chain.maximize(scores, Euclidean(), solver=Clarabel()), ours)
    torch.testing.assert_close(Reference(chain.constraints, (4, 3, 3)).batch(scores, 3), ours)


def test_norms_of_tags_equal_those_of_cvxpy() -> None:
    import cvxpy as cp

    chain = Sequence(4, 3)
    scores = torch.cat([normal(3, 4, 3, 3), 4 * normal(3, 4, 3, 3, seed=1)])

    def half(y: Any) -> Any:
        return cp.sum_squares(cp.sum(y, axis=1)) / 2

    theirs = Reference(chain.constraints, (4, 3, 3), half).batch(scores, 3)
    torch.testing.assert_close(
        tagged(chain.maximize(scores, OF_TAGS)), tagged(theirs), atol=1e-6, rtol=0
    )


@every_projection
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0, 100.0, 1e6])
@pytest.mark.parametrize("whole", [False, True])
def test_projections_are_certified_at_every_scale(omega: Regularizer, scale: float, whole: bool) -> None:
    chain = Sequence(60, 8)
    scores = scale * normal(8, 60, 8, 8)
    scores = torch.round(scores) if whole else scores
    solution = chain.solve(scores, omega)
    assert solution.gap is not None
    assert bool(solution.converged.all())
    value = (scores * solution.value).sum((1, 2, 3)).abs()
    assert bool((solution.gap.abs() <= 1e-11 * (1 + value)).all())
    flow = solution.value
    torch.testing.assert_close(flow.sum((2, 3)), torch.ones(8, 60).double())
    torch.testing.assert_close(tagged(flow)[:, :-1], flow.sum(3)[:, 1:], atol=1e-9, rtol=0)


@every_projection
def test_long_projections(omega: Regularizer) -> None:
    chain = Sequence(1000, 20)
    for scale in (1.0, 100.0):
        scores = scale * normal(1, 1000, 20, 20)
        leaf = scores.clone().requires_grad_()
        tracemalloc.start()
        chain.maximize(leaf, omega)[0, 500].square().sum().backward()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10 * 2 * scores.numel() * 8
        solution = chain.solve(scores, omega)
        assert solution.gap is not None
        assert float(solution.gap) <= 1e-10 * float(1 + (scores * solution.value).sum().abs())
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@every_projection
def test_projections_pass_gradcheck(omega: Regularizer) -> None:
    chain = Sequence(4, 3)
    lengths = torch.tensor([4, 2, 3])
    for seed in (0, 1):
        scores = normal(3, 4, 3, 3, seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: chain.maximize(s, omega, lengths=lengths), scores, atol=1e-4
        )


@pytest.mark.parametrize("omega", [None, Euclidean(), OF_TAGS, Gibbs()], ids=str)
def test_lengths_and_masks_equal_each_instance_alone(omega: Regularizer | None) -> None:
    chain = Sequence(5, 3)
    scores = normal(8, 5, 3, 3)
    lengths = torch.tensor([1, 2, 3, 4, 5, 5, 1, 3])
    kept = chain.maximize(normal(8, 5, 3, 3, seed=1)) > 0
    keep = kept | (normal(8, 5, 3, 3, seed=2) > 0)
    for mask in (None, keep):
        for lowered in (scores, scores.masked_fill(~keep, -torch.inf)):
            leaf = lowered.clone().requires_grad_()
            value = chain.maximize(leaf, omega, lengths=lengths, keep=mask)
            gradient = torch.zeros_like(scores)
            if omega is not None:
                tagged(value).square().sum().backward()
                assert leaf.grad is not None
                gradient = leaf.grad
            for b, size in enumerate(lengths.tolist()):
                small = Sequence(size, 3)
                part = None if mask is None else mask[b, :size]
                one = lowered[b, :size].clone().requires_grad_()
                alone = small.maximize(one, omega, keep=part)
                torch.testing.assert_close(value[b, :size], alone)
                assert not bool(value[b, size:].any())
                assert not bool(value[b, 0, 1:].any())
                assert not bool(gradient[b, size:].any())
                assert not bool(gradient[b, 0, 1:].any())
                if omega is not None:
                    tagged(alone[None]).square().sum().backward()
                    torch.testing.assert_close(one.grad, gradient[b, :size], atol=1e-8, rtol=0)


@pytest.mark.parametrize("omega", [None, Euclidean(), OF_TAGS, Gibbs()], ids=str)
def test_a_mask_that_leaves_no_sequence_names_the_instance(omega: Regularizer | None) -> None:
    keep = torch.ones(3, 4, 2, 2, dtype=torch.bool)
    keep[1, 2, :, 0] = False
    keep[1, 3, 1] = False
    with pytest.raises(NoStructure, match="instance 1"):
        Sequence(4, 2).maximize(torch.zeros(3, 4, 2, 2), omega, keep=keep)
    Sequence(4, 2).maximize(torch.zeros(3, 4, 2, 2), omega, keep=keep, lengths=torch.tensor([4, 3, 4]))


# --- Euclidean(of=T) -----------------------------------------------------------------------------------


def test_which_road_and_what_it_prints() -> None:
    chain = Sequence(4, 3)
    assert str(OF_TAGS) == "Euclidean(of=Sequence.tags)"
    assert chain.which(OF_TAGS).rule == chain.which(Euclidean()).rule == TrellisProjection.name
    assert str(Relaxed(chain, OF_TAGS)).endswith("Euclidean(of=Sequence.tags))")
    assert Sequence(4, 3).tags == 3
    with pytest.raises(UnsupportedProblem, match="does not solve it"):
        chain.which(OF_TAGS, solver=Clarabel())
    with pytest.raises(UnsupportedProblem, match="does not take parts"):
        Simplex(3).which(OF_TAGS)
    with pytest.raises(TypeError, match="LinearMap"):
        Euclidean(of=3)  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_other_linear_maps_take_another_road() -> None:
    chain = Sequence(3, 2)
    total = LinearMap("total", lambda y: y.sum((-1, -2)), lambda u, e: u[..., None, None].expand(-1, *e))
    assert chain.which(Euclidean(of=total)).rule == ActiveSet.name
    same = LinearMap("all", lambda y: y, lambda u, _: u)
    scores = normal(5, 3, 2, 2)
    torch.testing.assert_close(chain.maximize(scores, Euclidean(of=same)), chain.project(scores))


def test_the_certificate_bounds_the_error_of_the_tags() -> None:
    chain = Sequence(4, 3)
    scores = normal(20, 4, 3, 3)
    exact = tagged(chain.maximize(scores, OF_TAGS))
    others = chain.marginals(normal(20, 4, 3, 3, seed=1))
    gap = chain.gap(others, scores, OF_TAGS)
    assert bool(((tagged(others) - exact).square().sum((1, 2)) <= gap + 1e-9).all())
    conjugate = chain.conjugate(scores, OF_TAGS)
    value = (scores * others).sum((1, 2, 3)) - tagged(others).square().sum((1, 2)) / 2
    assert bool((conjugate >= value - 1e-9).all())


def test_the_road_through_cvxpy_takes_it() -> None:
    chain = Sequence(3, 2)
    scores = normal(4, 3, 2, 2)
    ours = tagged(chain.maximize(scores, OF_TAGS))
    theirs = tagged(chain.maximize(scores, OF_TAGS, solver=Cvxpy()))
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)


# --- layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("omega", [None, Gibbs(), Euclidean(), OF_TAGS], ids=str)
def test_losses_take_labels_of_ragged_batches(omega: Regularizer | None) -> None:
    chain, lengths = Sequence(5, 3), torch.tensor([5, 2, 3])
    ids = torch.tensor([[0, 1, 2, 1, 0], [2, 2, -1, -1, -1], [1, 0, 1, -1, -1]])
    scores = normal(3, 5, 3, 3).float().requires_grad_()
    loss = FenchelYoungLoss(chain, omega, reduction="none")
    value = loss(scores, labels=ids, lengths=lengths)
    assert value.shape == (3,)
    assert bool((value > -1e-5).all())
    value.sum().backward()
    z = chain.encode(ids, lengths)
    expected = chain.maximize(scores.detach(), omega, lengths=lengths) - z
    torch.testing.assert_close(scores.grad, expected, atol=1e-5, rtol=0)
    certain = 100 * z
    assert float(loss(certain, labels=ids, lengths=lengths).abs().max()) < 1e-3
    with pytest.raises(ValueError, match="tag ids"):
        loss(scores, labels=ids)


def test_a_pullback_through_sequences() -> None:
    layer = Argmax(Sequence(4, 3), SPIGOT(1.0))
    scores = normal(3, 4, 3, 3).requires_grad_()
    z = layer(scores, lengths=torch.tensor([4, 1, 2]))
    (z * normal(3, 4, 3, 3, seed=1)).sum().backward()
    assert scores.grad is not None
    assert bool((scores.grad[:, 0, 1:] == 0).all())
    assert bool((scores.grad[1, 1:] == 0).all())


# --- peers --------------------------------------------------------------------------------------


def test_torchcrf_agrees() -> None:
    torchcrf: Any = pytest.importorskip("torchcrf")
    crf = torchcrf.CRF(4, batch_first=True).double()
    unary, lengths = normal(5, 6, 4), torch.tensor([6, 3, 1, 6, 2])
    mask = torch.arange(6) < lengths[:, None]
    ids = torch.randint(0, 4, (5, 6), generator=torch.Generator().manual_seed(0))
    theirs = -crf(unary, ids, mask=mask, reduction="none").detach()
    chain = Sequence(6, 4)
    ends = (crf.start_transitions.detach(), crf.end_transitions.detach())
    scores = Sequence.pack(unary, crf.transitions.detach(), *ends, lengths=lengths)
    ours = FenchelYoungLoss(chain, Gibbs(), reduction="none")(scores, labels=ids, lengths=lengths)
    torch.testing.assert_close(ours, theirs)
    decoded = chain.decode(chain.maximize(scores, lengths=lengths))
    assert [row[row >= 0].tolist() for row in decoded] == crf.decode(unary, mask=mask)


def test_torch_struct_agrees() -> None:
    torch_struct: Any = pytest.importorskip("torch_struct")
    unary, transition = normal(3, 5, 4), normal(4, 4, seed=1)
    arcs = unary[:, 1:, :, None] + transition.t()
    arcs[:, 0] += unary[:, 0, None, :]  # theirs are [next, previous], the first position's in the first
    theirs = torch_struct.LinearChainCRF(arcs.float())
    chain, scores = Sequence(5, 4), Sequence.pack(unary, transition)
    torch.testing.assert_close(chain.log_partition(scores).float(), theirs.partition)
    marginals = theirs.marginals.transpose(2, 3)
    torch.testing.assert_close(chain.marginals(scores)[:, 1:].float(), marginals, atol=1e-5, rtol=1e-4)
