"""Faces: some parts fixed at 0 (`Masked`), or at 1 (`Face`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import lacking
from spigot.polytopes.arrays import first_part, library, numbers, rows_where
from spigot.polytopes.base import Polytope
from spigot.polytopes.bounds import parts_outside
from spigot.polytopes.dispatch import Road, choose, fast_rule, rule
from spigot.polytopes.errors import NoStructure, describe_wrong, unsupported
from spigot.polytopes.listing import listed_vertices
from spigot.polytopes.posing import check_excludable
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Regularizer

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Face", "Masked"]


def _flags(name: str, flags: object, event_shape: tuple[int, ...]) -> Tensor:
    if not isinstance(flags, Tensor):
        raise TypeError(f"{name} must be a bool tensor, got {type(flags).__name__}.")
    if flags.dtype != torch.bool:
        raise TypeError(f"{name} must be a bool tensor, got dtype {flags.dtype}.")
    if tuple(flags.shape) != event_shape:
        raise ValueError(f"{name} must have the event shape {event_shape}, got {tuple(flags.shape)}.")
    return flags.cpu()


def _refuse_parts(must: str, wrong: Tensor, event_shape: tuple[int, ...], does: str) -> None:
    """Raises a ValueError that names the first wrong part `(*batch, *event)` and the instances."""
    if not bool(wrong.any()):
        return
    batch_shape = wrong.shape[: wrong.dim() - len(event_shape)]
    flat = wrong.reshape(batch_shape.numel(), *event_shape)
    rows = rows_where(flat.flatten(1).any(1))
    wrongs = describe_wrong(rows, batch_shape, f"{does} part {first_part(flat[rows[0]])}")
    raise ValueError(f"labels {must}; {wrongs}")


@dataclass(frozen=True, eq=False)
class Masked(Polytope):
    """{y in M : y_i = 0 where keep is False}, a face of M: `keep` of every verb, once and for all.

    Each problem goes M's own best road with that mask. Parts: M's, `(*event)`. Labels, sizes and
    parameters are M's.

    Args:
        polytope: M.
        keep: bool, the event shape.

    Raises:
        TypeError: `keep` is no bool tensor.
        ValueError: it does not have the event shape.
        UnsupportedProblem: an excluded part can be negative.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Masked, Simplex
        >>> Masked(Simplex(3), torch.tensor([True, False, True])).marginals(torch.zeros(3))
        tensor([0.5000, 0.0000, 0.5000])
    """

    polytope: Polytope
    keep: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", _flags("keep", self.keep, self.event_shape))
        if not self.unbound:
            nothing = torch.zeros(1, *self.event_shape, dtype=torch.float64)
            check_excludable(Problem(self.polytope, nothing, None, self.keep[None]))

    def __repr__(self) -> str:
        return f"Masked({self.polytope}, {int(self.keep.sum())} of {self.keep.numel()} parts)"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """M's."""
        return self.polytope.event_shape

    @property
    def facts(self) -> frozenset[str]:
        """M's."""
        return self.polytope.facts

    @property
    def parameters(  # pyright: ignore[reportIncompatibleVariableOverride]
        self,
    ) -> Mapping[str, tuple[int, ...]]:
        """M's."""
        return self.polytope.parameters

    @property
    def unbound(self) -> tuple[str, ...]:
        """M's."""
        return self.polytope.unbound

    def given(self, values: Mapping[str, Tensor]) -> Polytope:
        """The face of M at these values."""
        return Masked(self.polytope.given(values), self.keep)

    @property
    def length_range(self) -> tuple[Any, Any]:
        """M's."""
        return self.polytope.length_range

    def at(self, length: Any) -> Polytope:
        """The face of the shorter M."""
        short = self.polytope.at(length)
        return Masked(short, self.keep[tuple(slice(size) for size in short.event_shape)])

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """M's, and 0 where excluded."""
        if "bounds" not in self.scratch:
            low, high = self.polytope.bounds
            self.scratch["bounds"] = torch.where(self.keep, low, 0.0), torch.where(self.keep, high, 0.0)
        return self.scratch["bounds"]

    def argmax(self, scores: Tensor) -> Tensor:
        """M's best vertex on the face."""
        problem = within(Problem(self, torch.where(self.keep.to(scores.device), scores, 0.0), None))
        return choose(self.polytope, None).solve(problem).value.to(scores)

    def constraints(self, y: cp.Variable, **values: Any) -> list[Any]:
        """M's, and zeros.

        Args:
            y: a cvxpy variable of the event shape.
            values: of M's parameters, by name.
        """
        cp = library("cvxpy")

        zeros = cp.multiply((~self.keep).double().numpy(), y) == 0
        return [*self.polytope.constraints(y, **values), zeros]

    def vertices(self, **values: Any) -> Tensor:
        """M's on the face."""
        points = self.polytope.vertices(**values)
        return points[((points.abs() <= 1e-12) | self.keep).flatten(1).all(1)]

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """M's vertices, which must lie on the face.

        Raises:
            ValueError: a label that is no structure of M, or one off the face.
        """
        vertices = self.polytope.encode(labels, lengths)
        used = (vertices.abs() > 1e-6) & ~self.keep.to(vertices.device)
        _refuse_parts(f"must use no part that {self} excludes", used, self.event_shape, "uses")
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Any:
        """M's labels."""
        return self.polytope.decode(vertices, lengths)


