"""The assignment problem by shortest augmenting paths, an instance at a time.

maximize sum of s_ij over matchings of rows with columns. The smaller side is wholly matched
(`perfect`), or any matching will do: then a row of the smaller side may also end at a place of its
own, of score 0, which costs one comparison a step and no column.

Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear assignment
problems" (1987): column reduction (square problems only), augmenting row reduction, then Dijkstra
from each row that is still free. The prices v make every reduced cost c_ij - u_i - v_j >= 0.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.vectors import fill

__all__ = ["assign"]

FREE = -1
OWN_PLACE = -2


@kernel
def assign(
    first: int,
    last: int,
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    sizes: np.ndarray,
    perfect: bool,
    match: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
    found: np.ndarray,
) -> None:
    """Best matchings and their prices.

    Reads `scores` (n, N, M), `keep` (n, N, M) where `masked`, and `sizes` (n, 2), of which only the
    leading block counts. Writes `match` (n, N), each row's column or -1; prices with s_ij <= row_i +
    column_j and equality where matched, >= 0 on a side that may stay unmatched and 0 where it does;
    `found` (n,), whether a matching exists.
    """
    small, large = min(scores.shape[1], scores.shape[2]), max(scores.shape[1], scores.shape[2])
    cost = np.empty((small, large))
    u, v, distance = np.empty(small), np.empty(large), np.empty(large)
    place, owner = np.empty(small, np.int64), np.empty(large, np.int64)
    before, todo = np.empty(large, np.int64), np.empty(large, np.int64)
    queue = np.empty(small, np.int64)
    for i in range(first, last):
        rows, columns = sizes[i, 0], sizes[i, 1]
        flip = rows > columns
        k, m = (columns, rows) if flip else (rows, columns)
        _load(scores[i], keep[i if masked else 0], masked, flip, cost, k, m)
        square = perfect and k == m
        found[i] = _solve(cost, k, m, square, perfect, place, owner, v, distance, before, todo, queue)
        if not found[i]:
            continue
        _row_prices(cost, k, place, v, u)
        match[i, :] = FREE
        for p in range(k):
            if place[p] >= 0:
                if flip:
                    match[i, place[p]] = p
                else:
                    match[i, p] = place[p]
        for p in range(k):
            if flip:
                column_price[i, p] = -u[p]
            else:
                row_price[i, p] = -u[p]
        for q in range(m):
            if flip:
                row_price[i, q] = -v[q]
            else:
                column_price[i, q] = -v[q]


@kernel
def _load(
    scores: np.ndarray,
    keep: np.ndarray,
    masked: bool,
    flip: bool,
    cost: np.ndarray,
    k: int,
    m: int,
) -> None:
    """Costs (k, m), the smaller side first: minus the scores, inf where excluded."""
    for p in range(k):
        for q in range(m):
            cost[p, q] = -scores[q, p] if flip else -scores[p, q]
    if masked:
        for p in range(k):
            for q in range(m):
                if not (keep[q, p] if flip else keep[p, q]):
                    cost[p, q] = np.inf


@kernel
def _row_prices(cost: np.ndarray, k: int, place: np.ndarray, v: np.ndarray, u: np.ndarray) -> None:
    """u_i = c_ij - v_j at each row's column j, 0 at a place of its own."""
    for p in range(k):
        u[p] = cost[p, place[p]] - v[place[p]] if place[p] >= 0 else 0.0


@kernel
def _solve(
    cost: np.ndarray,
    k: int,
    m: int,
    square: bool,
    perfect: bool,
    place: np.ndarray,
    owner: np.ndarray,
    v: np.ndarray,
    distance: np.ndarray,
    before: np.ndarray,
    todo: np.ndarray,
    queue: np.ndarray,
) -> bool:
    """Each row's column in `place`, or OWN_PLACE; false where no matching exists."""
    fill(place, k, FREE)
    fill(owner, m, FREE)
    fill(v, m, 0.0)
    if square and not _reduce_columns(cost, k, place, owner, v, before):
        return False
    count = 0
    for p in range(k):
        if place[p] == FREE:
            queue[count] = p
            count += 1
    for _ in range(2):
        count = _reduce_rows(cost, m, perfect, place, owner, v, queue, count)
    for f in range(count):
        if not _augment(cost, m, queue[f], perfect, place, owner, v, distance, before, todo):
            return False
    return True


