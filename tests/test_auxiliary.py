"""Newton's road where constraints have auxiliary variables or fix parts, unaided, beside other roads."""

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
    GridPath,
    NoStructure,
    Permutahedron,
    Polytope,
    Sequence,
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
alone = pytest.mark.usefixtures("unaided")


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


@alone
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 30.0, 1000.0])
def test_l1_ball_is_a_soft_threshold(scale: float) -> None:
    scores = normal(20, 9, scale=scale).requires_grad_()
    along = normal(20, 9, seed=1)
    y = SETS["l1 ball"].maximize(scores, Euclidean(), solver=Newton())
    wanted = soft_threshold(scores, 2.0)
    close(y, wanted, 1e-11 * (1 + scale))
    pulled = [torch.autograd.grad(value, scores, along)[0] for value in (y, wanted)]
    close(pulled[0], pulled[1] if scale else along, 1e-9)


@alone
@every_set
@pytest.mark.parametrize("scale", [0.0, 0.3, 3.0, 100.0])
def test_projections_are_certified(name: str, scale: float) -> None:
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


@alone
@pytest.mark.parametrize("name", ["overflow", "largest", "hull", "arborescence", "spanning tree"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 10.0])
def test_the_derivative_is_that_of_the_exposed_face(name: str, scale: float) -> None:
    """At ties, too, it is Clarabel's."""
    found = SETS[name]
    scores = normal(6, *found.event_shape, scale=scale).requires_grad_()
    grad = normal(*scores.shape, seed=1)
    answers = [found.maximize(scores, Euclidean(), solver=by) for by in (Newton(), Clarabel())]
    pulled = [torch.autograd.grad(answer, scores, grad)[0] for answer in answers]
    close(pulled[0], pulled[1], 1e-8)


@alone
@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("name", NONNEGATIVE)
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_entropies_are_certified(name: str, regularizer: Separable, scale: float) -> None:
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


@alone
@pytest.mark.parametrize("regularizer", ENTROPIES, ids=repr)
@pytest.mark.parametrize("name", ["overflow", "largest", "hull"])
def test_entropies_have_the_derivative_of_finite_differences(name: str, regularizer: Separable) -> None:
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
def test_masks_leave_a_face(regularizer: Separable) -> None:
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


@alone
@pytest.mark.parametrize("regularizer", [Euclidean(), FermiDirac()], ids=repr)
def test_limits_of_each_instance_and_their_derivative(regularizer: Separable) -> None:
    found = Budget(6)
    scores = normal(7, 6, scale=2.0) + 1.0
    budget = torch.linspace(0.3, 2.0, 7, dtype=torch.float64).requires_grad_()
    grad = normal(7, 6, seed=1)
    y = found.maximize(scores, regularizer, params={"budget": budget}, solver=Newton())
    (pulled,) = torch.autograd.grad(y, budget, grad)
    single = [
        found.maximize(row, regularizer, params={"budget": b}, solver=Newton())
        for row, b in zip(scores, budget.detach(), strict=True)
    ]
    assert bool((torch.stack(single) == y).all())
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
    single = torch.stack([found.maximize(row, Euclidean(), solver=Newton()) for row in scores])
    assert bool((whole == single).all())


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


def chain_by_shares(scores: Tensor, keep: Tensor) -> Tensor:
    """A chain's KL projection with the parts that cannot be used left out of the declaration."""
    length, tags = scores.shape[0], scores.shape[1]
    index = keep.flatten().nonzero()[:, 0].numpy()

    def constraints(x: cp.Variable) -> list[Any]:
        y: list[Any] = [0.0] * keep.numel()
        for place, k in enumerate(index):
            y[k] = x[place]

        def part(t: int, i: int, j: int) -> Any:
            return y[(t * tags + i) * tags + j]

        into = [[sum(part(t, i, j) for i in range(tags)) for j in range(tags)] for t in range(length)]
        out = [[sum(part(t, i, j) for j in range(tags)) for i in range(tags)] for t in range(length)]
        flows = [into[t][j] == out[t + 1][j] for t in range(length - 1) for j in range(tags)]
        return [x >= 0, sum(into[0]) == 1, *flows]

    used = scores.flatten()[index]
    shares = Facets(constraints, (len(index),)).maximize(used, Shannon(), solver=Newton())
    return (
        torch.zeros_like(scores).flatten().index_put((torch.as_tensor(index),), shares).view_as(scores)
    )


