"""The face of {y >= 0 : row sums = (or <=) a, column sums = (or <=) b} that an answer is exposed in.

Given a projection y_ij = (x_ij)+, x = s - u - v, the face holds the flows through entries with x >= 0
(no multiplier) whose row and column sums keep to the masses, and to equality where a multiplier says
so. An entry can be positive on the face exactly if its row and column are strongly connected in y's
residual graph: an arc from row to column for an entry that may grow, back where it may shrink, and a
ground node that stands for the slack of rows and columns without a multiplier.

The projection of g onto the face's directions is g_ij - alpha_i - beta_j on those entries, where
(alpha, beta) makes its constrained sums zero: the Newton matrix of the projection itself, which is
singular for each component without slack; there one multiplier is fixed at zero.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.bipartite.bipartite_newton import eliminate
from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.vectors import clear, fill

__all__ = ["loose", "pull", "slack", "strong", "usable"]


@kernel
def pull(
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
    tolerance: float,
    grad: np.ndarray,
    pulled: np.ndarray,
    row_pulled: np.ndarray,
    column_pulled: np.ndarray,
) -> None:
    """The projection of `grad` (n, N, M) onto each answer's exposed face.

    Reads the problem as `bipartite_newton.project` does, with the multipliers that it found. Writes
    `pulled` (n, N, M), and the derivative by the masses, (n, N) and (n, M), whose component sums are
    as small as can be.
    """
    small, large = min(scores.shape[1], scores.shape[2]), max(scores.shape[1], scores.shape[2])
    x, g = np.empty((small, large)), np.empty((small, large))
    group = np.empty(small + large + 1, np.int64)
    walk = np.empty((5, small + large + 1), np.int64)
    ground = np.empty((2, small + large), np.bool_)
    sums = np.empty((4, large))
    pattern = np.empty((large, small), np.int32)
    matrix, column = np.empty((small, small)), np.empty((4, small))
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        for p in range(k):
            for q in range(m):
                r, c = (q, p) if flip else (p, q)
                g[p, q] = grad[i, r, c]
                x[p, q] = scores[i, r, c] - row_price[i, r] - column_price[i, c]
                if masked and not keep[i, r, c]:
                    x[p, q] = -np.inf
        slack(
            x,
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
        strong(x, k, m, tolerance, ground, group, walk)
        alpha, beta = sums[0], sums[1]
        _solve(
            x, g, k, m, tolerance, ground, group, alpha, beta, sums[2], sums[3], pattern, matrix, column
        )
        for p in range(k):
            for q in range(m):
                inside = x[p, q] >= -tolerance and group[p] == group[k + q]
                value = g[p, q] - alpha[p] - beta[q] if inside else 0.0
                if flip:
                    pulled[i, q, p] = value
                else:
                    pulled[i, p, q] = value
        _centre(k, m, group, alpha, beta)
        for p in range(k):
            if flip:
                column_pulled[i, p] = alpha[p]
            else:
                row_pulled[i, p] = alpha[p]
        for q in range(m):
            if flip:
                row_pulled[i, q] = beta[q]
            else:
                column_pulled[i, q] = beta[q]


@kernel
def usable(
    first: int,
    last: int,
    keep: np.ndarray,
    sizes: np.ndarray,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    row_exact: np.ndarray,
    column_exact: np.ndarray,
    value: np.ndarray,
) -> None:
    """Clears `keep` (n, N, M) where no point of the set is positive, given one point `value` of it."""
    small, large = min(keep.shape[1], keep.shape[2]), max(keep.shape[1], keep.shape[2])
    x = np.empty((small, large))
    group = np.empty(small + large + 1, np.int64)
    walk = np.empty((5, small + large + 1), np.int64)
    ground = np.empty((2, small + large), np.bool_)
    sums = np.empty((2, large))
    none = np.zeros(large)
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        for p in range(k):
            for q in range(m):
                r, c = (q, p) if flip else (p, q)
                x[p, q] = value[i, r, c] if keep[i, r, c] else -np.inf
        slack(
            x,
            k,
            m,
            0.0,
            flip,
            row_mass[i],
            column_mass[i],
            row_exact[i],
            column_exact[i],
            none,
            none,
            sums,
            ground,
        )
        strong(x, k, m, 0.0, ground, group, walk)
        for p in range(k):
            for q in range(m):
                if group[p] != group[k + q]:
                    if flip:
                        keep[i, q, p] = False
                    else:
                        keep[i, p, q] = False


@kernel
def slack(
    x: np.ndarray,
    k: int,
    m: int,
    tolerance: float,
    flip: bool,
    row_mass: np.ndarray,
    column_mass: np.ndarray,
    row_exact: bool,
    column_exact: bool,
    row_price: np.ndarray,
    column_price: np.ndarray,
    sums: np.ndarray,
    ground: np.ndarray,
) -> None:
    """Whether the sum of each of the k + m nodes may grow (ground[0]) and shrink (ground[1])."""
    _sums(x, k, m, sums[0], sums[1])
    for t in range(k + m):
        rowlike = (t < k) != flip
        index = t if t < k else t - k
        total = sums[0, index] if t < k else sums[1, index]
        mass = row_mass[index] if rowlike else column_mass[index]
        price = row_price[index] if rowlike else column_price[index]
        loose = not (row_exact if rowlike else column_exact) and price <= tolerance
        ground[0, t] = loose and total < mass - tolerance
        ground[1, t] = loose and total > tolerance


@summing
def _sums(x: np.ndarray, k: int, m: int, row: np.ndarray, column: np.ndarray) -> None:
    """Row sums and column sums of x+."""
    fill(column, m, 0.0)
    for p in range(k):
        total = 0.0
        for q in range(m):
            y = max(x[p, q], 0.0)
            total += y
            column[q] += y
        row[p] = total


@kernel
def _arc(x: np.ndarray, k: int, m: int, tolerance: float, ground: np.ndarray, t: int, to: int) -> bool:
    """Whether the residual graph has this arc; rows are 0..k-1, then columns, then the ground."""
    if t == k + m:
        return ground[0, to] if to < k else ground[1, to]
    if to == k + m:
        return ground[1, t] if t < k else ground[0, t]
    if t < k:
        return x[t, to - k] >= -tolerance
    return x[to, t - k] > tolerance


@kernel
def strong(
    x: np.ndarray,
    k: int,
    m: int,
    tolerance: float,
    ground: np.ndarray,
    group: np.ndarray,
    walk: np.ndarray,
) -> None:
    """Tarjan's strongly connected components of the residual graph, without recursion."""
    n = k + m + 1
    order, low, following, path, stack = walk[0], walk[1], walk[2], walk[3], walk[4]
    fill(order, n, -1)
    fill(group, n, -1)
    time, groups, held = 0, 0, 0
    for root in range(n):
        if order[root] >= 0:
            continue
        depth = 1
        path[0] = root
        while depth > 0:
            t = path[depth - 1]
            if order[t] < 0:
                order[t] = low[t] = time
                time += 1
                stack[held] = t
                held += 1
                following[t] = k if t < k else 0
            to = following[t]
            end = k if k <= t < k + m else k + m  # of the neighbours, the ground aside
            while to < end and not _arc(x, k, m, tolerance, ground, t, to):
                to += 1
            if to == end and t < k + m:
                to = k + m if _arc(x, k, m, tolerance, ground, t, k + m) else n
            if to == end and t == k + m:
                to = n
            if to < n and following[t] < n:
                following[t] = to + 1 if to < k + m else n
                if order[to] < 0:
                    path[depth] = to
                    depth += 1
                elif group[to] < 0:
                    low[t] = min(low[t], order[to])
                continue
            depth -= 1
            if depth > 0:
                low[path[depth - 1]] = min(low[path[depth - 1]], low[t])
            if low[t] == order[t]:
                while True:
                    held -= 1
                    group[stack[held]] = groups
                    if stack[held] == t:
                        break
                groups += 1


