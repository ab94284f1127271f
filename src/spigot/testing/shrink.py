"""The smallest counterexample that a few tries find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from spigot.polytopes.arrays import rows_where
from spigot.testing.cases import Case

__all__ = ["shrink"]

TRIES = 300


def shrink(case: Case, fails: Callable[[Case], bool]) -> Case:
    """Drops the mask, zeroes entries and rounds them while the failure stays."""
    tries = 0
    progress = True
    while progress and tries < TRIES:
        progress = False
        for smaller in _smaller(case):
            tries += 1
            if tries > TRIES:
                break
            if fails(smaller):
                case, progress = smaller, True
                break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    if case.keep is not None:
        yield replace(case, keep=None)
    flat = case.scores.flatten()
    used = rows_where(flat)
    half = len(used) // 2
    blocks = [used, used[:half], used[half:]] if half else []
    for block in [*blocks, *([i] for i in used)]:
        scores = flat.clone()
        scores[block] = 0.0
        yield replace(case, scores=scores.reshape(case.scores.shape))
    for decimals in (0, 1):
        rounded = torch.round(flat, decimals=decimals)
        if not torch.equal(rounded, flat):
            yield replace(case, scores=rounded.reshape(case.scores.shape))
