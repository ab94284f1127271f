"""Any convex regularizer over constraints or vertices: a cone program through cvxpy."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import library, tensor
from spigot.polytopes.canonical import Canonical, per_thread, vertex_form
from spigot.polytopes.faces import Face, Hyperplanes, pull_through_faces
from spigot.polytopes.families import instances, nothing
from spigot.polytopes.listing import distinct_vertices
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Convex, EuclideanOf, Regularizer, Separable
from spigot.polytopes.solvers.highs import feasible
from spigot.polytopes.solvers.row_solver import RowSolver
from spigot.polytopes.solvers.rows import Rows, stacked_rows

__all__ = ["ConeProgram", "Cvxpy", "cone_forms", "cone_program"]


@dataclass(frozen=True)
class Cvxpy(RowSolver):
    """A cone program an instance, compiled once a polytope and regularizer.

    For a separable regularizer the multipliers give grad Omega(y), and Newton steps on those of the
    binding rows remove the interior-point method's own error where there are no auxiliary variables.

    Args:
        tolerance: Clarabel's three tolerances.
        backend: the name of any other solver that cvxpy knows, at its own tolerances.

    Raises:
        ValueError: a tolerance that float64 cannot reach.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Shannon, Simplex
        >>> from spigot.polytopes.solvers import Cvxpy
        >>> Simplex(3).maximize(torch.tensor([0.0, 1.0, 2.0]), Shannon(), solver=Cvxpy())
        tensor([0.0900, 0.2447, 0.6652])

    References:
        Diamond and Boyd, "CVXPY" (JMLR 2016).
    """

    tolerance: float = 1e-12
    backend: str = "CLARABEL"
    name: ClassVar[str] = "cone program (cvxpy)"
    cost: ClassVar[str] = "one interior-point run an instance"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints", "vertices"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Separable, EuclideanOf, Convex)

    def solve(self, problem: Problem) -> Solution:
        """One cone program an instance.

        Raises:
            NoStructure, InfeasiblePolytope: the masks, or the parameters, leave an instance no point.
        """
        value, gradient = (np.zeros(problem.flat_scores.shape) for _ in range(2))
        answers: list[_Answer] = []
        for i, kept, scores, form in cone_forms(problem):
            answer = None if form is None else cone_program(problem, kept, form).solve(scores, self)
            if answer is None:
                raise nothing(problem, i)
            value[i, kept], gradient[i, kept] = answer.value, answer.gradient
            answers.append(answer)
        shape = problem.scores.shape
        smooth = isinstance(problem.regularizer, Separable)
        return Solution(
            tensor(value).reshape(shape),
            torch.tensor([int(answer.status) for answer in answers]),
            torch.tensor([answer.steps for answer in answers]),
            objective=torch.tensor([answer.objective for answer in answers], dtype=torch.float64),
            gradient=tensor(gradient).reshape(shape) if smooth else None,
            faces=tuple(answer.face for answer in answers),
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """On the exposed face; for `Convex`, by cvxpylayers."""
        if not isinstance(problem.regularizer, Separable):
            from spigot.polytopes.solvers.cvxpylayers import CvxpyLayers

            return CvxpyLayers().vjp(problem, solution, grad)
        assert solution.faces is not None
        spread = problem.regularizer.spread(solution.value.flatten(1))
        pulled = pull_through_faces(solution.faces, grad.flatten(1), spread, problem.flat_keep)
        return pulled.reshape(grad.shape)


def cone_forms(
    problem: Problem,
) -> Iterator[tuple[int, np.ndarray, np.ndarray, Canonical | None]]:
    """`instances`, from constraints or vertices; None where the masks leave no vertex."""
    if "constraints" in problem.polytope.facts:
        yield from instances(problem)
        return
    points = distinct_vertices(problem.polytope).cpu().numpy()
    for i, kept, scores in problem.instances():
        form: Canonical | None = problem.polytope.scratch.get(("vertex form", kept.tobytes()))
        if form is None:
            inside = points[(np.abs(points[:, ~kept]) <= 1e-12).all(1)][:, kept]
            form = vertex_form(inside) if len(inside) else None
            problem.polytope.scratch["vertex form", kept.tobytes()] = form
        yield i, kept, scores, form


def cone_program(problem: Problem, kept: np.ndarray, form: Canonical) -> ConeProgram:
    """The program of these rows, compiled once a thread for all limits."""
    rows = _without_domain(form, problem.regularizer)
    finite = np.isfinite(rows.lower).tobytes() + np.isfinite(rows.upper).tobytes()
    key = ("cvxpy", problem.regularizer, kept.tobytes(), finite)
    return per_thread(form.scratch, key, lambda: ConeProgram(problem, kept, rows)).at(rows)


@dataclass(frozen=True)
class _Answer:
    """One instance's answer, over the parts kept."""

    value: np.ndarray
    gradient: np.ndarray
    objective: float
    status: Status
    steps: int
    face: Face


