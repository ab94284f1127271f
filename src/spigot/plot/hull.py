"""A polytope of up to three dimensions, found by its argmax alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from spigot.polytopes import Polytope
from spigot.polytopes.arrays import contiguous, distinct, library

__all__ = ["Outline", "outline"]

FLAT = 1e-9  # a width that is none
MOST = 3


@dataclass(frozen=True)
class Outline:
    """The vertices, and coordinates in which distances are M's own."""

    origin: np.ndarray  # (d,)
    basis: np.ndarray  # (k, d), orthonormal rows that span M's directions
    vertices: np.ndarray  # (m, d)
    own: bool  # whether the coordinates are the parts themselves

    def place(self, points: np.ndarray) -> np.ndarray:  # (..., d) -> (..., k)
        """The points' coordinates: those of their orthogonal projection onto M's affine hull."""
        return (points - self.origin) @ self.basis.T

    def facets(self) -> list[np.ndarray]:
        """The numbers of each facet's vertices, in the order round it; a polygon is its own one."""
        at = self.place(self.vertices)
        if at.shape[1] < 3:
            return [_round(at)]
        found: Any = library("scipy.spatial").ConvexHull(at)
        _, sides = distinct(torch.as_tensor(found.equations).round(decimals=7))
        of = contiguous(sides)
        return [
            _facet(at, found.equations[of == side][0], np.unique(found.simplices[of == side]))
            for side in range(int(of.max()) + 1)
        ]


def _facet(at: np.ndarray, plane: np.ndarray, rows: np.ndarray) -> np.ndarray:
    across = np.linalg.svd(plane[None, :3])[2][1:]  # two directions within the facet
    return rows[_round(at[rows] @ across.T)]


def _round(at: np.ndarray) -> np.ndarray:
    """The order of points by their angle about the middle, in a plane or on a line."""
    x, y = (*(at - at.mean(0)).T, np.zeros(len(at)), np.zeros(len(at)))[:2]
    return np.argsort(np.arctan2(y, x), kind="stable")


def outline(polytope: Polytope) -> Outline:
    """The polytope's vertices and coordinates, by MAP alone.

    Directions in which M has a width are found first, then the outward normals of the hull of the
    vertices found so far are asked until none leads to a new one.

    Raises:
        ValueError: M has more than three dimensions.
    """
    known = polytope.scratch.get("outline")
    if known is None:
        known = polytope.scratch["outline"] = _outline(polytope)
    return known


def _outline(polytope: Polytope) -> Outline:
    d = int(np.prod(polytope.event_shape))
    generator = torch.Generator().manual_seed(0)
    vertices, basis = _best(polytope, np.zeros((1, d))), np.zeros((0, d))
    while len(basis) < d:
        direction = contiguous(torch.randn(d, generator=generator, dtype=torch.float64))
        direction -= basis.T @ (basis @ direction)
        ends = _best(polytope, np.stack([direction, -direction]))
        if (ends[0] - ends[1]) @ direction <= FLAT:
            break
        vertices = _distinct([*vertices, *ends])
        basis = _spanned(vertices)
        if len(basis) > MOST:
            raise ValueError(
                f"{polytope} has more than {MOST} dimensions and cannot be drawn. Draw a smaller one, "
                "or one structure's parts, as by spigot.plot.cells."
            )
    while len(basis):
        normals = _normals(vertices, basis)
        found = _best(polytope, normals @ basis)
        better = np.einsum("nd,nd->n", normals @ basis, found) > _reach(vertices, normals @ basis) + FLAT
        if not better.any():
            break
        vertices = _distinct([*vertices, *found[better]])
    own = len(basis) == d
    origin = np.zeros(d) if own else vertices[0]
    return Outline(origin, np.eye(d) if own else _spanned(vertices), vertices, own)


def _best(polytope: Polytope, scores: np.ndarray) -> np.ndarray:  # (n, d) -> (n, d)
    asked = torch.as_tensor(scores).reshape(-1, *polytope.event_shape)
    return contiguous(polytope.maximize(asked)).reshape(scores.shape)


def _distinct(points: list[np.ndarray]) -> np.ndarray:
    """Those that differ, the largest first: e_1, e_2, ... in this order."""
    return np.unique(np.round(np.stack(points), 9), axis=0)[::-1]


def _spanned(vertices: np.ndarray) -> np.ndarray:
    """Orthonormal directions from the first vertex towards the others, in their order."""
    basis: list[np.ndarray] = []
    for vertex in vertices[1:]:
        direction = vertex - vertices[0]
        for known in basis:
            direction = direction - (direction @ known) * known
        length = np.linalg.norm(direction)
        if length > 1e-7:
            basis.append(direction / length)
    return np.array(basis).reshape(len(basis), vertices.shape[1])


def _normals(vertices: np.ndarray, basis: np.ndarray) -> np.ndarray:  # (facets, k)
    """Outward normals of the hull's facets, in the basis."""
    if len(basis) == 1:
        return np.array([[1.0], [-1.0]])
    found: Any = library("scipy.spatial").ConvexHull(vertices @ basis.T)
    return found.equations[:, :-1]


def _reach(vertices: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return (normals @ vertices.T).max(1)
