"""Workers for slow oracles that answer one instance at a time: processes, or threads.

Answers come back in the order of the instances, whoever found them, and where several instances
fail it is the first of them that is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spigot.polytopes.workers.crew import Array, Crew, Failure, Function, fail
from spigot.polytopes.workers.processes import Processes
from spigot.polytopes.workers.threads import Threads

__all__ = ["Crew", "Failure", "Processes", "Threads", "crew"]


def crew(fn: Function, workers: int | Threads | Processes, timeout: float | None) -> Crew:
    """Those who answer for an oracle; an int stands for so many processes, 0 for nobody else."""
    if isinstance(workers, int):
        return Processes(workers).crew(fn, timeout) if workers else _Alone(fn)
    return workers.crew(fn, timeout)


class _Alone:
    """No workers."""

    def __init__(self, fn: Function) -> None:
        self._fn = fn

    def run(self, inputs: Sequence[Array]) -> list[Any]:
        answers: list[Any] = []
        for row, given in enumerate(inputs):
            try:
                answers.append(np.asarray(self._fn(given), dtype=np.float64))
            except Exception as error:
                fail(row, error)
        return answers
