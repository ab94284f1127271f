"""The downstream loss as a function of the structure, to be evaluated again at other points."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Closure", "Downstream"]

Closure = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Downstream:
    """mu `(*batch, *event)` -> loss `(*batch)`, under the random and autocast state of the forward.

    All evaluations of one backward share that state, so dropout in the closure drops the same units
    as when the closure is called right after the layer.
    """

    closure: Closure
    batch_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    random_state: Tensor
    device_random_state: Tensor | None
    autocast: tuple[bool, torch.dtype]

    @classmethod
    def capture(
        cls, closure: Closure, batch_shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> Downstream:
        """The closure with the state of now."""
        on_cuda = device.type == "cuda"
        kind = device.type
        return cls(
            closure,
            batch_shape,
            dtype,
            device,
            torch.get_rng_state(),
            torch.cuda.get_rng_state(device) if on_cuda else None,
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)),
        )

    def gradient(self, mu: Tensor) -> Tensor:  # (n, *event) -> (n, *event)
        """The gradient of each instance's own loss; parameters of the closure receive none.

        Raises:
            ValueError: the closure returned another shape than the batch's, or a loss without a graph.
            TypeError: it returned no tensor.
        """
        with self._state(), torch.enable_grad():
            point = mu.detach().to(self.dtype).requires_grad_()
            loss = self._called(point)
            if not loss.requires_grad:
                raise ValueError(
                    "downstream returned a loss without a graph, so it has no gradient by mu: inside it "
                    "must be no argmax, detach() or torch.no_grad()."
                )
            found: Any = torch.autograd.grad(loss.sum(), point, allow_unused=True)
        return torch.zeros_like(mu) if found[0] is None else found[0].to(mu)

    def loss(self, mu: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """Each instance's own loss, without a graph.

        Raises:
            ValueError: the closure returned another shape than the batch's.
        """
        with self._state(), torch.no_grad():
            return self._called(mu.detach().to(self.dtype)).reshape(len(mu)).to(mu)

    def _called(self, point: Tensor) -> Tensor:  # (n, *event) -> (*batch)
        loss: Any = self.closure(point.reshape(*self.batch_shape, *point.shape[1:]))
        if not isinstance(loss, Tensor):
            raise TypeError(
                "downstream must return each instance's own loss, a tensor of shape "
                f"{self.batch_shape}; it returned {type(loss).__name__}."
            )
        if tuple(loss.shape) != self.batch_shape:
            raise ValueError(
                f"downstream must return each instance's own loss, of shape {self.batch_shape}; "
                f"it returned shape {tuple(loss.shape)}. Do not reduce over the batch inside it."
            )
        return loss

    def _state(self) -> AbstractContextManager[Any]:
        return _Replay(self)


class _Replay(AbstractContextManager[None]):
    """Random and autocast state of the forward inside, the present one restored outside."""

    def __init__(self, downstream: Downstream) -> None:
        self.downstream = downstream

    def __enter__(self) -> None:
        held = self.downstream
        on_cuda = held.device_random_state is not None
        self.fork: Any = cast(Any, torch.random).fork_rng(devices=[held.device] if on_cuda else [])
        self.fork.__enter__()
        torch.set_rng_state(held.random_state)
        if held.device_random_state is not None:
            torch.cuda.set_rng_state(held.device_random_state, held.device)
        enabled, dtype = held.autocast
        self.cast = torch.autocast(held.device.type, dtype=dtype, enabled=enabled)
        self.cast.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.cast.__exit__(*error)
        self.fork.__exit__(*error)
