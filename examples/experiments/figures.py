"""Figures of a study, from its sections: told apart by shape and line as well as by colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from matplotlib.figure import Figure

from examples.experiments.estimators import ESTIMATORS, row
from examples.experiments.experiment import Metric, Task
from examples.experiments.over_seeds import centre, error

if TYPE_CHECKING:
    from examples.experiments.report import Line, Section

__all__ = ["draw", "family"]

# Okabe and Ito's colours, which every eye tells apart, dark ones first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
STROKES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
REFERENCES = "baselines"
GREY = "0.55"


def family(estimator: str) -> str:
    """Which rows it is drawn beside."""
    return row(estimator).family


def draw(task: Task, sections: Sequence[Section], stem: Path) -> list[Path]:
    """All figures of one study; where they are."""
    varied = option(sections)
    drawn = [_against_option(task, sections, varied)] if varied else [_dots(task, sections)]
    names = [f"{stem}.png"]
    if sections[0].study.curves:
        drawn.append(_curves(task, sections))
        names.append(f"{stem}-curves.png")
    for figure, name in zip(drawn, names, strict=True):
        figure.savefig(name, dpi=110)
    return [Path(name) for name in names]


def option(sections: Sequence[Section]) -> str | None:
    """The numeric option whose three or more values most estimators of the study have."""
    lines = [line for section in sections for line in section.lines]
    varied: dict[str, set[str]] = {}
    for name in {name for line in lines for name in line.options}:
        for estimator in {line.estimator for line in lines}:
            found = {line.options.get(name) for line in lines if line.estimator == estimator}
            numbers = [value for value in found if isinstance(value, int | float)]
            if len(numbers) >= 3:
                varied.setdefault(name, set()).add(estimator)
    every = {line.estimator for line in lines}
    whole = [name for name, those in varied.items() if 2 * len(those) > len(every)]
    return min(whole) if whole else None


def _scale(metric: Metric) -> float:
    return 100.0 if metric.percent else 1.0


def _drawn(task: Task) -> list[Metric]:
    return [metric for metric in task.metrics if metric.drawn]


def _values(metric: Metric, line: Line) -> list[float]:
    return [_scale(metric) * value for value in line.values(metric).values()]


def _grid(rows: int, columns: int, width: float, height: float, **more: Any) -> tuple[Any, Any]:
    figure = cast(Any, Figure(figsize=(width, height), layout="constrained"))
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def _dots(task: Task, sections: Sequence[Section]) -> Figure:
    """Every seed a mark, the centre a bar; a panel a structure and metric."""
    labels = list(dict.fromkeys(line.label for section in sections for line in section.lines))
    panels = [(section, metric) for section in sections for metric in _drawn(task)]
    figure, grid = _grid(1, len(panels), 2.2 + 2.5 * len(panels), 0.9 + 0.24 * len(labels), sharey=True)
    for axes, (section, metric) in zip(grid[0], panels, strict=True):
        for line in section.lines:
            values = _values(metric, line)
            if not values:
                continue
            place = labels.index(line.label)
            axes.plot(values, [place] * len(values), "o", color=COLOURS[0], alpha=0.45, markersize=4)
            middle = centre(task, values)
            axes.plot([middle], [place], "|", color="black", markersize=13, markeredgewidth=2)
        baseline = section.line(task.baseline)
        known = [
            _scale(metric) * value for value in (baseline.values(metric).values() if baseline else ())
        ]
        if known:
            axes.axvline(centre(task, known), color="0.5", linestyle="--", linewidth=1, zorder=0)
        axes.set_title(section.structure, fontsize="medium")
        axes.set_xlabel(metric.title)
        axes.set_xscale("log" if metric.log else "linear")
        axes.grid(axis="y", color="0.92")
        axes.set_axisbelow(True)
    grid[0, 0].set_yticks(range(len(labels)), labels)
    grid[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    return figure


def _against_option(task: Task, sections: Sequence[Section], name: str) -> Figure:
    """The metrics against an option's value, a line an estimator; bars are standard errors."""
    metrics = _drawn(task)
    figure, grid = _grid(
        len(metrics),
        len(sections),
        1.6 + 4.0 * len(sections),
        0.8 + 2.6 * len(metrics),
        sharex=True,
    )
    every = list(dict.fromkeys(line.estimator for section in sections for line in section.lines))
    for column, section in enumerate(sections):
        for axes, metric in zip(grid[:, column], metrics, strict=True):
            for place, estimator in enumerate(every):
                lines = [line for line in section.lines if line.estimator == estimator]
                _line(axes, task, metric, lines, name, place)
            axes.set_ylabel(metric.title)
            axes.set_xscale("log")
            axes.grid(color="0.92")
        grid[0, column].set_title(section.structure, fontsize="medium")
        grid[-1, column].set_xlabel(name.replace("_", " "))
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def _line(axes: Any, task: Task, metric: Metric, lines: Sequence[Line], name: str, place: int) -> None:
    points: list[tuple[float, float, float]] = []
    for line in lines:
        values = _values(metric, line)
        where = line.options.get(name)
        if values and isinstance(where, int | float):
            points.append((float(where), centre(task, values), error(values) or 0.0))
    if not points:
        return
    x, y, bars = zip(*sorted(points), strict=True)
    which = place % len(COLOURS)
    axes.errorbar(
        x,
        y,
        bars,
        color=COLOURS[which],
        marker=MARKS[which],
        linestyle=_stroke(place),
        markersize=5,
        linewidth=1.3,
        capsize=2,
        label=lines[0].estimator,
    )


