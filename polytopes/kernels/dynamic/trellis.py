"""Projections onto unit flows through a trellis, and their derivative.

    minimise  h |y|^2 / 2 + |u|^2 / 2 - <s, y>   subject to  A (y, u) = b,  y >= 0

with h = 1 and no u for `Euclidean()`; for `Euclidean(of=Sequence.tags)` h = 0, and u is the flow
through the nodes: a node becomes two, with an arc of flow u between them. A Newton step solves a
system of the graph's arcs, weighted by y / (h y + z) and by 1: `layered` does, in O(length tags^3).

Mehrotra's predictor and corrector (1992) from a point that is feasible for y and z; then the arcs
with y > 0 are known but for a few, and solving for them alone ends at the projection itself.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.dynamic.layered import eliminate, substitute

__all__ = ["face_projector", "project", "reduce_scores"]

Array = np.ndarray
INTERIOR_STEPS = 100
GUESSES, SOLVES = 20, 60
INSIDE = 0.995  # of the way to the boundary
ENOUGH, CENTRE = 0.8, 0.4  # a corrector that leaves more of the gap is replaced by a step this central
PROXIMAL = 1e-3  # holds y near the interior point's where h = 0 leaves it free
DOUBT = 100.0  # times the mean of sqrt(y z): z below this may be 0
FIRST_TRY = 1e-5  # the gap from which Newton's method is tried
ARCS, TAGS, SPLIT = 0, 1, 2  # |y|^2, |T y|^2, |y|^2 without any flow from arc to arc
SMALLEST_GAP = 1e-14
UNSOLVED = 2  # a status: the interior point's own answer, or none yet
EXACT = 1e-12  # a flow out of balance by this much is in balance


@kernel
def reduce_scores(scores: Array, length: int, loss: float, s: Array, fore: Array, back: Array) -> float:
    """The best path's score; into s, scores less the best path's, -inf for arcs that lose more.

    s(i, j) = score + (best from j on) - (best from i on): <s, y> changes by a constant, and is 0 at
    the best path, so that no digits are lost to large scores.
    """
    tags = scores.shape[1]
    back[length] = 0.0
    for t in range(length - 1, -1, -1):
        back[t] = -np.inf
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                back[t, i] = max(back[t, i], scores[t, i, j] + back[t + 1, j])
    best = back[0, 0]
    fore[:] = -np.inf
    fore[0, 0] = 0.0
    for t in range(length):
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                lost = scores[t, i, j] + back[t + 1, j] - back[t, i]
                near = fore[t, i] + lost >= -loss
                s[t, i, j] = lost if near else -np.inf
                fore[t + 1, j] = max(fore[t + 1, j], fore[t, i] + s[t, i, j])
    return best


@kernel
def _walk(s: Array, length: int, y: Array, flow: Array) -> int:
    """A flow on every arc left: the mean of two random walks, from either end; the number of arcs."""
    tags = s.shape[1]
    arcs = 0
    flow[:] = 0.0
    flow[0, 0] = 1.0
    for t in range(length):
        for i in range(1 if t == 0 else tags):
            ways = 0
            for j in range(tags):
                ways += s[t, i, j] > -np.inf
            arcs += ways
            for j in range(tags):
                y[t, i, j] = 0.5 * flow[t, i] / ways if s[t, i, j] > -np.inf else 0.0
                flow[t + 1, j] += 2 * y[t, i, j]
    ends = 0
    for j in range(tags):
        ends += flow[length, j] > 0
    for j in range(tags):
        flow[length, j] = 1.0 / ends if flow[length, j] > 0 else 0.0
    for t in range(length - 1, -1, -1):
        rows = 1 if t == 0 else tags
        flow[t] = 0.0
        for j in range(tags):
            ways = 0
            for i in range(rows):
                ways += s[t, i, j] > -np.inf
            for i in range(rows):
                if s[t, i, j] > -np.inf:
                    y[t, i, j] += 0.5 * flow[t + 1, j] / ways
                    flow[t, i] += flow[t + 1, j] / ways
    return arcs


@kernel
def _start(s: Array, length: int, inner: int, y: Array, z: Array, x: Array) -> None:
    """Potentials and multipliers z > 0 that meet h y - s - A'x = z at the flow y."""
    tags = s.shape[1]
    x[:] = 0.0
    if inner:
        for t in range(length):
            for j in range(tags):
                through = 0.0
                for i in range(1 if t == 0 else tags):
                    through += y[t, i, j]
                x[2 * t + 1, j] = (t + 1 - length) / tags + through
            x[2 * t + 2] = (t + 1 - length) / tags
        x[0, 0] = -length / tags
    for t in range(length):
        layer = t * (1 + inner)
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                slope = s[t, i, j] + x[layer, i] - x[layer + 1, j]
                z[t, i, j] = (1 - inner) * y[t, i, j] - slope


