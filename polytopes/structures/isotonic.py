"""Projections onto permutahedra by pooling: the kernels as functions of tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import isotonic
from spigot.polytopes.kernels.sets.sorting import rank

__all__ = ["Sorted", "log_projection", "place", "project", "project_logs", "pull", "sort"]


@dataclass(frozen=True, eq=False)
class Sorted:
    """Rows and their entries by descending value: `index` `(n, d)` up to `counts` `(n,)`, then zeros."""

    rows: Tensor
    index: np.ndarray
    counts: np.ndarray

    @cached_property
    def values(self) -> np.ndarray:  # (n, d), float64
        """The entries in that order."""
        return contiguous(self.rows.detach().cpu().double().gather(1, tensor(self.index)))

    def scattered(self, by_position: Tensor) -> Tensor:  # (m, d) -> (m, d)
        """Back where the entries came from; one row may be in order for all m."""
        index = tensor(self.index).expand(by_position.shape)
        return torch.zeros_like(by_position).scatter_add_(1, index, by_position)


def sort(rows: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None) -> Sorted:
    """The first `lengths` entries of each row, those of the mask alone, the first of equals first."""
    n, d = rows.shape
    index, counts = np.zeros((n, d), np.int64), np.zeros(n, np.int64)
    kept = np.zeros((0, d), bool) if mask is None else contiguous(mask)
    sizes = np.full(n, d) if lengths is None else contiguous(lengths)
    over_instances(rank, n, contiguous(rows), kept, sizes, index, counts)
    return Sorted(rows, index, counts)


def place(scores: Sorted, weights: Sorted) -> Tensor:  # (n, d)
    """The largest weight where the score is largest, and so on; zero elsewhere."""
    y = np.zeros(scores.rows.shape, contiguous(scores.rows[:0]).dtype)
    over_instances(isotonic.place, len(y), scores.index, scores.counts, weights.values, y)
    return tensor(y)


def project(scores: Sorted, weights: Sorted) -> tuple[Tensor, Tensor, Tensor]:  # (n, d) twice, (n,)
    """The projection y onto P(weights), s - y, exact where y is rounded, and <s, y> - |y|^2 / 2."""
    rows = contiguous(scores.rows)
    y, duals, objective = np.zeros_like(rows), np.zeros(rows.shape), np.zeros(len(rows))
    given = rows, scores.index, scores.counts, weights.values
    over_instances(isotonic.euclidean, len(y), *given, y, duals, objective)
    return tensor(y), tensor(duals), tensor(objective)


def project_logs(scores: Sorted, logs: np.ndarray) -> tuple[Tensor, Tensor]:  # (n, d) each
    """log y of the KL projection of exp(s) onto P(exp(logs)), and s - log y; -inf and 0 elsewhere.

    `logs` `(n, d)` or `(1, d)` are sorted, -inf allowed.
    """
    rows = contiguous(scores.rows)
    found, duals = np.full(rows.shape, -np.inf), np.zeros(rows.shape)
    sizes = scores.index, scores.counts
    over_instances(isotonic.entropic, len(rows), rows, *sizes, logs, found, duals)
    return tensor(found), tensor(duals)


def pull(
    duals: Sorted, weights: Sorted, grad: Tensor, energies: Tensor | None
) -> tuple[Tensor, Tensor]:  # (n, d) each
    """grad less its mean over each face of equal duals, and by position that mean.

    The mean is weighted by exp(energies). On a face that is a point the first is zero.
    """
    grads = contiguous(grad.double())
    tilt = grads[:0] if energies is None else contiguous(energies)
    centred, mean = np.zeros_like(grads), np.zeros_like(grads)
    over_instances(
        isotonic.pull,
        len(grads),
        contiguous(duals.rows),
        duals.index,
        duals.counts,
        weights.values,
        tilt,
        tie_tolerance(grad.dtype),
        grads,
        centred,
        mean,
    )
    return tensor(centred), tensor(mean)


def log_projection(scores: Tensor, weights: Tensor, lengths: Tensor | None = None) -> Tensor:
    """log of the KL projection of exp(scores) onto P(exp(weights)), all `(n, d)`, 0 in the padding.

    Differentiable in both, and right where the exponentials leave the floating-point range.

    References:
        Blondel, Teboul, Berthet and Djolonga, "Fast differentiable sorting and ranking" (ICML 2020),
        equation 6 and proposition 3.
    """
    value: Tensor = cast(Any, _LogProjection).apply(scores, weights, lengths)
    return value


class _LogProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, weights: Tensor, lengths: Tensor | None) -> Tensor:
        ctx.lengths = None if lengths is None else lengths.cpu()
        order, ctx.weights = sort(scores, ctx.lengths), sort(weights, ctx.lengths)
        logs, ctx.duals = project_logs(order, ctx.weights.values)
        ctx.save_for_backward(scores)
        return logs.masked_fill(logs.isneginf(), 0.0).to(scores)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        (scores,) = ctx.saved_tensors
        grad = contiguous(grads[0].double())
        duals = sort(ctx.duals, ctx.lengths)
        by_scores, by_weights = np.zeros_like(grad), np.zeros_like(grad)
        over_instances(
            isotonic.pull_logs,
            len(grad),
            contiguous(duals.rows),
            duals.index,
            duals.counts,
            ctx.weights.values,
            contiguous(scores),
            tie_tolerance(scores.dtype),
            grad,
            by_scores,
            by_weights,
        )
        moved = ctx.weights.scattered(tensor(by_weights))
        return tensor(by_scores).to(scores), moved.to(scores), None
