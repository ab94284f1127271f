"""Constraints as sparse rows: {x : A x = b, G x <= h, lower <= x <= upper}, y = x[columns].

cvxpy's own canonicaliser makes them, once a polytope; x holds y and the auxiliary variables.
Rows that name a single variable become bounds. A dense matrix is never made.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spigot.polytopes.arrays import library
from spigot.polytopes.errors import (
    InfeasiblePolytope,
    UnboundedPolytope,
    UnsupportedProblem,
    unsupported,
)

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = [
    "Canonical",
    "canonicalise",
    "integer_rows",
    "masked_form",
    "per_thread",
    "rows_from",
    "vertex_form",
]

T = TypeVar("T")
MASKS_KEPT = 512  # reduced forms remembered a polytope, the oldest dropped first


@dataclass(frozen=True, eq=False)
class Canonical:
    """{x : A x = b, G x <= h, lower <= x <= upper}; part i of the event (C order) is x[columns[i]]."""

    A: Any  # csr (equalities, variables)
    b: np.ndarray
    G: Any  # csr (inequalities, variables)
    h: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    columns: np.ndarray

    @property
    def variables(self) -> int:
        """How many variables, auxiliary ones included."""
        return len(self.lower)

    @cached_property
    def scratch(self) -> dict[Any, Any]:
        """Solver set-ups for these rows."""
        return {}

    def keeping(self, keep: np.ndarray) -> Canonical:
        """The face with y_i = 0 where keep is False, its columns left out (M is in {y_i >= 0})."""
        kept = np.ones(self.variables, dtype=bool)
        kept[self.columns[~keep]] = False
        position = np.cumsum(kept) - 1
        return Canonical(
            self.A[:, kept],
            self.b,
            self.G[:, kept],
            self.h,
            self.lower[kept],
            self.upper[kept],
            position[self.columns[keep]],
        )


def masked_form(polytope: Polytope, keep: np.ndarray | None) -> Canonical:
    """The polytope's rows, or those of the face that `keep` (d,) leaves; the last few are cached."""
    if keep is None or keep.all():
        return polytope.canonical
    forms: dict[bytes, Canonical] = polytope.scratch.setdefault("masked forms", {})
    key = keep.tobytes()
    form = forms.get(key)
    if form is None:
        form = polytope.canonical.keeping(keep)
        if len(forms) >= MASKS_KEPT:
            forms.pop(next(iter(forms)), None)
        forms[key] = form
    return form


