"""The generic engine: sets declared by constraints alone or by an oracle alone, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.elsewhere import Elsewhere
from benchmarks.peers import interpreter, peer
from benchmarks.workload import (
    BOTH,
    FORWARD,
    Check,
    Family,
    Growth,
    Kind,
    Method,
    Target,
    Workload,
    calls,
    largest,
)
from spigot.polytopes import Arborescence, Euclidean, Facets, Oracle, Polytope, Shannon
from spigot.polytopes.arrays import library
from spigot.polytopes.canonical import Canonical
from spigot.polytopes.regularizers import Separable
from spigot.testing.reference import Reference

CHECKED = 4  # instances whose error is measured

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A set with a regularizer, and N(0, 1) scores."""

    polytope: Facets
    regularizer: Separable
    batch: int
    few: int  # instances for those who take seconds for each

    @functools.cached_property
    def scores(self) -> Tensor:
        """The batch."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn((self.batch, *self.polytope.event_shape), generator=generator).double()

    @functools.cached_property
    def expected(self) -> list[Tensor | None]:
        """Clarabel's answers to the first instances, at tolerances of 1e-12."""
        reference = Reference(self.polytope)
        return [reference.solve(row, self.regularizer, None) for row in self.scores[:CHECKED]]

    def error(self, answers: Callable[[], Tensor]) -> Callable[[], float]:
        """How far these are from what is expected."""

        def wrong() -> float:
            pairs = zip(answers(), self.expected, strict=False)
            known = [largest(own.double() - right) for own, right in pairs if right is not None]
            return max(known, default=float("nan"))

        return wrong

    def method(
        self,
        name: str,
        kind: Kind,
        forward: Forward,
        instances: int | None = None,
        *,
        backward: bool = True,
    ) -> Method:
        """A way to do it, for so many instances."""
        count = min(self.batch, instances or self.batch)
        checked = min(count, CHECKED)
        return Method(
            name,
            kind,
            calls(forward, self.scores[:count], backward=backward),
            count,
            self.error(lambda: forward(self.scores[:checked])),
        )


def facets(count: int, d: int) -> Facets:
    """Random facets around a point of the box [0, 1]^d."""
    rng = np.random.default_rng(0)
    normals = rng.standard_normal((count, d))
    limits = normals @ np.full(d, 0.5) + rng.uniform(0.0, 0.5, count)
    return Facets(lambda y: [normals @ y <= limits, y >= 0, y <= 1], (d,))


def birkhoff(n: int) -> Facets:
    """Doubly stochastic matrices."""
    cp = library("cvxpy")
    return Facets(lambda y: [y >= 0, cp.sum(y, axis=0) == 1, cp.sum(y, axis=1) == 1], (n, n))


def grid(side: int) -> Facets:
    """Unit flows over the arcs of a grid, both ways, from corner to corner."""
    sp = library("scipy.sparse")
    cells = np.arange(side * side).reshape(side, side)
    tails = np.concatenate([cells[:, :-1].ravel(), cells[:-1].ravel()])
    heads = np.concatenate([cells[:, 1:].ravel(), cells[1:].ravel()])
    tails, heads = np.append(tails, heads), np.append(heads, tails)
    arcs = np.arange(len(tails))
    ends = (np.append(tails, heads), np.append(arcs, arcs))
    signs = np.append(np.ones(len(arcs)), -np.ones(len(arcs)))
    incidence = sp.csr_matrix((signs, ends), shape=(side * side, len(arcs)))
    balance = np.zeros(side * side)
    balance[0], balance[-1] = 1.0, -1.0
    return Facets(lambda y: [incidence @ y == balance, y >= 0, y <= 1], (len(arcs),))


def ours(task: Task) -> Method:
    """The road that `maximize` takes."""
    return task.method("spigot", Kind.OURS, lambda s: task.polytope.maximize(s, task.regularizer))


