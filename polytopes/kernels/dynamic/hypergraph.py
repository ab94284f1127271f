"""A dynamic programme, compiled to flat arrays: best derivations, sums over all, samples.

Nodes are numbered so that tails come before heads; node 0 is the unit, which nothing derives. The
edges of node v are `starts[v]:starts[v + 1]`, each v <- left, right with one part; part 0 is none,
and part p stands for the flat entry `slots[p]` of the scores. An instance asks for the derivations
of its own goal, for which nodes up to the goal and parts up to `used` are enough.

Sums run in float64 over numbers m 2^x with 1/2 <= m < 1 and x an integer in a float64 of its own
(-inf for zero): they cannot overflow or underflow, and only sum positive terms, so that every
probability has a small relative error at any scale of the scores.
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.structures.program import Edges

__all__ = ["best", "covariance", "draw", "heights", "k_best", "marginals", "most_choices"]

LOG2_E = 1.4426950408889634
LN2 = 0.6931471805599453
LN2_HIGH = 0.6931471803691238  # its first 32 bits: products with an exponent are exact,
LN2_LOW = 1.9082149292705877e-10  # and the rest
SPAN = 1000.0  # a term so many powers of two below the largest is nothing
POWERS = 0.5 ** np.arange(int(SPAN) + 1)


@kernel
def _read(
    i: int, used: int, edges: Edges, scores: np.ndarray, keep: np.ndarray, log: np.ndarray
) -> None:
    """Instance i's score of each part, -inf where it is not kept; no rows of `keep` keep all."""
    masked = keep.shape[0] > 0
    log[0] = 0.0
    for p in range(1, used + 1):
        slot = edges.slots[p]
        log[p] = scores[i, slot]
        if masked and not keep[i, slot]:
            log[p] = -np.inf


@kernel
def best(
    first: int,
    last: int,
    edges: Edges,
    goals: np.ndarray,
    used: np.ndarray,
    generic: np.ndarray,
    tolerance: float,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    objective: np.ndarray,
) -> None:
    """The best derivation, added to `out`; its score, -inf where there is none.

    Of edges that tie (within a relative tolerance) the one that the generic scores like best wins.
    """
    starts, left, right, part, slots = edges
    nodes = len(starts) - 1
    log = np.empty(len(slots))
    value = np.empty(nodes)
    taste = np.empty(nodes)
    choice = np.empty(nodes, dtype=np.int64)
    stack = np.empty(nodes + 2, dtype=np.int64)
    value[0] = 0.0
    taste[0] = 0.0
    for i in range(first, last):
        _read(i, used[i], edges, scores, keep, log)
        for node in range(1, goals[i] + 1):
            top = -np.inf
            liking = -np.inf
            slack = 0.0
            chosen = starts[node]
            for e in range(starts[node], starts[node + 1]):
                candidate = value[left[e]] + value[right[e]] + log[part[e]]
                if candidate < top - slack or candidate == -np.inf:
                    continue
                liked = taste[left[e]] + taste[right[e]] + generic[part[e]]
                if candidate > top + slack or liked > liking:
                    chosen = e
                    liking = liked
                if candidate > top:
                    top = candidate
                    slack = tolerance * (1.0 + abs(top))
            value[node] = top
            taste[node] = liking
            choice[node] = chosen
        objective[i] = value[goals[i]]
        if objective[i] == -np.inf:
            continue
        stack[0] = goals[i]
        height = 1
        while height:
            height -= 1
            node = stack[height]
            if node:
                e = choice[node]
                if part[e]:
                    out[i, slots[part[e]]] += 1
                stack[height] = left[e]
                stack[height + 1] = right[e]
                height += 2


@kernel
def _widest(starts: np.ndarray) -> int:
    """The most edges into one node."""
    most = 0
    for node in range(len(starts) - 1):
        most = max(most, starts[node + 1] - starts[node])
    return most


