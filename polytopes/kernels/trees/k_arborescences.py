"""The k best dependency trees: the trees left are split by the words' heads in order (Lawler 1972).

A part of the split has fixed heads for the first words, forbidden heads for the next one, and holds a
best tree. The best of all parts is the next answer, and its part is split again around it.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.arborescence import contract, expand, forest

__all__ = ["best_k_trees"]

Array = np.ndarray


@kernel
def _restrict(
    scores: Array, m: int, heads: Array, fixed: int, forbidden: Array, restricted: Array
) -> None:
    """Scores where the first words keep their heads and the next one loses the forbidden ones."""
    for h in range(m):
        for d in range(m):
            head = m if h == d else h
            excluded = (d < fixed and head != heads[d]) or (d == fixed and forbidden[head])
            restricted[h, d] = -np.inf if excluded else scores[h, d]


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
    restricted, f = np.empty((n, n)), forest(n)
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
                _restrict(scores[i], m, heads[part], fixed[part], forbidden[part], restricted)
                nodes = contract(restricted, m, single_root, f)
                value[part] = -np.inf
                if nodes > 0:
                    expand(m, nodes, f)
                    value[part] = 0.0
                    for d in range(m):
                        heads[part, d] = f.source[d]
                        value[part] += scores[i, d if f.source[d] == m else f.source[d], d]
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