@kernel
def _reduce_columns(
    cost: np.ndarray,
    k: int,
    place: np.ndarray,
    owner: np.ndarray,
    v: np.ndarray,
    best: np.ndarray,
) -> bool:
    """Prices every column at its least cost, and gives it to that row if the row is free."""
    fill(v, k, np.inf)
    fill(best, k, 0)
    for p in range(k):
        for q in range(k):
            if cost[p, q] < v[q]:
                v[q] = cost[p, q]
                best[q] = p
    for q in range(k - 1, -1, -1):
        if v[q] == np.inf:
            return False
        if place[best[q]] == FREE:
            place[best[q]] = q
            owner[q] = best[q]
    return True


@kernel
def _reduce_rows(
    cost: np.ndarray,
    m: int,
    perfect: bool,
    place: np.ndarray,
    owner: np.ndarray,
    v: np.ndarray,
    queue: np.ndarray,
    count: int,
) -> int:
    """Every free row takes its best column, whose price falls until its second best is as good.

    A row put out of its column goes next where the price fell, and to the next pass elsewhere.
    Writes the rows that stay free into the queue's front; their number is returned.
    """
    kept, position = 0, 0
    budget = 4 * m + 8 * count  # prices in floating point can fall for very long
    while position < count:
        p = queue[position]
        position += 1
        least, second, at, other = np.inf, np.inf, FREE, FREE
        if not perfect:
            least, at = 0.0, OWN_PLACE
        row = cost[p]
        for q in range(m):
            reduced = row[q] - v[q]
            if reduced < second:
                if reduced < least:
                    second, other = least, at
                    least, at = reduced, q
                else:
                    second, other = reduced, q
        if at == OWN_PLACE:
            place[p] = OWN_PLACE
            continue
        if second == np.inf:  # one column at most: no price says what it is worth
            queue[kept] = p
            kept += 1
            continue
        lowered = v[at] - (second - least)
        falls = lowered < v[at]
        if falls:
            v[at] = lowered
        elif owner[at] != FREE:
            if other == OWN_PLACE:
                place[p] = OWN_PLACE
                continue
            at = other
        out = owner[at]
        place[p] = at
        owner[at] = p
        if out != FREE:
            place[out] = FREE
            budget -= 1
            if falls and budget > 0:
                position -= 1
                queue[position] = out
            else:
                queue[kept] = out
                kept += 1
    return kept


@kernel
def _augment(
    cost: np.ndarray,
    m: int,
    start: int,
    perfect: bool,
    place: np.ndarray,
    owner: np.ndarray,
    v: np.ndarray,
    distance: np.ndarray,
    before: np.ndarray,
    todo: np.ndarray,
) -> bool:
    """A shortest path from a free row to a free column (or to some row's own place), and its flip."""
    for q in range(m):
        distance[q] = cost[start, q] - v[q]
        before[q] = start
        todo[q] = q
    left = m
    own, own_row = np.inf, FREE
    if not perfect:
        own, own_row = 0.0, start
    end, low = FREE, np.inf
    while True:
        low, index = np.inf, FREE
        for t in range(left):
            q = todo[t]
            if distance[q] < low or (distance[q] == low and owner[q] == FREE):
                low, index = distance[q], t
        if own <= low and own_row != FREE:
            low = own
            break
        if index == FREE or low == np.inf:
            return False
        column = todo[index]
        left -= 1
        todo[index] = todo[left]
        todo[left] = column
        if owner[column] == FREE:
            end = column
            break
        p = owner[column]
        row = cost[p]
        shift = row[column] - v[column] - low
        if not perfect and -shift < own:
            own, own_row = -shift, p
        for t in range(left):
            q = todo[t]
            through = row[q] - v[q] - shift
            if through < distance[q]:
                distance[q] = through
                before[q] = p
    for t in range(left, m):
        q = todo[t]
        v[q] += min(distance[q] - low, 0.0)
    if end == FREE:
        p = own_row
        end = place[p]
        place[p] = OWN_PLACE
        if p == start:
            return True
    while True:
        p = before[end]
        owner[end] = p
        end, place[p] = place[p], end
        if p == start:
            return True
