"""Segmentations with tags: semi-Markov chains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.linear import LinearMap, SizeAndMap, with_maps
from spigot.polytopes.posing import check_event
from spigot.polytopes.structures.dynamic import DynamicProgram
from spigot.polytopes.structures.program import UNIT, EdgeList, Program

__all__ = ["SemiMarkov"]

INSIDE, PADDING = -1, -2


def _into_tags(segments: Tensor) -> Tensor:  # (n, length, width, tags, tags) -> (n, length, tags)
    """How much each position lies in a segment of each tag."""
    length, width = segments.shape[1:3]
    covering = segments.sum(-2)
    inside = [
        torch.nn.functional.pad(covering[:, : length - after, after:].sum(2), (0, 0, after, 0))
        for after in range(min(width, length))
    ]
    return torch.stack(inside).sum(0)


def _along_segments(tags: Tensor, event: tuple[int, ...]) -> Tensor:
    """The sum of a segment's tag weights over its positions inside the event."""
    totals = _running(tags, event[1])
    return totals.unsqueeze(-2).expand(-1, *event)


def _running(unary: Tensor, width: int) -> Tensor:  # (*, length, tags) -> (*, length, width, tags)
    """Sums over the positions of each segment, as far as they go."""
    length = unary.shape[-2]
    sums = [unary]
    for after in range(1, width):
        ahead = torch.nn.functional.pad(
            unary[..., min(after, length) :, :], (0, 0, 0, min(after, length))
        )
        sums.append(sums[-1] + ahead)
    return torch.stack(sums, -2)


