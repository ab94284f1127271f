"""Paths of a directed graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, distinct, library, numbers, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.labels import refuse_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs, Regularizer
from spigot.polytopes.structures.digraph import Digraph
from spigot.polytopes.structures.dynamic import DynamicProgram, InsideOutside
from spigot.polytopes.structures.flows import (
    BestFlow,
    FlowPolytope,
    FlowProjection,
    Posed,
    flows_on,
    kept,
    precise,
    refuse,
)
from spigot.polytopes.structures.program import EdgeList, Program
from spigot.polytopes.structures.walks import padded_walks

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Path"]


@dataclass(frozen=True, eq=False, repr=False)
class Path(FlowPolytope):
    r"""{0 <= y <= 1 : out_v(y) - in_v(y) = [v = source] - [v = target] at every node v}: unit flows.

    Parts: `(m,)`, the arcs, in the order of `list(graph.edges)` or of the list of pairs; out_v and in_v
    sum y over the arcs that leave and enter v. Vertices are integral: on an acyclic graph the paths
    from source to target; on any other a path and arc-disjoint cycles beside it (or through it),
    which a best vertex has only where scores on a cycle sum to more than 0. (The hull of the simple
    paths alone is NP-hard.) Scores are maximised: costs are negative scores. Where source and
    target are the same node the path has no arc.

    Nodes are numbered: named 0 .. n - 1 they keep their names; otherwise by their place in
    `list(graph.nodes)`, or by their first appearance among the pairs (`path.graph.number(name)`).
    `params={"source": (*batch,), "target": (*batch,)}` are numbers, one an instance.

    Labels are node numbers `(*batch, L)` along the path, padded with -1. Decoding follows a path of
    fewest arcs and leaves out cycles beside it; of parallel arcs, encoding takes the first.

    Args:
        graph: a directed networkx graph, or pairs `(tail, head)` of hashable names.
        source: the name of the node where the path starts.
        target: the name of the node where it ends.
        nonpositive: whether MAP sees min(s, 0) in place of s, as in the black-box papers: always a
            simple path. This holds for every MAP call, so also for those of perturbed and black-box
            estimators; projections and the other regularizers are those of M and of s.

    Raises:
        TypeError: an undirected graph, or no graph at all.
        ValueError: no arc, a source or target that is no node, or no path between them.
        UnsupportedProblem: Gibbs on a graph with a cycle.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Path
        >>> path = Path([(0, 1), (1, 3), (0, 2), (2, 3)], source=0, target=3)
        >>> scores = -torch.tensor([1.0, 1.0, 0.5, 1.0])  # costs
        >>> path.maximize(scores)
        tensor([0., 0., 1., 1.])
        >>> path.decode(path.maximize(scores))
        tensor([0, 2, 3])
        >>> path.project(scores)
        tensor([0.3750, 0.3750, 0.6250, 0.6250])
        >>> path.marginals(torch.zeros(4))
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
        >>> ends = {"source": torch.tensor([0, 2]), "target": torch.tensor([1, 3])}
        >>> path.maximize(scores.expand(2, 4), params=ends)
        tensor([[1., 0., 0., 0.],
                [0., 0., 0., 1.]])

    References:
        MAP: Dijkstra, "A note on two problems in connexion with graphs" (1959); Bellman, "On a routing
        problem" (1958); Johnson, "Efficient algorithms for shortest paths in sparse networks" (1977);
        Ahuja, Magnanti and Orlin, "Network flows" (1993), section 9.7, where no path is enough.
        Euclidean: Mehrotra, "On the implementation of a primal-dual interior point method" (1992).
        Vlastelica et al., "Differentiation of blackbox combinatorial solvers" (ICLR 2020).
    """

    graph: Any
    source: Any
    target: Any
    nonpositive: bool = False

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"source": (), "target": ()}

    def __post_init__(self) -> None:
        graph = self.graph
        if not isinstance(graph, Digraph):  # else the ends are numbers already
            graph = Digraph(graph)
            object.__setattr__(self, "graph", graph)
            object.__setattr__(self, "source", graph.number(self.source))
            object.__setattr__(self, "target", graph.number(self.target))
        problem = Problem(self, torch.zeros(1, len(graph.part)), None)
        best_arcs(problem)

    def __repr__(self) -> str:
        nodes, arcs = len(self.graph.names), len(self.graph.part)
        more = ", nonpositive=True" if self.nonpositive else ""
        return f"Path({nodes} nodes, {arcs} arcs, source={self.source}, target={self.target}{more})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return (len(self.graph.part),)

    @property
    def acyclic(self) -> bool:
        """Whether the graph has no cycle: then Gibbs is defined."""
        return len(self.graph.order) > 0

    def best(self, problem: Problem) -> Tensor:
        """The arcs of a best flow, of a shortest one among paths that tie."""
        return best_arcs(problem)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The box, and a balance at every node."""
        sp = library("scipy.sparse")
        nodes, arcs = len(self.graph.names), len(self.graph.part)
        ends = (np.append(self.graph.tails, self.graph.heads), np.tile(np.arange(arcs), 2))
        leaving = sp.csr_matrix((np.repeat([1.0, -1.0], arcs), ends), shape=(nodes, arcs))
        supply = np.zeros(nodes)
        supply[self.source] += 1.0
        supply[self.target] -= 1.0
        return [y >= 0, y <= 1, leaving @ y == supply]

    def posed(self, problem: Problem) -> Posed:
        """A unit between the ends, where they differ."""
        source, target = ends(problem)
        none = np.zeros((problem.size, 0), dtype=np.int64)
        if "flows" not in self.scratch:
            self.scratch["flows"] = flows_on(self.graph.network, self.graph.part)
        return Posed(self.scratch["flows"], np.where(source == target, -1, source), target, none, none)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 vectors `(*batch, m)` of walks `(*batch, L)` of node numbers, padded with -1.

        Their ends are not compared with source and target, which may be parameters.

        Raises:
            TypeError: labels of a floating dtype.
            ValueError: a node that does not exist, a step that is no arc, an arc taken twice.
        """
        walks = padded_walks(labels, ())
        nodes, arcs = len(self.graph.names), len(self.graph.part)
        batch, outside = walks.shape[:-1], (walks < -1) | (walks >= nodes)
        refuse_labels(f"must be node numbers below {nodes}, or -1 for padding", outside, walks, batch)
        pairs = self.graph.tails.astype(np.int64) * nodes + self.graph.heads
        order = np.argsort(pairs, kind="stable")
        tails, heads = walks[..., :-1], walks[..., 1:]
        wanted = contiguous(tails * nodes + heads)
        place = np.minimum(np.searchsorted(pairs[order], wanted), arcs - 1)
        steps = contiguous(heads >= 0)
        missing = tensor(steps & (pairs[order][place] != wanted))
        taken = torch.stack([tails, heads], -1)
        refuse_labels(f"must be walks on the arcs of {self}", missing, taken, batch, entry="step")
        slots = torch.where(tensor(steps), tensor(order[place]), arcs)
        vertices = torch.zeros(*batch, arcs + 1)
        vertices = vertices.scatter_add(-1, slots, torch.ones(slots.shape))
        again = (vertices > 1).gather(-1, slots) & tensor(steps)
        refuse_labels("must be walks that take no arc twice", again, taken, batch, entry="step")
        return vertices[..., :arcs].to(torch.get_default_dtype())

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Node numbers `(*batch, L)` of the paths, padded with -1; L is that of the longest."""
        from spigot.polytopes.kernels.flows.routes import follow_arcs

        batch = check_event(self, vertices, "vertices")
        flat = contiguous(vertices.reshape(batch.numel(), -1).double())
        walk = np.full((len(flat), len(self.graph.names)), -1, dtype=np.int64)
        length = np.zeros(len(flat), dtype=np.int64)
        source = np.full(len(flat), self.source)
        graph: Digraph = self.graph
        over_instances(follow_arcs, len(flat), graph.network, graph.part, source, flat, walk, length)
        most = int(length.max(initial=1))
        return tensor(walk)[:, :most].reshape(*batch, most).to(vertices.device)


