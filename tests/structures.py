"""THE table: a structure joins every test by one row.

A row gives the structure and its twin: another declaration of the same set, by other facts, that
the generic roads solve. Sizes are small enough to list the vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, permutations, product
from typing import Any

import cvxpy as cp
import torch
from torch import Tensor

from spigot.polytopes import (
    Affine,
    Alignment,
    AndOut,
    Arborescence,
    AtMostOne,
    ConstituencyTree,
    Face,
    Facets,
    GraphMatching,
    GridPath,
    Hull,
    Hypercube,
    Imply,
    IntegerHull,
    Intersection,
    Masked,
    Matching,
    Or,
    Oracle,
    OrOut,
    Path,
    Permutahedron,
    Polytope,
    Product,
    ProjectiveTree,
    SemiMarkov,
    Sequence,
    Simplex,
    SpanningTree,
    Subset,
    Tagging,
    Transport,
    Xor,
    XorOut,
)
from tests import derivations, routes


@dataclass(frozen=True)
class Row:
    """A structure under its name, and the same set declared otherwise."""

    name: str
    polytope: Polytope
    twin: Polytope

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class AtMostTwo(Polytope):
    """k cells of a board, at most two in a row and two in a column."""

    rows: int
    columns: int
    k: int

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns)

    def constraints(self, y: cp.Variable) -> list[Any]:
        return [y >= 0, y <= 1, cp.sum(y, axis=0) <= 2, cp.sum(y, axis=1) <= 2, cp.sum(y) == self.k]


def binary(d: int) -> Tensor:  # (2^d, d)
    """All 0/1 vectors."""
    return torch.tensor(list(product([0.0, 1.0], repeat=d)), dtype=torch.float64)


def subsets(d: int, k: int, at_most: bool = False) -> Hull:
    """The subsets, listed."""
    points = binary(d)
    size = points.sum(1)
    return Hull(points[size <= k] if at_most else points[size == k])


def boards(rows: int, columns: int, k: int) -> Hull:
    """The boards of AtMostTwo, listed (its constraint matrix is totally unimodular)."""
    points = binary(rows * columns).reshape(-1, rows, columns)
    fits = (points.sum(1).amax(1) <= 2) & (points.sum(2).amax(1) <= 2) & (points.sum((1, 2)) == k)
    return Hull(points[fits])


def diamond(y: cp.Variable) -> list[Any]:
    """The l1 ball: auxiliary variables, negative parts."""
    return [cp.norm1(y) <= 1]


def corners(d: int) -> Hull:
    """The l1 ball's 2d vertices."""
    return Hull(torch.cat([torch.eye(d), -torch.eye(d)]))


def best_corner(scores: Tensor) -> Tensor:
    """The l1 ball's oracle."""
    index = scores.abs().argmax(1, keepdim=True)
    sign = torch.where(scores.gather(1, index) < 0, -1.0, 1.0).to(scores)
    return torch.zeros_like(scores).scatter_(1, index, sign)


def knapsack(y: cp.Variable) -> list[Any]:
    """Items of weight 3, 4, 5 and 6, at most 9 in all."""
    return [y >= 0, y <= 1, y @ [3.0, 4.0, 5.0, 6.0] <= 9]


def packed() -> Hull:
    """The knapsack's structures, listed."""
    points = binary(4)
    return Hull(points[points @ torch.tensor([3.0, 4.0, 5.0, 6.0]).double() <= 9])


def fractional(y: cp.Variable) -> list[Any]:
    """The odd cycle: one vertex is (1/2, 1/2, 1/2)."""
    return [y >= 0, y[0] + y[1] <= 1, y[1] + y[2] <= 1, y[0] + y[2] <= 1]


def sequences(length: int, tags: int) -> Hull:
    """The arcs of every sequence of tags, listed."""
    points = torch.zeros(tags**length, length, tags, tags, dtype=torch.float64)
    for point, chain in zip(points, product(range(tags), repeat=length), strict=True):
        point[range(length), [0, *chain[:-1]], chain] = 1.0
    return Hull(points)


def taggings(length: int, tags: int) -> Hull:
    """The transitions' counts and the tags of every sequence, listed."""
    points = torch.zeros(tags**length, tags + length, tags, dtype=torch.float64)
    for point, chain in zip(points, product(range(tags), repeat=length), strict=True):
        point[range(tags, tags + length), chain] = 1.0
        for before, after in pairwise(chain):
            point[before, after] += 1.0
    return Hull(points)


def arrangements(weights: list[float]) -> Hull:
    """The distinct orders of the weights, listed."""
    return Hull(sorted(set(permutations(weights))))


