r"""Separable regularizers over constraints in torch: Newton's method on a whole batch at once.

For multipliers v of the rows (>= 0 for inequalities) the best y is phi' inverted at s - R'v and
clipped to the bounds, and v minimises the convex dual, whose slope is limits - R y and whose
generalised Hessian is R D R', D holding 1 / phi'' at the parts that are not clipped (`row_newton` is
the same compiled). Here the Hessians of all instances are factored together, and a step's length is
chosen among many that are tried at once: along a line the dual is convex, so that slopes bracket its
minimum, and a second set of lengths divides the bracket. Nothing waits for the host but a look, every
few steps, at which instances are done; these leave the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from spigot.polytopes.regularizers import Euclidean, Separable

__all__ = ["Cases", "Found", "equation_solver", "least_multipliers", "maximise", "pull", "slices"]

T = TypeVar("T")
CHECKED = 4  # steps between two looks at which instances are done
ROUNDS = 3  # in which multipliers that a step sends beyond their bound are held there
STALLS = 3
POLISHES = 3
PUSHES = 12
MOVED = 1e-3  # what counts as moved, relative to the largest move
LENGTHS = (4.0, 1.0, 0.5, 0.25, 0.125, 0.05, 0.01, 1e-3, 1e-4)  # of a step, tried at once,
REACHES = tuple(2.0**k for k in range(-2, 12))  # those that move a slope by so much,
INSIDE = tuple(k / 9 for k in range(1, 9))  # and shares of the bracket
RIDGE = 1e-12
ENTRIES = 2**25  # of the largest intermediate tensor
REFINEMENTS = 8
PULL_RIDGE = 1e-11
PRESS = 1e5  # on equations, relative to what is least


@dataclass(frozen=True)
class Levels:
    """What counts as rounding in a dtype."""

    target: float  # of a row's error, relative to the terms of its sum: as good as it gets,
    stalled: float  # or good enough, where steps gain nothing
    tie: float  # a multiplier or slack this small may be 0,
    noise: float  # or one this small relative to the scores
    flat: float  # the ridge that tells directions in which nothing moves, squared in effect
    still: float  # what counts as still, relative to the largest move


LEVELS = {
    torch.float64: Levels(2e-15, 1e-10, 2e-9, 7e-15, 1e-9, 1e-9),
    torch.float32: Levels(1e-6, 1e-4, 1e-5, 4e-6, 1e-4, 1e-3),
}


def _each(item: T, change: Callable[[Any], Any]) -> T:
    """A dataclass of tensors with each changed."""
    known = cast(Any, item)
    made = {f.name: change(getattr(known, f.name)) for f in fields(known)}
    return cast(T, replace(known, **made))


def _pair(change: Callable[[Any, Any], Any], one: T, other: T) -> T:
    """Two of them, tensor by tensor."""
    a, b = cast(Any, one), cast(Any, other)
    made = {f.name: change(getattr(a, f.name), getattr(b, f.name)) for f in fields(a)}
    return cast(T, replace(a, **made))


@dataclass(frozen=True, eq=False)
class Cases:
    """Instances of one batch: n of d parts and m rows. What all share has 1 for n."""

    regularizer: Separable
    matrix: Tensor  # (m, d)
    floor: Tensor  # (m,), the least multiplier: -inf for an equation
    inequalities: bool  # whether there are others
    scores: Tensor  # (n, d)
    live: Tensor  # (n or 1, d), bool: the parts that masks leave
    limit: Tensor  # (n or 1, m)
    lower: Tensor  # (n or 1, d)
    upper: Tensor
    least: Tensor  # (n or 1, d), phi' at the bounds
    most: Tensor

    @property
    def size(self) -> int:
        """How many instances."""
        return self.scores.shape[0]

    @property
    def levels(self) -> Levels:
        """What rounding is here."""
        return LEVELS[self.scores.dtype]

    @property
    def largest(self) -> Tensor:  # (n,)
        """The largest score, as far as rounding of scores moves y."""
        if self.regularizer.steep:
            return torch.zeros_like(self.scores[:, 0])
        return self.scores.abs().amax(1)

    @property
    def tie(self) -> Tensor:  # (n, 1)
        """A multiplier or slack this small may be 0."""
        return self.levels.tie + self.levels.noise * self.largest[:, None]

    def take(self, rows: Tensor) -> Cases:
        """Some of the instances."""
        names = ("live", "limit", "lower", "upper", "least", "most")
        shared: dict[str, Tensor] = {name: getattr(self, name) for name in names}
        own = {name: value if value.shape[0] == 1 else value[rows] for name, value in shared.items()}
        return replace(self, scores=self.scores[rows], **own)

    def chunks(self) -> Iterator[Cases]:
        """Slices of the batch whose intermediate tensors fit."""
        lengths = len(LENGTHS) + len(REACHES) + len(INSIDE)
        for rows in slices(self.scores, self.matrix, lengths * max(self.matrix.shape)):
            yield self if len(rows) == self.size else self.take(rows)


@dataclass(frozen=True, eq=False)
class _Point:
    """Multipliers, k trials an instance, and what follows from them."""

    v: Tensor  # (n, k, m)
    x: Tensor  # (n, k, d), s - R'v
    y: Tensor
    excess: Tensor  # (n, k, m), R y - limits
    size: Tensor  # (n, k, m), what its rounding error is relative to
    dual: Tensor  # (n, k)
    rounding: Tensor  # (n, k), of the dual
    error: Tensor  # (n, k), the largest of a row, relative to its size

    def pick(self, best: Tensor) -> _Point:
        """One trial an instance, `(n, 1)`."""

        def own(values: Tensor) -> Tensor:
            if values.dim() == 2:
                return values.gather(1, best)
            return values.gather(1, best[..., None].expand(-1, -1, values.shape[2]))

        return _each(self, own)

    def take(self, rows: Tensor) -> _Point:
        """Some of the instances."""
        return _each(self, lambda values: values[rows])

    def put(self, rows: Tensor, other: _Point) -> _Point:
        """Another's points in place of these instances'."""
        return _pair(lambda whole, part: whole.index_copy(0, rows, part), self, other)

    def where(self, flag: Tensor, other: _Point) -> _Point:
        """This one where the flag `(n, 1)` is set."""

        def chosen(mine: Tensor, others: Tensor) -> Tensor:
            return torch.where(flag if mine.dim() == 2 else flag[..., None], mine, others)

        return _pair(chosen, self, other)


def _evaluate(cases: Cases, v: Tensor) -> _Point:
    omega, limit, live = cases.regularizer, cases.limit[:, None], cases.live[:, None]
    x = cases.scores[:, None] - v @ cases.matrix
    low, high = x <= cases.least[:, None], x >= cases.most[:, None]
    inner = torch.where(high, cases.upper[:, None], omega.mirror(x))
    y = torch.where(live, torch.where(low, cases.lower[:, None], inner), 0.0)
    penalty = torch.where(live, omega.value(y), 0.0)
    energy = torch.where(live, x * y, 0.0)
    dual = (energy - penalty).sum(-1) + (limit * v).sum(-1)
    mass = (energy.abs() + penalty.abs()).sum(-1) + (limit * v).abs().sum(-1)
    excess = y @ cases.matrix.T - limit
    reach = cases.matrix.abs()
    noise = cases.largest[:, None, None] * reach.sum(1)
    tiny, eps = torch.finfo(v.dtype).tiny, torch.finfo(v.dtype).eps
    size = y.abs() @ reach.T + limit.abs() + noise + tiny
    counts = (v > cases.floor) | (excess > 0)
    errors = torch.where(counts, excess.abs() / size, 0.0)
    error = errors.amax(-1) if v.shape[-1] else torch.zeros_like(dual)
    error = torch.where(torch.isfinite(dual), error, torch.inf)
    return _Point(v, x, y, excess, size, dual, 4 * eps * (1 + mass), error)


def _gram(matrix: Tensor, weights: Tensor) -> Tensor:  # (m, d), (n, d) -> (n, m, m)
    """R diag(weights) R'."""
    return (matrix * weights[:, None]) @ matrix.T


