"""Newton's method on the rows' multipliers: random polytopes by the hundred, against other roads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import random_polytopes
from spigot.polytopes import (
    Euclidean,
    Facets,
    FermiDirac,
    InfeasiblePolytope,
    NoStructure,
    Polytope,
    Shannon,
    Status,
    Subset,
    Tsallis,
    UnboundedPolytope,
    UnsupportedProblem,
)
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers import Clarabel, Cvxpy, Newton
from spigot.polytopes.solvers import newton as module

SIZES = (1, 2, 3, 5, 8, 13, 30, 80, 300)
KINDS = ("box", "vertex", "redundant", "flat", "implied", "free")
SEEDS = range(3)
CERTIFICATE = 1e-10  # relative to 1 + |<s, y>|
ENTROPIES = (Shannon(), FermiDirac(), Tsallis(1.5), Tsallis(2.0))


def polytope(kind: str, d: int, seed: int) -> Facets:
    """A random polytope that holds a point of [0, 1]^d, of a kind that makes trouble."""
    return random_polytopes.KINDS[kind](np.random.default_rng(1000 * seed + d), d).polytope()


def draw(shape: tuple[int, ...], scale: float, seed: int) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("kind", KINDS)
def test_random_polytopes(kind: str) -> None:
    """Every answer lies in the set, is certified by a linear program, and is Clarabel's."""
    wrong: list[tuple[Any, ...]] = []
    count = 0
    for d in SIZES:
        for seed in SEEDS:
            found = polytope(kind, d, seed)
            scores = torch.cat([draw((2, d), scale, seed) for scale in (0.3, 3.0, 100.0)])
            solution = found.solve(scores, Euclidean(), solver=Newton())
            y = solution.value
            size = 1 + (scores * y).sum(1).abs()
            gap = (found.gap(y, scores, Euclidean()) / size).abs().max().item()
            other = found.maximize(scores, Euclidean(), solver=Clarabel()) if d <= 80 else y
            error = (y - other).abs().max().item() / 100
            count += len(scores)
            if gap > CERTIFICATE or error > 1e-7 or not bool(solution.converged.all()):
                wrong.append((d, seed, gap, error, solution.status))
    assert not wrong, f"{len(wrong)} of {count} instances of {kind}; (d, seed, gap, error): {wrong}"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_differences(kind: str) -> None:
    """The projection is piecewise linear: differences are exact where two step lengths agree."""
    checked = Counter[str]()
    for d in (1, 2, 5, 13, 30):
        for seed in SEEDS:
            found = polytope(kind, d, seed)
            scores = draw((4, d), 1.0, seed).requires_grad_()
            grad, along = draw((4, d), 1.0, seed + 50), draw((4, d), 1.0, seed + 90)
            y = found.maximize(scores, Euclidean(), solver=Newton())
            (pulled,) = torch.autograd.grad(y, scores, grad)
            slopes: list[Tensor] = []
            for step in (1e-4, 1e-5):
                ends = [
                    found.maximize(scores.detach() + sign * step * along, Euclidean(), solver=Newton())
                    for sign in (1, -1)
                ]
                slopes.append(((ends[0] - ends[1]) * grad).sum(1) / (2 * step))
            generic = (slopes[0] - slopes[1]).abs() < 1e-7 * (1 + slopes[0].abs())
            error = ((pulled * along).sum(1) - slopes[1]).abs() / (1 + slopes[1].abs())
            assert bool((error[generic] < 1e-6).all()), (kind, d, seed, error, generic)
            checked["generic"] += int(generic.sum())
            checked["all"] += len(generic)
    assert checked["generic"] > 0.8 * checked["all"], checked


def birkhoff(n: int) -> Facets:
    return Facets(lambda y: [y >= 0, cp.sum(y, 0) == 1, cp.sum(y, 1) == 1], (n, n))


def grid(side: int) -> Facets:
    """Unit flows from corner to corner."""
    cells = np.arange(side * side).reshape(side, side)
    ends = [(cells[:, :-1], cells[:, 1:]), (cells[:-1], cells[1:])]
    arcs = np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in ends])
    arcs = np.concatenate([arcs, arcs[:, ::-1]])
    incidence = np.zeros((side * side, len(arcs)))
    incidence[arcs[:, 0], np.arange(len(arcs))] = 1.0
    incidence[arcs[:, 1], np.arange(len(arcs))] = -1.0
    balance = np.zeros(side * side)
    balance[0], balance[-1] = 1.0, -1.0
    return Facets(lambda y: [incidence @ y == balance, y >= 0, y <= 1], (len(arcs),))


