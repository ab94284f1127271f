r"""Linear programs by the primal-dual hybrid gradient method, a batch at once, in torch.

    maximise <c, x>  over  A x = b, G x <= h, l <= x <= u

with one matrix R = (A, G) for all instances. A step is

    x+ = clip(x + t (c - R'v)),   v+ = v + s (R (2 x+ - x) - limits), at least 0 at inequalities,

after Ruiz's and Pock and Chambolle's scalings, reflected and drawn to an anchor (Halpern's iteration),
which is moved when steps have become short enough; the weight t / s follows the ratio of what primal
and dual have moved. What is near an optimum tells which constraints bind there.

Applegate et al., "Practical large-scale linear programming using primal-dual hybrid gradient" (2021);
Lu and Yang, "Restarted Halpern PDHG for linear programming" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes.solvers.dual_newton import equation_solver, slices

__all__ = ["Corner", "Programs", "Scaling", "corners", "optimise", "scaling"]

RUIZ = 10  # passes
POWERS = 40  # of the power method
CHECKED = 40  # steps between two looks
MARGIN = 0.99  # of the largest step that converges
ENOUGH, SOME = 0.2, 0.8  # of the anchor's residual: restart there, or there when it has begun to grow
LONG = 0.36  # of all steps, after which the anchor is moved anyway
REFINEMENTS = 6
STILL = 1e-9  # of a generic direction: what is left of it where a face is a point


@dataclass(frozen=True, eq=False)
class Scaling:
    """R scaled by rows and columns, and its largest singular value."""

    matrix: Tensor  # (m, variables)
    rows: Tensor  # (m,)
    columns: Tensor  # (variables,)
    norm: Tensor  # ()


def scaling(matrix: Tensor) -> Scaling:
    """Ruiz's equilibration, then Pock and Chambolle's with exponent 1."""
    rows, columns = matrix.new_ones(matrix.shape[0]), matrix.new_ones(matrix.shape[1])
    if not len(rows):
        return Scaling(matrix, rows, columns, matrix.new_ones(()))
    for k in range(RUIZ + 1):
        size = (matrix * rows[:, None] * columns).abs()
        by_row = size.sum(1) if k == RUIZ else size.amax(1)
        by_column = size.sum(0) if k == RUIZ else size.amax(0)
        rows = rows / torch.where(by_row > 0, by_row, 1.0).sqrt()
        columns = columns / torch.where(by_column > 0, by_column, 1.0).sqrt()
    scaled = matrix * rows[:, None] * columns
    direction = torch.linspace(1.0, 2.0, len(columns), dtype=matrix.dtype, device=matrix.device)
    for _ in range(POWERS):
        direction = scaled.T @ (scaled @ direction)
        direction = direction / (_norm(direction) + torch.finfo(matrix.dtype).tiny)
    norm = 1.02 * _norm(scaled @ direction)[0]  # the power method falls short
    return Scaling(scaled, rows, columns, norm.clamp_min(1e-12))


def _norm(vectors: Tensor) -> Tensor:  # (..., d) -> (..., 1)
    return vectors.square().sum(-1, keepdim=True).sqrt()


@dataclass(frozen=True, eq=False)
class Programs:
    """n linear programs over one matrix, with costs of size 1; limits and bounds of their own."""

    matrix: Tensor  # (m, variables)
    scaling: Scaling
    inequality: Tensor  # (n or 1, m), bool
    cost: Tensor  # (n, variables)
    limit: Tensor  # (n or 1, m)
    lower: Tensor  # (n or 1, variables)
    upper: Tensor

    @property
    def size(self) -> int:
        """How many instances."""
        return self.cost.shape[0]

    def take(self, rows: Tensor) -> Programs:
        """Some of them."""
        names = ("inequality", "cost", "limit", "lower", "upper")
        kept: dict[str, Tensor] = {name: getattr(self, name) for name in names}
        own = {n: t[rows] if t.shape[0] == self.size else t for n, t in kept.items()}
        return replace(self, **own)

    def reduced(self, v: Tensor) -> Tensor:
        """c - R'v."""
        return self.cost - v @ self.matrix

    def excess(self, x: Tensor) -> Tensor:
        """R x - limits."""
        return x @ self.matrix.T - self.limit

    def broken(self, x: Tensor) -> Tensor:  # (n,)
        """The largest violation of a row or bound, relative to 1 + its limit."""
        excess = self.excess(x)
        rows = torch.where(self.inequality, excess.clamp_min(0), excess.abs()) / (1 + self.limit.abs())
        bounds = torch.maximum(self.lower - x, x - self.upper).clamp_min(0)
        return torch.cat([rows, bounds], 1).amax(1)

    def surplus(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The dual bound less <c, x>, and the part of reduced costs that no bound holds, `(n,)` each."""
        reduced = self.reduced(v)
        bound = torch.where(reduced > 0, self.upper, self.lower)
        open_ = torch.isinf(bound)
        held = torch.where(open_, 0.0, reduced * torch.where(open_, 0.0, bound))
        dual = (v * self.limit).sum(1) + held.sum(1)
        return dual - (self.cost * x).sum(1), torch.where(open_, reduced.abs(), 0.0).amax(1)

    def error(self, x: Tensor, v: Tensor) -> Tensor:  # (n,)
        """How far x and v are from optimal: the largest of three relative errors."""
        gap, free = self.surplus(x, v)
        value = (self.cost * x).sum(1).abs()
        largest = 1 + self.cost.abs().amax(1)
        return torch.stack([self.broken(x), free / largest, gap.abs() / (1 + value)]).amax(0)


@dataclass(frozen=True, eq=False)
class _State:
    """The iteration's state, scaled, an instance a row."""

    x: Tensor
    v: Tensor
    x0: Tensor  # the anchor
    v0: Tensor
    count: Tensor  # (n, 1), steps since it was set
    first: Tensor  # (n, 1), the residual then,
    last: Tensor  # and at the last look
    weight: Tensor  # (n, 1)

    def take(self, rows: Tensor) -> _State:
        """Some of the instances."""
        kept: dict[str, Tensor] = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        return _State(**kept)


def optimise(programs: Programs, tolerance: float, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """Near-optimal x and v of error `tolerance` where `limit` steps will do, and the steps taken."""
    n, scale = programs.size, programs.scaling
    x_whole = torch.zeros_like(programs.cost).clamp(programs.lower, programs.upper)
    v_whole = torch.zeros_like(x_whole[:, :1]).expand(-1, len(scale.rows)).clone()
    steps = torch.zeros(n, dtype=torch.int64, device=x_whole.device)
    rows, state = torch.arange(n, device=x_whole.device), _begin(programs, x_whole, v_whole)
    for count in range(0, limit, CHECKED):
        x, v, state = _run(programs, state, count)
        x_whole, v_whole = x_whole.index_copy(0, rows, x), v_whole.index_copy(0, rows, v)
        steps = steps.index_fill(0, rows, count + CHECKED)
        left = (programs.error(x, v) > tolerance).nonzero()[:, 0]
        if len(left) < len(rows):
            rows, programs, state = rows[left], programs.take(left), state.take(left)
        if not len(rows):
            break
    return x_whole, v_whole, steps


def _begin(programs: Programs, x: Tensor, v: Tensor) -> _State:
    scale = programs.scaling
    cost = _norm(programs.cost * scale.columns)
    limit = _norm(programs.limit * scale.rows).expand_as(cost)
    weight = torch.where((cost > 0) & (limit > 0), cost / limit, 1.0)
    none = torch.full_like(weight, torch.inf)
    start, v = x / scale.columns, v / scale.rows
    return _State(start, v, start, v, torch.zeros_like(weight), none, none, weight)


def _run(programs: Programs, state: _State, before: int) -> tuple[Tensor, Tensor, _State]:
    """Some steps; the point they reach, unscaled, and the state with its anchor moved where due."""
    scale = programs.scaling
    matrix, cost = scale.matrix, programs.cost * scale.columns
    limit = programs.limit * scale.rows
    lower, upper = programs.lower / scale.columns, programs.upper / scale.columns
    short = MARGIN / scale.norm
    primal, dual = short / state.weight, short * state.weight
    floor = torch.where(programs.inequality, 0.0, -torch.inf)
    x, v, count, first = state.x, state.v, state.count, state.first
    x1, v1, residual = x, v, first
    for step in range(CHECKED):
        x1 = (x + primal * (cost - v @ matrix)).clamp(lower, upper)
        v1 = torch.maximum(v + dual * ((2 * x1 - x) @ matrix.T - limit), floor)
        if step in (0, CHECKED - 1):
            dx, dv = x1 - x, v1 - v
            cross = ((dx @ matrix.T) * dv).sum(1, keepdim=True)
            both = dx.square().sum(1, keepdim=True) / primal + dv.square().sum(1, keepdim=True) / dual
            residual = (both - 2 * cross).clamp_min(0).sqrt()
            first = torch.where(count == 0, residual, first)
        share = (count + 1) / (count + 2)
        x = share * (2 * x1 - x) + (1 - share) * state.x0
        v = share * (2 * v1 - v) + (1 - share) * state.v0
        count = count + 1
    enough = residual <= ENOUGH * first
    stuck = (residual <= SOME * first) & (residual > state.last)
    moved = enough | stuck | (count >= LONG * (before + CHECKED))
    dx = _norm(x1 - state.x0)
    dv = _norm(v1 - state.v0)
    known = moved & (dx > 1e-10) & (dv > 1e-10)
    weight = torch.where(known, (dv / dx * state.weight).sqrt(), state.weight)

    def anew(at: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(moved, at, otherwise)

    after = _State(
        anew(x1, x),
        anew(v1, v),
        anew(x1, state.x0),
        anew(v1, state.v0),
        anew(torch.zeros_like(count), count),
        anew(torch.full_like(first, torch.inf), first),
        anew(torch.full_like(first, torch.inf), residual),
        weight,
    )
    return x1 * scale.columns, v1 * scale.rows, after


@dataclass(frozen=True, eq=False)
class Corner:
    """Points on the faces that near-optimal points are next to."""

    x: Tensor  # (n, variables)
    v: Tensor  # (n, m)
    face: Programs  # what is left where the constraints that bind do: the optimal face
    proven: Tensor  # (n,), bool: x and v are optimal to rounding, and
    single: Tensor  # (n,), bool: the face is a single point, as far as the parts go


def corners(
    programs: Programs, x: Tensor, v: Tensor, generic: Tensor, tie: Tensor, exact: float
) -> Corner:
    """The faces by complementarity, and x and v moved onto them.

    `generic` (1 or n, parts) is any direction; reduced costs and multipliers below `tie` (n, 1) are 0.

    A variable is at its bound where the reduced cost is above its distance from there, a row binds
    where the multiplier is above its slack. Then x solves the rows that bind, and v gives the others
    no reduced cost, by least change. Which multipliers are left says what the optimal face is.
    """
    pieces: list[Corner] = []
    for own in slices(x, programs.matrix):
        mine = generic if len(generic) == 1 else generic[own]
        pieces.append(_corners(programs.take(own), x[own], v[own], mine, tie[own], exact))
    return pieces[0] if len(pieces) == 1 else _joined(programs, pieces)


def _joined(programs: Programs, pieces: list[Corner]) -> Corner:
    def whole(name: str, of: list[Any]) -> Tensor:
        return torch.cat([getattr(item, name) for item in of])

    faces = [piece.face for piece in pieces]
    limit = programs.limit if len(programs.limit) == 1 else whole("limit", faces)
    names = ("inequality", "cost", "lower", "upper")
    own: dict[str, Tensor] = {name: whole(name, faces) for name in names}
    found: dict[str, Tensor] = {name: whole(name, pieces) for name in ("x", "v", "proven", "single")}
    return Corner(face=replace(programs, limit=limit, **own), **found)


def _corners(
    programs: Programs, x: Tensor, v: Tensor, generic: Tensor, tie: Tensor, exact: float
) -> Corner:
    reduced, excess = programs.reduced(v), programs.excess(x)
    given = programs.lower == programs.upper
    low = (-reduced > x - programs.lower) | given
    high = (reduced > programs.upper - x) & ~low
    binds = ~programs.inequality | (v > -excess)
    free = ~(low | high)
    bounded = torch.where(low, programs.lower, torch.where(high, programs.upper, x))
    solve = equation_solver(programs.matrix, free.to(x), binds)
    x, v = bounded, torch.where(binds, v, 0.0)
    for _ in range(REFINEMENTS):
        short = torch.where(binds, -programs.excess(x), 0.0)
        x = x + torch.where(free, solve(short) @ programs.matrix, 0.0)
        rest = torch.where(free, programs.reduced(v), 0.0)
        v = v + torch.where(binds, solve(torch.where(binds, rest @ programs.matrix.T, 0.0)), 0.0)
    reduced = programs.reduced(v)
    parts = generic.shape[1]
    signs = (low & ~given & (reduced > exact)) | (high & (reduced < -exact))
    signs = signs | (free & (reduced.abs() > exact))
    wrong = signs.any(1) | (programs.inequality & (v < -exact)).any(1)
    proven = ~wrong & (programs.broken(x) <= exact)
    loose_low, loose_high = low & ~given & (reduced >= -tie), high & (reduced <= tie)
    fixed = (low & ~loose_low) | (high & ~loose_high)
    tight = ~programs.inequality | (binds & (v > tie))
    direction = torch.zeros_like(x)
    direction[:, :parts] = torch.where(fixed[:, :parts], 0.0, generic)
    along = equation_solver(programs.matrix, (~fixed).to(x), tight)
    q = torch.zeros_like(v)
    for _ in range(REFINEMENTS):
        left = torch.where(fixed, 0.0, direction - q @ programs.matrix)
        q = q + torch.where(tight, along(torch.where(tight, left @ programs.matrix.T, 0.0)), 0.0)
    left = torch.where(fixed, 0.0, direction - q @ programs.matrix)[:, :parts]
    single = (left.abs() <= STILL * generic.abs().amax()).all(1)
    face = replace(
        programs,
        inequality=~tight,
        lower=torch.where(fixed, x, programs.lower),
        upper=torch.where(fixed, x, programs.upper),
    )
    return Corner(x, v, face, proven, single)
