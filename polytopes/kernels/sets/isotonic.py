"""Pool adjacent violators, for the permutahedron.

In sorted order, the largest first, the multipliers v of a projection of s onto P(w) fall:

- `euclidean`: v is the mean of s less the mean of w over each block, y = s - v;
- `entropic`: v = log sum exp s - log sum w over each block, y = exp(s - v).

A block starts as one position and is pooled with the one before it as long as v rises from that one
to this one. `order` lists the `counts` items of an instance by descending score, `weights` are sorted
the same way; one row of weights may serve all instances. What lies beyond the items is left alone.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["entropic", "euclidean", "place", "pull", "pull_logs"]

ROUNDING = 4e-15  # of a multiplier, relative to the largest


@kernel
def place(
    first: int, last: int, order: np.ndarray, counts: np.ndarray, weights: np.ndarray, y: np.ndarray
) -> None:
    """y[order[k]] = weights[k]: the best vertex."""
    shared = weights.shape[0] == 1
    for i in range(first, last):
        row = weights[0 if shared else i]
        for k in range(counts[i]):
            y[i, order[i, k]] = row[k]


@kernel
def euclidean(
    first: int,
    last: int,
    scores: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    y: np.ndarray,
    duals: np.ndarray,
    objective: np.ndarray,
) -> None:
    """The projection y of s onto P(w), its multipliers v, `(n, d)`, and <s, y> - |y|^2 / 2 `(n,)`."""
    d = scores.shape[1]
    start = np.empty(d + 1, np.int64)
    total = np.empty(d)
    level = np.empty(d)
    shared = weights.shape[0] == 1
    for i in range(first, last):
        row = weights[0 if shared else i]
        count = counts[i]
        blocks = 0
        for k in range(count):
            begin, pooled = k, np.float64(scores[i, order[i, k]]) - row[k]
            mean = pooled
            while blocks > 0 and level[blocks - 1] <= mean:
                blocks -= 1
                begin = start[blocks]
                pooled += total[blocks]
                mean = pooled / (k + 1 - begin)
            start[blocks], total[blocks], level[blocks] = begin, pooled, mean
            blocks += 1
        start[blocks] = count
        best = 0.0
        for b in range(blocks):
            begin, end = start[b], start[b + 1]
            top = np.float64(scores[i, order[i, begin]])
            fall, mean = 0.0, 0.0
            for k in range(begin, end):
                fall += top - scores[i, order[i, k]]
                mean += row[k]
            fall /= end - begin
            mean /= end - begin
            for k in range(begin, end):
                part = order[i, k]
                moved = mean + (fall - (top - scores[i, part]))
                share = min(max(moved, row[end - 1]), row[begin])
                y[i, part] = share
                duals[i, part] = level[b]
                best += share * (scores[i, part] - 0.5 * share)
        objective[i] = best


@kernel
def entropic(
    first: int,
    last: int,
    scores: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    logs: np.ndarray,
    duals: np.ndarray,
) -> None:
    """log y and v of the KL projection y of exp(s) onto P(exp(weights)), both `(n, d)`.

    A block holds the sums of exp(s) and of exp(weights) over those at its first position. Weights of
    -inf come last and join the block before them.
    """
    d = scores.shape[1]
    start = np.empty(d + 1, np.int64)
    above, below = np.empty(d), np.empty(d)
    level = np.empty(d)
    shared = weights.shape[0] == 1
    for i in range(first, last):
        row = weights[0 if shared else i]
        count = counts[i]
        blocks = 0
        for k in range(count):
            begin, a, b = k, 1.0, 1.0
            score, weight = np.float64(scores[i, order[i, k]]), row[k]
            mean = score - weight
            while blocks > 0 and level[blocks - 1] <= mean:
                blocks -= 1
                begin = start[blocks]
                top, most = np.float64(scores[i, order[i, begin]]), row[begin]
                a = above[blocks] + a * math.exp(score - top)
                b = below[blocks] + (b * math.exp(weight - most) if weight > -np.inf else 0.0)
                score, weight = top, most
                mean = (top - most) + math.log(a / b)
            start[blocks], above[blocks], below[blocks], level[blocks] = begin, a, b, mean
            blocks += 1
        start[blocks] = count
        for block in range(blocks):
            begin, end = start[block], start[block + 1]
            top = np.float64(scores[i, order[i, begin]])
            shift = row[begin] + math.log(below[block] / above[block])
            for k in range(begin, end):
                part = order[i, k]
                logs[i, part] = (scores[i, part] - top) + shift
                duals[i, part] = level[block]


@kernel
def _slack(duals: np.ndarray, order: np.ndarray, count: int, tolerance: float) -> float:
    """How far apart multipliers may be and count as equal."""
    if count == 0:
        return tolerance
    largest = max(abs(float(duals[order[0]])), abs(float(duals[order[count - 1]])))
    return max(tolerance, ROUNDING * largest)


@kernel
def _face(duals: np.ndarray, order: np.ndarray, count: int, begin: int, slack: float) -> int:
    """Where the run of equal multipliers that starts at `begin` ends."""
    end = begin + 1
    while end < count and not duals[order[end - 1]] - duals[order[end]] > slack:
        end += 1
    return end


@kernel
def pull(
    first: int,
    last: int,
    duals: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    energies: np.ndarray,
    tolerance: float,
    grad: np.ndarray,
    centred: np.ndarray,
    mean: np.ndarray,
) -> None:
    """grad less its mean over each face `(n, d)`, and by sorted position that mean `(n, d)`.

    A face is a run of equal multipliers; here `order` is theirs. The mean over it is weighted by
    exp(energies), or plain where energies are `(0, d)`. A face whose weights are all equal is a
    point, where nothing moves by the scores.
    """
    share = np.empty(duals.shape[1])
    shared = weights.shape[0] == 1
    plain = energies.shape[0] == 0
    for i in range(first, last):
        row = weights[0 if shared else i]
        slack = _slack(duals[i], order[i], counts[i], tolerance)
        begin = 0
        while begin < counts[i]:
            end = _face(duals[i], order[i], counts[i], begin, slack)
            top = -np.inf
            for k in range(begin, end):
                share[k] = 0.0 if plain else energies[i, order[i, k]]
                top = max(top, share[k])
            total, product = 0.0, 0.0
            for k in range(begin, end):
                weight = 1.0 if plain else np.exp(share[k] - top)
                total += weight
                product += weight * grad[i, order[i, k]]
            moves = row[begin] > row[end - 1]
            for k in range(begin, end):
                part = order[i, k]
                mean[i, k] = product / total
                if moves:
                    centred[i, part] = grad[i, part] - product / total
            begin = end


@kernel
def pull_logs(
    first: int,
    last: int,
    duals: np.ndarray,
    order: np.ndarray,
    counts: np.ndarray,
    weights: np.ndarray,
    scores: np.ndarray,
    tolerance: float,
    grad: np.ndarray,
    by_scores: np.ndarray,
    by_weights: np.ndarray,
) -> None:
    """The derivative of `entropic`'s log y, transposed, times grad; `by_weights` by sorted position.

    On a face log y = s - log sum exp s + log sum exp(weights).
    """
    shared = weights.shape[0] == 1
    for i in range(first, last):
        row = weights[0 if shared else i]
        slack = _slack(duals[i], order[i], counts[i], tolerance)
        begin = 0
        while begin < counts[i]:
            end = _face(duals[i], order[i], counts[i], begin, slack)
            top, total = -np.inf, 0.0
            for k in range(begin, end):
                top = max(top, np.float64(scores[i, order[i, k]]))
                total += grad[i, order[i, k]]
            above, below = 0.0, 0.0
            for k in range(begin, end):
                above += np.exp(scores[i, order[i, k]] - top)
                below += np.exp(row[k] - row[begin])
            moves = row[begin] > row[end - 1]
            for k in range(begin, end):
                part = order[i, k]
                by_weights[i, k] = total * (np.exp(row[k] - row[begin]) / below)
                if moves:
                    share = np.exp(scores[i, part] - top) / above
                    by_scores[i, part] = grad[i, part] - share * total
            begin = end
