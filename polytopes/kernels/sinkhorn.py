"""Entropic projection onto row and column sums: Sinkhorn's sweeps, and Newton steps where they crawl.

With {y >= 0 : row sums = (or <=) a, column sums = (or <=) b} the maximiser of <s, y> - sum y log y is
y_ij = exp(s_ij - 1 - u_i - v_j), where u_i is free for an equation and >= 0 for an inequality, and
(u, v) minimises the convex dual sum of y + <a, u> + <b, v>. A sweep minimises it exactly over u, then
over v; a Newton step needs one Cholesky factor of [[D_r, Y], [Y', D_c]], the columns eliminated.

All is done in logarithms of s_ij - u0_i - v0_j, the prices of the best vertex, so that no row or column
overflows or vanishes whatever the scores' scale; the sweeps between two exponentials are plain
products.

Sinkhorn and Knopp (1967); Brauer, Clason, Lorenz and Wirth, "A Sinkhorn-Newton method for entropic
optimal transport" (2017).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.bipartite_face import loose, slack, strong
from spigot.polytopes.kernels.bounds import at_most, bounded, hold, largest_error
from spigot.polytopes.kernels.cholesky import factor, substitute
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.vectors import clear, copy, dot, exponentials, fill, multiply, total

__all__ = ["level", "pull", "scale"]

MAX_STEPS = 400
GENTLE = 12.0
SWEEPS = 30  # between two exponentials, where they gain
GAIN = 0.3  # of the error, by a sweep that is worth as much as a Newton step
TRIALS = 60
RIDGE = 1e-13
BOUND_ROUNDS = 20
SPREAD, ROUGH, FINE, ROUGH_STEPS = 30.0, 1e-2, 5e-15, 12


@kernel
def scale(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    sizes: np.ndarray,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    row_exact: np.ndarray,
    column_exact: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
    objective: np.ndarray,
    steps: np.ndarray,
    error: np.ndarray,
) -> None:
    """Entropic projections, with their multipliers.

    Reads what `bipartite_newton.project` does; of `keep`, only entries that some point of the set uses.
    Writes `value` and `gradient` = 1 + log y (n, N, M) in the leading block, the `objective`
    (n,), the rounds of sweeps and Newton steps `steps` (n,), and the largest `error` (n,) of a row or
    column sum. The starting prices become the multipliers.
    """
    small, large = min(scores.shape[1], scores.shape[2]), max(scores.shape[1], scores.shape[2])
    x, y = np.empty((small, large)), np.empty((small, large))
    turned = np.empty((large, small))
    work = np.empty((16, large))
    matrix, column = np.empty((small, small)), np.empty((4, small))
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
        for p in range(k):
            a[p] = column_mass[i, p] if flip else row_mass[i, p]
            price = column_price[i, p] if flip else row_price[i, p]
            low_u[p] = -np.inf if (column_exact[i] if flip else row_exact[i]) else -price
            u[p] = 0.0
        for q in range(m):
            b[q] = row_mass[i, q] if flip else column_mass[i, q]
            price = row_price[i, q] if flip else column_price[i, q]
            low_v[q] = -np.inf if (row_exact[i] if flip else column_exact[i]) else -price
            v[q] = 0.0
        for p in range(k):
            for q in range(m):
                r, c = (q, p) if flip else (p, q)
                x[p, q] = scores[i, r, c] - row_price[i, r] - column_price[i, c]
                if masked and not keep[i, r, c]:
                    x[p, q] = -np.inf
        steps[i], error[i] = _anneal(x, y, turned, k, m, work, matrix, column)
        for p in range(k):
            if flip:
                column_price[i, p] += u[p]
            else:
                row_price[i, p] += u[p]
        for q in range(m):
            if flip:
                row_price[i, q] += v[q]
            else:
                column_price[i, q] += v[q]
        energy = 0.0
        for r in range(rows):
            for c in range(columns):
                p, q = (c, r) if flip else (r, c)
                slope = scores[i, r, c] - row_price[i, r] - column_price[i, c]
                if x[p, q] > -np.inf:
                    slope = x[p, q] - u[p] - v[q]
                value[i, r, c] = y[p, q]
                gradient[i, r, c] = slope
                if y[p, q] > 0.0:  # s - log y, and log y is the slope less 1
                    energy += y[p, q] * (scores[i, r, c] - slope + 1.0)
        objective[i] = energy


@kernel
def level(
    first: int,
    last: int,
    scores: np.ndarray,
    sizes: np.ndarray,
    row_exact: np.ndarray,
    column_exact: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
    steep: np.ndarray,
) -> None:
    """The largest score of each row as its price (0 at least, where its sum may be smaller).

    Of each column where they are fewer: the smaller side's sums are those that bind at large scores.
    `steep` says where that leaves scores too far below for sweeps to start from.
    """
    for i in range(first, last):
        steep[i] = False
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        exact = column_exact[i] if flip else row_exact[i]
        for p in range(columns if flip else rows):
            low, high = np.inf, -np.inf if exact else 0.0
            for q in range(rows if flip else columns):
                s = scores[i, q, p] if flip else scores[i, p, q]
                low, high = min(low, s), max(high, s)
            if flip:
                column_price[i, p] = high
            else:
                row_price[i, p] = high
            steep[i] |= high - low > GENTLE


@kernel
def _exponentials(
    x: np.ndarray,
    heat: float,
    y: np.ndarray,
    k: int,
    m: int,
    u: np.ndarray,
    v: np.ndarray,
    r: np.ndarray,
    c: np.ndarray,
) -> float:
    """y = exp(heat x - 1 - u - v), its row sums r and column sums c; returns its total."""
    power = np.empty(m)
    bits = power.view(np.int64)
    fill(c, m, 0.0)
    whole = 0.0
    for p in range(k):
        row, reach, up = y[p], x[p], 1.0 + u[p]
        for q in range(m):
            row[q] = heat * reach[q] - up - v[q]
        exponentials(row, power, bits, m)
        r[p] = total(row, m)
        for q in range(m):
            c[q] += row[q]
        whole += r[p]
    return whole


@kernel
def _errors(k: int, m: int, work: np.ndarray) -> float:
    """The largest error of a sum."""
    excess = work[14]
    for p in range(k):
        excess[p] = work[6, p] - work[0, p]
    worst = largest_error(excess, work[2], work[4], k)
    for q in range(m):
        excess[q] = work[7, q] - work[1, q]
    return max(worst, largest_error(excess, work[3], work[5], m))


@kernel
def _anneal(
    x: np.ndarray,
    y: np.ndarray,
    turned: np.ndarray,
    k: int,
    m: int,
    work: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
) -> tuple[int, float]:
    """Solves roughly with all logarithms scaled down to small ones, doubles them, and so on."""
    low_u, low_v = work[4], work[5]
    spread = 0.0
    for p in range(k):
        for q in range(m):
            if x[p, q] > -np.inf:
                spread = max(spread, -x[p, q])
    heat = 1.0
    while heat * spread > SPREAD:
        heat *= 0.5
    multiply(low_u, k, heat)
    multiply(low_v, m, heat)
    steps = 0
    while True:
        rough = heat < 1.0
        tolerance, limit = (ROUGH, ROUGH_STEPS) if rough else (FINE, MAX_STEPS)
        more, error = _minimise(x, heat, y, turned, k, m, work, matrix, column, tolerance, limit)
        steps += more
        if not rough:
            return steps, error
        heat *= 2.0
        for t in range(2, 6):
            multiply(work[t], m, 2.0)


@kernel
def _minimise(
    x: np.ndarray,
    heat: float,
    y: np.ndarray,
    turned: np.ndarray,
    k: int,
    m: int,
    work: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
    tolerance: float,
    limit: int,
) -> tuple[int, float]:
    """Rounds of sweeps, each with a Newton step after it unless the sweeps alone gain enough."""
    a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
    r, c, du, dv, tu, tv = work[6], work[7], work[8], work[9], work[10], work[11]
    largest = 0.0
    for p in range(k):
        largest = max(largest, a[p])
    for q in range(m):
        largest = max(largest, b[q])
    error, stalls = np.inf, 0
    for step in range(limit):
        _exponentials(x, heat, y, k, m, u, v, r, c)
        whole = _sweeps(y, k, m, work, 0.2 * tolerance * largest)
        new = _errors(k, m, work)
        stalls = stalls + 1 if new > 0.5 * error and new < 1e-12 * largest else 0
        if new <= tolerance * largest or stalls > 2 or step == limit - 1:
            return step, new
        quick = new <= 0.05 * error
        error = new
        if quick:
            continue
        _direction(y, turned, k, m, work, matrix, column)
        reach, slope, linear = 1.0, 0.0, 0.0
        for p in range(k):
            reach = max(reach, abs(du[p]))
            slope += (a[p] - r[p]) * du[p]
            linear += a[p] * u[p]
        for q in range(m):
            reach = max(reach, abs(dv[q]))
            slope += (b[q] - c[q]) * dv[q]
            linear += b[q] * v[q]
        dual, alpha = whole + linear, min(1.0, 20.0 / reach)
        noise = 1e-15 * (abs(whole) + abs(linear))
        for _ in range(TRIALS):
            new = 0.0
            for p in range(k):
                tu[p] = bounded(u[p] + alpha * du[p], low_u[p])
                new += a[p] * tu[p]
            for q in range(m):
                tv[q] = bounded(v[q] + alpha * dv[q], low_v[q])
                new += b[q] * tv[q]
            new += _exponentials(x, heat, y, k, m, tu, tv, r, c)
            if new <= dual + 1e-4 * alpha * min(slope, 0.0) + noise:
                copy(tu, u, k)
                copy(tv, v, m)
                break
            alpha *= 0.5
    return limit, error


@kernel
def _sweeps(y: np.ndarray, k: int, m: int, work: np.ndarray, tolerance: float) -> float:
    """Exact minimisations over u, then over v, by products; y and its sums follow.

    They end where the rows' error is below the tolerance, or no longer falls quickly. Returns y's total.
    """
    a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
    r, c, f, h, sums = work[6], work[7], work[12], work[13], work[14]
    most_f, most_h = work[10], work[11]  # what sends a multiplier to its bound
    for p in range(k):
        f[p], most_f[p] = 1.0, np.inf if low_u[p] == -np.inf else np.exp(min(u[p] - low_u[p], 700.0))
    for q in range(m):
        h[q], most_h[q] = 1.0, np.inf if low_v[q] == -np.inf else np.exp(min(v[q] - low_v[q], 700.0))
    last = np.inf
    for sweep in range(SWEEPS):
        fill(sums, m, 0.0)
        error = 0.0
        for p in range(k):
            row = y[p]
            reached = dot(row, h, m)
            if reached > 1e-280 and a[p] > 0.0:
                before = f[p]
                f[p] = min(a[p] / reached, most_f[p])
                error = max(error, abs(f[p] - before) * reached)
            factor = f[p]
            for q in range(m):
                sums[q] += row[q] * factor
        for q in range(m):
            if sums[q] > 1e-280 and b[q] > 0.0:
                h[q] = min(b[q] / sums[q], most_h[q])
        if error <= tolerance or (sweep > 2 and error > GAIN * last):
            break
        last = error
    whole = 0.0
    fill(c, m, 0.0)
    for p in range(k):
        row, factor = y[p], f[p]
        u[p] = bounded(u[p] - np.log(factor), low_u[p])
        for q in range(m):
            row[q] *= factor * h[q]
            c[q] += row[q]
        r[p] = total(row, m)
        whole += r[p]
    for q in range(m):
        v[q] = bounded(v[q] - np.log(h[q]), low_v[q])
    return whole


@kernel
def _schur(
    y: np.ndarray, turned: np.ndarray, k: int, m: int, count: np.ndarray, matrix: np.ndarray
) -> None:
    """Takes Y diag(1 / count) Y' from the lower triangle; infinite counts leave their column out."""
    for q in range(m):
        for p in range(k):
            turned[q, p] = y[p, q]
    for p in range(k):
        row = matrix[p]
        for q in range(m):
            weight = y[p, q] / count[q]
            if weight != 0.0:
                other = turned[q]
                for l in range(p + 1):
                    row[l] -= weight * other[l]


