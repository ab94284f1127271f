r"""Projections onto an intersection of polytopes that share parts, from their own projections.

With E_f the parts of factor f, minimise |y - s|^2 / 2 subject to p_f = E_f y and p_f in M_f. ADMM
with multipliers l_f and a penalty r alternates

    y = (s + sum E_f'(r p_f - l_f)) / (1 + r sum E_f'E_f),    p_f = projection of E_f y + l_f / r,
    l_f = l_f + r (E_f y - p_f)

and soon knows the faces that hold the answer. Given them, with J_f the orthogonal projector onto the
directions of factor f's face (its own derivative), the answer is the projection of s onto the affine
set {y : (I - J_f)(E_f y - p_f) = 0}, found by conjugate gradients: exact once the faces are right,
which one more projection proves, E_f y + l_f being projected onto E_f y.

The same with every p_f = 0 is the derivative: the orthogonal projector onto the directions that lie
in every factor's face.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import Block, lacking
from spigot.polytopes.arrays import rows_where
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Routed, Solver
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Euclidean, Regularizer

__all__ = ["Consensus"]

RELAXATION = 1.6
FIRST_ROUND = 8  # steps before the faces are tried; every later round is longer by half
SMALL, DENSE = 64, 2_000_000  # parts of a factor, entries in all: up to which projectors are matrices
SETTLED = 1e-14  # a residual of conjugate gradients this small, relative to the scores, is rounding
RESTARTS = 4  # of conjugate gradients, from the true residual
GROWTH = 1e4  # of the residual's square, past which rounding has taken over
POLISHES = 6  # face after face, while each comes nearer
BALANCE, CHANGE = 3.0, 2.0  # of the two residuals, and the penalty's factor where they are further apart
SUSPECT = 300  # steps after which the masks are asked whether they leave anything

Parts = list[Tensor]  # a block each, (n, f, size)


@dataclass(frozen=True)
class Consensus(Solver):
    """Euclidean projection onto an `Intersection`: ADMM on the factors' projections, then exact.

    Args:
        tolerance: on the distance between E_f y and the projection of E_f y + l_f, relative to 1 plus
            the largest score.
        max_steps: ADMM steps an instance.

    Raises:
        ValueError: a tolerance that float64 cannot reach, or max_steps < 0.
        TypeError: max_steps is no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Intersection, Simplex
        >>> from spigot.polytopes.solvers import Consensus
        >>> chain = Intersection([(Simplex(2), [0, 1]), (Simplex(2), [1, 2])])
        >>> chain.maximize(torch.tensor([1.0, 0.0, 0.0]), Euclidean(), solver=Consensus())
        tensor([0.6667, 0.3333, 0.6667])

    References:
        Martins et al., "AD3" (JMLR 2015), section 4.
        Niculae and Martins, "LP-SparseMAP" (ICML 2020), section 4.
    """

    tolerance: float = 1e-10
    max_steps: int = 20_000
    name: ClassVar[str] = "ADMM on the factors' projections"
    cost: ClassVar[str] = "tens of projections a factor"
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (Euclidean,)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """An intersection, and what its factors lack."""
        if not isinstance(regularizer, Euclidean):
            return f"{self.name} does not solve it."
        found = _blocks(polytope)
        if found is None:
            return f"{self.name} needs an Intersection."
        reasons = (lacking(block.polytope, regularizer) for block in found)
        return next((reason for reason in reasons if reason), "")

    def solve(self, problem: Problem) -> Solution:
        """Rounds of ADMM on the instances left, each followed by a try at the exact answer."""
        scores = problem.flat_scores.detach().double()
        whole = _Coupled(problem)
        y, multipliers = scores.clone(), whole.zeros()
        steps = torch.zeros_like(scores[:, 0], dtype=torch.int64)
        status = torch.full_like(steps, int(Status.STOPPED))
        rows = torch.arange(len(scores), device=scores.device)
        penalty = 1 + 0.5 * scores.square().mean(1).sqrt()
        budget, done = FIRST_ROUND, 0
        while len(rows) and done < self.max_steps:
            part = _Coupled(problem.take(rows))
            count = min(budget, self.max_steps - done)
            state = _State(y[rows], [m[rows] for m in multipliers], penalty[rows])
            state = part.advance(state, count)
            state, error = part.polish(state)
            y[rows], penalty[rows] = state.y, state.penalty
            for into, values in zip(multipliers, state.multipliers, strict=True):
                into[rows] = values
            done, budget = done + count, budget + budget // 2
            steps[rows] = done
            good = error <= self.tolerance * (1 + part.scores.abs().amax(1))
            status[rows[good]] = Status.CONVERGED
            rows = rows[~good]
            if len(rows) and done >= SUSPECT > done - count:
                _check_possible(problem.take(rows))
        return _solution(problem, whole, _State(y, multipliers, penalty), status, steps)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The orthogonal projector onto the directions that every factor's face has."""
        assert solution.answers is not None and solution.duals is not None
        whole = _Coupled(problem)
        points = whole.gather(solution.value.double().flatten(1))
        shifted = _sum(points, whole.cut(solution.duals))
        faces = whole.faces(shifted, solution.answers)
        flat = grad.double().flatten(1)
        keep = problem.flat_keep
        flat = flat if keep is None else torch.where(keep, flat, 0.0)
        pulled = whole.onto(faces, flat, whole.zeros(), whole.zeros())[0]
        return pulled.reshape(grad.shape)


