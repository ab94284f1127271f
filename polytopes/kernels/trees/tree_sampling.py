r"""Exact random spanning trees by putting eliminated nodes back.

After the nodes above v are eliminated (see `conductance`), an edge a, b of the network stands for an
edge of the graph, or for a way through a node u that was taken out, in proportion to what each gave
to W_ab: its origin. So a tree of the network on the nodes below v becomes one on the nodes up to v:
the edges of origin v go, and v is joined to each of the components that are left by one edge, chosen
in proportion to W_vc; each new edge draws its own origin. In the end all origins are edges of the
graph. A choice in proportion to exp(l) is the largest l plus a Gumbel variable, so all of it is in log
space; the work is bounded, however peaked the scores.

The numbers of one tree come from one 64-bit seed (splitmix64).
"""

from __future__ import annotations

import math

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.trees.conductance import eliminate_logs, fill_logs
from spigot.polytopes.kernels.trees.spanning import find

__all__ = ["draw"]


@kernel
def _gumbel(state: np.ndarray) -> float:
    """The next standard Gumbel variable."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    x = state[0]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    uniform = (np.float64(x >> np.uint64(12)) + 0.5) / 4503599627370496.0
    return -math.log(-math.log(uniform))


@kernel
def _origin(
    a: int,
    b: int,
    scores: np.ndarray,
    first_edge: np.ndarray,
    next_edge: np.ndarray,
    star: np.ndarray,
    degree: np.ndarray,
    state: np.ndarray,
) -> int:
    """Where an edge to node a > b of the network on the nodes up to a comes from.

    An edge of the graph, e >= 0, or the node u > a, given as -u.
    """
    best, origin = -np.inf, -1
    e = int(first_edge[a, b])
    while e >= 0:
        if scores[e] > -np.inf:
            value = scores[e] + _gumbel(state)
            if value > best:
                best, origin = value, e
        e = int(next_edge[e])
    for u in range(a + 1, len(degree)):
        if star[u, a] > -np.inf and star[u, b] > -np.inf:
            value = star[u, a] + star[u, b] - degree[u] + _gumbel(state)
            if value > best:
                best, origin = value, -u
    return origin


@kernel
def draw(
    first: int,
    last: int,
    scores: np.ndarray,
    ends: np.ndarray,
    first_edge: np.ndarray,
    next_edge: np.ndarray,
    seeds: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Trees `(count, n, m)` of p ~ exp<s, y>, from seeds `(count, n)`.

    Scores `(n, m)` are float64, -inf at edges that are not there. `first_edge` `(nodes, nodes)` is an
    edge between two nodes, `next_edge` `(m,)` another one of the same pair; -1 for none.
    """
    size = len(first_edge)
    network, slopes = np.empty((size, size)), np.empty((1, 1))
    star, degree = np.empty((size, size)), np.empty(size)
    parent, best, chosen = np.empty(size, np.int64), np.empty(size), np.empty(size, np.int64)
    origin = np.empty(2 * size, np.int64)
    tree = np.empty((2 * size, 2), np.int64)
    state = np.empty(1, np.uint64)
    for i in range(first, last):
        fill_logs(scores[i], scores[i], ends, False, network, slopes)
        for v in range(size - 1, 0, -1):
            star[v] = network[v]
            degree[v] = eliminate_logs(network, slopes, v + 1, v, False)[0]
        for sample in range(seeds.shape[0]):
            state[0] = np.uint64(seeds[sample, i])
            edges = 0
            for v in range(1, size):
                left = 0
                for node in range(v):
                    parent[node], best[node] = node, -np.inf
                for e in range(edges):
                    if origin[e] != -v:
                        tree[left], origin[left] = tree[e], origin[e]
                        parent[find(parent, tree[e, 0])] = find(parent, tree[e, 1])
                        left += 1
                for c in range(v):
                    if star[v, c] > -np.inf:
                        root = find(parent, c)
                        value = star[v, c] + _gumbel(state)
                        if value > best[root]:
                            best[root], chosen[root] = value, c
                for c in range(v):
                    if parent[c] == c:
                        a, b = v, chosen[c]
                        tree[left, 0], tree[left, 1] = a, b
                        origin[left] = _origin(
                            a, b, scores[i], first_edge, next_edge, star, degree, state
                        )
                        left += 1
                edges = left
            for e in range(edges):
                drawn[sample, i, origin[e]] = 1.0
