"""Products: several structures chosen side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.algebra.blocks import Block, blocks, lacking, shared_facts
from spigot.polytopes.arrays import library
from spigot.polytopes.base import Polytope
from spigot.polytopes.dispatch import Road, choose, rule
from spigot.polytopes.labels import labels_of
from spigot.polytopes.listing import distinct_vertices
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Gibbs, Regularizer, Separable

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Product"]

LISTED = 4096  # vertices up to which the product's are listed


@dataclass(frozen=True, init=False, repr=False)
class Product(Polytope):
    """{(y_1, ..., y_m) : y_i in M_i}: one structure of each factor, their parts in one flat event.

    Parts: `(d,)`, the factors' in C order one after the other. Labels are what `split` gives: a tuple
    of the factors' labels, or a dict by name.

    Args:
        factors: the polytopes, or
        named: the polytopes by name.

    Raises:
        ValueError: there is no factor, or some are named and some not.
        TypeError: a factor is no polytope.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Product, Simplex, Subset
        >>> both = Product(tag=Simplex(2), words=Subset(3, 2))
        >>> y = both.maximize(torch.tensor([0.0, 1.0, 3.0, 1.0, 2.0]))
        >>> both.split(y)
        {'tag': tensor([0., 1.]), 'words': tensor([1., 0., 1.])}
        >>> both.log_partition(torch.zeros(5)).exp()
        tensor(6.)
    """

    factors: tuple[Polytope, ...]
    names: tuple[str, ...]

    def __init__(self, *factors: Polytope, **named: Polytope) -> None:
        if bool(factors) == bool(named):
            given = f"{len(factors)} by position and {', '.join(named)} by name" if factors else "none"
            raise ValueError(
                f"Product takes polytopes, all of them by position or all by name; got {given}."
            )
        chosen = factors or tuple(named.values())
        for factor in chosen:
            if not isinstance(factor, Polytope):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"Product takes polytopes, such as Simplex(3); got {factor!r}.")
        object.__setattr__(self, "factors", chosen)
        object.__setattr__(self, "names", tuple(named))

    def __repr__(self) -> str:
        names = [f"{name}=" for name in self.names] or [""] * len(self.factors)
        return f"Product({', '.join(f'{n}{p}' for n, p in zip(names, self.factors, strict=True))})"

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many parts each factor has."""
        return tuple(torch.Size(factor.event_shape).numel() for factor in self.factors)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(sum of sizes,)`."""
        return (sum(self.sizes),)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Equal factors together."""
        columns = [torch.arange(part.start, part.stop) for part in self._slices]
        return blocks(list(zip(self.factors, columns, strict=True)))

    @property
    def _slices(self) -> list[slice]:
        """Where each factor's parts lie."""
        ends = list(accumulate(self.sizes, initial=0))
        return [slice(first, last) for first, last in pairwise(ends)]

    @property
    def facts(self) -> frozenset[str]:
        """Those that every factor declares; the vertices while they are few."""
        shared = shared_facts(self.factors)
        return shared - {"vertices"} if "vertices" in shared and self._listed > LISTED else shared

    @cached_property
    def _listed(self) -> int:
        count = 1
        for factor in self.factors:
            count *= len(distinct_vertices(factor))
        return count

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The factors'."""
        if "bounds" not in self.scratch:
            lows, highs = zip(*(factor.bounds for factor in self.factors), strict=True)
            self.scratch["bounds"] = (
                torch.cat([low.flatten() for low in lows]),
                torch.cat([high.flatten() for high in highs]),
            )
        return self.scratch["bounds"]

    def split(self, y: Tensor) -> Any:
        """The factors' parts `(*batch, *factor_event)`: a tuple, or a dict if they have names.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Product, Simplex
            >>> Product(Simplex(2), Simplex(1)).split(torch.tensor([1.0, 0.0, 1.0]))
            (tensor([1., 0.]), tensor([1.]))
        """
        batch = check_event(self, y, "y")
        pieces = zip(self._slices, self.factors, strict=True)
        return self._named([y[..., part].reshape(*batch, *p.event_shape) for part, p in pieces])

    def join(self, parts: Sequence[Tensor] | Mapping[str, Tensor]) -> Tensor:
        """The flat event `(*batch, sum of sizes)` of the factors' parts: `split` undone.

        Raises:
            ValueError: not one part a factor, or one of another shape.
        """
        given = self._listed_parts(parts)
        flat: list[Tensor] = []
        for part, factor in zip(given, self.factors, strict=True):
            batch = check_event(factor, part, "parts")
            flat.append(part.reshape(*batch, -1))
        return torch.cat(flat, -1)

    def _named(self, items: list[Any]) -> Any:
        return dict(zip(self.names, items, strict=True)) if self.names else tuple(items)

    def _listed_parts(self, parts: Any) -> list[Any]:
        if isinstance(parts, Mapping):
            if set(parts) != set(self.names):  # pyright: ignore[reportUnknownArgumentType]
                own = f"has the factors {', '.join(self.names)}" if self.names else "takes a tuple"
                raise ValueError(f"{self} {own}; got parts named {', '.join(map(str, parts))}.")  # pyright: ignore[reportUnknownArgumentType]
            return [parts[name] for name in self.names]  # pyright: ignore[reportUnknownVariableType]
        if len(parts) != len(self.factors):
            raise ValueError(f"{self} has {len(self.factors)} factors, got {len(parts)} parts.")
        return list(parts)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """The factors' vertices, joined."""
        found: list[Tensor] = []
        for i, label in enumerate(self._listed_parts(labels)):
            with labels_of(f"factor {self.names[i] if self.names else i}"):
                found.append(self.factors[i].encode(label))
        return self.join(self._named(found))

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Any:
        """The factors' labels: a tuple, or a dict if they have names."""
        pairs = zip(self.factors, self._listed_parts(self.split(vertices)), strict=True)
        return self._named([factor.decode(part) for factor, part in pairs])

    def argmax(self, scores: Tensor) -> Tensor:
        """Each factor's own."""
        return choose(self, None).solve(Problem(self, scores, None)).value.to(scores)

    def constraints(self, y: cp.Variable) -> list[Any]:
        """Each factor's own, on its parts."""
        cp = library("cvxpy")

        found: list[Any] = []
        for factor, part in zip(self.factors, self._slices, strict=True):
            found += factor.constraints(cp.reshape(y[part], factor.event_shape, order="C"))
        return found

    def vertices(self) -> Tensor:
        """Every combination."""
        points = [distinct_vertices(factor) for factor in self.factors]
        grids = torch.meshgrid(*(torch.arange(len(point)) for point in points), indexing="ij")
        return torch.cat([p[g.flatten()] for p, g in zip(points, grids, strict=True)], 1)


def _pieces(problem: Problem) -> list[tuple[Block, Problem]]:
    assert isinstance(problem.polytope, Product)
    scores = problem.flat_scores
    return [
        (block, block.pose(problem, problem.regularizer, block.gather(scores)))
        for block in problem.polytope.blocks
    ]


@rule(Product, None, Separable, Gibbs)
class FactorByFactor(Road):
    """Every factor goes its own best road."""

    name = "factor by factor"
    cost = "the factors'"

    def lacks(self, polytope: Polytope, regularizer: Regularizer | None) -> str:
        """What a factor lacks."""
        assert isinstance(polytope, Product)
        reasons = (lacking(block.polytope, regularizer) for block in polytope.blocks)
        return next((reason for reason in reasons if reason), "")

    def solve(self, problem: Problem) -> Solution:
        """The answers side by side; gaps and values add up."""
        pieces = _pieces(problem)
        answers = [block.road(part.regularizer).solve(part) for block, part in pieces]
        each = [(block, answer) for (block, _), answer in zip(pieces, answers, strict=True)]

        def joined(name: str, reduce: Callable[[Block, Tensor], Tensor]) -> list[Tensor]:
            known = [(block, getattr(answer, name)) for block, answer in each]
            return [reduce(block, item) for block, item in known if item is not None]

        def total(name: str) -> Tensor | None:
            items = joined(name, lambda block, item: block.sums(item.double()))
            return torch.stack(items).sum(0) if len(items) == len(each) else None

        whole = torch.zeros_like(problem.scores, dtype=torch.float64)
        gradients = [answer.gradient for answer in answers]
        objective = total("objective")
        return Solution(
            _placed(whole, pieces, [answer.value for answer in answers]),
            torch.stack(joined("status", Block.most)).amax(0),
            torch.stack(joined("iterations", Block.most)).amax(0),
            gap=total("gap"),
            objective=objective,
            gradient=None if None in gradients else _placed(whole, pieces, gradients),
            answers=tuple(answers),
        )

    def vjp(self, problem: Problem, solution: Solution, grad: Tensor) -> Tensor:
        """Each factor's own."""
        assert solution.answers is not None
        pieces = _pieces(problem)
        pulled = [
            block.road(part.regularizer).vjp(part, answer, block.gather(grad))
            for (block, part), answer in zip(pieces, solution.answers, strict=True)
        ]
        return _placed(torch.zeros_like(grad), pieces, pulled)

    def curve(self, problem: Problem, solution: Solution, u: Tensor, v: Tensor) -> Tensor:
        """Each factor's own."""
        assert solution.answers is not None
        pieces = _pieces(problem)
        curved = [
            block.road(part.regularizer).curve(part, answer, block.gather(u), block.gather(v))
            for (block, part), answer in zip(pieces, solution.answers, strict=True)
        ]
        return _placed(torch.zeros_like(u), pieces, curved)

    def sample(self, problem: Problem, count: int, generator: torch.Generator | None) -> Tensor:
        """Independent samples of the factors."""
        drawn = torch.zeros(count, *problem.scores.shape).to(problem.scores)
        for block, part in _pieces(problem):
            sampled = block.flat(block.road(part.regularizer).sample(part, count, generator))
            drawn[:, :, block.columns.to(drawn.device)] = sampled.to(drawn)
        return drawn

    def top_k(self, problem: Problem, k: int) -> Tensor:
        """The lists of the factors merged one by one, the k best kept."""
        n, d = problem.scores.shape
        merged = torch.zeros(n, 1, d).to(problem.scores)
        value = torch.zeros(n, 1).to(problem.scores)
        for block, part in _pieces(problem):
            points, scores = _lists(part, k)
            points = block.flat(points).transpose(0, 1)  # (n, k, f, size)
            scores = scores.reshape(n, len(block.columns), -1)
            for j, columns in enumerate(block.columns.to(merged.device)):
                merged, value = _merge(merged, value, points[:, :, j], scores[:, j], columns, k)
        problem.check_enough(k, value.isfinite().sum(1))
        return merged.transpose(0, 1)


def _placed(whole: Tensor, pieces: list[tuple[Block, Problem]], values: Sequence[Any]) -> Tensor:
    placed = whole.clone()
    for (block, _), value in zip(pieces, values, strict=True):
        placed[:, block.columns.to(placed.device)] = block.flat(value).to(placed)
    return placed


def _lists(problem: Problem, k: int) -> tuple[Tensor, Tensor]:  # (k, n, *event), (n, k)
    """The k best structures, or all where there are fewer: zeros of score -inf fill the list."""
    road = choose(problem.polytope, problem.regularizer)
    try:
        points = road.top_k(problem, k)
    except ValueError:
        if problem.size > 1:
            rows = torch.arange(problem.size, device=problem.scores.device)
            single = [_lists(problem.take(row[None]), k) for row in rows]
            return torch.cat([p for p, _ in single], 1), torch.cat([s for _, s in single], 0)
        points = _every(road, problem, k)
    blank = points.new_zeros(k - len(points), *points.shape[1:])
    scores = (points * problem.scores).flatten(2).sum(2).t()
    scores = torch.nn.functional.pad(scores, (0, len(blank)), value=-torch.inf)
    return torch.cat([points, blank]), scores


def _every(road: Road, problem: Problem, k: int) -> Tensor:
    """All structures, best first, where there are fewer than k: their number by bisection."""
    points, few, many = road.top_k(problem, 1), 1, k
    while many - few > 1:
        middle = (few + many) // 2
        try:
            points, few = road.top_k(problem, middle), middle
        except ValueError:
            many = middle
    return points


def _merge(
    merged: Tensor, value: Tensor, points: Tensor, scores: Tensor, columns: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best pairs of an entry so far `(n, m, d)` and one of the factor's `(n, k, size)`."""
    pairs = (value[:, :, None] + scores[:, None]).flatten(1)
    ranked = pairs.sort(dim=1, descending=True, stable=True)
    chosen = ranked.indices[:, :k]
    row = torch.arange(len(pairs), device=pairs.device)[:, None]
    best = merged[row, chosen.div(scores.shape[1], rounding_mode="floor")]
    best[:, :, columns] = points[row, chosen % scores.shape[1]].to(best)
    return best, ranked.values[:, :k]
