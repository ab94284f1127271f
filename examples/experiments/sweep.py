"""Many runs: over processes of this machine, or over a Ray cluster.

A worker that is killed is replaced, and its run goes on from the checkpoint; a sweep that is killed is
started again by the same command. Either way no finished run is repeated.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from examples.experiments.run import Run
from examples.experiments.store import FINISHED, Result
from examples.experiments.tasks import task
from examples.experiments.training import Place, train

__all__ = ["BACKENDS", "Failure", "sweep"]

GLANCE = 0.5  # seconds between looks at the logs
DEATHS = 3  # of workers in a row, without a run finished in between
NO_RAY = (
    "--backend ray needs Ray, which is not installed here: pip install 'ray>=2.9', "
    "or pip install -e '.[experiments]'. Without it: --backend processes."
)


class Failure(RuntimeError):
    """A run that raised an error: no result of it is kept."""


Outcome = Result | Failure
Backend = Callable[[list[Run], Place, int], Generator[Outcome | None]]
"""Runs, where they write, how many at a time: yields outcomes, and None when nothing is new."""


def work(run: Run, place: Place) -> Outcome:
    """One run, in a process of its own, on one thread."""
    torch.set_num_threads(1)
    try:
        return train(run, task(run.task), place)
    except Exception as problem:
        return Failure(f"{run}: {type(problem).__name__}: {problem}")


def _leave_with_parent() -> None:
    """A worker whose sweep was killed ends at once; its checkpoint stays."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def leave() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def processes(runs: list[Run], place: Place, workers: int) -> Generator[Outcome | None]:
    """Spawned processes, each with one thread for torch."""
    left = dict.fromkeys(runs)
    deaths = 0
    while left:
        try:
            for outcome in _pool(list(left), place, workers):
                if outcome is not None:
                    run, told = outcome
                    left.pop(run)
                    deaths = 0
                    yield told
                else:
                    yield None
        except BrokenProcessPool as problem:
            deaths += 1
            if deaths == DEATHS:
                raise SystemExit(
                    f"{DEATHS} workers in a row were killed before a run had ended, perhaps for lack "
                    "of memory.\nStart again with fewer --workers: what has finished is kept, others go "
                    "on from their checkpoints."
                ) from problem


def _pool(runs: list[Run], place: Place, workers: int) -> Generator[tuple[Run, Outcome] | None]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_with_parent) as pool:
        pending: dict[Future[Outcome], Run] = {pool.submit(work, run, place): run for run in runs}
        try:
            while pending:
                done, _ = wait(pending, GLANCE, FIRST_COMPLETED)
                for future in done:
                    yield pending[future], future.result()
                    del pending[future]
                if not done:
                    yield None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def on_ray(runs: list[Run], place: Place, workers: int) -> Generator[Outcome | None]:
    """Ray's workers: of the cluster that RAY_ADDRESS names, or of this machine.

    All of them must see the output folder under the same path, and have spigot installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as problem:
        raise SystemExit(NO_RAY) from problem
    root = str(Path(__file__).parents[2])
    names = {"PYTHONPATH": root, "SPIGOT_DATA": os.environ.get("SPIGOT_DATA", "data")}
    cpus = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers}
    ray.init(
        runtime_env={"env_vars": names},
        log_to_driver=False,
        logging_level="warning",
        include_dashboard=False,
        **cpus,
    )
    try:
        remote = ray.remote(num_cpus=1, max_retries=DEATHS)(work)
        pending: list[Any] = [remote.remote(run, place) for run in runs]
        while pending:
            done, pending = ray.wait(pending, timeout=GLANCE)
            for reference in done:
                yield ray.get(reference)
            if not done:
                yield None
    finally:
        ray.shutdown()


BACKENDS: dict[str, Backend] = {"processes": processes, "ray": on_ray}


def sweep(
    runs: Iterable[Run],
    place: Place,
    console: Console,
    *,
    workers: int,
    backend: str = "processes",
) -> list[Outcome]:
    """Trains what has not been trained yet; the outcomes of that, in the order in which they came."""
    wanted = list(dict.fromkeys(runs))
    known = {result.run.key: result.settings for result in place.store.results()}
    left = [
        run for run in wanted if run.key not in known or not task(run.task).stands(run, known[run.key])
    ]
    done = f", {len(wanted) - len(left)} of them done already" if len(left) < len(wanted) else ""
    console.print(f"{len(wanted)} runs{done}; {backend}, {workers} at a time", highlight=False)
    outcomes: list[Outcome] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=len(left))
        for outcome in BACKENDS[backend](left, place, min(workers, max(len(left), 1))):
            if outcome is not None:
                outcomes.append(outcome)
                console.print(described(outcome), highlight=False, markup=False, soft_wrap=True)
            ended = {told.run.key for told in outcomes if isinstance(told, Result)}
            shares = [share(place, run) for run in left if run.key not in ended]
            progress.update(bar, completed=len(outcomes), description=running(shares))
    return outcomes


def share(place: Place, run: Run) -> float:
    """How much of a run is done, by the last line of its log."""
    path = place.log(run)
    if not path.exists():
        return 0.0
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        return 0.0
    return last["step"] / last["steps"]


def running(shares: Sequence[float]) -> str:
    begun = [f"{value:.0%}" for value in shares if value > 0]
    return " ".join(["runs", *begun[:4]])


def described(outcome: Outcome) -> str:
    """A line for whoever watches."""
    if isinstance(outcome, Failure):
        return f"  not done: {outcome}"
    metrics = "  ".join(f"{name} {value:.3f}" for name, value in outcome.test.items())
    told = metrics if outcome.status == FINISHED else f"{outcome.status}: {outcome.message}"
    return f"  {outcome.run}  {told}  {outcome.seconds:.0f} s"
