"""Surrogate gradients: what a loss's gradient at a structure says about the scores behind it."""

from spigot.pullback.estimators import (
    SPIGOT,
    SPIGOTCE,
    SPIGOTEG,
    PullBack,
    SPIGOTSparseMAP,
    STEIdentity,
)
from spigot.pullback.steps import Geometry, Unconstrained

__all__ = [
    "SPIGOT",
    "SPIGOTCE",
    "SPIGOTEG",
    "Geometry",
    "PullBack",
    "SPIGOTSparseMAP",
    "STEIdentity",
    "Unconstrained",
]
