"""A few small structures, one a kind of declaration, by which an installation is seen to work.

`python -m spigot.testing` checks them; nothing but the installed package is needed.
"""

from __future__ import annotations

import torch

from spigot.polytopes import (
    Arborescence,
    Hull,
    Polytope,
    Sequence,
    Simplex,
    Subset,
)

__all__ = ["FEW"]

FEW: list[Polytope] = [
    Simplex(4),
    Subset(4, 2),
    Arborescence(3),
    Sequence(3, 2),
    Hull(torch.eye(3)),
]