def within(problem: Problem) -> Problem:
    """The same problem over M, with both masks."""
    face = problem.polytope
    assert isinstance(face, Masked)
    keep = face.keep.to(problem.scores.device).expand(problem.scores.shape)
    keep = keep if problem.keep is None else keep & problem.keep
    scores = torch.where(keep, problem.scores, 0.0)
    return replace(problem, polytope=face.polytope, scores=scores, keep=keep)


@rule(Masked, None, Regularizer)
class WithinTheMask(Road):
    """The polytope's own road, with the mask."""

    name = "the polytope's own, masked"
    cost = "the polytope's"
    native = frozenset({"lengths", "params"})

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What the polytope lacks."""
        assert isinstance(polytope, Masked)
        return lacking(polytope.polytope, regularizer)

    def solve(self, problem: Problem) -> Solution:
        """Its answer."""
        answer = _road(problem).solve(within(problem))
        return replace(answer, groups=None, answers=(answer,))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Its own, 0 at excluded parts."""
        inner = within(problem)
        assert solution.answers is not None and inner.keep is not None
        pulled = _road(problem).vjp(inner, solution.answers[0], torch.where(inner.keep, grad, 0.0))
        return torch.where(inner.keep, pulled, 0.0)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """Its own, 0 at excluded parts."""
        inner = within(problem)
        keep = inner.keep
        assert solution.answers is not None and keep is not None
        u, v = torch.where(keep, u, 0.0), torch.where(keep, v, 0.0)
        return torch.where(keep, _road(problem).curve(inner, solution.answers[0], u, v), 0.0)

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """Its own."""
        assert solution.answers is not None
        return _road(problem).vjp_params(within(problem), solution.answers[0], grad)

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """Its own."""
        assert solution.answers is not None
        return _road(problem).envelope(within(problem), solution.answers[0])

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Its own."""
        return _road(problem).sample(within(problem), count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Its own."""
        return _road(problem).top_k(within(problem), k)


def _road(problem: Problem) -> Road:
    assert isinstance(problem.polytope, Masked)
    return choose(problem.polytope.polytope, problem.regularizer)


