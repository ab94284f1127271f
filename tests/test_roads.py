"""The generic roads: one set by three facts, ties, degenerate points, sizes."""

from __future__ import annotations

import os
import threading
import tracemalloc
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.polytopes import (
    Convex,
    Euclidean,
    Facets,
    FermiDirac,
    Gibbs,
    Hull,
    Hypercube,
    IntegerHull,
    Oracle,
    Polytope,
    Regularizer,
    Shannon,
    Simplex,
    SpanningTree,
    Status,
    Subset,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.dispatch import Solver, rule
from spigot.polytopes.solvers import (
    ActiveSet,
    BatchedNewton,
    Clarabel,
    Cvxpy,
    CvxpyLayers,
    FrankWolfe,
    Highs,
    Newton,
)
from tests.structures import AtMostTwo, best_corner, boards, corners, diamond, subsets


def birkhoff(y: cp.Variable) -> list[Any]:
    return [y >= 0, cp.sum(y, axis=0) == 1, cp.sum(y, axis=1) == 1]


def permutation(scores: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-scores)
    answer = np.zeros_like(scores)
    answer[rows, columns] = 1
    return answer


def permutations(n: int) -> Hull:
    from itertools import permutations as every

    return Hull(torch.stack([torch.eye(n, dtype=torch.float64)[list(p)] for p in every(range(n))]))


def subset_facets(y: cp.Variable) -> list[Any]:
    return Subset(5, 2).constraints(y)


SETS: dict[str, tuple[Polytope, Polytope, Polytope]] = {
    "subset": (
        Oracle(Subset(5, 2).argmax, (5,), batched=True),
        Facets(subset_facets, (5,)),
        subsets(5, 2),
    ),
    "birkhoff": (Oracle(permutation, (3, 3)), Facets(birkhoff, (3, 3)), permutations(3)),
    "l1 ball": (Oracle(best_corner, (3,), batched=True), Facets(diamond, (3,)), corners(3)),
    "board": (
        Oracle(boards(3, 3, 4).maximize, (3, 3), batched=True),
        Facets(
            lambda y: [
                y >= 0,
                y <= 1,
                cp.sum(y, axis=0) <= 2,
                cp.sum(y, axis=1) <= 2,
                cp.sum(y) == 4,
            ],
            (3, 3),
        ),
        boards(3, 3, 4),
    ),
}
every_set = pytest.mark.parametrize("name", SETS)


def special(event: tuple[int, ...]) -> Tensor:
    """Random, zero, equal and tied scores."""
    rng = torch.Generator().manual_seed(0)
    random = torch.randn(4, *event, generator=rng, dtype=torch.float64)
    integers = torch.randint(-1, 2, (4, *event), generator=rng).double()
    return torch.cat([random, torch.zeros(1, *event), torch.full((1, *event), 0.3), integers]).double()


@every_set
@pytest.mark.parametrize("regularizer", [Shannon(), FermiDirac(), Tsallis(1.5)], ids=str)
def test_regularizers_outside_their_domain(name: str, regularizer: Regularizer) -> None:
    for polytope in SETS[name]:
        if name == "l1 ball":
            with pytest.raises(UnsupportedProblem, match=r"part \(0,\) ranges over \[-1, 1\]"):
                polytope.maximize(torch.zeros(3), regularizer)
        else:
            assert bool(polytope.solve(torch.zeros(polytope.event_shape), regularizer).converged)


NONNEGATIVE = [name for name in SETS if name != "l1 ball"]
CASES = [("l1 ball", Euclidean())] + [
    (name, omega)
    for name in NONNEGATIVE
    for omega in (Euclidean(), Shannon(), FermiDirac(), Tsallis(1.5))
]


@pytest.mark.parametrize(("name", "regularizer"), CASES, ids=str)
def test_three_facts_give_the_same_answers_and_gradients(name: str, regularizer: Regularizer) -> None:
    answers: list[Tensor] = []
    gradients: list[Tensor] = []
    conjugates: list[Tensor] = []
    for polytope in SETS[name]:
        scores = special(polytope.event_shape).requires_grad_()
        weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).double()
        value = polytope.maximize(scores, regularizer)
        (gradient,) = torch.autograd.grad((value * weight).sum(), scores)
        answers.append(value.detach())
        gradients.append(gradient)
        conjugates.append(polytope.conjugate(scores.detach(), regularizer))
    for other in (1, 2):
        torch.testing.assert_close(answers[other], answers[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(conjugates[other], conjugates[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(gradients[other], gradients[0], atol=1e-5, rtol=0)


@every_set
def test_three_facts_give_vertices_of_the_same_score(name: str) -> None:
    listed = SETS[name][2]
    assert isinstance(listed, Hull)
    scores = special(listed.event_shape)
    values: list[Tensor] = []
    for polytope in SETS[name]:
        best = polytope.maximize(scores)
        distance = (best.flatten(1)[:, None] - listed.vertices().flatten(1)).abs().amax(2).amin(1)
        assert float(distance.max()) == 0.0
        values.append((scores * best).flatten(1).sum(1))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(values[0], values[2])


def test_rank_of_the_jacobian_where_the_support_spans_too_little() -> None:
    """At s = 0 three permutations mix to the centre, and the true rank is 4."""
    for polytope in SETS["birkhoff"]:
        scores = torch.zeros(3, 3, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(polytope.project, scores).reshape(9, 9)
        assert torch.linalg.matrix_rank(jacobian, atol=1e-8) == 4
        torch.testing.assert_close(jacobian @ jacobian, jacobian)
        centre = torch.eye(3).double() - 1 / 3
        torch.testing.assert_close(jacobian, torch.kron(centre, centre), atol=1e-8, rtol=0)


def test_the_documented_element_at_ties() -> None:
    """A part on its bound without a multiplier counts as free, by every road."""
    box = Hypercube(2)
    roads: list[Solver | None] = [None, ActiveSet(), Clarabel(), Cvxpy(), FrankWolfe()]
    for solver in roads:
        scores = torch.tensor([0.0, -1.0], dtype=torch.float64, requires_grad=True)
        box.maximize(scores, Euclidean(), solver=solver).sum().backward()
        torch.testing.assert_close(scores.grad, torch.tensor([1.0, 0.0]).double())


@pytest.mark.parametrize("d", [1, 2, 3, 7, 40])
def test_the_l1_ball_at_zero_gives_a_vertex(d: int) -> None:
    best = Facets(diamond, (d,)).maximize(torch.zeros(d, dtype=torch.float64))
    assert best.abs().sum() == 1
    assert best.abs().max() == 1


def test_ties_do_not_depend_on_batch_threads_or_fork() -> None:
    polytope = SETS["board"][1]
    scores = torch.randint(-1, 2, (30, 3, 3), generator=torch.Generator().manual_seed(5)).double()
    expected = polytope.maximize(scores)
    alone = torch.stack([polytope.maximize(row) for row in scores])
    assert torch.equal(alone, expected)
    answers: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: answers.append(polytope.maximize(scores))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(torch.equal(answer, expected) for answer in answers)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(polytope.maximize(scores), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_hull_with_a_point_that_is_no_vertex() -> None:
    segment = Hull([[0.5], [0.0], [1.0]])
    assert segment.maximize(torch.zeros(1)).item() in (0.0, 1.0)
    torch.testing.assert_close(segment.marginals(torch.zeros(1)), torch.tensor([0.5]))


def test_duplicates_count_once() -> None:
    double = Hull([[0.0], [1.0], [1.0]])
    torch.testing.assert_close(double.log_partition(torch.zeros(1)).exp(), torch.tensor(2.0))


def test_integer_hull_is_not_its_relaxation() -> None:
    def odd(y: cp.Variable) -> list[Any]:
        return [y >= 0, y[0] + y[1] <= 1, y[1] + y[2] <= 1, y[0] + y[2] <= 1]

    scores = torch.ones(3, dtype=torch.float64)
    relaxed, hull = Facets(odd, (3,)), IntegerHull(odd, (3,))
    torch.testing.assert_close(relaxed.maximize(scores), torch.full((3,), 0.5).double())
    assert hull.maximize(scores).sum() == 1
    torch.testing.assert_close(hull.project(scores), torch.full((3,), 1 / 3).double())


def test_integer_hull_beyond_zero_and_one_returns_extreme_points() -> None:
    hull = IntegerHull(lambda y: [y >= 0, y <= 3], (2,))
    assert set(hull.maximize(torch.zeros(2)).tolist()) <= {0.0, 3.0}


def test_convex_by_constraints_and_vertices_with_gradient() -> None:
    half = Convex(lambda y: 0.5 * cp.sum_squares(y))
    scores = special((5,))[:4].requires_grad_()
    for polytope in SETS["subset"][1:]:
        value = polytope.maximize(scores, half)
        torch.testing.assert_close(value, Subset(5, 2).project(scores), atol=1e-5, rtol=0)
        (found,) = torch.autograd.grad(value[:, 0].sum(), scores)
        (expected,) = torch.autograd.grad(Subset(5, 2).project(scores)[:, 0].sum(), scores)
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
        conjugate = polytope.conjugate(scores, half)
        torch.testing.assert_close(
            conjugate, Subset(5, 2).conjugate(scores, Euclidean()), atol=1e-5, rtol=0
        )


def test_cvxpylayers_is_a_peer() -> None:
    scores = special((5,))[:4].requires_grad_()
    value = Subset(5, 2).maximize(scores, Euclidean(), solver=CvxpyLayers())
    torch.testing.assert_close(value, Subset(5, 2).project(scores), atol=1e-3, rtol=0)
    (found,) = torch.autograd.grad(value.square().sum(), scores)
    (expected,) = torch.autograd.grad(Subset(5, 2).project(scores).square().sum(), scores)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_support_and_weights_mix_to_the_answer() -> None:
    oracle = SETS["birkhoff"][0]
    scores = special((3, 3))
    solution = oracle.solve(scores, Euclidean())
    assert solution.support is not None
    assert solution.weights is not None
    mixture = torch.einsum("bm,bmij->bij", solution.weights, solution.support)
    torch.testing.assert_close(mixture, solution.value)
    torch.testing.assert_close(solution.weights.sum(1), torch.ones(len(scores)).double())
    assert bool((solution.weights >= 0).all())


def test_a_budget_truncates_inside_the_set() -> None:
    scores = 0.1 * torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    oracle = SETS["subset"][0]
    rough = oracle.solve(scores, Euclidean(), solver=ActiveSet(max_steps=1), throw=False)
    exact = oracle.solve(scores, Euclidean())
    assert bool((rough.status == Status.STOPPED).any())
    assert bool(SETS["subset"][1].contains(rough.value).all())
    assert rough.gap is not None
    error = (rough.value - exact.value).square().sum(1)
    assert bool((error <= rough.gap + 1e-12).all())


@pytest.mark.parametrize("kind", ["dimensions", "facets"])
def test_ten_thousand_needs_no_dense_square(kind: str) -> None:
    def chain(y: cp.Variable) -> list[Any]:
        return [y >= 0, y <= 1, cp.sum(y) == 100, y[:-1] + y[1:] <= 1]

    normals = np.random.default_rng(0).normal(size=(10_000, 10))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    polytope = (
        Facets(chain, (10_000,)) if kind == "dimensions" else Facets(lambda y: [normals @ y <= 1], (10,))
    )
    scores = torch.randn(1, *polytope.event_shape, generator=torch.Generator().manual_seed(0))
    scores = scores.double().requires_grad_()
    tracemalloc.start()
    best = polytope.maximize(scores)
    value = polytope.project(scores)
    value.square().sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000 * 10_000  # bytes: an eighth of one dense square of float64
    assert bool((polytope.gap(value.detach(), scores.detach(), Euclidean()).abs() < 1e-6).all())
    assert float((scores * (best - value)).detach().sum()) >= -1e-9
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_which_names_the_road() -> None:
    assert Subset(4, 2).which(Euclidean()).rule == "Newton on the multiplier of sum(y)"
    assert Subset(4, 2).which(Euclidean(), solver=ActiveSet()).rule == "active set on the oracle"
    facets = SETS["subset"][1]
    assert facets.which().rule == Highs.name
    assert facets.which(Euclidean()).rule == Newton.name
    assert facets.which(Shannon()).facts == ("constraints",)
    assert facets.which(Euclidean(), "cuda").rule == BatchedNewton.name
    assert facets.which(Euclidean(), "cuda").native
    assert not SETS["subset"][0].which(Euclidean(), "cuda").native  # an oracle's active set
    assert SETS["subset"][2].which(Gibbs()).exact


def test_a_more_specific_rule_wins() -> None:
    from spigot.polytopes.structures.simplex import Softmax

    class Special(Simplex):
        pass

    assert Special(3).which(Gibbs()).rule == "softmax"

    @rule(Special, Gibbs)
    class Named(Softmax):
        name = "special softmax"

    assert Special(3).which(Gibbs()).rule == Named.name
    assert Simplex(3).which(Gibbs()).rule == "softmax"


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_subset_marginals_stay_right_at_peaked_scores(scale: float, dtype: torch.dtype) -> None:
    """Against sums over all subsets in integers of Python's big rationals: mpmath, 60 digits."""
    import itertools

    import mpmath

    scores = (scale * torch.randn(8, generator=torch.Generator().manual_seed(3))).to(dtype)
    with mpmath.workdps(60):
        weights = [mpmath.exp(mpmath.mpf(value)) for value in scores.double().tolist()]
        total, inside = mpmath.mpf(0), [mpmath.mpf(0)] * 8
        for chosen in itertools.combinations(range(8), 3):
            weight = mpmath.fprod([weights[i] for i in chosen])
            total += weight
            for i in chosen:
                inside[i] += weight
        expected = torch.tensor([float(value / total) for value in inside], dtype=torch.float64)
        log_total = float(mpmath.log(total))
    leaf = scores.clone().requires_grad_()
    marginals = Subset(8, 3).marginals(leaf)
    torch.testing.assert_close(marginals.double(), expected, atol=1e-6, rtol=0)
    found = Subset(8, 3).log_partition(scores).double()
    torch.testing.assert_close(found, torch.tensor(log_total).double(), rtol=1e-6, atol=1e-6)
    marginals.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


def test_entmax_agrees() -> None:
    entmax = pytest.importorskip("entmax")
    scores = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(Simplex(30).project(scores), entmax.sparsemax(scores, -1))
    # entmax15(s) maximises <s, y> - Tsallis as we do, once its own factor is in
    ours = Simplex(30).maximize(scores, Tsallis(1.5))
    torch.testing.assert_close(ours, entmax.entmax15(scores, -1))


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_no_projection_stalls(scale: float) -> None:
    """An interior point at its default regularisation gave up on a few of these in a thousand."""
    board = AtMostTwo(8, 8, 12)
    scores = scale * torch.randn(300, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    solution = board.solve(scores, Euclidean())
    assert solution.gap is not None
    value = (scores * solution.value).sum((1, 2)).abs()
    assert bool((solution.gap.abs() <= 1e-8 * (1 + value)).all())


@pytest.mark.parametrize(
    "scores", [[-2.0, 1.0, -2.0, -2.0, 2.0, 2.0], [-1.0, 1.0, 2.0, -2.0, 0.0, 0.0], [0.0] * 6], ids=str
)
def test_ties_with_auxiliary_variables(scores: list[float]) -> None:
    """Where it is in doubt which rows bind, by vertices: trees with every edge twice."""
    trees = SpanningTree([(0, 1), (0, 2), (1, 2)] * 2, 3)
    s = torch.tensor(scores, dtype=torch.float64)
    by_rows = trees.solve(s, Euclidean(), solver=Clarabel())
    torch.testing.assert_close(by_rows.value, trees.project(s), atol=1e-9, rtol=0)
    assert by_rows.gap is not None
    assert by_rows.gap <= 1e-11
