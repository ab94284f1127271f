"""Paths on grids: decision-focused losses on pyepo's own grid, and cheapest paths over cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import peer
from benchmarks.workload import (
    BOTH,
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
from spigot.layers import Perturbed, SPOPlusLoss
from spigot.polytopes import GridPath, Path
from spigot.polytopes.arrays import library, tensor
from spigot.pullback import Normal

BATCH = 70
SAMPLES = 10
ASKED = 12  # the grid's side that the targets are about


def _sides(smoke: bool) -> tuple[int, ...]:
    return (4,) if smoke else (6, ASKED, 24)


def _arcs(side: int) -> list[tuple[int, int]]:
    """The moves right and down, in pyepo's order: row by row, each row's own before those below it."""
    cells = np.arange(side * side).reshape(side, side)
    found: list[tuple[int, int]] = []
    for r, row in enumerate(cells.tolist()):
        found += pairwise(row)
        found += [] if r + 1 == side else zip(row, cells[r + 1].tolist(), strict=True)
    return found


def _costs(side: int, arcs: int, batch: int) -> tuple[Tensor, Tensor]:
    """Predicted and true ones."""
    generator = torch.Generator().manual_seed(side)
    drawn = torch.rand(2, batch, arcs, generator=generator)
    return 1 + drawn[0], 1 + drawn[1]


def _shortest(side: int, costs: Tensor) -> Tensor:  # (n, arcs) -> (n,), of any sign
    """The least cost from corner to corner, node by node."""
    reach = torch.full((len(costs), side * side), torch.inf, dtype=torch.float64)
    reach[:, 0] = 0.0
    for k, (tail, head) in sorted(enumerate(_arcs(side)), key=lambda arc: arc[1]):
        reach[:, head] = torch.minimum(reach[:, head], reach[:, tail] + costs[:, k].double())
    return reach[:, -1]


def _pyepo_model(side: int) -> Any | None:
    """pyepo's shortest path on OR-Tools' GLOP, or None."""
    model = peer("pyepo", "model.ort")
    if model is None or peer("OR-Tools") is None:
        return None
    made = model.shortestPathModel((side, side))
    assert [tuple(arc) for arc in made.arcs] == _arcs(side)
    return made


# --- SPO+ --------------------------------------------------------------------------------------------


def _spo(smoke: bool) -> Iterator[Workload]:
    for side in _sides(smoke):
        arcs = _arcs(side)
        guess, true = _costs(side, len(arcs), 3 if smoke else BATCH)
        path = Path(arcs, 0, side * side - 1)
        best = path.maximize(-true)
        loss = SPOPlusLoss(path, validate=False)
        expected = -_shortest(side, 2 * guess - true) + ((2 * guess - true).double() * best).sum(1)

        def ours(
            costs: Tensor, loss: SPOPlusLoss = loss, true: Tensor = true, best: Tensor = best
        ) -> Tensor:
            return loss(-costs, -true, best)

        methods = [_method("spigot", Kind.OURS, ours, guess, expected)]
        model = _pyepo_model(side)
        if model is not None:
            theirs = peer("pyepo", "func")
            assert theirs is not None
            plus, least = theirs.SPOPlus(model, processes=1), (true * best).sum(1, keepdim=True)

            def pyepos(
                costs: Tensor,
                plus: Any = plus,
                true: Tensor = true,
                best: Tensor = best,
                least: Tensor = least,
            ) -> Tensor:
                return plus(costs, true, best, least)

            methods.append(_method("pyepo.SPOPlus", Kind.PEER, pyepos, guess, expected))
        asked = (Target("pyepo.SPOPlus", BOTH, at_least=30),) if side == ASKED else ()
        yield Workload({"side": side}, tuple(methods), asked)


def _method(
    name: str, kind: Kind, loss: Callable[[Tensor], Tensor], costs: Tensor, expected: Tensor
) -> Method:
    """Of a mean over the batch."""
    return Method(
        name,
        kind,
        calls(loss, costs),
        len(costs),
        lambda: largest(loss(costs).double() - expected.mean()),
    )


# --- perturbed maximisers ----------------------------------------------------------------------------


def _perturbed(smoke: bool) -> Iterator[Workload]:
    for side in _sides(smoke):
        arcs = _arcs(side)
        costs, _ = _costs(side, len(arcs), 3 if smoke else BATCH)
        layer = Perturbed(Path(arcs, 0, side * side - 1), Normal(), SAMPLES)
        methods = [
            Method(
                "spigot",
                Kind.OURS,
                calls(layer, -costs),
                len(costs),
                lambda layer=layer, costs=costs, side=side: _short(layer, costs, side),
            )
        ]
        model = _pyepo_model(side)
        if model is not None:
            theirs = peer("pyepo", "func")
            assert theirs is not None
            function = theirs.perturbedOpt(model, n_samples=SAMPLES, sigma=1.0, processes=1)
            methods.append(Method(PERTURBED, Kind.PEER, calls(function, costs), len(costs)))
        asked = (Target(PERTURBED, BOTH, at_least=60),) if side == ASKED else ()
        yield Workload({"side": side}, tuple(methods), asked)


PERTURBED = "pyepo.perturbedOpt"


def _short(layer: Perturbed, costs: Tensor, side: int) -> float:
    """How far the mean structure's draws are from least cost, summed: by the same noise again."""
    seed = torch.Generator()
    drawn = Normal().draw((SAMPLES, *costs.shape), costs, seed.manual_seed(1))
    loss = layer.conjugate(-costs, generator=seed.manual_seed(1))
    least = _shortest(side, (costs - drawn).flatten(0, 1)).reshape(SAMPLES, -1).mean(0)
    return largest(loss + least)


