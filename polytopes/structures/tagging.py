"""Chains of tags whose transitions are shared by all positions: what a linear-chain tagger scores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs
from spigot.polytopes.structures.scan import ScannedForwardBackward, ScannedViterbi
from spigot.polytopes.structures.sequence import (
    ForwardBackward,
    Sequence,
    Viterbi,
    limit,
    sizes_of,
    some_left,
    tag_ids,
    with_ends,
)

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Tagging"]


@dataclass(frozen=True)
class Tagging(Polytope):
    """conv of the sequences of `length` tags, each as its transitions' counts and its tags.

    Parts: `(tags + length, tags)`: entry [i, j] is how often tag j follows tag i, entry [tags + t,
    j] is tag j at position t. So scores are `(tags, tags)` of transitions above `(length, tags)` of
    positions, as `Tagging.pack` puts them; one more position costs `tags` numbers, not the `tags^2`
    of `Sequence`, which gives every position transitions of its own. It is the image of `Sequence`
    under the sum over positions, with the same structures: MAP, log Z and tag marginals are the same.
    The Euclidean projection is not: its norm is that of the counts and the tags.

    `keep` excludes a transition at all positions, or a tag at one. Labels are tag ids `(*batch,
    length)`, -1 in the padding.

    Args:
        length: the number of positions, at least 1.
        tags: how many tags there are, at least 1.

    Raises:
        TypeError: length or tags is no whole number.
        ValueError: length < 1 or tags < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Tagging
        >>> unary = torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
        >>> scores = Tagging.pack(unary, torch.eye(2))
        >>> chain = Tagging(3, 2)
        >>> chain.decode(chain.maximize(scores))
        tensor([0, 0, 0])
        >>> chain.marginals(scores)[:2]  # expected transitions: one fewer than positions
        tensor([[1.0409, 0.2750],
                [0.2750, 0.4091]])

    References:
        Lafferty, McCallum and Pereira, "Conditional random fields" (ICML 2001), section 3.
    """

    length: int
    tags: int

    def __post_init__(self) -> None:
        whole_numbers(self, length=self.length, tags=self.tags)
        if self.length < 1 or self.tags < 1:
            raise ValueError(
                f"Tagging(length={self.length}, tags={self.tags}): both must be at least 1."
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(tags + length, tags)`."""
        return (self.tags + self.length, self.tags)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0; 1 for tags, and for transitions how many there are."""
        upper = torch.ones(self.event_shape, dtype=torch.float64)
        upper[: self.tags] = self.length - 1
        return torch.zeros_like(upper), upper

    def argmax(self, scores: Tensor) -> Tensor:
        """Viterbi's sequence."""
        return SharedViterbi().solve(Problem(self, scores, None)).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """A unit flow through the trellis, summed over positions."""
        cp = library("cvxpy")
        tags = self.tags
        counts, own = y[:tags], y[tags:]
        rows = [y >= 0, cp.sum(own[0]) == 1]
        if self.length == 1:
            return [*rows, counts == 0]
        flows = [cp.Variable((tags, tags)) for _ in range(1, self.length)]
        for t, flow in enumerate(flows):
            rows += [flow >= 0, cp.sum(flow, axis=1) == own[t], cp.sum(flow, axis=0) == own[t + 1]]
        return [*rows, counts == sum(flows[1:], flows[0])]

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to the length."""
        return 1, self.length

    def at(self, length: int) -> Tagging:
        """The first `length` positions."""
        return replace(self, length=length)

    def padding(self, lengths: Tensor) -> Tensor:
        """The transitions, and the first `lengths` positions."""
        rows = torch.arange(self.tags + self.length, device=lengths.device)
        inside = rows < self.tags + lengths[:, None]
        return inside[:, :, None].expand(-1, *self.event_shape)

    @staticmethod
    def pack(
        unary: Tensor,
        transition: Tensor,
        start: Tensor | None = None,
        end: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Scores of parts, differentiable in all of these.

        Args:
            unary: `(*batch, length, tags)`.
            transition: `(tags, tags)` from tag i to tag j, or one an instance, `(*batch, tags, tags)`.
            start: `(tags,)`, added at the first position.
            end: `(tags,)`, added at the last one.
            lengths: `(*batch,)`, where the last position is, if not at the end.

        Returns:
            `(*batch, tags + length, tags)`.

        Raises:
            ValueError: shapes that do not fit.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Tagging
            >>> Tagging.pack(torch.zeros(1, 2), torch.eye(2), start=torch.tensor([5.0, 0.0]))
            tensor([[1., 0.],
                    [0., 1.],
                    [5., 0.]])
        """
        tags = unary.shape[-1] if unary.dim() > 1 else 0
        ends = [tuple(x.shape) for x in (start, end) if x is not None]
        if not tags or transition.shape[-2:] != (tags, tags) or any(x != (tags,) for x in ends):
            shapes = [tuple(x.shape) for x in (unary, transition, start, end) if x is not None]
            raise ValueError(
                "Tagging.pack: unary (*batch, length, tags), transition (tags, tags), start and end "
                f"(tags,) do not fit; their shapes are {', '.join(map(str, shapes))}."
            )
        own = with_ends(unary, start, end, lengths)
        return torch.cat([transition.expand(*own.shape[:-2], tags, tags), own], -2)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of tag ids `(*batch, length)`; beyond an instance's length ids are ignored.

        Raises:
            TypeError: labels are no integers.
            ValueError: another length, or an id that is no tag.
        """
        ids, inside = tag_ids(self, self.length, self.tags, labels, lengths)
        flat = torch.zeros(*ids.shape[:-1], (self.tags + self.length) * self.tags, device=ids.device)
        position = self.tags + torch.arange(self.length, device=ids.device)
        flat.scatter_(-1, position * self.tags + ids, inside.to(flat))
        follows = ids[..., :-1] * self.tags + ids[..., 1:]
        flat.scatter_add_(-1, follows, inside[..., 1:].to(flat))
        return flat.reshape(*ids.shape[:-1], *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tag ids `(*batch, length)`, -1 in the padding."""
        check_event(self, vertices, "vertices")
        weight, ids = vertices[..., self.tags :, :].max(-1)
        return torch.where(weight > 0, ids, -1)