@alone
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_parts_that_rows_fix_at_zero(scale: float) -> None:
    """Row 0 alone at t = 0: a sum of nonnegative parts that is 0, under a steep entropy."""
    chain = declared(Sequence(5, 3))
    scores = normal(3, 5, 3, 3, scale=scale).requires_grad_()
    solution = chain.solve(scores, Shannon(), solver=Newton())
    keep = torch.ones(5, 3, 3, dtype=torch.bool)
    keep[0, 1:] = False
    wanted = torch.stack([chain_by_shares(row, keep) for row in scores])
    y = chain.maximize(scores, Shannon(), solver=Newton())
    close(y, wanted, 1e-9)
    assert bool((y[:, 0, 1:] == 0).all())
    assert solution.gradient is not None and bool(solution.gradient.isfinite().all())
    grad = normal(3, 5, 3, 3, seed=1)
    pulled = [torch.autograd.grad(value, scores, grad)[0] for value in (y, wanted)]
    close(pulled[0], pulled[1], 1e-8)


@alone
@pytest.mark.parametrize("regularizer", [Shannon(), FermiDirac()], ids=repr)
def test_one_fixed_part_fixes_others(regularizer: Separable) -> None:
    """y_0 = 1 leaves nothing to its row and column of a doubly stochastic matrix."""

    def constraints(y: cp.Variable) -> list[Any]:
        return [y >= 0, cp.sum(y, 0) == 1, cp.sum(y, 1) == 1, y[0, 0] >= 1]

    y = Facets(constraints, (3, 3)).maximize(normal(4, 3, 3), regularizer, solver=Newton())
    assert bool((y[:, 0, 0] == 1).all())
    assert bool((y[:, 0, 1:] == 0).all()) and bool((y[:, 1:, 0] == 0).all())
    close(y.sum(1), torch.ones(4, 3).double(), 1e-12)
    inner = Facets(lambda x: [x >= 0, cp.sum(x, 0) == 1, cp.sum(x, 1) == 1], (2, 2))
    close(y[:, 1:, 1:], inner.maximize(normal(4, 3, 3)[:, 1:, 1:], regularizer), 1e-10)


@alone
def test_masks_fix_parts() -> None:
    """What masks leave of a row is one part: it is 1, and its column has no other."""
    found = Facets(lambda y: [y >= 0, cp.sum(y, 0) == 1, cp.sum(y, 1) == 1], (3, 3))
    keep = torch.ones(2, 3, 3, dtype=torch.bool)
    keep[0, 0, 1:] = False
    scores = normal(2, 3, 3)
    y = found.maximize(scores, Shannon(), keep=keep, solver=Newton())
    close(y[0, 0], torch.tensor([1.0, 0.0, 0.0]).double(), 0.0)
    close(y[0, 1:, 0], torch.zeros(2).double(), 0.0)
    close(y[1], found.maximize(scores[1], Shannon(), solver=Newton()), 1e-12)


@dataclass(frozen=True)
class Shared(Polytope):
    """{y >= 0 : sum y = 1, y_0 + y_1 = share}: nothing is left of the two where the share is 0."""

    parameters = {"share": ()}  # noqa: RUF012
    share = 0.5

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (4,)

    def constraints(self, y: cp.Variable, share: Any = 0.5) -> list[Any]:
        return [y >= 0, cp.sum(y) == 1, y[0] + y[1] == share]


@alone
def test_limits_fix_parts_of_some_instances() -> None:
    scores, share = normal(3, 4), torch.tensor([0.0, 0.25, 1.0]).double()
    y = Shared().maximize(scores, Shannon(), params={"share": share}, solver=Newton())
    first, second = scores[:, :2].softmax(1), scores[:, 2:].softmax(1)
    close(y, torch.cat([first * share[:, None], second * (1 - share[:, None])], 1), 1e-10)


def test_multipliers_that_run_away_prove_nothing() -> None:
    """Degenerate flows whose face's rows have multipliers of 1e15, as the checker found."""
    grid = GridPath(2, 2, 8)
    scores = torch.tensor([[0.0, 0.010401], [-0.388909, 0.141993]]).double()
    solution = grid.solve(scores, Euclidean(), solver=Newton())
    expected = torch.tensor([[1.0, 0.010401], [0.0, 1.0]]).double()
    close(solution.value, expected)


def test_a_part_that_rows_give_has_its_own_price() -> None:
    """y_0 = c is given by a row; the maximum's slope by c is s_0 - phi'(c) whatever rows remain."""

    class Given(Polytope):
        parameters = {"c": ()}  # noqa: RUF012

        @property
        def event_shape(self) -> tuple[int, ...]:
            return (3,)

        def constraints(self, y: cp.Variable, c: Any) -> list[Any]:
            return [y >= 0, y[0] == c, cp.sum(y) == 1]

    scores = torch.tensor([0.3, -0.2, 0.5]).double()
    c = torch.tensor(0.25).double().requires_grad_()
    maximum = Given().conjugate(scores, Shannon(), params={"c": c})
    maximum.backward()
    rest = torch.softmax(scores[1:], 0) * (1 - c.detach())
    price = scores[1] - rest[0].log() - 1  # of the sum
    wanted = scores[0] - c.detach().log() - 1 - price
    assert c.grad is not None
    assert float(c.grad) == pytest.approx(float(wanted), abs=1e-9)