@kernel
def _direction(
    y: np.ndarray,
    turned: np.ndarray,
    k: int,
    m: int,
    work: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
) -> None:
    """The Newton step over the multipliers that are not held at their bound, nor sent beyond it."""
    a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
    r, c, du, dv, count = work[6], work[7], work[8], work[9], work[15]
    held_u, held_v = work[12], work[13]
    for p in range(k):
        held_u[p] = r[p] == 0.0 or (u[p] <= low_u[p] and r[p] <= a[p])
    for q in range(m):
        held_v[q] = c[q] == 0.0 or (v[q] <= low_v[q] and c[q] <= b[q])
    for _ in range(BOUND_ROUNDS):
        clear(matrix, k)
        for p in range(k):
            matrix[p, p] = np.inf if held_u[p] else r[p] * (1 + RIDGE)
            du[p] = max(low_u[p] - u[p], -1.0) * (r[p] > 0.0) if held_u[p] else r[p] - a[p]
        for q in range(m):
            count[q] = np.inf if held_v[q] else c[q] * (1 + RIDGE)
            dv[q] = max(low_v[q] - v[q], -1.0) * (c[q] > 0.0) if held_v[q] else c[q] - b[q]
        eliminate(y, turned, k, m, count, matrix, column, du, dv)
        for p in range(k):
            if held_u[p]:
                du[p] = max(low_u[p] - u[p], -1.0) * (r[p] > 0.0)
        part = min(at_most(u, low_u, du, held_u, k), at_most(v, low_v, dv, held_v, m))
        if part == 1.0:
            break
        hold(part, u, low_u, du, held_u, k)
        hold(part, v, low_v, dv, held_v, m)


