"""Fully-corrective Frank-Wolfe by an oracle alone: answers, derivatives, warm starts, budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from spigot.layers import Relaxed
from spigot.polytopes import (
    Euclidean,
    FermiDirac,
    Hull,
    Hypercube,
    Matching,
    Oracle,
    Polytope,
    Sequence,
    Shannon,
    Simplex,
    Status,
    Subset,
    Tsallis,
)
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers import FrankWolfe, SupportCache
from tests.tensors import close, normal

STEEP = [Shannon(), FermiDirac(), Tsallis(1.5), Tsallis(3.0), Euclidean()]
regularized = pytest.mark.parametrize("omega", STEEP, ids=str)


def asked_only(polytope: Polytope, asked: list[int] | None = None) -> Oracle:
    """The same set by its MAP alone; `asked` takes how many instances each call had."""

    def best(scores: Tensor) -> Tensor:
        if asked is not None:
            asked.append(len(scores))
        return polytope.maximize(scores)

    return Oracle(best, polytope.event_shape, batched=True)


def derivative(
    polytope: Polytope, omega: Separable, scores: Tensor, grad: Tensor, **given: Any
) -> Tensor:
    leaf = scores.clone().requires_grad_()
    polytope.maximize(leaf, omega, **given).backward(grad)
    assert leaf.grad is not None
    return leaf.grad


# --- answers and derivatives ---------------------------------------------------------------------


@regularized
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0])
def test_pairs_meet_the_optimality_conditions(omega: Separable, scale: float) -> None:
    """0 <= y <= 1 and sum y = 2: phi' inverted at s - t, clipped, for some t."""
    scores = normal(8, 6, scale=scale)
    y = asked_only(Subset(6, 2)).maximize(scores, omega)
    close(y.sum(1), torch.full((8,), 2.0).double(), 1e-12)
    low, high = -60.0 * torch.ones(8, 1).double(), 60.0 * torch.ones(8, 1).double()
    for _ in range(200):
        middle = 0.5 * (low + high)
        large = omega.mirror(scores - middle).clamp(0.0, 1.0).sum(1, keepdim=True) > 2
        low, high = torch.where(large, middle, low), torch.where(large, high, middle)
    close(y, omega.mirror(scores - low).clamp(0.0, 1.0), 1e-7)  # Tsallis(3)'s mirror is a root


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_on_the_simplex_it_is_softmax_and_its_jacobian(scale: float) -> None:
    scores, grad = normal(12, 9, scale=scale), normal(12, 9, seed=1)
    p = scores.softmax(1)
    close(asked_only(Simplex(9)).maximize(scores, Shannon()), p, 1e-9)
    found = derivative(asked_only(Simplex(9)), Shannon(), scores, grad)
    close(found, p * (grad - (p * grad).sum(1, keepdim=True)), 1e-8)


def test_on_the_cube_it_is_the_sigmoid_and_its_derivative() -> None:
    """Also where the support spans too little: the face is the whole cube."""
    scores, grad = normal(12, 30), normal(12, 30, seed=1)
    p = scores.sigmoid()
    cube = asked_only(Hypercube(30))
    for tolerance, error in ((1e-14, 1e-11), (1e-6, 1e-4)):
        solver = FrankWolfe(tolerance=tolerance)
        solution = cube.solve(scores, FermiDirac(), solver=solver)
        close(solution.value, p, error)
        found = derivative(cube, FermiDirac(), scores, grad, solver=solver)
        close(found, p * (1 - p) * grad, error)
    assert solution.weights is not None  # pyright: ignore[reportPossiblyUnbound]
    assert int((solution.weights > 0).sum(1).max()) < 31


SETS: dict[str, Polytope] = {
    "matching": Matching(4, 4),
    "subset": Subset(9, 4),
    "at most": Subset(7, 3, at_most=True),
}


@pytest.mark.parametrize("name", SETS)
@regularized
def test_the_constraints_give_the_same_answers_and_derivatives(name: str, omega: Separable) -> None:
    polytope = SETS[name]
    scores, grad = normal(6, *polytope.event_shape), normal(6, *polytope.event_shape, seed=1)
    by_oracle = asked_only(polytope)
    close(by_oracle.maximize(scores, omega, solver=FrankWolfe()), polytope.maximize(scores, omega), 1e-9)
    found = derivative(by_oracle, omega, scores, grad, solver=FrankWolfe())
    close(found, derivative(polytope, omega, scores, grad), 1e-8)


@pytest.mark.parametrize("omega", [Shannon(), FermiDirac(), Tsallis(1.5)], ids=str)
def test_derivatives_of_chains_are_finite_differences(omega: Separable) -> None:
    chain = asked_only(Sequence(4, 3))
    scores, grad, way = normal(3, 4, 3, 3), normal(3, 4, 3, 3, seed=1), normal(3, 4, 3, 3, seed=2)
    solution = chain.solve(scores, omega)
    assert solution.gap is not None and float(solution.gap.max()) < 1e-11
    h = 1e-5
    ahead, behind = (chain.maximize(scores + step * way, omega) for step in (h, -h))
    along = ((ahead - behind) / (2 * h) * grad).sum((1, 2, 3))
    found = (derivative(chain, omega, scores, grad) * way).sum((1, 2, 3))
    close(found, along, 1e-7)


