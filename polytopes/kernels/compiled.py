"""How a kernel is compiled: one thread, without the interpreter's lock, kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from spigot.polytopes.arrays import library

__all__ = ["kernel", "summing"]

F = TypeVar("F", bound=Callable[..., object])


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What the files of a folder are: their names, times and sizes."""
    stats = [(path.name, path.stat()) for path in sorted(folder.glob("*.py"))]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


SOURCES = _stamp(Path(__file__).parent)


def kernel(function: F) -> F:
    """Compiles a loop over instances, `kernel(first, last, *arrays)`, when it is first called.

    It runs in one thread and holds no lock, so that `pool.over_instances` may run it on several
    slices at once. Division by zero and overflow give inf and NaN, as in numpy. The machine code is
    kept on disk for the next process, until any file of this folder changes: a kernel holds the code
    of those that it calls, which numba's own check of the kernel's file alone does not see.
    """
    return _compiled(function, fastmath=False)


def summing(function: F) -> F:
    """The same where sums may be taken in any order, so that the compiler makes vectors of them.

    NaN and inf keep their meaning; nothing in it may rely on the order of additions.
    """
    return _compiled(function, fastmath={"reassoc", "contract", "nsz"})


def _compiled(function: F, fastmath: Any) -> F:
    compiled: Any = library("numba").njit(
        function, nogil=True, cache=True, error_model="numpy", fastmath=fastmath
    )
    kept: Any = compiled._cache._cache_file
    kept._source_stamp = (kept._source_stamp, SOURCES)
    kept._load_index = _readable(kept._load_index)
    return compiled


def _readable(load: Callable[[], dict[Any, str]]) -> Callable[[], dict[Any, str]]:
    """The index of what is on disk, empty where an older version left classes that exist no more."""

    def loaded() -> dict[Any, str]:
        try:
            return load()
        except (ImportError, AttributeError):
            return {}

    return loaded