# --- cells -------------------------------------------------------------------------------------------


def _cells(smoke: bool) -> Iterator[Workload]:
    for side in _sides(smoke):
        guess, _ = _costs(side, side * side, 3 if smoke else BATCH)
        costs = guess.reshape(-1, side, side)
        grid = GridPath(side, side, neighbours=8)
        dijkstra, least = _dijkstra(side)
        expected = least(costs)
        programme = _programme(side)
        methods = [
            Method(
                name,
                kind,
                calls(function, costs, backward=False),
                len(costs),
                lambda function=function, costs=costs, expected=expected: largest(
                    (costs * function(costs)).double().sum((1, 2)) - expected
                ),
            )
            for name, kind, function in (
                ("spigot", Kind.OURS, lambda costs, grid=grid: grid.maximize(-costs)),
                (SCIPY, Kind.PEER, dijkstra),
                (LINEAR, Kind.PEER, programme),
            )
            if function is not None
        ]
        asked = (Target(SCIPY, at_least=10), Target(LINEAR, at_least=100)) if side == ASKED else ()
        yield Workload({"side": side}, tuple(methods), asked)


SCIPY, LINEAR = "scipy.sparse.csgraph.dijkstra", "OR-Tools GLOP"


def _moves(side: int) -> np.ndarray:  # (moves, 2)
    """Pairs of neighbouring cells, diagonal ones too, sorted."""
    row, column = np.divmod(np.arange(side * side), side)
    near = np.maximum(abs(row[:, None] - row), abs(column[:, None] - column)) == 1
    return np.argwhere(near)


def _dijkstra(side: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The cells of cheapest paths, an instance at a time on one graph; and the least costs."""
    sp, csgraph = library("scipy.sparse"), library("scipy.sparse.csgraph")
    moves, cells = _moves(side), side * side
    graph = sp.csr_matrix((np.ones(len(moves)), moves.T), shape=(cells, cells))

    def run(row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        graph.data = row[graph.indices].astype(np.float64)
        return csgraph.dijkstra(graph, indices=0, return_predecessors=True)

    def visited(costs: Tensor) -> Tensor:
        found = np.zeros((len(costs), cells), dtype=np.float32)
        for out, row in zip(found, costs.flatten(1).numpy(), strict=True):
            _, before = run(row)
            v = cells - 1
            while v >= 0:
                out[v] = 1.0
                v = before[v]
        return tensor(found).reshape(costs.shape)

    def least(costs: Tensor) -> Tensor:
        rows = costs.flatten(1).double().numpy()
        return torch.tensor([row[0] + run(row)[0][-1] for row in rows])

    return visited, least


def _programme(side: int) -> Callable[[Tensor], Tensor] | None:
    """The same by OR-Tools' linear solver over the moves; its model is built once."""
    linear = peer("OR-Tools")
    if linear is None:
        return None
    solver: Any = linear.Solver.CreateSolver("GLOP")
    moves, cells = _moves(side).tolist(), side * side
    flow = [solver.NumVar(0.0, 1.0, "") for _ in moves]
    balance: defaultdict[int, list[Any]] = defaultdict(list)
    for variable, (tail, head) in zip(flow, moves, strict=True):
        balance[tail].append(variable)
        balance[head].append(-variable)
    for cell in range(cells):
        solver.Add(solver.Sum(balance[cell]) == (cell == 0) - (cell == cells - 1))
    objective: Any = solver.Objective()
    objective.SetMinimization()

    def solve(costs: Tensor) -> Tensor:
        found = np.zeros((len(costs), cells), dtype=np.float32)
        found[:, 0] = 1.0
        for out, row in zip(found, costs.flatten(1).tolist(), strict=True):
            for variable, (_, head) in zip(flow, moves, strict=True):
                objective.SetCoefficient(variable, row[head])
            solver.Solve()
            for variable, (_, head) in zip(flow, moves, strict=True):
                out[head] += variable.solution_value()
        return tensor(found).reshape(costs.shape)

    return solve


FAMILIES = (
    Family(
        "path-spo",
        (
            Check(
                "error",
                "the loss less that of a dynamic programme in float64, relative to the batch's mean",
                1e-4,
            ),
        ),
        _spo,
        (Growth("side", 2.0, BOTH, note="the cost of a call shows below 12 x 12"),),
        seconds=60,
    ),
    Family(
        "path-perturbed",
        (
            Check(
                "error",
                "largest error of the mean of the maxima, by a dynamic programme on the same draws",
                1e-4,
            ),
        ),
        _perturbed,
        (Growth("side", 2.0, BOTH),),
        seconds=100,
    ),
    Family(
        "gridpath-map",
        (Check("error", "largest excess of the path's cost over Dijkstra's in float64", 1e-4),),
        _cells,
        (Growth("side", 2.0, note="a heap's logarithm on top"),),
        seconds=50,
    ),
)
