r"""Projections onto dependency trees as mixtures of few trees: Wolfe's algorithm on whole numbers.

The best weights w of the trees at hand, sum w = 1, solve G w + l 1 = b with G the numbers of arcs that
two trees share and b the trees' scores; a step from w towards them that meets 0 drops trees. All trees
at hand score l with what the mixture leaves of the scores. Where the best tree there scores no more the
mixture is the projection, and the prices at which `contract` found it say which arcs and sets bind.
Otherwise it joins them.

References:
    Wolfe, "Finding the nearest point in a polytope" (Mathematical Programming 1976).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel, summing
from spigot.polytopes.kernels.trees.arborescence import Forest, contract, expand

__all__ = ["Mixture", "expose", "mix_trees", "mixture"]

Array = np.ndarray
ROUNDING = 2.0**-50  # of what a tree gains, relative to prices
NOTHING = 1e-14  # a weight this small is none
DEPENDENT = 1e-9  # a pivot of a tree that is a mixture of others
ENDING, SMALL = 3, 100.0  # trees that are asked for where they gain so many times what rounding may
ASKED = 4  # times the room: trees that are asked for at most


class Mixture(NamedTuple):
    """The trees at hand, and where their weights are worked out; an entry a tree."""

    scores: Array  # (n, n), [head, dependent], 0 at each word's best head
    left: Array  # (n, n): less the mixture
    heads: Array  # (trees, n), int32: each word's, itself for the root
    total: Array  # (trees,): the scores
    weight: Array  # (trees,)
    before: Array  # (trees,): the weights that `left` knows
    gram: Array  # (trees, trees): how many arcs two trees share,
    factor: Array  # (trees, trees): Cholesky's factor,
    ones: Array  # (trees,): the factor's solution for 1,
    along: Array  # (trees,): and that for the scores
    move: Array  # (trees,): the best weights
    split: Array  # (n,), int32: the words whose heads differ among trees
    differs: Array  # (n,), bool: whether they do


@kernel
def mixture(n: int, trees: int) -> Mixture:
    """Room for so many trees."""
    return Mixture(
        np.empty((n, n)), np.empty((n, n)), np.empty((trees, n), np.int32), np.empty(trees),
        np.empty(trees), np.empty(trees), np.empty((trees, trees)), np.empty((trees, trees)),
        np.empty(trees), np.empty(trees), np.empty(trees), np.empty(n, np.int32), np.empty(n, np.bool_),
    )  # fmt: skip


@summing
def _factor(first: int, count: int, mix: Mixture) -> bool:
    """Rows of the factor from the first one on; whether no tree is a mixture of others."""
    gram, factor, ones, along, total = mix.gram, mix.factor, mix.ones, mix.along, mix.total
    for a in range(first, count):
        for b in range(a):
            rest = 0.0
            for c in range(b):
                rest += factor[a, c] * factor[b, c]
            factor[a, b] = (gram[a, b] - rest) / factor[b, b]
        rest, one, score = 0.0, 0.0, 0.0
        for c in range(a):
            rest += factor[a, c] * factor[a, c]
            one += factor[a, c] * ones[c]
            score += factor[a, c] * along[c]
        rest = gram[a, a] - rest
        if rest < DEPENDENT:
            return False
        factor[a, a] = np.sqrt(rest)
        ones[a], along[a] = (1.0 - one) / factor[a, a], (total[a] - score) / factor[a, a]
    return True


@summing
def _best_weights(count: int, mix: Mixture) -> float:
    """Those whose sum is 1, into `move`; what each tree scores when they are taken away."""
    factor, ones, along, move = mix.factor, mix.ones, mix.along, mix.move
    both, square = -1.0, 0.0
    for a in range(count):
        both += ones[a] * along[a]
        square += ones[a] * ones[a]
    level = both / square
    for a in range(count):
        move[a] = along[a] - level * ones[a]
    for a in range(count - 1, -1, -1):
        value = move[a] / factor[a, a]
        move[a] = value
        for b in range(a):
            move[b] -= factor[a, b] * value
    return level


@kernel
def _join(m: int, splits: int, count: int, mix: Mixture) -> int:
    """Completes the tree in row `count` of `heads`, at weight 0; how many words differ then."""
    heads, gram = mix.heads, mix.gram
    total = 0.0
    for d in range(m):
        total += mix.scores[heads[count, d], d]
    mix.total[count], mix.weight[count], mix.before[count] = total, 0.0, 0.0
    for a in range(count + 1):
        shared = 0
        for d in range(m):
            shared += heads[a, d] == heads[count, d]
        gram[a, count] = gram[count, a] = shared
    for d in range(m):
        if heads[count, d] != heads[0, d] and not mix.differs[d]:
            mix.differs[d] = True
            mix.split[splits] = d
            splits += 1
    return splits


@kernel
def _leave(count: int, m: int, splits: int, mix: Mixture) -> int:
    """Trees leave that have no weight and should have less; how many are left."""
    heads, weight, before, gram, total = mix.heads, mix.weight, mix.before, mix.gram, mix.total
    kept, first = 0, -1
    for a in range(count):
        if weight[a] <= NOTHING and mix.move[a] <= NOTHING:
            first = a if first < 0 else first
            for j in range(splits if before[a] != 0.0 else 0):
                d = mix.split[j]
                mix.left[heads[a, d], d] += before[a]
            continue
        if kept < a:
            for d in range(m):
                heads[kept, d] = heads[a, d]
            weight[kept], before[kept], total[kept] = weight[a], before[a], total[a]
            for b in range(count):
                gram[kept, b] = gram[a, b]
            for b in range(count):
                gram[b, kept] = gram[b, a]
        kept += 1
    if first >= 0:
        _factor(first, kept, mix)
    return kept


@kernel
def mix_trees(m: int, single_root: bool, f: Forest, mix: Mixture) -> tuple[int, int, int]:
    """The projection of the scores by at most so many trees as there is room for.

    How many trees it has, how many nodes `contract` ended with, and how many trees were asked for, -1
    where there was not enough room or rounding stopped it.
    """
    left, heads, weight, before = mix.left, mix.heads, mix.weight, mix.before
    for d in range(m):
        mix.differs[d] = False
        for h in range(m):
            left[h, d] = mix.scores[h, d]
    count, splits, ending, nodes, level = 0, 0, 0, 0, -np.inf
    for asked in range(ASKED * len(mix.total)):
        nodes = contract(left, m, single_root, f)
        gain, rounding = -level, ROUNDING
        for v in range(nodes):
            gain += f.price[v]
            rounding += ROUNDING * abs(f.price[v])
        ending += gain <= SMALL * rounding
        if gain <= rounding or ending > ENDING:
            return count, nodes, asked
        if count == len(mix.total):
            break
        expand(m, nodes, f)
        for d in range(m):
            heads[count, d] = d if f.source[d] == m else f.source[d]
        splits = _join(m, splits, count, mix)
        if not _factor(count, count + 1, mix):
            return count, nodes, asked if ending > 0 else -1
        count += 1
        while True:
            level = _best_weights(count, mix)
            reach = 1.0
            for a in range(count):
                if mix.move[a] < NOTHING:
                    reach = min(reach, weight[a] / (weight[a] - mix.move[a] + 1e-300))
            for a in range(count):
                weight[a] += reach * (mix.move[a] - weight[a])
            met = count
            count = _leave(count, m, splits, mix)
            if count == met:
                break
        if asked == 0:
            before[0] = 1.0
            for d in range(m):
                left[heads[0, d], d] -= 1.0
        for a in range(count):
            moved, before[a] = weight[a] - before[a], weight[a]
            for j in range(splits):
                d = mix.split[j]
                left[heads[a, d], d] -= moved
    return count, nodes, -1


@kernel
def expose(
    m: int, count: int, nodes: int, single_root: bool, tie: float, f: Forest, mix: Mixture, out: Array,
    free: Array, found: Array,
) -> int:  # fmt: skip
    """Writes the mixture, the arcs that may be used and the sets that bind; how many these are.

    An arc may be used whose score, less the prices of its word and of the sets it enters, is 0.
    """
    left, heads, weight = mix.left, mix.heads, mix.weight
    price, parent, row = f.price, f.parent, f.place
    binding = 1 if single_root else 0
    for v in range(m, nodes):
        row[v] = -1
        if -price[v] > tie:
            row[v] = binding
            binding += 1
    for d in range(m):
        v: int = parent[d]
        while v >= 0:
            if row[v] >= 0:
                found[row[v], d] = True
            v = parent[v]
        if single_root:
            found[0, d] = True
    whole, last = parent[0] >= 0, -1  # whether all words were contracted
    for d in range(m):
        top: int = d
        while parent[top] >= 0:
            top = parent[top]
        if d == 0:
            last = top
        whole = whole and top == last
    for v in range(m, nodes):
        row[v] = -1
    for d in range(m):
        paid, most = price[d], price[d]
        v = parent[d]
        while v >= 0:
            row[v] = d
            paid += price[v]
            most += min(price[v], 0.0)
            v = parent[v]
        for h in range(m):
            if left[h, d] - most < -tie or (single_root and h == d and not whole):
                continue
            reduced = left[h, d] - paid
            v = parent[h] if h != d else -1
            while v >= 0:
                if row[v] == d:
                    reduced += price[v]
                v = parent[v]
            if reduced >= -tie:
                free[h, d] = 2
        for h in range(m):
            left[h, d] = 0.0
        for a in range(count):
            left[heads[a, d], d] += weight[a]
        for a in range(count):
            h = heads[a, d]
            if left[h, d] > 0.0:
                out[h, d] = left[h, d]
            if left[h, d] > tie:
                free[h, d] = 1
    return binding
