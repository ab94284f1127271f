"""Best dependency trees: Tarjan's algorithm in its dense O(n^2) form.

A path of words grows backwards: the word (or contracted set of words) at its end picks its best
incoming arc, whose source joins the path, until a source is attached to the root already. A source
on the path itself closes a cycle, which is contracted: its incoming arcs are reduced by the price of
the arc that each member had picked, and the best one of every source is kept.

For one root arc only, weights are ordered first by the number of root arcs. No cycle holds a root
arc, so that order stays the plain one among other arcs: a set picks a root arc only where no other
arc enters it.

References:
    Tarjan, "Finding optimum branchings" (Networks 1977).
    Stanojevic and Cohen, "A root of a problem: optimizing single-root dependency parsing" (2021).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["best_trees", "contract", "load"]

Array = np.ndarray


@kernel
def load(scores: Array, m: int, weights: Array, target: Array) -> None:
    """`weights[dependent, source]` and the dependent each arc enters; source m is the root."""
    for h in range(m):
        for d in range(m):
            weights[d, h] = scores[h, d]
    for d in range(m):
        weights[d, m] = weights[d, d]
        weights[d, d] = -np.inf
        for h in range(m + 1):
            target[d, h] = d


@kernel
def _best_source(weights: Array, m: int, single_root: bool) -> int:
    """The first best source of a row; -1 where no arc is left."""
    best = -1
    value = -np.inf
    for h in range(m):
        if weights[h] > value:
            value = weights[h]
            best = h
    if weights[m] > value and not (single_root and best >= 0):
        best = m
    return best


@kernel
def _merge(weights: Array, target: Array, m: int, into: int, other: int, price: float) -> None:
    """The better of two rows' arcs from each source, those of `other` reduced by its price."""
    for h in range(m + 1):
        value = weights[other, h] - price
        if value > weights[into, h]:
            weights[into, h] = value
            target[into, h] = target[other, h]


@kernel
def contract(
    weights: Array,
    target: Array,
    m: int,
    single_root: bool,
    row: Array,
    parent: Array,
    source: Array,
    entered: Array,
    price: Array,
    owner: Array,
    path: Array,
    place: Array,
    attached: Array,
) -> int:
    """Picks an arc into every word and every contracted set; how many of these there are.

    Node v < m is a word; node v >= m is the set of the nodes whose `parent` it is. `source[v]`,
    `entered[v]` and `price[v]` are its arc: where from, into which word, and at which reduced weight.
    `weights` and `target` are used up. Returns 0 where no tree exists.
    """
    count = m
    roots = 0
    for v in range(m):
        row[v] = v
        parent[v] = -1
        owner[v] = v
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
            r = row[v]
            u = _best_source(weights[r], m, single_root)
            if u < 0:
                return 0
            source[v] = u
            entered[v] = target[r, u]
            price[v] = weights[r, u]
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
            low = place[w]
            into: int = row[w]
            for h in range(m + 1):
                weights[into, h] -= price[w]
            for j in range(low + 1, depth):
                member: int = path[j]
                other: int = row[member]
                cost: float = price[member]
                _merge(weights, target, m, into, other, cost)
            for j in range(low, depth):
                parent[path[j]] = count
            for x in range(m):
                if place[owner[x]] >= low:
                    weights[into, x] = -np.inf
                    owner[x] = count
            v = count
            count += 1
            row[v] = into
            parent[v] = -1
            path[low] = v
            place[v] = low
            depth = low + 1
        for x in range(m):
            if place[owner[x]] >= 0:
                attached[x] = True
        for j in range(depth):
            place[path[j]] = -1
    return 0 if single_root and roots > 1 else count


@kernel
def expand(m: int, count: int, parent: Array, source: Array, entered: Array) -> None:
    """From the arc into a set to arcs into its members, largest sets first: heads in `source[:m]`."""
    for v in range(count - 1, m - 1, -1):
        x = entered[v]
        while parent[x] != v:
            x = parent[x]
        source[x] = source[v]
        entered[x] = entered[v]


@kernel
def best_trees(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    found: Array,
) -> None:
    """The best tree of each instance into the zeros of `out`; `found` says whether there is one.

    `scores` and `out` are `(N, n, n)`, [head, dependent], the root's arcs on the diagonal, -inf where
    an arc is excluded.
    """
    n = scores.shape[1]
    weights = np.empty((n, n + 1))
    target = np.empty((n, n + 1), np.int32)
    row, parent, source = np.empty(2 * n, np.int32), np.empty(2 * n, np.int32), np.empty(2 * n, np.int32)
    entered, price = np.empty(2 * n, np.int32), np.empty(2 * n)
    owner, path = np.empty(n, np.int32), np.empty(n, np.int32)
    place, attached = np.empty(2 * n, np.int32), np.empty(n, np.bool_)
    for i in range(first, last):
        m = lengths[i]
        load(scores[i], m, weights, target)
        count = contract(
            weights,
            target,
            m,
            single_root,
            row,
            parent,
            source,
            entered,
            price,
            owner,
            path,
            place,
            attached,
        )
        found[i] = count > 0
        if count > 0:
            expand(m, count, parent, source, entered)
            for d in range(m):
                out[i, d if source[d] == m else source[d], d] = 1.0
