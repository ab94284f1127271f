"""Where a solver may begin: an earlier answer's vertices or multipliers, or what a cache keeps.

A start changes how many steps an answer takes, never the answer.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, numbers

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.problem import Problem, Solution

__all__ = ["Asked", "CachedSupports", "Start", "SupportCache", "started"]

Array = np.ndarray
Support = tuple[Array, Array]  # vertices (m, d) and weights (m,)


@dataclass(frozen=True, eq=False)
class Asked:
    """What a solution's support are structures of: for a later `start=`."""

    polytope: Polytope
    lengths: Tensor | None
    params: Mapping[str, Tensor]

    @classmethod
    def of(cls, problem: Problem) -> Asked:
        """Those of this problem."""
        still = {name: values.detach() for name, values in problem.params.items()}
        return cls(problem.polytope, problem.lengths, still)

    def marks(self, size: int) -> list[bytes]:
        """An instance's size and parameters, as bytes that are equal where those are."""
        given = [self.params[name] for name in sorted(self.params)]
        given = [values for values in (self.lengths, *given) if values is not None]
        if not given:
            return [b""] * size
        rows = contiguous(torch.cat([values.reshape(size, -1).double() for values in given], 1))
        return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]


class Memory(Protocol):
    """Supports of a batch, by flat row."""

    learns: ClassVar[bool]
    """Whether it takes newer ones."""

    def recall(self, row: int, mark: bytes) -> Support | None:
        """The vertices known for that row, of instances marked so."""
        ...

    def remember(self, row: int, mark: bytes, support: Support) -> None:
        """Takes a newer support."""
        ...


@dataclass(frozen=True, eq=False)
class Start:
    """A memory, and which of its rows a problem's instances are.

    It speaks of one polytope, so a problem that a road poses on another does not read it.
    """

    memory: Memory
    polytope: Polytope
    marks: list[bytes]
    rows: list[int]
    shape: tuple[int, ...]  # of the event that the memory holds
    duals: Array | None = None  # (n, multipliers) by flat row; NaN where there are none

    def take(self, rows: Tensor) -> Start:
        """Some of the instances."""
        return replace(self, rows=[self.rows[row] for row in numbers(rows)])

    def within(self, problem: Problem, polytope: Polytope) -> Start | None:
        """The same for a problem on this polytope, whose event is the leading block of the other's."""
        return replace(self, polytope=polytope) if problem.polytope is self.polytope else None

    def recall(self, problem: Problem) -> tuple[Array, Array] | None:
        """Vertices `(n, m, d)` that the instances may use and weights `(n, m)`, 0 at padding.

        Vertices that the masks exclude have weight 0, too.
        """
        if problem.polytope is not self.polytope:
            return None
        known = [self.memory.recall(row, self.marks[row]) for row in self.rows]
        most = max((len(support[1]) for support in known if support is not None), default=0)
        if not most:
            return None
        n, event = problem.size, tuple(problem.scores.shape[1:])
        block = tuple(slice(size) for size in event)
        vertices = np.zeros((n, most, problem.flat_scores.shape[1]))
        weights = np.zeros((n, most))
        for i, support in enumerate(known):
            if support is not None:
                m = len(support[1])
                whole = support[0].reshape(m, *self.shape)
                vertices[i, :m] = whole[(slice(None), *block)].reshape(m, -1)
                weights[i, :m] = support[1]
        if problem.flat_keep is not None:
            excluded = ~contiguous(problem.flat_keep)
            weights[((vertices != 0) & excluded[:, None]).any(2)] = 0.0
        return vertices, weights

    def multipliers(self, problem: Problem, count: int) -> Array | None:
        """The instances' multipliers `(n, count)`, 0 where unknown; None where none are of that many."""
        known = self.duals
        if known is None or known.shape[1] != count or problem.polytope is not self.polytope:
            return None
        mine = known[self.rows]
        return np.where(np.isfinite(mine).all(1, keepdims=True), mine, 0.0)

    def remember(self, problem: Problem, supports: Sequence[Support]) -> None:
        """Takes newer supports, one an instance."""
        if problem.polytope is not self.polytope or not self.memory.learns:
            return
        event = tuple(problem.scores.shape[1:])
        for row, (vertices, weights) in zip(self.rows, supports, strict=True):
            whole = np.zeros((len(weights), *self.shape))
            whole[(slice(None), *(slice(size) for size in event))] = vertices.reshape(-1, *event)
            self.memory.remember(row, self.marks[row], (whole.reshape(len(weights), -1), weights))


