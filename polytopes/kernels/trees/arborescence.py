"""Best dependency trees: Tarjan's algorithm in its dense O(n^2) form.

Every word's best head is found first, in one pass over the scores; most words keep it. A path of words
grows backwards: the source of the arc into the word (or contracted set of words) at its end joins the
path, until a source is attached to the root already. A source on the path itself closes a cycle, which
is contracted: its members' incoming arcs are reduced by the price of the arc that each had picked, the
best one of every source is kept, and the best of these is picked. Only sets have a row of such arcs.

For one root arc only, weights are ordered first by the number of root arcs. No cycle holds a root
arc, so that order stays the plain one among other arcs: a set picks a root arc only where no other
arc enters it.

References:
    Tarjan, "Finding optimum branchings" (Networks 1977).
    Stanojevic and Cohen, "A root of a problem: optimizing single-root dependency parsing" (2021).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["Forest", "best_trees", "contract", "expand", "forest"]

Array = np.ndarray


class Forest(NamedTuple):
    """What `contract` finds, and where it works. Node v < m is a word, node v >= m a set of nodes."""

    parent: Array  # (2n,), int32: the set that a node was contracted into, -1 for none
    source: Array  # (2n,), int32: its arc: where from, m for the root,
    entered: Array  # (2n,), int32: into which word,
    price: Array  # (2n,): at which reduced weight
    weights: Array  # (n, n + 1): a set's arcs from every source, in the row of its first word
    target: Array  # (n, n + 1), int32: the words that they enter
    owner: Array  # (n,), int32: the outermost set that a word is in
    first: Array  # (2n,), int32: a node's words are a list: its first,
    last: Array  # (2n,), int32: its last,
    after: Array  # (n,), int32: and what comes after each
    path: Array  # (n,), int32
    place: Array  # (2n,), int32: where on the path a node is, -1 for nowhere
    attached: Array  # (n,), bool


@kernel
def forest(n: int) -> Forest:
    """Room for n words."""
    return Forest(
        np.empty(2 * n, np.int32),
        np.empty(2 * n, np.int32),
        np.empty(2 * n, np.int32),
        np.empty(2 * n),
        np.empty((n, n + 1)),
        np.empty((n, n + 1), np.int32),
        np.empty(n, np.int32),
        np.empty(2 * n, np.int32),
        np.empty(2 * n, np.int32),
        np.empty(n, np.int32),
        np.empty(n, np.int32),
        np.empty(2 * n, np.int32),
        np.empty(n, np.bool_),
    )


@kernel
def _own_heads(scores: Array, m: int, single_root: bool, price: Array, source: Array) -> None:
    """Each word's best head, the first of several; -1 where it has none."""
    for d in range(m):
        price[d] = -np.inf
        source[d] = -1
    for h in range(m):
        for d in range(m):
            better = (scores[h, d] > price[d]) & (d != h)
            price[d] = scores[h, d] if better else price[d]
            source[d] = h if better else source[d]
    for d in range(m):
        if scores[d, d] > price[d] and not (single_root and source[d] >= 0):
            price[d], source[d] = scores[d, d], m


@kernel
def _best_source(weights: Array, row: int, m: int, single_root: bool) -> int:
    """The first best source of a set's row; -1 where no arc is left."""
    best = -1
    value = -np.inf
    for h in range(m):
        if weights[row, h] > value:
            value = weights[row, h]
            best = h
    if weights[row, m] > value and not (single_root and best >= 0):
        best = m
    return best


@kernel
def _merge_word(
    scores: Array, m: int, word: int, price: float, weights: Array, target: Array, into: int
) -> None:
    """A word's arcs, reduced by its price, into a set's row where they are better."""
    for h in range(m):
        value = scores[h, word] - price
        better = (value > weights[into, h]) & (h != word)
        weights[into, h] = value if better else weights[into, h]
        target[into, h] = word if better else target[into, h]
    value = scores[word, word] - price
    if value > weights[into, m]:
        weights[into, m], target[into, m] = value, word


