"""The pool that compiled kernels run in: slices, errors, threads, forks, DataLoader workers."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spigot.polytopes.finite import FEW, all_finite
from spigot.polytopes.kernels import compiled
from spigot.polytopes.kernels.compiled import kernel
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.totals import BLOCK


@kernel
def row_sums(first: int, last: int, rows: np.ndarray, sums: np.ndarray) -> None:
    for i in range(first, last):
        total = 0.0
        for j in range(rows.shape[1]):
            total += rows[i, j]
        sums[i] = total


def summed(rows: np.ndarray) -> np.ndarray:
    sums = np.empty(len(rows))
    over_instances(row_sums, len(rows), rows, sums)
    return sums


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 64])
@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_row_once(threads: Callable[[int], None], count: int, number: int, dtype: type) -> None:
    threads(number)
    rows = np.random.default_rng(0).standard_normal((count, 30)).astype(dtype)
    np.testing.assert_allclose(summed(rows), rows.sum(1, dtype=np.float64), rtol=1e-6)


def test_slices_cover_the_range_without_overlap(threads: Callable[[int], None]) -> None:
    threads(3)
    seen: list[tuple[int, int]] = []
    over_instances(lambda first, last: seen.append((first, last)), 50)
    assert sorted(i for first, last in seen for i in range(first, last)) == list(range(50))
    assert len(seen) > 3


def test_what_takes_long_is_shared_and_what_takes_less_than_waking_is_not(
    threads: Callable[[int], None],
) -> None:
    threads(2)
    calls: list[tuple[int, int, str]] = []

    def sleeps(first: int, last: int, seconds: np.ndarray) -> None:
        calls.append((first, last, threading.current_thread().name))
        if seconds[first, 0] > 0:
            time.sleep(seconds[first:last, 0].sum())

    over_instances(sleeps, 8, np.full((8, 1), 2e-2))
    assert len(calls) == 8
    assert len({name for _, _, name in calls}) == 2, "the calling thread and one more"
    for _ in range(20):  # of another size, so the habit is another
        calls.clear()
        over_instances(sleeps, 8, np.zeros((8, 64)))
    assert [call[:2] for call in calls] == [(0, 8)]
    assert calls[0][2] == threading.current_thread().name


def test_a_first_call_that_compiles_is_soon_forgotten(threads: Callable[[int], None]) -> None:
    threads(2)
    compiles, calls = [True], list[tuple[int, int]]()

    def begins_slowly(first: int, last: int) -> None:
        calls.append((first, last))
        if compiles:
            compiles.pop()
            time.sleep(0.5)

    for _ in range(20):
        calls.clear()
        over_instances(begins_slowly, 50)
    assert calls == [(0, 50)]


def test_the_quicker_way_becomes_the_habit_and_the_other_is_tried_again(
    threads: Callable[[int], None],
) -> None:
    threads(2)
    both = threading.Lock()  # while it is needed two threads are no quicker than one
    alone = count_alone = 0

    def sleeps_two_milliseconds(first: int, last: int, needs_lock: np.ndarray) -> None:
        nonlocal count_alone
        count_alone += (first, last) == (0, 2)
        with both if needs_lock[0, 0] else nullcontext():
            time.sleep(1e-3 * (last - first))
            if needs_lock[0, 0] and (first, last) != (0, 2):
                time.sleep(1e-3)

    for needs_lock in (True, False):
        flags = np.full((2, 1), needs_lock)
        for _ in range(190):
            over_instances(sleeps_two_milliseconds, 2, flags)
        alone, count_alone = count_alone, 0
        if needs_lock:
            assert 180 < alone < 190, "in one thread, but for a first few and each 64th"
        else:
            assert 0 < alone < 170, "it is noticed that sharing has become quicker"


def test_an_error_in_the_calling_thread_waits_for_the_others(threads: Callable[[int], None]) -> None:
    threads(2)
    ended: list[int] = []
    me = threading.current_thread()

    def fails_here(_: int, last: int) -> None:
        time.sleep(0.01)
        if threading.current_thread() is me:
            raise ArithmeticError("here")
        time.sleep(0.2)
        ended.append(last)

    with pytest.raises(ArithmeticError, match="here"):
        over_instances(fails_here, 2)
    assert ended in ([1], [2])


@pytest.mark.parametrize("n", [1, FEW, FEW + 1, 5 * BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_all_finite(n: int, dtype: torch.dtype) -> None:
    values = torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert all_finite(values)
    for bad in (torch.nan, torch.inf, -torch.inf):
        for place in {0, n // 2, n - 1}:
            spoilt = values.clone()
            spoilt[place] = bad
            assert not all_finite(spoilt)
    if n > 1:
        opposite = values.clone()
        opposite[0], opposite[-1] = torch.inf, -torch.inf
        assert not all_finite(opposite)
    strided = torch.stack([values, torch.full_like(values, torch.nan)], 1)
    assert all_finite(strided[:, 0])
    assert not all_finite(strided)


def test_an_error_in_a_slice_reaches_the_caller(threads: Callable[[int], None]) -> None:
    threads(2)

    def fails(first: int, last: int) -> None:
        if first <= 5 < last:
            raise ArithmeticError("instance 5")

    with pytest.raises(ArithmeticError, match="instance 5"):
        over_instances(fails, 20)
    rows = np.ones((20, 3))
    assert summed(rows).sum() == 60


def test_four_threads_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    rows = [np.random.default_rng(i).standard_normal((200, 50)) for i in range(4)]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(summed, rows * 5))
    for part, sums in zip(rows * 5, found, strict=True):
        np.testing.assert_allclose(sums, part.sum(1))


def _child(queue: Any) -> None:
    torch.set_num_threads(2)
    queue.put(float(summed(np.ones((40, 5))).sum()))


def test_a_fork_after_a_call(threads: Callable[[int], None]) -> None:
    threads(2)
    assert summed(np.ones((40, 5))).sum() == 200  # the parent's threads are running
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 200
    child.join(60)
    assert child.exitcode == 0
    assert summed(np.ones((40, 5))).sum() == 200


class _Sums(Dataset[Tensor]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return torch.as_tensor(summed(np.full((4, 3), float(index))))


def test_workers_of_a_data_loader(threads: Callable[[int], None]) -> None:
    threads(2)
    expected = torch.stack([_Sums()[i] for i in range(8)])
    loader = DataLoader(_Sums(), batch_size=4, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), expected)


def test_code_on_disk_is_forgotten_when_a_kernel_that_it_calls_changes(tmp_path: Path) -> None:
    """numba alone would run the old callee."""
    folder = tmp_path / "kernels"
    shutil.copytree(Path(compiled.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "caller.py").write_text(
        "from kernels.compiled import kernel\nfrom kernels.callee import number\n"
        "@kernel\ndef called() -> float:\n    return number()\n"
    )
    for value in (1.0, 2.0):
        (folder / "callee.py").write_text(
            f"from kernels.compiled import kernel\n@kernel\ndef number() -> float:\n    return {value}\n"
        )
        code = "from kernels.caller import called; print(called())"
        path = os.pathsep.join([str(tmp_path), *sys.path])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert float(done.stdout) == value
