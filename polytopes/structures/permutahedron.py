"""The permutahedron: the ways to hand out given weights, that is rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, distinct, library, numbers, rows_where, tensor
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, rule
from spigot.polytopes.errors import unsupported
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Euclidean, Gibbs, Shannon
from spigot.polytopes.structures import arrangements, assignments, isotonic

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Permutahedron"]


@dataclass(frozen=True, eq=False)
class Permutahedron(Polytope):
    """P(w) = conv{w_pi : pi a permutation of d items}: every item gets one of the d weights.

    Parts: `(d,)`, the items. Labels are rankings `(*batch, d)`: item j has the weight of rank
    `labels[j]`, counted from 0 at the largest; -1 in padding. Where weights repeat, `decode` gives the
    smaller rank to the smaller j.

    The weights are a parameter, with gradient: `params={"w": (*batch, d)}` gives each instance its
    own. An instance of `lengths` m hands out w[:m]. `keep=False` leaves an item to take a zero, of
    which w >= 0 must hold enough.

    Args:
        w: the weights `(d,)`, in any order, repeated ones allowed.

    Raises:
        TypeError: w is no list of numbers.
        ValueError: w is empty or not finite.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Permutahedron
        >>> podium = Permutahedron([3.0, 2.0, 1.0, 0.0])
        >>> scores = torch.tensor([0.1, 2.0, -1.0, 1.9])
        >>> podium.maximize(scores)
        tensor([1., 3., 0., 2.])
        >>> podium.project(scores)
        tensor([1.0000, 2.5500, 0.0000, 2.4500])
        >>> podium.decode(podium.maximize(scores))
        tensor([2, 0, 3, 1])

    References:
        Blondel, Teboul, Berthet and Djolonga, "Fast differentiable sorting and ranking" (ICML 2020).
    """

    w: Tensor | Sequence[float]

    def __post_init__(self) -> None:
        try:
            weights = torch.as_tensor(self.w)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"Permutahedron: w must be numbers, got {self.w!r}.") from error
        if weights.is_complex() or weights.dtype == torch.bool:
            raise TypeError(f"Permutahedron: w must be real numbers, got dtype {weights.dtype}.")
        if weights.dim() != 1 or not len(weights):
            raise ValueError(
                f"Permutahedron needs weights of shape (d,) with d >= 1, got {tuple(weights.shape)}."
            )
        if not bool(torch.isfinite(weights).all()):
            bad = rows_where(~torch.isfinite(weights))[0]
            raise ValueError(
                f"Permutahedron: w must be finite, got {weights[bad].item()} at position {bad}."
            )
        object.__setattr__(self, "w", weights.detach().double().cpu())

    @classmethod
    def of_ranks(cls, d: int) -> Permutahedron:
        """The weights 1 to d: vertices are rankings, d for the item of largest score.

        Raises:
            ValueError: d < 1.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Permutahedron
            >>> Permutahedron.of_ranks(3).maximize(torch.tensor([0.5, 2.0, 1.0]))
            tensor([1., 3., 2.])
        """
        return cls(torch.arange(1, d + 1))

    def __repr__(self) -> str:
        shown = ", ".join(f"{weight:g}" for weight in numbers(self.weights[:8]))
        return f"Permutahedron([{shown}{', ...' if len(self.weights) > 8 else ''}])"

    @property
    def weights(self) -> Tensor:  # (d,), float64
        """The weights w as a tensor."""
        assert isinstance(self.w, Tensor)
        return self.w

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weights, `(d,)`."""
        return {"w": self.event_shape}

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(d,)`."""
        return (len(self.weights),)

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The smallest and the largest weight."""
        every = torch.ones_like(self.weights)
        return every * self.weights.min(), every * self.weights.max()

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to d."""
        return 1, len(self.weights)

    def at(self, length: int) -> Permutahedron:
        """The first `length` weights."""
        return replace(self, w=self.weights[:length])

    @property
    def sorted_weights(self) -> isotonic.Sorted:
        """The weights in order, sorted once."""
        if "sorted weights" not in self.scratch:
            self.scratch["sorted weights"] = isotonic.sort(self.weights[None])
        return self.scratch["sorted weights"]

    def argmax(self, scores: Tensor) -> Tensor:
        """The largest weight to the largest score, and so on; the first of equal scores first."""
        return isotonic.place(isotonic.sort(scores), self.sorted_weights)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Y = P w with P doubly stochastic."""
        cp = library("cvxpy")
        d = len(self.weights)
        plan = cp.Variable((d, d))
        sums = [cp.sum(plan, axis=0) == 1, cp.sum(plan, axis=1) == 1]
        return [plan >= 0, *sums, y == plan @ self.weights.numpy()]

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """The weights `(*batch, d)` of these ranks `(*batch, d)`.

        Raises:
            TypeError: labels are no integers.
            ValueError: another shape, or ranks that are not 0, 1, ... once each.
        """
        ranks = whole_labels(labels, "ranks")
        if ranks.shape[-1:] != self.event_shape:
            raise ValueError(
                f"labels must be ranks of shape (*batch, {len(self.weights)}), got {tuple(ranks.shape)}."
            )
        batch = ranks.shape[:-1]
        sizes = label_sizes(self, batch, lengths, torch.device("cpu"))
        inside = torch.arange(len(self.weights)) < sizes[..., None]
        found = ranks.cpu().long()
        outside = inside & ((found < 0) | (found >= sizes[..., None]))
        must = f"must hold each rank 0, 1, ... of {self} (up to its length) once"
        refuse_labels(must, outside, found, batch, lengths)
        slots = torch.where(inside, found, len(self.weights))
        counts = torch.zeros(*batch, len(self.weights) + 1).scatter_add(-1, slots, inside.float())
        refuse_labels(must, inside & (counts.gather(-1, slots) > 1), found, batch, lengths)
        rows = self.weights.expand(inside.shape).masked_fill(~inside, -torch.inf)
        ordered = rows.sort(dim=-1, descending=True).values
        chosen = ordered.gather(-1, torch.where(inside, found, 0))
        return torch.where(inside, chosen, 0.0).to(ranks.device, torch.get_default_dtype())

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Each item's rank, 0 for the largest; -1 in padding."""
        check_event(self, vertices, "vertices")
        sizes = label_sizes(self, vertices.shape[:-1], lengths, vertices.device)
        inside = torch.arange(len(self.weights), device=vertices.device) < sizes[..., None]
        ordered = vertices.masked_fill(~inside, -torch.inf).sort(dim=-1, descending=True, stable=True)
        return torch.where(inside, ordered.indices.argsort(-1), -1)


READ = frozenset({"lengths", "params"})


def _permutahedron(problem: Problem) -> Permutahedron:
    assert isinstance(problem.polytope, Permutahedron)
    return problem.polytope


def _sorted(problem: Problem) -> tuple[isotonic.Sorted, isotonic.Sorted]:
    """The kept items by score, and the weights.

    Raises:
        UnsupportedProblem: an instance's own weights are negative where they must not be.
        NoStructure: `keep` excludes more items than there are zeros.
    """
    items, weights = _items(problem, problem.scores), _weights(problem)
    _check_signs(problem, weights)
    _check_zeros(problem, items, weights)
    return items, weights


def _items(problem: Problem, rows: Tensor) -> isotonic.Sorted:
    return isotonic.sort(rows, problem.lengths, problem.keep)


def _weights(problem: Problem, order: tuple[np.ndarray, ...] = ()) -> isotonic.Sorted:
    """One row where they are the same for all; in this order where it is known."""
    if problem.lengths is None and not problem.params:
        return _permutahedron(problem).sorted_weights
    rows = problem.param("w").detach()
    return isotonic.Sorted(rows, *order) if order else isotonic.sort(rows, problem.lengths)


def _listed(items: isotonic.Sorted, weights: isotonic.Sorted) -> tuple[np.ndarray, ...]:
    """Both orders, for the derivative."""
    return items.index, items.counts, weights.index, weights.counts


def _check_signs(problem: Problem, weights: isotonic.Sorted) -> None:
    """The frame has looked at the polytope's own weights only."""
    if not problem.params or (problem.keep is None and not isinstance(problem.regularizer, Shannon)):
        return
    sizes = tensor(weights.counts).clamp_min(1)[:, None]
    least = tensor(weights.values).gather(1, sizes - 1)[:, 0]
    negative = (least < 0) & (tensor(weights.counts) > 0)
    if bool(negative.any()):
        rows = rows_where(negative)
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"params['w'] holds {least[rows[0]].item():g} in {problem.describe(rows)}; keep and "
            "Shannon() need weights that are never negative.",
            "Use Euclidean() without keep, or other weights.",
        )


def _check_zeros(problem: Problem, items: isotonic.Sorted, weights: isotonic.Sorted) -> None:
    if problem.keep is None:
        return
    kept, values = tensor(items.counts), tensor(weights.values)
    every = tensor(weights.counts).expand(kept.shape)
    following = kept.clamp_max(values.shape[1] - 1)[:, None]
    next_weight = values.expand(len(kept), -1).gather(1, following)[:, 0]
    wrong = (kept < every) & (next_weight > 0)
    if bool(wrong.any()):
        rows = rows_where(wrong)
        raise problem.no_structure(rows, ": w has fewer zeros than items are excluded")


@rule(Permutahedron, None)
class Sort(Road):
    """The items by score."""

    name = "sorting"
    cost = "O(d log d)"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = READ

    def solve(self, problem: Problem) -> Solution:
        """The largest weight to the largest score, and so on."""
        value = isotonic.place(*_sorted(problem))
        return Solution.closed_form(value, (problem.scores * value).sum(1))


class Pooling(Road):
    """Projections in blocks of sorted items."""

    cost = "O(d log d)"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = READ

    def energies(self, problem: Problem) -> Tensor | None:
        """The logarithms of a block's weights in its mean; None for the plain mean."""
        raise NotImplementedError

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """Each weight moves its block's mean."""
        weights, mean = self.pulled(problem, solution, grad)[1:]
        return {"w": weights.scattered(mean)}

    def pulled(
        self, problem: Problem, solution: Solution, grad: Tensor
    ) -> tuple[Tensor, isotonic.Sorted, Tensor]:
        """grad less its mean over each block, the weights, and by rank that mean."""
        assert solution.duals is not None and solution.listed is not None
        weights = _weights(problem, solution.listed[2:])
        duals = isotonic.Sorted(solution.duals, *solution.listed[:2])  # they fall as the scores do
        centred, mean = isotonic.pull(duals, weights, grad, self.energies(problem))
        return centred, weights, mean


@rule(Permutahedron, Euclidean)
class IsotonicRegression(Pooling):
    """y = s - v, v the isotonic regression of s - w, both sorted.

    The derivative by s is the centring of each block (zero where its weights are equal: the face is
    a point), by w the mean over it; blocks of equal v count as one, the exposed face.
    """

    name = "isotonic regression"

    def energies(self, problem: Problem) -> Tensor | None:
        """The plain mean."""
        return None

    def solve(self, problem: Problem) -> Solution:
        """Pool adjacent violators."""
        items, weights = _sorted(problem)
        value, duals, objective = isotonic.project(items, weights)
        known: dict[str, Any] = {"duals": duals, "listed": _listed(items, weights)}
        return Solution.closed_form(value, objective, value, owned=True, **known)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Each block centred."""
        return self.pulled(problem, solution, grad)[0]

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """V, each weight at its rank."""
        assert solution.duals is not None
        return self.vjp_params(problem, solution, solution.duals)


@rule(Permutahedron, Shannon)
class EntropicIsotonic(Pooling):
    """y = exp(s - v), in blocks of v = log sum exp s - log sum w; weights may be zero.

    On a block y is a softmax times the block's weight, and so are the derivatives.
    """

    name = "entropic isotonic regression"

    def energies(self, problem: Problem) -> Tensor | None:
        """The softmax."""
        return problem.scores

    def solve(self, problem: Problem) -> Solution:
        """Pool adjacent violators, in logarithms."""
        items, weights = _sorted(problem)
        logs, duals = isotonic.project_logs(items, tensor(weights.values).clamp_min(0).log().numpy())
        value = logs.exp()
        weighted = torch.where(value > 0, value * (problem.scores - logs), 0.0)
        known: dict[str, Any] = {"duals": duals, "listed": _listed(items, weights)}
        return Solution.closed_form(value, weighted.sum(1), 1 + logs, **known)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """y (grad - its mean over the block)."""
        return solution.value * self.pulled(problem, solution, grad)[0]

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """V - 1 = s - grad Omega(y), each weight at its rank."""
        assert solution.duals is not None
        return self.vjp_params(problem, solution, solution.duals - 1)


@rule(Permutahedron, Gibbs)
class SumOverSets(Road):
    """Every arrangement summed, by a programme over sets of items: for small d alone.

    Equal weights make equal vertices, which count once.
    """

    name = "dynamic programme over sets of items"
    cost = f"O(d 2^d), d <= {arrangements.MOST}"
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    native: ClassVar[frozenset[str]] = READ

    def solve(self, problem: Problem) -> Solution:
        """The mean weight of each item."""
        items, weights = _small(problem)
        found = arrangements.chances(items, weights)
        value = _along(found.chance, weights) / _along(found.chance).clamp_min(0.5)
        return Solution.closed_form(value, found.total)

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """The covariance times grad: the derivative of the mean along it."""
        items, weights = _small(problem)
        return _along(arrangements.chances(items, weights, grad).slope, weights)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """The third derivative of the log-partition by torch: items are matched with weights."""
        items, weights = _small(problem)
        counts, index = tensor(items.counts), tensor(items.index)
        values = tensor(weights.values).expand(problem.scores.shape)
        curved = torch.zeros(problem.scores.shape, dtype=torch.float64)
        for count in numbers(distinct(counts)[0]):
            rows = (counts == count).nonzero()
            chosen, by_rank = index[rows[:, 0], :count], values[rows[:, 0], None, :count]
            along = (
                part.double()[rows, chosen][:, :, None] * by_rank for part in (problem.scores, u, v)
            )
            scores, *directions = along
            found = assignments.curved(problem, scores, True, *directions)
            curved[rows, chosen] = (found * by_rank).sum(2)
        return curved

    def vjp_params(self, problem: Problem, solution: Solution, grad: Tensor) -> dict[str, Tensor]:
        """The derivative of sum_i s_i chance(i has w_k), which is the log-partition's by w_k."""
        items, weights = _small(problem)
        found = arrangements.chances(items, weights, grad)
        centred = problem.scores.double() - problem.scores.double().mean(1, keepdim=True)
        moved = torch.einsum("ni,nik->nk", grad.double(), found.chance)
        moved = moved + torch.einsum("ni,nik->nk", centred, found.slope)
        return {"w": weights.scattered(_widened(moved, problem))}

    def envelope(self, problem: Problem, solution: Solution) -> dict[str, Tensor]:
        """The mean score of each weight's item."""
        items, weights = _small(problem)
        chance = arrangements.chances(items, weights).chance
        mean = torch.einsum("ni,nik->nk", problem.scores.double(), chance)
        return {"w": weights.scattered(_widened(mean, problem))}

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Who has the smallest weight, then the next, each given the sets before."""
        return arrangements.sample(*_small(problem), count, generator)

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """By parts of the arrangements, each with its best one; for any d."""
        items, weights = _sorted(problem)
        best = torch.zeros(k, *problem.scores.shape, dtype=torch.float64)
        values = np.broadcast_to(weights.values, tuple(problem.scores.shape))
        counts = torch.zeros(problem.size, dtype=torch.int64)
        for i, row in enumerate(contiguous(problem.scores.double())):
            chosen = np.sort(items.index[i, : items.counts[i]])
            found = arrangements.k_best(row[chosen], values[i, : len(chosen)], k)
            counts[i] = len(found)
            best[: len(found), i, tensor(chosen)] = tensor(np.stack(found))
        problem.check_enough(k, counts)
        return best


def _small(problem: Problem) -> tuple[isotonic.Sorted, isotonic.Sorted]:
    """As sorted, where they are few enough to sum over their sets.

    Raises:
        UnsupportedProblem: they are not.
    """
    items, weights = _sorted(problem)
    most = int(items.counts.max(initial=0))
    if most > arrangements.MOST:
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            f"it sums over all sets of items, and {most} of them are more than {arrangements.MOST}.",
            "Use Euclidean() or Shannon(), or spigot.layers.Argmax with a perturbed pull-back.",
        )
    return items, weights


def _along(chance: Tensor, weights: isotonic.Sorted | None = None) -> Tensor:  # (n, d, m) -> (n, d)
    """The sum over ranks, each times its weight."""
    if weights is None:
        return chance.sum(2)
    return (chance * tensor(weights.values)[:, None, : chance.shape[2]]).sum(2)


def _widened(by_rank: Tensor, problem: Problem) -> Tensor:  # (n, m) -> (n, d)
    short = problem.scores.shape[1] - by_rank.shape[1]
    return torch.nn.functional.pad(by_rank, (0, short))
