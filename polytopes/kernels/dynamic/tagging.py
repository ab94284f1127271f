"""Chains whose transitions are the same at every position: Viterbi and forward-backward.

Scores are (n, tags + length, tags): row i < tags for the transitions from tag i, then a row a position.
A score of -inf excludes its part.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.dynamic.chain import LARGEST, exponentials, log_space

__all__ = ["best_tags", "tag_sums"]

Array = np.ndarray


@kernel
def best_tags(
    first: int, last: int, scores: Array, lengths: Array, vertices: Array, objective: Array
) -> None:
    """The best sequence of each instance; the lowest tags, from the last one back, among ties.

    Writes vertices, into zeros of the scores' shape, and scores (n,), -inf where no sequence is left.
    """
    tags = scores.shape[2]
    most = scores.shape[1] - tags
    into, best = np.zeros((most, tags)), np.empty((most, tags))
    for b in range(first, last):
        length = lengths[b]
        for t in range(length):
            unary = scores[b, tags + t]
            if t > 0:
                now = into[t]
                for j in range(tags):
                    now[j] = -np.inf
                for i in range(tags):
                    before, row = best[t - 1, i], scores[b, i]
                    for j in range(tags):
                        candidate = before + row[j]
                        now[j] = candidate if candidate > now[j] else now[j]
            for j in range(tags):
                best[t, j] = into[t, j] + unary[j]
        tag = 0
        for j in range(tags):
            if best[length - 1, j] > best[length - 1, tag]:
                tag = j
        objective[b] = best[length - 1, tag]
        if objective[b] == -np.inf:
            continue
        for t in range(length - 1, 0, -1):
            vertices[b, tags + t, tag] = 1.0
            i = 0
            while best[t - 1, i] + scores[b, i, tag] != into[t, tag]:
                i += 1
            vertices[b, i, tag] += 1.0
            tag = i
        vertices[b, tags, tag] = 1.0


@kernel
def _shifted(scores: Array, length: int, out: Array) -> tuple[float, float]:
    """Transitions less their largest, positions less theirs; what was taken, and how far arcs spread.

    The second is inf where a part is excluded.
    """
    tags = scores.shape[1]
    taken, between, within = 0.0, 0.0, 0.0  # the spread of transitions, of positions
    for block in range(length + 1):
        low, high = (0, tags) if block == 0 else (tags + block - 1, tags + block)
        top, bottom = -np.inf, np.inf
        for i in range(low, high):
            for j in range(tags):
                top, bottom = max(top, float(scores[i, j])), min(bottom, float(scores[i, j]))
        if bottom == -np.inf:
            return 0.0, np.inf
        for i in range(low, high):
            for j in range(tags):
                out[i, j] = scores[i, j] - top
        taken += top * (length - 1 if block == 0 else 1)
        if block == 0:
            between = top - bottom
        else:
            within = max(within, top - bottom)
    return taken, between + within


@summing
def _sums(weights: Array, length: int, alpha: Array, inverse: Array, ahead: Array, out: Array) -> float:
    """log Z from exponentials of the scores; expected counts too, unless `out` has no rows."""
    tags = weights.shape[1]
    one, zero = alpha.dtype.type(1), alpha.dtype.type(0)
    log_z, product = 0.0, 1.0
    for t in range(length):
        now, unary = alpha[t], weights[tags + t]
        for j in range(tags):
            now[j] = one if t == 0 else zero
        if t > 0:
            for i in range(tags):
                before, row = alpha[t - 1, i], weights[i]
                for j in range(tags):
                    now[j] += before * row[j]
        total = zero
        for j in range(tags):
            now[j] *= unary[j]
            total += now[j]
        product *= total
        if not 1 / LARGEST < product < LARGEST:
            log_z += math.log(product)
            product = 1.0
        inverse[t] = one / total
        for j in range(tags):
            now[j] *= inverse[t]
    if out.shape[0] > 0:
        beta, through = ahead[0], ahead[1]
        for j in range(tags):
            beta[j] = one
            for i in range(tags):
                out[i, j] = zero
        for t in range(length - 1, -1, -1):
            unary, own = weights[tags + t], out[tags + t]
            for j in range(tags):
                own[j] = alpha[t, j] * beta[j]
                through[j] = unary[j] * beta[j]
            if t > 0:
                total = zero
                for i in range(tags):
                    weight = alpha[t - 1, i] * inverse[t]
                    row, count = weights[i], out[i]
                    onward = zero
                    for j in range(tags):
                        along = row[j] * through[j]
                        onward += along
                        count[j] += weight * along
                    beta[i] = onward
                    total += onward * alpha[t - 1, i]
                total = one / total
                for i in range(tags):
                    beta[i] *= total
    return log_z + math.log(product)


@kernel
def _by_arcs(scores: Array, length: int, alpha: Array, beta: Array, out: Array) -> float:
    """The same in log space, arc by arc."""
    tags = scores.shape[1]
    arcs = np.empty((length, tags, tags))
    chances = np.empty_like(arcs)
    for t in range(length):
        for i in range(tags):
            for j in range(tags):
                arcs[t, i, j] = scores[tags + t, j] + (scores[i, j] if t > 0 else 0.0)
    log_z = log_space(arcs, length, alpha, beta, chances[: len(out)])
    if out.shape[0] > 0 and log_z > -np.inf:
        out[:] = 0.0
        for t in range(length):
            for i in range(tags if t > 0 else 1):
                for j in range(tags):
                    out[tags + t, j] += chances[t, i, j]
                    if t > 0:
                        out[i, j] += chances[t, i, j]
    return log_z


@kernel
def tag_sums(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    narrow: float,
    wide: float,
    marginals: Array,
    log_z: Array,
) -> None:
    """Expected counts under p(z) ~ exp<s, z> into an array of the scores' shape, or of no rows; log Z.

    Scores that spread over no more than `narrow` run in probability space in their own precision, up
    to `wide` in float64, the others in log space.
    """
    most, tags = scores.shape[1] - scores.shape[2], scores.shape[2]
    kind = scores.dtype
    rows = scores.shape[1]
    shifted, weights = np.empty((rows, tags), kind), np.empty((rows, tags), kind)
    alpha, inverse, ahead = np.empty((most, tags), kind), np.empty(most, kind), np.empty((2, tags), kind)
    long_shifted, long_weights = np.empty((rows, tags)), np.empty((rows, tags))
    long_alpha, long_inverse, long_ahead = np.empty((most, tags)), np.empty(most), np.empty((2, tags))
    for b in range(first, last):
        length = lengths[b]
        used = tags + length
        out = marginals[b] if marginals.shape[0] > 0 else scores[0, :0]
        taken, spread = _shifted(scores[b], length, shifted)
        if spread <= narrow:
            exponentials(shifted[:used].reshape(-1), weights[:used].reshape(-1))
            log_z[b] = taken + _sums(weights, length, alpha, inverse, ahead, out)
        elif spread <= wide:
            _shifted(scores[b], length, long_shifted)
            exponentials(long_shifted[:used].reshape(-1), long_weights[:used].reshape(-1))
            log_z[b] = taken + _sums(long_weights, length, long_alpha, long_inverse, long_ahead, out)
        else:
            log_z[b] = _by_arcs(scores[b], length, long_alpha, long_ahead[0], out)
        if out.shape[0] > 0:
            out[used:] = 0.0
