"""Structures of dynamic programmes, listed from their definitions: no dynamic programme takes part."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from spigot.polytopes import Hull, Hypergraph


def stacked(points: Iterator[Tensor]) -> Hull:
    """The points, in float64."""
    return Hull(torch.stack(list(points)).double())


def head_lists(n: int, single_root: bool = False) -> Iterator[tuple[int, ...]]:
    """Heads of projective trees: all words between a word and its head hang below the head."""
    for heads in product(range(-1, n), repeat=n):
        above = [ancestors(word, heads) for word in range(n)]
        tree = all(len(chain) <= n and chain[-1] == -1 for chain in above)
        if tree and (not single_root or heads.count(-1) == 1):
            arcs = [(head, word) for word, head in enumerate(heads) if head >= 0]
            between = [
                (head, k) for head, word in arcs for k in range(min(head, word) + 1, max(head, word))
            ]
            if all(head in above[k] for head, k in between):
                yield heads


def ancestors(word: int, heads: tuple[int, ...]) -> list[int]:
    """A word's head, its head and so on: -1 at the end, or a chain of more than n in a cycle."""
    chain = [heads[word]]
    while chain[-1] >= 0 and len(chain) <= len(heads):
        chain.append(heads[chain[-1]])
    return chain


def projective_trees(n: int, single_root: bool = False) -> Hull:
    """Their arcs, the root's on the diagonal."""

    def arcs(heads: tuple[int, ...]) -> Tensor:
        point = torch.zeros(n, n)
        point[[word if head < 0 else head for word, head in enumerate(heads)], range(n)] = 1.0
        return point

    return stacked(arcs(heads) for heads in head_lists(n, single_root))


def bracketings(first: int, last: int) -> Iterator[list[tuple[int, int]]]:
    """The spans of every binary tree over the words from first to last."""
    if first == last:
        yield [(first, last)]
    for middle in range(first, last):
        for left, right in product(bracketings(first, middle), bracketings(middle + 1, last)):
            yield [(first, last), *left, *right]


def constituency_trees(n: int, labels: int | None = None) -> Hull:
    """Their spans, each with every label."""

    def points() -> Iterator[Tensor]:
        for spans in bracketings(0, n - 1):
            for names in product(range(labels or 1), repeat=len(spans)):
                point = torch.zeros(n, n, labels or 1)
                for (first, last), name in zip(spans, names, strict=True):
                    point[first, last, name] = 1.0
                yield point if labels else point[..., 0]

    return stacked(points())


def segmentations(length: int, tags: int, width: int) -> Iterator[list[tuple[int, int, int]]]:
    """Segments (start, width - 1, tag)."""
    for cuts in product([False, True], repeat=length - 1):
        edges = [0, *(t + 1 for t, cut in enumerate(cuts) if cut), length]
        widths = [b - a for a, b in pairwise(edges)]
        if max(widths) <= width:
            for names in product(range(tags), repeat=len(widths)):
                yield [(t, w - 1, tag) for t, w, tag in zip(edges[:-1], widths, names, strict=True)]


def semimarkov_chains(length: int, tags: int, width: int) -> Hull:
    """Their segments with the tag before."""

    def points() -> Iterator[Tensor]:
        for segments in segmentations(length, tags, width):
            point = torch.zeros(length, width, tags, tags)
            before = 0
            for start, extra, tag in segments:
                point[start, extra, before, tag] = 1.0
                before = tag
            yield point

    return stacked(points())


def warping_paths(n: int, m: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cells (row, column, move) of every path to the last cell: 0 diagonal, 1 down, 2 right."""
    if n == m == 1:
        yield [(0, 0, 0)]
    for move, (down, right) in enumerate([(1, 1), (1, 0), (0, 1)]):
        if n > down and m > right:
            for path in warping_paths(n - down, m - right):
                yield [*path, (n - 1, m - 1, move)]


def alignments(n: int, m: int, moves: bool = False) -> Hull:
    """Their cells."""

    def points() -> Iterator[Tensor]:
        for path in warping_paths(n, m):
            point = torch.zeros(n, m, 3)
            for cell in path:
                point[cell] = 1.0
            yield point if moves else point.sum(-1)

    return stacked(points())


GRAMMAR = Hypergraph(  # long edges, several parts, edges without parts, and one that no goal needs
    [
        ("s", ("a", "b", "c")),
        ("s", ("d",), [0, 1]),
        ("a", (), 2),
        ("a", ("d",)),
        ("b", ()),
        ("b", (), 3),
        ("c", (), 4),
        ("c", (), 5),
        ("d", (), 6),
        ("d", (), 7),
        ("unused", ("s",), 0),
    ],
    8,
    "s",
)
REPEATED = Hypergraph(
    [("s", ("x", "y")), ("x", (), 0), ("x", (), [1, 1]), ("y", (), 0), ("y", (), 2)], 3, "s"
)


def counted(graph: Hypergraph, node: Any) -> Iterator[Tensor]:
    """The parts of every derivation of a node."""
    for edge in graph.edges:
        if edge.head == node:
            for below in product(*(list(counted(graph, tail)) for tail in edge.tails)):
                point = torch.zeros(graph.event_shape)
                for part in edge.parts:
                    point.view(-1)[part] += 1.0
                yield sum(below, point)


def listed(graph: Hypergraph) -> Hull:
    """The derivations of its goal."""
    return stacked(counted(graph, graph.goal))