def graph_of(problem: Problem) -> Digraph:
    """The graph of a problem's polytope."""
    assert isinstance(problem.polytope, Path)
    graph: Digraph = problem.polytope.graph
    return graph


def ends(problem: Problem) -> tuple[np.ndarray, np.ndarray]:  # (n,) each
    """Each instance's source and target.

    Raises:
        ValueError: a number that is no node's.
    """
    nodes = len(graph_of(problem).names)
    found: list[np.ndarray] = []
    for name in ("source", "target"):
        given = problem.param(name)
        wrong = (given < 0) | (given >= nodes)
        if given.is_floating_point() or bool(wrong.any()):
            rows = rows_where(wrong)
            raise ValueError(
                f"params[{name!r}] must be node numbers, whole and in 0..{nodes - 1}; "
                + (
                    problem.describe_wrong(rows, f"has {given[rows[0]].item()}")
                    if rows
                    else f"got dtype {given.dtype}."
                )
            )
        found.append(contiguous(given.long()))
    return found[0], found[1]


def best_arcs(problem: Problem) -> Tensor:  # (n, m)
    """The arcs of best flows."""
    from spigot.polytopes.kernels.flows import routes

    graph, scores = graph_of(problem), precise(problem)
    value = torch.zeros_like(scores)
    feasible = np.zeros(problem.size, dtype=np.bool_)
    over_instances(
        routes.best_arcs,
        problem.size,
        graph.network,
        graph.order,
        graph.part,
        *ends(problem),
        contiguous(scores),
        kept(problem),
        contiguous(value),
        feasible,
    )
    refuse(problem, ~feasible)
    return value


