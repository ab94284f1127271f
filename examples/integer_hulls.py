"""Knapsacks and tours in a few lines: the hull of the integer points of some constraints.

`IntegerHull(constraints, shape)` asks HiGHS's branch and bound for its best structure and builds every
projection from such answers, so it is one onto the hull itself, never onto the linear relaxation. Here:

- a knapsack of half-hours: when to run, at the prices of one day, with so much energy in all. With the
  data set energy_knapsack_predopt (github.com/PredOpt/predopt-benchmarks, Knapsack/Trainer/Data.npz) in
  the folder that SPIGOT_DATA names, its prices and weights; generated ones otherwise;
- the travelling salesman on seven cities, with a cut for every set of cities that must be left.

For both: the best structure, the projection of its scores, and one step of SPIGOT towards a structure
that we want, which the scores do not yet prefer.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

from spigot.layers import Argmax
from spigot.polytopes import Euclidean, IntegerHull
from spigot.pullback import SPIGOT

CITIES = 7
PAIRS = list(combinations(range(CITIES), 2))


def knapsack(weights: np.ndarray, capacity: float) -> IntegerHull:
    """Items of at most this weight in all."""
    return IntegerHull(lambda y: [y >= 0, y <= 1, weights @ y <= capacity], (len(weights),))


def tours() -> IntegerHull:
    """Every city on two roads, and no set of cities closed in itself."""

    def constraints(y: cp.Variable) -> list[Any]:
        degrees = [
            cp.sum(y[[i for i, pair in enumerate(PAIRS) if city in pair]]) for city in range(CITIES)
        ]
        cuts = [
            cp.sum(y[[i for i, pair in enumerate(PAIRS) if set(pair) <= set(cities)]]) <= size - 1
            for size in range(3, CITIES - 2)
            for cities in combinations(range(CITIES), size)
        ]
        return [y >= 0, y <= 1, *(degree == 2 for degree in degrees), *cuts]

    return IntegerHull(constraints, (len(PAIRS),))


@dataclass(frozen=True)
class Day:
    """Prices and weights of a day's half-hours."""

    prices: Tensor
    weights: np.ndarray
    source: str


def day(items: int) -> Day:
    """A day of the data set, or a generated one."""
    folder = os.environ.get("SPIGOT_DATA")
    file = Path(folder) / "energy_knapsack_predopt" / "Data.npz" if folder else None
    if file is not None and file.exists():
        with np.load(file) as data:
            prices, weights = data["y_test"].reshape(-1, 48)[0], data["weights"].reshape(-1)
        return Day(torch.tensor(prices[:items]).double(), weights[:items].astype(float), "energy data")
    rng = np.random.default_rng(0)
    weights = rng.choice([3.0, 5.0, 7.0], items)
    return Day(torch.tensor(weights * rng.lognormal(3.5, 0.4, items)), weights, "generated")


def one_step(polytope: IntegerHull, scores: Tensor, wanted: Tensor, rate: float) -> Tensor:
    """The scores after one step of SPIGOT on the squared distance to the wanted structure."""
    leaf = scores.clone().requires_grad_()
    chosen = Argmax(polytope, SPIGOT(step_size=1.0))(leaf)
    (0.5 * (chosen - wanted).square().sum()).backward()
    assert leaf.grad is not None
    return scores - rate * leaf.grad


def report(name: str, polytope: IntegerHull, scores: Tensor, wanted: Tensor) -> None:
    """The three problems and what they cost."""
    start = time.perf_counter()
    best = polytope.maximize(scores)
    after_map = time.perf_counter()
    solution = polytope.solve(scores, Euclidean())
    after_projection = time.perf_counter()
    stepped = one_step(polytope, scores, wanted, rate=2.0)
    end = time.perf_counter()
    assert solution.weights is not None and solution.gap is not None
    mixed = int((solution.weights > 0).sum())
    between = int(((solution.value > 1e-9) & (solution.value < 1 - 1e-9)).sum())
    print(f"\n{name}")
    print(f"  best structure   score {float(best @ scores):8.3f}   {after_map - start:6.2f} s")
    print(
        f"  projection       a mixture of {mixed} structures, {between} parts strictly between 0 and 1, "
        f"certificate {abs(float(solution.gap)):.0e}   "
        f"{after_projection - after_map:6.2f} s"
    )
    gap_before = float((best - wanted) @ scores)
    again = polytope.maximize(stepped)
    gap_after = float((again - wanted) @ stepped)
    print(
        f"  one SPIGOT step  the wanted structure trails the best by {gap_before:.3f} before, "
        f"{gap_after:.3f} after   {end - after_projection:6.2f} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=24, help="half-hours in the knapsack, at most 48")
    options = parser.parse_args(arguments)
    today = day(options.items)
    capacity = float(today.weights.sum()) // 3
    bag = knapsack(today.weights, capacity)
    scores = today.prices / today.prices.abs().mean()
    rng = torch.Generator().manual_seed(0)
    wanted = bag.maximize(scores + 0.3 * torch.randn(len(scores), generator=rng, dtype=torch.float64))
    title = f"Knapsack ({today.source}): {len(scores)} half-hours, at most {capacity:g} units of energy"
    report(title, bag, scores, wanted)

    places = torch.rand(CITIES, 2, generator=rng, dtype=torch.float64)
    lengths = torch.stack([(places[i] - places[j]).norm() for i, j in PAIRS])
    tour = tours()
    wanted = tour.maximize(-lengths - 0.4 * torch.randn(len(PAIRS), generator=rng, dtype=torch.float64))
    report(f"Travelling salesman: {CITIES} cities, {len(PAIRS)} roads", tour, -lengths, wanted)
    roads = [PAIRS[i] for i in tour.maximize(-lengths).nonzero()[:, 0].tolist()]
    print(f"  the shortest tour uses the roads {', '.join(f'{i}-{j}' for i, j in roads)}")


if __name__ == "__main__":
    main()
