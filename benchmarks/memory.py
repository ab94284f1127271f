"""Peak memory of the generic engine against the batch and against the nonzeros of the rows.

    python -m benchmarks.memory [--threads 2]

Projections and their backward over sets declared by constraints alone: unit flows on grids, and 30
random facets. Each size runs in a process of its own, after a call on two instances, so that imports,
compiled code and the set's own factor are in place; `memory` is what the peak resident memory grows
by from there, `numbers` how many float64 numbers that is for each part and row of an instance.
Exponents are of log memory over log size. Linux alone says what a peak is since a moment.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.families.engine import facets, grid
from benchmarks.report import markdown
from spigot.polytopes import Euclidean, Facets

__all__ = ["SETS", "grown", "measured"]

SETS: dict[str, Callable[[int], Facets]] = {"grid": grid, "facets": lambda d: facets(30, d)}
BY_BATCH = [("grid", 20, batch) for batch in (16, 64, 256, 1024)]
BY_NONZEROS = [("grid", side, 256) for side in (10, 20, 30, 40)]
BY_PARTS = [("facets", d, 256) for d in (100, 200, 400, 800)]
MANY = [("facets", 100, batch) for batch in (64, 256, 1024, 4096)]


def peak() -> int:
    """The peak of resident memory since `forget`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status does not say VmHWM.")


def forget() -> None:
    """The peak starts anew from what is resident, and what lies free is handed back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def grown(name: str, size: int, batch: int) -> tuple[int, int, int]:
    """Bytes that the peak grows by over a forward and a backward; nonzeros; parts and rows."""
    polytope = SETS[name](size)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((batch, *polytope.event_shape), generator=generator, dtype=torch.float64)

    def both(own: torch.Tensor) -> None:
        own.requires_grad_()
        polytope.maximize(own, Euclidean()).square().sum().backward()

    both(scores[:2].clone())
    form = polytope.canonical
    forget()
    before = peak()
    both(scores)
    memory = peak() - before
    return memory, form.A.nnz + form.G.nnz, form.variables + len(form.b) + len(form.h)


def measured(name: str, size: int, batch: int, threads: int) -> tuple[int, int, int]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--line", f"{name},{size},{batch}"]
    command += ["--threads", str(threads)]
    root = Path(__file__).parents[1]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout.split()
    memory, nonzeros, unknowns = map(int, said[-3:])
    return memory, nonzeros, unknowns


def table(lines: list[tuple[str, int, int]], by_batch: bool, threads: int) -> str:
    """One axis: its lines and the exponent."""
    rows: list[tuple[str, ...]] = []
    sizes: list[int] = []
    bytes_: list[int] = []
    for name, size, batch in lines:
        memory, nonzeros, unknowns = measured(name, size, batch, threads)
        each = memory / 8 / batch / unknowns
        row = (name, str(size), f"{nonzeros:,}", str(batch), f"{memory / 1e6:.1f}", f"{each:.1f}")
        rows.append(row)
        sizes.append(batch if by_batch else nonzeros)
        bytes_.append(memory)
    exponent = float(np.polyfit(np.log(sizes), np.log(bytes_), 1)[0])
    head = ("set", "size", "nonzeros", "batch", "memory MB", "numbers")
    axis = "the batch" if by_batch else "the nonzeros"
    return f"{markdown(head, rows)}\n\nexponent in {axis}: {exponent:.2f}\n"


def main() -> None:
    """All axes."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--line", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.line is not None:
        name, size, batch = options.line.split(",")
        print(*grown(name, int(size), int(batch)))
        return
    for lines, by_batch in ((BY_BATCH, True), (MANY, True), (BY_NONZEROS, False), (BY_PARTS, False)):
        print(table(lines, by_batch, options.threads), flush=True)


if __name__ == "__main__":
    main()
