r"""The exposed face of an answer, from an oracle: its support, completed.

A support may span less than the face (at equal, zero or symmetric scores). With r = s - phi'(y)
and c a generic direction orthogonal to what is spanned so far, a face larger than the span makes
the best vertex at r + e c or at r - e c leave the span, for small e: two calls prove completeness.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.dispatch import choose
from spigot.polytopes.faces import Face, Span
from spigot.polytopes.kernels.mixtures.corrections import pull
from spigot.polytopes.kernels.mixtures.directions import across, along, extend
from spigot.polytopes.kernels.mixtures.mixtures import Mixtures
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Separable
from spigot.polytopes.solvers.mixture import hold, roomier
from spigot.polytopes.solvers.tie_rule import generic_objective

__all__ = ["ExposedFaces", "exposed_faces"]

NUDGE = 1e-6  # of the generic direction, relative to the largest slope
LEAST = 1e-12  # a weight that counts
ZERO_GAP = 1e-8  # relative: a vertex this close to optimal lies on the face


class ExposedFaces:
    """The faces where <s - phi'(y), .> is largest, one an instance, by vertices that span them."""

    def __init__(self, problem: Problem, solution: Solution) -> None:
        """The problem is on the CPU."""
        assert solution.support is not None and solution.weights is not None
        assert solution.gradient is not None
        self._y = contiguous(solution.value.double().flatten(1))
        slopes = problem.flat_scores.numpy() - contiguous(solution.gradient.double().flatten(1))
        self._slopes = np.where(np.isfinite(slopes), slopes, 0.0)
        self._scale = 1 + np.abs(self._slopes).max(1)
        vertices = contiguous(solution.support.double().flatten(2))
        weights = contiguous(solution.weights.double())
        doubt = _doubt(problem, solution)
        self._allowance: np.ndarray = ZERO_GAP * self._scale + 10 * doubt
        self._nudge: np.ndarray = NUDGE * self._scale + doubt
        # a steep regularizer holds vertices that are not optimal, of next to no weight
        below = np.einsum("nd,nd->n", self._slopes, self._y)[:, None] - np.einsum(
            "nd,nmd->nm", self._slopes, vertices
        )
        held = (below <= self._allowance[:, None]) & (weights > 0)
        optimal = np.where(held, np.maximum(weights, LEAST), 0.0)
        self.state: Mixtures = hold(vertices, vertices, optimal, np.zeros_like(self._y))
        self._complete(problem)

    def _complete(self, problem: Problem) -> None:
        """Two oracle calls an instance, again and again where they bring a new direction."""
        d = self._y.shape[1]
        generic = generic_objective(d) - 1.5
        road = choose(problem.polytope, None)
        rows = np.arange(len(self._y))
        while len(rows):
            while self.state.held.max() + 2 >= self.state.slots.shape[1]:
                self.state = roomier(self.state)
            nudges = np.empty((len(rows), d))
            over_instances(across, len(rows), rows, generic, self.state, nudges)
            nudges *= self._nudge[rows, None]
            part = problem.take(tensor(rows))
            grew = np.zeros(len(rows), dtype=bool)
            for sign in (1.0, -1.0):
                linear = part.linear(tensor(self._slopes[rows] + sign * nudges))
                best = contiguous(road.solve(linear).value.flatten(1).double())
                over_instances(
                    extend,
                    len(rows),
                    rows,
                    self._slopes,
                    self._y,
                    best,
                    self._allowance,
                    self.state,
                    grew,
                )
            rows = rows[grew]

    def along(self, grad: np.ndarray) -> np.ndarray:  # (n, d)
        """The part of each vector along its face: the Euclidean derivative."""
        out = np.empty_like(grad)
        over_instances(along, len(grad), grad, self.state, out)
        return out

    def curved(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:  # (n, d)
        """U (U' H U)^-1 U' grad, U spanning the directions, H = 1 / spread: phi's derivative."""
        out = np.empty_like(grad)
        over_instances(pull, len(grad), spread, grad, self.state, out)
        return out

    def directions(self, i: int) -> np.ndarray:  # (r, d)
        """An orthonormal basis of one face's directions."""
        slots = self.state.slots[i, : self.state.held[i]]
        apart = self.state.vertices[i, slots] - self.state.origin[i]
        return np.linalg.qr((apart[1:] - apart[0]).T)[0].T


def _doubt(problem: Problem, solution: Solution) -> np.ndarray:  # (n,)
    """The root of the gap, to which a steep regularizer's slopes are right; 0 for the others.

    (A steep one's face holds every vertex of parts that do not vanish, so none is wrong there.)
    """
    assert solution.gap is not None
    steep = isinstance(problem.regularizer, Separable) and problem.regularizer.steep
    gap = contiguous(solution.gap.double())
    return np.sqrt(np.maximum(gap, 0.0)) if steep else np.zeros_like(gap)


def exposed_faces(problem: Problem, solution: Solution) -> tuple[Face, ...]:
    """One face an instance, over the parts that `keep` leaves; the problem is on the CPU."""
    faces = ExposedFaces(problem, solution)
    keep = problem.flat_keep
    kept = np.ones(problem.flat_scores.shape, dtype=bool) if keep is None else keep.numpy()
    return tuple(Span(faces.directions(i)[:, kept[i]]) for i in range(problem.size))
