"""Random polytopes by the hundred: every answer certified, every derivative against differences.

    python -m benchmarks.random_polytopes [--count 600] [--seed 0] [--only KIND ...] [--largest 300]

Polytope number k of a kind is drawn from seed + k, its size log-uniform from 1 to `largest`. Six
scores each, of scale 0.3, 3 and 100, in float64, are projected by the road that `maximize` takes.
`roads` counts instances; one that Newton's method hands on to Clarabel counts as Clarabel's.

`certificate`: for multipliers found by nonnegative least squares from the answer and the declared
rows alone, a bound on max over v in M of <s - y, v - y>, relative to 1 + |<s, y>|; where there are
auxiliary variables a linear program says it. `outside`: the most that a row or bound is broken by,
relative to 1 + |its limit|. `gradient`: the largest error of a derivative along a direction, relative
to 1 + its size, over those instances where central differences of two lengths agree (`smooth` of
`checked`): the projection is piecewise linear, and is linear there.

Exit status 1: something is worse than its limit; each is named with its kind and seed.
"""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import markdown
from spigot.polytopes import Euclidean, Facets
from spigot.polytopes.arrays import library
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.solvers import Clarabel

__all__ = ["KINDS", "Drawn", "drawn"]

CERTIFIED, OUTSIDE, DERIVED = 1e-8, 1e-9, 1e-6
HANGS = 120.0  # seconds
TIGHT = 1e-8  # a row's slack, relative, that counts as none


@dataclass(frozen=True)
class Drawn:
    """{A y = b, G y <= h, low <= y <= high}, with auxiliary variables where `lifted` declares more."""

    A: np.ndarray
    b: np.ndarray
    G: np.ndarray
    h: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lifted: Callable[[Any], list[Any]] | None = None

    @property
    def d(self) -> int:
        """The number of parts."""
        return len(self.low)

    def polytope(self) -> Facets:
        """As a user declares it."""

        def constraints(y: Any) -> list[Any]:
            finite = np.isfinite(self.low), np.isfinite(self.high)
            rows = [y[finite[0]] >= self.low[finite[0]]] if finite[0].any() else []
            rows += [y[finite[1]] <= self.high[finite[1]]] if finite[1].any() else []
            rows += [self.A @ y == self.b] if len(self.b) else []
            rows += [self.G @ y <= self.h] if len(self.h) else []
            return rows + (self.lifted(y) if self.lifted else [])

        return Facets(constraints, (self.d,))

    def normals(self) -> tuple[np.ndarray, np.ndarray]:
        """All of it as normals y <= limits; equations are two each."""
        identity = np.eye(self.d)
        below, above = np.isfinite(self.low), np.isfinite(self.high)
        normals = [self.A, -self.A, self.G, -identity[below], identity[above]]
        limits = [self.b, -self.b, self.h, -self.low[below], self.high[above]]
        return np.concatenate(normals), np.concatenate(limits)


def _in_box(d: int, normals: np.ndarray, limits: np.ndarray) -> Drawn:
    none = np.zeros((0, d)), np.zeros(0)
    return Drawn(*none, normals, limits, np.zeros(d), np.ones(d))


