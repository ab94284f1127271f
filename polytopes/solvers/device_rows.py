"""Constraints as tensors on the scores' own device: what the batched roads in torch read.

The matrix and the fixed limits are sent to a device once a polytope and kept with its canonical form.
Parameters in right-hand sides and bounds are turned into limits there, so that a batch stays where it
is; the first time a family of sets is used, its first instance is checked on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.families import Family, batch_form, family_at
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import Separable

__all__ = ["DeviceRows", "LimitMap", "device_rows", "fits_dense", "violation", "working_dtype"]

LARGEST = 2**26  # entries of the rows, dense
MOST_ROWS = 2048


def fits_dense(form: Canonical) -> bool:
    """Whether the rows are made into a dense matrix, and factors of their size."""
    rows = form.A.shape[0] + form.G.shape[0]
    return rows <= MOST_ROWS and rows * form.variables <= LARGEST


def working_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True, eq=False)
class DeviceRows:
    """{x : R x = limit at equations, R x <= limit at others, lower <= x <= upper}, x = (y, t).

    The parts y come first, in the event's order, then the auxiliary variables t. Limits are `(1, .)`,
    or `(n, .)` where instances have their own.
    """

    matrix: Tensor  # (m, variables), dense
    equations: int  # the first rows
    limit: Tensor  # (1 or n, m)
    lower: Tensor  # (1 or n, variables)
    upper: Tensor
    parts: int
    bounded_below: Tensor  # the variables with a finite bound, in the canonical form's order
    bounded_above: Tensor
    scratch: dict[Any, Any]  # what was made for these matrices
    map: LimitMap | None = None  # of a family,
    theta: Tensor | None = None  # at these values (n, p)

    @property
    def rows(self) -> int:
        """How many, bounds apart."""
        return self.matrix.shape[0]

    @property
    def floor(self) -> Tensor:  # (m,)
        """The least multiplier of each row: -inf for an equation."""
        low = torch.zeros(self.rows, dtype=self.matrix.dtype, device=self.matrix.device)
        low[: self.equations] = -torch.inf
        return low

    def take(self, rows: Tensor) -> DeviceRows:
        """The limits of some of the instances."""
        return replace(
            self,
            limit=_rows_of(self.limit, rows),
            lower=_rows_of(self.lower, rows),
            upper=_rows_of(self.upper, rows),
            theta=None if self.theta is None else self.theta[rows],
        )


def _rows_of(limits: Tensor, rows: Tensor) -> Tensor:
    return limits if limits.shape[0] == 1 else limits[rows]


@dataclass(frozen=True, eq=False)
class LimitMap:
    """How limits move with the parameters theta `(n, p)`, for sets that share their matrix."""

    shapes: Mapping[str, tuple[int, ...]]  # of the parameters, in the order of theta
    base: Tensor  # (rows,)
    moves: Tensor  # (rows, p)
    general: Tensor  # the rows that `DeviceRows.matrix` holds, in its order
    single: Tensor  # the rows that bound one variable,
    variable: Tensor  # which,
    factor: Tensor  # and its coefficient
    lower: Tensor  # (variables,): bounds that are no row
    upper: Tensor

    def limits(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the rows, and the variables' bounds."""
        every = self.base + theta @ self.moves.T
        ratio = every[:, self.single] / self.factor
        place = self.variable.expand(len(theta), -1)
        lower = torch.where(self.factor < 0, ratio, -torch.inf)
        upper = torch.where(self.factor > 0, ratio, torch.inf)
        return (
            every[:, self.general],
            self.lower.expand(len(theta), -1).scatter_reduce(1, place, lower, "amax"),
            self.upper.expand(len(theta), -1).scatter_reduce(1, place, upper, "amin"),
        )

    def pull(self, theta: Tensor, on_rows: Tensor, on_lower: Tensor, on_upper: Tensor) -> Tensor:
        """The limits' Jacobian, transposed, times these; of equal bounds the first row counts."""
        every = self.base + theta @ self.moves.T
        share = torch.zeros_like(every)
        share[:, self.general] = on_rows
        ratio = every[:, self.single] / self.factor
        _, lower, upper = self.limits(theta)
        order = torch.arange(len(self.single), device=theta.device)
        for bound, on_bound, above in ((lower, on_lower, False), (upper, on_upper, True)):
            tight = (ratio == bound[:, self.variable]) & ((self.factor > 0) == above)
            place = self.variable.expand(len(theta), -1)
            ranked = torch.where(tight, order, len(order))
            first = torch.full_like(bound, len(order), dtype=order.dtype)
            first = first.scatter_reduce(1, place, ranked, "amin", include_self=True)
            mine = tight & (first[:, self.variable] == order)
            share[:, self.single] += torch.where(mine, on_bound[:, self.variable] / self.factor, 0.0)
        return share @ self.moves

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:  # (n, p)
        """Each parameter's own share, `(n, *shape)`."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        pieces: tuple[Tensor, ...] = cast(Any, flat).split(sizes, 1)
        named = zip(self.shapes.items(), pieces, strict=True)
        return {name: piece.reshape(len(flat), *shape) for (name, shape), piece in named}


def device_rows(problem: Problem) -> DeviceRows:
    """The rows of a problem on its scores' device.

    Raises:
        InfeasiblePolytope, UnboundedPolytope, UnsupportedProblem: as `families.batch_form`.
    """
    device = problem.scores.device
    family = family_at(problem)
    if family is None:
        form = problem.polytope.canonical
        return _kept(form, device, lambda: _from_form(form, device))
    if "checked" not in family.scratch:
        _ = batch_form(problem.take(torch.zeros(1, dtype=torch.int64, device=device)))
    still = _kept(family.base, device, lambda: _from_family(family, device))
    assert still.map is not None
    theta = torch.cat(
        [problem.params[name].reshape(problem.size, -1).to(still.matrix) for name in family.shapes], 1
    )
    limit, lower, upper = still.map.limits(theta)
    found = replace(still, limit=limit, lower=lower, upper=upper, theta=theta)
    if problem.polytope.varies:
        _check_ranges(problem, found)
    return found


def violation(rows: DeviceRows, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
    """By how much y breaks the rows and bounds at most, those with auxiliary variables left out."""
    y = y.flatten(1).to(rows.matrix)
    beyond = y @ rows.matrix[:, : rows.parts].T - rows.limit
    alone = rows.matrix[:, rows.parts :].abs().sum(1) == 0
    beyond = torch.where(rows.floor < 0, beyond.abs(), beyond)
    bounds = torch.maximum(rows.lower[:, : rows.parts] - y, y - rows.upper[:, : rows.parts])
    every = [torch.where(alone, beyond, 0.0), bounds, torch.zeros_like(y[:, :1])]
    return torch.cat(every, 1).amax(1)


def _check_ranges(problem: Problem, rows: DeviceRows) -> None:
    """Leaves instances whose bounds may leave what masks and the regularizer need to the CPU's check."""
    regularizer = problem.regularizer
    lowest, highest = regularizer.domain if isinstance(regularizer, Separable) else (-np.inf, np.inf)
    lower, upper = rows.lower[:, : rows.parts], rows.upper[:, : rows.parts]
    doubtful = ((lower < lowest) | (upper > highest)).any(1)
    if problem.flat_keep is not None:
        doubtful = doubtful | ((lower < 0) & ~problem.flat_keep).any(1)
    if bool(doubtful.any()):
        _ = batch_form(problem.take(doubtful.nonzero().flatten()))


