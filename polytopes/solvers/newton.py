"""Separable regularizers over constraints, compiled: Newton's method on the rows' multipliers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, rows_where, tensor
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.dispatch import Road, Solver
from spigot.polytopes.faces import Face
from spigot.polytopes.families import batch_form, instances
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import (
    Euclidean,
    Regularizer,
    Separable,
)
from spigot.polytopes.solvers.batched_newton import BatchedNewton
from spigot.polytopes.solvers.clarabel import Clarabel
from spigot.polytopes.solvers.cone import Cvxpy
from spigot.polytopes.solvers.curve import CURVED, curve_of
from spigot.polytopes.solvers.forced import tightened
from spigot.polytopes.solvers.row_solver import RowSolver, known_rows
from spigot.polytopes.solvers.row_system import fits, ordered, row_system
from spigot.polytopes.solvers.rows import BindingFace, Rows, stacked_rows

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["Newton"]

ACCURATE = 1e-11  # of a row's error, relative to the terms of its sum
FEASIBLE = 1e-10  # of a row's error, relative to 1 + |its limit|
CERTIFIED = 1e-11  # of the certificate, relative to 1 + |<s, y>|
REFINED = 1e-9  # of a derivative's error


@dataclass(frozen=True)
class Newton(RowSolver):
    r"""A separable regularizer over {y : l <= (y, z) <= u, A (y, z) = b, G (y, z) <= h for some z}.

    A compiled loop an instance; z are auxiliary variables, if there are any.

    For multipliers v of the rows the maximiser is phi' inverted at s - R'v and clipped to the
    bounds. v minimises a convex dual, by a semismooth Newton method whose matrices R D R' share one
    order of elimination. For `Euclidean` an interior-point method on the same matrices takes over
    where peaked scores make it slow, and says which rows bind where multipliers are not unique;
    then a step onto these rows leaves rounding alone.

    With auxiliary variables, on which the objective does not depend, the interior point begins, for
    every regularizer, and Newton's method on the rows that bind ends: it takes the proximal point
    method's steps in z. What is not proven at the end goes to `Clarabel` or `Cvxpy`, one instance
    at a time.

    `start=` takes a `Solution` over the same set: Newton's method begins at its multipliers (an
    interior point, where auxiliary variables need one, begins anew).

    Args:
        max_steps: steps an instance, before the others take it.

    Raises:
        ValueError: max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import Newton
        >>> scores = torch.tensor([0.5, 0.25, -1.0])
        >>> Subset(3, 1).maximize(scores, Euclidean(), solver=Newton())
        tensor([0.6250, 0.3750, 0.0000])

    References:
        Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the projector
        over the Birkhoff polytope" (2020).
        Mehrotra, "On the implementation of a primal-dual interior point method" (1992).
        Pougkakiotis and Gondzio, "An interior point-proximal method of multipliers for convex
        quadratic programming" (2021).
    """

    max_steps: int = 300
    name: ClassVar[str] = "semismooth Newton on the rows' multipliers"
    cost: ClassVar[str] = "about 10 Cholesky factors of the rows' size"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = CURVED
    accelerated: ClassVar[type[Road] | None] = BatchedNewton

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """It takes rows that can be factored."""
        lack = super().lacks(polytope, regularizer)
        if lack:
            return lack
        form = known_rows(polytope)
        if form is not None and not fits(form):
            return f"{self.name} takes no dense rows by the thousand."
        return ""

    def solve(self, problem: Problem) -> Solution:
        """All instances, in slices over the threads."""
        local = problem.on_cpu()
        found = _found(local, self.max_steps)
        sure = found.proven & found.clear
        faces, duals = _faces(local, found), _duals(local, found)
        if not sure.all():
            faces = _backed_up(local, found, faces)
        shape = problem.scores.shape
        return Solution(
            tensor(found.value).reshape(shape),
            tensor(found.status),
            tensor(found.steps),
            gap=tensor(found.gap) if sure.all() and np.isfinite(found.gap).all() else None,
            objective=tensor(found.objective),
            gradient=tensor(found.gradient).reshape(shape),
            duals=duals,
            faces=faces,
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """One factorisation of the rows that bind, D at the parts between their bounds."""
        assert solution.faces is not None
        grads = contiguous(grad.double().flatten(1))
        value = contiguous(solution.value.double().flatten(1))
        pulled = _pulled(problem, cast("tuple[BindingFace, ...]", solution.faces), grads, value)
        return tensor(pulled).reshape(grad.shape).to(grad)


@dataclass(frozen=True, eq=False)
class _Found:
    """What a kernel says of a batch, n instances of d parts, m variables (parts first) and rows."""

    value: np.ndarray  # (n, d)
    gradient: np.ndarray  # (n, d), s - R'v clipped to the bounds' slopes
    beyond: np.ndarray  # (n, m), s - R'v less that
    multiplier: np.ndarray  # (n, rows)
    below: np.ndarray  # (n, m): which lower bounds bind
    above: np.ndarray  # (n, m): and upper ones
    tight: np.ndarray  # (n, rows)
    clear: np.ndarray  # (n,)
    steps: np.ndarray  # (n,)
    gap: np.ndarray  # (n,), infinite where an auxiliary variable's range is not known
    status: np.ndarray  # (n,)
    objective: np.ndarray  # (n,)

    @property
    def proven(self) -> np.ndarray:  # (n,)
        """Where Newton's method has converged."""
        return self.status == Status.CONVERGED


