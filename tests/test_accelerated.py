"""The roads in torch that take a whole batch at once, tried on the CPU and watched for leaving it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from spigot.polytopes import (
    ConvergenceError,
    Euclidean,
    Facets,
    FermiDirac,
    Matching,
    NoStructure,
    Polytope,
    Shannon,
    Status,
    Subset,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.dispatch import choose
from spigot.polytopes.posing import pose
from spigot.polytopes.problem import Solution
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers import PDHG, BatchedNewton, Highs, Newton, ProvenPDHG, device_rows
from spigot.polytopes.solvers import batched_newton as module
from tests.structures import STRUCTURES, AtMostTwo
from tests.tensors import close, normal
from tests.test_newton import KINDS, birkhoff, polytope

SIZES = (1, 2, 5, 13, 30)
ALL: tuple[Separable, ...] = (Euclidean(), Shannon(), FermiDirac(), Tsallis(1.5))


class Watched(TorchFunctionMode):
    """Counts what makes the host wait for a device, and what copies a tensor to it."""

    COPIES = ("cpu", "numpy", "tolist")
    WAITS = ("item", "__bool__", "__int__", "__float__", "__index__", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name in self.COPIES:
            self.seen["copies"] += 1
        if name in self.WAITS or (name == "__getitem__" and _by_flags(args[1])):
            self.seen["waits"] += 1
        if name == "to" and any(str(arg) == "cpu" for arg in args[1:]):
            self.seen["copies"] += 1
        return func(*args, **(kwargs or {}))


def _by_flags(index: Any) -> bool:
    pieces = index if isinstance(index, tuple) else (index,)
    return any(isinstance(piece, Tensor) and piece.dtype == torch.bool for piece in pieces)


def both(
    polytope: Polytope, scores: Tensor, regularizer: Separable, **given: Any
) -> list[tuple[Solution, Tensor]]:
    """The answer of `Newton` and of the batched road, and their gradients."""
    grad = normal(*scores.shape, seed=77)
    found: list[tuple[Solution, Tensor]] = []
    for solver in (Newton(), BatchedNewton()):
        leaf = scores.clone().requires_grad_()
        y = polytope.maximize(leaf, regularizer, solver=solver, **given)
        (pulled,) = torch.autograd.grad(y, leaf, grad)
        found.append((polytope.solve(scores, regularizer, solver=solver, **given), pulled))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_random_polytopes(kind: str) -> None:
    """The answers and gradients are those of `Newton`, and rows and certificate hold."""
    checked = Counter[str]()
    for d in SIZES:
        for seed in range(2):
            found = polytope(kind, d, seed)
            scores = torch.cat([normal(2, d, seed=seed, scale=scale) for scale in (0.3, 3.0, 100.0)])
            (one, pulled), (two, batched) = both(found, scores, Euclidean())
            scale = 1 + scores.abs().amax(1, keepdim=True)
            assert bool(((one.value - two.value).abs() <= 1e-9 * scale).all()), (kind, d, seed)
            assert two.gap is not None and two.residual is not None
            assert bool((two.gap <= 1e-10 * (1 + (scores * two.value).sum(1).abs())).all())
            assert bool((two.residual <= 1e-9 * scale[:, 0]).all())
            assert bool(two.converged.all())
            agree = ((pulled - batched).abs() <= 1e-7).all(1)
            assert bool(agree.all()), (kind, d, seed, pulled - batched)
            checked["all"] += len(scores)
    assert checked["all"] == 6 * 2 * len(SIZES)


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_structures_of_the_table(regularizer: Separable) -> None:
    checked = 0
    for row in STRUCTURES:
        try:
            row.polytope.which(regularizer, solver=BatchedNewton())
        except UnsupportedProblem:
            continue
        for scale in (0.0, 2.0):
            scores = normal(2, *row.polytope.event_shape, scale=scale)
            (one, pulled), (two, batched) = both(row.polytope, scores, regularizer)
            assert one.gap is not None and two.gap is not None
            assert one.objective is not None and two.objective is not None
            size = 1 + one.objective.abs()
            assert bool((two.gap <= one.gap.abs() + 1e-10 * size).all())
            sure = one.gap.abs() <= 1e-11 * size  # the others Newton left to a cone program
            close(two.value[sure], one.value[sure], 1e-8)
            close(batched[sure], pulled[sure], 1e-7)
            close(two.objective[sure], one.objective[sure], 1e-8)
            checked += int(sure.sum())
    assert checked >= 60


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_gradients_are_finite_differences(regularizer: Separable) -> None:
    checked = Counter[str]()
    kinds = KINDS if regularizer == Euclidean() else ("box", "redundant", "flat")
    for kind in kinds:
        for d in (2, 5, 13):
            found = polytope(kind, d, 1)
            scores, along = normal(4, d, seed=d).requires_grad_(), normal(4, d, seed=2)
            grad = normal(4, d, seed=3)
            y = found.maximize(scores, regularizer, solver=BatchedNewton())
            (pulled,) = torch.autograd.grad(y, scores, grad)
            slopes: list[Tensor] = []
            for step in (1e-4, 1e-5):
                ends = [
                    found.maximize(scores.detach() + sign * along, regularizer, solver=BatchedNewton())
                    for sign in (step, -step)
                ]
                slopes.append(((ends[0] - ends[1]) * grad).sum(1) / (2 * step))
            generic = (slopes[0] - slopes[1]).abs() < 1e-6 * (1 + slopes[0].abs())
            error = ((pulled * along).sum(1) - slopes[1]).abs() / (1 + slopes[1].abs())
            assert bool((error[generic] < 1e-5).all()), (kind, d, error, generic)
            checked["generic"] += int(generic.sum())
            checked["all"] += len(generic)
    assert checked["generic"] > 0.7 * checked["all"], checked


class Ration(Facets):
    """Parts between 0 and a cap of the instance's own, with a budget of its own."""

    parameters = {"cap": (), "budget": ()}  # noqa: RUF012

    def __init__(self, d: int) -> None:
        super().__init__(lambda y: [y >= 0], (d,))

    def constraints(self, y: cp.Variable, cap: Any = 1.0, budget: Any = 1.0) -> list[Any]:
        rows = np.ones((1, y.size))
        return [y >= 0, y <= cap, rows @ y == budget, y[0] - y[1] <= 0.25 * budget]


