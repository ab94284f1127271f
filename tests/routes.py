"""Paths and flows of small graphs and grids, listed from their definition."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from spigot.polytopes import Hull

__all__ = ["LADDER", "arc_flows", "cell_sets", "grid_flows", "unit_flows"]

LADDER = [("a", "b"), ("a", "c"), ("b", "c"), ("b", "d"), ("c", "d"), ("c", "e"), ("d", "e")]


def arc_flows(arcs: list[tuple[int, int]], nodes: int, source: int, target: int) -> Tensor:
    """Every 0/1 vector over the arcs whose balance is a unit from source to target."""
    points = torch.tensor(list(product([0.0, 1.0], repeat=len(arcs))), dtype=torch.float64)
    balance = torch.zeros(len(arcs), nodes, dtype=torch.float64)
    for k, (a, b) in enumerate(arcs):
        balance[k, a] += 1
        balance[k, b] -= 1
    supply = torch.zeros(nodes, dtype=torch.float64)
    supply[source] += 1
    supply[target] -= 1
    return points[(points @ balance == supply).all(1)]


def unit_flows(arcs: list[tuple[str, str]], source: str, target: str) -> Hull:
    """The flows of a graph whose nodes are letters."""
    number = {name: k for k, name in enumerate(dict.fromkeys("".join(map("".join, arcs))))}
    pairs = [(number[a], number[b]) for a, b in arcs]
    return Hull(arc_flows(pairs, len(number), number[source], number[target]))


def _successors(
    cells: list[tuple[int, int]], neighbours: int
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    def near(a: tuple[int, int], b: tuple[int, int]) -> bool:
        step = sorted((abs(a[0] - b[0]), abs(a[1] - b[1])))
        return step == [0, 1] or (neighbours == 8 and step == [1, 1])

    return {a: [b for b in cells if near(a, b)] for a in cells}


def _splits(
    cells: list[tuple[int, int]], source: tuple[int, int], target: tuple[int, int], neighbours: int
) -> bool:
    """Whether each cell but the target can have a successor, none the same and none the source."""
    after = _successors(cells, neighbours)
    rest = [cell for cell in cells if cell != target]

    def assign(k: int, taken: frozenset[tuple[int, int]]) -> bool:
        if k == len(rest):
            return True
        return any(assign(k + 1, taken | {b}) for b in after[rest[k]] if b not in taken)

    return source in cells and target in cells and assign(0, frozenset({source}))


def cell_sets(
    h: int,
    w: int,
    neighbours: int,
    source: tuple[int, int] = (0, 0),
    target: tuple[int, int] | None = None,
) -> Tensor:
    """Every set of cells that splits into a path from source to target and cycles, `(m, h, w)`."""
    target = (h - 1, w - 1) if target is None else target
    grid = [(r, c) for r in range(h) for c in range(w)]
    found: list[list[float]] = []
    for bits in product([0.0, 1.0], repeat=h * w):
        cells = [cell for cell, bit in zip(grid, bits, strict=True) if bit]
        if _splits(cells, source, target, neighbours):
            found.append(list(bits))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, h, w)


def grid_flows(h: int, w: int, neighbours: int) -> Hull:
    """The same as a polytope."""
    return Hull(cell_sets(h, w, neighbours))
