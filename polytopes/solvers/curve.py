"""The separable regularizers as compiled loops know them."""

from __future__ import annotations

from spigot.polytopes.kernels import curves
from spigot.polytopes.regularizers import Euclidean, FermiDirac, Separable, Shannon, Tsallis

__all__ = ["CURVED", "curve_of"]

KINDS: dict[type[Separable], int] = {
    Euclidean: curves.EUCLIDEAN,
    Shannon: curves.SHANNON,
    FermiDirac: curves.FERMI_DIRAC,
    Tsallis: curves.TSALLIS,
}
CURVED = tuple(KINDS)
"""Those that have a curve."""


def curve_of(regularizer: Separable) -> curves.Curve:
    """Which phi it is."""
    alpha = regularizer.alpha if isinstance(regularizer, Tsallis) else 2.0
    return curves.Curve(KINDS[type(regularizer)], float(alpha), regularizer.steep)