def test_parameters_in_limits() -> None:
    """Answers and gradients by caps and budgets are those of `Newton` and of finite differences."""
    ration, solver = Ration(5), BatchedNewton()
    scores = normal(6, 5)
    cap, budget = torch.linspace(0.5, 1.0, 6).double(), torch.linspace(0.8, 1.6, 6).double()
    for regularizer in (Euclidean(), Shannon()):
        grads: list[tuple[Tensor, ...]] = []
        for road in (Newton(), solver):
            leaves = [item.clone().requires_grad_() for item in (scores, cap, budget)]
            params = {"cap": leaves[1], "budget": leaves[2]}
            y = ration.maximize(leaves[0], regularizer, params=params, solver=road)
            value = ration.conjugate(leaves[0], regularizer, params=params, solver=road)
            grads.append(torch.autograd.grad((y * normal(6, 5, seed=1)).sum() + value.sum(), leaves))
        for one, two in zip(*grads, strict=True):
            close(one, two, 1e-7)
        step = 1e-5
        for k, name in enumerate(("cap", "budget"), start=1):
            ends: list[Tensor] = []
            for sign in (step, -step):
                params = {"cap": cap, "budget": budget}
                params[name] = params[name] + sign
                y = ration.maximize(scores, regularizer, params=params, solver=solver)
                value = ration.conjugate(scores, regularizer, params=params, solver=solver)
                ends.append((y * normal(6, 5, seed=1)).sum(1) + value)
            close(grads[1][k], (ends[0] - ends[1]) / (2 * step), 1e-5)


def test_masks_sizes_and_layouts() -> None:
    solver = BatchedNewton()
    scores = normal(2, 3, 6)
    keep = normal(2, 3, 6, seed=1) > -1
    keep[..., :3] = True
    for regularizer in ALL:
        masked = Subset(6, 2).maximize(scores, regularizer, keep=keep, solver=solver)
        close(masked, Subset(6, 2).maximize(scores, regularizer, keep=keep, solver=Newton()), 1e-8)
        assert not masked[~keep].any()
        lengths = torch.tensor([[2, 3, 6], [4, 6, 5]])
        padded = Subset(6, 2).maximize(scores, regularizer, lengths=lengths, solver=solver)
        close(padded, Subset(6, 2).maximize(scores, regularizer, lengths=lengths), 1e-7)
    strided = scores.transpose(0, 1)
    close(
        Subset(6, 2).maximize(strided, Euclidean(), solver=solver),
        Subset(6, 2).project(scores).transpose(0, 1),
    )
    for shape in ((), (1,), (0,), (2, 0)):
        answer = Subset(6, 2).maximize(normal(*shape, 6), Euclidean(), solver=solver)
        close(answer, Subset(6, 2).project(normal(*shape, 6)))
    for dtype in (torch.float32, torch.bfloat16):
        answer = Subset(6, 2).maximize(scores.to(dtype), Euclidean(), solver=solver)
        assert answer.dtype == dtype
        close(answer.double(), Subset(6, 2).project(scores.to(dtype)).double(), 1e-6)


