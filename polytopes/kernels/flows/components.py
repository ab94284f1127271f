"""Strongly connected components."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.flows.network import Network

__all__ = ["strong_components"]


@kernel
def strong_components(
    network: Network, forward: np.ndarray, backward: np.ndarray, label: np.ndarray, work: np.ndarray
) -> None:
    """Writes the component of each node, where arcs may be walked along, against or both ways.

    Tarjan's search without recursion. `work` is (5, nodes).
    """
    start, start_in = network.start, network.start_in
    nodes = len(label)
    index, low, path, stack, step = work[0], work[1], work[2], work[3], work[4]
    index[:nodes] = -1
    label[:] = -1
    clock, found, held = 0, 0, 0
    for first in range(nodes):
        if index[first] >= 0:
            continue
        depth = 0
        path[0] = first
        index[first] = low[first] = clock
        clock += 1
        step[first] = 0
        stack[held] = first
        held += 1
        while depth >= 0:
            u = path[depth]
            leaving = start[u + 1] - start[u]
            entering = start_in[u + 1] - start_in[u]
            down = False
            while step[u] < leaving + entering:
                j = step[u]
                step[u] += 1
                if j < leaving:
                    k = start[u] + j
                    v = network.heads[k]
                    if not forward[k]:
                        continue
                else:
                    k = network.incoming[start_in[u] + j - leaving]
                    v = network.tails[k]
                    if not backward[k]:
                        continue
                if index[v] < 0:
                    index[v] = low[v] = clock
                    clock += 1
                    step[v] = 0
                    stack[held] = v
                    held += 1
                    depth += 1
                    path[depth] = v
                    down = True
                    break
                if label[v] < 0:
                    low[u] = min(low[u], index[v])
            if down:
                continue
            if low[u] == index[u]:
                while True:
                    held -= 1
                    label[stack[held]] = found
                    if stack[held] == u:
                        break
                found += 1
            depth -= 1
            if depth >= 0:
                low[path[depth]] = min(low[path[depth]], low[u])
