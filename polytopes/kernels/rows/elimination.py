"""Factors of R D R' for sparse or dense rows R and any diagonal D >= 0, on one pattern.

Few or dense rows make a dense Cholesky factor of those that take part; many sparse rows an LDL'
factor in an order of little fill, found once. Rows left out are unknowns that stay 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels import cholesky
from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.laplacian import Pattern
from spigot.polytopes.kernels.vectors import clear, fill

__all__ = [
    "Factor",
    "System",
    "apply",
    "apply_both",
    "factor",
    "forget",
    "new_factor",
    "pairs_of",
    "plan_of",
    "product",
    "solve",
]


CHANGES = 10  # of all columns, before R D R' is made anew: rounding adds up


class System(NamedTuple):
    """Rows R, by row and by column, and the pattern of R R'."""

    start: np.ndarray  # (rows + 1,)
    column: np.ndarray  # (entries,)
    entry: np.ndarray
    first: np.ndarray  # (columns + 1,)
    row: np.ndarray  # (entries,), by columns
    weight: np.ndarray
    low: np.ndarray  # (rows,): the least multiplier, -inf for an equation and 0 for R y <= limit
    reach: np.ndarray  # (rows,), sums of |entries|
    square: np.ndarray  # (rows,), and of their squares
    dense: bool
    pattern: Pattern  # of the rows, empty where dense
    slot: np.ndarray  # (d + pairs,): each column's first pair of rows, and each pair's entry
    target: np.ndarray  # what the factor's entries reduce, as `plan_of` has it
    scattered: np.ndarray
    whole: np.ndarray  # R itself where most of it is not 0, and else no rows


class Factor(NamedTuple):
    """A factor, and what makes it."""

    taken: np.ndarray  # (rows,): the rows that take part, in order
    position: np.ndarray  # (rows,): where they stand there, -1 for others
    diagonal: np.ndarray  # (rows,)
    matrix: np.ndarray  # the dense factor
    block: np.ndarray  # (4, rows)
    values: np.ndarray  # the sparse factor's entries below the diagonal
    pivots: np.ndarray  # (rows,)
    work: np.ndarray  # (2, rows)
    links: np.ndarray  # (rows,)
    gram: np.ndarray  # R D R' of all rows, dense
    known: np.ndarray  # (variables,): its D, 0 or 1; -1 where there is none
    changes: np.ndarray  # (1,): how many columns it has gained or lost since it was made anew


