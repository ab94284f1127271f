"""Separable regularizers over constraints on the scores' own device, a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.faces import BatchFace
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import (
    Euclidean,
    FermiDirac,
    Regularizer,
    Separable,
    Shannon,
    Tsallis,
)
from spigot.polytopes.solvers import dual_newton
from spigot.polytopes.solvers.device_rows import (
    DeviceRows,
    device_rows,
    fits_dense,
    violation,
)
from spigot.polytopes.solvers.dual_newton import Cases, Found
from spigot.polytopes.solvers.forced import tightened
from spigot.polytopes.solvers.row_solver import RowSolver, known_rows
from spigot.polytopes.solvers.row_system import row_system

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["BatchedNewton"]


@dataclass(frozen=True)
class Accuracy:
    """What proves an answer in a dtype."""

    accurate: float  # of a row's error, relative to the terms of its sum
    feasible: float  # of a row's error, relative to 1 + |its limit|
    certified: float  # of the certificate, relative to 1 + |<s, y>|
    refined: float  # of a derivative's error


ACCURACY = {
    torch.float64: Accuracy(1e-11, 1e-10, 1e-11, 1e-9),
    torch.float32: Accuracy(1e-5, 1e-4, 1e-4, 1e-4),
}


@dataclass(frozen=True)
class BatchedNewton(RowSolver):
    r"""A separable regularizer over {l <= y <= u, A y = b, G y <= h}, in torch, a batch at once.

    `Newton`'s method without its loops: the matrices R D R' of all instances are formed by one batched
    product and factored by one batched Cholesky, the lengths of a step are tried side by side, and
    instances that are done leave the batch. Everything stays on the scores' device and is done in
    float64 where it has it. Every few steps the host looks at which instances are left, and at the
    end at whether any is not proven: that one alone goes to `Newton` on the CPU, as does, in the
    backward, one whose exposed face is not clear (a multiplier and its slack both 0).

    It is the road of `Newton` where the scores are not on the CPU.

    Args:
        max_steps: Newton steps an instance, before `Newton` takes it.

    Raises:
        ValueError: max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import BatchedNewton
        >>> scores = torch.tensor([0.5, 0.25, -1.0])
        >>> Subset(3, 1).maximize(scores, Euclidean(), solver=BatchedNewton())
        tensor([0.6250, 0.3750, 0.0000])

    References:
        Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the projector
        over the Birkhoff polytope" (2020).
    """

    max_steps: int = 80
    name: ClassVar[str] = "semismooth Newton on the rows' multipliers, batched in torch"
    cost: ClassVar[str] = "about 20 batched Cholesky factors of the rows' size"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Euclidean, Shannon, FermiDirac, Tsallis)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """It takes rows without auxiliary variables, as dense matrices."""
        lack = super().lacks(polytope, regularizer)
        if lack:
            return lack
        form = known_rows(polytope)
        alone = form is None or form.variables == len(form.columns)
        if form is not None and not (alone and fits_dense(form)):
            return f"{self.name} takes no auxiliary variables, nor rows by the thousand."
        return ""

    def solve(self, problem: Problem) -> Solution:
        """All instances at once; what is not proven by `Newton`."""
        rows = device_rows(problem)
        cases = _cases(problem, rows)
        found = dual_newton.maximise(cases, self.max_steps)
        gap = (found.v * found.excess).abs().sum(1)
        proven, shape = _proven(cases, found, gap), problem.scores.shape
        omega = cases.regularizer
        endless = (cases.least >= cases.most) & ~cases.least.isfinite()  # given where phi ends
        gradient = torch.where(endless, found.x, found.x.clamp(cases.least, cases.most))
        gradient = torch.where(cases.live, gradient, 0.0)
        solution = Solution(
            found.y.reshape(shape),
            torch.where(proven, int(Status.CONVERGED), int(Status.INACCURATE)),
            found.steps,
            gap=gap,
            objective=(cases.scores * found.y).sum(1) - omega.total(found.y),
            gradient=gradient.reshape(shape),
            duals=None if problem.keep is not None else _duals(rows, found, gradient),
            face=BatchFace(found.rows, found.parts, found.clear & proven),
        )
        left = (~proven).nonzero()[:, 0]
        return solution if not len(left) else self._backed_up(problem, solution, left)

    def _backed_up(self, problem: Problem, solution: Solution, left: Tensor) -> Solution:
        """With the instances that are left as `Newton` has them."""
        from spigot.polytopes.base import certificate

        part = problem.take(left)
        answer = _on_cpu().solve(part)
        value, gap = answer.value.to(solution.value), answer.gap
        gap = certificate(part, value, answer.gradient) if gap is None else gap

        def put(whole: Tensor | None, own: Tensor | None) -> Tensor:
            assert whole is not None and own is not None
            return whole.index_copy(0, left, own.to(whole))

        return replace(
            solution,
            value=put(solution.value, value),
            status=put(solution.status, answer.status),
            iterations=solution.iterations.index_add(0, left, answer.iterations.to(left.device)),
            gap=put(solution.gap, gap),
            objective=put(solution.objective, answer.objective),
            gradient=put(solution.gradient, answer.gradient),
            duals=None,
        )

    def residual(self, problem: Problem, solution: Solution) -> Tensor:
        """By how much the answer breaks its rows and bounds."""
        return violation(device_rows(problem), solution.value)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """One batched factorisation of the rows that bind, D at the parts between their bounds."""
        face, rows = solution.face, device_rows(problem)
        assert face is not None
        pulled, error = _pull(problem, rows, solution, grad)
        unsure = ~face.sure | ~(error <= ACCURACY[rows.matrix.dtype].refined)
        found = pulled.reshape(grad.shape).to(grad)

        def again(part: Problem, answer: Solution, own: Tensor) -> Tensor:
            return _on_cpu().vjp(part, answer, grad[own].cpu())

        return _mended(problem, found, unsure, again)

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """Through the multipliers of the rows and bounds that bind."""
        rows, omega = device_rows(problem), cast(Separable, problem.regularizer)
        pulled, _ = _pull(problem, rows, solution, grad)
        spread = omega.spread(solution.value.flatten(1).to(rows.matrix))
        moves = spread > 0
        bent = grad.flatten(1).to(rows.matrix) - pulled / torch.where(moves, spread, 1.0)

        def again(part: Problem, answer: Solution, own: Tensor) -> dict[str, Tensor]:
            return _on_cpu().vjp_params(part, answer, grad[own].cpu())

        return _by_limits(problem, rows, solution, torch.where(moves, bent, torch.nan), again)

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """Likewise, of the slope s - grad Omega(y)."""
        rows = device_rows(problem)
        assert solution.gradient is not None
        slope = (problem.scores.to(rows.matrix) - solution.gradient.to(rows.matrix)).flatten(1)

        def again(part: Problem, answer: Solution, _own: Tensor) -> dict[str, Tensor]:
            return _on_cpu().envelope(part, answer)

        return _by_limits(problem, rows, solution, slope, again)


def _on_cpu() -> Solver:
    """What takes an instance that is not settled here."""
    from spigot.polytopes.solvers.newton import Newton

    return Newton()


def _cases(problem: Problem, rows: DeviceRows) -> Cases:
    omega = cast(Separable, problem.regularizer)
    lower, upper = (bound.clamp(*omega.domain) + 0.0 for bound in (rows.lower, rows.upper))
    if omega.steep and not problem.params:
        lower, upper = _tightened(problem, lower, upper)
    keep = problem.flat_keep
    live = torch.ones_like(rows.lower[:1], dtype=torch.bool) if keep is None else keep
    return Cases(
        omega,
        rows.matrix,
        rows.floor,
        rows.equations < rows.rows,
        problem.flat_scores.detach().to(rows.matrix),
        live,
        rows.limit,
        lower,
        upper,
        omega.gradient(lower),
        omega.gradient(upper),
    )


def _tightened(problem: Problem, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds that are equal at parts that the rows fix, found once a form."""
    form = problem.polytope.canonical
    key = ("tightened", lower.device, lower.dtype, type(problem.regularizer))
    if key not in form.scratch:
        limits = np.concatenate([form.b, form.h])[None]
        bounds = (bound.double().cpu().numpy() for bound in (lower, upper))
        form.scratch[key] = tuple(
            tensor(bound).to(lower) for bound in tightened(row_system(form), limits, *bounds)
        )
    return form.scratch[key]


