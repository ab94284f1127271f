"""Euclidean projection onto row and column sums, by a semismooth Newton method on its dual.

With {y >= 0 : row sums = (or <=) a, column sums = (or <=) b} the projection of s is
y_ij = (s_ij - u_i - v_j)+, where u_i is free for an equation and >= 0 for an inequality, and (u, v)
minimises the convex, piecewise quadratic dual sum of y^2 / 2 + <a, u> + <b, v>. Its generalised
Hessian [[D_r, W], [W', D_c]] has the support's indicator W, and the row and column counts D. The
columns are eliminated (they are the larger side), which leaves one Cholesky factor of the smaller
side's size a step.

Where entries of y end within rounding of 0, a step for the support alone may part it into blocks whose
prices then run away from each other, and is cut short. Every other such step counts the entries within
the error of 0 as support too.

All is done on s_ij - u0_i - v0_j, the prices u0, v0 of the best vertex: what matters is then of the
size of the masses, whatever the scores' scale, and peaked scores start next to their answer.

Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the projector over the
Birkhoff polytope" (2020).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.bounds import at_most, bounded, hold, largest_error, within
from spigot.polytopes.kernels.cholesky import factor, substitute
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.vectors import clear, copy, fill

__all__ = ["eliminate", "project"]

MAX_STEPS = 300
TRIALS = 40
BOUND_ROUNDS = 20
SMALL = 1e-10  # an error, relative to the largest mass, that may cease to be halved by a step:
ROUNDED = 1e-12  # below this by rounding,
STALLS = 3  # and so many such steps are enough;
TIED_STALLS = 30  # above by entries that are nearly 0 and come and go


@kernel
def project(
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
    objective: np.ndarray,
    steps: np.ndarray,
    error: np.ndarray,
) -> None:
    """Projections, with their multipliers.

    Reads `scores` (n, N, M), `keep`, `sizes` (n, 2), masses (n, N) and (n, M), whether each side's
    sums are equations (n,), and starting prices (n, N) and (n, M), which become the multipliers.
    Writes `value` (n, N, M) in the leading block, the `objective` (n,), the Newton `steps` (n,) and
    the largest `error` (n,) of a row or column sum.
    """
    small, large = min(scores.shape[1], scores.shape[2]), max(scores.shape[1], scores.shape[2])
    x = np.empty((small, large))
    a, b = np.empty(small), np.empty(large)
    u0, v0 = np.empty(small), np.empty(large)
    u, v = np.empty(small), np.empty(large)
    work = np.empty((14, large))
    pattern = np.empty((large, small), np.int32)
    matrix, column = np.empty((small, small)), np.empty((4, small))
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        copy(column_mass[i] if flip else row_mass[i], a, k)
        copy(row_mass[i] if flip else column_mass[i], b, m)
        copy(column_price[i] if flip else row_price[i], u0, k)
        copy(row_price[i] if flip else column_price[i], v0, m)
        for p in range(k):
            for q in range(m):
                s = scores[i, q, p] if flip else scores[i, p, q]
                x[p, q] = s - u0[p] - v0[q]
        if masked:
            for p in range(k):
                for q in range(m):
                    if not (keep[i, q, p] if flip else keep[i, p, q]):
                        x[p, q] = -np.inf
        u_exact = column_exact[i] if flip else row_exact[i]
        v_exact = row_exact[i] if flip else column_exact[i]
        steps[i], error[i] = _minimise(
            x, k, m, a, b, u0, v0, u_exact, v_exact, u, v, work, pattern, matrix, column
        )
        energy = 0.0
        for p in range(k):
            for q in range(m):
                y = max(x[p, q] - u[p] - v[q], 0.0)
                if y > 0.0:
                    r, c = (q, p) if flip else (p, q)
                    value[i, r, c] = y
                    energy += y * (scores[i, r, c] - 0.5 * y)
        objective[i] = energy
        for p in range(k):
            if flip:
                column_price[i, p] = u0[p] + u[p]
            else:
                row_price[i, p] = u0[p] + u[p]
        for q in range(m):
            if flip:
                row_price[i, q] = v0[q] + v[q]
            else:
                column_price[i, q] = v0[q] + v[q]


@kernel
def _excess(
    x: np.ndarray,
    k: int,
    m: int,
    a: np.ndarray,
    b: np.ndarray,
    u: np.ndarray,
    v: np.ndarray,
    gu: np.ndarray,
    gv: np.ndarray,
) -> float:
    """The sums of y over the masses, minus the dual's gradient; returns the dual."""
    dual = _sums(x, k, m, u, v, gu, gv)
    for p in range(k):
        gu[p] -= a[p]
        dual += a[p] * u[p]
    for q in range(m):
        gv[q] -= b[q]
        dual += b[q] * v[q]
    return dual


