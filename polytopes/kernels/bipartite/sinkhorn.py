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

from spigot.polytopes.kernels.bipartite.bipartite_face import loose, slack, strong
from spigot.polytopes.kernels.bounds import at_most, bounded, hold, largest_error
from spigot.polytopes.kernels.cholesky import factor, substitute
from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.vectors import clear, copy, exponentials, fill, multiply

__all__ = ["level", "pull", "scale"]

MAX_STEPS = 400
GENTLE = 12.0
ROWS, COLUMNS = 4, 8  # matrices are filled up to whole blocks
SWEEPS = 100  # between two exponentials, where they gain
GAIN = 0.7  # of the error is left by a sweep that is worth as much as a Newton step
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
    small, large = _whole(small, ROWS), _whole(large, COLUMNS)
    room = np.empty((2, small * large))
    share = np.empty(large)
    work = np.zeros((16, large))
    matrix, column = np.empty((small, small)), np.empty((4, small))
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        height, width = _whole(k, ROWS), _whole(m, COLUMNS)
        x = room[0, : height * width].reshape(height, width)
        y = room[1, : height * width].reshape(height, width)
        a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
        prices, other_prices = (
            (column_price[i], row_price[i]) if flip else (row_price[i], column_price[i])
        )
        masses, other_masses = (column_mass[i], row_mass[i]) if flip else (row_mass[i], column_mass[i])
        exact, other_exact = (column_exact[i], row_exact[i]) if flip else (row_exact[i], column_exact[i])
        _multipliers(k, height, masses, prices, exact, a, u, low_u)
        _multipliers(m, width, other_masses, other_prices, other_exact, b, v, low_v)
        _load(x, k, m, flip, scores[i], prices, other_prices)
        if masked:
            _mask(x, k, m, flip, keep[i])
        steps[i], error[i] = _anneal(x, y, share, k, m, work, matrix, column)
        _store(x, y, k, m, flip, scores[i], prices, other_prices, u, v, value[i], gradient[i])
        energy = 0.0
        for p in range(k):
            prices[p] += u[p]
            energy += (1.0 + prices[p]) * work[6, p]
        for q in range(m):
            other_prices[q] += v[q]
            energy += other_prices[q] * work[7, q]
        objective[i] = energy  # <y, s - log y>, and s - log y = 1 + u + v


@kernel
def _whole(count: int, unit: int) -> int:
    """Rounded up to whole units."""
    return (count + unit - 1) // unit * unit


@kernel
def _multipliers(
    k: int,
    height: int,
    masses: np.ndarray,
    prices: np.ndarray,
    exact: bool,
    a: np.ndarray,
    u: np.ndarray,
    low: np.ndarray,
) -> None:
    """One side's masses, and its multipliers beside their prices: 0, and at least `low`."""
    for p in range(k):
        a[p], u[p] = masses[p], 0.0
        low[p] = -np.inf if exact else -prices[p]
    for p in range(k, height):
        a[p], u[p], low[p] = 0.0, 0.0, -np.inf


@kernel
def _load(
    x: np.ndarray,
    k: int,
    m: int,
    flip: bool,
    scores: np.ndarray,
    prices: np.ndarray,
    others: np.ndarray,
) -> None:
    """x = scores less prices, -inf in the rows and columns that fill it up."""
    for p in range(k):
        price = prices[p]
        if flip:
            for q in range(m):
                x[p, q] = scores[q, p] - price - others[q]
        else:
            for q in range(m):
                x[p, q] = scores[p, q] - price - others[q]
        for q in range(m, x.shape[1]):
            x[p, q] = -np.inf
    for p in range(k, x.shape[0]):
        for q in range(x.shape[1]):
            x[p, q] = -np.inf


@kernel
def _mask(x: np.ndarray, k: int, m: int, flip: bool, keep: np.ndarray) -> None:
    """x = -inf where an entry is left out."""
    for p in range(k):
        for q in range(m):
            if not (keep[q, p] if flip else keep[p, q]):
                x[p, q] = -np.inf


