"""Copies and fills of leading entries, as loops: they compile faster than slices do."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["clear", "copy", "fill", "multiply"]


@kernel
def copy(source: np.ndarray, target: np.ndarray, n: int) -> None:
    """target[:n] = source[:n]."""
    for i in range(n):
        target[i] = source[i]


@kernel
def fill(target: np.ndarray, n: int, value: float) -> None:
    """target[:n] = value."""
    for i in range(n):
        target[i] = value


@kernel
def multiply(target: np.ndarray, n: int, factor: float) -> None:
    """target[:n] *= factor."""
    for i in range(n):
        target[i] *= factor


@kernel
def clear(matrix: np.ndarray, k: int) -> None:
    """The lower triangle of matrix[:k, :k] = 0."""
    for i in range(k):
        for j in range(i + 1):
            matrix[i, j] = 0.0