@kernel
def _merge_set(m: int, other: int, price: float, weights: Array, target: Array, into: int) -> None:
    """The arcs of a set in the row `other`."""
    for h in range(m + 1):
        value = weights[other, h] - price
        better = value > weights[into, h]
        weights[into, h] = value if better else weights[into, h]
        target[into, h] = target[other, h] if better else target[into, h]


@kernel
def _close(
    scores: Array,
    m: int,
    low: int,
    depth: int,
    node: int,
    path: Array,
    parent: Array,
    price: Array,
    weights: Array,
    target: Array,
    owner: Array,
    first: Array,
    last: Array,
    after: Array,
) -> None:
    """Contracts the path from `low` on to a new node."""
    outer: int = path[low]
    into: int = first[outer]
    if outer < m:
        for h in range(m + 1):
            weights[into, h] = -np.inf
    else:
        cost: float = price[outer]
        for h in range(m + 1):
            weights[into, h] -= cost
    end = -1
    for j in range(low, depth):
        member: int = path[j]
        begin: int = first[member]
        if member < m:
            _merge_word(scores, m, member, price[member], weights, target, into)
        elif j > low:
            _merge_set(m, begin, price[member], weights, target, into)
        parent[member] = node
        if end >= 0:
            after[end] = begin
        end = last[member]
    first[node], last[node] = into, end
    x = into
    while True:
        weights[into, x] = -np.inf
        owner[x] = node
        if x == end:
            break
        x = after[x]


@kernel
def contract(scores: Array, m: int, single_root: bool, f: Forest) -> int:
    """Picks an arc into every word and every contracted set; how many of these there are.

    `scores` are [head, dependent], the root's arcs on the diagonal, -inf where an arc is excluded.
    Returns 0 where no tree exists.
    """
    parent, source, entered, price, weights, target, owner, first, last, after, path, place, attached = f
    _own_heads(scores, m, single_root, price, source)
    count = m
    roots = 0
    for v in range(m):
        parent[v] = -1
        entered[v] = v
        owner[v] = v
        first[v] = v
        last[v] = v
        place[v] = -1
        attached[v] = False
    for start in range(m):
        if attached[start]:
            continue
        v = start
        path[0] = v
        place[v] = 0
        depth = 1
        while True:
            u: int = source[v]
            if u < 0:
                return 0
            if u == m or attached[u]:
                roots += u == m
                break
            w: int = owner[u]
            if place[w] < 0:
                place[w] = depth
                path[depth] = w
                depth += 1
                v = w
                continue
            low: int = place[w]
            _close(
                scores, m, low, depth, count, path, parent, price, weights, target, owner, first, last,
                after,
            )  # fmt: skip
            v = count
            count += 1
            into: int = first[v]
            best = _best_source(weights, into, m, single_root)
            if best >= 0:
                price[v], entered[v] = weights[into, best], target[into, best]
            source[v] = best
            parent[v] = -1
            path[low] = v
            place[v] = low
            depth = low + 1
        for j in range(depth):
            node: int = path[j]
            x: int = first[node]
            attached[x] = True
            while x != last[node]:
                x = after[x]
                attached[x] = True
            place[node] = -1
    return 0 if single_root and roots > 1 else count


@kernel
def expand(m: int, count: int, f: Forest) -> None:
    """From the arc into a set to arcs into its members, largest sets first: heads in `source[:m]`."""
    for v in range(count - 1, m - 1, -1):
        x = f.entered[v]
        while f.parent[x] != v:
            x = f.parent[x]
        f.source[x] = f.source[v]
        f.entered[x] = f.entered[v]


@kernel
def best_trees(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    value: Array,
) -> None:
    """The best tree of each instance into the zeros of `out`; its score, -inf where there is none.

    `scores` and `out` are `(N, n, n)`, [head, dependent], the root's arcs on the diagonal, -inf where
    an arc is excluded.
    """
    f = forest(scores.shape[1])
    for i in range(first, last):
        m: int = lengths[i]
        count = contract(scores[i], m, single_root, f)
        value[i] = -np.inf
        if count > 0:
            expand(m, count, f)
            total = 0.0
            for d in range(m):
                h: int = d if f.source[d] == m else f.source[d]
                out[i, h, d] = 1.0
                total += scores[i, h, d]
            value[i] = total
