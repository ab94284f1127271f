"""The mixture of vertices that the active set holds for one instance of a quadratic problem."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.kernels.min_norm import correct, inner_products, mixed
from spigot.polytopes.regularizers import Euclidean, EuclideanOf

__all__ = ["CERTIFIED", "Mixture", "nearest"]

Array = np.ndarray
CERTIFIED = 1e-12  # a gap, relative to 1 + |<s, y>|
ROOM = 8  # vertices that there is room for at first


class Mixture:
    """Vertices with the weights that are best for |T y|^2 / 2 - <s, y>.

    A vertex matters by a = T v and c = <s, v> only: a correction works on their Gram matrix.
    """

    def __init__(
        self, regularizer: Euclidean | EuclideanOf, scores: Array, vertex: Array, event: tuple[int, ...]
    ) -> None:
        self.regularizer: Euclidean | EuclideanOf = regularizer
        self.scores: Array = scores
        self.event: tuple[int, ...] = event
        self.held: int = 0
        self.y: Array = vertex
        self._points = np.zeros((ROOM, self._image(vertex).size))
        self._vertices = self._points if self._plain else np.zeros((ROOM, vertex.size))
        self._gram = np.zeros((ROOM, ROOM))
        self._factor = np.zeros((ROOM, ROOM))
        self._costs, self._weights, self._move = np.zeros(ROOM), np.zeros(ROOM), np.zeros(ROOM)
        self._slots = np.arange(ROOM)
        self.add(vertex)
        self.correct()

    @property
    def _plain(self) -> bool:
        return isinstance(self.regularizer, Euclidean)

    def _image(self, vertex: Array) -> Array:
        if isinstance(self.regularizer, Euclidean):
            return vertex
        return contiguous(self.regularizer.of.apply(self._shaped(vertex)).flatten())

    def _shaped(self, flat: Array) -> Tensor:
        return tensor(flat).reshape(1, *self.event)

    @property
    def weights(self) -> Array:
        """The mixture's weights."""
        return self._weights[: self.held]

    @property
    def vertices(self) -> Array:
        """Its vertices, `(m, d)`."""
        return self._vertices[self._slots[: self.held]]

    def gradient(self) -> Array:
        """T'T y."""
        if self._plain:
            return self.y
        return contiguous(self.regularizer.gradient(self._shaped(self.y)).flatten())

    def slope(self) -> Array:
        """s - T'T y."""
        return self.scores - self.gradient()

    def gap(self, slope: Array, vertex: Array) -> float:
        """<slope, v - y>, the certificate where v is the best vertex at this slope."""
        return float(slope @ (vertex - self.y))

    def holds(self, vertex: Array) -> bool:
        """Whether the vertex is in the mixture already."""
        image = self._image(vertex)
        products = self._products(image)
        size = float(image @ image)
        held = self._slots[: self.held]
        distance = np.diagonal(self._gram)[: self.held] - 2 * products[held] + size
        near = held[distance <= 1e-9 * (1 + size)]
        return bool((np.abs(self._vertices[near] - vertex).max(1, initial=0) <= 1e-12).any())

    def add(self, vertex: Array) -> None:
        """A new vertex without weight yet."""
        if self.held == len(self._slots):
            self._grow()
        m, slot = self.held, self._slots[self.held]
        self._vertices[slot] = vertex
        image = self._points[slot] = self._image(vertex)
        products = self._products(image)[self._slots[: m + 1]]
        self._gram[m, : m + 1] = self._gram[: m + 1, m] = products
        self._costs[m] = self.scores @ vertex
        self._weights[m] = 0.0 if m else 1.0
        self.held = m + 1

    def correct(self) -> None:
        """The best weights on the vertices held; those that reach 0 leave."""
        self.held = correct(
            self.held,
            self._gram,
            self._costs,
            self._weights,
            self._slots,
            self._factor,
            self._move,
        )
        by_slot = np.zeros(len(self._slots))
        by_slot[self._slots[: self.held]] = self.weights
        self.y = np.empty(self._vertices.shape[1])
        mixed(self._vertices, by_slot, self.y)

    def _products(self, image: Array) -> Array:
        products = np.empty(len(self._points))
        inner_products(self._points, image, products)
        return products

    def _grow(self) -> None:
        room = len(self._slots)
        self._points = np.concatenate([self._points, np.zeros_like(self._points)])
        self._vertices = (
            self._points
            if self._plain
            else np.concatenate([self._vertices, np.zeros_like(self._vertices)])
        )
        for name in ("_gram", "_factor"):
            setattr(self, name, np.pad(getattr(self, name), (0, room)))
        for name in ("_costs", "_weights", "_move"):
            setattr(self, name, np.pad(getattr(self, name), (0, room)))
        self._slots = np.concatenate([self._slots, np.arange(room, 2 * room)])


def nearest(scores: Array, vertex_at: Callable[[Array], Array], steps: int) -> Array | None:
    """The projection of the scores `(d,)` onto the hull of an oracle's vertices; None if it stalls."""
    mixture = Mixture(Euclidean(), scores, vertex_at(scores), scores.shape)
    for _ in range(steps):
        slope = mixture.slope()
        vertex = vertex_at(slope)
        scale = 1 + abs(float(scores @ mixture.y))
        gap = mixture.gap(slope, vertex)
        if gap <= CERTIFIED * scale:
            return mixture.y
        if mixture.holds(vertex):
            return mixture.y if gap <= 1e3 * CERTIFIED * scale else None
        mixture.add(vertex)
        mixture.correct()
    return None
