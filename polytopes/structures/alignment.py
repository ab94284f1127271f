"""Monotone alignments of two sequences: dynamic time warping and its relatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.labels import label_sizes, refuse_labels, whole_labels
from spigot.polytopes.linear import LinearMap
from spigot.polytopes.posing import check_event
from spigot.polytopes.structures.dynamic import DynamicProgram
from spigot.polytopes.structures.program import UNIT, EdgeList, Program

__all__ = ["Alignment"]

MOVES = np.array([[1, 1], [1, 0], [0, 1]])  # diagonal, down, right


def _into_cells(parts: Tensor) -> Tensor:  # (b, n, m, 3) -> (b, n, m)
    return parts.sum(-1)


def _along_moves(cells: Tensor, event: tuple[int, ...]) -> Tensor:
    return cells.unsqueeze(-1).expand(-1, *event)


@dataclass(frozen=True)
class Alignment(DynamicProgram):
    """conv of the monotone paths through an n x m grid of cells, from [0, 0] to [n - 1, m - 1].

    A path moves diagonally, down or right, one cell at a time (dynamic time warping).

    Parts: `(n, m)`, the cells that it visits. With `moves`, `(n, m, 3)`: the cell and how the path came
    to it, 0 diagonally (a match), 1 down or 2 right (gaps: Needleman and Wunsch); the first cell
    counts as come to diagonally. `Alignment.cells` is the linear map from those to the cells.

    Labels are the cells in order, `(*batch, n + m - 1, 2)`, padded with rows of -1. `lengths` are
    `(*batch, 2)`. DTW maximises minus the cost: scores are negative distances.

    Args:
        n: the length of the first sequence, at least 1.
        m: the length of the second one, at least 1.
        moves: whether parts say how a cell was come to.

    Raises:
        TypeError: n or m is no whole number.
        ValueError: n < 1 or m < 1.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Alignment
        >>> x, y = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.0, 0.1, 1.1, 1.9])
        >>> scores = -(x[:, None] - y).abs()
        >>> warp = Alignment(3, 4)
        >>> warp.maximize(scores)
        tensor([[1., 1., 0., 0.],
                [0., 0., 1., 0.],
                [0., 0., 0., 1.]])
        >>> warp.log_partition(torch.zeros(3, 4)).exp().round()  # how many paths there are
        tensor(25.)

    References:
        Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition"
        (1978).
        Cuturi and Blondel, "Soft-DTW" (ICML 2017): `log_partition` of -cost / gamma, times -gamma.
        Needleman and Wunsch, "A general method applicable to the search for similarities" (1970).
    """

    cells: ClassVar[LinearMap] = LinearMap("Alignment.cells", _into_cells, _along_moves)

    n: int
    m: int
    moves: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, n=self.n, m=self.m)
        if self.n < 1 or self.m < 1:
            raise ValueError(f"{self}: n and m must be at least 1.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(n, m)` or `(n, m, 3)`."""
        return (self.n, self.m, 3) if self.moves else (self.n, self.m)

    @property
    def length_range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """From (1, 1) to (n, m)."""
        return (1, 1), (self.n, self.m)

    def at(self, length: tuple[int, int]) -> Alignment:
        """The alignments of two shorter sequences."""
        return replace(self, n=length[0], m=length[1])

    def declared(self) -> Program:
        """A node a cell, and an edge for each way to come to it."""
        rows, columns, move = (axis.ravel() for axis in np.indices((self.n, self.m, 3)))
        above, before = rows - MOVES[move, 0], columns - MOVES[move, 1]
        first = (rows == 0) & (columns == 0) & (move == 0)
        reached = (above >= 0) & (before >= 0)
        tails = np.where(first, UNIT, 1 + above * self.m + before)
        cells = rows * self.m + columns
        part = 3 * cells + move if self.moves else cells
        used = first | reached
        family = EdgeList(1 + cells[used], tails[used], UNIT, part[used])
        goals = np.zeros((self.n + 1, self.m + 1), dtype=np.int64)
        goals[1:, 1:] = 1 + np.arange(self.n * self.m).reshape(self.n, self.m)
        return Program.compiled([family], goals)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """Vertices of cells `(*batch, rows, 2)` in order, padded with rows of -1.

        Raises:
            TypeError: labels are no integers.
            ValueError: a wrong shape, or an instance that is no monotone path; without `lengths`,
                from [0, 0] to any cell.
        """
        rows = whole_labels(labels, "cells")
        if rows.dim() < 2 or rows.shape[-1] != 2 or not rows.shape[-2]:
            raise ValueError(f"labels of shape {tuple(rows.shape)} must be cells (*batch, rows, 2).")
        batch = rows.shape[:-2]
        flat = rows.reshape(-1, *rows.shape[-2:]).long().cpu()
        named = flat[..., 0] >= 0
        given = label_sizes(self, batch, lengths, flat.device).reshape(-1, 2)
        sizes = 1 + flat.amax(1) if lengths is None else given
        steps = flat[:, 1:] - flat[:, :-1]
        for must, wrong in _faults(flat, named, steps, sizes, self):
            refuse_labels(must, wrong, flat, batch, lengths)
        vertices = torch.zeros(len(flat), *self.event_shape)
        instance, row = named.nonzero(as_tuple=True)
        index = [instance, *flat[instance, row].t()]
        if self.moves:
            came = torch.cat([torch.ones_like(flat[:, :1]), steps], 1)[instance, row]
            index.append((1 - came[:, 1]) + 2 * (1 - came[:, 0]))
        vertices[tuple(index)] = 1.0
        made = vertices.to(rows.device, torch.get_default_dtype())
        return made.reshape(*batch, *self.event_shape)

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The cells in order, `(*batch, n + m - 1, 2)`, padded with rows of -1."""
        batch = check_event(self, vertices, "vertices")
        moves = 3 if self.moves else 1
        cells = vertices.reshape(*batch, self.n * self.m, moves).sum(-1)
        slot = torch.arange(self.n * self.m, device=cells.device)
        chosen = torch.where(cells > 0.5, slot, len(slot)).sort(-1).values[..., : self.n + self.m - 1]
        found = torch.stack([chosen.div(self.m, rounding_mode="floor"), chosen % self.m], -1)
        return torch.where((chosen < len(slot))[..., None], found, -1)


def _faults(
    cells: Tensor, named: Tensor, steps: Tensor, sizes: Tensor, grid: Alignment
) -> Iterator[tuple[str, Tensor]]:
    """What cells `(b, rows, 2)` must be to be paths, and where not: `(b,)` or `(b, rows)`."""
    limits, none = torch.tensor([grid.n, grid.m]), torch.zeros_like(named[:, :1])
    outside = (cells >= limits).any(2) | (named & (cells < 0).any(2))
    yield f"must be cells of {grid}", outside
    yield f"must hold a cell of {grid}", ~named.any(1)
    yield "must be padded at their end only", torch.cat([none, named[:, 1:] & ~named[:, :-1]], 1)
    first = torch.arange(named.shape[1]) == 0
    yield "must begin at [0, 0]", (cells != 0).any(2) & first
    single = ((steps == 0) | (steps == 1)).all(2) & steps.any(2)
    yield "must move down, right or both by one", torch.cat([none, named[:, 1:] & ~single], 1)
    last = named & ~torch.cat([named[:, 1:], none], 1)
    yield "must end at the last cell", last & (cells != sizes[:, None] - 1).any(2)
