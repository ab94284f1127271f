"""Every structure in several threads at once, in forked children, and for any number of threads."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spigot.polytopes import Euclidean, Gibbs, Polytope
from spigot.polytopes.kernels import pool
from tests.structures import STRUCTURES, Row
from tests.test_structures import answers, normal

every_structure = pytest.mark.parametrize("row", STRUCTURES, ids=str)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def all_verbs(polytope: Polytope, scores: Tensor) -> list[Tensor]:
    """MAP, projection with its gradient, and what Gibbs gives, of one batch."""
    leaf = scores.clone().requires_grad_()
    value = polytope.project(leaf)
    (gradient,) = torch.autograd.grad((value * scores).sum(), leaf)
    found = [polytope.maximize(scores), value.detach(), gradient]
    if answers(polytope, Gibbs()):
        rng = torch.Generator().manual_seed(0)
        found += [
            polytope.marginals(scores),
            polytope.entropy(scores),
            polytope.sample(scores, (3,), generator=rng),
        ]
    return found


def same(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@every_structure
def test_threads_at_once(row: Row, threads: Callable[[int], None]) -> None:
    threads(2)
    batches = [normal(row.polytope, 5, seed=seed) for seed in range(4)]
    expected = [all_verbs(row.polytope, scores) for scores in batches]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda scores: all_verbs(row.polytope, scores), batches * 2))
    for left, right in zip(found, expected * 2, strict=True):
        same(left, right)


@every_structure
def test_the_number_of_threads_changes_nothing(
    row: Row, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where a slice begins: here every instance is one, however short it takes."""
    monkeypatch.setattr(pool, "LONG", 0.0)
    monkeypatch.setattr(pool, "SLICE", 1e-12)
    scores = normal(row.polytope, 7)
    threads(1)
    alone = all_verbs(row.polytope, scores)
    threads(3)
    same(all_verbs(row.polytope, scores), alone)


def _in_child(queue: Any) -> None:
    torch.set_num_threads(1)  # as in a DataLoader's worker: torch's own OpenMP threads do not survive
    results = [
        [found.numpy() for found in all_verbs(r.polytope, normal(r.polytope, 5))] for r in STRUCTURES
    ]
    queue.put(results)


def test_a_fork_after_every_structure_was_used(threads: Callable[[int], None]) -> None:
    threads(2)
    expected = [all_verbs(row.polytope, normal(row.polytope, 5)) for row in STRUCTURES]
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    found = queue.get(timeout=200)
    child.join(60)
    assert child.exitcode == 0
    for left, right in zip(found, expected, strict=True):
        same([torch.as_tensor(item) for item in left], right)


class _Best(Dataset[Tensor]):
    """The best structure of each item, found by the worker."""

    def __init__(self, polytope: Polytope) -> None:
        self.polytope = polytope

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        return self.polytope.maximize(normal(self.polytope, seed=index), Euclidean())


def test_workers_of_a_data_loader() -> None:
    for row in STRUCTURES:
        items = _Best(row.polytope)
        expected = torch.stack([items[i] for i in range(len(items))])
        loader = DataLoader(items, batch_size=3, num_workers=1, multiprocessing_context="fork")
        torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=0, atol=1e-9)