@kernel
def _inside(
    goal: int,
    used: int,
    edges: Edges,
    log: np.ndarray,
    weight: np.ndarray,
    sums: np.ndarray,
    chance: np.ndarray,
    shift: np.ndarray,
) -> None:
    """Each node's sum over derivations, and each edge's chance given its head."""
    starts, left, right, part, _ = edges
    for p in range(used + 1):
        if log[p] == -np.inf:
            weight[p, 0] = 0.0
            weight[p, 1] = -np.inf
        else:
            exponent = np.floor(log[p] * LOG2_E) + 1.0  # math.floor's integers end at 2^63
            rest = (log[p] - exponent * LN2_HIGH) - exponent * LN2_LOW
            weight[p, 0] = math.exp(min(max(rest, -LN2), 0.0))  # all rounding, where log is huge
            weight[p, 1] = exponent
    sums[0, 0] = 1.0
    sums[0, 1] = 0.0
    for node in range(1, goal + 1):
        begin, end = starts[node], starts[node + 1]
        top = -np.inf
        for e in range(begin, end):
            a, b, p = left[e], right[e], part[e]
            exponent = sums[a, 1] + sums[b, 1] + weight[p, 1]
            shift[e - begin] = exponent
            chance[e] = sums[a, 0] * sums[b, 0] * weight[p, 0]
            top = max(top, exponent)
        if top == -np.inf:
            sums[node, 0] = 0.0
            sums[node, 1] = -np.inf
            for e in range(begin, end):
                chance[e] = 0.0
            continue
        total = 0.0
        for e in range(begin, end):
            below = top - shift[e - begin]
            if below <= SPAN:
                chance[e] *= POWERS[np.uint32(below)]
            else:
                chance[e] = 0.0
            total += chance[e]
        scale = 1.0 / total
        for e in range(begin, end):
            chance[e] *= scale
        fraction, exponent = math.frexp(total)
        sums[node, 0] = fraction
        sums[node, 1] = top + exponent


@kernel
def marginals(
    first: int,
    last: int,
    edges: Edges,
    goals: np.ndarray,
    used: np.ndarray,
    ceiling: float,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    objective: np.ndarray,
) -> None:
    """Expected counts of parts, at most `ceiling`, and log Z, -inf where there is no derivation."""
    starts, left, right, part, slots = edges
    nodes = len(starts) - 1
    log = np.empty(len(slots))
    weight = np.empty((len(slots), 2))
    sums = np.empty((nodes, 2))
    chance = np.empty(len(left))
    shift = np.empty(_widest(starts))
    reach = np.empty(nodes)
    count = np.empty(len(slots))
    for i in range(first, last):
        _read(i, used[i], edges, scores, keep, log)
        _inside(goals[i], used[i], edges, log, weight, sums, chance, shift)
        goal = goals[i]
        objective[i] = -np.inf
        if sums[goal, 1] == -np.inf:
            continue
        objective[i] = math.log(sums[goal, 0]) + LN2 * sums[goal, 1]
        reach[: goal + 1] = 0.0
        count[: used[i] + 1] = 0.0
        reach[goal] = 1.0
        for node in range(goal, 0, -1):
            if reach[node] == 0.0:
                continue
            for e in range(starts[node], starts[node + 1]):
                flow = reach[node] * chance[e]
                reach[left[e]] += flow
                reach[right[e]] += flow
                if part[e]:
                    count[part[e]] += flow
        for p in range(1, used[i] + 1):
            out[i, slots[p]] = min(count[p], ceiling)


