"""Systems of a weighted graph in layers, solved by eliminating its nodes one after the other.

The matrix is A W A', W the weights of the arcs and A their incidence, with the nodes of the last
layer grounded. Taking a node out joins its neighbours by arcs of weight w_a w_b / (sum of w): no
subtraction, so weights of any magnitudes keep their relative accuracy, as in the elimination of
Grassmann, Taksar and Heyman (1985) for Markov chains.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["eliminate", "substitute"]

Array = np.ndarray


@kernel
def eliminate(weights: Array, depth: int, within: Array, ahead: Array, degree: Array) -> None:
    """Takes out all nodes, layer by layer; the first layer is node 0 alone.

    Reads weights (depth, width, width) of the arcs from node i of a layer to node j of the next.
    Writes what a node was joined to when it was taken out: `within` its layer and in the layer
    `ahead`, of the same shape, and the sum of these, `degree` (depth, width), 0 for nodes without arcs.
    """
    width = weights.shape[1]
    within[0] = 0.0
    for t in range(depth):
        nodes = 1 if t == 0 else width
        if t + 1 < depth:
            within[t + 1] = 0.0
        for i in range(nodes):
            for j in range(width):
                ahead[t, i, j] = weights[t, i, j]
        for a in range(nodes):
            total = 0.0
            for b in range(a + 1, nodes):
                total += within[t, a, b]
            for j in range(width):
                total += ahead[t, a, j]
            degree[t, a] = total
            if total <= 0.0:
                continue
            for b in range(a + 1, nodes):
                share = within[t, a, b] / total
                if share > 0.0:
                    for c in range(b + 1, nodes):
                        within[t, b, c] += share * within[t, a, c]
                    for j in range(width):
                        ahead[t, b, j] += share * ahead[t, a, j]
            if t + 1 < depth:
                for j in range(width):
                    share = ahead[t, a, j] / total
                    if share > 0.0:
                        for k in range(j + 1, width):
                            within[t + 1, j, k] += share * ahead[t, a, k]


@kernel
def substitute(depth: int, within: Array, ahead: Array, degree: Array, x: Array) -> None:
    """Solves for the nodes' potentials in place: x (depth + 1, width) holds the right-hand side."""
    width = within.shape[1]
    for t in range(depth):
        for a in range(1 if t == 0 else width):
            if degree[t, a] > 0.0:
                share = x[t, a] / degree[t, a]
                for b in range(a + 1, width):
                    x[t, b] += within[t, a, b] * share
                for j in range(width):
                    x[t + 1, j] += ahead[t, a, j] * share
    x[depth] = 0.0
    for t in range(depth - 1, -1, -1):
        for a in range(0 if t == 0 else width - 1, -1, -1):
            total = x[t, a]
            for b in range(a + 1, width):
                total += within[t, a, b] * x[t, b]
            for j in range(width):
                total += ahead[t, a, j] * x[t + 1, j]
            x[t, a] = total / degree[t, a] if degree[t, a] > 0.0 else 0.0
