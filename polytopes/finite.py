"""Whether all numbers are finite, in one pass."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.kernels.totals import BLOCK, totals

__all__ = ["all_finite"]

FEW = 1 << 15  # torch adds up more in threads of its own, which then keep the cores busy for a while


def all_finite(values: Tensor) -> bool:
    """Whether a sum of them is: false also where they are so large that it overflows."""
    simple = values.numel() <= FEW or not values.is_contiguous()  # copies are worse than its threads
    if simple or values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return math.isfinite(values.sum().item())
    flat = contiguous(values).ravel()
    sums = np.zeros(-(-flat.size // BLOCK), flat.dtype)
    over_instances(totals, len(sums), flat, sums)
    return bool(np.isfinite(sums).all())
