"""Whether a gap still falls: rounding keeps some from ever being as small as one would like."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["Patience", "full_patience", "waited"]


class Patience(NamedTuple):
    """Of n instances the least gap that counted as progress, and how long ago that was."""

    least: np.ndarray  # (n,)
    still: np.ndarray  # (n,), steps


def full_patience(n: int) -> Patience:
    """Before the first step."""
    return Patience(np.full(n, np.inf), np.zeros(n, dtype=np.int64))


@kernel
def waited(i: int, gap: float, patience: Patience) -> int:
    """The steps since the gap was last halved, this one's gap included."""
    patience.still[i] += 1
    if gap <= 0.5 * patience.least[i]:
        patience.least[i], patience.still[i] = gap, 0
    return patience.still[i]
