"""Transport plans: how a mass in rows becomes a mass in columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, numbers, rows_where, tensor
from spigot.polytopes.dispatch import rule
from spigot.polytopes.kernels.bipartite.transport import transport
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.problem import Problem
from spigot.polytopes.structures.bipartite import Best, BestVertex, Bipartite, Sums, masks

if TYPE_CHECKING:
    import cvxpy as cp

__all__ = ["Transport"]

BALANCE = 1e-5  # relative: how far the totals of rows and columns may differ


@dataclass(frozen=True)
class Transport(Bipartite):
    """{y >= 0 : row sums = row, column sums = column}, the transport plans between two masses.

    Both masses may differ from instance to instance: `params={"row": (*batch, n), "column":
    (*batch, m)}`, and `project` and `maximize(scores, Shannon())` are differentiable in them too. Only
    changes that keep the totals equal mean something; the gradient by the masses is unique up to a
    constant added to all rows and taken from all columns.

    The two totals may differ by 1e-5, relatively; the columns' masses are then scaled to the rows'
    total. Masses of zero leave their row or column empty, as padding does.

    Parts: `(n, m)`, `[row, column]`. Labels are the vertices themselves.

    Args:
        row: the rows' masses `(n,)`, n >= 1 numbers >= 0.
        column: the columns' masses `(m,)`, m >= 1 numbers >= 0 of the same total.

    Raises:
        ValueError: no vector, a mass that is negative or not finite, or totals that differ; at a call,
            `params` of that kind.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Transport
        >>> plans = Transport([0.5, 0.5], [0.25, 0.25, 0.5])
        >>> scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 1.0]])
        >>> plans.maximize(scores)
        tensor([[0.2500, 0.2500, 0.0000],
                [0.0000, 0.0000, 0.5000]])
        >>> masses = {"row": torch.tensor([1.0, 0.0]), "column": torch.tensor([0.0, 0.5, 0.5])}
        >>> plans.project(scores, params=masses)
        tensor([[0.0000, 0.5000, 0.5000],
                [0.0000, 0.0000, 0.0000]])

    References:
        MAP: Cunningham, "A network simplex method" (1976).
        Euclidean: Blondel, Seguy and Rolet, "Smooth and sparse optimal transport" (AISTATS 2018),
        section 3; the Newton method is that of `Matching`.
        Shannon: Cuturi, "Sinkhorn distances" (NeurIPS 2013).
    """

    row: tuple[float, ...]
    column: tuple[float, ...]

    def __init__(
        self, row: Sequence[float] | Tensor | np.ndarray, column: Sequence[float] | Tensor | np.ndarray
    ) -> None:
        object.__setattr__(self, "row", _masses("row", row))
        object.__setattr__(self, "column", _masses("column", column))
        totals = fsum(self.row), fsum(self.column)
        if abs(totals[0] - totals[1]) > BALANCE * max(totals):
            raise ValueError(
                f"Transport: the rows' masses total {totals[0]:g}, the columns' {totals[1]:g}; a plan "
                "needs equal totals. Scale one of them."
            )

    def __repr__(self) -> str:
        return f"Transport({_shown(self.row)}, {_shown(self.column)})"

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, m)`."""
        return (len(self.row), len(self.column))

    @property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The masses."""
        return {"row": (len(self.row),), "column": (len(self.column),)}

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """From 0 to the smaller of the two masses."""
        row, column = (torch.tensor(mass, dtype=torch.float64) for mass in (self.row, self.column))
        upper = torch.minimum(row[:, None], column[None, :])
        return torch.zeros_like(upper), upper

    def argmax(self, scores: Tensor) -> Tensor:
        """A best plan of each instance."""
        return self.best(self.sums(Problem(self, scores, None)), scores.dtype).value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """The sums."""
        cp = library("cvxpy")

        row, column = np.array(self.row), np.array(self.column)
        column = column * (row.sum() / column.sum() if column.sum() else 1.0)
        return [y >= 0, cp.sum(y, axis=1) == row, cp.sum(y, axis=0) == column]

    def sums(self, problem: Problem) -> Sums:
        """Each instance's masses.

        Raises:
            ValueError: a mass is negative, or the totals differ, naming the instances.
        """
        row, column = (
            _of(problem, name, own) for name, own in (("row", self.row), ("column", self.column))
        )
        totals = row.sum(1), column.sum(1)
        for name, mass in (("row", row), ("column", column)):
            least = mass.min(1)
            _refuse(problem, least < 0, f"params[{name!r}] must hold no negative mass", least)
        unequal = np.abs(totals[0] - totals[1]) > BALANCE * np.maximum(*totals)
        must = "the masses of rows and columns must have equal totals"
        _refuse(problem, unequal, must, *totals)
        scale = np.divide(*totals, out=np.ones(problem.size), where=totals[1] > 0)
        keep, masked, sizes = masks(problem)
        if not (row.all() and column.all()):
            keep, masked = keep & (row > 0)[:, :, None] & (column > 0)[:, None, :], True
        always = np.ones(problem.size, dtype=np.bool_)
        scores = contiguous(problem.scores.double())
        return Sums(scores, keep, masked, sizes, row, column * scale[:, None], always, always)

    def best(self, sums: Sums, dtype: torch.dtype) -> Best:
        """By the network simplex method."""
        n, rows, columns = sums.scores.shape
        value, prices = np.zeros_like(sums.scores), (np.zeros((n, rows)), np.zeros((n, columns)))
        found = np.zeros(n, dtype=np.bool_)
        masses = sums.row_mass, sums.column_mass
        over_instances(transport, n, *sums.problem, *masses, value, *prices, found)
        return Best(lambda: tensor(value).to(dtype), *prices, found)


@rule(Transport, None)
class NetworkSimplex(BestVertex):
    """A vertex of largest score, by pivots on spanning trees."""

    name = "network simplex method"
    cost = "about (n + m) pivots, each of O(n + m), and their pricing"


def _masses(name: str, masses: Any) -> tuple[float, ...]:
    values = torch.as_tensor(masses, dtype=torch.float64)
    if values.dim() != 1 or not len(values):
        raise ValueError(
            f"Transport: {name} must be a vector of masses, got shape {tuple(values.shape)}."
        )
    wrong = rows_where(~((values >= 0) & values.isfinite()))
    if wrong:
        raise ValueError(
            f"Transport: {name} holds a mass that is negative or not finite, "
            f"{values[wrong[0]].item():g} at position {wrong[0]}."
        )
    return tuple(cast("list[float]", numbers(values)))


def _shown(masses: tuple[float, ...]) -> str:
    first = ", ".join(f"{mass:.4g}" for mass in masses[:6])
    return f"[{first}{', ...' if len(masses) > 6 else ''}]"


def _of(problem: Problem, name: str, own: tuple[float, ...]) -> np.ndarray:  # (n, masses)
    if name in problem.params:
        return contiguous(problem.params[name].double())
    return np.repeat(np.array(own)[None], problem.size, axis=0)


def _refuse(problem: Problem, wrong: np.ndarray, must: str, *values: np.ndarray) -> None:
    if wrong.any():
        rows = rows_where(tensor(wrong))
        has = " and ".join(f"{value[rows[0]]:g}" for value in values)
        wrongs = problem.describe_wrong(rows, f"has {has}")
        raise ValueError(f"{problem.polytope}: {must}; {wrongs}")
