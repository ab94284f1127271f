"""Sums over dependency trees, and samples of them: from a `Problem` to the compiled kernels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.trees.arborescence import best_trees
from spigot.polytopes.kernels.trees.k_arborescences import best_k_trees
from spigot.polytopes.kernels.trees.laplacian_inverse import (
    inverse_derivatives,
    inverse_marginals,
    log_totals,
)
from spigot.polytopes.kernels.trees.log_matrix_tree import log_marginals
from spigot.polytopes.kernels.trees.matrix_tree import linear_derivatives, linear_marginals
from spigot.polytopes.kernels.trees.wilson import sample_trees
from spigot.polytopes.problem import Problem, Solution

__all__ = ["Arcs", "arcs_of", "best", "derivative", "k_best", "log_partition", "marginals", "sample"]

WALK = 10_000  # steps that Wilson's algorithm may always take


class Arcs(NamedTuple):
    """What every kernel reads."""

    scores: np.ndarray  # (N, n, n), -inf at excluded arcs
    lengths: np.ndarray  # (N,)
    single_root: bool


def arcs_of(problem: Problem, single_root: bool, checked: bool = True) -> Arcs:
    """The kernels' arguments; with `checked`, each instance has a tree.

    Raises:
        NoStructure: the masks leave an instance without a tree.
    """
    scores = problem.scores.detach()
    if problem.keep is not None:
        scores = scores.masked_fill(~problem.keep, -torch.inf)
    n, size = scores.shape[:2]
    lengths = np.full(n, size) if problem.lengths is None else contiguous(problem.lengths)
    arcs = Arcs(contiguous(scores), lengths, single_root)
    if checked and problem.keep is not None:
        best(problem, arcs)
    return arcs


def best(problem: Problem, arcs: Arcs) -> Solution:
    """The best trees.

    Raises:
        NoStructure: the masks leave an instance without a tree.
    """
    out, value = np.zeros_like(arcs.scores), np.empty(len(arcs.scores))
    over_instances(best_trees, len(out), *arcs, out, value)
    if problem.keep is not None and (value == -np.inf).any():
        raise problem.no_structure(np.flatnonzero(value == -np.inf).tolist())
    return Solution.closed_form(tensor(out), tensor(value))


def marginals(arcs: Arcs) -> tuple[Tensor, Tensor]:  # (N, n, n), (N,)
    """Marginals and log Z: by an inverse where it suffices, without a subtraction elsewhere."""
    out, total = np.zeros_like(arcs.scores), np.full(len(arcs.scores), np.nan)
    if not arcs.single_root:
        over_instances(inverse_marginals, len(out), arcs.scores, arcs.lengths, out, total)
    _without_subtraction(arcs, out, total)
    return tensor(out), tensor(total)


def log_partition(arcs: Arcs) -> Tensor:  # (N,)
    """log Z alone."""
    total = np.full(len(arcs.scores), np.nan)
    if not arcs.single_root:
        over_instances(log_totals, len(total), arcs.scores, arcs.lengths, total)
    if np.isnan(total).any():
        _without_subtraction(arcs, np.zeros_like(arcs.scores), total)
    return tensor(total)


def _without_subtraction(arcs: Arcs, out: np.ndarray, total: np.ndarray) -> None:
    """The rows whose log Z is NaN: in plain numbers where they suffice, in logarithms elsewhere."""
    left = np.flatnonzero(np.isnan(total))
    if len(left):
        over_instances(linear_marginals, len(left), left, *arcs, out, total)
        left = left[np.isnan(total[left])]
    if len(left):
        _in_logs(left, arcs, np.zeros_like(out), out, np.empty_like(out), total)


def derivative(arcs: Arcs, direction: Tensor) -> Tensor:  # (N, n, n)
    """The marginals' derivative along a direction of their own dtype."""
    along = contiguous(direction)
    out, fits = np.zeros_like(arcs.scores), np.zeros(len(arcs.scores), dtype=bool)
    if not arcs.single_root:
        over_instances(inverse_derivatives, len(out), arcs.scores, along, arcs.lengths, out, fits)
    left = np.flatnonzero(~fits)
    if len(left):
        over_instances(linear_derivatives, len(left), left, arcs.scores, along, *arcs[1:], out, fits)
        left = left[~fits[left]]
    if len(left):
        _in_logs(left, arcs, along, np.empty_like(out), out, np.empty(len(out)))
    return tensor(out)


def _in_logs(
    rows: np.ndarray,
    arcs: Arcs,
    along: np.ndarray,
    out: np.ndarray,
    slope: np.ndarray,
    log_total: np.ndarray,
) -> None:
    over_instances(log_marginals, len(rows), rows, arcs.scores, along, *arcs[1:], out, slope, log_total)


def sample(arcs: Arcs, count: int, generator: torch.Generator | None) -> Tensor:  # (count, N, n, n)
    """Exact samples; one seed a sample comes from torch."""
    device = "cpu" if generator is None else generator.device
    limit = torch.iinfo(torch.int64)
    seeds = torch.randint(
        limit.min, limit.max, (count, len(arcs.scores)), generator=generator, device=device
    )
    roots = np.zeros((len(arcs.scores), 0))
    if arcs.single_root:
        roots = contiguous(marginals(arcs)[0].diagonal(dim1=1, dim2=2).double())
    out = np.zeros((count, *arcs.scores.shape), dtype=arcs.scores.dtype)
    drawn = contiguous(seeds).view(np.uint64)
    over_instances(sample_trees, len(arcs.scores), *arcs, roots, drawn, WALK, out)
    return tensor(out)


def k_best(problem: Problem, arcs: Arcs, k: int) -> Tensor:  # (k, N, n, n)
    """The k best trees, best first.

    Raises:
        ValueError: an instance has fewer than k trees.
    """
    out = np.zeros((k, *arcs.scores.shape), dtype=arcs.scores.dtype)
    found = np.zeros(len(arcs.scores), dtype=np.int64)
    over_instances(best_k_trees, len(found), *arcs, out, found)
    problem.check_enough(k, tensor(found))
    return tensor(out)
