"""One pool of threads that runs a compiled kernel over slices of a batch.

numba's own parallel layers kill forked children or abort on concurrent calls, so kernels are
single-threaded and hold no lock, and this pool hands slices to threads. There are
`torch.get_num_threads()` of them (one inside a DataLoader's worker), the calling one among them, and
a forked child makes its own. Waking a thread takes as long as much of what kernels do, and longer where
something else keeps a core busy, so the pool remembers of each kernel which was quicker, one or several.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import count as counter
from math import inf
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch

__all__ = ["over_instances"]

SHORT = 1e-4  # seconds of work, for which no other thread is worth waking
LONG = 1e-2  # seconds of work that are always shared
SLICE = 1e-4  # seconds, at least, that a slice should take
SLICES = 4  # a thread, at most: instances differ in size, and the last slice should be short
RECENT = 0.2  # the weight of a call's time in what is remembered
AGAIN = 64  # calls after which the way that seemed slower is tried again

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
Kind = tuple[int, int, int]
_habits: WeakKeyDictionary[Kernel, dict[Kind, _Habit]] = WeakKeyDictionary()
"""Of each kernel, by the number of threads and by an instance's and the batch's sizes in bits."""


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
        Exception: whatever a slice raises, after the others have ended.
    """
    if not count:
        return
    threads = min(torch.get_num_threads(), count)
    if threads == 1:
        kernel(0, count, *arrays)
        return
    kind = threads, _bytes(count, arrays).bit_length(), count.bit_length()
    habit = _habit(kernel, kind)
    begun = perf_counter()
    if habit.shares():
        slices = max(threads, int(min(SLICES * threads, count, habit.work / SLICE)))
        edges = [count * i // slices for i in range(slices + 1)]
        work = _share(_Work(kernel, edges, arrays), threads)
        habit.learn(True, perf_counter() - begun, work)
    else:
        kernel(0, count, *arrays)
        seconds = perf_counter() - begun
        habit.learn(False, seconds, seconds)


def _habit(kernel: Kernel, kind: Kind) -> _Habit:
    known = _habits.get(kernel)
    if known is None:
        known = _habits.setdefault(kernel, {})
    return known.get(kind) or known.setdefault(kind, _Habit())


def _bytes(count: int, arrays: tuple[Any, ...]) -> int:
    """What an instance takes in all arrays that have a row for each."""
    return sum(array.nbytes for array in arrays if getattr(array, "shape", ())[:1] == (count,)) // count


class _Habit:
    """Whether one thread or several were quicker with a kernel's batches of about this size."""

    def __init__(self) -> None:
        self.calls = -1  # the first one may compile, and is not remembered
        self.work = inf  # seconds of all threads together
        self.took: dict[bool, float] = {}  # seconds, shared and not

    def shares(self) -> bool:
        """Whether the next call should be shared."""
        if self.calls < 1 or self.work > LONG:
            return True
        if self.work < SHORT or len(self.took) == 1:
            return False
        shared = self.took[True] < self.took[False]
        return shared != (self.calls % AGAIN == 0)

    def learn(self, shared: bool, seconds: float, work: float) -> None:
        """What a call took, and what its threads took together."""
        self.calls += 1
        if not self.calls:
            return
        again = self.calls % AGAIN == 1  # what it took long ago tells nothing
        self.took[shared] = _towards(seconds, None if again else self.took.get(shared))
        self.work = _towards(work, None if self.work == inf else self.work)


def _towards(seconds: float, before: float | None) -> float:
    """A running mean, in which a call that had to wait counts as one four times as long at most."""
    if before is None:
        return seconds
    return before + RECENT * (min(seconds, 4 * before + 1e-6) - before)


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
