"""Subsets of d parts: all of them (`Hypercube`), or those of k parts (`Subset`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from spigot.polytopes.arrays import library, rows_where
from spigot.polytopes.base import Polytope
from spigot.polytopes.curvature import derivative
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import NoStructure, whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, FermiDirac, Gibbs, Separable
from spigot.polytopes.structures import elementary
from spigot.polytopes.structures.budget import Budget, BudgetRule
from spigot.polytopes.structures.clipping import Clipping, Largest
from spigot.polytopes.structures.index_sets import decode_sets, encode_sets

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Hypercube", "Subset"]


class _Box(Polytope, abstract=True):
    """What subsets share: parts in [0, 1], sizes that count parts, labels that list them."""

    d: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (self.d,)

    @property
    def budget(self) -> Budget | None:
        """How many parts."""
        raise NotImplementedError

    @property
    def most(self) -> int:
        """The most parts a subset has."""
        budget = self.budget
        return self.d if budget is None else budget.total

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.d).double(), torch.ones(self.d).double()

    @property
    def length_range(self) -> tuple[int, int]:
        """As many as a subset needs, to d."""
        budget = self.budget
        return (0 if budget is None or budget.at_most else budget.total), self.d

    def padding(self, lengths: Tensor) -> Tensor:
        """The first `lengths` parts, which may be none."""
        return torch.arange(self.d, device=lengths.device) < lengths[..., None]

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 vectors `(*batch, d)` of index sets `(*batch, most)`, padded with -1 at their end.

        Raises:
            TypeError: indices that are no whole numbers.
            ValueError: an index out of range or listed twice, or a set of another size.
        """
        index = whole_labels(labels, "part indices")
        batch = index.shape[:-1]
        sizes = None if lengths is None else label_sizes(self, batch, lengths, index.device)
        vertices = encode_sets(index, self.d, sizes)
        size = vertices.sum(-1)
        low = self.length_range[0]
        count = f"{self.most}" if low == self.most else f"{low} to {self.most}"
        wrong = (size > self.most) | (size < low)
        must = f"must be sets of {count} distinct parts of {self}"
        refuse_labels(must, wrong, index, batch)
        return vertices

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Index sets `(*batch, most)`, ascending, padded with -1 at their end."""
        return decode_sets(self, vertices, self.most)


@dataclass(frozen=True)
class Hypercube(_Box):
    """{0 <= y <= 1}: every subset of d parts. Labels are index sets padded with -1.

    Parts: `(d,)`. Labels: `(*batch, d)`, ascending.

    Args:
        d: how many parts, at least 1.

    Raises:
        TypeError: d is no whole number.
        ValueError: d < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Hypercube
        >>> Hypercube(3).maximize(torch.tensor([0.5, -1.0, 0.2]))
        tensor([1., 0., 1.])
        >>> Hypercube(3).decode(torch.tensor([1.0, 0.0, 1.0]))
        tensor([ 0,  2, -1])
    """

    d: int

    def __post_init__(self) -> None:
        whole_numbers(self, d=self.d)
        if self.d < 1:
            raise ValueError(f"Hypercube(d={self.d}): d must be at least 1.")

    @property
    def budget(self) -> None:
        """None: any number of parts."""
        return

    def at(self, length: int) -> Hypercube:
        """The first `length` parts."""
        return Hypercube(length)

    def argmax(self, scores: Tensor) -> Tensor:
        """The parts of positive score."""
        return (scores > 0).to(scores)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The box."""
        return [y >= 0, y <= 1]


@dataclass(frozen=True)
class Subset(_Box):
    """{0 <= y <= 1 : sum y = k}: the subsets of k parts; with `at_most`, of k parts or fewer.

    Parts: `(d,)`. Labels are index sets `(*batch, k)`, ascending, padded with -1.

    Args:
        d: how many parts there are, at least 1.
        k: how many are chosen, 0 to d.
        at_most: whether fewer will do.

    Raises:
        TypeError: d or k is no whole number.
        ValueError: d < 1, or k not in 0..d.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Subset
        >>> scores = torch.tensor([0.3, 1.0, -0.2, 0.1])
        >>> Subset(4, 2).maximize(scores)
        tensor([1., 1., 0., 0.])
        >>> Subset(4, 2).project(scores)
        tensor([0.5667, 1.0000, 0.0667, 0.3667])
        >>> Subset(4, 3, at_most=True).decode(Subset(4, 3, at_most=True).maximize(scores - 0.2))
        tensor([ 0,  1, -1])

    References:
        Gibbs: Ahmed, Zeng, Niepert and Van den Broeck, "SIMPLE" (ICLR 2023), section 3.
        FermiDirac: Amos, Koltun and Kolter, "The limited multi-label projection layer" (2019).
    """

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"k": ()}

    d: int
    k: int
    at_most: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, d=self.d, k=self.k)
        if self.d < 1:
            raise ValueError(f"Subset(d={self.d}): d must be at least 1.")
        if not 0 <= self.k <= self.d:
            raise ValueError(f"Subset(d={self.d}, k={self.k}): k must lie in 0..{self.d}.")

    @property
    def budget(self) -> Budget:
        """K parts."""
        return Budget(self.k, self.at_most)

    def at(self, length: int) -> Subset:
        """The first `length` parts."""
        return replace(self, d=length, k=min(self.k, length) if self.at_most else self.k)

    def argmax(self, scores: Tensor) -> Tensor:
        """The k largest parts, the first ones at ties; with `at_most`, the positive ones of them."""
        chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        best = torch.zeros_like(scores).scatter_(-1, chosen, 1.0)
        return best * (scores > 0) if self.at_most else best

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The box and the budget."""
        cp = library("cvxpy")

        total = cp.sum(y)
        return [y >= 0, y <= 1, total <= self.k if self.at_most else total == self.k]


def _masked(problem: Problem) -> Tensor:  # (n, d), -inf where excluded
    keep = problem.mask
    if keep is None:
        return problem.scores
    least = problem.polytope.length_range[0]
    _check_parts(problem, torch.full((problem.size,), least, device=keep.device))
    return problem.scores.masked_fill(~keep, -torch.inf)


def _check_parts(problem: Problem, least: Tensor) -> None:
    """Raises NoStructure where the masks leave fewer parts than `least` `(n,)`."""
    keep = problem.mask
    if keep is None:
        return
    left = keep.sum(1)
    short = left < least
    if bool(short.any()):
        rows = rows_where(short)
        raise NoStructure(
            f"keep leaves {int(left[rows[0]])} part(s) of {problem.polytope}, which needs "
            f"{int(least[rows[0]])}, in {problem.describe(rows)}."
        )


@rule(_Box, None)
class LargestParts(Road):
    """The largest parts."""

    name = "largest parts"
    cost = "O(d log d); O(d) for Hypercube"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """0/1 vectors."""
        value = problem.polytope.argmax(_masked(problem))
        return Solution.closed_form(value, (problem.scores * value).sum(-1))


@rule(_Box, Separable)
class BoxBudget(BudgetRule):
    """One multiplier."""

    def solve(self, problem: Problem) -> Solution:
        """As for every budget, once each instance has parts enough."""
        _masked(problem)
        return super().solve(problem)


@rule(Subset, None)
class LargestK(Largest):
    """The k largest parts, in compiled loops."""

    accelerated = LargestParts

    def totals(self, problem: Problem) -> Tensor:
        """Each instance's k."""
        return _totals(problem)


