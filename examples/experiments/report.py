"""Tables and figures from results.jsonl, and from nothing else."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.table import Table

from examples.experiments import figures
from examples.experiments.experiment import Metric, Study, Task
from examples.experiments.over_seeds import centre, error
from examples.experiments.store import FINISHED, Result, Store

__all__ = ["Line", "Section", "markdown_table", "replaced", "report", "sections", "terminal_table"]

BEGIN, END = "<!-- results: {name} -->", "<!-- end of results: {name} -->"


@dataclass(frozen=True)
class Line:
    """A row of a table: one estimator with its options, on one structure, over all its seeds."""

    label: str
    estimator: str
    options: Mapping[str, Any]  # all of them, usual ones too
    results: tuple[Result, ...]  # by seed; those that did not finish too

    @property
    def finished(self) -> list[Result]:
        return [result for result in self.results if result.status == FINISHED]

    def values(self, metric: Metric) -> dict[int, float]:
        """The test's value, by seed."""
        return {
            result.run.seed: result.test[metric.name]
            for result in self.finished
            if metric.name in result.test
        }


@dataclass(frozen=True)
class Section:
    """A study on one structure."""

    task: Task
    study: Study
    structure: str
    lines: tuple[Line, ...]
    lacking: tuple[str, ...] = ()  # rows of the study without a result

    def line(self, estimator: str) -> Line | None:
        """The estimator's line with usual options, if it is here."""
        return next((line for line in self.lines if line.label == estimator), None)


def sections(task: Task, results: Iterable[Result], size: str = "full") -> list[Section]:
    """What there is of every study on every structure, in their order, with today's settings."""
    by_row: dict[str, list[Result]] = {}
    for result in results:
        if task.stands(result.run, result.settings):
            by_row.setdefault(result.run.row.key, []).append(result)
    found: list[Section] = []
    for study in task.studies:
        for structure in study.structures or task.structures:
            lines: list[Line] = []
            lacking: list[str] = []
            for cell in study.cells:
                run = task.run(cell, structure, 0, size)
                those = sorted(by_row.get(run.key, []), key=lambda result: result.run.seed)
                if those:
                    lines.append(Line(run.label, cell.estimator, task.settings(run), tuple(those)))
                else:
                    lacking.append(run.label)
            if lines:
                found.append(Section(task, study, structure, tuple(lines), tuple(lacking)))
    return found


def spread(task: Task, metric: Metric, values: Sequence[float]) -> str:
    """Median or mean, and standard error."""
    if not values:
        return "-"
    factor, digits = (100, 1) if metric.percent else (1, 3)
    found = error(values)
    told = "" if found is None else f" ± {factor * found:.{digits}f}"
    return f"{factor * centre(task, values):.{digits}f}{told}"


def against(line: Line, baseline: Line | None, metric: Metric) -> str:
    """The p-value of a paired t-test over the seeds that both have, with the sign of the difference."""
    from scipy import stats

    if baseline is None or baseline.label == line.label:
        return ""
    ours, theirs = line.values(metric), baseline.values(metric)
    seeds = sorted(ours.keys() & theirs.keys())
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    if len(seeds) < 2 or len(set(differences)) < 2:
        return "-"
    p = float(cast(Any, stats).ttest_1samp(differences, 0.0).pvalue)
    sign = "+" if statistics.fmean(differences) > 0 else "-"
    return f"{sign} {'<0.001' if p < 0.001 else f'{p:.3f}'}"


