"""Time against size: colours that the colour-blind tell apart, and markers for black and white."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import Fit, Reading
from benchmarks.workload import Family, Growth, Kind

__all__ = ["Panel", "along", "draw", "growths"]

PEER_COLORS = ("#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe and Ito's
PEER_MARKERS, PEER_LINES = "s^DvPX", ("--", "-.", "-")
COLUMNS = 3
WIDE = 26  # letters in the legend, of which two do not fit side by side below a panel

Curve = Mapping[float, float]


@dataclass(frozen=True)
class Panel:
    """Seconds an instance by size, a curve a method; `guide` is how ours should grow."""

    title: str
    label: str
    curves: Mapping[tuple[Kind, str], Curve]
    guide: Growth | None = None
    falling: bool = False


def _curves(readings: Iterable[Reading], axis: str) -> Mapping[tuple[Kind, str], Curve]:
    found: defaultdict[tuple[Kind, str], dict[float, float]] = defaultdict(dict)
    for reading in readings:
        size = float(reading.sizes[axis])
        found[reading.kind, reading.method][size] = float(np.median(reading.seconds))
    return found


def _others(reading: Reading, axis: str) -> str:
    return ", ".join(f"{key} = {size}" for key, size in reading.sizes.items() if key != axis)


def growths(family: Family, readings: Sequence[Reading], fits: Iterable[Fit]) -> Iterator[Panel]:
    """A panel an axis: its first measure, the most threads, and the last of the other sizes."""
    shown: dict[str, Fit] = {}
    first = {growth.axis: growth.measure for growth in reversed(family.growth)}
    for fit in fits:
        if fit.growth.measure == first[fit.growth.axis]:
            known = shown.get(fit.growth.axis)
            if known is None or fit.threads >= known.threads:
                shown[fit.growth.axis] = fit
    for axis, fit in shown.items():
        own = [
            reading
            for reading in readings
            if axis in reading.sizes
            and (reading.threads, reading.measure) == (fit.threads, fit.growth.measure)
            and _others(reading, axis) == fit.others
        ]
        grows = f"spigot grows as {axis}^{fit.exponent:.2f}, expected {fit.growth.expected:g}"
        yield Panel(
            _title(family.name, fit.growth.measure, fit.others, fit.threads),
            f"{axis}   ({grows})",
            _curves(own, axis),
            fit.growth,
        )


def along(family: Family, readings: Sequence[Reading]) -> Iterator[Panel]:
    """A panel for each of the sizes other than the family's curve, with the most threads."""
    threads = max(reading.threads for reading in readings)
    places: defaultdict[tuple[str, str], list[Reading]] = defaultdict(list)
    for reading in readings:
        if reading.threads == threads:
            places[_others(reading, family.curve), reading.measure].append(reading)
    for (others, measure), own in places.items():
        title = _title(family.name, measure, others, threads)
        yield Panel(title, family.curve, _curves(own, family.curve), falling=True)


def _title(family: str, measure: str, others: str, threads: int) -> str:
    counted = f"{threads} thread" + ("s" if threads > 1 else "")
    return f"{family}\n{measure}, {counted}" + (f"\n{others}" if others else "")


def draw(path: Path, panels: Sequence[Panel]) -> None:
    """The panels, log-log, in rows of three."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.0 * columns, 4.0 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12, w_pad=0.1)  # pyright: ignore
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels, strict=False):
        _draw(ax, panel)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw(ax: Any, panel: Panel) -> None:
    counts: defaultdict[Kind, int] = defaultdict(int)
    for (kind, name), points in panel.curves.items():
        style = _style(kind, counts[kind])
        counts[kind] += 1
        ax.loglog(list(points), list(points.values()), label=name, **style)
    if panel.guide is not None:
        ours = next(own for (kind, _), own in panel.curves.items() if kind is Kind.OURS)
        end = max(ours)
        power = panel.guide.expected
        line = [ours[end] * (size / end) ** power for size in ours]
        label = f"{panel.guide.axis}^{power:g}"
        ax.loglog(list(ours), line, color="black", lw=0.8, ls=":", label=label, zorder=1)
    sizes = sorted({size for points in panel.curves.values() for size in points})
    ax.set_xticks(sizes, [_size(size) for size in sizes])
    ax.minorticks_off()
    lows, highs = zip(*(_decades(points.values()) for points in panel.curves.values()), strict=True)
    powers = range(min(lows), max(highs) + 1)
    ax.set_yticks([10.0**power for power in powers], [_time(power) for power in powers])
    ax.set_ylim(10.0 ** powers[0], 10.0 ** powers[-1])
    if panel.falling:
        ax.invert_xaxis()
    ax.set_title(panel.title, size=9)
    ax.set_xlabel(panel.label, size=8)
    ax.set_ylabel("time an instance", size=8)
    ax.tick_params(labelsize=8)
    ax.grid(which="major", alpha=0.3)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2), "borderaxespad": 0.0}
    longest = max(len(str(line.get_label())) for line in ax.get_lines())
    columns = 1 if longest > WIDE else 2
    ax.legend(fontsize=7, frameon=False, ncols=columns, handlelength=3.2, **below)


def _style(kind: Kind, index: int) -> dict[str, Any]:
    """Ours black with discs, open where there is a second; bounds grey crosses; peers in colours."""
    if kind is Kind.OURS:
        filled = "black" if index == 0 else "white"
        return {"color": "black", "marker": "o", "mfc": filled, "ms": 5, "lw": 2 - index, "zorder": 3}
    if kind is Kind.BOUND:
        return {"color": "0.5", "marker": "x", "ms": 5, "ls": "--", "lw": 1.2}
    color = PEER_COLORS[index % len(PEER_COLORS)]
    filled = "white" if kind is Kind.SCALED else color
    marker, line = PEER_MARKERS[index % len(PEER_MARKERS)], PEER_LINES[index % len(PEER_LINES)]
    return {"color": color, "marker": marker, "mfc": filled, "ms": 4.5, "ls": line, "lw": 1.2}


def _decades(seconds: Iterable[float]) -> tuple[int, int]:
    """The powers of ten around them."""
    own = list(seconds)
    return math.floor(math.log10(min(own))), math.ceil(math.log10(max(own)))


def _size(size: float) -> str:
    return f"{size / 1000:g}k" if size >= 10_000 else f"{size:g}"


def _time(power: int) -> str:
    """10^power seconds, with its unit."""
    for unit, base in (("s", 0), ("ms", -3), ("us", -6), ("ns", -9)):
        if power >= base:
            return f"{10 ** (power - base):g} {unit}"
    return f"1e{power} s"