def cvxpylayers(task: Task) -> Iterator[Method]:
    """The same set and objective, at its defaults, and at a tolerance that comes near our error."""
    layers = peer("cvxpylayers", "torch")
    if layers is None:
        return
    cp = library("cvxpy")
    y, s = cp.Variable(task.polytope.event_shape), cp.Parameter(task.polytope.event_shape)
    if isinstance(task.regularizer, Euclidean):
        objective = cp.Minimize(0.5 * cp.sum_squares(y) - cp.sum(cp.multiply(s, y)))
    else:
        objective = cp.Minimize(cp.sum(cp.rel_entr(y, 1.0)) - cp.sum(cp.multiply(s, y)))
    problem = cp.Problem(objective, task.polytope.constraints(y))
    layer: Any = layers.CvxpyLayer(problem, parameters=[s], variables=[y])

    def with_settings(**settings: float) -> Forward:
        def forward(scores: Tensor) -> Tensor:
            directions = ("forward", "backward") if scores.requires_grad else ("forward",)
            threads = {f"n_jobs_{direction}": torch.get_num_threads() for direction in directions}
            return layer(scores, solver_args={**threads, **settings})[0]

        return forward

    yield task.method("cvxpylayers", Kind.PEER, with_settings(), task.few)
    if isinstance(task.regularizer, Euclidean):
        tight = with_settings(eps=1e-8, max_iters=100_000)
        yield task.method("cvxpylayers at 1e-08", Kind.PEER, tight, task.few)


@dataclass(frozen=True)
class Ranges:
    """{y : low <= rows y <= high}, the bounds of each part last."""

    rows: Any
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, polytope: Polytope) -> Ranges:
        """As declared."""
        form: Canonical = polytope.canonical
        rows = library("scipy.sparse").vstack([form.A, form.G], format="csr")[:, form.columns]
        identity = library("scipy.sparse").identity(len(form.columns))
        none = np.full(len(form.h), -np.inf)
        return cls(
            library("scipy.sparse").vstack([rows, identity], format="csc"),
            np.concatenate([form.b, none, form.lower[form.columns]]),
            np.concatenate([form.b, form.h, form.upper[form.columns]]),
        )


def osqp(task: Task, *tolerances: float) -> Iterator[Method]:
    """Set up once; each instance updates the linear term."""
    if peer("OSQP") is not None:
        for tolerance in tolerances:
            forward = _osqp(Ranges.of(task.polytope), tolerance)
            yield task.method(f"OSQP at {tolerance:g}", Kind.PEER, forward, backward=False)


def _osqp(ranges: Ranges, tolerance: float) -> Forward:
    module = peer("OSQP")
    assert module is not None
    rows, d = ranges.rows, ranges.rows.shape[1]
    rows.indices, rows.indptr = rows.indices.astype(np.int32), rows.indptr.astype(np.int32)
    identity = library("scipy.sparse").identity(d, format="csc")
    settings = {"verbose": False, "eps_abs": tolerance, "eps_rel": tolerance, "max_iter": 100_000}
    solver = module.OSQP()
    solver.setup(identity, np.zeros(d), rows, ranges.low, ranges.high, **settings)

    def solve(scores: Tensor) -> Tensor:
        answers: list[np.ndarray] = []
        for row in scores.flatten(1).numpy():
            solver.update(q=-row)
            answers.append(solver.solve().x)
        return torch.tensor(np.stack(answers)).reshape(scores.shape)

    return solve


def proxsuite(task: Task) -> Iterator[Method]:
    """Its layer, dense."""
    module = peer("proxsuite", "torch.qplayer")
    if module is None:
        return
    ranges = Ranges.of(task.polytope)
    rows, low, high = map(torch.tensor, (ranges.rows.toarray(), ranges.low, ranges.high))
    square, none = torch.eye(rows.shape[1]).double(), torch.empty(0).double()
    layer: Any = module.QPFunction()

    def forward(scores: Tensor) -> Tensor:
        return layer(square, -scores, none, none, rows, low, high)[0]

    yield task.method("proxsuite's QPLayer", Kind.PEER, forward)


def qpth(task: Task) -> Iterator[Method]:
    """In its own interpreter."""
    python = interpreter("qpth")
    if python is None:
        return
    ranges = Ranges.of(task.polytope)
    rows = ranges.rows.toarray()
    below, above = np.isfinite(ranges.low), np.isfinite(ranges.high)
    arrays = {
        "scores": task.scores.numpy(),
        "upstream": torch.randn(task.scores.shape, generator=torch.Generator().manual_seed(1)).double(),
        "G": np.concatenate([-rows[below], rows[above]]),
        "h": np.concatenate([-ranges.low[below], ranges.high[above]]),
    }
    there = Elsewhere(python, "qpth", {name: np.asarray(array) for name, array in arrays.items()})

    def run(call: str) -> Callable[[], object]:
        return lambda: there.run(call, torch.get_num_threads())

    def answers() -> Tensor:
        there.run(FORWARD, torch.get_num_threads())
        return torch.from_numpy(there.answer(FORWARD))

    both = {call: run(call) for call in (FORWARD, BOTH)}
    yield Method("qpth", Kind.PEER, both, task.batch, task.error(answers))


