r"""Sums over dependency trees without a subtraction: the matrix-tree theorem by elimination.

A word m walks to its head h with weight w_hm = exp(s_hm), or to the root with r_m = exp(s_mm). Gaussian
elimination of the Laplacian eliminates words from this Markov chain: the pivot is the sum of a word's
remaining arcs (never a difference; Grassmann, Taksar and Heyman), and every other word's arcs to it
are redirected. log Z is the sum of the logs of the pivots. With the escape probability

    E[h, m] = P(the walk from h is absorbed by the root before it meets m),   E[m, m] = 0,

the marginal of an arc is w_hm E[h, m] / (sum over h' of w_h'm E[h', m] + r_m). All of E by halves: the
words are A + B; eliminate A, which leaves the chain censored on B and the probabilities H that a walk
from A meets B first at b, or the root; with E on B from the censored chain,

    E[a, m] = H(a -> root) + sum over b of H(a -> b) E[b, m]   for a in A and m in B,

and the same with A and B exchanged: O(n^3) in all, every number positive, so each has a small relative
error. Here weights are numbers, or complex numbers whose imaginary part carries a derivative that is
too small to change the real one. Where the weights' range exceeds what these can hold the kernels say
so, and `log_matrix_tree` answers.

One root arc only is the limit of root weights e r_m, e -> 0: of every quantity the leading term. A
pivot is then the sum of the arcs to words, and E counts in units of e.

References:
    Koo, Globerson, Carreras and Collins, "Structured prediction models via the matrix-tree theorem"
    (EMNLP 2007); Grassmann, Taksar and Heyman, "Regenerative analysis and steady state distributions
    for Markov chains" (Operations Research 1985).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["RANGE", "STEP", "halves", "linear_derivatives", "linear_marginals"]

Array = np.ndarray

RANGE = 1e-150  # the product of two numbers above this one does not underflow
STEP = 1e-20  # of the derivative: its square is nothing beside 1


@kernel
def halves(m: int, low: Array, high: Array, level: Array) -> int:
    """The ranges of words that are split in two, each after the one it is a half of; how many."""
    count = 0
    if m > 1:
        low[0], high[0], level[0] = 0, m, 0
        count = 1
    node = 0
    while node < count:
        middle = (low[node] + high[node]) // 2
        for start, stop in ((low[node], middle), (middle, high[node])):
            if stop - start > 1:
                low[count], high[count], level[count] = start, stop, level[node] + 1
                count += 1
        node += 1
    return count


@kernel
def _censor(chain: Array, exits: Array, pivots: Array, count: int, k: int, single_root: bool) -> bool:
    """Eliminates the first `count` of k words; whether the numbers' range sufficed.

    Leaves the chain censored on the others (its diagonal means nothing), and in the first rows the
    probabilities of where among the others, or that at the root, a walk arrives first.
    """
    for a in range(count):
        total = 0.0 * exits[a]
        for x in range(a + 1, k):
            total += chain[a, x]
        if not single_root:
            total += exits[a]
        if total.real < RANGE:
            return False
        pivots[a] = total
        scale = 1.0 / total
        for x in range(a + 1, k):
            chain[a, x] *= scale
            if 0.0 < chain[a, x].real < RANGE:
                return False
        exits[a] *= scale
        if 0.0 < exits[a].real < RANGE or exits[a].real > 1 / RANGE:
            return False
        for b in range(a + 1, k):
            share = chain[b, a]
            if share.real == 0.0:
                continue
            if share.real < RANGE:
                return False
            for x in range(a + 1, k):
                chain[b, x] += share * chain[a, x]
            exits[b] += share * exits[a]
    for a in range(count - 2, -1, -1):
        for b in range(a + 1, count):
            share = chain[a, b]
            if share.real != 0.0:
                for x in range(count, k):
                    chain[a, x] += share * chain[b, x]
                exits[a] += share * exits[b]
    return True


@kernel
def _gather(chain: Array, exits: Array, low: int, k: int, turn: int, part: Array, ends: Array) -> None:
    """The chain on k words from `low` on, in cyclic order from the one number `turn` on."""
    for a in range(k):
        source = low + (a + turn) % k
        ends[a] = exits[source]
        for b in range(k):
            part[a, b] = chain[source, low + (b + turn) % k]


@kernel
def _scatter(
    part: Array,
    ends: Array,
    count: int,
    k: int,
    low: int,
    turn: int,
    chain: Array,
    exits: Array,
    reach: Array,
) -> None:
    """Back: the censored chain of the words left, and the arrivals of those eliminated."""
    for a in range(k):
        source = low + (a + turn) % k
        if a < count:
            reach[source] = ends[a]
        else:
            exits[source] = ends[a]
        for b in range(count, k):
            chain[source, low + (b + turn) % k] = part[a, b] if a != b else 0.0 * part[a, b]


@kernel
def _arrive(
    chain: Array, reach: Array, start: int, stop: int, low: int, high: int, escape: Array
) -> bool:
    """`escape` from the words in start..stop before those in low..high, by where they arrive first."""
    for a in range(start, stop):
        for m in range(low, high):
            escape[a, m] = reach[a]
        for b in range(low, high):
            share = chain[a, b]
            if share.real == 0.0:
                continue
            if share.real < RANGE:
                return False
            for m in range(low, high):
                escape[a, m] += share * escape[b, m]
        for m in range(low, high):
            if 0.0 < escape[a, m].real < RANGE:
                return False
    return True


@kernel
def _escapes(
    chain: Array,
    exits: Array,
    m: int,
    single_root: bool,
    escape: Array,
    part: Array,
    ends: Array,
    other: Array,
    tails: Array,
    pivots: Array,
    reach: Array,
    low: Array,
    high: Array,
    level: Array,
) -> float:
    """All of `escape`; the log of the determinant, or NaN where the numbers' range did not suffice.

    The chain is used up: after the way down, its entries are those of H at every level.
    """
    count = halves(m, low, high, level)
    total = 0.0
    for node in range(count):
        start, k = low[node], high[node] - low[node]
        half = k // 2
        _gather(chain, exits, start, k, 0, part, ends)
        _gather(chain, exits, start, k, half, other, tails)
        if not _censor(part, ends, pivots, half, k, single_root):
            return np.nan
        if high[node] == m:
            for a in range(half):
                total += np.log(pivots[a].real)
        if not _censor(other, tails, pivots, k - half, k, single_root):
            return np.nan
        _scatter(part, ends, half, k, start, 0, chain, exits, reach[level[node]])
        _scatter(other, tails, k - half, k, start, half, chain, exits, reach[level[node]])
    if exits[m - 1].real < RANGE:
        return np.nan
    total += np.log(exits[m - 1].real)
    for a in range(m):
        escape[a, a] = 0.0
    for node in range(count - 1, -1, -1):
        start, stop = low[node], high[node]
        middle = (start + stop) // 2
        above = reach[level[node]]
        if not _arrive(chain, above, start, middle, middle, stop, escape):
            return np.nan
        if not _arrive(chain, above, middle, stop, start, middle, escape):
            return np.nan
    return total


@kernel
def _shift(scores: Array, m: int, single_root: bool, shifts: Array) -> float:
    """Each word's best score, to be taken off its scores; and what is taken off all root arcs."""
    for d in range(m):
        shifts[d] = -np.inf
    for h in range(m):
        for d in range(m):
            if scores[h, d] > shifts[d] and not (single_root and h == d):
                shifts[d] = scores[h, d]
    if not single_root:
        return 0.0
    common = -np.inf
    for d in range(m):
        if shifts[d] == -np.inf:
            shifts[d] = scores[d, d]
        common = max(common, scores[d, d] - shifts[d])
    return common


