"""The k-th largest number without a sort: the bits of floats, eleven at a time."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["BINS", "kth_largest"]

DIGIT = 11
BINS = 1 << DIGIT
FEW = 32


@kernel
def _sorted_kth(values: np.ndarray, count: int, k: int) -> float:
    """By insertion, largest first."""
    for i in range(1, count):
        value, j = values[i], i
        while j > 0 and values[j - 1] < value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value
    return values[k - 1]


@kernel
def kth_largest(values: np.ndarray, count: int, k: int, bins: np.ndarray) -> float:
    """The k-th largest of the first `count` values, 1 <= k <= count, in time O(count).

    `values` (float64, no NaN) are overwritten; `bins` `(BINS,)` int64 is scratch.
    """
    if k == 1:
        best = values[0]
        for i in range(1, count):
            best = max(best, values[i])
        return best
    words = values.view(np.int64)
    for i in range(count):  # bits that sort as integers: negative numbers turned round
        if words[i] < 0:
            words[i] ^= np.int64(0x7FFFFFFFFFFFFFFF)
    shift, sign = 64 - DIGIT, np.int64(BINS // 2)
    while count > FEW and shift > -DIGIT:
        places = np.int64(max(shift, 0))
        bins[:] = 0
        for i in range(count):
            bins[((words[i] >> places) & (BINS - 1)) ^ sign] += 1
        digit = BINS - 1
        while bins[digit] < k:
            k -= bins[digit]
            digit -= 1
        left = 0
        for i in range(count):
            word = words[i]
            words[left] = word
            left += ((word >> places) & (BINS - 1)) ^ sign == digit
        count = left
        shift, sign = shift - DIGIT, np.int64(0)
    for i in range(count):
        if words[i] < 0:
            words[i] ^= np.int64(0x7FFFFFFFFFFFFFFF)
    return values[0] if count > FEW else _sorted_kth(values, count, k)
