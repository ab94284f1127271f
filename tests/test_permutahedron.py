"""The permutahedron by brute force, by its other roads, at scale; soft sorting and ranking."""

from __future__ import annotations

import itertools
import time

import mpmath
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax, Relaxed, SoftRank, SoftSort
from spigot.polytopes import (
    Euclidean,
    Gibbs,
    Hull,
    NoStructure,
    Permutahedron,
    Regularizer,
    Shannon,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import sorting
from spigot.polytopes.solvers import ActiveSet, Clarabel, FrankWolfe
from spigot.pullback import SPIGOT
from tests.tensors import normal

RELAXED: list[Regularizer] = [Euclidean(), Shannon(), Gibbs()]
each_regularizer = pytest.mark.parametrize("regularizer", RELAXED, ids=str)


def listed(weights: Tensor) -> Hull:
    return Hull(sorted(set(itertools.permutations(weights.tolist()))))


WEIGHTS = [
    [3.0, 2.0, 1.0, 0.0],
    [0.5, 2.0, 0.5, 0.0, 0.0],
    [1.0, 1.0, 1.0],
    [0.0, 0.0],
    [7.0],
]


@pytest.mark.parametrize("few", [1, 2, 7, 8, 9, 64, 200, 512, 513, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sort_is_stable_and_descending(few: int, dtype: torch.dtype) -> None:
    steps = torch.arange(few).double()
    ordered = torch.stack([steps, -steps, (steps / 2).floor(), -(steps / 2).floor()])
    rows = torch.cat([normal(3, few), normal(3, few).round(), torch.zeros(1, few), ordered]).to(dtype)
    rows[0, 0] = -0.0
    rows[1, : few // 2] *= 1e300 if dtype == torch.float64 else 1e30
    order, counts = torch.zeros(11, few, dtype=torch.int64), torch.zeros(11, dtype=torch.int64)
    lengths = torch.full((11,), few).numpy()
    keep = torch.zeros(0, few, dtype=torch.bool).numpy()
    over_instances(sorting.rank, 11, rows.numpy(), keep, lengths, order.numpy(), counts.numpy())
    assert bool((counts == few).all())
    assert torch.equal(order, rows.sort(dim=1, descending=True, stable=True).indices)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@each_regularizer
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0])
def test_against_the_listed_vertices(
    weights: list[float], regularizer: Regularizer, scale: float
) -> None:
    polytope, twin = Permutahedron(weights), listed(torch.tensor(weights))
    scores = normal(6, len(weights), scale=scale)
    scores[1], scores[2] = 0.0, scores[2].round()
    value = polytope.maximize(scores, regularizer)
    torch.testing.assert_close(value, twin.maximize(scores, regularizer), atol=1e-6, rtol=0)
    found = polytope.conjugate(scores, regularizer)
    torch.testing.assert_close(found, twin.conjugate(scores, regularizer), atol=1e-6, rtol=1e-8)


def test_ties_give_the_larger_weight_to_the_first() -> None:
    best = Permutahedron([0.0, 5.0, 5.0, 1.0]).maximize(torch.tensor([2.0, 1.0, 2.0, 2.0]))
    assert best.tolist() == [5.0, 0.0, 5.0, 1.0]


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0], [1.0, 1.0, 3.0, 0.0], [-1.0, 2.0, 2.0]], ids=str)
def test_the_element_at_ties_is_that_of_every_road(weights: list[float]) -> None:
    d = len(weights)
    points = [torch.zeros(d), torch.tensor([1.0, 1.0, 0.0, 0.0])[:d], torch.tensor(weights) - 0.25]
    for point in points:
        scores = point.double()
        jacobians = [
            torch.autograd.functional.jacobian(
                lambda s, solver=solver: Permutahedron(weights).maximize(s, Euclidean(), solver=solver),
                scores,
            )
            for solver in (None, ActiveSet(), Clarabel(), FrankWolfe())
        ]
        for other in jacobians[1:]:
            torch.testing.assert_close(other, jacobians[0], atol=1e-6, rtol=0)


