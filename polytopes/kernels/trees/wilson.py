r"""Exact samples of dependency trees: Wilson's algorithm, and an exact way out where it would not end.

A walk goes from a word to a head drawn by the arcs' weights until it meets the tree; its loops are
erased, and what is left joins the tree. How many steps all walks take depends on the loops alone,
which are independent of the tree (Propp and Wilson): to give up after too many steps and to draw
the tree afresh by other means changes no probability.

The other means: words get their heads one by one, each by its exact conditional marginals. The words
still without a head are eliminated from the walk, in logarithms, which gives the chance that the
walk from each candidate head escapes to the root; a word that has got its head is merged with it.

References:
    Wilson, "Generating random spanning trees more quickly than the cover time" (STOC 1996).
    Propp and Wilson, "How to get a perfectly random sample from a generic Markov chain" (1998).
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.log_matrix_tree import NEGLIGIBLE, add

__all__ = ["sample_trees"]

Array = np.ndarray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11))
UNIT = 2.0**-53


@kernel
def _uniform(state: Array) -> float:
    """The next number in [0, 1) of the stream `state` (splitmix64: a counter, mixed)."""
    state[0] += GOLDEN
    z = state[0]
    z = (z ^ (z >> SHIFTS[0])) * MIX[0]
    z = (z ^ (z >> SHIFTS[1])) * MIX[1]
    z = z ^ (z >> SHIFTS[2])
    return np.float64(z >> SHIFTS[3]) * UNIT


@kernel
def _draw(cumulative: Array, count: int, state: Array) -> int:
    """An index, with chances in proportion to the increments of `cumulative`."""
    level = _uniform(state) * cumulative[count - 1]
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] > level:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _accumulate(scores: Array, m: int, single_root: bool, cumulative: Array) -> None:
    """Row d: the summed weights of word d's heads, the root's arc last."""
    for d in range(m):
        best = -np.inf
        for h in range(m):
            if h != d or not single_root:
                best = max(best, scores[h, d])
        total = 0.0
        for h in range(m):
            if h != d and scores[h, d] > -np.inf:
                total += np.exp(np.float64(scores[h, d]) - best)
            cumulative[d, h] = total
        if not single_root and scores[d, d] > -np.inf:
            total += np.exp(np.float64(scores[d, d]) - best)
        cumulative[d, m] = total


@kernel
def _walk(
    cumulative: Array,
    m: int,
    root: int,
    budget: int,
    heads: Array,
    inside: Array,
    state: Array,
) -> bool:
    """Wilson's algorithm; False where it takes more than `budget` steps."""
    for d in range(m):
        inside[d] = False
    inside[m] = True
    if root >= 0:
        heads[root] = m
        inside[root] = True
    for start in range(m):
        x = start
        while not inside[x]:
            if budget == 0:
                return False
            budget -= 1
            heads[x] = _draw(cumulative[x], m + 1, state)
            x = heads[x]
        x = start
        while not inside[x]:
            inside[x] = True
            x = heads[x]
    return True


@kernel
def _eliminate(chain: Array, w: int, m: int, work: Array, escape: Array) -> None:
    """log chances that walks from the words after w escape to the root, column m, before they meet w."""
    for a in range(w + 1, m):
        for x in range(w, a):
            work[a, x] = chain[a, x]
        for x in range(a + 1, m + 1):
            work[a, x] = chain[a, x]
    for a in range(m - 1, w, -1):
        total = work[a, m]
        for x in range(w, a):
            total, _ = add(total, 0.0, work[a, x], 0.0)
        work[a, m] -= total
        for x in range(w, a):
            work[a, x] -= total
        for b in range(w + 1, a):
            share = work[b, a]
            if share > -np.inf:
                work[b, m], _ = add(work[b, m], 0.0, share + work[a, m], 0.0)
                for x in range(w, a):
                    gain = share + work[a, x]
                    if gain > work[b, x] + NEGLIGIBLE:
                        work[b, x], _ = add(work[b, x], 0.0, gain, 0.0)
    escape[w] = -np.inf
    escape[m] = 0.0
    for a in range(w + 1, m):
        escape[a] = work[a, m]
        for x in range(w + 1, a):
            escape[a], _ = add(escape[a], 0.0, work[a, x] + escape[x], 0.0)


@kernel
def _one_by_one(
    scores: Array,
    m: int,
    root: int,
    chain: Array,
    work: Array,
    escape: Array,
    chances: Array,
    merged: Array,
    heads: Array,
    state: Array,
) -> None:
    """Heads drawn one by one by their conditional marginals."""
    for d in range(m):
        for h in range(m):
            chain[d, h] = scores[h, d]
        chain[d, m] = chain[d, d] if root < 0 else -np.inf
        chain[d, d] = -np.inf
        merged[d] = d
    merged[m] = m
    if root >= 0:
        chain[root, m] = 0.0
        for h in range(m):
            chain[root, h] = -np.inf
    for w in range(m):
        _eliminate(chain, w, m, work, escape)
        best = -np.inf
        for h in range(m + 1):
            arc = scores[w, w] if h == m else scores[h, w]
            if h == w or (root >= 0 and (w == root) != (h == m)):  # the one root's only head is m
                arc = -np.inf
            chances[h] = np.float64(arc) + escape[merged[h]]
            best = max(best, chances[h])
        total = 0.0
        for h in range(m + 1):
            total += np.exp(chances[h] - best)
            chances[h] = total
        heads[w] = _draw(chances, m + 1, state)
        into = merged[heads[w]]
        for x in range(m):
            if merged[x] == w:
                merged[x] = into
        for a in range(w + 1, m):
            if a != into:
                chain[a, into], _ = add(chain[a, into], 0.0, chain[a, w], 0.0)


@kernel
def sample_trees(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    single_root: bool,
    roots: Array,
    seeds: Array,
    budget: int,
    out: Array,
) -> None:
    """A tree for every seed into the zeros of `out`.

    `scores` `(N, n, n)` as for `linear_marginals`, `roots` `(N, n)` the chances of each word to be the
    one root (read with `single_root`), `seeds` `(count, N)` uint64, `out` `(count, N, n, n)`. Wilson's
    algorithm may take `budget` steps and another m^3, about what the other means cost.
    """
    n = scores.shape[1]
    cumulative, chain, work = np.empty((n, n + 1)), np.empty((n, n + 1)), np.empty((n, n + 1))
    escape, chances, summed = np.empty(n + 1), np.empty(n + 1), np.empty(n)
    heads, merged = np.empty(n + 1, np.int64), np.empty(n + 1, np.int64)
    inside = np.empty(n + 1, np.bool_)
    state = np.empty(1, np.uint64)
    for i in range(first, last):
        m = lengths[i]
        _accumulate(scores[i], m, single_root, cumulative)
        total = 0.0
        for d in range(m if single_root else 0):
            total += roots[i, d]
            summed[d] = total
        for c in range(seeds.shape[0]):
            state[0] = seeds[c, i]
            root = _draw(summed, m, state) if single_root else -1
            if not _walk(cumulative, m, root, budget + m**3, heads, inside, state):
                _one_by_one(scores[i], m, root, chain, work, escape, chances, merged, heads, state)
            for d in range(m):
                out[c, i, d if heads[d] == m else heads[d], d] = 1.0
