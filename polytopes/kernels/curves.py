"""The separable regularizers inside compiled loops: phi, phi' inverted, and its derivative."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = [
    "EUCLIDEAN",
    "FERMI_DIRAC",
    "SHANNON",
    "TSALLIS",
    "Curve",
    "conjugate",
    "mirror",
    "phi",
    "slope",
    "spread",
]

EUCLIDEAN, SHANNON, FERMI_DIRAC, TSALLIS = 0, 1, 2, 3


class Curve(NamedTuple):
    """Which phi."""

    kind: int
    alpha: float  # of Tsallis
    steep: bool


@kernel
def mirror(curve: Curve, x: float) -> float:
    """The y with phi'(y) = x."""
    if curve.kind == EUCLIDEAN:
        return x
    if curve.kind == SHANNON:
        return np.exp(x - 1.0)
    if curve.kind == FERMI_DIRAC:
        return 1.0 / (1.0 + np.exp(-x)) if x >= 0.0 else np.exp(x) / (1.0 + np.exp(x))
    return max((curve.alpha - 1.0) * x + 1.0 / curve.alpha, 0.0) ** (1.0 / (curve.alpha - 1.0))


@kernel
def slope(curve: Curve, y: float, rest: float) -> float:
    """phi'(y), where `rest` is 1 - y."""
    if curve.kind == EUCLIDEAN:
        return y
    if curve.kind == SHANNON:
        return 1.0 + np.log(y)
    if curve.kind == FERMI_DIRAC:
        return np.log(y) - np.log(rest)
    return (y ** (curve.alpha - 1.0) - 1.0 / curve.alpha) / (curve.alpha - 1.0)


@kernel
def spread(curve: Curve, x: float, y: float) -> float:
    """1 / phi''(y), where phi'(y) = x."""
    if curve.kind == EUCLIDEAN:
        return 1.0
    if curve.kind == SHANNON:
        return y
    if curve.kind == FERMI_DIRAC:
        small = np.exp(-abs(x))
        return small / (1.0 + small) / (1.0 + small)
    return y ** (2.0 - curve.alpha)


@kernel
def spread_at(curve: Curve, y: float) -> float:
    """1 / phi''(y) from y alone; 0 where it is infinite."""
    if curve.kind == EUCLIDEAN:
        return 1.0
    if curve.kind == SHANNON:
        return max(y, 0.0)
    if curve.kind == FERMI_DIRAC:
        return max(y * (1.0 - y), 0.0)
    if y <= 0.0:
        return 1.0 if curve.alpha == 2.0 else 0.0
    return y ** (2.0 - curve.alpha)


@kernel
def phi(curve: Curve, y: float) -> float:
    """The value of phi at y."""
    if curve.kind == EUCLIDEAN:
        return 0.5 * y * y
    if curve.kind == SHANNON:
        return y * np.log(y) if y > 0.0 else 0.0
    if curve.kind == FERMI_DIRAC:
        inside = y * np.log(y) if y > 0.0 else 0.0
        return inside + ((1.0 - y) * np.log1p(-y) if y < 1.0 else 0.0)
    return (y**curve.alpha - y) / (curve.alpha * (curve.alpha - 1.0))


@kernel
def conjugate(curve: Curve, x: float, y: float) -> float:
    """x y - phi(y), where phi'(y) = x."""
    if curve.kind == EUCLIDEAN:
        return 0.5 * x * x
    if curve.kind == SHANNON:
        return y
    if curve.kind == FERMI_DIRAC:
        return max(x, 0.0) + np.log1p(np.exp(-abs(x)))
    return x * y - phi(curve, y)
