"""Matchings of general graphs: against lists of all of them, and against `Matching`."""

from __future__ import annotations

from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax
from spigot.polytopes import (
    Euclidean,
    Gibbs,
    GraphMatching,
    Matching,
    NoStructure,
    Polytope,
    Shannon,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import ActiveSet, Clarabel, Enumerate, Highs
from spigot.pullback import SPIGOT
from spigot.testing import check

GRAPHS: dict[str, Any] = {
    "triangle": nx.complete_graph(3),
    "five nodes": nx.complete_graph(5),
    "odd cycle": nx.cycle_graph(7),
    "bipartite": nx.complete_bipartite_graph(3, 3),
    "names": nx.Graph([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")]),
}
every_graph = pytest.mark.parametrize("name", GRAPHS)


def normal(polytope: Polytope, *batch: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*batch, *polytope.event_shape, generator=rng, dtype=torch.float64)


@every_graph
def test_map_is_the_best_of_the_list(name: str) -> None:
    polytope = GraphMatching(GRAPHS[name])
    listed = polytope.vertices()
    random = normal(polytope, 10)
    for scores in (random, random.round(), 1e6 * random, 1e-9 * random, random + 1e6, -random.abs()):
        best = polytope.maximize(scores)
        values = (scores @ listed.T).amax(1)
        torch.testing.assert_close((scores * best).sum(1), values)
        assert bool((best[:, None] == listed).all(2).any(1).all())
        assert torch.equal(best, torch.stack([polytope.maximize(row) for row in scores]))


def test_perfect_matchings() -> None:
    petersen = GraphMatching(nx.petersen_graph(), perfect=True)
    listed = petersen.vertices()
    assert len(listed) == 6  # known
    scores = normal(petersen, 10)
    best = petersen.maximize(scores)
    torch.testing.assert_close((scores * best).sum(1), (scores @ listed.T).amax(1))
    assert bool((best.sum(1) == 5).all())
    for graph in (
        nx.cycle_graph(5),
        nx.Graph([(0, 1), (0, 2), (0, 3)]),
        nx.disjoint_union(nx.path_graph(2), nx.empty_graph(1)),
    ):
        with pytest.raises(ValueError, match="no perfect matching"):
            GraphMatching(graph, perfect=True)
    keep = torch.ones(2, 15, dtype=torch.bool)
    keep[1, petersen.ends[:, 0] == 0] = False
    with pytest.raises(NoStructure, match="instance 1"):
        petersen.maximize(normal(petersen, 2), keep=keep)


@every_graph
def test_masks_are_exact(name: str) -> None:
    polytope = GraphMatching(GRAPHS[name])
    scores = normal(polytope, 20).abs()
    keep = normal(polytope, 20, seed=1) > 0
    for regularizer in (None, Euclidean(), Gibbs()):
        value = polytope.maximize(scores, regularizer, keep=keep)
        assert not bool(value[~keep].any())
    best = polytope.maximize(scores, keep=keep)
    listed = polytope.maximize(scores, keep=keep, solver=Enumerate())
    torch.testing.assert_close((scores * best).sum(1), (scores * listed).sum(1))


def test_bipartite_graphs_are_matchings() -> None:
    polytope = GraphMatching([(i, 3 + j) for i in range(3) for j in range(4)])
    matching = Matching(3, 4, perfect=False)
    scores = normal(matching, 5)
    for regularizer in (None, Euclidean(), Shannon(), Gibbs()):
        found = polytope.maximize(scores.flatten(1), regularizer)
        expected = matching.maximize(scores, regularizer)
        torch.testing.assert_close(found.reshape(5, 3, 4), expected, atol=1e-5, rtol=0)


def test_odd_sets_are_what_the_degrees_lack() -> None:
    """On a five-cycle the degrees alone allow 1/2 on every edge."""
    polytope = GraphMatching(nx.cycle_graph(5))
    half = torch.full((5,), 0.5, dtype=torch.float64)
    assert not bool(polytope.contains(half))
    assert float(polytope.maximize(half, solver=Highs()).sum()) == 2
    torch.testing.assert_close(polytope.project(half), torch.full((5,), 0.4).double())


@every_graph
def test_three_facts_give_the_same_projections(name: str) -> None:
    polytope = GraphMatching(GRAPHS[name])
    scores = normal(polytope, 4)
    exact = polytope.project(scores)
    for solver in (ActiveSet(), Clarabel()):
        found = polytope.maximize(scores, Euclidean(), solver=solver)
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)


def test_parallel_edges() -> None:
    polytope = GraphMatching(nx.MultiGraph([(0, 1), (0, 1), (1, 2)]))
    assert polytope.event_shape == (3,)
    best = polytope.maximize(torch.tensor([[1.0, 2.0, 1.5], [1.0, 1.0, 0.0]]))
    assert torch.equal(best, torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    keep = torch.tensor([True, False, True])
    assert polytope.maximize(torch.tensor([1.0, 2.0, 0.5]), keep=keep).tolist() == [1, 0, 0]
    assert check(polytope, count=2).passed


def test_large_graphs_declare_what_they_can() -> None:
    small = GraphMatching(GRAPHS["five nodes"])
    assert small.facts == {"argmax", "constraints", "vertices"}
    large = GraphMatching(nx.random_regular_graph(3, 40, seed=0))
    assert large.facts == {"argmax"}
    scores = normal(large, 3)
    assert bool(large.solve(scores, Euclidean()).converged.all())
    with pytest.raises(UnsupportedProblem):
        large.marginals(scores)
    with pytest.raises(UnsupportedProblem, match="to list"):
        large.vertices()
    ladder = GraphMatching(nx.ladder_graph(30))  # bipartite: its degrees are enough
    assert ladder.facts == {"argmax", "constraints"}
    scores = normal(ladder)
    best, exact = ladder.maximize(scores), ladder.maximize(scores, solver=Highs())
    torch.testing.assert_close((scores * best).sum(), (scores * exact).sum())


def test_labels() -> None:
    polytope = GraphMatching(nx.cycle_graph(6))
    labels = torch.tensor([[0, 1, -1], [-1, -1, -1], [0, 3, 5]])
    edges = polytope.graph
    assert edges[0] == (0, 1)
    vertices = polytope.maximize(normal(polytope, 8))
    assert torch.equal(polytope.encode(polytope.decode(vertices)).to(vertices), vertices)
    with pytest.raises(ValueError, match="a matching of"):
        polytope.encode(labels)  # edges 0 and 1 share node 0
    with pytest.raises(ValueError, match="a matching of"):
        GraphMatching(nx.cycle_graph(6), perfect=True).encode(torch.tensor([[0, -1, -1]]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([2, 3], r"below 3.*; instance 1 has 3 at position 1\."),
        ([1, 0], r"no two at a node; instance 1 has 1 at position 0\."),
        ([1, -1], r"an edge at every node; instance 1 has \[1, -1\]\."),
        ([2, 2], r"none listed twice; instance 1 has 2 at position 0\."),
    ],
)
def test_labels_that_are_no_matching_are_named(wrong: list[int], message: str) -> None:
    line = GraphMatching([(0, 1), (1, 2), (2, 3)], perfect=True)
    with pytest.raises(ValueError, match=message):
        line.encode(torch.tensor([[0, 2], wrong]))


def test_training() -> None:
    polytope = GraphMatching(GRAPHS["five nodes"])
    scores = normal(polytope, 3).requires_grad_()
    out = Argmax(polytope, SPIGOT(1.0))(scores)
    (out * normal(polytope, 3, seed=1)).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.any())


@pytest.mark.parametrize(
    ("graph", "error", "message"),
    [
        (nx.DiGraph([(0, 1)]), TypeError, "undirected"),
        (3, TypeError, "networkx graph"),
        ([(0, 1, 2)], TypeError, "networkx graph"),
        ([], ValueError, "at least one edge"),
        ([(0, 0)], ValueError, "loop"),
    ],
)
def test_bad_graphs(graph: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GraphMatching(graph)
