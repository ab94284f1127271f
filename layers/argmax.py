"""A structure in the forward pass, a pull-back in the backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spigot.polytopes import Polytope, Solution, opaque
from spigot.polytopes.base import empty_or
from spigot.polytopes.dispatch import Road, Solver
from spigot.polytopes.posing import pose
from spigot.polytopes.problem import Problem
from spigot.polytopes.start import CachedSupports
from spigot.pullback.downstream import Downstream
from spigot.pullback.estimator import Estimator
from spigot.pullback.estimators import PullBack
from spigot.pullback.roads import road

__all__ = ["Argmax"]


class Argmax(opaque.Opaque):
    """z(s) = argmax over y in M of <s, y>, with a surrogate gradient.

    Args:
        polytope: M.
        pullback: the backward rule, such as `SPIGOT(step_size=1.0)`. Its `forward` says what the
            layer returns: vertices unless it names a regularizer. Its `noise` is added in train mode
            only; a step size that is a module, `Adaptive()`, is the layer's submodule.
        solver: forces a generic road in the forward pass.

    Raises:
        TypeError: a pull-back that is no estimator, or a polytope or solver that is none.
        UnsupportedProblem: when the layer is made, if the polytope cannot do what the pull-back needs.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Subset
        >>> from spigot.pullback import SPIGOT
        >>> layer = Argmax(Subset(4, 2), SPIGOT(step_size=1.0))
        >>> layer
        Argmax(Subset(d=4, k=2, at_most=False), SPIGOT(step_size=1.0))
        >>> scores = torch.tensor([0.1, 0.4, 0.3, 0.2], requires_grad=True)
        >>> z = layer(scores)
        >>> z.detach()
        tensor([0., 1., 1., 0.])
        >>> (z @ torch.tensor([0.0, 0.5, 0.0, 0.0])).backward()
        >>> scores.grad
        tensor([-0.1667,  0.3333,  0.0000, -0.1667])

    References:
        Mihaylova, Niculae and Martins, "Understanding the Mechanics of SPIGOT" (EMNLP 2020).
    """

    def __init__(self, polytope: Polytope, pullback: Estimator, *, solver: Solver | None = None) -> None:
        super().__init__()
        if not isinstance(pullback, Estimator):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"pullback must be an estimator, such as SPIGOT(step_size=1.0); got {pullback!r}."
            )
        self.polytope = polytope
        self.pullback = pullback
        self.solver = solver
        if isinstance(pullback, PullBack) and isinstance(pullback.step_size, nn.Module):
            self.step_size: nn.Module = pullback.step_size
        road(polytope, pullback.forward, solver)
        pullback.check(polytope)

    def __repr__(self) -> str:
        solver = "" if self.solver is None else f", solver={self.solver}"
        return f"Argmax({self.polytope}, {self.pullback}{solver})"

    @overload
    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        downstream: Callable[[Tensor], Tensor] | None = None,
        start: Solution | CachedSupports | None = None,
        generator: torch.Generator | None = None,
        return_solution: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        downstream: Callable[[Tensor], Tensor] | None = None,
        start: Solution | CachedSupports | None = None,
        generator: torch.Generator | None = None,
        return_solution: Literal[True],
    ) -> tuple[Tensor, Solution]: ...

    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        downstream: Callable[[Tensor], Tensor] | None = None,
        start: Solution | CachedSupports | None = None,
        generator: torch.Generator | None = None,
        return_solution: bool = False,
    ) -> Tensor | tuple[Tensor, Solution]:
        """Structures of largest score.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names.
            downstream: mu `(*batch, *event)` -> loss `(*batch,)`, each instance's own loss, never
                divided by the batch size; evaluated again in the backward at points other than the
                forward value.
            start: where projections may begin, those of the backward too: a `Solution` of the same
                batch, or `SupportCache.at(ids)`, which also takes the supports that they end with.
                No answer depends on it; inside torch.compile and torch.func it goes unused.
            generator: for the pull-back's noise.
            return_solution: whether to return the forward's `Solution` too.

        Inside torch.compile this is one operation, `fullgraph=True` included; `downstream`, a
        `generator` or `return_solution` break the graph there, once each call, with equal results
        (without a generator `torch.manual_seed` counts, as outside). Inside torch.func's vmap, grad,
        vjp and jacrev every example is a call of its own: "mean" divides by its own batch shape.
        `downstream` and `return_solution` are errors there, and noise obeys vmap's `randomness`. An
        `Adaptive` step size is updated by the layer itself, outside the graph, once a backward.

        Returns:
            `(*batch, *event)`: vertices, or points of M if the pull-back's `forward` says so.

        Raises:
            ValueError: bad input as for `Polytope.solve`, or several steps or a line search without
                `downstream`.
            ConvergenceError: a solver did not converge (running out of a budget is no error here).
            RuntimeError: `downstream` or `return_solution` inside torch.func.
        """
        if opaque.transformed():
            whole = downstream is None and not return_solution
            if opaque.compiling() and not (whole and generator is None):
                return _uncompiled(
                    self, scores, lengths, keep, params, downstream, generator, return_solution
                )
            if whole:
                return self._whole(scores, lengths, keep, params, generator)
            if opaque.transforming():
                raise RuntimeError(
                    f"{self}: no torch.func transform can see inside downstream= and "
                    "return_solution=True.\nCall the layer outside of them."
                )
        problem = pose(self.polytope, scores, self.pullback.forward, lengths, keep, params, start)
        if torch.is_grad_enabled() and scores.requires_grad:
            self.pullback.check_downstream(downstream)
        draws = self.pullback.draw(problem, generator) if self.training else ()
        context = self._context(problem, scores.dtype, self.pullback, draws, downstream)
        value: Tensor = cast(Any, _Vertices).apply(problem.scores, context)
        if not return_solution:
            return value
        assert context.solution is not None
        return value, context.solution.batched(problem, scores.dtype, scores.device)

    def _whole(
        self,
        scores: Tensor,
        lengths: Tensor | None,
        keep: Tensor | None,
        params: Mapping[str, Tensor] | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """As one operation, inside torch.compile or torch.func."""
        params = {name: value.detach() for name, value in (params or {}).items()}
        draws = None
        if self.training and self.pullback.noise is not None:
            samples = self.pullback.samples
            draws = opaque.draw(self, samples, scores, keep, lengths, params, generator)
        return opaque.answer(self, scores, keep, lengths, params, draws)

    def answer(
        self,
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        params: Mapping[str, Tensor],
        draws: Tensor | None,
        folded: int,
    ) -> Tensor:
        """The structures, as one operation in a traced graph: see `Opaque`."""
        problem = pose(self.polytope, scores, self.pullback.forward, lengths, keep, params)
        pullback = _apiece(self.pullback, problem.batch_shape, folded)
        flat: tuple[Tensor, ...] = ()
        if draws is not None:
            flat = tuple(draws.reshape(len(draws), *problem.scores.shape))
        if problem.mask is not None:
            flat = tuple(torch.where(problem.mask, item, 0.0) for item in flat)
        context = self._context(problem, scores.dtype, pullback, flat)
        value: Tensor = cast(Any, _Vertices).apply(problem.scores, context)
        return value

    def draw(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """The pull-back's noise, as one operation in a traced graph: see `Opaque`."""
        event = self.polytope.event_shape
        flat = scores.reshape(scores.shape[: scores.dim() - len(event)].numel(), *event)
        flat = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        problem = Problem(self.polytope, flat, self.pullback.forward)
        return torch.stack(self.pullback.draw(problem, generator))

    def _context(
        self,
        problem: Problem,
        dtype: torch.dtype,
        pullback: Estimator,
        draws: tuple[Tensor, ...],
        downstream: Callable[[Tensor], Tensor] | None = None,
    ) -> _Context:
        rule = road(self.polytope, pullback.forward, self.solver)
        return _Context(problem, rule, pullback, downstream, draws, dtype)


