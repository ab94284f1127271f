"""How many problems were solved, by kind: what a stretch of code asks of the polytopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spigot.polytopes.regularizers import Regularizer

__all__ = ["spend", "tally"]

_CURRENT: ContextVar[Counter[str] | None] = ContextVar("tally", default=None)


@contextmanager
def tally() -> Generator[Counter[str]]:
    """Counts the instances solved inside, by the regularizer's name, and the samples drawn.

    What a road asks of other roads belongs to its own work and is not counted again. The count is of
    this thread: a backward on another device runs in a thread of its own.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.polytopes.tally import tally
        >>> with tally() as spent:
        ...     _ = Simplex(3).maximize(torch.zeros(5, 3)), Simplex(3).marginals(torch.zeros(3))
        >>> dict(spent)
        {'MAP': 5, 'Gibbs': 1}
    """
    counter: Counter[str] = Counter()
    token = _CURRENT.set(counter)
    try:
        yield counter
    finally:
        _CURRENT.reset(token)


def spend(what: Regularizer | str | None, instances: int) -> AbstractContextManager[None]:
    """Counts that many, and nothing of what is solved inside."""
    counter = _CURRENT.get()
    return _NOT_COUNTING if counter is None else _spent(counter, what, instances)


@contextmanager
def _spent(counter: Counter[str], what: Regularizer | str | None, instances: int) -> Generator[None]:
    name = what if isinstance(what, str) else "MAP" if what is None else type(what).__name__
    counter[name] += instances
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


_NOT_COUNTING = nullcontext()
