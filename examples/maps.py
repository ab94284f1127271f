"""Where can one walk? Learned from the ways that others took.

A map of 16 by 16 cells is seen through noise: walls and floor look alike in single cells. What is known
of other maps are ways between two points, the shortest that keep away from walls. A small network
gives each cell a cost, and the cheapest path should be the way that was taken; nobody ever shows it a
wall. The maps are published ones if --data or SPIGOT_DATA names them, else walls drawn at random.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from data import grid_maps
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch import Tensor, nn

from spigot.layers import Argmax, FenchelYoungLoss
from spigot.polytopes import Euclidean, GridPath
from spigot.pullback import SPIGOT, STEIdentity

SIDE, NOISE = 16, 0.4
WALL, NEAR = 30.0, 0.5  # what a wall costs, and each wall beside a free cell, which costs 1
GRID = GridPath(SIDE, SIDE, neighbours=8)


@dataclass(frozen=True)
class Ways:
    """Maps with two points each, and a shortest way between them."""

    free: Tensor  # (n, 16, 16), bool
    seen: Tensor  # (n, 1, 16, 16), the map through noise
    ends: dict[str, Tensor]  # (n, 2) each
    taken: Tensor  # (n, 16, 16), the cells of the way

    def some(self, rows: Tensor) -> Ways:
        ends = {name: cells[rows] for name, cells in self.ends.items()}
        return Ways(self.free[rows], self.seen[rows], ends, self.taken[rows])


def drawn(count: int, generator: torch.Generator) -> Tensor:
    """Free cells between walls: thin rectangles anywhere."""
    free = torch.ones(count, SIDE, SIDE, dtype=torch.bool)
    for i in range(count):
        for _ in range(8):
            top, left, length = torch.randint(SIDE, (3,), generator=generator).tolist()
            across = bool(torch.rand((), generator=generator) < 0.5)
            height, width = (2, length) if across else (length, 2)
            free[i, top : top + height, left : left + width] = False
    return free


def two_points(free: Tensor, generator: torch.Generator) -> Tensor:  # (n, 16, 16) -> (2, n, 2)
    """Two cells of each map's largest free region, by preference far apart."""
    found: list[Tensor] = []
    for grid in free:
        regions, _ = cast(Any, ndimage).label(grid.numpy(), structure=torch.ones(3, 3).numpy())
        labels = torch.as_tensor(regions).long()
        largest = torch.nonzero(labels == 1 + labels[labels > 0].bincount()[1:].argmax())
        cells = largest[torch.randint(len(largest), (8, 2), generator=generator)]
        found.append(cells[(cells[:, 0] - cells[:, 1]).abs().amax(1).argmax()])
    return torch.stack(found, 1)


def true_costs(free: Tensor) -> Tensor:
    walls = 1 - nn.functional.pad(free.float(), (1, 1, 1, 1), value=1.0)
    beside = nn.functional.avg_pool2d(walls[:, None], 3, stride=1, divisor_override=1)[:, 0]
    return torch.where(free, 1 + NEAR * beside, WALL)


def ways(free: Tensor, generator: torch.Generator) -> Ways:
    source, target = two_points(free, generator)
    ends = {"source": source, "target": target}
    taken = GRID.maximize(-true_costs(free), keep=free, params=ends)
    seen = free.float() + NOISE * torch.randn(free.shape, generator=generator)
    return Ways(free, seen[:, None], ends, taken)