@kernel
def _solve(
    x: np.ndarray,
    g: np.ndarray,
    k: int,
    m: int,
    tolerance: float,
    ground: np.ndarray,
    group: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    count: np.ndarray,
    spare: np.ndarray,
    pattern: np.ndarray,
    matrix: np.ndarray,
    column: np.ndarray,
) -> None:
    """(alpha, beta) with zero sums of g - alpha - beta at the constrained rows and columns."""
    clear(matrix, k)
    fill(count, m, 0.0)
    fill(beta, m, 0.0)
    for p in range(k):
        many, alpha[p] = 0.0, 0.0
        for q in range(m):
            if x[p, q] >= -tolerance and group[p] == group[k + q]:
                pattern[q, int(count[q])] = p
                count[q] += 1.0
                many += 1.0
                alpha[p] += g[p, q]
                beta[q] += g[p, q]
        fixed = loose(group, ground, k, m, p)
        if group[p] != group[k + m]:
            fixed = True  # the first row of a component without slack
            for before in range(p):
                if group[before] == group[p]:
                    fixed = False
        matrix[p, p] = np.inf if fixed or many == 0.0 else 0.0
        if fixed:
            alpha[p] = 0.0
    for q in range(m):
        spare[q] = count[q]
        if count[q] == 0.0 or loose(group, ground, k, m, k + q):
            beta[q], spare[q] = 0.0, np.inf
    eliminate(pattern, count, k, m, spare, matrix, column, alpha, beta)


@kernel
def loose(group: np.ndarray, ground: np.ndarray, k: int, m: int, t: int) -> bool:
    """Whether the face leaves this node's sum free."""
    return group[t] == group[k + m] and (ground[0, t] or ground[1, t])


@kernel
def _centre(
    k: int,
    m: int,
    group: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
) -> None:
    """Takes out of (alpha, -beta) its mean over each component without slack."""
    for p in range(k):
        if group[p] == group[k + m]:
            continue
        fresh = True
        for before in range(p):
            if group[before] == group[p]:
                fresh = False
        if not fresh:
            continue
        shift, size = 0.0, 0
        for t in range(k + m):
            if group[t] == group[p]:
                shift += alpha[t] if t < k else -beta[t - k]
                size += 1
        for t in range(k + m):
            if group[t] == group[p]:
                if t < k:
                    alpha[t] -= shift / size
                else:
                    beta[t - k] += shift / size
