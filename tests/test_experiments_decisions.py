"""Shortest paths and the knapsack, the tasks of decisions: smoke runs, and what they are made of."""

from __future__ import annotations

import math
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.experiments.experiment import Cell, Task
from examples.experiments.store import FINISHED
from examples.experiments.tasks import knapsack, shortest_paths
from examples.experiments.training import Place, train
from spigot.polytopes import Alignment, GridPath


def lines(task: Task) -> list[tuple[str, Cell]]:
    """Every structure and cell that a study runs, once."""
    found = [
        (structure, cell)
        for study in task.studies
        for structure in study.structures or task.structures
        for cell in study.cells
    ]
    return list(dict.fromkeys(found))


def named(value: str | Cell) -> str:
    if isinstance(value, str):
        return value
    return "-".join([value.estimator, *(str(given) for _, given in value.options)])


@pytest.mark.parametrize(("structure", "cell"), lines(shortest_paths.TASK), ids=named)
def test_a_smoke_run_of_shortest_paths(structure: str, cell: Cell, tmp_path: Path) -> None:
    task = shortest_paths.TASK
    result = train(task.run(cell, structure, 0, "smoke"), task, Place(tmp_path))
    assert result.status == FINISHED, result.message
    assert 0 <= result.test["exact"] <= result.test["optimal"] <= 1
    assert result.test["ratio"] >= 1 - 1e-6


@pytest.mark.parametrize(("structure", "cell"), lines(knapsack.TASK), ids=named)
def test_a_smoke_run_of_the_knapsack(structure: str, cell: Cell, tmp_path: Path) -> None:
    task = knapsack.TASK
    result = train(task.run(cell, structure, 0, "smoke"), task, Place(tmp_path))
    assert result.status == FINISHED, result.message
    assert -1e-6 <= result.test["regret"] <= 1


def test_what_the_knapsack_needs_is_learned_from_its_regret() -> None:
    """Two hundred steps of SPO+ on generated days lose less than the first weights do."""
    task = knapsack.TASK
    run = task.run(Cell("spo-plus"), "programme", 0, "smoke")
    experiment = task.experiment(run)
    before = experiment.evaluate("train")["regret"]
    for step in range(200):
        for optimizer in experiment.optimizers:
            optimizer.zero_grad()
        experiment.loss(step).backward()
        for optimizer in experiment.optimizers:
            optimizer.step()
    assert experiment.evaluate("train")["regret"] < 0.5 * before


def test_both_knapsacks_are_the_best_of_all_subsets() -> None:
    weights, capacity = [3, 5, 7, 3, 5, 7, 3], 13
    subsets = torch.tensor(list(product([0.0, 1.0], repeat=len(weights))), dtype=torch.float64)
    subsets = subsets[subsets @ torch.tensor(weights, dtype=torch.float64) <= capacity]
    programme = knapsack.knapsack_programme(weights, capacity)
    assert programme.derivation_count == len(subsets)
    values = torch.randn(6, len(weights), generator=torch.Generator().manual_seed(0)).double()
    best = (values @ subsets.T).amax(1)
    for polytope in (programme, knapsack.knapsack_hull(weights, capacity)):
        chosen = polytope.maximize(values)
        torch.testing.assert_close((chosen * values).sum(1), best)


def test_the_split_is_a_partition_in_the_published_order() -> None:
    parts = knapsack.split(knapsack.SPLIT, 789)
    assert [len(rows) for rows in parts] == [550, 100, 139]
    assert torch.cat(parts).sort().values.equal(torch.arange(789))
    from sklearn.utils import shuffle

    shuffled = torch.as_tensor(shuffle(torch.arange(789).numpy(), random_state=0))
    assert shuffled.equal(torch.cat(parts))


def test_costs_rise_near_walls_and_the_border() -> None:
    free = torch.ones(1, 17, 17, dtype=torch.bool)
    free[0, 8, 8] = False
    costs = shortest_paths.true_costs(free)
    assert costs[0, 8, 8] == shortest_paths.WALL
    assert costs[0, 8, 7] > costs[0, 8, 6] > costs[0, 8, 5] > 1  # away from the wall
    assert costs[0, 0, 0] > costs[0, 0, 3] > costs[0, 3, 3]  # away from the border
    torch.testing.assert_close(costs, costs.transpose(1, 2))


def test_a_cell_s_cost_is_the_gaussian_blur_of_walls() -> None:
    """One wall far from the border: exp(-d^2 / (2 sigma^2)), normalised over the kernel's square."""
    free = torch.ones(1, 33, 33, dtype=torch.bool)
    free[0, 16, 16] = False
    costs = shortest_paths.true_costs(free)
    sigma = shortest_paths.BLUR
    reach = int(4 * sigma + 0.5)
    kernel = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(-reach, reach + 1)]
    for down, right in ((0, 1), (1, 1), (2, 3)):
        near = kernel[reach + down] * kernel[reach + right] / sum(kernel) ** 2
        expected = 1 + shortest_paths.NEAR * near
        assert math.isclose(costs[0, 16 + down, 16 + right].item(), expected, rel_tol=1e-5)


def test_starts_are_far_and_free_and_ways_join_them_to_goals() -> None:
    maps = shortest_paths.drawn_maps(20, 10, seed=3)
    cells = torch.arange(len(maps.free))
    ways = shortest_paths.ways(maps, GridPath(10, 10, neighbours=8))
    start = ways.params["source"]
    assert maps.free[cells, start[:, 0], start[:, 1]].all()
    distances = maps.distances.where(maps.free, 0.0)
    assert (2 * maps.distances[cells, start[:, 0], start[:, 1]] >= distances.amax((1, 2))).all()
    assert (ways.taken[cells, start[:, 0], start[:, 1]] == 1).all()
    assert (ways.taken[cells, maps.goals[:, 0], maps.goals[:, 1]] == 1).all()
    assert not shortest_paths.ways(maps, Alignment(10, 10)).params


def test_predicted_costs_do_not_know_their_scale() -> None:
    torch.manual_seed(0)
    model = shortest_paths.Costs()
    free = shortest_paths.drawn_maps(5, 12, seed=0).free
    costs = model(free)
    with torch.no_grad():
        last = model.layers[-1]
        assert isinstance(last, torch.nn.Conv2d) and last.bias is not None
        last.bias += 1.0
    torch.testing.assert_close(model(free), costs)
    assert (costs > 0).all()