def jaxopt(task: Task) -> Iterator[Method]:
    """Its BoxOSQP at 1e-6 over a batch, compiled."""
    module, jax = peer("jaxopt"), peer("jaxopt") and library("jax")
    if module is None or jax is None:
        return
    jax.config.update("jax_enable_x64", True)
    ranges, few = Ranges.of(task.polytope), task.few
    rows, low, high = map(jax.numpy.asarray, (ranges.rows.toarray(), ranges.low, ranges.high))
    square = jax.numpy.eye(rows.shape[1])
    solver: Any = module.BoxOSQP(tol=1e-6, maxiter=10_000)

    def solve(scores: Any) -> Any:
        found = solver.run(params_obj=(square, -scores), params_eq=rows, params_ineq=(low, high))
        return found.params.primal[0]

    def pulled(scores: Any, upstream: Any) -> Any:
        return jax.vjp(solve, scores)[1](upstream)[0]

    scores = jax.numpy.asarray(task.scores[:few].numpy())
    ahead, back = jax.jit(jax.vmap(solve)), jax.jit(jax.vmap(pulled))
    timed: Mapping[str, Callable[[], object]] = {
        FORWARD: lambda: ahead(scores).block_until_ready(),
        BOTH: lambda: back(scores, scores).block_until_ready(),
    }

    def answers() -> Tensor:
        return torch.from_numpy(np.asarray(ahead(scores)).copy())

    yield Method("jaxopt's BoxOSQP at 1e-06", Kind.PEER, timed, few, task.error(answers))


def _against(**least: float) -> tuple[Target, ...]:
    """Targets by the peers' names, forward and with backward."""
    names = {"cvxpylayers": "cvxpylayers", "proxsuite": "proxsuite's QPLayer", "qpth": "qpth"}
    return tuple(
        Target(names[peer_], measure, at_least=ratio)
        for peer_, ratio in least.items()
        for measure in (FORWARD, BOTH)
    )


def over_facets(smoke: bool) -> Iterator[Workload]:
    """30 random facets."""
    for d in (6,) if smoke else (50, 100, 200, 400):
        task = Task(facets(3 if smoke else 30, d), Euclidean(), 4 if smoke else 128, 4 if smoke else 16)
        methods = [ours(task)]
        if smoke or d == 100:
            for of in (cvxpylayers, proxsuite, qpth):
                methods += of(task)
        methods += jaxopt(task) if d == 100 else ()  # compiles for a minute
        methods += osqp(task, *((1e-3, 1e-6) if d == 100 else (1e-6,)))
        yield Workload({"d": d}, tuple(methods), _against(cvxpylayers=50, proxsuite=3, qpth=5))


def over_birkhoff(smoke: bool) -> Iterator[Workload]:
    """Permutations' hull."""
    for n in (3,) if smoke else (10, 20, 40):
        task = Task(birkhoff(n), Euclidean(), 4 if smoke else 32, 4)
        methods = [ours(task), *(cvxpylayers(task) if smoke or n == 20 else ()), *osqp(task, 1e-3, 1e-6)]
        targets = (*_against(cvxpylayers=50), Target("OSQP at 1e-06", FORWARD, at_least=2))
        yield Workload({"n": n}, tuple(methods), targets if n == 20 else ())


def over_grid(smoke: bool) -> Iterator[Workload]:
    """Unit flows."""
    for side in (3,) if smoke else (10, 20, 40):
        task = Task(grid(side), Euclidean(), 4 if smoke else 64, 2)
        methods = [
            ours(task),
            *(cvxpylayers(task) if smoke or side == 20 else ()),
            *osqp(task, 1e-3, 1e-6),
        ]
        yield Workload({"side": side}, tuple(methods), _against(cvxpylayers=50))


