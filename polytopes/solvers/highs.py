"""Linear programs over constraints by HiGHS, ties settled; feasibility, rays and integer hulls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from spigot.polytopes.arrays import library, tensor
from spigot.polytopes.canonical import Canonical, per_thread
from spigot.polytopes.dispatch import Road
from spigot.polytopes.errors import ConvergenceError, UnboundedPolytope
from spigot.polytopes.families import instances, nothing
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Regularizer
from spigot.polytopes.solvers.pdhg import ProvenPDHG
from spigot.polytopes.solvers.row_solver import RowSolver
from spigot.polytopes.solvers.tie_rule import LARGEST, SNAP, TIE, generic_objective

__all__ = ["Highs", "LinearProgram", "MixedIntegerProgram", "feasible", "fixed", "linear_program", "ray"]

SHARED = 1000  # entries of the rows from which threads share a batch out
DOUBT = 5.0  # seconds after which a set of integer constraints passes for possible


@dataclass(frozen=True)
class Highs(RowSolver):
    """MAP from constraints: a vertex by the simplex method, always the same one.

    Where the optimum is not unique (a nonbasic variable without reduced cost), a second linear
    program over the optimal face maximises a fixed generic objective on y, so the vertex is one of
    M, not of the lifted set, and does not depend on the batch, on threads or on earlier calls.

    Larger programs are shared out over torch's threads, a model each: HiGHS runs without Python's
    lock. Of small ones the calls around it, which need the lock, are the larger part.
    Every instance starts from scratch, by the dual simplex method: from the last instance's basis
    the primal method needs several times as many steps, the scores being unrelated.

    Args:
        max_steps: simplex iterations an instance.

    Raises:
        ValueError: max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import cvxpy as cp
        >>> import torch
        >>> from spigot.polytopes import Facets
        >>> from spigot.polytopes.solvers import Highs
        >>> pair = Facets(lambda y: [y >= 0, y <= 1, cp.sum(y) == 2], (3,))
        >>> pair.maximize(torch.tensor([0.5, 2.0, -1.0]), solver=Highs())
        tensor([1., 1., 0.])
    """

    max_steps: int = 1_000_000
    name: ClassVar[str] = "linear program (HiGHS)"
    cost: ClassVar[str] = "one simplex run an instance"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (None,)
    accelerated: ClassVar[type[Road] | None] = ProvenPDHG

    def solve(self, problem: Problem) -> Solution:
        """One linear program an instance.

        Raises:
            NoStructure, InfeasiblePolytope: the masks, or the parameters, leave an instance no point.
        """
        asked = list(instances(problem))
        answers: list[tuple[np.ndarray, int, Status] | None] = [None] * problem.size

        def share(first: int, last: int) -> None:
            for i, _, scores, form in asked[first:last]:
                answers[i] = linear_program(form).vertex(scores, self.max_steps)

        entries = max((form.A.nnz + form.G.nnz for *_, form in asked[:1]), default=0)
        if entries >= SHARED:
            over_instances(share, problem.size)
        else:
            share(0, problem.size)
        values = np.zeros(problem.flat_scores.shape)
        steps, stopped = (np.zeros(problem.size, dtype=np.int64) for _ in range(2))
        for (i, kept, _, _), answer in zip(asked, answers, strict=True):
            if answer is None:
                raise nothing(problem, i)
            values[i, kept], steps[i], stopped[i] = answer
        value = tensor(values).to(problem.scores).reshape(problem.scores.shape)
        return Solution(
            value,
            tensor(stopped),
            tensor(steps),
            gap=value.new_tensor(np.where(stopped == Status.CONVERGED, 0.0, np.inf)),
            objective=(problem.flat_scores * value.flatten(1)).sum(1),
        )


def linear_program(form: Canonical) -> LinearProgram:
    """The linear program over these rows, set up once a thread for all limits."""
    return per_thread(form.scratch, ("highs",), lambda: LinearProgram(form)).at(form)


class LinearProgram:
    """max <c, y> over a canonical form, solved from scratch for each c."""

    def __init__(self, form: Canonical) -> None:
        self.model: Any = _model(form, np.zeros(form.variables))
        self.max_steps: int | None = None
        self.columns: np.ndarray = np.arange(form.variables, dtype=np.int32)
        rows = form.A.shape[0] + form.G.shape[0]
        self.rows: np.ndarray = np.arange(rows, dtype=np.int32)
        self._limit(form)

    def _limit(self, form: Canonical) -> None:
        self.form = form
        self.row_lower: np.ndarray = np.concatenate([form.b, np.full(form.G.shape[0], -np.inf)])
        self.row_upper: np.ndarray = np.concatenate([form.b, form.h])
        self.crossed: bool = bool((form.lower > form.upper + 1e-9).any())

    def at(self, form: Canonical) -> LinearProgram:
        """The same program with the limits of another form of these matrices."""
        if form is not self.form:
            self._limit(form)
            if not self.crossed:
                self._restore()
        return self

    def _restore(self) -> None:
        """The form's own bounds."""
        form = self.form
        upper = np.maximum(form.lower, form.upper)  # crossed by less than the tolerance
        self.model.changeColsBounds(form.variables, self.columns, form.lower, upper)
        self.model.changeRowsBounds(len(self.rows), self.rows, self.row_lower, self.row_upper)

    def vertex(self, scores: np.ndarray, max_steps: int) -> tuple[np.ndarray, int, Status] | None:
        """A vertex of M of largest score, the steps taken and the status; None if infeasible."""
        highspy = library("highspy")

        if self.crossed:
            return None
        if not len(self.form.columns):
            return (scores, 0, Status.CONVERGED) if feasible(self.form) else None
        if max_steps != self.max_steps:
            self.model.setOptionValue("simplex_iteration_limit", max_steps)
            self.max_steps = max_steps
        scale = float(np.abs(scores).max(initial=0.0))
        if scale > LARGEST:
            return np.zeros_like(scores), 0, Status.INACCURATE
        factor = 1 / scale if 0 < scale < 1 else min(1.0, 1e7 / max(scale, 1.0))
        tie = TIE * max(1.0, 1e-6 * scale * factor)
        steps = self._run(scores * factor)
        if self.model.getModelStatus() == highspy.HighsModelStatus.kInfeasible:
            return None
        status, value = self._read()
        if status == Status.CONVERGED and self._tied(tie):
            more, status, value = self._settle(tie)
            steps += more
        return _snap(value), steps, status

    def _read(self) -> tuple[Status, np.ndarray]:
        highspy = library("highspy")

        good = self.model.getModelStatus() == highspy.HighsModelStatus.kOptimal
        # stopped early the point need not even be feasible: it does not pass for a truncated answer
        value = np.array(self.model.getSolution().col_value)[self.form.columns]
        return Status.CONVERGED if good else Status.INACCURATE, value

    def _run(self, objective: np.ndarray) -> int:
        cost = np.zeros(self.form.variables)
        cost[self.form.columns] = objective
        self.model.clearSolver()
        self.model.changeColsCost(len(cost), self.columns, cost)
        self.model.run()
        return int(self.model.getInfo().simplex_iteration_count)

    def _movable(self) -> tuple[np.ndarray, np.ndarray]:
        """Nonbasic columns and rows that are not fixed by their own bounds."""
        highspy = library("highspy")

        basis, basic = self.model.getBasis(), highspy.HighsBasisStatus.kBasic
        columns = np.array([status != basic for status in basis.col_status], dtype=bool)
        rows = np.array([status != basic for status in basis.row_status], dtype=bool)
        return (
            columns & (self.form.lower < self.form.upper),
            rows & (self.row_lower < self.row_upper),
        )

    def _tied(self, tolerance: float) -> bool:
        """Whether something movable costs (almost) nothing to move.

        What is basic has no reduced cost, and there is one basic column or row for each row: where no
        others are without it, the basis, slow to read, need not be looked at.
        """
        solution = self.model.getSolution()
        flat_columns = np.abs(solution.col_dual) <= tolerance
        flat_rows = np.abs(solution.row_dual) <= tolerance
        if int(flat_columns.sum() + flat_rows.sum()) == len(self.rows):
            return False
        columns, rows = self._movable()
        return bool((columns & flat_columns).any() or (rows & flat_rows).any())

    def _settle(self, tolerance: float) -> tuple[int, Status, np.ndarray]:
        """Maximises the generic objective over the optimal face, then restores the bounds."""
        solution = self.model.getSolution()
        columns, rows = self._movable()
        columns &= np.abs(solution.col_dual) > tolerance
        rows &= np.abs(solution.row_dual) > tolerance
        x, activity = np.array(solution.col_value), np.array(solution.row_value)
        form, model = self.form, self.model
        lower, upper = form.lower, np.maximum(form.lower, form.upper)
        lower, upper = np.where(columns, x, lower), np.where(columns, x, upper)
        low = np.where(rows, activity, self.row_lower)
        high = np.where(rows, activity, self.row_upper)
        model.changeColsBounds(len(x), self.columns, lower, upper)
        model.changeRowsBounds(len(activity), self.rows, low, high)
        steps = self._run(generic_objective(len(form.columns)))
        status, value = self._read()
        self._restore()
        return steps, status, value


