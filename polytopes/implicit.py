"""Derivatives of the verbs: one autograd.Function for the maximiser, one for its value.

The maximiser may be differentiated twice in the scores where its road knows how its Jacobian bends
(see `curvature`). The value's gradient is the maximiser (Danskin): it has one derivative more.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from spigot.polytopes.arrays import room
from spigot.polytopes.dispatch import Road, choose
from spigot.polytopes.errors import UnsupportedProblem, unsupported
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean

__all__ = ["conjugate", "damped", "maximize", "pull"]


def maximize(problem: Problem, road: Road) -> Tensor:  # (n, *event)
    """The maximiser, differentiable in the problem's scores and floating parameters."""
    moving = _moving(problem)
    asked = any(item.requires_grad for item in (problem.scores, *moving))
    if problem.regularizer is None or not (asked and torch.is_grad_enabled()):
        still = _still(problem, problem.scores) if asked else problem
        return road.solve(still).value.to(still.scores) if still.size else torch.zeros_like(still.scores)
    value: Tensor = cast(Any, _Maximize).apply(problem.scores, problem, road, *moving)
    return value


def damped(problem: Problem, value: Tensor, damping: float) -> Tensor:  # (n, *event)
    """The maximiser with the derivatives of (1 - damping) y(s) + damping P s.

    P is the orthogonal projector onto the directions of M's affine hull, within what the masks leave.
    It is the derivative of M's projection at one of M's own vertices, where all of M is the exposed
    face: so every road gives the same.
    """
    if not damping or not value.requires_grad or not problem.size:
        return value
    polytope, scores = problem.polytope, problem.scores.double()
    vertex = choose(polytope, None).solve(_still(problem, scores).linear(scores.detach())).value
    flat = problem.asking(Euclidean()).with_scores(vertex.to(scores) + scores - scores.detach())
    moved = maximize(flat, choose(polytope, Euclidean())).to(value)
    return value + damping * ((moved - moved.detach()) - (value - value.detach()))


def conjugate(problem: Problem, road: Road, target: Tensor | None = None) -> Tensor:  # (n,)
    """The maximum, differentiable twice in the scores and once in the floating parameters.

    With a target `(n, *event)`, detached, less <s, target>: a loss in one array fewer.
    """
    value: Tensor = cast(Any, _Conjugate).apply(problem.scores, problem, road, target, *_moving(problem))
    return value


def pull(problem: Problem, road: Road, solution: Solution, grad: Tensor) -> Tensor:
    """The road's vector-Jacobian product; an instance with a non-finite grad gets NaN."""
    grad = grad.contiguous()
    if math.isfinite(grad.sum().item()):  # one pass, in the usual case
        return road.vjp(problem, solution, grad)
    bad = ~torch.isfinite(grad.flatten(1)).all(1)
    column = bad.reshape(problem.size, *[1] * (grad.dim() - 1))
    return torch.where(column, torch.nan, road.vjp(problem, solution, grad.masked_fill(column, 0.0)))


def _moving(problem: Problem) -> list[Tensor]:
    """The parameters that a gradient may flow to, in the order of `params`."""
    return [values for values in problem.params.values() if values.is_floating_point()]


def _by_name(problem: Problem, gradients: dict[str, Tensor]) -> list[Tensor]:
    return [gradients[name] for name, values in problem.params.items() if values.is_floating_point()]


def _still(problem: Problem, scores: Tensor) -> Problem:
    """Without a graph."""
    still = problem.with_scores(scores.detach())
    if not problem.params:
        return still
    return replace(still, params={name: values.detach() for name, values in problem.params.items()})


def _times(factor: Tensor, value: Tensor, less: Tensor | None) -> Tensor:
    """factor (value - less), in the shape of the value."""
    if torch.is_grad_enabled():
        return factor * (value if less is None else value - less)
    if less is None:
        return torch.mul(factor, value, out=room(value))
    return torch.sub(value, less, out=room(value)).mul_(factor)


class _Maximize(torch.autograd.Function):
    @staticmethod
    def forward(  # the parameters are here for autograd to see: `problem` holds them too
        ctx: Any, scores: Tensor, problem: Problem, road: Road, *params: Tensor
    ) -> Tensor:
        ctx.save_for_backward(scores, *params)
        ctx.problem = _still(problem, scores)
        if problem.size == 0:
            ctx.solution = None
            return torch.zeros_like(scores)
        ctx.road = road
        value, ctx.solution = road.solve(ctx.problem).handed(scores)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        scores, *moving = ctx.saved_tensors
        if ctx.solution is None:
            return torch.zeros_like(grad), None, None, *(torch.zeros_like(item) for item in moving)
        by_scores = None
        if ctx.needs_input_grad[0]:
            by_scores = _pulled(ctx.problem, ctx.road, ctx.solution, scores, grad, moving)
        if not any(ctx.needs_input_grad[3:]):
            return by_scores, None, None, *(None for _ in moving)
        found = _by_name(ctx.problem, ctx.road.vjp_params(ctx.problem, ctx.solution, grad.detach()))
        by_params = (g.to(item) for g, item in zip(found, moving, strict=True))
        once = (_once(ctx.problem, BY_PARAMS, g, scores, grad, *moving) for g in by_params)
        return by_scores, None, None, *once


