"""Newton's road where constraints have auxiliary variables, unaided, against formulas and other roads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.polytopes import (
    Arborescence,
    Euclidean,
    Facets,
    FermiDirac,
    NoStructure,
    Permutahedron,
    Polytope,
    Shannon,
    SpanningTree,
    Status,
    Subset,
    Tsallis,
)
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers import Clarabel, Cvxpy, Newton
from spigot.polytopes.solvers import newton as module
from tests.tensors import close, normal

ENTROPIES = (Shannon(), FermiDirac(), Tsallis(1.5), Tsallis(2.0))


def declared(polytope: Polytope) -> Facets:
    """The set by its constraints alone."""
    return Facets(polytope.constraints, polytope.event_shape)


def absolute(y: cp.Variable) -> list[Any]:
    """The l1 ball of radius 2: |y_i| <= z_i, z free."""
    return [cp.norm1(y) <= 2]


def overflow(y: cp.Variable) -> list[Any]:
    """What goes over 1/4 is limited in sum."""
    z: Any = cp.Variable(y.shape)
    return [y >= 0, y <= 1, z >= y - 0.25, z >= 0, cp.sum(z) <= 1.0]


def largest(y: cp.Variable) -> list[Any]:
    """The three largest parts are at most 2 in sum, and all parts are 3."""
    return [y >= 0, y <= 1, cp.sum(y) == 3, cp.sum_largest(y, 3) <= 2]


def variation(y: cp.Variable) -> list[Any]:
    """Of total variation 1 at most: many free z that are not unique."""
    return [y >= 0, y <= 1, cp.norm1(y[1:] - y[:-1]) <= 1]


def hull(y: cp.Variable) -> list[Any]:
    """The hull of random points, by their weights."""
    points = np.random.default_rng(0).random((15, 5))
    z: Any = cp.Variable(15)
    return [y == points.T @ z, z >= 0, cp.sum(z) == 1]


K5 = [(i, j) for i in range(5) for j in range(i)]
SETS: dict[str, Polytope] = {
    "l1 ball": Facets(absolute, (9,)),
    "overflow": Facets(overflow, (3, 4)),
    "largest": Facets(largest, (9,)),
    "variation": Facets(variation, (12,)),
    "hull": Facets(hull, (5,)),
    "arborescence": declared(Arborescence(4)),
    "spanning tree": declared(SpanningTree(K5, 5)),
    "permutahedron": declared(Permutahedron([0.0, 0.25, 0.5, 1.0])),
}
NONNEGATIVE = [name for name in SETS if name != "l1 ball"]
every_set = pytest.mark.parametrize("name", SETS)


@pytest.fixture
def unaided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other road answers instead."""
    monkeypatch.setattr(module, "_backed_up", None)


def soft_threshold(scores: Tensor, radius: float) -> Tensor:
    """The projection onto the l1 ball: sign(s) (|s| - t)+ with t from the sorted |s|."""
    size = scores.abs()
    level, _ = size.sort(-1, descending=True)
    count = torch.arange(1, scores.shape[-1] + 1, dtype=torch.float64)
    t = (level.cumsum(-1) - radius) / count
    many = (level > t).sum(-1, keepdim=True)
    t = t.gather(-1, many - 1).clamp_min(0)
    return scores.sign() * (size - t).clamp_min(0)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 30.0, 1000.0])
def test_l1_ball_is_a_soft_threshold(scale: float, unaided: None) -> None:
    scores = normal(20, 9, scale=scale).requires_grad_()
    along = normal(20, 9, seed=1)
    y = SETS["l1 ball"].maximize(scores, Euclidean(), solver=Newton())
    wanted = soft_threshold(scores, 2.0)
    close(y, wanted, 1e-11 * (1 + scale))
    pulled = [torch.autograd.grad(value, scores, along)[0] for value in (y, wanted)]
    close(pulled[0], pulled[1] if scale else along, 1e-9)


@every_set
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 100.0])
def test_projections_are_certified(name: str, scale: float, unaided: None) -> None:
    """A linear program bounds the error; Clarabel's answer is near."""
    found = SETS[name]
    scores = normal(12, *found.event_shape, scale=scale)
    solution = found.solve(scores, Euclidean(), solver=Newton())
    y = solution.value
    size = 1 + (scores * y).flatten(1).sum(1).abs()
    assert bool(solution.converged.all())
    assert float((found.gap(y, scores, Euclidean()).abs() / size).max()) < 1e-10
    assert solution.gap is not None and float((solution.gap.abs() / size).max()) < 1e-10
    assert bool(found.contains(y, tolerance=1e-9).all())
    close(y, found.maximize(scores, Euclidean(), solver=Clarabel()), 1e-5 * (1 + scale))


