r"""Projections onto dependency trees, by cutting planes: few of the many inequalities bind.

M is a product of simplices, one of heads for each word, cut by

    the arcs among the words of S sum to at most |S| - 1,   for every set S of words.

The cuts at hand get their best multipliers; minimum cuts in the arcs in use find sets that are
violated, which join; cuts without a multiplier leave. For one root arc only, the cut of all words is an
equation. Where most words have one head in use, the projection mixes few trees, while many cuts bind:
then `tree_mixtures` finds it.

References:
    Edmonds, "Optimum branchings" (1967), for the inequalities.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.arborescence import forest
from spigot.polytopes.kernels.trees.cut_prices import (
    Columns,
    Trial,
    curvature,
    heads,
    hold,
    minimise,
    solve,
)
from spigot.polytopes.kernels.trees.separation import Cuts, Network, Use, join, separate
from spigot.polytopes.kernels.trees.tree_mixtures import expose, mix_trees, mixture

__all__ = ["project_trees", "pull_trees"]

Array = np.ndarray
ROUNDS = 300
ACCEPTED = 1e-8  # a violation, where rounding allows no better
ROUNDING = 2.0**-52
FIRST, SHARE = 0.3, 0.3  # violations left before cuts are sought: at first, and of the worst found then
PEAKED, TREES = (
    1.8,
    96,
)  # heads in use a word, on average: at fewer, few trees are mixed, at most so many


@kernel
def _load(scores: Array, m: int, columns: Columns) -> float:
    """Each word's scores less the best one; the widest range."""
    width = 1.0
    for d in range(m):
        best, worst = -np.inf, np.inf
        for h in range(m):
            value = np.float64(scores[h, d])
            columns.scores[d, h] = value
            best = max(best, value)
            if value > -np.inf:
                worst = min(worst, value)
        for h in range(m):
            columns.scores[d, h] -= best
        width = max(width, best - worst)
    return width


@kernel
def _leave(cuts: Cuts, count: int, m: int, equation: bool) -> int:
    """Drops the cuts without a multiplier; how many are left."""
    kept = 0
    for k in range(count):
        if cuts.price[k] > 0.0 or (equation and k == 0):
            for x in range(m):
                cuts.members[kept, x], cuts.inside[kept, x] = cuts.members[k, x], cuts.inside[k, x]
            cuts.members[kept, -1], cuts.price[kept] = cuts.members[k, -1], cuts.price[k]
            kept += 1
    return kept


