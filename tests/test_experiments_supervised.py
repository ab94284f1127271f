"""Experiments whose true structures are known: key points, ranking, tagging."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from examples.data import Query, Tagged
from examples.experiments.experiment import Cell, Task
from examples.experiments.store import FINISHED
from examples.experiments.tasks import keypoints, ranking, tagging
from examples.experiments.training import Place, train
from spigot.polytopes import Euclidean, Matching, Permutahedron, Sequence

SEQUENCE_ROWS = ("pointwise", "fenchel-young-gibbs", "hinge", "ste-identity", "spigot-eg", "marginals")
TAGGING_ROWS = ("fenchel-young-gibbs", "hinge", "perceptron", "ste-softmax", "perturbed", "imle")
RUNS = (
    *((keypoints.TASK, name, "matching") for name in keypoints.TASK.estimators),
    *((ranking.TASK, name, place) for name in ranking.TASK.estimators for place in ranking.STRUCTURES),
    *((tagging.TASK, name, "sequence") for name in SEQUENCE_ROWS),
    *((tagging.TASK, name, "tagging") for name in TAGGING_ROWS),
)


@pytest.mark.parametrize(
    ("task", "estimator", "structure"), RUNS, ids=[f"{run[0].name}-{run[1]}-{run[2]}" for run in RUNS]
)
def test_every_row_runs_and_is_measured(
    task: Task, estimator: str, structure: str, tmp_path: Path
) -> None:
    run = task.run(Cell(estimator), structure, 0, "smoke")
    result = train(run, task, Place(tmp_path))
    assert result.status == FINISHED, result.message
    for metric in task.metrics:
        assert 0 < result.test[metric.name] <= 1
    assert estimator == "untrained" or result.steps == task.experiment(run).steps


def test_contexts_turn_with_the_frame() -> None:
    """A turn by one sector moves every count to the next one, and a larger picture changes none."""
    places = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(0)).double()
    counts = keypoints.contexts(places).square()
    assert counts.sum(-1).allclose(torch.tensor(6.0))
    angle = 2 * math.pi / keypoints.SECTORS
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    turned = keypoints.contexts(5 * places @ turn.double()).square()
    rings = counts.unflatten(-1, (keypoints.RINGS, keypoints.SECTORS))
    assert turned.allclose(rings.roll(1, -1).flatten(-2))


def test_contexts_by_hand() -> None:
    """Two others, at half and at one and a half the mean distance of 2, to the right and above."""
    places = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    mean = (1 + 1 + math.sqrt(2)) / 3
    ring = math.floor(math.log2(1 / mean)) + 3
    found = keypoints.contexts(places)[0, 0].unflatten(0, (keypoints.RINGS, keypoints.SECTORS))
    expected = torch.zeros_like(found)
    expected[ring, 0] = expected[ring, keypoints.SECTORS // 4] = 1.0
    assert found.equal(expected)


@pytest.fixture(scope="module")
def pairs() -> keypoints.Pairs:
    film = keypoints.turned(4, 9, seed=1)
    return keypoints.Pairs.of(film, list(range(9)), 5, torch.Generator().manual_seed(0))


def test_second_frames_are_shuffled_and_labels_undo_it(pairs: keypoints.Pairs) -> None:
    film = keypoints.spread(keypoints.turned(4, 9, seed=1))
    second = [b for a in range(9) for b in range(9) if b - a >= 5]
    assert len(pairs.labels) == len(second) == 10
    assert not pairs.labels.equal(torch.arange(4).expand(10, -1))
    assert keypoints.true_places(pairs).equal(film[second])
    undone = pairs.second.take_along_dim(pairs.labels[:, :, None], 1)
    assert undone[:, :, -2:].equal(film[second])


def test_two_losses_agree_at_matchings_and_differ_between_them(pairs: keypoints.Pairs) -> None:
    every = torch.eye(4)[torch.tensor(list(itertools.permutations(range(4))))]
    truth = Matching(4).encode(pairs.labels).float()
    for mu in every:
        mus = mu.expand_as(truth)
        far = keypoints.distance(mus, pairs)
        assert far.allclose(keypoints.mean_point(mus, pairs), atol=1e-4)
        assert ((far < 1e-4) == (mus == truth).flatten(1).all(1)).all()
    middle = torch.full_like(truth, 0.25)
    assert (keypoints.mean_point(middle, pairs) < keypoints.distance(middle, pairs) - 0.1).all()


def queries(*grades: list[int]) -> ranking.Queries:
    every = [Query(torch.zeros(len(row), 300), torch.tensor(row)) for row in grades]
    return ranking.Queries.of(every, 5)


def test_ndcg_by_hand() -> None:
    """One query found in the order 1, 0, 3; one with nothing relevant, which counts 1."""
    both = queries([3, 1, 0], [0, 0])
    scores = torch.tensor([[0.0, 2.0, 1.0, 9.0, 9.0], [1.0, 2.0, 9.0, 9.0, 9.0]])
    best = 7 + 1 / math.log2(3)
    assert ranking.ndcg(scores, both, 5) == pytest.approx((1 + (1 + 7 / 2) / best) / 2)
    assert ranking.ndcg(scores, both, 1) == pytest.approx((1 + 1 / 7) / 2)
    assert ranking.ndcg(-scores[:1], queries([3, 1, 0]), 2) == pytest.approx(7 / best)


@pytest.mark.parametrize("structure", ranking.STRUCTURES)
def test_losses_of_rankings_are_one_less_ndcg(structure: str) -> None:
    held = queries([3, 1, 0, 2, 1], [0, 2, 0])
    row = ranking.STRUCTURES[structure]
    polytope = Permutahedron(row.weights(5))
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    mu = polytope.maximize(scores, lengths=held.lengths)
    found = row.loss(mu, held)
    for k, grades in enumerate(([3, 1, 0, 2, 1], [0, 2, 0])):
        assert 1 - found[k].item() == pytest.approx(ranking.ndcg(scores[[k]], queries(grades), 5))


@pytest.mark.parametrize("structure", ranking.STRUCTURES)
def test_shared_weights_are_the_mean_of_ideal_rankings(structure: str) -> None:
    every = ([3, 1, 1, 0, 1], [2, 2], [0])
    weights = ranking.STRUCTURES[structure].weights(5)
    found = ranking.shared_weights(weights, queries(*every))
    for row, grades in zip(found, every, strict=True):
        places = weights[: len(grades)].sort(descending=True).values
        orders = [
            order
            for order in itertools.permutations(range(len(grades)))
            if all(grades[a] >= grades[b] for a, b in itertools.pairwise(order))
        ]
        held = torch.zeros(len(orders), 5)
        for k, order in enumerate(orders):
            held[k, list(order)] = places
        assert row.allclose(held.mean(0))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-a", {(0, 0, "a")}),
        ("B-a I-a O B-b", {(0, 1, "a"), (3, 3, "b")}),
        ("B-a B-a I-a", {(0, 0, "a"), (1, 2, "a")}),
        ("B-a I-b I-b", {(0, 0, "a"), (1, 2, "b")}),
        ("O I-a I-a B-a", {(1, 2, "a"), (3, 3, "a")}),
        ("I-a O I-a", {(0, 0, "a"), (2, 2, "a")}),
        ("B-creative-work I-creative-work", {(0, 1, "creative-work")}),
    ],
)
def test_entities_as_conll_reads_them(tags: str, expected: set[tuple[int, int, str]]) -> None:
    assert tagging.entities(tags.split()) == expected


def test_f1_by_hand() -> None:
    """Of three told and four real one is right: half an entity is none, nor is one of another kind."""
    truths = ["B-a I-a O B-b", "B-a O B-b"]
    guesses = ["B-a O O B-b", "O O B-a"]
    split = [[line.split() for line in lines] for lines in (guesses, truths)]
    assert tagging.f1(*split) == pytest.approx(2 * 1 / (3 + 4))
    assert tagging.f1(split[1], split[1]) == 1
    assert tagging.f1([["O"]], [["O"]]) == 0


@pytest.fixture(scope="module")
def sentences() -> tagging.Sentences:
    every = [Tagged(("x", "y", "z"), ("O", "B-a", "I-a")), Tagged(("y", "x"), ("B-a", "O"))]
    return tagging.padded(every, {"x": 1, "y": 2, "z": 3}, ["B-a", "I-a", "O"])


@pytest.mark.parametrize("structure", tagging.STRUCTURES)
def test_hinge_is_the_worst_tagging_with_its_wrong_tags(
    structure: str, sentences: tagging.Sentences
) -> None:
    rng = torch.Generator().manual_seed(0)
    unary, transition = torch.randn(2, 3, 3, generator=rng), torch.randn(3, 3, generator=rng)
    run = tagging.TASK.run(Cell("hinge"), structure, 0, "smoke")
    judge = tagging.judge(run, 3, 3, tagging.TASK.settings(run))
    found = judge(unary, transition, sentences)

    def score(k: int, tags: tuple[int, ...]) -> Tensor:
        steps = sum(transition[a, b] for a, b in itertools.pairwise(tags))
        return unary[k, range(len(tags)), tags].sum() + steps

    for k, size in enumerate(sentences.lengths.tolist()):
        true = tuple(sentences.ids[k, :size].tolist())
        worst = max(
            score(k, tags) + sum(a != b for a, b in zip(tags, true, strict=True))
            for tags in itertools.product(range(3), repeat=size)
        )
        assert found[k].item() == pytest.approx((worst - score(k, true)).item(), abs=1e-5)


@pytest.mark.parametrize("structure", tagging.STRUCTURES)
def test_wrong_tags_are_counted_in_both_structures(structure: str, sentences: tagging.Sentences) -> None:
    row = tagging.STRUCTURES[structure]
    told = torch.tensor([[2, 2, 1], [1, 0, -1]])
    polytope = row.make(3, 3)
    mu = polytope.encode(told, lengths=sentences.lengths).float()
    tags = row.tags(mu, 3)
    assert tags.equal(tagging.truth(tagging.Sentences(told, told, told, told), 3))
    wrong = (tags - tagging.truth(sentences, 3)).square().sum((1, 2)) / 2
    assert wrong.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "where", [{0: (5, 12), 1: (2, 12), 2: (2, 12), 4: (12, 4), 5: (12, 10)}, {12: (1, 12)}]
)
def test_spigots_step_from_a_tagging_of_mostly_one_tag_is_projected(
    where: dict[int, tuple[int, int]],
) -> None:
    """Thousands of arcs are at their bound, without a slope: once this ended without an answer."""
    told, right = torch.full((2, 1, 14), 12)
    for place, tags in where.items():
        told[0, place], right[0, place] = tags
    chain = Sequence(14, 13)
    z, y = (chain.encode(ids).double() for ids in (told, right))
    slope = (Sequence.tags.apply(z) - Sequence.tags.apply(y))[:, :, None].expand_as(z)
    for step_size in (1.0, 0.31):
        scores = z - step_size * slope
        found = chain.solve(scores, Euclidean()).value
        assert chain.contains(found).all()
        assert chain.gap(found, scores, Euclidean()).abs().max() < 1e-10
