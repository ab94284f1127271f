"""Dependency trees over n words: `Arborescence`, its labels and its facts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.arrays import library
from spigot.polytopes.base import Polytope
from spigot.polytopes.curvature import derivative
from spigot.polytopes.dispatch import SIZED, Road, rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs
from spigot.polytopes.structures import tree_projection, tree_sums, tree_torch
from spigot.polytopes.structures.tree_sums import Arcs, arcs_of

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Arborescence"]

ROOT, PADDING = -1, -2


@dataclass(frozen=True)
class Arborescence(Polytope):
    """{dependency trees over n words, projective or not}: each word has one head, a word or the root.

    Parts: `(n, n)`, arcs `[head, dependent]`; the diagonal holds the root's arcs. M is cut out of
    the n simplices of a word's heads by: for every set S of words, the arcs that enter S sum to at
    least 1. With `single_root` the diagonal sums to 1.

    Labels are head indices `(*batch, n)`: -1 for the root, and -2 for padding after `lengths` words.

    Args:
        n: how many words, at least 1.
        single_root: whether the root has only one dependent.

    Raises:
        TypeError: n is no whole number.
        ValueError: n < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Arborescence
        >>> scores = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
        >>> tree = Arborescence(3)
        >>> tree.decode(tree.maximize(scores))
        tensor([-1,  0,  0])
        >>> tree.project(scores)
        tensor([[0.5000, 0.8333, 0.6667],
                [0.1667, 0.1667, 0.0000],
                [0.3333, 0.0000, 0.3333]])
        >>> tree.log_partition(torch.zeros(3, 3)).exp().round()  # (n + 1)^(n - 1) trees
        tensor(16.)

    References:
        McDonald, Pereira, Ribarov and Hajic, "Non-projective dependency parsing using spanning tree
        algorithms" (EMNLP 2005). Edmonds, "Optimum branchings" (1967) for the inequalities.
        Koo, Globerson, Carreras and Collins, "Structured prediction models via the matrix-tree
        theorem" (EMNLP 2007). Niculae, Martins, Blondel and Cardie, "SparseMAP" (ICML 2018).
    """

    n: int
    single_root: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, n=self.n)
        if self.n < 1:
            raise ValueError(f"Arborescence(n={self.n}): n must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, n)`, [head, dependent]."""
        return (self.n, self.n)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """0 and 1."""
        return torch.zeros(self.event_shape).double(), torch.ones(self.event_shape).double()

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to n words."""
        return 1, self.n

    def at(self, length: int) -> Arborescence:
        """The first `length` words."""
        return replace(self, n=length)

    def padding(self, lengths: Tensor) -> Tensor:
        """The arcs `(*batch, n, n)` among the first `lengths` words."""
        inside = torch.arange(self.n, device=lengths.device) < lengths[..., None]
        return inside[..., :, None] & inside[..., None, :]

    def argmax(self, scores: Tensor) -> Tensor:
        """The best tree; `maximize` takes masks and lengths too."""
        return self.maximize(scores)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """One unit of flow from the root to each word, over its own copy of the arcs (Wong 1984).

        A word's unit arrives over its own arcs y, and uses each arc into another word up to that arc's
        y: then every set that holds the word is entered by arcs that sum to at least 1, which is
        exactly M. O(n^3) auxiliary variables. With a single root all of its arcs are used up.
        """
        cp = library("cvxpy")

        rows: list[Any] = [y >= 0, cp.sum(y, axis=0) == 1]
        rows += [cp.trace(y) == 1] if self.single_root else []
        size = self.n - 1
        between = 1.0 - torch.eye(size).numpy()
        for word in range(self.n) if size else ():
            others = [other for other in range(self.n) if other != word]
            arcs = y[others, :][:, others]
            flow = cp.Variable((size, size), nonneg=True)
            passed = cp.multiply(between, flow)
            started = cp.diag(arcs if self.single_root else flow)
            arriving = started + cp.sum(passed, axis=0)
            rows += [flow <= arcs, arriving - cp.sum(passed, axis=1) == y[others, word]]
        return rows

    @staticmethod
    def from_biaffine(scores: Tensor) -> Tensor:
        """Scores `(*batch, n + 1, n + 1)` with the root at index 0 as ours, `(*batch, n, n)`.

        Both are [head, dependent]. The root's row becomes the diagonal, its column and the old diagonal
        are left out; differentiable.

        Raises:
            ValueError: the last two dimensions are no square of at least 2 x 2.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Arborescence
            >>> Arborescence.from_biaffine(torch.arange(9.0).reshape(3, 3))
            tensor([[1., 5.],
                    [7., 2.]])
        """
        if scores.dim() < 2 or scores.shape[-1] != scores.shape[-2] or scores.shape[-1] < 2:
            raise ValueError(
                f"from_biaffine needs scores (*batch, n + 1, n + 1), got {tuple(scores.shape)}."
            )
        diagonal = torch.eye(scores.shape[-1] - 1, dtype=torch.bool, device=scores.device)
        return torch.where(diagonal, scores[..., :1, 1:], scores[..., 1:, 1:])

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Trees `(*batch, n, n)` of head indices `(*batch, n)`: -1 for the root.

        With `lengths` `(*batch,)` entries beyond them are not looked at.

        Raises:
            TypeError: labels are no integers.
            ValueError: a head out of range, a word that is its own head, a cycle, no root, or more
                than one with `single_root`; named by instance.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Arborescence
            >>> Arborescence(3).encode([-1, 2, 0])
            tensor([[1., 0., 1.],
                    [0., 0., 0.],
                    [0., 1., 0.]])
        """
        heads = whole_labels(labels, "head indices")
        if heads.dim() < 1 or heads.shape[-1] != self.n:
            raise ValueError(
                f"labels of shape {tuple(heads.shape)} do not fit {self}: they are (*batch, {self.n})."
            )
        heads = heads.long()
        sizes = label_sizes(self, heads.shape[:-1], lengths, heads.device)
        inside = _inside(heads, sizes)
        self._check_heads(heads, inside, lengths)
        word = torch.arange(self.n, device=heads.device)
        row = torch.where(heads == ROOT, word, heads)
        row = torch.where(inside, row, 0)
        arcs = torch.zeros(*heads.shape, self.n, device=heads.device)
        arcs.scatter_(-1, row[..., None], inside.to(arcs)[..., None])
        return arcs.mT.contiguous().to(torch.get_default_dtype())

    def _check_heads(self, heads: Tensor, inside: Tensor, lengths: Tensor | None) -> None:
        def trees(must: str, wrong: Tensor) -> None:
            refuse_labels(f"must be dependency trees, {must}", wrong, heads, heads.shape[:-1], lengths)

        word = torch.arange(self.n, device=heads.device)
        size = inside.sum(-1, keepdim=True)
        roots = (heads == ROOT) & inside
        trees("no head outside -1..length - 1", ((heads < ROOT) | (heads >= size)) & inside)
        trees("no word its own head", (heads == word) & inside)
        trees("with a root, whose head is -1", ~roots.any(-1))
        above = torch.where(inside & (heads != ROOT), heads, self.n)  # the root is its own head
        above = torch.nn.functional.pad(above, (0, 1), value=self.n)
        for _ in range(self.n.bit_length()):  # heads of heads: 2, 4, 8, ... steps up
            above = above.gather(-1, above)
        trees("without a cycle", above[..., : self.n] != self.n)
        if self.single_root:
            trees("no more than one root", roots & (roots.long().cumsum(-1) > 1))

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Head indices `(*batch, n)`: -1 for the root, -2 beyond `lengths`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Arborescence
            >>> tree = Arborescence(3)
            >>> tree.decode(tree.encode([-1, 0, 9], torch.tensor(2)), torch.tensor(2))
            tensor([-1,  0, -2])
        """
        check_event(self, vertices, "vertices")
        heads = vertices.argmax(-2)
        word = torch.arange(self.n, device=vertices.device)
        heads = torch.where(heads == word, ROOT, heads)
        used = vertices.amax(-2) > 0.5 if lengths is None else _inside(heads, lengths)
        return torch.where(used, heads, PADDING)


def _inside(heads: Tensor, lengths: Tensor) -> Tensor:  # (*batch, n), bool
    return torch.arange(heads.shape[-1], device=heads.device) < lengths.to(heads.device)[..., None]


def _single_root(problem: Problem) -> bool:
    assert isinstance(problem.polytope, Arborescence)
    return problem.polytope.single_root


def _arcs(problem: Problem, checked: bool = True) -> Arcs:
    return arcs_of(problem, _single_root(problem), checked)


@rule(Arborescence, None)
class BestTree(Road):
    """Tarjan's algorithm; one root arc by ordering weights by the number of root arcs first."""

    name = "Tarjan's dense arborescence"
    cost = "O(n^2)"
    devices = ("cpu",)
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """A tree each."""
        return tree_sums.best(problem, _arcs(problem, checked=False))