def _some(rng: np.random.Generator, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normals, an inner point of the box, and room beyond it."""
    inside = rng.uniform(0.2, 0.8, d)
    m = int(rng.integers(1, min(d, 12) + 2))
    return rng.standard_normal((m, d)), inside, rng.uniform(0.0, 0.5, m)


def _box(rng: np.random.Generator, d: int) -> Drawn:
    """A few facets cut a box."""
    normals, inside, room = _some(rng, d)
    return _in_box(d, normals, normals @ inside + room)


def _many(rng: np.random.Generator, d: int) -> Drawn:
    """More facets than parts, as far as a dense factor goes."""
    normals = rng.standard_normal((min(3 * d, 120), d))
    return _in_box(d, normals, normals @ np.full(d, 0.5) + rng.uniform(0.0, 0.3, len(normals)))


def _vertex(rng: np.random.Generator, d: int) -> Drawn:
    """All facets through one point, half of them with small whole coefficients: degenerate."""
    normals, inside, _ = _some(rng, d)
    normals[::2] = np.round(normals[::2])
    return _in_box(d, normals, normals @ inside)


def _redundant(rng: np.random.Generator, d: int) -> Drawn:
    """Rows twice, scaled by up to 1e3, and their sum."""
    normals, inside, room = _some(rng, d)
    limits = normals @ inside + room
    rows = [normals, 10.0 ** rng.uniform(-3, 3) * normals, normals.sum(0, keepdims=True)]
    factor = rows[1][0, 0] / normals[0, 0]
    return _in_box(
        d, np.concatenate(rows), np.concatenate([limits, factor * limits, [limits.sum() + 0.1]])
    )


def _flat(rng: np.random.Generator, d: int) -> Drawn:
    """Dependent equations: lower-dimensional."""
    normals, inside, _ = _some(rng, d)
    few = normals[: max(1, min(len(normals), d - 1))]
    rows = np.concatenate([few, few.sum(0, keepdims=True)])
    return Drawn(rows, rows @ inside, np.zeros((0, d)), np.zeros(0), np.zeros(d), np.ones(d))


def _point(rng: np.random.Generator, d: int) -> Drawn:
    """As many equations as parts, one of them twice: a single point."""
    size = min(d, 40)
    inside = rng.uniform(0.2, 0.8, d)
    rows = np.zeros((size + 1, d))
    rows[:size, :size] = rng.standard_normal((size, size)) + size * np.eye(size)
    rows[size] = rows[0]
    low, high = np.where(np.arange(d) < size, 0.0, inside), np.where(np.arange(d) < size, 1.0, inside)
    return Drawn(rows, rows @ inside, np.zeros((0, d)), np.zeros(0), low, high)


def _implied(rng: np.random.Generator, d: int) -> Drawn:
    """Equations as pairs of inequalities, and a row that the box implies."""
    normals, inside, _ = _some(rng, d)
    rows = np.concatenate([normals[:2], -normals[:2], np.ones((1, d))])
    return _in_box(d, rows, np.append(rows[:-1] @ inside, float(d)))


def _free(rng: np.random.Generator, d: int) -> Drawn:
    """No bounds but those that rows imply: a simplex with a random shear."""
    shear = np.eye(d) + 0.3 * np.triu(rng.standard_normal((d, d)), 1) / np.sqrt(d)
    rows = np.concatenate([-shear, shear.sum(0, keepdims=True)])
    limits = np.append(rng.uniform(0.5, 1.0, d), 1.0)
    none = np.full(d, np.inf)
    return Drawn(np.zeros((0, d)), np.zeros(0), rows, limits, -none, none)


def _transport(rng: np.random.Generator, d: int) -> Drawn:
    """Whole row and column sums of a table: sparse, dependent, degenerate."""
    n = max(1, int(np.sqrt(d)))
    m = max(1, d // n)
    table = rng.integers(0, 3, (n, m)).astype(float)
    rows = np.concatenate([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    size = n * m
    none = np.zeros((0, size)), np.zeros(0)
    return Drawn(rows, rows @ table.ravel(), *none, np.zeros(size), np.full(size, np.inf))


def _chain(rng: np.random.Generator, d: int) -> Drawn:
    """Differences of neighbours, sparse, with some equal to 0: flat and degenerate."""
    steps = np.eye(d)[1:] - np.eye(d)[:-1]
    equal = rng.random(len(steps)) < 0.2
    room = rng.choice([0.0, 0.1, 0.5], int((~equal).sum()))
    A, G = steps[equal], steps[~equal]
    return Drawn(A, np.zeros(len(A)), G, room, np.zeros(d), np.ones(d))


def _lifted(rng: np.random.Generator, d: int) -> Drawn:
    """A ball of the l1 norm cut by a facet and a sum of the largest: auxiliary variables."""
    cp = library("cvxpy")
    size = min(d, 60)
    centre, normal = rng.uniform(-0.5, 0.5, size), rng.standard_normal((1, size))
    none = np.zeros((0, size)), np.zeros(0)

    def constraints(y: Any) -> list[Any]:
        top = cp.sum_largest(y, max(1, size // 3)) <= 0.5 * size
        return [cp.norm1(y - centre) <= 0.3 * size, top]

    ends = np.full(size, 1.0)
    return Drawn(*none, normal, normal @ centre + 0.1, -ends, ends, constraints)


KINDS: dict[str, Callable[[np.random.Generator, int], Drawn]] = {
    "box": _box,
    "many": _many,
    "vertex": _vertex,
    "redundant": _redundant,
    "flat": _flat,
    "point": _point,
    "implied": _implied,
    "free": _free,
    "transport": _transport,
    "chain": _chain,
    "lifted": _lifted,
}


def drawn(kind: str, seed: int, largest: int) -> Drawn:
    """That polytope."""
    rng = np.random.default_rng([seed, *kind.encode()])
    d = round(float(np.exp(rng.uniform(0.0, np.log(largest)))))
    return KINDS[kind](rng, d)


def certificate(found: Drawn, scores: np.ndarray, y: np.ndarray) -> float:
    """A bound on max over v of <s - y, v - y>, relative to 1 + |<s, y>|."""
    size = 1.0 + abs(float(scores @ y))
    slope = scores - y
    if found.lifted is not None:
        return abs(_best(found, slope) - float(slope @ y)) / size
    normals, limits = found.normals()
    slack = limits - normals @ y
    tight = slack <= TIGHT * (1.0 + np.abs(limits) + np.abs(normals).sum(1))
    multipliers, rest = _nonnegative(normals[tight], slope)
    reach = np.where(np.isfinite(found.high - found.low), found.high - found.low, 2.0 + np.abs(y).max())
    bound = float(multipliers @ np.abs(slack[tight])) + float(np.abs(rest) @ reach)
    return bound / size


def _nonnegative(normals: np.ndarray, slope: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x >= 0 of least |normals' x - slope|, and what is left of the slope."""
    if not len(normals):
        return np.zeros(0), slope
    length = np.linalg.norm(normals, axis=1)
    length[length == 0.0] = 1.0
    x, _ = library("scipy.optimize").nnls(
        (normals / length[:, None]).T, slope, maxiter=50 * len(slope) + 500
    )
    x /= length
    return x, slope - normals.T @ x


def _best(found: Drawn, slope: np.ndarray) -> float:
    """max over v of <slope, v>, by scipy's linear program over the canonical rows."""
    form = found.polytope().canonical
    cost = np.zeros(form.variables)
    cost[form.columns] = -slope
    tight = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    answer = library("scipy.optimize").linprog(
        cost,
        form.G,
        form.h,
        form.A,
        form.b,
        np.stack([form.lower, form.upper], 1),
        method="highs-ds",
        options=tight,
    )
    return -float(answer.fun)


def outside(found: Drawn, y: np.ndarray) -> float:
    """The most that a row is broken by."""
    normals, limits = found.normals()
    return float(((normals @ y - limits) / (1.0 + np.abs(limits))).max(initial=0.0))


@dataclass
class Tally:
    """What came of a kind."""

    seeds: list[int] = field(default_factory=list[int])
    instances: int = 0
    largest: int = 0
    roads: Counter[str] = field(default_factory=Counter[str])
    certificate: float = 0.0
    outside: float = 0.0
    gradient: float = 0.0
    smooth: int = 0
    checked: int = 0
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list[str])

    def row(self, kind: str) -> tuple[str, ...]:
        """As the table prints it."""
        roads = ", ".join(f"{name} {count}" for name, count in self.roads.most_common())
        return (
            kind,
            f"{self.seeds[0]}..{self.seeds[-1]}",
            str(self.largest),
            str(self.instances),
            roads,
            f"{self.certificate:.0e}",
            f"{self.outside:.0e}",
            f"{self.gradient:.0e}",
            f"{self.smooth} of {self.checked}",
            f"{self.slowest:.2f}",
            str(len(self.failures)),
        )