def _blocks(polytope: Polytope) -> tuple[Block, ...] | None:
    from spigot.polytopes.algebra.intersection import Intersection

    return polytope.blocks if isinstance(polytope, Intersection) else None


def _sum(a: Parts, b: Parts) -> Parts:
    return [x + y for x, y in zip(a, b, strict=True)]


def _difference(a: Parts, b: Parts) -> Parts:
    return [x - y for x, y in zip(a, b, strict=True)]


@dataclass(frozen=True, eq=False)
class _State:
    """Where ADMM stands: y `(n, d)`, the multipliers, the penalty `(n,)`."""

    y: Tensor
    multipliers: Parts
    penalty: Tensor


@dataclass(frozen=True, eq=False)
class _Face:
    """One block's exposed faces: its problem, and the answer that knows them."""

    block: Block
    road: Routed
    problem: Problem
    answer: Solution

    def matrix(self) -> Tensor:  # (n, f, size, size)
        """I - J, a column at a time."""
        f, size = self.block.columns.shape
        units = torch.eye(size, dtype=torch.float64, device=self.problem.scores.device)
        rows = self.problem.size // f
        return torch.stack([self.normal(unit.expand(rows, f, size)) for unit in units], 3)

    def normal(self, values: Tensor) -> Tensor:  # (n, f, size)
        """(I - J) values: the part that leaves the face."""
        shaped = values.reshape(self.problem.scores.shape)
        moved = self.road.vjp(self.problem, self.answer, shaped)
        return values - self.block.flat(moved)


