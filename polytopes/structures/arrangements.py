"""The arrangements of sorted weights on items: their sums, samples, and the best ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, tensor
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.sets import arrangements
from spigot.polytopes.structures import partition
from spigot.polytopes.structures.isotonic import Sorted
from spigot.polytopes.structures.partition import Part

__all__ = ["MOST", "Chances", "chances", "k_best", "sample"]

MOST = 16  # items: their sets are counted by the thousand


@dataclass(frozen=True, eq=False)
class Chances:
    """What a sum over arrangements tells.

    Attributes:
        total: log of the sum over distinct arrangements, `(n,)`.
        chance: of item i to have the weight of rank k, `(n, d, d)`.
        slope: its derivative along the direction asked for, `(n, d, d)`.
    """

    total: Tensor
    chance: Tensor
    slope: Tensor


def chances(items: Sorted, weights: Sorted, direction: Tensor | None = None) -> Chances:
    """Sums over arrangements of p ~ exp<s, y>, and their derivative along a direction `(n, d)`."""
    rows = contiguous(items.rows.double())
    n, d = rows.shape
    most = int(items.counts.max(initial=0))
    along = rows[:0] if direction is None else contiguous(direction.double())
    total, chance, slope = np.zeros(n), np.zeros((n, d, most)), np.zeros((n, d, most))
    sizes = items.index, items.counts
    over_instances(arrangements.chances, n, rows, *sizes, weights.values, along, total, chance, slope)
    return Chances(tensor(total) - _repeats(items, weights), tensor(chance), tensor(slope))


def _repeats(items: Sorted, weights: Sorted) -> Tensor:  # (n,)
    """log of how many orders make the same arrangement, equal weights being one."""
    values = tensor(weights.values).expand(len(items.counts), -1)
    run = torch.ones(len(values), dtype=torch.float64)
    logs = torch.zeros_like(run)
    for k in range(1, int(items.counts.max(initial=0))):
        run = torch.where(values[:, k] == values[:, k - 1], run + 1, 1.0)
        logs += torch.where(torch.as_tensor(items.counts) > k, run.log(), 0.0)
    return logs


def sample(
    items: Sorted, weights: Sorted, count: int, generator: torch.Generator | None
) -> Tensor:  # (count, n, d)
    """Exact samples of p ~ exp<s, y>."""
    rows = contiguous(items.rows.double())
    uniform = torch.rand(count, *rows.shape, generator=generator, dtype=torch.float64)
    drawn = np.zeros(uniform.shape)
    sizes = items.index, items.counts
    over_instances(
        arrangements.draw, len(rows), rows, *sizes, weights.values, contiguous(uniform), drawn
    )
    return tensor(drawn)


def k_best(scores: np.ndarray, weights: np.ndarray, k: int) -> list[np.ndarray]:
    """The k best distinct arrangements y of sorted weights, best first; fewer where there are no more.

    The arrangements that agree with the best one on the first items and differ at the next form a
    part, whose best is again found by sorting.
    """
    game = _Game(scores, weights)
    whole = game.best(_Choice((), frozenset()))
    return [] if whole is None else partition.k_best(whole, game.split, k)


@dataclass(frozen=True)
class _Choice:
    """The arrangements that start with these weights, the next of which is none of `barred`."""

    fixed: tuple[float, ...]
    barred: frozenset[float]


@dataclass(frozen=True, eq=False)
class _Game:
    scores: np.ndarray
    weights: np.ndarray  # sorted, largest first

    def best(self, choice: _Choice) -> Part | None:
        """A part with its best arrangement; None for an empty one."""
        at = len(choice.fixed)
        left = list(self.weights)
        for weight in choice.fixed:
            left.remove(weight)
        if at == len(self.scores):
            return self._part(np.array(choice.fixed), choice)
        ranks = np.argsort(-self.scores[at + 1 :], kind="stable")
        made = [
            self._part(self._finished(choice.fixed, weight, left, ranks), choice)
            for weight in dict.fromkeys(left)
            if weight not in choice.barred
        ]
        return min(made, key=lambda part: part.cost, default=None)

    def split(self, part: Part) -> Iterator[Part]:
        """By the first item at which an arrangement differs from the best one."""
        fixed, best = part.choice.fixed, tuple(part.best)
        for at in range(len(fixed), len(best)):
            barred = part.choice.barred if at == len(fixed) else frozenset[float]()
            piece = self.best(_Choice(best[:at], barred | {best[at]}))
            if piece is not None:
                yield piece

    def _finished(
        self, fixed: tuple[float, ...], weight: float, left: list[float], ranks: np.ndarray
    ) -> np.ndarray:
        rest = left.copy()
        rest.remove(weight)
        y = np.empty(len(self.scores))
        y[: len(fixed)] = fixed
        y[len(fixed)] = weight
        y[len(fixed) + 1 + ranks] = rest
        return y

    def _part(self, y: np.ndarray, choice: _Choice) -> Part:
        return Part(-float(self.scores @ y), 0, y, choice)
