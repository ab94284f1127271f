"""The mixtures of vertices that solvers hold for a batch, of quadratic and of separable problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.kernels.mixtures import corrections
from spigot.polytopes.kernels.mixtures.min_norm import (
    CONVERGED,
    CROWDED,
    GOING,
    advance,
    begin,
    settle,
)
from spigot.polytopes.kernels.mixtures.mixtures import Mixtures
from spigot.polytopes.kernels.mixtures.patience import Patience, full_patience
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.regularizers import Euclidean, EuclideanOf, Separable
from spigot.polytopes.solvers.curve import curve_of

__all__ = ["CERTIFIED", "Mixed", "QuadraticMixtures", "SeparableMixtures", "hold", "nearest", "roomier"]

Array = np.ndarray
CERTIFIED = 1e-12  # a gap, relative to 1 + |<s, y>|
ROOM = 8  # for vertices besides those given
PER_VERTEX = {"vertices": 1, "images": 1, "gram": 2, "costs": 1, "weights": 1, "factor": 2}


def hold(vertices: Array, images: Array, weights: Array, pull: Array) -> Mixtures:
    """Mixtures of these vertices `(n, m, d)`, those of weight 0 left out; the heaviest is the origin."""
    n, m, d = vertices.shape
    every, heaviest = np.arange(len(vertices)), weights.argmax(1)
    room = m + ROOM
    points = np.zeros((n, room, d))
    state = Mixtures(
        vertices=points,
        images=points if images is vertices else np.zeros((n, room, images.shape[2])),
        gram=np.zeros((n, room, room)),
        costs=np.zeros((n, room)),
        weights=np.zeros((n, room)),
        slots=np.zeros((n, room), dtype=np.int64),
        factor=np.zeros((n, room, room)),
        lift=np.zeros(n),
        held=np.zeros(n, dtype=np.int64),
        origin=vertices[every, heaviest],
        image=images[every, heaviest],
        pull=pull,
        parts=np.zeros((n, d), dtype=np.int64),
        moving=np.zeros((n, d), dtype=bool),
        used=np.zeros(n, dtype=np.int64),
    )
    over_instances(begin, n, vertices, images, weights, state)
    return state


def roomier(state: Mixtures) -> Mixtures:
    """With room for twice as many vertices each."""
    n, room = len(state.slots), int(state.slots.shape[1])
    grown: dict[str, Array] = {}
    for name, dims in PER_VERTEX.items():
        array: Array = getattr(state, name)
        shape = (n, *[2 * room] * dims, *array.shape[1 + dims :])
        grown[name] = np.zeros(shape)  # no memory until written to
        grown[name][tuple(slice(size) for size in array.shape)] = array
    if state.images is state.vertices:
        grown["images"] = grown["vertices"]
    slots = np.concatenate([state.slots, np.arange(room, 2 * room)[None].repeat(n, 0)], 1)
    return state._replace(slots=slots, **grown)


class Mixed:
    """The mixtures of a batch, for the outer loop.

    Attributes:
        state: their vertices and weights.
        y: the points that they make, `(n, d)`.
        gaps: their latest certificates, `(n,)`.
    """

    state: Mixtures
    y: Array
    gaps: Array

    def gradient(self) -> Array:
        """grad Omega(y), `(n, d)`."""
        raise NotImplementedError

    def slopes(self, rows: Array) -> Array:
        """s - grad Omega(y) of some instances."""
        raise NotImplementedError

    def advance(
        self,
        rows: Array,
        slopes: Array,
        best: Array,
        tolerance: float,
        plausible: float,
        more: bool,
        verdicts: Array,
    ) -> None:
        """The best vertices at the slopes join, where the gap asks for it; see the kernels.

        Instances without room for one more get it, and are asked again.
        """
        asked = np.arange(len(rows))
        while len(asked):
            kernel, *given = self._kernel(rows[asked], slopes[asked], best[asked])
            limits = tolerance, plausible, more
            over_instances(kernel, len(asked), *given, *limits, self.state, self.y, self.gaps, verdicts)
            asked = asked[verdicts[rows[asked]] == CROWDED]
            if len(asked):
                self.state = roomier(self.state)

    def _kernel(self, rows: Array, slopes: Array, best: Array) -> tuple[Any, ...]:
        """The kernel of a step, and what it is told first."""
        raise NotImplementedError

    def mixture(self, i: int) -> tuple[Array, Array]:
        """The vertices `(m, d)` and the weights `(m,)` of one instance."""
        held = self.state.held[i]
        return self.state.vertices[i, self.state.slots[i, :held]], self.state.weights[i, :held]


class QuadraticMixtures(Mixed):
    """The best mixtures of the vertices found so far, for |T y|^2 / 2 - <s, y>.

    Args:
        regularizer: with T, or `Euclidean`.
        scores: `(n, d)`.
        event: the shape of the d parts.
        vertices: to begin with, `(n, m, d)`.
        weights: theirs, `(n, m)`; 0 where a vertex is not to be used.
    """

    def __init__(
        self,
        regularizer: Euclidean | EuclideanOf,
        scores: Array,
        event: tuple[int, ...],
        vertices: Array,
        weights: Array,
    ) -> None:
        self.regularizer: Euclidean | EuclideanOf = regularizer
        self.scores: Array = scores
        self.event: tuple[int, ...] = event
        n, m, d = vertices.shape
        images = self._images(vertices.reshape(n * m, d))
        images = vertices if self._plain else images.reshape(n, m, images.shape[1])
        heaviest = vertices[np.arange(n), weights.argmax(1)]
        self.state: Mixtures = hold(vertices, images, weights, scores - self._gradient(heaviest))
        self.y: Array = np.empty((n, d))
        self.gaps: Array = np.zeros(n)
        self.patience: Patience = full_patience(n)
        over_instances(settle, n, self.state, self.y)

    @property
    def _plain(self) -> bool:
        return isinstance(self.regularizer, Euclidean)

    def _images(self, vertices: Array) -> Array:  # (n, d) -> (n, p)
        if isinstance(self.regularizer, Euclidean):
            return vertices
        return contiguous(self.regularizer.of.apply(self._shaped(vertices)).flatten(1))

    def _gradient(self, y: Array) -> Array:  # (n, d)
        if self._plain:
            return y
        return contiguous(self.regularizer.gradient(self._shaped(y)).flatten(1))

    def _shaped(self, flat: Array) -> Tensor:
        return tensor(flat).reshape(len(flat), *self.event)

    def gradient(self) -> Array:
        """T'T y, `(n, d)`."""
        return self._gradient(self.y)

    def slopes(self, rows: Array) -> Array:
        """s - T'T y of some instances."""
        return self.scores[rows] - self._gradient(self.y[rows])

    def _kernel(self, rows: Array, slopes: Array, best: Array) -> tuple[Any, ...]:
        return advance, rows, self.scores, slopes, best, self._images(best), self.patience


