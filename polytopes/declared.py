"""Polytopes without a class of their own: by vertices, by constraints, by an oracle, by integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import first_part, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.errors import OracleError, UnboundedPolytope, whole_numbers
from spigot.polytopes.labels import refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem
from spigot.polytopes.workers import Crew, Failure, Processes, Threads, crew

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Facets", "Hull", "IntegerHull", "Oracle"]


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", repr(function))


@dataclass(frozen=True, eq=False)
class Hull(Polytope):
    """conv(points). Labels are the rows' indices.

    Parts: `(*event)`, those of one point. Labels: `(*batch,)`, integers.

    Args:
        points: `(m, *event)`, a tensor or anything `torch.as_tensor` takes; duplicates count once.

    Raises:
        ValueError: no point, or one that is not finite.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Hull
        >>> triangle = Hull([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> triangle.maximize(torch.tensor([0.2, 0.5]))
        tensor([0., 1.])
        >>> triangle.project(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 0.5000])
        >>> triangle.decode(torch.tensor([1.0, 0.0]))
        tensor(1)
    """

    points: Tensor | Sequence[Any]

    def __post_init__(self) -> None:
        points = torch.as_tensor(self.points)
        if points.dim() < 2 or not len(points):
            raise ValueError(
                f"Hull needs points of shape (m, *event) with m >= 1, got {tuple(points.shape)}."
            )
        bad = ~torch.isfinite(points.double())
        if bool(bad.any()):
            part = first_part(bad)
            raise ValueError(
                f"Hull's points must be finite; point {part[0]} holds {points[part].item():g}."
            )
        object.__setattr__(self, "points", points.detach().double().cpu())

    def __repr__(self) -> str:
        return f"Hull({len(self.vertices())} points of shape {self.event_shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of one point."""
        return tuple(self.vertices().shape[1:])

    def vertices(self) -> Tensor:
        """The points."""
        assert isinstance(self.points, Tensor)
        return self.points

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """The points `(*batch, *event)` of these indices `(*batch,)`.

        Raises:
            TypeError: labels are no integers.
            ValueError: one that is no row's.
        """
        index = whole_labels(labels, "indices of the points")
        wrong = (index < 0) | (index >= len(self.vertices()))
        must = f"must be indices 0..{len(self.vertices()) - 1} of the points"
        refuse_labels(must, wrong, index, index.shape)
        return self.vertices()[index.long().cpu()].to(torch.get_default_dtype())

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The index of the nearest point, `(*batch,)`."""
        check_event(self, vertices, "vertices")
        dims = len(self.event_shape)
        points = self.vertices().flatten(1).to(vertices.device)
        distance = torch.cdist(vertices.double().flatten(-dims).reshape(-1, points.shape[1]), points)
        return distance.argmin(1).reshape(vertices.shape[: vertices.dim() - dims])


@dataclass(frozen=True)
class Facets(Polytope):
    """{y : constraints(y)}, from linear cvxpy constraints; auxiliary variables are allowed.

    Parts: `(*shape)`. Labels are the vertices themselves.

    Args:
        constraints_of: takes a cvxpy variable of `shape` and returns a list of constraints.
        shape: the event shape, a number or a tuple.

    Raises:
        ValueError: a size below 1.
        TypeError: at first use, if the function returns no list.
        UnsupportedProblem, InfeasiblePolytope, UnboundedPolytope: at first use, if it is no polytope.

    Example:
        >>> import cvxpy as cp
        >>> import torch
        >>> from spigot.polytopes import Facets
        >>> diamond = Facets(lambda y: [cp.norm1(y) <= 1], (3,))
        >>> diamond.maximize(torch.tensor([0.2, -0.5, 0.1]))
        tensor([ 0., -1.,  0.])
    """

    constraints_of: Callable[[Any], list[Any]]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))

    def __repr__(self) -> str:
        return f"Facets({_name(self.constraints_of)}, {self.shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`shape`."""
        return self.shape

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The function's."""
        return self.constraints_of(y)


@dataclass(frozen=True)
class Oracle(Polytope):
    """conv of the values of an argmax oracle.

    Parts: `(*shape)`. Labels are the vertices themselves.

    Args:
        fn: returns a structure of largest score. With `batched=False` a plain numpy function of one
            instance, `(*event) -> (*event)` float64 arrays; else torch, `(n, *event)` each way.
            It never sees NaN or inf: excluded parts get a very low finite score.
        shape: the event shape, a number or a tuple.
        batched: whether `fn` takes a batch of tensors.
        workers: for a slow `fn` of one instance: so many processes, or `Threads(n)` of
            `spigot.polytopes.workers` where it releases the interpreter's lock. Answers do not
            depend on it.
        timeout: seconds that a worker may take for an instance.

    Raises:
        TypeError: workers that are no whole number, `Threads` or `Processes`.
        ValueError: when made, if a size of `shape` is below 1, or `fn` cannot be sent to a process, or
            workers and `batched` are both asked for, or a `timeout` without workers; at a call, if `fn`
            returns another shape or a non-finite value.
        OracleError: at a call, if `fn` raises, or its worker process dies; with the instance.
        TimeoutError: at a call, where an instance takes longer than `timeout`.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from spigot.polytopes import Oracle
        >>> top = Oracle(lambda s: np.eye(len(s))[s.argmax()], (3,))
        >>> top.project(torch.tensor([-0.5, 0.9, 0.3]))
        tensor([0.0000, 0.8000, 0.2000])
    """

    fn: Callable[..., Any]
    shape: tuple[int, ...]
    batched: bool = False
    workers: int | Threads | Processes = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))
        if not isinstance(self.workers, Threads | Processes):
            whole_numbers(self, workers=self.workers)
            if self.workers < 0:
                raise ValueError(f"Oracle: workers must be at least 0, got {self.workers}.")
        if self.batched and self.workers:
            raise ValueError("Oracle: workers answer single instances; leave them out, or `batched`.")
        if self.timeout is not None and not (self.workers and self.timeout > 0):
            raise ValueError(
                f"Oracle: timeout={self.timeout} needs workers, which it can stop waiting for, and a "
                "positive number of seconds."
            )
        self._crew()

    def __repr__(self) -> str:
        workers = f", workers={self.workers}" if self.workers else ""
        timeout = "" if self.timeout is None else f", timeout={self.timeout}"
        return f"Oracle({_name(self.fn)}, {self.shape}, batched={self.batched}{workers}{timeout})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`shape`."""
        return self.shape

    def argmax(self, scores: Tensor) -> Tensor:
        """The function's answers."""
        return self._answers(scores, lambda row: f"instance {row}")

    def argmax_for(self, problem: Problem, scores: Tensor) -> Tensor:
        """The same, instances named as the problem names them.

        Args:
            problem: the batch.
            scores: `(n, *event)`.
        """
        return self._answers(scores, lambda row: problem.describe([row]))

    def _crew(self) -> Crew:
        """Those who answer, made once an object."""
        if "crew" not in self.scratch:
            self.scratch["crew"] = crew(self.fn, self.workers, self.timeout)
        return self.scratch["crew"]

    def _answers(self, scores: Tensor, describe: Callable[[int], str]) -> Tensor:
        if self.batched:
            return self.fn(scores)
        arrays = scores.detach().double().cpu().numpy().copy()  # each instance's own to write into
        try:
            answers = self._crew().run(list(arrays))
        except Failure as failure:
            who = "" if failure.row is None else f" for {describe(failure.row)}"
            kind = TimeoutError if failure.late else OracleError
            raise kind(f"{self}: the oracle {failure.reason}{who}.") from failure.__cause__
        for row, answer in enumerate(answers):
            if answer.shape != self.shape:
                raise ValueError(
                    f"{self}: the oracle returned shape {answer.shape} for {describe(row)}, "
                    f"not the event shape {self.shape}."
                )
        stacked = np.stack(answers) if answers else np.zeros((0, *self.shape))
        return tensor(stacked).to(scores)


