"""Layers as operations that torch.compile and torch.func can see: one call, opaque inside.

A structure's answer depends on its scores' values, and a trace has none. So a traced graph holds two
operations of torch's own kind, known by their shapes alone:

    spigot::answer  scores, masks, sizes, parameters, noise -> the value, and a ticket
    spigot::pull    the value's gradient, the ticket, the same inputs -> the inputs' gradients

and a third, `spigot::draw`, for noise. They know the layer by an integer, its handle. Inside, where
tensors are real, `answer` calls the layer as anybody would and keeps the graph that autograd recorded;
`pull` goes back through that graph. There is no second way to solve or to differentiate anything.

The graph is kept by the ticket's memory: it lives as long as something may go backward through it, as
often as wanted, and goes when autograd drops the ticket. Where a ticket was copied, as saved-tensor
hooks do, `pull` asks the layer again: an answer is a function of its inputs, drawn noise among them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

_torch: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_library: Any = torch.library  # its declarations are partial

__all__ = [
    "GRAPHS",
    "Opaque",
    "answer",
    "compiling",
    "draw",
    "transformed",
    "transforming",
    "uncompiled",
]

F = TypeVar("F", bound=Callable[..., Any])


class Opaque(nn.Module):
    """A layer that torch.compile and torch.func take as one operation.

    Attributes:
        polytope: M.
        handle: the number that stands for this object in traced graphs, of this process alone: a copy,
            and what comes out of a pickle, has one of its own.
    """

    polytope: Polytope
    handle: int

    def __init__(self) -> None:
        super().__init__()
        self.handle = _handle(self)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the handle."""
        return {name: value for name, value in self.__dict__.items() if name != "handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a new one."""
        cast(Any, super()).__setstate__(state)
        self.handle = _handle(self)

    def answer(
        self,
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        params: Mapping[str, Tensor],
        draws: Tensor | None,
        folded: int,
    ) -> Tensor:
        """The value, `(*batch, *event)`, with its graph.

        Args:
            scores: `(*batch, *event)`.
            keep: broadcasts to the scores.
            lengths: `(*batch,)` or `(*batch, 2)`.
            params: by name, broadcast to `(*batch, *shape)`.
            draws: noise, `(samples, *batch, *event)`.
            folded: how many of the first batch dimensions stand for separate calls.
        """
        raise NotImplementedError

    def draw(self, scores: Tensor, generator: torch.Generator | None) -> Tensor:
        """Noise for such scores, `(samples, *batch, *event)`.

        Args:
            scores: `(*batch, *event)`.
            generator: for the draws.
        """
        raise NotImplementedError


# --- what a layer calls -----------------------------------------------------------------------


def compiling() -> bool:
    """Whether torch.compile is tracing this very call."""
    return torch.compiler.is_dynamo_compiling()


def transforming() -> bool:
    """Whether this call is inside a transform of torch.func."""
    return _torch._are_functorch_transforms_active()


def transformed() -> bool:
    """Whether there may be no numbers to see here, but symbols."""
    return torch.compiler.is_compiling() or transforming()


def uncompiled(function: F) -> F:
    """Called as it stands where torch.compile traces its caller: the graph breaks there, once a call.

    torch's compiler is a second's import, so it is not loaded before somebody compiles.
    """
    outside: Any = cast(Any, torch)._disable_dynamo(function)

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        return outside(*args, **kwargs) if compiling() else function(*args, **kwargs)

    return cast(F, called)


def answer(
    owner: Opaque,
    scores: Tensor,
    keep: Tensor | None,
    lengths: Tensor | None,
    params: Mapping[str, Tensor] | None,
    draws: Tensor | None = None,
) -> Tensor:
    """The owner's answer as one operation, differentiable in the scores and floating parameters."""
    names, values = ",".join(params or ()), tuple((params or {}).values())
    how = (names, 0, any(value.requires_grad for value in values), owner.handle)
    if compiling():
        value, _ = _answer(scores, keep, lengths, draws, list(values), *how)
    else:
        value, _ = cast(Any, _Answered).apply(scores, keep, lengths, draws, *how, *values)
    return value


def draw(
    owner: Opaque,
    samples: int,
    scores: Tensor,
    keep: Tensor | None,
    lengths: Tensor | None,
    params: Mapping[str, Tensor] | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The owner's noise, `(samples, *batch, *event)`; under vmap as its `randomness` says."""
    beside = [item for item in (keep, lengths, *(params or {}).values()) if item is not None]
    source = 0 if generator is None else _handle(generator)
    return _draw(scores.detach(), beside, samples, owner.handle, source)


def _handle(owner: object) -> int:
    """A number that stands for an object as long as it lives."""
    number = next(_numbers)
    _owners[number] = owner
    return number


_numbers = count(1)
_owners: WeakValueDictionary[int, Any] = WeakValueDictionary()


def _owner(handle: int) -> Any:
    found = _owners.get(handle)
    if found is None:
        raise RuntimeError(
            "A compiled graph called a layer that is gone. Keep the layer alive as long as what was "
            "compiled with it; a graph cannot be taken to another process."
        )
    return found


# --- tickets -----------------------------------------------------------------------------------


class _Graph:
    """A value and what it was made from, as autograd recorded it."""

    def __init__(self, value: Tensor, leaves: list[Tensor]) -> None:
        self.value = value
        self.leaves = leaves


class _Memory(np.ndarray[Any, Any]):
    """A ticket's memory, which keeps the graph."""

    graph: _Graph


GRAPHS: WeakValueDictionary[int, _Graph] = WeakValueDictionary()  # by their ticket's address


def _ticket(graph: _Graph) -> Tensor:
    memory = np.zeros(1, np.uint8).view(_Memory)
    memory.graph = graph
    ticket: Tensor = cast(Any, torch).from_numpy(memory)  # holds the array, not a copy of it
    GRAPHS[ticket.data_ptr()] = graph
    return ticket


@contextlib.contextmanager
def _recording() -> Generator[None]:
    """Autograd at work, inside an operation that it takes as one."""
    autograd = _torch.DispatchKey.AutogradFunctionality
    with torch.enable_grad(), _torch._SetExcludeDispatchKeyGuard(autograd, False):
        yield


# --- the operations ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """What `answer` and `pull` have in common."""

    scores: Tensor
    keep: Tensor | None
    lengths: Tensor | None
    draws: Tensor | None
    params: Sequence[Tensor]
    names: str
    folded: int
    moving: bool
    handle: int

    def recorded(self) -> _Graph:
        """The owner's answer with its graph from the scores and, where they move, the parameters."""
        params = [value.detach() for value in self.params]
        leaves = [self.scores.detach().requires_grad_()]
        if self.moving:
            leaves += [value.requires_grad_() for value in params if value.is_floating_point()]
        named = dict(zip(self.names.split(",") if params else (), params, strict=True))
        with _recording():
            value = _owner(self.handle).answer(
                leaves[0], self.keep, self.lengths, named, self.draws, self.folded
            )
        return _Graph(value, leaves)

    def like(self) -> list[Tensor]:
        """The tensors that get a gradient."""
        moving = [value for value in self.params if self.moving and value.is_floating_point()]
        return [self.scores, *moving]

    def stacked(self, size: int, dims: Sequence[Any]) -> tuple[Any, ...]:
        """The arguments with the dimension that vmap hides in front of the batch."""
        event = len(_owner(self.handle).polytope.event_shape)
        shapes = _owner(self.handle).polytope.parameters
        batch = self.scores.dim() - event - (dims[0] is not None)
        wide = [batch + len(shapes.get(name, ())) for name in self.names.split(",") if name]
        return (
            _in_front(self.scores, dims[0], size, batch + event),
            None if self.keep is None else _in_front(self.keep, dims[1], size, batch + event),
            None if self.lengths is None else _in_front(self.lengths, dims[2], size),
            None if self.draws is None else _in_front(self.draws, dims[3], size).movedim(0, 1),
            [
                _in_front(value, dim, size, width)
                for value, dim, width in zip(self.params, dims[4], wide, strict=True)
            ],
            self.names,
            self.folded + 1,
            self.moving,
            self.handle,
        )


def _in_front(tensor: Tensor, dim: int | None, size: int, width: int = 0) -> Tensor:
    """`(size, *shape)`, the shape at least `width` long so that it broadcasts as it did before."""
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    missing = max(width + 1 - moved.dim(), 0)
    return moved.reshape(size, *[1] * missing, *moved.shape[1:])


@_library.custom_op("spigot::answer", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _answer(
    scores: Tensor,
    keep: Tensor | None,
    lengths: Tensor | None,
    draws: Tensor | None,
    params: Sequence[Tensor],
    names: str,
    folded: int,
    moving: bool,
    handle: int,
) -> tuple[Tensor, Tensor]:
    graph = _Inputs(scores, keep, lengths, draws, params, names, folded, moving, handle).recorded()
    # a copy: whoever gets it may write into it, and the graph needs its own
    value = graph.value.detach().clone(memory_format=torch.contiguous_format)
    return value, _ticket(graph)


@_answer.register_fake
def _(scores: Tensor, *_others: Any) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape), torch.empty(1, dtype=torch.uint8, device="cpu")


@_answer.register_vmap
def _(info: Any, in_dims: Any, *arguments: Any) -> tuple[tuple[Tensor, Tensor], tuple[int, None]]:
    stacked = _Inputs(*arguments).stacked(info.batch_size, in_dims)
    return _answer(*stacked), (0, None)


@_library.custom_op("spigot::pull", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _pull(
    grad: Tensor,
    ticket: Tensor,
    scores: Tensor,
    keep: Tensor | None,
    lengths: Tensor | None,
    draws: Tensor | None,
    params: Sequence[Tensor],
    names: str,
    folded: int,
    moving: bool,
    handle: int,
) -> list[Tensor]:
    inputs = _Inputs(scores, keep, lengths, draws, params, names, folded, moving, handle)
    graph = GRAPHS.get(ticket.data_ptr())
    if graph is None or len(graph.leaves) < len(inputs.like()):
        graph = inputs.recorded()
    leaves = graph.leaves[: len(inputs.like())]
    with _recording():
        found = torch.autograd.grad(graph.value, leaves, grad, retain_graph=True, materialize_grads=True)
    return [item.clone(memory_format=torch.contiguous_format) for item in found]


@_pull.register_fake
def _(_grad: Tensor, _ticket: Tensor, *arguments: Any) -> list[Tensor]:
    return [item.new_empty(item.shape) for item in _Inputs(*arguments).like()]


@_pull.register_vmap
def _(
    info: Any, in_dims: Any, grad: Tensor, ticket: Tensor, *arguments: Any
) -> tuple[list[Tensor], list[int]]:
    inputs, (dim, _, *dims) = _Inputs(*arguments), in_dims
    size, like = info.batch_size, inputs.like()
    if all(item is None for item in (*dims[:4], *dims[4])):  # many gradients of one answer
        pulled = [_pull(item, ticket, *arguments) for item in grad.movedim(dim, 0)]
        found = [torch.stack(items) for items in zip(*pulled, strict=True)]
    else:
        found = _pull(_in_front(grad, dim, size), ticket, *inputs.stacked(size, dims))
        places = [dims[0]] + [
            place
            for place, value in zip(dims[4], inputs.params, strict=True)
            if inputs.moving and value.is_floating_point()
        ]
        found = [
            item.reshape(_in_front(own, place, size).shape)
            for item, own, place in zip(found, like, places, strict=True)
        ]
    return found, [0] * len(found)


@_library.custom_op(
    "spigot::draw",
    mutates_args=(),
    tags=(torch.Tag.cudagraph_unsafe, torch.Tag.nondeterministic_seeded),
)
def _draw(
    scores: Tensor, _beside: Sequence[Tensor], samples: int, handle: int, generator: int
) -> Tensor:
    source = _owner(generator) if generator else None
    return _owner(handle).draw(scores, source).reshape(samples, *scores.shape).contiguous()


@_draw.register_fake
def _(scores: Tensor, _beside: Any, samples: int, *_others: Any) -> Tensor:
    half = scores.dtype in (torch.float16, torch.bfloat16)
    return scores.new_empty((samples, *scores.shape), dtype=torch.float32 if half else None)


@_draw.register_vmap
def _(
    info: Any, in_dims: Any, scores: Tensor, _beside: Any, samples: int, handle: int, generator: int
) -> tuple[Tensor, int | None]:
    stacked = _in_front(scores, in_dims[0], info.batch_size)
    if info.randomness == "error":
        raise RuntimeError(
            "vmap: the layer draws noise. Say vmap(..., randomness='different') for draws of its own "
            "in every call, or randomness='same'."
        )
    if info.randomness == "same":
        return _draw(stacked[0], [], samples, handle, generator), None
    return _draw(stacked, [], samples, handle, generator), 1


# --- their derivative ----------------------------------------------------------------------------
# torch.compile takes an operation's own derivative; torch.func, which does not, an autograd.Function's.


def _remember(ctx: Any, ticket: Tensor, inputs: _Inputs) -> None:
    ctx.mark_non_differentiable(ticket)
    tensors = (inputs.scores, inputs.keep, inputs.lengths, inputs.draws, *inputs.params)
    ctx.save_for_backward(ticket, *tensors)
    ctx.names, ctx.folded, ctx.handle = inputs.names, inputs.folded, inputs.handle


def _pulled(
    ctx: Any, grad: Tensor, moving: bool, pull: Callable[..., Sequence[Tensor]]
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradients of the scores and of each parameter."""
    ticket, scores, keep, lengths, draws, *params = ctx.saved_tensors
    how = (ctx.names, ctx.folded, moving, ctx.handle)
    by_scores, *found = pull(grad, ticket, scores, keep, lengths, draws, params, *how)
    rest = iter(found)
    return by_scores, [next(rest) if moving and item.is_floating_point() else None for item in params]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _remember(ctx, output[1], _Inputs(*inputs))


def _backward(ctx: Any, grad: Tensor, _ticket: Tensor) -> tuple[Any, ...]:
    by_scores, by_params = _pulled(ctx, grad, any(ctx.needs_input_grad[4]), _pull)
    return by_scores, None, None, None, by_params, None, None, None, None


_answer.register_autograd(_backward, setup_context=_setup_context)


class _Answered(torch.autograd.Function):
    """`spigot::answer`, whose backward is `spigot::pull`, for torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        draws: Tensor | None,
        names: str,
        folded: int,
        moving: bool,
        handle: int,
        *params: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return _answer(scores, keep, lengths, draws, list(params), names, folded, moving, handle)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        scores, keep, lengths, draws, names, folded, moving, handle, *params = inputs
        how = (names, folded, moving, handle)
        _remember(ctx, output[1], _Inputs(scores, keep, lengths, draws, params, *how))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        by_scores, by_params = _pulled(ctx, grads[0], any(ctx.needs_input_grad[8:]), _Pulled.of)
        return by_scores, None, None, None, None, None, None, None, *by_params


class _Pulled(torch.autograd.Function):
    """`spigot::pull`, of which there is no derivative, for torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def of(
        grad: Tensor,
        ticket: Tensor,
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        draws: Tensor | None,
        params: Sequence[Tensor],
        *how: Any,
    ) -> Sequence[Tensor]:
        """With the parameters last, where torch looks for tensors."""
        return cast(Any, _Pulled).apply(grad, ticket, scores, keep, lengths, draws, *how, *params)

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        grad: Tensor,
        ticket: Tensor,
        scores: Tensor,
        keep: Tensor | None,
        lengths: Tensor | None,
        draws: Tensor | None,
        names: str,
        folded: int,
        moving: bool,
        handle: int,
        *params: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(
            _pull(
                grad, ticket, scores, keep, lengths, draws, list(params), names, folded, moving, handle
            )
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        _ctx: Any, *_grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "Inside torch.compile and torch.func a layer of spigot can be differentiated once. "
            "Differentiate it twice with torch.autograd.grad(..., create_graph=True)."
        )