def started(problem: Problem, start: Solution | CachedSupports) -> Problem:
    """The problem with this start.

    Raises:
        TypeError: it is neither a `Solution` nor `SupportCache.at(ids)`.
        ValueError: it is of another batch shape or polytope.
    """
    from spigot.polytopes.problem import Solution

    duals: Array | None = None
    if isinstance(start, CachedSupports):
        memory, shape = start, start.batch_shape
        start.cache.bind(problem.polytope)
    elif isinstance(start, Solution):  # pyright: ignore[reportUnnecessaryIsInstance]
        memory, shape = _Earlier.of(start), tuple(start.status.shape)
        if start.duals is not None:
            duals = contiguous(start.duals.double().reshape(start.status.numel(), -1))
        if start.asked is not None and not _alike(start.asked.polytope, problem.polytope):
            raise ValueError(
                f"start is a solution over {start.asked.polytope}, not over {problem.polytope}: its "
                "support and multipliers are of another set. Leave start out."
            )
    else:
        raise TypeError(
            f"start must be a Solution (of solve) or SupportCache.at(ids), got {type(start).__name__}."
        )
    if shape != problem.batch_shape:
        raise ValueError(
            f"start is for a batch of shape {shape}, the scores' batch shape is {problem.batch_shape}."
        )
    marks = Asked.of(problem).marks(problem.size)
    event = tuple(problem.scores.shape[1:])
    rows = list(range(problem.size))
    return replace(problem, start=Start(memory, problem.polytope, marks, rows, event, duals))


def _alike(a: Polytope, b: Polytope) -> bool:
    if a is b:
        return True
    try:
        return type(a) is type(b) and bool(a == b)
    except RuntimeError:  # dataclasses that hold tensors
        return False


class _Earlier:
    """The supports of a solution, where it has any that are exact."""

    learns: ClassVar[bool] = False

    def __init__(self, support: Array, weights: Array, exact: Array, marks: list[bytes]) -> None:
        self._support, self._weights = support, weights
        self._exact, self._marks = exact, marks

    @classmethod
    def of(cls, solution: Solution) -> _Earlier:
        n = solution.status.numel()
        if solution.support is None or solution.weights is None or solution.asked is None or not n:
            nothing = np.zeros((n, 0))
            return cls(nothing[..., None], nothing, np.zeros(n, dtype=bool), [b""] * n)
        weights = contiguous(solution.weights.double().reshape(n, -1))
        support = contiguous(solution.support.double().reshape(*weights.shape, -1))
        # what float32 holds of a vertex is a vertex only where no digit was lost
        whole = solution.support.dtype == torch.float64
        exact = np.full(n, True) if whole else (support == np.rint(support)).all((1, 2))
        return cls(support, weights, exact, solution.asked.marks(n))

    def recall(self, row: int, mark: bytes) -> Support | None:
        if not self._exact[row] or self._marks[row] != mark:
            return None
        held = self._weights[row] > 0
        return self._support[row, held], self._weights[row, held]

    def remember(self, row: int, mark: bytes, support: Support) -> None:
        """A solution stays as it is."""


