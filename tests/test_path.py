"""Paths of graphs and grids: against lists, networkx, linear programmes and the generic roads."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax
from spigot.polytopes import (
    Euclidean,
    FermiDirac,
    Gibbs,
    GridPath,
    Hull,
    NoStructure,
    Path,
    Polytope,
    UnsupportedProblem,
)
from spigot.polytopes.arrays import library, numbers
from spigot.polytopes.solvers import ActiveSet, Clarabel, Highs
from spigot.pullback import SPIGOT
from spigot.testing import check
from tests.routes import LADDER, arc_flows, cell_sets

RING = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 1), (0, 3), (3, 0), (1, 1)]  # cycles, one a loop


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def best_value(points: Tensor, scores: Tensor) -> Tensor:  # (m, *event), (n, *event) -> (n,)
    return (scores.flatten(1) @ points.flatten(1).T).amax(1)


def value(y: Tensor, scores: Tensor) -> Tensor:
    return (y * scores).flatten(1).sum(1)


def random_graph(nodes: int, arcs: int, seed: int) -> list[tuple[int, int]]:
    """A cycle through all nodes and other arcs, none twice."""
    rng = np.random.default_rng(seed)
    found = {(k, (k + 1) % nodes) for k in range(nodes)}
    while len(found) < arcs:
        a, b = (int(k) for k in rng.integers(nodes, size=2))
        if a != b:
            found.add((a, b))
    return sorted(found)


def linear_maximum(polytope: Polytope, scores: Tensor, near: Tensor | None = None) -> float:
    """By scipy's linear programmes over the constraints as rows; nan where there is no point near."""
    form = polytope.canonical
    cost = np.zeros(form.variables)
    cost[form.columns] = -scores.flatten().numpy()
    lower, upper = form.lower.copy(), form.upper.copy()
    if near is not None:
        lower[form.columns] = near.flatten().numpy() - 1e-9
        upper[form.columns] = near.flatten().numpy() + 1e-9
    found = library("scipy.optimize").linprog(
        cost, form.G, form.h, form.A, form.b, np.stack([lower, upper], 1), method="highs"
    )
    return np.nan if found.fun is None else -float(found.fun)


SCORES = {
    "normal": lambda shape: normal(20, *shape),
    "ties": lambda shape: torch.round(normal(20, *shape)),
    "zero": lambda shape: torch.zeros(1, *shape).double(),
    "ones": lambda shape: torch.ones(1, *shape).double(),
    "costs": lambda shape: -normal(20, *shape).abs(),
    "huge": lambda shape: 1e6 * normal(20, *shape),
    "tiny": lambda shape: 1e-6 * normal(20, *shape),
}
kinds = pytest.mark.parametrize("kind", SCORES)


GRIDS = [
    (GridPath(3, 3), cell_sets(3, 3, 4)),
    (GridPath(2, 3, 8), cell_sets(2, 3, 8)),
    (GridPath(3, 3, 8, (0, 1), (2, 0)), cell_sets(3, 3, 8, (0, 1), (2, 0))),
    (GridPath(3, 3, 4, (1, 1), (1, 1)), cell_sets(3, 3, 4, (1, 1), (1, 1))),
    (GridPath(1, 4), cell_sets(1, 4, 4)),
    (GridPath(4, 3), cell_sets(4, 3, 4)),
]
GRAPHS = [
    (Path(RING, 0, 3), arc_flows(RING, 4, 0, 3)),
    (Path(RING, 1, 1), arc_flows(RING, 4, 1, 1)),
    (Path(random_graph(6, 14, 0), 0, 4), arc_flows(random_graph(6, 14, 0), 6, 0, 4)),
    (Path([(0, 1), (0, 1), (1, 2)], 0, 2), arc_flows([(0, 1), (0, 1), (1, 2)], 3, 0, 2)),
]
SETS = GRIDS + GRAPHS
listed = pytest.mark.parametrize(("polytope", "points"), SETS, ids=[str(p) for p, _ in SETS])


