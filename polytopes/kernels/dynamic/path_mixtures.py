"""Projections onto unit flows through a trellis, as mixtures of a few paths.

    minimise  |T y|^2 / 2 - <s, y>   over mixtures y of paths,

T y being the flow of every arc, or of every node. The answer mixes about as many paths as a face of
the polytope has directions, which are few: the active set of Wolfe (1976) and of Niculae et al.
(2018) holds no others. A path is a row of cells, the numbers of the arcs or nodes that it passes; two
paths' inner product is how many they share.

Three things make a step cheap. Viterbi's sweeps run on the few nodes that carry flow: those of paths
that lose little, and those that a sweep over all arcs finds to belong in, each time that paths among
the few gain no more than a part of what they gained. The weights' equations keep their factor as a
path comes or leaves. And what is left of the scores, s - T'T y, is kept on those few nodes' arcs alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.cholesky import ascend
from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.dynamic.trellis import UNSOLVED, reduce_scores
from spigot.polytopes.kernels.mixtures.gram_factor import append, dot, remove

__all__ = ["project_mixtures"]

Array = np.ndarray
LOSS = 1.5  # nodes whose best path loses no more are chosen at first
MANY = (160, 320)  # more directions than this, in arcs or in nodes, are left to other methods
MOST = 640  # paths
STEPS = 8  # a direction: more than are ever taken
LESS = 0.1  # of the last gain over all arcs: where all arcs are looked at again
LAST = 1e-3  # a gain below which the rest is solved to rounding
NOTHING = 1e-14  # a weight this small is none
NOISE, NOISE_A_LAYER = 1e-12, 1e-13  # of a path's gain


class Mixture(NamedTuple):
    """Paths, those held first, and what the equations of their weights are made of."""

    tags: Array  # (paths, length)
    cells: Array  # (paths, length)
    weights: Array  # (paths,)
    costs: Array  # (paths,), <s, path>
    factor: Array  # (paths, paths), L of G = LL', how many cells each two share
    scored: Array  # (paths,), the solution of Lx = costs
    ones: Array  # (paths,), and of Lx = 1
    fresh: Array  # (paths,), workspace


class Few(NamedTuple):
    """The nodes chosen, and the arcs between them: `width` nodes of a layer have room."""

    chosen: Array  # (length + 1, tags): 0 not, 1 chosen, 2 just now, or on a way to one
    ids: Array  # (length + 1, tags), the nodes of each layer
    place: Array  # (length + 1, tags), where in `ids`
    counts: Array  # (length + 1,)
    scores: Array  # (length * width * width,)
    left: Array  # the same, less what the mixture takes from each arc
    flow: Array  # (length * width,), through nodes
    best: Array  # (length + 1, tags), of the sweep ahead
    after: Array  # (length + 1, tags), of the sweep back


@kernel
def _directions(length: int, few: Few) -> int:
    """About how many directions the answer's face has: one less than the nodes with flow of each layer.

    They are taken to be those of a projection onto the simplex of what is lost by a path through each
    node, which is right for layers that do not depend on each other.
    """
    found = 0
    for t in range(1, length + 1):
        level, held, before = -1.0, 1, 0
        while held != before:
            before, held, total = held, 0, 0.0
            for i in range(few.best.shape[1]):
                if few.best[t, i] > level:
                    held += 1
                    total += few.best[t, i]
            level = (total - 1.0) / held
        found += held - 1
    return found


@kernel
def _gather(s: Array, length: int, few: Few) -> int:
    """The nodes chosen of each layer, and the scores of the arcs between them; the width."""
    width = 0
    for t in range(length + 1):
        count = 0
        for i in range(s.shape[1]):
            if few.chosen[t, i] > 0:
                few.chosen[t, i] = 1
                few.ids[t, count], few.place[t, i] = i, count
                count += 1
        few.counts[t] = count
        width = max(width, count)
    for t in range(length):
        for a in range(few.counts[t]):
            row, base = s[t, few.ids[t, a]], (t * width + a) * width
            for c in range(few.counts[t + 1]):
                few.scores[base + c] = row[few.ids[t + 1, c]]
    return width


@kernel
def _scatter(source: Array, length: int, width: int, few: Few, s: Array) -> None:
    """The arcs between the nodes chosen, into the scores of all."""
    for t in range(length):
        for a in range(few.counts[t]):
            base = (t * width + a) * width
            for c in range(few.counts[t + 1]):
                s[t, few.ids[t, a], few.ids[t + 1, c]] = source[base + c]


@kernel
def _cells(tags: Array, length: int, inner: int, width: int, few: Few, cells: Array) -> None:
    """The cells of a path: nodes if `inner`, else arcs."""
    a = 0
    for t in range(length):
        c = few.place[t + 1, tags[t]]
        cells[t] = t * width + c if inner else (t * width + a) * width + c
        a = c


@kernel
def _mix(held: int, length: int, inner: int, width: int, mixture: Mixture, few: Few) -> None:
    """What the mixture leaves of the scores."""
    if inner:
        for k in range(length * width):
            few.flow[k] = 0.0
        for i in range(held):
            for t in range(length):
                few.flow[mixture.cells[i, t]] += mixture.weights[i]
        for t in range(length):
            through = few.flow[t * width : (t + 1) * width]
            for a in range(few.counts[t]):
                base = (t * width + a) * width
                for c in range(few.counts[t + 1]):
                    few.left[base + c] = few.scores[base + c] - through[c]
    else:
        for k in range(length * width * width):
            few.left[k] = few.scores[k]
        for i in range(held):
            for t in range(length):
                few.left[mixture.cells[i, t]] -= mixture.weights[i]


@kernel
def _best(length: int, width: int, few: Few, tags: Array) -> float:
    """Viterbi's path on what is left of the chosen nodes' scores, and what it gains."""
    best, left = few.best, few.left
    best[0, 0] = 0.0
    for t in range(length):
        later, count = best[t + 1], few.counts[t + 1]
        for c in range(count):
            later[c] = -np.inf
        for a in range(few.counts[t]):
            before, base = best[t, a], (t * width + a) * width
            for c in range(count):
                way = left[base + c] + before
                later[c] = way if way > later[c] else later[c]
    found, top = 0, -np.inf
    for c in range(few.counts[length]):
        if best[length, c] > top:
            found, top = c, best[length, c]
    gain = top
    for t in range(length - 1, -1, -1):
        tags[t] = few.ids[t + 1, found]
        at, found, top = found, 0, -np.inf
        for a in range(few.counts[t]):
            way = left[(t * width + a) * width + at] + best[t, a]
            if way > top:
                found, top = a, way
    return gain


@kernel
def _price(s: Array, length: int, inner: int, least: float, width: int, few: Few) -> tuple[float, int]:
    """Chooses nodes of paths that gain more than `least`; the best path's gain, and how many nodes.

    Of every node chosen with such a path through it, the best way to it is chosen. At the arcs between
    chosen nodes `s` is what is left of them, but for the flow of nodes.
    """
    tags = s.shape[1]
    best, after, chosen = few.best, few.after, few.chosen
    for c in range(few.counts[length]):
        after[length, c] = 0.0
    for t in range(length - 1, -1, -1):
        for a in range(few.counts[t]):
            top, base = -np.inf, (t * width + a) * width
            for c in range(few.counts[t + 1]):
                top = max(top, few.left[base + c] + after[t + 1, c])
            after[t, a] = top
    best[0, 0] = 0.0
    for t in range(length):
        later = best[t + 1]
        later[:] = -np.inf
        for i in range(1 if t == 0 else tags):
            before, row = best[t, i], s[t, i]
            for j in range(tags):
                way = row[j] + before
                later[j] = way if way > later[j] else later[j]
        if inner:
            for c in range(few.counts[t + 1]):
                later[few.ids[t + 1, c]] -= few.flow[t * width + c]
    gain, added = -np.inf, 0
    for j in range(tags):
        gain = max(gain, best[length, j])
        if chosen[length, j] == 0 and best[length, j] > least:
            chosen[length, j] = 2
            added += 1
    for t in range(length - 1, 0, -1):
        for c in range(few.counts[t + 1]):
            j = few.ids[t + 1, c]
            if best[t + 1, j] + after[t + 1, c] > least:
                chosen[t + 1, j] = 2
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
    return gain, added


@summing
def _shared(a: Array, b: Array, n: int) -> float:
    """How many of the first n cells are the same."""
    shared = 0
    for t in range(n):
        shared += a[t] == b[t]
    return shared


@kernel
def _resolve(first: int, held: int, mixture: Mixture) -> None:
    """`scored` and `ones` from that path on."""
    scored, ones = mixture.scored, mixture.ones
    for i in range(first, held):
        row = mixture.factor[i]
        scored[i] = (mixture.costs[i] - dot(row, scored, i)) / row[i]
        ones[i] = (1.0 - dot(row, ones, i)) / row[i]


@kernel
def _drop(held: int, gone: int, length: int, mixture: Mixture) -> int:
    """A path leaves; how many are held then."""
    remove(mixture.factor, held, gone)
    for i in range(gone, held - 1):
        mixture.weights[i], mixture.costs[i] = mixture.weights[i + 1], mixture.costs[i + 1]
        for t in range(length):
            mixture.tags[i, t], mixture.cells[i, t] = mixture.tags[i + 1, t], mixture.cells[i + 1, t]
    _resolve(gone, held - 1, mixture)
    return held - 1


@kernel
def _join(held: int, length: int, mixture: Mixture) -> int:
    """The path in the first free place joins; how many are held then, or -1 if rounding forbids it.

    Its cells may be a mixture of the others' with a smaller <s, y>: then it takes their weight in these
    shares until one of them has none left, which leaves.
    """
    weights, cells, row = mixture.weights, mixture.cells, mixture.fresh
    taken = 0.0 if held > 0 else 1.0
    while True:
        for i in range(held):
            row[i] = _shared(cells[i], cells[held], length)
        row[held] = length
        if append(mixture.factor, held, row):
            break
        ascend(mixture.factor, held, row)
        reach, gone = np.inf, -1
        for i in range(held):
            if row[i] > 0.0 and weights[i] < reach * row[i]:
                reach, gone = weights[i] / row[i], i
        if gone < 0:
            return -1
        for i in range(held):
            weights[i] -= reach * row[i]
        taken += reach
        cost = mixture.costs[held]
        held = _drop(held, gone, length, mixture)
        mixture.costs[held] = cost
        for t in range(length):
            mixture.tags[held, t], cells[held, t] = mixture.tags[held + 1, t], cells[held + 1, t]
    weights[held] = taken
    _resolve(held, held + 1, mixture)
    return held + 1


@kernel
def _weigh(held: int, length: int, mixture: Mixture) -> tuple[int, float]:
    """The best weights; those that reach 0 leave. How many are held then, and what each path gains."""
    weights, aim = mixture.weights, mixture.fresh
    while True:
        ones = mixture.ones
        gain = (dot(mixture.scored, ones, held) - 1.0) / dot(ones, ones, held)
        for i in range(held):
            aim[i] = mixture.scored[i] - gain * ones[i]
        ascend(mixture.factor, held, aim)
        step, gone = 1.0, -1
        for i in range(held):
            way = weights[i] - aim[i]
            if aim[i] <= NOTHING and (gone < 0 or weights[i] < step * way):
                step, gone = weights[i] / way if way > 0.0 else 0.0, i
        if gone < 0:
            for i in range(held):
                weights[i] = aim[i]
            return held, gain
        for i in range(held):
            weights[i] += step * (aim[i] - weights[i])
        held = _drop(held, gone, length, mixture)


@kernel
def _solve(s: Array, length: int, inner: int, mixture: Mixture, few: Few) -> tuple[int, int]:
    """How many paths the projection mixes, 0 where it was not found; how many steps were taken."""
    noise = NOISE + NOISE_A_LAYER * length
    found = _directions(length, few)
    # weights cost the square of their number a step, other methods the cube of the tags a layer
    if found > MANY[inner] or 5 * found * found > length * (s.shape[1] + 5) ** 3:
        return 0, 0
    width = _gather(s, length, few)
    _mix(0, length, inner, width, mixture, few)
    held, gain, enough, step = 0, -np.inf, 1.0, 0
    while step < STEPS * found + 100 and held < MOST:
        tags = mixture.tags[held]
        more = _best(length, width, few, tags) - gain
        if more <= enough:
            least = gain + (0.5 * enough if enough > noise else noise)
            if not inner:
                _scatter(few.left, length, width, few, s)
            top, added = _price(s, length, inner, least, width, few)
            if not inner:
                _scatter(few.scores, length, width, few, s)
            if added == 0 and enough == noise:
                return held, step
            enough = LESS * min(enough, max(top - gain, more))
            enough = enough if enough > LAST else noise
            if added > 0:
                width = _gather(s, length, few)
                for i in range(held):
                    _cells(mixture.tags[i], length, inner, width, few, mixture.cells[i])
                _mix(held, length, inner, width, mixture, few)
            if added > 0 or more <= noise:
                continue
        step += 1
        i, cost = 0, 0.0
        for t in range(length):
            cost += s[t, i, tags[t]]
            i = tags[t]
        mixture.costs[held] = cost
        _cells(tags, length, inner, width, few, mixture.cells[held])
        held = _join(held, length, mixture)
        if held < 0:
            break
        held, gain = _weigh(held, length, mixture)
        _mix(held, length, inner, width, mixture, few)
    return 0, step


@kernel
def project_mixtures(
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

    `inner` is 1 for the norm of the tags' marginals, 0 for that of the arcs. The status is 0 for an
    answer exact to rounding, 3 where no path is left, UNSOLVED for an instance left to other methods,
    its values 0.
    """
    most, tags = scores.shape[1], scores.shape[2]
    s, layers, room = np.empty((most, tags, tags)), (most + 1, tags), MOST + 1
    few = Few(
        np.empty(layers, np.int64),
        np.empty(layers, np.int64),
        np.empty(layers, np.int64),
        np.empty(most + 1, np.int64),
        np.empty(most * tags * tags),
        np.empty(most * tags * tags),
        np.empty(most * tags),
        np.empty(layers),
        np.empty(layers),
    )
    mixture = Mixture(
        np.empty((room, most), np.int32),
        np.empty((room, most), np.int32),
        np.empty(room),
        np.empty(room),
        np.empty((room, room)),
        np.empty(room),
        np.empty(room),
        np.empty(room),
    )
    for b in range(first, last):
        length = lengths[b]
        # an arc of the answer loses at most `length` to the best path: <s - grad, v> is largest at both
        if reduce_scores(scores[b], length, length + 1.0, s, few.best, few.after) == -np.inf:
            status[b] = 3
            continue
        for t in range(length + 1):
            for i in range(tags):
                few.chosen[t, i] = few.best[t, i] >= -LOSS
        held, steps[b] = _solve(s, length, inner, mixture, few)
        status[b] = 0 if held > 0 else UNSOLVED
        for k in range(held):
            i = 0
            for t in range(length):
                j = mixture.tags[k, t]
                values[b, t, i, j] += mixture.weights[k]
                i = j
