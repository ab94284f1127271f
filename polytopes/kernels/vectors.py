"""Leading entries of vectors as loops, which compile faster than slices do."""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import fused, kernel

__all__ = [
    "between",
    "clear",
    "copy",
    "exponentials",
    "fill",
    "multiply",
    "simplex_level",
    "subtract",
]


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
def subtract(source: np.ndarray, target: np.ndarray) -> None:
    """target = source - target."""
    for i in range(len(target)):
        target[i] = source[i] - target[i]


@kernel
def between(start: np.ndarray, end: np.ndarray, part: float, target: np.ndarray) -> None:
    """target = (1 - part) start + part end, and `end` where they are the same infinity."""
    for i in range(len(target)):
        moves = start[i] != end[i]
        target[i] = (1.0 - part) * start[i] + part * end[i] if moves else end[i]


@kernel
def clear(matrix: np.ndarray, k: int) -> None:
    """The lower triangle of matrix[:k, :k] = 0."""
    for i in range(k):
        for j in range(i + 1):
            matrix[i, j] = 0.0


MAGIC = 6755399441055744.0  # 1.5 * 2^52: adding it leaves a whole number in the lowest bits
LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
LEAST = -700.0  # below, powers of 2 are no longer normal numbers
INVERSE_FACTORIALS = tuple(1.0 / float(math.factorial(k)) for k in range(14))
C2, C3, C4, C5, C6, C7, C8, C9, C10, C11, C12, C13 = INVERSE_FACTORIALS[2:]


@fused
def exponentials(target: np.ndarray) -> None:
    """target = exp(target), for numbers up to 700; 0 below -700. To 2^-51 relative.

    exp(t) = 2^k exp(r), |r| <= log(2) / 2, and exp(r) by its power series: arithmetic alone, so that
    the compiler makes vectors of it.
    """
    for i in range(len(target)):
        inside = target[i] > LEAST
        t = target[i] if inside else LEAST
        power = t * LOG2_E + MAGIC
        k = power - MAGIC
        r = (t - k * LN2_HIGH) - k * LN2_LOW
        p = C10 + r * (C11 + r * (C12 + r * C13))
        p = C6 + r * (C7 + r * (C8 + r * (C9 + r * p)))
        p = C2 + r * (C3 + r * (C4 + r * (C5 + r * p)))
        factor = np.int64((np.float64(power).view(np.int64) + 1023) << 52).view(np.float64)
        target[i] = factor * (1.0 + r * (1.0 + r * p)) if inside else 0.0


@kernel
def simplex_level(target: np.ndarray, count: int) -> tuple[float, float]:
    """tau with sum (t - tau)+ = 1, as the largest t and the rest: means over ever fewer parts."""
    top = target[:count].max()
    level, active = -2.0, count + 1
    while True:
        total, size = 0.0, 0
        for k in range(count):
            if target[k] - top > level:
                total += target[k] - top
                size += 1
        if size >= active:  # they can only grow fewer
            return top, level
        level, active = (total - 1) / size, size
