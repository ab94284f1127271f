"""Projections onto unit flows through a trellis, by the few nodes that carry flow.

    minimise  |y|^2 / 2 - <s, y>   subject to  A y = b,  y >= 0

The answer uses a few nodes of a layer, whatever its width. So the problem is solved on a choice of
nodes: first those with flow where each layer's arcs alone are projected onto a simplex, at the mean of
the potentials of Viterbi's two sweeps. A sweep over all arcs then finds the nodes left out that
belong in, and the choice is corrected. An early look, at a loose answer, also drops the nodes that
look idle; the later rounds start from the point with y z = mu at the potentials found before.

On the chosen nodes: Mehrotra's predictor and corrector (1992), on arcs in one row without gaps, then
Newton's method for y = (s + A'x)+, A y = b. That y is the projection once the flow is in balance and
no arc left out has s + A'x > 0: exact to rounding, or else the instance is left to `trellis`.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.dynamic.trellis import (
    CENTRE,
    ENOUGH,
    EXACT,
    INSIDE,
    UNSOLVED,
    reduce_scores,
)

__all__ = ["project_narrow"]

Array = np.ndarray
ROUNDS, COLD_STEPS, WARM_STEPS, GUESSES = 12, 60, 12, 15
EARLY = 0.15  # the gap a layer at which nodes are first looked at
IDLE = 0.1  # an arc with y below this times z looks idle
SLIGHT = 1e-2  # times sqrt(mu): what a way must gain to count at that look
TRY_AT, SMALLEST_GAP = 1e-2, 1e-12  # gaps between which Newton's method is tried
LARGEST = 1e4  # potentials beyond this are not trusted
ABSENT = -1e300


@kernel
def _levels(s: Array, length: int, fore: Array, x: Array, values: Array) -> None:
    """Potentials where every layer's arcs (s + A'x)+ have the sum 1.

    They are half of what the best ways ahead lose, and a level a layer: the threshold of a projection
    onto the simplex, found as Michelot (1986) does.
    """
    tags = s.shape[1]
    for t in range(length):
        for i in range(tags):
            x[t, i] = 0.5 * fore[t, i] if fore[t, i] > -np.inf else 0.0
    x[length] = 0.0
    level = 0.0
    for t in range(length - 1, -1, -1):
        above = level if t + 1 < length else 0.0
        left, top = 0, -np.inf
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                v = s[t, i, j] + x[t, i] - (x[t + 1, j] - above)
                top = max(top, v)
                values[left] = v
                left += v > top - 1.0
        total = 0.0
        for k in range(left):
            total += values[k]
        before = left + 1
        threshold = (total - 1.0) / left
        while 0 < left < before:
            before, left, total = left, 0, 0.0
            for k in range(before):
                v = values[k]
                if v > threshold:
                    values[left] = v
                    left += 1
                    total += v
            threshold = (total - 1.0) / left if left > 0 else threshold
        level -= threshold
        for i in range(tags):
            x[t, i] += level


@summing
def _flows(s: Array, length: int, x: Array, out: Array, into: Array) -> None:
    """What leaves and enters the nodes with the flow (s + A'x)+."""
    tags = s.shape[1]
    out[:] = 0.0
    into[:] = 0.0
    for t in range(length):
        later, enters = x[t + 1], into[t + 1]
        for i in range(1 if t == 0 else tags):
            potential, row, total = x[t, i], s[t, i], 0.0
            for j in range(tags):
                slope = row[j] + potential - later[j]
                flow = slope if slope > 0.0 else 0.0
                total += flow
                enters[j] += flow
            out[t, i] = total


@kernel
def _gather(
    s: Array, length: int, chosen: Array, ids: Array, count: Array, slopes: Array, there: Array
) -> int:
    """The chosen nodes of each layer, and the scores of the arcs between them; how many arcs.

    `there` is 0 at arcs that the trellis lacks.
    """
    tags = s.shape[1]
    for t in range(length + 1):
        count[t] = 0
        for i in range(tags):
            if chosen[t, i] > 0:
                chosen[t, i] = 1
                ids[t, count[t]] = i
                count[t] += 1
    arcs = 0
    for t in range(length):
        for a in range(count[t]):
            row = s[t, ids[t, a]]
            for c in range(count[t + 1]):
                score = row[ids[t + 1, c]]
                there[arcs] = 1.0 if score > -np.inf else 0.0
                slopes[arcs] = score if score > -np.inf else ABSENT
                arcs += 1
    return arcs


@kernel
def _walk(length: int, count: Array, arcs: int, there: Array, y: Array, flow: Array) -> float:
    """A flow on every arc: the mean of two random walks, from either end; how many arcs have flow.

    The others lie on no way from end to end: the interior point goes without them, `there` is 0.
    """
    flow[0, 0] = 1.0
    for c in range(count[length]):
        flow[length, c] = 0.0
    k = 0
    for t in range(length):
        width = count[t + 1]
        for c in range(width):
            flow[t + 1, c] = 0.0
        for a in range(count[t]):
            ways = 0.0
            for c in range(width):
                ways += there[k + c]
            share = flow[t, a] / max(ways, 1.0)
            for c in range(width):
                y[k + c] = 0.5 * share * there[k + c]
                flow[t + 1, c] += share * there[k + c]
            k += width
    ends = 0
    for c in range(count[length]):
        ends += flow[length, c] > 0.0
    for c in range(count[length]):
        flow[length, c] = 1.0 / ends if flow[length, c] > 0.0 else 0.0
    for t in range(length - 1, -1, -1):
        rows, width = count[t], count[t + 1]
        k -= rows * width
        for a in range(rows):
            flow[t, a] = 0.0
        for c in range(width):
            ways = 0.0
            for a in range(rows):
                ways += there[k + a * width + c]
            share = flow[t + 1, c] / max(ways, 1.0)
            for a in range(rows):
                y[k + a * width + c] += 0.5 * share * there[k + a * width + c]
                flow[t, a] += share * there[k + a * width + c]
    total = 0.0
    for k in range(arcs):
        there[k] = 1.0 if y[k] > 0.0 else 0.0
        total += there[k]
    return total


@kernel
def _multipliers(arcs: int, slopes: Array, there: Array, y: Array, z: Array, along: Array) -> None:
    """z that meets y - s - A'x = z."""
    for k in range(arcs):
        z[k] = y[k] - slopes[k] - along[k] if there[k] > 0.0 else 1.0


@kernel
def _central(
    arcs: int, slopes: Array, there: Array, mu: float, along: Array, y: Array, z: Array
) -> None:
    """y - z = s + A'x and yz = mu."""
    for k in range(arcs):
        slope = slopes[k] + along[k]
        larger = 0.5 * (abs(slope) + math.sqrt(slope * slope + 4.0 * mu))
        smaller = mu / larger
        y[k] = (larger if slope > 0.0 else smaller) if there[k] > 0.0 else 0.0
        z[k] = (smaller if slope > 0.0 else larger) if there[k] > 0.0 else 1.0


@kernel
def _differences(length: int, count: Array, x: Array, along: Array) -> None:
    """A'x: what the potentials fall along each arc."""
    k = 0
    for t in range(length):
        width = count[t + 1]
        later = x[t + 1]
        for a in range(count[t]):
            potential = x[t, a]
            for c in range(width):
                along[k + c] = potential - later[c]
            k += width


@kernel
def _missing(length: int, count: Array, flow: Array, missing: Array) -> None:
    """b - A flow."""
    for t in range(length + 1):
        for a in range(count[t]):
            missing[t, a] = 0.0
    missing[0, 0] = 1.0
    k = 0
    for t in range(length):
        width = count[t + 1]
        later = missing[t + 1]
        for a in range(count[t]):
            total = 0.0
            for c in range(width):
                total += flow[k + c]
                later[c] += flow[k + c]
            missing[t, a] -= total
            k += width


@kernel
def _eliminate(
    length: int, count: Array, weights: Array, within: Array, ahead: Array, degree: Array
) -> None:
    """`layered.eliminate` where layer t has count[t] nodes, and the arcs' weights are one row."""
    within[0, 0, 0] = 0.0
    k = 0
    for t in range(length):
        rows, width, last = count[t], count[t + 1], t + 1 == length
        for a in range(rows):
            for c in range(width):
                ahead[t, a, c] = weights[k + c]
            k += width
        if not last:
            for a in range(width):
                for c in range(width):
                    within[t + 1, a, c] = 0.0
        for a in range(rows):
            total = 0.0
            for b in range(a + 1, rows):
                total += within[t, a, b]
            for c in range(width):
                total += ahead[t, a, c]
            degree[t, a] = total
            if total <= 0.0:
                continue
            inverse = 1.0 / total
            for b in range(a + 1, rows):
                share = within[t, a, b] * inverse
                if share > 0.0:
                    for c in range(b + 1, rows):
                        within[t, b, c] += share * within[t, a, c]
                    for c in range(width):
                        ahead[t, b, c] += share * ahead[t, a, c]
            if not last:
                for c in range(width):
                    share = ahead[t, a, c] * inverse
                    if share > 0.0:
                        for d in range(c + 1, width):
                            within[t + 1, c, d] += share * ahead[t, a, d]


@kernel
def _substitute(length: int, count: Array, within: Array, ahead: Array, degree: Array, x: Array) -> None:
    """`layered.substitute` where layer t has count[t] nodes."""
    for t in range(length):
        rows, width = count[t], count[t + 1]
        for a in range(rows):
            if degree[t, a] > 0.0:
                share = x[t, a] / degree[t, a]
                for b in range(a + 1, rows):
                    x[t, b] += within[t, a, b] * share
                for c in range(width):
                    x[t + 1, c] += ahead[t, a, c] * share
    x[length] = 0.0
    for t in range(length - 1, -1, -1):
        rows, width = count[t], count[t + 1]
        for a in range(rows - 1, -1, -1):
            total = x[t, a]
            for b in range(a + 1, rows):
                total += within[t, a, b] * x[t, b]
            for c in range(width):
                total += ahead[t, a, c] * x[t + 1, c]
            x[t, a] = total / degree[t, a] if degree[t, a] > 0.0 else 0.0


@summing
def _predict(arcs: int, y: Array, z: Array, inverse: Array, weights: Array, flow: Array) -> float:
    """The system of the step that makes yz = 0 to first order; <y, z>."""
    gap = 0.0
    for k in range(arcs):
        a, b = y[k], z[k]
        inverse[k] = 1.0 / (a + b)
        weights[k] = a * inverse[k]
        flow[k] = a * weights[k]
        gap += a * b
    return gap


@summing
def _aim(
    arcs: int,
    target: float,
    second: float,
    there: Array,
    y: Array,
    z: Array,
    dy: Array,
    dz: Array,
    inverse: Array,
    flow: Array,
    product: Array,
) -> None:
    """The flow of the step that makes yz = target, with `second` times the step before's dy dz."""
    for k in range(arcs):
        product[k] = target * there[k] - y[k] * z[k] - second * dy[k] * dz[k]
        flow[k] = product[k] * inverse[k] + y[k]


@summing
def _follow(
    arcs: int,
    there: Array,
    y: Array,
    z: Array,
    inverse: Array,
    along: Array,
    product: Array,
    dy: Array,
    dz: Array,
) -> tuple[float, float]:
    """The step (dy, dz); by how much <y, z> changes along it, to first and to second order."""
    linear, square = 0.0, 0.0
    for k in range(arcs):
        a, b = y[k], z[k]
        da = (a * along[k] + product[k]) * inverse[k]
        db = (da - along[k]) * there[k]
        dy[k], dz[k] = da, db
        linear += a * db + b * da
        square += da * db
    return linear, square


@kernel
def _far(arcs: int, y: Array, z: Array, dy: Array, dz: Array) -> float:
    """How far along the step, up to 1, y and z stay positive."""
    far = 1.0
    for k in range(arcs):
        if far * dy[k] < -y[k]:
            far = -y[k] / dy[k]
        if far * dz[k] < -z[k]:
            far = -z[k] / dz[k]
    return far


@kernel
def _settle(
    length: int,
    count: Array,
    arcs: int,
    slopes: Array,
    x: Array,
    y: Array,
    weights: Array,
    flow: Array,
    missing: Array,
    within: Array,
    ahead: Array,
    degree: Array,
) -> float:
    """Newton's method for the potentials x with y = (s + A'x)+ in balance; the noise of it, or inf."""
    for _ in range(GUESSES):
        _differences(length, count, x, flow)
        for k in range(arcs):
            slope = slopes[k] + flow[k]
            y[k] = slope if slope > 0.0 else 0.0
            weights[k] = 1.0 if slope > 0.0 else 0.0
        _missing(length, count, y, missing)
        error, size = 0.0, 0.0
        for t in range(length):
            for a in range(count[t]):
                error = max(error, abs(missing[t, a]))
                size = max(size, abs(x[t, a]))
        if not (error < np.inf and size < LARGEST):
            break
        noise = EXACT + 4e-16 * size
        if error <= noise:
            return noise
        _eliminate(length, count, weights, within, ahead, degree)
        _substitute(length, count, within, ahead, degree, missing)
        for t in range(length):
            for a in range(count[t]):
                x[t, a] += missing[t, a]
    return np.inf


@kernel
def _step(
    length: int,
    count: Array,
    arcs: int,
    real: float,
    gap: float,
    there: Array,
    y: Array,
    z: Array,
    x: Array,
    dy: Array,
    dz: Array,
    inverse: Array,
    weights: Array,
    flow: Array,
    along: Array,
    product: Array,
    dx: Array,
    within: Array,
    ahead: Array,
    degree: Array,
) -> None:
    """A step of Mehrotra's in place; inverse, weights and flow are `_predict`'s."""
    _eliminate(length, count, weights, within, ahead, degree)
    for k in range(arcs):
        product[k] = -y[k] * z[k]
    after, far = gap, 0.0
    for attempt in range(3):  # the predictor, the corrector, and where that leads astray
        if attempt > 0:
            target = ((after / gap) ** 3 if attempt == 1 else CENTRE) * gap / real
            _aim(arcs, target, 2.0 - attempt, there, y, z, dy, dz, inverse, flow, product)
        _missing(length, count, flow, dx)
        _substitute(length, count, within, ahead, degree, dx)
        _differences(length, count, dx, along)
        linear, square = _follow(arcs, there, y, z, inverse, along, product, dy, dz)
        far = _far(arcs, y, z, dy, dz)
        after = gap + far * (linear + far * square)
        if attempt == 1 and after <= ENOUGH * gap:
            break
    step = min(1.0, INSIDE * far)
    for k in range(arcs):
        y[k] += step * dy[k]
        z[k] += step * dz[k]
    for t in range(length):
        for a in range(count[t]):
            x[t, a] += step * dx[t, a]


@kernel
def _price(
    s: Array,
    length: int,
    noise: float,
    ids: Array,
    count: Array,
    x: Array,
    chosen: Array,
    best: Array,
    sweep: Array,
) -> int:
    """Chooses (2 in `chosen`) the nodes left out on ways better than the potentials allow; how many.

    `best` (length + 1, tags) are potentials of all nodes: those of the nodes left out are what the best
    way to them gives, so that no arc into them has s + A'x > 0.
    """
    tags = s.shape[1]
    held, free, limit = sweep[0], sweep[1], sweep[2]
    best[0] = -np.inf
    best[0, 0] = x[0, 0]
    added = 0
    for t in range(length):
        held[:] = -np.inf
        free[:] = -np.inf
        limit[:] = np.inf if t + 1 < length else 0.0
        for c in range(count[t + 1]):
            limit[ids[t + 1, c]] = x[t + 1, c]
        for i in range(1 if t == 0 else tags):
            potential, row = best[t, i], s[t, i]
            ways = held if chosen[t, i] == 1 else free
            for j in range(tags):
                way = row[j] + potential
                ways[j] = ways[j] if ways[j] > way else way
        for j in range(tags):
            if free[j] > limit[j] + noise:
                added += _best_free(s[t], best[t], free[j], j, chosen[t])
            if chosen[t + 1, j] != 1:
                best[t + 1, j] = max(free[j], held[j])
                if t + 1 == length and best[t + 1, j] > noise:
                    chosen[t + 1, j] = 2
                    added += 1
        if t + 1 < length:
            for c in range(count[t + 1]):
                best[t + 1, ids[t + 1, c]] = x[t + 1, c]
    for t in range(length - 1, 0, -1):  # the ways to the new nodes
        for j in range(tags):
            if chosen[t + 1, j] == 2:
                found, top = 0, -np.inf
                for i in range(tags):
                    way = s[t, i, j] + best[t, i]
                    if way > top:
                        found, top = i, way
                if chosen[t, found] == 0:
                    chosen[t, found] = 2
                    added += 1
    return added


@kernel
def _best_free(s: Array, best: Array, top: float, j: int, chosen: Array) -> int:
    """Chooses the first node left out whose way to j gives `top`; 1, or 0 if it was chosen just now."""
    for i in range(s.shape[0]):
        if chosen[i] != 1 and s[i, j] + best[i] == top:
            new = chosen[i] == 0
            chosen[i] = 2
            return int(new)
    return 0


@kernel
def _drop(
    length: int, count: Array, ids: Array, y: Array, z: Array, least: float, chosen: Array
) -> None:
    """Leaves out the nodes that no arc enters, or none leaves, with y > least * z."""
    k = 0
    for t in range(length):
        width = count[t + 1]
        for a in range(count[t]):
            busy = t == 0
            for c in range(width):
                busy = busy or y[k + a * width + c] > least * z[k + a * width + c]
            if not busy:
                chosen[t, ids[t, a]] = 0
        for c in range(width):
            busy = False
            for a in range(count[t]):
                busy = busy or y[k + a * width + c] > least * z[k + a * width + c]
            if not busy:
                chosen[t + 1, ids[t + 1, c]] = 0
        k += count[t] * width


@kernel
def project_narrow(
    first: int, last: int, scores: Array, lengths: Array, values: Array, status: Array, steps: Array
) -> None:
    """Projections into zeros (n, length, tags, tags) of float64, statuses (n,) and steps (n,).

    Instances with another status than UNSOLVED are passed over. The status becomes 0 for an answer
    exact to rounding, 3 where no path is left, and stays 2 for an instance left to `trellis.project`.
    """
    most, tags = scores.shape[1], scores.shape[2]
    s, size = np.empty((most, tags, tags)), most * tags * tags
    slopes, there, y, z = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    dy, dz, product, exact = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    inverse, weights, flow, along = np.empty(size), np.empty(size), np.empty(size), np.empty(size)
    within, ahead, degree = np.empty_like(s), np.empty_like(s), np.empty((most, tags))
    x, dx, trial = np.empty((most + 1, tags)), np.empty((most + 1, tags)), np.empty((most + 1, tags))
    start, best = np.empty((most + 1, tags)), np.empty((most + 1, tags))
    chosen, ids = np.empty((most + 1, tags), np.int64), np.empty((most + 1, tags), np.int64)
    count, sweep, buffer = np.empty(most + 1, np.int64), np.empty((3, tags)), np.empty(tags * tags)
    for b in range(first, last):
        if status[b] != UNSOLVED:
            continue
        length = lengths[b]
        if reduce_scores(scores[b], length, length + 1.0, s, start, best) == -np.inf:
            status[b] = 3
            continue
        status[b] = UNSOLVED
        _levels(s, length, start, x, buffer)
        _flows(s, length, x, dx, trial)
        for t in range(length + 1):
            for i in range(tags):
                chosen[t, i] = trial[t, i] > 0.0 or dx[t, i] > 0.0 or start[t, i] == 0.0
        chosen[0] = 0
        chosen[0, 0] = 1
        mu = 0.0
        for attempt in range(ROUNDS):
            arcs = _gather(s, length, chosen, ids, count, slopes, there)
            real = there[:arcs].sum()
            noise, gap = np.inf, np.inf
            for cold in range(2):
                if attempt == 0 or cold:
                    x[:] = 0.0
                    real = _walk(length, count, arcs, there, y, dx)
                    _differences(length, count, x, along)
                    _multipliers(arcs, slopes, there, y, z, along)
                else:
                    for t in range(length):
                        for a in range(count[t]):
                            x[t, a] = best[t, ids[t, a]]
                    x[length] = 0.0
                    _differences(length, count, x, along)
                    _central(arcs, slopes, there, mu, along, y, z)
                try_at = TRY_AT
                for _ in range(COLD_STEPS if cold or attempt == 0 else WARM_STEPS):
                    gap = _predict(arcs, y, z, inverse, weights, flow)
                    if not SMALLEST_GAP < gap < np.inf or (attempt == 0 and gap <= EARLY * length):
                        break
                    if gap <= try_at:
                        trial[:] = x
                        noise = _settle(
                            length,
                            count,
                            arcs,
                            slopes,
                            trial,
                            exact,
                            dy,
                            along,
                            dx,
                            within,
                            ahead,
                            degree,
                        )
                        if noise < np.inf:
                            x[:] = trial
                            break
                        try_at = 1e-2 * gap
                    steps[b] += 1
                    _step(
                        length,
                        count,
                        arcs,
                        real,
                        gap,
                        there,
                        y,
                        z,
                        x,
                        dy,
                        dz,
                        inverse,
                        weights,
                        flow,
                        along,
                        product,
                        dx,
                        within,
                        ahead,
                        degree,
                    )
                if noise < np.inf or attempt == 0:
                    break
            if attempt == 0:
                if not gap < np.inf:
                    break
                mu = max(gap / real, 1e-6)
                _price(s, length, SLIGHT * math.sqrt(mu), ids, count, x, chosen, best, sweep)
                _drop(length, count, ids, y, z, IDLE, chosen)
            elif noise == np.inf:
                break
            elif _price(s, length, noise, ids, count, x, chosen, best, sweep) == 0:
                k = 0
                for t in range(length):
                    for a in range(count[t]):
                        for c in range(count[t + 1]):
                            values[b, t, ids[t, a], ids[t + 1, c]] = exact[k]
                            k += 1
                status[b] = 0
                break