@listed
@kinds
def test_map_is_the_best_of_the_list(polytope: Polytope, points: Tensor, kind: str) -> None:
    scores = SCORES[kind](polytope.event_shape)
    best = polytope.maximize(scores)
    assert all((points == z).flatten(1).all(1).any() for z in best)
    torch.testing.assert_close(value(best, scores), best_value(points, scores))
    single = polytope.maximize(scores.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(
        value(single.double(), scores), best_value(points, scores), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(polytope.maximize(scores.flip(0)).flip(0), best)


@listed
def test_constraints_describe_the_hull_of_the_list(polytope: Polytope, points: Tensor) -> None:
    scores = normal(10, *polytope.event_shape, seed=1)
    expected = best_value(points, scores)
    found = torch.tensor([linear_maximum(polytope, row) for row in scores]).double()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(value(polytope.maximize(scores, solver=Highs()), scores), expected)


@listed
@kinds
def test_projection_is_that_of_the_list(polytope: Polytope, points: Tensor, kind: str) -> None:
    scores = SCORES[kind](polytope.event_shape)[:8]
    solution = polytope.solve(scores, Euclidean())
    assert solution.gap is not None
    assert bool((solution.gap.abs() <= 1e-9 * (1 + value(solution.value, scores).abs())).all())
    torch.testing.assert_close(solution.value, Hull(points).project(scores), atol=1e-6, rtol=0)


def jacobian(polytope: Polytope, scores: Tensor, solver: Any = None) -> Tensor:
    leaf = scores.clone().requires_grad_()
    y = polytope.maximize(leaf, Euclidean(), solver=solver).flatten()
    rows = [torch.autograd.grad(part, leaf, retain_graph=True)[0].flatten() for part in y]
    return torch.stack(rows)


@listed
@pytest.mark.parametrize("kind", ["normal", "ties", "zero", "ones"])
def test_derivative_is_that_of_the_generic_roads(polytope: Polytope, points: Tensor, kind: str) -> None:
    """Also where y lies on bounds without a multiplier."""
    for scores in SCORES[kind](polytope.event_shape)[:3]:
        found = jacobian(polytope, scores)
        torch.testing.assert_close(found, jacobian(Hull(points), scores, ActiveSet()), atol=1e-6, rtol=0)
        torch.testing.assert_close(found, found.T)


@pytest.mark.parametrize("kind", ["normal", "ties", "zero"])
def test_derivative_agrees_with_the_constraints_road(kind: str) -> None:
    for polytope in (GridPath(4, 4, 8), Path(RING, 0, 3)):
        scores = SCORES[kind](polytope.event_shape)[0]
        expected = jacobian(polytope, scores, Clarabel())
        torch.testing.assert_close(jacobian(polytope, scores), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("polytope", [GridPath(4, 5), GridPath(4, 4, 8), Path(RING, 0, 3)], ids=repr)
def test_gradcheck(polytope: Polytope) -> None:
    scores = normal(2, *polytope.event_shape, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(polytope.project, scores, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("sign", ["mixed", "costs"])
def test_larger_grids_against_linear_programmes(neighbours: int, sign: str) -> None:
    grid = GridPath(9, 11, neighbours)
    scores = normal(5, 9, 11, seed=2)
    scores = -scores.abs() if sign == "costs" else scores
    keep = (normal(5, 9, 11, seed=3) > -1.0) | (grid.maximize(normal(9, 11, seed=4)) > 0)
    for mask in (None, keep):
        shown = scores if mask is None else scores.masked_fill(~mask, -1e3)
        best = grid.maximize(scores, keep=mask)
        expected = torch.tensor([linear_maximum(grid, row) for row in shown]).double()
        torch.testing.assert_close(value(best, shown), expected)
        nearest = grid.maximize(scores, Euclidean(), keep=mask)
        for i, y in enumerate(nearest):
            slope = scores[i] - y
            slope = slope if mask is None else slope.masked_fill(~mask[i], -1e3)
            assert not np.isnan(linear_maximum(grid, slope, near=y))
            assert abs(linear_maximum(grid, slope) - float((slope * y).sum())) < 1e-8


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 1e6])
def test_projections_are_certified_at_any_scale(scale: float) -> None:
    for polytope in (GridPath(12, 12, 8), GridPath(7, 15), Path(random_graph(40, 160, 1), 0, 30)):
        for scores in (
            normal(10, *polytope.event_shape),
            torch.round(normal(10, *polytope.event_shape)),
        ):
            solution = polytope.solve(scale * scores, Euclidean())
            assert solution.gap is not None
            relative = solution.gap.abs() / (1 + value(solution.value, scale * scores).abs())
            assert float(relative.max()) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("neighbours", [4, 8])
def test_a_grid_of_64_by_64_is_certified(neighbours: int) -> None:
    grid = GridPath(64, 64, neighbours)
    scores = normal(1, 64, 64).requires_grad_()
    solution = grid.solve(scores, Euclidean())
    assert solution.gap is not None
    relative = solution.gap / (1 + value(solution.value, scores.detach()).abs())
    assert float(relative.abs().max()) < 1e-8
    grid.project(scores).square().sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())


@pytest.mark.parametrize("seed", range(3))
def test_costs_against_networkx(seed: int) -> None:
    arcs = random_graph(60, 300, seed)
    path = Path(arcs, 0, 31)
    costs = normal(300, seed=seed).abs()
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((a, b, float(c)) for (a, b), c in zip(arcs, costs, strict=True))
    best = path.maximize(-costs)
    assert (best * costs).sum().item() == pytest.approx(nx.dijkstra_path_length(graph, 0, 31))
    assert numbers(path.decode(best)) == nx.dijkstra_path(graph, 0, 31)


def test_gains_without_a_cycle_that_pays() -> None:
    """Costs of both signs and no negative cycle: potentials plus costs."""
    arcs = random_graph(50, 250, 7)
    potential = 3 * normal(50)
    costs = normal(250).abs() + torch.stack([potential[b] - potential[a] for a, b in arcs])
    assert bool((costs < 0).any())
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((a, b, float(c)) for (a, b), c in zip(arcs, costs, strict=True))
    best = Path(arcs, 3, 20).maximize(-costs)
    assert (best * costs).sum().item() == pytest.approx(nx.bellman_ford_path_length(graph, 3, 20))


def test_longest_paths_of_acyclic_graphs() -> None:
    arcs = [(a, b) for a in range(12) for b in range(a + 1, 12)]
    path = Path(arcs[::-1], 0, 11)
    assert path.acyclic
    scores = normal(len(arcs))
    graph = nx.DiGraph()
    graph.add_weighted_edges_from((a, b, float(s)) for (a, b), s in zip(arcs[::-1], scores, strict=True))
    ways = nx.all_simple_paths(graph, 0, 11)
    longest = max(nx.path_weight(graph, way, "weight") for way in ways)
    assert (path.maximize(scores) * scores).sum().item() == pytest.approx(longest)


def test_mixed_signs_on_graphs_against_linear_programmes() -> None:
    path = Path(random_graph(40, 200, 3), 0, 25)
    scores = normal(6, 200)
    expected = torch.tensor([linear_maximum(path, row) for row in scores]).double()
    torch.testing.assert_close(value(path.maximize(scores), scores), expected)


# --- sizes, masks, parameters -------------------------------------------------------------------


@pytest.mark.parametrize("regularizer", [None, Euclidean(), FermiDirac()], ids=str)
def test_sizes_masks_and_ends_are_each_instance_alone(regularizer: Any) -> None:
    grid = GridPath(4, 5, 8)
    lengths = torch.tensor([[4, 5], [2, 3], [1, 4], [3, 1], [1, 1], [4, 4]])
    source = torch.tensor([[0, 0], [1, 2], [0, 3], [2, 0], [0, 0], [3, 1]])
    target = torch.tensor([[3, 2], [0, 0], [0, 0], [-1, -1], [0, 0], [-2, -1]])
    scores = normal(6, 4, 5)
    keep = torch.ones(6, 4, 5, dtype=torch.bool)
    keep[0, 2, 2] = keep[5, 0, 0] = False
    ends = {"source": source, "target": target}
    together = grid.maximize(scores, regularizer, lengths=lengths, keep=keep, params=ends)
    default = grid.maximize(scores, regularizer, lengths=lengths)
    for i, (h, w) in enumerate(numbers(lengths)):
        alone = GridPath(h, w, 8, tuple(numbers(source[i])), tuple(numbers(target[i])))
        block = (i, slice(h), slice(w))
        expected = torch.zeros(4, 5).double()
        expected[:h, :w] = alone.maximize(scores[block], regularizer, keep=keep[block])
        torch.testing.assert_close(together[i], expected, atol=1e-7, rtol=0)
        expected[:h, :w] = GridPath(h, w, 8).maximize(scores[block], regularizer)
        torch.testing.assert_close(default[i], expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("regularizer", [None, Euclidean(), Gibbs()], ids=str)
def test_ends_of_a_graph_are_parameters(regularizer: Any) -> None:
    path = Path(LADDER, "a", "e")
    source, target = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 4, 4, 3, 4])
    scores = normal(5, 7).requires_grad_()
    keep = torch.ones(5, 7, dtype=torch.bool)
    keep[0, 0] = False
    ends = {"source": source, "target": target}
    together = path.maximize(scores, regularizer, keep=keep, params=ends)
    for i in range(5):
        alone = Path(LADDER, "abcde"[int(source[i])], "abcde"[int(target[i])])
        expected = alone.maximize(scores[i].detach(), regularizer, keep=keep[i])
        torch.testing.assert_close(together[i].detach(), expected)
    if regularizer is not None:
        together.square().sum().backward()
        assert scores.grad is not None
        assert bool((scores.grad[~keep] == 0).all())


def test_where_both_ends_are_one() -> None:
    grid = GridPath(3, 3, source=(1, 1), target=(1, 1))
    assert grid.maximize(-torch.ones(3, 3)).sum() == 1
    assert numbers(grid.decode(grid.maximize(-torch.ones(3, 3)))) == [[1, 1]]
    path = Path(LADDER, "c", "c")
    assert path.maximize(torch.ones(7)).sum() == 0
    assert path.project(torch.ones(7)).abs().sum() == 0
    assert path.log_partition(torch.ones(7)) == 0
    assert numbers(path.decode(torch.zeros(7))) == [2]


def test_masks_that_leave_no_path() -> None:
    keep = torch.ones(3, 3, 3, dtype=torch.bool)
    keep[1, 1] = False
    for regularizer in (None, Euclidean()):
        with pytest.raises(NoStructure, match="instance 1"):
            GridPath(3, 3).maximize(torch.zeros(3, 3, 3), regularizer, keep=keep)
        with pytest.raises(NoStructure, match="instance 1"):
            GridPath(3, 3).maximize(torch.ones(3, 3, 3), regularizer, keep=keep)
    excluded = torch.zeros(7)
    excluded[:2] = -torch.inf
    for regularizer in (None, Euclidean(), Gibbs()):
        with pytest.raises(NoStructure, match="no structure"):
            Path(LADDER, "a", "e").maximize(excluded, regularizer)
        with pytest.raises(NoStructure, match="instance 1"):
            Path(LADDER, "a", "e").maximize(
                torch.zeros(2, 7),
                regularizer,
                params={"source": torch.tensor([0, 4]), "target": torch.tensor([4, 0])},
            )
    corner = torch.ones(3, 3, dtype=torch.bool)
    corner[0, 0] = False
    with pytest.raises(NoStructure):
        GridPath(3, 3).maximize(torch.zeros(3, 3), keep=corner)


def test_bad_declarations_and_parameters() -> None:
    with pytest.raises(TypeError, match="directed"):
        Path(nx.path_graph(3), 0, 2)
    with pytest.raises(TypeError, match="pairs"):
        Path([(0, 1, 2)], 0, 1)
    with pytest.raises(ValueError, match="arc"):
        Path([], 0, 1)
    with pytest.raises(ValueError, match="no node"):
        Path([(0, 1)], 0, 7)
    with pytest.raises(ValueError, match="no path"):
        Path([(0, 1)], 1, 0)
    with pytest.raises(ValueError, match="neighbours"):
        GridPath(3, 3, 6)
    with pytest.raises(ValueError, match="no cell"):
        GridPath(3, 3, target=(3, 0))
    with pytest.raises(TypeError, match="whole"):
        GridPath(3, 3.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="instance 1"):
        Path(LADDER, "a", "e").maximize(torch.zeros(2, 7), params={"target": torch.tensor([4, 5])})
    with pytest.raises(ValueError, match="whole"):
        Path(LADDER, "a", "e").maximize(torch.zeros(7), params={"target": torch.tensor(4.0)})
    outside = {"target": torch.tensor([[1, 1], [2, 0]])}
    with pytest.raises(ValueError, match="instance 1"):
        GridPath(3, 3).maximize(
            torch.zeros(2, 3, 3), lengths=torch.tensor([[2, 2], [2, 2]]), params=outside
        )


def test_clamped_scores() -> None:
    """Only MAP sees them clamped; projections and certificates are those of M."""
    scores = normal(20, 4, 4)
    free, clamped = GridPath(4, 4), GridPath(4, 4, nonpositive=True)
    assert torch.equal(clamped.maximize(scores), free.maximize(scores.clamp(max=0)))
    assert not torch.equal(clamped.maximize(scores), free.maximize(scores))
    solution = clamped.solve(scores, Euclidean())
    torch.testing.assert_close(solution.value, free.project(scores))
    assert solution.gap is not None
    assert float(solution.gap.abs().max()) < 1e-9
    torch.testing.assert_close(
        clamped.gap(free.project(scores) * 0 + free.maximize(scores), scores, Euclidean()),
        free.gap(free.maximize(scores), scores, Euclidean()),
    )
    torch.testing.assert_close(
        clamped.maximize(scores[:2], FermiDirac()),
        free.maximize(scores[:2], FermiDirac()),
        atol=1e-4,
        rtol=0,
    )
    with pytest.raises(UnsupportedProblem):
        clamped.maximize(scores, Euclidean(), solver=ActiveSet())
    path = Path(RING, 0, 3, nonpositive=True)
    best = path.maximize(normal(20, 8))
    assert torch.equal(path.encode(path.decode(best)).double(), best)
    leaf = scores.clone().requires_grad_()
    Argmax(clamped, SPIGOT())(leaf).square().sum().backward()
    assert leaf.grad is not None


# --- sums over paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_marginals_at_peaked_scores(scale: float, dtype: torch.dtype) -> None:
    path = Path(LADDER, "a", "e")
    points = arc_flows([(ord(a) - 97, ord(b) - 97) for a, b in LADDER], 5, 0, 4)
    scores = (scale * normal(10, 7)).to(dtype).requires_grad_()
    marginals = path.marginals(scores)
    chance = (scores.detach().double() @ points.T).softmax(1)
    torch.testing.assert_close(marginals.double(), chance @ points, atol=1e-6, rtol=0)
    assert bool(((marginals >= 0) & (marginals <= 1)).all())
    total = (scores.detach().double() @ points.T).logsumexp(1)
    torch.testing.assert_close(path.log_partition(scores).double(), total, rtol=1e-6, atol=1e-6)
    direction = normal(7)
    marginals.double().mv(direction).sum().backward()
    mean = chance @ points @ direction
    pulled = torch.einsum("bp,pi,bp->bi", chance, points, points @ direction - mean[:, None])
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad.double(), pulled, atol=1e-5, rtol=0)