@every_set
def test_projections_have_the_derivative_of_finite_differences(name: str) -> None:
    """They are piecewise linear: differences are exact where two step lengths agree."""
    found = SETS[name]
    scores = normal(12, *found.event_shape, scale=0.7).requires_grad_()
    grad, along = normal(*scores.shape, seed=1), normal(*scores.shape, seed=2)
    y = found.maximize(scores, Euclidean(), solver=Newton())
    (pulled,) = torch.autograd.grad(y, scores, grad)
    slopes: list[Tensor] = []
    for step in (1e-4, 1e-5):
        ends = [
            found.maximize(scores.detach() + sign * step * along, Euclidean(), solver=Newton())
            for sign in (1, -1)
        ]
        slopes.append(((ends[0] - ends[1]) * grad).flatten(1).sum(1) / (2 * step))
    generic = (slopes[0] - slopes[1]).abs() < 1e-7 * (1 + slopes[0].abs())
    error = ((pulled * along).flatten(1).sum(1) - slopes[1]).abs() / (1 + slopes[1].abs())
    assert int(generic.sum()) >= 8, generic
    assert float(error[generic].max()) < 1e-6


@pytest.mark.parametrize("name", ["overflow", "largest", "hull", "arborescence", "spanning tree"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 10.0])
def test_the_derivative_is_that_of_the_exposed_face(name: str, scale: float, unaided: None) -> None:
    """At ties, too, it is Clarabel's."""
    found = SETS[name]
    scores = normal(6, *found.event_shape, scale=scale).requires_grad_()
    grad = normal(*scores.shape, seed=1)
    answers = [found.maximize(scores, Euclidean(), solver=by) for by in (Newton(), Clarabel())]
    pulled = [torch.autograd.grad(answer, scores, grad)[0] for answer in answers]
    close(pulled[0], pulled[1], 1e-8)


@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("name", NONNEGATIVE)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_entropies_are_certified(name: str, regularizer: Separable, scale: float, unaided: None) -> None:
    """y lies in the set, and no vertex is better along s - phi'(y)."""
    found = SETS[name]
    scores = normal(6, *found.event_shape, scale=scale)
    solution = found.solve(scores, regularizer, solver=Newton())
    assert bool(solution.converged.all())
    assert bool(found.contains(solution.value, tolerance=1e-9).all())
    assert solution.gradient is not None
    slope = scores - solution.gradient
    best = found.maximize(slope)
    gap = (slope * (best - solution.value)).flatten(1).sum(1)
    assert float(gap.abs().max()) < 1e-10 * (1 + scale)
    close(regularizer.mirror(solution.gradient), solution.value, 1e-10)


@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("name", ["overflow", "largest", "hull"])
def test_entropies_have_the_derivative_of_finite_differences(
    name: str, regularizer: Separable, unaided: None
) -> None:
    found = SETS[name]
    scores = normal(8, *found.event_shape).requires_grad_()
    grad, along = normal(*scores.shape, seed=1), normal(*scores.shape, seed=2)
    y = found.maximize(scores, regularizer, solver=Newton())
    (pulled,) = torch.autograd.grad(y, scores, grad)
    slopes: list[Tensor] = []
    for step in (1e-4, 5e-5):
        ends = [
            found.maximize(scores.detach() + sign * step * along, regularizer, solver=Newton())
            for sign in (1, -1)
        ]
        slopes.append(((ends[0] - ends[1]) * grad).flatten(1).sum(1) / (2 * step))
    generic = (slopes[0] - slopes[1]).abs() < 1e-6 * (1 + slopes[0].abs())
    error = ((pulled * along).flatten(1).sum(1) - slopes[1]).abs() / (1 + slopes[1].abs())
    assert int(generic.sum()) >= 6, generic
    assert float(error[generic].max()) < 1e-5