def _found(problem: Problem, max_steps: int) -> _Found:
    from spigot.polytopes.kernels.rows.row_lifted import project_lifted
    from spigot.polytopes.kernels.rows.row_newton import project

    form, regularizer = batch_form(problem), cast(Separable, problem.regularizer)
    scores, keep = contiguous(problem.flat_scores), _keep(problem)
    system, box = row_system(form), _box(form, regularizer, keep)
    (n, d), rows, m = scores.shape, len(system.low), form.variables
    value, slope, state = np.zeros((n, m)), np.zeros((n, m)), np.zeros((n, m), np.int8)
    multiplier, excess = _begin(problem, form, system.low), np.zeros((n, rows))
    tight, clear = np.zeros((n, rows), bool), np.zeros(n, bool)
    steps, error, objective = np.zeros(n, np.int64), np.zeros(n), np.zeros(n)
    over_instances(
        project if m == d else project_lifted,
        n,
        system,
        curve_of(regularizer),
        box,
        scores,
        keep,
        max_steps,
        value,
        slope,
        multiplier,
        excess,
        state,
        tight,
        clear,
        steps,
        error,
        objective,
    )
    endless = (box.lower[:, :d] >= box.upper[:, :d]) & ~np.isfinite(box.least)  # given where phi ends
    gradient = np.where(endless, slope[:, :d], np.clip(slope[:, :d], box.least, box.most))
    gradient = np.where(keep, gradient, 0.0) if len(keep) else gradient
    beyond = slope.copy()
    beyond[:, :d] -= gradient
    stray = _stray(box, beyond, state, d)
    gap = np.abs(multiplier * excess).sum(1) + stray.sum(1)
    broken = np.where(system.low < 0, np.abs(excess), np.maximum(excess, 0.0)) / (1 + np.abs(box.limit))
    outside = np.maximum(box.lower[:, d:] - value[:, d:], value[:, d:] - box.upper[:, d:])
    good = (
        (error <= ACCURATE)
        & (_rounding(multiplier) <= ACCURATE * (1 + np.abs(scores).max(1, initial=0.0)))
        & (np.maximum(broken.max(1, initial=0.0), outside.max(1, initial=0.0)) <= FEASIBLE)
        & (np.where(np.isfinite(gap), gap, 0.0) <= CERTIFIED * (1 + np.abs(_inner(scores, value))))
    )
    return _Found(
        value[:, :d],
        gradient,
        beyond,
        multiplier,
        *_ends(form, state, value),
        tight,
        clear,
        steps,
        gap,
        np.where(good, int(Status.CONVERGED), int(Status.INACCURATE)),
        objective,
    )


def _begin(problem: Problem, form: Canonical, low: np.ndarray) -> np.ndarray:  # (n, rows)
    """Multipliers to begin at: those of `start=`, where it has any, and 0."""
    known = None
    if problem.start is not None:
        one = form if form.b.ndim == 1 else form.instance(0)
        bounds = int(np.isfinite(one.lower).sum() + np.isfinite(one.upper).sum())
        known = problem.start.multipliers(problem, len(low) + bounds)
    if known is None:
        return np.zeros((problem.size, len(low)))
    return np.maximum(known[:, : len(low)], low)


def _rounding(multiplier: np.ndarray) -> np.ndarray:  # (n,)
    """What rounding alone may add to s - R'v: a proof by v is worth no more."""
    return 2.0**-52 * np.abs(multiplier).max(1, initial=0.0)


def _inner(scores: np.ndarray, value: np.ndarray) -> np.ndarray:  # (n,)
    return (scores * value[:, : scores.shape[1]]).sum(1)