def by_shannon(smoke: bool) -> Iterator[Workload]:
    """KL projections onto the same sets."""
    sets: Mapping[str, Callable[[], Task]] = {
        "facets": lambda: Task(facets(3, 6) if smoke else facets(30, 100), Shannon(), 128, 16),
        "birkhoff": lambda: Task(birkhoff(3 if smoke else 20), Shannon(), 32, 2),
        "grid": lambda: Task(grid(3 if smoke else 20), Shannon(), 64, 1),
    }
    for name, made in sets.items():
        task = made()
        yield Workload({"set": name}, (ours(task), *cvxpylayers(task)), _against(cvxpylayers=50))


def by_oracle(smoke: bool) -> Iterator[Workload]:
    """Dependency trees by Tarjan's algorithm alone, and by rows with auxiliary variables alone."""
    n = 4 if smoke else 20
    tree = Arborescence(n)
    oracle = Oracle(tree.argmax, (n, n), batched=True)
    task = Task(Facets(tree.constraints, (n, n)), Euclidean(), 4 if smoke else 64, 2)

    def by_rows(scores: Tensor) -> Tensor:
        return task.polytope.maximize(scores, task.regularizer)

    def by_argmax(scores: Tensor) -> Tensor:
        return oracle.maximize(scores, task.regularizer)

    few = task.scores[: task.few]

    def certified(forward: Forward, scores: Tensor) -> float:
        value = forward(scores)
        size = 1 + (scores * value).flatten(1).sum(1).abs()
        return largest(tree.gap(value, scores, task.regularizer) / size)

    def apart() -> float:
        pairs = zip(_with_derivative(by_argmax, few), _with_derivative(by_rows, few), strict=True)
        return max(largest(own - other) for own, other in pairs)

    methods = (
        Method(
            "spigot",
            Kind.OURS,
            calls(by_argmax, task.scores),
            task.batch,
            lambda: (certified(by_argmax, task.scores), apart()),
        ),
        Method(
            ROWS_ALONE,
            Kind.PEER,
            calls(by_rows, few),
            task.few,
            lambda: (certified(by_rows, few), 0.0),
        ),
    )
    faster = tuple(Target(ROWS_ALONE, measure, at_least=1) for measure in (FORWARD, BOTH))
    yield Workload({"n": n}, methods, faster)


def _with_derivative(forward: Forward, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The answers, and their derivative transposed times the scores."""
    leaf = scores.clone().requires_grad_()
    answers = forward(leaf)
    return answers.detach(), torch.autograd.grad(answers, leaf, scores)[0]


ROWS_ALONE = "spigot, by constraints"
ERROR = "largest |y - y*|, y* by Clarabel at tolerances of 1e-12, first instances"

ROWS_FIRST = "factors of 30 rows, the same for every d, show below d = 800; d^0.9 from there to 3200"
TABLES = "a step is n^2, and n^3 in elimination alone: n^1.7 from 40 to 80, n^2.4 from 80 to 160"
SIDES = "side^2.3 from 10 to 20, where separators are small; 2.9 from 20 to 40, 3.1 from 40 to 80"

FAMILIES = (
    Family(
        "engine-facets",
        (Check("error", ERROR, 1e-6),),
        over_facets,
        (Growth("d", 1.0, note=ROWS_FIRST), Growth("d", 1.0, BOTH, ROWS_FIRST)),
        seconds=130,
    ),
    Family(
        "engine-birkhoff",
        (Check("error", ERROR, 1e-6),),
        over_birkhoff,
        (Growth("n", 3.0, note=TABLES), Growth("n", 3.0, BOTH, TABLES)),
        seconds=50,
    ),
    Family(
        "engine-grid",
        (Check("error", ERROR, 1e-6),),
        over_grid,
        (Growth("side", 3.0, note=SIDES), Growth("side", 3.0, BOTH, SIDES)),
        seconds=130,
    ),
    Family("engine-shannon", (Check("error", ERROR, 1e-6),), by_shannon, seconds=130),
    Family(
        "engine-oracle",
        (
            Check("certificate", "relative to 1 + |<s, y>|", 1e-8),
            Check(
                "apart",
                "how far both roads' answers and derivatives are from those by constraints, first "
                "instances (Clarabel does not reach 1e-12 here)",
                1e-8,
            ),
        ),
        by_oracle,
        seconds=65,
    ),
)
