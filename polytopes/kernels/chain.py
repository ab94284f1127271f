"""Chains: Viterbi, forward-backward, its derivative, backward sampling, the k best sequences.

Scores are (n, length, tags, tags), entry [t, i, j] for tag i at t - 1 and j at t; at t = 0 row 0 alone
is read. A score of -inf excludes its arc. Everything is accumulated in float64.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["covariance", "forward_backward", "k_best", "sample_backward", "viterbi"]

Array = np.ndarray
LOG2E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
ROUNDER = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to a whole number, in the low bits
C2, C3, C4, C5, C6, C7 = 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040
C8, C9, C10, C11, C12 = 1 / 40320, 1 / 362880, 1 / 3628800, 1 / 39916800, 1 / 479001600


@kernel
def viterbi(
    first: int, last: int, scores: Array, lengths: Array, vertices: Array, objective: Array
) -> None:
    """The best sequence of each instance; the lowest tags, from the last one back, among ties.

    Writes 0/1 vertices (n, length, tags, tags) and scores (n,), -inf where no sequence is left.
    """
    tags = scores.shape[2]
    best = np.empty((scores.shape[1], tags))
    for b in range(first, last):
        length = lengths[b]
        for j in range(tags):
            best[0, j] = scores[b, 0, 0, j]
        for t in range(1, length):
            for j in range(tags):
                best[t, j] = -np.inf
            for i in range(tags):
                before = best[t - 1, i]
                for j in range(tags):
                    candidate = before + scores[b, t, i, j]
                    best[t, j] = candidate if candidate > best[t, j] else best[t, j]
        tag = 0
        for j in range(tags):
            if best[length - 1, j] > best[length - 1, tag]:
                tag = j
        objective[b] = best[length - 1, tag]
        if objective[b] == -np.inf:
            continue
        for t in range(length - 1, 0, -1):
            i = 0
            while best[t - 1, i] + scores[b, t, i, tag] != best[t, tag]:
                i += 1
            vertices[b, t, i, tag] = 1.0
            tag = i
        vertices[b, 0, 0, tag] = 1.0


@kernel
def _exponentials(values: Array, shift: float, out: Array, work: Array, bits: Array) -> None:
    """exp(values - shift) of a row, for arguments in [-700, 700]; `bits` is `work` seen as integers.

    Loops without calls or branches: the compiler makes vectors of them.
    """
    for k in range(values.size):
        x = values[k] - shift
        rounded = x * LOG2E + ROUNDER
        work[k] = rounded
        whole = rounded - ROUNDER
        r = (x - whole * LN2_HIGH) - whole * LN2_LOW
        p = C9 + r * (C10 + r * (C11 + r * C12))
        p = C5 + r * (C6 + r * (C7 + r * (C8 + r * p)))
        out[k] = 1.0 + r * (1.0 + r * (C2 + r * (C3 + r * (C4 + r * p))))
    for k in range(values.size):
        bits[k] = (bits[k] + 1023) << 52
    for k in range(values.size):
        out[k] *= work[k]


@kernel
def _spread(scores: Array, length: int, tops: Array) -> float:
    """The widest range of scores within one step, inf if an arc is excluded; writes steps' maxima."""
    widest = 0.0
    for t in range(length):
        flat = scores[t, 0] if t == 0 else scores[t].reshape(-1)
        high, low = flat[0], flat[0]
        for k in range(flat.size):
            value = flat[k]
            high = value if value > high else high
            low = value if value < low else low
        if low == -np.inf:
            return np.inf
        tops[t] = high
        widest = max(widest, float(high) - float(low))
    return widest


@kernel
def _scaled(scores: Array, length: int, tops: Array, alpha: Array, beta: Array, out: Array) -> float:
    """Marginals in probability space, each step shifted by its maximum and normalised; log Z.

    Messages of neighbouring tags differ by at most the spread of a step, so nothing underflows where
    three steps' spreads fit into the exponent's range.
    """
    tags = scores.shape[1]
    arcs, work = np.empty(tags * tags), np.empty(tags * tags)
    bits = work.view(np.int64)
    sums = np.empty(tags)
    log_z = 0.0
    for t in range(length):
        rows = 1 if t == 0 else tags
        _exponentials(scores[t].reshape(-1)[: rows * tags], tops[t], arcs, work, bits)
        for j in range(tags):
            alpha[t, j] = 0.0
        for i in range(rows):
            before = 1.0 if t == 0 else alpha[t - 1, i]
            for j in range(tags):
                alpha[t, j] += before * arcs[i * tags + j]
                out[t, i, j] = arcs[i * tags + j]
        total = 0.0
        for j in range(tags):
            total += alpha[t, j]
        for j in range(tags):
            alpha[t, j] /= total
        log_z += math.log(total) + tops[t]
    for j in range(tags):
        beta[j] = 1.0
    for t in range(length - 1, -1, -1):
        rows = 1 if t == 0 else tags
        total = 0.0
        for i in range(rows):
            row = out[t, i]
            a, c, d, e = 0.0, 0.0, 0.0, 0.0
            for j in range(0, tags - 3, 4):
                a += row[j] * beta[j]
                c += row[j + 1] * beta[j + 1]
                d += row[j + 2] * beta[j + 2]
                e += row[j + 3] * beta[j + 3]
            for j in range(tags - tags % 4, tags):
                a += row[j] * beta[j]
            sums[i] = (a + c) + (d + e)
            total += sums[i] if t == 0 else alpha[t - 1, i] * sums[i]
        for i in range(rows):
            weight = (1.0 if t == 0 else alpha[t - 1, i]) / total
            for j in range(tags):
                out[t, i, j] = weight * out[t, i, j] * beta[j]
        top = 0.0
        for i in range(rows):
            top = max(top, sums[i])
        for i in range(rows):
            beta[i] = sums[i] / top
    return log_z


