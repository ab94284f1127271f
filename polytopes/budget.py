r"""Separable regularizers over boxes with one budget: {y in [0, 1]^d : sum y = k, or <= k}.

The maximiser of <s, y> - sum phi(y) is y_i = clip(phi*'(s_i - tau), 0, 1), with one multiplier
tau for the budget: a root of the decreasing function F(tau) = sum y(tau) - k, found by Newton's
method kept inside a bracket. At tau = max s - phi'(k / n) no part exceeds k / n, so F <= 0, and at
min s - phi'(k / n) none falls below it, so F >= 0: that is the bracket, for every phi.

The derivative is D - D 1 1' D / 1' D 1 with D = 1 / phi'' at the parts of the exposed face (those
whose own bound has no multiplier), and D where the budget does not bind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spigot.polytopes.dispatch import Road
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Separable

__all__ = ["Budget", "BudgetRule"]

MAX_STEPS = 200  # bisection alone needs at most about 70 in float64


@dataclass(frozen=True)
class Budget:
    """How many parts an instance chooses: `total` of them, or at most that many."""

    total: int
    at_most: bool = False


class BudgetRule(Road):
    """Every separable regularizer over a polytope that has a `budget` (None for the plain box)."""

    name = "Newton on the multiplier of sum(y)"
    cost = "O(d) a step, about 10 steps"

    def solve(self, problem: Problem) -> Solution:
        """Y from its multiplier."""
        regularizer = _separable(problem)
        tau = _multiplier(regularizer, problem)
        shifted = _shifted(problem, tau)
        top = regularizer.gradient(torch.ones((), dtype=shifted.dtype, device=shifted.device))
        y = regularizer.mirror(shifted).clamp(0, 1)
        objective = (problem.flat_scores * y - regularizer.value(y)).sum(1)
        gradient = torch.minimum(shifted, top) if regularizer.steep else regularizer.gradient(y)
        shape = problem.scores.shape
        solution = Solution.closed_form(y.reshape(shape), objective, gradient.reshape(shape))
        return replace(solution, duals=tau[:, None])

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """(D - D 1 1' D / 1' D 1) grad."""
        assert solution.duals is not None
        regularizer = _separable(problem)
        tau, y = solution.duals[:, 0], solution.value.flatten(1)
        spread = regularizer.spread(y) * _free(regularizer, problem, tau)
        pulled = spread * grad.flatten(1)
        total = spread.sum(1)
        bound = (total > 0) & _binding(problem, tau)
        mean = torch.where(bound, pulled.sum(1) / torch.where(bound, total, 1.0), 0.0)
        return (pulled - spread * mean[:, None]).reshape(grad.shape)


def _separable(problem: Problem) -> Separable:
    assert isinstance(problem.regularizer, Separable)
    return problem.regularizer


def _budget(problem: Problem) -> Budget | None:
    budget: Budget | None = getattr(problem.polytope, "budget")  # noqa: B009
    return budget


def _binding(problem: Problem, tau: Tensor) -> Tensor:  # (n,)
    """Where the budget has a multiplier: everywhere for an equation, where tau > 0 otherwise."""
    budget = _budget(problem)
    if budget is None:
        return torch.zeros_like(tau, dtype=torch.bool)
    return tau > tie_tolerance(problem.flat_scores) if budget.at_most else torch.ones_like(tau) > 0


def _shifted(problem: Problem, tau: Tensor) -> Tensor:  # (n, d)
    shifted = problem.flat_scores - tau[:, None]
    keep = problem.flat_keep
    return shifted if keep is None else shifted.masked_fill(~keep, -torch.inf)


def _free(regularizer: Separable, problem: Problem, tau: Tensor) -> Tensor:  # (n, d)
    """Parts whose bounds 0 and 1 have no multiplier: those of the exposed face."""
    shifted = _shifted(problem, tau)
    low, high = _ends(regularizer, shifted)
    slack = tie_tolerance(problem.flat_scores)[:, None]
    return (shifted >= low - slack) & (shifted <= high + slack) & ~shifted.isneginf()


def _ends(regularizer: Separable, like: Tensor) -> tuple[Tensor, Tensor]:
    """phi'(0) and phi'(1)."""
    return (
        regularizer.gradient(torch.zeros((), dtype=like.dtype, device=like.device)),
        regularizer.gradient(torch.ones((), dtype=like.dtype, device=like.device)),
    )


def _multiplier(regularizer: Separable, problem: Problem) -> Tensor:  # (n,)
    s, keep = problem.flat_scores, problem.flat_keep
    budget = _budget(problem)
    none = s.new_zeros(s.shape[0])
    if budget is None:
        return none
    count = none + s.shape[1] if keep is None else keep.sum(1).to(s)
    total = torch.minimum(none + budget.total, count)
    trivial = (total == 0) | (total == count)  # a single point: every part at the same end
    tau = _root(regularizer, problem, torch.where(trivial, count / 2, total), count)
    if not regularizer.steep:
        tau = _centred(regularizer, problem, tau)
    tau = torch.where(trivial, torch.where(total == 0, torch.inf, -torch.inf), tau)
    if not budget.at_most:
        return tau
    relaxed = regularizer.mirror(_shifted(problem, none)).clamp(0, 1).sum(1)
    return torch.where(relaxed > total, tau.clamp_min(0), none)


def _root(regularizer: Separable, problem: Problem, total: Tensor, count: Tensor) -> Tensor:
    """The root of F by Newton's method in a bracket; every third step halves the bracket."""
    s, keep = problem.flat_scores, problem.flat_keep
    level = regularizer.gradient(total / count.clamp_min(1))
    low = (s if keep is None else s.masked_fill(~keep, torch.inf)).amin(1) - level
    high = (s if keep is None else s.masked_fill(~keep, -torch.inf)).amax(1) - level
    empty = count == 0
    low, high = torch.where(empty, 0.0, low), torch.where(empty, 0.0, high)
    eps = torch.finfo(s.dtype).eps
    tau = low
    for step in range(MAX_STEPS):
        y = regularizer.mirror(_shifted(problem, tau)).clamp(0, 1)
        excess = y.sum(1) - total
        low = torch.where(excess >= 0, tau, low)
        high = torch.where(excess <= 0, tau, high)
        slope = (regularizer.spread(y) * ((y > 0) & (y < 1))).sum(1)
        newton = tau + excess / slope
        middle = 0.5 * (low + high)
        inside = (newton >= low) & (newton <= high) & (step % 3 != 2)
        target = torch.where(inside, newton, middle)
        reach = eps * (1 + torch.maximum(low.abs(), high.abs()))
        done = (excess == 0) | ((target - tau).abs() <= reach) & inside | (high - low <= reach)
        if bool((done | empty).all()):
            return tau
        tau = torch.where(done, tau, target)
    return tau


def _centred(regularizer: Separable, problem: Problem, tau: Tensor) -> Tensor:
    """Where every part is at a bound, tau is an interval: its middle shows no false ties."""
    shifted = _shifted(problem, tau)
    kept = ~shifted.isneginf()
    low, high = _ends(regularizer, shifted)
    y = regularizer.mirror(shifted).clamp(0, 1)
    if bool(((y > 0) & (y < 1)).any(1).all()):
        return tau
    s = problem.flat_scores
    least = s.masked_fill(~(kept & (y <= 0)), -torch.inf).amax(1) - low
    most = s.masked_fill(~(kept & (y >= 1)), torch.inf).amin(1) - high
    corner = ~((y > 0) & (y < 1)).any(1) & least.isfinite() & most.isfinite()
    return torch.where(corner, 0.5 * (least + most), tau)