def test_no_structure_is_named() -> None:
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1, 1:] = False
    with pytest.raises(NoStructure, match="instance 1"):
        Subset(4, 2).maximize(normal(3, 4), Euclidean(), keep=keep, solver=BatchedNewton())


def test_ties_have_the_documented_derivative() -> None:
    """Where a multiplier and its slack are both 0 the exposed face decides, as on every road."""
    for found, scores in (
        (Subset(4, 2), torch.zeros(1, 4)),
        (Subset(4, 2), torch.tensor([[1.0, 1.0, 0.0, 0.0]])),
        (Matching(3), torch.zeros(1, 3, 3)),
        (Matching(3), torch.eye(3)[None]),
        (AtMostTwo(2, 3, 3), torch.zeros(1, 2, 3)),
    ):
        (_, pulled), (_, batched) = both(found, scores.double(), Euclidean())
        close(batched, pulled, 1e-8)


def test_large_batches_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = birkhoff(4).maximize(normal(40, 4, 4), Shannon(), solver=BatchedNewton())
    monkeypatch.setattr(module.dual_newton, "ENTRIES", 4000)
    close(birkhoff(4).maximize(normal(40, 4, 4), Shannon(), solver=BatchedNewton()), whole, 1e-12)


def single_precision(_device: torch.device) -> torch.dtype:
    return torch.float32


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_rows, "working_dtype", single_precision)
    scores = normal(8, 4, 4).float().requires_grad_()
    for regularizer in (Euclidean(), Shannon()):
        y = birkhoff(4).maximize(scores, regularizer, solver=BatchedNewton())
        (grad,) = torch.autograd.grad(y, scores, normal(8, 4, 4, seed=1).float())
        exact = scores.detach().double().requires_grad_()
        expected = birkhoff(4).maximize(exact, regularizer, solver=Newton())
        (wanted,) = torch.autograd.grad(expected, exact, normal(8, 4, 4, seed=1))
        close(y.double(), expected, 1e-4)
        close(grad.double(), wanted, 1e-3)


@pytest.mark.parametrize("regularizer", ALL, ids=str)
def test_a_batch_stays_where_it_is(regularizer: Separable) -> None:
    """No tensor is copied to the host, and the host waits once in four steps, and at the end."""
    polytopes: list[tuple[Polytope, dict[str, Tensor]]] = [
        (birkhoff(6), {}),
        (polytope("box", 30, 1), {}),
        (Ration(5), {"cap": torch.linspace(0.3, 0.6, 64), "budget": torch.linspace(1, 0.5, 64)}),
    ]
    for found, params in polytopes:
        scores = normal(64, *found.event_shape)
        road = BatchedNewton()
        problem = pose(found, scores, regularizer, params=params)
        road.solve(problem)  # the rows are sent once
        with Watched() as forward:
            solution = road.solve(problem)
        steps = int(solution.iterations.max())
        assert forward.seen["copies"] == 0
        assert forward.seen["waits"] <= steps // 4 + 6, (forward.seen, steps)
        with Watched() as backward:
            road.vjp(problem, solution, normal(*scores.shape, seed=1))
        assert backward.seen["copies"] == 0
        assert backward.seen["waits"] <= 1 + len(params)
        if params:
            with Watched() as by_limits:
                road.vjp_params(problem, solution, normal(*scores.shape, seed=1))
            assert by_limits.seen["copies"] == 0
            assert by_limits.seen["waits"] <= 3
        with Watched() as compiled:
            Newton().solve(problem)
        assert compiled.seen["copies"] > 0  # the watch sees what it should


def test_which_road_a_device_takes() -> None:
    declared = polytope("box", 5, 0)
    for regularizer in ALL:
        route = declared.which(regularizer, "cuda")
        assert route.rule == BatchedNewton.name and route.native
        assert declared.which(regularizer, "cpu").rule == Newton.name
    assert declared.which(None, "cuda").rule == ProvenPDHG.name
    assert declared.which(None, "cuda").native
    assert declared.which(None, "cpu").rule == Highs.name
    lifted = Facets(lambda y: [cp.norm1(y) <= 1], (3,))
    assert lifted.which(None, "cuda").native
    assert not lifted.which(Euclidean(), "cuda").native
    assert lifted.which(Euclidean(), "cuda").rule == lifted.which(Euclidean(), "cpu").rule
    assert isinstance(choose(declared, Euclidean()).road, Newton)


KINDS_OF_SCORES = ("normal", "rounded", "zero", "large")


def scored(kind: str, *shape: int) -> Tensor:
    scores = normal(*shape, seed=5)
    factor = {"zero": 0.0, "large": 1e5}.get(kind, 1.0)
    return scores.round() if kind == "rounded" else factor * scores


