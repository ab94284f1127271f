"""Sets of words that the root reaches with less than one unit: minimum cuts in the few arcs in use."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["Cuts", "Network", "Use", "join", "separate"]

Array = np.ndarray
EMPTY = 1e-14  # a flow this small is none


class Cuts(NamedTuple):
    """Sets of words, at most `len(inside)` of them, with the multipliers of their inequalities."""

    members: Array  # (cuts, n + 1), int32: the words of each, their number last
    inside: Array  # (cuts, n): 1 for a word of the cut, 0 for others
    price: Array  # (cuts,)


class Use(NamedTuple):
    """Each word's heads in use, itself standing for the root."""

    head: Array  # (n, n), int32
    share: Array  # (n, n)
    size: Array  # (n,), int32


class Network(NamedTuple):
    """The arcs in use as a network: arc begin[d] + e is the e-th of word d. For `separate` alone."""

    begin: Array  # (n + 1,)
    leave: Array  # (n + 1,): the arcs from word h are arc[leave[h] : leave[h + 1]]
    arc: Array  # (n * n,)
    dependent: Array  # (n * n,)
    flow: Array  # (n * n,), float64
    proven: Array  # (n,), bool: words that one unit reaches
    seen: Array  # (n,)
    via: Array  # (n,): the arc from a word towards the sink, -1 - arc where its flow is taken back
    after: Array  # (n,): the next word on that way
    queue: Array  # (n,)
    order: Array  # (n,)


@kernel
def join(cuts: Cuts, k: int, m: int, price: float) -> None:
    """Completes cut k from its row of `inside`."""
    number = 0
    for x in range(m):
        if cuts.inside[k, x] > 0.0:
            cuts.members[k, number] = x
            number += 1
    cuts.members[k, -1] = number
    cuts.price[k] = price


@kernel
def _link(m: int, use: Use, net: Network) -> None:
    """Numbers the arcs, and sorts them by their heads."""
    net.leave[: m + 1] = 0
    net.begin[0] = 0
    for d in range(m):
        net.begin[d + 1] = net.begin[d] + use.size[d]
        for e in range(use.size[d]):
            net.dependent[net.begin[d] + e] = d
            if use.head[d, e] != d:
                net.leave[use.head[d, e] + 1] += 1
    for h in range(m):
        net.leave[h + 1] += net.leave[h]
    for d in range(m):
        for e in range(use.size[d]):
            h = use.head[d, e]
            if h != d:
                net.arc[net.leave[h]] = net.begin[d] + e
                net.leave[h] += 1
    for h in range(m, 0, -1):
        net.leave[h] = net.leave[h - 1]
    net.leave[0] = 0


@kernel
def _outwards(m: int, use: Use, net: Network) -> None:
    """The words by their distance from the root, so that heads come early; then those not reached."""
    last = 0
    for d in range(m):
        net.seen[d] = 0
        for e in range(use.size[d]):
            if use.head[d, e] == d:
                net.order[last], net.seen[d] = d, 1
                last += 1
    first = 0
    while first < last:
        x = net.order[first]
        first += 1
        for j in range(net.leave[x], net.leave[x + 1]):
            d = net.dependent[net.arc[j]]
            if net.seen[d] == 0:
                net.order[last], net.seen[d] = d, 1
                last += 1
    for d in range(m):
        if net.seen[d] == 0:
            net.order[last] = d
            last += 1


@kernel
def _push(arc: int, x: int, sink: int, use: Use, net: Network) -> float:
    """Fills the way over this arc into x and on to the sink."""
    d = net.dependent[arc]
    amount = use.share[d, arc - net.begin[d]] - net.flow[arc]
    at = x
    while at != sink:
        way = net.via[at]
        if way >= 0:
            d = net.dependent[way]
            amount = min(amount, use.share[d, way - net.begin[d]] - net.flow[way])
        else:
            amount = min(amount, net.flow[-1 - way])
        at = net.after[at]
    net.flow[arc] += amount
    at = x
    while at != sink:
        way = net.via[at]
        if way >= 0:
            net.flow[way] += amount
        else:
            net.flow[-1 - way] -= amount
        at = net.after[at]
    return amount


@kernel
def _augment(sink: int, stamp: int, use: Use, net: Network) -> float:
    """One more path of flow, from the root or a proven word; 0 where there is none.

    Then the words `seen` at this stamp are the smallest set around the sink of a minimum cut.
    """
    net.queue[0] = sink
    net.seen[sink] = stamp
    first, last = 0, 1
    while first < last:
        x = net.queue[first]
        first += 1
        for e in range(use.size[x]):
            h = use.head[x, e]
            arc = e + int(net.begin[x])
            if use.share[x, e] - net.flow[arc] <= EMPTY:
                continue
            if h == x or net.proven[h]:
                return _push(arc, x, sink, use, net)
            if net.seen[h] != stamp:
                net.seen[h], net.via[h], net.after[h] = stamp, arc, x
                net.queue[last] = h
                last += 1
        for j in range(net.leave[x], net.leave[x + 1]):
            back = net.arc[j]
            d = net.dependent[back]
            if net.flow[back] > EMPTY and net.seen[d] != stamp:
                net.seen[d], net.via[d], net.after[d] = stamp, -1 - back, x
                net.queue[last] = d
                last += 1
    return 0.0


@kernel
def _entering(m: int, use: Use, inside: Array) -> float:
    """The sum of the arcs into a set."""
    total = 0.0
    for d in range(m):
        for e in range(use.size[d] if inside[d] > 0.0 else 0):
            if use.head[d, e] == d or inside[use.head[d, e]] == 0.0:
                total += use.share[d, e]
    return total


@kernel
def separate(
    m: int, use: Use, tolerance: float, cuts: Cuts, count: int, net: Network
) -> tuple[int, float]:
    """Adds violated cuts at price 0, no word in two of them.

    Returns how many cuts there are then, and by how much one of the new ones is violated at most. A
    word that one unit reaches is in no violated set: it counts as the root from then on (Padberg and
    Wolsey).
    """
    _link(m, use, net)
    _outwards(m, use, net)
    net.proven[:m] = False
    stamp = 1
    old, worst = count, 0.0
    for j in range(m):
        sink: int = net.order[j]
        covered = count == len(cuts.inside)
        for k in range(old, count):
            covered = covered or cuts.inside[k, sink] > 0.0
        if covered:
            continue
        net.flow[: net.begin[m]] = 0.0
        total, more = 0.0, 1.0
        while more > 0.0 and total < 1.0 - tolerance:
            stamp += 1
            more = _augment(sink, stamp, use, net)
            total += more
        if total >= 1.0 - tolerance:
            net.proven[sink] = True
            continue
        for x in range(m):
            cuts.inside[count, x] = 1.0 if net.seen[x] == stamp else 0.0
        entering = _entering(m, use, cuts.inside[count])
        if entering >= 1.0 - tolerance:  # but for shares too small to fill
            net.proven[sink] = True
            continue
        worst = max(worst, 1.0 - entering)
        join(cuts, count, m, 0.0)
        count += 1
    return count, worst
