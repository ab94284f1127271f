"""Projections onto logic factors and their derivatives, an instance at a time.

The clauses, gates and reflections are those of `spigot.polytopes.structures.logic`; `one` says that
the clause is "exactly one" (otherwise "at least one"), `gate` is 0 for none, 1 for a hidden one, 2 for
the last part.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.vectors import simplex_level

__all__ = ["project", "pull"]

ANY, ONE, SOME = 0, 1, 2


@kernel
def reduce(
    kept: np.ndarray,  # (d,), bool; of size 0 where all are
    size: int,
    negated: np.ndarray,  # (d,), bool
    flips: tuple[bool, bool],
    one: bool,
    gate: int,
    index: np.ndarray,  # (d,): the free inputs come back here
    flip: np.ndarray,  # (d,)
    z: np.ndarray,  # (d,): the parts that are fixed
) -> tuple[int, int, bool, bool]:
    """How many inputs are free, their clause, whether a gate is free, and whether anything is left."""
    count, ones, output = 0, 0, 2
    for j in range(size):
        last = j == size - 1
        flip[j] = (flips[1] if last else flips[0]) != negated[j]
        free = len(kept) == 0 or kept[j]
        z[j] = 0.0 if free or not flip[j] else 1.0
        if last and gate == 2:
            if not free:
                output = 1 if flip[j] else 0
        elif free:
            index[count] = j
            count += 1
        elif flip[j]:
            ones += 1
    undecided = gate == 1 or (gate == 2 and output == 2)
    gated = undecided and ones == 0 and count > 0
    shut = (gate == 2 and output == 0) or (undecided and ones == 0 and count == 0)
    possible = not ((shut and ones > 0) or (one and ones > 1))
    possible = possible and (shut or gated or count + ones > 0)
    if gate == 2:
        z[size - 1] = 0.0 if shut else 1.0
    if shut or (one and ones == 1):
        return 0, ANY, gated, possible
    return count, ANY if ones > 0 else (ONE if one else SOME), gated, possible


@kernel
def gate_level(target: np.ndarray, count: int, gate: float) -> float:
    """b = the mean of the gate's target and of the inputs' targets above b, within [0, 1]."""
    level, active = gate, count + 1
    while True:
        total, size = gate, 0
        for k in range(count):
            if target[k] > level:
                total += target[k]
                size += 1
        if size >= active:
            return min(max(level, 0.0), 1.0)
        level, active = total / (size + 1), size


@kernel
def project(
    first: int,
    last: int,
    scores: np.ndarray,  # (n, d)
    keep: np.ndarray,  # (n, d), bool; (n, 0) where all are kept
    lengths: np.ndarray,  # (n,)
    negated: np.ndarray,  # (d,), bool
    flips: tuple[bool, bool],
    one: bool,
    gate: int,
    out: np.ndarray,  # (n, d), float64
    empty: np.ndarray,  # (n,), bool
) -> None:
    """y of each instance; `empty` where nothing fulfils the clause."""
    d = scores.shape[1]
    index, flip = np.empty(d, np.int64), np.empty(d, np.bool_)
    z, target = np.empty(d), np.empty(d + 1)
    for i in range(first, last):
        size = lengths[i]
        count, clause, gated, possible = reduce(keep[i], size, negated, flips, one, gate, index, flip, z)
        empty[i] = not possible
        if not possible:
            continue
        above = 0.0  # the sum of the box's answer
        for k in range(count):
            j = index[k]
            score = np.float64(scores[i, j])
            target[k] = 1 - score if flip[j] else score
            above += min(max(target[k], 0.0), 1.0)
        top, low, high = 0.0, 0.0, 1.0  # z = clip(target - top - low, 0, high)
        if gated and gate == 2:
            score = np.float64(scores[i, size - 1])
            score = 1 - score if flip[size - 1] else score
            high = gate_level(target, count, score)
            within = 0.0
            for k in range(count):
                within += min(max(target[k], 0.0), high)
            if within < high:
                target[count] = 1 - score
                top, low = simplex_level(target, count + 1)
                high = 1 - max((target[count] - top) - low, 0.0)
            z[size - 1] = high
        elif gated:
            positive = 0.0
            for k in range(count):
                positive += max(target[k], 0.0)
            if positive > 1:
                top, low = simplex_level(target, count)
        elif count > 0 and (clause == ONE or (clause == SOME and above < 1)):
            top, low = simplex_level(target, count)
        for k in range(count):
            z[index[k]] = min(max((target[k] - top) - low, 0.0), high)
        for j in range(size):
            out[i, j] = 1 - z[j] if flip[j] else z[j]


@kernel
def pull(
    first: int,
    last: int,
    slopes: np.ndarray,  # (n, d), s - y
    grads: np.ndarray,  # (n, d)
    ties: np.ndarray,  # (n,), the slope that counts as zero
    keep: np.ndarray,  # (n, d), bool; (n, 0) where all are kept
    lengths: np.ndarray,  # (n,)
    negated: np.ndarray,  # (d,), bool
    flips: tuple[bool, bool],
    one: bool,
    gate: int,
    out: np.ndarray,  # (n, d), float64
) -> None:
    """The orthogonal projection of each gradient onto the directions of the exposed face.

    Reflections cancel in the linear parts, but for the sign that links parts of either kind.
    """
    d = slopes.shape[1]
    index, flip = np.empty(d, np.int64), np.empty(d, np.bool_)
    z, slope, grad = np.empty(d), np.empty(d), np.empty(d)
    for i in range(first, last):
        size, tie = lengths[i], ties[i]
        count, clause, gated, possible = reduce(keep[i], size, negated, flips, one, gate, index, flip, z)
        if not possible or count == 0:
            continue
        best, value, level, held = -np.inf, 0.0, 0, 0
        for k in range(count):
            j = index[k]
            sign = -1.0 if flip[j] else 1.0
            slope[k], grad[k] = sign * slopes[i, j], sign * grads[i, j]
            best = max(best, slope[k])
            value += max(slope[k], 0.0)
            level += abs(slope[k]) <= tie
            held += slope[k] > tie
        linked = clause == ONE or (clause == SOME and held == 0 and level < 2)
        value = best if linked else value
        by_gate, lift = 0.0, value
        if gate == 2 and gated:
            sign = -1.0 if flip[size - 1] else 1.0
            by_gate = sign * grads[i, size - 1]
            lift = value + sign * slopes[i, size - 1]
        if gated and lift < -tie:
            continue
        ajar = gated and lift <= tie
        total, free = 0.0, 0
        for k in range(count):
            if slope[k] >= best - tie if linked else slope[k] > tie:
                total += grad[k]
                free += 1
        mean = 0.0  # of the linked parts, or of those that move with the gate
        if linked and ajar and gate == 2:
            mean = (total - by_gate) / (free + 1)
        elif linked and not ajar:
            mean = total / free
        elif not linked and ajar and gate == 2:
            mean = (total + by_gate) / (free + 1)
        for k in range(count):
            j = index[k]
            moved = 0.0
            if linked:
                moved = grad[k] - mean if slope[k] >= best - tie else 0.0
            elif slope[k] > tie:
                moved = mean
            elif slope[k] >= -tie:
                moved = grad[k]
            out[i, j] = -moved if flip[j] else moved
        if ajar and gate == 2:
            moved = by_gate + mean if linked else mean
            out[i, size - 1] = -moved if flip[size - 1] else moved