def _snap(value: np.ndarray) -> np.ndarray:
    nearest = np.round(value)
    return np.where(np.abs(value - nearest) <= SNAP, nearest, value) + 0.0


def _model(form: Canonical, cost: np.ndarray, integer: np.ndarray | None = None) -> Any:
    highspy = library("highspy")
    sp = library("scipy.sparse")

    matrix = sp.vstack([form.A, form.G], format="csc")
    lp = highspy.HighsLp()
    lp.num_row_, lp.num_col_ = matrix.shape
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = cost, form.lower, form.upper
    lp.row_lower_ = np.concatenate([form.b, np.full(form.G.shape[0], -np.inf)])
    lp.row_upper_ = np.concatenate([form.b, form.h])
    lp.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    lp.a_matrix_.start_, lp.a_matrix_.index_ = matrix.indptr, matrix.indices
    lp.a_matrix_.value_ = matrix.data
    lp.sense_ = highspy.ObjSense.kMaximize
    if integer is not None:
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if flag else kinds.kContinuous for flag in integer]
    model = highspy.Highs()
    for option, setting in _OPTIONS.items():
        model.setOptionValue(option, setting)
    model.passModel(lp)
    return model


_OPTIONS: dict[str, Any] = {
    "output_flag": False,
    "threads": 1,
    "parallel": "off",
    "presolve": "off",
    "primal_feasibility_tolerance": 1e-9,
    "dual_feasibility_tolerance": 1e-9,
}


