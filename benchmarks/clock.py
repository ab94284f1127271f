"""Times of several methods that take turns, until their ratios settle."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Patience", "ratios", "take_turns"]

SETTLED = 0.1  # a ratio's half interquartile range, relative to its median
PLAIN, ROUGHLY = 4.0, 0.25  # and of a ratio that far from 1, whatever its noise


@dataclass(frozen=True)
class Patience:
    """How long to measure.

    Args:
        window: seconds that a method's turn takes at least, in as many calls as fit.
        rounds: turns of each method at least; at most twice as many, until ratios settle.
        budget: seconds of one method; a slow one gets fewer rounds, 3 at least.
    """

    window: float = 0.3
    rounds: int = 9
    budget: float = 10.0


def take_turns(methods: Mapping[str, Callable[[], object]], patience: Patience) -> dict[str, np.ndarray]:
    """Seconds a call, one figure a round; the first method is the one that ratios are taken to.

    Every method is called before the first round (it compiles, and fills its caches).
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    repeats, most = {}, {}
    for name, call in methods.items():
        call()
        once = _turn(call, 1)
        repeats[name] = max(1, round(patience.window / max(once, 1e-9)))
        turn = max(once, patience.window)
        most[name] = max(min(3, patience.rounds), min(2 * patience.rounds, int(patience.budget / turn)))
    while any(len(seconds[name]) < most[name] for name in methods):
        for name, call in methods.items():
            if len(seconds[name]) < most[name]:
                seconds[name].append(_turn(call, repeats[name]))
        taken = {name: np.array(own) for name, own in seconds.items()}
        if min(map(len, seconds.values())) >= patience.rounds and _settled(taken):
            break
    return {name: np.array(own) for name, own in seconds.items()}


def _turn(call: Callable[[], object], repeats: int) -> float:
    enabled = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    took = (time.perf_counter() - start) / repeats
    if enabled:
        gc.enable()
    return took


def ratios(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of the rounds' ratios."""
    rounds = min(len(above), len(below))
    low, middle, high = np.quantile(above[:rounds] / below[:rounds], [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def _settled(taken: Mapping[str, np.ndarray]) -> bool:
    first, *others = taken.values()
    for low, middle, high in (ratios(other, first) for other in others):
        near = 1 / PLAIN < middle < PLAIN
        if high - low > 2 * (SETTLED if near else ROUGHLY) * middle:
            return False
    return True
