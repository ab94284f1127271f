"""Matchings of rows with columns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, distinct, library, numbers, tensor
from spigot.polytopes.curvature import NEVER
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.errors import unsupported, whole_numbers
from spigot.polytopes.kernels.bipartite import matchings
from spigot.polytopes.kernels.bipartite.assignment import assign
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs
from spigot.polytopes.structures import assignments
from spigot.polytopes.structures.bipartite import Best, BestVertex, Bipartite, Sums, masks, posed
from spigot.polytopes.structures.ranked_matchings import ranked_matchings

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Matching"]


@dataclass(frozen=True)
class Matching(Bipartite):
    """{y >= 0 : row sums = 1, column sums = 1}, the Birkhoff polytope, and its relatives.

    The vertices are the matchings of n rows with m columns that match the smaller side wholly: the
    sums of the larger side are then <= 1. With `perfect=False` they are all matchings, the empty one
    too, and all sums are <= 1.

    Parts: `(n, m)`, `[row, column]`. Labels are each row's column `(*batch, n)`, -1 where unmatched.

    `lengths` are two numbers an instance, `(*batch, 2)`: its rows and its columns.

    Args:
        n: how many rows, at least 1.
        m: how many columns, at least 1; n by default.
        perfect: whether the smaller side is wholly matched.

    Raises:
        TypeError: n or m is no whole number.
        ValueError: n or m is below 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Matching
        >>> scores = torch.tensor([[1.0, 0.2, 0.0], [0.9, 0.5, 0.0]])
        >>> Matching(2, 3).decode(Matching(2, 3).maximize(scores))
        tensor([0, 1])
        >>> Matching(2, 3).project(scores)
        tensor([[0.5833, 0.3083, 0.1083],
                [0.4167, 0.5417, 0.0417]])
        >>> Matching(2, 3, perfect=False).decode(Matching(2, 3, perfect=False).maximize(scores - 0.6))
        tensor([ 0, -1])

    References:
        MAP: Jonker and Volgenant, "A shortest augmenting path algorithm for dense and sparse linear
        assignment problems" (1987).
        Euclidean: Li, Sun and Toh, "On the efficient computation of a generalized Jacobian of the
        projector over the Birkhoff polytope" (2020).
        Shannon: Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices"
        (1967); Cuturi, "Sinkhorn distances" (NeurIPS 2013).
        Gibbs, a permanent: Ryser, "Combinatorial mathematics" (1963), chapter 2; the k best: Murty,
        "An algorithm for ranking all the assignments in order of increasing cost" (1968).
    """

    n: int
    m: int | None = None
    perfect: bool = True

    def __post_init__(self) -> None:
        whole_numbers(self, n=self.n, m=self.n if self.m is None else self.m)
        if self.n < 1 or self.columns < 1:
            raise ValueError(f"{self}: n and m must be at least 1.")

    @property
    def columns(self) -> int:
        """How many columns."""
        return self.n if self.m is None else self.m

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, m)`."""
        return (self.n, self.columns)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.event_shape).double(), torch.ones(self.event_shape).double()

    def argmax(self, scores: Tensor) -> Tensor:
        """A best matching of each instance."""
        return self.best(self.sums(Problem(self, scores, None)), scores.dtype).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Doubly stochastic, or substochastic."""
        cp = library("cvxpy")

        rows, columns = cp.sum(y, axis=1), cp.sum(y, axis=0)
        row_exact = self.perfect and self.n <= self.columns
        column_exact = self.perfect and self.columns <= self.n
        return [
            y >= 0,
            rows == 1 if row_exact else rows <= 1,
            columns == 1 if column_exact else columns <= 1,
        ]

    @property
    def length_range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """From 1 by 1 to n by m."""
        return (1, 1), (self.n, self.columns)

    def at(self, length: tuple[int, int]) -> Matching:
        """The leading rows and columns."""
        return replace(self, n=length[0], m=length[1])

    def padding(self, lengths: Tensor) -> Tensor:
        """The leading block."""
        rows = torch.arange(self.n, device=lengths.device) < lengths[:, :1]
        columns = torch.arange(self.columns, device=lengths.device) < lengths[:, 1:]
        return rows[:, :, None] & columns[:, None, :]

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 matrices `(*batch, n, m)` from each row's column `(*batch, n)`, -1 where unmatched.

        Raises:
            TypeError: labels of a floating dtype.
            ValueError: a column out of range or matched twice, or too few matched.
        """
        index = whole_labels(labels, "column indices")
        if index.dim() == 0 or index.shape[-1] != self.n:
            raise ValueError(
                f"labels of shape {tuple(index.shape)} must be (*batch, {self.n}), one column a row, or "
                "-1."
            )
        batch = index.shape[:-1]
        size = label_sizes(self, batch, lengths, index.device)
        row = torch.arange(self.n, device=index.device)
        wrong = (index < -1) | (index >= size[..., 1:]) | ((index >= 0) & (row >= size[..., :1]))
        must = f"must lie in 0..{self.columns - 1} (and in their lengths), or be -1"
        refuse_labels(must, wrong, index, batch, lengths)
        columns = torch.arange(self.columns, device=index.device)
        vertices = (index[..., None] == columns).to(torch.get_default_dtype())
        least = size.amin(-1) if self.perfect else torch.zeros_like(size[..., 0])
        again = (vertices.sum(-2) > 1).gather(-1, index.long().clamp_min(0)) & (index >= 0)
        refuse_labels("must match no column twice", again, index, batch, lengths)
        few = vertices.sum((-1, -2)) < least
        refuse_labels(
            "must match the smaller side wholly, as `perfect` asks", few, index, batch, lengths
        )
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Each row's column `(*batch, n)`, -1 where unmatched and in the padding."""
        check_event(self, vertices, "vertices")
        largest, column = vertices.max(-1)
        return torch.where(largest > 0.5, column, -1)

    def sums(self, problem: Problem) -> Sums:
        """Every mass is 1."""
        n, rows, columns = problem.scores.shape
        keep, masked, sizes = masks(problem)
        return Sums(
            contiguous(problem.scores.double()),
            keep,
            masked,
            sizes,
            np.ones((n, rows)),
            np.ones((n, columns)),
            self.perfect & (sizes[:, 0] <= sizes[:, 1]),
            self.perfect & (sizes[:, 0] >= sizes[:, 1]),
        )

    def best(self, sums: Sums, dtype: torch.dtype) -> Best:
        """By shortest augmenting paths."""
        n, rows, columns = sums.scores.shape
        match = np.full((n, rows), -1, dtype=np.int64)
        prices = np.zeros((n, rows)), np.zeros((n, columns))
        found = np.zeros(n, dtype=np.bool_)
        over_instances(assign, n, *sums.problem, self.perfect, match, *prices, found)
        return Best(lambda: _one_hot(tensor(match), columns, dtype), *prices, found)


