"""The tasks by name: one module each, with a `TASK`."""

from __future__ import annotations

from examples.experiments.experiment import Task
from examples.experiments.tasks import (
    categorical,
    keypoints,
    knapsack,
    listops,
    ranking,
    sentiment,
    shortest_paths,
    tagging,
)

__all__ = ["TASKS", "task"]

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        categorical,
        sentiment,
        listops,
        shortest_paths,
        knapsack,
        keypoints,
        ranking,
        tagging,
    )
}


def task(name: str) -> Task:
    """The task of that name.

    Raises:
        SystemExit: there is none; names those that are.
    """
    if name not in TASKS:
        raise SystemExit(f"There is no task {name!r}. There are: {', '.join(TASKS)}.")
    return TASKS[name]
