"""Polytopes of up to three dimensions, points in them, and the way that a pull-back takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.plot.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, array, axes
from spigot.plot.hull import Outline, outline
from spigot.polytopes import Euclidean, Polytope
from spigot.polytopes.arrays import library
from spigot.pullback import PullBack, Unconstrained
from spigot.pullback.downstream import Closure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["path", "points", "polytope", "pull_back"]

CROWD = 12  # vertices, beyond which they are not named


def polytope(structure: Polytope, ax: Axes | None = None, *, names: bool | None = None) -> Axes:
    """The polytope, its vertices marked; in its own affine hull where that has fewer dimensions.

    `Simplex(3)` is a triangle, `Simplex(4)` a tetrahedron, `Permutahedron` of four items a solid. It is
    found by MAP alone, so any structure will do.

    Args:
        structure: of at most three dimensions; parts `(*event)` of any shape.
        ax: where to draw; of three dimensions (`projection="3d"`) for a solid.
        names: whether the vertices' parts are written beside them; those of few are.

    Raises:
        ValueError: it has more than three dimensions, or three and `ax` two.

    Example:
        >>> from spigot import plot
        >>> from spigot.polytopes import Simplex
        >>> ax = plot.polytope(Simplex(3))
        >>> ax.get_aspect()
        1.0
    """
    shape = outline(structure)
    at = shape.place(shape.vertices)
    solid = at.shape[1] == 3
    ax_: Any = axes(ax, (5.0, 5.0), solid)
    _fill(ax_, shape, at)
    ax_.scatter(*_flat(at).T, s=16, color=BLACK, zorder=3)
    if names or (names is None and len(at) <= CROWD):
        _name(ax_, shape, at)
    _frame(ax_, shape, at)
    return ax_


def _flat(at: np.ndarray) -> np.ndarray:
    """A segment's points on a line of the plane, a point at its origin."""
    return np.column_stack([at, np.zeros((len(at), max(0, 2 - at.shape[1])))])


def _fill(ax: Any, shape: Outline, at: np.ndarray) -> None:
    rings = [at[facet] for facet in shape.facets()]
    if at.shape[1] == 3:
        made: Any = library("mpl_toolkits.mplot3d.art3d").Poly3DCollection
        ax.add_collection3d(made(rings, facecolor=BLUE, edgecolor=BLACK, alpha=0.12, linewidth=0.8))
    elif at.shape[1] == 2:
        ax.fill(*rings[0].T, facecolor=BLUE, alpha=0.10)
        ax.fill(*rings[0].T, facecolor="none", edgecolor=BLACK, linewidth=1.0)
    else:
        ax.plot(*_flat(rings[0]).T, color=BLACK, linewidth=1.0)


def _name(ax: Any, shape: Outline, at: np.ndarray) -> None:
    """Each vertex's parts, written outward from the middle."""
    middle = at.mean(0)
    reach = float(np.linalg.norm(at - middle, axis=1).max())
    for vertex, place in zip(shape.vertices, at, strict=True):
        text = f"({', '.join(f'{float(part) + 0.0:g}' for part in vertex.round(3))})"
        away = (place - middle) / max(float(np.linalg.norm(place - middle)), 1e-9)
        if len(place) == 3:
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.4}
            beside = place + 0.16 * reach * away
            ax.text(*beside, text, fontsize=8, ha="center", va="center", bbox=box)
        else:
            _beside(ax, text, (*place, 0.0, 0.0)[:2], (*away, 0.0, 0.0)[:2])


def _beside(ax: Any, text: str, place: tuple[float, ...], away: tuple[float, ...]) -> None:
    x, y = away
    ax.annotate(
        text,
        place,
        xytext=(9 * x, 9 * y),
        textcoords="offset points",
        ha="left" if x > 0.3 else "right" if x < -0.3 else "center",
        va="bottom" if y > 0.3 else "top" if y < -0.3 else "center",
        fontsize=9,
    )


def _frame(ax: Any, shape: Outline, at: np.ndarray) -> None:
    """Equal scales; labelled axes where the coordinates are the parts themselves, else none."""
    for letter, number in zip("xyz", range(1, at.shape[1] + 1), strict=False):
        getattr(ax, f"set_{letter}label")(f"part {number}")
    if at.shape[1] == 3:
        middle, reach = (at.max(0) + at.min(0)) / 2, 0.6 * float(np.ptp(at, axis=0).max())
        for letter, centre in zip("xyz", middle, strict=True):
            getattr(ax, f"set_{letter}lim")(centre - reach, centre + reach)
        ax.set_box_aspect((1, 1, 1), zoom=0.9)  # room for the names
    else:
        ax.set_aspect("equal")
        ax.margins(0.18)
        ax.spines[["top", "right"]].set_visible(False)
    if not shape.own:
        ax.set_axis_off()


