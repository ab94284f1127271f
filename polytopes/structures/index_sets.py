"""Labels that list the parts of a set, padded with -1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spigot.polytopes.labels import refuse_labels, whole_labels
from spigot.polytopes.posing import check_event

if TYPE_CHECKING:
    from spigot.polytopes.base import Polytope

__all__ = ["decode_sets", "encode_sets"]


def encode_sets(labels: Any, d: int, lengths: Tensor | None) -> Tensor:  # (*batch, d)
    """0/1 vectors of index sets `(*batch, most)`, padded with -1 at their end.

    Raises:
        TypeError: indices that are no whole numbers.
        ValueError: a single number, an index out of range, or twice in a set.
    """
    index = whole_labels(labels, "part indices")
    if index.dim() == 0:
        raise ValueError("labels must be sets of part indices, (*batch, most); got a single number.")
    limit = torch.full(index.shape[:-1], d) if lengths is None else lengths
    batch, limit = index.shape[:-1], limit.to(index.device)
    wrong = (index < -1) | (index >= limit[..., None])
    must = f"must be part indices below {d} (and their length), or -1 for padding"
    refuse_labels(must, wrong, index, batch, lengths)
    slots = torch.where(index < 0, d, index).long()  # padding goes to one slot too many
    padded = torch.zeros(*batch, d + 1, device=index.device)
    padded.scatter_add_(-1, slots, torch.ones(slots.shape, device=index.device))
    again = (padded > 1).gather(-1, slots) & (index >= 0)
    refuse_labels("must be sets of distinct parts, none listed twice", again, index, batch)
    return padded[..., :d].to(torch.get_default_dtype())


def decode_sets(polytope: Polytope, vertices: Tensor, most: int) -> Tensor:  # (*batch, most)
    """Index sets, ascending, padded with -1 at their end."""
    check_event(polytope, vertices, "vertices")
    d = vertices.shape[-1]
    order = torch.arange(d, device=vertices.device).expand(vertices.shape)
    slots = torch.where(vertices > 0.5, order, d).sort(-1).values[..., :most]
    return torch.where(slots < d, slots, -1)
