"""Derivatives of the verbs: one autograd.Function for the maximiser, one for its value.

The value's gradient is the maximiser (Danskin), so it may be differentiated once more.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spigot.polytopes.dispatch import Road
from spigot.polytopes.problem import Problem, Solution

__all__ = ["conjugate", "maximize", "pull"]


def maximize(problem: Problem, road: Road) -> Tensor:  # (n, *event)
    """The maximiser, differentiable in the problem's scores."""
    value: Tensor = cast(Any, _Maximize).apply(problem.scores, problem, road)
    return value


def conjugate(problem: Problem, road: Road) -> Tensor:  # (n,)
    """The maximum, differentiable twice in the problem's scores."""
    value: Tensor = cast(Any, _Conjugate).apply(problem.scores, problem, road)
    return value


def pull(problem: Problem, road: Road, solution: Solution, grad: Tensor) -> Tensor:
    """The road's vector-Jacobian product; an instance with a non-finite grad gets NaN."""
    n = problem.size
    bad = ~torch.isfinite(grad.flatten(1)).all(1)
    if not bool(bad.any()):
        return road.vjp(problem, solution, grad)
    column = bad.reshape(n, *[1] * (grad.dim() - 1))
    return torch.where(column, torch.nan, road.vjp(problem, solution, grad.masked_fill(column, 0.0)))


class _Maximize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, problem: Problem, road: Road) -> Tensor:
        if problem.size == 0:
            ctx.solution = None
            return torch.zeros_like(scores)
        ctx.problem = problem.with_scores(scores.detach())
        ctx.road = road
        ctx.solution = road.solve(ctx.problem)
        return ctx.solution.value.to(scores)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if ctx.solution is None:
            return torch.zeros_like(grad), None, None
        return pull(ctx.problem, ctx.road, ctx.solution, grad).to(grad), None, None


class _Conjugate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, problem: Problem, road: Road) -> Tensor:
        ctx.problem, ctx.road = problem, road
        ctx.save_for_backward(scores)
        if problem.size == 0:
            return scores.new_zeros(0)
        objective = road.solve(problem.with_scores(scores.detach())).objective
        assert objective is not None
        return objective.to(scores)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        (scores,) = ctx.saved_tensors
        value = maximize(ctx.problem.with_scores(scores), ctx.road)
        return grad.reshape(-1, *[1] * (scores.dim() - 1)) * value, None, None
