"""Any dynamic programme, declared as a hypergraph."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.errors import unsupported
from spigot.polytopes.problem import Problem
from spigot.polytopes.structures.dynamic import DynamicProgram, InsideOutside, best_derivations
from spigot.polytopes.structures.hyperedges import Hyperedge, Node, chain, derivable, hyperedge, shape_of
from spigot.polytopes.structures.program import UNIT, EdgeList, Program

__all__ = ["Hypergraph"]

LISTED = 1000  # so many derivations count as a declaration of the vertices
COUNTED = 2**63
CHUNK = 1024  # parts whose largest count is asked for in one call


@dataclass(frozen=True, eq=False, repr=False)
class Hypergraph(DynamicProgram):
    """conv of the derivations of a goal, each the vector that counts the parts it uses.

    A derivation of a node is one of the edges into it and a derivation of each of the edge's tails.
    An edge is `(head, tails)` or `(head, tails, part)`: nodes are hashable names, `tails` a tuple or
    list of them (empty for an axiom), `part` an index of `shape`, None, or a list of indices
    for several parts. An edge list is all that a dynamic programme needs to be declared.

    Gibbs sums over derivations: structures in the sense of the other verbs are their distinct
    vectors, and the two agree when no two derivations use the same parts. `spigot.testing.check`
    reports where they do not, for up to 1000 derivations, which count as declared `vertices`.
    A part may be used more than once by a derivation, such as a grammar's rule; then y counts it.

    Parts: `(*shape)`. Labels are the vertices themselves.

    Args:
        edges: the edges, in any order.
        shape: the event shape, a number or a tuple.
        goal: the node whose derivations are the structures.

    Raises:
        TypeError: an edge in another form, or a shape that is no whole numbers.
        ValueError: no edge derives the goal, or a tail; a cycle; a part outside `shape`; a size below 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Hypergraph
        >>> path = Hypergraph(  # from a to d: by b (parts 0 and 1) or by c (parts 2 and 3)
        ...     [
        ...         ("a", ()),
        ...         ("b", ("a",), 0),
        ...         ("c", ("a",), 2),
        ...         ("d", ("b",), 1),
        ...         ("d", ("c",), 3),
        ...     ],
        ...     shape=4,
        ...     goal="d",
        ... )
        >>> path.maximize(torch.tensor([1.0, 1.0, 3.0, 0.0]))
        tensor([0., 0., 1., 1.])
        >>> path.marginals(torch.tensor([1.0, 1.0, 2.0, 0.0]))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        >>> path.derivation_count
        2

    References:
        Martin, Rardin and Campbell, "Polyhedral characterization of discrete dynamic programming"
        (Operations Research 1990), for `constraints`.
        Huang and Chiang, "Better k-best parsing" (IWPT 2005), algorithm 2, for `top_k`.
    """

    edges: Iterable[Any]
    shape: int | tuple[int, ...]
    goal: Hashable

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", shape_of(self.shape))
        object.__setattr__(self, "edges", tuple(hyperedge(row, self.event_shape) for row in self.edges))
        derivable(tuple(self.edges), self.goal)

    def __repr__(self) -> str:
        return f"Hypergraph({len(tuple(self.edges))} edges, {self.event_shape}, goal={self.goal!r})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`shape`."""
        assert isinstance(self.shape, tuple)
        return self.shape

    @property
    def facts(self) -> frozenset[str]:
        """With the vertices, where there are few enough."""
        few = self.derivation_count <= LISTED
        return self._declared if few else self._declared - {"vertices"}

    @property
    def _order(self) -> dict[Node, list[Hyperedge]]:
        return derivable(tuple(self.edges), self.goal)

    def declared(self) -> Program:
        """Nodes numbered; an edge of many tails or parts becomes a chain of plain ones."""
        number: dict[Node, int] = {}
        rows: list[tuple[int, int, int, int]] = []
        free = UNIT + 1
        for node, edges in self._order.items():
            into: list[tuple[int, int, int]] = []
            for edge in edges:
                *below, top = chain([number[tail] for tail in edge.tails], edge.parts)
                for left, right, slot in below:
                    rows.append((free, left, free - 1 if right is None else right, slot))
                    free += 1
                left, right, slot = top
                into.append((left, free - 1 if right is None else right, slot))
            number[node] = free
            rows += [(free, *link) for link in into]
            free += 1
        return Program.compiled([EdgeList(*np.array(rows, dtype=np.int64).T)], number[self.goal])

    @property
    def derivation_count(self) -> int:
        """How many derivations there are; 2^63 stands for all larger numbers."""
        known: int | None = self.scratch.get("derivation count")
        if known is None:
            counts: dict[Node, int] = {}
            for node, edges in self._order.items():
                total = sum(math.prod(counts[tail] for tail in edge.tails) for edge in edges)
                counts[node] = min(total, COUNTED)
            known = self.scratch["derivation count"] = counts[self.goal]
        return known

    def derivations(self, limit: int = 10_000) -> Tensor:
        """Every derivation's parts, `(m, *event)`, those with equal parts each by itself.

        Raises:
            ValueError: there are more than `limit`.

        Example:
            >>> from spigot.polytopes import Hypergraph
            >>> twice = Hypergraph([("s", (), 0), ("s", ("t",)), ("t", (), 0)], 1, "s")
            >>> twice.derivations()
            tensor([[1.],
                    [1.]], dtype=torch.float64)
        """
        count = self.derivation_count
        if count > limit:
            raise ValueError(f"{self} has {count} derivations, more than the limit of {limit}.")
        scores = torch.zeros(1, *self.event_shape, dtype=torch.float64)
        return InsideOutside().top_k(Problem(self, scores, None), count)[:, 0]

    def vertices(self) -> Tensor:
        """The derivations, up to 1000 of them, `(m, *event)`.

        Raises:
            UnsupportedProblem: there are more.
        """
        if self.derivation_count > LISTED:
            raise unsupported(
                self, None, f"it has {self.derivation_count} derivations.", "Use derivations(limit)."
            )
        return self.derivations()

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0, and the most often that a derivation uses each part."""
        if "bounds" not in self.scratch:
            lower, upper = super().bounds
            for rows in torch.split(tensor(self.program.edges.slots[1:]), CHUNK):
                units = torch.zeros(len(rows), upper.numel(), dtype=torch.float64)
                units[torch.arange(len(rows)), rows] = 1.0
                problem = Problem(self, units.reshape(-1, *self.event_shape), None)
                best = best_derivations(problem, 0.0)[0]
                upper.view(-1)[rows] = best[torch.arange(len(rows)), rows]
            self.scratch["bounds"] = lower, upper
        return self.scratch["bounds"]

    @property
    def repeats(self) -> bool:
        """Whether a derivation may use a part more than once."""
        return bool((self.bounds[1] > 1).any())
