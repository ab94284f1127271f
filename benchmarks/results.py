"""What came out: readings, ratios with their verdicts, and fitted exponents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.clock import Patience, ratios, take_turns
from benchmarks.workload import Family, Growth, Kind, Method, Target, Workload

__all__ = ["Fit", "Reading", "Verdict", "fits", "measure", "verdicts", "wrong"]


@dataclass(frozen=True)
class Reading:
    """A method's times in one workload: seconds an instance, one figure a round."""

    family: str
    workload: str
    sizes: Mapping[str, int | float | str]
    threads: int
    measure: str
    method: str
    kind: Kind
    seconds: np.ndarray
    errors: Mapping[str, float]  # by the family's columns
    ratio: tuple[float, float, float]  # of its time to ours: quartile, median, quartile


@dataclass(frozen=True)
class Verdict:
    """Whether a target is met."""

    family: str
    workload: str
    threads: int
    target: Target
    ratio: tuple[float, float, float]
    word: str


@dataclass(frozen=True)
class Fit:
    """Our cost along an axis: the fitted exponent beside the expected one."""

    family: str
    threads: int
    others: str
    growth: Growth
    exponent: float
    sizes: tuple[float, ...]


def measure(family: Family, workload: Workload, threads: int, patience: Patience) -> list[Reading]:
    """All measures of a workload, the methods taking turns in each."""
    errors = {m.name: _errors(family, m) for m in workload.methods}
    readings: list[Reading] = []
    for name in dict.fromkeys(key for method in workload.methods for key in method.calls):
        having = {m.name: m for m in workload.methods if name in m.calls}
        taken = take_turns({m.name: m.calls[name] for m in having.values()}, patience)
        own = {m.name: taken[m.name] / m.instances for m in having.values()}
        kinds = {m.name: m.kind for m in having.values()}
        for scaled in workload.scaled:
            if scaled.measure == name and scaled.of in own:
                own[scaled.name], kinds[scaled.name] = own[scaled.of] * scaled.factor, Kind.SCALED
        ours = own[next(m.name for m in having.values() if m.kind is Kind.OURS)]
        readings += [
            Reading(
                family.name,
                workload.name,
                workload.sizes,
                threads,
                name,
                method,
                kinds[method],
                seconds,
                errors.get(method, {}),
                ratios(seconds, ours),
            )
            for method, seconds in own.items()
        ]
    return readings


def _errors(family: Family, method: Method) -> dict[str, float]:
    if method.error is None:
        return {}
    found = method.error()
    figures = found if isinstance(found, tuple) else (found,)
    return {check.column: own for check, own in zip(family.checks, figures, strict=True)}


def verdicts(family: Family, workload: Workload, readings: list[Reading]) -> Iterator[Verdict]:
    """Each target that could be measured."""
    for target in workload.targets:
        for reading in readings:
            if (reading.method, reading.measure) == (target.method, target.measure):
                ratio = reading.ratio
                if target.at_most is not None:  # of ours to the bound's
                    low, middle, high = ratio
                    ratio = (1 / high, 1 / middle, 1 / low)
                word = _word(target, ratio)
                yield Verdict(family.name, workload.name, reading.threads, target, ratio, word)


def _word(target: Target, ratio: tuple[float, float, float]) -> str:
    goal = target.at_least if target.at_least is not None else target.at_most
    assert goal is not None
    low, middle, high = ratio
    met = middle >= goal if target.at_least is not None else middle <= goal
    if min(goal, middle) < 2 and low < goal < high:
        return "undecided"
    return "met" if met else "MISSED"


def wrong(family: Family, readings: Sequence[Reading]) -> Iterator[str]:
    """Our answers that are further off than the family allows (NaN too), where that was looked at."""
    for reading in readings:
        if reading.kind is Kind.OURS and reading.errors:
            for check in family.checks:
                found = reading.errors[check.column]
                if not found <= check.most:
                    yield (
                        f"{family.name}, {reading.workload}, {reading.method}: {check.column} "
                        f"{found:.1e}, over {check.most:g}"
                    )


def fits(family: Family, readings: Sequence[Reading]) -> Iterator[Fit]:
    """The slope of log time over log size, wherever three sizes of an axis were measured.

    Of a workload's methods of ours it is the first one's.
    """
    for growth in family.growth:
        series: defaultdict[tuple[int, str], dict[float, float]] = defaultdict(dict)
        for reading in readings:
            ours = reading.kind is Kind.OURS and reading.measure == growth.measure
            if ours and growth.axis in reading.sizes:
                rest = {k: v for k, v in reading.sizes.items() if k != growth.axis}
                others = ", ".join(f"{key} = {size}" for key, size in rest.items())
                size = float(reading.sizes[growth.axis])
                series[reading.threads, others].setdefault(size, float(np.median(reading.seconds)))
        for (threads, others), points in series.items():
            if len(points) >= 3:
                x, y = np.log(list(points)), np.log(list(points.values()))
                exponent = float(np.polyfit(x, y, 1)[0])
                yield Fit(family.name, threads, others, growth, exponent, tuple(points))
