"""Labels of whole numbers, and the sizes that go with them, as users hand them over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.posing import check_lengths

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["label_sizes", "whole_labels"]


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
