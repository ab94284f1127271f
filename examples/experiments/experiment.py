"""What a task is: which runs it has, and what it hands to the loop for one of them."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from examples.experiments.estimators import row
from examples.experiments.run import Run, Settings, Value

__all__ = ["Cell", "Experiment", "Metric", "Needs", "Study", "Task", "cells", "minibatch"]


class Experiment(ABC):
    """One model in training. Everything that has a state is in `model`, `optimizers` or `schedulers`.

    The loop seeds torch before every step by the run's seed and the step, so that batches, dropout and
    noise are functions of these two: draw them by torch's own functions inside `loss`. A run that goes
    on from a checkpoint then ends as one that was never interrupted.

    Attributes:
        model: trained and evaluated; the estimator's layer is a part of it where that has a state.
        optimizers: each takes its step once a step.
        steps: how many.
        check_every: after how many steps the validation part is evaluated.
        schedulers: each takes its step after the optimizers'.
    """

    model: nn.Module
    optimizers: Sequence[Optimizer]
    steps: int
    check_every: int
    schedulers: Sequence[LRScheduler] = ()

    @abstractmethod
    def loss(self, step: int) -> Tensor:
        """The loss of this step's batch, a scalar."""

    @abstractmethod
    def evaluate(self, part: str) -> dict[str, float]:
        """The task's metrics on "validation" or "test"; in eval mode, without a graph."""


def minibatch(seed: int, step: int, size: int, batch: int) -> Tensor:
    """The indices of a step's batch: every epoch is a permutation of its own, the rest of it unused.

    It does not depend on what else was drawn, so all estimators see the same batches.
    """
    epoch, place = divmod(step, max(size // batch, 1))
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1_000_003 * seed + epoch))
    return order[place * batch : (place + 1) * batch]


@dataclass(frozen=True)
class Metric:
    """A number that a task is judged by.

    Args:
        name: of the value that an experiment returns.
        title: over a column, and under an axis.
        higher: whether more is better.
        percent: whether it is a share, shown as percent.
        log: whether its axis is logarithmic.
        drawn: whether the figure of a study has a panel of it.
        tabled: whether tables have a column of it; results.jsonl has it anyway.
    """

    name: str
    title: str
    higher: bool = True
    percent: bool = False
    log: bool = False
    drawn: bool = True
    tabled: bool = True


@dataclass(frozen=True)
class Needs:
    """A data set: the folder's name, and where to get it from."""

    name: str
    source: str


@dataclass(frozen=True)
class Cell:
    """A line of a table: an estimator and the options that are not as usual."""

    estimator: str
    options: tuple[tuple[str, Value], ...] = ()


def cells(*estimators: str, **grid: Sequence[Value]) -> tuple[Cell, ...]:
    """A cell for every estimator and every combination of the options' values."""
    return tuple(
        Cell(estimator, tuple(zip(grid, values, strict=True)))
        for estimator in estimators
        for values in itertools.product(*grid.values())
    )


@dataclass(frozen=True)
class Study:
    """A question and the runs that answer it: a table and its figures.

    Args:
        name: for the command line.
        title: over the table.
        cells: the lines.
        structures: of the task's; all unless told.
        curves: whether to draw the validation metric against steps.
    """

    name: str
    title: str
    cells: tuple[Cell, ...]
    structures: tuple[str, ...] = ()
    curves: bool = False


@dataclass(frozen=True)
class Task:
    """What can be run under one name.

    Args:
        name: for the command line.
        title: over the page.
        structures: by name; an experiment knows what they are.
        studies: the first is the main one.
        metrics: the first one is what rows are compared by.
        baseline: the estimator that the others are tested against.
        make: the experiment of a run, given all its settings.
        options: of the task's own, with the usual values.
        usual: by estimator, where its usual values differ from the table's and the task's.
        select: the metric by whose validation value the tested model is chosen; None for the last.
        centre: "mean" or "median" over seeds.
        needs: the data set, or None. Size "smoke" must do without it.
        published: others' numbers for the first metric, by structure and label, as they printed them.
    """

    name: str
    title: str
    structures: tuple[str, ...]
    studies: tuple[Study, ...]
    metrics: tuple[Metric, ...]
    baseline: str
    make: Callable[[Run, Settings], Experiment]
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])
    usual: Mapping[str, Mapping[str, Value]] = field(default_factory=dict[str, Mapping[str, Value]])
    select: str | None = None
    centre: str = "mean"
    needs: Needs | None = None
    published: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])

    @property
    def estimators(self) -> tuple[str, ...]:
        """All that a study names."""
        return tuple(dict.fromkeys(cell.estimator for study in self.studies for cell in study.cells))

    def defaults(self, estimator: str) -> dict[str, Value]:
        """Every option that this estimator has here, with its usual value."""
        return {**row(estimator).options, **self.options, **self.usual.get(estimator, {})}

    def run(self, cell: Cell, structure: str, seed: int, size: str = "full") -> Run:
        """The run, with nothing in its options that is usual anyway.

        Raises:
            SystemExit: an unknown estimator, structure or option.
        """
        if cell.estimator not in self.estimators:
            known = ", ".join(self.estimators)
            raise SystemExit(f"{self.name} has no estimator {cell.estimator!r}. It has: {known}.")
        if structure not in self.structures:
            known = ", ".join(self.structures)
            raise SystemExit(f"{self.name} has no structure {structure!r}. It has: {known}.")
        defaults = self.defaults(cell.estimator)
        for name, _ in cell.options:
            if name not in defaults:
                known = ", ".join(defaults) or "none"
                raise SystemExit(
                    f"{cell.estimator} in {self.name} has no option {name!r}. It has: {known}."
                )
        unusual = tuple((name, value) for name, value in cell.options if value != defaults[name])
        return Run(self.name, cell.estimator, structure, seed, size, unusual)

    def settings(self, run: Run) -> Settings:
        """All options of a run."""
        return Settings({**self.defaults(run.estimator), **dict(run.options)})

    def stands(self, run: Run, settings: Mapping[str, Value]) -> bool:
        """Whether a run recorded with these settings is the one that would be trained today.

        A usual value may have changed since. An option that is younger than the record had no say in it.
        """
        today = self.settings(run)
        return all(settings[name] == today[name] for name in settings.keys() & today.keys())

    def experiment(self, run: Run) -> Experiment:
        """The experiment, made under the run's seed."""
        torch.manual_seed(run.seed)
        return self.make(run, self.settings(run))

    def runs(self, study: Study, seeds: Iterable[int], size: str = "full") -> Iterator[Run]:
        """The study's runs, seed by seed, so that one stopped early has whole columns."""
        for seed in seeds:
            for structure in study.structures or self.structures:
                for cell in study.cells:
                    yield self.run(cell, structure, seed, size)

    def study(self, name: str) -> Study:
        """The study of that name."""
        for study in self.studies:
            if study.name == name:
                return study
        known = ", ".join(study.name for study in self.studies)
        raise SystemExit(f"{self.name} has no study {name!r}. It has: {known}.")