@rule(Path, None)
class BestPath(BestFlow):
    """The arcs of a best flow."""


@rule(Path, Euclidean)
class NearestFlow(FlowProjection):
    """The nearest flow."""


@dataclass(frozen=True, eq=False, repr=False)
class _FromSource(DynamicProgram):
    """The paths of an acyclic graph from one source; a size is the number of the target."""

    path: Path
    source: int

    def __repr__(self) -> str:
        return repr(self.path)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(m,)`."""
        return self.path.event_shape

    def declared(self) -> Program:
        """A node derives from the tail of each arc into it; nodes in topological order, from 1."""
        graph: Digraph = self.path.graph
        place = np.zeros(len(graph.names), dtype=np.int64)
        place[graph.order] = 1 + np.arange(len(graph.order))
        reached = np.zeros(len(graph.names), dtype=np.bool_)
        reached[self.source] = True
        network = graph.network
        for node in graph.order:
            if reached[node]:
                reached[network.heads[network.start[node] : network.start[node + 1]]] = True
        arcs = reached[graph.tails] & (graph.heads != self.source)
        start = EdgeList(place[[self.source]])
        rows = EdgeList(place[graph.heads[arcs]], place[graph.tails[arcs]], slot=np.flatnonzero(arcs))
        goals = np.where(reached, place, 0)
        return Program.compiled([start, rows], goals)


@rule(Path, Gibbs)
class PathSums(Road):
    """Sums over all paths of an acyclic graph, as derivations of their targets."""

    name = "inside-outside over the topological order"
    cost = "O(arcs)"
    devices = ("cpu",)
    native = frozenset({"params"})

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """A graph without cycles."""
        assert isinstance(polytope, Path)
        reason = "the graph has a cycle, and to sum over its simple paths is #P-hard."
        return "" if polytope.acyclic else reason

    def _groups(self, problem: Problem) -> list[tuple[Tensor, Problem]]:
        """Rows of one source each, posed as derivations."""
        path = problem.polytope
        assert isinstance(path, Path)
        source, target = (tensor(part) for part in ends(problem))
        known: dict[int, _FromSource] = path.scratch.setdefault("sources", {})
        found: list[tuple[Tensor, Problem]] = []
        for start in numbers(distinct(source)[0]):
            rows = torch.nonzero(source == start).flatten()
            polytope = known.setdefault(start, _FromSource(path, start))
            part = replace(problem.take(rows), polytope=polytope, params={}, lengths=target[rows])
            refuse(part, polytope.program.goals[target[rows].numpy()] == 0)
            found.append((rows, part))
        return found

    def solve(self, problem: Problem) -> Solution:
        """The marginals of the arcs, and log Z."""
        value = torch.zeros(problem.scores.shape, dtype=precise(problem).dtype)
        objective = torch.zeros(problem.size, dtype=torch.float64)
        for rows, part in self._groups(problem):
            solution = InsideOutside().solve(part)
            assert solution.objective is not None
            value[rows], objective[rows] = solution.value, solution.objective
        return Solution.closed_form(value, objective)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Covariance times grad."""
        pulled = torch.zeros_like(grad)
        for rows, part in self._groups(problem):
            pulled[rows] = InsideOutside().vjp(part, solution, grad[rows]).to(grad)
        return pulled

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The third cumulant along u and v."""
        curved = torch.zeros_like(u)
        for rows, part in self._groups(problem):
            curved[rows] = InsideOutside().curve(part, solution, u[rows], v[rows]).to(u)
        return curved

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent paths."""
        drawn = torch.zeros(count, *problem.scores.shape, dtype=precise(problem).dtype)
        for rows, part in self._groups(problem):
            drawn[:, rows] = InsideOutside().sample(part, count, generator)
        return drawn

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The k best paths.

        Raises:
            ValueError: an instance has fewer.
        """
        best = torch.zeros(k, *problem.scores.shape, dtype=precise(problem).dtype)
        for rows, part in self._groups(problem):
            best[:, rows] = InsideOutside().top_k(part, k)
        return best
