"""Linear programs over constraints on the scores' own device, a whole batch at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import numbers, tensor
from spigot.polytopes.families import instances, nothing
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Regularizer
from spigot.polytopes.solvers.device_rows import DeviceRows, device_rows, fits_dense, violation
from spigot.polytopes.solvers.primal_dual import Corner, Programs, Scaling, corners, optimise, scaling
from spigot.polytopes.solvers.row_solver import RowSolver, known_rows
from spigot.polytopes.solvers.tie_rule import LARGEST, SNAP, TIE, generic_objective

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["PDHG", "ProvenPDHG"]

EXACT = {torch.float64: 1e-9, torch.float32: 1e-4}  # what rounding may leave of rows and duals
LEAST_TIE = {torch.float64: 1e-13, torch.float32: 1e-5}


@dataclass(frozen=True)
class PDHG(RowSolver):
    r"""MAP from constraints by a first-order method in torch, ended at a vertex that is proven.

    The primal-dual hybrid gradient method takes every instance to a relative error of `tolerance`
    (of rows, reduced costs and the duality gap); matrix products are all it needs, and the batch
    shares them. Then the constraints that bind are read off by complementarity, and one least-squares
    solution each moves the point and the multipliers onto them. Where that meets all optimality
    conditions to rounding, and the constraints with a multiplier leave a single point, this is the
    vertex that every exact method finds. Where they leave a face, `Highs`'s rule is followed: the
    method maximises the same fixed generic objective over that face, with the same end.

    An instance whose vertex is not proven so comes back with the status `INACCURATE`, the best point
    found and its gap (infinite where an unbounded variable keeps a reduced cost).

    Args:
        tolerance: of the first-order method. A looser one is quicker and proves fewer vertices.
        max_steps: its steps, for the scores and again for ties.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Subset
        >>> from spigot.polytopes.solvers import PDHG
        >>> Subset(4, 2).maximize(torch.tensor([0.5, 2.0, -1.0, 0.5]), solver=PDHG())
        tensor([0., 1., 0., 1.])

    References:
        Applegate, Diaz, Hinder, Lu, Lubin, O'Donoghue and Schudy, "Practical large-scale linear
        programming using primal-dual hybrid gradient" (NeurIPS 2021).
        Lu and Yang, "Restarted Halpern PDHG for linear programming" (2024).
    """

    tolerance: float = 1e-8
    max_steps: int = 50_000
    name: ClassVar[str] = "linear program (primal-dual hybrid gradient, batched in torch)"
    cost: ClassVar[str] = "some hundred products with the rows, and two Cholesky factors"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (None,)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """It takes rows that fit as a dense matrix."""
        lack = super().lacks(polytope, regularizer)
        form = None if lack else known_rows(polytope)
        if form is not None and not fits_dense(form):
            return f"{self.name} takes no rows by the thousand."
        return lack

    def solve(self, problem: Problem) -> Solution:
        """All instances at once, and once more those with ties."""
        rows = device_rows(problem)
        programs, scale, tie = _programs(problem, rows)
        generic = _generic(problem, rows)
        x, v, steps = optimise(programs, self.tolerance, self.max_steps)
        corner = corners(programs, x, v, generic, tie, EXACT[x.dtype])
        proven = corner.proven & (scale <= LARGEST)
        gap, open_ = programs.surplus(corner.x, corner.v)
        gap = torch.where(open_ <= EXACT[x.dtype], gap.clamp_min(0.0), torch.inf) * scale
        lost = ((programs.error(x, v) > self.tolerance) & ~proven).nonzero()[:, 0]
        if len(lost):
            _check_feasible(problem, lost)
        x = torch.where(proven[:, None], corner.x, x)
        ties = (proven & ~corner.single).nonzero()[:, 0]
        if len(ties):
            settled, more = self._settled(corner, generic, ties)
            x = x.index_copy(0, ties, torch.where(settled.single[:, None], settled.x, x[ties]))
            proven = proven.index_copy(0, ties, settled.single)
            steps = steps.index_add(0, ties, more)
        value = _snapped(x[:, : rows.parts])
        scores = problem.flat_scores
        return Solution(
            value.to(scores).reshape(problem.scores.shape),
            torch.where(proven, int(Status.CONVERGED), int(Status.INACCURATE)),
            steps,
            gap=gap,
            objective=(scores * value.to(scores)).sum(1),
        )

    def _settled(self, corner: Corner, generic: Tensor, ties: Tensor) -> tuple[Corner, Tensor]:
        """The best points of the generic objective on the optimal faces, and the steps taken."""
        cost = torch.zeros_like(corner.x)
        cost[:, : generic.shape[1]] = generic / 2
        face = replace(corner.face, cost=cost).take(ties)
        x, v, steps = optimise(face, self.tolerance, self.max_steps)
        exact, least = EXACT[x.dtype], LEAST_TIE[x.dtype]
        own = generic if len(generic) == 1 else generic[ties]
        found = corners(face, x, v, own, torch.full_like(cost[ties, :1], least), exact)
        return replace(found, single=found.single & found.proven), steps

    def residual(self, problem: Problem, solution: Solution) -> Tensor:
        """By how much the answer breaks its rows and bounds."""
        return violation(device_rows(problem), solution.value)


@dataclass(frozen=True)
class ProvenPDHG(PDHG):
    """`PDHG`, and `Highs` for an instance whose vertex is not proven: that one alone goes to the CPU.

    It is the road of `Highs` where the scores are not on the CPU.

    Args:
        tolerance: of the first-order method.
        max_steps: its steps, before `Highs` takes the instance.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Subset
        >>> from spigot.polytopes.solvers import ProvenPDHG
        >>> scores, hasty = torch.tensor([0.5, 2.0, -1.0, 0.5]), ProvenPDHG(max_steps=1)
        >>> bool(Subset(4, 2).solve(scores, solver=hasty).converged)  # by `Highs`
        True
    """

    max_steps: int = 5_000
    name: ClassVar[str] = "linear program (primal-dual hybrid gradient, HiGHS where not proven)"

    def solve(self, problem: Problem) -> Solution:
        """The proven vertices, and `Highs`'s."""
        from spigot.polytopes.solvers.highs import Highs

        found = super().solve(problem)
        left = (~found.converged).nonzero()[:, 0]
        if not len(left):
            return found
        answer = Highs().solve(problem.take(left))

        def put(whole: Tensor | None, own: Tensor | None) -> Tensor:
            assert whole is not None and own is not None
            return whole.index_copy(0, left, own.to(whole))

        return replace(
            found,
            value=put(found.value, answer.value),
            status=put(found.status, answer.status),
            iterations=found.iterations.index_add(0, left, answer.iterations.to(left)),
            gap=put(found.gap, answer.gap),
            objective=put(found.objective, answer.objective),
        )