def test_where_weights_are_equal_the_face_is_a_point() -> None:
    jacobian = torch.autograd.functional.jacobian(Permutahedron([2.0, 2.0]).project, torch.zeros(2))
    assert not jacobian.any()
    mixed = torch.autograd.functional.jacobian(Permutahedron([2.0, 1.0]).project, torch.zeros(2))
    torch.testing.assert_close(mixed, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]))


@each_regularizer
def test_gradients_by_scores_and_by_weights(regularizer: Regularizer) -> None:
    polytope = Permutahedron.of_ranks(5)
    scores = normal(3, 5, seed=1, scale=2.0).requires_grad_()
    weights = normal(3, 5, seed=2).exp().requires_grad_()
    lengths = torch.tensor([5, 3, 1])

    def verb(name: str, s: Tensor, w: Tensor) -> Tensor:
        found: Tensor = getattr(polytope, name)(s, regularizer, lengths=lengths, params={"w": w})
        return found

    for name in ("maximize", "conjugate"):
        assert torch.autograd.gradcheck(
            lambda s, w, name=name: verb(name, s, w), (scores, weights), atol=1e-6
        )


@each_regularizer
def test_lengths_masks_and_weights_are_those_of_each_instance_alone(regularizer: Regularizer) -> None:
    weights = torch.tensor([2.0, 0.0, 1.0, 0.0, 3.0, 0.0]).double()
    polytope = Permutahedron(weights)
    scores, lengths = normal(2, 3, 6), torch.tensor([[6, 4, 2], [1, 5, 6]])
    keep = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.9
    keep[0, 1:] = True
    keep[1, 0, 0] = True
    own = torch.stack([weights.roll(i) for i in range(6)]).reshape(2, 3, 6)
    own[1, 0, 0] = 0.5
    whole = polytope.maximize(scores, regularizer, lengths=lengths)
    masked = polytope.maximize(scores, regularizer, keep=keep)
    given = polytope.maximize(scores, regularizer, params={"w": own})
    for i, j in itertools.product(range(2), range(3)):
        m = int(lengths[i, j])
        alone = Permutahedron(weights[:m]).maximize(scores[i, j, :m], regularizer)
        torch.testing.assert_close(whole[i, j, :m], alone)
        assert not whole[i, j, m:].any()
        kept = keep[i, j]
        left = weights.sort(descending=True).values[: int(kept.sum())]
        alone = Permutahedron(left).maximize(scores[i, j, kept], regularizer)
        torch.testing.assert_close(masked[i, j, kept], alone)
        assert not masked[i, j, ~kept].any()
        alone = Permutahedron(own[i, j]).maximize(scores[i, j], regularizer)
        torch.testing.assert_close(given[i, j], alone)


@each_regularizer
def test_too_few_zeros_for_a_mask(regularizer: Regularizer) -> None:
    polytope = Permutahedron([0.0, 1.0, 2.0])
    keep = torch.tensor([[True, True, False], [False, True, False]])
    with pytest.raises(NoStructure, match=r"instance 1.*fewer zeros"):
        polytope.maximize(torch.zeros(2, 3), regularizer, keep=keep)
    with pytest.raises(NoStructure, match="instance 0"):
        Permutahedron([1.0, 0.0]).maximize(
            torch.zeros(1, 2), regularizer, lengths=torch.tensor([1]), keep=keep[1:, :2]
        )


def test_negative_weights() -> None:
    with pytest.raises(UnsupportedProblem, match="ranges over"):
        Permutahedron([1.0, -1.0]).maximize(torch.zeros(2), Shannon())
    with pytest.raises(UnsupportedProblem, match="never negative"):
        Permutahedron([1.0, -1.0]).maximize(torch.zeros(2), keep=torch.tensor([True, False]))
    own = torch.tensor([[1.0, 2.0], [1.0, -1.0]])
    with pytest.raises(UnsupportedProblem, match="holds -1 in instance 1"):
        Permutahedron([1.0, 0.0]).maximize(torch.zeros(2, 2), Shannon(), params={"w": own})
    with pytest.raises(UnsupportedProblem, match="holds -1 in instance 1"):
        Permutahedron([1.0, 0.0]).maximize(
            torch.zeros(2, 2), params={"w": own}, keep=torch.tensor([[True, True], [True, False]])
        )


