"""How a kernel is compiled: one thread, without the interpreter's lock, kept on disk.

numba is imported when a kernel is first called, not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, update_wrapper
from pathlib import Path
from typing import Any, TypeVar, cast

from spigot.polytopes.arrays import library

__all__ = ["fused", "kernel", "summing"]

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compiles a loop over instances, `kernel(first, last, *arrays)`, when it is first called.

    It runs in one thread and holds no lock, so that `pool.over_instances` may run it on several
    slices at once. Division by zero and overflow give inf and NaN, as in numpy. The machine code is
    kept on disk for the next process, until any file of this folder changes: a kernel holds the code
    of those that it calls, which numba's own check of the kernel's file alone does not see.
    """
    return cast(F, _Kernel(function, fastmath=False))


def summing(function: F) -> F:
    """The same where sums may be taken in any order, so that the compiler makes vectors of them.

    NaN and inf keep their meaning; nothing in it may rely on the order of additions.
    """
    return cast(F, _Kernel(function, fastmath={"reassoc", "contract", "nsz"}))


def fused(function: F) -> F:
    """The same where a product and a sum after it may be rounded once, together."""
    return cast(F, _Kernel(function, fastmath={"contract"}))


class _Kernel:
    """A function, compiled when first called; in another kernel, what numba made of it."""

    def __init__(self, function: Callable[..., object], fastmath: Any) -> None:
        update_wrapper(self, function)
        self._function, self._fastmath = function, fastmath
        self._compiled: Any = None

    @property
    def compiled(self) -> Any:
        """numba's dispatcher, made once."""
        if self._compiled is None:
            with _LOCK:
                self._compiled = self._compiled or _dispatcher(self._function, self._fastmath)
        return self._compiled

    def __call__(self, *args: Any) -> Any:
        return self.compiled(*args)

    def __reduce__(self) -> str:
        return self._function.__qualname__


_LOCK = threading.RLock()


def _dispatcher(function: Callable[..., object], fastmath: Any) -> Any:
    """What numba makes of a function."""
    compiled: Any = _numba().njit(
        function, nogil=True, cache=True, error_model="numpy", fastmath=fastmath
    )
    _keep_by_folder(compiled._cache)
    return compiled


@cache
def _numba() -> Any:
    """numba, told what a kernel is that another one calls."""
    numba, extending = library("numba"), library("numba.extending")

    def typed(value: _Kernel, _context: object) -> Any:
        return numba.types.Dispatcher(value.compiled)

    extending.typeof_impl.register(_Kernel)(typed)
    return numba


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What the files of a folder and of those in it are: their names, times and sizes."""
    stats = [(str(path.relative_to(folder)), path.stat()) for path in sorted(folder.rglob("*.py"))]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


SOURCES = _stamp(Path(__file__).parent)  # as they are imported


def _keep_by_folder(kept: Any) -> None:
    """Lets machine code on disk count until a file of the folder changes, and loads it quickly.

    numba would import all that a compilation may need, and scipy's linear algebra, before it loads
    what needs no compilation any more; where nothing is found it does so as it compiles.
    """
    runtime = library("numba.core.runtime").rtsys
    file = kept._cache_file
    read, file._source_stamp = file._load_index, (file._source_stamp, SOURCES)

    def load_index() -> dict[Any, str]:
        try:
            return read()
        except (ImportError, AttributeError):  # an older version left classes that exist no more
            return {}

    def load_overload(signature: Any, target: Any) -> Any:
        runtime.initialize(target)
        with kept._guard_against_spurious_io_errors():
            return kept._load_overload(signature, target)

    file._load_index, kept.load_overload = load_index, load_overload