def _programs(problem: Problem, rows: DeviceRows) -> tuple[Programs, Tensor, Tensor]:
    """The programs at scores of size 1, their size, and the reduced costs that count as 0."""
    scores = problem.flat_scores.detach().to(rows.matrix)
    largest = scores.abs().amax(1)
    scale = torch.where(largest > 0, largest, 1.0)
    cost = torch.zeros(len(scores), rows.matrix.shape[1], dtype=scores.dtype, device=scores.device)
    cost[:, : rows.parts] = scores / scale[:, None]
    lower, upper = rows.lower, rows.upper
    if problem.flat_keep is not None:
        used = torch.ones_like(cost, dtype=torch.bool)
        used[:, : rows.parts] = problem.flat_keep
        lower, upper = (torch.where(used, bound, 0.0) for bound in (lower, upper))
    inequality = torch.arange(rows.rows, device=scores.device)[None] >= rows.equations
    size = torch.where(scale < 1, 1.0, scale.clamp(max=1e7))  # as HiGHS has it
    tie = TIE * (1e-6 * size).clamp_min(1.0) / size
    programs = Programs(rows.matrix, _scaling(problem, rows), inequality, cost, rows.limit, lower, upper)
    return programs, scale, tie.clamp_min(LEAST_TIE[scores.dtype])[:, None]


def _scaling(problem: Problem, rows: DeviceRows) -> Scaling:
    """Made once for these matrices and this device."""
    kept, key = rows.scratch, ("pdhg", str(problem.scores.device))
    if key not in kept:
        kept[key] = scaling(rows.matrix)
    return kept[key]


def _generic(problem: Problem, rows: DeviceRows) -> Tensor:  # (1 or n, parts)
    """`Highs`'s generic objective: its numbers in order, over the parts that masks leave."""
    key = ("generic", str(problem.scores.device))
    if key not in rows.scratch:
        rows.scratch[key] = tensor(np.array(generic_objective(rows.parts))).to(rows.matrix)
    values: Tensor = rows.scratch[key]
    if problem.flat_keep is None:
        return values[None]
    place = problem.flat_keep.to(torch.int64).cumsum(1) - 1
    return torch.where(problem.flat_keep, values[place.clamp_min(0)], 0.0)


def _check_feasible(problem: Problem, rows: Tensor) -> None:
    """Raises where what the method did not solve has no solution."""
    from spigot.polytopes.solvers.highs import feasible

    part = problem.take(rows)
    for i, _, _, form in instances(part):
        if not feasible(form):
            raise nothing(problem, numbers(rows)[i])


def _snapped(value: Tensor) -> Tensor:
    nearest = value.round()
    return torch.where((value - nearest).abs() <= SNAP, nearest, value) + 0.0
