"""What a new process waits for: the import, and a compiled rule's first call from a warm cache."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.workload import Check, Family, Kind, Method, Target, Workload

PROCESS = "new process"
IMPORTS = "import torch; import spigot"
RULES = {
    "Simplex projection": "Simplex(100).project(torch.randn(8, 100))",
    "Arborescence MAP": "Arborescence(20).maximize(torch.randn(8, 20, 20))",
    "Sequence marginals": "Sequence(20, 5).marginals(torch.randn(8, 20, 5, 5))",
    "Matching projection": "Matching(10).project(torch.randn(8, 10, 10))",
    "Matching Sinkhorn": "Matching(10).maximize(torch.randn(8, 10, 10), Shannon())",
    "Permutahedron projection": "Permutahedron.of_ranks(20).project(torch.randn(8, 20))",
    "GridPath MAP": "GridPath(12, 12).maximize(-torch.rand(8, 12, 12))",
}


def _run(code: str) -> str:
    """What a new process prints; Python may keep its bytecode, as it does for users."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def _process(code: str) -> dict[str, Callable[[], object]]:
    return {PROCESS: functools.partial(_run, code)}


def _seconds(before: str, code: str, processes: int) -> Callable[[], float]:
    """The CPU seconds that the code takes after what comes before it, least of a few processes."""
    timed = (
        f"{before}\nimport time\nstart = time.process_time()\n{code}\nprint(time.process_time() - start)"
    )
    return lambda: min(float(_run(timed)) for _ in range(processes))


def _imports(smoke: bool) -> Iterator[Workload]:
    beyond = None if smoke else _seconds("import torch", "import spigot", 4)
    yield Workload(
        {"what": "import"},
        (
            Method(
                "import spigot",
                Kind.OURS,
                _process(IMPORTS),
                error=beyond,
            ),
            Method("import torch", Kind.BOUND, _process("import torch")),
        ),
        (Target("import torch", PROCESS, at_most=1.2),),
    )


def _first_calls(smoke: bool) -> Iterator[Workload]:
    before = f"{IMPORTS}\nfrom spigot.polytopes import *\nfrom spigot.polytopes import Shannon"
    for name, code in list(RULES.items())[: 1 if smoke else None]:
        waited = None if smoke else _seconds(before, code, 4)
        yield Workload(
            {"first call": name},
            (
                Method("spigot", Kind.OURS, _process(f"{before}\n{code}"), 1, waited),
                Method("import spigot", Kind.BOUND, _process(before)),
            ),
        )


FAMILIES = (
    Family(
        "startup-import",
        (Check("CPU s more", "CPU seconds beyond those of `import torch`; under 0.3", 0.3),),
        _imports,
        threads=(1,),
        seconds=25,
    ),
    Family(
        "startup-first-call",
        (
            Check(
                "CPU s more",
                "CPU seconds of the first call, beyond `import spigot`, from a warm cache; under 0.3",
                0.3,
            ),
        ),
        _first_calls,
        threads=(1,),
        seconds=180,
    ),
)
