"""Bregman problems by an oracle alone: fully-corrective Frank-Wolfe, Newton on the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np

from spigot.polytopes.arrays import contiguous
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import Regularizer, Separable
from spigot.polytopes.solvers.active_set import MixtureSolver, linear_oracle
from spigot.polytopes.solvers.curve import CURVED
from spigot.polytopes.solvers.mixture import SeparableMixtures

__all__ = ["FrankWolfe"]

Array = np.ndarray


@dataclass(frozen=True)
class FrankWolfe(MixtureSolver):
    """Any separable regularizer: a vertex a step, all weights corrected by Newton's method.

    It starts from vertices that together use every part some structure uses (and, for a domain
    that ends at 1, together leave out every part that some structure leaves out), so that a steep
    regularizer's gradient is finite at their mean.

    Parts below 1e-10 are right to 1e-10 and no further, and `Solution.gradient` there is that of
    1e-10: where log y matters beyond, declare `constraints`.

    Args:
        tolerance: on the certificate, relative to 1 + |<s, y>|. At the default the steps end by
            themselves, at rounding.
        max_steps: oracle calls an instance; the truncated answer lies in M and says its gap.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Shannon, Simplex
        >>> from spigot.polytopes.solvers import FrankWolfe
        >>> Simplex(3).maximize(torch.tensor([0.0, 1.0, 2.0]), Shannon(), solver=FrankWolfe())
        tensor([0.0900, 0.2447, 0.6652])

    References:
        Jaggi, "Revisiting Frank-Wolfe" (ICML 2013), algorithm 4.
    """

    name: ClassVar[str] = "fully-corrective Frank-Wolfe on the oracle"
    cost: ClassVar[str] = "one oracle call and a Newton solve a vertex"
    exact: ClassVar[bool] = False
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = CURVED
    native: ClassVar[frozenset[str]] = frozenset({"lengths"})  # as its oracle reads them
    plausible: ClassVar[float] = 1e-6

    def begin(self, problem: Problem) -> SeparableMixtures:
        """The vertices that the start leaves, and others until they reach inside the domain."""
        assert isinstance(problem.regularizer, Separable)
        scores = contiguous(problem.flat_scores)
        (n, d), every = scores.shape, np.arange(len(scores))
        known = None if problem.start is None else problem.start.recall(problem)
        vertices, weights = known or (np.zeros((n, 0, d)), np.zeros((n, 0)))
        # next to nothing is something here: a vertex may be the only one that uses a part
        weights = np.where(weights > 0, np.maximum(weights, LEAST), 0.0) * (weights > 0).sum(1)[:, None]
        cold = every[weights.sum(1) <= 0]
        if len(cold):
            best = linear_oracle(problem, scores[cold], cold)
            vertices, weights = _joined(vertices, weights, cold, best)
        free = np.ones((n, d), dtype=bool)
        for end in problem.regularizer.domain:
            if np.isfinite(end):
                vertices, weights, left = _cover(problem, vertices, weights, end)
                free &= left
        return SeparableMixtures(problem.regularizer, scores, free, vertices, weights)


LEAST = 1e-12


def _joined(vertices: Array, weights: Array, rows: Array, found: Array) -> tuple[Array, Array]:
    """One more vertex for some instances."""
    more, weight = np.zeros((len(vertices), 1, vertices.shape[2])), np.zeros((len(vertices), 1))
    more[rows, 0], weight[rows] = found, 1.0
    return np.concatenate([vertices, more], 1), np.concatenate([weights, weight], 1)


def _cover(
    problem: Problem, vertices: Array, weights: Array, end: float
) -> tuple[Array, Array, Array]:  # (n, m, d), (n, m), (n, d)
    """Adds vertices until each part has left this end of the domain, where any structure does."""
    low, _ = cast(Separable, problem.regularizer).domain
    sign = 1.0 if end == low else -1.0
    left: Array = np.asarray((_away(vertices, end) & (weights > 0)[..., None]).any(1))
    usable: Array = np.ones_like(left) if problem.flat_mask is None else contiguous(problem.flat_mask)
    rows: Array = np.flatnonzero((usable & ~left).any(1))
    while len(rows):
        wanted = usable[rows] & ~left[rows]
        found = linear_oracle(problem, sign * wanted, rows)
        fresh: Array = np.asarray((_away(found, end) & wanted).any(1))
        rows, found = rows[fresh], found[fresh]
        left[rows] |= _away(found, end)
        if len(rows):
            vertices, weights = _joined(vertices, weights, rows, found)
    return vertices, weights, left


def _away(points: Array, end: float) -> Array:
    return np.abs(points - end) > 1e-12
