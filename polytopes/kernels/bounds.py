"""Multipliers of inequalities in a Newton method: t >= low, held at the bound or sent there."""

from __future__ import annotations

import numpy as np

from spigot.polytopes.kernels.compiled import kernel

__all__ = ["at_most", "bounded", "crosses", "hold", "largest_error", "within"]


@kernel
def bounded(t: float, low: float) -> float:
    """t, at its bound where rounding leaves it next to it."""
    return low if t <= low + 1e-15 * abs(low) else t


@kernel
def largest_error(excess: np.ndarray, t: np.ndarray, low: np.ndarray, n: int) -> float:
    """The largest |excess| of a sum over its mass; a sum may fall short where the multiplier is 0."""
    worst = 0.0
    for p in range(n):
        worst = max(worst, excess[p] if t[p] <= low[p] else abs(excess[p]))
    return worst


@kernel
def at_most(t: np.ndarray, low: np.ndarray, step: np.ndarray, held: np.ndarray, n: int) -> float:
    """How much of the step it takes until the first multiplier is at its bound, 1 at most."""
    part = 1.0
    for p in range(n):
        if held[p] == 0.0 and t[p] + step[p] < low[p]:
            part = min(part, (low[p] - t[p]) / step[p])
    return part


@kernel
def crosses(t: np.ndarray, low: np.ndarray, step: np.ndarray, n: int) -> bool:
    """Whether the whole step sends any beyond its bound."""
    beyond = 0
    for p in range(n):
        beyond += t[p] + step[p] < low[p]
    return beyond > 0


@kernel
def hold(
    part: float, t: np.ndarray, low: np.ndarray, step: np.ndarray, held: np.ndarray, n: int
) -> None:
    """Holds those that are at their bound after this much of the step, or soon after."""
    for p in range(n):
        if step[p] < 0.0 and t[p] + 1.01 * part * step[p] <= low[p]:
            held[p] = 1.0


@kernel
def within(low: float, high: float, slope_low: float, along: float) -> float:
    """The next length that a line search tries in [low, high], given the slopes at low and at the last.

    Where the last went too far by its slope a secant step, where by its value a short one.
    """
    width = high - low
    if along > 0.0:
        return low + width * min(max(slope_low / (slope_low - along), 0.02), 0.9)
    return low + 0.3 * width