@kernel
def _log_space(scores: Array, length: int, alpha: Array, beta: Array, out: Array) -> float:
    """Marginals in log space, each step normalised; log Z, -inf where no sequence is left."""
    tags = scores.shape[1]
    top, total = np.empty(tags), np.empty(tags)
    log_z = 0.0
    for t in range(length):
        rows = 1 if t == 0 else tags
        for j in range(tags):
            top[j], total[j] = -np.inf, 0.0
        for i in range(rows):
            before = 0.0 if t == 0 else alpha[t - 1, i]
            for j in range(tags):
                top[j] = max(top[j], before + scores[t, i, j])
        for i in range(rows):
            before = 0.0 if t == 0 else alpha[t - 1, i]
            for j in range(tags):
                if top[j] > -np.inf:
                    total[j] += math.exp(before + scores[t, i, j] - top[j])
        highest = -np.inf
        for j in range(tags):
            alpha[t, j] = top[j] + math.log(total[j]) if top[j] > -np.inf else -np.inf
            highest = max(highest, alpha[t, j])
        if highest == -np.inf:
            return -np.inf
        for j in range(tags):
            alpha[t, j] -= highest
        log_z += highest
    rest = 0.0
    for j in range(tags):
        rest += math.exp(alpha[length - 1, j])
        beta[j] = 0.0
    log_z += math.log(rest)
    for t in range(length - 1, -1, -1):
        rows = 1 if t == 0 else tags
        highest = -np.inf
        for i in range(rows):
            before = 0.0 if t == 0 else alpha[t - 1, i]
            top[i] = -np.inf
            for j in range(tags):
                top[i] = max(top[i], scores[t, i, j] + beta[j])
            highest = max(highest, before + top[i])
        norm = 0.0
        for i in range(rows):
            before = 0.0 if t == 0 else alpha[t - 1, i]
            total[i] = 0.0
            if top[i] > -np.inf:
                for j in range(tags):
                    total[i] += math.exp(scores[t, i, j] + beta[j] - top[i])
                norm += math.exp(before + top[i] - highest) * total[i]
        for i in range(rows):
            before = 0.0 if t == 0 else alpha[t - 1, i]
            for j in range(tags):
                out[t, i, j] = math.exp(before + scores[t, i, j] + beta[j] - highest) / norm
        highest = -np.inf
        for i in range(rows):
            beta[i] = top[i] + math.log(total[i]) if top[i] > -np.inf else -np.inf
            highest = max(highest, beta[i])
        for i in range(rows):
            beta[i] -= highest
    return log_z


@kernel
def forward_backward(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    widest: float,
    marginals: Array,
    log_z: Array,
) -> None:
    """Marginals of p(z) ~ exp<s, z>, into zeros (n, length, tags, tags), and log Z (n,).

    Instances whose steps spread over no more than `widest` run in probability space, the others in
    log space.
    """
    tags = scores.shape[2]
    alpha = np.empty((scores.shape[1], tags))
    beta, tops = np.empty(tags), np.empty(scores.shape[1])
    for b in range(first, last):
        if _spread(scores[b], lengths[b], tops) <= widest:
            log_z[b] = _scaled(scores[b], lengths[b], tops, alpha, beta, marginals[b])
        else:
            log_z[b] = _log_space(scores[b], lengths[b], alpha, beta, marginals[b])


