"""The directions of faces, spanned by the differences of vertices that a mixture holds.

The part of g along them is sum u_k a_k with sum u = 0, from the vertices' Gram factor, so no basis
is formed. It is found twice: the second time takes out what rounding left of the first.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.mixtures.gram_factor import balanced
from spigot.polytopes.kernels.mixtures.mixtures import Mixtures, join, meet

__all__ = ["across", "along", "extend"]


@kernel
def _take_out(i: int, state: Mixtures, rest: np.ndarray, workspace: np.ndarray) -> None:
    """Leaves of `rest` what is orthogonal to the directions."""
    held, slots, base = state.held[i], state.slots[i], state.origin[i]
    parts = state.parts[i, : state.used[i]]
    shares = workspace[0]
    for _ in range(2):
        for k in range(held):
            vertex = state.vertices[i, slots[k]]
            total = 0.0
            for j in parts:
                total += (vertex[j] - base[j]) * rest[j]
            shares[k] = total
        balanced(state.factor[i], held, shares, workspace[1])
        for k in range(held):
            vertex = state.vertices[i, slots[k]]
            for j in parts:
                rest[j] -= shares[k] * (vertex[j] - base[j])


@kernel
def across(
    first: int, last: int, rows: np.ndarray, vector: np.ndarray, state: Mixtures, out: np.ndarray
) -> None:
    """The part of one vector `(d,)` that is orthogonal to the directions of some instances."""
    workspace = np.empty((2, state.slots.shape[1]))
    for r in range(first, last):
        out[r] = vector
        _take_out(rows[r], state, out[r], workspace)


@kernel
def along(first: int, last: int, vectors: np.ndarray, state: Mixtures, out: np.ndarray) -> None:
    """The part of each vector `(n, d)` along the directions of its instance."""
    workspace = np.empty((2, state.slots.shape[1]))
    rest = np.empty(vectors.shape[1])
    for i in range(first, last):
        rest[:] = vectors[i]
        _take_out(i, state, rest, workspace)
        for j in range(len(rest)):
            out[i, j] = 0.0
        for j in state.parts[i, : state.used[i]]:
            out[i, j] = vectors[i, j] - rest[j]


@kernel
def extend(
    first: int,
    last: int,
    rows: np.ndarray,  # (r,), the instances
    slopes: np.ndarray,  # (n, d)
    y: np.ndarray,  # (n, d)
    best: np.ndarray,  # (r, d)
    gap: np.ndarray,  # (n,), how far below y a vertex on the face may seem to be
    state: Mixtures,
    grew: np.ndarray,  # (r,), bool
) -> None:
    """Vertices that lie on the face join; `grew` where they bring a new direction."""
    row = np.empty(state.slots.shape[1])
    for r in range(first, last):
        i = rows[r]
        below = 0.0
        for j in range(y.shape[1]):
            below += slopes[i, j] * (y[i, j] - best[r, j])
        if below <= gap[i] and meet(i, best[r], best[r], state) and join(i, 0.0, state, row):
            grew[r] = True
