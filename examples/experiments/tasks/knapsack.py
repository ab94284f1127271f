"""Electricity prices, predicted for a knapsack: is the error made where it costs nothing?

A day has 48 half-hours, each an item that weighs 3, 5 or 7 and is worth what the set says (prices
times weights, with noise). A linear model of eight features, the same for every half-hour, predicts
the values; the half-hours of the largest predicted value within the capacity, 60, are taken. What
is lost against the best choice, by the true values, is the regret: relative to the best, the mean
over days. The model does not see the weights, as in the published benchmark, so it cannot be right,
only useful.

The split is the published one: 789 days shuffled, 550 to learn from, 100 to choose by, 139 to be
tested on; features standardised by the set's own first 552 days. Values are divided by their mean.
So are the regret and the linear model of the published benchmark (Mandi et al., "Decision-focused
learning", JAIR 2024, and its code); optimiser, number of steps and noise are ours. Its figures are
drawn, not written: they could not be compared number by number.

Rows through a layer learn from the regret itself, <t, z* - y>; two-stage from the squared error of
values.

Structures, the same polytope twice:

- programme: a dynamic programme over the weight taken so far, a `Hypergraph`: sums over all choices
  too;
- integer-hull: `IntegerHull` of one constraint, by branch and bound, 2 ms a choice where the
  programme takes 20 microseconds: for rows that need few choices and no projection. Both are
  evaluated by the programme.

Size "full": 400 steps of 32 days; three seeds of the main study took three minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from examples.data import PRICES, Prices, electricity_prices
from examples.experiments.estimators import choice, layer, row
from examples.experiments.experiment import Experiment, Metric, Needs, Study, Task, cells, minibatch
from examples.experiments.run import Run, Settings, Value
from spigot.polytopes import Hypergraph, IntegerHull, Polytope

__all__ = ["TASK", "Days", "knapsack_hull", "knapsack_programme", "split"]

SPLIT = (550, 100, 139)
PARTS = ("train", "validation", "test")
SMOKE_SPLIT, SMOKE_ITEMS, SMOKE_CAPACITY = (24, 12, 12), 12, 20


def knapsack_programme(weights: list[int], capacity: int) -> Hypergraph:
    """Items one after the other; a node is how many were looked at and what was taken so far weighs."""
    edges: list[tuple[object, ...]] = [((0, 0), ())]
    reached = {0}
    for item, weight in enumerate(weights):
        edges += [((item + 1, load), ((item, load),)) for load in reached]
        taken = {load + weight for load in reached if load + weight <= capacity}
        edges += [((item + 1, load), ((item, load - weight),), item) for load in taken]
        reached |= taken
    edges += [("bag", ((len(weights), load),)) for load in reached]
    return Hypergraph(edges, len(weights), "bag")


def knapsack_hull(weights: list[int], capacity: int) -> IntegerHull:
    """The hull of the sets of items of at most this weight."""
    row = np.array(weights, dtype=float)
    return IntegerHull(lambda y: [y >= 0, y <= 1, row @ y <= capacity], (len(weights),))


STRUCTURES: dict[str, Callable[[list[int], int], Polytope]] = {
    "programme": knapsack_programme,
    "integer-hull": knapsack_hull,
}


@dataclass(frozen=True)
class Days:
    """Days of half-hours."""

    features: Tensor  # (days, 48, 8)
    values: Tensor  # (days, 48), 1 on average
    best: Tensor  # (days, 48), the best choice
    worth: Tensor  # (days,), what it is worth


def split(sizes: tuple[int, ...], days: int) -> list[Tensor]:
    """The published one: numpy's shuffle from seed 0, as scikit-learn's `shuffle` does it."""
    order = np.arange(days)
    np.random.RandomState(0).shuffle(order)
    return list(torch.as_tensor(order)[: sum(sizes)].split(list(sizes)))


def drawn_prices(days: int) -> Prices:
    """Prices that are a linear function of the features and the weight, and noise."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(days, SMOKE_ITEMS, 8, generator=generator, dtype=torch.float64)
    weights = torch.tensor([3.0, 5.0, 7.0] * (SMOKE_ITEMS // 3), dtype=torch.float64)
    prices = 5 + features @ torch.linspace(-1, 1, 8, dtype=torch.float64)
    prices = prices + torch.randn(prices.shape, generator=generator, dtype=torch.float64)
    return Prices(features, prices * weights, weights)


def both(size: str) -> tuple[Prices, Prices]:
    """What the features are standardised by, and all days."""
    if size == "smoke":
        whole = drawn_prices(sum(SMOKE_SPLIT))
        return whole, whole
    first, second = electricity_prices("train"), electricity_prices("test")
    features = torch.cat([first.features, second.features])
    return first, Prices(features, torch.cat([first.prices, second.prices]), first.weights)


def all_days(size: str, programme: Polytope, prices: tuple[Prices, Prices]) -> dict[str, Days]:
    """By part."""
    first, whole = prices
    seen = first.features.flatten(0, 1)
    deviation = seen.std(0, correction=0)
    features = ((whole.features - seen.mean(0)) / deviation.where(deviation > 0, 1.0)).float()
    values = (whole.prices / first.prices.mean()).float()
    sizes = SMOKE_SPLIT if size == "smoke" else SPLIT
    found: dict[str, Days] = {}
    for part, rows in zip(PARTS, split(sizes, len(values)), strict=True):
        best = programme.maximize(values[rows])
        found[part] = Days(features[rows], values[rows], best, (best * values[rows]).sum(1))
    return found


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # predicted values, true ones, best choices -> (days,)


def loss_of(name: str, polytope: Polytope, settings: Settings) -> Loss:
    """The row's loss: of its own, or the regret through its layer."""
    if name == "two-stage":
        return lambda scores, values, _: (scores - values).square().mean(1)
    if row(name).kind == "loss":
        made = layer(name, polytope, settings)
        if name == "spo-plus":
            return lambda scores, values, best: made(scores, values, best)
        return lambda scores, _, best: made(scores, best)
    choose = choice(name, polytope, settings)
    return lambda scores, values, best: choose(scores, lambda y: (values * (best - y)).sum(1))


class Knapsack(Experiment):
    """A linear model of values, and the choices that it leads to."""

    def __init__(self, run: Run, settings: Settings) -> None:
        smoke = run.size == "smoke"
        prices = both(run.size)
        weights = [round(weight) for weight in prices[0].weights.tolist()]
        capacity = SMOKE_CAPACITY if smoke else settings.whole("capacity")
        self.programme = knapsack_programme(weights, capacity)
        self.days = all_days(run.size, self.programme, prices)
        polytope = STRUCTURES[run.structure](weights, capacity)
        self.seed, self.batch = run.seed, 8 if smoke else settings.whole("batch")
        self.steps = 4 if smoke else settings.whole("updates")
        self.check_every = max(self.steps // 20, 2)
        self.model = nn.Linear(8, 1)
        self.optimizers = [torch.optim.Adam(self.model.parameters(), settings.number("learning_rate"))]
        self.judge = loss_of(run.estimator, polytope, settings)

    def loss(self, step: int) -> Tensor:
        days = self.days["train"]
        rows = minibatch(self.seed, step, len(days.values), self.batch)
        return self.judge(
            self.model(days.features[rows])[..., 0], days.values[rows], days.best[rows]
        ).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        days = self.days[part]
        predicted = self.model(days.features)[..., 0]
        chosen = self.programme.maximize(predicted)
        regret = 1 - (chosen * days.values).sum(1) / days.worth
        error = (predicted - days.values).square().mean()
        return {"regret": regret.mean().item(), "error": error.item()}


FEW_CHOICES = ("two-stage", "spo-plus", "ste-identity", "frank-wolfe", "blackbox", "imle")
THROUGH = ("ste-identity", "spigot", "spigot-ce", "spigot-eg", "spigot-sparsemap", "frank-wolfe")
PERTURBED = ("blackbox", "imle", "perturbed", "perturbed-fenchel-young")
RELAXED = ("ste-softmax", "sparsemap", "marginals", "fenchel-young-sparsemap", "fenchel-young-gibbs")

# Chosen by the validation days' regret, one seed, 100 to 400 steps: learning rates of 0.03 and 0.1,
# step sizes of 0.1, 0.3, 1, 2, 5 and 10, noise of 0.1 and 0.5, temperatures of 0.03, 0.1, 0.3 and 1.
USUAL: dict[str, dict[str, Value]] = {
    "blackbox": {"step_size": 0.1},
    "spigot-ce": {"step_size": 2.0},
    "spigot-eg": {"step_size": 5.0},
    "frank-wolfe": {"step_size": 3.0},
    "imle": {"scale": 0.5},
    "perturbed": {"noise": "normal", "scale": 0.5},
    "perturbed-fenchel-young": {"noise": "normal", "scale": 0.1},
    "marginals": {"temperature": 0.1},
    "sparsemap": {"temperature": 0.1},
}

TASK = Task(
    name="knapsack",
    title="A knapsack of half-hours at predicted electricity prices",
    structures=tuple(STRUCTURES),
    studies=(
        Study(
            "main",
            "Every estimator",
            cells("two-stage", "spo-plus", *THROUGH, *PERTURBED, *RELAXED),
            ("programme",),
            curves=True,
        ),
        Study("branch-and-bound", "By branch and bound", cells(*FEW_CHOICES), ("integer-hull",)),
        Study(
            "capacity",
            "Larger knapsacks",
            cells("two-stage", "spo-plus", "spigot", "blackbox", "imle", capacity=(60, 120, 180)),
            ("programme",),
        ),
    ),
    metrics=(
        Metric("regret", "regret, % of the best", higher=False, percent=True),
        Metric("error", "squared error of values", higher=False, log=True),
    ),
    baseline="two-stage",
    make=Knapsack,
    options={"learning_rate": 0.03, "batch": 32, "updates": 400, "capacity": 60},
    usual=USUAL,
    select="regret",
    needs=Needs("energy_knapsack_predopt", PRICES),
)
