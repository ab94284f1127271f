"""The range of each part over M, from whichever fact is declared."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spigot.polytopes.arrays import tensor
from spigot.polytopes.listing import listed_vertices
from spigot.polytopes.problem import Problem

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["declared_bounds", "part_range", "parts_outside", "rows_outside"]

CHUNK = 1024  # parts asked about in one call, so that memory stays linear in the event's size
SLACK = 1e-9


def declared_bounds(polytope: Polytope) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds `(*event)` in float64, valid over all of M, infinite if unknown."""
    event = polytope.event_shape
    if "vertices" in polytope.facts:
        points = listed_vertices(polytope).cpu()
        return points.amin(0), points.amax(0)
    if "constraints" in polytope.facts:
        form = polytope.canonical
        lower, upper = form.lower[form.columns], form.upper[form.columns]
        return (
            tensor(lower.copy()).reshape(event),
            tensor(upper.copy()).reshape(event),
        )
    unknown = torch.full(event, torch.inf, dtype=torch.float64)
    return -unknown, unknown


def parts_outside(
    polytope: Polytope, low: float, high: float, parts: Tensor | None = None
) -> Tensor:  # (*event), bool
    """The parts whose exact range over M leaves [low, high].

    Bounds that already lie inside settle it; the other parts are asked for their extreme by MAP,
    once, and the polytope's `bounds` keep the answer.
    """
    lower, upper = polytope.bounds
    parts = torch.ones_like(lower, dtype=torch.bool) if parts is None else parts
    outside = torch.zeros_like(parts)
    for bound, sign, limit in ((lower, -1.0, -low), (upper, 1.0, high)):
        doubtful = parts & (sign * bound > limit + SLACK)
        _tighten(polytope, bound, sign, doubtful)
        outside |= parts & (sign * bound > limit + SLACK)
    return outside


def rows_outside(
    problem: Problem, lower: Tensor, upper: Tensor, low: float, high: float, parts: Tensor
) -> Tensor:  # (n,), bool
    """The instances with a part, of those in `parts`, whose range over its own set leaves [low, high].

    `lower` and `upper` are valid bounds; like `parts` they are `(n, d)`. Where they do not settle it
    the part is asked for its extreme by MAP.
    """
    from spigot.polytopes.dispatch import choose

    outside = torch.zeros(problem.size, dtype=torch.bool)
    for bound, sign, limit in ((lower, -1.0, -low), (upper, 1.0, high)):
        doubtful = (parts & (sign * bound > limit + SLACK)).nonzero()
        for first in range(0, len(doubtful), CHUNK):
            rows, columns = doubtful[first : first + CHUNK].unbind(1)
            count = torch.arange(len(rows))
            scores = torch.zeros(len(rows), parts.shape[1], dtype=torch.float64)
            scores[count, columns] = sign
            asked = replace(problem.moved("cpu").take(rows), keep=None).linear(
                scores.reshape(-1, *problem.scores.shape[1:])
            )
            best = choose(problem.polytope, None).solve(asked).value.flatten(1)
            beyond = sign * best[count, columns].double().cpu() > limit + SLACK
            outside[rows[beyond]] = True
    return outside


def part_range(polytope: Polytope, part: tuple[int, ...]) -> tuple[float, float]:
    """The exact range of one part."""
    chosen = torch.zeros(polytope.event_shape, dtype=torch.bool)
    chosen[part] = True
    for bound, sign in zip(polytope.bounds, (-1.0, 1.0), strict=True):
        _tighten(polytope, bound, sign, chosen)
    lower, upper = polytope.bounds
    return lower[part].item(), upper[part].item()


def _tighten(polytope: Polytope, bound: Tensor, sign: float, parts: Tensor) -> None:
    from spigot.polytopes.dispatch import choose

    known = polytope.scratch.setdefault(("tight", sign), torch.zeros_like(parts))
    wanted = (parts & ~known).flatten().nonzero().flatten()
    if not len(wanted):
        return
    road = choose(polytope, None)
    for chunk in wanted.split(CHUNK):
        rows = torch.arange(len(chunk))
        scores = torch.zeros(len(chunk), bound.numel(), dtype=torch.float64)
        scores[rows, chunk] = sign
        problem = Problem(polytope, scores.reshape(-1, *bound.shape), None)
        best = road.solve(problem).value.flatten(1)
        bound.view(-1)[chunk] = best[rows, chunk].double().cpu()
    known.view(-1)[wanted] = True