@rule(Arborescence, Euclidean)
class CuttingPlanes(Road):
    """Few of the cuts bind: semismooth Newton on their multipliers, minimum cuts to find them."""

    name = "cutting planes, or active set of trees"
    cost = "O(n^2) a step; about 10 steps at N(0, 1) scores, 100 at worst for n = 80"
    devices = ("cpu",)
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """Projections."""
        return tree_projection.project(problem, _arcs(problem))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Through the exposed face."""
        return tree_projection.pull(problem, solution, grad)


class BatchedMatrixTree(Road):
    """The same sums in plain torch, where the scores are; samples and lists on the CPU."""

    name = "matrix-tree theorem in torch"
    cost = "O(n^3), n log n steps one after the other"
    native = SIZED

    def solve(self, problem: Problem) -> Solution:
        """Marginals and log Z."""
        if problem.keep is not None:
            _arcs(problem)  # raises where no tree is left
        return Solution.closed_form(*tree_torch.log_marginals(problem, _single_root(problem)))

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """By torch's own derivatives."""
        return self._derived(problem, grad)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """Likewise."""
        return self._derived(problem, u, v)

    def _derived(self, problem: Problem, grad: Tensor, *along: Tensor) -> Tensor:
        def mean(scores: Tensor) -> Tensor:
            posed = problem.with_scores(scores)
            return tree_torch.log_marginals(posed, _single_root(problem))[0] * grad.double()

        return derivative(mean, problem.scores, *along).to(grad)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Wilson's algorithm."""
        return tree_sums.sample(_arcs(problem), count, generator).to(problem.scores.device)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By splitting the set of trees."""
        return tree_sums.k_best(problem, _arcs(problem), k).to(problem.scores.device)


@rule(Arborescence, Gibbs)
class MatrixTree(Road):
    """The matrix-tree theorem: by an inverse, or by elimination without a subtraction."""

    name = "matrix-tree theorem"
    cost = "O(n^3)"
    devices = ("cpu",)
    native = SIZED
    accelerated = BatchedMatrixTree

    def solve(self, problem: Problem) -> Solution:
        """Marginals and log Z."""
        return Solution.closed_form(*tree_sums.marginals(_arcs(problem)))

    def conjugate(self, problem: Problem) -> Solution:
        """log Z alone, a third of the work."""
        log_z = tree_sums.log_partition(_arcs(problem))
        return Solution.closed_form(log_z.new_empty(len(log_z), 0), log_z)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The Hessian of log Z, which is symmetric, times grad."""
        return tree_sums.derivative(_arcs(problem), grad.to(problem.scores.dtype))

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """By torch's own derivatives."""
        return BatchedMatrixTree().curve(problem, solution, u, v)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Wilson's algorithm."""
        return tree_sums.sample(_arcs(problem), count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By splitting the set of trees."""
        return tree_sums.k_best(problem, _arcs(problem), k)
