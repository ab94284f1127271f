"""Dependency trees of two published treebanks: every gold tree is a vertex, and survives every road."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spigot.polytopes import Arborescence, Euclidean
from tests.test_real_tags import example

FOLDER = Path(os.environ.get("SPIGOT_DATA", ""))
NAMES = ("ud_english_ewt", "ud_czech_cltt")
pytestmark = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ or not all((FOLDER / name).is_dir() for name in NAMES),
    reason="SPIGOT_DATA names no folder with ud_english_ewt and ud_czech_cltt "
    "(github.com/UniversalDependencies)",
)
COUNTS = {
    ("english", "train"): (12544, 204577),
    ("english", "dev"): (2001, 25147),
    ("english", "test"): (2077, 25094),
    ("czech", "train"): (467, 13894),
    ("czech", "dev"): (316, 10710),
    ("czech", "test"): (338, 11409),
}
every_part = pytest.mark.parametrize("part", COUNTS, ids="-".join)


def trees(part: tuple[str, str]) -> list[Any]:
    return example("data", "example_data").dependency_trees(*part)


def batches(part: tuple[str, str], cells: int = 400_000) -> Iterator[tuple[Tensor, Tensor]]:
    """Heads padded with -2 and lengths, neighbours in length together."""
    rows = sorted((torch.tensor(tree.heads) for tree in trees(part)), key=len)
    while rows:
        count = next((k for k in range(1, len(rows)) if (k + 1) * len(rows[k]) ** 2 > cells), len(rows))
        taken, rows = rows[:count], rows[count:]
        heads = torch.nn.utils.rnn.pad_sequence(taken, batch_first=True, padding_value=-2)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        yield heads[order], torch.tensor([len(row) for row in taken])[order]


@every_part
def test_every_gold_tree_is_found_by_scores_that_favour_it(part: tuple[str, str]) -> None:
    sentences = words = 0
    for heads, lengths in batches(part):
        tree = Arborescence(heads.shape[1], single_root=True)
        gold = tree.encode(heads, lengths)
        assert torch.equal(tree.decode(gold, lengths), heads)
        assert torch.equal(gold.sum((1, 2)), lengths.float())
        # noise of less than 1 / 2: any other tree loses more than it can win
        noise = 0.49 * torch.rand(gold.shape, generator=torch.Generator().manual_seed(1))
        for structure in (tree, Arborescence(tree.n)):
            best = structure.maximize(gold + noise, lengths=lengths)
            assert torch.equal(structure.decode(best, lengths), heads)
        sentences += len(heads)
        words += int(lengths.sum())
    assert (sentences, words) == COUNTS[part]


@every_part
def test_gold_trees_lie_in_the_polytope(part: tuple[str, str]) -> None:
    """By projection, those of every tenth batch; a gold tree with one cycle does not."""
    for number, (heads, lengths) in enumerate(batches(part, 100_000)):
        if number % 10 == 0 and heads.shape[1] > 1:
            tree = Arborescence(heads.shape[1])
            gold = tree.encode(heads, lengths).double()
            assert bool(tree.contains(gold, lengths=lengths).all())


def test_the_longest_sentence() -> None:
    longest = max(trees(("czech", "train")) + trees(("czech", "dev")), key=lambda tree: len(tree.heads))
    size = len(longest.heads)
    assert size > 400
    tree = Arborescence(size, single_root=True)
    gold = tree.encode(longest.heads).double()
    assert bool(tree.contains(gold))
    noisy = gold + 0.3 * torch.randn(gold.shape, generator=torch.Generator().manual_seed(0)).double()
    solution = tree.solve(noisy, Euclidean())
    assert solution.gap is not None
    assert float(solution.gap) <= 1e-8 * (1 + float((noisy * solution.value).sum()))
    marginals = tree.marginals(20 * noisy)
    torch.testing.assert_close(marginals.sum(0), torch.ones(size).double())
    torch.testing.assert_close(marginals.trace(), torch.tensor(1.0).double())
