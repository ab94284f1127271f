"""Matrices with given row and column sums: what matchings and transport plans share.

M = {y >= 0 : row sums = (or <=) a, column sums = (or <=) b}.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.bipartite import bipartite_face, bipartite_newton, sinkhorn
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, Shannon

__all__ = ["Best", "BestVertex", "Bipartite", "Sums", "masks", "posed"]


@dataclass(frozen=True, eq=False)
class Sums:
    """A batch of problems as arrays: scores in float64, masks, sizes, and the sums asked for."""

    scores: np.ndarray  # (n, N, M)
    keep: np.ndarray  # (n, N, M), or (1, 1, 1) where nothing is masked
    masked: bool
    sizes: np.ndarray  # (n, 2)
    row_mass: np.ndarray  # (n, N)
    column_mass: np.ndarray  # (n, M)
    row_exact: np.ndarray  # (n,): whether rows sum to their mass or to less
    column_exact: np.ndarray  # (n,)

    @property
    def problem(self) -> tuple[np.ndarray | bool, ...]:
        """What every kernel reads first."""
        return self.scores, self.keep, self.masked, self.sizes

    @property
    def masses(self) -> tuple[np.ndarray, ...]:
        """What kernels for general sums read next."""
        return self.row_mass, self.column_mass, self.row_exact, self.column_exact

    def take(self, rows: np.ndarray) -> Sums:
        """These instances."""
        keep = self.keep[rows] if self.masked else self.keep
        masses = (part[rows] for part in self.masses)
        return Sums(self.scores[rows], keep, self.masked, self.sizes[rows], *masses)


@dataclass(frozen=True, eq=False)
class Best:
    """Best vertices, with prices s_ij <= row_i + column_j that prove it; `found` where there is one."""

    vertices: Callable[[], Tensor]  # (n, N, M)
    row_price: np.ndarray  # (n, N)
    column_price: np.ndarray  # (n, M)
    found: np.ndarray  # (n,)

    @cached_property
    def value(self) -> Tensor:
        """The vertices, made when first asked for: projections want the prices alone."""
        return self.vertices()


class Bipartite(Polytope, abstract=True):
    """{y >= 0 : row sums = (or <=) a, column sums = (or <=) b}, (N, M) matrices."""

    def sums(self, problem: Problem) -> Sums:
        """The problem's arrays."""
        raise NotImplementedError

    def best(self, sums: Sums, dtype: torch.dtype) -> Best:
        """A best vertex of each instance, always the same one, and its prices.

        Args:
            sums: the problem's arrays.
            dtype: of the vertices.
        """
        raise NotImplementedError


def masks(problem: Problem) -> tuple[np.ndarray, bool, np.ndarray]:
    """`keep`, whether it counts, and `sizes`."""
    n, rows, columns = problem.scores.shape
    keep = np.ones((1, 1, 1), dtype=np.bool_) if problem.keep is None else contiguous(problem.keep)
    if problem.lengths is None:
        return keep, problem.keep is not None, np.full((n, 2), (rows, columns), dtype=np.int64)
    return keep, problem.keep is not None, contiguous(problem.lengths)


def posed(problem: Problem) -> tuple[Sums, Best]:
    """The arrays and a best vertex.

    Raises:
        NoStructure: `keep` leaves nothing, naming the instances.
    """
    assert isinstance(problem.polytope, Bipartite)
    sums = problem.polytope.sums(problem)
    best = problem.polytope.best(sums, problem.scores.dtype)
    if not best.found.all():
        raise problem.no_structure(rows_where(tensor(~best.found)))
    return sums, best


def _written(sums: Sums) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Room for the value, the objective, the steps and the error of each instance."""
    n = len(sums.scores)
    return np.zeros_like(sums.scores), np.zeros(n), np.zeros(n, dtype=np.int64), np.zeros(n)


def _solution(
    sums: Sums, value: np.ndarray, objective: np.ndarray, steps: np.ndarray, error: np.ndarray
) -> Solution:
    """The kernel's answer; sums that are off by more than rounding are no convergence."""
    largest = np.maximum(sums.row_mass.max(1), sums.column_mass.max(1))
    failed = tensor(error > TOLERANCE * largest)
    status = torch.where(failed, int(Status.INACCURATE), int(Status.CONVERGED))
    return Solution(tensor(value), status, tensor(steps), objective=tensor(objective))


TOLERANCE = 1e-10  # of row and column sums, relative to the largest mass