@kernel
def _sums(
    x: np.ndarray, k: int, m: int, u: np.ndarray, v: np.ndarray, r: np.ndarray, c: np.ndarray
) -> float:
    """Row sums r and column sums c of y = (x - u - v)+; returns sum of y^2 / 2."""
    fill(c, m, 0.0)
    energy = 0.0
    for p in range(k):
        row, up = x[p], u[p]
        total, square = 0.0, 0.0
        for q in range(m):
            y = max(row[q] - up - v[q], 0.0)
            c[q] += y
            total += y
            square += y * y
        r[p] = total
        energy += 0.5 * square
    return energy


@kernel
def _minimise(
    x: np.ndarray,
    k: int,
    m: int,
    a: np.ndarray,
    b: np.ndarray,
    u0: np.ndarray,
    v0: np.ndarray,
    u_exact: bool,
    v_exact: bool,
    u: np.ndarray,
    v: np.ndarray,
    work: np.ndarray,
    pattern: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
) -> tuple[int, float]:
    """The dual's minimiser (u, v), relative to (u0, v0), by a projected Newton method."""
    gu, gv, du, dv = work[0], work[1], work[2], work[3]
    tu, tv, hu, hv = work[4], work[5], work[6], work[7]
    low_u, low_v, count, spare = work[8], work[9], work[10], work[11]
    held_u, held_v = work[12], work[13]
    for p in range(k):
        low_u[p] = -np.inf if u_exact else -u0[p]
        u[p] = 0.0
    for q in range(m):
        low_v[q] = -np.inf if v_exact else -v0[q]
        v[q] = 0.0
    scale = 0.0
    for p in range(k):
        scale = max(scale, a[p])
    for q in range(m):
        scale = max(scale, b[q])
    _row_step(x, k, m, a, low_u, u, v)
    target = 2e-15 * scale
    dual = _excess(x, k, m, a, b, u, v, gu, gv)
    error = max(largest_error(gu, u, low_u, k), largest_error(gv, v, low_v, m))
    stalls = 0
    for step in range(MAX_STEPS):
        if error <= target or stalls > (STALLS if error <= ROUNDED * scale else TIED_STALLS):
            return step, error
        _direction(
            x,
            k,
            m,
            u,
            v,
            low_u,
            low_v,
            gu,
            gv,
            error / scale,
            error if stalls % 2 else 0.0,
            du,
            dv,
            pattern,
            matrix,
            column,
            count,
            spare,
            held_u,
            held_v,
        )
        slope = _slope(gu, u, low_u, du, k) + _slope(gv, v, low_v, dv, m)
        noise = 1e-15 * (k + m) * scale * scale
        alpha, low, high, slope_low = 1.0, 0.0, np.inf, slope
        new, new_error = dual, error
        for _ in range(TRIALS):
            for p in range(k):
                tu[p] = bounded(u[p] + alpha * du[p], low_u[p])
            for q in range(m):
                tv[q] = bounded(v[q] + alpha * dv[q], low_v[q])
            new = _excess(x, k, m, a, b, tu, tv, hu, hv)
            along = _slope(hu, tu, low_u, du, k) + _slope(hv, tv, low_v, dv, m)
            new_error = max(largest_error(hu, tu, low_u, k), largest_error(hv, tv, low_v, m))
            lower = new <= dual + 1e-4 * alpha * min(slope, 0.0) + noise
            if lower and (new_error <= 0.5 * error or abs(along) <= 0.7 * abs(slope)):
                break
            if lower and along < 0.0:
                low, slope_low = alpha, along
            else:
                high = alpha
            alpha = alpha * 4.0 if high == np.inf else within(low, high, slope_low, along)
        stalls = stalls + 1 if error <= SMALL * scale and new_error >= 0.5 * error else 0
        dual, error = new, new_error
        copy(tu, u, k)
        copy(tv, v, m)
        copy(hu, gu, k)
        copy(hv, gv, m)
    return MAX_STEPS, error


