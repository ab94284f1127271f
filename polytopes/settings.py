"""Checks of what an object is made with: whole numbers, and numbers of an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

from spigot.polytopes.errors import whole_numbers

__all__ = ["FRACTION", "POSITIVE", "SHARE", "Interval", "counts"]


def counts(owner: object, least: int = 1, **values: object) -> None:
    """Raises TypeError for a count that is no whole number, ValueError for one below `least`."""
    whole_numbers(owner, **values)
    for name, value in values.items():
        assert isinstance(value, int)
        if value < least:
            raise ValueError(f"{_name(owner)}: {name} must be at least {least}, got {value}.")


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, each part of it or not, and how to say so."""

    words: str
    low: float = 0.0
    high: float = math.inf
    with_low: bool = False
    with_high: bool = False

    def check(self, owner: object, **values: object) -> None:
        """Raises TypeError for what is no number, ValueError for one outside."""
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{_name(owner)}: {name} must be a number, got {value!r}.")
            if not self._holds(float(value)):
                raise ValueError(f"{_name(owner)}: {name} must {self.words}, got {value}.")

    def _holds(self, value: float) -> bool:
        above = value >= self.low if self.with_low else value > self.low
        return above and (value <= self.high if self.with_high else value < self.high)


POSITIVE = Interval("be a positive number")
FRACTION = Interval("lie in (0, 1)", high=1.0)
SHARE = Interval("lie in [0, 1]", high=1.0, with_low=True, with_high=True)


def _name(owner: object) -> str:
    return owner if isinstance(owner, str) else type(owner).__name__
