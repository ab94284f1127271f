"""Euclidean projections over constraints: Clarabel's own interface, set up once a polytope."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import library, tensor
from spigot.polytopes.canonical import Canonical, per_thread
from spigot.polytopes.faces import Face, pull_through_faces
from spigot.polytopes.families import instances, nothing
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, Regularizer
from spigot.polytopes.solvers.highs import feasible, fixed, linear_program
from spigot.polytopes.solvers.mixture import CERTIFIED, nearest
from spigot.polytopes.solvers.row_solver import RowSolver
from spigot.polytopes.solvers.rows import Rows, stacked_rows

__all__ = ["Clarabel"]


@dataclass(frozen=True)
class Clarabel(RowSolver):
    """Euclidean projection from constraints: an interior-point method, then made exact.

    The set does not change between instances, only the linear term: one set-up serves them all.
    The interior point tells the rows that bind (multiplier far above slack), and the answer is
    projected onto the face they define, which removes the method's own error.

    Args:
        tolerance: Clarabel's three tolerances.
        max_steps: interior-point steps an instance.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import Clarabel
        >>> scores = torch.tensor([0.5, 0.25, -1.0])
        >>> Subset(3, 1).maximize(scores, Euclidean(), solver=Clarabel())
        tensor([0.6250, 0.3750, 0.0000])

    References:
        Goulart and Chen, "Clarabel: an interior-point solver for conic programs" (2024).
    """

    tolerance: float = 1e-12
    max_steps: int = 200
    name: ClassVar[str] = "quadratic program (Clarabel)"
    cost: ClassVar[str] = "about 10 sparse factorisations an instance"
    needs: ClassVar[frozenset[str]] = frozenset({"constraints"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Euclidean,)

    def solve(self, problem: Problem) -> Solution:
        """One quadratic program an instance.

        Raises:
            NoStructure, InfeasiblePolytope: the masks, or the parameters, leave an instance no point.
        """
        value = np.zeros(problem.flat_scores.shape)
        answers: list[_Answer] = []
        for i, kept, scores, form in instances(problem):
            answer = _program(form).project(scores, self)
            if answer is None:
                raise nothing(problem, i)
            value[i, kept] = answer.value
            answers.append(answer)
        y = tensor(value)
        shaped = y.reshape(problem.scores.shape)
        duals = [answer.duals for answer in answers]
        same = len({len(dual) for dual in duals}) == 1
        return Solution(
            shaped,
            torch.tensor([int(answer.status) for answer in answers]),
            torch.tensor([answer.steps for answer in answers]),
            objective=(problem.on_cpu().flat_scores * y - 0.5 * y * y).sum(1),
            gradient=shaped,
            duals=tensor(np.stack(duals)) if same else None,
            faces=tuple(answer.face for answer in answers),
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The orthogonal projector onto the exposed face's directions."""
        assert solution.faces is not None
        flat = grad.flatten(1)
        pulled = pull_through_faces(solution.faces, flat, torch.ones_like(flat), problem.flat_keep)
        return pulled.reshape(grad.shape)


@dataclass(frozen=True)
class _Answer:
    """One instance's answer, over the parts kept."""

    value: np.ndarray
    status: Status
    steps: int
    duals: np.ndarray
    face: Face


def _nothing(rows: Rows) -> _Answer:
    """The answer where every part is excluded."""
    none = np.zeros(len(rows.limits))
    return _Answer(np.zeros(0), Status.CONVERGED, 0, none, rows.face(none > 0))


def _program(form: Canonical) -> _QuadraticProgram:
    return per_thread(form.scratch, ("clarabel",), lambda: _QuadraticProgram(form)).at(form)


LINEAR_STEPS = 1_000_000
LARGE = 2.0  # scores from which the problem is solved again near its answer


