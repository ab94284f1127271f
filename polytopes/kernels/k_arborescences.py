"""The k best dependency trees: the trees left are split by the words' heads in order (Lawler 1972).

A part of the split has fixed heads for the first words, forbidden heads for the next one, and holds a
best tree. The best of all parts is the next answer, and its part is split again around it.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.arborescence import contract, expand, load
from spigot.polytopes.kernels.compiled import kernel

__all__ = ["best_k_trees"]

Array = np.ndarray


@kernel
def _restrict(weights: Array, m: int, heads: Array, fixed: int, forbidden: Array) -> None:
    """The first words keep their heads, the next one loses the forbidden ones."""
    for d in range(fixed):
        for h in range(m + 1):
            if h != heads[d]:
                weights[d, h] = -np.inf
    for h in range(m + 1):
        if forbidden[h]:
            weights[fixed, h] = -np.inf


@kernel
def best_k_trees(
    first: int,
    last: int,
    scores: Array,
    lengths: Array,
    single_root: bool,
    out: Array,
    found: Array,
) -> None:
    """The best trees of each instance, best first, into the zeros of `out` `(k, N, n, n)`; how many.

    `scores` as for `best_trees`.
    """
    k, n = out.shape[0], scores.shape[1]
    weights, target = np.empty((n, n + 1)), np.empty((n, n + 1), np.int32)
    row, parent, source = np.empty(2 * n, np.int32), np.empty(2 * n, np.int32), np.empty(2 * n, np.int32)
    entered, price = np.empty(2 * n, np.int32), np.empty(2 * n)
    owner, path = np.empty(n, np.int32), np.empty(n, np.int32)
    place, attached = np.empty(2 * n, np.int32), np.empty(n, np.bool_)
    most = k * n + 1
    heads, forbidden = np.empty((most, n), np.int32), np.empty((most, n + 1), np.bool_)
    fixed, value = np.empty(most, np.int64), np.empty(most)
    for i in range(first, last):
        m = lengths[i]
        count, found[i] = 1, 0
        fixed[0] = 0
        forbidden[0] = False
        begin = 0
        while True:
            for part in range(begin, count):  # solve the new parts
                load(scores[i], m, weights, target)
                _restrict(weights, m, heads[part], fixed[part], forbidden[part])
                nodes = contract(
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
                value[part] = -np.inf
                if nodes > 0:
                    expand(m, nodes, parent, source, entered)
                    value[part] = 0.0
                    for d in range(m):
                        heads[part, d] = source[d]
                        value[part] += scores[i, d if source[d] == m else source[d], d]
            best = np.argmax(value[:count])
            if value[best] == -np.inf:
                break
            for d in range(m):
                out[found[i], i, d if heads[best, d] == m else heads[best, d], d] = 1.0
            found[i] += 1
            if found[i] == k:
                break
            value[best] = -np.inf
            begin = count
            for d in range(fixed[best], m):
                heads[count] = heads[best]
                fixed[count] = d
                for h in range(m + 1):
                    forbidden[count, h] = d == fixed[best] and forbidden[best, h]
                forbidden[count, heads[best, d]] = True
                count += 1