def test_second_derivatives_where_parts_are_tiny() -> None:
    """On the simplex: softmax's, at probabilities down to 1e-9."""
    scores = torch.tensor([[0.0, 8.0, -12.0, 3.0]], dtype=torch.float64)
    u, v = normal(1, 4), normal(1, 4, seed=1)

    def twice(function: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = scores.clone().requires_grad_()
        (once,) = torch.autograd.grad((function(leaf) * u).sum(), leaf, create_graph=True)
        return torch.autograd.grad((once * v).sum(), leaf)[0]

    found = twice(lambda s: asked_only(Simplex(4)).maximize(s, Shannon()))
    close(found, twice(lambda s: s.softmax(1)), 1e-9)


@pytest.mark.parametrize("omega", [Shannon(), FermiDirac()], ids=str)
def test_scores_by_the_hundred(omega: Separable) -> None:
    """Parts at 1e-40 and at 1 - 1e-40, with others between."""
    scores = normal(16, 20, scale=100.0)
    solution = asked_only(Hypercube(20)).solve(scores, omega)
    expected = scores.sigmoid() if omega == FermiDirac() else omega.mirror(scores).clamp(0, 1)
    close(solution.value, expected, 1e-6)
    assert bool(solution.converged.all())


def test_masks_and_sizes() -> None:
    scores, grad = normal(5, 6, 6), normal(5, 6, 6, seed=1)
    keep = normal(5, 6, 6, seed=2) < 0.8
    keep |= torch.eye(6, dtype=torch.bool)
    sizes = torch.tensor([6, 3, 1, 5, 4])
    squares = Matching(6, 6)
    ways: list[dict[str, Any]] = [{"keep": keep}, {"lengths": sizes[:, None].expand(5, 2)}]
    for given in ways:
        cold = squares.maximize(scores, Shannon(), **given)
        value = squares.solve(scores, Shannon(), solver=FrankWolfe(), **given)
        close(value.value, cold, 1e-9)
        assert value.gradient is not None
        assert not bool(value.value[cold == 0].any()) and bool(value.gradient.isfinite().all())
        found = derivative(squares, Shannon(), scores, grad, solver=FrankWolfe(), **given)
        close(found, derivative(squares, Shannon(), scores, grad, **given), 1e-8)
        assert not bool(found[cold == 0].any())


def test_parts_that_no_structure_or_every_structure_uses() -> None:
    points = torch.tensor([[1.0, 0, 1, 0], [1, 0, 0, 1], [1, 0, 0.5, 0]], dtype=torch.float64)
    scores = normal(4, 4)
    for omega in (Shannon(), FermiDirac()):
        solution = Hull(points).solve(scores, omega, solver=FrankWolfe())
        close(solution.value[:, :2], torch.tensor([[1.0, 0.0]]).double().expand(4, 2), 0.0)
        assert solution.gradient is not None and solution.gap is not None
        slope = (scores - solution.gradient)[:, 2:]
        best = (slope @ points[:, 2:].T).amax(1)
        close(best, (slope * solution.value[:, 2:]).sum(1), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_are_the_exact_answer_rounded(dtype: torch.dtype) -> None:
    scores = normal(4, 6).to(dtype)
    found = asked_only(Subset(6, 2)).maximize(scores, Shannon())
    assert found.dtype == dtype
    assert torch.equal(found, Subset(6, 2).maximize(scores.double(), Shannon()).to(dtype))


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
def test_batches_of_every_shape(shape: tuple[int, ...]) -> None:
    scores = normal(6, *shape).movedim(0, -1)  # not contiguous
    pairs = asked_only(Subset(6, 2))
    close(pairs.maximize(scores, Shannon()), Subset(6, 2).maximize(scores, Shannon()), 1e-10)


def test_an_answer_depends_on_nothing_else() -> None:
    """Neither on the rest of the batch nor on the threads."""
    scores, chain = normal(7, 4, 3, 3), asked_only(Sequence(4, 3))
    whole = chain.solve(scores, Shannon())
    for i in range(7):
        alone = chain.solve(scores[i], Shannon())
        assert torch.equal(alone.value, whole.value[i])
        assert int(alone.iterations) == int(whole.iterations[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(chain.maximize(scores, Shannon()), whole.value)
    finally:
        torch.set_num_threads(threads)


def test_finished_instances_are_asked_no_more() -> None:
    asked: list[int] = []
    easy, hard = torch.zeros(3, 12).double(), normal(3, 12, scale=3.0)
    solution = asked_only(Subset(12, 3), asked).solve(torch.cat([easy, hard]), Shannon())
    assert int(solution.iterations[:3].max()) < int(solution.iterations[3:].min())
    assert asked[-1] <= 3


# --- start= --------------------------------------------------------------------------------------


@regularized
@pytest.mark.parametrize("moved", [0.0, 1e-3, 1.0])
def test_a_start_changes_the_steps_and_not_the_answer(omega: Separable, moved: float) -> None:
    pairs, cache = asked_only(Matching(5, 5)), SupportCache()
    solver = FrankWolfe()
    scores = normal(8, 5, 5)
    before = pairs.solve(scores, omega, solver=solver, start=cache.at(range(8)))
    after = scores + moved * normal(8, 5, 5, seed=1)
    cold = pairs.solve(after, omega, solver=solver)
    for start in (before, cache.at(range(8))):
        warm = pairs.solve(after, omega, solver=solver, start=start)
        close(warm.value, cold.value, 1e-10)
        if moved < 1:
            assert 3 * int(warm.iterations.sum()) < int(cold.iterations.sum())
    again = pairs.solve(scores, omega, solver=solver, start=before)
    assert int(again.iterations.max()) <= (0 if omega.steep else 5)  # where parts are 0, rounding


def test_a_start_by_a_sparse_support_is_completed() -> None:
    """A projection's vertices use few parts; a steep regularizer needs them all."""
    scores, pairs = normal(6, 8, scale=3.0), asked_only(Subset(8, 3))
    sparse = pairs.solve(scores, Euclidean())
    assert not bool((sparse.value > 0).all())
    for omega in (Shannon(), FermiDirac()):
        warm = pairs.maximize(scores, omega, start=sparse)
        close(warm, Subset(8, 3).maximize(scores, omega), 1e-9)


def test_a_start_under_another_mask() -> None:
    scores, pairs = normal(12, 6), asked_only(Subset(6, 2))
    first, second = (normal(12, 6, seed=seed) < 0.7 for seed in (1, 2))
    first[:, :3] = second[:, :3] = True
    before = pairs.solve(scores, Shannon(), keep=first)
    warm = pairs.maximize(scores, Shannon(), keep=second, start=before)
    assert not bool(warm[~second].any())
    close(warm, Subset(6, 2).maximize(scores, Shannon(), keep=second), 1e-10)


def test_layers_learn_and_use_a_cache() -> None:
    asked: list[int] = []
    scores, grad = normal(6, 8), normal(6, 8, seed=1)
    layer = Relaxed(asked_only(Subset(8, 3), asked), Shannon())
    cache, calls = SupportCache(), list[int]()
    for moved in (0.0, 1e-3):
        asked.clear()
        leaf = (scores + moved).requires_grad_()
        layer(leaf, start=cache.at(range(6))).backward(grad)
        calls.append(sum(asked))
        assert leaf.grad is not None
        close(leaf.grad, derivative(Subset(8, 3), Shannon(), scores + moved, grad), 1e-9)
    assert len(cache) == 6 and 2 * calls[1] < calls[0]


# --- budgets -------------------------------------------------------------------------------------


@regularized
def test_a_truncated_answer_lies_in_the_polytope_and_says_its_gap(omega: Separable) -> None:
    chain, listed = asked_only(Sequence(4, 3)), Sequence(4, 3)
    scores = normal(6, 4, 3, 3)
    exact = chain.solve(scores, omega, solver=FrankWolfe())
    assert exact.objective is not None
    last = torch.full((6,), torch.inf).double()
    for steps in (0, 2, 5):
        rough = chain.solve(scores, omega, solver=FrankWolfe(max_steps=steps), throw=False)
        stopped = rough.status == Status.STOPPED
        assert bool((stopped | rough.converged).all()) and (steps or bool(stopped.any()))
        assert bool((rough.iterations[stopped] == steps).all())
        assert bool(listed.contains(rough.value, tolerance=1e-12).all())
        assert rough.gap is not None and rough.gradient is not None and rough.objective is not None
        support, weights = rough.support, rough.weights
        assert support is not None and weights is not None
        close((weights[..., None, None, None] * support).sum(1), rough.value, 1e-14)
        behind = exact.objective - rough.objective
        assert bool((behind <= rough.gap + 1e-12).all()) and bool((behind <= last).all())
        last = behind + 1e-12


@regularized
def test_a_loose_tolerance_is_met_by_fewer_steps(omega: Separable) -> None:
    chain, scores = asked_only(Sequence(4, 3)), normal(6, 4, 3, 3)
    exact = chain.solve(scores, omega, solver=FrankWolfe())
    loose = chain.solve(scores, omega, solver=FrankWolfe(tolerance=1e-2))
    assert bool(loose.converged.all()) and loose.gap is not None
    value = (scores * loose.value).sum((1, 2, 3)).abs()
    assert bool((loose.gap <= 1e-2 * (1 + value)).all())
    assert int(loose.iterations.sum()) < int(exact.iterations.sum())


def test_a_tolerance_at_rounding_still_ends() -> None:
    scores = torch.cat([normal(6, 12, scale=scale) for scale in (0.1, 1.0, 10.0)])
    for omega in (Shannon(), FermiDirac(), Tsallis(1.5)):
        solution = asked_only(Subset(12, 5)).solve(scores, omega, solver=FrankWolfe(tolerance=1e-15))
        assert bool(solution.converged.all()) and int(solution.iterations.max()) < 200