class Costs(nn.Module):
    """Costs of at least 0.1 from 7 by 7 cells around each."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 3, padding=1),
        )

    def forward(self, seen: Tensor) -> Tensor:  # (n, 1, 16, 16) -> (n, 16, 16)
        raw = self.layers(seen)[:, 0]
        return 0.1 + nn.functional.softplus(raw - raw.mean((1, 2), keepdim=True))  # not all can vanish


Loss = Callable[[Tensor, Ways], Tensor]  # of the scores, which are negative costs


def through(layer: nn.Module) -> Loss:
    """In how many cells the cheapest path is another, through an estimator."""
    return lambda scores, batch: (
        (layer(scores, params=batch.ends) - batch.taken).square().sum((1, 2)).mean()
    )


def fenchel_young(loss: nn.Module) -> Loss:
    return lambda scores, batch: loss(scores, batch.taken, params=batch.ends)


LOSSES: dict[str, Loss] = {
    "STE-identity": through(Argmax(GRID, STEIdentity())),
    "SPIGOT": through(Argmax(GRID, SPIGOT(0.5))),
    "perceptron loss": fenchel_young(FenchelYoungLoss(GRID, validate=False)),
    "SparseMAP loss": fenchel_young(FenchelYoungLoss(GRID, Euclidean(), validate=False)),
}


def learn(loss: Loss, train: Ways, steps: int, batch: int = 16) -> Costs:
    torch.manual_seed(0)
    model = Costs()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        some = train.some(torch.randint(len(train.free), (batch,)))
        optimizer.zero_grad()
        loss(-model(some.seen), some).backward()
        optimizer.step()
    return model


@torch.no_grad()
def judged(paths: Tensor, test: Ways) -> tuple[float, float]:
    """The share of paths through no wall, and the mean cost over that of the shortest way."""
    costs, walls = true_costs(test.free), (paths * ~test.free).sum((1, 2))
    cost = (paths * costs).sum((1, 2)) / (test.taken * costs).sum((1, 2))
    return (walls == 0).float().mean().item(), cost.mean().item()


Row = tuple[str, float, float, float]  # a name, seconds, and what `judged` says


@torch.no_grad()
def paths_by(costs: Tensor, test: Ways) -> Tensor:
    return GRID.maximize(-costs, params=test.ends)


def run(train: Ways, test: Ways, steps: int) -> tuple[list[Row], dict[str, Costs]]:
    plain = paths_by(1 + (WALL - 1) * (test.seen[:, 0] < 0.5), test)
    rows: list[Row] = [
        ("straight ahead", 0.0, *judged(paths_by(torch.ones(test.free.shape), test), test)),
        ("each cell by its own look", 0.0, *judged(plain, test)),
    ]
    models: dict[str, Costs] = {}
    for name, loss in LOSSES.items():
        started = time.perf_counter()
        models[name] = learn(loss, train, steps)
        seconds = time.perf_counter() - started
        rows.append(
            (f"learned by {name}", seconds, *judged(paths_by(models[name](test.seen), test), test))
        )
    return rows, models


def table(rows: list[Row], title: str) -> Table:
    shown = Table(title=title, title_justify="left")
    for name in ("paths", "seconds", "through no wall, %", "cost over the best"):
        shown.add_column(name, justify="left" if name == "paths" else "right")
    for name, seconds, clear, cost in rows:
        shown.add_row(name, f"{seconds:.1f}", f"{100 * clear:.0f}", f"{cost:.2f}")
    return shown


@torch.no_grad()
def picture(model: Costs, test: Ways, file: Path) -> None:
    """One map: as it is, as it is seen, the costs learned with the path on them."""
    costs = model(test.seen[:1])
    path = paths_by(costs, test.some(torch.tensor([0])))
    figure = Figure(figsize=(7.5, 2.7), layout="constrained")
    panels = {
        "the map and a shortest way": (test.free[0].float(), test.taken[0]),
        "as it is seen": (test.seen[0, 0], torch.zeros(SIDE, SIDE)),
        "the costs learned and the path": (-costs[0], path[0]),
    }
    for axes, (title, (shades, cells)) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        axes.imshow(shades, cmap="gray")
        rows, columns = torch.nonzero(cells > 0.5, as_tuple=True)
        axes.scatter(columns, rows, s=6, color="tab:red")
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def maps(folder: Path | None, generator: torch.Generator) -> tuple[str, Tensor, Tensor]:
    """A title, and the maps to learn from and to be judged on."""
    try:
        train, test = (
            torch.cat([family.free[::every, ::2, ::2] for family in grid_maps(part, folder).values()])
            for part, every in (("train", 8), ("test", 2))
        )
        return "Published maps, every second cell, not seen before", train, test
    except SystemExit as missing:
        if folder is not None:
            raise
        print(f"Drawing maps at random: {missing}")
        free = drawn(1000, generator)
        return "Maps drawn at random, not seen before", free[:800], free[800:]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder grid_paths_mpd")
    parser.add_argument("--out", type=Path, default=Path("out/maps"), help="where the picture goes")
    parser.add_argument("--steps", type=int, default=50, help="of sixteen maps each")
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)
    title, train, test = maps(options.data, generator)
    rows, models = run(ways(train, generator), ways(test, generator), options.steps)
    Console().print(table(rows, title))
    file = options.out / "maps.png"
    picture(models["SparseMAP loss"], ways(test[:1], generator), file)
    print(f"A picture of one of them is in {file}.")


if __name__ == "__main__":
    main()