@kernel
def _aim(
    s: Array,
    length: int,
    inner: int,
    x: Array,
    y: Array,
    z: Array,
    dy: Array,
    dz: Array,
    second: bool,
    target: float,
    weights: Array,
    rhs: Array,
) -> None:
    """The system of the step that makes yz = target: to first order, or with the predictor's `second`.

    (dy, dz) is the predictor's step; what z dy + y dz shall be is left in dz.
    """
    tags = s.shape[1]
    h = 1.0 - inner
    rhs[:] = 0.0
    rhs[0, 0] = 1.0
    for t in range(length):
        layer = t * (1 + inner)
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                weights[layer, i, j] = 0.0
                if y[t, i, j] > 0.0:
                    a, b = y[t, i, j], z[t, i, j]
                    lack = h * a - s[t, i, j] - x[layer, i] + x[layer + 1, j] - b
                    product = target - a * b
                    if second:
                        product -= dy[t, i, j] * dz[t, i, j]
                    weight = a / (h * a + b)
                    flow = weight * (product / a - lack) + a
                    weights[layer, i, j] = weight
                    rhs[layer, i] -= flow
                    rhs[layer + 1, j] += flow
                    dz[t, i, j] = product
        if inner:
            for j in range(tags):
                flow = x[layer + 1, j] - x[layer + 2, j]
                rhs[layer + 1, j] -= flow
                rhs[layer + 2, j] += flow


@kernel
def _follow(
    s: Array,
    length: int,
    inner: int,
    x: Array,
    y: Array,
    z: Array,
    dx: Array,
    dy: Array,
    dz: Array,
    weights: Array,
) -> tuple[float, float]:
    """The step (dy, dz) of potentials dx; how far, up to 1, y and z stay positive; <y, z> there."""
    tags = s.shape[1]
    h = 1.0 - inner
    far, gap, linear, square = 1.0, 0.0, 0.0, 0.0
    for t in range(length):
        layer = t * (1 + inner)
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                if y[t, i, j] > 0.0:
                    a, b = y[t, i, j], z[t, i, j]
                    lack = h * a - s[t, i, j] - x[layer, i] + x[layer + 1, j] - b
                    along = dx[layer, i] - dx[layer + 1, j]
                    da = weights[layer, i, j] * (along - lack + dz[t, i, j] / a)
                    db = (dz[t, i, j] - b * da) / a
                    dy[t, i, j], dz[t, i, j] = da, db
                    if far * da < -a:
                        far = -a / da
                    if far * db < -b:
                        far = -b / db
                    gap += a * b
                    linear += a * db + b * da
                    square += da * db
    return far, gap + far * (linear + far * square)


@kernel
def _advance(
    length: int, inner: int, step: float, x: Array, y: Array, z: Array, dx: Array, dy: Array, dz: Array
) -> None:
    """The step itself."""
    tags = y.shape[1]
    for t in range(length):
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                if y[t, i, j] > 0.0:
                    y[t, i, j] += step * dy[t, i, j]
                    z[t, i, j] += step * dz[t, i, j]
    for layer in range(length * (1 + inner)):
        for i in range(tags):
            x[layer, i] += step * dx[layer, i]


