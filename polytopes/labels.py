"""Labels of whole numbers, and the sizes that go with them, as users hand them over."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.arrays import numbers, rows_where
from spigot.polytopes.errors import describe_wrong
from spigot.polytopes.posing import check_lengths

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["label_sizes", "labels_of", "refuse_labels", "whole_labels"]

MOST_SHOWN = 16  # numbers of a label in a message


def whole_labels(labels: Any, what: str) -> Tensor:
    """The labels, `what` they are to be, as a tensor of whole numbers.

    Raises:
        TypeError: they are none.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"labels must be {what}: a tensor, an array, or lists of lists of equal lengths ({error})."
        ) from error
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise TypeError(f"labels must be {what}, got dtype {found.dtype}.")
    return found


def refuse_labels(
    must: str,
    wrong: Tensor,
    labels: Tensor,
    batch_shape: Sequence[int],
    lengths: Tensor | None = None,
    entry: str = "",
) -> None:
    """Raises where labels are wrong, naming the first wrong one and the instances.

    Args:
        must: what they must be, such as "must lie in 0..2".
        wrong: whole instances, `(*batch,)`, or entries of theirs, `(*batch, ...)`; or from `(n, ...)`.
        labels: of the shape of `wrong`, and then that of a label or entry.
        batch_shape: the user's own.
        lengths: the user's own, which `label_sizes` has let pass.
        entry: what an entry is, such as "step".

    Raises:
        ValueError: something is wrong.
    """
    if not bool(wrong.any()):
        return
    n, first = prod(batch_shape), rows_where(wrong)[0]
    entries = wrong.numel() // n
    row, position = divmod(first, entries)
    value = labels.reshape(wrong.numel(), *labels.shape[wrong.dim() :])[first]
    size = f"({_size(lengths.reshape(n, -1)[row])}) " if lengths is not None else ""
    named = f"the {entry} " if entry else ""
    place = f" at position {position}" if entries > 1 else ""
    rows = rows_where(wrong.reshape(n, entries).any(1))
    wrongs = describe_wrong(rows, batch_shape, f"{size}has {named}{_shown(value)}{place}")
    raise ValueError(f"labels {must}; {wrongs}")


def _size(length: Tensor) -> str:
    return f"length {int(length)}" if len(length) == 1 else f"lengths {numbers(length)}"


def _shown(label: Tensor) -> str:
    label = torch.round(label.detach().double(), decimals=4) if label.is_floating_point() else label
    if label.numel() <= MOST_SHOWN:
        return str(numbers(label))
    return f"[{', '.join(map(str, numbers(label.flatten()[:MOST_SHOWN])))}, ...]"


@contextmanager
def labels_of(who: str) -> Generator[None]:
    """Puts the name of their owner before what is wrong with labels."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{who}: {error}") from error


def label_sizes(
    polytope: Polytope, batch_shape: torch.Size, lengths: Tensor | None, device: torch.device
) -> Tensor:  # (*batch,) or (*batch, 2)
    """The sizes of a batch of labels, the largest where no lengths are given.

    Raises:
        TypeError: lengths are no tensor of whole numbers.
        ValueError: they have another shape than the labels' batch, or are out of range.
    """
    highest = torch.tensor(polytope.length_range[1], device=device)
    if lengths is None:
        return highest.expand((*batch_shape, *highest.shape))
    found = check_lengths(polytope, batch_shape, lengths, device)
    return found.reshape((*batch_shape, *highest.shape))