def _proven(cases: Cases, found: Found, gap: Tensor) -> Tensor:  # (n,)
    level = ACCURACY[cases.scores.dtype]
    beyond = torch.where(cases.floor < 0, found.excess.abs(), found.excess.clamp_min(0))
    broken = beyond / (1 + cases.limit.abs())
    energy = (cases.scores * found.y).sum(1).abs()
    # what rounding alone may add to s - R'v
    noise = torch.finfo(found.v.dtype).eps * _largest(found.v)
    return (
        (found.error <= level.accurate)
        & (noise <= level.accurate * (1 + _largest(cases.scores)))
        & (broken <= level.feasible).all(1)
        & (gap <= level.certified * (1 + energy))
    )


def _largest(values: Tensor) -> Tensor:  # (n, m) -> (n,)
    return values.abs().amax(1) if values.shape[1] else values.new_zeros(len(values))


def _duals(rows: DeviceRows, found: Found, gradient: Tensor) -> Tensor:
    """The multipliers in the order of the canonical rows, then of the variables' finite bounds."""
    beyond = found.x - gradient
    below, above = (-beyond).clamp_min(0), beyond.clamp_min(0)
    return torch.cat([found.v, below[:, rows.bounded_below], above[:, rows.bounded_above]], 1)


def _pull(problem: Problem, rows: DeviceRows, solution: Solution, grad: Tensor) -> tuple[Tensor, Tensor]:
    assert solution.face is not None
    spread = cast(Separable, problem.regularizer).spread(solution.value.flatten(1).to(rows.matrix))
    inside = ~solution.face.parts
    inside = inside if problem.flat_keep is None else inside & problem.flat_keep
    weights = torch.where(inside, spread.clamp_min(0), 0.0)
    return dual_newton.pull(rows.matrix, weights, solution.face.rows, grad.flatten(1).to(rows.matrix))


