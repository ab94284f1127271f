"""Chains of tags: one tag a position, scored by neighbouring pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, room, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.faces import tie_tolerance
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.linear import LinearMap, SizeAndMap, with_maps
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, EuclideanOf, Gibbs, Regularizer, Smooth
from spigot.polytopes.structures.scan import ScannedForwardBackward, ScannedViterbi

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = [
    "ForwardBackward",
    "Sequence",
    "Viterbi",
    "limit",
    "sizes_of",
    "some_left",
    "tag_ids",
    "with_ends",
]


def _into_tags(arcs: Tensor) -> Tensor:  # (n, length, tags, tags) -> (n, length, tags)
    return arcs.sum(-2)


def _along_arcs(tags: Tensor, event: tuple[int, ...]) -> Tensor:
    return tags.unsqueeze(-2).expand(-1, *event)


@with_maps(tags=LinearMap("Sequence.tags", _into_tags, _along_arcs))
@dataclass(frozen=True)
class Sequence(Polytope):
    """{y >= 0 : unit flow through a trellis}, the sequences of `length` tags out of `tags`.

    Parts: `(length, tags, tags)`, arcs: entry [t, i, j] is tag i at t - 1 and tag j at t. The first
    position has no arc into it: at t = 0 row 0 alone is used, and the other rows of it are 0 in every
    structure, their scores ignored. `Sequence.pack` makes scores of unary and transition ones.
    `Sequence.tags`, of the class, is the linear map to tag marginals `(length, tags)`, for
    `Euclidean(of=Sequence.tags)`. Labels are tag ids `(*batch, length)`, -1 in the padding.

    Args:
        length: the number of positions, at least 1.
        tags: how many tags there are, at least 1.

    Raises:
        TypeError: length or tags is no whole number.
        ValueError: length < 1 or tags < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Sequence
        >>> unary = torch.tensor([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0]])
        >>> stay = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> chain = Sequence(3, 2)
        >>> scores = Sequence.pack(unary, stay)
        >>> chain.decode(chain.maximize(scores))
        tensor([0, 0, 0])
        >>> Sequence.tags.apply(chain.marginals(scores)[None])[0]
        tensor([[0.7250, 0.2750],
                [0.5909, 0.4091],
                [0.7250, 0.2750]])

    References:
        Viterbi, "Error bounds for convolutional codes" (IEEE Transactions on Information Theory 1967).
        Lafferty, McCallum and Pereira, "Conditional random fields" (ICML 2001), section 3.
    """

    length: int
    tags: SizeAndMap

    def __post_init__(self) -> None:
        whole_numbers(self, length=self.length, tags=self.tags)
        if self.length < 1 or self.tags < 1:
            raise ValueError(
                f"Sequence(length={self.length}, tags={self.tags}): both must be at least 1."
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(length, tags, tags)`."""
        return (self.length, self.tags, self.tags)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1; 0 and 0 where there is no arc."""
        upper = torch.ones(self.event_shape, dtype=torch.float64)
        upper[0, 1:] = 0.0
        return torch.zeros_like(upper), upper

    def argmax(self, scores: Tensor) -> Tensor:
        """Viterbi's sequence."""
        return Viterbi().solve(Problem(self, scores, None)).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """A unit flow: what comes into a tag leaves it."""
        cp = library("cvxpy")

        rows = [y >= 0, cp.sum(y[0, 0]) == 1]
        rows += [y[0, 1:] == 0] if self.tags > 1 else []
        return rows + [cp.sum(y[t - 1], axis=0) == cp.sum(y[t], axis=1) for t in range(1, self.length)]

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to the length."""
        return 1, self.length

    def at(self, length: int) -> Sequence:
        """The first `length` positions."""
        return replace(self, length=length)

    def padding(self, lengths: Tensor) -> Tensor:
        """The arcs into the first `lengths` positions."""
        inside = torch.arange(self.length, device=lengths.device) < lengths[:, None]
        return inside[:, :, None, None].expand(-1, *self.event_shape)

    @staticmethod
    def pack(
        unary: Tensor,
        transition: Tensor,
        start: Tensor | None = None,
        end: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Scores of arcs: unary[t, j] + transition[i, j], differentiable in all of them.

        Args:
            unary: `(*batch, length, tags)`.
            transition: `(tags, tags)` from tag i to tag j, or one a step, `(*batch, length - 1, tags,
                tags)`.
            start: `(tags,)`, added at the first position.
            end: `(tags,)`, added at the last one.
            lengths: `(*batch,)`, where the last position is, if not at the end.

        Returns:
            `(*batch, length, tags, tags)`.

        Raises:
            ValueError: shapes that do not fit.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Sequence
            >>> Sequence.pack(torch.zeros(2, 3), torch.eye(3), start=torch.tensor([5.0, 0.0, 0.0]))[1]
            tensor([[1., 0., 0.],
                    [0., 1., 0.],
                    [0., 0., 1.]])
        """
        length, tags = _fitting(unary, transition, start, end)
        unary = with_ends(unary, start, end, lengths)
        steps = transition.expand(*transition.shape[:-3], length - 1, tags, tags)
        before = torch.nn.functional.pad(steps, (0, 0, 0, 0, 1, 0))
        total: Tensor = cast(Any, _Sum).apply(unary.unsqueeze(-2), before)
        return total

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of tag ids `(*batch, length)`; beyond an instance's length ids are ignored.

        Raises:
            TypeError: labels are no integers.
            ValueError: another length, or an id that is no tag.
        """
        ids, inside = tag_ids(self, self.length, self.tags, labels, lengths)
        batch = ids.shape[:-1]
        before = torch.nn.functional.pad(ids[..., :-1], (1, 0))
        like = torch.zeros((), device=ids.device)
        flat = room(like, (*batch, self.length, self.tags**2)).zero_()
        flat.scatter_(-1, (before * self.tags + ids)[..., None], inside[..., None].to(flat))
        return flat.reshape(*batch, *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Tag ids `(*batch, length)`, -1 in the padding."""
        check_event(self, vertices, "vertices")
        weight, ids = vertices.sum(-2).max(-1)
        return torch.where(weight > 0, ids, -1)