def _attempts(settings: Cvxpy) -> list[tuple[float, dict[str, Any]]]:
    """Clarabel's tolerances: those asked for, then looser ones where rounding forbids them."""
    if settings.backend != "CLARABEL":
        return [(settings.tolerance, {})]
    names = ("tol_gap_abs", "tol_gap_rel", "tol_feas")
    tolerances = [max(settings.tolerance, loosened) for loosened in (0.0, 1e-10, 1e-8)]
    return [(tolerance, dict.fromkeys(names, tolerance)) for tolerance in tolerances]


_NOTHING = _Answer(np.zeros(0), np.zeros(0), 0.0, Status.CONVERGED, 0, Hyperplanes(np.zeros((0, 0))))


class ConeProgram:
    """max <s, y> - Omega(y) in cvxpy, with s and the rows' limits parameters."""

    def __init__(self, problem: Problem, kept: np.ndarray, form: Canonical) -> None:
        cp = library("cvxpy")
        sp = library("scipy.sparse")

        self.regularizer: Any = problem.regularizer
        self.rows: Rows = stacked_rows(form)
        if not kept.any():
            return
        self.x: Any = cp.Variable(form.variables)
        self.scores: Any = cp.Parameter(len(form.columns))
        part = self.x[form.columns]
        scatter = sp.identity(len(kept), format="csr")[:, np.flatnonzero(kept)]
        event = problem.polytope.event_shape
        y: Any = cp.reshape(scatter @ part, event, order="C")
        whole = part if isinstance(self.regularizer, Separable) else y
        objective = self.scores @ part - self.regularizer.expression(whole)
        equalities = form.A.shape[0]
        matrix = self.rows.matrix
        self.limits: Any = cp.Parameter(matrix.shape[0])
        self.constraints: list[Any] = []
        if equalities:
            self.constraints.append(matrix[:equalities] @ self.x == self.limits[:equalities])
        if matrix.shape[0] > equalities:
            self.constraints.append(matrix[equalities:] @ self.x <= self.limits[equalities:])
        self.problem: Any = cp.Problem(cp.Maximize(objective), self.constraints)

    def at(self, form: Canonical) -> ConeProgram:
        """The same program with the limits of another form of these matrices."""
        self.rows = self.rows.at(form)
        return self

    def solve(self, scores: np.ndarray, settings: Cvxpy) -> _Answer | None:
        """One instance; None if nothing satisfies the rows."""
        cp = library("cvxpy")

        if not len(scores):
            return _NOTHING if feasible(self.rows.form) else None
        self.scores.value, self.limits.value = scores, self.rows.limits
        reached = settings.tolerance
        for reached, options in _attempts(settings):  # noqa: B007, the last one counts
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "Solution may be inaccurate": the status says so
                with contextlib.suppress(cp.SolverError):
                    self.problem.solve(solver=settings.backend, **options)
            if self.problem.status != "optimal_inaccurate" and self.x.value is not None:
                break
        status = self.problem.status
        if status in ("infeasible", "infeasible_inaccurate"):
            return None
        if self.x.value is None:
            nothing, face = np.zeros_like(scores), self.rows.face(np.zeros(len(self.rows.limits), bool))
            return _Answer(nothing, nothing, -np.inf, Status.INACCURATE, 0, face)
        # the tolerance is relative to the objective: beside huge scores it says little
        optimal = status == "optimal" and reached * (1 + _largest(scores)) <= 1e-6
        return self._answer(scores, np.asarray(self.x.value), optimal)

    def _answer(self, scores: np.ndarray, x: np.ndarray, optimal: bool) -> _Answer:
        duals = [np.atleast_1d(constraint.dual_value) for constraint in self.constraints]
        multipliers = np.concatenate(duals) if duals else np.zeros(0)
        binding = self.rows.binding(multipliers, self.rows.limits - self.rows.matrix @ x)
        y = x[self.rows.form.columns]
        gradient = np.zeros_like(y)
        smooth = isinstance(self.regularizer, Separable)
        if smooth:
            polished = self._polish(scores, x, multipliers, binding)
            if polished is None:
                gradient = self._gradient(scores, y, multipliers)
            else:
                (y, gradient, binding), optimal = polished, True
        return _Answer(
            y,
            gradient,
            self._objective(scores, y) if smooth else float(self.problem.value),
            Status.CONVERGED if optimal else Status.INACCURATE,
            int(self.problem.solver_stats.num_iters or 0),
            self.rows.face(binding),
        )

    @cached_property
    def layer(self) -> Any:
        """cvxpylayers' layer of scores and, where there are rows, limits."""
        layer = library("cvxpylayers.torch").CvxpyLayer
        named = [self.scores, self.limits] if self.constraints else [self.scores]
        return layer(self.problem, parameters=named, variables=[self.x])

    def _objective(self, scores: np.ndarray, y: np.ndarray) -> float:
        low, high = self.regularizer.domain
        value = self.regularizer.value(tensor(y.clip(low, high)))
        return float(scores @ y) - float(value.sum())

    def _polish(
        self, scores: np.ndarray, x: np.ndarray, multipliers: np.ndarray, binding: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """y, grad Omega(y) and the binding rows, exact; None if Newton's method leads elsewhere.

        Rows that the point breaks join, rows whose multiplier turns out negative leave: where y
        underflows, the interior point's slacks alone do not tell which rows bind.
        """
        y, t = x[self.rows.form.columns], x[self.rows.auxiliary]
        equalities = len(self.rows.form.b)
        for _ in range(CHANGES):
            found = self._newton(scores, t, multipliers * binding, binding)
            if found is None:
                return None
            point, slope, lam, inner = found
            wrong = lam < -1e-9 * (1 + _largest(scores))
            wrong[:equalities] = False
            violated = self.rows.violated(point, inner)
            if not wrong.any() and not (violated & ~binding).any():
                return (point, slope, binding) if _largest(point - y) <= 1e-4 else None
            binding = (binding & ~wrong) | violated
        return None

    def _newton(
        self, scores: np.ndarray, t: np.ndarray, multipliers: np.ndarray, binding: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
        """The maximiser with the binding rows as equations, by Newton on multipliers and t.

        y = mirror(s - N' lam);  N y + T t = b  and  T' lam = 0  for the auxiliary variables t.
        """
        if int(binding.sum()) + len(t) > DENSE_ROWS:
            return None
        rows: np.ndarray = self.rows.parts[binding].toarray()
        tail: np.ndarray = self.rows.tail[binding].toarray()
        limits, lam = self.rows.limits[binding], multipliers[binding]
        corner = np.zeros((len(t), len(t)))
        inner = 1.0 + np.zeros(len(t))
        floor = 1e-290 if self.regularizer.steep else 1e-13 * (1 + _largest(limits))
        for _ in range(POLISH_STEPS):
            slope: np.ndarray = scores - rows.T @ lam
            point: np.ndarray = self.regularizer.mirror(tensor(slope)).numpy()
            residual = np.concatenate([rows @ point + tail @ t - limits, -(tail.T @ lam)])
            size = np.concatenate([np.abs(rows) @ point + np.abs(tail @ t) + np.abs(limits), inner])
            if bool((np.abs(residual) <= 1e-12 * size + floor).all()):
                full = np.zeros(len(binding))
                full[binding] = lam
                return point, slope, full, t
            spread: np.ndarray = self.regularizer.spread(tensor(point)).numpy() * (point > 0)
            system = np.block([[(rows * spread) @ rows.T, -tail], [tail.T, corner]])
            scale = _scale(system) if not len(t) else np.ones(len(system))
            step = _least_squares(system * np.outer(scale, scale), residual * scale)
            if step is None:
                return None
            step = step * scale
            lam, t = lam + step[: len(lam)], t + step[len(lam) :]
        return None

    def _gradient(self, scores: np.ndarray, y: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
        """phi'(y), from the multipliers where y is too small to tell."""
        low, high = self.regularizer.domain
        direct: np.ndarray = self.regularizer.gradient(tensor(y.clip(low, high))).numpy()
        if not self.regularizer.steep:
            return direct
        implied: np.ndarray = scores - self.rows.parts.T @ multipliers
        return np.where((y - low < 1e-6) | (high - y < 1e-6), implied, direct)


POLISH_STEPS = 30
CHANGES = 50  # of the set of binding rows
DENSE_ROWS = 2000  # beyond, the interior point's own answer stays


def _least_squares(system: np.ndarray, residual: np.ndarray) -> np.ndarray | None:
    """The smallest solution; None where numbers have run out of range."""
    if not (np.isfinite(system).all() and np.isfinite(residual).all()):
        return None
    try:
        step: np.ndarray = np.linalg.lstsq(system, residual, rcond=1e-13)[0]
    except np.linalg.LinAlgError:
        return None
    return step if bool(np.isfinite(step).all()) else None


def _scale(system: np.ndarray) -> np.ndarray:
    """What makes the diagonal 1: rows that hold tiny parts alone count like any other."""
    diagonal = np.diagonal(system)
    return 1 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0.0))


def _without_domain(form: Canonical, regularizer: Regularizer | None) -> Canonical:
    """Bounds that a steep regularizer's own domain implies are left out: they never bind."""
    if not (isinstance(regularizer, Separable) and regularizer.steep):
        return form
    low, high = regularizer.domain
    lower, upper, parts = form.lower.copy(), form.upper.copy(), form.columns
    lower[parts] = np.where(lower[parts] <= low, -np.inf, lower[parts])
    upper[parts] = np.where(upper[parts] >= high, np.inf, upper[parts])
    return form.with_limits(form.b, form.h, lower, upper)
