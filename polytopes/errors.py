"""What can go wrong, each with its own name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope
    from spigot.polytopes.regularizers import Regularizer

__all__ = [
    "ConvergenceError",
    "InfeasiblePolytope",
    "NoStructure",
    "OracleError",
    "UnboundedPolytope",
    "UnsupportedProblem",
    "check_budget",
    "describe_instances",
    "describe_wrong",
    "unsupported",
    "whole_numbers",
]


class UnsupportedProblem(NotImplementedError):
    """The declared facts do not suffice for this problem; the message says what to declare.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Facets
        >>> box = Facets(lambda y: [y >= 0, y <= 1], (2,))
        >>> box.marginals(torch.zeros(2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.UnsupportedProblem: Facets(<lambda>, (2,)) cannot answer ...
        It declares these facts: constraints.
        Declare `vertices` to sum over the structures, or use Shannon() or Euclidean().
    """


class InfeasiblePolytope(ValueError):
    """The declared constraints have no solution; the message names a conflicting subset.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Facets
        >>> nothing = Facets(lambda y: [y >= 0, y <= 1, sum(y) == 3], (2,))
        >>> nothing.maximize(torch.zeros(2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.InfeasiblePolytope: No point satisfies the constraints of ...
    """


class UnboundedPolytope(ValueError):
    """The declared constraints hold an infinite ray, so they are no polytope.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Facets
        >>> cone = Facets(lambda y: [y >= 0], (2,))
        >>> cone.maximize(torch.zeros(2))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.UnboundedPolytope: The constraints of ...
    """


class NoStructure(ValueError):
    """A mask (`keep`, a score of -inf, or `lengths`) excludes every structure of an instance.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> Simplex(2).maximize(torch.zeros(2, 2), keep=torch.tensor([[True, True], [False, False]]))
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.NoStructure: keep leaves no part of Simplex(d=2) in instance 1.
    """


class ConvergenceError(RuntimeError):
    """A solver stopped before its tolerance; `throw=False` returns its best point instead.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Euclidean, Subset
        >>> from spigot.polytopes.solvers import ActiveSet
        >>> scores, hasty = torch.tensor([0.5, 0.25, -1.0]), ActiveSet(max_steps=0)
        >>> Subset(3, 1).solve(scores, Euclidean(), solver=hasty)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.ConvergenceError: active set on the oracle did not converge ...
        >>> Subset(3, 1).solve(scores, Euclidean(), solver=hasty, throw=False).gap
        tensor(0.7500)
    """


class OracleError(RuntimeError):
    """A function that answers for one instance raised, or lost its worker; the message names it.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Oracle
        >>> def best(scores):
        ...     raise RuntimeError("no licence")
        >>> Oracle(best, (3,)).maximize(torch.zeros(2, 3))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        spigot.polytopes.errors.OracleError: Oracle(best, (3,), batched=False): the oracle ...
    """


def describe_instances(rows: Sequence[int], batch_shape: Sequence[int], limit: int = 5) -> str:
    """Names flat rows of a batch by their index, as `instance 3` or `instances (0, 1), (2, 3)`."""
    if not batch_shape:
        return "the only instance"
    names = [_index_name(row, batch_shape) for row in rows[:limit]]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"instance{'s' if len(rows) > 1 else ''} {', '.join(names)}{more}"


def describe_wrong(rows: Sequence[int], batch_shape: Sequence[int], does: str) -> str:
    """What the first of these rows does, and which do so too: `instance 3 has 7. Also wrong: ...`."""
    first, *others = rows
    also = f" Also wrong: {describe_instances(others, batch_shape)}." if others else ""
    return f"{describe_instances([first], batch_shape)} {does}.{also}"


def _index_name(row: int, batch_shape: Sequence[int]) -> str:
    index: list[int] = []
    for size in reversed(batch_shape):
        row, position = divmod(row, size)
        index.append(position)
    return str(index[0]) if len(index) == 1 else str(tuple(reversed(index)))


def whole_numbers(owner: object, **sizes: object) -> None:
    """Raises TypeError for a size that is no whole number."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{type(owner).__name__}: {name} must be a whole number, got {size!r}.")


LEAST_TOLERANCE = 1e-15  # of a solver in float64, a few roundings


def check_budget(solver: object, tolerance: float | None, max_steps: int | None) -> None:
    """Raises ValueError for a tolerance that float64 cannot reach, or a negative number of steps."""
    name = type(solver).__name__
    if max_steps is not None:
        whole_numbers(solver, max_steps=max_steps)
        if max_steps < 0:
            raise ValueError(f"{name}: max_steps must be at least 0, got {max_steps}.")
    if tolerance is None:
        return
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"{name}: tolerance must be a positive number, got {tolerance!r}.")
    if tolerance < LEAST_TOLERANCE:
        raise ValueError(
            f"{name}: tolerance={tolerance:g} cannot be reached. Solvers work in float64, whatever the "
            "scores' dtype, and its rounding alone leaves relative errors of about 2e-16. Give "
            f"{LEAST_TOLERANCE:g} or more, or leave it out."
        )


def unsupported(
    polytope: Polytope, regularizer: Regularizer | None, reason: str, way_out: str
) -> UnsupportedProblem:
    """The one form of an `UnsupportedProblem`: polytope, problem, facts, reason, way out."""
    facts = ", ".join(sorted(polytope.facts)) or "none"
    problem = "MAP" if regularizer is None else f"maximize(s, {regularizer})"
    return UnsupportedProblem(
        f"{polytope} cannot answer {problem}: {reason}\nIt declares these facts: {facts}.\n{way_out}"
    )