@kernel
def pairs_of(first: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each column's pairs of rows, and which is each column's first."""
    columns = len(first) - 1
    begin = np.zeros(columns + 1, np.int64)
    for k in range(columns):
        many = first[k + 1] - first[k]
        begin[k + 1] = begin[k] + many * (many - 1) // 2
    tails, heads = np.empty(begin[columns], np.int64), np.empty(begin[columns], np.int64)
    pair = 0
    for k in range(columns):
        for a in range(first[k], first[k + 1]):
            for b in range(first[k], a):
                tails[pair], heads[pair] = row[a], row[b]
                pair += 1
    return tails, heads, begin[:columns]


@kernel
def new_factor(system: System) -> Factor:
    """An empty workspace."""
    rows = len(system.low)
    side = rows if system.dense else 0
    return Factor(
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(rows),
        np.zeros((side, side)),
        np.zeros((4, rows)),
        np.zeros(len(system.pattern.rows)),
        np.zeros(rows),
        np.zeros((2, rows)),
        np.zeros(rows, np.int64),
        np.zeros((side, side)),
        np.full(len(system.first) - 1, -1.0),
        np.zeros(1, np.int64),
    )


@kernel
def apply(system: System, y: np.ndarray, out: np.ndarray) -> None:
    """out = R y."""
    if len(system.whole):
        _apply_whole(system.whole, y, out)
        return
    for i in range(len(out)):
        total = 0.0
        for e in range(system.start[i], system.start[i + 1]):
            total += system.entry[e] * y[system.column[e]]
        out[i] = total


@kernel
def apply_both(
    system: System, y: np.ndarray, size: np.ndarray, out: np.ndarray, mass: np.ndarray
) -> None:
    """out = R y, and mass the sums of |R_ik size_k|."""
    if len(system.whole):
        _apply_whole(system.whole, y, out)
        _masses_whole(system.whole, size, mass)
        return
    for i in range(len(out)):
        total, most = 0.0, 0.0
        for e in range(system.start[i], system.start[i + 1]):
            total += system.entry[e] * y[system.column[e]]
            most += abs(system.entry[e] * size[system.column[e]])
        out[i] = total
        mass[i] = most


@summing
def _apply_whole(whole: np.ndarray, y: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        total = 0.0
        for k in range(len(y)):
            total += whole[i, k] * y[k]
        out[i] = total


@summing
def _masses_whole(whole: np.ndarray, size: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        total = 0.0
        for k in range(len(size)):
            total += abs(whole[i, k] * size[k])
        out[i] = total


@kernel
def product(system: System, v: np.ndarray, out: np.ndarray) -> None:
    """out = R' v."""
    whole = system.whole
    fill(out, len(out), 0.0)
    for i in range(len(v)):
        if v[i] == 0.0:
            continue
        if len(whole):
            for k in range(len(out)):
                out[k] += v[i] * whole[i, k]
        else:
            for e in range(system.start[i], system.start[i + 1]):
                out[system.column[e]] += v[i] * system.entry[e]


@kernel
def forget(made: Factor) -> None:
    """Nothing that is factored from here on depends on what was before."""
    fill(made.known, len(made.known), -1.0)


@kernel
def factor(
    system: System,
    spread: np.ndarray,
    extra: np.ndarray,
    out: np.ndarray,
    ridge: float,
    relative: bool,
    made: Factor,
) -> None:
    """Factors R diag(spread) R' + diag(extra) and a ridge, over the rows that are not `out`.

    The ridge is relative to the diagonal, or else to the rows' squares. `extra` and `out` may be empty.
    """
    count = 0
    for i in range(len(system.low)):
        made.position[i] = -1
        if not (len(out) and out[i]):
            made.position[i] = count
            made.taken[count] = i
            count += 1
    if system.dense and not relative and _binary(spread):
        _update(system, spread, made)
        for a in range(count):
            i = made.taken[a]
            for b in range(a + 1):
                made.matrix[a, b] = made.gram[i, made.taken[b]]
            made.matrix[a, a] += ridge * system.square[i] + 1e-300
            if len(extra):
                made.matrix[a, a] += extra[i]
        cholesky.factor(made.matrix, count, made.block)
        return
    _diagonal(system, spread, made.diagonal)
    for i in range(len(system.low)):
        if made.position[i] < 0:
            made.diagonal[i] = 1.0
            continue
        made.diagonal[i] += ridge * (made.diagonal[i] if relative else system.square[i]) + 1e-300
        if len(extra):
            made.diagonal[i] += extra[i]
    if system.dense:
        _factor_dense(system, spread, count, made)
    else:
        _factor_sparse(system, spread, made)


@kernel
def _diagonal(system: System, spread: np.ndarray, out: np.ndarray) -> None:
    """That of R D R'."""
    if len(system.whole):
        _diagonal_whole(system.whole, spread, out)
        return
    for i in range(len(out)):
        total = 0.0
        for e in range(system.start[i], system.start[i + 1]):
            total += system.entry[e] * system.entry[e] * spread[system.column[e]]
        out[i] = total


@summing
def _diagonal_whole(whole: np.ndarray, spread: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(out)):
        total = 0.0
        for k in range(len(spread)):
            total += whole[i, k] * whole[i, k] * spread[k]
        out[i] = total


@kernel
def _binary(spread: np.ndarray) -> bool:
    """Whether it is 0 or 1 everywhere."""
    others = 0
    for k in range(len(spread)):
        others += (spread[k] != 0.0) & (spread[k] != 1.0)
    return others == 0


@kernel
def _update(system: System, spread: np.ndarray, made: Factor) -> None:
    """R D R' of all rows, from the last one where few entries of D are others; all are 0 or 1."""
    known, gram = made.known, made.gram
    changed, active = 0, 0
    for k in range(len(spread)):
        changed += known[k] != spread[k]
        active += spread[k] != 0.0
    made.changes[0] += changed
    if changed >= active or known[0] < 0.0 or made.changes[0] > CHANGES * len(spread):
        made.changes[0] = 0
        clear(gram, len(gram))
        fill(known, len(known), 0.0)
    for k in range(len(spread)):
        sign = spread[k] - known[k]
        if sign == 0.0:
            continue
        known[k] = spread[k]
        begin, last = system.first[k], system.first[k + 1]
        if last - begin == len(gram):
            for a in range(len(gram)):
                share = sign * system.weight[begin + a]
                for b in range(a + 1):
                    gram[a, b] += share * system.weight[begin + b]
        else:
            for a in range(begin, last):
                share = sign * system.weight[a]
                for b in range(begin, a + 1):
                    gram[system.row[a], system.row[b]] += share * system.weight[b]


@kernel
def _factor_dense(system: System, spread: np.ndarray, count: int, made: Factor) -> None:
    matrix, taken, position = made.matrix, made.taken, made.position
    for a in range(count):
        for b in range(a):
            matrix[a, b] = 0.0
        matrix[a, a] = made.diagonal[taken[a]]
    here, size = made.links, made.work[0]
    for k in range(len(spread)):
        if spread[k] == 0.0:
            continue
        many = 0
        for e in range(system.first[k], system.first[k + 1]):
            a = position[system.row[e]]
            if a >= 0:
                here[many] = a
                size[many] = system.weight[e]
                many += 1
        whole = many == count
        for a in range(1, many):
            share = spread[k] * size[a]
            line = matrix[here[a]]
            if whole:
                for b in range(a):
                    line[b] += share * size[b]
            else:
                for b in range(a):
                    line[here[b]] += share * size[b]
    cholesky.factor(matrix, count, made.block)


@kernel
def _factor_sparse(system: System, spread: np.ndarray, made: Factor) -> None:
    place, values, pivots = system.pattern.place, made.values, made.pivots
    fill(values, len(values), 0.0)
    for k in range(len(spread)):
        first, last = system.first[k], system.first[k + 1]
        if spread[k] == 0.0:
            continue
        pair = system.slot[k]
        for a in range(first, last):
            if made.position[system.row[a]] < 0:
                pair += a - first
                continue
            share = spread[k] * system.weight[a]
            for b in range(first, a):
                if made.position[system.row[b]] >= 0:
                    values[system.slot[len(spread) + pair]] += share * system.weight[b]
                pair += 1
    for i in range(len(place)):
        pivots[place[i]] = made.diagonal[i]
    _eliminate(system, values, pivots)


@kernel
def plan_of(pattern: Pattern) -> tuple[np.ndarray, np.ndarray]:
    """For each of the factor's entries the first one that it reduces, those that follow in a row.

    Where they do not, -1 - the place in the second array of those that it reduces.
    """
    start, rows = pattern.start, pattern.rows
    target, scattered = np.full(len(rows), -1, np.int64), np.empty(len(rows), np.int32)
    used = 0
    for k in range(len(start) - 1):
        for j in range(start[k], start[k + 1] - 1):
            begin, many = used, start[k + 1] - 1 - j
            if used + many > len(scattered):
                longer = np.empty(2 * len(scattered) + many, np.int32)
                longer[:used] = scattered[:used]
                scattered = longer
            entry = start[rows[j]]
            for i in range(j + 1, start[k + 1]):
                while rows[entry] != rows[i]:
                    entry += 1
                scattered[used] = entry
                used += 1
            if scattered[used - 1] - scattered[begin] == many - 1:
                target[j], used = scattered[begin], begin
            else:
                target[j] = -1 - begin
    return target, scattered[:used].copy()


@kernel
def _eliminate(system: System, values: np.ndarray, pivots: np.ndarray) -> None:
    """LDL' in place, `values` becoming L times D; a pivot <= 0 becomes infinite.

    Each column reduces those that follow. Unsigned indices need no check for negative ones.
    """
    start, rows = system.pattern.start, system.pattern.rows
    target, scattered = system.target, system.scattered
    one = np.uint64(1)
    for k in range(len(pivots)):
        pivot = pivots[k] if pivots[k] > 0.0 else np.inf
        pivots[k] = pivot
        last = np.uint64(start[k + 1])
        for j in range(np.uint64(start[k]), last):
            share = values[j] / pivot
            if share == 0.0:
                continue
            pivots[rows[j]] -= share * values[j]
            if target[j] >= 0:
                to = np.uint64(target[j])
                for i in range(last - j - one):
                    values[to + i] -= share * values[j + one + i]
            else:
                to = np.uint64(-1 - target[j])
                for i in range(last - j - one):
                    values[np.uint64(scattered[to + i])] -= share * values[j + one + i]


@kernel
def solve(system: System, made: Factor, x: np.ndarray) -> None:
    """Solves over x, whose entries at rows left out become 0."""
    rows = len(x)
    if system.dense:
        spare, count = made.work[0], 0
        for i in range(rows):
            if made.position[i] >= 0:
                spare[count] = x[i]
                count += 1
            x[i] = 0.0
        cholesky.substitute(made.matrix, count, spare)
        for a in range(count):
            x[made.taken[a]] = spare[a]
        return
    spare, place = made.work[1], system.pattern.place
    for i in range(rows):
        spare[place[i]] = x[i] if made.position[i] >= 0 else 0.0
    _substitute(system.pattern, made.values, made.pivots, spare)
    for i in range(rows):
        x[i] = spare[place[i]] if made.position[i] >= 0 else 0.0


@kernel
def _substitute(pattern: Pattern, values: np.ndarray, pivots: np.ndarray, x: np.ndarray) -> None:
    start, rows = pattern.start, pattern.rows
    for k in range(len(pivots)):
        x[k] /= pivots[k]
        for j in range(start[k], start[k + 1]):
            x[rows[j]] -= values[j] * x[k]
    for k in range(len(pivots) - 1, -1, -1):
        total = 0.0
        for j in range(start[k], start[k + 1]):
            total += values[j] * x[rows[j]]
        x[k] -= total / pivots[k]
