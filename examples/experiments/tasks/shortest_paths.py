"""Costs of a map's cells, learned from ways that were taken: which of them are the cheapest again?

A map is what one sees of it: free cells and walls. What nobody shows is what a cell costs: 1 in the
open, more near walls (their blur, so that few ways tie), and 30 on a wall, which can be climbed. A
small convolutional network predicts costs, and learns from the cheapest way z* alone, as cells,
never from the costs: its loss is the number of cells in which a path is another, <1 - 2 z*, y> +
|z*|, as in the black-box paper (Vlastelica et al., ICLR 2020), or with distance=squared |y - z*|^2:
the same at paths, with other slopes there. By the first the slope never vanishes, also where the
path is right: what passes it on as it is (STE-identity) goes on pushing, and what pulls it back to
the polytope stops. By the second small steps from z lead to a mixture of z and z*, in the polytope,
so that SPIGOT and STE-identity are the same up to scale. Two rows see the costs as well: SPO+ is
made of them, two-stage fits them (squared error of logarithms).

Structures:

- grid: `GridPath`, steps to all eight neighbours, from each map's start to its published goal. The
  start is drawn among the cells at least half as far from the goal as the farthest one, by the
  published distances. MAP is among simple paths (`nonpositive=True`). There is no sum over all
  paths of a graph with cycles, hence no row that takes marginals.
- monotone: `Alignment`, steps down, right and both at once, from corner to corner: there they are.

Size "full": all eight families of maps of 32 by 32 cells, 6400 to learn from and 800 each to choose
by and to be tested on. Metrics, by the true costs: the share of maps whose path costs at most 1%
more than the cheapest does, the share whose path costs the same, and what paths cost over that.

Three seeds of the main study took 16 minutes on two cores, of the monotone one 7: 800 steps of eight
maps, 5 ms each, and 0.2 s for a projection of eight on the grid. That of scores that are no path, 0.4 s,
is made there for one row alone, SparseMAP; the other rows that need it are among the monotone ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from scipy import ndimage
from torch import Tensor, nn

from examples.data import MAPS, Maps, grid_maps
from examples.experiments.estimators import Choice, choice, layer, row
from examples.experiments.experiment import Experiment, Metric, Needs, Study, Task, cells, minibatch
from examples.experiments.run import Run, Settings, Value
from spigot.polytopes import Alignment, GridPath, Polytope

__all__ = ["TASK", "Costs", "Ways", "drawn_maps", "true_costs", "ways"]

WALL, NEAR, BLUR, FAR = 30.0, 8.0, 1.5, 0.5
PARTS = ("train", "validation", "test")
NEARLY, EXACT = 1e-2, 1e-5  # relative: so near in cost a path counts as a cheapest one
LARGEST = 4.0  # of the logarithms of costs that can be predicted
SMOKE_SIDE, SMOKE_MAPS = 12, 24


@dataclass(frozen=True)
class Ways:
    """Maps, the ends of a way on each, and the cheapest one."""

    free: Tensor  # (n, h, w), bool
    costs: Tensor  # (n, h, w), the true ones
    params: dict[str, Tensor]  # what the structure wants to know of each map
    taken: Tensor  # (n, h, w), 0/1
    best: Tensor  # (n,), what the way costs

    def some(self, rows: Tensor) -> Ways:
        params = {name: value[rows] for name, value in self.params.items()}
        return Ways(self.free[rows], self.costs[rows], params, self.taken[rows], self.best[rows])


def true_costs(free: Tensor) -> Tensor:  # (n, h, w) -> (n, h, w)
    """1, and more near walls, of which there is one all around."""
    walls = nn.functional.pad(1 - free.float(), (8, 8, 8, 8), value=1.0)
    blurred: Any = cast(Any, ndimage).gaussian_filter(walls.numpy(), (0, BLUR, BLUR))
    near = torch.as_tensor(blurred)[:, 8:-8, 8:-8]
    return torch.where(free, 1 + NEAR * near, WALL)


def starts(maps: Maps) -> Tensor:  # (n, 2)
    """A cell of each map, far from its goal, the same in every run."""
    distances = maps.distances.flatten(1)
    reached = distances.isfinite()
    farthest = distances.where(reached, 0.0).amax(1, keepdim=True)
    far = reached & (distances >= FAR * farthest)
    cell = torch.multinomial(far.float(), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    width = maps.free.shape[2]
    return torch.stack([cell // width, cell % width], 1)


def drawn_maps(count: int, side: int, seed: int) -> Maps:
    """Maps drawn at random: a few thin walls, a goal, and distances as if there were none."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.ones(count, side, side, dtype=torch.bool)
    for grid in free:
        for _ in range(4):
            top, left, length, across = torch.randint(side, (4,), generator=generator).tolist()
            height, width = (1, length) if across % 2 else (length, 1)
            grid[top : top + height, left : left + width] = False
    goals = torch.randint(side, (count, 2), generator=generator)
    free[torch.arange(count), goals[:, 0], goals[:, 1]] = True
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    away = (torch.stack([rows, columns], -1) - goals[:, None, None]).abs().amax(-1)
    return Maps(free, goals, away.float().where(free, torch.inf))


