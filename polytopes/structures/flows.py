"""What polytopes of unit flows share: ends that are parameters, and the Euclidean projection."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road
from spigot.polytopes.elimination_order import least_fill
from spigot.polytopes.faces import pull_through_faces, tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem, Solution, Status
from spigot.polytopes.regularizers import Regularizer

if TYPE_CHECKING:
    from spigot.polytopes.kernels.flows.flow_projection import Flows
    from spigot.polytopes.kernels.flows.network import Network

__all__ = [
    "BestFlow",
    "FlowPolytope",
    "FlowProjection",
    "Posed",
    "flows_on",
    "kept",
    "precise",
    "refuse",
]

ACCURATE = 1e-9  # of the certificate, relative to 1 + |<s, y>|
ROUNDING = 32  # units in the last place of the largest score: nothing smaller is a multiplier


@dataclass(frozen=True, eq=False)
class Posed:
    """Instances as flows: a unit from source to target (nowhere where source is -1).

    Attributes:
        flows: the network.
        source: a node each, `(n,)`.
        target: likewise.
        closed: arcs left out, `(n, c)`.
        sure: parts of every flow, flat, `(n, c)`.
    """

    flows: Flows
    source: np.ndarray
    target: np.ndarray
    closed: np.ndarray
    sure: np.ndarray


class FlowPolytope(Polytope, abstract=True):
    """Unit flows from a source to a target."""

    nonpositive: bool

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.event_shape).double(), torch.ones(self.event_shape).double()

    @property
    def facts(self) -> frozenset[str]:
        """Without `argmax` where it is clamped: it is then no oracle of M."""
        return frozenset({"constraints"}) if self.nonpositive else super().facts

    def argmax(self, scores: Tensor) -> Tensor:
        """The best flow, of these scores as they are."""
        return self.best(Problem(self, scores, None))

    def best(self, problem: Problem) -> Tensor:
        """A vertex of largest score each."""
        raise NotImplementedError

    def posed(self, problem: Problem) -> Posed:
        """The instances as flows."""
        raise NotImplementedError

    def gap(
        self, y: Tensor, scores: Tensor, regularizer: Regularizer | None = None, **kwargs: Any
    ) -> Tensor:
        """The certificate; with a regularizer that of M itself, also where MAP is clamped."""
        if regularizer is not None and self.nonpositive:
            return self.unclamped.gap(y, scores, regularizer, **kwargs)
        return super().gap(y, scores, regularizer, **kwargs)

    @property
    def unclamped(self) -> FlowPolytope:
        """The same with `nonpositive=False`."""
        return replace(cast(Any, self), nonpositive=False) if self.nonpositive else self


def flows_on(network: Network, part: np.ndarray) -> Flows:
    """A network ready for projections, its nodes in an order of little fill (minimum degree)."""
    from spigot.polytopes.kernels.flows.flow_projection import Flows
    from spigot.polytopes.kernels.laplacian import pattern_of

    place = least_fill(network.tails, network.heads, len(network.start) - 1)
    pattern = pattern_of(network.tails, network.heads, place)
    return Flows(network, pattern, part, place[network.tails], place[network.heads])


def kept(problem: Problem) -> np.ndarray:  # (n, d), or no rows
    """`keep` as kernels take it."""
    keep = problem.flat_keep
    return np.ones((0, 0), dtype=np.bool_) if keep is None else contiguous(keep)


def precise(problem: Problem) -> Tensor:  # (n, *event), float32 or float64
    """The scores in a dtype that kernels know."""
    scores = problem.scores.detach()
    return scores if scores.dtype in (torch.float32, torch.float64) else scores.double()


def refuse(problem: Problem, without: np.ndarray) -> None:
    """Raises NoStructure for the instances without a flow."""
    if without.any():
        rows = rows_where(tensor(without))
        raise problem.no_structure(rows, ": no path leads from the source to the target")


@dataclass(frozen=True, eq=False)
class FreeArcs:
    """The directions of a face: circulations of these arcs, seen in the parts kept."""

    flows: Flows
    free: np.ndarray  # (arcs,), bool
    kept: np.ndarray  # (d,), bool

    def pull(self, grad: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """The orthogonal projection of grad; `spread` is 1, as the regularizer is Euclidean."""
        from spigot.polytopes.kernels.flows.flow_projection import pull

        whole, pulled = np.zeros((1, len(self.kept))), np.zeros((1, len(self.kept)))
        whole[0, self.kept] = grad
        pull(self.flows, self.free, whole[0], pulled[0])
        return pulled[0, self.kept]


class BestFlow(Road):
    """A path by dynamic programming or Dijkstra's search; flows where cycles pay."""

    name: ClassVar[str] = "shortest path, or minimum-cost flow"
    cost: ClassVar[str] = "O(arcs) on acyclic graphs, O(arcs log nodes) where no score is positive"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"lengths", "params"})

    def solve(self, problem: Problem) -> Solution:
        """The best vertex of each instance; of the scores clamped at 0 with `nonpositive`."""
        polytope = problem.polytope
        assert isinstance(polytope, FlowPolytope)
        if polytope.nonpositive:
            problem = problem.with_scores(problem.scores.clamp(max=0.0))
        value = polytope.best(problem)
        return Solution.closed_form(value, (problem.scores * value).flatten(1).sum(1))


