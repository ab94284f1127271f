"""Axes to draw into, and the colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BLACK", "BLUE", "GREEN", "GREY", "ORANGE", "SHADES", "array", "axes", "named"]

# Of Okabe and Ito's palette, from dark to light: in print they remain apart.
BLACK, BLUE, ORANGE, GREEN, GREY = "#000000", "#0072b2", "#d55e00", "#009e73", "#999999"
SHADES = "Blues"  # white to dark blue: a scale of greys in print


def axes(ax: Axes | None, size: tuple[float, float], solid: bool = False) -> Any:
    """The axes handed over, or new ones, of three dimensions where `solid`.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: a solid needs axes of three dimensions.
    """
    if ax is not None:
        if solid and ax.name != "3d":
            raise ValueError(
                "this polytope has three dimensions: make ax by "
                'plt.figure().add_subplot(projection="3d"), or leave ax out.'
            )
        return ax
    try:
        pyplot = library("matplotlib.pyplot")
    except ImportError as error:
        raise ImportError("spigot.plot needs matplotlib: pip install spigot-layers[plot]") from error
    figure = pyplot.figure(figsize=size, layout="compressed")
    return figure.add_subplot(projection="3d" if solid else None)


def array(values: Any, dims: int, name: str) -> np.ndarray:
    """A tensor or an array of numbers of one instance, as float64.

    Raises:
        ValueError: another number of dimensions.
    """
    found = contiguous(values) if isinstance(values, Tensor) else np.asarray(values)
    if found.ndim != dims:
        raise ValueError(
            f"{name} must have {dims} dimension(s), one instance's; got shape {found.shape}. "
            "Pick an instance of a batch first, as in marginals[0]."
        )
    return found.astype(np.float64)


def named(labels: Any, count: int, name: str) -> list[str]:
    """One text each, the numbers where there are none.

    Raises:
        ValueError: another number of texts.
    """
    texts = [str(i) for i in range(count)] if labels is None else [str(label) for label in labels]
    if len(texts) != count:
        raise ValueError(f"{name} must be {count} texts, got {len(texts)}.")
    return texts