def _solver(
    gram: Tensor, held: Tensor, ridge: Tensor | float, shift: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """What solves with a Gram matrix plus a ridge, over the rows that are not held.

    The ridge is relative to `shift` (m,), by default to the diagonal. What cannot be factored passes
    for its diagonal.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    whole = diagonal + ridge * (diagonal if shift is None else shift) + torch.finfo(gram.dtype).tiny
    scale = torch.where(held, 0.0, whole.rsqrt())
    scaled = gram * scale[:, :, None] * scale[:, None, :]
    scaled.diagonal(dim1=1, dim2=2).fill_(1.0)
    lower, failed = cast("tuple[Tensor, Tensor]", cast(Any, torch.linalg).cholesky_ex(scaled))
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    lower = torch.where((failed > 0)[:, None, None], eye, lower)

    def solve(rhs: Tensor) -> Tensor:
        return scale * torch.cholesky_solve((scale * rhs)[..., None], lower)[..., 0]

    return solve


def equation_solver(matrix: Tensor, weights: Tensor, rows: Tensor) -> Callable[[Tensor], Tensor]:
    """What solves with R diag(weights) R' over some of the rows, up to a small ridge: to be refined."""
    return _solver(_gram(matrix, weights), ~rows, PULL_RIDGE, None)


def _inside(cases: Cases, point: _Point) -> Tensor:  # (n, d)
    x = point.x[:, 0]
    return cases.live & (cases.least < x) & (x < cases.most)


def _direction(cases: Cases, point: _Point, rounds: int) -> Tensor:  # (n, m)
    """Newton's, over the multipliers that do not stay at their bound or go there."""
    v, excess, floor = point.v[:, 0], point.excess[:, 0], cases.floor
    weights = torch.where(_inside(cases, point), cases.regularizer.spread(point.y[:, 0]), 0.0)
    gram = _gram(cases.matrix, weights)
    ridge = (0.1 * point.error).clamp(max=1e-3) + RIDGE
    shift = None if cases.regularizer.steep else cases.matrix.square().sum(1)
    held, step = (v <= floor) & (excess <= 0), torch.zeros_like(v)
    for _ in range(rounds):
        given = torch.where(held, (floor - v).nan_to_num(neginf=0.0), 0.0)
        rest = excess - (given[:, None] @ gram)[:, 0]
        free = _solver(gram, held, ridge, shift)(torch.where(held, 0.0, rest))
        step = torch.where(held, given, free)
        beyond = ~held & (v + step < floor)
        part = torch.where(beyond, (floor - v) / step, 1.0).amin(1, keepdim=True)
        held = held | ((part < 1) & (step < 0) & (v + 1.01 * part * step <= floor))
    return step


def _slope(cases: Cases, point: _Point, step: Tensor) -> Tensor:  # (n, k)
    """The dual's, over the multipliers that the step can move."""
    moving = (point.v > cases.floor) | (step[:, None] > 0)
    return -torch.where(moving, point.excess * step[:, None], 0.0).sum(-1)


@dataclass(frozen=True, eq=False)
class _Trials:
    """Points along a step."""

    point: _Point
    lengths: Tensor  # (n, k)
    slope: Tensor
    lower: Tensor  # whether the dual falls enough
    rank: Tensor  # the smaller the better


def _try(cases: Cases, point: _Point, step: Tensor, lengths: Tensor) -> _Trials:
    v = torch.maximum(point.v + lengths[..., None] * step[:, None], cases.floor)
    trial = _evaluate(cases, v)
    slope, first = _slope(cases, trial, step), _slope(cases, point, step)
    enough = trial.dual <= point.dual + 1e-4 * lengths * first.clamp(max=0) + point.rounding
    lower = enough & torch.isfinite(trial.dual)
    rank = torch.where(lower, slope.abs(), torch.inf)
    better = lower & (trial.error <= 0.5 * point.error)
    rank = torch.where(better, -1 / (trial.error + torch.finfo(v.dtype).tiny), rank)
    return _Trials(trial, lengths, slope, lower, rank)


def _search(cases: Cases, point: _Point, step: Tensor) -> tuple[_Point, Tensor]:
    """The best of many lengths, and whether it gets nearer, `(n, 1)`."""

    def row(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=step.dtype, device=step.device)

    reach = (step @ cases.matrix).abs().amax(1, keepdim=True) + torch.finfo(step.dtype).tiny
    near = (row(REACHES) / reach).clamp(max=1.0)
    tried = _try(cases, point, step, torch.cat([row(LENGTHS).expand(len(step), -1), near], 1))
    short = tried.lower & (tried.slope < 0)
    low = torch.where(short, tried.lengths, 0.0).amax(1, keepdim=True)
    beyond = torch.where(short | (tried.lengths <= low), torch.inf, tried.lengths)
    high = beyond.amin(1, keepdim=True)
    high = torch.where(torch.isfinite(high), high, low)
    again = _try(cases, point, step, low + (high - low) * row(INSIDE))
    both = _pair(lambda a, b: torch.cat([a, b], 1), tried.point, again.point)
    best = torch.cat([tried.rank, again.rank], 1).argmin(1, keepdim=True)
    found = both.pick(best)
    lower = torch.cat([tried.lower, again.lower], 1).gather(1, best)
    return found, lower | (found.error < point.error)


def _minimise(cases: Cases, limit: int) -> tuple[_Point, Tensor]:
    """The dual's minimisers, and the steps taken; instances that are done leave the batch."""
    n, m = cases.size, len(cases.floor)
    rows = torch.arange(n, device=cases.scores.device)
    whole = point = _evaluate(cases, cases.scores.new_zeros(n, 1, m))
    steps = torch.zeros_like(rows)
    stalls, stuck = torch.zeros_like(rows), torch.zeros_like(rows, dtype=torch.bool)
    target = torch.full_like(cases.largest, cases.levels.target)
    if cases.regularizer.steep:
        target = target * (1 + cases.scores.abs().amax(1))
    rounds = ROUNDS if cases.inequalities else 1
    for count in range(limit):
        done = (point.error[:, 0] <= target) | stuck
        if count % CHECKED == 0:
            left = (~done).nonzero()[:, 0]
            if len(left) < len(rows):
                whole = whole.put(rows, point)
                rows, stalls, stuck = rows[left], stalls[left], stuck[left]
                point, cases, target, done = point.take(left), cases.take(left), target[left], done[left]
            if not len(rows):
                break
        step = _direction(cases, point, rounds)
        found, nearer = _search(cases, point, step)
        slow = (point.error <= cases.levels.stalled) & (found.error >= 0.5 * point.error)
        stalls = torch.where(slow[:, 0], stalls + 1, 0)
        stuck = stuck | ~nearer[:, 0] | (stalls > STALLS)
        steps = steps.index_add(0, rows, (~done).to(steps))
        point = found.where(nearer & ~done[:, None], point)
    return whole.put(rows, point), steps


@dataclass(frozen=True, eq=False)
class Found:
    """The answers of a batch."""

    y: Tensor  # (n, d)
    x: Tensor  # (n, d), s - R'v
    v: Tensor  # (n, m)
    excess: Tensor  # (n, m)
    error: Tensor  # (n,)
    steps: Tensor  # (n,)
    rows: Tensor  # (n, m), bool: those that bind
    parts: Tensor  # (n, d), bool
    clear: Tensor  # (n,), bool


def maximise(cases: Cases, limit: int) -> Found:
    """The maximisers, their multipliers and what binds."""
    pieces = [_solved(chunk, limit) for chunk in cases.chunks()]
    if len(pieces) == 1:
        return pieces[0]
    joined = {f.name: torch.cat([getattr(piece, f.name) for piece in pieces]) for f in fields(Found)}
    return Found(**joined)


def _solved(cases: Cases, limit: int) -> Found:
    point, steps = _minimise(cases, limit)
    given = cases.least >= cases.most
    x, tie = point.x[:, 0], cases.tie
    beyond = (x < cases.least - tie) | (x > cases.most + tie)
    parts = cases.live & (given | beyond)
    inside = cases.live & ~parts
    low, high = inside & (x <= cases.least + tie), inside & (x >= cases.most - tie)
    rows = (cases.floor < 0) | (point.v[:, 0] > tie)
    slack = cases.levels.tie * point.size[:, 0]
    touching = ~rows & (-point.excess[:, 0] <= slack)
    clear = ~((low | high).any(1) | touching.any(1))
    tied = (~clear).nonzero()[:, 0]
    if not len(cases.floor):  # the bounds alone: what is at one without a multiplier is free
        clear = torch.ones_like(clear)
    elif len(tied):
        bind = _bind_all(cases, *(flags[tied] for flags in (inside, low, high, rows, touching)))
        clear = clear.index_copy(0, tied, bind)
        settled = clear[:, None]
        low, high, touching = low & settled, high & settled, touching & settled
        parts, rows = parts | low | high, rows | touching
        y = torch.where(low, cases.lower, torch.where(high, cases.upper, point.y[:, 0]))
        point = replace(point, y=y[:, None])
    if isinstance(cases.regularizer, Euclidean):
        point = _polished(cases, point, rows, cases.live & ~parts, clear)
    return Found(
        point.y[:, 0],
        point.x[:, 0],
        point.v[:, 0],
        point.excess[:, 0],
        point.error[:, 0],
        steps,
        rows,
        parts,
        clear,
    )


def _bind_all(
    cases: Cases, inside: Tensor, low: Tensor, high: Tensor, rows: Tensor, touching: Tensor
) -> Tensor:  # (n,), bool
    """Whether one change of the multipliers gives every tie one; they all bind then.

    The change is a sum of pushes, one a tie (a part at its lower or upper bound, a row), projected
    onto those that leave the parts between their bounds where they are: its image under the ridge
    times the inverse of R D R' + ridge, twice. A tie that it does not move is pushed harder.
    """
    level, square = cases.levels, cases.matrix.square().sum(1)
    free = inside & ~low & ~high
    gram = _gram(cases.matrix, free.to(cases.scores))
    solve = _solver(gram, ~(rows | touching), level.flat, square)
    push, on_rows = low.to(cases.scores) - high.to(cases.scores), touching * square.sqrt()
    sign, settled = push, torch.zeros_like(free[:, 0])
    for _ in range(PUSHES):
        q = solve(level.flat * (on_rows + push @ cases.matrix.T))
        q = solve(level.flat * square * q)
        size = q * square.sqrt()
        least = size.abs().amax(1, keepdim=True)
        moved = q @ cases.matrix
        parts_stay = (sign != 0) & ~(sign * moved > MOVED * least)
        rows_stay = touching & ~(size > MOVED * least)
        still = (~free | (moved.abs() <= level.still * least)).all(1) & (least[:, 0] > 0)
        settled = settled | (still & ~parts_stay.any(1) & ~rows_stay.any(1))
        push = torch.where(parts_stay, 2 * push, push)
        on_rows = torch.where(rows_stay, 2 * on_rows, on_rows)
    return settled


def _polished(cases: Cases, point: _Point, rows: Tensor, free: Tensor, clear: Tensor) -> _Point:
    """The projections onto the faces, where they lie in the set and are nearer."""
    square = cases.matrix.square().sum(1)
    solve = _solver(_gram(cases.matrix, free.to(cases.scores)), ~rows, RIDGE, square)
    v = point.v[:, 0]
    for _ in range(POLISHES):
        x = cases.scores - v @ cases.matrix
        y = torch.where(free, x, point.y[:, 0])
        excess = y @ cases.matrix.T - cases.limit
        wrong = torch.where(rows | (excess > 0), excess.abs() / point.size[:, 0], 0.0)
        beyond = torch.maximum(cases.lower - y, y - cases.upper)
        beyond = torch.where(free, beyond, 0.0).clamp_min(0) / (1 + cases.largest[:, None])
        error = torch.cat([wrong, beyond], 1).amax(1)
        better = (clear & (error < point.error[:, 0]))[:, None]
        y = torch.where(free, y.clamp(cases.lower, cases.upper), y)
        own = replace(
            point, v=v[:, None], x=x[:, None], y=y[:, None], excess=excess[:, None], error=error[:, None]
        )
        point = own.where(better, point)
        v = v + torch.where(rows, solve(torch.where(rows, excess, 0.0)), 0.0)
    return point


def slices(batch: Tensor, matrix: Tensor, others: int = 0) -> tuple[Tensor, ...]:
    """Rows of the batch, so many that Gram matrices and what makes them fit."""
    m, d = matrix.shape
    many = max(1, ENTRIES // max(1, others, m * d, m * m))
    every: Any = torch.arange(len(batch), device=batch.device)
    return every.split(many)


def pull(matrix: Tensor, weights: Tensor, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """D (g - R'v) with R D (g - R'v) = 0 over the rows that bind, and its error, `(n, d)` and `(n,)`.

    D = diag(weights) holds 1 / phi'' at the parts between their bounds. The factor's small ridge
    leaves an error that refinement removes, for dependent rows as well.
    """
    pieces = [_pulled(matrix, weights[own], rows[own], grad[own]) for own in slices(grad, matrix)]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


def _pulled(matrix: Tensor, weights: Tensor, rows: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    solve, reach = _solver(_gram(matrix, weights), ~rows, PULL_RIDGE, None), matrix.abs()
    v, best = torch.zeros_like(rows, dtype=grad.dtype), weights * grad
    error = torch.full_like(grad[:, 0], torch.inf)
    for _ in range(REFINEMENTS):
        back = v @ matrix
        left = weights * (grad - back)
        rest = torch.where(rows, left @ matrix.T, 0.0)
        size = (weights * (grad.abs() + back.abs())) @ reach.T + torch.finfo(grad.dtype).tiny
        worst = (rest.abs() / size).amax(1) if v.shape[1] else torch.zeros_like(error)
        better = worst < error
        best, error = torch.where(better[:, None], left, best), torch.minimum(worst, error)
        v = v + torch.where(rows, solve(rest), 0.0)
    return best, error


def least_multipliers(
    matrix: Tensor, rows: Tensor, free: Tensor, shares: Tensor, wanted: Tensor
) -> Tensor:  # (n, m)
    """The smallest v, zero at rows that do not bind, with (R'v)_k = wanted_k at the free parts.

    A part that a bound holds takes what is left, at a cost of `shares_k` times its square.
    """
    pieces = [
        _least(matrix, rows[own], free[own], shares[own], wanted[own]) for own in slices(wanted, matrix)
    ]
    return torch.cat(pieces)


def _least(matrix: Tensor, rows: Tensor, free: Tensor, shares: Tensor, wanted: Tensor) -> Tensor:
    weights = torch.where(free, PRESS, shares)
    gram = _gram(matrix, weights)
    gram.diagonal(dim1=1, dim2=2).add_(1.0)
    solve = _solver(gram, ~rows, 0.0, None)
    v, moved = torch.zeros_like(rows, dtype=wanted.dtype), torch.zeros_like(wanted)
    for _ in range(REFINEMENTS):
        for _ in range(2):  # refined: the equations make the matrix steep
            rest = (weights * (wanted + moved - v @ matrix)) @ matrix.T - v
            v = v + torch.where(rows, solve(torch.where(rows, rest, 0.0)), 0.0)
        moved = moved + torch.where(free, wanted - v @ matrix, 0.0)
    return v