def ways(maps: Maps, polytope: Polytope) -> Ways:
    """The cheapest ways on these maps."""
    ends = {"source": starts(maps), "target": maps.goals}
    params = {name: value for name, value in ends.items() if name in polytope.parameters}
    costs = true_costs(maps.free)
    taken = polytope.maximize(-costs, params=params)
    return Ways(maps.free, costs, params, taken, (taken * costs).sum((1, 2)))


def all_maps(size: str) -> dict[str, Maps]:
    """By part; generated ones for a smoke test."""
    if size == "smoke":
        return {part: drawn_maps(SMOKE_MAPS, SMOKE_SIDE, seed) for seed, part in enumerate(PARTS)}
    found: dict[str, Maps] = {}
    for part in PARTS:
        families = list(grid_maps(part).values())
        found[part] = Maps(
            torch.cat([maps.free for maps in families]),
            torch.cat([maps.goals for maps in families]),
            torch.cat([maps.distances for maps in families]),
        )
    return found


STRUCTURES: dict[str, Callable[[int], Polytope]] = {
    "grid": lambda side: GridPath(side, side, neighbours=8, nonpositive=True),
    "monotone": lambda side: Alignment(side, side),
}


class Costs(nn.Module):
    """Costs of cells, each from the 13 by 13 around it; their logarithms lie around 0, within [-4, 4].

    Which path is cheapest does not depend on the scale, and a loss that only knows paths could otherwise
    make all costs vanish, or grow.
    """

    def __init__(self, channels: int = 16, dilations: tuple[int, ...] = (1, 2, 2)) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for before, dilation in zip((1, *(channels for _ in dilations[1:])), dilations, strict=True):
            parts += [
                nn.Conv2d(before, channels, 3, padding=dilation, dilation=dilation),
                nn.LeakyReLU(0.1),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, free: Tensor) -> Tensor:  # (n, h, w), bool -> (n, h, w)
        raw = self.layers(free[:, None].float())[:, 0]
        return (LARGEST * (raw - raw.mean((1, 2), keepdim=True)).div(LARGEST).tanh()).exp()


def scaled(costs: Tensor) -> Tensor:  # (n, h, w)
    """The same costs with geometric mean 1 on each map."""
    return costs / costs.log().mean((1, 2), keepdim=True).exp()


Loss = Callable[[Tensor, Ways], Tensor]  # costs, maps -> each map's own loss


def two_stage(costs: Tensor, batch: Ways) -> Tensor:
    return (costs.log() - scaled(batch.costs).log()).square().mean((1, 2))


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squared": lambda y, way: (y - way).square(),
    "hamming": lambda y, way: y + way - 2 * y * way,
}


def through(made: Choice, distance: str) -> Loss:
    """Through a layer: in how many cells its path is another than the way taken."""
    counted = DISTANCES[distance]

    def loss(costs: Tensor, batch: Ways) -> Tensor:
        def distance(y: Tensor) -> Tensor:
            return counted(y, batch.taken).sum((1, 2))

        return made(-costs, distance, params=batch.params)

    return loss


def loss_of(name: str, polytope: Polytope, settings: Settings) -> Loss:
    """The row's loss: of its own, or through its layer."""
    if name == "two-stage":
        return two_stage
    if row(name).kind != "loss":
        return through(choice(name, polytope, settings), settings.text("distance"))
    made = layer(name, polytope, settings)
    if name == "spo-plus":
        return lambda costs, batch: made(-costs, -scaled(batch.costs), batch.taken, params=batch.params)
    return lambda costs, batch: made(-costs, batch.taken, params=batch.params)


