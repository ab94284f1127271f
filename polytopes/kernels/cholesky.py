"""Cholesky factors in place, for systems of the size of one instance."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["ascend", "factor", "substitute"]


@kernel
def factor(matrix: np.ndarray, k: int, column: np.ndarray) -> None:
    """The lower factor of matrix[:k, :k], over its lower triangle; `column` (4, k) is workspace.

    Four columns at a time, so that each row that is still to be reduced is read once for the four. A
    pivot that rounding has made negative becomes infinite: its unknown gets 0.
    """
    for start in range(0, k, 4):
        stop = min(start + 4, k)
        for j in range(start, stop):
            for l in range(start, j):
                matrix[j, j] -= matrix[j, l] * matrix[j, l]
            pivot = np.sqrt(matrix[j, j]) if matrix[j, j] > 1e-300 else np.inf
            matrix[j, j] = pivot
            for i in range(j + 1, k):
                total = matrix[i, j]
                for l in range(start, j):
                    total -= matrix[i, l] * matrix[j, l]
                matrix[i, j] = total / pivot
        width = stop - start
        for j in range(width):
            for i in range(stop, k):
                column[j, i] = matrix[i, start + j]
        for i in range(stop, k):
            row = matrix[i]
            if width == 4:
                a, b = row[start], row[start + 1]
                c, d = row[start + 2], row[start + 3]
                if a == 0.0 and b == 0.0 and c == 0.0 and d == 0.0:
                    continue
                for l in range(stop, i + 1):
                    row[l] -= (a * column[0, l] + b * column[1, l]) + (
                        c * column[2, l] + d * column[3, l]
                    )


@kernel
def substitute(matrix: np.ndarray, k: int, x: np.ndarray) -> None:
    """Solves with the lower factor and its transpose, over x."""
    for i in range(k):
        total = x[i]
        for j in range(i):
            total -= matrix[i, j] * x[j]
        x[i] = total / matrix[i, i]
    ascend(matrix, k, x)


@kernel
def ascend(matrix: np.ndarray, k: int, x: np.ndarray) -> None:
    """Solves with the lower factor's transpose, over x."""
    for i in range(k - 1, -1, -1):
        value = x[i] / matrix[i, i]
        x[i] = value
        for j in range(i):
            x[j] -= matrix[i, j] * value