def feasible(form: Canonical) -> bool:
    """Whether some point satisfies the rows."""
    highspy = library("highspy")

    if bool((form.lower > form.upper + 1e-9).any()):
        return False
    if form.variables == 0:
        return bool((np.abs(form.b) <= 1e-9).all() and (form.h >= -1e-9).all())
    model = _model(form, np.zeros(form.variables))
    model.run()
    return model.getModelStatus() == highspy.HighsModelStatus.kOptimal


def ray(form: Canonical) -> np.ndarray | None:
    """A direction along which y leaves every box, or None: two generic programs over the cone."""
    cone = Canonical(
        form.A,
        np.zeros_like(form.b),
        form.G,
        np.zeros_like(form.h),
        np.where(np.isfinite(form.lower), 0.0, -np.inf),
        np.where(np.isfinite(form.upper), 0.0, np.inf),
        form.columns,
    )
    cone.lower[form.columns] = np.maximum(cone.lower[form.columns], -1)
    cone.upper[form.columns] = np.minimum(cone.upper[form.columns], 1)
    objective = generic_objective(len(form.columns))
    for sign in (1.0, -1.0):
        cost = np.zeros(form.variables)
        cost[form.columns] = sign * objective
        model = _model(cone, cost)
        model.run()
        if model.getInfo().objective_function_value > 1e-6:
            return np.array(model.getSolution().col_value)[form.columns]
    return None