class ShortestPaths(Experiment):
    """A network of costs and the ways that it learns from."""

    def __init__(self, run: Run, settings: Settings) -> None:
        smoke = run.size == "smoke"
        maps = all_maps(run.size)
        self.polytope = STRUCTURES[run.structure](maps["train"].free.shape[1])
        self.parts = {part: ways(found, self.polytope) for part, found in maps.items()}
        self.seed, self.batch = run.seed, settings.whole("batch")
        self.sharpness = settings.number("sharpness")
        self.steps = 4 if smoke else settings.whole("updates")
        self.check_every = 2 if smoke else self.steps // 10
        self.model = Costs()
        optimizer = torch.optim.Adam(self.model.parameters(), settings.number("learning_rate"))
        self.optimizers = [optimizer]
        self.schedulers = [torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, self.steps)]
        self.judge = loss_of(run.estimator, self.polytope, settings)

    def loss(self, step: int) -> Tensor:
        train = self.parts["train"]
        batch = train.some(minibatch(self.seed, step, len(train.free), self.batch))
        return self.judge(self.sharpness * self.model(batch.free), batch).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        known = self.parts[part]
        paths = self.polytope.maximize(-self.model(known.free), params=known.params)
        ratio = (paths * known.costs).sum((1, 2)) / known.best
        return {
            "optimal": (ratio <= 1 + NEARLY).float().mean().item(),
            "exact": (ratio <= 1 + EXACT).float().mean().item(),
            "ratio": ratio.mean().item(),
        }


BY_PATHS = ("ste-identity", "spigot", "spigot-sparsemap", "frank-wolfe", "blackbox", "imle")
FITTED = ("perturbed-fenchel-young", "fenchel-young-sparsemap")
SUMMED = ("ste-softmax", "spigot-ce", "spigot-eg", "marginals", "fenchel-young-gibbs")
PROJECTED = ("sparsemap", "spigot-sparsemap", "fenchel-young-sparsemap")
EVERYWHERE = ("two-stage", "spo-plus", *FITTED, *BY_PATHS, "perturbed", "sparsemap")
DENSE = ("spigot-sparsemap", "fenchel-young-sparsemap")  # not on the grid: seven minutes a run each

# Chosen by what paths cost on the validation maps, one seed, 60 to 1000 steps, most by the squared
# distance: learning rates of 0.003 and 0.01, step sizes of 0.5, 1, 2 and 5, noise of 0.03, 0.1, 0.3
# and 1, sharpness of 1, 3 and 10.
USUAL: dict[str, dict[str, Value]] = {
    "two-stage": {"learning_rate": 0.01},
    "spo-plus": {"learning_rate": 0.01},
    "imle": {"scale": 0.03},
    "perturbed": {"noise": "normal", "scale": 0.1},
    "perturbed-fenchel-young": {"noise": "normal", "scale": 0.03},
    **{name: {"sharpness": 10.0} for name in (*SUMMED, *PROJECTED)},
    **{
        name: {"sharpness": 3.0} for name in ("marginals", "ste-softmax")
    },  # at 10 they stay at the start
}

TASK = Task(
    name="shortest-paths",
    title="Cheapest paths on maps, costs learned from ways taken",
    structures=tuple(STRUCTURES),
    studies=(
        Study(
            "main",
            "Every estimator",
            cells(*(name for name in EVERYWHERE if name not in DENSE)),
            ("grid",),
            curves=True,
        ),
        Study(
            "monotone",
            "Every estimator, with those that take sums over paths",
            cells(*EVERYWHERE, *SUMMED),
            ("monotone",),
        ),
        Study(
            "distance",
            "The same count of wrong cells, squared or bilinear, between its values at paths",
            cells("ste-identity", "spigot", "blackbox", "sparsemap", distance=tuple(DISTANCES)),
            ("grid",),
        ),
    ),
    metrics=(
        Metric("optimal", "paths within 1% of the cheapest, %", percent=True),
        Metric("exact", "cheapest paths, %", percent=True),
        Metric("ratio", "cost over the cheapest", higher=False, log=True),
    ),
    baseline="two-stage",
    make=ShortestPaths,
    options={
        "learning_rate": 0.003,
        "batch": 8,
        "updates": 800,
        "distance": "hamming",
        "sharpness": 1.0,
    },
    usual=USUAL,
    select="ratio",
    needs=Needs("grid_paths_mpd", MAPS),
)
