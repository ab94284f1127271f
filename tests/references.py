"""Answers that owe nothing to the library: cvxpy with Clarabel alone, sorts and plain formulas."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import torch
from torch import Tensor

Constraints = Callable[[Any], list[Any]]
TIGHT = dict.fromkeys(("tol_gap_abs", "tol_gap_rel", "tol_feas"), 1e-12)


class Reference:
    """argmax of <x, y> - omega(y) over constraints, straight from cvxpy, one instance at a time."""

    def __init__(
        self,
        constraints: Constraints,
        shape: tuple[int, ...],
        omega: Callable[[Any], Any] | None = None,
        zero: Tensor | None = None,
    ) -> None:
        y: Any = cp.Variable(shape)
        rows = list(constraints(y))
        if zero is not None and bool(zero.any()):
            rows.append(cp.multiply(zero.double().numpy(), y) == 0)
        self.exact = omega is None
        self.y, self.x = y, cp.Parameter(shape)
        penalty = cp.sum_squares(y - self.x) / 2
        loss: Any = penalty if omega is None else omega(y) - cp.sum(cp.multiply(self.x, y))
        self.problem: Any = cp.Problem(cp.Minimize(loss), rows)

    def __call__(self, point: Tensor) -> Tensor:
        """The answer in float64, `point` of the event shape; projection without an omega."""
        self.x.value = point.detach().double().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of inaccuracy: the status is looked at
            self.problem.solve(solver="CLARABEL", **TIGHT)
        good = ("optimal",) if self.exact else ("optimal", "optimal_inaccurate")
        assert self.problem.status in good, self.problem.status
        return torch.from_numpy(np.array(self.y.value))

    def batch(self, points: Tensor, dims: int) -> Tensor:
        """`(*batch, *event)`, the event of `dims` dimensions."""
        event = points.shape[points.dim() - dims :]
        flat = points.reshape(-1, *event)
        rows = [self(row) for row in flat]
        return torch.stack(rows).reshape(points.shape) if rows else points.double()


def linear_maximum(constraints: Constraints, scores: Tensor, zero: Tensor | None = None) -> float:
    """max <s, y> over constraints, one instance."""
    y: Any = cp.Variable(tuple(scores.shape))
    rows = list(constraints(y))
    if zero is not None and bool(zero.any()):
        rows.append(cp.multiply(zero.double().numpy(), y) == 0)
    objective = cp.sum(cp.multiply(scores.detach().double().numpy(), y))
    problem: Any = cp.Problem(cp.Maximize(objective), rows)
    return float(problem.solve(solver="CLARABEL", **TIGHT))


def sparsemax(x: Tensor) -> Tensor:
    """The projection onto the simplex by a sort (Held, Wolfe and Crowder 1974)."""
    out: list[list[float]] = []
    for row in x.detach().double().reshape(-1, x.shape[-1]).tolist():
        ranked = sorted(row, reverse=True)
        total, threshold = 0.0, 0.0
        for j, value in enumerate(ranked, start=1):
            total += value
            if value * j > total - 1:
                threshold = (total - 1) / j
        out.append([max(value - threshold, 0.0) for value in row])
    return torch.tensor(out, dtype=torch.float64).reshape(x.shape)


def budget(x: Tensor, total: float, mirror: Callable[[Tensor], Tensor]) -> Tensor:
    """clip(mirror(x - tau), 0, 1) with parts that sum to total, tau by bisection; `(d,)`."""
    low, high = float(x.min()) - 60.0, float(x.max()) + 60.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if float(mirror(x - middle).clamp(0, 1).sum()) > total:
            low = middle
        else:
            high = middle
    return mirror(x - 0.5 * (low + high)).clamp(0, 1)


def subsets(d: int, sizes: Sequence[int]) -> Tensor:
    """The 0/1 vectors of d parts whose sum is one of the sizes, `(m, d)`."""
    rows = [[(number >> i) & 1 for i in range(d)] for number in range(2**d)]
    return torch.tensor([row for row in rows if sum(row) in sizes], dtype=torch.float64)