@kernel
def covariance(first: int, last: int, marginals: Array, grad: Array, lengths: Array, out: Array) -> None:
    """The Jacobian of the marginals times grad: Cov(z, <grad, z>), from the marginals alone.

    It is mu(arc) (E[<grad, z> | arc] - E<grad, z>), and the conditional mean is a sum over what comes
    before the arc and what comes after, both Markov. Centred at each step, lest rounding add up.
    """
    tags = marginals.shape[2]
    past = np.empty((marginals.shape[1], tags))
    future, inside, mass = np.empty(tags), np.empty(tags), np.empty(tags)
    for b in range(first, last):
        mu, g, length = marginals[b], grad[b], lengths[b]
        for t in range(length):
            rows = 1 if t == 0 else tags
            for j in range(tags):
                past[t, j], mass[j] = 0.0, 0.0
            for i in range(rows):
                before = 0.0 if t == 0 else past[t - 1, i]
                for j in range(tags):
                    past[t, j] += mu[t, i, j] * (before + g[t, i, j])
                    mass[j] += mu[t, i, j]
            mean = 0.0
            for j in range(tags):
                mean += past[t, j]
                past[t, j] = past[t, j] / mass[j] if mass[j] > 0 else 0.0
            for j in range(tags):
                past[t, j] -= mean
        for j in range(tags):
            future[j] = 0.0
        for t in range(length - 1, -1, -1):
            rows = 1 if t == 0 else tags
            mean, whole = 0.0, 0.0
            for i in range(rows):
                before = 0.0 if t == 0 else past[t - 1, i]
                inside[i], mass[i] = 0.0, 0.0
                for j in range(tags):
                    inside[i] += mu[t, i, j] * (g[t, i, j] + future[j])
                    mass[i] += mu[t, i, j]
                mean += inside[i] + before * mass[i]
                whole += mass[i]
            mean /= whole
            for i in range(rows):
                before = 0.0 if t == 0 else past[t - 1, i]
                for j in range(tags):
                    out[b, t, i, j] = mu[t, i, j] * (before + g[t, i, j] + future[j] - mean)
            ahead = 0.0
            for i in range(rows):
                ahead += inside[i]
            for i in range(rows):
                future[i] = inside[i] / mass[i] - ahead if mass[i] > 0 else 0.0


@kernel
def sample_backward(
    first: int, last: int, marginals: Array, lengths: Array, draws: Array, vertices: Array
) -> None:
    """Sequences from the last tag back, by draws (count, n, length) uniform in [0, 1)."""
    tags = marginals.shape[2]
    weights = np.empty(tags)
    for b in range(first, last):
        for c in range(draws.shape[0]):
            tag = -1
            for t in range(lengths[b] - 1, -1, -1):
                rows = 1 if t == 0 else tags
                if tag < 0:  # the last tag itself
                    for j in range(tags):
                        weights[j] = 0.0
                        for i in range(rows):
                            weights[j] += marginals[b, t, i, j]
                    tag = _draw(weights, tags, draws[c, b, t])
                    if t == 0:
                        vertices[c, b, 0, 0, tag] = 1.0
                        break
                if t == 0:
                    vertices[c, b, 0, 0, tag] = 1.0
                    break
                for i in range(tags):
                    weights[i] = marginals[b, t, i, tag]
                before = _draw(weights, tags, draws[c, b, t - 1])
                vertices[c, b, t, before, tag] = 1.0
                tag = before


@kernel
def _draw(weights: Array, size: int, uniform: float) -> int:
    """An index with probability proportional to its weight, never one of weight 0."""
    total = 0.0
    for i in range(size):
        total += weights[i]
    left, chosen = uniform * total, 0
    for i in range(size):
        if weights[i] > 0:
            chosen = i
            left -= weights[i]
            if left < 0:
                break
    return chosen


@kernel
def k_best(first: int, last: int, scores: Array, lengths: Array, vertices: Array, found: Array) -> None:
    """The k best sequences, best first, into zeros (k, n, length, tags, tags), and how many there are.

    Each tag keeps the k best ways to it, merged from those of the tags before; the lowest tag, then
    the better way, among ties.
    """
    tags, k = scores.shape[2], vertices.shape[0]
    best = np.empty((2, tags, k))
    before = np.empty((scores.shape[1], tags, k), dtype=np.int32)
    way = np.empty((scores.shape[1], tags, k), dtype=np.int32)
    heads = np.empty(tags, dtype=np.int64)
    for b in range(first, last):
        length = lengths[b]
        for j in range(tags):
            for r in range(k):
                best[0, j, r] = scores[b, 0, 0, j] if r == 0 else -np.inf
        for t in range(1, length):
            old, new = best[(t - 1) % 2], best[t % 2]
            for j in range(tags):
                heads[:] = 0
                for r in range(k):
                    tag, value = 0, -np.inf
                    for i in range(tags):
                        if heads[i] < k and old[i, heads[i]] + scores[b, t, i, j] > value:
                            tag, value = i, old[i, heads[i]] + scores[b, t, i, j]
                    new[j, r], before[t, j, r], way[t, j, r] = value, tag, heads[tag]
                    if value == -np.inf:
                        new[j, r:] = -np.inf
                        break
                    heads[tag] += 1
        final = best[(length - 1) % 2]
        heads[:] = 0
        found[b] = 0
        for r in range(k):
            tag, value = 0, -np.inf
            for j in range(tags):
                if heads[j] < k and final[j, heads[j]] > value:
                    tag, value = j, final[j, heads[j]]
            if value == -np.inf:
                break
            found[b] += 1
            rank = heads[tag]
            heads[tag] += 1
            for t in range(length - 1, 0, -1):
                previous, rank = before[t, tag, rank], way[t, tag, rank]
                vertices[r, b, t, previous, tag] = 1.0
                tag = previous
            vertices[r, b, 0, 0, tag] = 1.0