def test_bad_weights() -> None:
    for wrong in ([], [[1.0, 2.0]], [float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="Permutahedron"):
            Permutahedron(wrong)  # pyright: ignore[reportArgumentType]
    for wrong in ("abc", [True, False], None):
        with pytest.raises(TypeError, match="Permutahedron"):
            Permutahedron(wrong)  # pyright: ignore[reportArgumentType]


def test_labels_are_ranks() -> None:
    polytope = Permutahedron([5.0, 7.0, 1.0, 3.0])
    labels = torch.tensor([[2, 0, 3, 1], [0, 1, 2, 3]])
    assert polytope.encode(labels).tolist() == [[3, 7, 1, 5], [7, 5, 3, 1]]
    assert torch.equal(polytope.decode(polytope.encode(labels)), labels)
    short = torch.tensor([[1, 0, -1, -1], [2, 1, 0, -1]])
    lengths = torch.tensor([2, 3])
    assert polytope.encode(short, lengths).tolist() == [[5, 7, 0, 0], [1, 5, 7, 0]]
    assert torch.equal(polytope.decode(polytope.encode(short, lengths), lengths), short)
    repeated = Permutahedron([1.0, 1.0, 0.0])
    vertex = repeated.encode(torch.tensor([1, 2, 0]))
    assert repeated.decode(vertex).tolist() == [0, 2, 1]
    for wrong in ([0, 0, 1, 2], [0, 1, 2, 4], [0, 1, 2]):
        with pytest.raises(ValueError, match="labels"):
            polytope.encode(torch.tensor(wrong))
    with pytest.raises(TypeError, match="labels must be ranks"):
        polytope.encode(torch.tensor([0.0, 1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("wrong", "lengths", "message"),
    [
        ([0, 1, 3], None, r"each rank.*; instance 1 has 3 at position 2\."),
        ([1, 0, 0], None, r"each rank.*; instance 1 has 0 at position 1\."),
        ([0, 2, -1], [3, 2], r"each rank.*; instance 1 \(length 2\) has 2 at position 1\."),
    ],
)
def test_labels_that_are_no_ranking_are_named(
    wrong: list[int], lengths: list[int] | None, message: str
) -> None:
    sizes = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        Permutahedron([3.0, 2.0, 1.0]).encode(torch.tensor([[0, 1, 2], wrong]), sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@each_regularizer
def test_huge_and_tiny_scores(dtype: torch.dtype, regularizer: Regularizer) -> None:
    polytope = Permutahedron([4.0, 1.0, 0.0, 2.5])
    for scale in (1e-30, 1e-9, 1e6, 1e15):
        scores = normal(5, 4, scale=scale).to(dtype).requires_grad_()
        value = polytope.maximize(scores, regularizer)
        (grad,) = torch.autograd.grad((value * normal(5, 4, seed=1).to(dtype)).sum(), scores)
        assert bool(grad.isfinite().all())
        torch.testing.assert_close(value.sum(1), torch.full((5,), 7.5, dtype=dtype))
        hard = polytope.maximize(scores.detach())
        if scale > 1:
            torch.testing.assert_close(value.detach(), hard)
        else:
            torch.testing.assert_close(value.detach(), torch.full((5, 4), 7.5 / 4, dtype=dtype))


def test_entropic_gradient_is_right_where_the_answer_underflows() -> None:
    scores = torch.tensor([0.0, -2000.0, -2001.0]).double()
    solution = Permutahedron([2.0, 0.0, 0.0]).solve(scores, Shannon())
    assert solution.value.tolist() == [2.0, 0.0, 0.0]
    expected = scores + torch.tensor(2.0).double().log() + 1
    torch.testing.assert_close(solution.gradient, expected)
    nothing = Permutahedron([0.0, 0.0]).solve(torch.zeros(2), Shannon())
    assert nothing.value.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_of_peaked_scores(scale: float, dtype: torch.dtype) -> None:
    weights = [2.0, 1.0, 1.0, -0.5, 0.0]
    scores = normal(5, seed=3, scale=scale).to(dtype)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(value) for value in scores.double().tolist()]
        chances = [
            (y, mpmath.exp(mpmath.fsum(a * b for a, b in zip(exact, y, strict=True))))
            for y in set(itertools.permutations(weights))
        ]
        total = mpmath.fsum(chance for _, chance in chances)
        mean = [float(mpmath.fsum(y[i] * chance for y, chance in chances) / total) for i in range(5)]
        log_total = float(mpmath.log(total))
    leaf = scores.clone().requires_grad_()
    found = Permutahedron(weights).marginals(leaf)
    torch.testing.assert_close(found.double(), torch.tensor(mean).double(), atol=1e-6, rtol=0)
    total = Permutahedron(weights).log_partition(scores).double()
    torch.testing.assert_close(total, torch.tensor(log_total).double(), rtol=1e-6, atol=1e-6)
    found.square().sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())


def test_sums_over_sets_are_for_small_sizes() -> None:
    with pytest.raises(UnsupportedProblem, match="17 of them are more than 16"):
        Permutahedron.of_ranks(17).marginals(torch.zeros(17))
    short = Permutahedron.of_ranks(40).marginals(torch.zeros(40), lengths=torch.tensor(2))
    torch.testing.assert_close(short[:2], torch.full((2,), 1.5))


def test_the_k_best_of_many_items() -> None:
    scores = normal(30)
    best = Permutahedron.of_ranks(30).top_k(scores, 20)
    values = best @ scores
    assert len(best.unique(dim=0)) == 20
    assert bool((values[:-1] >= values[1:]).all())
    torch.testing.assert_close(best[0], Permutahedron.of_ranks(30).maximize(scores))
    # the second best swaps two neighbours in the order
    gaps = -scores.sort(descending=True).values.diff()
    torch.testing.assert_close(values[0] - values[1], gaps.min())


def test_batches_and_layouts() -> None:
    polytope = Permutahedron([1.0, 3.0, 2.0])
    for regularizer in (None, *RELAXED):
        assert polytope.maximize(torch.zeros(0, 3), regularizer).shape == (0, 3)
        wide = normal(3, 4, 3, 2)
        value = polytope.maximize(wide[..., 0], regularizer)
        flat = polytope.maximize(wide[..., 0].contiguous().reshape(12, 3), regularizer)
        assert torch.equal(value, flat.reshape(3, 4, 3))


def test_a_hundred_thousand_is_quick() -> None:
    d = 100_000
    polytope = Permutahedron.of_ranks(d)
    scores = normal(1, d, scale=1e4).requires_grad_()
    polytope.project(scores[:, :d]).sum().backward()  # compiles
    start = time.perf_counter()
    value = polytope.project(scores)
    value.square().sum().backward()
    assert time.perf_counter() - start < 1.0
    found = polytope.solve(scores.detach(), Euclidean())
    assert found.gap is not None
    assert abs(float(found.gap)) < 1e-9 * float((scores * value).detach().sum().abs())
    entropic = polytope.solve(scores.detach() / 1e4, Shannon()).value
    torch.testing.assert_close(entropic.sum(), torch.tensor(d * (d + 1) / 2).double())


def test_it_trains_through_a_pull_back() -> None:
    target = torch.tensor([3.0, 1.0, 2.0, 4.0])
    polytope = Permutahedron.of_ranks(4)
    for layer in (Argmax(polytope, SPIGOT(1.0)), Relaxed(polytope, Shannon())):
        scores = torch.zeros(4, requires_grad=True)
        for _ in range(100):
            (layer(scores) - target).square().sum().backward()
            assert scores.grad is not None
            scores = (scores.detach() - 0.3 * scores.grad).requires_grad_()
        torch.testing.assert_close(layer(scores), target, atol=0.2, rtol=0)


def test_tsallis_by_the_generic_road() -> None:
    weights = [2.0, 1.0, 0.0]
    scores = normal(4, 3)
    found = Permutahedron(weights).maximize(scores, Tsallis(1.5))
    expected = listed(torch.tensor(weights)).maximize(scores, Tsallis(1.5))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# --- sorting and ranking ---------------------------------------------------------------------


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon()], ids=str)
def test_small_strengths_are_hard(descending: bool, regularizer: Regularizer) -> None:
    values = normal(4, 7)
    ordered = values.sort(dim=1, descending=descending)
    soft = SoftSort(regularizer, 1e-3, descending)(values)
    torch.testing.assert_close(soft, ordered.values, atol=1e-4, rtol=0)
    ranks = SoftRank(regularizer, 1e-3, descending)(values)
    torch.testing.assert_close(ranks, ordered.indices.argsort(dim=1).double() + 1, atol=1e-4, rtol=0)
    if isinstance(regularizer, Euclidean):
        flat = SoftSort(strength=1e6)(values)
        torch.testing.assert_close(flat, values.mean(1, keepdim=True).expand(4, 7), atol=1e-4, rtol=0)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon()], ids=str)
