"""Chains: Viterbi, forward-backward, its derivative, backward sampling, the k best sequences.

Scores are (n, length, tags, tags), entry [t, i, j] for tag i at t - 1 and j at t; at t = 0 row 0 alone
is read. A score of -inf excludes its arc. Everything is accumulated in float64.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel, summing

__all__ = [
    "LARGEST",
    "covariance",
    "exponentials",
    "forward_backward",
    "k_best",
    "log_space",
    "sample_backward",
    "viterbi",
]

Array = np.ndarray
LOG2E = 1.4426950408889634
LN2_HIGH = 6.93147180369123816490e-01
LN2_LOW = 1.90821492927058770002e-10
ROUNDER = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to a whole number, in the low bits
C2, C3, C4, C5, C6, C7 = 1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720, 1 / 5040
C8, C9, C10, C11, C12 = 1 / 40320, 1 / 362880, 1 / 3628800, 1 / 39916800, 1 / 479001600
SHORT_LOG2E, SHORT_ROUNDER = np.float32(LOG2E), np.float32(12582912.0)  # the same in float32
SHORT_HIGH, SHORT_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
B1, B2, B3, B4 = np.float32(1), np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
B5, B6 = np.float32(1 / 120), np.float32(1 / 720)
LARGEST = 1e200  # a product of normalisers beyond it is turned into its logarithm


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
def _long_exponentials(values: Array, out: Array) -> None:
    """exp of a row of float64, for arguments in [-700, 700].

    A loop without calls or branches: the compiler makes vectors of it.
    """
    for k in range(values.size):
        rounded = values[k] * LOG2E + ROUNDER
        whole = rounded - ROUNDER
        r = (values[k] - whole * LN2_HIGH) - whole * LN2_LOW
        p = C9 + r * (C10 + r * (C11 + r * C12))
        p = C5 + r * (C6 + r * (C7 + r * (C8 + r * p)))
        p = 1.0 + r * (1.0 + r * (C2 + r * (C3 + r * (C4 + r * p))))
        out[k] = p * np.int64((np.float64(rounded).view(np.int64) + 1023) << 52).view(np.float64)


@kernel
def _short_exponentials(values: Array, out: Array) -> None:
    """exp of a row of float32, for arguments in [-87, 87]."""
    for k in range(values.size):
        rounded = values[k] * SHORT_LOG2E + SHORT_ROUNDER
        whole = rounded - SHORT_ROUNDER
        r = (values[k] - whole * SHORT_HIGH) - whole * SHORT_LOW
        p = B1 + r * (B1 + r * (B2 + r * (B3 + r * (B4 + r * (B5 + r * B6)))))
        out[k] = p * np.int32((np.float32(rounded).view(np.int32) + 127) << 23).view(np.float32)


@kernel
def exponentials(values: Array, out: Array) -> None:
    """exp of a row in its own precision."""
    if out.itemsize == 4:
        _short_exponentials(values, out)
    else:
        _long_exponentials(values, out)


@kernel
def _largest(scores: Array, length: int) -> float:
    """The largest absolute value of the arcs' scores: as integers, numbers' bits are in their order."""
    most = 0
    if scores.itemsize == 4:
        for j in range(scores.shape[1]):
            most = max(most, np.float32(scores[0, 0, j]).view(np.int32) & 0x7FFFFFFF)
        flat = scores[1:length].reshape(-1)
        for k in range(flat.size):
            most = max(most, np.float32(flat[k]).view(np.int32) & 0x7FFFFFFF)
        return float(np.int32(most).view(np.float32))
    for j in range(scores.shape[1]):
        most = max(most, np.float64(scores[0, 0, j]).view(np.int64) & 0x7FFFFFFFFFFFFFFF)
    flat = scores[1:length].reshape(-1)
    for k in range(flat.size):
        most = max(most, np.float64(flat[k]).view(np.int64) & 0x7FFFFFFFFFFFFFFF)
    return np.int64(most).view(np.float64)


@kernel
def _shift(scores: Array, length: int, out: Array) -> float:
    """Scores less their step's largest, in float64; the sum of what was taken away."""
    taken = 0.0
    for t in range(length):
        rows = 1 if t == 0 else scores.shape[1]
        top = -np.inf
        for i in range(rows):
            for j in range(scores.shape[1]):
                top = max(top, float(scores[t, i, j]))
        taken += top
        for i in range(rows):
            for j in range(scores.shape[1]):
                out[t, i, j] = scores[t, i, j] - top
    return taken


@summing
def _forward(arcs: Array, length: int, alpha: Array, inverse: Array) -> float:
    """Messages into each position, their sum 1, what each was divided by (inverted), and log Z."""
    tags = arcs.shape[1]
    one, zero = alpha.dtype.type(1), alpha.dtype.type(0)
    log_z, product = 0.0, 1.0
    for t in range(length):
        now = alpha[t]
        if t == 0:
            for j in range(tags):
                now[j] = arcs[0, 0, j]
        else:
            for j in range(tags):
                now[j] = zero
            for i in range(tags):
                before, row = alpha[t - 1, i], arcs[t, i]
                for j in range(tags):
                    now[j] += before * row[j]
        total = zero
        for j in range(tags):
            total += now[j]
        product *= total
        if not 1 / LARGEST < product < LARGEST:
            log_z += math.log(product)
            product = 1.0
        inverse[t] = one / total
        for j in range(tags):
            now[j] *= inverse[t]
    return log_z + math.log(product)


