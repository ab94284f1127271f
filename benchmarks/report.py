"""The readings as tables of text, as JSON, and as a figure of cost against size."""

from __future__ import annotations

import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import Fit, Reading, Verdict
from benchmarks.workload import Kind

__all__ = ["draw", "draw_curves", "fit_rows", "markdown", "reading_rows", "save", "verdict_rows"]

COLORS = {Kind.OURS: "tab:blue", Kind.BOUND: "0.6"}
PEER_COLORS = ("tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:olive")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
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
    low, middle, high = (f"{value:.3g}" for value in ratio)
    return f"{middle} ({low}-{high})"


def reading_rows(readings: Iterable[Reading]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every method's time an instance, its ratio to ours, and its error."""
    head = ("size", "threads", "measure", "method", "median", "minimum", "rounds", "to ours", "error")
    rows = [
        (
            reading.workload,
            str(reading.threads),
            reading.measure,
            reading.method if reading.kind is not Kind.BOUND else f"{reading.method} (bound)",
            _time(float(np.median(reading.seconds))),
            _time(float(reading.seconds.min())),
            str(len(reading.seconds)),
            _ratio(reading.ratio),
            "-" if math.isnan(reading.error) else f"{reading.error:.0e}",
        )
        for reading in readings
    ]
    return head, rows


def verdict_rows(verdicts: Iterable[Verdict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every target and whether it is met."""
    head = ("family", "size", "threads", "measure", "against", "target", "ratio", "")
    rows: list[tuple[str, ...]] = []
    for verdict in verdicts:
        target = verdict.target
        goal = f">= {target.at_least:g}" if target.at_most is None else f"<= {target.at_most:g}"
        place = (verdict.family, verdict.workload, str(verdict.threads), target.measure, target.method)
        rows.append((*place, goal, _ratio(verdict.ratio), verdict.word))
    return head, rows


def fit_rows(fits: Iterable[Fit]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Every fitted exponent beside the expected one."""
    head = ("family", "measure", "threads", "axis", "at", "fitted", "expected", "note")
    rows = [
        (
            fit.family,
            fit.growth.measure,
            str(fit.threads),
            f"{fit.growth.axis} = {fit.sizes[0]:g}..{fit.sizes[-1]:g}",
            fit.others or "-",
            f"{fit.exponent:.2f}",
            f"{fit.growth.expected:g}",
            fit.growth.note,
        )
        for fit in fits
    ]
    return head, rows


def save(
    path: Path,
    readings: Sequence[Reading],
    verdicts: Sequence[Verdict],
    fits: Sequence[Fit],
    absent: dict[str, str],
) -> None:
    """Everything as JSON, with what it was measured on."""
    content: dict[str, Any] = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "missing": absent,
        "readings": [
            {**vars(reading), "kind": reading.kind.value, "seconds": reading.seconds.tolist()}
            for reading in readings
        ],
        "targets": [{**vars(verdict), "target": vars(verdict.target)} for verdict in verdicts],
        "growth": [{**vars(fit), "growth": vars(fit.growth)} for fit in fits],
    }
    path.write_text(json.dumps(_plain(content), indent=1) + "\n")


def _plain(value: Any) -> Any:
    """Without NaN, which JSON has not."""
    if isinstance(value, dict):
        return {key: _plain(own) for key, own in value.items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]  # pyright: ignore
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw(path: Path, readings: Sequence[Reading], fits: Sequence[Fit]) -> bool:
    """Cost against size, a panel for each fitted series; False where nothing has three sizes."""
    panels = list(
        {(fit.family, fit.growth.axis, fit.growth.measure, fit.others): fit for fit in fits}.values()
    )
    if not panels:
        return False
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, fit in zip(axes.flat, panels, strict=False):
        _panel(ax, fit, readings)
    figure.savefig(path, dpi=120)
    return True


def draw_curves(path: Path, axis: str, readings: Sequence[Reading]) -> None:
    """Every method's time along an axis, a panel for each of the other sizes; at the most threads."""
    from matplotlib.figure import Figure

    threads = max(reading.threads for reading in readings)
    panels: defaultdict[str, defaultdict[str, dict[float, float]]] = defaultdict(
        lambda: defaultdict(dict[float, float])
    )
    for reading in readings:
        rest = ", ".join(str(size) for key, size in reading.sizes.items() if key != axis)
        if reading.threads == threads:
            place = panels[f"{rest}, {reading.measure}"][reading.method]
            place[float(reading.sizes[axis])] = 1e3 * float(np.median(reading.seconds))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (title, curves) in zip(axes.flat, panels.items(), strict=True):
        for name, points in curves.items():
            ax.loglog(list(points), list(points.values()), marker="o", ms=3, label=name)
        ax.invert_xaxis()
        ax.set_title(title, size=9)
        ax.set_xlabel(axis, size=8)
        ax.set_ylabel("ms an instance", size=8)
        ax.tick_params(labelsize=7)
        ax.grid(which="major", alpha=0.3)
        ax.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)


def _panel(ax: Any, fit: Fit, readings: Sequence[Reading]) -> None:
    axis = fit.growth.axis
    curves: defaultdict[tuple[Kind, str], dict[float, float]] = defaultdict(dict)
    for reading in readings:
        rest = ", ".join(f"{key} = {size}" for key, size in reading.sizes.items() if key != axis)
        place = (reading.family, reading.threads, reading.measure, rest)
        if place == (fit.family, fit.threads, fit.growth.measure, fit.others):
            size = float(reading.sizes[axis])
            curves[reading.kind, reading.method][size] = 1e3 * float(np.median(reading.seconds))
    peers = [name for kind, name in curves if kind is Kind.PEER]
    for (kind, name), points in curves.items():
        color = COLORS.get(kind) or PEER_COLORS[peers.index(name) % len(PEER_COLORS)]
        style = "--" if kind is Kind.BOUND else "-"
        ax.loglog(list(points), list(points.values()), style, marker="o", ms=3, color=color, label=name)
    ax.set_title(
        f"{fit.family}, {fit.growth.measure}" + (f"\n{fit.others}" if fit.others else ""), size=9
    )
    ax.set_xlabel(
        f"{axis}   (ours grows as {axis}^{fit.exponent:.2f}; expected {fit.growth.expected:g})", size=8
    )
    ax.set_ylabel("ms an instance", size=8)
    ax.tick_params(labelsize=7)
    ax.grid(which="major", alpha=0.3)
    ax.legend(fontsize=7, frameon=False)
