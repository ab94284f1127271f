r"""One polytope under all values of its parameters: rows whose coefficients are affine in them.

The constraints are called once, with a `cp.Parameter` for each parameter, and canonicalised once.
cvxpy's data are affine in the parameters theta (its rules for disciplined parametrised programs
see to it), so a value costs a sparse product: the limits are l = l_0 + D theta, and where theta
stands in limits alone all values share the matrices and the set-ups that solvers made for them.

Constraints that compute with a parameter's numbers (`np.sqrt(capacity)`, `int(k)`) have no such
map; they are declared anew for every value.

References:
    Agrawal, Amos, Barratt, Boyd, Diamond and Kolter, "Differentiable convex optimization layers"
    (NeurIPS 2019), section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, rows_where, tensor
from spigot.polytopes.bounds import rows_outside
from spigot.polytopes.canonical import (
    Canonical,
    Split,
    check_bounded,
    cone_data,
    face_of,
    masked_form,
)
from spigot.polytopes.errors import InfeasiblePolytope
from spigot.polytopes.posing import check_excludable
from spigot.polytopes.regularizers import Separable

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.problem import Problem

__all__ = [
    "Family",
    "batch_form",
    "family_at",
    "family_of",
    "hand_rows",
    "instances",
    "nothing",
    "shares_matrix",
    "theta_of",
    "violation",
]


@dataclass(frozen=True, eq=False)
class Family:
    """A polytope's rows `matrix(theta) x + slack = limits(theta)`, both affine in theta `(p,)`.

    theta holds the parameters one after the other in C order.
    """

    shapes: Mapping[str, tuple[int, ...]]
    data: Mapping[str, Any]  # cvxpy's, at theta = 0
    columns: np.ndarray
    entries: np.ndarray  # of the matrix that move: row + rows * variable, sorted
    coefficients: Any  # csr (entries, p)
    moves: Any  # csr (rows, p): D

    @property
    def shares_matrix(self) -> bool:
        """Whether the parameters stand in limits alone."""
        return len(self.entries) == 0

    @cached_property
    def places(self) -> dict[str, slice]:
        """Where each parameter is in theta."""
        edges = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes.values())])
        return {name: slice(*ends) for name, ends in zip(self.shapes, pairwise(edges), strict=True)}

    @cached_property
    def split(self) -> Split:
        """The rows by kind, where no coefficient moves."""
        return Split.of(dict(self.data), self.columns)

    @cached_property
    def base(self) -> Canonical:
        """The form at theta = 0: what solvers set up for its matrices serves all values."""
        return self.split.form(self.data["b"])

    @cached_property
    def scratch(self) -> dict[Any, Any]:
        """Matrices of the faces that masks leave, and whether the family was checked."""
        return {}

    def split_at(self, theta: np.ndarray) -> Split:
        """The rows by kind at one value."""
        if self.shares_matrix:
            return self.split
        sp = library("scipy.sparse")
        matrix = self.data["A"]
        column, row = np.divmod(self.entries, matrix.shape[0])
        moved = sp.csr_matrix((self.coefficients @ theta, (row, column)), shape=matrix.shape)
        return Split.of({**self.data, "A": matrix - moved}, self.columns)

    def limits(self, theta: np.ndarray) -> np.ndarray:  # (..., p) -> (..., rows)
        """l(theta)."""
        return self.data["b"] + (self.moves @ theta.T).T

    def form(self, theta: np.ndarray) -> Canonical:
        """The canonical form, unchecked: `(p,)`, or `(n, p)` where the matrix is shared."""
        form = self.split_at(theta).form(self.limits(theta))
        if not self.shares_matrix:
            return form
        return self.base.with_limits(form.b, form.h, form.lower, form.upper)

    def face(self, form: Canonical, kept: np.ndarray) -> Canonical:
        """The face of one instance's form with y_i = 0 where `kept` is False."""
        if kept.all():
            return form
        used = used_variables(form.columns, form.variables, kept)
        return face_of(self.base, self.scratch, kept).with_limits(
            form.b, form.h, form.lower[used], form.upper[used]
        )

    def pull(
        self, theta: np.ndarray, kept: np.ndarray, rows: Canonical, multipliers: np.ndarray
    ) -> np.ndarray:
        """The limits' Jacobian at theta, transposed, times multipliers of the rows stacked: `(p,)`.

        `rows` is the form of the face that `kept` leaves, which may lack bounds that cannot bind. Of
        rows that bound a variable equally the first one counts.
        """
        split, limits = self.split_at(theta), self.limits(theta)
        low, high = np.isfinite(rows.lower), np.isfinite(rows.upper)
        edges = np.cumsum([len(rows.b), len(rows.h), int(low.sum())])
        on_b, on_h, on_lower, on_upper = np.split(multipliers, edges)
        on_rows = np.zeros(len(limits))
        on_rows[: split.equalities] = on_b
        on_rows[split.several] = on_h
        lower, upper = split.bounds(limits)
        variables = np.flatnonzero(used_variables(split.columns, len(lower), kept))
        ratio = limits[split.single] / split.factor
        for bound, finite, share, side in ((lower, low, -on_lower, -1), (upper, high, on_upper, 1)):
            on_variable = np.zeros(len(bound))
            on_variable[variables[finite]] = share
            tight = np.flatnonzero((split.factor * side > 0) & (ratio == bound[split.variable]))
            first = tight[np.unique(split.variable[tight], return_index=True)[1]]
            on_rows[split.single[first]] += on_variable[split.variable[first]] / split.factor[first]
        return self.moves.T @ on_rows

    def by_name(self, flat: np.ndarray) -> dict[str, np.ndarray]:  # (p,)
        """Each parameter's own share, in its shape."""
        return {name: flat[place].reshape(self.shapes[name]) for name, place in self.places.items()}

    def in_coefficients(self, name: str) -> bool:
        """Whether a parameter moves a coefficient."""
        return self.coefficients[:, self.places[name]].nnz > 0