@kernel
def covariance(
    first: int,
    last: int,
    edges: Edges,
    goals: np.ndarray,
    used: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    direction: np.ndarray,
    out: np.ndarray,
) -> None:
    """The Hessian of log Z times a direction: the marginals' derivative along it."""
    starts, left, right, part, slots = edges
    nodes = len(starts) - 1
    log = np.empty(len(slots))
    along = np.empty(len(slots))
    weight = np.empty((len(slots), 2))
    sums = np.empty((nodes, 2))
    chance = np.empty(len(left))
    shift = np.empty(_widest(starts))
    mean = np.empty(nodes)  # of <direction, parts> below a node
    reach = np.empty(nodes)
    slope = np.empty(nodes)
    count = np.empty(len(slots))
    mean[0] = 0.0
    along[0] = 0.0
    for i in range(first, last):
        goal = goals[i]
        _read(i, used[i], edges, scores, keep, log)
        _inside(goal, used[i], edges, log, weight, sums, chance, shift)
        for p in range(1, used[i] + 1):
            along[p] = direction[i, slots[p]]
        for node in range(1, goal + 1):
            total = 0.0
            for e in range(starts[node], starts[node + 1]):
                total += chance[e] * (mean[left[e]] + mean[right[e]] + along[part[e]])
            mean[node] = total
        reach[: goal + 1] = 0.0
        slope[: goal + 1] = 0.0
        count[: used[i] + 1] = 0.0
        reach[goal] = 1.0
        for node in range(goal, 0, -1):
            if reach[node] == 0.0:
                continue
            for e in range(starts[node], starts[node + 1]):
                rise = mean[left[e]] + mean[right[e]] + along[part[e]] - mean[node]
                flow = chance[e] * (slope[node] + reach[node] * rise)
                slope[left[e]] += flow
                slope[right[e]] += flow
                if part[e]:
                    count[part[e]] += flow
                flow = chance[e] * reach[node]
                reach[left[e]] += flow
                reach[right[e]] += flow
        for p in range(1, used[i] + 1):
            out[i, slots[p]] = count[p]


@kernel
def heights(edges: Edges, out: np.ndarray) -> None:
    """How many nodes, at most, a derivation of each node has below one another."""
    starts, left, right, _, _ = edges
    out[0] = 0
    for node in range(1, len(starts) - 1):
        most = 0
        for e in range(starts[node], starts[node + 1]):
            most = max(most, out[left[e]], out[right[e]])
        out[node] = most + 1


@kernel
def most_choices(edges: Edges, out: np.ndarray) -> None:
    """How many nodes with several edges a derivation of each node can have at most."""
    starts, left, right, _, _ = edges
    out[0] = 0
    for node in range(1, len(starts) - 1):
        most = 0
        for e in range(starts[node], starts[node + 1]):
            most = max(most, out[left[e]] + out[right[e]])
        out[node] = most + (starts[node + 1] - starts[node] > 1)


@kernel
def draw(
    first: int,
    last: int,
    edges: Edges,
    goals: np.ndarray,
    used: np.ndarray,
    uniform: np.ndarray,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    found: np.ndarray,
) -> None:
    """One derivation for each row of `uniform` `(n, count, choices)`, added to `out` `(count, n, d)`.

    From the goal down, each node takes an edge by its chance. `found` says where there is any.
    """
    starts, left, right, part, slots = edges
    nodes = len(starts) - 1
    log = np.empty(len(slots))
    weight = np.empty((len(slots), 2))
    sums = np.empty((nodes, 2))
    chance = np.empty(len(left))
    shift = np.empty(_widest(starts))
    stack = np.empty(nodes + 2, dtype=np.int64)
    for i in range(first, last):
        _read(i, used[i], edges, scores, keep, log)
        _inside(goals[i], used[i], edges, log, weight, sums, chance, shift)
        found[i] = sums[goals[i], 1] > -np.inf
        if not found[i]:
            continue
        for c in range(uniform.shape[1]):
            drawn = 0
            stack[0] = goals[i]
            height = 1
            while height:
                height -= 1
                node = stack[height]
                if node == 0:
                    continue
                chosen = starts[node]
                if starts[node + 1] - chosen > 1:
                    left_over = uniform[i, c, drawn]
                    drawn += 1
                    for e in range(starts[node], starts[node + 1]):
                        if chance[e] > 0.0:
                            chosen = e
                            left_over -= chance[e]
                            if left_over < 0.0:
                                break
                if part[chosen]:
                    out[c, i, slots[part[chosen]]] += 1
                stack[height] = left[chosen]
                stack[height + 1] = right[chosen]
                height += 2


