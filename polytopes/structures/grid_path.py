"""Paths on a grid, as the cells they visit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from spigot.polytopes.arrays import contiguous, library, numbers, rows_where, tensor
from spigot.polytopes.dispatch import rule
from spigot.polytopes.errors import whole_numbers
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.labels import label_sizes, refuse_labels
from spigot.polytopes.posing import check_event
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import Euclidean
from spigot.polytopes.structures.flows import (
    BestFlow,
    FlowPolytope,
    FlowProjection,
    Posed,
    flows_on,
    kept,
    precise,
    refuse,
)
from spigot.polytopes.structures.walks import padded_walks

if TYPE_CHECKING:
    import cvxpy as cp

    from spigot.polytopes.kernels.flows.flow_projection import Flows
    from spigot.polytopes.kernels.flows.network import Network

__all__ = ["GridPath"]

STRAIGHT = [(-1, 0), (0, -1), (0, 1), (1, 0)]
DIAGONAL = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
MOVES = {4: np.array(STRAIGHT), 8: np.array(STRAIGHT + DIAGONAL)}


@dataclass(frozen=True)
class GridPath(FlowPolytope):
    r"""{y <= 1 : y_v = in_v(f) + [v = source] = out_v(f) + [v = target], f >= 0}: cells of unit flows.

    The grid has h by w cells v, and f is a flow on the moves between neighbours, in both directions:
    in_v and out_v sum it over the moves into v and out of v. So y_v is the flow through the cell v,
    at most 1, and both ends have y = 1. The vertices are 0/1: the sets of cells that split into one
    path from source to target and cycles beside it, no cell in two of them; two neighbours, there
    and back, are a cycle too. (Every such set is a vertex, and the flow's constraints are totally
    unimodular.) A best vertex has a cycle only where its scores sum to more than 0: with no positive
    score it is a simple path. (The hull of the simple paths alone is NP-hard.) Different paths
    through the same cells are one structure. Where source and target are the same cell the path is
    that cell.

    Parts: `(h, w)`, the cells. Scores are maximised: costs are negative scores, one a cell, both ends
    included.
    `lengths` are two numbers an instance, `(*batch, 2)`: its rows and its columns.
    `params={"source": (*batch, 2), "target": (*batch, 2)}` are cells (row, column), one an instance;
    negative numbers count from the end of the instance's own grid.

    Labels are cells `(*batch, L, 2)` along the path, padded with -1. Decoding is between the
    polytope's own ends (for others, `replace(grid, source=..., target=...)`); it takes a path through
    all the cells of the vertex if a search finds one, else a path of fewest cells, which leaves out
    cycles.

    Args:
        h: how many rows, at least 1.
        w: how many columns, at least 1.
        neighbours: 4, or 8 with the diagonal ones.
        source: the cell where the path starts.
        target: the cell where it ends; the last one by default, also that of a smaller grid.
        nonpositive: whether MAP sees min(s, 0) in place of s, as in the black-box papers: always a
            simple path. This holds for every MAP call, so also for those of perturbed and black-box
            estimators; projections and the other regularizers are those of M and of s.

    Raises:
        TypeError: h, w or neighbours is no whole number.
        ValueError: h or w below 1, neighbours neither 4 nor 8, an end outside the grid.

    Example:
        >>> import torch
        >>> from spigot.polytopes import GridPath
        >>> grid = GridPath(3, 3)
        >>> costs = torch.tensor([[1.0, 9.0, 1.0], [1.0, 9.0, 1.0], [1.0, 1.0, 1.0]])
        >>> grid.maximize(-costs)
        tensor([[1., 0., 0.],
                [1., 0., 0.],
                [1., 1., 1.]])
        >>> grid.decode(grid.maximize(-costs)).tolist()
        [[0, 0], [1, 0], [2, 0], [2, 1], [2, 2]]
        >>> up = {"target": torch.tensor([0, 2])}
        >>> grid.maximize(-costs, params=up).sum()
        tensor(7.)

    References:
        MAP: Dijkstra, "A note on two problems in connexion with graphs" (1959); Ahuja, Magnanti and
        Orlin, "Network flows" (1993), section 9.7, where cycles pay.
        Euclidean: Mehrotra, "On the implementation of a primal-dual interior point method" (1992).
        Vlastelica et al., "Differentiation of blackbox combinatorial solvers" (ICLR 2020).
    """

    h: int
    w: int
    neighbours: int = 4
    source: tuple[int, int] = (0, 0)
    target: tuple[int, int] = (-1, -1)
    nonpositive: bool = False

    parameters: ClassVar[Mapping[str, tuple[int, ...]]] = {"source": (2,), "target": (2,)}

    def __post_init__(self) -> None:
        whole_numbers(self, h=self.h, w=self.w, neighbours=self.neighbours)
        if self.h < 1 or self.w < 1:
            raise ValueError(f"GridPath(h={self.h}, w={self.w}): h and w must be at least 1.")
        if self.neighbours not in MOVES:
            raise ValueError(f"GridPath: neighbours must be 4 or 8, got {self.neighbours}.")
        for name in ("source", "target"):
            cell = _cell(name, getattr(self, name))
            object.__setattr__(self, name, cell)
            whole_numbers(self, **{f"{name} {k}": place for k, place in enumerate(cell)})
            if len(cell) != 2 or not all(
                -n <= k < n for k, n in zip(cell, self.event_shape, strict=True)
            ):
                raise ValueError(f"GridPath: the {name} {cell} is no cell of {self.h} by {self.w}.")

    @property
    def event_shape(self) -> tuple[int, ...]:
        """`(h, w)`."""
        return (self.h, self.w)

    @property
    def length_range(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """From 1 by 1 to h by w."""
        return (1, 1), (self.h, self.w)

    def at(self, length: tuple[int, int]) -> GridPath:
        """The leading rows and columns."""
        return replace(self, h=length[0], w=length[1])

    def padding(self, lengths: Tensor) -> Tensor:
        """The leading block."""
        rows = torch.arange(self.h, device=lengths.device) < lengths[:, :1]
        columns = torch.arange(self.w, device=lengths.device) < lengths[:, 1:]
        return rows[:, :, None] & columns[:, None, :]

    @property
    def links(self) -> Network:
        """The moves between cells, numbered in row order."""
        from spigot.polytopes.kernels.flows.network import grid_links, new_network

        cells = self.h * self.w
        network = new_network(cells, self.neighbours * cells)
        grid_links(self.h, self.w, MOVES[self.neighbours], network)
        return _cut(network)

    @property
    def flows(self) -> Flows:
        """Each cell v split into an arc from 2v to 2v + 1, ready for projections."""
        from spigot.polytopes.kernels.flows.network import new_network, split_cells

        if "flows" not in self.scratch:
            cells, links = self.h * self.w, self.links
            split = new_network(2 * cells, cells + len(links.heads))
            split_cells(cells, links, split)
            part = np.full(len(split.heads), -1, dtype=np.int64)
            part[split.start[: 2 * cells : 2]] = np.arange(cells)
            self.scratch["flows"] = flows_on(split, part)
        return self.scratch["flows"]

    def best(self, problem: Problem) -> Tensor:
        """The cells of a best flow, of a shortest one among paths that tie."""
        from spigot.polytopes.kernels.flows.routes import best_cells

        scores = precise(problem)
        value = torch.zeros_like(scores)
        feasible = np.zeros(problem.size, dtype=np.bool_)
        over_instances(
            best_cells,
            problem.size,
            MOVES[self.neighbours],
            self.w,
            sizes(problem),
            *ends(problem),
            contiguous(scores.flatten(1)),
            kept(problem),
            contiguous(value.flatten(1)),
            feasible,
        )
        refuse(problem, ~feasible)
        return value

    def constraints(self, y: cp.Variable) -> list[Any]:
        """A flow on the moves but those into the source and out of the target."""
        cp, sp = library("cvxpy"), library("scipy.sparse")

        links, cells = self.links, self.h * self.w
        source, target = (
            (end[0] % self.h) * self.w + end[1] % self.w for end in (self.source, self.target)
        )
        used = (links.heads != source) & (links.tails != target)
        moves = int(used.sum())
        flow, through = cp.Variable(moves, nonneg=True), cp.vec(y, order="C")
        rows: list[Any] = [y <= 1]
        for nodes, end in ((links.heads[used], source), (links.tails[used], target)):
            where = (np.ones(moves), (nodes, np.arange(moves)))
            touching = sp.csr_matrix(where, shape=(cells, moves))
            unit = np.zeros(cells)
            unit[end] = 1.0
            rows.append(touching @ flow + unit == through)
        return rows

    def posed(self, problem: Problem) -> Posed:
        """A unit from behind the source to before the target; their own arcs are closed."""
        source, target = (cell[:, 0] * self.w + cell[:, 1] for cell in ends(problem))
        cells = np.stack([source, target], 1)
        flows = self.flows
        start = np.where(source == target, -1, 2 * source + 1)
        return Posed(flows, start, 2 * target, flows.network.start[2 * cells].astype(np.int64), cells)

    def encode(self, labels: Any, lengths: Tensor | None = None) -> Tensor:
        """0/1 grids `(*batch, h, w)` of walks `(*batch, L, 2)` of cells, padded with -1.

        Their ends are not compared with source and target, which may be parameters.

        Raises:
            TypeError: labels of a floating dtype.
            ValueError: a cell outside the grid, a step that is no move, a cell visited twice.
        """
        walks = padded_walks(labels, (2,))
        batch = walks.shape[:-2]
        size = label_sizes(self, batch, lengths, walks.device)
        outside = ((walks < -1) | (walks >= size[..., None, :])).any(-1)
        must = f"must be cells of {self} (and within their lengths), or -1"
        refuse_labels(must, outside, walks, batch, lengths)
        used = walks[..., 0] >= 0
        step = (walks[..., 1:, :] - walks[..., :-1, :]).abs()
        near = step.amax(-1) == 1 if self.neighbours == 8 else step.sum(-1) == 1
        taken = torch.stack([walks[..., :-1, :], walks[..., 1:, :]], -2)
        must = f"must be walks between neighbours of {self}"
        refuse_labels(must, used[..., 1:] & ~near, taken, batch, entry="step")
        cells = self.h * self.w
        slots = torch.where(used, walks[..., 0] * self.w + walks[..., 1], cells)
        vertices = torch.zeros(*batch, cells + 1).scatter_add(-1, slots, torch.ones(slots.shape))
        again = (vertices > 1).gather(-1, slots) & used
        refuse_labels("must be walks that visit no cell twice", again, walks, batch)
        grids = vertices[..., :cells].reshape(*batch, self.h, self.w)
        return grids.to(torch.get_default_dtype())

    def decode(self, vertices: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Cells `(*batch, L, 2)` along the paths, padded with -1; L is that of the longest."""
        from spigot.polytopes.kernels.flows.routes import follow_cells

        batch = check_event(self, vertices, "vertices")
        flat = vertices.detach().reshape(batch.numel(), self.h, self.w).double().cpu()
        flat_lengths = None if lengths is None else lengths.reshape(len(flat), 2).cpu()
        problem = Problem(self, flat, None, lengths=flat_lengths)
        walk = np.full((len(flat), self.h * self.w, 2), -1, dtype=np.int64)
        length = np.zeros(len(flat), dtype=np.int64)
        over_instances(
            follow_cells,
            len(flat),
            MOVES[self.neighbours],
            self.w,
            sizes(problem),
            *ends(problem),
            contiguous(flat.flatten(1)),
            walk,
            length,
        )
        most = int(length.max(initial=1))
        return tensor(walk)[:, :most].reshape(*batch, most, 2).to(vertices.device)