class SupportCache:
    """The supports of examples' latest answers, by the examples' ids: a warm start for the next epoch.

    A layer or verb given `start=cache.at(ids)`, ids `(*batch,)`, begins each example's projection at the
    vertices that the last one ended with, and leaves its own there. Answers do not depend on it. It
    lives outside of modules, on the CPU, in a bit a part where structures are 0/1. One cache serves one
    polytope and one kind of answer.

    Args:
        capacity: how many examples; the one not used for longest goes first. None for no limit.

    Raises:
        ValueError: a capacity below 1; at use, another polytope than before.

    Example:
        >>> import torch
        >>> from spigot.layers import Relaxed
        >>> from spigot.polytopes import Euclidean, Oracle, Subset
        >>> from spigot.polytopes.solvers import ActiveSet, SupportCache
        >>> pairs = Oracle(Subset(6, 2).argmax, (6,), batched=True)
        >>> cache = SupportCache(capacity=100_000)
        >>> scores = torch.linspace(0.0, 0.5, 12).reshape(2, 6)
        >>> ids = ["first", "second"]
        >>> for _ in range(2):
        ...     pairs.solve(scores, Euclidean(), start=cache.at(ids)).iterations
        tensor([5, 5])
        tensor([0, 0])
        >>> len(cache), "first" in cache
        (2, True)
    """

    def __init__(self, capacity: int | None = None) -> None:
        if capacity is not None and capacity < 1:
            raise ValueError(f"SupportCache: capacity must be at least 1, got {capacity}.")
        self.capacity: int | None = capacity
        self._polytope: Polytope | None = None
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"SupportCache(capacity={self.capacity})"

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """With a new one."""
        self.__dict__.update(state)
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """The memory that vertices and weights take."""
        return sum(entry.nbytes for entry in self._entries.values())

    def at(self, ids: Tensor | Sequence[Hashable]) -> CachedSupports:
        """These examples' supports, as `start=` takes them.

        Args:
            ids: an integer tensor `(*batch,)`, or a sequence of anything hashable for a batch of one
                dimension.

        Raises:
            TypeError: neither of these.
        """
        if isinstance(ids, Tensor):
            if ids.is_floating_point() or ids.dtype == torch.bool:
                raise TypeError(f"ids must be integers, got {ids.dtype}.")
            return CachedSupports(self, numbers(ids.reshape(-1)), tuple(ids.shape))
        if isinstance(ids, str) or not isinstance(ids, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"ids must be an integer tensor or a sequence of ids, got {ids!r}.")
        return CachedSupports(self, list(ids), (len(ids),))

    def clear(self) -> None:
        """Forgets every example, and the polytope."""
        with self._lock:
            self._entries.clear()
            self._polytope = None

    def bind(self, polytope: Polytope) -> None:
        """The first polytope that it is used with is the only one.

        Raises:
            ValueError: for another.
        """
        with self._lock:
            if self._polytope is None:
                self._polytope = polytope
            if not _alike(self._polytope, polytope):
                raise ValueError(
                    f"this SupportCache holds structures of {self._polytope}, not of {polytope}: use "
                    "one cache a polytope."
                )

    def read(self, key: Hashable, mark: bytes) -> Support | None:
        """An example's vertices and weights, if it is known at this size and these parameters.

        Args:
            key: the example's id.
            mark: its size and parameters, as bytes.

        Returns:
            Vertices `(m, d)` and weights `(m,)`, or None.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.mark != mark:
                return None
            self._entries.move_to_end(key)
            return entry.support()

    def write(self, key: Hashable, mark: bytes, support: Support) -> None:
        """Takes an example's newest.

        Args:
            key: the example's id.
            mark: its size and parameters, as bytes.
            support: vertices `(m, d)` and weights `(m,)`.
        """
        entry = _Entry.of(mark, *support)
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while self.capacity is not None and len(self._entries) > self.capacity:
                self._entries.popitem(last=False)


@dataclass(frozen=True, eq=False)
class CachedSupports:
    """What a `SupportCache` knows of a batch of examples: read before solving, written after."""

    learns: ClassVar[bool] = True

    cache: SupportCache
    ids: list[Any]
    batch_shape: tuple[int, ...]

    def recall(self, row: int, mark: bytes) -> Support | None:
        """The example's last support."""
        return self.cache.read(self.ids[row], mark)

    def remember(self, row: int, mark: bytes, support: Support) -> None:
        """Its newest."""
        self.cache.write(self.ids[row], mark, support)


@dataclass(frozen=True, eq=False)
class _Entry:
    """One example's support: vertices in bits, bytes or doubles, whichever holds them exactly."""

    mark: bytes
    vertices: Array
    parts: int
    weights: Array  # float32: a start needs no more

    @classmethod
    def of(cls, mark: bytes, vertices: Array, weights: Array) -> _Entry:
        if ((vertices == 0) | (vertices == 1)).all():
            kept = np.packbits(vertices.astype(bool), 1)
        else:
            small = vertices.astype(np.int8) if np.abs(vertices).max() < 128 else vertices
            kept = small if (small == vertices).all() else vertices.copy()
        return cls(mark, kept, vertices.shape[1], weights.astype(np.float32))

    def support(self) -> Support:
        vertices = self.vertices
        if vertices.dtype == np.uint8:
            vertices = np.unpackbits(vertices, axis=1, count=self.parts)
        return vertices.astype(np.float64), self.weights.astype(np.float64)

    @property
    def nbytes(self) -> int:
        return self.vertices.nbytes + self.weights.nbytes
