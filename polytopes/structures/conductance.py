"""Graphs of conductances: the chance of each edge to lie in a random spanning tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.curvature import NEVER
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.trees.conductance import conductances
from spigot.polytopes.kernels.trees.tree_sampling import draw
from spigot.polytopes.structures.tree_torch import log_total

__all__ = ["Network", "Trees"]

QUARTERS = 4


@dataclass(frozen=True, eq=False)
class Trees:
    """What the sum over spanning trees tells.

    Attributes:
        total: its logarithm, `(n,)`.
        chance: of each edge to be in the tree, `(n, m)`.
        slope: the derivative of that along the direction asked for, `(n, m)`.
    """

    total: Tensor
    chance: Tensor
    slope: Tensor


@dataclass(frozen=True)
class _Step:
    """Keeps some nodes of the network one step up, the others eliminated; see the kernel."""

    depth: int
    kept: tuple[int, ...]
    gone: tuple[int, ...]
    pair: int


@dataclass(frozen=True, eq=False)
class Network:
    """An undirected graph, parallel edges allowed: `ends` `(m, 2)` of its `size` nodes."""

    ends: np.ndarray
    size: int

    @cached_property
    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of nodes that edges join, `(p, 2)`, and which of them each edge joins, `(m,)`."""
        pairs, number = np.unique(np.sort(self.ends, axis=1), axis=0, return_inverse=True)
        return pairs, number.reshape(-1)

    @cached_property
    def plan(self) -> tuple[np.ndarray, ...]:
        """The kernel's steps, as `depth`, `kept`, `start`, `nodes` and `pair`."""
        number = {(int(a), int(b)): p for p, (a, b) in enumerate(self.joined[0])}
        steps = list(_steps(tuple(range(self.size)), number, 1))
        nodes = [step.kept + step.gone for step in steps]
        start = np.cumsum([0, *(len(row) for row in nodes[:-1])])
        columns = [
            [step.depth for step in steps],
            [len(step.kept) for step in steps],
            start,
            [node for row in nodes for node in row],
            [step.pair for step in steps],
        ]
        return tuple(np.array(column, dtype=np.int64) for column in columns)

    @cached_property
    def lists(self) -> tuple[np.ndarray, np.ndarray]:
        """An edge between two nodes `(size, size)`, and another one beside each `(m,)`; -1 for none."""
        first, following = np.full((self.size, self.size), -1), np.full(len(self.ends), -1)
        for edge, (a, b) in enumerate(self.ends):
            following[edge] = first[a, b]
            first[a, b] = first[b, a] = edge
        return first, following

    def trees(self, scores: Tensor, direction: Tensor | None = None) -> Trees:
        """Sums over the trees of p ~ exp<s, y>, and derivatives; scores of -inf leave edges out."""
        rows = contiguous(scores.double())
        n, m = rows.shape
        along = rows[:0] if direction is None else contiguous(direction.double())
        total, chance, slope = np.zeros(n), np.zeros((n, m)), np.zeros((n, m))
        done = np.zeros(n, bool)
        graph = self.ends, self.joined[1], *self.plan, self.size
        for logs in (False, True):
            if not done.all():
                results = total, chance, slope, done
                over_instances(conductances, n, rows, along, *graph, logs, *results)
        return Trees(tensor(total), tensor(chance), tensor(slope))

    def log_total(self, scores: Tensor) -> Tensor:  # (n, m) -> (n,)
        """log of the sum over trees, differentiable as often as one likes; in plain torch.

        Directed away from the last node, a spanning tree is a dependency tree on the others.
        """
        pairs, number = (tensor(array).to(scores.device) for array in self.joined)
        edges, last = scores.clamp_min(NEVER), self.size - 1
        shape = (len(scores), len(pairs))
        top = scores.new_full(shape, NEVER).scatter_reduce(
            1, number.expand(edges.shape), edges.detach(), "amax"
        )
        share = (edges - top[:, number]).exp()
        joined = top + torch.zeros_like(top).index_add(1, number, share).log()
        whole = scores.new_full((len(scores), self.size, self.size), NEVER)
        for a, b in (pairs.t(), pairs.t().flip(0)):
            whole = whole.index_put((torch.arange(len(scores))[:, None], a, b), joined)
        return log_total(whole[:, :last, :last], whole[:, :last, last])

    def sample(
        self, scores: Tensor, count: int, generator: torch.Generator | None
    ) -> Tensor:  # (count, n, m)
        """Exact samples of p ~ exp<s, y>; scores of -inf leave edges out."""
        rows = contiguous(scores.double())
        seeds = torch.randint(2**62, (count, len(rows)), generator=generator)
        drawn = np.zeros((count, *rows.shape))
        over_instances(draw, len(rows), rows, self.ends, *self.lists, contiguous(seeds), drawn)
        return tensor(drawn)


def _steps(here: tuple[int, ...], wanted: dict[tuple[int, int], int], depth: int) -> Iterator[_Step]:
    """The steps that find the wanted pairs of the nodes that a network has."""
    for inside in _shares(here, wanted):
        ends = {node for pair in inside for node in pair}
        kept = tuple(k for k, node in enumerate(here) if node in ends)
        gone = tuple(k for k, node in enumerate(here) if node not in ends)
        done = len(kept) == 2
        yield _Step(depth, kept, gone, next(iter(inside.values())) if done else -1)
        if not done:
            yield from _steps(tuple(here[k] for k in kept), inside, depth + 1)


def _shares(
    here: tuple[int, ...], wanted: dict[tuple[int, int], int]
) -> Iterator[dict[tuple[int, int], int]]:
    """The wanted pairs shared out among the pairs of quarters of the nodes."""
    quarter = {
        node: q for q, part in enumerate(np.array_split(here, QUARTERS)) for node in map(int, part)
    }
    left = dict(wanted)
    for two in combinations(range(QUARTERS), 2):
        inside = {pair: p for pair, p in left.items() if all(quarter[node] in two for node in pair)}
        if inside:
            yield inside
        left = {pair: p for pair, p in left.items() if pair not in inside}