def points(
    structure: Polytope,
    y: Any,
    ax: Axes,
    *,
    label: str = "",
    colour: str = ORANGE,
    marker: str = "o",
    size: float = 45.0,
) -> Axes:
    """Points `(..., *event)` in the coordinates of the structure's picture.

    Points off M's affine hull are drawn at their orthogonal projection onto it, which has the same
    projection onto M.

    Args:
        structure: of at most three dimensions.
        y: `(..., *event)`, a tensor or an array.
        ax: where the structure is drawn.
        label: what a legend calls them.
        colour: of the marks.
        marker: their form, as matplotlib names it.
        size: of a mark, in points squared.

    Raises:
        ValueError: the polytope has more than three dimensions, or y is of another shape.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Simplex
        >>> P = Simplex(3)
        >>> ax = plot.polytope(P)
        >>> ax = plot.points(P, P.project(torch.randn(20, 3)), ax, label="sparsemax")
    """
    at = _placed(structure, y)
    ax_: Any = ax
    ax_.scatter(
        *_flat(at).T,
        s=size,
        color=colour,
        marker=marker,
        label=label or None,
        zorder=5,
        edgecolors="white",
    )
    return ax


def path(
    structure: Polytope,
    y: Any,
    ax: Axes,
    *,
    label: str = "",
    colour: str = ORANGE,
    marker: str = "o",
    style: str = "-",
) -> Axes:
    """Points `(k, *event)` one after the other, joined by a line that ends in a larger mark.

    Args:
        structure: of at most three dimensions.
        y: `(k, *event)`, a tensor or an array.
        ax: where the structure is drawn.
        label: what a legend calls them.
        colour: of line and marks.
        marker: the marks' form, as matplotlib names it.
        style: of the line, likewise.

    Raises:
        ValueError: the polytope has more than three dimensions, or y is of another shape.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOTEG
        >>> P, wanted = Simplex(3), torch.tensor([0.0, 0.0, 1.0])
        >>> steps = SPIGOTEG(steps=5).path(
        ...     P, torch.tensor([1.0, 0.5, 0.0]), lambda mu: (mu - wanted).square().sum(-1)
        ... )
        >>> ax = plot.path(P, steps, plot.polytope(P), label="exponentiated gradient")
    """
    at = _flat(_placed(structure, y))
    ax_: Any = ax
    ax_.plot(*at.T, linestyle=style, color=colour, linewidth=1.4, zorder=4)
    ax_.plot(*at[:-1].T, linestyle="none", marker=marker, color=colour, markersize=4, zorder=4)
    ends = {"marker": marker, "color": colour, "markersize": 8.0, "markeredgecolor": "white"}
    ax_.plot(*at[-1:].T, linestyle="none", **ends, zorder=6)
    if label:  # a legend's line with its mark
        ax_.plot([], [], *([[]] if at.shape[1] == 3 else []), linestyle=style, label=label, **ends)
    return ax


def _placed(structure: Polytope, y: Any) -> np.ndarray:
    tensor = y.detach() if isinstance(y, Tensor) else torch.as_tensor(np.asarray(y))
    event = structure.event_shape
    if tuple(tensor.shape[tensor.dim() - len(event) :]) != tuple(event):
        raise ValueError(f"points of shape {tuple(tensor.shape)} must end in the event shape {event}.")
    flat = tensor.reshape(-1, int(np.prod(event)))
    return outline(structure).place(array(flat, 2, "points"))


def pull_back(
    estimator: PullBack,
    structure: Polytope,
    scores: Tensor,
    loss: Closure,
    ax: Axes | None = None,
    *,
    legend: bool = True,
) -> Axes:
    """How an estimator finds its surrogate gradient: the start, the steps, the target.

    The dashed line is the first gradient step as it would be without the constraint y in M, where the
    geometry is Euclidean. The surrogate gradient is the difference of the two larger marks:
    maximize(M, s, loss's regularizer) less the target.

    Args:
        estimator: a row of the pull-backs' table.
        structure: of at most three dimensions.
        scores: `(*event)`, one instance's.
        loss: mu `(*batch, *event)` -> each instance's own loss `(*batch,)`.
        ax: where to draw.
        legend: whether to say what the marks are.

    Raises:
        ValueError: the polytope has more than three dimensions, or scores are a batch.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOT
        >>> wanted = torch.tensor([0.0, 1.0, 0.0])
        >>> ax = plot.pull_back(
        ...     SPIGOT(step_size=0.7),
        ...     Simplex(3),
        ...     torch.tensor([1.0, 0.4, 0.2]),
        ...     lambda mu: (mu - wanted).square().sum(-1),
        ... )
    """
    if tuple(scores.shape) != tuple(structure.event_shape):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} must be one instance's, of shape "
            f"{tuple(structure.event_shape)}."
        )
    drawn = polytope(structure, ax)
    steps = estimator.path(structure, scores, loss)
    if isinstance(estimator.geometry, Euclidean | Unconstrained):
        plain = replace(estimator, geometry=Unconstrained(), steps=1, name="")
        free = plain.path(structure, scores, loss)
        path(
            structure,
            free,
            drawn,
            label="start - step size * gradient",
            colour=GREY,
            marker="s",
            style="--",
        )
    path(structure, steps, drawn, label="steps to the target", colour=ORANGE)
    own = structure.maximize(scores, estimator.loss)
    what = "the structure" if estimator.loss is None else f"maximize(s, {estimator.loss})"
    points(structure, own, drawn, label=what, colour=GREEN, marker="D")
    if legend:
        any_: Any = drawn
        any_.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=9)
    return drawn