@kernel
def linear_marginals(
    first: int,
    last: int,
    rows: Array,
    scores: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    log_total: Array,
) -> None:
    """Marginals of these rows into the zeros of `out`, and log Z; NaN where logs are needed.

    `scores` and `out` are `(N, n, n)`, [head, dependent], the root's arcs on the diagonal, -inf where
    an arc is excluded. Every instance has a tree.
    """
    n = scores.shape[1]
    weights, chain, escape = np.empty((n, n)), np.empty((n, n)), np.empty((n, n))
    part, other = np.empty((n, n)), np.empty((n, n))
    exits, ends, tails, pivots = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
    reach = np.empty((64, n))
    low, high, level = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    shifts = np.empty(n)
    for row in range(first, last):
        i: int = rows[row]
        m = lengths[i]
        common = _shift(scores[i], m, single_root, shifts)
        offset = common
        for d in range(m):
            offset += shifts[d]
        for h in range(m):
            for d in range(m):
                drop = shifts[d] + common if h == d else shifts[d]
                weights[d, h] = np.exp(np.float64(scores[i, h, d]) - drop)
                chain[d, h] = weights[d, h]
        for d in range(m):
            exits[d] = weights[d, d]
            chain[d, d] = 0.0
        total = _escapes(
            chain,
            exits,
            m,
            single_root,
            escape,
            part,
            ends,
            other,
            tails,
            pivots,
            reach,
            low,
            high,
            level,
        )
        log_total[i] = total + offset
        if total != total:
            continue
        for d in range(m):
            norm = weights[d, d]
            for h in range(m):
                norm += weights[d, h] * escape[h, d]
            for h in range(m):
                out[i, h, d] = weights[d, h] * (1.0 if h == d else escape[h, d].real) / norm