class _QuadraticProgram:
    """min |y|^2 / 2 - <s, y> over a canonical form; only s and the limits change."""

    def __init__(self, form: Canonical) -> None:
        self.form = form
        self.rows: Rows = stacked_rows(form)
        self.solver: Any = None
        self.settings: tuple[float, int] | None = None

    def at(self, form: Canonical) -> _QuadraticProgram:
        """The same program with the limits of another form of these matrices."""
        self.form, self.rows = form, self.rows.at(form)
        return self

    def _set_up(self, settings: Clarabel) -> None:
        clarabel = library("clarabel")
        sp = library("scipy.sparse")

        options = clarabel.DefaultSettings()
        options.verbose = False
        options.presolve_enable = False  # or the linear term could not be changed afterwards
        options.max_iter = settings.max_steps
        options.max_threads = 1
        # at its default of 1e-8 the method stalls on a few instances in a thousand
        options.static_regularization_constant = 1e-11
        for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
            setattr(options, name, settings.tolerance)
        diagonal = np.zeros(self.form.variables)
        diagonal[self.form.columns] = 1.0
        equalities = self.form.A.shape[0]
        cones = [
            clarabel.ZeroConeT(equalities),
            clarabel.NonnegativeConeT(self.rows.matrix.shape[0] - equalities),
        ]
        self.solver = clarabel.DefaultSolver(
            sp.diags(diagonal, format="csc"),
            np.zeros(self.form.variables),
            self.rows.matrix.tocsc(),
            self.rows.limits,
            cones,
            options,
        )
        self.settings = (settings.tolerance, settings.max_steps)

    def project(self, scores: np.ndarray, settings: Clarabel) -> _Answer | None:
        """The projection, made exact on its face; None if infeasible."""
        if not len(self.form.columns):
            return _nothing(self.rows) if feasible(self.form) else None
        if self.settings != (settings.tolerance, settings.max_steps):
            self._set_up(settings)
        found = self._solve(scores, np.zeros(self.form.variables))
        if "PrimalInfeasible" in str(found.status):
            return None
        x = np.array(found.x)
        if np.abs(scores).max() > LARGE:
            near = np.zeros(self.form.variables)
            near[self.form.columns] = x[self.form.columns]
            found = self._solve(scores, near)
            x = np.array(found.x) + near
        multipliers, slacks = np.array(found.z), np.array(found.s)
        y, face, proven = self._made_exact(scores, x, multipliers, slacks)
        close = np.abs(y - x[self.form.columns]).max() <= 1e-5 * (1 + np.abs(scores).max())
        clean = close and str(found.status) in ("Solved", "AlmostSolved")
        status = Status.CONVERGED if proven or clean else Status.INACCURATE
        return _Answer(y, status, int(found.iterations), multipliers, face)

    def _solve(self, scores: np.ndarray, near: np.ndarray) -> Any:
        """The problem in x - near.

        The tolerance on the gap is relative to the objective, which large scores make large: near
        the answer it is about 0, and the tolerance absolute.
        """
        linear = np.zeros(self.form.variables)
        linear[self.form.columns] = near[self.form.columns] - scores
        self.solver.update(q=linear, b=self.rows.limits - self.rows.matrix @ near)
        return self.solver.solve()

    def _made_exact(
        self, scores: np.ndarray, x: np.ndarray, multipliers: np.ndarray, slacks: np.ndarray
    ) -> tuple[np.ndarray, Face, bool]:
        """The projection onto the face of the binding rows, the face, and whether it is proven.

        Rows that the projection would violate bind too. With auxiliary variables a violation cannot
        be seen in y alone: where it is in doubt which rows bind, linear programs decide.
        """
        rows = self.rows
        binding = rows.binding(multipliers, slacks)
        while True:
            near = rows.at_bounds(x, binding)[self.form.columns]
            face = rows.face(binding)
            y = near + face.pull(scores - near, np.ones_like(near))
            if len(rows.auxiliary) and rows.doubtful(multipliers, slacks):
                y, proven = self._by_vertices(scores, y if feasible(fixed(self.form, y)) else near)
                return y, face, proven
            if len(rows.auxiliary):
                return y, face, False
            violated = rows.violated(y, x[rows.auxiliary]) & ~binding
            if not violated.any():
                return y, face, False
            binding = binding | violated

    def _by_vertices(self, scores: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, bool]:
        """y, or where a linear program improves on it the best mixture of vertices; whether proven."""

        def vertex_at(slope: np.ndarray) -> np.ndarray:
            found = linear_program(self.form).vertex(slope, LINEAR_STEPS)
            return y if found is None or found[2] != Status.CONVERGED else found[0]

        slope = scores - y
        if slope @ (vertex_at(slope) - y) <= CERTIFIED * (1 + abs(float(scores @ y))):
            return y, False  # as good as the interior point says
        exact = nearest(scores, vertex_at, 20 * len(y) + 100)
        return (y, False) if exact is None else (exact, True)
