r"""The best mixtures of vertices, one step of the oracle for a batch: Wolfe's algorithm (1976).

minimise |sum w_k a_k|^2 / 2 - sum w_k c_k over w >= 0, sum w = 1, on the Gram matrix alone: a step
costs m^2 numbers for m vertices, whatever the vertices' size.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.cholesky import ascend
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.mixtures.gram_factor import balanced
from spigot.polytopes.kernels.mixtures.mixtures import Mixtures, clear, drop, join, meet, mix, refactor
from spigot.polytopes.kernels.mixtures.patience import Patience, waited

__all__ = [
    "CONVERGED",
    "CROWDED",
    "GOING",
    "INACCURATE",
    "STOPPED",
    "advance",
    "begin",
    "settle",
    "trade",
]

# what `advance` says of an instance: a `Status`, or
CONVERGED, STOPPED, INACCURATE = 0, 1, 2
GOING, WORN, CROWDED = 3, 4, 5
"""It goes on; it goes on with a fresh factor; it needs more room and is as it was."""

NOTHING = 1e-14  # a weight this small is none
ROUNDING = 1e-15  # a few units of float64's last place
ROUNDED = 3e-14  # a gap of rounding's size, relative to the sums that it is computed from
STILL, LONG = 10, 100  # steps that such a gap, and a plausible one, may go on without being halved


@kernel
def begin(
    first: int,
    last: int,
    vertices: np.ndarray,  # (n, m, d)
    images: np.ndarray,  # (n, m, p)
    weights: np.ndarray,  # (n, m), 0 where a vertex is not to be used
    state: Mixtures,
) -> None:
    """Takes the vertices given, but for those that depend affinely on earlier ones."""
    row = np.empty(state.slots.shape[1])
    for i in range(first, last):
        clear(i, state)
        for k in range(weights.shape[1]):
            if weights[i, k] > 0.0 and meet(i, vertices[i, k], images[i, k], state):
                join(i, weights[i, k], state, row)
        _normalise(i, state)


@kernel
def settle(first: int, last: int, state: Mixtures, y: np.ndarray) -> None:
    """The best weights on the vertices taken, and the points y that they make."""
    workspace = np.empty((2, state.slots.shape[1]))
    for i in range(first, last):
        _correct(i, state, workspace)
        mix(i, state, y[i])


@kernel
def advance(
    first: int,
    last: int,
    rows: np.ndarray,  # (r,), the instances
    scores: np.ndarray,  # (n, d)
    slopes: np.ndarray,  # (r, d)
    best: np.ndarray,  # (r, d), the best vertices at these slopes
    images: np.ndarray,  # (r, p)
    patience: Patience,
    tolerance: float,
    plausible: float,
    more: bool,
    state: Mixtures,
    y: np.ndarray,  # (n, d)
    gaps: np.ndarray,  # (n,)
    verdicts: np.ndarray,  # (n,)
) -> None:
    """One step: the certificate <slope, v - y>, and where it is too large v joins the mixture.

    Where v is in the mixture already, or leaves it at once, rounding has the last word: that is
    convergence if the gap is `plausible`, relative to 1 + |<s, y>| as `tolerance` is, or no more than
    rounding makes of the sums that it is computed from. So it is where such a gap falls no more.
    """
    room = state.slots.shape[1]
    row, workspace = np.empty(room), np.empty((2, room))
    for r in range(first, last):
        i = rows[r]
        gap, along, size = 0.0, 0.0, 0.0
        for j in range(scores.shape[1]):
            way = best[r, j] - y[i, j]
            gap += slopes[r, j] * way
            along += scores[i, j] * y[i, j]
            size += (abs(scores[i, j]) + abs(best[r, j]) + abs(y[i, j])) * abs(way)
        gaps[i] = gap
        scale = 1.0 + abs(along)
        if gap <= tolerance * scale:
            verdicts[i] = CONVERGED
            continue
        if state.held[i] == room:
            verdicts[i] = CROWDED
            continue
        still = waited(i, gap, patience)
        rests = still >= STILL and gap <= ROUNDED * (scale + size)
        rests = rests or (still >= LONG and gap <= plausible * scale)
        fresh = not rests and meet(i, best[r], images[r], state)
        if rests:
            verdicts[i] = CONVERGED
        elif not more and fresh:
            verdicts[i] = STOPPED
        elif fresh and _gain(i, state, row, workspace):
            mix(i, state, y[i])
            verdicts[i] = GOING
        elif gap <= max(tolerance, plausible) * scale + ROUNDING * size:
            verdicts[i] = CONVERGED
        elif verdicts[i] == WORN or not more:
            verdicts[i] = INACCURATE
        else:
            verdicts[i] = WORN
            refactor(i, state, row)
            _normalise(i, state)
            _correct(i, state, workspace)
            mix(i, state, y[i])


@kernel
def _gain(i: int, state: Mixtures, row: np.ndarray, workspace: np.ndarray) -> bool:
    """The vertex just met joins, and the weights become the best; whether that changed anything."""
    slots, held = state.slots[i], state.held[i]
    fresh, weight = slots[held], 0.0
    while not join(i, weight, state, row):
        taken = trade(i, state, row)
        if taken < 0.0:
            _normalise(i, state)
            return False
        weight += taken
    _correct(i, state, workspace)
    return bool(state.held[i] != held or np.any(slots[:held] == fresh))


@kernel
def trade(i: int, state: Mixtures, row: np.ndarray) -> float:
    """The weight that the vertex just met takes from those it depends on, until one has none left.

    That one leaves. T y stays, and <s, y> grows where the vertices held are all equally good. -1 if
    rounding leaves nothing to take.
    """
    held, weights, slots, factor = state.held[i], state.weights[i], state.slots[i], state.factor[i]
    ascend(factor, held, row)  # the others' shares of the vertex, from L's row
    reach, gone = np.inf, -1
    for k in range(held):
        if row[k] > 0.0 and weights[k] / row[k] < reach:
            reach, gone = weights[k] / row[k], k
    if gone < 0 or held < 2:
        return -1.0
    for k in range(held):
        weights[k] = max(weights[k] - reach * row[k], 0.0)
    drop(i, gone, state)
    slots[held - 1], slots[held] = slots[held], slots[held - 1]
    return reach


@kernel
def _correct(i: int, state: Mixtures, workspace: np.ndarray) -> None:
    """The best weights on the vertices held; those that reach 0 leave."""
    weights, slots, gram, costs = state.weights[i], state.slots[i], state.gram[i], state.costs[i]
    move, ones = workspace[0], workspace[1]
    while state.held[i] > 1:
        held = state.held[i]
        heavy = 0
        for k in range(held):
            total = costs[slots[k]]
            for j in range(held):
                total -= gram[slots[k], slots[j]] * weights[j]
            move[k] = total
            if weights[k] > weights[heavy]:
                heavy = k
        base = move[heavy]
        for k in range(held):
            move[k] -= base
        balanced(state.factor[i], held, move, ones)
        reach, empty = np.inf, -1
        for k in range(held):
            if move[k] < 0.0 and -weights[k] / move[k] < reach:
                reach, empty = -weights[k] / move[k], k
        step = min(reach, 1.0)
        for k in range(held):
            weights[k] = max(weights[k] + step * move[k], 0.0)
        if reach < 1.0:
            weights[empty] = 0.0
        _normalise(i, state)
        if reach >= 1.0:
            return
    state.weights[i, 0] = 1.0


@kernel
def _normalise(i: int, state: Mixtures) -> None:
    """Vertices without weight leave, and the weights sum to 1."""
    k = 0
    while k < state.held[i]:
        if state.weights[i, k] <= NOTHING:
            drop(i, k, state)
        else:
            k += 1
    total = 0.0
    for k in range(state.held[i]):
        total += state.weights[i, k]
    for k in range(state.held[i]):
        state.weights[i, k] /= total
