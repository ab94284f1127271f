"""One pool of threads that runs a compiled kernel over slices of a batch.

numba's own parallel layers kill forked children or abort on concurrent calls, so kernels are
single-threaded and hold no lock, and this pool hands each thread a slice. There are
`torch.get_num_threads()` threads (one inside a DataLoader's worker), and a forked child makes
its own.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch

__all__ = ["over_instances"]

FEW = 1 << 14  # entries, which take less time than threads take to wake
SLICES = 4  # a thread: instances differ in size, and the last slice should be short


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


def _forget_threads() -> None:
    """A fork copies no threads."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def over_instances(
    kernel: Callable[..., Any], count: int, *arrays: Any, entries: int | None = None
) -> None:
    """Runs `kernel(first, last, *arrays)` so that the slices cover `range(count)`.

    The kernel writes its results into arrays that it was handed; slices touch different rows. Where
    it does little with each of its `entries`, a batch of few is done at once in this thread.

    Raises:
        whatever a slice raises.
    """
    threads = min(torch.get_num_threads(), count)
    if threads <= 1 or (entries is not None and entries < FEW):
        if count:
            kernel(0, count, *arrays)
        return
    slices = min(count, SLICES * threads)
    edges = [count * i // slices for i in range(slices + 1)]
    tasks = [
        _pool.executor(threads).submit(kernel, first, last, *arrays) for first, last in pairwise(edges)
    ]
    for task in tasks:
        task.result()
