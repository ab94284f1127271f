"""A dynamic programme as a hypergraph, compiled to the arrays that the kernels walk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library

__all__ = ["UNIT", "EdgeList", "Edges", "Program", "Targets"]

UNIT = 0  # the node that stands for no tail


class Edges(NamedTuple):
    """What the kernels walk: the edges of node v are `starts[v]:starts[v + 1]`."""

    starts: np.ndarray  # (nodes + 1,), int64
    left: np.ndarray  # (edges,), uint32
    right: np.ndarray  # (edges,), uint32
    part: np.ndarray  # (edges,), uint32; 0 is none
    slots: np.ndarray  # (parts + 1,), int64: the flat index of each part in the event


@dataclass(frozen=True)
class EdgeList:
    """Edges as they are declared: arrays of one length, that broadcast.

    Attributes:
        head: the number of the node derived, at least 1.
        left: its first tail, or `UNIT`.
        right: its second tail, or `UNIT`.
        slot: the flat index of the part it uses, or -1.
    """

    head: Any
    left: Any = UNIT
    right: Any = UNIT
    slot: Any = -1


@dataclass(frozen=True)
class Targets:
    """What each instance asks for: its goal node and how many parts lie below it, `(n,)` each."""

    goals: np.ndarray
    used: np.ndarray


@dataclass(frozen=True, eq=False)
class Program:
    """Compiled edges, and the goal of every size.

    Attributes:
        edges: sorted by head; tails come before heads.
        goals: the goal node: an array indexed by the structure's size, one dimension for each of
            its `lengths`, none where it has no size.
    """

    edges: Edges
    goals: np.ndarray

    @classmethod
    def compiled(cls, families: list[EdgeList], goals: Any) -> Program:
        """From edges whose tails are smaller numbers than their heads; numbers may be left out."""
        columns = [
            np.broadcast_arrays(*map(np.ravel, (f.head, f.left, f.right, f.slot))) for f in families
        ]
        head, left, right, slot = (np.concatenate(column) for column in zip(*columns, strict=True))
        order = np.argsort(head, kind="stable")
        head, left, right, slot = head[order], left[order], right[order], slot[order]
        assert bool((np.maximum(left, right) < head).all())
        nodes, counts = np.unique(head, return_counts=True)
        number = np.zeros(int(nodes[-1]) + 1, dtype=np.int64)
        number[nodes] = 1 + np.arange(len(nodes))
        part, slots = _numbered(slot)
        starts = np.concatenate([[0, 0], np.cumsum(counts)])
        edges = Edges(
            starts, number[left].astype(np.uint32), number[right].astype(np.uint32), part, slots
        )
        return cls(edges, number[np.asarray(goals)])

    @cached_property
    def used(self) -> np.ndarray:  # (nodes,)
        """How many parts the edges of the nodes up to each one use."""
        most = np.maximum.accumulate(np.concatenate([[0], self.edges.part.astype(np.int64)]))
        return most[self.edges.starts[1:]]

    @cached_property
    def choices(self) -> np.ndarray:  # (nodes,)
        """How many nodes with several edges a derivation of each node can have at most."""
        most = np.zeros(len(self.edges.starts) - 1, dtype=np.int64)
        library("spigot.polytopes.kernels.dynamic.hypergraph").most_choices(self.edges, most)
        return most

    @cached_property
    def heights(self) -> np.ndarray:  # (nodes,)
        """How many nodes, at most, a derivation of each node has below one another."""
        most = np.zeros(len(self.edges.starts) - 1, dtype=np.int64)
        library("spigot.polytopes.kernels.dynamic.hypergraph").heights(self.edges, most)
        return most

    def targets(self, lengths: Tensor | None, count: int) -> Targets:
        """The goals of `count` instances; without lengths, that of the largest size."""
        if lengths is None:
            goals = np.full(count, self.goals.flat[-1])
        else:
            sizes = contiguous(lengths.long()).reshape(count, self.goals.ndim)
            goals = self.goals[tuple(sizes.T)]
        return Targets(goals, self.used[goals])

    @property
    def heads(self) -> np.ndarray:  # (edges,)
        """The head of each edge."""
        degree = np.diff(self.edges.starts)
        return np.repeat(np.arange(len(degree)), degree)

    def incidence(self) -> tuple[Any, Any]:
        """Sparse matrices over edges: what a node's edges derive less what they use, and parts.

        `(nodes - 1, edges)` without the unit, and `(parts, edges)`.
        """
        sp = library("scipy.sparse")
        edges = self.edges
        e = np.arange(len(edges.left))
        ones = np.ones(len(e))
        nodes, parts = len(edges.starts) - 1, len(edges.slots)

        def matrix(rows: np.ndarray, count: int) -> Any:
            return sp.csr_matrix((ones, (rows, e)), shape=(count, len(e)))[1:]

        balance = matrix(self.heads, nodes) - matrix(edges.left, nodes) - matrix(edges.right, nodes)
        return balance, matrix(edges.part, parts)


def _numbered(slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (edges,), (parts + 1,)
    """Parts from 1 in the order in which edges use them first, and where they lie; 0 is none."""
    slots, first, inverse = np.unique(slot[slot >= 0], return_index=True, return_inverse=True)
    rank = 1 + np.argsort(np.argsort(first))
    part = np.zeros(len(slot), dtype=np.uint32)
    part[slot >= 0] = rank[inverse.ravel()]
    ordered = np.zeros(len(slots) + 1, dtype=np.int64)
    ordered[rank] = slots
    return part, ordered
