"""Dynamic programmes against lists of their structures, in numbers of high precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.polytopes import (
    Alignment,
    ConstituencyTree,
    Euclidean,
    Gibbs,
    Hull,
    Hypergraph,
    NoStructure,
    Polytope,
    ProjectiveTree,
    SemiMarkov,
)
from spigot.polytopes.posing import pose
from spigot.polytopes.solvers import Highs
from spigot.polytopes.structures.dynamic import BestDerivation, DynamicProgram, InsideOutside
from spigot.polytopes.structures.levels import LevelwiseSums, LevelwiseViterbi
from spigot.testing import check
from tests import derivations
from tests.derivations import GRAMMAR, REPEATED

LISTED: list[tuple[DynamicProgram, Hull]] = [
    (ProjectiveTree(1), derivations.projective_trees(1)),
    (ProjectiveTree(4), derivations.projective_trees(4)),
    (ProjectiveTree(5, single_root=True), derivations.projective_trees(5, single_root=True)),
    (ConstituencyTree(1), derivations.constituency_trees(1)),
    (ConstituencyTree(6), derivations.constituency_trees(6)),
    (ConstituencyTree(3, labels=2), derivations.constituency_trees(3, 2)),
    (SemiMarkov(4, 2, 3), derivations.semimarkov_chains(4, 2, 3)),
    (SemiMarkov(3, 2, 5), derivations.semimarkov_chains(3, 2, 5)),
    (Alignment(4, 3), derivations.alignments(4, 3)),
    (Alignment(1, 4), derivations.alignments(1, 4)),
    (Alignment(3, 3, moves=True), derivations.alignments(3, 3, moves=True)),
    (GRAMMAR, derivations.listed(GRAMMAR)),
    (REPEATED, derivations.listed(REPEATED)),
]
every_program = pytest.mark.parametrize(("polytope", "hull"), LISTED, ids=lambda value: str(value))
SIZED: list[tuple[DynamicProgram, Tensor]] = [
    (ProjectiveTree(5), torch.tensor([5, 1, 3, 2, 4, 5])),
    (ProjectiveTree(5, single_root=True), torch.tensor([5, 1, 3, 2, 4, 5])),
    (ConstituencyTree(5), torch.tensor([5, 1, 3, 2, 4, 5])),
    (ConstituencyTree(4, labels=2), torch.tensor([4, 1, 3, 2])),
    (SemiMarkov(5, 2, 3), torch.tensor([5, 1, 3, 2, 4])),
    (Alignment(4, 5), torch.tensor([[4, 5], [1, 1], [2, 5], [4, 1], [3, 2]])),
    (Alignment(3, 3, moves=True), torch.tensor([[3, 3], [1, 2], [3, 1], [2, 2]])),
]
every_size = pytest.mark.parametrize(("polytope", "lengths"), SIZED, ids=lambda value: str(value)[:40])


def normal(polytope: Polytope, *batch: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, *polytope.event_shape)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def chances(points: Tensor, scores: Tensor) -> tuple[np.ndarray, float]:
    """p(z) and log Z in extended precision."""
    energies = points.flatten(1).numpy().astype(np.longdouble) @ scores.flatten().numpy()
    top = energies.max()
    weights = np.exp(energies - top)
    return weights / weights.sum(), float(top + np.log(weights.sum()))


@every_program
def test_each_structure_has_one_derivation(polytope: DynamicProgram, hull: Hull) -> None:
    points = hull.vertices()
    scores = torch.zeros(polytope.event_shape, dtype=torch.float64)
    close(polytope.log_partition(scores), torch.tensor(math.log(len(points)), dtype=torch.float64))
    found = polytope.top_k(scores, len(points))
    assert torch.equal(found.flatten(1).unique(dim=0), points.flatten(1).unique(dim=0))
    with pytest.raises(ValueError, match=f"only {len(points)} structure"):
        polytope.top_k(scores, len(points) + 1)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0, 1000.0, 1e6])
@every_program
def test_sums_equal_those_over_the_list(polytope: DynamicProgram, hull: Hull, scale: float) -> None:
    points = hull.vertices()
    for seed in range(3):
        scores = normal(polytope, seed=seed, scale=scale).requires_grad_()
        chance, log_partition = chances(points, scores.detach())
        mean = np.tensordot(chance, points.numpy(), 1)
        marginals = polytope.marginals(scores)
        assert bool((marginals >= 0).all())
        assert bool((marginals <= polytope.bounds[1]).all())
        close(marginals.detach(), torch.tensor(mean.astype(float)), 1e-12 * (1 + scale))
        assert polytope.log_partition(scores).item() == pytest.approx(
            log_partition, rel=1e-14, abs=1e-12
        )
        direction = normal(polytope, seed=seed + 9)
        along = points.flatten(1).numpy() @ direction.flatten().numpy()
        along = chance * (along - (chance * along).sum())
        (pulled,) = torch.autograd.grad((marginals * direction).sum(), scores)
        expected = np.tensordot(along, points.numpy(), 1).astype(float)
        close(pulled, torch.tensor(expected), 1e-11 * (1 + scale))
        best = polytope.maximize(scores)
        value = (points.flatten(1) @ scores.detach().flatten()).max()
        close((best * scores.detach()).sum(), value, 1e-13)


@every_program
def test_small_marginals_keep_their_digits(polytope: DynamicProgram, hull: Hull) -> None:
    points = hull.vertices()
    scores = normal(polytope, seed=4, scale=20.0)
    chance, _ = chances(points, scores)
    mean = np.tensordot(chance, points.numpy(), 1)
    close(
        polytope.marginals(scores) / torch.tensor((mean + 1e-300).astype(float)),
        (torch.tensor(mean.astype(float)) > 0).double(),
        1e-11,
    )


@pytest.mark.parametrize("polytope", [polytope for polytope, _ in LISTED], ids=str)
def test_derivatives(polytope: DynamicProgram) -> None:
    scores = normal(polytope, 2, seed=1).requires_grad_()
    for verb in (polytope.marginals, polytope.log_partition, polytope.entropy):
        assert torch.autograd.gradcheck(verb, (scores,))


@every_program
def test_ties_give_a_vertex_always_the_same(polytope: DynamicProgram, hull: Hull) -> None:
    points = hull.vertices().flatten(1)
    integers = torch.randint(
        -1, 2, (5, *polytope.event_shape), generator=torch.Generator().manual_seed(0)
    )
    for scores in (integers.double(), torch.full((2, *polytope.event_shape), 0.7).double()):
        together = polytope.maximize(scores)
        for row, vertex in zip(scores, together, strict=True):
            assert torch.equal(polytope.maximize(row), vertex)
            assert bool((points == vertex.flatten()).all(1).any())
            close((row * vertex).sum(), (points @ row.flatten()).max())


def test_a_tie_in_counts_is_broken_towards_a_vertex() -> None:
    twice = Hypergraph(
        [("s", ("x", "y")), ("x", (), 0), ("x", ()), ("y", (), 0), ("y", ())], shape=1, goal="s"
    )
    assert twice.bounds[1].item() == 2.0
    for score in (0.0, 1.0, -1.0):
        assert twice.maximize(torch.tensor([score])).item() in (0.0, 2.0)


@every_program
def test_samples_do_not_depend_on_threads(polytope: DynamicProgram, hull: Hull) -> None:
    scores = normal(polytope, 3)
    threads = torch.get_num_threads()
    drawn: list[Tensor] = []
    for count in (1, 3):
        torch.set_num_threads(count)
        drawn.append(polytope.sample(scores, (50,), generator=torch.Generator().manual_seed(0)))
    torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert bool((hull.contains(drawn[0][:5])).all())


@every_size
def test_lengths_are_instances_of_that_length(polytope: DynamicProgram, lengths: Tensor) -> None:
    scores = normal(polytope, len(lengths)).requires_grad_()
    direction = normal(polytope, len(lengths), seed=3)
    found = [polytope.maximize(scores, lengths=lengths), polytope.marginals(scores, lengths=lengths)]
    (pulled,) = torch.autograd.grad((found[1] * direction).sum(), scores)
    best = polytope.top_k(scores[:1], 1, lengths=lengths[:1])
    close(best[0, 0], found[0][0])
    for i, length in enumerate(lengths):
        small = polytope.sized(length)
        block = (i, *(slice(size) for size in small.event_shape))
        row = scores[block].detach().requires_grad_()
        marginals = small.marginals(row)
        (expected,) = torch.autograd.grad((marginals * direction[block]).sum(), row)
        for whole, part in [(found[0], small.maximize(row)), (found[1], marginals), (pulled, expected)]:
            close(whole[block], part)
            assert whole[i].count_nonzero() == whole[block].count_nonzero()


@every_size
def test_labels_round_trip_at_every_length(polytope: DynamicProgram, lengths: Tensor) -> None:
    scores = torch.zeros(len(lengths), *polytope.event_shape)
    vertices = polytope.sample(
        scores, (20,), lengths=lengths, generator=torch.Generator().manual_seed(0)
    )
    labels = polytope.decode(vertices)
    assert torch.equal(polytope.encode(labels), vertices)
    assert torch.equal(polytope.encode(labels, lengths=lengths.expand(20, *lengths.shape)), vertices)
    assert torch.equal(polytope.decode(polytope.encode(labels)), labels)


@every_program
def test_masks(polytope: DynamicProgram, hull: Hull) -> None:
    points = hull.vertices()
    keep = points[:1] + (normal(polytope, 4, seed=5) > 0) > 0
    scores = normal(polytope, 4).masked_fill(~keep, -torch.inf)
    for row, mask in zip(scores, keep, strict=True):
        left = points[((points == 0) | mask).flatten(1).all(1)]
        leaf = row.clone().requires_grad_()
        marginals = polytope.marginals(leaf)
        close(marginals, Hull(left).marginals(row.masked_fill(~mask, 0.0)))
        marginals.square().sum().backward()
        assert leaf.grad is not None and bool((leaf.grad[~mask] == 0).all())
        assert len(polytope.top_k(row, len(left))) == len(left)
        drawn = polytope.sample(row, (20,))
        assert bool((drawn.flatten(1)[:, ~mask.flatten()] == 0).all())
    nothing = torch.zeros(2, *polytope.event_shape, dtype=torch.bool)
    verbs: list[Any] = [polytope.maximize, polytope.marginals, polytope.sample]
    if bool((points.flatten(1).sum(1) > 0).all()):
        for verb in verbs:
            with pytest.raises(NoStructure, match="instances 0, 1"):
                verb(scores[:2], keep=nothing)
        with pytest.raises(ValueError, match="structure"):
            polytope.top_k(scores[:2], 1, keep=nothing)


@pytest.mark.parametrize(
    "polytope",
    [ProjectiveTree(25), ConstituencyTree(30), SemiMarkov(30, 4, 5), Alignment(40, 30)],
    ids=str,
)
def test_peaked_scores_of_large_structures(polytope: DynamicProgram) -> None:
    for scale in (0.0, 1.0, 100.0, 1e4, 1e8):
        scores = normal(polytope, 2, scale=scale).requires_grad_()
        marginals = polytope.marginals(scores)
        (grad,) = torch.autograd.grad(marginals.square().sum(), scores)
        assert bool(grad.isfinite().all())
        assert bool(((marginals >= 0) & (marginals <= 1)).all())
        if scale >= 1e4:
            close(marginals.detach(), polytope.maximize(scores), 1e-6)
        single = polytope.marginals(scores.detach().float())
        again = polytope.marginals(scores.detach().float().double())
        close(single.double(), again, 1e-6)
    assert bool(polytope.contains(marginals.detach()[0], tolerance=1e-5))  # pyright: ignore


@pytest.mark.parametrize("polytope", [ProjectiveTree(6), ConstituencyTree(7)], ids=str)
def test_map_is_that_of_the_flow_linear_program(polytope: DynamicProgram) -> None:
    scores = normal(polytope, 3)
    assert torch.equal(polytope.maximize(scores), polytope.maximize(scores, solver=Highs()))


def test_spans_and_heads_have_their_usual_sums() -> None:
    heads = ProjectiveTree(8).marginals(normal(ProjectiveTree(8), 3))
    close(heads.sum(1), torch.ones(3, 8).double())
    single = ProjectiveTree(8, single_root=True).marginals(normal(ProjectiveTree(8), 3))
    close(single.diagonal(dim1=1, dim2=2).sum(1), torch.ones(3).double())
    spans = ConstituencyTree(8).marginals(normal(ConstituencyTree(8), 3))
    close(spans.sum((1, 2)), torch.full((3,), 15.0).double())


def warping_cost(cost: np.ndarray) -> float:
    """Sakoe and Chiba's recursion."""
    total = np.full((cost.shape[0] + 1, cost.shape[1] + 1), np.inf)
    total[0, 0] = 0.0
    for i, j in np.ndindex(*cost.shape):
        total[i + 1, j + 1] = cost[i, j] + min(total[i, j], total[i, j + 1], total[i + 1, j])
    return float(total[-1, -1])


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's recursion."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def test_alignment_is_dynamic_time_warping() -> None:
    cost = torch.rand(7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert -Alignment(7, 9).conjugate(-cost).item() == pytest.approx(warping_cost(cost.numpy()))


@pytest.mark.parametrize(("a", "b"), [("kitten", "sitting"), ("flaw", "lawn"), ("same", "same")])
def test_moves_give_the_edit_distance(a: str, b: str) -> None:
    scores = -torch.ones(len(a) + 1, len(b) + 1, 3, dtype=torch.float64)
    scores[0, 0] = 0.0
    differs = torch.tensor([[float(x != y) for y in b] for x in a])
    scores[1:, 1:, 0] = -differs.double()
    found = Alignment(len(a) + 1, len(b) + 1, moves=True).conjugate(scores)
    assert -found.item() == edit_distance(a, b)


def test_packed_segments_score_as_the_sum_of_their_terms() -> None:
    length, tags, width = 5, 3, 3
    rng = torch.Generator().manual_seed(0)
    unary = torch.randn(2, length, tags, generator=rng)
    transition = torch.randn(tags, tags, generator=rng)
    duration = torch.randn(width, tags, generator=rng)
    scores = SemiMarkov.pack(unary, transition, duration)
    chain = SemiMarkov(length, tags, width)
    assert scores.shape == (2, *chain.event_shape)
    points = derivations.semimarkov_chains(length, tags, width).vertices().float()
    listed = list(derivations.segmentations(length, tags, width))
    for point, segments in list(zip(points, listed, strict=True))[::7]:
        expected = torch.zeros(2)
        for k, (start, extra, tag) in enumerate(segments):
            expected += unary[:, start : start + extra + 1, tag].sum(1) + duration[extra, tag]
            expected += transition[segments[k - 1][2], tag] if k else 0.0
        torch.testing.assert_close((scores * point).flatten(1).sum(1), expected)
    assert SemiMarkov.pack(unary, transition, width=9).shape == (2, length, 9, tags, tags)


def test_packing_refuses_shapes_that_do_not_fit() -> None:
    unary = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="do not fit"):
        SemiMarkov.pack(unary, torch.zeros(2, 2), width=2)
    with pytest.raises(ValueError, match="do not fit"):
        SemiMarkov.pack(unary, torch.zeros(3, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="width="):
        SemiMarkov.pack(unary, torch.zeros(3, 3))


@pytest.mark.parametrize(
    ("polytope", "linear_map"),
    [
        (SemiMarkov(5, 2, 3), SemiMarkov.tags),
        (SemiMarkov(2, 2, 4), SemiMarkov.tags),
        (Alignment(3, 4, moves=True), Alignment.cells),
    ],
    ids=str,
)
def test_linear_maps_have_their_adjoints(polytope: DynamicProgram, linear_map: Any) -> None:
    y = normal(polytope, 2)
    image = linear_map.apply(y)
    weights = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)).double()
    pulled = linear_map.adjoint(weights, polytope.event_shape)
    close((image * weights).sum(), (y * pulled).sum())
    assert linear_map.fits(polytope.event_shape)
    vertex = polytope.maximize(y)
    mapped = linear_map.apply(vertex)
    assert bool(((mapped == 0) | (mapped == 1)).all())


