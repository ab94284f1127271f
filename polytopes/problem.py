"""The one problem that everything is, and its answer: `Problem -> Solution`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import room
from spigot.polytopes.errors import NoStructure, describe_instances, describe_wrong

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.faces import BatchFace, Face
    from spigot.polytopes.groups import Group
    from spigot.polytopes.regularizers import Regularizer
    from spigot.polytopes.start import Asked, Start

__all__ = ["Problem", "Solution", "Status"]


class Status(IntEnum):
    """How a solver ended, per instance.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Status, Subset
        >>> from spigot.polytopes.solvers import ActiveSet
        >>> scores, hasty = torch.tensor([[9.0, 0.0], [0.2, 0.0]]), ActiveSet(max_steps=0)
        >>> solution = Subset(2, 1).solve(scores, Euclidean(), solver=hasty, throw=False)
        >>> [Status(code).name for code in solution.status.tolist()]
        ['CONVERGED', 'STOPPED']
    """

    CONVERGED = 0
    """The answer meets the solver's tolerance."""
    STOPPED = 1
    """The step limit came first: the answer lies in M and `gap` says how good it is."""
    INACCURATE = 2
    """The numerical solver gave up before its tolerance."""


@dataclass(frozen=True, eq=False)
class Problem:
    """argmax over y in M, with y_i = 0 where `keep` is False, of <s, y> - Omega(y), for n instances.

    Scores are finite and contiguous here, and zero at excluded parts and padding: NaN, inf and shapes
    have been dealt with.
    """

    polytope: Polytope
    scores: Tensor  # (n, *event)
    regularizer: Regularizer | None
    keep: Tensor | None = None  # (n, *event), bool: what the user and scores of -inf leave
    lengths: Tensor | None = None  # (n,) or (n, 2): each instance's size
    params: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # (n, *shape) each
    batch_shape: tuple[int, ...] = ()  # what n was, and
    origin: Tensor | None = None  # (n,), which of it these are: for messages only
    start: Start | None = None  # where a solver may begin

    def __post_init__(self) -> None:
        object.__setattr__(self, "scores", self.scores.contiguous())

    @property
    def size(self) -> int:
        """How many instances."""
        return self.scores.shape[0]

    @property
    def flat_scores(self) -> Tensor:  # (n, d)
        """The scores with the event's dimensions made one."""
        return self.scores.flatten(1)

    @property
    def flat_keep(self) -> Tensor | None:  # (n, d)
        """`keep` with the event's dimensions made one."""
        return None if self.keep is None else self.keep.flatten(1)

    @cached_property
    def mask(self) -> Tensor | None:  # (n, *event), bool
        """The parts that can be used: `keep` without the padding."""
        if self.lengths is None:
            return self.keep
        inside = self.polytope.padding(self.lengths).to(self.scores.device)
        return inside if self.keep is None else inside & self.keep

    @property
    def flat_mask(self) -> Tensor | None:  # (n, d)
        """`mask` with the event's dimensions made one."""
        return None if self.mask is None else self.mask.flatten(1)

    def param(self, name: str) -> Tensor:  # (n, *shape)
        """A parameter's values: the user's, or the polytope's own for every instance."""
        if name in self.params:
            return self.params[name]
        own = torch.as_tensor(getattr(self.polytope, name), device=self.scores.device)
        return own.expand(self.size, *own.shape)

    def instances(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Each instance's number, the parts it may use `(d,)`, and their scores, as numpy."""
        scores = self.on_cpu().flat_scores.numpy()
        keep = self.flat_keep
        kept = np.ones_like(scores, dtype=bool) if keep is None else keep.cpu().numpy()
        for i, (row, parts) in enumerate(zip(scores, kept, strict=True)):
            yield i, parts, row[parts]

    def no_structure(self, rows: Sequence[int], why: str = "") -> NoStructure:
        """The error for masks that exclude every structure of these instances."""
        return NoStructure(f"keep leaves no structure of {self.polytope} in {self.describe(rows)}{why}.")

    def check_enough(self, k: int, found: Tensor) -> None:
        """Raises where instances have fewer than the k structures asked for; `found` is `(n,)`.

        Raises:
            NoStructure: they have none.
            ValueError: they have fewer than k; the message names those with the fewest.
        """
        fewest = int(found.min())
        if fewest >= k:
            return
        rows = [int(row) for row in (found == fewest).nonzero()[:, 0].cpu()]
        if not fewest:
            raise self.no_structure(rows)
        raise ValueError(
            f"top_k: k = {k}, but there are only {fewest} structure(s) in {self.describe(rows)}."
        )

    def with_scores(self, scores: Tensor) -> Problem:
        """The same instances and masks with other scores."""
        return self._asking(scores, self.regularizer, self.start)

    def linear(self, scores: Tensor) -> Problem:
        """MAP over the same instances and masks."""
        return self._asking(scores, None, None)

    def asking(self, regularizer: Regularizer | None) -> Problem:
        """The same instances, masks and scores under another regularizer."""
        return self._asking(self.scores, regularizer, self.start)

    def _asking(self, scores: Tensor, regularizer: Regularizer | None, start: Start | None) -> Problem:
        shaped = scores.reshape(self.scores.shape)
        changes = {"scores": shaped.contiguous(), "regularizer": regularizer, "start": start}
        other = _altered(self, changes)  # with `mask`, if it has been found
        if scores.device != self.scores.device:
            vars(other).pop("mask", None)
        return other

    def take(self, rows: Tensor) -> Problem:
        """Some of the instances."""
        return replace(
            self,
            scores=self.scores[rows],
            keep=None if self.keep is None else self.keep[rows],
            lengths=None if self.lengths is None else self.lengths[rows],
            params={name: values[rows] for name, values in self.params.items()},
            origin=rows if self.origin is None else self.origin[rows],
            start=None if self.start is None else self.start.take(rows),
        )

    def describe(self, rows: Sequence[int]) -> str:
        """These rows by the user's own index, as `instance 3` or `instances (0, 1), (2, 3)`."""
        return describe_instances(self._original(rows), self.batch_shape)

    def describe_wrong(self, rows: Sequence[int], does: str) -> str:
        """What the first of these rows does, such as `has 7`, and which do so too: sentences."""
        return describe_wrong(self._original(rows), self.batch_shape, does)

    def _original(self, rows: Sequence[int]) -> Sequence[int]:
        return rows if self.origin is None else [int(self.origin[row]) for row in rows]

    def on_cpu(self) -> Problem:
        """The same in float64 on the CPU, where the generic roads work."""
        return self.moved("cpu").with_scores(self.scores.detach().double().cpu())

    def moved(self, device: torch.device | str) -> Problem:
        """The same on another device."""
        return replace(
            self,
            scores=self.scores.to(device),
            keep=None if self.keep is None else self.keep.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            params={name: values.to(device) for name, values in self.params.items()},
            origin=None if self.origin is None else self.origin.to(device),
        )


@dataclass(frozen=True, eq=False)
class Solution:
    """The answer to a batch of problems, and what its solver can say about it.

    Generic solvers work in float64 whatever the scores' dtype, and `status`, `gap` and `residual` are
    of that answer: rounding it to float32 afterwards moves each part by 6e-8 of its size.

    Attributes:
        value: the maximiser y, `(*batch, *event)`.
        status: a `Status` each, `(*batch,)`.
        iterations: solver steps, `(*batch,)`; 0 for closed forms, and where the solver keeps them
            to itself (cvxpylayers).
        gap: the certificate max over v in M of <s - grad Omega(y), v - y>, `(*batch,)`. For
            `Euclidean` it bounds |y - y*|^2. None for Gibbs, where marginals have no such bound.
        residual: by how much y breaks the declared rows and bounds at most (those with auxiliary
            variables left out), `(*batch,)`, from `solve`; None for roads that do not work from rows,
            whose answers are made of structures or given by a formula.
        objective: <s, y> - Omega(y), the conjugate, `(*batch,)`.
        gradient: grad Omega(y), `(*batch, *event)`: log y + 1 for Shannon, right where y underflows.
            None without a regularizer and for Gibbs.
        support: vertices whose mixture is y, `(*batch, m, *event)`, padded with zeros.
        weights: the mixture's weights, `(*batch, m)`, zero at padding.
        duals: multipliers of the canonical rows (equalities, inequalities, lower bounds, upper
            bounds, in this order), `(*batch, rows)`; NaN for an instance without.
        integral: whether the answer was found to be a vertex, `(*batch,)`.
        faces, face, groups, answers, asked, listed, owned: what the derivative and a later start need.

    Handed to a later call as `start=`, it is where a road that works on vertices or multipliers begins.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import ActiveSet
        >>> scores = torch.tensor([1.0, 0.5, 0.0])
        >>> solution = Subset(3, 2).solve(scores, Euclidean(), solver=ActiveSet())
        >>> solution.value
        tensor([1.0000, 0.7500, 0.2500])
        >>> solution.weights @ solution.support  # the mixture of structures that it is
        tensor([1.0000, 0.7500, 0.2500])
    """

    value: Tensor
    status: Tensor
    iterations: Tensor
    gap: Tensor | None = None
    residual: Tensor | None = None
    objective: Tensor | None = None
    gradient: Tensor | None = None
    support: Tensor | None = None
    weights: Tensor | None = None
    duals: Tensor | None = None
    integral: Tensor | None = None
    faces: tuple[Face, ...] | None = None  # for the derivative, one an instance
    face: BatchFace | None = None  # for the derivative, of the batch
    groups: tuple[Group, ...] | None = None  # for the derivative, where the batch was split
    answers: tuple[Solution, ...] | None = None  # for the derivative, of the polytopes it is made of
    asked: Asked | None = None  # what the support are structures of
    listed: tuple[np.ndarray, ...] | None = None  # for the derivative: parts, and how many
    owned: bool = False  # whether the value is memory of its own that the derivative does not read

    @classmethod
    def closed_form(
        cls, value: Tensor, objective: Tensor, gradient: Tensor | None = None, **more: Any
    ) -> Solution:
        """An answer without iterations.

        Args:
            value: `(n, *event)`.
            objective: `(n,)`.
            gradient: `(n, *event)`.
            more: the other attributes, by name.
        """
        zeros = torch.zeros(value.shape[0], dtype=torch.int64, device=value.device)
        return cls(value, zeros, zeros, objective=objective, gradient=gradient, **more)

    @property
    def converged(self) -> Tensor:
        """Where `status` is `Status.CONVERGED`, `(*batch,)` of bool."""
        return self.status == Status.CONVERGED

    def handed(self, like: Tensor) -> tuple[Tensor, Solution]:
        """The value for the user, who may write into it, and what the derivative needs."""
        if not self.owned or self.value.dtype != like.dtype or self.value.device != like.device:
            return room(like, tuple(self.value.shape)).copy_(self.value), self
        return self.value, _altered(self, {"value": self.value.new_empty(0), "gradient": None})

    def batched(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> Solution:
        """The problem's flat solution in the user's batch shape, dtype and device.

        Args:
            problem: what it answers.
            dtype: of what is floating.
            device: of every tensor.
        """
        from spigot.polytopes.start import Asked

        placed: dict[str, Any] = {
            item.name: _place(getattr(self, item.name), problem.batch_shape, dtype, device)
            for item in fields(self)
        }
        placed["asked"] = Asked.of(problem)
        return Solution(**placed)


T = TypeVar("T", Problem, Solution)


def _altered(item: T, changes: Mapping[str, Any]) -> T:
    """`replace` without its checks, caches included: it is done several times a call."""
    other = object.__new__(type(item))
    vars(other).update(vars(item))
    vars(other).update(changes)
    return other


def _place(item: Any, batch_shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Any:
    if not isinstance(item, Tensor):
        return item
    item = item.reshape(torch.Size(batch_shape) + item.shape[1:])
    # a copy: the user may write into it, and a backward may still need ours
    return item.to(device, dtype if item.is_floating_point() else item.dtype, copy=True)