@kernel
def _slope(g: np.ndarray, t: np.ndarray, low: np.ndarray, d: np.ndarray, n: int) -> float:
    """The dual's slope along d, over the multipliers that it can move."""
    total = 0.0
    for p in range(n):
        if t[p] > low[p] or d[p] > 0.0:
            total -= g[p] * d[p]
    return total


@kernel
def _row_step(
    x: np.ndarray, k: int, m: int, a: np.ndarray, low: np.ndarray, u: np.ndarray, v: np.ndarray
) -> None:
    """u at its best for this v: a projection of each row onto its simplex, by Newton's method."""
    for p in range(k):
        row = x[p]
        top = -np.inf
        for q in range(m):
            top = max(top, row[q] - v[q])
        t = top - a[p] if top > -np.inf else 0.0
        for _ in range(50):
            total, many = 0.0, 0
            for q in range(m):
                y = row[q] - v[q] - t
                if y > 0.0:
                    total += y
                    many += 1
            if many == 0 or total <= a[p] * (1 + 1e-12):
                break
            t += (total - a[p]) / many
        u[p] = max(t, low[p])


@kernel
def _direction(
    x: np.ndarray,
    k: int,
    m: int,
    u: np.ndarray,
    v: np.ndarray,
    low_u: np.ndarray,
    low_v: np.ndarray,
    gu: np.ndarray,
    gv: np.ndarray,
    error: float,
    nearly: float,
    du: np.ndarray,
    dv: np.ndarray,
    pattern: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
    count: np.ndarray,
    spare: np.ndarray,
    held_u: np.ndarray,
    held_v: np.ndarray,
) -> None:
    """(H + ridge)^-1 g over the multipliers that are not held at their bound, nor sent beyond it.

    The support is where x - u - v is above -`nearly`.
    """
    ridge = min(1e-3, 0.1 * error) + 1e-12
    for q in range(m):
        spare[q] = 0.0
        held_v[q] = v[q] <= low_v[q] and gv[q] <= 0.0
    for p in range(k):
        held_u[p] = u[p] <= low_u[p] and gu[p] <= 0.0
        for q in range(m):
            if x[p, q] - u[p] - v[q] > -nearly:
                pattern[q, int(spare[q])] = p
                spare[q] += 1.0
    for _ in range(BOUND_ROUNDS):
        clear(matrix, k)
        for p in range(k):
            matrix[p, p] = np.inf if held_u[p] else ridge
            du[p] = low_u[p] - u[p] if held_u[p] else gu[p]
        for q in range(m):
            count[q] = np.inf if held_v[q] else spare[q] + ridge
            dv[q] = low_v[q] - v[q] if held_v[q] else gv[q]
        eliminate(pattern, spare, k, m, count, matrix, column, du, dv)
        for p in range(k):
            if held_u[p]:
                du[p] = low_u[p] - u[p]
        part = min(at_most(u, low_u, du, held_u, k), at_most(v, low_v, dv, held_v, m))
        if part == 1.0:
            break
        hold(part, u, low_u, du, held_u, k)
        hold(part, v, low_v, dv, held_v, m)


@kernel
def eliminate(
    pattern: np.ndarray,
    many: np.ndarray,
    k: int,
    m: int,
    count: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
    du: np.ndarray,
    dv: np.ndarray,
) -> None:
    """Solves [[diag + W 1, W], [W', count]] (du, dv) = (du, dv), W's columns given by the `pattern`.

    An unknown with an infinite entry on the diagonal is given, and a given du comes back as 0.
    """
    for q in range(m):
        shift, weight = dv[q], 1.0 / count[q]
        free = count[q] < np.inf
        for i in range(int(many[q])):
            p = pattern[q, i]
            if matrix[p, p] == np.inf:
                shift -= du[p] if free else 0.0
                continue
            matrix[p, p] += 1.0
            if free:
                for j in range(i + 1):
                    matrix[p, pattern[q, j]] -= weight
        dv[q] = shift
        for i in range(int(many[q])):
            p = pattern[q, i]
            if matrix[p, p] < np.inf:
                du[p] -= shift * weight if free else shift
    for p in range(k):
        if matrix[p, p] == np.inf:
            du[p] = 0.0
    factor(matrix, k, column)
    substitute(matrix, k, du)
    for q in range(m):
        if count[q] < np.inf:
            for i in range(int(many[q])):
                dv[q] -= du[pattern[q, i]]
            dv[q] /= count[q]
