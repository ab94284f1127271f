"""One table over all tasks: who learns what."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from examples.experiments.estimators import ESTIMATORS
from examples.experiments.experiment import Task
from examples.experiments.over_seeds import centre
from examples.experiments.report import Section, markdown_table, replaced, sections, terminal_table
from examples.experiments.store import Store

__all__ = ["columns", "summary"]

COMMON = 3  # tasks, at least, that an estimator's row must be in
NAME = "summary"


def columns(tasks: Iterable[Task], store: Store) -> list[Section]:
    """Of every task that has results the main study, on each of its structures, where it is whole."""
    results = [result for result in store.results() if result.run.size == "full"]
    return [
        section
        for task in tasks
        for section in sections(task, [result for result in results if result.run.task == task.name])
        if section.study == task.studies[0] and not section.lacking
    ]


def head(section: Section) -> str:
    metric = section.task.metrics[0]
    less = "" if metric.higher else ", less is better"
    return f"{section.task.name}, {section.structure}: {metric.title}{less}"


def value(section: Section, estimator: str) -> str:
    """The first metric over seeds, of the row with usual options."""
    line, metric = section.line(estimator), section.task.metrics[0]
    if line is None:
        return ""
    found = list(line.values(metric).values())
    if not found:
        return "-"
    middle = centre(section.task, found)
    return f"{100 * middle:.1f}" if metric.percent else f"{middle:.3f}"


def rows(found: list[Section]) -> list[list[str]]:
    """Each task's baseline, and the estimators that several tasks have."""
    base = ((value(section, section.task.baseline), section.task.baseline) for section in found)
    table = [["baseline", *(f"{number} ({name})" for number, name in base)]]
    for name, row in ESTIMATORS.items():
        cells = [value(section, name) for section in found]
        tasks = {section.task.name for section, cell in zip(found, cells, strict=True) if cell}
        if row.kind != "baseline" and len(tasks) >= COMMON:
            table.append([name, *cells])
    return table


def summary(tasks: Iterable[Task], store: Store, console: Console, docs: Path | None = None) -> None:
    """Prints the table; into the page between the marks named "summary", if there is a page."""
    found = columns(tasks, store)
    if not found:
        return
    heads = ["estimator", *(head(section) for section in found)]
    shown, table = terminal_table(heads, "Main studies"), rows(found)
    for line in table:
        shown.add_row(*line)
    console.print(shown)
    if docs is not None:
        text = markdown_table(heads, table) + "\n"
        docs.write_text(replaced(docs.read_text(encoding="utf-8"), NAME, text), encoding="utf-8")
