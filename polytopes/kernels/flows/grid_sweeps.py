"""Cheapest paths over the cells of grids, many grids at once: sweeps until nothing falls.

A sweep goes through the rows in one direction and lowers each cell's distance by the neighbours that
it has passed; the next one goes the other way. Grids stand side by side in the last dimension, so that
one instruction serves several. A row is passed over while neither it nor the row before it has
changed since. With costs >= 0 the distances end at the least sums over paths, added from the source
on: the same numbers in whatever order cells are taken, and whichever grids stand beside.

Zhao, "A fast sweeping method for Eikonal equations" (Mathematics of Computation 2005), for the order.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["sweep_cells"]

LANES = 16


@kernel
def sweep_cells(
    first: int,
    last: int,
    moves: np.ndarray,
    width: int,
    sizes: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    feasible: np.ndarray,
    left: np.ndarray,
) -> None:
    """Cells of cheapest paths of costs -scores, of fewest cells at ties.

    Instances with a positive score are `left` for another road.
    """
    h, w = 0, 0
    for i in range(first, last):
        h, w = max(h, sizes[i, 0]), max(w, sizes[i, 1])
    wide = w + 2
    cells = (h + 2) * wide
    cost, dist = np.full((cells, LANES), np.inf), np.empty((cells, LANES))
    onward, queue = np.empty(cells, np.int64), np.empty(cells, np.int64)
    offsets = _offsets(moves, wide)
    i = first
    while i < last:
        start, count = i, min(LANES, last - i)
        dist[:] = np.inf
        for lane in range(count):
            i = start + lane
            _fill(i, lane, sizes[i, 0], sizes[i, 1], h, w, width, scores, keep, cost, left)
            cell = (source[i, 0] + 1) * wide + source[i, 1] + 1
            feasible[i] = cost[cell, lane] < np.inf
            if feasible[i]:
                dist[cell, lane] = 0.0
        _settle(h, w, offsets, cost, dist)
        for lane in range(count):
            i = start + lane
            s = (source[i, 0] + 1) * wide + source[i, 1] + 1
            t = (target[i, 0] + 1) * wide + target[i, 1] + 1
            feasible[i] &= dist[t, lane] < np.inf
            if left[i] or not feasible[i]:
                continue
            _trace(s, t, lane, offsets, cost, dist, onward, queue)
            while True:
                out[i, (s // wide - 1) * width + s % wide - 1] = 1
                if s == t:
                    break
                s = onward[s]
        i = start + count


@kernel
def _offsets(moves: np.ndarray, wide: int) -> np.ndarray:  # (4,)
    """Where the neighbours before a cell lie in row order; those after lie opposite.

    Two moves are named twice where there are only two.
    """
    offsets = np.zeros(4, np.int64)
    count = 0
    for m in range(len(moves)):
        offset = moves[m, 0] * wide + moves[m, 1]
        if offset < 0:
            offsets[count] = offset
            count += 1
    for m in range(count, 4):
        offsets[m] = offsets[m - count]
    return offsets


@kernel
def _fill(
    i: int,
    lane: int,
    rows: int,
    columns: int,
    h: int,
    w: int,
    width: int,
    scores: np.ndarray,
    keep: np.ndarray,
    cost: np.ndarray,
    left: np.ndarray,
) -> None:
    """Instance i's costs, inf where there is no cell; none at all if it is left."""
    left[i] = False
    for r in range(rows):
        for c in range(columns):
            cell = r * width + c
            if scores[i, cell] > 0.0 and (not keep.shape[0] or keep[i, cell]):
                left[i] = True
    for r in range(h):
        at = (r + 1) * (w + 2) + 1
        for c in range(w):
            cost[at + c, lane] = np.inf
            inside = r < rows and c < columns and not left[i]
            if inside and (not keep.shape[0] or keep[i, r * width + c]):
                cost[at + c, lane] = -scores[i, r * width + c]


@kernel
def _settle(h: int, w: int, offsets: np.ndarray, cost: np.ndarray, dist: np.ndarray) -> None:
    """Sweeps down and up until no distance falls."""
    wide = w + 2
    stale = np.ones((2, h + 2), np.bool_)
    backward, fell = False, True
    one, two, three, four = offsets[0], offsets[1], offsets[2], offsets[3]
    while fell or backward:
        fell = False
        side, step = (1, -1) if backward else (0, 1)
        for k in range(h):
            r = h - k if backward else k + 1
            if not stale[side, r]:
                continue
            stale[side, r] = False
            cell, lower = r * wide + (w if backward else 1), 0
            for _ in range(w):
                a, b = dist[cell + step * one], dist[cell + step * two]
                c, d = dist[cell + step * three], dist[cell + step * four]
                own, price = dist[cell], cost[cell]
                for lane in range(LANES):
                    ab = a[lane] if a[lane] < b[lane] else b[lane]
                    cd = c[lane] if c[lane] < d[lane] else d[lane]
                    through = (ab if ab < cd else cd) + price[lane]
                    lower += through < own[lane]
                    own[lane] = through if through < own[lane] else own[lane]
                cell += step
            if lower:
                fell = True
                stale[0, r + 1] = stale[1, r - 1] = stale[1 - side, r] = True
        backward = not backward


@kernel
def _trace(
    s: int,
    t: int,
    lane: int,
    offsets: np.ndarray,
    cost: np.ndarray,
    dist: np.ndarray,
    onward: np.ndarray,
    queue: np.ndarray,
) -> None:
    """Writes the way `onward` from s to t by fewest cells, among steps that lose nothing."""
    onward[:] = -1
    onward[t] = t
    queue[0] = t
    done, count = 0, 1
    while onward[s] < 0:
        v = queue[done]
        done += 1
        for m in range(2 * len(offsets)):
            u = v + offsets[m] if m < len(offsets) else v - offsets[m - len(offsets)]
            if dist[u, lane] + cost[v, lane] == dist[v, lane] and onward[u] < 0:
                onward[u] = v
                queue[count] = u
                count += 1
