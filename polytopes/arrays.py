"""Where tensors meet numpy and plain Python, and where heavy libraries are loaded when first needed.

Their own type declarations are partial; behind these functions everything has a type.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["contiguous", "distinct", "first_part", "library", "numbers", "room", "rows_where", "tensor"]


def library(name: str) -> Any:
    """A module, imported when first asked for: `library("cvxpy")`."""
    return importlib.import_module(name)


def contiguous(values: Tensor) -> np.ndarray:
    """The tensor's numbers as a C-contiguous array on the CPU, its own memory where that will do."""
    return values.detach().cpu().contiguous().numpy()


def tensor(array: np.ndarray) -> Tensor:
    """The array's memory as a tensor."""
    made: Tensor = cast(Any, torch).from_numpy(array)
    return made


def rows_where(flags: Tensor) -> list[int]:
    """The flat positions of the true entries."""
    return numbers(flags.flatten().nonzero().flatten())


def room(like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Memory for numbers like these, not yet written.

    On the CPU it is numpy's, which asks for large pages: to touch 64 MB of it takes a tenth of the time.
    """
    shape = tuple(like.shape) if shape is None else shape
    if like.device.type != "cpu" or like.dtype not in (torch.float32, torch.float64):
        return like.new_empty(shape)
    return tensor(np.empty(shape, np.float32 if like.dtype == torch.float32 else np.float64))


def first_part(flags: Tensor) -> tuple[int, ...]:
    """The index of the first true entry."""
    return tuple(numbers(flags.nonzero()[0]))


def numbers(values: Tensor) -> list[Any]:
    """`tolist`: nested as the shape is."""
    return cast("list[Any]", cast(Any, values).tolist())


def distinct(points: Tensor) -> tuple[Tensor, Tensor]:  # (m, ...) -> (k, ...), (m,)
    """The distinct points, sorted, and which of them each point is."""
    found: tuple[Tensor, Tensor] = cast(Any, points).unique(dim=0, return_inverse=True)
    return found
