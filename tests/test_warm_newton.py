"""Newton's method begun at an earlier answer's multipliers: fewer steps, the same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from spigot.layers import Relaxed
from spigot.polytopes import Euclidean, Facets, FermiDirac, Polytope, Shannon, Subset
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers import Newton
from tests.tensors import close, normal


class Ordered(Polytope):
    """0 <= y_1 <= ... <= y_d <= 1 with a budget of each instance's own."""

    parameters = {"budget": ()}  # noqa: RUF012

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The parts."""
        return (12,)

    def constraints(self, y: cp.Variable, budget: Any) -> list[Any]:
        """Neighbours in order, and the sum."""
        return [y >= 0, y <= 1, y[:-1] <= y[1:], cp.sum(y) <= budget]


def birkhoff(n: int) -> Facets:
    """Doubly stochastic matrices by constraints alone."""
    return Facets(lambda y: [y >= 0, cp.sum(y, axis=0) == 1, cp.sum(y, axis=1) == 1], (n, n))


@pytest.mark.parametrize("omega", [Euclidean(), Shannon(), FermiDirac()], ids=repr)
def test_fewer_steps_and_the_same_answer(omega: Separable) -> None:
    polytope = birkhoff(6)
    scores = normal(16, 6, 6, scale=2.0)
    first = polytope.solve(scores, omega, solver=Newton())
    moved = scores + 0.01 * normal(16, 6, 6, seed=1)
    cold = polytope.solve(moved, omega, solver=Newton())
    warm = polytope.solve(moved, omega, solver=Newton(), start=first)
    assert int(warm.iterations.sum()) < 0.7 * int(cold.iterations.sum())
    assert warm.gap is not None and float(warm.gap.max()) < 1e-9
    close(warm.value, cold.value)


def test_the_answer_itself_is_a_start_that_needs_no_step() -> None:
    polytope, scores = birkhoff(4), normal(3, 4, 4)
    first = polytope.solve(scores, Euclidean(), solver=Newton())
    again = polytope.solve(scores, Euclidean(), solver=Newton(), start=first)
    assert int(again.iterations.max()) <= 1
    close(again.value, first.value, 1e-12)


def test_each_instance_begins_at_its_own_with_parameters() -> None:
    polytope, scores = Ordered(), normal(2, 3, 12, scale=2.0)
    budget = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).double()
    first = polytope.solve(scores, Euclidean(), params={"budget": budget})
    other = {"budget": budget + 0.3}
    cold = polytope.solve(scores, Euclidean(), params=other)
    warm = polytope.solve(scores, Euclidean(), params=other, start=first)
    close(warm.value, cold.value)
    assert int(warm.iterations.sum()) <= int(cold.iterations.sum())


def derivative(polytope: Polytope, scores: Tensor, upstream: Tensor, **given: Any) -> Tensor:
    """J' u through the layer."""
    leaf = scores.clone().requires_grad_()
    Relaxed(polytope, Euclidean(), solver=Newton())(leaf, **given).backward(upstream)
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("scores", [torch.zeros(9), torch.ones(9), torch.eye(3).flatten()], ids=repr)
def test_the_derivative_at_ties_does_not_depend_on_the_start(scores: Tensor) -> None:
    """Multipliers are not unique there, and each start leads to others."""
    polytope = birkhoff(3)
    tied = scores.double().reshape(1, 3, 3).repeat(4, 1, 1)
    upstream = normal(4, 3, 3, seed=5)
    expected = derivative(polytope, tied, upstream)
    for seed in range(3):
        first = polytope.solve(normal(4, 3, 3, seed=seed, scale=3.0), Euclidean(), solver=Newton())
        close(derivative(polytope, tied, upstream, start=first), expected, 1e-8)


def test_starts_that_say_nothing_are_left_out() -> None:
    """Another road's multipliers, ones that are not known, or far too large ones."""
    polytope, scores = Subset(5, 2), normal(4, 5)
    cold = polytope.solve(scores, Euclidean(), solver=Newton())
    assert cold.duals is not None
    unknown = torch.where(torch.arange(4)[:, None] == 1, torch.nan, cold.duals)
    starts = [
        polytope.solve(scores, Euclidean()),  # the fast rule's
        replace(cold, duals=unknown),
        replace(cold, duals=cold.duals * 1e6),
        replace(cold, duals=-cold.duals),
        replace(cold, duals=None),
    ]
    for start in starts:
        warm = polytope.solve(scores, Euclidean(), solver=Newton(), start=start)
        close(warm.value, cold.value)
    unsure = polytope.solve(scores, Euclidean(), solver=Newton(), start=starts[1])
    assert int(unsure.iterations[1]) == int(cold.iterations[1])
    assert int(unsure.iterations[0]) <= 1


def test_masked_instances_begin_anew() -> None:
    polytope, scores = birkhoff(4), normal(3, 4, 4)
    keep = torch.ones(3, 4, 4, dtype=torch.bool)
    keep[:, 0, 1] = False
    first = polytope.solve(scores, Euclidean(), keep=keep)
    assert first.duals is None
    again = polytope.solve(scores, Euclidean(), keep=keep, start=first)
    close(again.value, first.value)
    from_whole = polytope.solve(
        scores, Euclidean(), keep=keep, start=polytope.solve(scores, Euclidean())
    )
    close(from_whole.value, first.value)
