"""Binary constituency trees, by the CKY algorithm."""

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

__all__ = ["ConstituencyTree"]


@dataclass(frozen=True)
class ConstituencyTree(DynamicProgram):
    """conv of the binary bracketings of n words, each the set of its 2n - 1 spans.

    Parts: `(n, n)`, spans: entry [i, j] is the words i to j, both included. Below the diagonal
    parts are 0 in every structure, single words and the whole sentence 1. With `labels` the parts are
    `(n, n, labels)`, and each span has one label, single words too.

    Labels of trees are spans `(*batch, 2n - 1, 2)`, each its first and last word, or
    `(*batch, 2n - 1, 3)` with its label; a span comes before those inside it, from left to right,
    and rows of -1 are padding. MAP takes O(n^3), and so do marginals.

    Args:
        n: how many words, at least 1.
        labels: how many labels a span can have; None for none.

    Raises:
        TypeError: n or labels is no whole number.
        ValueError: n < 1 or labels < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import ConstituencyTree
        >>> tree = ConstituencyTree(3)
        >>> tree.encode(torch.tensor([[0, 2], [0, 0], [1, 2], [1, 1], [2, 2]]))
        tensor([[1., 0., 1.],
                [0., 1., 1.],
                [0., 0., 1.]])
        >>> tree.decode(tree.maximize(torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [0.0] * 3])))
        tensor([[0, 2],
                [0, 1],
                [0, 0],
                [1, 1],
                [2, 2]])
        >>> ConstituencyTree(4).log_partition(torch.zeros(4, 4)).exp().round()  # how many there are
        tensor(5.)

    References:
        Younger, "Recognition and parsing of context-free languages in time n^3" (1967).
    """

    n: int
    labels: int | None = None

    def __post_init__(self) -> None:
        whole_numbers(self, n=self.n, labels=1 if self.labels is None else self.labels)
        if self.n < 1 or (self.labels is not None and self.labels < 1):
            raise ValueError(f"{self}: n and labels must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, n)` or `(n, n, labels)`."""
        return (self.n, self.n) if self.labels is None else (self.n, self.n, self.labels)

    @property
    def length_range(self) -> tuple[int, int]:
        """1 to n."""
        return 1, self.n

    def at(self, length: int) -> ConstituencyTree:
        """The trees of so many words."""
        return replace(self, n=length)

    def declared(self) -> Program:
        """Each span has a node for its words, put together from two shorter ones, and one labelled."""
        start, end, rank = spans(self.n)
        i, k, j = splits(start, end)
        kinds = self.labels or 1
        part = (start * self.n + end)[:, None] * kinds + np.arange(kinds)
        words = np.where(start == end, UNIT, 2 * rank[start, end] + 1)
        whole = 2 * rank + 2
        families = [
            EdgeList(2 * rank[i, j] + 1, whole[i, k], whole[k + 1, j]),
            EdgeList(whole[start, end].repeat(kinds), words.repeat(kinds), UNIT, part),
        ]
        return Program.compiled(families, np.concatenate([[UNIT], whole[0]]))

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of spans `(*batch, rows, 2)`, or `(*batch, rows, 3)` with labels, in any order.

        Rows that begin with -1 are padding. Without labels, single words may be left out. Without
        `lengths` a tree has the words up to the last one named.

        Raises:
            TypeError: labels are no integers.
            ValueError: a wrong shape, or an instance that is no binary bracketing.
        """
        rows = whole_labels(labels, "spans of word indices")
        columns = len(self.event_shape)
        if rows.dim() < 2 or rows.shape[-1] != columns:
            raise ValueError(
                f"labels of shape {tuple(rows.shape)} do not fit {self}: they must be spans "
                f"(*batch, rows, {columns})."
            )
        batch = rows.shape[:-2]
        flat = rows.reshape(-1, *rows.shape[-2:]).long().cpu()
        named = flat[..., 0] >= 0
        last = torch.where(named, flat[..., 1], 0).amax(1)
        given = label_sizes(self, batch, lengths, flat.device).reshape(-1)
        sizes = 1 + last if lengths is None else given
        for must, wrong in _faults(flat, named, sizes, self):
            refuse_labels(must, wrong, flat, batch, lengths)
        vertices = torch.zeros(len(flat), *self.event_shape)
        instance, row = named.nonzero(as_tuple=True)
        vertices[(instance, *flat[instance, row].t())] = 1.0
        if self.labels is None:
            word = torch.arange(self.n)
            vertices[:, word, word] = (word < sizes[:, None]).float()
        made = vertices.to(rows.device, torch.get_default_dtype())
        return made.reshape(*batch, *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Spans `(*batch, 2n - 1, 2)` or `(*batch, 2n - 1, 3)`, padded with -1."""
        batch = check_event(self, vertices, "vertices")
        device = vertices.device
        parts = vertices.reshape(*batch, self.n, self.n, self.labels or 1)
        weight, label = parts.max(-1)
        start, end = torch.ones(self.n, self.n).triu().nonzero(as_tuple=True)
        order = (start * self.n + self.n - end).argsort().to(device)
        start, end = start.to(device)[order], end.to(device)[order]
        slot = torch.arange(len(order), device=device)
        chosen = torch.where(weight[..., start, end] > 0.5, slot, len(order))
        chosen = chosen.sort(-1).values[..., : 2 * self.n - 1]
        kept = chosen < len(order)
        index = torch.where(kept, chosen, 0)
        columns = [start[index], end[index]]
        if self.labels is not None:
            columns.append(label[..., start, end].gather(-1, index))
        return torch.where(kept[..., None], torch.stack(columns, -1), -1)


def _faults(
    rows: Tensor, named: Tensor, sizes: Tensor, tree: ConstituencyTree
) -> Iterator[tuple[str, Tensor]]:
    """What spans `(b, rows, 2 or 3)` must be to be trees, and where not: `(b,)` or `(b, rows)`."""
    yield f"must have 1 to {tree.n} words", (sizes < 1) | (sizes > tree.n)
    start, end = rows[..., 0], rows[..., 1]
    yield "must be word indices, or rows of -1", (rows < -1).any(2)
    outside = (start > end) | (end >= sizes[:, None])
    if tree.labels is not None:
        outside |= (rows[..., 2] < 0) | (rows[..., 2] >= tree.labels)
    yield "must be spans of words in the sentence", outside & named
    pairs = named[:, :, None] & named[:, None]
    first, second = (start[:, :, None], end[:, :, None]), (start[:, None], end[:, None])
    same = (first[0] == second[0]) & (first[1] == second[1]) & pairs
    yield "must name no span twice", same.sum(2) > 1
    crossing = (first[0] < second[0]) & (second[0] <= first[1]) & (first[1] < second[1]) & pairs
    yield "must hold no two spans that cross", crossing.any(2)
    wide = (named & (start < end)).sum(1)
    whole = (named & (start == 0) & (end == sizes[:, None] - 1)).any(1) | (sizes == 1)
    yield "must split every span in two", ~whole | (wide != sizes - 1)
    if tree.labels is not None:
        yield "must label every single word", (named & (start == end)).sum(1) != sizes