@kernel
def _choose(s: Array, length: int, inner: int, x: Array, y: Array, slack: float, weights: Array) -> None:
    """Which arcs are free: those where y = near + (s + A'x) / rho would be positive, or nearly so.

    Their weights in a Newton step's system; y = 0 at the others.
    """
    tags = s.shape[1]
    rho = inner * PROXIMAL
    for t in range(length):
        layer = t * (1 + inner)
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                slope = s[t, i, j] + x[layer, i] - x[layer + 1, j]
                free = slope + rho * y[t, i, j] > -slack
                weights[layer, i, j] = 1.0 / (1 - inner + rho) if free else 0.0
                y[t, i, j] = y[t, i, j] if free else 0.0


@kernel
def _missing(
    s: Array, length: int, form: int, supply: float, x: Array, y: Array, weights: Array, missing: Array
) -> None:
    """b - A (y, u) at potentials x, where arcs with a weight are free, of either sign."""
    tags = s.shape[1]
    rho = PROXIMAL if form == TAGS else 0.0
    stride = 1 if form == ARCS else 2
    missing[:] = 0.0
    missing[0, 0] = supply
    for t in range(length):
        layer = t * stride
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                weight = weights[layer, i, j]
                if weight > 0.0:
                    slope = s[t, i, j] + x[layer, i] - x[layer + 1, j]
                    flow = weight * (slope + rho * y[t, i, j])
                    missing[layer, i] -= flow
                    missing[layer + 1, j] += flow
        if form == TAGS:
            for j in range(tags):
                flow = x[layer + 1, j] - x[layer + 2, j]
                missing[layer + 1, j] -= flow
                missing[layer + 2, j] += flow


@kernel
def _settle(s: Array, length: int, form: int, x: Array, y: Array, weights: Array) -> tuple[float, float]:
    """y at the potentials x; how far it moved, and its most negative part."""
    tags = s.shape[1]
    rho = PROXIMAL if form == TAGS else 0.0
    stride = 1 if form == ARCS else 2
    change, below = 0.0, 0.0
    for t in range(length):
        layer = t * stride
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                weight = weights[layer, i, j]
                if weight > 0.0:
                    slope = s[t, i, j] + x[layer, i] - x[layer + 1, j]
                    flow = weight * (slope + rho * y[t, i, j])
                    change = max(change, abs(flow - y[t, i, j]))
                    below = max(below, -flow)
                    y[t, i, j] = flow
    return change, below


@kernel
def _solve(
    s: Array,
    length: int,
    form: int,
    supply: float,
    noise: float,
    x: Array,
    y: Array,
    weights: Array,
    within: Array,
    ahead: Array,
    degree: Array,
    dx: Array,
) -> tuple[float, float]:
    """The best flow y on the free arcs, of either sign, in place with its potentials x.

    A second step with the same factors takes the first one's rounding away; for TAGS the steps are
    proximal ones. Returns `_settle`'s last answer.
    """
    depth = length if form == ARCS else 2 * length
    eliminate(weights, depth, within, ahead, degree)
    change, below = np.inf, np.inf
    for _ in range(SOLVES):
        _missing(s, length, form, supply, x, y, weights, dx)
        substitute(depth, within, ahead, degree, dx)
        for layer in range(depth):
            for i in range(s.shape[1]):
                x[layer, i] += dx[layer, i]
        change, below = _settle(s, length, form, x, y, weights)
        if not noise < change < np.inf:
            break
    return change, below


@kernel
def _relax(s: Array, length: int, inner: int, x: Array, y: Array, weights: Array, least: float) -> float:
    """The best potentials of tags without flow, from the last one back; the largest slope unused."""
    tags = s.shape[1]
    worst = 0.0
    for t in range(length - 1, -1, -1):
        layer = t * (1 + inner)
        if inner:
            for j in range(tags):
                through = 0.0
                for i in range(1 if t == 0 else tags):
                    through += y[t, i, j]
                if through <= least:
                    x[layer + 1, j] = x[layer + 2, j]
        for i in range(1 if t == 0 else tags):
            through, lowest = 0.0, np.inf
            for j in range(tags):
                through += y[t, i, j]
                lowest = min(lowest, x[layer + 1, j] - s[t, i, j])
            if through <= least and lowest < np.inf:
                x[layer, i] = lowest
            for j in range(tags):
                if weights[layer, i, j] == 0.0:
                    worst = max(worst, s[t, i, j] + x[layer, i] - x[layer + 1, j])
    return worst


