"""Labels that list the steps of a walk, padded with -1."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes.labels import refuse_labels, whole_labels

__all__ = ["padded_walks"]


def padded_walks(labels: Any, step: tuple[int, ...]) -> Tensor:  # (*batch, L, *step), int64
    """Walks as one tensor; lists of lists may differ in length. `step` is the shape of one step.

    Raises:
        TypeError: labels of a floating dtype.
        ValueError: another shape, an empty walk, or padding before a walk's end.
    """
    walks = labels if isinstance(labels, Tensor) else _stacked(labels, step)
    walks = whole_labels(walks, "whole numbers")
    if walks.dim() < 1 + len(step) or tuple(walks.shape[walks.dim() - len(step) :]) != step:
        raise ValueError(
            f"labels of shape {tuple(walks.shape)} must be walks (*batch, L{', 2' * len(step)})."
        )
    used = (walks >= 0).flatten(walks.dim() - len(step)).all(-1) if step else walks >= 0
    batch = used.shape[:-1]
    if step:
        partial = (walks >= 0).any(-1) & ~used
        must = "must be steps of numbers from 0, or of -1 alone for padding"
        refuse_labels(must, partial, walks, batch)
    refuse_labels("must hold at least one step each", ~used.any(-1), walks, batch)
    gap = ~used & (used.flip(-1).long().cumsum(-1).flip(-1) > 0)
    refuse_labels("must hold -1 only after the last step", gap, walks, batch)
    return walks.long().cpu()


def _stacked(labels: Any, step: tuple[int, ...]) -> Tensor:
    try:
        return torch.as_tensor(labels)
    except (ValueError, TypeError):
        pass
    blank = [-1] * step[0] if step else -1
    try:
        rows: list[Any] = list(zip_longest(*labels, fillvalue=blank))
        return torch.as_tensor(rows).transpose(0, 1)
    except (ValueError, TypeError, IndexError) as error:
        form = "cells [row, column]" if step else "node numbers"
        raise TypeError(
            f"labels must be whole numbers, a list of {form} for each walk ({error})."
        ) from error