@rule(Subset, Euclidean)
class ClippedSubset(Clipping):
    """One multiplier, in compiled loops."""

    accelerated = BoxBudget

    def totals(self, problem: Problem) -> Tensor:
        """Each instance's k."""
        return _totals(problem)


def _totals(problem: Problem) -> Tensor:  # (n,)
    """Each instance's k, once it has parts enough.

    Raises:
        TypeError, ValueError: a k of its own that is no number of parts.
        NoStructure: the masks leave fewer than k parts.
    """
    d = problem.scores.shape[1]
    if "k" not in problem.params:
        own = torch.full((problem.size,), 0 if _subset(problem).at_most else _subset(problem).total)
        _check_parts(problem, own)
        return torch.full_like(own, _subset(problem).total)
    totals = problem.params["k"]
    if totals.is_floating_point() or totals.dtype == torch.bool:
        raise TypeError(f"Subset: k must be a whole number, got dtype {totals.dtype}.")
    wrong = (totals < 0) | (totals > d)
    if bool(wrong.any()):
        raise ValueError(
            f"Subset(d={d}, k={int(totals[wrong][0])}): k must lie in 0..{d}, in "
            f"{problem.describe(rows_where(wrong))}."
        )
    least = torch.zeros_like(totals) if _subset(problem).at_most else totals
    _check_parts(problem, least)
    return totals.to(torch.int64)


@rule(Hypercube, Gibbs, FermiDirac)
class Sigmoid(Road):
    """Parts of the hypercube are independent: Gibbs and FermiDirac are the same."""

    name = "sigmoid"
    cost = "O(d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """1 / (1 + exp(-s))."""
        scores = _masked(problem)
        gradient = None if isinstance(problem.regularizer, Gibbs) else scores
        objective = torch.nn.functional.softplus(scores).sum(-1)
        return Solution.closed_form(scores.sigmoid(), objective, gradient)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """p (1 - p) grad."""
        return solution.value * (1 - solution.value) * grad

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """p (1 - p) (1 - 2 p) u v."""
        return self.vjp(problem, solution, (1 - 2 * solution.value) * u * v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent coins."""
        chance = _masked(problem).sigmoid()
        drawn = torch.rand(
            count, *chance.shape, generator=generator, dtype=chance.dtype, device=chance.device
        )
        return (drawn < chance).to(chance)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By the dynamic programme over counts."""
        budget = Budget(problem.scores.shape[1], at_most=True)
        return elementary.best(problem, _masked(problem), budget, k)


@rule(Subset, Gibbs)
class ElementarySymmetric(Road):
    """Marginals by elementary symmetric polynomials of exp(s), in log space.

    In float64 throughout: at peaked scores the logarithms differ by less than float32 resolves.
    """

    name = "elementary symmetric polynomials"
    cost = "O(d k)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """The gradient of the log-partition."""
        masked = _masked(problem)
        with torch.inference_mode(False), torch.enable_grad():
            scores = masked.detach().to(torch.float64, copy=True).requires_grad_()
            total = elementary.log_partition(scores, _subset(problem))
            (marginals,) = torch.autograd.grad(total.sum(), scores)
        return Solution.closed_form(marginals, total.detach())

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Covariance times grad: the derivative of <marginals, grad>."""
        return self._derived(problem, grad)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The second derivative of <marginals, u>, along v."""
        return self._derived(problem, u, v)

    def _derived(self, problem: Problem, grad: Tensor, *along: Tensor) -> Tensor:
        def mean(scores: Tensor) -> Tensor:
            return elementary.mean_along(scores, grad.double(), _subset(problem))

        return derivative(mean, _masked(problem), *along).to(grad)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Parts one by one, from the last, each given how many are still to choose."""
        scores = _masked(problem).double()
        return elementary.sample(scores, _subset(problem), count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By the same dynamic programme over sorted lists."""
        return elementary.best(problem, _masked(problem), _subset(problem), k)


def _subset(problem: Problem) -> Budget:
    assert isinstance(problem.polytope, Subset)
    return problem.polytope.budget