def _curves(task: Task, sections: Sequence[Section]) -> Figure:
    """The first metric on the validation part as training goes on; a panel a family and structure."""
    metric = task.metrics[0]
    names = dict.fromkeys(known.family for known in ESTIMATORS.values())
    present = {family(line.estimator) for section in sections for line in section.lines}
    families = [name for name in names if name in present and name != REFERENCES] or [REFERENCES]
    named = Counter(name for line in sections[-1].lines for name in _panels(line, families))
    height = 0.6 + 2.3 * len(sections) + 0.2 * max(named.values())
    figure, grid = _grid(len(sections), len(families), 1.0 + 2.7 * len(families), height, sharey="row")
    for across, section in zip(grid, sections, strict=True):
        known = [line for line in section.lines if family(line.estimator) == REFERENCES]
        for axes, name in zip(across, families, strict=True):
            shown = [line for line in section.lines if family(line.estimator) == name != REFERENCES]
            for place, line in enumerate(shown):
                _curve(axes, task, metric, line, COLOURS[place % len(COLOURS)], _stroke(place), 1.6)
            for place, line in enumerate(known):
                _curve(axes, task, metric, line, GREY, _stroke(place), 1.2)
            axes.grid(color="0.92")
            axes.set_title(name, fontsize="medium")
        across[0].set_ylabel(f"{section.structure}\n{metric.name.replace('_', ' ')}, validation")
    for axes in grid[-1]:
        axes.set_xlabel("steps")
        axes.legend(fontsize="small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def _panels(line: Line, families: Sequence[str]) -> Sequence[str]:
    """Where the line is drawn."""
    own = family(line.estimator)
    return families if own == REFERENCES else [own]


def _stroke(place: int) -> Any:
    """Once the colours are used up, the same colour has another line."""
    return STROKES[(place + place // len(COLOURS)) % len(STROKES)]


def _curve(
    axes: Any, task: Task, metric: Metric, line: Line, colour: str, stroke: Any, width: float
) -> None:
    """The centre over seeds at every step that all of them have."""
    by_step: dict[float, list[float]] = {}
    for result in line.finished:
        for point in result.curve:
            if metric.name in point:
                by_step.setdefault(point["step"], []).append(_scale(metric) * point[metric.name])
    full = {step: values for step, values in by_step.items() if len(values) == len(line.finished)}
    if not full:  # nothing was trained
        return
    heights = [centre(task, values) for values in full.values()]
    axes.plot(list(full), heights, color=colour, linestyle=stroke, linewidth=width, label=line.label)
