"""Finished runs: results.jsonl, a line each, appended under a lock and never changed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from examples.experiments.run import Run, Value

__all__ = ["FINISHED", "Result", "Store", "today", "versions"]

FINISHED = "finished"
PACKAGES = ("spigot-layers", "torch", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def today() -> str:
    return datetime.now(UTC).date().isoformat()


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Args:
        run: which one.
        status: "finished"; "diverged", the loss or a weight not finite; or "failed", a solver gave up.
        test: the task's metrics on the test part; empty unless finished.
        validation: the same of the tested model on the validation part.
        steps: how many were taken.
        seconds: of the processor, for these steps alone, without evaluation.
        calls: instances that the polytopes solved in these steps, by regularizer ("MAP" for none).
        curve: the validation metrics as training went on, each with its "step".
        settings: all options, usual ones too.
        date: the day it ended.
        versions: of the packages that it ran with.
        message: what was wrong.
    """

    run: Run
    status: str
    test: Mapping[str, float]
    validation: Mapping[str, float]
    steps: int
    seconds: float
    calls: Mapping[str, int]
    curve: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Value]
    date: str = field(default_factory=today)
    versions: Mapping[str, str] = field(default_factory=versions)
    message: str = ""

    def line(self) -> str:
        """As JSON, the key first."""
        values = {name: value for name, value in vars(self).items() if name != "run"}
        return json.dumps({"key": self.run.key, **self.run.fields(), **values})

    @classmethod
    def of(cls, line: str) -> Result:
        """The inverse of `line`."""
        found: dict[str, Any] = json.loads(line)
        found.pop("key")
        names = ("task", "estimator", "structure", "seed", "size", "options")
        run = Run.of({name: found.pop(name) for name in names})
        found["curve"] = tuple(found["curve"])
        return cls(run, **found)


class Store:
    """The results in a folder.

    Example:
        >>> import tempfile
        >>> Store(Path(tempfile.mkdtemp())).results()
        []
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "results.jsonl"
        self.lock = FileLock(folder / "results.lock")
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, result: Result) -> None:
        """Appends a line in one piece; behind one that a kill cut short, on a line of its own."""
        with self.lock, self.path.open("ab+") as file:
            file.seek(0, 2)
            cut = False
            if file.tell():
                file.seek(-1, 2)
                cut = file.read(1) != b"\n"
            file.write(("\n" * cut + result.line() + "\n").encode())

    def results(self) -> list[Result]:
        """All of them, in the order in which they ended. A line cut short is no result."""
        if not self.path.exists():
            return []
        found: dict[str, Result] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                result = Result.of(line)
            except json.JSONDecodeError:
                continue
            found[result.run.key] = result
        return list(found.values())

    def result(self, key: str) -> Result | None:
        return next((result for result in self.results() if result.run.key == key), None)
