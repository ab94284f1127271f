"""Processes that answer for an oracle."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from spigot.polytopes.settings import counts
from spigot.polytopes.workers.crew import Array, Crew, Failure, Function
from spigot.polytopes.workers.process import Worker

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """`Oracle(fn, shape, workers=Processes(4))`, or `workers=4`: for functions in Python.

    A process starts when it is first needed (it imports what the function needs: seconds), answers
    one instance at a time, and ends with the oracle or with this process. One that dies or exceeds
    the time limit fails its instance; others take its place at the next call.

    Args:
        count: how many instances are answered at a time.

    Raises:
        ValueError: a count below 1; when an oracle is made, a function that cannot be sent to a process.
    """

    count: int

    def __post_init__(self) -> None:
        counts(self, count=self.count)

    def crew(self, fn: Function, timeout: float | None) -> Crew:
        """Processes stay with the oracle."""
        return _ProcessCrew(_sendable(fn), self.count, timeout)


def _sendable(fn: Function) -> bytes:
    """The function as a process gets it."""
    name = getattr(fn, "__name__", repr(fn))
    way_out = (
        "Define it at the top level of a module that can be imported, or use workers=Threads(n) of "
        "spigot.polytopes.workers, which takes any function."
    )
    try:
        payload = pickle.dumps(fn)
    except Exception as error:
        raise ValueError(
            f"Oracle: {name} cannot be sent to a worker process ({type(error).__name__}: {error}).\n"
            f"{way_out}"
        ) from error
    interactive = not hasattr(sys.modules["__main__"], "__file__")
    if interactive and getattr(fn, "__module__", "") == "__main__":
        raise ValueError(
            f"Oracle: {name} cannot be sent to a worker process: it was defined at a prompt or in a "
            f"notebook, which a process cannot import.\n{way_out}"
        )
    return payload


class _ProcessCrew:
    """Processes that stay from call to call; a forked child makes its own."""

    def __init__(self, payload: bytes, count: int, timeout: float | None) -> None:
        self._payload, self._count, self._timeout = payload, count, timeout
        self._renew()

    def _renew(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        weakref.finalize(self, _end, self._workers, self._owner)

    def run(self, inputs: Sequence[Array]) -> list[Any]:
        if self._owner != os.getpid():
            self._renew()
        with self._lock:
            try:
                return self._run(inputs)
            except BaseException:
                for worker in self._workers:
                    if worker.row is not None:  # nobody waits for its answer any more
                        worker.end()
                raise
            finally:
                self._workers[:] = [worker for worker in self._workers if worker.alive]

    def _run(self, inputs: Sequence[Array]) -> list[Any]:
        self._workers[:] = [worker for worker in self._workers if worker.alive]
        while len(self._workers) < min(self._count, len(inputs)):
            self._workers.append(Worker(self._payload, self._timeout))
        answers: dict[int, Any] = {}
        failed: dict[int, Failure] = {}
        waiting = iter(range(len(inputs)))
        while len(answers) < len(inputs):
            for worker in self._workers:
                if worker.idle and not failed:
                    row = next(waiting, None)
                    if row is not None:
                        worker.ask(row, inputs[row])
            busy = [worker for worker in self._workers if worker.row is not None]
            if failed and not any(worker.row < min(failed) for worker in busy if worker.row is not None):
                raise failed[min(failed)]
            watched = [worker for worker in self._workers if not worker.idle]
            _wait(watched)
            for worker in watched:
                row = worker.row
                try:
                    if worker.hear():
                        assert row is not None
                        answers[row] = worker.answer
                except Failure as failure:
                    if row is None:  # before its first instance
                        raise
                    failed[row] = failure
        return [answers[row] for row in range(len(inputs))]


def _wait(workers: Sequence[Worker]) -> None:
    """Until one of them says something, ends or is late."""
    left = min(worker.left for worker in workers)
    sources = [source for worker in workers for source in worker.sources]
    connection.wait(sources, None if left == float("inf") else max(left, 0.0))


def _end(workers: list[Worker], owner: int) -> None:
    """Ends them all, in the process that made them."""
    if owner == os.getpid():
        while workers:
            workers.pop().end()