@kernel
def eliminate(
    y: np.ndarray,
    turned: np.ndarray,
    k: int,
    m: int,
    count: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
    du: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Solves [[diag, Y], [Y', count]] (du, dv) = (du, dv).

    An unknown with an infinite entry on the diagonal is given, and a given du comes back as 0.
    """
    for p in range(k):
        for q in range(m):
            if matrix[p, p] == np.inf and count[q] < np.inf:
                dv[q] -= y[p, q] * du[p]
            elif matrix[p, p] < np.inf and count[q] == np.inf:
                du[p] -= y[p, q] * dv[q]
    _schur(y, turned, k, m, count, matrix)
    for p in range(k):
        for q in range(m):
            du[p] -= y[p, q] * (dv[q] / count[q])
        if matrix[p, p] == np.inf:
            du[p] = 0.0
    factor(matrix, k, column)
    substitute(matrix, k, du)
    for q in range(m):
        if count[q] < np.inf:
            for p in range(k):
                dv[q] -= y[p, q] * du[p]
            dv[q] /= count[q]


@kernel
def pull(
    first: int,
    last: int,
    value: np.ndarray,
    sizes: np.ndarray,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    row_exact: np.ndarray,
    column_exact: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
    tolerance: float,
    grad: np.ndarray,
    pulled: np.ndarray,
    row_pulled: np.ndarray,
    column_pulled: np.ndarray,
) -> None:
    """The derivative y_ij (g_ij - alpha_i - beta_j), where (alpha, beta) makes its bound sums zero.

    Reads the answer `value` and its multipliers; writes `pulled` (n, N, M), and the derivative by the
    masses, (n, N) and (n, M).
    """
    small, large = min(value.shape[1], value.shape[2]), max(value.shape[1], value.shape[2])
    y, pattern = np.empty((small, large)), np.empty((small, large))
    turned = np.empty((large, small))
    group = np.empty(small + large + 1, np.int64)
    walk = np.empty((5, small + large + 1), np.int64)
    ground = np.empty((2, small + large), np.bool_)
    sums = np.empty((2, large))
    alpha, beta, count = np.empty(small), np.empty(large), np.empty(large)
    matrix, column = np.empty((small, small)), np.empty((4, small))
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        clear(matrix, k)
        fill(alpha, k, 0.0)
        fill(beta, m, 0.0)
        for p in range(k):
            for q in range(m):
                r, c = (q, p) if flip else (p, q)
                y[p, q] = value[i, r, c]
                alpha[p] += y[p, q] * grad[i, r, c]
                beta[q] += y[p, q] * grad[i, r, c]
        slack(
            y,
            k,
            m,
            tolerance,
            flip,
            row_mass[i],
            column_mass[i],
            row_exact[i],
            column_exact[i],
            row_price[i],
            column_price[i],
            sums,
            ground,
        )
        free = False  # whether some sum may move
        for t in range(k + m):
            free |= ground[0, t] or ground[1, t]
        if free:
            for p in range(k):
                for q in range(m):
                    pattern[p, q] = 1.0 if y[p, q] > 0.0 else -np.inf
            strong(pattern, k, m, 0.0, ground, group, walk)
        for p in range(k):
            fixed = sums[0, p] == 0.0 or (free and loose(group, ground, k, m, p))
            matrix[p, p] = np.inf if fixed else sums[0, p] * (1 + RIDGE)
            if fixed:
                alpha[p] = 0.0
        for q in range(m):
            fixed = sums[1, q] == 0.0 or (free and loose(group, ground, k, m, k + q))
            count[q] = np.inf if fixed else sums[1, q] * (1 + RIDGE)
            if fixed:
                beta[q] = 0.0
        eliminate(y, turned, k, m, count, matrix, column, alpha, beta)
        for p in range(k):
            for q in range(m):
                r, c = (q, p) if flip else (p, q)
                pulled[i, r, c] = y[p, q] * (grad[i, r, c] - alpha[p] - beta[q])
            if flip:
                column_pulled[i, p] = alpha[p]
            else:
                row_pulled[i, p] = alpha[p]
        for q in range(m):
            if flip:
                row_pulled[i, q] = beta[q]
            else:
                column_pulled[i, q] = beta[q]
