"""The experiments on latent trees over words: what they read, masks, and every row for a few steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("rich")

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.data import listops
from examples.experiments.dependencies import LatentTree, by_length, group, real
from examples.experiments.experiment import Cell, Task
from examples.experiments.run import Settings
from examples.experiments.tasks import listops as operations
from examples.experiments.tasks import sentiment
from examples.experiments.training import Place, train
from spigot.polytopes import Arborescence

FOLDER = Path(os.environ.get("SPIGOT_DATA", ""))
published = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ or not (FOLDER / "listops").is_dir(),
    reason="SPIGOT_DATA names no folder with listops (github.com/nyu-mll/spinn)",
)
reviews = pytest.mark.skipif(
    "SPIGOT_DATA" not in os.environ
    or not all((FOLDER / name).is_dir() for name in ("sst", "word_vectors_minilm_wordpiece")),
    reason="SPIGOT_DATA names no folder with sst and word_vectors_minilm_wordpiece",
)
TASKS = (sentiment.TASK, operations.TASK)
EVERY = [("arborescence", task, cell.estimator) for task in TASKS for cell in task.studies[0].cells]
SOME = [("projective", TASKS[1], name) for name in ("spigot", "marginals", "reinforce-leave-one-out")]
TREELESS = ("gold", "no-tree", "random-tree")


def smoke(task: Task, estimator: str, structure: str = "arborescence") -> Any:
    in_scores = estimator in ("blackbox", "imle")  # too short a step leaves the tree as it is
    cell = Cell(estimator, (("step_size", 1000),) if in_scores else ())
    return task.experiment(task.run(cell, structure, 0, "smoke"))


# Every row


@pytest.mark.parametrize(
    ("structure", "task", "estimator"),
    EVERY + SOME,
    ids=lambda value: value.name if isinstance(value, Task) else value,
)
def test_every_row_learns_its_arcs_where_it_has_any(structure: str, task: Task, estimator: str) -> None:
    experiment = smoke(task, estimator, structure)
    scorer = experiment.model[0].scorer
    moved = 0.0
    for step in range(3):
        torch.manual_seed(step)
        experiment.model.train().zero_grad()
        experiment.loss(step).backward()
        gradients = [weight.grad for weight in experiment.model.parameters() if weight.grad is not None]
        assert gradients
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        moved += sum(float(w.grad.abs().sum()) for w in scorer.parameters() if w.grad is not None)
    assert (moved > 0) == (estimator not in TREELESS)
    experiment.model.eval()
    with torch.no_grad():
        found = experiment.evaluate("test")
    assert found.keys() <= {metric.name for metric in task.metrics}
    assert all(0 <= value <= 1 for value in found.values())
    assert ("best_tree" in found) == (estimator not in TREELESS)


@pytest.mark.parametrize("task", TASKS, ids=[task.name for task in TASKS])
def test_a_smoke_run_ends_with_a_result(task: Task, tmp_path: Path) -> None:
    result = train(task.run(Cell("spigot"), "arborescence", 0, "smoke"), task, Place(tmp_path))
    assert result.status == "finished"
    assert result.calls["MAP"] > 0
    assert 0 <= result.test["accuracy"] <= 1


def test_trees_of_test_are_those_of_the_row() -> None:
    """At the scores of a vertex's neighbourhood: MAP for an argmax, a mixture for marginals."""
    scores, lengths = torch.randn(3, 5, 5), torch.tensor([5, 3, 1])

    def shown(name: str) -> Tensor:
        settings = Settings(operations.TASK.defaults(name))
        trees = LatentTree(name, "arborescence", settings, 16).eval()
        seen: list[Tensor] = []
        trees(scores, lengths, lambda arcs: seen.append(arcs) or arcs.sum((1, 2)))
        return seen[0]

    best = Arborescence(5).maximize(scores, lengths=lengths)
    for name in ("spigot", "imle", "gumbel-ste", "reinforce-baseline", "reinforce-leave-one-out"):
        torch.testing.assert_close(shown(name), best)
    torch.testing.assert_close(shown("marginals"), Arborescence(5).marginals(scores, lengths=lengths))
    torch.testing.assert_close(shown("sparsemap"), Arborescence(5).project(scores, lengths=lengths))


