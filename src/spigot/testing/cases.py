"""Scores that find mistakes: random ones, ties, zeros, huge and tiny entries, masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import (
    Euclidean,
    FermiDirac,
    Gibbs,
    Polytope,
    Regularizer,
    Shannon,
    Tsallis,
)
from spigot.polytopes.bounds import parts_outside

__all__ = ["REGULARIZERS", "Case", "cases"]

REGULARIZERS: tuple[Regularizer | None, ...] = (
    None,
    Euclidean(),
    Shannon(),
    FermiDirac(),
    Tsallis(1.5),
    Gibbs(),
)


@dataclass(frozen=True, eq=False)
class Case:
    """One instance: scores `(*event)`, the parts kept, and whether its answer is generic."""

    name: str
    scores: Tensor
    keep: Tensor | None = None
    generic: bool = False


def cases(polytope: Polytope, seed: int, count: int) -> list[Case]:
    """`count` random instances of several scales, the adversarial ones, and masked ones."""
    rng = torch.Generator().manual_seed(seed)
    event = polytope.event_shape

    def normal() -> Tensor:
        return torch.randn(event, generator=rng, dtype=torch.float64)

    scales = (1.0, 1.0, 0.1, 10.0)
    found = [Case("random", scales[i % 4] * normal(), generic=True) for i in range(count)]
    spike = normal()
    spike.view(-1)[int(torch.randint(spike.numel(), (1,), generator=rng))] = 1e3
    integers = torch.randint(-2, 3, event, generator=rng).double()
    repeated = normal().flatten()
    repeated[1::2] = repeated[::2][: len(repeated[1::2])]
    found += [
        Case("zeros", torch.zeros(event, dtype=torch.float64)),
        Case("all equal", torch.full(event, 0.7, dtype=torch.float64)),
        Case("all negative", torch.full(event, -1.0, dtype=torch.float64)),
        Case("ties", integers),
        Case("repeated", repeated.reshape(event)),
        Case("one huge", spike),
        Case("tiny", 1e-7 * normal()),
    ]
    return found + _masked(polytope, rng, max(4, count))


def _masked(polytope: Polytope, rng: torch.Generator, count: int) -> list[Case]:
    """Masks around a structure, so that one is left; none where a part may be negative."""
    event = polytope.event_shape
    if bool(parts_outside(polytope, 0.0, torch.inf).any()):
        return []
    scores = torch.randn(count, *event, generator=rng, dtype=torch.float64)
    favourite = polytope.maximize(torch.randn(count, *event, generator=rng, dtype=torch.float64))
    keep = (favourite > 0) | (torch.rand(count, *event, generator=rng) < 0.5)
    return [Case("mask", scores[i], keep[i], generic=True) for i in range(count)]