@kernel
def _copy(y: Array, z: Array, length: int, out: Array) -> float:
    """<y, z>; y into out."""
    gap = 0.0
    for t in range(length):
        for i in range(1 if t == 0 else y.shape[1]):
            for j in range(y.shape[1]):
                out[t, i, j] = y[t, i, j]
                gap += y[t, i, j] * z[t, i, j] if y[t, i, j] > 0.0 else 0.0
    return gap


@kernel
def _finish(
    s: Array,
    length: int,
    inner: int,
    slack: float,
    x: Array,
    y: Array,
    weights: Array,
    within: Array,
    ahead: Array,
    degree: Array,
    dx: Array,
) -> bool:
    """From a point near the projection to itself: the free arcs guessed, solved for, corrected.

    With h = 1 this is Newton's method on the potentials; with h = 0 every solve is a sequence of
    proximal steps. In place; whether it ended at the projection.
    """
    depth = length * (1 + inner)
    size = 0.0
    for layer in range(depth):
        for i in range(s.shape[1]):
            size = max(size, abs(x[layer, i]))
    noise = EXACT + 4e-16 * size * (1 + inner / PROXIMAL)
    _choose(s, length, inner, x, y, slack, weights)
    for _ in range(GUESSES):
        change, below = _solve(s, length, inner, 1.0, noise, x, y, weights, within, ahead, degree, dx)
        if not change < np.inf:
            return False
        above = _relax(s, length, inner, x, y, weights, noise)
        if change <= noise and below <= noise and above <= noise:
            _missing(s, length, inner, 1.0, x, y, weights, dx)
            if np.abs(dx[:depth]).max() <= 10 * noise:
                return True
        # arcs at their bound stay free: without any, a tag that flow comes into could not pass it on
        _choose(s, length, inner, x, y, noise, weights)
    return False


@kernel
def project(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    inner: int,
    values: Array,
    status: Array,
    steps: Array,
) -> None:
    """Projections into zeros (n, length, tags, tags) of float64, statuses (n,) and steps (n,).

    `inner` is 1 for the norm of the tags' marginals, 0 for that of the arcs. Instances with another
    status than UNSOLVED are passed over. The status becomes 0 for an answer exact to rounding, stays 2
    for the interior point's own, and becomes 3 where no path is left.
    """
    tags, most = scores.shape[2], scores.shape[1]
    deepest = most * (1 + inner)
    s, y, z = np.empty((most, tags, tags)), np.empty((most, tags, tags)), np.empty((most, tags, tags))
    weights, within = np.zeros((deepest, tags, tags)), np.empty((deepest, tags, tags))
    ahead, degree = np.empty((deepest, tags, tags)), np.empty((deepest, tags))
    x, dx = np.empty((deepest + 1, tags)), np.empty((deepest + 1, tags))
    dy, dz, trial = np.empty_like(y), np.empty_like(y), np.empty_like(x)
    for t in range(most * inner):
        for j in range(tags):
            weights[2 * t + 1, j, j] = 1.0
    for b in range(first, last):
        if status[b] != UNSOLVED:
            continue
        length = lengths[b]
        # an arc of the answer loses at most `length` to the best path: <s - grad, v> is largest at both
        if reduce_scores(scores[b], length, length + 1.0, s, dx, trial) == -np.inf:
            status[b] = 3
            continue
        depth = length * (1 + inner)
        arcs = _walk(s, length, y, dx)
        _start(s, length, inner, y, z, x)
        try_at = FIRST_TRY
        for step in range(INTERIOR_STEPS):
            steps[b] = step
            gap = _copy(y, z, length, values[b])
            if gap <= try_at:
                trial[:] = x
                slack = DOUBT * math.sqrt(gap / arcs)
                if _finish(
                    s, length, inner, slack, trial, values[b], weights, within, ahead, degree, dx
                ):
                    status[b] = 0
                    break
                _copy(y, z, length, values[b])
                if gap <= SMALLEST_GAP:
                    break
                try_at = 1e-2 * gap
            _aim(s, length, inner, x, y, z, dy, dz, False, 0.0, weights, dx)
            eliminate(weights, depth, within, ahead, degree)
            after, far = gap, 0.0
            for attempt in range(3):  # the predictor, the corrector, and where that leads astray
                if attempt == 1:
                    target = (after / gap) ** 3 * gap / arcs
                    _aim(s, length, inner, x, y, z, dy, dz, True, target, weights, dx)
                elif attempt == 2:
                    target = CENTRE * gap / arcs
                    _aim(s, length, inner, x, y, z, dy, dz, False, target, weights, dx)
                substitute(depth, within, ahead, degree, dx)
                far, after = _follow(s, length, inner, x, y, z, dx, dy, dz, weights)
                if attempt == 1 and after <= ENOUGH * gap:
                    break
            _advance(length, inner, min(1.0, INSIDE * far), x, y, z, dx, dy, dz)