def _one_hot(match: Tensor, columns: int, dtype: torch.dtype) -> Tensor:  # (*batch, n, columns)
    """0/1 matrices from each row's column `(*batch, n)`, -1 where unmatched."""
    labels = match[..., None]
    value = torch.zeros(*match.shape, columns, dtype=dtype)
    return value.scatter_(-1, labels.clamp_min(0), (labels >= 0).to(dtype))


@rule(Matching, None)
class AugmentingPaths(BestVertex):
    """A matching of largest score."""

    name = "shortest augmenting paths"
    cost = "O(n^3), usually much less"


MOST_SUMS = 1 << 22  # of the programme over subsets: 32 MiB


@rule(Matching, Gibbs)
class MatchingGibbs(Road):
    """Sums over all matchings: the permanent and its relatives, exact for small sides."""

    name = "programme over subsets of the smaller side"
    cost = "O(2^k k m), k the smaller side and m the larger"
    devices = ("cpu",)
    native = frozenset({"lengths", "params"})

    def solve(self, problem: Problem) -> Solution:
        """Marginals and the log-partition."""
        sums, best = _small(problem)
        value, total = np.zeros_like(sums.scores), np.zeros(problem.size)
        nothing = np.empty((1, 1, 1))
        _expect(problem, sums, best, (nothing, False, value, nothing, total))
        return Solution.closed_form(tensor(value), tensor(total))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Covariance times grad: the derivative of the marginals along it."""
        sums, best = _small(problem)
        pulled, total = np.zeros_like(sums.scores), np.zeros(problem.size)
        along = contiguous(grad.double())
        _expect(problem, sums, best, (along, True, np.empty((1, 1, 1)), pulled, total))
        return tensor(pulled)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The third derivative of the log-partition by torch, for the instances of each size."""
        scores = problem.scores.double()
        scores = scores if problem.keep is None else scores.masked_fill(~problem.keep, NEVER)
        curved = torch.zeros_like(scores)
        for rows, columns, instances in _by_size(problem):
            block = (instances, slice(rows), slice(columns))
            along = [part[block].double() for part in (scores, u, v)]
            along = [part.mT for part in along] if rows < columns else along  # the larger side first
            found = assignments.curved(problem, along[0], _perfect(problem), *along[1:])
            curved[block] = found.mT if rows < columns else found
        return curved

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """The larger side's members one by one, from the last."""
        sums, best = _small(problem)
        width, depth = _extent(sums)
        uniform = torch.rand(count, problem.size, depth + 1, generator=generator, dtype=torch.float64)
        match = np.full((count, problem.size, problem.scores.shape[1]), -1, dtype=np.int64)
        over_instances(
            matchings.draw,
            problem.size,
            *sums.problem,
            _perfect(problem),
            width,
            depth,
            best.row_price,
            best.column_price,
            contiguous(best.value),
            contiguous(uniform),
            match,
        )
        return _one_hot(tensor(match), problem.scores.shape[2], problem.scores.dtype)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By Murty's splitting: any size."""
        sums, _ = posed(problem)
        match = np.full((k, problem.size, problem.scores.shape[1]), -1, dtype=np.int64)
        counts = torch.zeros(problem.size, dtype=torch.int64)
        for i, (rows, columns) in enumerate(sums.sizes):
            scores = sums.scores[i, :rows, :columns]
            keep = np.ones(scores.shape, dtype=np.bool_)
            if sums.masked:
                keep = sums.keep[i, :rows, :columns]
            found = ranked_matchings(scores, keep, _perfect(problem), k)
            counts[i] = len(found)
            match[: len(found), i, :rows] = np.stack(found)
        problem.check_enough(k, counts)
        return _one_hot(tensor(match), problem.scores.shape[2], problem.scores.dtype)


