"""Directed graphs as arrays, from what a user hands over."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spigot.polytopes.kernels.flows.network import Network

__all__ = ["Digraph"]


class Digraph:
    """Nodes numbered from 0, and arcs between them in a fixed order.

    Args:
        graph: a directed networkx graph, or pairs `(tail, head)` of hashable names.

    Raises:
        TypeError: an undirected graph, or no graph at all.
        ValueError: no arc.
    """

    names: tuple[Hashable, ...]
    tails: np.ndarray  # (arcs,), node numbers
    heads: np.ndarray

    def __init__(self, graph: Any) -> None:
        pairs, names = _named(graph)
        if not pairs:
            raise ValueError("Path needs a graph with at least one arc.")
        self.names = tuple(range(len(names))) if set(names) == set(range(len(names))) else names
        number = {name: k for k, name in enumerate(self.names)}
        ends = np.array([[number[a], number[b]] for a, b in pairs], dtype=np.int32)
        self.tails, self.heads = ends[:, 0].copy(), ends[:, 1].copy()

    def number(self, name: Hashable) -> int:
        """The number of a node.

        Raises:
            ValueError: no node has this name.
        """
        try:
            return self._numbers[name]
        except (KeyError, TypeError):
            shown = ", ".join(map(repr, self.names[:5])) + (", ..." if len(self.names) > 5 else "")
            raise ValueError(
                f"Path: {name!r} is no node of the graph, whose nodes are {shown}."
            ) from None

    @cached_property
    def _numbers(self) -> dict[Hashable, int]:
        return {name: k for k, name in enumerate(self.names)}

    @cached_property
    def part(self) -> np.ndarray:  # (arcs,), int64
        """Which arc each one of the network's is: they are sorted by tail."""
        return np.argsort(self.tails, kind="stable")

    @cached_property
    def network(self) -> Network:
        """The arcs as kernels walk them."""
        from spigot.polytopes.kernels.flows.network import Network, transpose

        nodes, arcs = len(self.names), len(self.part)
        tails, heads = self.tails[self.part], self.heads[self.part]
        start = np.searchsorted(tails, np.arange(nodes + 1)).astype(np.int32)
        network = Network(start, tails, heads, np.zeros(nodes + 1, np.int32), np.zeros(arcs, np.int32))
        transpose(nodes, network)
        return network

    @cached_property
    def order(self) -> np.ndarray:
        """The nodes in topological order; empty where the graph has a cycle."""
        from spigot.polytopes.kernels.flows.network import topological

        order = np.zeros(len(self.names), np.int32)
        acyclic = topological(len(self.names), self.network, order)
        return order if acyclic else order[:0]


def _named(graph: Any) -> tuple[list[tuple[Hashable, Hashable]], tuple[Hashable, ...]]:
    """The arcs by the names of their ends, and the nodes in the order in which they come."""
    if hasattr(graph, "is_directed"):
        if not graph.is_directed():
            raise TypeError("Path needs a directed graph; use graph.to_directed() for both directions.")
        return [(edge[0], edge[1]) for edge in graph.edges], tuple(graph.nodes)
    try:
        pairs = [(a, b) for a, b in _rows(graph)]
        return pairs, tuple(dict.fromkeys(name for pair in pairs for name in pair))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"Path needs a directed networkx graph, or pairs (tail, head) of nodes; got {graph!r}."
        ) from error


def _rows(graph: Any) -> Iterator[Any]:
    rows: Iterable[Any] = graph.tolist() if hasattr(graph, "tolist") else graph
    return iter(rows)