def arborescences(n: int, single_root: bool = False) -> Hull:
    """The dependency trees, listed: heads whose powers lead every word to the root."""
    points: list[Tensor] = []
    for heads in product(range(n), repeat=n):  # a word that is its own head hangs from the root
        arcs = torch.zeros(n, n, dtype=torch.float64)
        arcs[list(heads), range(n)] = 1.0
        above = torch.tensor(heads)
        for _ in range(n):
            above = above[torch.tensor(heads)]
        rooted = bool((above == torch.tensor(heads)[above]).all())
        if rooted and (not single_root or arcs.trace() == 1):
            points.append(arcs)
    return Hull(torch.stack(points))


def trees(edges: list[tuple[int, int]], nodes: int) -> Hull:
    """The spanning trees of a graph, listed."""
    points = binary(len(edges))
    points = points[points.sum(1) == nodes - 1]
    incidence = torch.zeros(len(edges), nodes, dtype=torch.float64)
    for edge, (a, b) in enumerate(edges):
        incidence[edge, a], incidence[edge, b] = 1.0, -1.0
    minors = torch.einsum("pe,ei,ej->pij", points, incidence, incidence)[:, 1:, 1:].det()
    return Hull(points[minors > 0.5])


KITE = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


def matchings(n: int, m: int, perfect: bool = True) -> Hull:
    """The matchings of n rows with m columns, listed."""
    points = binary(n * m).reshape(-1, n, m)
    fits = (points.sum(1).amax(1) <= 1) & (points.sum(2).amax(1) <= 1)
    return Hull(points[fits & (points.sum((1, 2)) == min(n, m))] if perfect else points[fits])


def plans(row: list[float], column: list[float]) -> Facets:
    """The transport plans by their constraints alone."""
    return Facets(
        lambda y: [y >= 0, cp.sum(y, axis=1) == row, cp.sum(y, axis=0) == column],
        (len(row), len(column)),
    )


PRISM = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3), (0, 3), (1, 4), (2, 5)]


def pairings(edges: list[tuple[int, int]], perfect: bool = False) -> Hull:
    """The matchings of a graph, listed."""
    points, nodes = binary(len(edges)), max(max(edge) for edge in edges) + 1
    degrees = torch.stack([points[:, [v in edge for edge in edges]].sum(1) for v in range(nodes)], 1)
    return Hull(points[(degrees == 1).all(1)] if perfect else points[(degrees <= 1).all(1)])


def fulfilling(d: int, holds: Callable[[Tensor], Tensor]) -> Hull:
    """The 0/1 vectors for which a formula holds."""
    points = binary(d)
    return Hull(points[holds(points.bool())])


def one_or_none(z: Tensor) -> Tensor:
    """At most one of: not the first, the second, the third."""
    return (~z[:, 0]).long() + z[:, 1].long() + z[:, 2].long() <= 1


def second_but_not_first(z: Tensor) -> Tensor:
    """The third says whether the second holds and the first does not."""
    return (~z[:, 0] & z[:, 1]) == z[:, 2]


def rook_placements(n: int) -> Intersection:
    """Exactly one in every row and in every column: Birkhoff's polytope, of simplices that cross."""
    cells = torch.arange(n * n).reshape(n, n)
    return Intersection([(Xor(n), line) for line in [*cells, *cells.t()]], shape=(n, n))