HEAD = (
    "kind",
    "seeds",
    "largest d",
    "instances",
    "roads",
    "certificate",
    "outside",
    "gradient",
    "smooth",
    "slowest s",
    "failures",
)


class HandedOn:
    """Counts the instances that Clarabel is asked for."""

    def __init__(self) -> None:
        self.count, self._solve = 0, Clarabel.solve

    def __enter__(self) -> HandedOn:
        handed = self

        def solve(self: Clarabel, problem: Problem) -> Solution:
            handed.count += problem.size
            return handed._solve(self, problem)

        Clarabel.solve = solve
        return self

    def __exit__(self, *_: object) -> None:
        Clarabel.solve = self._solve


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def try_one(kind: str, seed: int, largest: int, tally: Tally) -> None:
    """One polytope, into the tally."""
    found = drawn(kind, seed, largest)
    polytope, d = found.polytope(), found.d
    generator = torch.Generator().manual_seed(seed)
    scores = torch.cat([scale * _draw((2, d), generator) for scale in (0.3, 3.0, 100.0)])
    with HandedOn() as handed:
        start = time.perf_counter()
        solution = polytope.solve(scores, Euclidean(), throw=False)
        seconds = time.perf_counter() - start
    tally.seeds.append(seed)
    tally.instances += len(scores)
    tally.largest = max(tally.largest, d)
    tally.slowest = max(tally.slowest, seconds)
    tally.roads[polytope.which(Euclidean()).rule] += len(scores) - handed.count
    tally.roads[Clarabel.name] += handed.count
    tally.roads = +tally.roads
    place = f"{kind}, seed {seed}, d = {d}"
    if not bool(solution.converged.all()):
        tally.failures.append(f"{place}: status {solution.status.tolist()}")
    for row, (s, y) in enumerate(zip(scores.numpy(), solution.value.numpy(), strict=True)):
        gap, broken = certificate(found, s, y), outside(found, y)
        tally.certificate, tally.outside = max(tally.certificate, gap), max(tally.outside, broken)
        if not (gap <= CERTIFIED and broken <= OUTSIDE):
            tally.failures.append(f"{place}, row {row}: certificate {gap:.1e}, outside {broken:.1e}")
    for error in _derivatives(polytope, scores[:4], generator, tally):
        tally.gradient = max(tally.gradient, error)
        if not error <= DERIVED:
            tally.failures.append(f"{place}: gradient {error:.1e}")


