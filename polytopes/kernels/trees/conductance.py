r"""Effective conductances by eliminating nodes, without a subtraction.

Taking node v out of a network of conductances W leaves the same network between the others when
every pair a, b gets W_av W_bv / sum_c W_cv more (the star-mesh transform, Gaussian elimination of the
Laplacian as Grassmann, Taksar and Heyman do it for Markov chains). The sums so divided multiply to
the number of spanning trees, weighted; when a and b alone are left, W_ab is their effective
conductance C, and an edge of weight w between them is in a tree with chance w / C. Only positive
numbers are added, so each is right to a few units of its own last place.

All pairs are found by splitting: from the network of some nodes those of its pairs of quarters,
eliminating the others once for all the pairs inside. A `plan` lists these steps in the order in which
they are taken: `depth` of the step, how many nodes it keeps (`kept`), and in `nodes` from `start` on
the positions, in the network one step up, of the nodes that it keeps and then of the rest. A step that
keeps two nodes writes the conductance of `pair`.

`moving` carries derivatives along: dW with W, and d log W with log W.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["conductances", "eliminate_logs", "fill_logs"]

LEAST = 1e-280  # below it a product may lose digits


@kernel
def _eliminate(
    network: np.ndarray, slopes: np.ndarray, size: int, kept: int, moving: bool
) -> tuple[float, float, bool]:
    """Takes out the last nodes: log of the product of their sums, its derivative, and success."""
    total, slope = 0.0, 0.0
    for v in range(size - 1, kept - 1, -1):
        row, drow = network[v], slopes[v]
        degree, moved, least = 0.0, 0.0, np.inf
        for c in range(v):
            degree += row[c]
            if row[c] > 0.0:
                least = min(least, row[c])
        if degree <= 0.0 or least * (least / degree) < LEAST:
            return total, slope, False
        if moving:
            for c in range(v):
                moved += drow[c]
        total += math.log(degree)
        slope += moved / degree
        for a in range(v):
            if row[a] > 0.0:
                factor = row[a] / degree
                target = network[a]
                for b in range(v):
                    target[b] += factor * row[b]
                if moving:
                    change = (drow[a] - factor * moved) / degree
                    target = slopes[a]
                    for b in range(v):
                        target[b] += factor * drow[b] + change * row[b]
    return total, slope, True


@kernel
def eliminate_logs(
    network: np.ndarray, slopes: np.ndarray, size: int, kept: int, moving: bool
) -> tuple[float, float]:
    """The same on log W and its derivative, which no scores take out of range."""
    total, slope = 0.0, 0.0
    for v in range(size - 1, kept - 1, -1):
        row, drow = network[v], slopes[v]
        top = -np.inf
        for c in range(v):
            top = max(top, row[c])
        if top == -np.inf:
            return -np.inf, 0.0
        degree, moved = 0.0, 0.0
        for c in range(v):
            part = math.exp(row[c] - top)
            degree += part
            if moving:
                moved += part * drow[c]
        moved /= degree
        degree = top + math.log(degree)
        total += degree
        slope += moved
        for a in range(v):
            if row[a] == -np.inf:
                continue
            for b in range(a):
                if row[b] == -np.inf:
                    continue
                one, other = network[a, b], row[a] + row[b] - degree
                high, low = max(one, other), min(one, other)
                share = math.exp(low - high)
                network[a, b] = high + math.log1p(share)
                network[b, a] = network[a, b]
                if moving:
                    share = (share if one > other else 1.0) / (1.0 + share)  # of `other`
                    along = drow[a] + drow[b] - moved
                    slopes[a, b] += share * (along - slopes[a, b])
                    slopes[b, a] = slopes[a, b]
    return total, slope


@kernel
def _set(matrix: np.ndarray, value: float) -> None:
    for a in range(matrix.shape[0]):
        for b in range(matrix.shape[1]):
            matrix[a, b] = value


@kernel
def _fill(
    scores: np.ndarray,
    direction: np.ndarray,
    ends: np.ndarray,
    moving: bool,
    network: np.ndarray,
    slopes: np.ndarray,
) -> bool:
    """W of these scores, parallel edges together, and dW; whether every weight is in range."""
    _set(network, 0.0)
    _set(slopes, 0.0)
    good = True
    for e in range(len(ends)):
        a, b = ends[e, 0], ends[e, 1]
        weight = math.exp(scores[e])
        good = good and (weight > LEAST or scores[e] == -np.inf)
        network[a, b] += weight
        network[b, a] = network[a, b]
        if moving:
            slopes[a, b] += weight * direction[e]
            slopes[b, a] = slopes[a, b]
    return good


@kernel
def fill_logs(
    scores: np.ndarray,
    direction: np.ndarray,
    ends: np.ndarray,
    moving: bool,
    network: np.ndarray,
    slopes: np.ndarray,
) -> None:
    """log W and its derivative."""
    _set(network, -np.inf)
    _set(slopes, 0.0)
    for e in range(len(ends)):
        if scores[e] == -np.inf:
            continue
        a, b = ends[e, 0], ends[e, 1]
        high, low = max(network[a, b], scores[e]), min(network[a, b], scores[e])
        share = math.exp(low - high)
        if moving:
            new = (1.0 if scores[e] == high else share) / (1.0 + share)
            slopes[a, b] += new * (direction[e] - slopes[a, b])
            slopes[b, a] = slopes[a, b]
        network[a, b] = high + math.log1p(share)
        network[b, a] = network[a, b]


@kernel
def _arrange(source: np.ndarray, target: np.ndarray, nodes: np.ndarray, start: int, size: int) -> None:
    """The network with its nodes in another order."""
    for a in range(size):
        for b in range(size):
            target[a, b] = source[nodes[start + a], nodes[start + b]]


@kernel
def conductances(
    first: int,
    last: int,
    scores: np.ndarray,
    direction: np.ndarray,
    ends: np.ndarray,
    pairs: np.ndarray,
    depth: np.ndarray,
    kept: np.ndarray,
    start: np.ndarray,
    nodes: np.ndarray,
    pair: np.ndarray,
    size: int,
    logs: bool,
    total: np.ndarray,
    chance: np.ndarray,
    moved: np.ndarray,
    done: np.ndarray,
) -> None:
    """The log of the sum over trees `(n,)`, and the chances of edges `(n, m)`.

    With a direction `(n, m)`, not `(0, m)`, `moved` is the chances' derivatives along it.
    Scores are float64, -inf at edges that are not there; edge e joins the nodes `ends[e]`, which are
    the pair of number `pairs[e]`. Instances that are `done` `(n,)` are left alone, the others done, in
    log space with `logs`, and without as far as numbers stay in the range where they are exact.
    """
    levels = 2
    for step in range(len(depth)):
        levels = max(levels, depth[step] + 1)
    moving = direction.shape[0] > 0
    across = size if moving else 1
    network, slopes = np.empty((levels, size, size)), np.empty((levels, across, across))
    sizes = np.empty(levels, np.int64)
    found, dfound = np.empty(len(depth)), np.zeros(len(depth))
    shifted = np.empty(len(ends))
    for i in range(first, last):
        if done[i]:
            continue
        top = -np.inf
        for e in range(len(ends)):
            top = max(top, scores[i, e])
        for e in range(len(ends)):
            shifted[e] = scores[i, e] - top
        along = direction[i] if moving else shifted
        good = True
        if logs:
            fill_logs(shifted, along, ends, moving, network[0], slopes[0])
        else:
            good = _fill(shifted, along, ends, moving, network[0], slopes[0])
        for a in range(size):
            for b in range(size):
                network[1, a, b] = network[0, a, b]
        if good and logs:
            total[i] = eliminate_logs(network[1], slopes[0], size, 1, False)[0] + (size - 1) * top
        elif good:
            log, _, good = _eliminate(network[1], slopes[0], size, 1, False)
            total[i] = log + (size - 1) * top
        sizes[0] = size
        for step in range(len(depth)):
            if not good:
                break
            level = depth[step]
            above = int(sizes[level - 1])
            _arrange(network[level - 1], network[level], nodes, start[step], above)
            if moving:
                _arrange(slopes[level - 1], slopes[level], nodes, start[step], above)
            if logs:
                eliminate_logs(network[level], slopes[level], above, kept[step], moving)
            else:
                good = _eliminate(network[level], slopes[level], above, kept[step], moving)[2]
            sizes[level] = kept[step]
            if pair[step] >= 0:
                found[pair[step]] = network[level, 0, 1]
                if moving:
                    dfound[pair[step]] = slopes[level, 0, 1]
        done[i] = good
        for e in range(len(ends)):
            if not good or shifted[e] == -np.inf:
                continue
            joint, slope = found[pairs[e]], dfound[pairs[e]]
            if logs:
                chance[i, e] = math.exp(shifted[e] - joint)
            else:
                chance[i, e] = math.exp(shifted[e]) / joint
                slope /= joint
            if moving:
                moved[i, e] = chance[i, e] * (direction[i, e] - slope)
