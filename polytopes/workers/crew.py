"""What workers are to an oracle: those who answer, and the instance without an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np

__all__ = ["Array", "Crew", "Failure", "Function", "fail"]

Array = np.ndarray
Function = Callable[[Array], Any]


class Failure(Exception):
    """One instance has no answer.

    Attributes:
        row: which; None where a worker could not even start.
        reason: what happened, as it follows "the oracle".
        late: whether it was the time limit.
    """

    def __init__(self, row: int | None, reason: str, late: bool = False) -> None:
        super().__init__(row, reason, late)
        self.row = row
        self.reason = reason
        self.late = late


class Crew(Protocol):
    """Those who answer."""

    def run(self, inputs: Sequence[Array]) -> list[Any]:
        """An answer each, in order.

        Raises:
            Failure: the first instance without one.
        """
        ...


def fail(row: int, error: BaseException) -> NoReturn:
    """Raises the failure of an instance whose function raised."""
    raise Failure(row, f"raised {type(error).__name__}: {error}") from error
