"""Sums over blocks of a long array, which are infinite or NaN where one of its entries is."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import summing

__all__ = ["BLOCK", "totals"]

BLOCK = 1 << 14


@summing
def totals(first: int, last: int, values: np.ndarray, sums: np.ndarray) -> None:
    """Adds to sums[i] the entries of the i-th block of values, (n)."""
    for i in range(first, last):
        block = values[i * BLOCK : (i + 1) * BLOCK]
        part = sums[i]
        for j in range(len(block)):
            part += block[j]
        sums[i] = part