def _stray(box: Any, beyond: np.ndarray, state: np.ndarray, d: int) -> np.ndarray:  # (n, m - d)
    """What is left of auxiliary variables' slopes where no bound answers for it, times their ranges."""
    from spigot.polytopes.kernels.rows.row_newton import BETWEEN, LOWER, UPPER

    slope, ends = beyond[:, d:], state[:, d:]
    wrong = np.where(ends == LOWER, np.maximum(slope, 0.0), np.abs(slope) * (ends == BETWEEN))
    wrong = np.where(ends == UPPER, np.maximum(-slope, 0.0), wrong)
    span = box.upper[:, d:] - box.lower[:, d:]
    return np.multiply(wrong, span, out=np.zeros_like(wrong), where=wrong > 0)


def _box(form: Canonical, regularizer: Separable, keep: np.ndarray) -> Any:
    """The limits, variables in order; parts' bounds within the regularizer's domain.

    Where phi is steep, parts that rows fix have equal bounds.
    """
    from spigot.polytopes.kernels.rows.row_newton import Box

    d, order = len(form.columns), ordered(form)
    limits = np.atleast_2d(np.concatenate([form.b, form.h], axis=-1))
    lower, upper = (np.atleast_2d(bound[..., order]) + 0.0 for bound in (form.lower, form.upper))
    for bound in (lower, upper):
        bound[:, :d] = bound[:, :d].clip(*regularizer.domain) + 0.0
    if regularizer.steep:
        lower, upper = _tightened(form, limits, lower, upper, keep)
    least, most = (
        regularizer.gradient(tensor(np.ascontiguousarray(bound[:, :d]))).numpy()
        for bound in (lower, upper)
    )
    return Box(*(np.ascontiguousarray(array) for array in (limits, lower, upper, least, most)))


