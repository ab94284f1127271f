"""From an oracle alone: the active set over a batch, warm starts, the cache of supports, workers."""

from __future__ import annotations

import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from spigot.layers import Argmax, Relaxed
from spigot.polytopes import (
    Arborescence,
    Euclidean,
    Hull,
    Oracle,
    OracleError,
    Polytope,
    Sequence,
    Shannon,
    Simplex,
    Status,
    Subset,
)
from spigot.polytopes.solvers import ActiveSet, SupportCache
from spigot.polytopes.workers import Processes, Threads
from spigot.pullback import SPIGOT
from tests.tensors import normal


@dataclass(frozen=True)
class Trees(Polytope):
    """Spanning arborescences by an oracle alone."""

    n: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.n, self.n)

    def argmax(self, scores: Tensor) -> Tensor:
        return Arborescence(self.n).maximize(scores)


def farthest(found: Tensor, points: Tensor) -> float:
    """How far the found points are from being among these, at most."""
    return float((found[:, None] - points).abs().amax(2).amin(1).max())


# --- the active set ------------------------------------------------------------------------------


def test_trees_by_their_oracle_equal_the_cutting_planes_and_their_derivative() -> None:
    scores, grad = normal(24, 12, 12), normal(24, 12, 12, seed=1)
    found: list[tuple[Tensor, Tensor]] = []
    for polytope in (Trees(12), Arborescence(12)):
        leaf = scores.clone().requires_grad_()
        value = polytope.project(leaf)
        (value * grad).sum().backward()
        assert leaf.grad is not None
        found.append((value.detach(), leaf.grad))
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=0)