def test_samples_and_the_k_best() -> None:
    path = Path(LADDER, "a", "e")
    scores = normal(3, 7)
    drawn = path.sample(scores, (4000,), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), path.marginals(scores), atol=0.04, rtol=0)
    points = arc_flows([(ord(a) - 97, ord(b) - 97) for a, b in LADDER], 5, 0, 4)
    ends = {"source": torch.tensor([0, 1, 0]), "target": torch.tensor([4, 4, 3])}
    best = path.top_k(scores, 2, params=ends)
    assert torch.equal(best[0], path.maximize(scores, params=ends))
    ranked = (points @ scores[0]).sort(descending=True).values
    torch.testing.assert_close(best[:, 0] @ scores[0], ranked[:2])
    with pytest.raises(ValueError, match="structure"):
        path.top_k(scores, len(points) + 1)


def test_sums_on_cyclic_graphs_are_refused() -> None:
    with pytest.raises(UnsupportedProblem, match="cycle"):
        Path(RING, 0, 3).marginals(torch.zeros(8))
    with pytest.raises(UnsupportedProblem):
        GridPath(2, 2).marginals(torch.zeros(2, 2))


# --- labels ----------------------------------------------------------------------------------------


def test_labels_of_graphs() -> None:
    graph = nx.DiGraph([("x", "y"), ("y", "z"), ("x", "z")])
    path = Path(graph, "x", "z")
    assert path.graph.number("y") == 1
    vertices = path.encode([[0, 1, 2], [0, 2]])
    assert numbers(vertices) == [[1, 1, 0], [0, 0, 1]] or numbers(vertices) == [[1, 0, 1], [0, 1, 0]]
    assert numbers(path.decode(vertices)) == [[0, 1, 2], [0, 2, -1]]
    assert numbers(path.encode([0])) == [0, 0, 0]
    for wrong in ([[1, 0]], [[0, 3]], [[-1, 0]], [[0, -1, 2]]):
        with pytest.raises(ValueError, match="labels"):
            path.encode(wrong)
    with pytest.raises(TypeError, match="whole"):
        path.encode([[0.5, 1.0]])
    cyclic = Path([(0, 1), (1, 2), (2, 1)], 0, 1)
    assert numbers(cyclic.decode(torch.ones(3))) == [0, 1, -1][:2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 9], r"numbers below 4.*; instance 1 has 9 at position 1\."),
        ([0, 2, 3], r"on the arcs of Path\(.*; instance 1 has the step \[0, 2\] at position 0\."),
        ([0, 1, 1, 1], r"no arc twice; instance 1 has the step \[1, 1\] at position 1\."),
        ([0, -1, 3], r"-1 only after the last step; instance 1 has -1 at position 1\."),
        ([], r"at least one step each; instance 1 has \[-1, -1\]\."),
    ],
)
def test_labels_that_are_no_walk_are_named(wrong: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Path(RING, 0, 3).encode([[0, 3], wrong])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([[0, 0], [0, 3]], r"cells of GridPath\(.*; instance 1 has \[0, 3\] at position 1\."),
        ([[0, 0], [1, 1]], r"neighbours of .*; instance 1 has the step \[\[0, 0\], \[1, 1\]\]\."),
        ([[0, 0], [0, 1], [0, 0]], r"no cell twice; instance 1 has \[0, 0\] at position 0\."),
        ([[0, 0], [0, -1]], r"-1 alone for padding; instance 1 has \[0, -1\] at position 1\."),
    ],
)
def test_labels_that_are_no_walk_of_a_grid_are_named(wrong: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GridPath(3, 3).encode([[[0, 0], [0, 1]], wrong])
    short = torch.tensor([[3, 3], [1, 3]])
    with pytest.raises(ValueError, match=r"instance 1 \(lengths \[1, 3\]\) has \[1, 0\] at position 1"):
        GridPath(3, 3).encode([[[0, 0], [1, 0]]] * 2, short)


@pytest.mark.parametrize("labels", ["abc", [[0, 1], 2], [[0, 1], ["x"]]], ids=str)
def test_labels_that_are_no_lists_of_steps(labels: Any) -> None:
    with pytest.raises(TypeError, match="labels must be whole numbers, a list of node numbers"):
        Path(RING, 0, 3).encode(labels)


def test_ends_of_instances_are_named() -> None:
    source = torch.tensor([0, 7, 1, 9])
    with pytest.raises(ValueError, match=r"0\.\.3; instance 1 has 7\. Also wrong: instance 3\."):
        Path(RING, 0, 3).maximize(torch.zeros(4, 8), params={"source": source})
    with pytest.raises(ValueError, match=r"got dtype torch\.float32"):
        Path(RING, 0, 3).maximize(torch.zeros(4, 8), params={"source": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"instance 0 has \[0, 3\]\.$"):
        GridPath(3, 3).maximize(torch.zeros(1, 3, 3), params={"target": torch.tensor([[0, 3]])})
    with pytest.raises(ValueError, match="'z' is no node of the graph, whose nodes are 'x', 'y'"):
        Path(nx.DiGraph([("x", "y")]), "x", "z")


def test_labels_of_grids() -> None:
    grid = GridPath(3, 3)
    walks = [
        [[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]],
        [[0, 0], [1, 0], [1, 1], [0, 1], [0, 2], [1, 2], [2, 2]],
    ]
    vertices = grid.encode(walks)
    assert torch.equal(grid.encode(grid.decode(vertices)), vertices)
    assert grid.decode(vertices).shape == (2, 7, 2)
    scores = -normal(30, 3, 3).abs()
    assert torch.equal(grid.encode(grid.decode(grid.maximize(scores))).double(), grid.maximize(scores))
    small = torch.tensor([[2, 2], [3, 1]])
    best = grid.maximize(scores[:2], lengths=small)
    assert torch.equal(grid.encode(grid.decode(best, small), small).double(), best)
    for wrong in ([[0, 0], [1, 1]], [[0, 0], [0, 3]], [[0, 0], [0, 1], [0, 0]], [[0, 0], [0, 0]]):
        with pytest.raises(ValueError, match="labels"):
            grid.encode(wrong)
    cycle = torch.ones(4, 4)
    cycle[1:, 0] = 0  # a path over the top and down, and a block of cycles
    walk = GridPath(4, 4, target=(0, 1)).decode(cycle)
    assert numbers(walk[0]) == [0, 0]
    assert int((walk[:, 0] >= 0).sum()) in (2, 13)


def test_memory_layouts_and_batches() -> None:
    grid = GridPath(3, 4)
    scores = normal(2, 5, 3, 4, 2)[..., 0]
    for regularizer in (None, Euclidean()):
        expected = grid.maximize(scores.contiguous(), regularizer)
        torch.testing.assert_close(grid.maximize(scores, regularizer), expected)
        assert grid.maximize(scores[:0], regularizer).shape == (0, 5, 3, 4)
        assert grid.maximize(scores[0, 0], regularizer).shape == (3, 4)


@pytest.mark.parametrize(
    ("polytope", "points"),
    [(GridPath(2, 3, 8), cell_sets(2, 3, 8)), (Path(random_graph(5, 9, 0), 0, 3), None)],
    ids=["grid", "graph"],
)
@pytest.mark.slow
def test_the_checker_passes(polytope: Polytope, points: Tensor | None) -> None:
    twin = Hull(arc_flows(random_graph(5, 9, 0), 5, 0, 3) if points is None else points)
    findings = check(polytope, twin, count=2).findings
    bad = [f for f in findings if f.counterexample is not None and f.regularizer in ("", "Euclidean()")]
    assert [f for f in bad if f.verb != "labels"] == []  # a label has no room for cycles beside
