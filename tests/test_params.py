"""Sizes and parameters that differ from instance to instance, on structures of a user's own."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax, FenchelYoungLoss, Relaxed
from spigot.polytopes import (
    Euclidean,
    FermiDirac,
    Gibbs,
    Hull,
    Polytope,
    Regularizer,
    Shannon,
    Subset,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import ActiveSet, Clarabel, Highs
from spigot.pullback import SPIGOT, SPIGOTCE


@dataclass(frozen=True)
class Carry(Polytope):
    """Items of weight 1, as many as a capacity of the instance's own lets in."""

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"capacity": ()}
    d: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.d,)

    @property
    def length_range(self) -> tuple[int, int]:
        return 1, self.d

    def at(self, length: int) -> Polytope:
        return Carry(length)

    def constraints(self, y: cp.Variable, capacity: Any) -> list[Any]:
        return [y >= 0, y <= 1, cp.sum(y) <= capacity]


@dataclass(frozen=True)
class CarryBy(Polytope):
    """The same by an oracle that gets a tensor of capacities."""

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"capacity": ()}
    d: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.d,)

    def argmax(self, scores: Tensor, capacity: Tensor) -> Tensor:
        rank = scores.argsort(-1, descending=True).argsort(-1)
        return ((rank < capacity[:, None]) & (scores > 0)).to(scores)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(
        *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    ).requires_grad_()


LENGTHS = torch.tensor([3, 6, 2, 4, 3])
CHOSEN = torch.tensor([2, 3, 1, 2, 3])
WAYS: list[tuple[Regularizer | None, Any]] = [
    (None, None),
    (None, Highs()),
    (Euclidean(), None),
    (Euclidean(), Clarabel()),
    (Euclidean(), ActiveSet()),
    (FermiDirac(), None),
    (Gibbs(), None),
]


