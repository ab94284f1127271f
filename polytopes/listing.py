"""The declared vertices, checked once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spigot.polytopes.arrays import distinct, first_part

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["distinct_vertices", "listed_vertices"]


def listed_vertices(polytope: Polytope) -> Tensor:  # (m, *event), float64
    """What `vertices()` returns, as declared.

    Raises:
        TypeError: it is no tensor.
        ValueError: its shape is not `(m, *event)` with m >= 1, or a number is not finite.
    """
    points = polytope.vertices()
    if not isinstance(points, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{polytope}.vertices() must return a torch.Tensor, got {type(points).__name__}."
        )
    if tuple(points.shape[1:]) != polytope.event_shape or not points.dim() or not len(points):
        raise ValueError(
            f"{polytope}.vertices() returned shape {tuple(points.shape)}; it must list at least one "
            f"structure as (m, *event) with the event shape {polytope.event_shape}."
        )
    bad = ~torch.isfinite(points.double())
    if bool(bad.any()):
        raise ValueError(
            f"{polytope}.vertices() holds NaN or inf, first in structure {first_part(bad)[0]}."
        )
    return points.detach().double()


def distinct_vertices(polytope: Polytope) -> Tensor:  # (m, d)
    """The declared vertices, duplicates dropped, in their own order."""
    known: Tensor | None = polytope.scratch.get("distinct vertices")
    if known is None:
        points = listed_vertices(polytope).flatten(1)
        groups = distinct(points)[1]
        first = torch.full((int(groups.max()) + 1,), len(points)).to(groups)
        first.scatter_reduce_(0, groups, torch.arange(len(points)).to(groups), "amin")
        known = polytope.scratch["distinct vertices"] = points[first.sort().values]
    return known
