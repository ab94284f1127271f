r"""The exposed face of an answer, from an oracle: its support, completed.

A support may span less than the face (at equal, zero or symmetric scores). With r = s - phi'(y)
and c a generic direction orthogonal to what is spanned so far, a face larger than the span makes
the best vertex at r + e c or at r - e c leave the span, for small e: two calls prove completeness.
"""

from __future__ import annotations

import numpy as np

from spigot.polytopes.arrays import tensor
from spigot.polytopes.dispatch import choose
from spigot.polytopes.faces import Face, Span
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.solvers.highs import generic_objective

__all__ = ["exposed_faces"]

NUDGE = 1e-6  # of the generic direction, relative to the largest slope
ZERO_GAP = 1e-8  # relative: a vertex this close to optimal lies on the face


class _Growing:
    """An orthonormal basis of one face's directions."""

    def __init__(self, point: np.ndarray, vertices: np.ndarray) -> None:
        self.point = point
        self.basis = np.zeros((0, len(point)))
        for vertex in vertices:
            self.add(vertex)

    def residual(self, vector: np.ndarray) -> np.ndarray:
        """Orthogonal to the basis, twice for accuracy."""
        for _ in range(2):
            vector = vector - self.basis.T @ (self.basis @ vector)
        return vector

    def add(self, vertex: np.ndarray) -> bool:
        """Whether the vertex brought a new direction."""
        direction = vertex - self.point
        rest = self.residual(direction)
        size = np.linalg.norm(rest)
        if size <= 1e-7 * (1 + np.linalg.norm(direction)):
            return False
        self.basis = np.vstack([self.basis, rest / size])
        return True


def exposed_faces(problem: Problem, solution: Solution) -> tuple[Face, ...]:
    """One face an instance, over the parts that `keep` leaves; the problem is on the CPU."""
    assert solution.support is not None and solution.weights is not None
    assert solution.gradient is not None
    n, d = problem.flat_scores.shape
    y = solution.value.double().flatten(1).numpy()
    gradient = solution.gradient.double().flatten(1).numpy()
    slopes = problem.flat_scores.numpy() - gradient
    slopes = np.where(np.isfinite(slopes), slopes, 0.0)
    support = solution.support.double().flatten(2).numpy()
    held = solution.weights.numpy() > 0
    growing = [_Growing(y[i], _on_face(support[i][held[i]], y[i], slopes[i])) for i in range(n)]
    generic = generic_objective(d) - 1.5
    rows = np.arange(n)
    for _ in range(d + 1):
        rows = _grow(problem, growing, y, slopes, generic, rows)
        if not len(rows):
            break
    keep = problem.flat_keep
    kept = np.ones((n, d), dtype=bool) if keep is None else keep.numpy()
    return tuple(Span(growing[i].basis[:, kept[i]]) for i in range(n))


def _on_face(support: np.ndarray, y: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """The vertices held that are optimal (a steep regularizer holds others, of next to no weight)."""
    return support[slope @ y - support @ slope <= ZERO_GAP * (1 + np.abs(slope).max())]


def _grow(
    problem: Problem,
    growing: list[_Growing],
    y: np.ndarray,
    slopes: np.ndarray,
    generic: np.ndarray,
    rows: np.ndarray,
) -> np.ndarray:
    """Two oracle calls an instance; the instances whose face grew."""
    nudges = np.stack([growing[int(i)].residual(generic) for i in rows])
    scale = 1 + np.abs(slopes[rows]).max(1)
    grew = np.zeros(len(rows), dtype=bool)
    road = choose(problem.polytope, None)
    part = problem.take(tensor(rows))
    for sign in (1.0, -1.0):
        scores = slopes[rows] + sign * NUDGE * scale[:, None] * nudges
        best = road.solve(part.linear(tensor(scores))).value.flatten(1).double().numpy()
        for k, i in enumerate(int(row) for row in rows):
            gap = slopes[i] @ (y[i] - best[k])
            if gap <= ZERO_GAP * scale[k]:
                grew[k] |= growing[i].add(best[k])
    return rows[grew]
