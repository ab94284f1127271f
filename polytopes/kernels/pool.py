"""One pool of threads that runs a compiled kernel over slices of a batch.

numba's own parallel layers kill forked children or abort on concurrent calls, so kernels are
single-threaded and hold no lock, and this pool hands slices to threads. There are
`torch.get_num_threads()` of them (one inside a DataLoader's worker), the calling one among them, and
a forked child makes its own. Waking a thread takes as long as much of what kernels do, so the pool
remembers how long each takes an instance, and a batch that is done sooner stays in one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count as counter
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch

__all__ = ["over_instances"]

ALONE = 3e-4  # seconds of work that no second thread would shorten
SLICE = 1e-4  # seconds, at least, that a slice should take
SLICES = 4  # a thread, at most: instances differ in size, and the last slice should be short
RISE = 0.25  # of the way up to a slower time: a first call compiles, and a thread may have to wait

Kernel = Callable[..., Any]


class _Pool:
    """The threads of this process, made when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor: ThreadPoolExecutor | None = None
        self._threads = 0

    def executor(self, threads: int) -> ThreadPoolExecutor:
        """An executor of at least so many threads."""
        with self._lock:
            if self._executor is None or self._threads < threads:
                self._executor = ThreadPoolExecutor(threads, "spigot")  # the old one ends by itself
                self._threads = threads
            return self._executor


_pool = _Pool()
_seconds: WeakKeyDictionary[Kernel, dict[int, float]] = WeakKeyDictionary()
"""What an instance took a kernel, by the number of bits of its number of entries."""


def _forget_threads() -> None:
    """A fork copies no threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def over_instances(kernel: Kernel, count: int, *arrays: Any) -> None:
    """Runs `kernel(first, last, *arrays)` so that the slices cover `range(count)`.

    The kernel writes its results into arrays that it was handed; slices touch different rows, and
    what a row holds may not depend on where a slice begins.

    Raises:
        whatever a slice raises, after the others have ended.
    """
    if not count:
        return
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        kernel(0, count, *arrays)
        return
    known, size = _seconds.setdefault(kernel, {}), _entries(count, arrays).bit_length()
    slices = min(SLICES * threads, count, _worthwhile(known.get(size), count))
    if slices == 1:
        begun = perf_counter()
        kernel(0, count, *arrays)
        spent = perf_counter() - begun
    else:
        edges = [count * i // slices for i in range(slices + 1)]
        spent = _share(_Work(kernel, edges, arrays), min(threads, slices))
    _remember(known, size, spent / count)


def _entries(count: int, arrays: tuple[Any, ...]) -> int:
    """How many entries an instance has in all arrays that have a row for each."""
    return sum(array.size for array in arrays if getattr(array, "shape", ())[:1] == (count,)) // count


def _worthwhile(seconds: float | None, count: int) -> int:
    """The number of slices that are long enough to be worth a thread's waking."""
    if seconds is None:
        return count
    whole = seconds * count
    return 1 if whole < ALONE else max(2, int(whole / SLICE))


def _remember(known: dict[int, float], size: int, seconds: float) -> None:
    """A shorter time is believed at once, a longer one bit by bit."""
    before = known.get(size, seconds)
    known[size] = min(seconds, before + RISE * (seconds - before))


class _Work:
    """A kernel's slices, which threads take one after another until none is left."""

    def __init__(self, kernel: Kernel, edges: list[int], arrays: tuple[Any, ...]) -> None:
        self._kernel, self._edges, self._arrays = kernel, edges, arrays
        self._next = counter()  # one step of it is one step of the interpreter

    def take(self) -> float:
        """Works until no slice is left; the seconds that it took."""
        begun = perf_counter()
        while (i := next(self._next)) < len(self._edges) - 1:
            self._kernel(self._edges[i], self._edges[i + 1], *self._arrays)
        return perf_counter() - begun


def _share(work: _Work, threads: int) -> float:
    """Lets so many threads, this one among them, do the work; the seconds of all together."""
    executor = _pool.executor(threads - 1)
    others = [executor.submit(work.take) for _ in range(threads - 1)]
    try:
        spent = work.take()
    finally:
        begun = [other for other in others if not other.cancel()]
        wait(begun)  # they write into the caller's arrays
    return spent + sum(other.result() for other in begun)
