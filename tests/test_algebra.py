"""Products, faces, affine images, batches of different polytopes, and intersections."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from itertools import permutations
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax
from spigot.polytopes import (
    Affine,
    Arborescence,
    AtMostOne,
    Batch,
    Convex,
    Euclidean,
    Face,
    Facets,
    Gibbs,
    Hull,
    Hypercube,
    Imply,
    InfeasiblePolytope,
    Intersection,
    Masked,
    NoStructure,
    Or,
    Oracle,
    OrOut,
    Polytope,
    Product,
    Sequence,
    Shannon,
    Simplex,
    Subset,
    Tsallis,
    UnsupportedProblem,
    Xor,
)
from spigot.polytopes.solvers import ActiveSet, Consensus
from spigot.pullback import SPIGOT
from tests.structures import EDGES_OF_A_TRIANGLE, binary, matchings, rook_placements, subsets
from tests.tensors import normal


def gradient(polytope: Polytope, scores: Tensor, weights: Tensor, **options: object) -> Tensor:
    leaf = scores.clone().requires_grad_()
    (polytope.maximize(leaf, Euclidean(), **options) * weights).sum().backward()  # type: ignore[arg-type]
    assert leaf.grad is not None
    return leaf.grad


# --- products ---------------------------------------------------------------------------------


MIXED = Product(tree=Arborescence(3), tag=Simplex(3), words=Subset(4, 2), other=Simplex(3))


@pytest.mark.parametrize("regularizer", [None, Euclidean(), Tsallis(1.5), Shannon(), Gibbs()], ids=str)
def test_a_product_is_its_factors_side_by_side(regularizer: object) -> None:
    scores = normal(2, 5, *MIXED.event_shape)
    parts = MIXED.split(scores)
    answers = MIXED.split(MIXED.maximize(scores, regularizer))  # type: ignore[arg-type]
    total: Tensor = torch.zeros(2, 5, dtype=torch.float64)
    for name, factor in zip(MIXED.names, MIXED.factors, strict=True):
        alone = factor.maximize(parts[name], regularizer)  # type: ignore[arg-type]
        torch.testing.assert_close(answers[name], alone)
        total += factor.conjugate(parts[name], regularizer)  # type: ignore[arg-type]
    torch.testing.assert_close(MIXED.conjugate(scores, regularizer), total)  # type: ignore[arg-type]
    assert torch.equal(MIXED.join(parts), scores)


def test_equal_factors_of_a_product_are_one_call() -> None:
    many = Product(*(Xor(3) for _ in range(50)))
    assert [tuple(block.columns.shape) for block in many.blocks] == [(50, 3)]
    scores = normal(4, 150)
    torch.testing.assert_close(
        many.project(scores), Xor(3).project(scores.reshape(4, 50, 3)).reshape(4, 150)
    )


def test_the_best_of_a_product_and_its_samples() -> None:
    product = Product(Simplex(2), Subset(3, 2), Or(2))
    every = Product(Hull(torch.eye(2)), subsets(3, 2), Hull(binary(2)[1:])).vertices()
    scores = normal(3, 7)
    ranked = product.top_k(scores, 18)
    values = (scores @ every.t()).sort(1, descending=True).values.t()
    torch.testing.assert_close((ranked * scores).sum(2), values)
    with pytest.raises(ValueError, match="only 18"):
        product.top_k(scores, 19)
    keep = torch.tensor([True, False, True, True, True, True, True])
    assert len(product.top_k(scores, 9, keep=keep)) == 9
    drawn = product.sample(scores, (4000,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), product.marginals(scores), rtol=0, atol=0.05)


def test_a_product_differentiates_and_names_what_a_factor_lacks() -> None:
    scores = normal(2, *MIXED.event_shape, seed=1).requires_grad_()
    for verb in (MIXED.project, MIXED.marginals, MIXED.entropy):
        assert torch.autograd.gradcheck(verb, scores)
    cube = Product(Simplex(2), Facets(lambda y: [y >= 0, y <= 1], (2,)))
    with pytest.raises(UnsupportedProblem):
        cube.which(Gibbs())
    assert cube.which(Euclidean()).rule == "factor by factor"
    assert cube.which(Convex(lambda y: cp.sum_squares(y))).rule == "cone program (cvxpy)"


def test_a_products_labels_shapes_and_masks() -> None:
    best = MIXED.maximize(normal(3, *MIXED.event_shape))
    assert torch.equal(MIXED.encode(MIXED.decode(best)).double(), best)
    keep = torch.ones(2, 4, dtype=torch.bool)
    keep[1, 2:] = False
    with pytest.raises(NoStructure, match="instance 1"):
        Product(Simplex(2), Simplex(2)).project(torch.zeros(2, 4), keep=keep)
    for make, error in (
        (lambda: Product(), ValueError),
        (lambda: Product(Simplex(2), other=Simplex(2)), ValueError),
        (lambda: Product(Simplex), TypeError),  # pyright: ignore[reportArgumentType]
        (lambda: MIXED.join([torch.zeros(2)]), ValueError),
    ):
        with pytest.raises(error):
            make()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": [0, 2], "b": [[0], [1]]}, r"factor a: labels must lie in 0\.\.1.*; instance 1 has 2\."),
        ({"a": [0, 1], "b": [[0], [-1]]}, r"factor b: .*sets of 1 .*; instance 1 has \[-1\]\."),
        ({"a": [0, 1], "c": [[0], [1]]}, r"has the factors a, b; got parts named a, c\."),
        ([[0, 1]], "2 factors, got 1 parts"),
    ],
)
def test_a_products_labels_name_the_factor(labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Product(a=Simplex(2), b=Subset(3, 1)).encode(labels)


def test_a_product_says_what_it_got() -> None:
    with pytest.raises(ValueError, match="got none"):
        Product()
    with pytest.raises(ValueError, match="got 1 by position and other by name"):
        Product(Simplex(2), other=Simplex(2))
    with pytest.raises(ValueError, match=r"takes a tuple; got parts named a\."):
        Product(Simplex(2)).encode({"a": 0})


# --- faces ------------------------------------------------------------------------------------


def test_a_masked_polytope_takes_sizes_and_parameters() -> None:
    keep = torch.tensor([True, True, False, True, True])
    masked = Masked(Subset(5, 2), keep)
    scores, lengths = normal(3, 5), torch.tensor([2, 4, 5])
    for regularizer in (None, Euclidean(), Gibbs()):
        torch.testing.assert_close(
            masked.maximize(scores, regularizer, lengths=lengths),
            Subset(5, 2).maximize(scores, regularizer, lengths=lengths, keep=keep),
        )
        params = {"k": torch.tensor([1, 2, 3])}
        torch.testing.assert_close(
            masked.maximize(scores, regularizer, params=params),
            Subset(5, 2).maximize(scores, regularizer, params=params, keep=keep),
        )
    with pytest.raises(UnsupportedProblem, match="never"):
        Masked(Hull([[-1.0, 0.0], [1.0, 1.0]]), torch.tensor([False, True]))
    with pytest.raises(ValueError, match="event shape"):
        Masked(Subset(5, 2), keep[:4])
    with pytest.raises(TypeError, match=r"got dtype torch\.float32"):
        Masked(Subset(3, 2), torch.ones(3))
    with pytest.raises(TypeError, match="got list"):
        Masked(Subset(3, 2), [True] * 3)  # pyright: ignore[reportArgumentType]
    face = Masked(Subset(3, 2), torch.tensor([True, False, True]))
    with pytest.raises(ValueError, match=r"instance 1 uses part \(1,\)\. Also wrong: instance 2\."):
        face.encode([[0, 2], [0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("polytope", "part"),
    [(Arborescence(4), (0, 2)), (Sequence(4, 3), (2, 1, 1)), (Simplex(4), (1,)), (Xor(3), (0,))],
    ids=str,
)
def test_a_part_at_one_is_often_a_mask(polytope: Polytope, part: tuple[int, ...]) -> None:
    ones = torch.zeros(polytope.event_shape, dtype=torch.bool)
    ones[part] = True
    face = Face(polytope, ones)
    assert face.masked is not None
    scores = normal(6, *polytope.event_shape)
    drawn = polytope.sample(scores[0], (4000,), generator=torch.Generator().manual_seed(0))
    with_part = drawn[drawn[(slice(None), *part)] == 1]
    marginals = face.marginals(scores[0])
    torch.testing.assert_close(with_part.mean(0), marginals, rtol=0, atol=4 / len(with_part) ** 0.5)
    assert bool((marginals[part] - 1).abs() < 1e-12)
    value = face.maximize(scores)
    assert bool((value[(slice(None), *part)] == 1).all())
    torch.testing.assert_close(
        face.project(scores), face.maximize(scores, Euclidean(), solver=ActiveSet()), atol=1e-7, rtol=0
    )


def test_a_face_that_is_no_mask_takes_the_generic_roads() -> None:
    ones = torch.tensor([True, False, False, False])
    face, twin = Face(Subset(4, 2), ones), Face(subsets(4, 2), ones)
    assert face.masked is None
    scores = normal(5, 4)
    torch.testing.assert_close(face.project(scores), twin.project(scores))
    with pytest.raises(UnsupportedProblem):
        face.which(Gibbs())
    assert twin.marginals(scores)[:, 0].allclose(torch.ones(5).double())
    with pytest.raises(NoStructure, match=r"all of the parts \(0,\), \(1,\) at 1; fix fewer"):
        Face(Subset(4, 1), torch.tensor([True, True, False, False])).maximize(scores)
    with pytest.raises(ValueError, match=r"fixes at 1; instance 1 lacks part \(0,\)\."):
        Face(Subset(4, 2), torch.tensor([True, False, False, False])).encode([[0, 2], [1, 2]])
    with pytest.raises(UnsupportedProblem, match="exceed 1"):
        Face(Hull([[0.0], [2.0]]), torch.tensor([True]))


# --- affine images ------------------------------------------------------------------------------


def test_an_affine_image_that_keeps_angles_goes_the_polytopes_roads() -> None:
    image = Affine(Simplex(3), 2 * torch.eye(3).flip(0), [1.0, 0.0, -1.0])
    hull = Hull(image.image(torch.eye(3).double()))
    scores = normal(5, 3, scale=3.0)
    assert image.which(Euclidean()).rule == "the polytope's own projection, rotated"
    torch.testing.assert_close(image.project(scores), hull.project(scores))
    torch.testing.assert_close(image.marginals(scores), hull.marginals(scores))
    torch.testing.assert_close(image.log_partition(scores), hull.log_partition(scores))
    assert torch.equal(image.top_k(scores, 3), hull.top_k(scores, 3))
    leaf = scores.requires_grad_()
    for verb in (image.project, image.marginals, image.entropy):
        assert torch.autograd.gradcheck(verb, leaf)


def test_images_that_coincide_count_once() -> None:
    pooled = [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert not Affine(Hull(torch.eye(3)), pooled).injective
    listed = Affine(Hull(torch.eye(3)), pooled)
    torch.testing.assert_close(listed.log_partition(torch.zeros(2)), torch.tensor(2.0).log())
    with pytest.raises(UnsupportedProblem):
        Affine(Simplex(3), pooled).which(Gibbs())
    keep = torch.tensor([True, False])
    torch.testing.assert_close(listed.project(torch.zeros(2), keep=keep), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="must be"):
        Affine(Simplex(3), torch.eye(2))
    with pytest.raises(ValueError, match=r"the matrix must be finite, got nan at \(0, 1\)"):
        Affine(Simplex(2), torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"the offset must be finite, got inf at \(1,\)"):
        Affine(Simplex(2), torch.eye(2), torch.tensor([0.0, torch.inf]))


# --- batches of different polytopes ---------------------------------------------------------------


OTHERS = [Simplex(2), Subset(3, 2), Simplex(2), Or(3), Arborescence(2)]


@pytest.mark.parametrize("regularizer", [None, Euclidean(), Gibbs(), Tsallis(1.5)], ids=str)
def test_each_instance_has_its_own_polytope(regularizer: object) -> None:
    batch = Batch(OTHERS[:4])
    scores = normal(2, 4, 3)
    together = batch.maximize(scores, regularizer)  # type: ignore[arg-type]
    assert len(batch.owners) == 3
    for i, polytope in enumerate(batch.polytopes):
        (size,) = polytope.event_shape
        alone = polytope.maximize(scores[:, i, :size], regularizer)  # type: ignore[arg-type]
        torch.testing.assert_close(together[:, i, :size], alone)
        assert bool((together[:, i, size:] == 0).all())


def test_every_verb_of_a_batch() -> None:
    batch = Batch(OTHERS[:4])
    scores = normal(2, 4, 3).requires_grad_()
    for verb in (batch.project, batch.marginals, batch.entropy):
        assert torch.autograd.gradcheck(verb, scores)
    exact = scores.detach()
    solution = batch.solve(exact, Euclidean())
    assert solution.gap is not None and bool((solution.gap.abs() < 1e-12).all())
    assert bool(batch.contains(solution.value).all())
    assert batch.sample(exact, (5,)).shape == (5, 2, 4, 3)
    assert batch.top_k(exact, 2).shape == (2, 2, 4, 3)
    torch.testing.assert_close(batch.maximize(exact, Euclidean(), solver=ActiveSet()), solution.value)
    best = batch.maximize(exact[0])
    assert torch.equal(batch.encode(batch.decode(best)).double(), best)
    leaf = exact.clone().requires_grad_()
    Argmax(batch, SPIGOT())(leaf).square().sum().backward()
    assert leaf.grad is not None and bool((leaf.grad[:, 0, 2] == 0).all())
    assert batch.maximize(exact[:0], Gibbs()).shape == (0, 4, 3)


def test_sizes_masks_and_parameters_reach_each_polytope() -> None:
    batch = Batch([Simplex(2), Subset(3, 2)])
    scores = normal(2, 3)
    short = batch.project(scores, lengths=torch.tensor([1, 2]))
    assert short.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    with pytest.raises(ValueError, match=r"in 1\.\.2 for Simplex\(d=2\); instance 0 has 3\."):
        batch.project(scores, lengths=torch.tensor([3, 3]))
    keep = torch.tensor([[True, True, False], [False, True, True]])
    assert batch.maximize(scores, keep=keep)[1].tolist() == [0.0, 1.0, 1.0]
    signed = Batch([Simplex(2), Hull([[-1.0, 0.0], [1.0, 1.0]])])
    only_first = torch.tensor([[False, True], [True, True]])
    assert signed.maximize(torch.zeros(2, 2), keep=only_first)[0].tolist() == [0.0, 1.0]
    with pytest.raises(UnsupportedProblem, match="never"):
        signed.maximize(torch.zeros(2, 2), keep=~only_first | torch.tensor([[True], [False]]))
    subsets_of = Batch([Subset(3, 1), Subset(4, 1)])
    chosen = subsets_of.maximize(normal(2, 4), params={"k": torch.tensor([2, 3])})
    assert chosen.sum(1).tolist() == [2.0, 3.0]


def test_a_batch_refuses_what_does_not_fit() -> None:
    batch = Batch([Simplex(2), Subset(3, 2)])
    with pytest.raises(ValueError, match="ends in 2"):
        batch.project(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"as many dimensions; .* at position \d \(\d, \d\)"):
        Batch(OTHERS)
    with pytest.raises(ValueError, match="got none"):
        Batch([])
    with pytest.raises(ValueError, match=r"batch shape \(2,\), got \(3,\)"):
        batch.decode(torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"label 1, of Subset.*labels must be sets of 2"):
        batch.encode([1, [0]])
    with pytest.raises(UnsupportedProblem):
        Batch([Simplex(2), Facets(lambda y: [y >= 0, y <= 1], (2,))]).which(Gibbs())
    with pytest.raises(TypeError, match="at position 1"):
        Batch([Simplex(2), Simplex])  # pyright: ignore[reportArgumentType]


# --- intersections ------------------------------------------------------------------------------


def random_graph(d: int, count: int, seed: int) -> Intersection:
    """Clauses over random parts, which may contradict one another."""
    rng = torch.Generator().manual_seed(seed)
    factors: list[tuple[Polytope, Tensor]] = [(Hypercube(d), torch.arange(d))]
    kinds = (Or, AtMostOne, Imply, OrOut)
    for _ in range(count):
        size = int(torch.randint(2, 5, (1,), generator=rng))
        kind = kinds[int(torch.randint(len(kinds), (1,), generator=rng))]
        factors.append((kind(size), torch.randperm(d, generator=rng)[:size]))
    return Intersection(factors, d)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0, 100.0])
def test_crossing_simplices_are_birkhoffs_polytope(scale: float) -> None:
    crossing = rook_placements(4)
    listed = Hull(
        torch.stack([torch.eye(4, dtype=torch.float64)[list(p)] for p in permutations(range(4))])
    )
    scores, weights = normal(8, 4, 4, scale=scale), normal(8, 4, 4, seed=1)
    solution = crossing.solve(scores, Euclidean())
    torch.testing.assert_close(solution.value, listed.project(scores), rtol=0, atol=1e-8)
    torch.testing.assert_close(
        gradient(crossing, scores, weights), gradient(listed, scores, weights), rtol=0, atol=1e-8
    )
    best = crossing.solve(scores)
    assert best.integral is not None and bool(best.integral.all())
    torch.testing.assert_close(
        (best.value * scores).sum((1, 2)), (listed.maximize(scores) * scores).sum((1, 2))
    )


@pytest.mark.parametrize("seed", range(4))
def test_random_graphs_against_the_constraints(seed: int) -> None:
    graph = random_graph(10, 8, seed)
    facets = Facets(graph.constraints, (10,))
    for scale in (0.0, 1.0, 30.0):
        scores, weights = normal(12, 10, seed=seed, scale=scale), normal(12, 10, seed=9)
        solution = graph.solve(scores, Euclidean())
        expected = facets.project(scores)
        torch.testing.assert_close(solution.value, expected, rtol=0, atol=1e-7 * (1 + scale))
        assert solution.gap is not None
        assert bool((solution.gap.abs() <= 1e-12 * (1 + scale) ** 2).all())
        torch.testing.assert_close(
            gradient(graph, scores, weights), gradient(facets, scores, weights), rtol=0, atol=1e-7
        )


def test_the_certificate_bounds_the_error_of_a_truncated_answer() -> None:
    graph = random_graph(10, 8, 1)
    scores = normal(16, 10, scale=3.0)
    exact = graph.project(scores)
    early = graph.solve(scores, Euclidean(), solver=Consensus(max_steps=2), throw=False)
    assert early.gap is not None
    outside = (early.value - Facets(graph.constraints, (10,)).project(early.value)).norm(dim=1)
    inside = outside <= 1e-9  # elsewhere the answer has not reached M, and there is nothing to bound
    assert bool(inside.any())
    error = (early.value - exact).square().sum(1)
    assert bool((error[inside] <= early.gap[inside] + 1e-12).all())
    joint = graph.gap(exact, scores, Euclidean())
    factorwise = graph.solve(scores, Euclidean()).gap
    assert factorwise is not None and bool((factorwise >= joint - 1e-9).all())


def test_a_mask_fixes_shared_parts_everywhere() -> None:
    crossing = rook_placements(3)
    listed = matchings(3, 3)
    rng = torch.Generator().manual_seed(0)
    scores = normal(10, 3, 3)
    favourite = crossing.maximize(normal(10, 3, 3, seed=1))
    keep = (favourite > 0) | (torch.rand(10, 3, 3, generator=rng) < 0.4)
    torch.testing.assert_close(
        crossing.project(scores, keep=keep), listed.project(scores, keep=keep), rtol=0, atol=1e-8
    )
    leaf = scores.clone().requires_grad_()
    crossing.project(leaf, keep=keep).square().sum().backward()
    assert leaf.grad is not None and bool((leaf.grad[~keep] == 0).all())
    jointly_empty = torch.ones(3, 3, dtype=torch.bool)
    jointly_empty[:2, :2] = False  # two rows are left one column
    with pytest.raises(NoStructure):
        crossing.project(torch.zeros(3, 3), keep=jointly_empty)


def test_fractional_answers_are_told_from_common_vertices() -> None:
    triangle = Intersection(EDGES_OF_A_TRIANGLE)
    solution = triangle.solve(torch.tensor([[1.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
    assert solution.integral is not None
    assert solution.integral.tolist() == [False, True]
    torch.testing.assert_close(solution.value[0], torch.full((3,), 0.5))
    assert not triangle.exact
    assert Intersection([(Or(2), [0, 1]), (Xor(2), [1, 2])]).exact  # a chain
    assert Intersection([(Subset(3, 2), [0, 1, 2])]).exact
    assert not Intersection([(Hull([[0.0], [2.0]]), [0]), (Hull([[0.0], [1.0], [2.0]]), [0])]).exact


def test_factors_need_no_constraints_to_be_projected_onto() -> None:
    top = Oracle(lambda s: torch.eye(3)[int(s.argmax())].numpy(), (3,))
    both = Intersection([(top, [0, 1, 2]), (Or(2), [2, 3])])
    same = Intersection([(Simplex(3), [0, 1, 2]), (Or(2), [2, 3])])
    scores = normal(3, 4)
    torch.testing.assert_close(both.project(scores), same.project(scores), rtol=0, atol=1e-7)
    with pytest.raises(UnsupportedProblem):
        both.maximize(scores)


def test_factors_that_contradict_are_reported() -> None:
    nothing = Intersection([(Xor(2), [0, 1]), (Subset(2, 2), [0, 1])])
    for regularizer in (None, Euclidean()):
        with pytest.raises(InfeasiblePolytope, match="conflict"):
            nothing.maximize(torch.zeros(2), regularizer)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Intersection([]), ValueError, "at least one"),
        (lambda: Intersection([(Xor(2), [0, 2])]), ValueError, "covers"),
        (lambda: Intersection([(Xor(2), [0, 0])]), ValueError, "distinct, got 0 more than once"),
        (lambda: Intersection([(Xor(2), [0, 1, 2])]), ValueError, "2 parts"),
        (lambda: Intersection([(Xor(2), [0, 3])], 3), ValueError, r"0\.\.2, got 3"),
        (lambda: Intersection([(Xor(2), torch.rand(2))]), TypeError, "indices"),
        (lambda: Intersection([[0, 1]]), TypeError, "pairs"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_factors_are_refused(make: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    "polytope",
    [
        MIXED,
        Masked(Subset(4, 2), torch.tensor([True, True, True, False])),
        Face(Simplex(3), torch.tensor([True, False, False])),
        Affine(Simplex(3), torch.eye(3)),
        rook_placements(2),
    ],
    ids=lambda polytope: type(polytope).__name__,
)
def test_they_pickle_and_train(polytope: Polytope) -> None:
    scores = normal(2, *polytope.event_shape).requires_grad_()
    copy = pickle.loads(pickle.dumps(polytope))
    torch.testing.assert_close(copy.project(scores.detach()), polytope.project(scores.detach()))
    Argmax(polytope, SPIGOT())(scores).square().sum().backward()
    assert scores.grad is not None