@kernel
def _push(heap: np.ndarray, order: np.ndarray, size: int, value: float, pair: int) -> int:
    """A binary heap, the largest value first."""
    at = size
    while at > 0 and heap[(at - 1) >> 1] < value:
        up = (at - 1) >> 1
        heap[at] = heap[up]
        order[at] = order[up]
        at = up
    heap[at] = value
    order[at] = pair
    return size + 1


@kernel
def _pop(heap: np.ndarray, order: np.ndarray, size: int) -> int:
    """Drops the largest."""
    size -= 1
    value = heap[size]
    at = 0
    down = 1
    while down < size:
        if down + 1 < size and heap[down + 1] > heap[down]:
            down += 1
        if heap[down] <= value:
            break
        heap[at] = heap[down]
        order[at] = order[down]
        at = down
        down = 2 * at + 1
    heap[at] = value
    order[at] = order[size]
    return size


@kernel
def k_best(
    first: int,
    last: int,
    edges: Edges,
    goals: np.ndarray,
    used: np.ndarray,
    k: int,
    scores: np.ndarray,
    keep: np.ndarray,
    out: np.ndarray,
    found: np.ndarray,
) -> None:
    """The k best derivations, best first, added to `out` `(k, n, d)`; `found` says how many.

    Each node lists its k best (Huang and Chiang 2005, algorithm 2): a heap holds, as the number
    (edge k + a) k + b, an edge with the next pair of ranks a, b of its tails. After (a, b) come
    (a, b + 1) and, if b = 0, (a + 1, 0).
    """
    starts, left, right, part, slots = edges
    nodes = len(starts) - 1
    log = np.empty(len(slots))
    value = np.empty((nodes, k))
    origin = np.empty((nodes, k), dtype=np.int64)
    length = np.empty(nodes, dtype=np.int64)
    room = _widest(starts) + 2 * k + 1
    heap = np.empty(room)
    order = np.empty(room, dtype=np.int64)
    stack = np.empty(nodes + 2, dtype=np.int64)
    ranks = np.empty(nodes + 2, dtype=np.int64)
    value[0, 0] = 0.0
    length[0] = 1
    for i in range(first, last):
        _read(i, used[i], edges, scores, keep, log)
        for node in range(1, goals[i] + 1):
            size = 0
            for e in range(starts[node], starts[node + 1]):
                if length[left[e]] and length[right[e]] and log[part[e]] > -np.inf:
                    top = float(value[left[e], 0] + value[right[e], 0] + log[part[e]])
                    size = _push(heap, order, size, top, e * k * k)
            rank = 0
            while size and rank < k:
                value[node, rank] = heap[0]
                pair = order[0]
                origin[node, rank] = pair
                size = _pop(heap, order, size)
                rank += 1
                e = pair // (k * k)
                a = pair // k - e * k
                b = pair % k
                if b + 1 < length[right[e]]:
                    following = float(value[left[e], a] + value[right[e], b + 1] + log[part[e]])
                    size = _push(heap, order, size, following, pair + 1)
                if b == 0 and a + 1 < length[left[e]]:
                    following = float(value[left[e], a + 1] + value[right[e], 0] + log[part[e]])
                    size = _push(heap, order, size, following, pair + k)
            length[node] = rank
        found[i] = length[goals[i]]
        for rank in range(found[i]):
            stack[0] = goals[i]
            ranks[0] = rank
            height = 1
            while height:
                height -= 1
                node = stack[height]
                if node == 0:
                    continue
                pair = origin[node, ranks[height]]
                e = pair // (k * k)
                if part[e]:
                    out[rank, i, slots[part[e]]] += 1
                stack[height] = left[e]
                ranks[height] = pair // k - e * k
                stack[height + 1] = right[e]
                ranks[height + 1] = pair % k
                height += 2
