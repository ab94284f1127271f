"""A stable sort of numbers, largest first: by counting where they are few, by their bytes otherwise.

Numbers that stand in order, or in reverse, are seen to do so.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["descending", "rank"]

FEW = 192
BYTES = 8


@kernel
def _by_counting(
    values: np.ndarray,
    order: np.ndarray,
    count: int,
    packed: np.ndarray,
    place: np.ndarray,
    spare: np.ndarray,
) -> None:
    """Each pair compared once: an item's place is how many go before it, and no branch is missed."""
    for k in range(count):
        packed[k] = values[order[k]]
        place[k] = 0
    for k in range(1, count):
        value, before = packed[k], 0
        for j in range(k):
            goes = np.int64(packed[j] >= value)
            before += goes
            place[j] += 1 - goes
        place[k] += before
    for k in range(count):
        spare[place[k]] = order[k]
    for k in range(count):
        order[k] = spare[k]


@kernel
def _by_bytes(
    values: np.ndarray, order: np.ndarray, count: int, keys: np.ndarray, spare: np.ndarray
) -> None:
    """Radix sort, the least significant byte first; bytes that all keys share cost nothing.

    `keys` `(2, d)` are unsigned 64-bit integers, `spare` `(d,)` is a second order. A float's bits
    sort as integers once the negative ones are turned round.
    """
    bits = values.view(np.int64)
    counts = np.zeros((BYTES, 256), np.int64)
    for i in range(count):
        word = bits[order[i]]
        if word < 0:
            word ^= np.int64(0x7FFFFFFFFFFFFFFF)
        key = np.uint64(~word) ^ np.uint64(0x8000000000000000)
        keys[0, i] = key
        for byte in range(BYTES):
            counts[byte, np.int64((key >> np.uint64(8 * byte)) & np.uint64(255))] += 1
    here, there = 0, 1
    source, target = order, spare
    for byte in range(BYTES):
        shift = np.uint64(8 * byte)
        if counts[byte, np.int64((keys[here, 0] >> shift) & np.uint64(255))] == count:
            continue
        start = 0
        for digit in range(256):
            size = counts[byte, digit]
            counts[byte, digit] = start
            start += size
        for i in range(count):
            key = keys[here, i]
            digit = np.int64((key >> shift) & np.uint64(255))
            place = counts[byte, digit]
            counts[byte, digit] = place + 1
            keys[there, place] = key
            target[place] = source[i]
        here, there = there, here
        source, target = target, source
    if here:
        for i in range(count):
            order[i] = spare[i]


@kernel
def _in_order(values: np.ndarray, order: np.ndarray, count: int) -> bool:
    """Whether the items stand in order; those that rise throughout are turned round first."""
    falls, rises = True, count > 1
    for k in range(1, count):
        before, after = values[order[k - 1]], values[order[k]]
        falls &= before >= after
        rises &= before < after
        if not (falls or rises):
            return False
    if rises:
        for k in range(count // 2):
            order[k], order[count - 1 - k] = order[count - 1 - k], order[k]
    return True


@kernel
def descending(
    values: np.ndarray, order: np.ndarray, count: int, keys: np.ndarray, spare: np.ndarray
) -> None:
    """Sorts the first `count` items of `order` by their value, largest first, ties as they stood.

    `values` are float64 without NaN and -0.0; `keys` `(2, d)` uint64 and `spare` `(d,)` int64 are
    scratch.
    """
    if _in_order(values, order, count):
        return
    if count <= FEW:
        packed, place = keys[0].view(np.float64), keys[1].view(np.int64)
        _by_counting(values, order, count, packed, place, spare)
    else:
        _by_bytes(values, order, count, keys, spare)


@kernel
def rank(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    lengths: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
) -> None:
    """The kept parts of each instance, by descending score, and how many they are.

    Scores `(n, d)`; keep `(n, d)`, or `(0, d)` for none; lengths `(n,)`. Writes `order` `(n, d)` up
    to `counts` `(n,)`; the first of equal parts comes first.
    """
    d = scores.shape[1]
    values = np.empty(d)
    keys = np.empty((2, d), np.uint64)
    spare = np.empty(d, np.int64)
    masked = keep.shape[0] > 0
    for i in range(first, last):
        count = 0
        for j in range(lengths[i]):
            if not masked or keep[i, j]:
                values[j] = scores[i, j] + 0.0
                order[i, count] = j
                count += 1
        counts[i] = count
        descending(values, order[i], count, keys, spare)