@kernel
def project_trees(
    first: int, last: int, scores: Array, lengths: Array, single_root: bool, tie: float, out: Array,
    free: Array, found: Array, binding: Array, steps: Array,
) -> None:  # fmt: skip
    """Projections into the zeros of `out`, and what their derivative needs.

    `scores` and `out` are `(N, n, n)`, [head, dependent], the root's arcs on the diagonal, -inf where
    an arc is excluded; every instance has a tree. `free` `(N, n, n)` marks the arcs whose bound has no
    multiplier: 1 in use, 2 at 0 (a tie). `found` `(N, cuts, n)` gets the sets whose cuts have one,
    `binding` `(N,)` how many. `steps` `(N,)` are Newton's or best trees, -1 where they did not converge.
    """
    n, most = scores.shape[1], found.shape[1]
    f, mix = forest(n), mixture(n, TREES)
    columns = Columns(
        np.empty((n, n)), np.empty((n, most), np.int32), np.zeros(n, np.int32), np.empty(n),
        np.empty(n + 1, np.int32), np.empty(n + 1), np.empty(n),
    )  # fmt: skip
    cuts = Cuts(np.empty((most, n + 1), np.int32), np.empty((most, n)), np.empty(most))
    use = Use(np.empty((n, n), np.int32), np.empty((n, n)), np.empty(n, np.int32))
    net = Network(
        np.empty(n + 1, np.int32), np.empty(n + 1, np.int32), np.empty(n * n, np.int32),
        np.empty(n * n, np.int32), np.empty(n * n), np.empty(n, np.bool_), np.empty(n, np.int32),
        np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.int32),
    )  # fmt: skip
    trial = Trial(
        np.empty(most), np.empty(most), np.empty(most), np.empty(most, np.int32),
        np.empty((2, most), np.int32), np.empty(most, np.int32), np.empty(most), np.empty((most, most)),
    )  # fmt: skip
    for i in range(first, last):
        m: int = lengths[i]
        tolerance = 8.0 * ROUNDING * _load(scores[i], m, columns) * m
        count = 0
        if single_root:
            cuts.inside[0, :m] = 1.0
            join(cuts, 0, m, 0.0)
            count = 1
        used = 0
        hold(columns, m, cuts, 0)
        heads(columns, 0, m, m, cuts, cuts.price, 0.0, use)
        for d in range(m):
            used += use.size[d]
        if used < PEAKED * m:
            for h in range(m):
                for d in range(m):
                    mix.scores[h, d] = columns.scores[d, h]
            trees, nodes, asked = mix_trees(m, single_root, f, mix)
            steps[i] = asked
            if asked >= 0:
                binding[i] = expose(
                    m, trees, nodes, single_root, tie, f, mix, out[i], free[i], found[i]
                )  # fmt: skip
                continue
        steps[i] = 0
        done = False
        goal = tolerance if count > 0 else FIRST
        for rounds in range(ROUNDS):
            taken, residual = minimise(
                columns, m, cuts, count, single_root, tolerance, goal, use, trial
            )  # fmt: skip
            steps[i] += taken
            exact = goal <= tolerance
            done = exact and taken == 0 and rounds > 0  # what joined was violated by rounding alone
            if residual > max(ACCEPTED, 10.0 * tolerance, goal) or done:
                break
            heads(columns, 0, m, m, cuts, cuts.price, 0.0, use)
            count = _leave(cuts, count, m, single_root)
            old = count
            count, worst = separate(m, use, max(10.0 * tolerance, 2.0 * residual), cuts, count, net)
            done = exact and count == old
            if done or count == most:
                break
            goal = max(tolerance, SHARE * worst)
        hold(columns, m, cuts, count)
        for d in range(m):
            number = heads(columns, d, d + 1, m, cuts, cuts.price, tie, use)
            for j in range(number):
                if columns.lowered[columns.near[j]] >= columns.level[d] - tie:
                    free[i, columns.near[j], d] = 2
            for e in range(use.size[d]):
                out[i, use.head[d, e], d] = use.share[d, e]
                if use.share[d, e] > tie:
                    free[i, use.head[d, e], d] = 1
        binding[i] = 0
        for k in range(count):
            if cuts.price[k] > tie or (single_root and k == 0):
                for x in range(m):
                    found[i, binding[i], x] = cuts.inside[k, x] > 0.0
                binding[i] += 1
        if not done:
            steps[i] = -1


@kernel
def pull_trees(
    first: int, last: int, grad: Array, lengths: Array, free: Array, found: Array, binding: Array,
    out: Array,
) -> None:  # fmt: skip
    """`grad` projected onto the directions of each face into the zeros of `out`, `(N, n, n)` each.

    These are: nothing at fixed arcs, words' heads that sum to 0, and 0 inside each binding cut.
    """
    n, most = grad.shape[1], found.shape[1]
    use = Use(np.empty((n, n), np.int32), np.empty((n, n)), np.empty(n, np.int32))
    every, common = np.empty(most, np.int32), np.empty((2, most), np.int32)
    for a in range(most):
        every[a] = a
    move, matrix = np.empty(most), np.empty((most, most))
    for i in range(first, last):
        m: int = lengths[i]
        number: int = binding[i]
        for d in range(m):
            kept, mean = 0, 0.0
            for h in range(m):
                if free[i, h, d] > 0:
                    use.head[d, kept], use.share[d, kept] = h, grad[i, h, d]
                    mean += use.share[d, kept]
                    kept += 1
            use.size[d] = kept
            for e in range(kept):
                use.share[d, e] -= mean / kept
        for a in range(number):
            move[a] = 0.0
            for d in range(m):
                for e in range(use.size[d] if found[i, a, d] else 0):
                    if use.head[d, e] != d and found[i, a, use.head[d, e]]:
                        move[a] += use.share[d, e]
        curvature(m, found[i], use, every, number, 0.0, common, matrix)
        solve(matrix, number, move)
        for d in range(m):
            mean = 0.0
            for e in range(use.size[d]):
                h = use.head[d, e]
                for a in range(number if h != d else 0):
                    if found[i, a, d] and found[i, a, h]:
                        use.share[d, e] -= move[a]
                        mean += move[a]
            for e in range(use.size[d]):
                out[i, use.head[d, e], d] = use.share[d, e] + mean / use.size[d]
