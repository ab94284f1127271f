"""Results in one JSON file, written anew after every workload: a run that is killed keeps the rest."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import Patience
from benchmarks.results import Reading, Verdict
from benchmarks.workload import Kind, Target

__all__ = ["Record", "Store", "conditions"]


@dataclass(frozen=True)
class Record:
    """A workload with one number of threads: what was measured, and the seconds that it took."""

    family: str
    workload: str
    threads: int
    took: float
    readings: list[Reading]
    verdicts: list[Verdict]

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is a record of."""
        return self.family, self.workload, self.threads


@dataclass
class Store:
    """All that is known: records, what they were measured on, missing peers, and failures.

    A family that failed has its reason in `failed`, and whatever was measured before.
    """

    records: dict[tuple[str, str, int], Record] = field(default_factory=dict[Any, Record])
    conditions: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    failed: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def load(cls, *paths: Path) -> Store:
        """The files together; of a workload that is in several, the last one's."""
        merged = cls()
        for path in paths:
            content = json.loads(path.read_text())
            records = map(_record, content["records"])
            merged.records |= {record.key: record for record in records}
            merged.conditions += [own for own in content["conditions"] if own not in merged.conditions]
            merged.missing |= content["missing"]
            merged.failed |= content["failed"]
        return merged

    def save(self, path: Path) -> None:
        """As a whole or not at all."""
        content = _plain({**vars(self), "records": [_content(own) for own in self.records.values()]})
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(content, indent=1) + "\n")
        draft.replace(path)

    def readings(self, family: str | None = None) -> list[Reading]:
        """Of all families, or of one."""
        wanted = (own for own in self.records.values() if family in (None, own.family))
        return [reading for record in wanted for reading in record.readings]

    def verdicts(self) -> Iterable[Verdict]:
        """Of all families."""
        return (verdict for record in self.records.values() for verdict in record.verdicts)


def conditions(patience: Patience) -> dict[str, Any]:
    """What is measured on, and how patiently."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **vars(patience),
    }


def _processor() -> str:
    """As /proc/cpuinfo calls it, where there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _content(record: Record) -> dict[str, Any]:
    return {
        **vars(record),
        "readings": [
            {**vars(own), "kind": own.kind.value, "seconds": own.seconds.tolist()}
            for own in record.readings
        ],
        "verdicts": [{**vars(own), "target": vars(own.target)} for own in record.verdicts],
    }


def _record(content: dict[str, Any]) -> Record:
    readings = [_reading(own) for own in content["readings"]]
    judged = [_verdict(own) for own in content["verdicts"]]
    fields: dict[str, Any] = {**content, "readings": readings, "verdicts": judged}
    return Record(**fields)


def _reading(content: dict[str, Any]) -> Reading:
    fields: dict[str, Any] = {
        **content,
        "kind": Kind(content["kind"]),
        "seconds": np.array(content["seconds"]),
        "errors": {key: math.nan if own is None else own for key, own in content["errors"].items()},
        "ratio": tuple(content["ratio"]),
    }
    return Reading(**fields)


def _verdict(content: dict[str, Any]) -> Verdict:
    fields: dict[str, Any] = {
        **content,
        "target": Target(**content["target"]),
        "ratio": tuple(content["ratio"]),
    }
    return Verdict(**fields)


def _plain(value: Any) -> Any:
    """Without NaN and infinities, which JSON has not: neither is a right answer."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]  # pyright: ignore
    return None if isinstance(value, float) and not math.isfinite(value) else value
