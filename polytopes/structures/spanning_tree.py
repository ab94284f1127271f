"""Spanning trees of an undirected graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.curvature import derivative
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.trees.spanning import constrained, kruskal
from spigot.polytopes.labels import refuse_labels, whole_labels
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs
from spigot.polytopes.structures import partition
from spigot.polytopes.structures.conductance import Network
from spigot.polytopes.structures.index_sets import decode_sets, encode_sets
from spigot.polytopes.structures.isotonic import Sorted, sort
from spigot.polytopes.structures.partition import Part

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["SpanningTree"]


@dataclass(frozen=True, eq=False)
class SpanningTree(Polytope):
    """{y >= 0 : sum y = n - 1, y(edges inside S) <= |S| - 1 for all node sets S}: spanning trees.

    Parts: `(m,)`, the edges in the order of `list(graph.edges)`, or of the list of pairs. Labels are
    edge index sets `(*batch, n - 1)`, ascending.

    Args:
        graph: an undirected networkx graph, or pairs of node numbers 0 to nodes - 1; parallel edges
            are parts of their own, loops are not allowed.
        nodes: how many nodes there are, beside a list of pairs.

    Raises:
        TypeError: a directed graph, or no graph at all; `nodes` beside a graph, or no whole number.
        ValueError: no edge, a loop, a node out of range, or a graph that is not connected.

    Example:
        >>> import torch
        >>> from spigot.polytopes import SpanningTree
        >>> square = SpanningTree([(0, 1), (1, 2), (2, 3), (0, 3)], nodes=4)
        >>> scores = torch.tensor([0.5, -1.0, 0.25, 0.0])
        >>> square.maximize(scores)
        tensor([1., 0., 1., 1.])
        >>> square.decode(square.maximize(scores))
        tensor([0, 2, 3])
        >>> square.marginals(torch.zeros(4))
        tensor([0.7500, 0.7500, 0.7500, 0.7500])

    References:
        MAP: Kruskal, "On the shortest spanning subtree of a graph" (1956).
        Marginals: Kirchhoff's matrix-tree theorem; the chance of an edge is its conductance times the
        effective resistance between its ends.
        Constraints: Martin, "Using separation algorithms to generate mixed integer model
        reformulations" (1991).
    """

    graph: Any
    nodes: int | None = None
    network: Network = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pairs, nodes = _pairs(self.graph, self.nodes)
        _check_graph(pairs, nodes)
        object.__setattr__(self, "graph", tuple(pairs))
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "network", Network(np.array(pairs, dtype=np.int64), nodes))

    def __repr__(self) -> str:
        return f"SpanningTree({self.nodes} nodes, {len(self.graph)} edges)"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (len(self.graph),)

    @property
    def size(self) -> int:
        """How many edges a tree has, n - 1."""
        return self.network.size - 1

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.event_shape).double(), torch.ones(self.event_shape).double()

    def argmax(self, scores: Tensor) -> Tensor:
        """The best tree; of equal edges the first ones."""
        return best_forests(self.network, sort(scores))[0]

    def constraints(self, y: cp.Variable) -> list[Any]:
        """For every node k but one, y as the arcs of a tree in which each other node points to k.

        z_k(i, j) + z_k(j, i) = y_ij, where one arc leaves each node but k, and none leaves k.
        """
        cp = library("cvxpy")
        n, m = self.network.size, len(self.graph)
        tails = self.network.ends.T.reshape(-1)  # the edges in their own direction, then the other
        edges = np.tile(np.arange(m), 2)
        rows: list[Any] = []
        for k in range(n - 1):
            used = tails != k
            arcs = cp.Variable(int(used.sum()), nonneg=True)
            along = (edges[used] == np.arange(m)[:, None]).astype(float)
            leaving = (tails[used] == np.delete(np.arange(n), k)[:, None]).astype(float)
            rows += [along @ arcs == y, leaving @ arcs == 1.0]
        return rows

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 vectors `(*batch, m)` of edge index sets `(*batch, n - 1)`.

        Raises:
            TypeError: indices that are no whole numbers.
            ValueError: an index out of range, or edges that are no spanning tree.
        """
        edges = whole_labels(labels, "edge indices")
        batch = edges.shape[:-1]
        vertices = encode_sets(edges, len(self.graph), None)
        rows = vertices.reshape(-1, len(self.graph))
        inside = best_forests(self.network, sort(rows, mask=rows > 0))[1]
        must = f"must be the {self.size} edges of a spanning tree of {self}"
        refuse_labels(must, (rows.sum(1) != self.size).reshape(batch), edges, batch)
        refuse_labels(f"{must}, without a cycle", (inside < self.size).reshape(batch), edges, batch)
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Edge index sets `(*batch, n - 1)`, ascending."""
        return decode_sets(self, vertices, self.size)


def _pairs(graph: Any, nodes: int | None) -> tuple[list[tuple[int, int]], int]:
    """Edges as pairs of node numbers, and how many nodes there are."""
    if hasattr(graph, "is_directed"):
        if graph.is_directed():
            raise TypeError("SpanningTree needs an undirected graph; for arcs use Arborescence.")
        if nodes is not None:
            raise TypeError("SpanningTree: `nodes` goes with a list of pairs, not with a graph.")
        number = {node: k for k, node in enumerate(graph.nodes)}
        return [(number[edge[0]], number[edge[1]]) for edge in graph.edges], len(number)
    if nodes is None:
        raise TypeError("SpanningTree needs a networkx graph, or pairs of nodes and `nodes`.")
    whole_numbers(SpanningTree, nodes=nodes)
    try:
        rows = graph.tolist() if hasattr(graph, "tolist") else graph
        return [(index(a), index(b)) for a, b in rows], nodes
    except (TypeError, ValueError) as error:
        raise TypeError(f"SpanningTree needs pairs of node numbers, got {graph!r}.") from error


def _check_graph(pairs: Sequence[tuple[int, int]], nodes: int) -> None:
    if not pairs:
        raise ValueError("SpanningTree needs a graph with at least one edge.")
    for a, b in pairs:
        if a == b:
            raise ValueError(f"SpanningTree: the edge ({a}, {b}) is a loop, which is in no tree.")
        if not (0 <= a < nodes and 0 <= b < nodes):
            raise ValueError(f"SpanningTree: the edge ({a}, {b}) leaves the nodes 0..{nodes - 1}.")
    network = Network(np.array(pairs, dtype=np.int64), nodes)
    size = int(best_forests(network, sort(torch.zeros(1, len(pairs))))[1][0])
    if size < nodes - 1:
        raise ValueError(
            f"SpanningTree: the graph is not connected; its {nodes} nodes are in {nodes - size} "
            "separate components."
        )


def best_forests(network: Network, edges: Sorted) -> tuple[Tensor, Tensor]:
    """The best forest of each row of edges, `(n, m)`, and how many edges it has, `(n,)`."""
    y = np.zeros(edges.index.shape, contiguous(edges.rows[:0]).dtype)
    sizes = np.zeros(len(y), np.int64)
    graph = network.ends, network.size
    over_instances(kruskal, len(y), edges.index, edges.counts, *graph, y, sizes)
    return tensor(y), tensor(sizes)


def _tree(problem: Problem) -> SpanningTree:
    assert isinstance(problem.polytope, SpanningTree)
    return problem.polytope


def _best(problem: Problem) -> tuple[Tensor, Sorted]:  # (n, m)
    """The best trees, and the edges in order.

    Raises:
        NoStructure: what `keep` leaves does not connect all nodes.
    """
    polytope = _tree(problem)
    edges = sort(problem.scores, mask=problem.keep)
    value, sizes = best_forests(polytope.network, edges)
    short = sizes < polytope.size
    if bool(short.any()):
        raise problem.no_structure(rows_where(short), ": the edges kept do not connect all nodes")
    return value, edges


@rule(SpanningTree, None)
class Kruskal(Road):
    """The best edges that close no cycle."""

    name = "Kruskal's algorithm"
    cost = "O(m log m)"
    devices = ("cpu",)

    def solve(self, problem: Problem) -> Solution:
        """Trees as 0/1 vectors."""
        value = _best(problem)[0]
        return Solution.closed_form(value, (problem.scores * value).sum(1))


@rule(SpanningTree, Gibbs)
class MatrixTree(Road):
    """Chances of edges by effective conductances, found by eliminating nodes: nothing is subtracted.

    In float64, and in log space where the weights leave its range.
    """

    name = "matrix-tree theorem"
    cost = "O(n^3) for n nodes"
    devices = ("cpu",)

    def solve(self, problem: Problem) -> Solution:
        """The chances, and the log of the sum over trees."""
        trees = _tree(problem).network.trees(_masked(problem))
        return Solution.closed_form(trees.chance, trees.total)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The covariance times grad: the derivative of the chances along it."""
        return _tree(problem).network.trees(_masked(problem), grad).slope

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The third derivative of the log of the sum over trees, by torch."""
        return derivative(_tree(problem).network.log_total, _masked(problem), u, v).to(u)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """By putting the eliminated nodes back, one at a time."""
        return _tree(problem).network.sample(_masked(problem), count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By parts of the trees, each with its best one."""
        edges = _best(problem)[1]
        found = [
            _k_best(_tree(problem).network, edges.index[i, : edges.counts[i]], row, k)
            for i, row in enumerate(contiguous(problem.scores.double()))
        ]
        problem.check_enough(k, torch.tensor([len(trees) for trees in found]))
        return tensor(np.stack(found, axis=1).astype(np.float64))