def _scores(problem: Problem) -> np.ndarray:  # (n, tags + length, tags)
    """The scores, -inf where `keep` excludes a part."""
    keep = problem.keep
    return contiguous(problem.scores if keep is None else problem.scores.masked_fill(~keep, -torch.inf))


def _lengths(problem: Problem) -> np.ndarray:  # (n,)
    return sizes_of(problem, problem.scores.shape[1] - problem.scores.shape[2])


def _along_arcs(parts: Tensor) -> Tensor:
    """What each arc `(n, length, tags, tags)` has of its transition and its tag; of its tag at first."""
    tags = parts.shape[-1]
    steps = parts[:, None, :tags].expand(-1, parts.shape[1] - tags - 1, -1, -1)
    before = torch.nn.functional.pad(steps, (0, 0, 0, 0, 1, 0))
    return before + parts[:, tags:, None]


def _of_arcs(arcs: Tensor) -> Tensor:
    """The parts of arcs: (*, length, tags, tags) -> (*, tags + length, tags)."""
    return torch.cat([arcs[..., 1:, :, :].sum(-3), arcs.sum(-2)], -2)


class ByArcs(Road):
    """A chain's own road over the arcs, and the image of what it finds."""

    cost = "O(length tags^2)"
    native: ClassVar[frozenset[str]] = SIZED
    arcs: ClassVar[type[Road]]

    def solve(self, problem: Problem) -> Solution:
        """The image of the chain's answer."""
        found = self._solved(problem)[1]
        assert found.objective is not None
        return Solution.closed_form(_of_arcs(found.value), found.objective)

    def _solved(self, problem: Problem) -> tuple[Problem, Solution]:
        posed = _posed(problem)
        return posed, self.arcs().solve(posed)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """A J A', J that of the arcs."""
        return _of_arcs(self.arcs().vjp(*self._solved(problem), _along_arcs(grad)))

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """Likewise."""
        posed, found = self._solved(problem)
        return _of_arcs(self.arcs().curve(posed, found, _along_arcs(u), _along_arcs(v)))

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Images of samples."""
        return _of_arcs(self.arcs().sample(_posed(problem), count, generator))

    def entropy(self, problem: Problem) -> Tensor | None:
        """The chain's: its structures are the same."""
        return self.arcs().entropy(_posed(problem))

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Images of the k best."""
        return _of_arcs(self.arcs().top_k(_posed(problem), k))


def _posed(problem: Problem) -> Problem:
    """The same problem over arcs."""
    assert isinstance(problem.polytope, Tagging)
    keep = problem.keep
    return replace(
        problem,
        polytope=Sequence(problem.polytope.length, problem.polytope.tags),
        scores=_along_arcs(problem.scores),
        keep=None if keep is None else _along_arcs((~keep).int()) == 0,
        start=None,
    )


class ScannedSharedViterbi(ByArcs):
    """Viterbi's algorithm, a step of time for all instances at once."""

    name = "Viterbi (torch)"
    arcs: ClassVar[type[Road]] = ScannedViterbi


class ScannedSharedSums(ByArcs):
    """Forward-backward in log space, a step of time for all instances at once."""

    name = "forward-backward (torch)"
    arcs: ClassVar[type[Road]] = ScannedForwardBackward


@rule(Tagging, None)
class SharedViterbi(ByArcs):
    """Viterbi's algorithm; among ties the lowest tags, from the last position back."""

    name = "Viterbi, transitions shared"
    devices = ("cpu",)
    arcs: ClassVar[type[Road]] = Viterbi
    accelerated = ScannedSharedViterbi

    def solve(self, problem: Problem) -> Solution:
        """Vertices."""
        from spigot.polytopes.kernels.dynamic.tagging import best_tags

        scores = _scores(problem)
        vertices, best = np.zeros_like(scores), np.zeros(problem.size)
        over_instances(best_tags, problem.size, scores, _lengths(problem), vertices, best)
        return Solution.closed_form(tensor(vertices), some_left(problem, best), owned=True)


@rule(Tagging, Gibbs)
class SharedSums(ByArcs):
    """Forward-backward, each transition's exponential taken once."""

    name = "forward-backward, transitions shared"
    devices = ("cpu",)
    arcs: ClassVar[type[Road]] = ForwardBackward
    accelerated = ScannedSharedSums

    def solve(self, problem: Problem) -> Solution:
        """Expected counts, tag marginals and log Z."""
        counts, log_z = _sums(problem, None)
        return Solution.closed_form(tensor(counts), some_left(problem, log_z))

    def conjugate(self, problem: Problem) -> Solution:
        """log Z by the sweep ahead alone; the value is left out."""
        return Solution.closed_form(problem.scores, some_left(problem, _sums(problem, 0)[1]))


def _sums(problem: Problem, rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Expected counts of the first `rows` instances, all or none, and every log Z."""
    from spigot.polytopes.kernels.dynamic.tagging import tag_sums

    scores = _scores(problem)
    counts, log_z = np.empty_like(scores[:rows]), np.empty(problem.size)
    spreads = [2 * limit(kind, scores.shape[2]) for kind in (scores.dtype, np.float64)]
    over_instances(tag_sums, problem.size, scores, _lengths(problem), *spreads, counts, log_z)
    return counts, log_z
