"""Projective dependency trees, by Eisner's algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.structures.dynamic import DynamicProgram
from spigot.polytopes.structures.program import UNIT, EdgeList, Program
from spigot.polytopes.structures.spans import spans, splits

__all__ = ["ProjectiveTree"]

ROOT, PADDING = -1, -2


@dataclass(frozen=True)
class ProjectiveTree(DynamicProgram):
    """conv of the projective dependency trees of n words: no two arcs cross, nor one the root's.

    Parts: `(n, n)`, arcs `[head, dependent]`; the diagonal holds the root's arcs. The root stands
    to the left of the sentence. Labels are head indices `(*batch, n)`, -1 for the root's words and
    -2 for padding. MAP takes O(n^3), and so do marginals.

    Args:
        n: how many words, at least 1.
        single_root: whether the root has exactly one word.

    Raises:
        TypeError: n is no whole number.
        ValueError: n < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import ProjectiveTree
        >>> tree = ProjectiveTree(3)
        >>> arcs = tree.encode(torch.tensor([1, -1, 1]))  # both neighbours hang on the middle word
        >>> arcs
        tensor([[0., 0., 0.],
                [1., 1., 1.],
                [0., 0., 0.]])
        >>> tree.decode(tree.maximize(arcs))
        tensor([ 1, -1,  1])
        >>> tree.log_partition(torch.zeros(3, 3)).exp().round()  # how many there are
        tensor(12.)

    References:
        Eisner, "Three new probabilistic models for dependency parsing" (COLING 1996).
    """

    n: int
    single_root: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, n=self.n)
        if self.n < 1:
            raise ValueError(f"ProjectiveTree(n={self.n}): n must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, n)`."""
        return (self.n, self.n)

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to n."""
        return 1, self.n

    def at(self, length: int) -> ProjectiveTree:
        """The trees of so many words."""
        return replace(self, n=length)

    def declared(self) -> Program:
        """Positions 0 (the root) to n; a span i < j of them is derived in up to five ways.

        JOINED holds the words of its two ends that lie between them, OVER and UNDER an arc i -> j
        or j -> i besides, RIGHT (LEFT) all words of i (of j) in the span.
        """
        n = self.n
        start, end, rank = spans(n + 1)
        chosen = (start < end) & (start >= int(self.single_root))
        start, end = start[chosen], end[chosen]
        i, k, j = splits(start, end)
        families = [
            EdgeList(_node(JOINED, i, j, rank), _node(RIGHT, i, k, rank), _node(LEFT, k + 1, j, rank)),
            EdgeList(
                _node(OVER, start, end, rank), _node(JOINED, start, end, rank), UNIT, _arc(start, end, n)
            ),
            EdgeList(
                _node(RIGHT, i, j, rank), _node(OVER, i, k + 1, rank), _node(RIGHT, k + 1, j, rank)
            ),
        ]
        start, end = start[start > 0], end[start > 0]  # the root is nobody's dependent
        i, k, j = splits(start, end)
        families += [
            EdgeList(
                _node(UNDER, start, end, rank),
                _node(JOINED, start, end, rank),
                UNIT,
                _arc(end, start, n),
            ),
            EdgeList(_node(LEFT, i, j, rank), _node(LEFT, i, k, rank), _node(UNDER, k, j, rank)),
        ]
        size = np.arange(n + 1)
        if not self.single_root:
            return Program.compiled(families, _node(RIGHT, 0, size, rank))
        top, bottom = np.nonzero(np.tri(n, dtype=bool))
        word, last = bottom + 1, top + 1  # the root's only word, in a sentence that ends at `last`
        left, right = _node(LEFT, 1, word, rank), _node(RIGHT, word, last, rank)
        families.append(EdgeList(_node(WHOLE, 0, last, rank), left, right, _arc(0, word, n)))
        return Program.compiled(families, _node(WHOLE, 0, size, rank))

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of head indices `(*batch, n)`, -1 for the root's words.

        Without `lengths`, -2 at the end is padding; with them, what lies beyond is ignored.

        Raises:
            TypeError: labels are no integers.
            ValueError: a wrong shape, or an instance that is no projective tree.
        """
        heads = whole_labels(labels, "head indices")
        if heads.dim() == 0 or heads.shape[-1] != self.n:
            raise ValueError(
                f"labels of shape {tuple(heads.shape)} do not fit {self}: the last dimension must be "
                f"its {self.n} words, padded with -2."
            )
        batch = heads.shape[:-1]
        flat = heads.reshape(-1, self.n).long().cpu()
        padded = (flat == PADDING).flip(1).long().cumprod(1).sum(1)
        given = label_sizes(self, batch, lengths, flat.device).reshape(-1)
        sizes = self.n - padded if lengths is None else given
        for must, wrong in _faults(flat, sizes, self.single_root):
            refuse_labels(must, wrong, flat, batch, lengths)
        word = torch.arange(self.n)
        above = torch.where(flat == ROOT, word, flat)
        inside = word < sizes[:, None]
        arcs = (above[:, None] == word[:, None]) & inside[:, None]  # (b, head, dependent)
        return arcs.to(heads.device, torch.get_default_dtype()).reshape(*batch, *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Head indices `(*batch, n)`, -1 for the root's words and -2 in the padding."""
        check_event(self, vertices, "vertices")
        weight, heads = vertices.max(-2)
        heads = torch.where(heads == torch.arange(self.n, device=heads.device), ROOT, heads)
        return torch.where(weight > 0, heads, PADDING)


JOINED, OVER, UNDER, RIGHT, LEFT, WHOLE = range(1, 7)
KINDS = 7


def _node(kind: int, start: Any, end: Any, rank: np.ndarray) -> np.ndarray:
    """The number of a span's node; a word by itself has all its words."""
    return np.where(np.asarray(start) == end, UNIT, KINDS * rank[start, end] + kind)


def _arc(head: Any, dependent: Any, n: int) -> np.ndarray:
    """The flat part of an arc between positions; the root's arcs are the diagonal."""
    return np.where(head == 0, dependent - 1, np.asarray(head) - 1) * n + dependent - 1


def _faults(heads: Tensor, sizes: Tensor, single_root: bool) -> Iterator[tuple[str, Tensor]]:
    """What head indices `(b, n)` must be to be trees, and where not: `(b,)` or `(b, n)`."""
    n = heads.shape[1]
    word = torch.arange(n)
    inside = word < sizes[:, None]
    limits = (sizes < 1) | (sizes > n)
    yield f"must have 1 to {n} words", limits
    range_ = (heads < ROOT) | (heads >= sizes[:, None]) | (heads == word)
    yield "must be indices of other words, or -1", range_ & inside
    up = torch.nn.functional.pad(torch.where((heads == ROOT) | ~inside, n, heads), (0, 1), value=n)
    for _ in range(n.bit_length()):
        up = up.gather(1, up)
    yield "must be trees, without a cycle", up[:, :n] < n
    roots = ((heads == ROOT) & inside).sum(1)
    yield "must have exactly one root, a head of -1", (roots != 1) & single_root
    low, high = torch.minimum(heads, word), torch.maximum(heads, word)
    first, second = (low[:, :, None], high[:, :, None]), (low[:, None], high[:, None])
    crossing = (first[0] < second[0]) & (second[0] < first[1]) & (first[1] < second[1])
    crossing &= inside[:, :, None] & inside[:, None]
    yield "must be projective, no two arcs crossing", crossing.any(2)