def _masked(problem: Problem) -> Tensor:  # (n, m), -inf where excluded
    if problem.keep is None:
        return problem.scores
    _best(problem)
    return problem.scores.masked_fill(~problem.keep, -torch.inf)


def _k_best(network: Network, order: np.ndarray, scores: np.ndarray, k: int) -> list[np.ndarray]:
    """The k best trees of one instance, best first; fewer where there are no more."""
    game = _Game(network, order, scores)
    whole = game.best(np.zeros(len(scores), np.int8))
    return [] if whole is None else partition.k_best(whole, game.split, k)


@dataclass(frozen=True, eq=False)
class _Game:
    """Trees that contain the edges of status 1 and none of status -1."""

    network: Network
    order: np.ndarray
    scores: np.ndarray

    @cached_property
    def parent(self) -> np.ndarray:
        """Scratch."""
        return np.empty(self.network.size, np.int64)

    def best(self, status: np.ndarray) -> Part | None:
        """A part with its best tree; None for an empty one."""
        chosen = np.zeros(len(status), bool)
        size = constrained(self.order, self.network.ends, status, self.parent, chosen)
        if size < self.network.size - 1:
            return None
        return Part(-float(self.scores[chosen].sum()), 0, chosen, status)

    def split(self, part: Part) -> Iterator[Part]:
        """By the first free edge of the best tree that another one leaves out."""
        status = part.choice.copy()
        for edge in np.flatnonzero(part.best & (status == 0)):
            status[edge] = -1
            piece = self.best(status.copy())
            if piece is not None:
                yield piece
            status[edge] = 1
