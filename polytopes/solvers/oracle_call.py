"""MAP by the declared `argmax`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spigot.polytopes.arrays import rows_where
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.problem import Problem, Solution
from spigot.polytopes.regularizers import Regularizer

__all__ = ["OracleCall"]


@dataclass(frozen=True)
class OracleCall(Solver):
    """One call of `argmax`. Excluded parts get a score so low that no structure can want them.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Oracle, Simplex
        >>> from spigot.polytopes.solvers import OracleCall
        >>> best = Oracle(Simplex(3).argmax, (3,), batched=True)
        >>> keep = torch.tensor([True, False, True])
        >>> best.maximize(torch.tensor([0.0, 9.0, 1.0]), keep=keep, solver=OracleCall())
        tensor([0., 0., 1.])
    """

    name: ClassVar[str] = "declared argmax"
    cost: ClassVar[str] = "one oracle call"
    needs: ClassVar[frozenset[str]] = frozenset({"argmax"})
    solves: ClassVar[tuple[type[Regularizer] | None, ...]] = (None,)
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def solve(self, problem: Problem) -> Solution:
        """The oracle's vertices, their shape checked."""
        value = self._avoiding(problem) if problem.keep is not None else _call(problem, problem.scores)
        objective = (problem.flat_scores * value.flatten(1)).sum(1)
        return Solution.closed_form(value, objective)

    def _avoiding(self, problem: Problem) -> Tensor:
        assert problem.keep is not None
        weight = 1 + problem.flat_scores.double().abs().sum(1)
        column = weight.reshape(-1, *[1] * (problem.scores.dim() - 1))
        for factor in (1e3, 1e7):  # the second for vertices with parts below 1e-3
            scores = torch.where(problem.keep, problem.scores.double(), -factor * column)
            value = _call(problem, scores).to(problem.scores)
            used = ((value.abs() > 1e-9) & ~problem.keep).flatten(1).any(1)
            if not bool(used.any()):
                return value * problem.keep
        rows = rows_where(used)  # pyright: ignore[reportPossiblyUnbound]
        raise problem.no_structure(
            rows, ": argmax uses an excluded part even at a score that outweighs all others"
        )


def _call(problem: Problem, scores: Tensor) -> Tensor:
    value = problem.polytope.argmax_for(problem, scores)
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"{problem.polytope}.argmax must return a torch.Tensor, got {type(value).__name__}; wrap a "
            "plain function as Oracle(fn, event_shape)."
        )
    if value.shape != scores.shape:
        raise ValueError(
            f"{problem.polytope}.argmax returned shape {tuple(value.shape)} for scores of shape "
            f"{tuple(scores.shape)}; it takes and returns (n, *event)."
        )
    if not bool(torch.isfinite(value).all()):
        rows = rows_where(~torch.isfinite(value).flatten(1).all(1))
        raise ValueError(f"{problem.polytope}.argmax returned NaN or inf for {problem.describe(rows)}.")
    return value.to(scores)
