"""The loop: one run from its first step, or from its checkpoint, to its line in the results."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from examples.experiments.experiment import Experiment, Task
from examples.experiments.run import Run
from examples.experiments.store import FINISHED, Result, Store
from spigot.polytopes import ConvergenceError
from spigot.polytopes.tally import tally

__all__ = ["CHECKPOINT_SECONDS", "Place", "train"]

CHECKPOINT_SECONDS = 20.0
Tick = Callable[[int, int], None]  # steps taken, of how many


class Diverged(ArithmeticError):
    """The loss or a weight is not finite."""


@dataclass(frozen=True)
class Place:
    """Where runs keep what they write: results.jsonl, logs/ and checkpoints/.

    Args:
        folder: of all three.
        every: after how many seconds a checkpoint is written, at the next evaluation.
    """

    folder: Path
    every: float = CHECKPOINT_SECONDS

    @property
    def store(self) -> Store:
        return Store(self.folder)

    def log(self, run: Run) -> Path:
        return self.folder / "logs" / f"{run.key}.jsonl"

    def checkpoint(self, run: Run) -> Path:
        return self.folder / "checkpoints" / f"{run.key}.pt"

    def lock(self, run: Run) -> FileLock:
        """Held by the process that trains this run."""
        path = self.checkpoint(run).with_suffix(".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


@dataclass
class Progress:
    """How far a run is, apart from its weights."""

    step: int = 0
    seconds: float = 0.0
    calls: Counter[str] = field(default_factory=Counter[str])
    curve: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    best: dict[str, Any] | None = None  # the model's state
    best_value: float = -math.inf


def train(run: Run, task: Task, place: Place, tick: Tick = lambda _, __: None) -> Result:
    """Trains, tests and records; a run that is recorded already, with today's settings, is only read.

    Two processes never train the same run: the second waits for the first, and then reads its result.
    """
    with place.lock(run):
        known = place.store.result(run.key)
        if known is not None and task.stands(run, known.settings):
            return known
        result = _Training(run, task, place).result(tick)
        place.store.add(result)
        place.checkpoint(run).unlink(missing_ok=True)
    return result


class _Training:
    def __init__(self, run: Run, task: Task, place: Place) -> None:
        self.run, self.task, self.place = run, task, place
        self.experiment: Experiment = task.experiment(run)
        self.progress = Progress()
        if place.checkpoint(run).exists():
            self._resume()
        self._cut_log()

    def result(self, tick: Tick) -> Result:
        status, message = FINISHED, ""
        try:
            self._steps(tick)
        except Diverged as problem:
            status, message = "diverged", str(problem)
        except ConvergenceError as problem:
            status, message = "failed", str(problem)
        good = status == FINISHED
        if good and self.progress.best is not None:
            self.experiment.model.load_state_dict(self.progress.best)
        return Result(
            run=self.run,
            status=status,
            test=self._evaluated("test") if good else {},
            validation=self._evaluated("validation") if good else {},
            steps=self.progress.step,
            seconds=round(self.progress.seconds, 3),
            calls=dict(self.progress.calls),
            curve=tuple(self.progress.curve),
            settings=dict(self.task.settings(self.run)),
            message=message,
        )

    def _steps(self, tick: Tick) -> None:
        experiment, progress = self.experiment, self.progress
        saved = time.monotonic()
        while progress.step < experiment.steps:
            started = time.process_time()  # other programs, and pauses, are no part of it
            loss = self._step(progress.step)
            progress.seconds += time.process_time() - started
            progress.step += 1
            last = progress.step == experiment.steps
            if not (last or progress.step % experiment.check_every == 0):
                continue
            self._check(loss)
            tick(progress.step, experiment.steps)
            if last or time.monotonic() - saved >= self.place.every:
                self._save()
                saved = time.monotonic()

    def _step(self, step: int) -> float:
        experiment = self.experiment
        torch.manual_seed((self.run.seed << 32) + step + 1)
        experiment.model.train()
        try:
            with tally() as spent:
                for optimizer in experiment.optimizers:
                    optimizer.zero_grad()
                loss = experiment.loss(step)
                value = loss.item()
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} at step {step}")
                loss.backward()
        except ValueError as problem:  # scores that are not finite are refused by the structures
            if all(bool(weight.isfinite().all()) for weight in experiment.model.parameters()):
                raise
            raise Diverged(f"a weight is not finite at step {step}") from problem
        for mover in (*experiment.optimizers, *experiment.schedulers):
            mover.step()
        self.progress.calls.update(spent)
        return value

    def _check(self, loss: float) -> None:
        """Evaluates, remembers the best model, and writes a line of the log."""
        progress = self.progress
        found = self._evaluated("validation")
        progress.curve.append({"step": progress.step, **found})
        if self.task.select is not None:
            chosen = next(metric for metric in self.task.metrics if metric.name == self.task.select)
            value = found[chosen.name] if chosen.higher else -found[chosen.name]
            if value > progress.best_value:
                state = self.experiment.model.state_dict()
                progress.best = {name: tensor.clone() for name, tensor in state.items()}
                progress.best_value = value
        line = {"step": progress.step, "steps": self.experiment.steps, "loss": loss, **found}
        with self.place.log(self.run).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "seconds": round(progress.seconds, 3)}) + "\n")

    def _evaluated(self, part: str) -> dict[str, float]:
        self.experiment.model.eval()
        with torch.no_grad():
            return self.experiment.evaluate(part)

    def _save(self) -> None:
        """Writes aside and renames: a kill leaves the old checkpoint or the new one."""
        path = self.place.checkpoint(self.run)
        aside = path.with_suffix(".new")
        experiment = self.experiment
        held = {
            "run": str(self.run),
            "settings": dict(self.task.settings(self.run)),
            "model": experiment.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in experiment.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in experiment.schedulers],
            "progress": {**asdict(self.progress), "calls": dict(self.progress.calls)},
        }
        torch.save(held, aside)
        aside.replace(path)

    def _resume(self) -> None:
        held: dict[str, Any] = torch.load(self.place.checkpoint(self.run), weights_only=True)
        if not self.task.stands(self.run, held["settings"]):
            return
        experiment = self.experiment
        experiment.model.load_state_dict(held["model"])
        for movers, name in (
            (experiment.optimizers, "optimizers"),
            (experiment.schedulers, "schedulers"),
        ):
            for mover, state in zip(movers, held[name], strict=True):
                mover.load_state_dict(state)
        self.progress = Progress(**held["progress"])
        self.progress.calls = Counter(held["progress"]["calls"])

    def _cut_log(self) -> None:
        """Takes out of the log what will be done again."""
        path = self.place.log(self.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] <= self.progress.step:
                    kept.append(line + "\n")
            except json.JSONDecodeError:
                continue
        path.write_text("".join(kept), encoding="utf-8")
