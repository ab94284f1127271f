"""What a run is: names and numbers, from which everything else follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

__all__ = ["SIZES", "Run", "Settings", "Value", "parsed", "spelled"]

Value = bool | int | float | str
SIZES = ("full", "smoke")


def parsed(text: str) -> Value:
    """A value as one types it: 3, 0.1, true, or a word. Whole numbers stay whole."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def spelled(value: Value) -> str:
    """What `parsed` reads."""
    return (
        str(value).lower() if isinstance(value, bool) else f"{value:g}" if _real(value) else str(value)
    )


def _real(value: Value) -> bool:
    return isinstance(value, float) and float(f"{value:g}") == value


class Settings(Mapping[str, Value]):
    """All options of a run, with the values that nobody typed, each of the kind asked for."""

    def __init__(self, values: Mapping[str, Value]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def number(self, name: str) -> float:
        value = self[name]
        if isinstance(value, str | bool):
            raise SystemExit(f"{name} must be a number, got {value!r}.")
        return float(value)

    def whole(self, name: str) -> int:
        value = self[name]
        if isinstance(value, str | bool) or value != int(value):
            raise SystemExit(f"{name} must be a whole number, got {value!r}.")
        return int(value)

    def text(self, name: str) -> str:
        return str(self[name])

    def flag(self, name: str) -> bool:
        value = self[name]
        if not isinstance(value, bool):
            raise SystemExit(f"{name} must be true or false, got {value!r}.")
        return value


@dataclass(frozen=True)
class Run:
    """One training from one seed.

    Args:
        task: a name in `tasks.TASKS`.
        estimator: a row of `estimators.ESTIMATORS`.
        structure: one of the task's.
        seed: of the data's split, the first weights, the batches and all noise.
        size: "full", or "smoke" for seconds.
        options: what differs from the defaults, by name; in any order.
    """

    task: str
    estimator: str
    structure: str
    seed: int = 0
    size: str = "full"
    options: tuple[tuple[str, Value], ...] = ()

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise SystemExit(f"size must be one of {', '.join(SIZES)}; got {self.size}.")
        object.__setattr__(self, "options", tuple(sorted(self.options)))

    @property
    def key(self) -> str:
        """Twelve letters that tell this run from all others, the same on every machine."""
        text = json.dumps(self.fields(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def row(self) -> Run:
        """The run without its seed: what a line of a table is about."""
        return replace(self, seed=0)

    @property
    def label(self) -> str:
        """The estimator and what is unusual about it."""
        told = (
            name.replace("_", " ") + ("" if value is True else f" {spelled(value)}")
            for name, value in self.options
        )
        return ", ".join([self.estimator, *told])

    def fields(self) -> dict[str, Any]:
        """For JSON. A number is the same whether it was typed as 1 or as 1.0."""
        options = {name: _plain(value) for name, value in self.options}
        return {
            "task": self.task,
            "estimator": self.estimator,
            "structure": self.structure,
            "seed": self.seed,
            "size": self.size,
            "options": options,
        }

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Run:
        """The inverse of `fields`."""
        values = {**fields, "options": tuple(fields["options"].items())}
        return cls(**cast(Any, values))

    def __str__(self) -> str:
        """What `parse` reads: task/estimator/structure/seed, with size and options behind a ?."""
        told = [f"size={self.size}"] if self.size != "full" else []
        told += [f"{name}={spelled(value)}" for name, value in self.options]
        path = f"{self.task}/{self.estimator}/{self.structure}/{self.seed}"
        return path + ("?" + "&".join(told) if told else "")

    @classmethod
    def parse(cls, text: str) -> Run:
        """The run that prints so."""
        path, _, told = text.partition("?")
        task, estimator, structure, seed = path.split("/")
        options = dict(pair.split("=", 1) for pair in told.split("&") if pair)
        size = options.pop("size", "full")
        found = tuple((name, parsed(value)) for name, value in options.items())
        return cls(task, estimator, structure, int(seed), size, found)


def _plain(value: Value) -> Value:
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole else value