DEGENERATE = {"birkhoff": birkhoff(4), "flow": grid(9), "subset": Facets(
    lambda y: [y >= 0, y <= 1, cp.sum(y) == 2], (6,)
)}  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_faces(name: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipliers are not unique there: the derivative is still that of the exposed face, unaided."""
    found = DEGENERATE[name]
    scores = draw((6, *found.event_shape), scale, 0).requires_grad_()
    grad = draw(tuple(scores.shape), 1.0, 1)
    expected = found.maximize(scores, Euclidean(), solver=Clarabel())
    (wanted,) = torch.autograd.grad(expected, scores, grad)
    monkeypatch.setattr(module, "_backed_up", None)
    y = found.maximize(scores, Euclidean(), solver=Newton())
    (pulled,) = torch.autograd.grad(y, scores, grad)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-7 * (1 + scale))
    torch.testing.assert_close(pulled, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 100.0])
def test_entropies_meet_their_optimality_conditions(regularizer: Separable, scale: float) -> None:
    """Rows hold; s - phi'(y) is R'v, v >= 0 on inequalities and 0 where they are loose."""
    for seed in SEEDS:
        for d in (2, 6, 30):
            rng = np.random.default_rng(seed)
            normals = np.concatenate([np.ones((1, d)), rng.standard_normal((2, d))])
            limits = normals @ np.full(d, 0.4) + np.array([0.0, 0.1, 0.2])
            found = Facets(
                lambda y, a=normals, b=limits: [y >= 0, y <= 1, a[:1] @ y == b[0], a[1:] @ y <= b[1:]],
                (d,),
            )
            scores = draw((4, d), scale, seed)
            solution = found.solve(scores, regularizer, solver=Newton())
            assert solution.gradient is not None
            y, slope = solution.value.numpy(), (scores - solution.gradient).numpy()
            excess = y @ normals.T - limits
            assert np.abs(excess[:, 0]).max() < 1e-10, (d, seed)
            assert excess[:, 1:].max() < 1e-10, (d, seed)
            inner = regularizer.mirror(solution.gradient).numpy()
            assert np.abs(inner - y).max() < 1e-9, (d, seed)
            for i in range(len(y)):
                free = (y[i] < 1 - 1e-9) & (regularizer.steep | (y[i] > 1e-9))
                tight = np.array([True, *(excess[i, 1:] > -1e-8)])
                rows = normals[tight][:, free]
                v = np.linalg.lstsq(rows.T, slope[i, free], rcond=None)[0]
                error = np.abs(rows.T @ v - slope[i, free]).max(initial=0.0)
                assert error < 1e-7 * (1 + scale), (d, seed, i, error)
                if np.linalg.matrix_rank(rows) == len(rows):
                    assert (v[1:] > -1e-6 * (1 + scale)).all(), (d, seed, i, v)


@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("name", ["birkhoff", "subset"])
def test_entropies_agree_with_the_cone_road(name: str, regularizer: Separable) -> None:
    found = DEGENERATE[name]
    scores = draw((3, *found.event_shape), 1.0, 3).requires_grad_()
    grad = draw(tuple(scores.shape), 1.0, 4)
    answers = [found.maximize(scores, regularizer, solver=solver) for solver in (Newton(), Cvxpy())]
    pulled = [torch.autograd.grad(answer, scores, grad)[0] for answer in answers]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(pulled[0], pulled[1], rtol=0, atol=1e-6)


def test_parts_that_underflow_keep_their_gradient() -> None:
    """log y is exact where y is 0 in float64."""
    found = DEGENERATE["subset"]
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, -900.0, -2000.0]]).double()
    solution = found.solve(scores, Shannon(), solver=Newton())
    assert solution.gradient is not None
    torch.testing.assert_close(solution.value[0, :4], torch.full((4,), 0.5).double())
    shifts = (scores - solution.gradient)[0]
    torch.testing.assert_close(shifts, shifts[:1].expand(6))
    assert float(solution.value[0, 5]) == 0.0


@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon(), Tsallis(1.5)], ids=repr)
def test_masks_leave_a_face(regularizer: Separable) -> None:
    found = birkhoff(4)
    keep = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    keep |= torch.eye(4, dtype=torch.bool)
    scores = draw((5, 4, 4), 1.0, 2).requires_grad_()
    y = found.maximize(scores, regularizer, keep=keep, solver=Newton())
    (pulled,) = torch.autograd.grad(y, scores, torch.ones(5, 4, 4).double().cumsum(2))
    assert bool((y[~keep] == 0).all())
    assert bool((pulled[~keep] == 0).all())
    by = Clarabel() if isinstance(regularizer, Euclidean) else Cvxpy()
    other = found.maximize(scores, regularizer, keep=keep, solver=by)
    (wanted,) = torch.autograd.grad(other, scores, torch.ones(5, 4, 4).double().cumsum(2))
    torch.testing.assert_close(y, other, rtol=0, atol=1e-7)
    torch.testing.assert_close(pulled, wanted, rtol=0, atol=1e-6)
    minus = torch.where(keep, scores.detach(), -torch.inf)
    torch.testing.assert_close(found.maximize(minus, regularizer, solver=Newton()), y.detach())


def test_a_mask_that_leaves_nothing_is_named() -> None:
    keep = torch.ones(3, 4, 4, dtype=torch.bool)
    keep[1, 2] = False
    with pytest.raises(NoStructure, match="instance 1"):
        birkhoff(4).maximize(torch.zeros(3, 4, 4), Euclidean(), keep=keep, solver=Newton())


def test_what_is_no_polytope_is_named() -> None:
    with pytest.raises(InfeasiblePolytope):
        Facets(lambda y: [y >= 1, cp.sum(y) <= 1], (3,)).project(torch.zeros(3))
    with pytest.raises(UnboundedPolytope):
        Facets(lambda y: [y >= 0, y[0] <= 1], (3,)).project(torch.zeros(3))


def test_what_it_does_not_take() -> None:
    normals = np.random.default_rng(0).standard_normal((400, 3))
    many = Facets(lambda y: [normals @ y <= 1], (3,))
    assert many.which(Euclidean()).rule == Clarabel.name
    with pytest.raises(UnsupportedProblem, match="dense rows"):
        many.which(Euclidean(), solver=Newton())
    assert Subset(4, 2).which(Euclidean(), solver=Newton()).rule == Newton.name


def test_solution_says_what_was_found() -> None:
    """Status, steps, the gap of the multipliers, and the multipliers themselves."""
    found: Polytope = polytope("box", 8, 0)
    scores = draw((2, 3, 8), 3.0, 0)
    solution = found.solve(scores, Euclidean(), solver=Newton())
    assert solution.status.shape == (2, 3) and bool((solution.status == Status.CONVERGED).all())
    outside = scores.clamp(0, 1)
    moved = (solution.value - outside).abs().amax(2) > 1e-9
    assert bool(moved.any()) and bool((solution.iterations > 0)[moved].all())
    assert solution.gap is not None and float(solution.gap.abs().max()) < 1e-10
    by_clarabel = found.solve(scores, Euclidean(), solver=Clarabel())
    assert solution.duals is not None and by_clarabel.duals is not None
    torch.testing.assert_close(solution.duals, by_clarabel.duals, rtol=0, atol=1e-6)
    torch.testing.assert_close(solution.objective, by_clarabel.objective, rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = birkhoff(3)
    scores = draw((*shape, 3, 3), 1.0, 0).to(dtype).mT.requires_grad_()
    y = found.maximize(scores, Euclidean(), solver=Newton())
    y.square().sum().backward()
    assert y.shape == scores.shape and y.dtype == dtype
    assert scores.grad is not None and scores.grad.dtype == dtype


def test_answers_do_not_depend_on_batch_or_threads() -> None:
    found = grid(6)
    scores = draw((9, *found.event_shape), 5.0, 0)
    whole = found.maximize(scores, Euclidean(), solver=Newton())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = found.maximize(scores, Euclidean(), solver=Newton())
    torch.set_num_threads(threads)
    assert bool((whole == again).all())
    alone = torch.stack([found.maximize(row, Euclidean(), solver=Newton()) for row in scores])
    assert bool((whole == alone).all())
