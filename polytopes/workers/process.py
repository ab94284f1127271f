"""One worker process, and what it does on its side of the pipe."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import traceback
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any

import numpy as np

from spigot.polytopes.workers.crew import Failure

__all__ = ["Worker"]

START = 120.0  # seconds that a process may take to import what it needs
PATIENCE = 5.0  # seconds that a process gets to end by itself


class Worker:
    """One process: starting, then idle or at work on a row."""

    def __init__(self, payload: bytes, timeout: float | None) -> None:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process: Any = context.Process(target=_serve, args=(theirs, payload), daemon=True)
        with _children_allowed():
            self._process.start()
        theirs.close()
        self._pipe = ours
        self._timeout = timeout
        self._since = time.monotonic()
        self._starting = True
        self.row: int | None = None
        self.answer: Any = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.is_alive()

    @property
    def idle(self) -> bool:
        """Whether it is ready and has nothing to do."""
        return not self._starting and self.row is None

    @property
    def sources(self) -> list[Any]:
        """What becomes readable when it says something or ends."""
        return [self._pipe, self._process.sentinel]

    @property
    def left(self) -> float:
        """Seconds until it is late."""
        limit = START if self._starting else self._timeout
        return float("inf") if limit is None else self._since + limit - time.monotonic()

    def ask(self, row: int, given: Any) -> None:
        """Hands it an instance."""
        self.row, self._since = row, time.monotonic()
        with suppress(OSError):  # where it has died, as `hear` will find
            self._pipe.send(given)

    def hear(self) -> bool:
        """Whether there is an answer, in `answer`.

        Raises:
            Failure: it raised, died or is late.
        """
        row = self.row
        try:
            if self._pipe.poll():
                kind, said = self._pipe.recv()
                starting, self._starting, self.row = self._starting, False, None
                if kind == "raised":
                    raise Failure(row, f"could not be loaded by a worker: {said}" if starting else said)
                self.answer = said
                return kind == "answer"
        except (EOFError, OSError):
            self._process.join(PATIENCE)
        if not self.alive:
            hint = ""
            if self._starting:
                hint = (
                    " before it was ready; a script that uses worker processes needs `if __name__ == "
                    '"__main__":` around what it runs'
                )
            code = self._process.exitcode
            raise Failure(row, f"lost its worker process (exit code {code}){hint}")
        if self.left <= 0:
            limit = START if self._starting else self._timeout
            raise Failure(row, f"took more than {limit:g} s", late=True)
        return False

    def end(self) -> None:
        """Stops it, whatever it does."""
        self._pipe.close()
        self._process.kill()
        self._process.join()


@contextmanager
def _children_allowed() -> Generator[None]:
    """multiprocessing forbids children to daemons, which a DataLoader's workers are.

    Ours end with their parent by themselves.
    """
    config: dict[str, Any] = vars(multiprocessing.current_process())["_config"]
    daemon = config.get("daemon", False)
    config["daemon"] = False
    try:
        yield
    finally:
        config["daemon"] = daemon


def _serve(pipe: Any, payload: bytes) -> None:
    """What a worker process does: answers until its parent is gone."""
    try:
        fn = pickle.loads(payload)
    except BaseException as error:
        pipe.send(("raised", f"{type(error).__name__}: {error}"))
        return
    pipe.send(("ready", None))
    parent: Any = multiprocessing.parent_process()
    while pipe in connection.wait([pipe, parent.sentinel]):
        try:
            given = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            said = ("answer", np.asarray(fn(given), dtype=np.float64))
        except BaseException as error:
            last = traceback.format_exception_only(error)[-1].strip()
            said = ("raised", f"raised {last}")
        try:
            pipe.send(said)
        except OSError:
            return