class BestVertex(Road):
    """A vertex of largest score."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})

    def solve(self, problem: Problem) -> Solution:
        """Vertices."""
        _, best = posed(problem)
        return Solution.closed_form(best.value, (problem.scores * best.value).flatten(1).sum(1))


class BipartiteRoad(Road):
    """Two vectors of multipliers, kept in `Solution.duals` side by side."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})

    def pulled(self, problem: Problem, answer: Solution, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives by scores, by row masses and by column masses."""
        raise NotImplementedError

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """By the scores."""
        return self.pulled(problem, solution, grad)[0]

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """By the masses."""
        _, row, column = self.pulled(problem, solution, grad)
        return {"row": row, "column": column}

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """The multipliers."""
        row, column = _multipliers(problem, solution)
        return {"row": row, "column": column}


def _multipliers(problem: Problem, solution: Solution) -> tuple[Tensor, Tensor]:
    assert solution.duals is not None
    rows = problem.scores.shape[1]
    return solution.duals[:, :rows].contiguous(), solution.duals[:, rows:].contiguous()


@rule(Bipartite, Euclidean)
class BipartiteProjection(BipartiteRoad):
    """y = (s - u - v)+ with multipliers u of the rows and v of the columns."""

    name = "semismooth Newton on the row and column multipliers"
    cost = "about 10 Cholesky factors of the smaller side's size"

    def solve(self, problem: Problem) -> Solution:
        """From the best vertex's prices."""
        sums, best = posed(problem)
        prices, written = (best.row_price, best.column_price), _written(sums)
        project = bipartite_newton.project
        over_instances(project, len(sums.scores), *sums.problem, *sums.masses, *prices, *written)
        found = _solution(sums, *written)
        duals = tensor(np.concatenate(prices, axis=1))
        return replace(found, gradient=found.value, duals=duals)

    def pulled(self, problem: Problem, answer: Solution, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projection onto the exposed face."""
        assert isinstance(problem.polytope, Bipartite)
        sums = problem.polytope.sums(problem)
        found = np.zeros_like(sums.scores), np.zeros_like(sums.row_mass), np.zeros_like(sums.column_mass)
        over_instances(
            bipartite_face.pull,
            len(sums.scores),
            *sums.problem,
            *sums.masses,
            *(contiguous(part) for part in _multipliers(problem, answer)),
            tie_tolerance(torch.float64),
            contiguous(grad.double()),
            *found,
        )
        value, row, column = (tensor(part) for part in found)
        return value, row, column


@rule(Bipartite, Shannon)
class BipartiteEntropy(BipartiteRoad):
    """y = exp(s - 1 - u - v) with multipliers u of the rows and v of the columns."""

    name = "Sinkhorn's sweeps and Newton steps on the row and column multipliers"
    cost = "a few sweeps; 10 to 30 Cholesky factors of the smaller side's size at peaked scores"

    def solve(self, problem: Problem) -> Solution:
        """From prices that leave no large logarithm."""
        sums, prices = _levelled(problem)
        (value, *rest), gradient = _written(sums), np.zeros_like(sums.scores)
        written = value, gradient, *rest
        scale = sinkhorn.scale
        over_instances(scale, len(sums.scores), *sums.problem, *sums.masses, *prices, *written)
        found = _solution(sums, value, *rest)
        duals = tensor(np.concatenate(prices, axis=1))
        return replace(found, gradient=tensor(gradient), duals=duals)

    def pulled(self, problem: Problem, answer: Solution, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projection in the metric 1 / y onto matrices whose bound sums are zero."""
        assert isinstance(problem.polytope, Bipartite)
        sums = problem.polytope.sums(problem)
        found = np.zeros_like(sums.scores), np.zeros_like(sums.row_mass), np.zeros_like(sums.column_mass)
        over_instances(
            sinkhorn.pull,
            len(sums.scores),
            contiguous(answer.value.double()),
            sums.sizes,
            *sums.masses,
            *(contiguous(part) for part in _multipliers(problem, answer)),
            tie_tolerance(torch.float64),
            contiguous(grad.double()),
            *found,
        )
        value, row, column = (tensor(part) for part in found)
        return value, row, column


def _levelled(problem: Problem) -> tuple[Sums, tuple[np.ndarray, np.ndarray]]:
    """The arrays, and starting prices: largest scores, or a best vertex's prices.

    Where nothing is masked every entry is used by some point.
    """
    assert isinstance(problem.polytope, Bipartite)
    sums = problem.polytope.sums(problem)
    n = len(sums.scores)
    row, column = np.zeros_like(sums.row_mass), np.zeros_like(sums.column_mass)
    steep = np.ones(n, dtype=np.bool_)
    if not sums.masked:
        exact = sums.row_exact, sums.column_exact
        over_instances(sinkhorn.level, n, sums.scores, sums.sizes, *exact, row, column, steep)
    if steep.any():
        best = problem.polytope.best(sums.take(steep), problem.scores.dtype)
        if not best.found.all():
            raise problem.no_structure(rows_where(tensor(~best.found)))
        row[steep], column[steep] = best.row_price, best.column_price
        sums = _usable(sums, best)
    return sums, (row, column)


def _usable(sums: Sums, best: Best) -> Sums:
    """Without the entries that are 0 all over M: no multiplier would make them so."""
    if not sums.masked:
        return sums
    n = len(sums.scores)
    keep = sums.keep.copy()
    value = contiguous(best.value.double())
    over_instances(bipartite_face.usable, n, keep, sums.sizes, *sums.masses, value)
    return replace(sums, keep=keep, masked=True)