class SeparableMixtures(Mixed):
    """The best mixtures of the vertices found so far, for sum phi(y) - <s, y>.

    Args:
        regularizer: phi.
        scores: `(n, d)`.
        free: the parts that are not the same in every structure, `(n, d)`; the others have no say.
        vertices: to begin with, `(n, m, d)`.
        weights: theirs, `(n, m)`; 0 where a vertex is not to be used.
    """

    def __init__(
        self, regularizer: Separable, scores: Array, free: Array, vertices: Array, weights: Array
    ) -> None:
        n, d = scores.shape
        low, high = regularizer.domain
        self.goal: corrections.Goal = corrections.Goal(
            curve_of(regularizer),
            low,
            high,
            scores,
            free,
            exact=np.zeros(n, dtype=bool),
            idle=np.zeros(n, dtype=np.int64),
            patience=full_patience(n),
        )
        self.state: Mixtures = hold(vertices, vertices, weights, np.zeros((n, d)))
        self.y: Array = np.empty((n, d))
        self.gaps: Array = np.zeros(n)
        over_instances(corrections.settle, n, self.goal, self.state, self.y)

    def gradient(self) -> Array:
        """phi'(y), `(n, d)`; for a steep phi at the nearest point that is 1e-10 inside its domain."""
        return self._gradient(np.arange(len(self.y)))

    def slopes(self, rows: Array) -> Array:
        """s - phi'(y) of some instances; 0 at parts that are the same in every structure."""
        free, scores = self.goal.free[rows], self.goal.scores[rows]
        return np.where(free, scores - np.where(free, self._gradient(rows), 0.0), 0.0)

    def _gradient(self, rows: Array) -> Array:
        out = np.empty((len(rows), self.y.shape[1]))
        over_instances(corrections.gradients, len(rows), rows, self.goal, self.y, out)
        return out

    def _kernel(self, rows: Array, slopes: Array, best: Array) -> tuple[Any, ...]:
        return corrections.advance, rows, self.goal, slopes, best


def nearest(scores: Array, vertex_at: Callable[[Array], Array], steps: int) -> Array | None:
    """The projection of the scores `(d,)` onto the hull of an oracle's vertices; None if it stalls."""
    first = vertex_at(scores)[None, None]
    mixtures = QuadraticMixtures(Euclidean(), scores[None], scores.shape, first, np.ones((1, 1)))
    row, verdicts = np.zeros(1, dtype=np.int64), np.full(1, GOING)
    for _ in range(steps):
        slopes = mixtures.slopes(row)
        best = vertex_at(slopes[0])[None]
        mixtures.advance(row, slopes, best, CERTIFIED, 1e3 * CERTIFIED, True, verdicts)
        if verdicts[0] == CONVERGED:
            return mixtures.y[0]
        if verdicts[0] < GOING:
            return None
    return None
