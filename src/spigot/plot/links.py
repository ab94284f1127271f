"""Structures that link one thing with another: dependency arcs over words, matchings of two lists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spigot.plot.canvas import BLACK, BLUE, array, axes, named
from spigot.polytopes.arrays import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["arcs", "matching"]

FAINT = 0.02  # parts below are not drawn
FOOT = 0.32  # from the middle of a word to where its arcs begin


def arcs(tree: Any, words: Any = None, ax: Axes | None = None, *, other: Any = None) -> Axes:
    """A dependency tree over its words, an arc from each head to its dependent.

    Args:
        tree: `(n, n)`, `[head, dependent]`, the diagonal the root's arcs, as in `Arborescence`;
            marginals are drawn darker and thicker the larger they are.
        words: n texts; numbers where there are none.
        ax: where to draw.
        other: another tree, such as the true one, drawn below the words.

    Raises:
        ValueError: no square matrix of one instance, or another number of words.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Arborescence
        >>> tree = Arborescence(3).encode(torch.tensor([1, -1, 1]))
        >>> ax = plot.arcs(tree, "she reads books".split())
        >>> [text.get_text() for text in ax.texts[:3]]
        ['she', 'reads', 'books']
    """
    weights = _square(tree, "tree")
    below = None if other is None else _square(other, "other")
    texts = named(words, len(weights), "words")
    places = _places(texts)
    width = min(14.0, 1.5 + 0.55 * (places[-1] - places[0]))
    ax_ = axes(ax, (width, 2.6 if below is None else 4.2))
    for place, text in zip(places, texts, strict=True):
        ax_.text(place, 0.0, text, ha="center", va="center", fontsize=11)
    tallest = _bows(ax_, weights, places, up=True)
    deepest = 0.6 if below is None else _bows(ax_, below, places, up=False)
    ax_.set_xlim(places[0] - 1.2, places[-1] + 1.2)
    ax_.set_ylim(-deepest - 0.3, tallest + 0.3)
    ax_.set_axis_off()
    return ax_


def _square(values: Any, name: str) -> np.ndarray:
    found = array(values, 2, name)
    if found.shape[0] != found.shape[1]:
        raise ValueError(f"{name} of shape {found.shape} must be square, [head, dependent].")
    return found


def _places(texts: list[str]) -> np.ndarray:
    """Where the words stand, as far apart as they are long."""
    wide = np.array([0.6 + 0.2 * len(text) for text in texts])
    return np.cumsum(wide) - wide / 2


def _bows(ax: Any, weights: np.ndarray, places: np.ndarray, up: bool) -> float:
    """The arcs, and how high the highest reaches."""
    sign = 1.0 if up else -1.0
    drawn = [(int(head), int(word)) for head, word in np.argwhere(weights > FAINT)]
    highest = max((_height(*arc) for arc in drawn), default=0.0)
    for head, word in drawn:
        weight = float(min(weights[head, word], 1.0))
        if head == word:
            _root(ax, float(places[word]), sign, sign * (highest + 0.5), weight)
        else:
            _bow(ax, float(places[head]), float(places[word]), sign, sign * _height(head, word), weight)
    return highest + 1.0


def _height(head: int, word: int) -> float:
    """The root's arcs stand above all others."""
    return FOOT + (0.25 + 0.5 * abs(head - word) ** 0.8 if head != word else 0.0)


def _look(weight: float) -> dict[str, Any]:
    return {
        "arrowstyle": "-|>",
        "color": BLACK,
        "alpha": 0.15 + 0.85 * weight,
        "linewidth": 0.4 + weight,
    }


def _bow(ax: Any, start: float, end: float, sign: float, height: float, weight: float) -> None:
    """A smooth arc from one word to another, ending in an arrow's head."""
    patches, path = library("matplotlib.patches"), library("matplotlib.path").Path
    tilt, foot = (0.12 if end > start else -0.12), sign * FOOT  # arcs of one word stay apart
    at = [(start + tilt, foot), (start + tilt, height), (end - tilt / 2, height), (end - tilt / 2, foot)]
    curve = path(at, [path.MOVETO, path.CURVE4, path.CURVE4, path.CURVE4])
    ax.add_patch(patches.FancyArrowPatch(path=curve, mutation_scale=9, fill=False, **_look(weight)))


def _root(ax: Any, place: float, sign: float, height: float, weight: float) -> None:
    arrow = {**_look(weight), "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (place, sign * FOOT), xytext=(place, height), arrowprops=arrow)
    ax.text(place, height, "root", ha="center", va="bottom" if sign > 0 else "top", fontsize=8)


def matching(
    weights: Any, ax: Axes | None = None, *, left: Any = None, right: Any = None, true: Any = None
) -> Axes:
    """A matching of two lists, a line a pair, thicker and darker the larger its part.

    Args:
        weights: `(n, m)`, a vertex or fractions.
        ax: where to draw.
        left: the rows' names.
        right: the columns' names.
        true: the true matching `(n, m)`: pairs that are not in it are dashed.

    Raises:
        ValueError: shapes that differ, a batch, or another number of names.

    Example:
        >>> import torch
        >>> from spigot import plot
        >>> from spigot.polytopes import Matching
        >>> ax = plot.matching(Matching(3, 3).project(torch.eye(3)), left="abc", right="xyz")
    """
    parts = array(weights, 2, "weights")
    right_pairs = parts > 0 if true is None else array(true, 2, "true") > 0.5
    if right_pairs.shape != parts.shape:
        raise ValueError(f"true of shape {right_pairs.shape} must have the weights' {parts.shape}.")
    tall = max(parts.shape) - 1.0
    rows, columns = (_spread(count, tall) for count in parts.shape)
    ax_ = axes(ax, (3.6, max(1.8, 0.6 + 0.34 * tall)))
    for row, column in np.argwhere(parts > FAINT):
        weight = float(min(parts[row, column], 1.0))
        style = "-" if right_pairs[row, column] else (0, (3, 2))
        look = {"alpha": 0.2 + 0.8 * weight, "linewidth": 0.5 + 2.0 * weight, "linestyle": style}
        ax_.plot([0, 1], [rows[row], columns[column]], color=BLUE, zorder=1, **look)
    _list(ax_, 0.0, rows, named(left, len(rows), "left"), "right")
    _list(ax_, 1.0, columns, named(right, len(columns), "right"), "left")
    ax_.set_xlim(-0.45, 1.45)
    ax_.set_axis_off()
    return ax_


def _spread(count: int, tall: float) -> np.ndarray:
    """Heights from 0 downward."""
    return np.arange(count) * (-tall / max(count - 1, 1))


def _list(ax: Any, x: float, heights: np.ndarray, texts: list[str], side: str) -> None:
    """One of the two lists, its names beside it."""
    ax.scatter(np.full(len(heights), x), heights, s=22, color=BLACK, zorder=2)
    for height, text in zip(heights, texts, strict=True):
        ax.text(x + (0.06 if x else -0.06), float(height), text, ha=side, va="center", fontsize=10)