@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
def test_soft_orders_pass_gradcheck(descending: bool, regularizer: Regularizer, strength: float) -> None:
    values = normal(3, 6, seed=5).requires_grad_()
    lengths = torch.tensor([6, 4, 1])
    for kind in (SoftSort, SoftRank):
        layer = kind(regularizer, strength, descending)
        assert torch.autograd.gradcheck(
            lambda v, layer=layer: layer(v, lengths=lengths), values, atol=1e-6
        )
        alone = layer(values[1, :4])
        torch.testing.assert_close(layer(values, lengths=lengths)[1, :4], alone)


def test_soft_orders_are_projections_by_the_generic_road() -> None:
    values = normal(5)
    weights = Permutahedron(values)
    scores = torch.arange(5, 0, -1).double() / 0.7
    expected = weights.maximize(scores, Euclidean(), solver=Clarabel())
    found = SoftSort(strength=0.7, descending=True)(values)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    expected = Permutahedron.of_ranks(5).maximize(-values / 0.7, Euclidean(), solver=Clarabel())
    found = SoftRank(strength=0.7, descending=True)(values)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    expected = Permutahedron(values.exp()).maximize(scores, Shannon(), solver=FrankWolfe()).log()
    found = SoftSort(Shannon(), 0.7, descending=True)(values)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "regularizer"), [("l2", Euclidean()), ("kl", Shannon())], ids=str)