@with_maps(tags=LinearMap("SemiMarkov.tags", _into_tags, _along_segments))
@dataclass(frozen=True)
class SemiMarkov(DynamicProgram):
    """conv of the ways to cut `length` positions into segments, each with one of `tags` tags.

    Parts: `(length, width, tags, tags)`, segments: entry [t, w, i, j] is the segment of w + 1
    positions from t on, tagged j, after one tagged i. The first segment has none before it: at t = 0
    row i = 0 alone is used. Parts of those other rows, and of segments that would run over the end,
    are 0 in every structure, their scores ignored. `SemiMarkov.pack` makes scores of unary,
    transition and duration ones. `SemiMarkov.tags`, of the class, is the linear map to the tag
    marginals of the positions, `(length, tags)`, for `Euclidean(of=SemiMarkov.tags)`.

    Labels are `(*batch, length)`: the tag where a segment starts, -1 where it goes on, -2 in the
    padding. Neighbouring segments may have the same tag (`keep` excludes that).

    Args:
        length: the number of positions, at least 1.
        tags: how many tags there are, at least 1.
        width: how many positions a segment has at most, at least 1.

    Raises:
        TypeError: length, tags or width is no whole number.
        ValueError: one of them is below 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import SemiMarkov
        >>> chain = SemiMarkov(length=4, tags=2, width=3)
        >>> vertex = chain.encode(torch.tensor([1, -1, 0, -1]))
        >>> vertex.nonzero()
        tensor([[0, 1, 0, 1],
                [2, 1, 1, 0]])
        >>> chain.decode(chain.maximize(vertex))
        tensor([ 1, -1,  0, -1])
        >>> SemiMarkov.tags.apply(vertex[None])[0]
        tensor([[0., 1.],
                [0., 1.],
                [1., 0.],
                [1., 0.]])

    References:
        Sarawagi and Cohen, "Semi-Markov conditional random fields" (NIPS 2004).
    """

    length: int
    tags: SizeAndMap
    width: int

    def __post_init__(self) -> None:
        whole_numbers(self, length=self.length, tags=self.tags, width=self.width)
        if min(self.length, self.tags, self.width) < 1:
            raise ValueError(f"{self}: length, tags and width must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(length, width, tags, tags)`."""
        return (self.length, self.width, self.tags, self.tags)

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to the length."""
        return 1, self.length

    def at(self, length: int) -> SemiMarkov:
        """The first `length` positions."""
        return replace(self, length=length)

    def declared(self) -> Program:
        """A node for the first t positions with a last tag j, and one with any."""
        tags = self.tags
        t, w, i, j = (axis.ravel() for axis in np.indices(self.event_shape))
        fits = (t + w < self.length) & ((t > 0) | (i == 0))
        t, w, i, j = t[fits], w[fits], i[fits], j[fits]
        part = np.ravel_multi_index((t, w, i, j), self.event_shape)
        ends, last = (axis.ravel() for axis in np.indices((self.length, tags)))
        families = [
            EdgeList(_ended(t + w + 1, j, tags), _ended(t, i, tags), UNIT, part),
            EdgeList(_ended(ends + 1, tags, tags), _ended(ends + 1, last, tags)),
        ]
        return Program.compiled(families, _ended(np.arange(self.length + 1), tags, tags))

    @staticmethod
    def pack(
        unary: Tensor, transition: Tensor, duration: Tensor | None = None, *, width: int | None = None
    ) -> Tensor:
        """Scores of segments: the unary ones they cover, the transition into them, and their duration.

        Args:
            unary: `(*batch, length, tags)`.
            transition: `(*batch or nothing, tags, tags)`, from tag i to tag j; none into the first
                segment.
            duration: `(*batch or nothing, width, tags)`, of w + 1 positions with tag j.
            width: how many positions a segment has at most, where no duration says it.

        Returns:
            `(*batch, length, width, tags, tags)`, differentiable in all of them.

        Raises:
            ValueError: shapes that do not fit, or neither duration nor width.

        Example:
            >>> import torch
            >>> from spigot.polytopes import SemiMarkov
            >>> unary = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
            >>> scores = SemiMarkov.pack(unary, torch.zeros(2, 2), width=2)
            >>> SemiMarkov(3, 2, 2).maximize(scores).nonzero()  # [0, 1] with tag 0, [2] with tag 1
            tensor([[0, 1, 0, 0],
                    [2, 0, 0, 1]])
        """
        tags = unary.shape[-1] if unary.dim() > 1 else 0
        if duration is not None:
            width = duration.shape[-2] if duration.dim() > 1 and width is None else width
        if width is None or width < 1:
            raise ValueError("SemiMarkov.pack needs duration scores (width, tags), or width=.")
        fits = tags and transition.shape[-2:] == (tags, tags)
        if not fits or (duration is not None and duration.shape[-2:] != (width, tags)):
            shapes = [tuple(x.shape) for x in (unary, transition, duration) if x is not None]
            raise ValueError(
                "SemiMarkov.pack: unary (length, tags), transition (tags, tags) and duration "
                f"(width, tags) scores do not fit; their shapes are {', '.join(map(str, shapes))}."
            )
        segment = _running(unary, width)
        segment = segment if duration is None else segment + duration.unsqueeze(-3)
        into = transition.unsqueeze(-3).unsqueeze(-3)
        later = segment[..., 1:, :, None, :] + into
        first = segment[..., :1, :, None, :].expand(*later.shape[:-4], 1, width, tags, tags)
        return torch.cat([first, later], -4)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of `(*batch, length)`: tags where segments start, -1 where they go on.

        Without `lengths`, -2 at the end is padding; with them, what lies beyond is ignored.

        Raises:
            TypeError: labels are no integers.
            ValueError: a wrong shape, or an instance that is no segmentation.
        """
        tags = whole_labels(labels, "tag ids")
        if tags.dim() == 0 or tags.shape[-1] != self.length:
            raise ValueError(
                f"labels of shape {tuple(tags.shape)} do not fit {self}: the last dimension must be "
                f"its length {self.length}, padded with -2."
            )
        batch = tags.shape[:-1]
        flat = tags.reshape(-1, self.length).long().cpu()
        padded = (flat == PADDING).flip(1).long().cumprod(1).sum(1)
        given = label_sizes(self, batch, lengths, flat.device).reshape(-1)
        sizes = self.length - padded if lengths is None else given
        position = torch.arange(self.length)
        inside = position < sizes[:, None]
        starts = inside & (flat != INSIDE)
        following = _next_start(starts, sizes)
        for must, wrong in _faults(flat, starts, following, sizes, self):
            refuse_labels(must, wrong, flat, batch, lengths)
        vertices = torch.zeros(len(flat), *self.event_shape)
        instance, t = starts.nonzero(as_tuple=True)
        earlier = torch.where(starts, position, 0).cummax(1).values  # the start at or before each
        before = earlier[instance, (t - 1).clamp_min(0)]
        i = torch.where(t > 0, flat[instance, before], 0)
        vertices[instance, t, following[instance, t] - t - 1, i, flat[instance, t]] = 1.0
        made = vertices.to(tags.device, torch.get_default_dtype())
        return made.reshape(*batch, *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """`(*batch, length)`: tags where segments start, -1 where they go on, -2 in the padding."""
        check_event(self, vertices, "vertices")
        start, tag = vertices.sum((-3, -2)).max(-1)
        covered = _into_tags(vertices.reshape(-1, *self.event_shape)).sum(-1).reshape(start.shape)
        going_on = torch.where(covered > 0.5, INSIDE, PADDING)
        return torch.where(start > 0.5, tag, going_on)


def _ended(t: Any, tag: Any, tags: int) -> np.ndarray:
    """The number of the node for t positions and a last tag, `tags` for any; none has no positions."""
    return np.where(np.asarray(t) == 0, UNIT, np.asarray(t) * (tags + 1) + tag)


def _next_start(starts: Tensor, sizes: Tensor) -> Tensor:  # (b, length)
    """Where the segment after each position's starts."""
    length = starts.shape[1]
    ahead = torch.where(starts, torch.arange(length), length)
    ahead = torch.minimum(ahead.flip(1).cummin(1).values.flip(1), sizes[:, None])
    return torch.cat([ahead[:, 1:], sizes[:, None]], 1)


def _faults(
    tags: Tensor, starts: Tensor, following: Tensor, sizes: Tensor, chain: SemiMarkov
) -> Iterator[tuple[str, Tensor]]:
    """What `(b, length)` must be to be segmentations, and where not: `(b,)` or `(b, length)`."""
    position = torch.arange(chain.length)
    yield f"must have 1 to {chain.length} positions", (sizes < 1) | (sizes > chain.length)
    yield "must start a segment at the first position", ~starts & (position == 0)
    outside = starts & ((tags < 0) | (tags >= chain.tags))
    yield f"must be tag ids in 0..{chain.tags - 1}, or -1 where a segment goes on", outside
    long = starts & (following - position > chain.width)
    yield f"must hold no segment of more than {chain.width} positions", long