@kernel
def face_projector(
    first: int,
    last: int,
    slopes: Array,
    lengths: Array,
    inner: int,
    tolerance: float,
    grad: Array,
    pulled: Array,
) -> None:
    """The derivative of the maximiser times grad, on the face where <slopes, y> is largest.

    Its directions are the circulations on the arcs of best paths; `tolerance` times 1 plus the
    largest slope is what such a path may lose. With `inner`, J = B (B'T'T B)^+ B' for a basis B.
    """
    tags, most = slopes.shape[2], slopes.shape[1]
    deepest = most * (1 + inner)
    s, d, g = np.empty((most, tags, tags)), np.empty((most, tags, tags)), np.empty((most, tags, tags))
    weights, within = np.empty((deepest, tags, tags)), np.empty((deepest, tags, tags))
    ahead, degree = np.empty((deepest, tags, tags)), np.empty((deepest, tags))
    x, dx = np.empty((deepest + 1, tags)), np.empty((deepest + 1, tags))
    for b in range(first, last):
        length = lengths[b]
        largest = 0.0
        for t in range(length):
            for i in range(1 if t == 0 else tags):
                for j in range(tags):
                    if slopes[b, t, i, j] > -np.inf:
                        largest = max(largest, abs(slopes[b, t, i, j]))
        reduce_scores(slopes[b], length, tolerance * (1.0 + largest), s, x, dx)
        noise = 0.0
        for t in range(length):
            for i in range(1 if t == 0 else tags):
                for j in range(tags):
                    g[t, i, j] = grad[b, t, i, j]
                    d[t, i, j] = 0.0
                    noise = max(noise, 1e-14 * abs(g[t, i, j]))
        if inner:  # what T does not see, and no pseudo-inverse gives back
            _free_arcs(s, length, SPLIT, weights)
            x[:] = 0.0
            _solve(g, length, SPLIT, 0.0, noise, x, d, weights, within, ahead, degree, dx)
            for t in range(length):
                for i in range(1 if t == 0 else tags):
                    for j in range(tags):
                        g[t, i, j] -= d[t, i, j]
                        d[t, i, j] = 0.0
        _free_arcs(s, length, inner, weights)
        x[:] = 0.0
        _solve(g, length, inner, 0.0, noise, x, d, weights, within, ahead, degree, dx)
        for t in range(length):
            for i in range(1 if t == 0 else tags):
                for j in range(tags):
                    pulled[b, t, i, j] = d[t, i, j]


@kernel
def _free_arcs(s: Array, length: int, form: int, weights: Array) -> None:
    """The weights where every arc left is free."""
    tags = s.shape[1]
    each = 1.0 / PROXIMAL if form == TAGS else 1.0
    stride = 1 if form == ARCS else 2
    for t in range(length):
        for i in range(1 if t == 0 else tags):
            for j in range(tags):
                weights[t * stride, i, j] = each if s[t, i, j] > -np.inf else 0.0
        if form != ARCS:
            weights[2 * t + 1] = 0.0
            for j in range(tags):
                weights[2 * t + 1, j, j] = 1.0 if form == TAGS else 0.0