def _by_size(problem: Problem) -> list[tuple[int, int, Tensor]]:
    """The sizes that instances have, and which ones have them."""
    sizes = torch.tensor(problem.scores.shape[1:]).expand(problem.size, 2)
    sizes = sizes if problem.lengths is None else problem.lengths.cpu()
    found, number = distinct(sizes)
    return [(n, m, (number == i).nonzero()[:, 0]) for i, (n, m) in enumerate(numbers(found))]


def _perfect(problem: Problem) -> bool:
    assert isinstance(problem.polytope, Matching)
    return problem.polytope.perfect


def _extent(sums: Sums) -> tuple[int, int]:
    """The largest smaller side and the largest larger side of the batch."""
    return int(sums.sizes.min(1).max()), int(sums.sizes.max(1).max())


def _small(problem: Problem) -> tuple[Sums, Best]:
    """The arrays, if the programme over subsets is small enough.

    Raises:
        UnsupportedProblem: it is not.
    """
    sums, best = posed(problem)
    width, depth = _extent(sums)
    if (depth + 1) << width > MOST_SUMS:
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"a sum over the matchings of {width} with {depth} takes 2^{width} * {depth + 1} terms "
            f"(counting them is #P-hard), more than the {MOST_SUMS} allowed.",
            "Use Shannon() (Sinkhorn) or Euclidean(), which take any size; or perturb MAP.",
        )
    return sums, best


def _expect(problem: Problem, sums: Sums, best: Best, tail: tuple[np.ndarray | bool, ...]) -> None:
    width, depth = _extent(sums)
    over_instances(
        matchings.expect,
        problem.size,
        *sums.problem,
        _perfect(problem),
        width,
        depth,
        best.row_price,
        best.column_price,
        contiguous(best.value),
        *tail,
    )
