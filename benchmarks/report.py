"""Results as text: tables of Markdown, and a page of them with its figures."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.figure import Panel, along, draw, growths
from benchmarks.results import Fit, Reading, Verdict, fits, wrong
from benchmarks.store import Store
from benchmarks.workload import Family, Kind, Target

__all__ = ["failures", "findings", "insert", "markdown", "page", "reading_rows", "times"]

BEGIN, END = "<!-- results: written by python -m benchmarks --report -->", "<!-- end of results -->"
EXPLAINED = 0.2  # exponents that differ by more want a sentence

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    lines = [tuple(cell.replace("|", "\\|") for cell in line) for line in lines]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]

    def text(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])])


def _time(seconds: float) -> str:
    """Microseconds, milliseconds or seconds, three digits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError


def _ratio(ratio: tuple[float, float, float]) -> str:
    low, middle, high = (f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in ratio)
    return f"{middle} ({low}-{high})"


def _to_ours(ratio: tuple[float, float, float]) -> str:
    """Below 2, either way, it decides only where the quartiles are apart."""
    low, middle, high = ratio
    near = 0.5 < middle < 2 and low <= 1 <= high and low < high
    return _ratio(ratio) + (" undecided" if near else "")


def _threads(count: int) -> str:
    return f"{count} thread" + ("s" if count > 1 else "")


def reading_rows(readings: Sequence[Reading]) -> Table:
    """Every method's time an instance, its ratio to ours, and what is said of its answer."""
    columns = list(dict.fromkeys(column for reading in readings for column in reading.errors))
    head = ("size", "threads", "measure", "method", "median", "minimum", "rounds", "to ours", *columns)
    marks = {Kind.BOUND: " (bound)", Kind.SCALED: " (scaled)"}
    rows = [
        (
            reading.workload,
            str(reading.threads),
            reading.measure,
            reading.method + marks.get(reading.kind, ""),
            _time(float(np.median(reading.seconds))),
            _time(float(reading.seconds.min())),
            str(len(reading.seconds)),
            _to_ours(reading.ratio),
            *(_error(reading.errors, column) for column in columns),
        )
        for reading in readings
    ]
    return head, rows


def _error(errors: Mapping[str, float], column: str) -> str:
    if column not in errors:
        return "-"
    return f"{errors[column]:.0e}" if math.isfinite(errors[column]) else "not finite"


def verdict_rows(verdicts: Iterable[Verdict]) -> Table:
    """Every target, and whether it is met with each number of threads."""
    places: defaultdict[tuple[str, str, Target], dict[int, Verdict]] = defaultdict(dict)
    for verdict in verdicts:
        places[verdict.family, verdict.workload, verdict.target][verdict.threads] = verdict
    counts = sorted({threads for own in places.values() for threads in own})
    head = ("workload", "size", "measure", "against", "target", *map(_threads, counts))
    rows: list[tuple[str, ...]] = []
    for (family, workload, target), own in places.items():
        goal = f">= {target.at_least:g}" if target.at_most is None else f"<= {target.at_most:g}"
        cells = (f"{_ratio(own[k].ratio)} {own[k].word}" if k in own else "-" for k in counts)
        rows.append((family, workload, target.measure, target.method, goal, *cells))
    return head, rows


def fit_rows(grown: Iterable[Fit]) -> Table:
    """Every fitted exponent beside the expected one, with a sentence where they differ."""
    places: defaultdict[tuple[str, ...], dict[int, Fit]] = defaultdict(dict)
    for fit in grown:
        sizes = f"{fit.growth.axis} = {fit.sizes[0]:g}..{fit.sizes[-1]:g}"
        places[fit.family, fit.growth.measure, sizes, fit.others or "-"][fit.threads] = fit
    counts = sorted({threads for own in places.values() for threads in own})
    head = ("workload", "measure", "size", "at", *map(_threads, counts), "expected", "note")
    rows: list[tuple[str, ...]] = []
    for place, own in places.items():
        growth = next(iter(own.values())).growth
        off = max(abs(fit.exponent - growth.expected) for fit in own.values())
        note = (growth.note or "NOT EXPLAINED") if off > EXPLAINED else ""
        fitted = (f"{own[k].exponent:.2f}" if k in own else "-" for k in counts)
        rows.append((*place, *fitted, f"{growth.expected:g}", note))
    return head, rows


def times(store: Store, families: Iterable[Family]) -> str:
    """All readings, a table a family."""
    parts: list[str] = []
    for family in families:
        readings = store.readings(family.name)
        if readings:
            checks = "; ".join(f"{check.column}: {check.says}" for check in family.checks)
            parts += [f"### {family.name}", f"{checks}.", markdown(*reading_rows(readings))]
    return "\n\n".join(parts)


def failures(store: Store, families: Sequence[Family]) -> str:
    """What failed, our answers that are wrong, and peers that are missing."""
    off = [line for own in families for line in wrong(own, store.readings(own.name))]
    parts: list[str] = []
    if store.failed:
        parts += ["### Failed", markdown(("workload", "how it ended"), list(store.failed.items()))]
    if off:
        parts += ["### Wrong", "\n".join(f"- {line}" for line in off)]
    if store.missing:
        parts += ["### Missing peers", markdown(("peer", "why"), list(store.missing.items()))]
    return "\n\n".join(parts)


def findings(store: Store, families: Sequence[Family]) -> str:
    """Targets and growth."""
    judged = list(store.verdicts())
    grown = [fit for own in families for fit in fits(own, store.readings(own.name))]
    parts: list[str] = []
    if judged:
        words = Counter(verdict.word for verdict in judged)
        said = (f"{words[word]} {word}" for word in ("met", "undecided", "MISSED"))
        parts += ["### Targets", f"{', '.join(said)}.", markdown(*verdict_rows(judged))]
    if grown:
        parts += ["### Growth", markdown(*fit_rows(grown))]
    return "\n\n".join(parts)


def page(store: Store, families: Sequence[Family], of: Path, images: Path) -> str:
    """Findings with the conditions and figures, drawn into a folder, for a page at `of`."""
    panels: list[Panel] = []
    figures: dict[str, list[Panel]] = {"benchmarks": panels}
    for family in families:
        readings = store.readings(family.name)
        panels += growths(family, readings, fits(family, readings))
        if family.curve and readings:
            figures[family.name] = list(along(family, readings))
    parts = [_conditions(store), findings(store, families), failures(store, families)]
    for name, own in figures.items():
        if own:
            draw(images / f"{name}.png", own)
            link = os.path.relpath(images / f"{name}.png", of.parent)
            parts.append(f"![{name}: time against size]({link})")
    return "\n\n".join(filter(None, parts)) + "\n"


def _conditions(store: Store) -> str:
    """Where it was measured, and how patiently; a line a machine."""
    return "\n".join(
        "Measured on {processor}, {cores} cores, Python {python}, torch {torch}: turns of {window:g} s, "
        "{rounds} rounds, {budget:g} s at most for a slow method.".format(**own)
        for own in store.conditions
    )


def insert(path: Path, text: str) -> None:
    """Puts the text between the two markers of a file.

    Raises:
        ValueError: the file has not both markers.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path} needs the lines {BEGIN} and {END}; results go between them.")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
