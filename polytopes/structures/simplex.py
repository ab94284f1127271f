"""The simplex: one part of d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.arrays import library, rows_where
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import NoStructure, whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs, Separable, Shannon, Tsallis
from spigot.polytopes.structures.budget import Budget, BudgetRule
from spigot.polytopes.structures.sparse import Sparse

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Simplex"]


@dataclass(frozen=True)
class Simplex(Polytope):
    """{y >= 0 : sum y = 1}, the choice of one part of d. Labels are class indices.

    Parts: `(d,)`. Labels: `(*batch,)`, integers.

    Args:
        d: how many parts, at least 1.

    Raises:
        TypeError: d is no whole number.
        ValueError: d < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> simplex = Simplex(3)
        >>> simplex.maximize(torch.tensor([0.1, 0.9, 0.3]))
        tensor([0., 1., 0.])
        >>> simplex.project(torch.tensor([-0.5, 0.9, 0.3]))
        tensor([0.0000, 0.8000, 0.2000])
        >>> simplex.decode(simplex.encode(torch.tensor([2, 0])))
        tensor([2, 0])

    References:
        Martins and Astudillo, "From softmax to sparsemax" (ICML 2016), algorithm 1.
    """

    d: int

    def __post_init__(self) -> None:
        whole_numbers(self, d=self.d)
        if self.d < 1:
            raise ValueError(f"Simplex(d={self.d}): d must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (self.d,)

    @property
    def budget(self) -> Budget:
        """One part exactly."""
        return Budget(1)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.d).double(), torch.ones(self.d).double()

    def argmax(self, scores: Tensor) -> Tensor:
        """The first largest part."""
        return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Nonnegative parts that sum to 1."""
        cp = library("cvxpy")

        return [y >= 0, cp.sum(y) == 1]

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to d."""
        return 1, self.d

    def at(self, length: int) -> Simplex:
        """The first `length` parts."""
        return Simplex(length)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """One-hot vectors `(*batch, d)` of class indices `(*batch,)`.

        Raises:
            TypeError: labels are no integers.
            ValueError: an index out of range.
        """
        index = whole_labels(labels, "class indices")
        sizes = label_sizes(self, index.shape, lengths, index.device)
        wrong = (index < 0) | (index >= sizes)
        must = f"must lie in 0..{self.d - 1} (and below their length)"
        refuse_labels(must, wrong, index, index.shape, lengths)
        return torch.nn.functional.one_hot(index.long(), self.d).to(torch.get_default_dtype())

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Class indices `(*batch,)`."""
        check_event(self, vertices, "vertices")
        return vertices.argmax(-1)


def _masked(problem: Problem) -> Tensor:  # (n, d), -inf where excluded
    keep = problem.mask
    if keep is None:
        return problem.scores
    empty = ~keep.any(1)
    if bool(empty.any()):
        rows = rows_where(empty)
        raise NoStructure(f"keep leaves no part of {problem.polytope} in {problem.describe(rows)}.")
    return problem.scores.masked_fill(~keep, -torch.inf)


@rule(Simplex, None)
class SimplexArgmax(Road):
    """The largest part."""

    name = "argmax"
    cost = "O(d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """One-hot vectors."""
        scores = _masked(problem)
        value = torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
        return Solution.closed_form(value, scores.amax(-1))


@rule(Simplex, Separable)
class SimplexBudget(BudgetRule):
    """One multiplier."""

    def solve(self, problem: Problem) -> Solution:
        """As for every budget, once each instance has a part left."""
        _masked(problem)
        return super().solve(problem)


@rule(Simplex, Euclidean, Tsallis)
class Entmax(Sparse):
    """One multiplier, in compiled loops."""

    accelerated = SimplexBudget

    def solve(self, problem: Problem) -> Solution:
        """Once each instance has a part left."""
        if problem.keep is not None:
            _masked(problem)
        return super().solve(problem)


@rule(Simplex, Gibbs, Shannon)
class Softmax(Road):
    """Gibbs and Shannon are the same on the simplex."""

    name = "softmax"
    cost = "O(d)"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """exp(s - logsumexp s)."""
        scores = _masked(problem)
        logits = scores.log_softmax(-1)
        gradient = None if isinstance(problem.regularizer, Gibbs) else 1 + logits
        return Solution.closed_form(logits.exp(), scores.logsumexp(-1), gradient)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """(diag p - p p') grad."""
        pulled = solution.value * grad
        return pulled - solution.value * pulled.sum(-1, keepdim=True)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The Jacobian times the product of u and v, each less its mean."""
        u, v = (g - (solution.value * g).sum(-1, keepdim=True) for g in (u, v))
        return self.vjp(problem, solution, u * v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent categorical draws."""
        probabilities = _masked(problem).softmax(-1)
        drawn = torch.multinomial(probabilities, count, replacement=True, generator=generator)
        one_hot = torch.zeros(count, *probabilities.shape).to(probabilities)
        return one_hot.scatter_(-1, drawn.t()[..., None], 1.0)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The k largest parts."""
        scores = _masked(problem)
        problem.check_enough(k, scores.isfinite().sum(1))
        order = scores.sort(dim=-1, descending=True, stable=True).indices[:, :k]
        one_hot = torch.zeros(k, *scores.shape).to(scores)
        return one_hot.scatter_(-1, order.t()[..., None], 1.0)