def test_tiny_weights_do_not_spoil_the_derivative() -> None:
    """Some supports hold vertices of weight 1e-9: y lies that close to a smaller face."""
    scores, direction = normal(64, 20, 20)[6], normal(20, 20, seed=2)
    leaf = scores.clone().requires_grad_()
    solution = Trees(20).solve(scores, Euclidean())
    assert solution.weights is not None
    assert float(solution.weights[solution.weights > 0].min()) < 1e-8
    (Trees(20).project(leaf) * direction).sum().backward()
    step = 1e-10  # below the tiny weights, so that the face stays
    ahead, behind = (Arborescence(20).project(scores + h * direction) for h in (step, -step))
    along = float(((ahead - behind) * direction).sum() / (2 * step))
    assert leaf.grad is not None
    assert float((leaf.grad * direction).sum()) == pytest.approx(along, abs=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("seed", range(4))
def test_hulls_of_random_points(seed: int, offset: float) -> None:
    """Also far from 0, with repeated points and points on a plane."""
    points = normal(12, 5, seed=seed) + offset
    points = torch.cat([points, points[:2], points[3:5].mean(0, keepdim=True)])
    points[:, 4] = points[:, 0] - points[:, 1]
    hull, scores = Hull(points), normal(30, 5, seed=9) + offset
    solution = hull.solve(scores, Euclidean(), solver=ActiveSet())
    y, weights, support = solution.value, solution.weights, solution.support
    assert weights is not None and support is not None
    rounding = 1e-15 * (1 + offset) ** 2
    gap = ((scores - y) @ points.T).amax(1) - ((scores - y) * y).sum(1)
    assert float(gap.max()) <= 1e-11 + 50 * rounding
    torch.testing.assert_close(
        (weights[..., None] * support).sum(1), y, atol=1e-14 + rounding, rtol=1e-14
    )
    torch.testing.assert_close(weights.sum(1), torch.ones(30, dtype=torch.float64))
    assert float(weights.min()) >= 0
    held = weights > 0
    assert farthest(support[held], points) == 0
    for i in range(30):  # affinely independent, so no more than the dimension and 1
        chosen = support[i][held[i]]
        assert int(torch.linalg.matrix_rank(chosen - chosen[:1], rtol=1e-9)) == len(chosen) - 1


def test_a_truncated_answer_lies_in_the_polytope_and_says_its_gap() -> None:
    scores = normal(8, 12, 12)
    exact = Arborescence(12).project(scores)
    last = torch.full((8,), torch.inf, dtype=torch.float64)
    for steps in (0, 3, 10):
        rough = Trees(12).solve(scores, Euclidean(), solver=ActiveSet(max_steps=steps), throw=False)
        assert bool((rough.status == Status.STOPPED).all())
        assert bool((rough.iterations == steps).all())
        assert bool(Arborescence(12).contains(rough.value, tolerance=1e-9).all())
        assert rough.gap is not None
        slope = scores - rough.value
        best = Arborescence(12).maximize(slope)
        torch.testing.assert_close(rough.gap, (slope * (best - rough.value)).sum((1, 2)))
        error = (rough.value - exact).square().sum((1, 2))
        assert bool((error <= rough.gap).all()) and bool((error <= last).all())
        last = error
    loose = Trees(12).solve(scores, Euclidean(), solver=ActiveSet(tolerance=1e-2))
    assert bool(loose.converged.all()) and float(loose.gap.max()) > 1e-6  # pyright: ignore
    assert bool((loose.iterations < Trees(12).solve(scores, Euclidean()).iterations).all())


def test_a_batch_is_its_instances() -> None:
    scores = normal(9, 7, 7)
    whole = Trees(7).solve(scores, Euclidean())
    for i in range(9):
        alone = Trees(7).solve(scores[i], Euclidean())
        assert torch.equal(alone.value, whole.value[i])
        assert int(alone.iterations) == int(whole.iterations[i])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(Trees(7).project(scores), whole.value)
    finally:
        torch.set_num_threads(threads)


# --- start= --------------------------------------------------------------------------------------


def starts(solution: Any, cache: SupportCache) -> list[Any]:
    return [solution, cache.at(torch.arange(len(solution.status)))]


@pytest.mark.parametrize("moved", [0.0, 1e-2, 1.0])
def test_a_start_changes_the_steps_and_not_the_answer(moved: float) -> None:
    scores, cache = normal(16, 10, 10), SupportCache()
    before = Trees(10).solve(scores, Euclidean(), start=cache.at(range(16)))
    after = scores + moved * normal(16, 10, 10, seed=1)
    cold = Trees(10).solve(after, Euclidean())
    for start in starts(before, cache):
        warm = Trees(10).solve(after, Euclidean(), start=start)
        torch.testing.assert_close(warm.value, cold.value, atol=1e-12, rtol=0)
        if moved == 0:
            assert not bool(warm.iterations.any())
        if moved < 1:
            assert 2 * int(warm.iterations.sum()) < int(cold.iterations.sum())
    leaf = after.clone().requires_grad_()
    torch.testing.assert_close(Trees(10).project(leaf, start=before), cold.value, atol=1e-12, rtol=0)


def test_verbs_take_a_start() -> None:
    scores = normal(3, 6, 6)
    before = Trees(6).solve(scores, Euclidean())
    for verb in (Trees(6).maximize, Trees(6).conjugate, Trees(6).solve):
        for omega in (None, Euclidean(), Shannon()):  # those without use for it ignore it
            with_start = verb(scores, omega, start=before)
            without = verb(scores, omega)
            if isinstance(with_start, Tensor) and isinstance(without, Tensor):
                torch.testing.assert_close(with_start, without, atol=1e-7, rtol=0)


def test_a_start_that_masks_exclude_is_left_out() -> None:
    """A mixture of excluded vertices would lie outside the face."""
    scores, cache = normal(12, 6), SupportCache()
    pairs = Oracle(Subset(6, 2).argmax, (6,), batched=True)
    before = pairs.solve(scores, Euclidean(), start=cache.at(range(12)))
    keep = normal(12, 6, seed=1) < 0.7
    keep[:, :3] = True
    cold = Subset(6, 2).project(scores, keep=keep)
    for start in starts(before, cache):
        warm = pairs.maximize(scores, Euclidean(), keep=keep, start=start)
        assert not bool(warm[~keep].any())
        torch.testing.assert_close(warm, cold, atol=1e-12, rtol=0)


def test_a_start_of_another_size_is_left_out() -> None:
    """A tree of 4 words is no tree of 5, though it fits in."""
    scores, cache = normal(4, 6, 6), SupportCache()
    trees, solver = Arborescence(6), ActiveSet()
    first, second = torch.tensor([4, 5, 6, 3]), torch.tensor([5, 5, 6, 6])
    before = trees.solve(
        scores, Euclidean(), lengths=first, solver=solver, start=cache.at(torch.arange(4))
    )
    cold = trees.project(scores, lengths=second)
    for start in starts(before, cache):
        warm = trees.solve(scores, Euclidean(), lengths=second, solver=solver, start=start)
        torch.testing.assert_close(warm.value, cold, atol=1e-12, rtol=0)
        assert not bool(warm.iterations[1:3].any())  # the same size as before
    again = trees.solve(scores, Euclidean(), lengths=second, solver=solver, start=cache.at(range(4)))
    assert not bool(again.iterations.any())


def test_a_start_of_other_parameters_is_left_out() -> None:
    scores, cache = normal(3, 5), SupportCache()
    few, many = torch.tensor([1, 2, 2]), torch.tensor([2, 2, 3])
    bags, solver = Subset(5, 2), ActiveSet()
    before = bags.solve(scores, Euclidean(), params={"k": few}, solver=solver, start=cache.at(range(3)))
    cold = bags.maximize(scores, Euclidean(), params={"k": many})
    for start in starts(before, cache):
        warm = bags.maximize(scores, Euclidean(), params={"k": many}, solver=solver, start=start)
        torch.testing.assert_close(warm, cold, atol=1e-12, rtol=0)


def test_a_start_that_lost_digits_is_left_out() -> None:
    points = normal(6, 4) / 3
    hull, scores = Hull(points), normal(5, 4)
    rounded = hull.solve(scores.float(), Euclidean(), solver=ActiveSet())
    warm = hull.solve(scores, Euclidean(), solver=ActiveSet(), start=rounded)
    assert warm.support is not None and warm.weights is not None
    assert farthest(warm.support[warm.weights > 0], points) == 0


def test_a_projection_of_tags_starts_warm_too() -> None:
    chain, omega = Sequence(5, 3), Euclidean(of=Sequence.tags)
    scores = normal(4, 5, 3, 3)
    before = chain.solve(scores, omega, solver=ActiveSet())
    warm = chain.solve(scores, omega, solver=ActiveSet(), start=before)
    tags = Sequence.tags.apply
    torch.testing.assert_close(tags(warm.value), tags(before.value), atol=1e-12, rtol=0)
    assert not bool(warm.iterations.any())


@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (0,)])
def test_starts_of_every_batch_shape(shape: tuple[int, ...]) -> None:
    scores, cache = normal(*shape, 5, 5), SupportCache()
    ids = torch.arange(torch.Size(shape).numel()).reshape(shape)
    before = Trees(5).solve(scores, Euclidean(), start=cache.at(ids))
    for start in (before, cache.at(ids)):
        after = Trees(5).solve(scores, Euclidean(), start=start)
        torch.testing.assert_close(after.value, before.value, atol=1e-12, rtol=0)
        assert not bool(after.iterations.any())
    assert len(cache) == torch.Size(shape).numel()


