r"""A Cholesky factor of affinely independent points, updated as one of them comes or leaves.

With G_kl = <a_k, a_l> and S = G + rho 11', w'Gw and w'Sw differ by rho (sum w)^2: a constant over
mixtures. S is positive definite exactly where the points are affinely independent, and no point is
special in it, so S = L L' is kept whichever points come or leave.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.cholesky import substitute
from spigot.polytopes.kernels.compiled import kernel, summing

__all__ = ["append", "balanced", "dot", "remove"]

DEPENDENT = 1e-11  # a pivot, relative to the point's own entry


@summing
def dot(a: np.ndarray, b: np.ndarray, n: int) -> float:
    """<a[:n], b[:n]>."""
    total = 0.0
    for i in range(n):
        total += a[i] * b[i]
    return total


@kernel
def append(factor: np.ndarray, held: int, row: np.ndarray) -> bool:
    """Takes S's next row, `row[: held + 1]`; whether its point is affinely independent of the others.

    `row` is overwritten with L's row; where the point is dependent it is left out of the factor.
    """
    own = row[held]
    square = 0.0
    for k in range(held):
        row[k] = (row[k] - dot(factor[k], row, k)) / factor[k, k]
        square += row[k] * row[k]
    if own - square <= DEPENDENT * own:
        return False
    for k in range(held):
        factor[held, k] = row[k]
    factor[held, held] = np.sqrt(own - square)
    return True


@kernel
def remove(factor: np.ndarray, held: int, gone: int) -> None:
    """Takes point `gone` out: the rows below move up, and rotations make them triangular again."""
    for k in range(gone, held - 1):
        for j in range(k + 2):
            factor[k, j] = factor[k + 1, j]
    for j in range(gone, held - 1):
        a, b = factor[j, j], factor[j, j + 1]
        length = np.sqrt(a * a + b * b)
        c, s = a / length, b / length
        factor[j, j] = length
        for k in range(j + 1, held - 1):
            left, right = factor[k, j], factor[k, j + 1]
            factor[k, j] = c * left + s * right
            factor[k, j + 1] = c * right - s * left


@kernel
def balanced(factor: np.ndarray, held: int, x: np.ndarray, ones: np.ndarray) -> None:
    """The step of sum 0 that is best for the slopes x of the weights, over x; `ones` is workspace."""
    for k in range(held):
        ones[k] = 1.0
    substitute(factor, held, ones)
    substitute(factor, held, x)
    excess, unit = 0.0, 0.0
    for k in range(held):
        excess += x[k]
        unit += ones[k]
    for k in range(held):
        x[k] -= excess / unit * ones[k]