@opaque.uncompiled
def _uncompiled(
    layer: Argmax,
    scores: Tensor,
    lengths: Tensor | None,
    keep: Tensor | None,
    params: Mapping[str, Tensor] | None,
    downstream: Callable[[Tensor], Tensor] | None,
    generator: torch.Generator | None,
    return_solution: Any,
) -> Any:
    """The graph breaks here: a closure, a generator and a `Solution` are no tensors."""
    return cast(Any, layer).forward(
        scores,
        lengths=lengths,
        keep=keep,
        params=params,
        downstream=downstream,
        generator=generator,
        return_solution=return_solution,
    )


def _apiece(pullback: Estimator, batch_shape: tuple[int, ...], folded: int) -> Estimator:
    """The estimator as each of the calls sees it that were folded into one batch."""
    if not folded:
        return pullback
    own, changed = batch_shape[folded:], dict[str, Any]()
    if isinstance(pullback.reduction, str) and pullback.reduction == "mean":
        changed["reduction"] = float(max(math.prod(own), 1))
    step_size = pullback.step_size if isinstance(pullback, PullBack) else None
    if isinstance(step_size, Tensor) and step_size.dim() and tuple(step_size.shape) == own:
        changed["step_size"] = step_size.expand(batch_shape)
    return replace(pullback, **changed)


@dataclass(eq=False)
class _Context:
    """What the backward needs besides the upstream gradient."""

    problem: Problem
    road: Road
    pullback: Estimator
    closure: Callable[[Tensor], Tensor] | None
    draws: tuple[Tensor, ...]
    dtype: torch.dtype
    solution: Solution | None = None
    downstream: Downstream | None = None


class _Vertices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, context: _Context) -> Tensor:
        problem = context.problem = context.problem.with_scores(scores.detach())
        noisy = problem.with_scores(scores.detach() + context.draws[0]) if context.draws else problem
        context.solution = empty_or(context.road, noisy)
        if context.closure is not None:
            context.downstream = Downstream.capture(
                context.closure, problem.batch_shape, context.dtype, scores.device
            )
        ctx.context = context
        # In the user's shape and dtype at once: two closures that name each other's structures make
        # a cycle, which Python's collector sees only where the layer's value is this node's own output.
        value = context.solution.value.reshape(problem.batch_shape + tuple(scores.shape[1:]))
        return value.to(scores.device, context.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, None]:
        (grad,) = grads
        held: _Context = ctx.context
        held.pullback.check_downstream(held.closure)
        if held.problem.size == 0:
            return torch.zeros_like(held.problem.scores), None
        assert held.solution is not None
        flat = grad.reshape(held.problem.scores.shape).to(held.problem.scores.dtype)
        surrogate = held.pullback.backward(
            held.problem, held.solution, flat, held.downstream, held.draws
        )
        return surrogate, None