def _pulled(
    problem: Problem, road: Road, solution: Solution, scores: Tensor, grad: Tensor, params: list[Tensor]
) -> Tensor:
    """`pull`, differentiable once more where a graph is asked for (create_graph=True)."""
    if not torch.is_grad_enabled():
        return pull(problem, road, solution, grad).to(grad)
    pulled: Tensor = cast(Any, _Pull).apply(scores, grad, problem, road, solution, *params)
    return pulled


class _Pull(torch.autograd.Function):
    """J grad. J is symmetric: its derivative by grad is J again."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        grad: Tensor,
        problem: Problem,
        road: Road,
        solution: Solution,
        *params: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(scores, grad, *params)
        ctx.known = problem, road, solution
        return pull(problem, road, solution, grad).to(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grads
        scores, grad, *params = ctx.saved_tensors
        problem, road, solution = ctx.known
        by_scores = by_grad = None
        if ctx.needs_input_grad[1]:
            by_grad = _pulled(problem, road, solution, scores, upstream, params)
        if ctx.needs_input_grad[0]:
            curved = _curve(problem, road, solution, grad.detach(), upstream.detach()).to(grad)
            by_scores = _once(problem, BY_SCORES, curved, scores, grad, upstream, *params)
        if any(ctx.needs_input_grad[5:]):
            raise _no_more(problem, MIXED)
        return by_scores, by_grad, None, None, None, *(None for _ in params)


def _curve(problem: Problem, road: Road, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
    """The road's second derivative; an instance with a non-finite u or v gets NaN."""
    bad = ~(torch.isfinite(u) & torch.isfinite(v)).flatten(1).all(1)
    column = bad.reshape(problem.size, *[1] * (u.dim() - 1))
    u, v = (grad.masked_fill(column, 0.0).contiguous() for grad in (u, v))
    return torch.where(column, torch.nan, road.curve(problem, solution, u, v))


BY_PARAMS = "the derivative by the parameters cannot be differentiated again."
BY_SCORES = "there are second derivatives by the scores, and no third ones."
MIXED = "the derivative by the scores cannot be differentiated by the parameters."


def _once(problem: Problem, why: str, value: Tensor, *inputs: Tensor) -> Tensor:
    """A derivative that cannot be differentiated by these inputs again, and says so if it is."""
    if not torch.is_grad_enabled():
        return value
    final: Tensor = cast(Any, _Final).apply(value, problem, why, *inputs)
    return final


class _Final(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, problem: Problem, why: str, *_inputs: Tensor) -> Tensor:
        ctx.problem, ctx.why = problem, why
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_grads: Tensor) -> tuple[Tensor | None, ...]:
        raise _no_more(ctx.problem, ctx.why)


def _no_more(problem: Problem, why: str) -> UnsupportedProblem:
    return unsupported(
        problem.polytope,
        problem.regularizer,
        why,
        "Detach the parameters, or the gradient, before it is differentiated.",
    )


class _Conjugate(torch.autograd.Function):
    @staticmethod
    def forward(  # the parameters are here for autograd to see: `problem` holds them too
        ctx: Any, scores: Tensor, problem: Problem, road: Road, target: Tensor | None, *params: Tensor
    ) -> Tensor:
        ctx.problem, ctx.road, ctx.target, ctx.solution = problem, road, target, None
        ctx.save_for_backward(scores, *params)
        if problem.size == 0:
            return scores.new_zeros(0)
        solve = road.solve if any(ctx.needs_input_grad) else road.conjugate
        ctx.solution = solve(_still(problem, scores))
        value = ctx.solution.objective
        assert value is not None
        if target is not None:
            inner = torch.bmm(scores.flatten(1)[:, None], target.flatten(1)[..., None])
            value = value - inner[:, 0, 0].to(value)
        return value.to(scores)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        scores, *moving = ctx.saved_tensors
        if torch.is_grad_enabled() or ctx.solution is None:  # to be differentiated once more
            value = maximize(ctx.problem.with_scores(scores), ctx.road)
        else:
            value = ctx.solution.value.to(scores)
        by_scores = _times(grad.reshape(-1, *[1] * (scores.dim() - 1)), value, ctx.target)
        if ctx.solution is None or not any(ctx.needs_input_grad[4:]):
            return by_scores, None, None, None, *(None for _ in moving)
        found = _by_name(ctx.problem, ctx.road.envelope(_still(ctx.problem, scores), ctx.solution))
        once = (_once(ctx.problem, BY_PARAMS, g, scores, *moving) for g in found)
        scaled = (grad.reshape(-1, *[1] * (g.dim() - 1)).to(g) * g for g in once)
        return by_scores, None, None, None, *(g.to(item) for g, item in zip(scaled, moving, strict=True))