@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon(), Tsallis(1.5)], ids=repr)
def test_masks_leave_a_face(regularizer: Separable, unaided: None) -> None:
    found = SETS["arborescence"]
    keep = torch.rand(5, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.3
    keep |= torch.eye(4, dtype=torch.bool)
    scores = normal(5, 4, 4).requires_grad_()
    grad = normal(5, 4, 4, seed=1)
    y = found.maximize(scores, regularizer, keep=keep, solver=Newton())
    (pulled,) = torch.autograd.grad(y, scores, grad)
    assert bool((y[~keep] == 0).all()) and bool((pulled[~keep] == 0).all())
    by = Clarabel() if isinstance(regularizer, Euclidean) else Cvxpy()
    other = found.maximize(scores, regularizer, keep=keep, solver=by)
    (wanted,) = torch.autograd.grad(other, scores, grad)
    close(y, other, 1e-5)
    close(pulled, wanted, 1e-4)


def test_a_mask_that_leaves_nothing_is_named() -> None:
    keep = torch.ones(3, 4, 4, dtype=torch.bool)
    keep[1, :, 2] = False
    with pytest.raises(NoStructure, match="instance 1"):
        SETS["arborescence"].maximize(torch.zeros(3, 4, 4), Euclidean(), keep=keep, solver=Newton())


@dataclass(frozen=True)
class Budget(Polytope):
    """{y in [0, 1]^d : what goes over 1/4 is at most `budget` in sum}."""

    size: int

    parameters = {"budget": ()}  # noqa: RUF012
    budget = 1.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.size,)

    def constraints(self, y: cp.Variable, budget: Any = 1.0) -> list[Any]:
        z: Any = cp.Variable(self.size)
        return [y >= 0, y <= 1, z >= y - 0.25, z >= 0, cp.sum(z) <= budget]


@pytest.mark.parametrize("regularizer", [Euclidean(), FermiDirac()], ids=repr)
def test_limits_of_each_instance_and_their_derivative(regularizer: Separable, unaided: None) -> None:
    found = Budget(6)
    scores = normal(7, 6, scale=2.0) + 1.0
    budget = torch.linspace(0.3, 2.0, 7, dtype=torch.float64).requires_grad_()
    grad = normal(7, 6, seed=1)
    y = found.maximize(scores, regularizer, params={"budget": budget}, solver=Newton())
    (pulled,) = torch.autograd.grad(y, budget, grad)
    alone = [
        found.maximize(row, regularizer, params={"budget": b}, solver=Newton())
        for row, b in zip(scores, budget.detach(), strict=True)
    ]
    assert bool((torch.stack(alone) == y).all())
    ends = [
        found.maximize(scores, regularizer, params={"budget": budget.detach() + step}, solver=Newton())
        for step in (1e-5, -1e-5)
    ]
    close(pulled, ((ends[0] - ends[1]) * grad).sum(1) / 2e-5, 1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shapes_and_dtypes(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found = SETS["arborescence"]
    scores = normal(*shape, 4, 4).to(dtype).mT.requires_grad_()
    y = found.maximize(scores, Euclidean(), solver=Newton())
    y.square().sum().backward()
    assert y.shape == scores.shape and y.dtype == dtype
    assert scores.grad is not None and scores.grad.dtype == dtype


def test_answers_do_not_depend_on_batch_or_threads() -> None:
    found = SETS["spanning tree"]
    scores = normal(9, *found.event_shape, scale=5.0)
    whole = found.maximize(scores, Euclidean(), solver=Newton())
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = found.maximize(scores, Euclidean(), solver=Newton())
    torch.set_num_threads(threads)
    assert bool((whole == again).all())
    alone = torch.stack([found.maximize(row, Euclidean(), solver=Newton()) for row in scores])
    assert bool((whole == alone).all())


def test_it_is_the_road_taken() -> None:
    for name, found in SETS.items():
        assert found.which(Euclidean()).rule == Newton.name, name
    assert declared(Subset(4, 2)).which(Shannon()).rule == Newton.name


def test_steep_and_peaked_is_answered_by_some_road() -> None:
    """Parts far below rounding leave the face in doubt: the answer still lies in the set."""
    found = SETS["overflow"]
    scores = normal(3, *found.event_shape, scale=300.0)
    solution = found.solve(scores, Shannon(), throw=False)
    assert bool((solution.status == Status.CONVERGED).all())
    assert bool(found.contains(solution.value, tolerance=1e-8).all())
