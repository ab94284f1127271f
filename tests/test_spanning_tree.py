"""Spanning trees by networkx, by enumeration, and at peaked scores."""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import networkx as nx
import pytest
import torch

from spigot.layers import Relaxed
from spigot.polytopes import Euclidean, FermiDirac, Gibbs, NoStructure, Shannon, SpanningTree
from spigot.polytopes.solvers import ActiveSet, Clarabel
from tests.structures import KITE, trees
from tests.tensors import normal


def random_graph(nodes: int, seed: int) -> Any:
    graph: Any = nx.gnp_random_graph(nodes, 0.6, seed=seed)
    graph.add_edges_from((i, i + 1) for i in range(nodes - 1))
    return graph


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nodes", [2, 5, 30, 100])
def test_map_is_that_of_networkx(nodes: int, seed: int) -> None:
    graph = random_graph(nodes, seed)
    polytope = SpanningTree(graph)
    scores = normal(graph.number_of_edges(), seed=seed)
    if seed == 4:
        scores = scores.round()
    for (a, b), score in zip(graph.edges, scores.tolist(), strict=True):
        graph[a][b]["weight"] = score
    best = nx.maximum_spanning_tree(graph)
    value = polytope.maximize(scores)
    torch.testing.assert_close((value * scores).sum().item(), best.size(weight="weight"))
    edges = [edge for edge, used in zip(graph.edges, value.tolist(), strict=True) if used]
    assert nx.is_tree(graph.edge_subgraph(edges))
    assert len(edges) == nodes - 1


def test_parts_follow_the_order_of_the_edges() -> None:
    graph: Any = nx.Graph([("a", "b"), ("b", "c"), ("a", "c")])
    best = SpanningTree(graph).maximize(torch.tensor([0.0, 2.0, 1.0]))
    assert best.tolist() == [0.0, 1.0, 1.0]
    multi: Any = nx.MultiGraph([(0, 1), (0, 1)])
    assert SpanningTree(multi).maximize(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]
    assert SpanningTree(KITE, 4).maximize(torch.zeros(5)).tolist() == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_what_is_no_connected_graph() -> None:
    with pytest.raises(ValueError, match="not connected; its 4 nodes are in 2"):
        SpanningTree([(0, 1), (2, 3)], 4)
    with pytest.raises(ValueError, match="loop"):
        SpanningTree([(0, 1), (1, 1)], 2)
    with pytest.raises(ValueError, match="leaves the nodes"):
        SpanningTree([(0, 2)], 2)
    with pytest.raises(ValueError, match="at least one edge"):
        SpanningTree([], 1)
    with pytest.raises(TypeError, match="undirected"):
        SpanningTree(nx.DiGraph([(0, 1)]))
    with pytest.raises(TypeError, match="`nodes`"):
        SpanningTree([(0, 1)])
    with pytest.raises(TypeError, match="`nodes`"):
        SpanningTree(nx.path_graph(3), 3)
    with pytest.raises(TypeError, match="pairs"):
        SpanningTree([(0, 1, 2)], 3)


@pytest.mark.parametrize(
    ("edges", "nodes"),
    [(KITE, 4), ([(0, 1)], 2), ([(0, 1), (1, 0), (1, 2), (2, 0), (2, 0)], 3), ([(0, 1), (1, 2)], 3)],
    ids=str,
)
def test_against_the_listed_trees(edges: list[tuple[int, int]], nodes: int) -> None:
    polytope, twin = SpanningTree(edges, nodes), trees(edges, nodes)
    scores = normal(8, len(edges), scale=3.0)
    scores[0], scores[1] = 0.0, scores[1].round()
    for regularizer in (Euclidean(), Shannon(), FermiDirac(), Gibbs()):
        leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
        value, expected = polytope.maximize(leaf, regularizer), twin.maximize(other, regularizer)
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=0)
        weight = normal(8, len(edges), seed=1)
        (value * weight).sum().backward()
        (expected * weight).sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad, atol=1e-5, rtol=0)
    torch.testing.assert_close(polytope.log_partition(scores), twin.log_partition(scores))
    torch.testing.assert_close(polytope.entropy(scores), twin.entropy(scores))


def test_constraints_are_the_tree_polytope() -> None:
    scores = normal(4, 5)
    found = SpanningTree(KITE, 4).maximize(scores, Euclidean(), solver=Clarabel())
    expected = SpanningTree(KITE, 4).maximize(scores, Euclidean(), solver=ActiveSet())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("nodes", [4, 9, 17, 40])