def _kept(form: Canonical, device: torch.device, make: Callable[[], DeviceRows]) -> DeviceRows:
    key = ("device rows", str(device))
    if key not in form.scratch:
        form.scratch[key] = make()
    return form.scratch[key]


def _order(form: Canonical) -> np.ndarray:
    """The variables, parts first."""
    rest = np.ones(form.variables, dtype=bool)
    rest[form.columns] = False
    return np.concatenate([form.columns, np.flatnonzero(rest)])


def _placed(values: np.ndarray, device: torch.device) -> Tensor:
    kept = tensor(np.ascontiguousarray(values, dtype=np.float64))
    return kept.to(device, working_dtype(device), copy=True)


def _index(values: np.ndarray, device: torch.device) -> Tensor:
    return tensor(np.ascontiguousarray(values, dtype=np.int64)).to(device)


def _from_form(form: Canonical, device: torch.device) -> DeviceRows:
    order = _order(form)
    place = np.argsort(order)
    matrix = np.concatenate([form.A.toarray(), form.G.toarray()])[:, order]
    return DeviceRows(
        _placed(matrix, device),
        form.A.shape[0],
        _placed(np.concatenate([form.b, form.h])[None], device),
        _placed(form.lower[None, order], device),
        _placed(form.upper[None, order], device),
        len(form.columns),
        _index(place[np.isfinite(form.lower)], device),
        _index(place[np.isfinite(form.upper)], device),
        form.scratch,
    )


def _from_family(family: Family, device: torch.device) -> DeviceRows:
    split, form = family.split, family.base
    order = _order(form)
    place = np.argsort(order)
    general = np.concatenate([np.arange(split.equalities), split.several])

    moves = family.moves.toarray()
    made = LimitMap(
        family.shapes,
        _placed(np.asarray(family.data["b"]), device),
        _placed(moves, device),
        _index(general, device),
        _index(split.single, device),
        _index(place[split.variable], device),
        _placed(split.factor, device),
        _placed(split.lower[order], device),
        _placed(split.upper[order], device),
    )
    return replace(_from_form(form, device), map=made)