@pytest.mark.parametrize("name", ["no-tree", "random-tree", "flat-attention"])
def test_baselines_give_each_word_heads_that_sum_to_one_and_padding_none(name: str) -> None:
    lengths = torch.tensor([7, 1, 4])
    trees = LatentTree(name, "arborescence", Settings({}), 16)
    seen: list[Tensor] = []
    scores = 100 * torch.randn(3, 7, 7)
    trees(scores, lengths, lambda arcs: seen.append(arcs) or arcs.sum((1, 2)))
    words = real(lengths, 7).float()
    torch.testing.assert_close(seen[0].sum(1), words)
    assert not seen[0][~(words[:, :, None] * words[:, None]).bool()].any()


def test_batches_have_like_lengths_and_every_epoch_all_of_them() -> None:
    lengths = torch.randint(1, 30, (50,), generator=torch.Generator().manual_seed(0))
    groups = by_length(lengths, 8)
    assert torch.equal(lengths[torch.cat(groups)], lengths.sort().values)
    for epoch in range(2):
        rows = torch.cat([group(groups, 3, epoch * len(groups) + k) for k in range(len(groups))])
        assert torch.equal(rows.sort().values, torch.arange(50))


# Sentiment


def test_a_word_is_read_beside_its_head() -> None:
    torch.manual_seed(0)
    model = sentiment.Model(torch.randn(5, 6), 8).eval()
    torch.nn.init.normal_(model.root)
    v = torch.randn(1, 3, 8)
    heads = [1, -1, 1]
    arcs = Arborescence(3).encode(torch.tensor([heads]))
    pairs = [
        torch.relu(model.pair(torch.cat([v[0, d], model.root if h < 0 else v[0, h]])))
        for d, h in enumerate(heads)
    ]
    wanted = model.logits(torch.stack(pairs).mean(0))
    torch.testing.assert_close(model.judged(v, torch.tensor([3]), arcs)[0], wanted)


@pytest.mark.parametrize("estimator", ["no-tree", "flat-attention", "spigot", "marginals"])
def test_padding_changes_no_judgement(estimator: str) -> None:
    torch.manual_seed(0)
    model = sentiment.Model(torch.randn(30, 6), 8).eval()
    torch.nn.init.normal_(model.root)
    trees = LatentTree(
        estimator, "arborescence", Settings(sentiment.TASK.defaults(estimator)), 24
    ).eval()

    def logits(words: Tensor, lengths: Tensor) -> Tensor:
        encoded = model.encoded(words, lengths)
        return trees(
            model.scorer(encoded), lengths, lambda arcs: model.judged(encoded, lengths, arcs)[:, 0]
        )

    words = torch.randint(1, 30, (2, 9))
    alone = logits(words[:1, :4], torch.tensor([4]))
    words[0, 4:] = 0
    torch.testing.assert_close(logits(words, torch.tensor([4, 9]))[:1], alone)


def test_principal_components_keep_what_varies() -> None:
    """In a plane of a space of five: two components lose no distance, up to one scale."""
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(40, 2, generator=rng) @ torch.randn(2, 5, generator=rng) + 3
    known = torch.arange(30)
    found = sentiment.principal(points, known, 2)
    scale = found[known].square().mean().sqrt()
    torch.testing.assert_close(scale, torch.tensor(1.0))
    ratio = torch.cdist(found, found) / torch.cdist(points, points).fill_diagonal_(1)
    away = ratio[~torch.eye(40, dtype=torch.bool)]
    torch.testing.assert_close(away, away[0].expand_as(away), rtol=1e-3, atol=0)


@reviews
def test_the_treebank_is_read_whole_but_for_long_sentences_to_learn_from() -> None:
    corpus = sentiment.treebank(30)
    assert [len(corpus.parts[name].lengths) for name in ("validation", "test")] == [872, 1821]
    assert corpus.parts["train"].lengths.max() == 30
    assert corpus.vectors.shape[1] == sentiment.VECTOR
    assert not corpus.vectors[0].any()
    for part in corpus.parts.values():
        assert torch.equal((part.words > 0).sum(1), part.lengths)


@reviews
def test_the_vectors_do_not_depend_on_the_order_of_sets() -> None:
    code = (
        "from examples.experiments.tasks.sentiment import treebank\n"
        "print(treebank(30).vectors.sum(0).tolist())"
    )
    told: list[str] = []
    for seed in ("1", "2"):
        named = {**os.environ, "PYTHONHASHSEED": seed}
        run = [sys.executable, "-c", code]
        root = Path(__file__).parent.parent
        told.append(subprocess.run(run, env=named, cwd=root, stdout=subprocess.PIPE, text=True).stdout)
    assert told[0] == told[1] != ""


# ListOps