def _derivatives(
    polytope: Facets, scores: Tensor, generator: torch.Generator, tally: Tally
) -> Iterator[float]:
    """Errors along a direction, where differences of two lengths agree."""
    leaf = scores.clone().requires_grad_()
    grad, along = _draw(tuple(scores.shape), generator), _draw(tuple(scores.shape), generator)
    polytope.project(leaf).backward(grad)
    assert leaf.grad is not None
    pulled = (leaf.grad * along).sum(1)
    slopes: list[Tensor] = []
    for step in (1e-4, 1e-5):
        above, below = (polytope.project(scores + sign * step * along) for sign in (1, -1))
        slopes.append(((above - below) * grad).sum(1) / (2 * step))
    size = 1.0 + slopes[1].abs()
    smooth = (slopes[0] - slopes[1]).abs() < 1e-7 * size
    tally.checked += len(smooth)
    tally.smooth += int(smooth.sum())
    yield from ((pulled - slopes[1]).abs() / size)[smooth].tolist()


def run(kinds: list[str], count: int, seed: int, largest: int) -> dict[str, Tally]:
    """That many polytopes in all, over the kinds in turn."""
    tallies = {kind: Tally() for kind in kinds}
    for kind in ("box", "transport", "lifted"):  # so that nothing below waits for a compiler
        try_one(kind, 0, 9, Tally())
    for k in range(count):
        kind = kinds[k % len(kinds)]
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            try_one(kind, seed + k // len(kinds), largest, tallies[kind])
        except Exception as error:
            place = f"{kind}, seed {seed + k // len(kinds)}"
            tallies[kind].failures.append(f"{place}: {type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
    return tallies


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.random_polytopes",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=600, help="polytopes in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--largest", type=int, default=300, help="of the sizes")
    options = parser.parse_args(arguments)
    tallies = run(options.only, options.count, options.seed, options.largest)
    print(markdown(HEAD, [tally.row(kind) for kind, tally in tallies.items() if tally.seeds]))
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    for failure in failures:
        print(f"failed: {failure}")
    print(
        f"{options.count} polytopes, {sum(t.instances for t in tallies.values())} answers, "
        f"{len(failures)} failures"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