@pytest.mark.parametrize(("regularizer", "solver"), WAYS, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_each_instance_as_if_alone(regularizer: Regularizer | None, solver: Any, masked: bool) -> None:
    scores = normal(5, 6)
    keep = None
    if masked:
        keep = torch.ones(5, 6, dtype=torch.bool)
        keep[1, 2] = keep[3, 0] = False
    value = Subset(6, 2).maximize(
        scores, regularizer, lengths=LENGTHS, keep=keep, params={"k": CHOSEN}, solver=solver
    )
    weight = normal(5, 6, seed=1).detach()
    gradient = weight if regularizer is None else torch.autograd.grad(value, scores, weight)[0]
    for i, (m, k) in enumerate(zip(LENGTHS.tolist(), CHOSEN.tolist(), strict=True)):
        alone = scores[i, :m].detach().requires_grad_()
        kept = None if keep is None else keep[i, :m]
        one = Subset(m, k).maximize(alone, regularizer, keep=kept)
        torch.testing.assert_close(value[i, :m], one, atol=1e-7, rtol=0)
        assert not value[i, m:].any()
        if regularizer is not None:
            (expected,) = torch.autograd.grad(one, alone, weight[i, :m])
            torch.testing.assert_close(gradient[i, :m], expected, atol=1e-5, rtol=0)
            assert not gradient[i, m:].any()


@pytest.mark.parametrize("regularizer", [None, Euclidean(), FermiDirac()], ids=str)
def test_user_classes_get_their_parameters(regularizer: Regularizer | None) -> None:
    scores, capacity = normal(4, 5).detach(), torch.tensor([1, 2, 0, 2])
    by_rows = Carry(5).maximize(scores, regularizer, params={"capacity": capacity})
    for i, most in enumerate(capacity.tolist()):
        one = Subset(5, most, at_most=True).maximize(scores[i], regularizer)
        torch.testing.assert_close(by_rows[i], one, atol=1e-6, rtol=0)
    if not isinstance(regularizer, FermiDirac):
        by_oracle = CarryBy(5).maximize(scores, regularizer, params={"capacity": capacity})
        torch.testing.assert_close(by_oracle, by_rows, atol=1e-6, rtol=0)


def test_fractional_parameters_and_one_for_all() -> None:
    scores = normal(3, 4).detach() + 2
    total = Carry(4).project(scores, params={"capacity": torch.tensor(1.5)}).sum(-1)
    torch.testing.assert_close(total, torch.full((3,), 1.5, dtype=torch.float64))


def test_lengths_with_parameters_of_a_user_class() -> None:
    scores = normal(5, 6).detach()
    value = Carry(6).project(scores, lengths=LENGTHS, params={"capacity": CHOSEN})
    for i, (m, k) in enumerate(zip(LENGTHS.tolist(), CHOSEN.tolist(), strict=True)):
        expected = Subset(m, k, at_most=True).project(scores[i, :m])
        torch.testing.assert_close(value[i, :m], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("pullback", [SPIGOT(), SPIGOTCE()], ids=str)
def test_layers_hand_parameters_on(pullback: Any) -> None:
    scores, params = normal(5, 6), {"k": CHOSEN}
    layer = Argmax(Subset(6, 2), pullback)
    (layer(scores, lengths=LENGTHS, params=params) * torch.arange(6)).sum(-1).mean().backward()
    assert scores.grad is not None
    for i, (m, k) in enumerate(zip(LENGTHS.tolist(), CHOSEN.tolist(), strict=True)):
        alone = scores[i : i + 1, :m].detach().requires_grad_()
        value = Argmax(Subset(m, k), pullback)(alone)
        (value * torch.arange(m)).sum(-1).mean().backward()
        assert alone.grad is not None
        torch.testing.assert_close(5 * scores.grad[i, :m], alone.grad[0], atol=1e-7, rtol=0)
    relaxed = Relaxed(Subset(6, 2), Euclidean())(scores, lengths=LENGTHS, params=params)
    torch.testing.assert_close(relaxed.sum(-1), CHOSEN.double())
    loss = FenchelYoungLoss(Subset(6, 2), Euclidean())
    target = layer(scores, lengths=LENGTHS, params=params)
    assert loss(scores, target, lengths=LENGTHS, params=params) > 0


def test_verbs_take_parameters() -> None:
    scores, subset, params = normal(5, 6), Subset(6, 2), {"k": CHOSEN}
    masks: dict[str, Any] = {"lengths": LENGTHS, "params": params}
    assert torch.equal(subset.sample(scores, (3,), **masks).sum(-1), CHOSEN.double().expand(3, 5))
    some: dict[str, Any] = {"lengths": LENGTHS[:2], "params": {"k": CHOSEN[:2]}}
    assert torch.equal(subset.top_k(scores[:2], 2, **some)[0], subset.maximize(scores[:2], **some))
    value = subset.marginals(scores, **masks)
    assert bool(subset.contains(value, **masks).all())
    assert not bool(subset.contains(value, lengths=LENGTHS)[torch.tensor([1, 2, 4])].any())
    (gradient,) = torch.autograd.grad(subset.log_partition(scores, **masks).sum(), scores)
    torch.testing.assert_close(gradient, value)
    entropy = subset.entropy(scores, **masks)
    assert abs(entropy[4].item()) <= 1e-12  # three of three
    gap = subset.gap(value.detach(), scores.detach(), Euclidean(), **masks)
    assert bool((gap >= -1e-12).all())
    assert bool(subset.solve(scores, Euclidean(), **masks).converged.all())


def test_bad_parameters_are_named() -> None:
    scores = normal(2, 5).detach()
    with pytest.raises(ValueError, match="needs its parameter 'capacity'"):
        Carry(5).project(scores)
    with pytest.raises(ValueError, match="no parameter 'weight'; its parameters: capacity"):
        Carry(5).project(scores, params={"weight": torch.ones(2)})
    with pytest.raises(ValueError, match="no parameter 'k'; its parameters: none"):
        Hull(torch.eye(5)).project(scores, params={"k": torch.ones(2)})
    with pytest.raises(ValueError, match=r"params\['capacity'\] of shape \(3,\) does not broadcast"):
        Carry(5).project(scores, params={"capacity": torch.ones(3)})
    with pytest.raises(ValueError, match=r"params\['capacity'\] hold NaN in instance 1"):
        Carry(5).project(scores, params={"capacity": torch.tensor([1.0, torch.nan])})
    with pytest.raises(TypeError, match=r"params\['capacity'\] must be a torch.Tensor, got int"):
        Carry(5).project(scores, params={"capacity": 2})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"k=7.*0\.\.5"):
        Subset(5, 2).project(scores, params={"k": torch.tensor([2, 7])})


@dataclass(frozen=True)
class Shelf(Polytope):
    """A capacity, a bound on each part, a total and auxiliary variables: all move with parameters."""

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"capacity": (), "most": (5,)}

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (5,)

    def constraints(self, y: cp.Variable, capacity: Any, most: Any) -> list[Any]:
        over = cp.Variable(5, nonneg=True)
        return [
            y >= 0,
            y <= most,
            cp.sum(y) <= capacity,
            y[0] + y[1] == capacity / 3,
            over >= y - 0.3,
            cp.sum(over) <= capacity,
        ]


