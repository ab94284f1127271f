r"""Sums over dependency trees by the Laplacian's inverse: where it has digits to spare.

L has row m for word m: the sum of the word's weights on the diagonal, -w_hm off it. With G = L^-1 the
marginal of an arc is w_hm (G_mm - G_hm), of the root's r_m G_mm, and their derivative along weights
that move by dL is that of these with dG = -G dL G. Gauss and Jordan's elimination takes its pivots as
sums of the arcs that are left, never as a difference (see `matrix_tree`), so every G_hm is right in
all its digits; the difference loses those that G_mm w_hm has before the point. Weights are at most 1,
so where some G_mm exceeds LARGE, or the weights' range what numbers hold, NaN says so and
`matrix_tree` answers.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["inverse_derivatives", "inverse_marginals", "log_totals"]

Array = np.ndarray
LARGE = 1e3  # of G_mm: an absolute error of 1e-12
SMALL = 1e-100  # of a pivot: what underflows beside it is nothing
LOG_TWO, REST = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2
LOWEST = -700.0  # exp of less is 0
BIAS, SHIFT = 1023, 52  # of a double's exponent


@kernel
def _load(scores: Array, m: int, shifts: Array, bits: Array, weights: Array, chain: Array) -> float:
    """Weights [head, dependent], the best of each word 1; `chain` [dependent, head]; the shifts' sum.

    exp is 2^k exp(r), |r| <= log(2) / 2, by a series: loops that need no call become vector code.
    """
    powers = bits.view(np.float64)
    for d in range(m):
        shifts[d] = -np.inf
    for h in range(m):
        for d in range(m):
            value = np.float64(scores[h, d])
            shifts[d] = value if value > shifts[d] else shifts[d]
    offset = 0.0
    for d in range(m):
        offset += shifts[d]
    for h in range(m):
        for d in range(m):
            value = np.float64(scores[h, d]) - shifts[d]
            low = value < LOWEST
            value = LOWEST if low else value
            k = np.floor(value * 1.4426950408889634 + 0.5)
            r = (value - k * LOG_TWO) - k * REST
            p = 1 / 479001600.0
            p = p * r + 1 / 39916800.0
            p = p * r + 1 / 3628800.0
            p = p * r + 1 / 362880.0
            p = p * r + 1 / 40320.0
            p = p * r + 1 / 5040.0
            p = p * r + 1 / 720.0
            p = p * r + 1 / 120.0
            p = p * r + 1 / 24.0
            p = p * r + 1 / 6.0
            p = p * r + 0.5
            p = p * r + 1.0
            p = p * r + 1.0
            weights[h, d] = 0.0 if low else p
            bits[d] = (np.int64(np.int32(k)) + BIAS) << SHIFT
        for d in range(m):
            weights[h, d] *= powers[d]
        for d in range(m):
            chain[d, h] = weights[h, d]
    return offset


@kernel
def _invert(g: Array, exits: Array, m: int) -> float:
    """G over the chain, by four pivots at a time; log of the determinant, NaN where it is too small."""
    total = 0.0
    for start in range(0, m, 4):
        stop = min(start + 4, m)
        for k in range(start, stop):
            pivot = exits[k]
            for x in range(k + 1, m):
                pivot += g[k, x]
            if not pivot > SMALL:
                return np.nan
            total += np.log(pivot)
            scale = 1.0 / pivot
            g[k, k] = 1.0
            for x in range(m):
                g[k, x] *= scale
            exits[k] *= scale
            for i in range(start, stop):
                if i != k:
                    share = g[i, k]
                    g[i, k] = 0.0
                    for x in range(m):
                        g[i, x] += share * g[k, x]
                    exits[i] += share * exits[k]
        if stop - start < 4:
            for i in range(start):
                a, b, c = g[i, start], 0.0, 0.0
                g[i, start] = 0.0
                if stop - start > 1:
                    b, g[i, start + 1] = g[i, start + 1], 0.0
                if stop - start > 2:
                    c, g[i, start + 2] = g[i, start + 2], 0.0
                _add(g, i, g, start, a, m)
                if stop - start > 1:
                    _add(g, i, g, start + 1, b, m)
                if stop - start > 2:
                    _add(g, i, g, start + 2, c, m)
            break
        for i in range(m):
            if i < start or i >= stop:
                a, b, c, d = g[i, start], g[i, start + 1], g[i, start + 2], g[i, start + 3]
                g[i, start], g[i, start + 1], g[i, start + 2], g[i, start + 3] = 0.0, 0.0, 0.0, 0.0
                _add_four(g, i, g, start, a, b, c, d, m)
                exits[i] += (a * exits[start] + b * exits[start + 1]) + (
                    c * exits[start + 2] + d * exits[start + 3]
                )
    return total


@kernel
def _add(target: Array, i: int, rows: Array, k: int, share: float, m: int) -> None:
    """A row gains a share of another."""
    for x in range(m):
        target[i, x] += share * rows[k, x]


@kernel
def _add_four(
    target: Array, i: int, rows: Array, k: int, a: float, b: float, c: float, d: float, m: int
) -> None:
    """A row gains shares of four others, from row k on."""
    for x in range(m):
        target[i, x] += (a * rows[k, x] + b * rows[k + 1, x]) + (c * rows[k + 2, x] + d * rows[k + 3, x])


@kernel
def _product(left: Array, right: Array, m: int, out: Array) -> None:
    """out = left right, two rows of four terms at a time."""
    for i in range(0, m, 2):
        j = min(i + 1, m - 1)  # an odd last row is done twice over
        for x in range(m):
            out[i, x], out[j, x] = 0.0, 0.0
        for k in range(0, m - m % 4, 4):
            a, b, c, d = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
            e, f, g, h = left[j, k], left[j, k + 1], left[j, k + 2], left[j, k + 3]
            for x in range(m):
                one, two, three, four = right[k, x], right[k + 1, x], right[k + 2, x], right[k + 3, x]
                upper = out[i, x] + ((a * one + b * two) + (c * three + d * four))
                lower = out[j, x] + ((e * one + f * two) + (g * three + h * four))
                out[i, x], out[j, x] = upper, lower
        for k in range(m - m % 4, m):
            a, e = left[i, k], left[j, k]
            for x in range(m):
                upper, lower = out[i, x] + a * right[k, x], out[j, x] + e * right[k, x]
                out[i, x], out[j, x] = upper, lower


@kernel
def _inverse(
    scores: Array, m: int, shifts: Array, bits: Array, exits: Array, weights: Array, g: Array
) -> float:
    """Weights and G of one instance; log Z, NaN where the inverse has no digits to spare."""
    offset = _load(scores, m, shifts, bits, weights, g)
    for d in range(m):
        exits[d] = weights[d, d]
        g[d, d] = 0.0
    total = _invert(g, exits, m) + offset
    for d in range(m):
        if not g[d, d] < LARGE:
            return np.nan
    return total


@kernel
def inverse_marginals(
    first: int, last: int, scores: Array, lengths: Array, out: Array, log_total: Array
) -> None:
    """Marginals of every arc into the zeros of `out`, and log Z; NaN where `matrix_tree` is needed.

    `scores` and `out` are `(N, n, n)`, [head, dependent], the root's arcs on the diagonal, -inf where
    an arc is excluded. Every instance has a tree.
    """
    n = scores.shape[1]
    weights, g = np.empty((n, n)), np.empty((n, n))
    shifts, exits, bits = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for i in range(first, last):
        m: int = lengths[i]
        log_total[i] = _inverse(scores[i], m, shifts, bits, exits, weights, g)
        if log_total[i] != log_total[i]:
            continue
        for d in range(m):
            exits[d], g[d, d] = g[d, d], 0.0
        for h in range(m):
            for d in range(m):
                value = exits[d] - g[h, d]
                out[i, h, d] = weights[h, d] * (value if value > 0.0 else 0.0)


@kernel
def log_totals(first: int, last: int, scores: Array, lengths: Array, log_total: Array) -> None:
    """log Z alone, by the pivots from the last word down; NaN where `matrix_tree` is needed."""
    n = scores.shape[1]
    weights, chain = np.empty((n, n)), np.empty((n, n))
    shifts, exits, bits = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for i in range(first, last):
        m: int = lengths[i]
        offset = _load(scores[i], m, shifts, bits, weights, chain)
        for d in range(m):
            exits[d] = weights[d, d]
        log_total[i] = _eliminate(chain, exits, m) + offset


@kernel
def _eliminate(chain: Array, exits: Array, m: int) -> float:
    """log of the determinant, four words at a time; NaN where it is too small."""
    total = 0.0
    stop = m
    while stop > 0:
        start = max(stop - 4, 0)
        for k in range(stop - 1, start - 1, -1):
            pivot = exits[k]
            for x in range(k):
                pivot += chain[k, x]
            if not pivot > SMALL:
                return np.nan
            total += np.log(pivot)
            scale = 1.0 / pivot
            for x in range(k):
                chain[k, x] *= scale
            exits[k] *= scale
            for i in range(start, k):
                share = chain[i, k]
                _add(chain, i, chain, k, share, k)
                exits[i] += share * exits[k]
        if start > 0:
            for i in range(start):
                d = chain[i, start + 3]
                c = chain[i, start + 2] + d * chain[start + 3, start + 2]
                b = (
                    chain[i, start + 1]
                    + d * chain[start + 3, start + 1]
                    + c * chain[start + 2, start + 1]
                )
                a = chain[i, start] + d * chain[start + 3, start] + c * chain[start + 2, start]
                a += b * chain[start + 1, start]
                _add_four(chain, i, chain, start, a, b, c, d, start)
                exits[i] += (a * exits[start] + b * exits[start + 1]) + (
                    c * exits[start + 2] + d * exits[start + 3]
                )
        stop = start
    return total


@kernel
def inverse_derivatives(
    first: int, last: int, scores: Array, directions: Array, lengths: Array, out: Array, fits: Array
) -> None:
    """The marginals' derivative along `directions` into the zeros of `out`.

    It is the Hessian of log Z times the direction, so also the vector-Jacobian product. `fits` says
    whether the inverse had digits to spare.
    """
    n = scores.shape[1]
    weights, g = np.empty((n, n)), np.empty((n, n))
    moved, turned = np.empty((n, n)), np.empty((n, n))
    shifts, exits, bits = np.empty(n), np.empty(n), np.empty(n, np.int64)
    for i in range(first, last):
        m: int = lengths[i]
        total = _inverse(scores[i], m, shifts, bits, exits, weights, g)
        fits[i] = total == total
        if not fits[i]:
            continue
        for d in range(m):
            shifts[d], exits[d] = g[d, d], 0.0
        for h in range(m):
            for d in range(m):
                moved[d, h] = -weights[h, d] * directions[i, h, d]
                exits[d] -= moved[d, h]
        for d in range(m):
            moved[d, d] = exits[d]
        _product(moved, g, m, turned)
        _product(g, turned, m, moved)
        for d in range(m):
            exits[d], g[d, d], moved[d, d] = moved[d, d], 0.0, 0.0
        for h in range(m):
            for d in range(m):
                change = directions[i, h, d] * (shifts[d] - g[h, d]) + (moved[h, d] - exits[d])
                out[i, h, d] = weights[h, d] * change