def test_log_partition_is_kirchhoffs_determinant(nodes: int) -> None:
    graph = random_graph(nodes, 1)
    scores = normal(graph.number_of_edges()).requires_grad_()
    weights = torch.zeros(nodes, nodes, dtype=torch.float64)
    rows, columns = torch.tensor(list(graph.edges)).t()
    weights = weights.index_put((rows, columns), scores.exp())
    weights = weights + weights.t()
    laplacian = torch.diag(weights.sum(1)) - weights
    expected = laplacian[1:, 1:].logdet()
    polytope = SpanningTree(graph)
    torch.testing.assert_close(polytope.log_partition(scores), expected)
    (marginals,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(polytope.marginals(scores), marginals)
    torch.testing.assert_close(polytope.marginals(scores).sum().item(), nodes - 1.0)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_peaked_scores(scale: float, dtype: torch.dtype) -> None:
    """Against sums over all trees with 60 digits."""
    edges = [*KITE, (3, 4), (0, 4), (0, 4)]
    every = trees(edges, 5).vertices()
    scores = normal(len(edges), seed=2, scale=scale).to(dtype)
    grad = normal(len(edges), seed=3)
    with mpmath.workdps(60):
        exact = [mpmath.mpf(value) for value in scores.double().tolist()]
        along = [mpmath.mpf(value) for value in grad.tolist()]
        lists = [[i for i, used in enumerate(tree.tolist()) if used] for tree in every]
        chances = [mpmath.exp(mpmath.fsum(exact[i] for i in tree)) for tree in lists]
        total = mpmath.fsum(chances)
        slopes = [mpmath.fsum(along[i] for i in tree) for tree in lists]
        mean = mpmath.fsum(c * g for c, g in zip(chances, slopes, strict=True)) / total
        marginals, moved = [], []
        for e in range(len(edges)):
            inside = [(c, g) for c, g, tree in zip(chances, slopes, lists, strict=True) if e in tree]
            marginals.append(float(mpmath.fsum(c for c, _ in inside) / total))
            moved.append(float(mpmath.fsum(c * (g - mean) for c, g in inside) / total))
        log_total = float(mpmath.log(total))
    polytope = SpanningTree(edges, 5)
    leaf = scores.clone().requires_grad_()
    found = polytope.marginals(leaf)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(
        found.double(), torch.tensor(marginals, dtype=torch.float64), atol=tolerance, rtol=0
    )
    assert bool(((found >= 0) & (found <= 1)).all())
    (found * grad.to(dtype)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(
        leaf.grad.double(), torch.tensor(moved, dtype=torch.float64), atol=10 * tolerance, rtol=0
    )
    value = polytope.log_partition(scores).double()
    torch.testing.assert_close(value, torch.tensor(log_total, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    drawn = polytope.sample(scores, (50,), generator=torch.Generator().manual_seed(0))
    assert bool(polytope.contains(drawn).all())


def test_chances_keep_their_relative_accuracy() -> None:
    """A bridge is certain, and the better of two parallel edges is chosen by the odds of both."""
    polytope = SpanningTree([(0, 1), (0, 1), (1, 2)], 3)
    for gap in (1.0, 30.0, 300.0, 600.0):
        marginals = polytope.marginals(torch.tensor([0.0, -gap, 5.0]).double())
        expected = 1 / (1 + torch.tensor([-gap, gap]).double().exp())
        torch.testing.assert_close(marginals[:2], expected, rtol=1e-14, atol=0)
        assert marginals[2] == 1.0


def test_both_number_formats_agree() -> None:
    """Scores whose products leave the range of float64 take the road of logarithms."""
    graph = random_graph(12, 0)
    polytope = SpanningTree(graph)
    scores = normal(2, graph.number_of_edges(), scale=2.0)
    far = scores.clone()
    far[1, 0] -= 1000.0  # an edge that matters no more
    keep = torch.ones_like(scores, dtype=torch.bool)
    keep[1, 0] = False
    found = polytope.marginals(far)
    torch.testing.assert_close(found, polytope.marginals(scores, keep=keep), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        polytope.log_partition(far), polytope.log_partition(scores, keep=keep), rtol=1e-14, atol=0
    )


@pytest.mark.parametrize("regularizer", [None, Euclidean(), Shannon(), Gibbs()], ids=str)
def test_masks(regularizer: Any) -> None:
    polytope = SpanningTree(KITE, 4)
    scores = normal(4, 5)
    keep = torch.ones(4, 5, dtype=torch.bool)
    keep[torch.arange(4), torch.tensor([0, 1, 3, 4])] = False
    value = polytope.maximize(scores, regularizer, keep=keep)
    for i in range(4):
        edges = [edge for edge, kept in zip(KITE, keep[i].tolist(), strict=True) if kept]
        alone = SpanningTree(edges, 4).maximize(scores[i, keep[i]], regularizer)
        torch.testing.assert_close(value[i, keep[i]], alone, atol=1e-6, rtol=0)
        assert not value[i, ~keep[i]].any()
    keep[2, 4] = False
    with pytest.raises(NoStructure, match=r"instance 2.*do not connect"):
        polytope.maximize(scores, regularizer, keep=keep)


def test_samples_have_their_chances() -> None:
    edges = [*KITE, (0, 3)]
    polytope, every = SpanningTree(edges, 4), trees(edges, 4).vertices()
    scores = normal(6, seed=4)
    drawn = polytope.sample(scores, (20_000,), generator=torch.Generator().manual_seed(0))
    code = torch.tensor([2.0**i for i in range(6)]).double()
    counts = ((drawn @ code)[:, None] == every @ code).double().mean(0)
    chance = (every @ scores).softmax(0)
    assert counts.sum() == 1.0
    spread = (chance * (1 - chance) / 20_000).sqrt()
    assert bool(((counts - chance).abs() < 5 * spread).all())


def test_samples_do_not_depend_on_the_batch_or_the_threads() -> None:
    polytope = SpanningTree(random_graph(10, 0))
    scores = normal(7, *polytope.event_shape)
    one = polytope.sample(scores, (5,), generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        two = polytope.sample(scores, (5,), generator=torch.Generator().manual_seed(0))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@pytest.mark.parametrize("seed", range(3))
def test_the_k_best_are_those_of_networkx(seed: int) -> None:
    graph = random_graph(6, seed)
    scores = normal(graph.number_of_edges(), seed=seed)
    for (a, b), score in zip(graph.edges, scores.tolist(), strict=True):
        graph[a][b]["weight"] = score
    listing: Any = nx.SpanningTreeIterator(graph, minimum=False)
    expected = [tree.size(weight="weight") for tree in itertools.islice(listing, 12)]
    best = SpanningTree(graph).top_k(scores, 12)
    torch.testing.assert_close(best @ scores, torch.tensor(expected).double())
    assert len(best.unique(dim=0)) == 12


def test_labels_are_edge_sets() -> None:
    polytope = SpanningTree(KITE, 4)
    labels = torch.tensor([[0, 1, 4], [2, 3, 0]])
    vertices = polytope.encode(labels)
    assert vertices.tolist() == [[1, 1, 0, 0, 1], [1, 0, 1, 1, 0]]
    assert torch.equal(polytope.decode(vertices), labels.sort(dim=1).values)
    for wrong in ([0, 1, 2], [0, 1, 5], [0, 1, -1], [0, 1], [0, 0, 1]):
        with pytest.raises(ValueError, match="labels"):
            polytope.encode(torch.tensor(wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 1, 5], r"below 5.*; instance \(0, 1\) has 5 at position 2\."),
        ([0, 1, -1], r"the 3 edges of a spanning tree.*; instance \(0, 1\) has \[0, 1, -1\]\."),
        ([0, 1, 2], r"without a cycle; instance \(0, 1\) has \[0, 1, 2\]\."),
    ],
)
def test_labels_that_are_no_tree_are_named(wrong: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpanningTree(KITE, 4).encode(torch.tensor([[[0, 1, 4], wrong]]))


def test_batches_layouts_and_extremes() -> None:
    polytope = SpanningTree(KITE, 4)
    for regularizer in (None, Euclidean(), Gibbs()):
        assert polytope.maximize(torch.zeros(2, 0, 5), regularizer).shape == (2, 0, 5)
        wide = normal(3, 4, 5, 2)[..., 0]
        value = polytope.maximize(wide, regularizer)
        flat = polytope.maximize(wide.contiguous().reshape(12, 5), regularizer)
        torch.testing.assert_close(value, flat.reshape(3, 4, 5))
        for scale in (1e-30, 1e6, 1e15):
            extreme = polytope.maximize(normal(5, scale=scale), regularizer)
            torch.testing.assert_close(extreme.sum(), torch.tensor(3.0).double())
    assert polytope.marginals(torch.zeros(5).half()).dtype == torch.float16


def test_gradients() -> None:
    scores = normal(3, 5, seed=6).requires_grad_()
    for regularizer in (Euclidean(), Shannon(), Gibbs()):
        layer = Relaxed(SpanningTree(KITE, 4), regularizer)
        assert torch.autograd.gradcheck(layer, scores, atol=1e-5)


def test_a_large_graph() -> None:
    graph: Any = nx.convert_node_labels_to_integers(nx.grid_2d_graph(12, 12))
    polytope = SpanningTree(graph)
    scores = torch.zeros(polytope.event_shape, dtype=torch.float64)
    marginals = polytope.marginals(scores)
    torch.testing.assert_close(marginals.sum().item(), 143.0)
    drawn = polytope.sample(scores, (400,), generator=torch.Generator().manual_seed(0))
    assert bool((drawn.sum(1) == 143).all())
    assert float((drawn.mean(0) - marginals).abs().max()) < 0.15
