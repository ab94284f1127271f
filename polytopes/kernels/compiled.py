"""How a kernel is compiled: one thread, without the interpreter's lock, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from spigot.polytopes.arrays import library

__all__ = ["kernel"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compiles a loop over instances, `kernel(first, last, *arrays)`, when it is first called.

    It runs in one thread and holds no lock, so that `pool.over_instances` may run it on several
    slices at once. Division by zero and overflow give inf and NaN, as in numpy. The machine code is
    kept on disk for the next process.
    """
    return library("numba").njit(function, nogil=True, cache=True, error_model="numpy")
