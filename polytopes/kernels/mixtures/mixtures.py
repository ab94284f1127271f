"""The mixtures of vertices that a batch of problems hold, as arrays.

A vertex v matters to a quadratic |T y|^2 / 2 - <s, y> by a = T (v - origin), the origin being a
vertex: then sets far from 0 lose no digits. Everything about a vertex is at its *slot*; `slots`
lists those in use first, and only `weights` and `factor` are in that order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.mixtures.gram_factor import append, remove

__all__ = ["Mixtures", "clear", "drop", "join", "meet", "mix", "refactor"]

SAME = 1e-12  # vertices that differ by less are one


class Mixtures(NamedTuple):
    """n instances, each with room for m vertices of d parts whose images have p."""

    vertices: np.ndarray  # (n, m, d)
    images: np.ndarray  # (n, m, p), T v; the same memory where T is the identity
    gram: np.ndarray  # (n, m, m), <a_k, a_l>
    costs: np.ndarray  # (n, m), <slope at the origin, v_k - origin>
    weights: np.ndarray  # (n, m)
    slots: np.ndarray  # (n, m)
    factor: np.ndarray  # (n, m, m), of gram + lift
    lift: np.ndarray  # (n,)
    held: np.ndarray  # (n,)
    origin: np.ndarray  # (n, d)
    image: np.ndarray  # (n, p), of the origin
    pull: np.ndarray  # (n, d), the slope at the origin
    parts: np.ndarray  # (n, d), those where some vertex has differed from the origin, first
    moving: np.ndarray  # (n, d), bool: the same
    used: np.ndarray  # (n,), how many those are


@kernel
def clear(i: int, state: Mixtures) -> None:
    """No vertex."""
    state.held[i], state.used[i] = 0, 0
    for k in range(state.slots.shape[1]):
        state.slots[i, k] = k


@kernel
def meet(i: int, vertex: np.ndarray, image: np.ndarray, state: Mixtures) -> bool:
    """Writes a vertex to the first free slot, without weight yet; whether it is new."""
    held, slot = state.held[i], state.slots[i, state.held[i]]
    gram, base = state.gram[i], state.image[i]
    away = np.flatnonzero(image != base)
    size = 0.0
    for j in away:
        size += (image[j] - base[j]) ** 2
    for k in range(held):
        other = state.slots[i, k]
        total = 0.0
        for j in away:
            total += (state.images[i, other, j] - base[j]) * (image[j] - base[j])
        gram[slot, other], gram[other, slot] = total, total
        near = gram[other, other] - 2 * total + size <= 1e-9 * (gram[other, other] + size)
        if near and np.abs(state.vertices[i, other] - vertex).max() <= SAME:
            return False
    gram[slot, slot] = size
    cost = 0.0
    for j in range(len(vertex)):
        shift = vertex[j] - state.origin[i, j]
        state.vertices[i, slot, j] = vertex[j]
        if shift != 0.0:
            cost += state.pull[i, j] * shift
            if not state.moving[i, j]:
                state.moving[i, j] = True
                state.parts[i, state.used[i]] = j
                state.used[i] += 1
    for j in range(len(image)):
        state.images[i, slot, j] = image[j]
    state.costs[i, slot] = cost
    return True


@kernel
def join(i: int, weight: float, state: Mixtures, row: np.ndarray) -> bool:
    """The vertex just met joins the factor; False where it is affinely dependent on the others.

    `row` is then the way that it depends on them, in L.
    """
    held, slots = state.held[i], state.slots[i]
    slot = slots[held]
    if held == 1:  # nothing but this pair depends on the lift yet
        only = state.gram[i, slots[0], slots[0]]
        larger = max(only, state.gram[i, slot, slot])
        state.lift[i] = larger if larger > 0.0 else 1.0
        state.factor[i, 0, 0] = np.sqrt(only + state.lift[i])
    elif held == 0:
        state.lift[i] = 1.0
    for k in range(held + 1):
        row[k] = state.gram[i, slot, slots[k]] + state.lift[i]
    if not append(state.factor[i], held, row):
        return False
    state.weights[i, held] = weight
    state.held[i] = held + 1
    return True


@kernel
def drop(i: int, gone: int, state: Mixtures) -> None:
    """The vertex in that place leaves; the slots after those held keep their order."""
    held, slots, weights = state.held[i], state.slots[i], state.weights[i]
    remove(state.factor[i], held, gone)
    slot = slots[gone]
    for k in range(gone, held - 1):
        slots[k], weights[k] = slots[k + 1], weights[k + 1]
    slots[held - 1] = slot
    state.held[i] = held - 1


@kernel
def refactor(i: int, state: Mixtures, row: np.ndarray) -> None:
    """The factor from its points, where rounding has worn it; vertices that it cannot take leave."""
    count = state.held[i]
    slots, weights = state.slots[i, :count].copy(), state.weights[i, :count].copy()
    state.held[i] = 0
    left = count
    for k in range(count):
        state.slots[i, state.held[i]] = slots[k]
        if not join(i, weights[k], state, row):
            left -= 1
            state.slots[i, left] = slots[k]


@kernel
def mix(i: int, state: Mixtures, y: np.ndarray) -> None:
    """The mixture: the origin but for the parts where vertices differ from it."""
    for j in range(len(y)):
        y[j] = state.origin[i, j]
    parts = state.parts[i, : state.used[i]]
    for j in parts:
        y[j] = 0.0
    for k in range(state.held[i]):
        vertex, weight = state.vertices[i, state.slots[i, k]], state.weights[i, k]
        for j in parts:
            y[j] += weight * vertex[j]
