"""A batch of entirely different polytopes, one an instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import key, lacking, shared_facts
from spigot.polytopes.arrays import numbers
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.labels import labels_of
from spigot.polytopes.posing import check_event, size_range
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import Regularizer

__all__ = ["Batch"]


@dataclass(frozen=True, eq=False)
class Batch(Polytope, abstract=True):
    """One polytope an instance: graphs, say, that have nothing in common.

    The event is the smallest that holds all of theirs (of equally many dimensions): instance i uses
    the leading block of it, and padding comes back as zeros. Scores are `(*batch, m, *event)` for
    m polytopes; leading batch dimensions repeat them. Each instance goes its own
    polytope's best road; the same object (or an equal one) twice is one call. Lengths and parameters
    are handed on.

    Parts: `(*event)`, the largest size of each dimension. Labels are a list of each instance's own.

    Args:
        polytopes: m of them.

    Raises:
        ValueError: there is none, or their events differ in the number of dimensions; at a call, a
            batch that does not end in m.
        TypeError: one is no polytope.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Batch, Simplex, Subset
        >>> batch = Batch([Simplex(2), Subset(3, 2)])
        >>> batch.maximize(torch.tensor([[0.0, 1.0, 9.0], [3.0, 1.0, 2.0]]))
        tensor([[0., 1., 0.],
                [1., 0., 1.]])
    """

    polytopes: Sequence[Polytope]

    def __post_init__(self) -> None:
        object.__setattr__(self, "polytopes", tuple(self.polytopes))
        for i, polytope in enumerate(self.polytopes):
            if not isinstance(polytope, Polytope):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"Batch takes polytopes, such as Simplex(3); got {polytope!r} at position {i}."
                )
        if not self.polytopes:
            raise ValueError("Batch takes at least one polytope, such as [Simplex(3)]; got none.")
        first = self.polytopes[0]
        for i, polytope in enumerate(self.polytopes):
            if len(polytope.event_shape) != len(first.event_shape):
                raise ValueError(
                    f"Batch takes polytopes with events of as many dimensions; {first} has the event "
                    f"shape {first.event_shape}, and {polytope} at position {i} {polytope.event_shape}."
                )

    def __repr__(self) -> str:
        return f"Batch({len(self.polytopes)} polytopes, event {self.event_shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The largest size of each dimension."""
        sizes = zip(*(polytope.event_shape for polytope in self.polytopes), strict=True)
        return tuple(max(size) for size in sizes)

    @cached_property
    def owners(self) -> tuple[tuple[Polytope, Tensor], ...]:
        """The different polytopes, and which of the m instances have each."""
        found: dict[Any, list[int]] = {}
        for i, polytope in enumerate(self.polytopes):
            found.setdefault(key(polytope), []).append(i)
        return tuple((self.polytopes[rows[0]], torch.tensor(rows)) for rows in found.values())

    @property
    def facts(self) -> frozenset[str]:
        """Those that every polytope declares."""
        return shared_facts(self.polytopes)

    @property
    def varies(self) -> bool:
        """Always."""
        return True

    def parted(self, problem: Problem) -> list[tuple[Tensor, Polytope]]:
        """The rows of each polytope: row i has polytope i mod m.

        Raises:
            ValueError: the batch does not end in m, or a length does not fit its polytope.
        """
        m, n = len(self.polytopes), problem.size
        if problem.origin is None and n % m:
            raise ValueError(f"{self} needs a batch shape that ends in {m}, got {problem.batch_shape}.")
        origin = torch.arange(n) if problem.origin is None else problem.origin.cpu()
        found: list[tuple[Tensor, Polytope]] = []
        for polytope, members in self.owners:
            rows = torch.isin(origin % m, members).nonzero()[:, 0].to(problem.scores.device)
            if len(rows):
                _check_lengths(problem, rows, polytope)
                found.append((rows, polytope))
        return found

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The widest of all, with the 0 of the padding."""
        if "bounds" not in self.scratch:
            lower, upper = (torch.zeros(self.event_shape, dtype=torch.float64) for _ in range(2))
            for polytope, _ in self.owners:
                block = tuple(slice(size) for size in polytope.event_shape)
                low, high = polytope.bounds
                lower[block], upper[block] = lower[block].minimum(low), upper[block].maximum(high)
            self.scratch["bounds"] = lower, upper
        return self.scratch["bounds"]

    @property
    def parameters(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> Mapping[str, tuple[int, ...]]:
        """Those that every polytope has."""
        first, *others = (polytope.parameters for polytope in self.polytopes)
        return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}

    @property
    def unbound(self) -> tuple[str, ...]:
        """Those that some polytope has no value for."""
        names = self.parameters
        return tuple(name for name in names if any(name in p.unbound for p in self.polytopes))

    @property
    def length_range(self) -> tuple[Any, Any]:
        """From the shortest to the longest that any polytope takes."""
        ends = [torch.tensor(polytope.length_range) for polytope, _ in self.owners]
        stacked = torch.stack(ends)
        return numbers(stacked[:, 0].amin(0)), numbers(stacked[:, 1].amax(0))

    def padding(self, lengths: Tensor) -> Tensor:
        """Each polytope's own, in its block."""
        inside = torch.zeros(len(lengths), *self.event_shape, dtype=torch.bool)
        row = torch.arange(len(lengths)) % len(self.polytopes)
        for polytope, members in self.owners:
            rows = torch.isin(row, members).nonzero()[:, 0]
            block = (rows, *(slice(size) for size in polytope.event_shape))
            inside[block] = polytope.padding(lengths.cpu()[rows])
        return inside.to(lengths.device)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices `(m, *event)` of a list of m labels.

        Raises:
            ValueError: another number of labels, or one that is no structure of its polytope.
        """
        if len(labels) != len(self.polytopes):
            raise ValueError(f"{self} takes {len(self.polytopes)} labels, got {len(labels)}.")
        vertices = torch.zeros(len(labels), *self.event_shape)
        for i, (polytope, label) in enumerate(zip(self.polytopes, labels, strict=True)):
            block = tuple(slice(size) for size in polytope.event_shape)
            with labels_of(f"label {i}, of {polytope}"):
                vertices[i][block] = polytope.encode(label, None if lengths is None else lengths[i])
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> list[Any]:
        """A list of m labels of vertices `(m, *event)`.

        Raises:
            ValueError: another batch shape.
        """
        batch_shape = check_event(self, vertices, "vertices")
        if tuple(batch_shape) != (len(self.polytopes),):
            raise ValueError(
                f"{self} decodes vertices of batch shape ({len(self.polytopes)},), got "
                f"{tuple(batch_shape)}."
            )
        return [
            polytope.decode(
                vertices[i][tuple(slice(size) for size in polytope.event_shape)],
                None if lengths is None else lengths[i],
            )
            for i, polytope in enumerate(self.polytopes)
        ]


def _check_lengths(problem: Problem, rows: Tensor, polytope: Polytope) -> None:
    if problem.lengths is None:
        return
    lowest, highest = (torch.tensor(end, device=rows.device) for end in polytope.length_range)
    lengths = problem.lengths[rows]
    wrong = ((lengths < lowest) | (lengths > highest)).reshape(len(rows), -1).any(1)
    if bool(wrong.any()):
        short = numbers(rows[wrong])
        wrongs = problem.describe_wrong(short, f"has {numbers(problem.lengths[short[0]])}")
        raise ValueError(f"lengths must lie in {size_range(lowest, highest)} for {polytope}; {wrongs}")


@rule(Batch, None, Regularizer)
class EachItsOwn(Road):
    """Stands for the roads of the polytopes: the batch is split before any is taken."""

    name = "each instance's own"
    cost = "the polytopes'"
    native = frozenset({"lengths", "params"})

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What a polytope lacks."""
        assert isinstance(polytope, Batch)
        reasons = (lacking(owner, regularizer) for owner, _ in polytope.owners)
        return next((reason for reason in reasons if reason), "")
