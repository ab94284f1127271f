"""Parts that a row fixes, such as all of a sum of nonnegative parts that is 0.

The multiplier of such a row runs away where phi is steep: its parts reach a bound at which phi' is
infinite. So bounds are tightened first, as linear programs are presolved: a row whose activity can
be no smaller than its limit fixes its variables, and so does an equation with one variable left.

Brearley, Mitra and Williams, "Analysis of mathematical programming problems prior to applying the
simplex algorithm" (1975).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spigot.polytopes.arrays import library
from spigot.polytopes.kernels.rows.elimination import System

__all__ = ["tightened"]

EQUAL = 1e-12  # relative to the terms of a row's sum
PASSES = 100


def tightened(
    system: System, limits: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bounds `(n or 1, variables)`, equal for variables that the rows fix.

    Whether the rows hold a point at all is left open.
    """
    rows = _Rows(system)
    n = max(len(limits), len(lower))
    lower, upper = (np.repeat(bound, n // len(bound), axis=0) for bound in (lower, upper))
    for _ in range(PASSES):
        loose = int((lower < upper).sum())
        _by_activity(rows, limits, lower, upper)
        _by_substitution(rows, limits, lower, upper)
        if int((lower < upper).sum()) == loose:
            break
    return lower, upper


class _Rows:
    """The rows, their positive and their negative entries."""

    def __init__(self, system: System) -> None:
        sp = library("scipy.sparse")
        shape = (len(system.low), len(system.first) - 1)
        whole: Any = sp.csr_matrix((system.entry, system.column, system.start), shape=shape)
        self.whole = whole
        self.positive: Any = whole.maximum(0).tocsr()
        self.negative: Any = whole.minimum(0).tocsr()
        self.names: Any = (whole != 0).astype(np.float64)
        self.equation: np.ndarray = system.low < 0


def _by_activity(rows: _Rows, limits: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Rows at their least or greatest activity fix their variables at the bounds that make it."""
    size = _times(abs(rows.whole), np.maximum(np.abs(_finite(lower)), np.abs(_finite(upper))))
    slack = EQUAL * (np.abs(limits) + size)
    at_least = limits - _activity(rows, lower, upper) <= slack
    at_most = rows.equation & (_activity(rows, upper, lower) - limits <= slack)
    rises, falls = (rows.positive > 0).astype(float), (rows.negative < 0).astype(float)
    down = _times(rises.T, at_least) + _times(falls.T, at_most) > 0
    up = _times(falls.T, at_least) + _times(rises.T, at_most) > 0
    first_up = up & (lower < upper)
    lower[first_up] = upper[first_up]
    first_down = down & (lower < upper)
    upper[first_down] = lower[first_down]


def _by_substitution(rows: _Rows, limits: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
    """Equations with one variable left give its value."""
    open_ = lower < upper
    rest = limits - _times(rows.whole, np.where(open_, 0.0, lower))
    alone = rows.equation & (_times(rows.names, open_) == 1)
    for i, row in zip(*np.nonzero(alone), strict=True):
        entries = slice(rows.whole.indptr[row], rows.whole.indptr[row + 1])
        columns = rows.whole.indices[entries]
        left = np.flatnonzero(lower[i, columns] < upper[i, columns])
        if len(left) == 1:  # another row may have fixed it since
            value = rest[i, row] / rows.whole.data[entries][left[0]]
            column = columns[left[0]]
            if lower[i, column] - EQUAL <= value <= upper[i, column] + EQUAL:
                value = min(max(value, lower[i, column]), upper[i, column])
                lower[i, column] = upper[i, column] = value + 0.0


def _activity(rows: _Rows, below: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Sums of the rows' entries times the bounds that make them small; NaN where one is not finite."""
    total = _times(rows.positive, _finite(below)) + _times(rows.negative, _finite(above))
    rises, falls = (rows.positive > 0).astype(float), (rows.negative < 0).astype(float)
    endless = _times(rises, np.isinf(below)) + _times(falls, np.isinf(above)) > 0
    return np.where(endless, np.nan, total)


def _finite(bound: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(bound), bound, 0.0)


def _times(matrix: Any, vectors: np.ndarray) -> np.ndarray:  # (n, columns) -> (n, rows)
    return (matrix @ vectors.T.astype(np.float64)).T