def _cell(name: str, cell: Any) -> tuple[Any, ...]:
    """A pair, of numbers if it can be."""
    try:
        return tuple(cell.tolist() if hasattr(cell, "tolist") else cell)
    except TypeError:
        raise TypeError(f"GridPath: the {name} must be a cell (row, column), got {cell!r}.") from None


def _cut(network: Network) -> Network:
    """Without the room at the end of the arcs."""
    arcs = int(network.start[-1])
    return network._replace(
        tails=network.tails[:arcs].copy(),
        heads=network.heads[:arcs].copy(),
        incoming=network.incoming[:arcs].copy(),
    )


def sizes(problem: Problem) -> np.ndarray:  # (n, 2)
    """Each instance's rows and columns."""
    if problem.lengths is not None:
        return contiguous(problem.lengths.long())
    return np.tile(np.array(problem.polytope.event_shape, dtype=np.int64), (problem.size, 1))


def ends(problem: Problem) -> tuple[np.ndarray, np.ndarray]:  # (n, 2) each
    """Each instance's source and target, counted from the start.

    Raises:
        ValueError: a cell outside the instance's grid.
    """
    size = sizes(problem)
    found: list[np.ndarray] = []
    for name in ("source", "target"):
        given = problem.param(name)
        cells = contiguous(given.long())
        wrong = np.any((cells < -size) | (cells >= size), axis=1)
        if given.is_floating_point() or wrong.any():
            rows = rows_where(tensor(wrong))
            seen = f"got dtype {given.dtype}."
            if rows:
                seen = problem.describe_wrong(rows, f"has {numbers(given[rows[0]])}")
            raise ValueError(f"params[{name!r}] must be cells of the grid, whole numbers; {seen}")
        found.append(np.where(cells < 0, cells + size, cells))
    return found[0], found[1]


@rule(GridPath, None)
class BestCells(BestFlow):
    """The cells of a best flow."""

    cost = "O(cells log cells) where no score is positive; a minimum-cost flow otherwise"


@rule(GridPath, Euclidean)
class NearestCells(FlowProjection):
    """The nearest flow's cells."""
