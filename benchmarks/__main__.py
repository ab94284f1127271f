"""Every workload, ours and every peer's, in one run: ratios of time beside errors.

    python -m benchmarks [--only NAME ...] [--threads 1 2] [--window 0.3] [--rounds 9] [--out out/bench]
    python -m benchmarks --smoke

Methods of a workload take turns of at least `window` seconds; a ratio is the median over the rounds
of a method's time to ours in the same round, with quartiles in brackets. A target below 2, or a
ratio below 2, whose quartiles lie on both sides of it is undecided. `--smoke` runs few and small
workloads once: it checks that everything works and that errors are small, and its times mean nothing.

Exit status 1: an error of ours is larger than its family allows.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import warnings
from pathlib import Path

import torch

from benchmarks.clock import Patience
from benchmarks.families import FAMILIES
from benchmarks.peers import missing
from benchmarks.report import draw, draw_curves, fit_rows, markdown, reading_rows, save, verdict_rows
from benchmarks.results import Fit, Reading, Verdict, fits, measure, verdicts
from benchmarks.workload import Family, Kind

WITH_OR_TOOLS = {"path-spo", "path-perturbed", "gridpath-map"}
"""Families that need no linear program of ours: by themselves they are measured beside OR-Tools."""
SMOKE = Patience(window=0.0, rounds=1, budget=0.0)


def run(
    family: Family, threads: list[int], patience: Patience, smoke: bool
) -> tuple[list[Reading], list[Verdict]]:
    """All workloads of a family, printed as they come."""
    print(f"\n## {family.name}\n\nError: {family.error}.\n", flush=True)
    readings: list[Reading] = []
    judged: list[Verdict] = []
    for workload in family.workloads(smoke):
        for count in family.threads or threads:
            torch.set_num_threads(count)
            fresh = measure(family, workload, count, patience)
            judged += verdicts(family, workload, fresh)
            readings += fresh
            print(markdown(*reading_rows(fresh)), "\n", flush=True)
    return readings, judged


def wrong(family: Family, readings: list[Reading]) -> list[str]:
    """Our answers that are further off than the family allows (NaN too)."""
    return [
        f"{family.name}, {reading.workload}, {reading.method}: {reading.error:.1e}, "
        f"over {family.tolerance:g}"
        for reading in readings
        if reading.kind is Kind.OURS and not reading.error <= family.tolerance
    ]


def main() -> int:
    """The command."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], help=f"of {', '.join(f.name for f in FAMILIES)}"
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--window", type=float, default=0.3, help="seconds of a turn, at least")
    parser.add_argument("--rounds", type=int, default=9, help="turns a method, at least")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of a slow method's turns")
    parser.add_argument("--out", type=Path, default=Path("out/bench"))
    parser.add_argument("--smoke", action="store_true", help="few and small, once each")
    options = parser.parse_args()
    unknown = set(options.only) - {family.name for family in FAMILIES}
    if unknown:
        parser.error(f"no family is called {', '.join(sorted(unknown))}; see --help for their names")
    warnings.simplefilter("ignore")  # the peers' own
    if not options.only or set(options.only) - WITH_OR_TOOLS:
        importlib.import_module("highspy")  # before OR-Tools, with which it cannot be loaded
    patience = SMOKE if options.smoke else Patience(options.window, options.rounds, options.budget)
    threads = [2] if options.smoke else options.threads

    readings: list[Reading] = []
    judged: list[Verdict] = []
    grown: list[Fit] = []
    off: list[str] = []
    for family in FAMILIES:
        if not options.only or family.name in options.only:
            own, verdicts_ = run(family, threads, patience, options.smoke)
            readings += own
            judged += verdicts_
            grown += fits(family, own)
            off += wrong(family, own)
    absent = missing()
    for name, install in absent.items():
        print(f"missing: {name} ({install})")
    for line in off:
        print(f"wrong: {line}")
    if not options.smoke:
        print("\n## Targets\n")
        print(markdown(*verdict_rows(judged)))
        print("\n## Growth\n")
        print(markdown(*fit_rows(grown)))
        options.out.mkdir(parents=True, exist_ok=True)
        save(options.out / "results.json", readings, judged, grown, absent)
        drawn = draw(options.out / "growth.png", readings, grown)
        for family in FAMILIES:
            own = [reading for reading in readings if reading.family == family.name]
            if family.curve and own:
                draw_curves(options.out / f"{family.name}.png", family.curve, own)
                print(f"written: {options.out / family.name}.png")
        print(
            f"\nwritten: {options.out / 'results.json'}"
            + (f", {options.out / 'growth.png'}" if drawn else "")
        )
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