class _Coupled:
    """A batch of instances over the factors' blocks: everything in float64."""

    def __init__(self, problem: Problem) -> None:
        found = _blocks(problem.polytope)
        assert found is not None
        self.problem = problem
        self.blocks: tuple[Block, ...] = found
        self.roads: list[Routed] = [block.road(Euclidean()) for block in found]
        self.scores: Tensor = problem.flat_scores.detach().double()
        device = self.scores.device
        self.columns: list[Tensor] = [block.columns.to(device) for block in found]
        counts = torch.cat([columns.flatten() for columns in self.columns])
        self.degree: Tensor = torch.bincount(counts, minlength=self.scores.shape[1]).double()

    def zeros(self) -> Parts:
        """Nothing for every factor."""
        n = len(self.scores)
        return [self.scores.new_zeros(n, *columns.shape) for columns in self.columns]

    def gather(self, y: Tensor) -> Parts:
        """E_f y."""
        return [y[:, columns] for columns in self.columns]

    def scatter(self, parts: Parts) -> Tensor:
        """The sum of E_f' p_f."""
        total = torch.zeros_like(self.scores)
        for columns, values in zip(self.columns, parts, strict=True):
            total.index_add_(1, columns.flatten(), values.flatten(1))
        return total

    def cut(self, joined: Tensor) -> Parts:
        """A tensor `(n, sum of f size)` by blocks."""
        sizes = [columns.numel() for columns in self.columns]
        pieces = torch.split(joined.double(), sizes, 1)
        return [p.reshape(len(p), *c.shape) for p, c in zip(pieces, self.columns, strict=True)]

    def inner(self, a: Parts, b: Parts) -> Tensor:  # (n,)
        """<a, b> of each instance."""
        products = [(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]
        return torch.stack(products).sum(0)

    def largest(self, parts: Parts) -> Tensor:  # (n,)
        """The largest entry of each instance."""
        return torch.stack([values.abs().flatten(1).amax(1) for values in parts]).amax(0)

    def faces(self, targets: Parts, answers: Sequence[Solution] | None = None) -> list[_Face]:
        """The factors' projections of these targets, with their faces."""
        found: list[_Face] = []
        for i, (block, target) in enumerate(zip(self.blocks, targets, strict=True)):
            shaped = target.reshape(-1, *block.polytope.event_shape)
            posed = block.pose(self.problem, Euclidean(), shaped)
            road = self.roads[i]
            answer = road.solve(posed) if answers is None else answers[i]
            found.append(_Face(block, road, posed, answer))
        return found

    def values(self, faces: Sequence[_Face]) -> Parts:
        """p_f."""
        return [face.block.flat(face.answer.value.double()) for face in faces]

    def support(self, slopes: Parts) -> Tensor:  # (n,)
        """The sum of max over v in M_f of <slope_f, v>: one MAP a factor."""
        totals: list[Tensor] = []
        for block, slope in zip(self.blocks, slopes, strict=True):
            shaped = slope.reshape(-1, *block.polytope.event_shape)
            posed = block.pose(self.problem, None, shaped)
            best = block.road(None).solve(posed).value
            totals.append(block.sums((best * shaped).flatten(1).sum(1)))
        return torch.stack(totals).sum(0)

    def advance(self, state: _State, count: int) -> _State:
        """`count` steps, the penalty then moved towards equal residuals."""
        y, multipliers, penalty = state.y, state.multipliers, state.penalty
        r, column = penalty[:, None, None], penalty[:, None]
        points = self.gather(y)
        primal = dual = torch.zeros_like(penalty)
        for _ in range(count):
            pull = self.scatter([r * p - m for p, m in zip(points, multipliers, strict=True)])
            y = (self.scores + pull) / (1 + column * self.degree)
            seen = self.gather(y)
            relaxed = [RELAXATION * e + (1 - RELAXATION) * p for e, p in zip(seen, points, strict=True)]
            targets = [e + m / r for e, m in zip(relaxed, multipliers, strict=True)]
            found = self.values(self.faces(targets))
            primal = self.largest(_difference(seen, found))
            dual = penalty * self.scatter(_difference(found, points)).abs().amax(1)
            multipliers = [r * (t - p) for t, p in zip(targets, found, strict=True)]
            points = found
        grow = torch.where(primal > BALANCE * dual, CHANGE, 1.0)
        shrink = torch.where(dual > BALANCE * primal, CHANGE, 1.0)
        return _State(y, multipliers, penalty * grow / shrink)

    def error(self, y: Tensor, multipliers: Parts) -> tuple[Tensor, list[_Face]]:
        """How far E_f y is from the projection of E_f y + l_f, `(n,)`: 0 only at the answer."""
        seen = self.gather(y)
        faces = self.faces(_sum(seen, multipliers))
        return self.largest(_difference(self.values(faces), seen)), faces

    def polish(self, state: _State) -> tuple[_State, Tensor]:
        """The answer on the faces that ADMM has found, face after face while it comes nearer."""
        y = self.scores - self.scatter(state.multipliers)
        multipliers = state.multipliers
        error, faces = self.error(y, multipliers)
        for _ in range(POLISHES):
            near, moved = self.onto(faces, self.scores, self.values(faces), multipliers)
            closer_error, closer_faces = self.error(near, moved)
            closer = closer_error < 0.5 * error
            if not bool(closer.any()):
                break
            y = torch.where(closer[:, None], near, y)
            multipliers = [
                torch.where(closer[:, None, None], new, old)
                for new, old in zip(moved, multipliers, strict=True)
            ]
            error = torch.where(closer, closer_error, error)
            faces = closer_faces if bool(closer.all()) else self.error(y, multipliers)[1]
        return replace(state, y=y, multipliers=multipliers), error

    def onto(
        self, faces: Sequence[_Face], target: Tensor, points: Parts, start: Parts
    ) -> tuple[Tensor, Parts]:
        """The projection y of the target onto {y : (I - J_f)(E_f y - p_f) = 0}, and its multipliers.

        With G = sum of E_f'(I - J_f) E_f, y = target - w for G w = G target - sum E_f'(I - J_f) p_f.
        Of the multipliers v_f in the normal spaces with sum E_f'v_f = target - y, those nearest to the
        start: they differ from it by (I - J_f) E_f x, where G x is what the start leaves.
        """
        normals = _Normals(self, faces)
        limit = SETTLED * (1 + target.abs().amax(1) + self.largest(points))
        y = target
        for _ in range(RESTARTS):
            away = self.scatter(normals.each(_difference(self.gather(y), points)))
            if bool((away.abs().amax(1) <= limit).all()):
                break
            y = y - _conjugate_gradients(normals.total, away, limit)
        multipliers = normals.each(start)
        for _ in range(RESTARTS):
            left = target - y - self.scatter(multipliers)
            if bool((left.abs().amax(1) <= limit).all()):
                break
            move = _conjugate_gradients(normals.total, left, limit)
            multipliers = _sum(multipliers, normals.each(self.gather(move)))
        return y, multipliers


class _Normals:
    """The projectors I - J_f onto the faces' normal spaces, as matrices where they are small."""

    def __init__(self, coupled: _Coupled, faces: Sequence[_Face]) -> None:
        self.coupled = coupled
        self.faces = faces
        sizes = [face.block.columns.shape[1] for face in faces]
        n, d = coupled.scores.shape
        self.matrices: Parts | None = None
        self.sum: Tensor | None = None
        if max(sizes) <= SMALL and n * d * d <= DENSE:
            self.matrices = [face.matrix() for face in faces]
            total = coupled.scores.new_zeros(n, d * d)
            for columns, matrix in zip(coupled.columns, self.matrices, strict=True):
                entries = columns[:, :, None] * d + columns[:, None, :]
                total.index_add_(1, entries.flatten(), matrix.flatten(1))
            self.sum = total.reshape(n, d, d)

    def each(self, parts: Parts) -> Parts:
        """(I - J_f) of every factor's parts."""
        if self.matrices is None:
            return [face.normal(values) for face, values in zip(self.faces, parts, strict=True)]
        return [
            (matrix @ values[..., None])[..., 0]
            for matrix, values in zip(self.matrices, parts, strict=True)
        ]

    def total(self, y: Tensor) -> Tensor:  # (n, d)
        """G y."""
        if self.sum is None:
            return self.coupled.scatter(self.each(self.coupled.gather(y)))
        return (self.sum @ y[:, :, None])[:, :, 0]


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, limit: Tensor
) -> Tensor:  # (n, d)
    """w with G w = right, for right in the range of G: each instance until it settles or grows again."""
    w = torch.zeros_like(right)
    residual = direction = right
    size = least = right.square().sum(1)
    for _ in range(right.shape[1] + 10):
        moving = (size > limit**2) & (size <= GROWTH * least)
        if not bool(moving.any()):
            break
        pulled = apply(direction)
        curvature = (direction * pulled).sum(1)
        moving &= curvature > 0
        step = torch.where(moving, size / torch.where(moving, curvature, 1.0), 0.0)[:, None]
        w = w + step * direction
        residual = residual - step * pulled
        fresh = residual.square().sum(1)
        ratio = torch.where(moving, fresh / torch.where(moving, size, 1.0), 0.0)
        direction = residual + ratio[:, None] * direction
        size, least = torch.where(moving, fresh, 0.0), least.minimum(fresh)
    return w


