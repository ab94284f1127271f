"""Structures over rows and columns, as cells: subsets, tags, alignments, matchings, ways over a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spigot.plot.canvas import BLACK, BLUE, GREEN, ORANGE, SHADES, array, axes, named
from spigot.polytopes.arrays import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["alignment", "cells", "grid_path"]

HALF = 0.5  # a part that is more than half there is drawn as chosen
MANY = 40  # names, beyond which they are left out


def cells(
    marginals: Any,
    chosen: Any = None,
    ax: Axes | None = None,
    *,
    rows: Any = None,
    columns: Any = None,
    bar: bool = True,
    label: str = "marginal",
) -> Axes:
    """Marginals as shades from 0 to 1, and the chosen cells outlined.

    For a subset of pixels, the tags of a sentence (`(length, tags)`), a matching, a permutation matrix.

    Args:
        marginals: `(rows, columns)`; of a vector `(d,)` one row.
        chosen: a structure of the same shape, to be outlined.
        ax: where to draw.
        rows: the rows' names.
        columns: the columns' names.
        bar: whether a colour bar is drawn.
        label: what the shades are, beside the bar.

    Raises:
        ValueError: shapes that differ, a batch, or another number of names.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Matching
        >>> P, s = Matching(3, 3), torch.eye(3)
        >>> ax = plot.cells(P.project(s), P.maximize(s), rows="abc", columns="xyz")
        >>> [text.get_text() for text in ax.get_xticklabels()]
        ['x', 'y', 'z']
    """
    shades = _matrix(marginals, "marginals")
    ax_ = axes(ax, _size(shades))
    image = ax_.imshow(shades, cmap=SHADES, vmin=0.0, vmax=max(1.0, float(shades.max(initial=0.0))))
    if chosen is not None:
        _outline(ax_, _like(chosen, shades, "chosen"))
    _names(ax_, "y", rows, shades.shape[0], "rows")
    _names(ax_, "x", columns, shades.shape[1], "columns")
    if bar:
        ax_.figure.colorbar(image, ax=ax_, label=label, shrink=0.8)
    return ax_


def alignment(
    chosen: Any,
    ax: Axes | None = None,
    *,
    marginals: Any = None,
    rows: Any = None,
    columns: Any = None,
    bar: bool = True,
) -> Axes:
    """An alignment of two sequences: its cells joined by a line, over marginals or costs.

    Args:
        chosen: `(rows, columns)`, the alignment.
        ax: where to draw.
        marginals: likewise, drawn as shades; the alignment itself where there are none.
        rows: the first sequence's names.
        columns: the second one's.
        bar: whether a colour bar is drawn where there are marginals.

    Raises:
        ValueError: shapes that differ, a batch, or another number of names.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Alignment
        >>> P, s = Alignment(3, 4), torch.zeros(3, 4)
        >>> ax = plot.alignment(P.maximize(s), marginals=P.marginals(s))
    """
    shades = chosen if marginals is None else marginals
    ax_: Any = cells(shades, None, ax, rows=rows, columns=columns, bar=bar and marginals is not None)
    path = _like(chosen, _matrix(shades, "marginals"), "chosen")
    at = np.argwhere(path > HALF)
    at = at[np.lexsort((at[:, 1], at[:, 0]))]
    ax_.plot(at[:, 1], at[:, 0], color=ORANGE, linewidth=1.6, marker="o", markersize=4)
    return ax_


def grid_path(
    chosen: Any,
    ax: Axes | None = None,
    *,
    background: Any = None,
    source: tuple[int, int] | None = None,
    target: tuple[int, int] | None = None,
) -> Axes:
    """A way over a grid: its cells marked over a map or over costs, drawn dark where they are high.

    Args:
        chosen: `(height, width)`; fractions are drawn as smaller marks.
        ax: where to draw.
        background: `(height, width)`, such as predicted costs or blocked cells.
        source: where the way begins, row and column.
        target: where it ends.

    Raises:
        ValueError: shapes that differ, or a batch.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import GridPath
        >>> P, costs = GridPath(4, 5), torch.rand(4, 5)
        >>> ax = plot.grid_path(P.maximize(-costs), background=costs)
    """
    way = array(chosen, 2, "chosen")
    ax_ = axes(ax, _size(way))
    behind = np.zeros_like(way) if background is None else _like(background, way, "background")
    ax_.imshow(behind, cmap="Greys", vmin=behind.min(initial=0.0), vmax=1.4 * behind.max(initial=1e-9))
    row, column = np.nonzero(way > 1e-6)
    side = 0.75 * 72 * _size(way)[0] / max(way.shape)  # points a cell, about
    sizes = (0.45 * side) ** 2 * way[row, column]
    ax_.scatter(column, row, s=sizes, color=BLUE, edgecolors="white", linewidths=0.6, zorder=3)
    for end, marker, colour, label in ((source, "s", GREEN, "source"), (target, "*", ORANGE, "target")):
        if end is not None:
            ax_.scatter(
                end[1], end[0], s=(0.6 * side) ** 2, marker=marker, color=colour, label=label, zorder=4,
                edgecolors=BLACK, linewidths=0.8,
            )  # fmt: skip
    ax_.set_xticks([])
    ax_.set_yticks([])
    return ax_


def _matrix(values: Any, name: str) -> np.ndarray:
    """One row of a vector."""
    dims = getattr(values, "ndim", np.ndim(values))
    return array(values, 1, name)[None] if dims == 1 else array(values, 2, name)


def _like(values: Any, other: np.ndarray, name: str) -> np.ndarray:
    found = _matrix(values, name)
    if found.shape != other.shape:
        raise ValueError(f"{name} of shape {found.shape} must have the cells' shape {other.shape}.")
    return found


def _size(shades: np.ndarray) -> tuple[float, float]:
    """Inches: cells are squares, and there is room for names."""
    height, width = shades.shape
    inch = min(0.45, 7.0 / max(height, width))
    return max(2.5, 2.1 + inch * width), max(1.8, 1.0 + inch * height)


def _outline(ax: Any, chosen: np.ndarray) -> None:
    rectangle: Any = library("matplotlib.patches").Rectangle
    for row, column in np.argwhere(chosen > HALF):
        corner = (float(column) - 0.44, float(row) - 0.44)
        ax.add_patch(rectangle(corner, 0.88, 0.88, fill=False, edgecolor=ORANGE, linewidth=1.8))


def _names(ax: Any, side: str, labels: Any, count: int, name: str) -> None:
    if labels is None and count > MANY:
        return
    turned = {"rotation": 90} if side == "x" and labels is not None and _long(labels) else {}
    getattr(ax, f"set_{side}ticks")(range(count), named(labels, count, name), **turned)
    ax.tick_params(length=0)


def _long(labels: Any) -> bool:
    return any(len(str(label)) > 3 for label in labels)
