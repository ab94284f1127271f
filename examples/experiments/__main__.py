"""The command line: run, sweep, report, list."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from examples.data import find
from examples.experiments.estimators import ESTIMATORS
from examples.experiments.experiment import Cell, Task, cells
from examples.experiments.report import report
from examples.experiments.run import SIZES, Run, Value, parsed
from examples.experiments.store import Result
from examples.experiments.summary import summary
from examples.experiments.sweep import BACKENDS, described, sweep
from examples.experiments.tasks import TASKS, task
from examples.experiments.training import CHECKPOINT_SECONDS, Place, train

EPILOG = """\
  python -m examples.experiments list
  python -m examples.experiments run categorical --estimator spigot --structure 3-clusters
  python -m examples.experiments run categorical --estimator spigot --option steps=1,5 --seeds 3
  python -m examples.experiments sweep categorical --seeds 5
  python -m examples.experiments sweep categorical --study steps --backend ray
  python -m examples.experiments report categorical --docs docs/experiments.md
  python -m examples.experiments report

A run that is recorded in the output folder is not repeated, and one that was killed goes on.
"""
FOLDER = Path("out/experiments")
WIDE = 180  # columns, where the output is no terminal
Grid = dict[str, tuple[Value, ...]]


def seeds(text: str) -> list[int]:
    """5 is 0 to 4; 3,4 are these two; 7, is 7 alone."""
    if "," in text:
        return [int(part) for part in text.split(",") if part]
    return list(range(int(text)))


def option(text: str) -> tuple[str, tuple[Value, ...]]:
    """step_size=0.1,1,2: a name and its values."""
    name, found, values = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text} is no name=value")
    return name.replace("-", "_"), tuple(parsed(value) for value in values.split(","))


def names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def ready(chosen: Task, size: str) -> None:
    """Ends with a sentence where the data are missing."""
    if chosen.needs is not None and size == "full":
        find(chosen.needs.name, chosen.needs.source)


def asked(options: argparse.Namespace) -> list[Run]:
    """The runs of rows named on the command line, or of the task's studies."""
    chosen = task(options.task)
    ready(chosen, options.size)
    structures = options.structure or list(chosen.structures)
    if options.estimator and not options.study:
        grid: Grid = dict(options.option)
        wanted: list[Cell] = [cell for name in options.estimator for cell in cells(name, **grid)]
        return [
            chosen.run(cell, structure, seed, options.size)
            for seed in options.seeds
            for structure in structures
            for cell in wanted
        ]
    if options.option:
        raise SystemExit("--option goes with --estimator alone: a study has its options.")
    studies = [chosen.study(name) for name in options.study] if options.study else chosen.studies
    runs = [run for study in studies for run in chosen.runs(study, options.seeds, options.size)]
    rows = options.estimator or chosen.estimators
    return [run for run in runs if run.structure in structures and run.estimator in rows]


def place(options: argparse.Namespace) -> Place:
    return Place(options.out, options.checkpoint_seconds)


def do_run(options: argparse.Namespace, console: Console) -> int:
    """The runs one after another, here."""
    torch.set_num_threads(options.threads)
    for run in asked(options):
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            bar = progress.add_task(str(run), total=1.0)

            def tick(step: int, steps: int, progress: Progress = progress, bar: object = bar) -> None:
                progress.update(bar, completed=step, total=steps)  # pyright: ignore[reportArgumentType]

            result = train(run, task(run.task), place(options), tick)
        console.print(described(result), highlight=False, markup=False, soft_wrap=True)
    return 0


def do_sweep(options: argparse.Namespace, console: Console) -> int:
    """The runs side by side; 1 if one of them could not be done."""
    workers = options.workers or os.cpu_count() or 1
    outcomes = sweep(asked(options), place(options), console, workers=workers, backend=options.backend)
    return 0 if all(isinstance(outcome, Result) for outcome in outcomes) else 1


def do_report(options: argparse.Namespace, console: Console) -> int:
    """Tables and figures of what is recorded."""
    chosen = [task(options.task)] if options.task else list(TASKS.values())
    for each in chosen:
        report(each, place(options).store, console, size=options.size, docs=options.docs)
    if not options.task:
        summary(chosen, place(options).store, console, options.docs)
    return 0


def do_list(_: argparse.Namespace, console: Console) -> int:
    """Tasks, studies and estimators."""
    for each in TASKS.values():
        needs = f"; needs {each.needs.name}" if each.needs else ""
        console.print(f"[bold]{each.name}[/bold]: {each.title}{needs}", highlight=False)
        console.print(f"  structures  {', '.join(each.structures)}", highlight=False)
        for study in each.studies:
            console.print(
                f"  study       {study.name}: {study.title}, {len(study.cells)} rows", highlight=False
            )
    table = Table("estimator", "kind", "what it is", "options, with the usual values", box=None)
    for row in ESTIMATORS.values():
        table.add_row(
            row.name, row.kind, row.says, ", ".join(f"{k}={v}" for k, v in row.options.items())
        )
    console.print(table)
    return 0


def parser() -> argparse.ArgumentParser:
    """All commands."""
    whole = argparse.ArgumentParser(
        prog="python -m examples.experiments",
        description="Reproducible experiments: an estimator, a structure and a task, and what learns.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = whole.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, default=FOLDER, help="folder of results; %(default)s")
    common.add_argument("--size", choices=SIZES, default="full", help="smoke: seconds, to try it")
    common.add_argument("--data", type=Path, help="folder of the data sets, instead of SPIGOT_DATA")
    common.add_argument(
        "--checkpoint-seconds", type=float, default=CHECKPOINT_SECONDS, metavar="S", help="%(default)s"
    )
    rows = argparse.ArgumentParser(add_help=False)
    rows.add_argument("task", help=", ".join(TASKS))
    rows.add_argument("--estimator", type=names, default=[], help="one, or several with commas")
    rows.add_argument("--structure", type=names, default=[], help="likewise; all unless told")
    rows.add_argument("--seeds", type=seeds, default=[0], help="how many, or a list: 3,4")
    rows.add_argument(
        "--option",
        type=option,
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="such as step_size=0.1,1; every combination is run",
    )
    rows.add_argument(
        "--study",
        type=names,
        default=[],
        help="of the task's; all unless told",
    )

    one = commands.add_parser("run", parents=[rows, common], help="train here, one run after another")
    one.add_argument("--threads", type=int, default=1, help="torch's; %(default)s")
    one.set_defaults(do=do_run)
    many = commands.add_parser(
        "sweep", parents=[rows, common], help="train all that is missing, side by side"
    )
    many.add_argument("--workers", type=int, help="at a time; as many as there are cores")
    many.add_argument("--backend", choices=sorted(BACKENDS), default="processes", help="%(default)s")
    many.set_defaults(do=do_sweep)
    told = commands.add_parser("report", parents=[common], help="tables and figures from the results")
    told.add_argument("task", nargs="?", help="one of them; all, and a table over them, unless told")
    told.add_argument("--docs", type=Path, help="a page whose marked parts are written anew")
    told.set_defaults(do=do_report)
    listed = commands.add_parser("list", parents=[common], help="tasks, studies, estimators")
    listed.set_defaults(do=do_list)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; its exit status."""
    options = parser().parse_args(argv)
    if options.data is not None:
        os.environ["SPIGOT_DATA"] = str(options.data)
    return options.do(options, Console(width=None if sys.stdout.isatty() else WIDE))


if __name__ == "__main__":
    raise SystemExit(main())