class FlowProjection(Road):
    """An interior point's steps, each a sparse graph Laplacian; then the exact answer on its face."""

    name: ClassVar[str] = "interior point on the flow, made exact on its face"
    cost: ClassVar[str] = "10 to 25 sparse factors of a graph Laplacian"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = frozenset({"params"})

    def solve(self, problem: Problem) -> Solution:
        """The nearest flows."""
        from spigot.polytopes.kernels.flows.flow_projection import project

        polytope = problem.polytope
        assert isinstance(polytope, FlowPolytope)
        posed = polytope.posed(problem)
        scores = precise(problem)
        n, arcs = problem.size, len(posed.flows.part)
        value = torch.zeros(problem.scores.shape, dtype=torch.float64)
        keep = kept(problem)
        free = np.zeros((n, arcs), dtype=np.bool_)
        steps, gap = np.zeros(n, dtype=np.int64), np.zeros(n)
        over_instances(
            project,
            n,
            posed.flows,
            posed.source,
            posed.target,
            posed.closed,
            tie_tolerance(scores.dtype),
            ROUNDING * torch.finfo(scores.dtype).eps,
            contiguous(scores.flatten(1).double()),
            keep,
            contiguous(value.flatten(1)),
            free,
            steps,
            gap,
        )
        sure = np.take_along_axis(keep, posed.sure, 1).all(1) if len(keep) else True
        refuse(problem, (steps < 0) | ~np.broadcast_to(sure, steps.shape))
        value.flatten(1).scatter_(1, tensor(posed.sure), 1.0)
        linear = (problem.scores.double() * value).flatten(1).sum(1)
        exact = tensor(gap) <= ACCURATE * (1 + linear.abs())
        status = torch.where(exact, int(Status.CONVERGED), int(Status.INACCURATE))
        used = np.ones(scores.flatten(1).shape, dtype=np.bool_) if not len(keep) else keep
        return Solution(
            value,
            status,
            tensor(steps),
            gap=tensor(gap),
            objective=linear - 0.5 * value.square().flatten(1).sum(1),
            gradient=value,
            faces=tuple(map(FreeArcs, repeat(posed.flows), free, used)),
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The orthogonal projector onto the circulations of the arcs that vary on the exposed face."""
        assert solution.faces is not None
        flat = grad.flatten(1)
        pulled = pull_through_faces(solution.faces, flat, torch.ones_like(flat), problem.flat_keep)
        return pulled.reshape(grad.shape)