def per_thread(scratch: dict[Any, Any], key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """A compiled program of this thread, made when first asked for: solvers' objects are not shared."""
    key = (*key, threading.get_ident())
    if key not in scratch:
        scratch[key] = make()
    return scratch[key]


def vertex_form(points: np.ndarray) -> Canonical:
    """conv of the points (m, d): x = (y, w), y = points' w, w >= 0, sum w = 1."""
    sp = library("scipy.sparse")
    m, d = int(points.shape[0]), int(points.shape[1])
    mixture = sp.hstack([sp.identity(d), -sp.csr_matrix(points.T)])
    total = sp.csr_matrix(np.concatenate([np.zeros(d), np.ones(m)])[None])
    return Canonical(
        sp.vstack([mixture, total], format="csr"),
        np.concatenate([np.zeros(d), [1.0]]),
        sp.csr_matrix((0, d + m)),
        np.zeros(0),
        np.concatenate([np.full(d, -np.inf), np.zeros(m)]),
        np.full(d + m, np.inf),
        np.arange(d),
    )


def canonicalise(polytope: Polytope) -> Canonical:
    """The checked canonical form of a polytope's constraints.

    Raises:
        UnsupportedProblem: a constraint is not linear (or not convex, or not real).
        InfeasiblePolytope: no point satisfies them; a smallest conflicting subset is named.
        UnboundedPolytope: they hold a ray; some parts that grow along it are named.
    """
    form = rows_from(polytope.constraints, polytope.event_shape, polytope)
    _check_feasible(form, polytope)
    _check_bounded(form, polytope)
    return form


def rows_from(
    constraints: Callable[[Any], list[Any]],
    event_shape: tuple[int, ...],
    polytope: Polytope,
    only: list[int] | None = None,
) -> Canonical:
    """The rows of some of the constraints (all by default), unchecked."""
    cp = library("cvxpy")

    y = cp.Variable(event_shape, name="y")
    declared = _declared(constraints, y, polytope)
    chosen = declared if only is None else [declared[i] for i in only]
    problem = cp.Problem(cp.Minimize(cp.sum(y)), chosen)
    if problem.is_mixed_integer():
        raise unsupported(
            polytope,
            None,
            "its constraints hold integer variables, and a polytope is what its constraints say.",
            "Use IntegerHull(constraints, event_shape) for the hull of the integer points.",
        )
    return _split(_linear_data(problem, cp.CLARABEL, polytope), y, event_shape)


def _declared(constraints: Callable[[Any], Any], y: Any, polytope: Polytope) -> list[Any]:
    found = constraints(y)
    if not isinstance(found, list | tuple):
        raise TypeError(
            f"the constraints of {polytope} must be a list of cvxpy constraints, such as "
            f"[y >= 0, cp.sum(y) == 1]; got {type(found).__name__}."
        )
    return list(found)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def integer_rows(
    constraints: Callable[[Any], list[Any]], event_shape: tuple[int, ...], polytope: Polytope
) -> tuple[Canonical, np.ndarray]:
    """The rows with y integer, and which variables are integer."""
    cp = library("cvxpy")

    y = cp.Variable(event_shape, integer=True, name="y")
    problem = cp.Problem(cp.Minimize(cp.sum(y)), _declared(constraints, y, polytope))
    data = _linear_data(problem, cp.HIGHS, polytope)
    form = _split(data, y, event_shape)
    integer = np.zeros(form.variables, dtype=bool)
    integer[data["int_vars_idx"]] = True
    boolean = data["bool_vars_idx"]
    integer[boolean] = True
    form.lower[boolean], form.upper[boolean] = 0.0, 1.0
    return form, integer


def _linear_data(problem: Any, solver: str, polytope: Polytope) -> dict[str, Any]:
    """cvxpy's cone data, refused unless every row is linear."""
    if not problem.is_dcp():
        broken = "\n".join(f"  {c}" for c in problem.constraints if not c.is_dcp())
        raise unsupported(
            polytope,
            None,
            f"these constraints are not convex by cvxpy's rules:\n{broken}",
            "Write each constraint as convex <= concave, or linear == linear.",
        )
    if _curved(problem):
        raise _not_linear(polytope)
    named = ", ".join(parameter.name() for parameter in problem.parameters())
    if named:
        raise unsupported(
            polytope,
            None,
            f"its constraints hold the cvxpy parameter(s) {named}: they are read once, so a value set "
            "later would be ignored.",
            "Write the number itself, as a field of a Polytope class.",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*dimension greater than 2.*")
        data = problem.get_problem_data(solver)[0]
    if data["dims"].psd:
        raise _not_linear(polytope)
    return data


def _not_linear(polytope: Polytope) -> UnsupportedProblem:
    return unsupported(
        polytope,
        None,
        "its constraints are not linear: they need second-order, exponential, power or semidefinite "
        "cones, so the set has no vertices to choose from.",
        "Use linear constraints (cp.abs, cp.norm1, cp.norm_inf, cp.max, cp.sum_largest are fine).",
    )


def _curved(problem: Any) -> bool:
    return not all(argument.is_pwl() for c in problem.constraints for argument in c.args)


def _split(data: dict[str, Any], y: Any, event_shape: tuple[int, ...]) -> Canonical:
    matrix, rhs, equalities = data["A"].tocsr(), data["b"], data["dims"].zero
    n: int = matrix.shape[1]
    offset: int = data["param_prob"].var_id_to_col[y.id]
    size: int = y.size
    fortran = np.arange(size).reshape(event_shape, order="F")
    columns: np.ndarray = offset + fortran.ravel(order="C")
    lower, upper = np.full(n, -np.inf), np.full(n, np.inf)
    for bound, given in ((lower, data.get("lower_bounds")), (upper, data.get("upper_bounds"))):
        if given is not None:
            bound[:] = given
    rows, limits = matrix[equalities:], rhs[equalities:]
    rows.eliminate_zeros()
    single = np.diff(rows.indptr) == 1
    _tighten(rows[single], limits[single], lower, upper)
    used = np.diff(rows.indptr) != 1
    return Canonical(
        matrix[:equalities].tocsr(),
        rhs[:equalities],
        rows[used],
        limits[used],
        lower,
        upper,
        columns,
    )


def _tighten(rows: Any, limits: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Rows a x_i <= b become bounds on x_i."""
    column, factor = rows.indices, rows.data
    ratio = limits / factor
    above = factor > 0
    np.minimum.at(upper, column[above], ratio[above])
    np.maximum.at(lower, column[~above], ratio[~above])


def _check_feasible(form: Canonical, polytope: Polytope) -> None:
    from spigot.polytopes.solvers.highs import feasible

    if feasible(form):
        return
    cp = library("cvxpy")

    y = cp.Variable(polytope.event_shape, name="y")
    declared = _declared(polytope.constraints, y, polytope)
    conflict = list(range(len(declared)))
    for i in range(len(declared)):  # deletion filter: what is left is irreducible
        rest = [j for j in conflict if j != i]
        if not feasible(rows_from(polytope.constraints, polytope.event_shape, polytope, rest)):
            conflict = rest
    listing = "\n".join(f"  [{i}] {declared[i]}" for i in conflict)
    raise InfeasiblePolytope(
        f"No point satisfies the constraints of {polytope}. These conflict (drop or loosen one):\n"
        f"{listing}"
    )


def _check_bounded(form: Canonical, polytope: Polytope) -> None:
    from spigot.polytopes.solvers.highs import ray

    direction = ray(form)
    if direction is None:
        return
    parts = np.argwhere(np.abs(direction.reshape(polytope.event_shape)) > 1e-7)[:5]
    along = direction.reshape(polytope.event_shape)
    named = ", ".join(
        f"y{[int(k) for k in part]} {'grows' if along[tuple(part)] > 0 else 'falls'}" for part in parts
    )
    raise UnboundedPolytope(
        f"The constraints of {polytope} hold a ray, along which {named} without end. "
        "Add bounds, such as y >= 0 and y <= 1."
    )