def test_torchsort_agrees(name: str, regularizer: Regularizer) -> None:
    torchsort = pytest.importorskip("torchsort")
    values = normal(4, 30).float()
    ours = SoftRank(regularizer, 0.5)(values)
    theirs = torchsort.soft_rank(values, regularization=name, regularization_strength=0.5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    ours = SoftSort(regularizer, 0.5)(values)
    theirs = torchsort.soft_sort(values, regularization=name, regularization_strength=0.5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_entropic_orders_of_values_beyond_the_exponential() -> None:
    values = torch.tensor([3000.0, -3000.0, 100.0], requires_grad=True)
    sorted_values = SoftSort(Shannon(), 1e-4)(values)
    torch.testing.assert_close(sorted_values, torch.tensor([-3000.0, 100.0, 3000.0]))
    (grad,) = torch.autograd.grad(sorted_values[0], values)
    assert grad.tolist() == [0.0, 1.0, 0.0]
    ranks = SoftRank(Shannon())(torch.linspace(0, 1, 2000))
    assert bool(ranks.isfinite().all())
    sharp = SoftRank(Shannon(), 1e-3)(torch.tensor([3000.0, -3000.0, 100.0]))
    torch.testing.assert_close(sharp, torch.tensor([3.0, 1.0, 2.0]))


def test_soft_orders_check_what_they_get() -> None:
    with pytest.raises(TypeError, match="SoftSort takes"):
        SoftSort(Gibbs())
    with pytest.raises(ValueError, match="strength"):
        SoftRank(strength=0.0)
    with pytest.raises(ValueError, match="NaN"):
        SoftRank()(torch.tensor([0.0, float("nan")]))
    assert repr(SoftSort(descending=True)) == "SoftSort(Euclidean(), strength=1.0, descending=True)"
    assert SoftRank()(torch.arange(300).bfloat16()).dtype == torch.bfloat16
    assert SoftSort()(torch.zeros(0, 3)).shape == (0, 3)
