"""Matchings of a graph's nodes along its edges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import ldexp
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.errors import unsupported
from spigot.polytopes.labels import refuse_labels, whole_labels
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.structures.index_sets import decode_sets, encode_sets

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["GraphMatching"]

MOST_LISTED = 10_000  # matchings, for `vertices`
MOST_NODES = 12  # of a graph with odd cycles, for `constraints`: 2^11 odd sets
BITS = 60  # of the scores' integers


@dataclass(frozen=True, eq=False)
class GraphMatching(Polytope):
    """{y >= 0 : y(edges at v) <= 1, y(edges inside S) <= (|S| - 1) / 2 for odd S}: a graph's matchings.

    No two edges of a matching share a node; with `perfect` each node has one, y(edges at v) = 1.

    Parts: `(m,)`, the edges in the order of `list(graph.edges)`, or of the list of pairs. Labels are
    edge index sets `(*batch, nodes // 2)`, ascending, padded with -1.

    For bipartite graphs with most edges present `Matching` is faster by far.

    `constraints` are declared for bipartite graphs, which need no odd sets, and up to 12 nodes;
    `vertices` (and with them `Gibbs`) up to 10,000 matchings.

    Args:
        graph: an undirected networkx graph, or pairs of nodes; parallel edges are parts of their own,
            loops are not allowed.
        perfect: whether every node must be matched.

    Raises:
        TypeError: a directed graph, or neither a graph nor pairs.
        ValueError: no edge, a loop, or `perfect` on a graph that has no perfect matching.

    Example:
        >>> import networkx as nx
        >>> import torch
        >>> from spigot.polytopes import GraphMatching
        >>> triangle = GraphMatching(nx.cycle_graph(3))
        >>> triangle.maximize(torch.tensor([0.5, 1.0, 0.75]))
        tensor([0., 1., 0.])
        >>> triangle.project(torch.tensor([1.0, 1.0, 1.0]))
        tensor([0.3333, 0.3333, 0.3333])
        >>> triangle.decode(torch.tensor([0.0, 1.0, 0.0]))
        tensor([1])

    References:
        Edmonds, "Maximum matching and a polyhedron with 0,1-vertices" (1965).
        MAP: Galil, "Efficient algorithms for finding maximum matching in graphs" (1986), as networkx has
        it, on integers, where its arithmetic is exact.
    """

    graph: Any
    perfect: bool = False

    def __post_init__(self) -> None:
        alone = hasattr(self.graph, "degree") and any(degree == 0 for _, degree in self.graph.degree)
        pairs = _pairs(self.graph)
        object.__setattr__(self, "graph", pairs)
        every = np.zeros(len(pairs)), np.ones(len(pairs), dtype=np.bool_)
        if self.perfect and (alone or _best(self, *every) is None):
            raise ValueError(
                f"{self}: the graph has no perfect matching. Leave `perfect` out, and nodes may stay "
                "alone."
            )

    def __repr__(self) -> str:
        perfect = ", perfect=True" if self.perfect else ""
        return f"GraphMatching({len(self.nodes)} nodes, {len(self.graph)} edges{perfect})"

    @cached_property
    def nodes(self) -> tuple[Any, ...]:
        """The nodes that edges name, in order of appearance."""
        return tuple(dict.fromkeys(node for pair in self.graph for node in pair))

    @cached_property
    def ends(self) -> np.ndarray:  # (m, 2)
        """Each edge's two nodes, by their place in `nodes`."""
        place = {node: i for i, node in enumerate(self.nodes)}
        return np.array([[place[tail], place[head]] for tail, head in self.graph], dtype=np.int64)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (len(self.graph),)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.event_shape).double(), torch.ones(self.event_shape).double()

    @cached_property
    def facts(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`argmax`, and what is small enough to be written down."""
        found = {"argmax"}
        if self.bipartite or len(self.nodes) <= MOST_NODES:
            found.add("constraints")
        if self.listed is not None:
            found.add("vertices")
        return frozenset(found)

    @cached_property
    def bipartite(self) -> bool:
        """Whether no cycle is odd."""
        nx = library("networkx")

        return bool(nx.is_bipartite(nx.Graph(self.graph)))

    def argmax(self, scores: Tensor) -> Tensor:
        """A best matching of each instance."""
        return AugmentingBlossoms().solve(Problem(self, scores, None)).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Degrees, and the odd sets whose edges they do not bound already."""
        incidence = (self.ends.T[:, None, :] == np.arange(len(self.nodes))[:, None]).sum(0).astype(float)
        degrees = incidence @ y
        rows: list[Any] = [y >= 0, degrees == 1 if self.perfect else degrees <= 1]
        sets = np.array(list(self._odd_sets()), dtype=bool)
        if len(sets):
            inside = sets[:, self.ends].all(2).astype(float)
            rows.append(inside @ y <= (sets.sum(1) - 1) / 2)
        return rows

    def vertices(self) -> Tensor:
        """Every matching, `(count, m)`.

        Raises:
            UnsupportedProblem: there are too many.
        """
        if self.listed is None:
            why = f"it has more than {MOST_LISTED} matchings to list."
            raise unsupported(self, None, why, "Use Euclidean(), which needs no list.")
        points = torch.zeros(len(self.listed), len(self.graph), dtype=torch.float64)
        for row, edges in zip(points, self.listed, strict=True):
            row[list(edges)] = 1.0
        return points

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 vectors `(*batch, m)` of edge index sets `(*batch, most)`, padded with -1.

        Raises:
            TypeError: indices of a floating dtype.
            ValueError: an index out of range, two edges at a node, or with `perfect` a node without.
        """
        index = whole_labels(labels, "edge indices")
        batch, edges = index.shape[:-1], index.long().clamp_min(0)
        vertices = encode_sets(index, len(self.graph), None)
        degrees = torch.zeros(*vertices.shape[:-1], len(self.nodes), device=vertices.device)
        for side in tensor(self.ends).to(vertices.device).unbind(1):
            degrees.index_add_(-1, side, vertices.to(degrees))
        shared = (degrees > 1)[..., tensor(self.ends).to(vertices.device)].any(-1)
        wrong = shared.gather(-1, edges) & (index >= 0)
        must = f"must be the edges of a matching of {self}"
        refuse_labels(f"{must}, no two at a node", wrong, index, batch)
        if self.perfect:
            refuse_labels(f"{must}, with an edge at every node", (degrees < 1).any(-1), index, batch)
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Edge index sets `(*batch, nodes // 2)`, ascending, padded with -1."""
        return decode_sets(self, vertices, len(self.nodes) // 2)

    def _odd_sets(self) -> Iterator[np.ndarray]:
        """Odd sets of nodes that hold an odd cycle, as masks."""
        nx = library("networkx")

        if self.bipartite:
            return
        graph = nx.Graph([tuple(pair) for pair in self.ends.tolist()])
        for size in range(3, len(self.nodes) + 1, 2):
            for chosen in combinations(range(len(self.nodes)), size):
                if not nx.is_bipartite(graph.subgraph(chosen)):
                    mask = np.zeros(len(self.nodes), dtype=bool)
                    mask[list(chosen)] = True
                    yield mask

    @cached_property
    def listed(self) -> list[tuple[int, ...]] | None:
        """Every matching as ascending edge indices, each edge in turn out or in; None for too many."""
        ends = self.ends.tolist()
        waiting: list[tuple[int, tuple[int, ...], int]] = [(0, (), 0)]
        found: list[tuple[int, ...]] = []
        for _ in range(MOST_LISTED * (len(ends) + 1)):
            if not waiting or len(found) > MOST_LISTED:
                break
            edge, chosen, used = waiting.pop()
            if edge == len(ends):
                if not self.perfect or 2 * len(chosen) == len(self.nodes):
                    found.append(chosen)
                continue
            both = (1 << ends[edge][0]) | (1 << ends[edge][1])
            if not used & both:
                waiting.append((edge + 1, (*chosen, edge), used | both))
            waiting.append((edge + 1, chosen, used))
        return None if waiting or len(found) > MOST_LISTED else found


@rule(GraphMatching, None)
class AugmentingBlossoms(Road):
    """A matching of largest score."""

    name = "blossom algorithm (networkx)"
    cost = "O(n^3) in Python, an instance at a time"
    devices = ("cpu",)

    def solve(self, problem: Problem) -> Solution:
        """0/1 vectors."""
        assert isinstance(problem.polytope, GraphMatching)
        scores = contiguous(problem.scores.double())
        keep = (
            np.ones(scores.shape, dtype=np.bool_) if problem.keep is None else contiguous(problem.keep)
        )
        value = torch.zeros_like(problem.scores)
        missing: list[int] = []
        for i in range(problem.size):
            chosen = _best(problem.polytope, scores[i], keep[i])
            if chosen is None:
                missing.append(i)
            else:
                value[i, chosen] = 1.0
        if missing:
            raise problem.no_structure(missing)
        return Solution.closed_form(value, (problem.scores * value).sum(1))


def _best(polytope: GraphMatching, scores: np.ndarray, keep: np.ndarray) -> list[int] | None:
    """The edges of a best matching; None where `perfect` asks for one that is not there.

    Of parallel edges the best one takes part, the first at ties. Scores become integers relative to the
    largest, so that no comparison is rounded.
    """
    nx = library("networkx")

    largest = float(np.abs(scores[keep]).max(initial=0.0))
    graph: Any = nx.Graph()
    graph.add_nodes_from(range(len(polytope.nodes)))
    best: dict[tuple[int, int], int] = {}
    for edge, (tail, head) in enumerate(polytope.ends.tolist()):
        pair = (min(tail, head), max(tail, head))
        if keep[edge] and (pair not in best or scores[edge] > scores[best[pair]]):
            best[pair] = edge
    for (tail, head), edge in best.items():
        weight = 0 if largest == 0 else round(ldexp(float(scores[edge]) / largest, BITS))
        graph.add_edge(tail, head, weight=weight)
    matched = nx.max_weight_matching(graph, maxcardinality=polytope.perfect)
    if polytope.perfect and 2 * len(matched) < len(polytope.nodes):
        return None
    return sorted(best[min(pair), max(pair)] for pair in matched)


def _pairs(graph: Any) -> tuple[tuple[Any, Any], ...]:
    """The edges, checked."""
    if hasattr(graph, "is_directed"):
        if graph.is_directed():
            raise TypeError("GraphMatching needs an undirected graph; use graph.to_undirected().")
        graph = [edge[:2] for edge in graph.edges]
    try:
        rows = graph.tolist() if hasattr(graph, "tolist") else graph  # the numbers, not tensors of them
        pairs = tuple((tail, head) for tail, head in rows)
        hash(pairs)
    except (TypeError, ValueError):
        raise TypeError(
            f"GraphMatching needs an undirected networkx graph, or pairs of nodes; got {graph!r}."
        ) from None
    if not pairs:
        raise ValueError("GraphMatching needs a graph with at least one edge.")
    for tail, head in pairs:
        if tail == head:
            raise ValueError(
                f"GraphMatching: the edge {(tail, head)!r} is a loop, which is in no matching."
            )
    return pairs