FIRST_THREE = torch.tensor([True, True, True, False])
MEANS = [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
ROTATION = [[0.6, -0.8], [0.8, 0.6]]
EDGES_OF_A_TRIANGLE = [(AtMostOne(2), [0, 1]), (AtMostOne(2), [1, 2]), (AtMostOne(2), [0, 2])]


STRUCTURES = [
    Row("simplex", Simplex(4), Hull(torch.eye(4))),
    Row("simplex of one", Simplex(1), Hull([[1.0]])),
    Row("hypercube", Hypercube(4), Hull(binary(4))),
    Row("subset", Subset(6, 3), subsets(6, 3)),
    Row("subset of one", Subset(4, 1), Hull(torch.eye(4))),
    Row("subset of all", Subset(3, 3), subsets(3, 3)),
    Row("subset of none", Subset(3, 0), subsets(3, 0)),
    Row("subset at most", Subset(5, 2, at_most=True), subsets(5, 2, at_most=True)),
    Row("declared by constraints", AtMostTwo(3, 3, 4), boards(3, 3, 4)),
    Row("fractional", Facets(fractional, (3,)), Hull([[0.0] * 3, *torch.eye(3).tolist(), [0.5] * 3])),
    Row("declared by auxiliary variables", Facets(diamond, (3,)), corners(3)),
    Row("declared by vertices", corners(3), Facets(diamond, (3,))),
    Row("declared by an oracle", Oracle(best_corner, (3,), batched=True), corners(3)),
    Row("integer hull", IntegerHull(knapsack, (4,)), packed()),
    Row("sequence", Sequence(3, 2), sequences(3, 2)),
    Row("sequence of one", Sequence(1, 3), sequences(1, 3)),
    Row("tagging", Tagging(3, 2), taggings(3, 2)),
    Row("tagging of one", Tagging(1, 3), taggings(1, 3)),
    Row("permutahedron", Permutahedron([0.0, 3.0, 1.0, 0.0]), arrangements([0.0, 3.0, 1.0, 0.0])),
    Row("dependency tree", Arborescence(3), arborescences(3)),
    Row("dependency tree, single root", Arborescence(3, True), arborescences(3, single_root=True)),
    Row("permutahedron, negative", Permutahedron([-1.0, 0.5, 2.0]), arrangements([-1.0, 0.5, 2.0])),
    Row("projective tree", ProjectiveTree(3), derivations.projective_trees(3)),
    Row("constituency tree", ConstituencyTree(4), derivations.constituency_trees(4)),
    Row("segmentation", SemiMarkov(2, 2, 2), derivations.semimarkov_chains(2, 2, 2)),
    Row("alignment", Alignment(2, 4), derivations.alignments(2, 4)),
    Row("hypergraph", derivations.GRAMMAR, derivations.listed(derivations.GRAMMAR)),
    Row("hypergraph, counts", derivations.REPEATED, derivations.listed(derivations.REPEATED)),
    Row("spanning tree", SpanningTree(KITE, 4), trees(KITE, 4)),
    Row("spanning tree, parallel edges", SpanningTree([(0, 1), (1, 0)], 2), trees([(0, 1), (1, 0)], 2)),
    Row("matching", Matching(3), matchings(3, 3)),
    Row("matching, wide", Matching(2, 3), matchings(2, 3)),
    Row("matching, tall", Matching(4, 2), matchings(4, 2)),
    Row("matching, partial", Matching(2, 3, perfect=False), matchings(2, 3, perfect=False)),
    Row("transport", Transport([1.0, 2.0], [0.5, 1.5, 1.0]), plans([1.0, 2.0], [0.5, 1.5, 1.0])),
    Row("transport, empty row", Transport([1.0, 0.0], [0.5, 0.5]), plans([1.0, 0.0], [0.5, 0.5])),
    Row("path", Path(routes.LADDER, "a", "e"), routes.unit_flows(routes.LADDER, "a", "e")),
    Row("grid path", GridPath(2, 2), routes.grid_flows(2, 2, 4)),
    Row("grid path, 8 neighbours", GridPath(2, 2, 8), routes.grid_flows(2, 2, 8)),
    Row("graph matching", GraphMatching(KITE), pairings(KITE)),
    Row("graph matching, perfect", GraphMatching(PRISM, perfect=True), pairings(PRISM, perfect=True)),
    Row("xor", Xor(3), Hull(torch.eye(3))),
    Row("or, negated", Or(3, (True, False, False)), fulfilling(3, lambda z: ~z[:, 0] | z[:, 1:].any(1))),
    Row("at most one, negated", AtMostOne(3, (True, False, False)), fulfilling(3, one_or_none)),
    Row("imply", Imply(3), fulfilling(3, lambda z: ~(z[:, 0] & z[:, 1]) | z[:, 2])),
    Row("xor out", XorOut(3), fulfilling(3, lambda z: z[:, :2].sum(1) == z[:, 2])),
    Row("or out", OrOut(3), fulfilling(3, lambda z: (z[:, 0] | z[:, 1]) == z[:, 2])),
    Row("and out, negated", AndOut(3, (True, False, False)), fulfilling(3, second_but_not_first)),
    Row("product", Product(Simplex(2), AtMostOne(2)), Product(Hull(torch.eye(2)), subsets(2, 1, True))),
    Row("masked", Masked(Subset(4, 2), FIRST_THREE), Masked(subsets(4, 2), FIRST_THREE)),
    Row("face", Face(Subset(4, 2), ~FIRST_THREE), Face(subsets(4, 2), ~FIRST_THREE)),
    Row("face that is a mask", Face(Simplex(4), ~FIRST_THREE), Hull([[0.0, 0.0, 0.0, 1.0]])),
    Row("affine image", Affine(Subset(4, 2), MEANS), Hull([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])),
    Row("affine, rotated", Affine(AtMostOne(2), ROTATION), Affine(subsets(2, 1, True), ROTATION)),
    Row("intersection", rook_placements(2), matchings(2, 2)),
    Row("intersection, fractional", Intersection(EDGES_OF_A_TRIANGLE), Facets(fractional, (3,))),
]
