"""Which vertex a linear program answers where several are optimal: one rule for every road.

A reduced cost below the tolerance may hide a second optimum. Then a second program maximises a fixed
generic objective on the parts over the optimal face: the vertex is one of M, always the same one.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

__all__ = ["LARGEST", "SNAP", "TIE", "generic_objective"]

TIE = 1e-9  # a reduced cost this small may hide a second optimum; tiny scores are scaled up to 1
LARGEST = 1e12  # beyond, ordinary scores vanish beside the largest: excluded parts are for `keep`
SNAP = 1e-9  # coordinates this close to an integer are that integer


@lru_cache(maxsize=64)
def generic_objective(size: int) -> np.ndarray:
    """Fixed numbers in [1, 2) with no linear relation among them, almost surely.

    Those of a smaller size are the first ones of a larger.
    """
    return 1 + np.random.Generator(np.random.PCG64(20201116)).random(size)