def used_variables(columns: np.ndarray, variables: int, kept: np.ndarray) -> np.ndarray:
    """The variables that are left where the other parts are excluded, as bool."""
    used = np.ones(variables, dtype=bool)
    used[columns[~kept]] = False
    return used


def theta_of(params: Mapping[str, Tensor], family: Family) -> np.ndarray:  # (n, p)
    """The parameters' values in the family's order."""
    flat: list[np.ndarray] = []
    for name, shape in family.shapes.items():
        values = contiguous(params[name].double())
        flat.append(values.reshape(len(values), int(np.prod(shape))))
    return np.concatenate(flat, axis=1)


def family_of(polytope: Polytope, shapes: Mapping[str, tuple[int, ...]]) -> Family | None:
    """The polytope's rows as a function of these parameters, made once; None where there is no map."""
    if not shapes or "constraints" not in polytope.facts:
        return None
    key = ("family", *sorted(shapes.items()))
    if key not in polytope.scratch:
        polytope.scratch[key] = _made(polytope, dict(sorted(shapes.items())))
    return polytope.scratch[key]


def _made(polytope: Polytope, shapes: Mapping[str, tuple[int, ...]]) -> Family | None:
    cp = library("cvxpy")

    symbols = {name: cp.Parameter(shape, name=name) for name, shape in shapes.items()}
    for symbol in symbols.values():
        symbol.value = np.zeros(symbol.shape)
    try:
        data, columns = cone_data(
            lambda y: polytope.constraints_with(y, symbols),
            polytope.event_shape,
            polytope,
            symbols=tuple(symbols.values()),
        )
    except Exception:
        return None
    return Family(shapes, data, columns, *_affine(data, symbols))


def _affine(data: Mapping[str, Any], symbols: Mapping[str, Any]) -> tuple[np.ndarray, Any, Any]:
    """The entries of the matrix that move, how they do, and how the limits do.

    cvxpy's tensor has a row for each entry of [matrix, limits], column by column, and a column for
    each component of its parameters (in Fortran order).
    """
    sp = library("scipy.sparse")
    program = data["param_prob"]
    places: list[np.ndarray] = []
    for symbol in symbols.values():
        size: int = symbol.size
        first = program.param_id_to_col.get(symbol.id)
        shape: tuple[int, ...] = symbol.shape
        order = np.arange(size).reshape(shape, order="F").ravel()
        # a parameter that no constraint names has no column there: the empty one at the end
        places.append(np.full(size, -1) if first is None else first + order)
    tensor_ = sp.csc_matrix(sp.coo_matrix(program.A))
    padded = sp.hstack([tensor_, sp.csc_matrix((tensor_.shape[0], 1))], format="csc")
    chosen = padded[:, np.concatenate(places)].tocoo()
    chosen.eliminate_zeros()
    rows, variables = data["A"].shape
    inside = chosen.row < rows * variables
    entries, index = np.unique(chosen.row[inside], return_inverse=True)
    components = chosen.shape[1]
    coefficients = sp.csr_matrix(
        (chosen.data[inside], (index, chosen.col[inside])), shape=(len(entries), components)
    )
    moves = sp.csr_matrix(
        (chosen.data[~inside], (chosen.row[~inside] - rows * variables, chosen.col[~inside])),
        shape=(rows, components),
    )
    return entries, coefficients, moves


