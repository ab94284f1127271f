"""Every workload, ours and every peer's, in one run: ratios of time beside errors.

    python -m benchmarks [--only NAME ...] [--threads 1 2] [--window 0.3] [--rounds 9] [--out out/bench]
    python -m benchmarks --resume
    python -m benchmarks --report out/a/results.json out/b/results.json [--markdown docs/benchmarks.md]
    python -m benchmarks --smoke

Methods of a workload take turns of at least `window` seconds; a ratio is the median over the rounds
of a method's time to ours in the same round, with quartiles in brackets. A target below 2, or a
ratio below 2, whose quartiles lie on both sides of it is undecided. Each of several families has a
process of its own. `--smoke` runs few and small workloads once: it checks that everything works and
that errors are small, and its times mean nothing. docs/benchmarks.md says more.

Exit status 1: a family failed, or an error of ours is larger than its family allows.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.apart import apart
from benchmarks.clock import Patience
from benchmarks.families import FAMILIES
from benchmarks.peers import missing
from benchmarks.report import failures, findings, insert, markdown, page, reading_rows, times
from benchmarks.results import measure, verdicts, wrong
from benchmarks.store import Record, Store, conditions
from benchmarks.workload import Family

SMOKE = Patience(window=0.0, rounds=1, budget=0.0)


def run(family: Family, threads: Sequence[int], patience: Patience, path: Path) -> None:
    """What the file lacks of a family's workloads; each is written there and printed as it comes."""
    warnings.simplefilter("ignore")  # the peers' own
    store = Store.load(path)
    store.failed.pop(family.name, None)
    print(f"\n## {family.name}\n", flush=True)
    for check in family.checks:
        print(f"{check.column}: {check.says}.\n", flush=True)
    start = time.perf_counter()
    try:
        for workload in family.workloads(patience is SMOKE):
            for count in family.threads or threads:
                if (family.name, workload.name, count) in store.records:
                    continue
                torch.set_num_threads(count)
                readings = measure(family, workload, count, patience)
                judged = list(verdicts(family, workload, readings))
                took, start = time.perf_counter() - start, time.perf_counter()
                record = Record(family.name, workload.name, count, took, readings, judged)
                store.records[record.key] = record
                store.save(path)
                print(markdown(*reading_rows(readings)), "\n", flush=True)
    except Exception as error:
        traceback.print_exc()
        store.failed[family.name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    store.missing |= missing()
    store.save(path)


def run_all(families: Sequence[Family], threads: Sequence[int], patience: Patience, path: Path) -> None:
    """Each of several in a process of its own: no peer meets another's libraries, nor its crash."""
    whole = {own.name: own.seconds * len(own.threads or threads) for own in families}
    begin, done = time.monotonic(), 0.0
    for place, family in enumerate(families):
        left = _left(families[place:], whole, Store.load(path))
        spent = time.monotonic() - begin
        pace = spent / done if done > 0 else 1.0
        print(f"\n[{place + 1} of {len(families)}] about {left * pace / 60:.0f} min left", flush=True)
        function = functools.partial(run, family, threads, patience, path)
        reason = apart(function) if len(families) > 1 else function()
        done += left - _left(families[place + 1 :], whole, Store.load(path))
        if reason:
            store = Store.load(path)
            store.failed[family.name] = reason
            store.save(path)


def _left(families: Sequence[Family], whole: dict[str, float], store: Store) -> float:
    """Seconds for these by what each takes, less what is measured already."""
    had = {own.name: 0.0 for own in families}
    for record in store.records.values():
        if record.family in had:
            had[record.family] += record.took
    return sum(max(whole[name] - took, 0.0) for name, took in had.items())


def write(store: Store, out: Path, page_at: Path | None) -> None:
    """The page with all times beside the results, its figures; and between the markers of another."""
    report = out / "report.md"
    body = page(store, FAMILIES, report, out)
    report.write_text(f"# Benchmarks\n\n{body}\n## All times\n\n{times(store, FAMILIES)}\n")
    print(f"\nwritten: {report}")
    if page_at is not None:
        insert(page_at, page(store, FAMILIES, page_at, page_at.parent / "images"))
        print(f"written: {page_at}")


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    """The command's."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    names = [family.name for family in FAMILIES]
    parser.add_argument("--only", nargs="+", default=names, help=f"of {', '.join(names)}")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--window", type=float, default=0.3, help="seconds of a turn, at least")
    parser.add_argument("--rounds", type=int, default=9, help="turns a method, at least")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of a slow method's turns")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="a folder")
    parser.add_argument("--resume", action="store_true", help="measure what OUT/results.json lacks")
    parser.add_argument("--report", nargs="+", type=Path, help="measure nothing: these files together")
    parser.add_argument("--markdown", type=Path, help="a page with markers for the report")
    parser.add_argument("--smoke", action="store_true", help="few and small, once each")
    options = parser.parse_args(arguments)
    unknown = set(options.only) - set(names)
    if unknown:
        parser.error(f"no family is called {', '.join(sorted(unknown))}; see --help for their names")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    options = options_of(sys.argv[1:] if arguments is None else arguments)
    families = [family for family in FAMILIES if family.name in options.only]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch if options.smoke else options.out) / "results.json"
        if options.report:
            store = Store.load(*options.report)
        else:
            store = Store.load(path) if options.resume and path.exists() else Store()
        patience = SMOKE if options.smoke else Patience(options.window, options.rounds, options.budget)
        if not options.report:
            here = conditions(patience)
            store.conditions += [here] if here not in store.conditions else []
        store.save(path)
        if not options.report:
            threads = [2] if options.smoke else options.threads
            run_all(families, threads, patience, path)
            store = Store.load(path)
    print(f"\n{failures(store, families)}")
    if not options.smoke:
        print(f"\n{findings(store, families)}")
        write(store, options.out, options.markdown)
    off = [line for own in families for line in wrong(own, store.readings(own.name))]
    return 1 if off or store.failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children end with us
    sys.exit(main())