@dataclass(frozen=True, eq=False)
class Face(Polytope):
    """{y in M : y_i = 1 for some parts}, a face of M where these y_i are at most 1. Labels are M's.

    Often the parts at 1 exclude others so that, without those, they are 1 in every structure: a
    word's head excludes its other heads, a bracket all that cross it. Then the face is a mask, and
    every problem goes M's own fast road. Whether it is one is found by MAP, d + 1 calls at first use.
    Elsewhere the generic roads answer, from M's facts.

    Parts: M's, `(*event)`.

    Args:
        polytope: M.
        ones: bool, the event shape: the parts fixed at 1.

    Raises:
        TypeError: `ones` is no bool tensor.
        ValueError: it does not have the event shape.
        UnsupportedProblem: a part can exceed 1, so that y_i = 1 is no face.
        NoStructure: at a call, if no structure has all of these parts at 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Face, Subset
        >>> face = Face(Subset(4, 2), torch.tensor([True, False, False, False]))
        >>> face.project(torch.zeros(4))
        tensor([1.0000, 0.3333, 0.3333, 0.3333])
    """

    polytope: Polytope
    ones: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "ones", _flags("ones", self.ones, self.event_shape))
        above = parts_outside(self.polytope, -torch.inf, 1.0, self.ones)
        if bool(above.any()):
            raise unsupported(
                self.polytope,
                None,
                f"part {first_part(above)} can exceed 1, so where it is 1 there is no face.",
                "Fix parts of a polytope within [0, 1].",
            )

    def __repr__(self) -> str:
        return f"Face({self.polytope}, {int(self.ones.sum())} parts at 1)"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """M's."""
        return self.polytope.event_shape

    @property
    def facts(self) -> frozenset[str]:
        """M's, and `argmax`, by M's own MAP."""
        return self.polytope.facts | {"argmax"}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """M's, and 1 where fixed."""
        if "bounds" not in self.scratch:
            low, high = self.polytope.bounds
            self.scratch["bounds"] = torch.where(self.ones, 1.0, low), torch.where(self.ones, 1.0, high)
        return self.scratch["bounds"]

    @cached_property
    def masked(self) -> Masked | None:
        """The same face as a mask of M; None where no mask makes it, or MAP is slow."""
        if fast_rule(self.polytope, None) is None and "argmax" not in self.polytope.facts:
            return None
        reached = self._reached()
        keep = (self.ones | reached).reshape(self.event_shape)
        probe = torch.where(self.ones, -1.0, 0.0).double()[None]
        problem = Problem(self.polytope, probe, None, keep[None])
        least = choose(self.polytope, None).solve(problem).value[0]
        return Masked(self.polytope, keep) if bool((least[self.ones] > 1 - 1e-9).all()) else None

    def _reached(self) -> Tensor:  # (*event), bool
        """The parts that are positive in some structure of the face (or can be negative in one of M)."""
        negative = parts_outside(self.polytope, 0.0, torch.inf)
        asked = (~negative & ~self.ones).flatten().nonzero()[:, 0]
        scores = torch.zeros(len(asked), self.ones.numel(), dtype=torch.float64)
        scores[torch.arange(len(asked)), asked] = 1.0
        best = self.argmax(scores.reshape(-1, *self.event_shape)).flatten(1)
        reached = torch.ones(self.ones.numel(), dtype=torch.bool)
        reached[asked] = best.gather(1, asked[:, None])[:, 0] > 1e-9
        return reached.reshape(self.event_shape)

    def argmax(self, scores: Tensor) -> Tensor:
        """M's best vertex where the fixed parts outweigh all others.

        Raises:
            NoStructure: no structure has all of these parts at 1.
        """
        weight = 1 + scores.double().abs().flatten(1).sum(1)
        column = weight.reshape(-1, *[1] * len(self.event_shape))
        ones = self.ones.to(scores.device)
        for factor in (1e3, 1e7):  # the second for vertices that miss 1 by less than 1e-3
            pushed = torch.where(ones, factor * column, scores.double())
            value = choose(self.polytope, None).solve(Problem(self.polytope, pushed, None)).value
            if bool((value[:, ones] > 1 - 1e-9).all()):
                return value.to(scores)
        raise self._empty()

    def constraints(self, y: cp.Variable) -> list[Any]:
        """M's, and ones."""
        cp = library("cvxpy")

        fixed = self.ones.double().numpy()
        return [*self.polytope.constraints(y), cp.multiply(fixed, y) == fixed]

    def vertices(self) -> Tensor:
        """M's on the face.

        Raises:
            NoStructure: no structure has all of these parts at 1.
        """
        points = listed_vertices(self.polytope)
        on = points[((points - 1).abs() <= 1e-12)[:, self.ones].all(1)]
        if not len(on):
            raise self._empty()
        return on

    def _empty(self) -> NoStructure:
        parts = [tuple(part) for part in numbers(self.ones.nonzero())]
        named = ", ".join(map(str, parts[:5])) + (", ..." if len(parts) > 5 else "")
        return NoStructure(f"{self}: no structure has all of the parts {named} at 1; fix fewer of them.")

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """M's vertices, which must lie on the face.

        Raises:
            ValueError: a label that is no structure of M, or one off the face.
        """
        vertices = self.polytope.encode(labels, lengths)
        lacked = (vertices < 1 - 1e-6) & self.ones.to(vertices.device)
        _refuse_parts(f"must hold every part that {self} fixes at 1", lacked, self.event_shape, "lacks")
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Any:
        """M's labels."""
        return self.polytope.decode(vertices, lengths)


@rule(Face, None, Regularizer)
class FaceAsMask(Road):
    """The polytope's own road, without the parts that the fixed ones exclude."""

    name = "the polytope's own, masked"
    cost = "the polytope's"

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What the mask lacks, if there is one."""
        assert isinstance(polytope, Face)
        if polytope.masked is None:
            return "the face is no mask of the polytope."
        return lacking(polytope.masked, regularizer)

    def _road(self, problem: Problem) -> tuple[Road, Problem]:
        assert isinstance(problem.polytope, Face) and problem.polytope.masked is not None
        masked = problem.polytope.masked
        return choose(masked, problem.regularizer), replace(problem, polytope=masked)

    def solve(self, problem: Problem) -> Solution:
        """The mask's answer."""
        road, part = self._road(problem)
        return road.solve(part)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The mask's."""
        road, part = self._road(problem)
        return road.vjp(part, solution, grad)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The mask's."""
        road, part = self._road(problem)
        return road.curve(part, solution, u, v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """The mask's."""
        road, part = self._road(problem)
        return road.sample(part, count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The mask's."""
        road, part = self._road(problem)
        return road.top_k(part, k)
