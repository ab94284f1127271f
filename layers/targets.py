"""What losses against a target structure have in common: its checks, the value, the reduction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spigot.polytopes import Gibbs, Polytope, Regularizer, implicit
from spigot.polytopes.arrays import rows_where
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.posing import check_event, check_finite, pose
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import Convex, Smooth
from spigot.pullback.roads import road

__all__ = ["TargetLoss", "inner", "same_shape"]


class TargetLoss(nn.Module):
    """A loss made of Omega*(s) + Omega(y) - <s, y> at the scores or at scores moved by a cost.

    Args:
        polytope: M.
        regularizer: Omega; None for none.
        reduction: "mean" or "sum" over the batch, or "none".
        validate: whether targets are checked to lie in M, at the cost of a projection.
        solver: forces a generic road.

    Raises:
        ValueError: an unknown reduction.
        UnsupportedProblem: if no road leads there.
    """

    def __init__(
        self,
        polytope: Polytope,
        regularizer: Regularizer | None = None,
        *,
        reduction: str = "mean",
        validate: bool = True,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        if reduction not in _REDUCTIONS:
            raise ValueError(f"reduction must be one of {sorted(_REDUCTIONS)}, got {reduction!r}.")
        self.polytope = polytope
        self.regularizer = regularizer
        self.reduction = reduction
        self.validate = validate
        self.solver = solver
        road(polytope, regularizer, solver)

    def __repr__(self) -> str:
        shown = [str(self.polytope), *self._settings(), f"reduction={self.reduction!r}"]
        shown += [] if self.validate else ["validate=False"]
        shown += [] if self.solver is None else [f"solver={self.solver}"]
        return f"{type(self).__name__}({', '.join(shown)})"

    def _settings(self) -> list[str]:
        """The arguments of its own, as they print."""
        return []

    def posed(
        self,
        scores: Tensor,
        target: Tensor | None,
        labels: Any,
        lengths: Tensor | None,
        keep: Tensor | None,
        params: Mapping[str, Tensor] | None,
    ) -> tuple[Problem, Tensor]:
        """The problem, and the target in its shape and dtype, `(n, *event)`, detached.

        Raises:
            ValueError: neither or both of target and labels, a wrong shape, or a target outside M.
        """
        if (target is None) == (labels is None):
            got = "neither" if target is None else "both"
            raise ValueError(f"Give the loss a target or labels, and not both; got {got}.")
        problem = pose(self.polytope, scores, self.regularizer, lengths, keep, params)
        y = self.polytope.encode(labels, lengths) if target is None else target
        y = same_shape(problem, scores, y, "target", LABELS)
        if self.validate:
            self._check_inside(problem, y, lengths, params)
        return problem, y

    def excess(self, problem: Problem, y: Tensor) -> Tensor:  # (n, *event) -> (n,)
        """Omega*(s) + Omega(y) - <s, y>."""
        way = road(self.polytope, self.regularizer, self.solver)
        return implicit.conjugate(problem, way, y) + _penalty(problem, y)

    def reduced(self, value: Tensor, problem: Problem, dtype: torch.dtype) -> Tensor:
        """The instances' values `(n,)` reduced, or in the batch's shape."""
        return _REDUCTIONS[self.reduction](value.reshape(problem.batch_shape)).to(dtype)

    def _check_inside(
        self,
        problem: Problem,
        y: Tensor,
        lengths: Tensor | None,
        params: Mapping[str, Tensor] | None,
    ) -> None:
        batched = problem.batch_shape + tuple(y.shape[1:])
        keep = None if problem.keep is None else problem.keep.reshape(batched)
        inside = self.polytope.contains(
            y.reshape(batched), lengths=lengths, keep=keep, params=params, tolerance=1e-4
        )
        if not bool(inside.all()):
            raise ValueError(
                f"target lies outside {problem.polytope}, or on parts that keep, lengths or a score of "
                f"-inf exclude, in {problem.describe(rows_where(~inside))}."
            )


def same_shape(problem: Problem, scores: Tensor, tensor: Tensor, name: str, hint: str = "") -> Tensor:
    """A tensor like the scores as `(n, *event)` in the problem's dtype, detached.

    `hint` ends the message of one of another shape.

    Raises:
        ValueError: another shape than the scores', or an entry that is not finite.
    """
    if isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        tensor = tensor.detach().to(problem.scores)
        if tensor.shape != scores.shape:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} must have the scores' shape "
                f"{tuple(scores.shape)}, with the event shape {problem.polytope.event_shape}.{hint}"
            )
    batch_shape = check_event(problem.polytope, tensor, name)
    check_finite(tensor, batch_shape, name)
    return tensor.reshape(problem.scores.shape)


def inner(a: Tensor, b: Tensor) -> Tensor:  # (n, *event) each -> (n,)
    """Each instance's inner product."""
    return (a * b).flatten(1).sum(1)


def _penalty(problem: Problem, y: Tensor) -> Tensor:  # (n,)
    regularizer = problem.regularizer
    if isinstance(regularizer, Smooth):
        return regularizer.total(y)
    if isinstance(regularizer, Convex):
        return torch.stack([regularizer.value(row) for row in y]) if len(y) else y.new_zeros(0)
    assert regularizer is None or isinstance(regularizer, Gibbs)
    return y.new_zeros(len(y))


def _none(value: Tensor) -> Tensor:
    return value


LABELS = " It holds structures: labels, in the form that `polytope.encode` takes, go in labels=."
_REDUCTIONS = {"mean": torch.mean, "sum": torch.sum, "none": _none}
