"""Threads that answer for an oracle."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spigot.polytopes.settings import counts
from spigot.polytopes.workers.crew import Array, Crew, Failure, Function, fail

__all__ = ["Threads"]


@dataclass(frozen=True)
class Threads:
    """`Oracle(fn, shape, workers=Threads(4))`: for functions that release the interpreter's lock.

    They share the memory of this process, so anything callable will do. A thread cannot be stopped:
    where a time limit passes the call raises, and the thread ends when its function returns.

    Args:
        count: how many instances are answered at a time.

    Raises:
        ValueError: a count below 1.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from spigot.polytopes import Oracle
        >>> from spigot.polytopes.workers import Threads
        >>> top = Oracle(lambda s: np.eye(len(s))[s.argmax()], (3,), workers=Threads(2))
        >>> top.maximize(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]))
        tensor([[0., 1., 0.],
                [1., 0., 0.]])
    """

    count: int

    def __post_init__(self) -> None:
        counts(self, count=self.count)

    def crew(self, fn: Function, timeout: float | None) -> Crew:
        """Threads are made for every call."""
        return _ThreadCrew(fn, self.count, timeout)


class _ThreadCrew:
    """Threads that take the next instance until there is none, watched for the time limit."""

    def __init__(self, fn: Function, count: int, timeout: float | None) -> None:
        self._fn, self._count, self._timeout = fn, count, timeout

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        board = _Board(inputs)
        for _ in range(min(self._count, len(inputs))):
            threading.Thread(target=board.work, args=(self._fn,), daemon=True).start()
        return board.wait(self._timeout)


class _Board:
    """What is to be answered, since when each is being answered, and the answers."""

    def __init__(self, inputs: Sequence[Array]) -> None:
        self._inputs = inputs
        self._changed = threading.Condition()
        self._next = 0
        self._since: dict[int, float] = {}
        self._answers: dict[int, Any] = {}
        self._failed: dict[int, BaseException] = {}
        self._over = False

    def work(self, fn: Function) -> None:
        while True:
            with self._changed:
                if self._over or self._failed or self._next == len(self._inputs):
                    return
                row = self._next
                self._next += 1
                self._since[row] = time.monotonic()
            try:
                answer, error = np.asarray(fn(self._inputs[row]), dtype=np.float64), None
            except BaseException as raised:
                answer, error = None, raised
            with self._changed:
                del self._since[row]
                if error is None:
                    self._answers[row] = answer
                else:
                    self._failed[row] = error
                self._changed.notify_all()

    def wait(self, timeout: float | None) -> list[Any]:
        with self._changed:
            try:
                while len(self._answers) < len(self._inputs):
                    first = min(self._failed, default=len(self._inputs))
                    if first in self._failed and not any(row < first for row in self._since):
                        fail(first, self._failed[first])
                    self._changed.wait(self._patience(timeout, first))
            finally:
                self._over = True
            return [self._answers[row] for row in range(len(self._inputs))]

    def _patience(self, timeout: float | None, before: int) -> float | None:
        """The time until the first of those at work on a row before that one is late."""
        waited = [(since, row) for row, since in self._since.items() if row < before]
        if timeout is None or not waited:
            return None
        since, row = min(waited)
        left = since + timeout - time.monotonic()
        if left <= 0:
            raise Failure(row, f"took more than {timeout:g} s", late=True)
        return left