def _tightened(
    form: Canonical, limits: np.ndarray, lower: np.ndarray, upper: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`tightened`, once a form where all instances have the same limits and no masks."""
    if len(keep):
        shut = np.zeros((len(keep), lower.shape[1]), dtype=bool)
        shut[:, : keep.shape[1]] = ~keep
        lower, upper = np.where(shut, 0.0, lower), np.where(shut, 0.0, upper)
    if len(keep) or form.b.ndim > 1:
        return tightened(row_system(form), limits, lower, upper)
    key = limits.tobytes() + lower.tobytes() + upper.tobytes()
    last, found = form.scratch.get("tightened", (b"", None))
    if found is None or last != key:
        found = tightened(row_system(form), limits, lower, upper)
        form.scratch["tightened"] = key, found
    return found


def _keep(problem: Problem) -> np.ndarray:  # (n, d), or no rows
    keep = problem.flat_keep
    return np.ones((0, 0), dtype=np.bool_) if keep is None else contiguous(keep)


def _rows(form: Canonical) -> Rows:
    """The stacked rows, made once for these matrices."""
    if "stacked rows" not in form.scratch:
        form.scratch["stacked rows"] = stacked_rows(form)
    return form.scratch["stacked rows"].at(form)


def _stacked(form: Canonical, on_rows: np.ndarray, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Values of rows `(n, rows)` and of variables' bounds `(n, m)` in the order of the stacked rows."""
    shape = (len(on_rows), form.variables)
    lower, upper = np.zeros(shape, below.dtype), np.zeros(shape, above.dtype)
    lower[:, ordered(form)], upper[:, ordered(form)] = below, above
    pieces = [on_rows, lower[:, np.isfinite(form.lower)], upper[:, np.isfinite(form.upper)]]
    return np.concatenate(pieces, axis=1)


def _faces(problem: Problem, found: _Found) -> tuple[Face, ...]:
    """The faces of what binds."""
    below, above = found.below, found.above
    if problem.keep is None and not problem.params:
        rows = _rows(problem.polytope.canonical)
        binding = _stacked(rows.form, found.tight, below, above)
        return tuple(BindingFace(rows, own) for own in binding)
    faces: list[Face] = []
    for i, kept, _, form in instances(problem):
        own, used = slice(i, i + 1), _used(kept, below.shape[1])
        binding = _stacked(form, found.tight[own], below[own, used], above[own, used])
        faces.append(BindingFace(_rows(form), binding[0]))
    return tuple(faces)


def _used(kept: np.ndarray, variables: int) -> np.ndarray:  # (m,)
    """The variables that are left where only some parts are."""
    return np.append(kept, np.ones(variables - len(kept), dtype=bool))


def _ends(form: Canonical, state: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which declared bounds the variables are held at: lower and upper ones, `(n, m)`."""
    from spigot.polytopes.kernels.rows.row_newton import GIVEN, LOWER, UPPER

    order, given = ordered(form), state == GIVEN
    below = (state == LOWER) | (given & (value <= form.lower[..., order]))
    return below, (state == UPPER) | (given & (value >= form.upper[..., order]))


def _duals(problem: Problem, found: _Found) -> Tensor | None:
    """The multipliers, where all instances have the same rows; NaN where they are not known.

    They are where the answer is proven and no rows give a part that none of its bounds holds.
    """
    if problem.keep is not None:
        return None
    form = batch_form(problem)
    form = form if form.b.ndim == 1 else form.instance(0)
    below, above = np.maximum(-found.beyond, 0.0), np.maximum(found.beyond, 0.0)
    free = ~(found.below | found.above)
    known = found.proven & ~((found.beyond != 0) & free)[:, : found.value.shape[1]].any(1)
    multipliers = _stacked(form, found.multiplier, below, above)
    return tensor(np.where(known[:, None], multipliers, np.nan))


def _backed_up(problem: Problem, found: _Found, faces: tuple[Face, ...]) -> tuple[Face, ...]:
    """Instances that are not proven from another solver; of those not clear the face alone."""
    solver: Solver = Clarabel() if isinstance(problem.regularizer, Euclidean) else Cvxpy()
    backed = list(faces)
    for row in rows_where(tensor(~(found.proven & found.clear))):
        answer = solver.solve(problem.take(torch.tensor([row])))
        assert answer.faces is not None and answer.gradient is not None
        assert answer.objective is not None
        converged = int(answer.status[0]) == Status.CONVERGED
        if found.proven[row]:
            if converged:
                backed[row] = answer.faces[0]
            continue
        backed[row] = answer.faces[0]
        found.value[row] = answer.value[0].flatten().numpy()
        found.gradient[row] = answer.gradient[0].flatten().numpy()
        found.objective[row] = float(answer.objective[0])
        found.steps[row] += int(answer.iterations[0])
        found.status[row] = int(answer.status[0])
    return tuple(backed)


def _pulled(
    problem: Problem, faces: tuple[BindingFace, ...], grads: np.ndarray, value: np.ndarray
) -> np.ndarray:
    """J grad for every instance; by dense algebra on the face where refinement does not settle."""
    from spigot.polytopes.kernels.rows.row_newton import pull

    regularizer = cast(Separable, problem.regularizer)
    system, keep = row_system(batch_form(problem)), _keep(problem)
    (n, d), rows, m = grads.shape, len(system.low), len(system.first) - 1
    inside, loose = np.zeros((n, m), dtype=bool), np.zeros((n, rows), dtype=bool)
    for own, form, binding in _by_rows(faces):
        kept = keep[own[0]] if len(keep) else np.ones(d, dtype=bool)  # of all these instances
        loose[own] = ~binding[:, :rows]
        inside[np.ix_(own, _used(kept, m))] = ~_bound(form, binding[:, rows:])
    pulled, error = np.zeros((n, d)), np.zeros(n)
    curve = curve_of(regularizer)
    over_instances(pull, n, system, curve, value, inside, loose, grads, pulled, error)
    for row in rows_where(tensor(error > REFINED)):
        kept = keep[row] if len(keep) else slice(None)
        spread = regularizer.spread(tensor(value[row])).clamp_min(0).numpy()
        pulled[row] = 0.0
        pulled[row, kept] = faces[row].pull(grads[row, kept], spread[kept])
    return pulled


def _by_rows(
    faces: tuple[BindingFace, ...],
) -> Iterator[tuple[np.ndarray, Canonical, np.ndarray]]:
    """Instances whose faces are of the same rows, these, and which bind."""
    groups: dict[int, list[int]] = {}
    for i, face in enumerate(faces):
        groups.setdefault(id(face.rows), []).append(i)
    for group in groups.values():
        yield (
            np.array(group),
            faces[group[0]].rows.form,
            np.stack([faces[i].binding for i in group]),
        )


def _bound(form: Canonical, binding: np.ndarray) -> np.ndarray:  # (n, m)
    """The variables that a bound holds, parts first."""
    low, high = np.isfinite(form.lower), np.isfinite(form.upper)
    held = np.zeros((len(binding), form.variables), dtype=bool)
    held[:, low] |= binding[:, : int(low.sum())]
    held[:, high] |= binding[:, int(low.sum()) :]
    return held[:, ordered(form)]
