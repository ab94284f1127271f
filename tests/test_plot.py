"""Pictures: what they show is what the structure is, and nothing of them is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.axes import Axes
from torch import Tensor

from spigot import plot
from spigot.plot.hull import outline
from spigot.polytopes import (
    Alignment,
    Arborescence,
    Facets,
    GridPath,
    Hull,
    Hypercube,
    Matching,
    Oracle,
    Permutahedron,
    Polytope,
    Sequence,
    Simplex,
    Subset,
)
from spigot.pullback import SPIGOT, SPIGOTEG, FrankWolfePullBack, PullBack, STEIdentity
from tests.tensors import normal


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    cast(Any, pyplot).close("all")


def box() -> Polytope:
    return Facets(lambda y: [y >= 0, y <= 1, y[0] + y[1] <= 1.5], (2,))


def ball() -> Polytope:
    """Its argmax is all that is known: the octahedron |y_1| + |y_2| + |y_3| <= 1."""

    def vertex(s: np.ndarray) -> np.ndarray:
        largest = int(np.abs(s).argmax())
        return np.sign(s[largest] or 1.0) * np.eye(3)[largest]

    return Oracle(vertex, (3,))


# dimensions, vertices, facets
SHAPES = {
    "triangle": (Simplex(3), 2, 3, 1),
    "tetrahedron": (Simplex(4), 3, 4, 4),
    "square": (Hypercube(2), 2, 4, 1),
    "cube": (Hypercube(3), 3, 8, 6),
    "hexagon": (Permutahedron(torch.tensor([3.0, 2.0, 1.0])), 2, 6, 1),
    "truncated octahedron": (Permutahedron(torch.tensor([4.0, 3.0, 2.0, 1.0])), 3, 24, 14),
    "octahedron": (Subset(4, 2), 3, 6, 8),
    "oracle's octahedron": (ball(), 3, 6, 8),
    "cut square": (box(), 2, 5, 1),
    "segment": (Matching(2, 2), 1, 2, 1),
    "point": (Hull(torch.ones(1, 4)), 0, 1, 1),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_found_by_map_alone(name: str) -> None:
    polytope, dimensions, vertices, facets = SHAPES[name]
    shape = outline(polytope)
    assert len(shape.basis) == dimensions
    assert len(shape.vertices) == vertices
    assert len(shape.facets()) == facets
    np.testing.assert_allclose(shape.basis @ shape.basis.T, np.eye(dimensions), atol=1e-12)
    at = shape.place(shape.vertices)
    for apart in (at, shape.vertices):  # distances are M's own
        assert np.allclose(
            np.linalg.norm(apart[:, None] - apart, axis=-1),
            np.linalg.norm(shape.vertices[:, None] - shape.vertices, axis=-1),
        )


def test_facets_of_a_solid_go_round_and_meet_in_edges() -> None:
    shape = outline(SHAPES["truncated octahedron"][0])
    edges: dict[frozenset[int], int] = {}
    for ring in shape.facets():
        for first, second in zip(ring, np.roll(ring, -1), strict=True):
            pair = frozenset((int(first), int(second)))
            edges[pair] = edges.get(pair, 0) + 1
    assert set(edges.values()) == {2}
    assert len(shape.vertices) - len(edges) + len(shape.facets()) == 2  # Euler
    at = shape.place(shape.vertices)
    lengths = [np.linalg.norm(np.subtract(*at[sorted(pair)])) for pair in edges]
    np.testing.assert_allclose(lengths, np.sqrt(2.0))


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_drawn_and_nothing_is_cut_off(name: str) -> None:
    polytope = SHAPES[name][0]
    ax = plot.polytope(polytope)
    points = polytope.maximize(normal(20, *polytope.event_shape, seed=1))
    assert plot.points(polytope, points, ax, label="answers") is ax
    assert nothing_cut_off(ax)


def nothing_cut_off(ax: Axes) -> bool:
    """Whether the picture's outermost pixels are white: what is cut off leaves its mark there."""
    canvas: Any = cast(Any, ax.figure).canvas
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return bool((pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all())


def test_what_has_more_dimensions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Matching\(n=3, m=3, .*more than 3 dimensions"):
        plot.polytope(Matching(3, 3))
    flat = cast(Any, pyplot).figure().add_subplot()
    with pytest.raises(ValueError, match='projection="3d"'):
        plot.polytope(Hypercube(3), flat)


# --- pull-backs -----------------------------------------------------------------------------------


def squared(wanted: Tensor) -> Any:
    return lambda mu: (mu - wanted).square().sum(-1) / 2


@pytest.mark.parametrize(
    "estimator",
    [
        STEIdentity(),
        SPIGOT(step_size=0.5, steps=3),
        SPIGOTEG(steps=4),
        FrankWolfePullBack(steps=2),
        PullBack(loss=None, geometry=None),
    ],
    ids=str,
)
@pytest.mark.parametrize("polytope", [Simplex(3), Hypercube(2), Hypercube(3)], ids=str)
def test_the_way_of_a_pull_back_is_the_estimators_own(estimator: PullBack, polytope: Polytope) -> None:
    scores, wanted = normal(*polytope.event_shape, seed=2), normal(*polytope.event_shape, seed=3)
    ax: Any = plot.pull_back(estimator, polytope, scores, squared(wanted))
    steps = estimator.path(polytope, scores, squared(wanted)).numpy()
    drawn = [np.array(line.get_data_3d() if ax.name == "3d" else line.get_data()).T for line in ax.lines]
    expected = outline(polytope).place(steps)
    assert any(line.shape == expected.shape and np.allclose(line, expected) for line in drawn)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "steps to the target" in labels
    euclidean = str(estimator).startswith(("SPIGOT(", "STEIdentity"))
    assert ("start - step size * gradient" in labels) == euclidean


def test_a_batch_of_scores_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) must be one instance's, of shape \(3,\)"):
        plot.pull_back(SPIGOT(), Simplex(3), torch.zeros(2, 3), squared(torch.zeros(3)))
    with pytest.raises(ValueError, match=r"must end in the event shape \(3,\)"):
        plot.points(Simplex(3), torch.zeros(4), plot.polytope(Simplex(3)))


# --- structures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (8, 8), (5, 12), (20, 12)])
@pytest.mark.parametrize("named", [False, True])
def test_cells_clip_no_label(shape: tuple[int, int], named: bool) -> None:
    rows = [f"word {i}" for i in range(shape[0])] if named else None
    ax: Any = plot.cells(torch.rand(shape), rows=rows)
    ax.figure.canvas.draw()
    renderer = ax.figure.canvas.get_renderer()
    for part in (*ax.get_xticklabels(), *ax.get_yticklabels(), *ax.figure.axes):
        box = part.get_tightbbox(renderer)
        assert box.x0 >= 0, part
        assert box.y0 >= 0, part
        assert box.x1 <= ax.figure.bbox.x1, part
        assert box.y1 <= ax.figure.bbox.y1, part


def test_cells_show_marginals_and_outline_the_structure() -> None:
    chain = Sequence(4, 3)
    tags = chain.encode(torch.tensor([0, 2, 1, 1])).sum(1)
    ax: Any = plot.cells(tags * 0.7, tags, rows="wxyz", columns=["person", "place", "none"])
    np.testing.assert_allclose(ax.images[0].get_array(), 0.7 * tags.numpy(), rtol=1e-6)
    corners = {(round(patch.get_x() + 0.44), round(patch.get_y() + 0.44)) for patch in ax.patches}
    assert corners == {(0, 0), (2, 1), (1, 2), (1, 3)}
    assert [text.get_text() for text in ax.get_xticklabels()] == ["person", "place", "none"]
    assert ax.get_xticklabels()[0].get_rotation() == 90


def test_a_vector_is_one_row_and_many_columns_have_no_names() -> None:
    ax: Any = plot.cells(Subset(60, 5).marginals(normal(60, seed=4)))
    assert ax.images[0].get_array().shape == (1, 60)
    assert len(ax.get_xticks()) < 60


def test_an_alignment_is_one_line() -> None:
    polytope = Alignment(4, 5)
    best = polytope.maximize(normal(4, 5, seed=5))
    ax: Any = plot.alignment(best, marginals=polytope.marginals(normal(4, 5, seed=5)))
    columns, rows = ax.lines[0].get_data()
    assert (rows[0], columns[0], rows[-1], columns[-1]) == (0, 0, 3, 4)
    moves = np.stack([np.diff(rows), np.diff(columns)])
    assert set(map(tuple, moves.T.tolist())) <= {(0, 1), (1, 0), (1, 1)}


def test_a_way_over_a_grid() -> None:
    polytope, costs = GridPath(5, 6, neighbours=8), normal(5, 6, seed=6).abs()
    way = polytope.maximize(-costs)
    ax: Any = plot.grid_path(way, background=costs, source=(0, 0), target=(4, 5))
    marked = {(int(y), int(x)) for x, y in ax.collections[0].get_offsets()}
    assert marked == {(int(y), int(x)) for y, x in way.nonzero()}


def test_arcs_of_a_tree_over_its_words() -> None:
    trees = Arborescence(4)
    tree, other = trees.encode(torch.tensor([1, -1, 1, 2])), trees.encode(torch.tensor([1, -1, 3, 1]))
    ax = plot.arcs(tree, ["he", "eats", "green", "apples"], other=other)
    assert len(ax.patches) == 6  # three arcs above, three below; the roots' are texts' arrows
    assert [text.get_text() for text in ax.texts if text.get_text()].count("root") == 2
    assert nothing_cut_off(ax)


def test_a_matching_dashes_what_is_not_true() -> None:
    ax = plot.matching(torch.eye(3)[[1, 0, 2]], true=torch.eye(3), left="abc", right="xyz")
    styles = [line.get_linestyle() for line in ax.lines]
    assert styles == ["--", "--", "-"]
    assert nothing_cut_off(ax)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.cells(torch.zeros(2, 3, 4)), r"marginals must have 2 dimension\(s\)"),
        (lambda: plot.cells(torch.zeros(2, 3), torch.zeros(3, 2)), r"chosen of shape \(3, 2\)"),
        (lambda: plot.cells(torch.zeros(2, 3), rows="abc"), "rows must be 2 texts, got 3"),
        (lambda: plot.arcs(torch.zeros(2, 3)), "must be square"),
        (lambda: plot.arcs(torch.zeros(2, 2), ["one"]), "words must be 2 texts, got 1"),
        (lambda: plot.matching(torch.zeros(2, 3), true=torch.zeros(3, 2)), "must have the weights'"),
        (lambda: plot.grid_path(torch.zeros(4)), "chosen must have 2"),
    ],
)
def test_wrong_shapes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