@pytest.mark.parametrize("kind", KINDS_OF_SCORES)
def test_vertices_of_the_table(kind: str) -> None:
    """Every vertex is proven, and is that of `Highs`, ties included."""
    checked = 0
    for row in STRUCTURES:
        try:
            row.polytope.which(None, solver=PDHG())
        except UnsupportedProblem:
            continue
        scores = scored(kind, 3, *row.polytope.event_shape)
        solution = row.polytope.solve(scores, solver=PDHG())
        assert solution.gap is not None
        size = 1 + (scores * solution.value).flatten(1).sum(1).abs()
        assert bool((solution.gap <= 1e-9 * size).all()), row
        close(solution.value, row.polytope.maximize(scores, solver=Highs()), 1e-8)
        checked += 1
    assert checked >= 40


@pytest.mark.parametrize("kind", KINDS)
def test_vertices_of_random_polytopes(kind: str) -> None:
    """What is proven is `Highs`'s vertex, and of the rest the gap is a bound."""
    proven = Counter[bool]()
    for d in (1, 2, 5, 13):
        for seed in range(2):
            found = polytope(kind, d, seed)
            scores = torch.cat([scored(name, 2, d) for name in KINDS_OF_SCORES])
            solution = found.solve(scores, solver=PDHG(max_steps=4000), throw=False)
            exact = found.maximize(scores, solver=Highs())
            sure = solution.converged
            close(solution.value[sure], exact[sure], 1e-8)
            assert solution.gap is not None
            short = (scores * (exact - solution.value)).sum(1)
            assert bool((short <= solution.gap + 1e-6 * (1 + scores.abs().amax(1))).all())
            close(found.maximize(scores, solver=ProvenPDHG(max_steps=4000)), exact, 1e-8)
            for flag in sure.tolist():
                proven[flag] += 1
    assert proven[True] > 9 * proven[False], proven


def test_vertices_under_masks_sizes_and_parameters() -> None:
    for kind in KINDS_OF_SCORES:
        scores = scored(kind, 4, 6)
        keep = normal(4, 6, seed=1) > -0.5
        keep[..., :3] = True
        for solver in (PDHG(), ProvenPDHG()):
            masked = Subset(6, 2).maximize(scores, keep=keep, solver=solver)
            close(masked, Subset(6, 2).maximize(scores, keep=keep, solver=Highs()))
            lengths = torch.tensor([2, 3, 6, 4])
            padded = Subset(6, 2).maximize(scores, lengths=lengths, solver=solver)
            close(padded, Subset(6, 2).maximize(scores, lengths=lengths, solver=Highs()))
            params = {"cap": torch.linspace(0.5, 1.0, 4), "budget": torch.linspace(0.8, 1.6, 4)}
            rationed = Ration(6).maximize(scores, params=params, solver=solver)
            close(rationed, Ration(6).maximize(scores, params=params, solver=Highs()), 1e-8)
        single = scores.float()
        assert Subset(6, 2).maximize(single, solver=PDHG()).dtype == single.dtype
        close(
            Subset(6, 2).maximize(single, solver=PDHG()), Subset(6, 2).maximize(single, solver=Highs())
        )
    assert Subset(6, 2).maximize(normal(0, 6), solver=PDHG()).shape == (0, 6)


def test_vertices_that_do_not_exist_are_named() -> None:
    keep = torch.ones(3, 4, dtype=torch.bool)
    keep[1, 1:] = False
    for solver in (PDHG(max_steps=2000), ProvenPDHG(max_steps=2000)):
        with pytest.raises(NoStructure, match="instance 1"):
            Subset(4, 2).maximize(normal(3, 4), keep=keep, solver=solver)


def test_a_vertex_that_is_not_proven_says_so() -> None:
    board, scores = birkhoff(6), normal(3, 6, 6)
    with pytest.raises(ConvergenceError, match="INACCURATE, 0 iterations, gap"):
        board.maximize(scores, solver=PDHG(max_steps=0))
    solution = board.solve(scores, solver=PDHG(max_steps=0), throw=False)
    assert solution.status.tolist() == [Status.INACCURATE] * 3
    assert solution.gap is not None and bool((solution.gap > 1e-6).all())
    close(board.maximize(scores, solver=ProvenPDHG(max_steps=0)), board.maximize(scores))


def test_programs_stay_where_they_are() -> None:
    for found in (birkhoff(5), polytope("box", 13, 1), Facets(lambda y: [cp.norm1(y) <= 1], (3,))):
        for kind in ("normal", "rounded"):
            scores = scored(kind, 32, *found.event_shape)
            problem = pose(found, scores, None)
            PDHG().solve(problem)  # the rows are sent once
            with Watched() as watched:
                solution = PDHG().solve(problem)
            assert bool(solution.converged.all())
            assert watched.seen["copies"] == 0
            assert watched.seen["waits"] <= int(solution.iterations.max()) // 40 + 8