def family_at(problem: Problem) -> Family | None:
    """The family of a problem's instances; None where there is one set, or no map."""
    shapes = {name: tuple(values.shape[1:]) for name, values in problem.params.items()}
    return family_of(problem.polytope, shapes)


def shares_matrix(problem: Problem) -> bool:
    """Whether the instances' sets differ in limits alone."""
    family = family_at(problem)
    return family is not None and family.shares_matrix


def batch_form(problem: Problem) -> Canonical:
    """The rows of a whole batch, its masks left aside: limits `(n, rows)` where there are parameters.

    Checked as far as the whole family goes: the sets are bounded, and their parts lie where masks
    and the regularizer need them. Whether an instance has a point at all its solver finds out;
    `nothing` is the error then.

    Raises:
        InfeasiblePolytope, UnboundedPolytope, UnsupportedProblem: no polytope, or out of the domain.
    """
    from spigot.polytopes.solvers.highs import feasible

    family = family_at(problem)
    if family is None:
        return problem.polytope.canonical
    form = family.form(theta_of(problem.params, family))
    if "checked" not in family.scratch:
        if not feasible(form.instance(0)):
            raise nothing(problem, 0)
        check_bounded(form.instance(0), problem.polytope)
        family.scratch["checked"] = True
    if problem.polytope.varies:
        _check_ranges(problem, form)
    return form


def _check_ranges(problem: Problem, form: Canonical) -> None:
    """Excluded parts are never negative, and all parts lie in the regularizer's domain."""
    from spigot.polytopes.dispatch import check_domain

    lower, upper = (tensor(bound[:, form.columns]) for bound in (form.lower, form.upper))
    every = torch.ones_like(lower, dtype=torch.bool)
    wrong = torch.zeros(problem.size, dtype=torch.bool)
    if isinstance(problem.regularizer, Separable):
        wrong |= rows_outside(problem, lower, upper, *problem.regularizer.domain, every)
    if problem.flat_keep is not None:
        wrong |= rows_outside(problem, lower, upper, 0.0, torch.inf, ~problem.flat_keep.cpu())
    for row in rows_where(wrong):  # the first one's own polytope says what is wrong
        given = _given(problem, row)
        check_domain(given, problem.regularizer)
        check_excludable(replace(problem.take(torch.tensor([row])), polytope=given, params={}))


def instances(problem: Problem) -> Iterator[tuple[int, np.ndarray, np.ndarray, Canonical]]:
    """Each instance's number, the parts it may use `(d,)`, their scores, and its rows over them."""
    family, whole = family_at(problem), batch_form(problem)
    for i, kept, scores in problem.instances():
        if family is None:
            yield i, kept, scores, masked_form(problem.polytope, kept)
        else:
            yield i, kept, scores, family.face(whole.instance(i), kept)


def violation(problem: Problem, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
    """By how much y breaks the rows and bounds at most, those with auxiliary variables left out."""
    form = batch_form(problem)
    x = np.zeros((problem.size, form.variables))
    x[:, form.columns] = contiguous(y.double().flatten(1))
    part = np.zeros(form.variables, dtype=bool)
    part[form.columns] = True
    worst = np.zeros(problem.size)
    for matrix, limit, both in ((form.A, form.b, True), (form.G, form.h, False)):
        alone = np.asarray(abs(matrix[:, ~part]).sum(1)).ravel() == 0
        beyond = (matrix @ x.T).T - limit
        beyond = np.abs(beyond) if both else beyond
        worst = np.maximum(worst, beyond[:, alone].max(1, initial=0.0))
    beyond = np.maximum(form.lower - x, x - form.upper)
    return tensor(np.maximum(worst, beyond[:, part].max(1, initial=0.0)))


def hand_rows(polytope: Polytope, values: Mapping[str, Tensor], given: Polytope) -> None:
    """Gives `polytope.given(values)` its rows, where the family has them, before it makes its own."""
    family = family_of(polytope, {name: tuple(value.shape) for name, value in values.items()})
    if family is not None:
        row = {name: value[None] for name, value in values.items()}
        given.scratch["rows"] = family.form(theta_of(row, family)[0])


def _given(problem: Problem, row: int) -> Polytope:
    """An instance's own polytope."""
    return problem.polytope.given({name: values[row] for name, values in problem.params.items()})


def nothing(problem: Problem, row: int) -> Exception:
    """The error where an instance's rows hold no point: by its parameters, or else by its mask."""
    if problem.params:
        try:
            _ = _given(problem, row).canonical
        except InfeasiblePolytope as error:
            return InfeasiblePolytope(f"{problem.describe([row])}: {error}")
    return problem.no_structure([row])
