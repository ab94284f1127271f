"""Shortest paths on published maps: the distances that came with them are reproduced."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spigot.polytopes import Euclidean, GridPath, NoStructure

FOLDER = Path(os.environ.get("SPIGOT_DATA", "")) / "grid_paths_mpd"
pytestmark = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ or not FOLDER.is_dir(),
    reason="SPIGOT_DATA names no folder with grid_paths_mpd (github.com/omron-sinicx/planning-datasets)",
)
GRID = GridPath(32, 32, 8)


def readers() -> Any:
    """The examples' module of readers; examples are no package."""
    if "example_data" not in sys.modules:
        path = Path(__file__).parent.parent / "examples" / "data.py"
        spec = importlib.util.spec_from_file_location("example_data", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["example_data"] = module
        spec.loader.exec_module(module)
    return sys.modules["example_data"]


def starts(distances: Tensor) -> Tensor:  # (n, 32, 32) -> (k, n, 2)
    """The farthest cell that has a way to the goal, and two others of each map."""
    ways = torch.where(distances.isinf(), -1.0, distances).flatten(1)
    generator = torch.Generator().manual_seed(0)
    others = torch.multinomial((ways > 0).double(), 2, generator=generator)
    cells = torch.cat([ways.argmax(1, keepdim=True), others], 1).T
    return torch.stack([cells // 32, cells % 32], -1)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_distances_of_all_maps(part: str) -> None:
    for maps in readers().grid_maps(part).values():
        costs = -torch.ones(len(maps.free), 32, 32)
        rows = torch.arange(len(maps.free))
        for source in starts(maps.distances):
            ends = {"source": source, "target": maps.goals}
            best = GRID.maximize(costs, keep=maps.free, params=ends)
            moves = best.sum((1, 2)) - 1
            assert torch.equal(moves.double(), maps.distances[rows, source[:, 0], source[:, 1]])
            assert bool((best.bool() <= maps.free).all())


def test_cells_without_a_way() -> None:
    count = 0
    for maps in readers().grid_maps("test").values():
        for i in range(len(maps.free)):
            cut = torch.nonzero(maps.free[i] & maps.distances[i].isinf())
            if len(cut):
                count += 1
                ends = {"source": cut[0], "target": maps.goals[i]}
                with pytest.raises(NoStructure):
                    GRID.maximize(-torch.ones(32, 32), keep=maps.free[i], params=ends)
    assert count > 0


def test_projections_on_maps_are_certified() -> None:
    generator = torch.Generator().manual_seed(0)
    for maps in readers().grid_maps("test").values():
        scores = torch.randn(3, 32, 32, generator=generator).double()
        ends = {"source": starts(maps.distances)[0, :3], "target": maps.goals[:3]}
        solution = GRID.solve(scores, Euclidean(), keep=maps.free[:3], params=ends)
        assert solution.gap is not None
        linear = (scores * solution.value).sum((1, 2)).abs()
        assert bool((solution.gap.abs() <= 1e-9 * (1 + linear)).all())