def _mended(
    problem: Problem,
    found: Tensor,
    unsure: Tensor,
    again: Callable[[Problem, Solution, Tensor], Tensor],
) -> Tensor:
    """With the derivatives of instances whose faces are not known from the CPU."""
    own = unsure.nonzero()[:, 0]
    if not len(own):
        return found
    part = problem.take(own)
    return found.index_copy(0, own, again(part, _on_cpu().solve(part), own).to(found))


def _by_limits(
    problem: Problem,
    rows: DeviceRows,
    solution: Solution,
    wanted: Tensor,
    again: Callable[[Problem, Solution, Tensor], dict[str, Tensor]],
) -> dict[str, Tensor]:
    """The gradients by the floating parameters, through the multipliers that give `wanted` (n, d).

    A part whose `wanted` is NaN does not count.
    """
    face, keep = solution.face, problem.flat_keep
    assert face is not None and rows.map is not None and rows.theta is not None
    counts = torch.isfinite(wanted) if keep is None else torch.isfinite(wanted) & keep
    wanted, y = torch.where(counts, wanted, 0.0), solution.value.flatten(1).to(rows.matrix)
    low, high = (face.parts & (y == bound) for bound in (rows.lower, rows.upper))
    shares = (face.parts & counts) / (low.to(y) + high).clamp_min(1)
    v = dual_newton.least_multipliers(rows.matrix, face.rows, counts & ~face.parts, shares, wanted)
    left = shares * (wanted - v @ rows.matrix)
    flat = rows.map.pull(rows.theta, v, torch.where(low, left, 0.0), torch.where(high, left, 0.0))
    unsure = (~face.sure).nonzero()[:, 0]
    found = {
        name: values
        for name, values in rows.map.by_name(flat).items()
        if problem.params[name].is_floating_point()
    }
    if len(unsure):
        part = problem.take(unsure)
        for name, values in again(part, _on_cpu().solve(part), unsure).items():
            found[name] = found[name].index_copy(0, unsure, values.to(found[name]))
    return found