class MixedIntegerProgram:
    """max <c, y> over the integer points of a canonical form, to a gap of 0."""

    def __init__(self, form: Canonical, integer: np.ndarray) -> None:
        self.form: Canonical = form
        self.integer: np.ndarray = integer
        y_lower, y_upper = form.lower[form.columns], form.upper[form.columns]
        self.binary: bool = bool(((y_lower >= 0) & (y_upper <= 1)).all())

    def vertex(self, scores: np.ndarray) -> np.ndarray | None:
        """A best integer point that is a vertex of the hull; None where there is no point.

        Every 0/1 point is a vertex. Beyond 0/1, a second program takes the best point of a fixed
        generic objective among those of largest score, which is extreme.
        """
        best = self._best(self.form, scores)
        if best is None or self.binary:
            return best
        slack = 1e-9 * (1 + abs(float(scores @ best)))
        return self._best(self._with_score(scores, float(scores @ best) - slack), None)

    def feasible(self) -> bool:
        """Whether there is an integer point, as far as a few seconds tell: in doubt there is."""
        highspy = library("highspy")

        model = _model(self.form, np.zeros(self.form.variables), self.integer)
        model.setOptionValue("time_limit", DOUBT)
        model.setOptionValue("presolve", "choose")
        model.run()
        return model.getModelStatus() != highspy.HighsModelStatus.kInfeasible

    def _with_score(self, scores: np.ndarray, least: float) -> Canonical:
        sp = library("scipy.sparse")

        row = np.zeros((1, self.form.variables))
        row[0, self.form.columns] = -scores
        rows = sp.vstack([self.form.G, sp.csr_matrix(row)], format="csr")
        return replace(self.form, G=rows, h=np.append(self.form.h, -least))

    def _best(self, form: Canonical, scores: np.ndarray | None) -> np.ndarray | None:
        highspy = library("highspy")

        cost = np.zeros(form.variables)
        generic = generic_objective(len(form.columns))
        cost[form.columns] = generic if scores is None else scores
        model = _model(form, cost, self.integer)
        for option in ("mip_rel_gap", "mip_abs_gap"):
            model.setOptionValue(option, 0.0)
        model.setOptionValue("mip_feasibility_tolerance", 1e-9)
        model.setOptionValue("presolve", "choose")
        model.run()
        status, kinds = model.getModelStatus(), highspy.HighsModelStatus
        if status in (kinds.kUnbounded, kinds.kUnboundedOrInfeasible) and feasible(form):
            raise UnboundedPolytope(
                "The integer points reach without end. Add bounds, such as y >= 0 and y <= 1."
            )
        if status != kinds.kOptimal:
            return None
        found = np.array(model.getSolution().col_value)[form.columns]
        rounded = np.round(found) + 0.0
        if np.abs(found - rounded).max() > 1e-9 and not feasible(fixed(form, rounded)):
            raise ConvergenceError(
                f"HiGHS's integer point {found} does not round to a feasible one. Write the constraints "
                "with coefficients of like size, or with tighter bounds on auxiliary variables."
            )
        return rounded


def fixed(form: Canonical, y: np.ndarray) -> Canonical:
    """The form with y given: what is left is the choice of the auxiliary variables."""
    lower, upper = form.lower.copy(), form.upper.copy()
    lower[form.columns] = upper[form.columns] = y
    return replace(form, lower=lower, upper=upper)