@kernel
def linear_derivatives(
    first: int,
    last: int,
    rows: Array,
    scores: Array,
    directions: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    fits: Array,
) -> None:
    """The derivative of these rows along `directions` into the zeros of `out`, by a complex step.

    It is the Hessian of log Z times the direction, so also the vector-Jacobian product. `fits` says
    whether the numbers' range sufficed.
    """
    n = scores.shape[1]
    weights = np.empty((n, n), np.complex128)
    chain, escape = np.empty((n, n), np.complex128), np.empty((n, n), np.complex128)
    part, other = np.empty((n, n), np.complex128), np.empty((n, n), np.complex128)
    exits, ends = np.empty(n, np.complex128), np.empty(n, np.complex128)
    tails, pivots = np.empty(n, np.complex128), np.empty(n, np.complex128)
    reach = np.empty((64, n), np.complex128)
    low, high, level = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    shifts = np.empty(n)
    for row in range(first, last):
        i: int = rows[row]
        m = lengths[i]
        common = _shift(scores[i], m, single_root, shifts)
        largest = 0.0
        for h in range(m):
            for d in range(m):
                largest = max(largest, abs(directions[i, h, d]))
        fits[i] = True
        if largest == 0.0:
            continue
        for h in range(m):
            for d in range(m):
                drop = shifts[d] + common if h == d else shifts[d]
                value = np.exp(np.float64(scores[i, h, d]) - drop)
                weights[d, h] = complex(value, value * (STEP * (directions[i, h, d] / largest)))
                chain[d, h] = weights[d, h]
        for d in range(m):
            exits[d] = weights[d, d]
            chain[d, d] = 0.0
        total = _escapes(
            chain,
            exits,
            m,
            single_root,
            escape,
            part,
            ends,
            other,
            tails,
            pivots,
            reach,
            low,
            high,
            level,
        )
        fits[i] = total == total
        if total != total:
            continue
        for d in range(m):
            escape[d, d] = 1.0
            norm = 0.0 * exits[d]
            for h in range(m):
                norm += weights[d, h] * escape[h, d]
            for h in range(m):
                share = weights[d, h] * escape[h, d] / norm
                out[i, h, d] = share.imag * (largest / STEP)