REFUSED: dict[str, tuple[Callable[[Any, SupportCache], Any], type[Exception], str]] = {
    "another batch": (lambda s, _: s, ValueError, r"batch of shape \(3,\).*batch shape is \(2,\)"),
    "other ids": (lambda _, c: c.at([1, 2, 3]), ValueError, r"batch of shape \(3,\).*is \(2,\)"),
    "a tensor": (lambda s, _: s.value, TypeError, r"Solution.*or SupportCache\.at\(ids\), got Tensor"),
    "the cache": (lambda _, c: c, TypeError, r"SupportCache\.at\(ids\), got SupportCache"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_start_is_refused(name: str) -> None:
    make, error, match = REFUSED[name]
    before = Trees(4).solve(normal(3, 4, 4), Euclidean())
    for use in (Trees(4).solve, Trees(4).maximize):
        with pytest.raises(error, match=match):
            use(normal(2, 4, 4), Euclidean(), start=make(before, SupportCache()))


def test_structures_of_another_polytope_are_refused() -> None:
    before = Subset(4, 2).solve(torch.zeros(1, 4), Euclidean(), solver=ActiveSet())
    with pytest.raises(ValueError, match=r"over Subset\(d=4, k=2.*not over Subset\(d=4, k=3"):
        Subset(4, 3).solve(torch.zeros(1, 4), Euclidean(), start=before)
    cache = SupportCache()
    Subset(4, 2).project(torch.zeros(1, 4), start=cache.at([0]))
    with pytest.raises(ValueError, match=r"structures of Subset\(d=4, k=2.*one cache a polytope"):
        Subset(4, 3).project(torch.zeros(1, 4), start=cache.at([0]))


# --- the cache -----------------------------------------------------------------------------------


def test_a_cache_forgets_what_was_not_used_for_longest() -> None:
    cache, scores = SupportCache(capacity=2), normal(1, 4, 4)
    for key in ("a", "b", "a", "c"):
        Trees(4).solve(scores, Euclidean(), start=cache.at([key]))
    assert len(cache) == 2 and "a" in cache and "c" in cache and "b" not in cache
    cache.clear()
    assert len(cache) == 0 and cache.nbytes == 0
    Simplex(3).project(torch.zeros(1, 3), start=cache.at(["a"]))  # no polytope any more, either
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        SupportCache(capacity=0)
    assert repr(cache) == "SupportCache(capacity=2)"


@pytest.mark.parametrize("ids", ["ab", 3, torch.tensor([0.5]), torch.tensor([True])], ids=repr)
def test_ids_are_integers_or_a_sequence(ids: Any) -> None:
    with pytest.raises(TypeError, match="ids must be"):
        SupportCache().at(ids)


def test_a_cache_is_compact_and_survives_pickling() -> None:
    scores, cache = normal(8, 16, 16), SupportCache()
    solution = Trees(16).solve(scores, Euclidean(), start=cache.at(range(8)))
    assert solution.weights is not None
    held = int((solution.weights > 0).sum())
    assert cache.nbytes <= held * (16 * 16 // 8 + 4)  # a bit a part, and a float32 a vertex
    copied: SupportCache = pickle.loads(pickle.dumps(cache))
    assert not bool(Trees(16).solve(scores, Euclidean(), start=copied.at(range(8))).iterations.any())


@pytest.mark.parametrize("points", ["small integers", "large integers", "reals"])
def test_a_cache_keeps_vertices_exactly(points: str) -> None:
    raw = 5 * normal(10, 4)
    kinds = {"small integers": raw.round(), "large integers": 1000 * raw.round(), "reals": raw}
    hull, cache, scores = Hull(kinds[points]), SupportCache(), normal(6, 4, seed=1)
    cold = hull.solve(scores, Euclidean(), solver=ActiveSet(), start=cache.at(range(6)))
    warm = hull.solve(scores, Euclidean(), solver=ActiveSet(), start=cache.at(range(6)))
    assert int(warm.iterations.max()) <= 2  # steps more where rounding had the last word
    rounding = 1e-14 * float(kinds[points].abs().max())
    torch.testing.assert_close(warm.value, cold.value, atol=rounding, rtol=0)
    assert warm.support is not None and warm.weights is not None
    assert farthest(warm.support[warm.weights > 0], kinds[points]) == 0


def test_layers_learn_and_use_a_cache() -> None:
    """The second epoch of a slowly moving encoder: the same gradients by fewer oracle calls."""
    scores, weights = normal(12, 8, 8), normal(12, 8, 8, seed=1)
    asked: list[int] = []

    def trees(batch: Tensor) -> Tensor:
        asked.append(len(batch))
        return Arborescence(8).maximize(batch)

    polytope = Oracle(trees, (8, 8), batched=True)
    pullback = SPIGOT(step_size=2.0, reduction="sum")
    for layer in (Relaxed(polytope, Euclidean()), Argmax(polytope, pullback)):
        cache, calls, gradients = SupportCache(), list[int](), list[Tensor]()
        for start in (None, cache.at(range(12)), cache.at(range(12))):
            asked.clear()
            leaf = (scores + 1e-3 * len(calls)).requires_grad_()
            (layer(leaf, start=start) * weights).sum().backward()
            assert leaf.grad is not None
            gradients.append(leaf.grad)
            calls.append(sum(asked))
        torch.testing.assert_close(gradients[1], gradients[0], atol=1e-9, rtol=0)
        torch.testing.assert_close(gradients[2], gradients[0], atol=1e-9, rtol=0)
        assert calls[1] == pytest.approx(calls[0], rel=0.1) and 2 * calls[2] < calls[1]
        assert len(cache) == 12


# --- workers -------------------------------------------------------------------------------------


def top(scores: np.ndarray) -> np.ndarray:
    return np.eye(len(scores))[scores.argmax()]


def moody(scores: np.ndarray) -> np.ndarray:
    """Large first scores make it raise, die, sleep, or answer badly."""
    kind = round(float(scores[0]))
    if kind == 10:
        raise KeyError("no such head")
    if kind == 20:
        os._exit(3)
    if kind == 30:
        time.sleep(60)
    if kind == 40:
        return np.zeros(2)
    return top(scores)


CREWS: dict[str, Any] = {"alone": 0, "threads": Threads(3), "processes": Processes(2)}
SHARED: dict[str, Oracle] = {}  # processes take seconds to start


@pytest.fixture(params=CREWS)
def crew(request: Any) -> Oracle:
    workers = CREWS[request.param]
    if request.param not in SHARED:
        SHARED[request.param] = Oracle(moody, (3,), workers=workers, timeout=1.0 if workers else None)
    return SHARED[request.param]


def test_workers_answer_in_order(crew: Oracle) -> None:
    scores = normal(4, 25, 3)
    assert torch.equal(crew.maximize(scores), Simplex(3).maximize(scores))
    assert torch.equal(crew.maximize(scores[:0]), scores[:0])
    torch.testing.assert_close(crew.project(scores[0]), Simplex(3).project(scores[0]))


def test_the_first_instance_that_raises_is_named(crew: Oracle) -> None:
    scores = normal(2, 10, 3)
    scores[1, 2, 0] = scores[1, 5, 0] = scores[1, 9, 0] = 10.0
    for _ in range(2):  # the workers are as good afterwards
        with pytest.raises(OracleError, match=r"Oracle\(moody.*KeyError.*head.* for instance \(1, 2\)"):
            crew.maximize(scores)
    assert torch.equal(crew.maximize(scores[0]), Simplex(3).maximize(scores[0]))


def test_an_instance_keeps_its_name_when_others_have_finished() -> None:
    """The last steps of an active set ask for a few instances only."""

    def failing(scores: np.ndarray) -> np.ndarray:
        if scores.max() < 0.6:  # the slope after some steps
            raise ZeroDivisionError("late")
        return top(scores)

    scores = torch.tensor([[5.0, 0.0, 0.0], [4.0, 0.0, 0.0], [0.9, 0.8, 0.7]])
    with pytest.raises(OracleError, match="ZeroDivisionError: late for instance 2"):
        Oracle(failing, (3,)).project(scores)


def test_answers_of_another_shape_are_named(crew: Oracle) -> None:
    scores = normal(6, 3)
    scores[4, 0] = 40.0
    with pytest.raises(ValueError, match=r"shape \(2,\) for instance 4, not the event shape \(3,\)"):
        crew.maximize(scores)


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_an_instance_that_takes_too_long_is_named(name: str) -> None:
    polytope = SHARED.setdefault(name, Oracle(moody, (3,), workers=CREWS[name], timeout=1.0))
    scores = normal(5, 3)
    polytope.maximize(scores)  # whatever has to start
    scores[3, 0] = 30.0
    begun = time.monotonic()
    with pytest.raises(TimeoutError, match=r"took more than 1 s for instance 3"):
        polytope.maximize(scores)
    assert time.monotonic() - begun < 10
    assert torch.equal(polytope.maximize(scores[:3]), Simplex(3).maximize(scores[:3]))


def test_a_worker_that_dies_is_told_and_replaced() -> None:
    polytope = SHARED.setdefault("processes", Oracle(moody, (3,), workers=Processes(2), timeout=1.0))
    scores = normal(5, 3)
    scores[2, 0] = 20.0
    with pytest.raises(OracleError, match=r"lost its worker process \(exit code 3\) for instance 2"):
        polytope.maximize(scores)
    assert torch.equal(polytope.maximize(scores[:2]), Simplex(3).maximize(scores[:2]))


def children() -> set[int]:
    import multiprocessing

    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def test_processes_end_with_their_oracle() -> None:
    before = children()
    polytope = Oracle(top, (3,), workers=1)
    polytope.maximize(torch.zeros(1, 3))
    mine = children() - before
    assert len(mine) == 1
    del polytope
    assert children() == before
    with pytest.raises(ProcessLookupError):
        os.kill(mine.pop(), 0)  # gone, not a zombie


class Chosen(Dataset[Tensor]):
    """Structures made by a loader's workers."""

    def __init__(self) -> None:
        self.polytope = Oracle(top, (3,), workers=1)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Tensor:
        return self.polytope.maximize(normal(4, 3, seed=index))


def test_processes_work_in_a_forked_loader() -> None:
    data = Chosen()
    here = [data[i] for i in range(2)]  # its own processes have started: the fork must not use them
    loader: Any = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for mine, theirs in zip(here, loader, strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(data[1], here[1])


def test_threads_run_at_once_and_take_any_function() -> None:
    together = threading.Barrier(3, timeout=20)

    def meeting(scores: np.ndarray) -> np.ndarray:
        together.wait()
        return top(scores)

    scores = normal(3, 3)
    found = Oracle(meeting, (3,), workers=Threads(3)).maximize(scores)
    assert torch.equal(found, Simplex(3).maximize(scores))


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a lambda": (lambda: Oracle(lambda s: s, (3,), workers=2), ValueError, r"(?s)sent.*Threads\(n\)"),
    "no workers": (lambda: Oracle(top, (3,), timeout=1.0), ValueError, "timeout=1.0 needs workers"),
    "no time": (lambda: Oracle(top, (3,), workers=2, timeout=0.0), ValueError, "timeout=0.0"),
    "fewer than none": (lambda: Oracle(top, (3,), workers=-1), ValueError, "at least 0, got -1"),
    "a name": (lambda: Oracle(top, (3,), workers="4"), TypeError, "workers must be"),  # pyright: ignore
    "a batch": (lambda: Oracle(top, (3,), batched=True, workers=2), ValueError, "single instances"),
    "no threads": (lambda: Threads(0), ValueError, "Threads: count must be at least 1, got 0"),
    "no processes": (lambda: Processes(0), ValueError, "Processes: count must be at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_workers_that_cannot_be(name: str) -> None:
    make, error, match = BAD[name]
    with pytest.raises(error, match=match):
        make()


def test_an_oracle_with_workers_prints_and_pickles() -> None:
    polytope = Oracle(top, (3,), workers=2, timeout=3.0)
    assert repr(polytope) == "Oracle(top, (3,), batched=False, workers=2, timeout=3.0)"
    copied = pickle.loads(pickle.dumps(Oracle(top, (3,), workers=Threads(2))))
    assert torch.equal(copied.maximize(normal(2, 3)), Simplex(3).maximize(normal(2, 3)))