@summing
def _backward(
    arcs: Array, length: int, alpha: Array, inverse: Array, beta: Array, sums: Array, out: Array
) -> None:
    """Marginals. Messages back are such that <alpha, beta> = 1 at every position."""
    tags = arcs.shape[1]
    one, zero = alpha.dtype.type(1), alpha.dtype.type(0)
    for j in range(tags):
        beta[j] = one
    for t in range(length - 1, 0, -1):
        total = zero
        for i in range(tags):
            weight = alpha[t - 1, i] * inverse[t]
            row, to = arcs[t, i], out[t, i]
            ahead = zero
            for j in range(tags):
                along = row[j] * beta[j]
                ahead += along
                to[j] = weight * along
            sums[i] = ahead
            total += ahead * alpha[t - 1, i]
        total = one / total
        for i in range(tags):
            beta[i] = sums[i] * total
    for j in range(tags):
        out[0, 0, j] = alpha[0, j] * beta[j]


@kernel
def _scaled(
    scores: Array,
    length: int,
    arcs: Array,
    alpha: Array,
    inverse: Array,
    beta: Array,
    sums: Array,
    out: Array,
) -> float:
    """log Z in probability space, each step normalised; marginals too, unless `out` has no length.

    A message's parts are within exp(2 m) tags of each other, m the largest |score|: nothing that
    counts underflows, and nothing overflows, where 3 m + 2 log(tags) fits into the exponent's range.
    """
    exponentials(scores[0, 0], arcs[0, 0])
    exponentials(scores[1:length].reshape(-1), arcs[1:length].reshape(-1))
    log_z = _forward(arcs, length, alpha, inverse)
    if out.shape[0] > 0:
        _backward(arcs, length, alpha, inverse, beta, sums, out)
    return log_z


@kernel
def log_space(scores: Array, length: int, alpha: Array, beta: Array, out: Array) -> float:
    """Marginals in log space, unless `out` has no length; log Z, -inf where no sequence is left."""
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
    for t in range(length - 1 if out.shape[0] > 0 else -1, -1, -1):
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
    narrow: float,
    wide: float,
    marginals: Array,
    log_z: Array,
) -> None:
    """Marginals of p(z) ~ exp<s, z> into (n, length, tags, tags), where that has rows; log Z (n,).

    Instances with scores up to `narrow` run in probability space as they are; those with scores up to
    `wide` below their step's largest in float64; the others in log space.
    """
    most, tags = scores.shape[1], scores.shape[2]
    kind = scores.dtype
    alpha, inverse = np.empty((most, tags), kind), np.empty(most, kind)
    beta, sums, arcs = np.empty(tags, kind), np.empty(tags, kind), np.empty((most, tags, tags), kind)
    long_alpha, long_inverse = np.empty((most, tags)), np.empty(most)
    long_beta, long_sums = np.empty(tags), np.empty(tags)
    shifted, long_arcs = np.empty((most, tags, tags)), np.empty((most, tags, tags))
    for b in range(first, last):
        length = lengths[b]
        out = marginals[b] if marginals.shape[0] > 0 else scores[0, :0]
        if out.shape[0] > 0:
            out[0, 1:] = 0.0
            out[length:] = 0.0
        if _largest(scores[b], length) <= narrow:
            log_z[b] = _scaled(scores[b], length, arcs, alpha, inverse, beta, sums, out)
            continue
        taken = _shift(scores[b], length, shifted)
        if _largest(shifted, length) <= wide:
            log_z[b] = taken + _scaled(
                shifted, length, long_arcs, long_alpha, long_inverse, long_beta, long_sums, out
            )
        else:
            log_z[b] = log_space(scores[b], length, long_alpha, long_beta, out)


@summing
def covariance(first: int, last: int, marginals: Array, grad: Array, lengths: Array, out: Array) -> None:
    """The Jacobian of the marginals times grad: Cov(z, <grad, z>), from the marginals alone.

    It is mu(arc) (E[<grad, z> | arc] - E<grad, z>), and the conditional mean is a sum over what comes
    before the arc and what comes after, both Markov. Centred at each step, lest rounding add up: the
    mean over a step's arcs is then that of the step's own grad.
    """
    most, tags = marginals.shape[1], marginals.shape[2]
    kind = marginals.dtype
    past, mass, mean = np.empty((most, tags), kind), np.empty((most, tags), kind), np.empty(most, kind)
    future, inside = np.empty(tags, kind), np.empty(tags, kind)
    zero = marginals.dtype.type(0)
    for b in range(first, last):
        mu, g, to, length = marginals[b], grad[b], out[b], lengths[b]
        to[0, 1:] = zero
        to[length:] = zero
        for t in range(length):
            now, held = past[t], mass[t]
            for j in range(tags):
                now[j], held[j] = zero, zero
            for i in range(1 if t == 0 else tags):
                before = zero if t == 0 else past[t - 1, i]
                chances, pulls = mu[t, i], g[t, i]
                for j in range(tags):
                    now[j] += chances[j] * (before + pulls[j])
                    held[j] += chances[j]
            total = zero
            for j in range(tags):
                total += now[j]
            mean[t] = total
            for j in range(tags):
                now[j] = now[j] / held[j] - total if held[j] > 0 else -total
        for j in range(tags):
            future[j] = zero
        for t in range(length - 1, -1, -1):
            total = zero
            for i in range(1 if t == 0 else tags):
                before = (zero if t == 0 else past[t - 1, i]) - mean[t]
                chances, pulls, pulled = mu[t, i], g[t, i], to[t, i]
                ahead = zero
                for j in range(tags):
                    along = pulls[j] + future[j]
                    ahead += chances[j] * along
                    pulled[j] = chances[j] * (before + along)
                inside[i] = ahead
                total += ahead
            if t > 0:
                for i in range(tags):
                    future[i] = inside[i] / mass[t - 1, i] - total if mass[t - 1, i] > 0 else zero


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