@kernel
def _store(
    x: np.ndarray,
    y: np.ndarray,
    k: int,
    m: int,
    flip: bool,
    scores: np.ndarray,
    prices: np.ndarray,
    others: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    value: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """y, and x less its multipliers; for what is left out, the score less them and the prices."""
    for p in range(k):
        up, price = u[p], prices[p]
        if flip:
            for q in range(m):
                t = x[p, q] if x[p, q] > -np.inf else scores[q, p] - price - others[q]
                value[q, p], gradient[q, p] = y[p, q], t - up - v[q]
        else:
            for q in range(m):
                t = x[p, q] if x[p, q] > -np.inf else scores[p, q] - price - others[q]
                value[p, q], gradient[p, q] = y[p, q], t - up - v[q]


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

    Of each column where they are no more: the smaller side's sums are those that bind at large scores.
    `steep` says where that leaves scores too far below for sweeps to start from.
    """
    top, least = np.empty(scores.shape[2]), np.empty(scores.shape[2])
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        steep[i] = False
        if rows < columns:
            for p in range(rows):
                low, high = np.inf, -np.inf if row_exact[i] else 0.0
                for q in range(columns):
                    low, high = min(low, scores[i, p, q]), max(high, scores[i, p, q])
                row_price[i, p] = high
                steep[i] |= high - low > GENTLE
        else:
            fill(top, columns, -np.inf if column_exact[i] else 0.0)
            fill(least, columns, np.inf)
            for p in range(rows):
                for q in range(columns):
                    least[q], top[q] = min(least[q], scores[i, p, q]), max(top[q], scores[i, p, q])
            for q in range(columns):
                column_price[i, q] = top[q]
                steep[i] |= top[q] - least[q] > GENTLE


@kernel
def _exponentials(
    x: np.ndarray,
    heat: float,
    y: np.ndarray,
    k: int,
    u: np.ndarray,
    v: np.ndarray,
    r: np.ndarray,
    c: np.ndarray,
) -> float:
    """y = exp(heat x - 1 - u - v), its row sums r and column sums c; returns its total."""
    width = x.shape[1]
    for p in range(x.shape[0]):
        up = 1.0 + u[p]
        for q in range(width):
            y[p, q] = heat * x[p, q] - up - v[q]
    exponentials(y.reshape(-1))
    return _sums(y, k, r, c)


@summing
def _sums(y: np.ndarray, k: int, r: np.ndarray, c: np.ndarray) -> float:
    """Row sums r and column sums c of y, four rows at a time; returns its total."""
    width = y.shape[1]
    fill(c, width, 0.0)
    found = 0.0
    for p in range(0, k, ROWS):
        r0, r1, r2, r3 = 0.0, 0.0, 0.0, 0.0
        for q in range(width):
            y0, y1, y2, y3 = y[p, q], y[p + 1, q], y[p + 2, q], y[p + 3, q]
            r0 += y0
            r1 += y1
            r2 += y2
            r3 += y3
            c[q] += (y0 + y1) + (y2 + y3)
        r[p], r[p + 1], r[p + 2], r[p + 3] = r0, r1, r2, r3
        found += (r0 + r1) + (r2 + r3)
    return found


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
    share: np.ndarray,
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
        more, error = _minimise(x, heat, y, share, k, m, work, matrix, column, tolerance, limit)
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
    share: np.ndarray,
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
        _exponentials(x, heat, y, k, u, v, r, c)
        whole = _sweeps(y, k, m, work, 0.5 * tolerance * largest)
        new = _errors(k, m, work)
        stalls = stalls + 1 if new > 0.5 * error and new < 1e-12 * largest else 0
        if new <= tolerance * largest or stalls > 2 or step == limit - 1:
            return step, new
        quick = new <= 0.05 * error
        error = new
        if quick:
            continue
        _direction(y, share, k, m, work, matrix, column)
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
            new += _exponentials(x, heat, y, k, tu, tv, r, c)
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
    height, width = y.shape
    a, b, u, v, low_u, low_v = work[0], work[1], work[2], work[3], work[4], work[5]
    r, c, f, h = work[6], work[7], work[12], work[13]
    most_f, most_h = work[10], work[11]  # what sends a multiplier to its bound
    _limits(u, low_u, height, f, most_f)
    _limits(v, low_v, width, h, most_h)
    last = np.inf
    for sweep in range(SWEEPS):
        error = _sweep(y, k, a, f, most_f, b, h, most_h, c)
        gain = min(error / last, 1.0) if sweep > 0 else 1.0  # what is left of it after this sweep
        if gain * error <= tolerance or (sweep > 2 and gain > GAIN):
            break
        last = error
    for p in range(k):
        u[p] = bounded(u[p] - np.log(f[p]), low_u[p])
        for q in range(width):
            y[p, q] *= f[p] * h[q]
    for q in range(m):
        v[q] = bounded(v[q] - np.log(h[q]), low_v[q])
    return _sums(y, k, r, c)


@kernel
def _limits(u: np.ndarray, low: np.ndarray, k: int, f: np.ndarray, most: np.ndarray) -> None:
    """Factors of 1, and those that send a multiplier to its bound."""
    for p in range(k):
        f[p], most[p] = 1.0, np.inf if low[p] == -np.inf else np.exp(min(u[p] - low[p], 700.0))


@summing
def _sweep(
    y: np.ndarray,
    k: int,
    a: np.ndarray,
    f: np.ndarray,
    most_f: np.ndarray,
    b: np.ndarray,
    h: np.ndarray,
    most_h: np.ndarray,
    sums: np.ndarray,
) -> float:
    """Factors f of the rows that give their sums, then h of the columns; the rows' error before."""
    width = y.shape[1]
    fill(sums, width, 0.0)
    worst = 0.0
    for p in range(0, k, ROWS):
        r0, r1, r2, r3 = 0.0, 0.0, 0.0, 0.0
        for q in range(width):
            t = h[q]
            r0 += y[p, q] * t
            r1 += y[p + 1, q] * t
            r2 += y[p + 2, q] * t
            r3 += y[p + 3, q] * t
        f0 = _factor(a[p], r0, most_f[p], f[p])
        f1 = _factor(a[p + 1], r1, most_f[p + 1], f[p + 1])
        f2 = _factor(a[p + 2], r2, most_f[p + 2], f[p + 2])
        f3 = _factor(a[p + 3], r3, most_f[p + 3], f[p + 3])
        worst = max(worst, max(abs(f0 - f[p]) * r0, abs(f1 - f[p + 1]) * r1))
        worst = max(worst, max(abs(f2 - f[p + 2]) * r2, abs(f3 - f[p + 3]) * r3))
        f[p], f[p + 1], f[p + 2], f[p + 3] = f0, f1, f2, f3
        for q in range(width):
            sums[q] += (y[p, q] * f0 + y[p + 1, q] * f1) + (y[p + 2, q] * f2 + y[p + 3, q] * f3)
    for q in range(width):
        h[q] = _factor(b[q], sums[q], most_h[q], h[q])
    return worst


@kernel
def _factor(mass: float, reached: float, most: float, before: float) -> float:
    """What makes a sum its mass, and no more than sends its multiplier to the bound."""
    return min(mass / reached, most) if reached > 1e-280 and mass > 0.0 else before


@summing
def _schur(
    y: np.ndarray, k: int, m: int, count: np.ndarray, share: np.ndarray, matrix: np.ndarray
) -> None:
    """Takes Y diag(1 / count) Y' from the lower triangle; infinite counts leave their column out.

    Four entries at a time: those right of the diagonal are workspace, and so is `share`.
    """
    width = y.shape[1]
    fill(share, width, 0.0)
    for p in range(k):
        for q in range(m):
            share[q] = y[p, q] / count[q]
        for l in range(0, p + 1, ROWS):
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
            for q in range(width):
                t = share[q]
                s0 += y[l, q] * t
                s1 += y[l + 1, q] * t
                s2 += y[l + 2, q] * t
                s3 += y[l + 3, q] * t
            matrix[p, l] -= s0
            matrix[p, l + 1] -= s1
            matrix[p, l + 2] -= s2
            matrix[p, l + 3] -= s3


@kernel
def _direction(
    y: np.ndarray,
    share: np.ndarray,
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
        eliminate(y, share, k, m, count, matrix, column, du, dv)
        for p in range(k):
            if held_u[p]:
                du[p] = max(low_u[p] - u[p], -1.0) * (r[p] > 0.0)
        part = min(at_most(u, low_u, du, held_u, k), at_most(v, low_v, dv, held_v, m))
        if part == 1.0:
            break
        hold(part, u, low_u, du, held_u, k)
        hold(part, v, low_v, dv, held_v, m)


@summing
def eliminate(
    y: np.ndarray,
    share: np.ndarray,
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
    fixed = 0
    for q in range(m):
        fixed += count[q] == np.inf
    for p in range(k):
        if matrix[p, p] == np.inf:
            for q in range(m):
                dv[q] -= y[p, q] * du[p] if count[q] < np.inf else 0.0
        elif fixed:
            for q in range(m):
                du[p] -= y[p, q] * dv[q] if count[q] == np.inf else 0.0
    _schur(y, k, m, count, share, matrix)
    for q in range(m):
        dv[q] /= count[q] if count[q] < np.inf else 1.0
    for p in range(k):
        shift = 0.0
        for q in range(m):
            shift += y[p, q] * dv[q] if count[q] < np.inf else 0.0
        du[p] = du[p] - shift if matrix[p, p] < np.inf else 0.0
    factor(matrix, k, column)
    substitute(matrix, k, du)
    fill(share, m, 0.0)
    for p in range(k):
        for q in range(m):
            share[q] += y[p, q] * du[p]
    for q in range(m):
        dv[q] -= share[q] / count[q]


@summing
def _weighted(
    value: np.ndarray,
    grad: np.ndarray,
    k: int,
    m: int,
    flip: bool,
    y: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
) -> None:
    """y, filled up with zeros, and the sums of its rows and of its columns weighted by `grad`."""
    fill(beta, m, 0.0)
    for p in range(k):
        reached = 0.0
        if flip:
            for q in range(m):
                y[p, q] = value[q, p]
                term = value[q, p] * grad[q, p]
                reached += term
                beta[q] += term
        else:
            for q in range(m):
                y[p, q] = value[p, q]
                term = value[p, q] * grad[p, q]
                reached += term
                beta[q] += term
        alpha[p] = reached
        for q in range(m, _whole(m, ROWS)):
            y[p, q] = 0.0
    for p in range(k, _whole(k, ROWS)):
        fill(y[p], _whole(m, ROWS), 0.0)


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
    small, large = _whole(small, ROWS), _whole(large, ROWS)
    y, pattern = np.empty((small, large)), np.empty((small, large))
    share = np.empty(large)
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
        _weighted(value[i], grad[i], k, m, flip, y, alpha, beta)
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
        eliminate(y, share, k, m, count, matrix, column, alpha, beta)
        for p in range(k):
            shift = alpha[p]
            if flip:
                for q in range(m):
                    pulled[i, q, p] = y[p, q] * (grad[i, q, p] - shift - beta[q])
                column_pulled[i, p] = shift
            else:
                for q in range(m):
                    pulled[i, p, q] = y[p, q] * (grad[i, p, q] - shift - beta[q])
                row_pulled[i, p] = shift
        for q in range(m):
            if flip:
                row_pulled[i, q] = beta[q]
            else:
                column_pulled[i, q] = beta[q]
