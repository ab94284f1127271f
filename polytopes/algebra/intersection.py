"""Intersections: polytopes that share parts, as the factors of a factor graph do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import Block, blocks
from spigot.polytopes.arrays import library, numbers, rows_where
from spigot.polytopes.base import Polytope
from spigot.polytopes.declared import IntegerHull
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.listing import distinct_vertices
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean
from spigot.polytopes.solvers.consensus import Consensus
from spigot.polytopes.solvers.highs import Highs
from spigot.polytopes.structures.logic import Logic
from spigot.polytopes.structures.simplex import Simplex
from spigot.polytopes.structures.subset import Hypercube, Subset

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Intersection"]

Factor = tuple[Polytope, "Tensor | Sequence[int]"]
WHOLE = 1e-9  # a part this close to 0 or 1 is


@dataclass(frozen=True, eq=False)
class Intersection(Polytope):
    """{y : y restricted to the parts of factor f lies in M_f, for every f}, over shared parts.

    M contains the hull of the structures on which all factors agree, and may be larger: MAP can be
    fractional. `Solution.integral` says where it came out a vertex of every factor, and so is the
    best joint structure; `exact` whether it always does; `IntegerHull` is the exact road.

    MAP is one linear program over all factors' constraints. Projections need only the factors' own
    (`Consensus`): `Solution.gap` bounds the squared error, from one MAP a factor.

    Parts: `(*shape)`, shared by the factors. Labels are the vertices themselves.

    Args:
        factors: pairs of a polytope and the parts it covers, as indices of the flattened event in
            the order (C) of the polytope's own; a polytope alone covers all parts.
        shape: the event shape, a number or a tuple; by default `(d,)`, d one more than the largest
            index.

    Raises:
        TypeError: a factor is no polytope, or an index no whole number.
        ValueError: no factor; indices out of range, repeated within a factor or not one a part of it, or
            a part that no factor covers.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Intersection, Or, Xor
        >>> exactly_one_and_not_the_first = Intersection([(Xor(3), [0, 1, 2]), (Or(2), [1, 2])])
        >>> exactly_one_and_not_the_first.maximize(torch.tensor([5.0, 1.0, 2.0]))
        tensor([0., 0., 1.])
        >>> rows = [(Xor(3), torch.arange(3) + 3 * i) for i in range(3)]
        >>> columns = [(Xor(3), 3 * torch.arange(3) + i) for i in range(3)]
        >>> Intersection(rows + columns, shape=(3, 3)).project(torch.eye(3) / 2)
        tensor([[0.6667, 0.1667, 0.1667],
                [0.1667, 0.6667, 0.1667],
                [0.1667, 0.1667, 0.6667]])

    References:
        Niculae and Martins, "LP-SparseMAP" (ICML 2020), sections 3 and 4.
    """

    factors: Sequence[Factor | Polytope]
    shape: tuple[int, ...] | int | None = None

    def __post_init__(self) -> None:
        if not self.factors:
            raise ValueError("Intersection needs at least one factor, such as (Xor(2), [0, 1]).")
        pairs = [_pair(factor) for factor in self.factors]
        largest = max(int(index.max()) for _, index in pairs)
        shape = (largest + 1,) if self.shape is None else self.shape
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        d = torch.Size(shape).numel()
        covered = torch.zeros(d, dtype=torch.bool)
        for polytope, index in pairs:
            _check_index(polytope, index, d)
            covered[index] = True
        if not bool(covered.all()):
            missing = numbers((~covered).nonzero()[:, 0])[:5]
            raise ValueError(f"Intersection: no factor covers part(s) {missing}; add Hypercube factors.")
        object.__setattr__(self, "factors", tuple(pairs))
        object.__setattr__(self, "shape", shape)

    def __repr__(self) -> str:
        return f"Intersection({len(self.factors)} factors, event {self.event_shape})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`shape`."""
        assert isinstance(self.shape, tuple)
        return self.shape

    @property
    def pairs(self) -> tuple[tuple[Polytope, Tensor], ...]:
        """The factors, each with its parts as a tensor."""
        return tuple(self.factors)  # pyright: ignore[reportReturnType]

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Equal factors together."""
        return blocks(self.pairs)

    @property
    def facts(self) -> frozenset[str]:
        """Constraints, if every factor has constraints or vertices."""
        known = all(p.facts & {"constraints", "vertices"} for p, _ in self.pairs)
        return frozenset({"constraints"}) if known else frozenset[str]()

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The tightest of the factors'."""
        if "bounds" not in self.scratch:
            d = torch.Size(self.event_shape).numel()
            lower = torch.full((d,), -torch.inf, dtype=torch.float64)
            upper = -lower
            for polytope, index in self.pairs:
                low, high = polytope.bounds
                lower[index] = lower[index].maximum(low.flatten())
                upper[index] = upper[index].minimum(high.flatten())
            self.scratch["bounds"] = lower.reshape(self.event_shape), upper.reshape(self.event_shape)
        return self.scratch["bounds"]

    @cached_property
    def exact(self) -> bool:
        """Whether M is known to be the hull of the structures on which all factors agree.

        It is for one factor, and where factors and shared parts form a forest and shared parts are
        0 or 1 in every structure: distributions over the factors' structures that agree on one 0/1
        part agree in its mean alone, and join along the tree.
        """
        if len(self.factors) == 1:
            return True
        return self._is_forest() and all(_binary(polytope) for polytope, _ in self.pairs)

    def _is_forest(self) -> bool:
        nx = library("networkx")

        graph = nx.Graph()
        for f, (_, index) in enumerate(self.pairs):
            graph.add_edges_from((("factor", f), ("part", part)) for part in numbers(index))
        return bool(nx.is_forest(graph))

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Every factor's, on its parts; mixtures of the vertices of those that only list them."""
        cp = library("cvxpy")

        flat: Any = cp.vec(y, order="C")
        found: list[Any] = []
        for polytope, index in self.pairs:
            part = flat[index.numpy()]
            if "constraints" in polytope.facts:
                found += polytope.constraints(cp.reshape(part, polytope.event_shape, order="C"))
                continue
            points = distinct_vertices(polytope).numpy()
            weights: Any = cp.Variable(len(points), nonneg=True)
            found += [part == points.T @ weights, cp.sum(weights) == 1]
        return found

    def common_vertex(self, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """Whether y is known to be a vertex of every factor."""
        flat = y.double().flatten(1).cpu()
        known = [_is_vertex(polytope, flat[:, index]) for polytope, index in self.pairs]
        return torch.stack(known).all(0).to(y.device)


def _pair(factor: Any) -> tuple[Polytope, Tensor]:
    polytope, index = (factor, None) if isinstance(factor, Polytope) else factor
    if not isinstance(polytope, Polytope):
        raise TypeError(
            f"Intersection takes pairs (polytope, parts), such as (Xor(2), [0, 1]); got {factor!r}."
        )
    size = torch.Size(polytope.event_shape).numel()
    parts = torch.arange(size) if index is None else torch.as_tensor(index).cpu().flatten()
    if parts.is_floating_point() or parts.dtype == torch.bool:
        raise TypeError(f"Intersection: the parts of {polytope} must be indices, got {parts.dtype}.")
    if len(parts) != size:
        raise ValueError(f"Intersection: {polytope} has {size} parts, got {len(parts)} indices.")
    return polytope, parts.long()


def _check_index(polytope: Polytope, index: Tensor, d: int) -> None:
    outside = numbers(index[(index < 0) | (index >= d)])
    if outside:
        raise ValueError(
            f"Intersection: the parts of {polytope} must be indices 0..{d - 1}, got {outside[0]}."
        )
    twice = rows_where(index.bincount() > 1)
    if twice:
        raise ValueError(
            f"Intersection: the parts of {polytope} must be distinct, got {twice[0]} more than once."
        )


def _binary(polytope: Polytope) -> bool:
    """Whether every structure is known to be a 0/1 vector."""
    low, high = polytope.bounds
    if not bool(((low >= 0) & (high <= 1)).all()):
        return False
    if "vertices" in polytope.facts:
        points = distinct_vertices(polytope)
        return bool(((points == 0) | (points == 1)).all())
    return isinstance(polytope, Simplex | Hypercube | Subset | Logic | IntegerHull)


def _is_vertex(polytope: Polytope, y: Tensor) -> Tensor:  # (n, d) -> (n,)
    """A listed vertex; or a 0/1 point of a polytope in [0, 1]^d, which is extreme."""
    if "vertices" in polytope.facts:
        return torch.cdist(y, distinct_vertices(polytope), p=torch.inf).amin(1) <= WHOLE
    low, high = (bound.flatten() for bound in polytope.bounds)
    inside = ((low >= 0) & (high <= 1)).all()
    return inside & ((y - y.round()).abs() <= WHOLE).all(1)


rule(Intersection, Euclidean)(Consensus)


@rule(Intersection, None)
class JointProgram(Road):
    """One linear program over the constraints of all factors."""

    name = "joint linear program (HiGHS)"
    cost = "one simplex run an instance"
    devices = ("cpu",)

    def lacks(self, polytope: Polytope, regularizer: Any) -> str:
        """The constraints."""
        return Highs().lacks(polytope, regularizer)

    def solve(self, problem: Problem) -> Solution:
        """A vertex of M, and whether it is one of every factor."""
        assert isinstance(problem.polytope, Intersection)
        answer = Highs().solve(problem)
        return replace(answer, integral=problem.polytope.common_vertex(answer.value))