def value_of(tokens: tuple[str, ...]) -> int:
    """By a stack, and by sorting."""
    opened: list[str] = []
    stack: list[list[int]] = [[]]
    for token in tokens:
        if token.startswith("["):
            opened.append(token)
            stack.append([])
        elif token == "]":
            values, operator = sorted(stack.pop()), opened.pop()
            low, high = values[(len(values) - 1) // 2], values[len(values) // 2]
            found = {
                "[MIN": values[0],
                "[MAX": values[-1],
                "[MED": (low + high) // 2,
                "[SM": sum(values) % 10,
            }[operator]
            stack[-1].append(found)
        else:
            stack[-1].append(int(token))
    return stack[0][0]


def test_generated_expressions_are_as_published() -> None:
    rows = operations.collected(3000)
    assert rows == operations.collected(3000)
    assert rows != operations.collected(3000, seed=1)
    assert len({row.tokens for row in rows}) == 3000
    assert all(row.value == value_of(row.tokens) for row in rows)
    assert max(operations.depth_of(row.tokens) for row in rows) < operations.DEEPEST
    for row in rows:
        heads = operations.heads_of(row.tokens)
        inside = [h for h, token in zip(heads, row.tokens, strict=True) if h >= 0 and token != "]"]
        assert all(2 <= inside.count(h) <= 5 for h in set(inside))
        assert {h for h, token in zip(heads, row.tokens, strict=True) if token == "]"} == set(inside)


def test_the_true_tree_by_hand() -> None:
    tokens = ("[MAX", "2", "9", "[MIN", "4", "7", "]", "0", "]")
    assert operations.heads_of(tokens) == [-1, 0, 0, 0, 3, 3, 3, 0, 0]
    assert operations.depth_of(tokens) == 2
    assert operations.heads_of(["7"]) == [-1]
    assert operations.depth_of(["7"]) == 0


def batch_of(*texts: str) -> operations.Batch:
    rows = [operations.Expression(tuple(text.split()), 0) for text in texts]
    part = operations.padded(rows)
    return operations.Batch.of(part, torch.arange(len(rows)))


def test_values_go_up_the_true_tree_alone() -> None:
    """Arguments in another order, and padding: the same. A token moved to another operator: not."""
    torch.manual_seed(0)
    model = operations.Model(8).double()
    batch = batch_of(
        "[MAX 2 9 [MIN 4 7 ] 0 ]",
        "[MAX 0 [MIN 7 4 ] 9 2 ]",
        "[MAX 2 [MIN 9 4 7 ] 0 ]",
        "[SM 1 [SM 2 [SM 3 [SM 4 5 ] ] ] ]",
    )
    found = model.answered(batch, batch.gold.double())
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-6
    alone = batch_of("[MAX 2 9 [MIN 4 7 ] 0 ]")
    torch.testing.assert_close(model.answered(alone, alone.gold.double())[0], found[0])


def test_the_innermost_digit_reaches_the_root() -> None:
    torch.manual_seed(0)
    model = operations.Model(8).double()
    deep = [f"[SM 1 [SM 2 [SM 3 [SM 4 {digit} ] ] ] ]" for digit in (5, 6)]
    batch = batch_of(*deep)
    found = model.answered(batch, batch.gold.double())
    assert (found[0] - found[1]).abs().max() > 1e-9


def test_attachment_is_counted_by_hand() -> None:
    experiment = smoke(operations.TASK, "spigot")
    part = experiment.parts["validation"]
    batch = operations.Batch.of(part, torch.arange(len(part.values)))
    with torch.no_grad():
        experiment.model.eval()
        told = experiment.evaluate("validation")
        scores = experiment.network.scores(batch)
        trees = Arborescence(scores.shape[-1])
        found = trees.decode(trees.maximize(scores, lengths=batch.lengths), batch.lengths)
    right = ((found == batch.heads) & (batch.heads > -2)).sum() / batch.lengths.sum()
    assert told["attachment"] == pytest.approx(right.item())


@published
def test_published_answers_follow_from_the_operators() -> None:
    for row in listops():
        assert row.value == value_of(row.tokens)


@published
def test_no_published_expression_is_learned_from() -> None:
    size = operations.SIZES["smoke"]
    found = operations.parts(size, published=True)

    def texts(name: str) -> set[tuple[int, ...]]:
        part = found[name]
        return {
            tuple(row[:n].tolist()) for row, n in zip(part.tokens, part.lengths.tolist(), strict=True)
        }

    assert len(texts("test")) == sum(len(row.tokens) <= size.longest for row in listops())
    assert not texts("train") & texts("test")
    assert not texts("train") & texts("validation")