@dataclass(frozen=True)
class IntegerHull(Polytope):
    """conv{y integer : constraints(y)}, every problem answered through a mixed-integer oracle.

    MAP is HiGHS's branch and bound to a gap of 0, so every projection is one onto the hull, never
    onto the linear relaxation. Auxiliary variables keep the kind (continuous, integer, boolean)
    that they are declared with.

    Parts: `(*shape)`. Labels are the vertices themselves.

    Args:
        constraints_of: takes a cvxpy variable of `shape` and returns a list of linear constraints.
        shape: the event shape, a number or a tuple.

    Raises:
        ValueError: a size below 1.
        InfeasiblePolytope: at first use, if there is no integer point.
        UnboundedPolytope: at a call, if the scores grow without end along a part.
        UnsupportedProblem: at first use, if a constraint is not linear.

    Example:
        >>> import torch
        >>> from spigot.polytopes import IntegerHull
        >>> weights = [3.0, 4.0, 5.0]
        >>> knapsack = IntegerHull(lambda y: [y >= 0, y <= 1, y @ weights <= 8], (3,))
        >>> knapsack.maximize(torch.tensor([2.0, 3.0, 4.0]))
        tensor([1., 0., 1.])
    """

    constraints_of: Callable[[Any], list[Any]]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _shape(self.shape))

    def __repr__(self) -> str:
        return f"IntegerHull({_name(self.constraints_of)}, {self.shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`shape`."""
        return self.shape

    @cached_property
    def program(self) -> Any:
        """The mixed-integer program."""
        from spigot.polytopes.canonical import integer_rows
        from spigot.polytopes.solvers.highs import MixedIntegerProgram

        return MixedIntegerProgram(*integer_rows(self.constraints_of, self.shape, self))

    def argmax(self, scores: Tensor) -> Tensor:
        """A best integer point each.

        Raises:
            InfeasiblePolytope: there is none.
            UnboundedPolytope: the scores grow without end along a part.
        """
        from spigot.polytopes.canonical import check_bounded, no_integer_point

        rows = scores.detach().double().cpu().flatten(1).numpy()
        try:
            best = [self.program.vertex(row) for row in rows]
        except UnboundedPolytope:
            check_bounded(self.program.form, self)  # says along which parts
            raise
        if any(point is None for point in best):
            raise no_integer_point(self.constraints_of, self.shape, self)
        stacked = np.stack(best) if best else np.zeros_like(rows)
        return tensor(stacked).to(scores).reshape(scores.shape)


def _shape(shape: Sequence[int] | int) -> tuple[int, ...]:
    sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"an event shape must be a tuple of positive sizes, got {shape!r}.")
    return sizes