@pytest.mark.parametrize(
    ("polytope", "labels", "message"),
    [
        (ProjectiveTree(4), [2, 3, -1, -1], "projective"),
        (ProjectiveTree(4), [1, 0, -1, 2], "cycle"),
        (ProjectiveTree(4), [0, -1, 1, 2], "other words"),
        (ProjectiveTree(4), [4, -1, 1, 2], "other words"),
        (ProjectiveTree(4), [-2, -2, -2, -2], "1 to 4 words"),
        (ProjectiveTree(4), [-1, -2, 1, 2], "other words"),
        (ProjectiveTree(4, single_root=True), [-1, -1, 1, 2], "one root"),
        (ProjectiveTree(4), [-1, 0, 1], "4 words"),
        (ConstituencyTree(3), [[0, 2], [0, 1], [1, 2]], "cross"),
        (ConstituencyTree(3), [[0, 2], [0, 0], [1, 1]], "split"),
        (ConstituencyTree(3), [[0, 1], [2, 2], [2, 2]], "twice"),
        (ConstituencyTree(3), [[0, 1], [1, 0], [0, 2]], "spans of words"),
        (ConstituencyTree(3), [[0, 3], [0, 1], [0, 2]], "1 to 3 words"),
        (ConstituencyTree(3, labels=2), [[0, 2, 2], [0, 1, 0]], "spans of words"),
        (ConstituencyTree(3, labels=2), [[0, 2, 1], [0, 1, 0]], "single word"),
        (ConstituencyTree(3), [[0, 2, 1], [0, 1, 0]], "rows, 2"),
        (SemiMarkov(3, 2, 2), [-1, 0, 1], "first position"),
        (SemiMarkov(3, 2, 2), [0, -1, -1], "more than 2"),
        (SemiMarkov(3, 2, 2), [0, 2, 1], "tag ids"),
        (SemiMarkov(3, 2, 2), [-2, -2, -2], "1 to 3 positions"),
        (SemiMarkov(3, 2, 2), [0, 1], "its length 3"),
        (Alignment(3, 3), [[0, 1], [1, 1], [2, 2]], "begin"),
        (Alignment(3, 3), [[0, 0], [2, 2]], "by one"),
        (Alignment(3, 3), [[0, 0], [1, 1], [0, 1]], "by one"),
        (Alignment(3, 3), [[0, 0], [-1, -1], [1, 1]], "padded"),
        (Alignment(3, 3), [[0, 0], [1, 1], [2, 2], [3, 3]], "cells of"),
        (Alignment(3, 3), [0, 0], "cells"),
    ],
)
def test_labels_that_are_no_structure(polytope: DynamicProgram, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        polytope.encode(torch.tensor(labels))
    with pytest.raises(TypeError, match="labels"):
        polytope.encode(torch.tensor(labels).double())


@pytest.mark.parametrize(
    ("polytope", "good", "wrong", "message"),
    [
        (ProjectiveTree(3), [-1, 0, 1], [-1, 5, 0], r"other words.*; instance 1 has 5 at position 1\."),
        (ProjectiveTree(3), [-1, 0, 1], [1, 0, -1], r"a cycle; instance 1 has 1 at position 0\."),
        (
            ConstituencyTree(3),
            [[0, 2], [0, 1]],
            [[0, 2], [2, 1]],
            r"spans of words.*; instance 1 has \[2, 1\] at position 1\.",
        ),
        (
            ConstituencyTree(3),
            [[0, 2], [0, 1]],
            [[0, 2], [0, 2]],
            r"no span twice; instance 1 has \[0, 2\] at position 0\.",
        ),
        (
            ConstituencyTree(3),
            [[0, 2], [0, 1]],
            [[0, 2], [-1, -1]],
            r"split every span in two; instance 1 has \[\[0, 2\], \[-1, -1\]\]\.",
        ),
        (SemiMarkov(3, 2, 2), [0, -1, 1], [0, 1, 2], r"tag ids .*; instance 1 has 2 at position 2\."),
        (SemiMarkov(3, 2, 2), [0, -1, 1], [1, -1, -1], r"than 2 .*; instance 1 has 1 at position 0\."),
        (
            Alignment(2, 2),
            [[0, 0], [1, 1]],
            [[0, 0], [0, 2]],
            r"cells of .*; instance 1 has \[0, 2\] at position 1\.",
        ),
        (
            Alignment(3, 2),
            [[0, 0], [1, 1]],
            [[0, 0], [2, 1]],
            r"by one; instance 1 has \[2, 1\] at position 1\.",
        ),
        (Alignment(2, 2), [[0, 0], [1, 1]], [[-1, -1], [-1, -1]], r"hold a cell of .*; instance 1 has"),
    ],
)
def test_labels_name_the_first_wrong_entry(
    polytope: DynamicProgram, good: Any, wrong: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        polytope.encode(torch.tensor([good, wrong]))


def test_labels_name_the_instance_and_obey_lengths() -> None:
    tree = ProjectiveTree(3)
    with pytest.raises(ValueError, match="instance 1"):
        tree.encode(torch.tensor([[-1, 0, 1], [1, 0, -1]]))
    shorter = tree.encode(torch.tensor([[1, -1, 7]]), lengths=torch.tensor([2]))
    assert tree.decode(shorter).tolist() == [[1, -1, -2]]
    with pytest.raises(ValueError, match=r"last cell; instance 0 \(lengths \[2, 3\]\) has \[1, 1\] at"):
        Alignment(3, 3).encode(torch.tensor([[[0, 0], [1, 1]]]), lengths=torch.tensor([[2, 3]]))
    bare = ConstituencyTree(3).encode(torch.tensor([[0, 1], [0, 2]]))  # single words left out
    assert bare.diagonal().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ProjectiveTree(0), ValueError, "at least 1"),
        (lambda: ProjectiveTree(2.0), TypeError, "whole number"),  # pyright: ignore
        (lambda: ConstituencyTree(3, labels=0), ValueError, "at least 1"),
        (lambda: SemiMarkov(3, 0, 1), ValueError, "at least 1"),
        (lambda: Alignment(3, 0), ValueError, "at least 1"),
        (lambda: Hypergraph([("a", ("b",)), ("b", ("a",))], 1, "a"), ValueError, "cycle, 'a' <- 'b'"),
        (lambda: Hypergraph([("a", ()), ("b", ("b",))], 1, "a"), ValueError, "cycle"),
        (lambda: Hypergraph([("a", ("b",))], 1, "a"), ValueError, r"add the edge \('b', \(\)\)"),
        (lambda: Hypergraph([("a", ())], 1, "b"), ValueError, "derives the goal 'b'"),
        (lambda: Hypergraph([], 1, "b"), ValueError, "derives the goal 'b'"),
        (lambda: Hypergraph([("a", (), 1)], 1, "a"), ValueError, "outside the shape"),
        (lambda: Hypergraph([("a", (), -1)], 1, "a"), ValueError, "outside the shape"),
        (lambda: Hypergraph([("a", (), 1)], (2, 2), "a"), ValueError, "outside the shape"),
        (lambda: Hypergraph([("a", (), "x")], 1, "a"), TypeError, "a part is"),
        (lambda: Hypergraph([("a", "b")], 1, "a"), TypeError, "tails"),
        (lambda: Hypergraph(["a"], 1, "a"), TypeError, "an edge is"),
        (lambda: Hypergraph([("a", ())], 1.5, "a"), TypeError, "shape"),  # pyright: ignore
        (lambda: Hypergraph([("a", ())], 0, "a"), ValueError, "at least 1"),
    ],
)
def test_declarations_that_are_wrong(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_two_derivations_of_one_structure_are_reported() -> None:
    twice = Hypergraph(
        [("s", ("l", "r")), ("l", (), (0, 0)), ("l", (), (0, 1)), ("r", (), (0, 0)), ("r", (), (0, 1))],
        shape=(1, 2),
        goal="s",
    )
    assert twice.derivation_count == 4
    assert len(twice.derivations().unique(dim=0)) == 3
    report = check(twice, count=1)
    wrong = {finding.regularizer for finding in report.findings if finding.counterexample is not None}
    assert wrong == {str(Gibbs())}


def test_many_derivations_are_counted_not_listed() -> None:
    doubling: list[Any] = [(0, (), 0), (0, (), 1)]
    doubling += [(i, (i - 1, i - 1)) for i in range(1, 12)]
    graph = Hypergraph(doubling, 2, 11)
    assert graph.derivation_count == 2**63
    assert "vertices" not in graph.facts
    assert graph.bounds[1].tolist() == [2048.0, 2048.0]
    assert graph.maximize(torch.tensor([1.0, 0.5])).tolist() == [2048.0, 0.0]
    close(graph.marginals(torch.zeros(2).double()), torch.full((2,), 1024.0).double())
    with pytest.raises(ValueError, match="more than the limit"):
        graph.derivations()


def test_a_user_declares_a_trellis() -> None:
    """Two tags, three positions: parts are (position, tag)."""
    edges: list[Any] = [("start", ())]
    for t in range(3):
        before = [(t - 1, i) for i in range(2)] if t else ["start"]
        edges += [((t, j), (node,), (t, j)) for j in range(2) for node in before]
    edges += [("end", ((2, j),)) for j in range(2)]
    chain = Hypergraph(edges, shape=(3, 2), goal="end")
    scores = normal(chain, 4)
    close(chain.marginals(scores), scores.softmax(-1))
    close(chain.project(scores).sum(-1), torch.ones(4, 3).double())


@pytest.mark.parametrize("masked", [False, True])
@every_size
def test_levels_equal_the_compiled_loops(
    polytope: DynamicProgram, lengths: Tensor, masked: bool
) -> None:
    for scale in (1.0, 100.0, 1e4):
        scores = normal(polytope, len(lengths), scale=scale)
        keep = polytope.sample(torch.zeros_like(scores), lengths=lengths) > 0
        keep |= normal(polytope, len(lengths), seed=2) > 0
        problem = pose(polytope, scores, None, lengths, keep if masked else None)
        compiled, levelwise = BestDerivation().solve(problem), LevelwiseViterbi().solve(problem)
        assert torch.equal(compiled.value, levelwise.value)
        assert compiled.objective is not None and levelwise.objective is not None
        close(compiled.objective, levelwise.objective)
        compiled, levelwise = InsideOutside().solve(problem), LevelwiseSums().solve(problem)
        close(compiled.value, levelwise.value)
        assert compiled.objective is not None and levelwise.objective is not None
        close(compiled.objective, levelwise.objective)
        direction = normal(polytope, len(lengths), seed=3)
        pulled = [road.vjp(problem, compiled, direction) for road in (InsideOutside(), LevelwiseSums())]
        close(pulled[0], pulled[1], 1e-9 * scale)
        if masked:
            assert bool((pulled[1][~keep] == 0).all())
            with pytest.raises(NoStructure):
                LevelwiseSums().solve(pose(polytope, scores, None, lengths, torch.zeros_like(keep)))


def test_levels_leave_counts_samples_and_lists_to_the_compiled_loops() -> None:
    scores = normal(REPEATED, 3)
    problem = pose(REPEATED, scores, None)
    assert torch.equal(LevelwiseViterbi().solve(problem).value, REPEATED.maximize(scores))
    assert torch.equal(LevelwiseSums().top_k(problem, 2), REPEATED.top_k(scores, 2))
    drawn = LevelwiseSums().sample(problem, 4, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, REPEATED.sample(scores, (4,), generator=torch.Generator().manual_seed(0)))


def test_quadratic_on_the_tags_alone() -> None:
    chain, hull = SemiMarkov(4, 2, 3), derivations.semimarkov_chains(4, 2, 3)
    omega = Euclidean(of=SemiMarkov.tags)
    scores = normal(chain, 3)
    found = SemiMarkov.tags.apply(chain.maximize(scores, omega))
    close(found, SemiMarkov.tags.apply(hull.maximize(scores, omega)), 1e-6)


@pytest.mark.slow
def test_long_sentences() -> None:
    tree = ProjectiveTree(100)
    marginals = tree.marginals(normal(tree, 2, scale=30.0))
    close(marginals.sum(1), torch.ones(2, 100).double())
    assert ConstituencyTree(100).maximize(normal(ConstituencyTree(100))).sum() == 199


def test_sums_equal_those_of_torch_struct() -> None:
    torch_struct: Any = pytest.importorskip("torch_struct")
    n = 6
    tree, spans = ProjectiveTree(n), ConstituencyTree(n)
    arcs = normal(tree, 2).float()
    for single_root in (False, True):
        leaf = arcs.clone().requires_grad_()  # it writes into its argument
        theirs = torch_struct.DependencyCRF(1.0 * leaf, multiroot=not single_root).partition
        ours = ProjectiveTree(n, single_root)
        close(ours.log_partition(arcs), theirs.detach(), 1e-4)
        (marginals,) = torch.autograd.grad(theirs.sum(), leaf)
        close(ours.marginals(arcs), marginals, 1e-4)
    weights = normal(spans, 2).float()
    close(spans.marginals(weights), torch_struct.TreeCRF(weights[..., None]).marginals[..., 0], 1e-4)