def counted(number: float) -> str:
    """1234567 as 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def calls(line: Line, brief: bool) -> str:
    """Instances that the polytopes solved a step, by kind or all together."""
    total: Counter[str] = Counter()
    for result in line.results:
        total.update(result.calls)
    steps = sum(result.steps for result in line.results) or 1
    if brief:
        return counted(sum(total.values()) / steps)
    return " + ".join(f"{counted(number / steps)} {name}" for name, number in total.items()) or "0"


def rows(section: Section, brief: bool = False) -> tuple[list[str], list[list[str]]]:
    """The table: its head and its cells; without metrics that no line has."""
    task = section.task
    main, baseline = task.metrics[0], section.line(task.baseline)
    metrics = [
        metric
        for metric in task.metrics
        if metric.tabled and any(line.values(metric) for line in section.lines)
    ]
    published = any((section.structure, line.label) in task.published for line in section.lines)
    head = ["estimator", *(metric.title for metric in metrics)]
    head += ["published"] if published else []
    head += ["p"] if baseline else []
    head += ["solved", "ms", "seeds"]
    cells: list[list[str]] = []
    for line in section.lines:
        each = [result.seconds / result.steps for result in line.results if result.steps]
        bad = Counter(result.status for result in line.results if result.status != FINISHED)
        seeds = str(len(line.results)) + "".join(f", {n} {status}" for status, n in bad.items())
        cells.append(
            [
                line.label,
                *(spread(task, metric, list(line.values(metric).values())) for metric in metrics),
                *([task.published.get((section.structure, line.label), "")] if published else []),
                *([against(line, baseline, main)] if baseline else []),
                calls(line, brief),
                f"{1000 * statistics.median(each):.3g}" if each else "",
                seeds,
            ]
        )
    return head, cells


def notes(section: Section) -> list[str]:
    """What one must know to read the table, and to make it again."""
    task, results = section.task, [result for line in section.lines for result in line.results]
    size = results[0].run.size
    seeds = sorted({result.run.seed for result in results})
    names = [task.name, "--study", section.study.name, "--structure", section.structure]
    names += ["--seeds", listed(seeds), *(["--size", size] if size != "full" else [])]
    days = sorted({result.date for result in results})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    used = results[-1].versions
    with_ = ", ".join(
        f"{name} {used[name]}" for name in used if name in ("python", "torch", "spigot-layers")
    )
    found = [
        f"`python -m examples.experiments sweep {' '.join(names)}`, {when}; {with_}.",
        f"{task.centre.capitalize()} over seeds ± standard error of the mean, on the test part; solved: "
        "instances that the polytopes solved a step; ms: the processor's milliseconds a step (median).",
    ]
    if section.line(task.baseline) is not None:
        found.append(
            f"p: paired t-test of {task.metrics[0].name.replace('_', ' ')} over seeds against "
            f"{task.baseline}, not adjusted for the number of rows; + is above it."
        )
    told = {(r.run.label, r.status, r.message) for r in results if r.status != FINISHED}
    found += [f"{label} {status}: {message}." for label, status, message in sorted(told)]
    if section.lacking:
        found.append(f"No results yet: {'; '.join(section.lacking)}.")
    return found


def listed(seeds: Sequence[int]) -> str:
    """As --seeds reads it."""
    if list(seeds) == list(range(len(seeds))):
        return str(len(seeds))
    return ",".join(map(str, seeds)) + ("," if len(seeds) == 1 else "")


def title(section: Section) -> str:
    return f"{section.study.title}: {section.structure}"


def shown(section: Section) -> Table:
    """For a terminal."""
    head, cells = rows(section, brief=True)
    table = terminal_table(head, title(section))
    family = ""
    for line, row in zip(section.lines, cells, strict=True):
        if family and figures.family(line.estimator) != family:
            table.add_section()
        family = figures.family(line.estimator)
        table.add_row(*row)
    return table


def terminal_table(head: Sequence[str], title: str | None = None) -> Table:
    """Without rows yet; the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", no_wrap=place == 0, overflow="fold")
    return table


def markdown(section: Section) -> str:
    """For a page."""
    table = markdown_table(*rows(section))
    return "\n".join([f"**{title(section)}**", "", table, "", " ".join(notes(section)), ""])


def markdown_table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *cells))


def report(
    task: Task, store: Store, console: Console, *, size: str = "full", docs: Path | None = None
) -> list[Path]:
    """Prints every table, writes them as markdown, draws the figures; where they are.

    Args:
        task: which.
        store: of the results.
        console: to print on.
        size: of the runs.
        docs: a page in whose marked part the tables are put, the figures beside it in images/; studies
            of which rows are lacking are left out of it.
    """
    results = [r for r in store.results() if r.run.task == task.name and r.run.size == size]
    found = sections(task, results, size)
    if not found:
        console.print(f"{task.name}: no results in {store.path}.", highlight=False)
        return []
    folder = store.path.parent / "report" if docs is None else docs.parent / "images"
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for section in found:
        console.print(shown(section))
        for note in notes(section):
            console.print(f"  {note}", highlight=False, markup=False)
        console.print()
    kept = [section for section in found if docs is None or not section.lacking]
    text = [markdown(section) for section in kept]
    for study in task.studies:
        those = [section for section in kept if section.study.name == study.name]
        if not those:
            continue
        drawn = figures.draw(task, those, folder / f"{task.name}-{study.name}")
        text += [f"![{study.title}]({f'images/{path.name}' if docs else path.name})\n" for path in drawn]
        written += drawn
    page = store.path.parent / "report" / f"{task.name}.md" if docs is None else docs
    whole = "\n".join(text)
    if docs is None:
        page.write_text(f"# {task.title}\n\n{whole}", encoding="utf-8")
    else:
        page.write_text(replaced(page.read_text(encoding="utf-8"), task.name, whole), encoding="utf-8")
    written.append(page)
    console.print(f"Written: {', '.join(map(str, written))}", highlight=False, soft_wrap=True)
    return written


def replaced(page: str, name: str, text: str) -> str:
    """The page with the part between the task's two marks written anew.

    Raises:
        SystemExit: the page has no such marks.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise SystemExit(f"The page has no part between {begin} and {end}: put these two lines into it.")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n{end}", page)