def _solution(
    problem: Problem, whole: _Coupled, state: _State, status: Tensor, steps: Tensor
) -> Solution:
    """y, and the certificate: s - y = sum E_f' l_f, so the gap is at most that of the factors' own."""
    y, multipliers = state.y, state.multipliers
    keep = problem.flat_keep
    y = y if keep is None else torch.where(keep, y, 0.0)
    seen = whole.gather(y)
    faces = whole.faces(_sum(seen, multipliers))
    gap = whole.support(multipliers) - whole.inner(multipliers, seen)
    value = y.reshape(problem.scores.shape)
    return Solution(
        value,
        status,
        steps,
        gap=gap,
        objective=(whole.scores * y - 0.5 * y * y).sum(1),
        gradient=value,
        duals=torch.cat([values.flatten(1) for values in multipliers], 1),
        answers=tuple(face.answer for face in faces),
    )


def _check_possible(problem: Problem) -> None:
    """Raises where the factors, or the masks, leave nothing, as far as the constraints tell."""
    from spigot.polytopes.canonical import masked_form
    from spigot.polytopes.solvers.highs import feasible

    if "constraints" not in problem.polytope.facts:
        return
    _ = problem.polytope.canonical  # which checks them
    kept = problem.flat_keep
    if kept is None:
        return
    empty = [not feasible(masked_form(problem.polytope, row.cpu().numpy())) for row in kept]
    if any(empty):
        raise problem.no_structure(rows_where(torch.tensor(empty)))
