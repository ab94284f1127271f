"""Derivatives of the verbs: one autograd.Function for the maximiser, one for its value.

The value's gradient is the maximiser (Danskin), so it may be differentiated once more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spigot.polytopes.dispatch import Road
from spigot.polytopes.problem import Problem, Solution

__all__ = ["conjugate", "maximize", "pull"]


def maximize(problem: Problem, road: Road) -> Tensor:  # (n, *event)
    """The maximiser, differentiable in the problem's scores and floating parameters."""
    value: Tensor = cast(Any, _Maximize).apply(problem.scores, problem, road, *_moving(problem))
    return value


def conjugate(problem: Problem, road: Road) -> Tensor:  # (n,)
    """The maximum, differentiable twice in the scores and once in the floating parameters."""
    value: Tensor = cast(Any, _Conjugate).apply(problem.scores, problem, road, *_moving(problem))
    return value


def pull(problem: Problem, road: Road, solution: Solution, grad: Tensor) -> Tensor:
    """The road's vector-Jacobian product; an instance with a non-finite grad gets NaN."""
    n, grad = problem.size, grad.contiguous()
    bad = ~torch.isfinite(grad.flatten(1)).all(1)
    if not bool(bad.any()):
        return road.vjp(problem, solution, grad)
    column = bad.reshape(n, *[1] * (grad.dim() - 1))
    return torch.where(column, torch.nan, road.vjp(problem, solution, grad.masked_fill(column, 0.0)))


def _moving(problem: Problem) -> list[Tensor]:
    """The parameters that a gradient may flow to, in the order of `params`."""
    return [values for values in problem.params.values() if values.is_floating_point()]


def _by_name(problem: Problem, gradients: dict[str, Tensor]) -> list[Tensor]:
    return [gradients[name] for name, values in problem.params.items() if values.is_floating_point()]


def _still(problem: Problem, scores: Tensor) -> Problem:
    """Without a graph."""
    params = {name: values.detach() for name, values in problem.params.items()}
    return replace(problem.with_scores(scores.detach()), params=params)


class _Maximize(torch.autograd.Function):
    @staticmethod
    def forward(  # the parameters are here for autograd to see: `problem` holds them too
        ctx: Any, scores: Tensor, problem: Problem, road: Road, *_params: Tensor
    ) -> Tensor:
        ctx.problem = _still(problem, scores)
        if problem.size == 0:
            ctx.solution = None
            return torch.zeros_like(scores)
        ctx.road = road
        ctx.solution = road.solve(ctx.problem)
        return ctx.solution.value.to(scores)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        moving = _moving(ctx.problem)
        if ctx.solution is None:
            return torch.zeros_like(grad), None, None, *(torch.zeros_like(item) for item in moving)
        by_scores = None
        if ctx.needs_input_grad[0]:
            by_scores = pull(ctx.problem, ctx.road, ctx.solution, grad).to(grad)
        if not any(ctx.needs_input_grad[3:]):
            return by_scores, None, None, *(None for _ in moving)
        found = _by_name(ctx.problem, ctx.road.vjp_params(ctx.problem, ctx.solution, grad))
        return by_scores, None, None, *(g.to(item) for g, item in zip(found, moving, strict=True))


class _Conjugate(torch.autograd.Function):
    @staticmethod
    def forward(  # the parameters are here for autograd to see: `problem` holds them too
        ctx: Any, scores: Tensor, problem: Problem, road: Road, *_params: Tensor
    ) -> Tensor:
        ctx.problem, ctx.road, ctx.solution = problem, road, None
        ctx.save_for_backward(scores)
        if problem.size == 0:
            return scores.new_zeros(0)
        ctx.solution = road.solve(_still(problem, scores))
        assert ctx.solution.objective is not None
        return ctx.solution.objective.to(scores)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (scores,) = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.solution is None:  # to be differentiated once more
            value = maximize(ctx.problem.with_scores(scores), ctx.road)
        else:
            value = ctx.solution.value.to(scores)
        by_scores = grad.reshape(-1, *[1] * (scores.dim() - 1)) * value
        moving = _moving(ctx.problem)
        if ctx.solution is None or not any(ctx.needs_input_grad[3:]):
            return by_scores, None, None, *(None for _ in moving)
        found = _by_name(ctx.problem, ctx.road.envelope(_still(ctx.problem, scores), ctx.solution))
        scaled = (grad.reshape(-1, *[1] * (g.dim() - 1)).to(g) * g for g in found)
        return by_scores, None, None, *(g.to(item) for g, item in zip(scaled, moving, strict=True))