@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon(), FermiDirac()], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_by_right_hand_sides(regularizer: Regularizer, masked: bool) -> None:
    scores = normal(3, 5)
    capacity = torch.tensor([1.5, 1.2, 0.9], dtype=torch.float64, requires_grad=True)
    most = (0.6 + 0.3 * normal(3, 5, seed=1).detach().abs().clamp(max=1)).requires_grad_()
    keep = torch.ones(3, 5, dtype=torch.bool)
    keep[1, 3] = keep[2, 0] = not masked

    def value(s: Tensor, c: Tensor, m: Tensor) -> Tensor:
        return Shelf().maximize(s, regularizer, keep=keep, params={"capacity": c, "most": m})

    def maximum(s: Tensor, c: Tensor, m: Tensor) -> Tensor:
        return Shelf().conjugate(s, regularizer, keep=keep, params={"capacity": c, "most": m})

    for function in (value, maximum):
        assert torch.autograd.gradcheck(
            function, (scores, capacity, most), eps=1e-5, atol=1e-4, fast_mode=True
        )


def test_gradients_by_right_hand_sides_of_each_size() -> None:
    scores, capacity = normal(5, 6), torch.rand(5, dtype=torch.float64) + 0.5
    capacity.requires_grad_()

    def value(c: Tensor) -> Tensor:
        return Carry(6).project(scores.detach(), lengths=LENGTHS, params={"capacity": c})

    assert torch.autograd.gradcheck(value, (capacity,), eps=1e-5, atol=1e-4, fast_mode=True)


def test_a_gradient_that_does_not_exist_is_refused() -> None:
    @dataclass(frozen=True)
    class Tilted(Polytope):
        parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"price": ()}

        @property
        def event_shape(self) -> tuple[int, ...]:
            return (2,)

        def constraints(self, y: cp.Variable, price: Any) -> list[Any]:
            return [y >= 0, y <= 1, y[0] + price * y[1] <= 1]

    scores = torch.ones(1, 2, dtype=torch.float64)
    price = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedProblem, match="'price': it stands in coefficients"):
        Tilted().project(scores, params={"price": price}).sum().backward()
    assert not Tilted().maximize(scores, params={"price": price}).requires_grad
    with pytest.raises(UnsupportedProblem, match="does not move smoothly"):
        Tilted().conjugate(scores, params={"price": price}).sum().backward()
    capacity = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnsupportedProblem, match="no derivative by capacity"):
        CarryBy(2).project(scores, params={"capacity": capacity}).sum().backward()


def test_parameters_survive_pickling() -> None:
    polytope = pickle.loads(pickle.dumps(Carry(4)))
    scores = normal(2, 4).detach()
    params = {"capacity": torch.tensor([1, 2])}
    assert torch.equal(polytope.project(scores, params=params), Carry(4).project(scores, params=params))


def test_a_score_of_minus_infinity_where_parts_may_be_negative() -> None:
    @dataclass(frozen=True)
    class Shifted(Polytope):
        parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"low": ()}

        @property
        def event_shape(self) -> tuple[int, ...]:
            return (2,)

        def constraints(self, y: cp.Variable, low: Any) -> list[Any]:
            return [y >= low, y <= 1]

    scores = torch.tensor([[-torch.inf, 1.0]])
    assert torch.equal(
        Shifted().maximize(scores, params={"low": torch.tensor(0.0)}), torch.tensor([[0.0, 1.0]])
    )
    with pytest.raises(UnsupportedProblem, match="as low as -1"):
        Shifted().maximize(scores, params={"low": torch.tensor(-1.0)})
