"""Cheapest paths over grids by sweeps, against Dijkstra's method written out with a heap."""

from __future__ import annotations

import heapq
import math

import pytest
import torch
from torch import Tensor

from spigot.polytopes import GridPath, NoStructure
from tests.tensors import normal

Cell = tuple[int, int]


def cheapest(costs: Tensor, source: Cell, target: Cell, neighbours: int) -> tuple[float, int]:
    """The least cost and, at that cost, the fewest cells; infinite costs are walls."""
    h, w = costs.shape
    moves = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    if neighbours == 4:
        moves = [(a, b) for a, b in moves if a * b == 0]
    heap = [(float(costs[source]), 1, source)]
    done: set[Cell] = set()
    while heap:
        cost, cells, (i, j) = heapq.heappop(heap)
        if (i, j) == target:
            return cost, cells
        if (i, j) in done or math.isinf(cost):
            continue
        done.add((i, j))
        for a, b in moves:
            if 0 <= i + a < h and 0 <= j + b < w:
                near = (i + a, j + b)
                heapq.heappush(heap, (cost + float(costs[near]), cells + 1, near))
    return math.inf, 0


def joined(mask: Tensor, source: Cell, target: Cell, neighbours: int) -> bool:
    """Whether chosen cells lead from source to target, none left over."""
    costs = torch.where(mask > 0, 0.0, math.inf)
    cost, cells = cheapest(costs, source, target, neighbours)
    return cost == 0 and cells == int(mask.sum())


@pytest.mark.parametrize("neighbours", [4, 8])
@pytest.mark.parametrize("kind", ["random", "small integers", "free cells", "all alike"])
def test_cost_and_fewest_cells(neighbours: int, kind: str) -> None:
    """37 grids: two full blocks of 16 side by side, and a rest."""
    h, w, n = 7, 9, 37
    random = normal(n, h, w).abs()
    costs = {
        "random": random,
        "small integers": (3 * random).round(),
        "free cells": random * (random > 0.7),
        "all alike": torch.ones(n, h, w).double(),
    }[kind]
    generator = torch.Generator().manual_seed(1)
    source, target = (
        torch.stack([torch.randint(size, (n,), generator=generator) for size in (h, w)], -1)
        for _ in "ab"
    )
    found = GridPath(h, w, neighbours).maximize(-costs, params={"source": source, "target": target})
    for i in range(n):
        ends = (int(source[i, 0]), int(source[i, 1])), (int(target[i, 0]), int(target[i, 1]))
        cost, cells = cheapest(costs[i], *ends, neighbours)
        assert float((costs[i] * found[i]).sum()) == pytest.approx(cost, abs=1e-12)
        assert int(found[i].sum()) == cells
        assert joined(found[i], *ends, neighbours)


def test_a_maze_is_walked_through() -> None:
    """A way that turns back and forth: many sweeps."""
    h, w = 11, 12
    keep = torch.ones(h, w, dtype=torch.bool)
    for row in range(1, h, 2):
        keep[row, : w - 1] = False
        if row % 4 == 3:
            keep[row, :] = False
            keep[row, 0] = True
    found = GridPath(h, w).maximize(-torch.ones(h, w), keep=keep)
    cost, cells = cheapest(torch.where(keep, 1.0, math.inf), (0, 0), (h - 1, w - 1), 4)
    assert float(found.sum()) == cost == cells > 60
    assert bool((found[~keep] == 0).all())


def test_neighbours_in_the_batch_change_nothing() -> None:
    """Alone, among others, and among others that are of other sizes, masked or have gains."""
    grid = GridPath(6, 6, 8)
    scores = -(4 * normal(40, 6, 6).abs()).round()
    scores[3] = normal(6, 6)  # positive scores: another road
    lengths = torch.randint(1, 7, (40, 2), generator=torch.Generator().manual_seed(2))
    keep = torch.rand(40, 6, 6, generator=torch.Generator().manual_seed(3)) > 0.1
    keep[:, 0, :] = keep[:, :, 0] = True
    for i, (rows, columns) in enumerate(lengths.tolist()):
        keep[i, rows - 1, :columns] = True
    together = grid.maximize(scores, lengths=lengths, keep=keep)
    for i in range(40):
        alone = grid.maximize(scores[i], lengths=lengths[i], keep=keep[i])
        assert torch.equal(together[i], alone)


def test_no_way_is_told() -> None:
    keep = torch.ones(20, 4, 4, dtype=torch.bool)
    keep[17, 2] = False
    with pytest.raises(NoStructure, match="instance 17"):
        GridPath(4, 4).maximize(-torch.ones(20, 4, 4), keep=keep)