def tag_ids(
    chain: Polytope, length: int, tags: int, labels: Any, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:  # (*batch, length) each
    """Tag ids, 0 beyond an instance's length, and which positions lie inside it.

    Raises:
        TypeError, ValueError: no integers, another length, or no tags of the chain's.
    """
    ids = whole_labels(labels, "tag ids")
    if ids.dim() == 0 or ids.shape[-1] != length:
        raise ValueError(
            f"labels of shape {tuple(ids.shape)} do not fit {chain}: the last dimension must be its "
            f"length {length}, padded with -1 where `lengths` are shorter."
        )
    batch = ids.shape[:-1]
    sizes = label_sizes(chain, batch, lengths, ids.device)
    inside = torch.arange(length, device=ids.device) < sizes[..., None]
    wrong = inside & ((ids < 0) | (ids >= tags))
    must = f"must be tag ids in 0..{tags - 1} up to each instance's length"
    refuse_labels(must, wrong, ids, batch, lengths)
    return torch.where(inside, ids, 0).long(), inside


def with_ends(
    unary: Tensor, start: Tensor | None, end: Tensor | None, lengths: Tensor | None
) -> Tensor:  # (*batch, length, tags)
    """Unary scores with those of the first and of the last tag."""
    length = unary.shape[-2]
    if start is not None:
        unary = unary + torch.nn.functional.pad(start[None], (0, 0, 0, length - 1))
    if end is not None:
        lengths = torch.tensor(length, device=unary.device) if lengths is None else lengths
        final = torch.arange(length, device=unary.device) == lengths[..., None] - 1
        unary = unary + final[..., None] * end
    return unary


class _Sum(torch.autograd.Function):
    """a + b, broadcast, in large pages: arcs are many more than what they are made of."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.shapes = a.shape, b.shape
        made = torch.promote_types(a.dtype, b.dtype)
        shape: tuple[int, ...] = cast(Any, torch).broadcast_shapes(a.shape, b.shape)
        return torch.add(a, b, out=room(a.new_empty(0, dtype=made), shape))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(grads[0].sum_to_size(shape) for shape in ctx.shapes)


def _fitting(
    unary: Tensor, transition: Tensor, start: Tensor | None, end: Tensor | None
) -> tuple[int, int]:
    """The length and the number of tags, once the shapes have been compared."""
    if unary.dim() < 2:
        raise ValueError(f"unary scores must be (*batch, length, tags), got {tuple(unary.shape)}.")
    length, tags = unary.shape[-2:]
    shape = tuple(transition.shape)
    if shape[-2:] != (tags, tags) or (len(shape) > 2 and shape[-3] != length - 1):
        raise ValueError(
            f"transition scores of shape {shape} do not fit unary ones of shape {tuple(unary.shape)}: "
            f"they must be ({tags}, {tags}) or (*batch, {length - 1}, {tags}, {tags})."
        )
    for name, ends in (("start", start), ("end", end)):
        if ends is not None and tuple(ends.shape) != (tags,):
            raise ValueError(f"{name} must have the shape ({tags},), got {tuple(ends.shape)}.")
    return length, tags


def _arcs(problem: Problem) -> np.ndarray:  # (n, length, tags, tags)
    """The scores, -inf where `keep` excludes an arc."""
    keep = problem.keep
    return contiguous(problem.scores if keep is None else problem.scores.masked_fill(~keep, -torch.inf))


def sizes_of(problem: Problem, length: int) -> np.ndarray:  # (n,)
    """Each instance's length."""
    if problem.lengths is None:
        return np.full(problem.size, length, dtype=np.int64)
    return contiguous(problem.lengths.long())


def _lengths(problem: Problem) -> np.ndarray:  # (n,)
    return sizes_of(problem, problem.scores.shape[1])


def some_left(problem: Problem, best: np.ndarray) -> Tensor:
    """The best scores or log-sums, none of them -inf."""
    empty = np.flatnonzero(np.isneginf(best))
    if len(empty):
        raise problem.no_structure(empty.tolist())
    return tensor(best)


@rule(Sequence, None)
class Viterbi(Road):
    """Viterbi's algorithm; among ties the lowest tags, from the last position back."""

    name = "Viterbi"
    cost = "O(length tags^2)"
    devices = ("cpu",)
    native = SIZED
    accelerated = ScannedViterbi

    def solve(self, problem: Problem) -> Solution:
        """0/1 vertices."""
        from spigot.polytopes.kernels.dynamic.chain import viterbi

        scores = _arcs(problem)
        vertices, best = np.zeros(scores.shape, scores.dtype), np.zeros(problem.size)
        over_instances(viterbi, problem.size, scores, _lengths(problem), vertices, best)
        return Solution.closed_form(tensor(vertices), some_left(problem, best), owned=True)


RANGE: dict[Any, float] = {np.dtype(np.float32): 87.0, np.dtype(np.float64): 700.0}
"""Between exp of this and of its negative numbers keep all their digits."""


def limit(kind: Any, tags: int) -> float:
    """The largest |score| for which probabilities neither underflow nor overflow (see the kernel)."""
    return (RANGE[np.dtype(kind)] - 2 * math.log(tags)) / 3


@rule(Sequence, Gibbs)
class ForwardBackward(Road):
    """Forward-backward: in probability space where a step's scores spread little, else in log space."""

    name = "forward-backward"
    cost = "O(length tags^2)"
    devices = ("cpu",)
    native = SIZED
    accelerated = ScannedForwardBackward

    def solve(self, problem: Problem) -> Solution:
        """Arc marginals and log Z."""
        marginals, log_z = _marginals(problem, _arcs(problem))
        return Solution.closed_form(tensor(marginals), some_left(problem, log_z))

    def conjugate(self, problem: Problem) -> Solution:
        """log Z by the sweep ahead alone; the value is left out."""
        log_z = _marginals(problem, _arcs(problem), 0)[1]
        return Solution.closed_form(problem.scores, some_left(problem, log_z))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Cov(z, <grad, z>), by two sweeps over the marginals."""
        from spigot.polytopes.kernels.dynamic.chain import covariance

        marginals = contiguous(solution.value)
        pulled = np.empty_like(marginals)
        sizes = _lengths(problem)
        over_instances(covariance, problem.size, marginals, contiguous(grad), sizes, pulled)
        return tensor(pulled)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """By torch's own derivatives, a step of time after the other."""
        return ScannedForwardBackward().curve(problem, solution, u, v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Tags from the last one back, each given the one after it."""
        from spigot.polytopes.kernels.dynamic.chain import sample_backward

        scores = _arcs(problem)
        marginals, log_z = _marginals(problem, scores.astype(np.float64))
        some_left(problem, log_z)
        draws = torch.rand(count, *scores.shape[:2], dtype=torch.float64, generator=generator)
        vertices = np.zeros((count, *scores.shape), dtype=scores.dtype)
        sizes = _lengths(problem)
        over_instances(sample_backward, problem.size, marginals, sizes, contiguous(draws), vertices)
        return tensor(vertices)

    def entropy(self, problem: Problem) -> Tensor:
        """The sum over steps of the entropy of a tag given the one before it."""
        marginals, log_z = _marginals(problem, _arcs(problem).astype(np.float64))
        some_left(problem, log_z)
        arcs = tensor(marginals)
        left = arcs[:, 1:].sum(3)
        joint, before = torch.xlogy(arcs, arcs).sum((1, 2, 3)), torch.xlogy(left, left).sum((1, 2))
        return (before - joint).clamp_min(0.0)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """Viterbi with the k best ways to every tag."""
        from spigot.polytopes.kernels.dynamic.chain import k_best

        scores = _arcs(problem)
        vertices = np.zeros((k, *scores.shape), dtype=scores.dtype)
        found = np.zeros(problem.size, dtype=np.int64)
        over_instances(k_best, problem.size, scores, _lengths(problem), vertices, found)
        problem.check_enough(k, tensor(found))
        return tensor(vertices)


def _marginals(
    problem: Problem, scores: np.ndarray, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Marginals of the first `rows` instances, all or none, and every log Z."""
    from spigot.polytopes.kernels.dynamic.chain import forward_backward

    marginals, log_z = np.empty_like(scores[:rows]), np.empty(problem.size)
    limits = [limit(kind, scores.shape[2]) for kind in (scores.dtype, np.float64)]
    over_instances(forward_backward, problem.size, scores, _lengths(problem), *limits, marginals, log_z)
    return marginals, log_z


@rule(Sequence, Euclidean, EuclideanOf)
class TrellisProjection(Road):
    """A mixture of few sequences, by an active set; where it would hold many, an interior point.

    Both end at the projection itself, of the arcs' norm or of the tags'. Both look for the few tags a
    position that carry flow first, and price all arcs to see that no tag is missing; the interior point
    does so for the arcs' norm, and else works on all tags.

    References:
        Wolfe, "Finding the nearest point in a polytope" (Mathematical Programming 1976).
        Niculae, Martins, Blondel and Cardie, "SparseMAP: Differentiable sparse structured inference"
        (ICML 2018), section 3.
        Mehrotra, "On the implementation of a primal-dual interior point method" (SIAM Journal on
        Optimization 1992).
    """

    name = "active set of sequences, or interior point on the trellis"
    cost = "O(length tags^2) a look at all arcs, 3 to 6 looks; k sequences: O(k^2) a step, 2k steps"
    devices = ("cpu",)
    native = SIZED

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """Linear maps other than the tags' marginals."""
        if isinstance(regularizer, EuclideanOf) and regularizer.of != Sequence.tags:
            return f"{self.name} takes {Sequence.tags} alone, not {regularizer.of}."
        return ""

    def solve(self, problem: Problem) -> Solution:
        """Projections in float64."""
        from spigot.polytopes.kernels.dynamic.narrow import project_narrow
        from spigot.polytopes.kernels.dynamic.path_mixtures import project_mixtures
        from spigot.polytopes.kernels.dynamic.trellis import UNSOLVED, project

        scores = _arcs(problem).astype(np.float64)
        values = np.zeros_like(scores)
        status, steps = np.full(problem.size, UNSOLVED), np.zeros(problem.size, dtype=np.int64)
        sizes, inner = _lengths(problem), _inner(problem)
        over_instances(project_mixtures, problem.size, scores, sizes, inner, values, status, steps)
        if not inner and (status == UNSOLVED).any():
            over_instances(project_narrow, problem.size, scores, sizes, values, status, steps)
        if (status == UNSOLVED).any():
            over_instances(project, problem.size, scores, sizes, inner, values, status, steps)
        empty = np.flatnonzero(status == NO_PATH)
        if len(empty):
            raise problem.no_structure(empty.tolist())
        y, omega = tensor(np.maximum(values, 0.0, out=values)), problem.regularizer  # 0 but for rounding
        assert isinstance(omega, Smooth)
        return Solution(
            y,
            tensor(status),
            tensor(steps),
            objective=(problem.scores * y).flatten(1).sum(1) - omega.total(y),
            gradient=omega.gradient(y),
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """On the exposed face: the circulations on the arcs of paths that are best at s - grad Omega."""
        from spigot.polytopes.kernels.dynamic.trellis import face_projector

        assert solution.gradient is not None
        slopes = _arcs(problem) - contiguous(solution.gradient.double())
        pulled = np.zeros_like(slopes)
        sizes, inner, near = _lengths(problem), _inner(problem), tie_tolerance(problem.scores.dtype)
        pull = contiguous(grad.double())
        over_instances(face_projector, problem.size, slopes, sizes, inner, near, pull, pulled)
        return tensor(pulled)


NO_PATH = 3


def _inner(problem: Problem) -> int:
    """1 where the norm is that of the tags' marginals."""
    return int(isinstance(problem.regularizer, EuclideanOf))
