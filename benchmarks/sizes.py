"""The sizes that users have: time, certificate and peak memory of each verb at full size.

    python benchmarks/sizes.py [--only NAME] [--seed 0]

Each line runs in a process of its own: the structure at a small size first, so that everything is
imported and compiled, then once at full size on N(0, 1) scores in float64. `memory` is what the
process's peak grew by, as a multiple of the bytes of scores and answer together; `gap` is the
certificate relative to 1 + |<s, y>|.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import (
    Arborescence,
    Euclidean,
    Gibbs,
    GridPath,
    Matching,
    Permutahedron,
    Polytope,
    Regularizer,
    Sequence,
    Simplex,
)

MAP, PROJECT, MARGINALS = None, Euclidean(), Gibbs()
VERBS: dict[Regularizer | None, str] = {MAP: "maximize", PROJECT: "project", MARGINALS: "marginals"}


@dataclass(frozen=True)
class Line:
    """A structure by its size, the size that is asked for, a small one, and the verbs there."""

    name: str
    make: Callable[[int], Polytope]
    size: int
    small: int
    verbs: tuple[Regularizer | None, ...]


LINES = [
    Line("Simplex", Simplex, 1_000_000, 1000, (MAP, PROJECT, MARGINALS)),
    Line("Permutahedron", Permutahedron.of_ranks, 100_000, 100, (MAP, PROJECT)),
    Line("Arborescence", Arborescence, 500, 20, (MAP, PROJECT)),
    Line("Arborescence", Arborescence, 200, 20, (MARGINALS,)),
    Line("Matching", lambda n: Matching(n, n), 500, 20, (MAP, PROJECT)),
    Line("Sequence of 20 tags", lambda n: Sequence(n, 20), 10_000, 20, (MAP, MARGINALS)),
    Line("Sequence of 20 tags", lambda n: Sequence(n, 20), 1_000, 20, (PROJECT,)),
    Line("GridPath", lambda n: GridPath(n, n), 256, 8, (MAP,)),
    Line("GridPath", lambda n: GridPath(n, n), 64, 8, (PROJECT,)),
]


def scores_of(polytope: Polytope, seed: int) -> Tensor:
    """N(0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(polytope.event_shape, dtype=torch.float64, generator=generator)


def peak() -> int:
    """The process's peak resident memory in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(line: Line, regularizer: Regularizer | None, seed: int) -> str:
    """One line of the table."""
    small = line.make(line.small)
    small.solve(scores_of(small, seed), regularizer)
    polytope = line.make(line.size)
    scores = scores_of(polytope, seed)
    before = peak()
    start = time.perf_counter()
    value = polytope.maximize(scores, regularizer)
    seconds = time.perf_counter() - start
    grown = peak() - before
    memory = grown / (2 * scores.numel() * scores.element_size())
    gap = "-"
    if regularizer is not MARGINALS:
        relative = polytope.gap(value, scores, regularizer) / (1 + (scores * value).sum().abs())
        gap = f"{relative.item():.0e}"
    road = polytope.which(regularizer).rule
    cells = (
        line.name,
        f"{line.size:,}",
        VERBS[regularizer],
        f"{seconds:.3f}",
        gap,
        f"{memory:.1f}",
        road,
    )
    return row_of(cells)


def row_of(cells: tuple[str, ...]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """All lines, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="a structure's name")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--line", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.line is not None:
        row, verb = options.line.split(",")
        print(measure(LINES[int(row)], LINES[int(row)].verbs[int(verb)], options.seed), flush=True)
        return
    print(row_of(("structure", "size", "verb", "seconds", "gap", "memory", "road")))
    print(row_of(("---",) * 7), flush=True)
    for row, line in enumerate(LINES):
        for verb in range(len(line.verbs) if line.name.startswith(options.only) else 0):
            command = [sys.executable, __file__, "--line", f"{row},{verb}", "--seed", str(options.seed)]
            subprocess.run(command, check=False)


if __name__ == "__main__":
    main()
