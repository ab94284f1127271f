"""Sequences, dynamic programmes, rankings and logic factors at the edges of what may be asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spigot.polytopes import (
    Alignment,
    Arborescence,
    AtMostOne,
    ConstituencyTree,
    Euclidean,
    Hypergraph,
    Matching,
    NoStructure,
    OrOut,
    Permutahedron,
    Polytope,
    ProjectiveTree,
    SemiMarkov,
    Sequence,
    Subset,
    Xor,
)

DERIVED: list[Polytope] = [
    ProjectiveTree(4),
    ProjectiveTree(3, single_root=True),
    ConstituencyTree(4),
    SemiMarkov(4, 2, 3),
    Alignment(3, 4),
    Alignment(3, 3, moves=True),
]
CHAINS: list[Polytope] = [Sequence(4, 3), Sequence(3, 1), Sequence(1, 3), Sequence(1, 1)]
OTHERS: list[Polytope] = [Permutahedron([3.0, 1.0, 0.0, 0.0]), Xor(4), AtMostOne(3), OrOut(4)]
SIZED = DERIVED + CHAINS + OTHERS
Verb = Callable[..., Tensor]


def each(polytopes: list[Polytope]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("polytope", polytopes, ids=str)


def normal(polytope: Polytope, *batch: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, *polytope.event_shape)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


def shortest(polytope: Polytope, *batch: int) -> Tensor:
    lowest = torch.tensor(polytope.length_range[0])
    return lowest.expand(*batch, *lowest.shape)


@each(SIZED)
def test_scores_in_any_memory_order(polytope: Polytope) -> None:
    base = normal(polytope, 3, 4)
    event_first = base.movedim((0, 1), (-2, -1)).contiguous().movedim((-2, -1), (0, 1))
    pull = normal(polytope, 3, 4, seed=1)
    turned = pull.movedim((0, 1), (-2, -1)).contiguous().movedim((-2, -1), (0, 1))
    assert not event_first.is_contiguous() or polytope.event_shape == (1, 1, 1)
    mask = (base < 9).movedim((0, 1), (-2, -1)).contiguous().movedim((-2, -1), (0, 1))
    for verb in (polytope.maximize, polytope.marginals, polytope.project):
        expected = verb(base)
        assert torch.equal(verb(event_first), expected)
        assert torch.equal(verb(event_first, keep=mask), expected)
        if verb != polytope.maximize:
            leaf = base.clone().requires_grad_()
            (plain,) = torch.autograd.grad(verb(leaf), leaf, pull)
            (other,) = torch.autograd.grad(verb(leaf), leaf, turned)
            assert torch.equal(plain, other)
    assert torch.equal(polytope.top_k(event_first, 1), polytope.top_k(base, 1))


@each(SIZED)
@pytest.mark.parametrize("batch", [(0,), (2, 0)])
def test_an_empty_batch_with_lengths(polytope: Polytope, batch: tuple[int, ...]) -> None:
    scores = normal(polytope, *batch).requires_grad_()
    lengths = shortest(polytope, *batch)
    for verb in (polytope.maximize, polytope.marginals, polytope.project, polytope.sample):
        assert verb(scores, lengths=lengths).shape == scores.shape
    assert polytope.entropy(scores, lengths=lengths).shape == batch
    assert polytope.top_k(scores, 2, lengths=lengths).shape == (2, *scores.shape)


@each(DERIVED)
@pytest.mark.parametrize("scale", [1e10, 1e19, 1e30, 1e300])
def test_sums_at_enormous_scores(polytope: Polytope, scale: float) -> None:
    scores = normal(polytope, 5, scale=scale).requires_grad_()
    best = polytope.maximize(scores)
    marginals = polytope.marginals(scores)
    torch.testing.assert_close(marginals.detach(), best, atol=1e-12, rtol=0)
    (pulled,) = torch.autograd.grad(marginals.sum(), scores)
    torch.testing.assert_close(pulled, torch.zeros_like(pulled), atol=1e-12, rtol=0)
    value = (best * scores.detach()).flatten(1).sum(1)
    torch.testing.assert_close(
        polytope.log_partition(scores).detach(), value, atol=1e-13 * scale, rtol=0
    )
    assert torch.equal(polytope.sample(scores), best)


def every(polytope: Polytope) -> Tensor:
    """All structures, `(m, *event)`."""
    scores = torch.zeros(polytope.event_shape, dtype=torch.float64)
    count = round(polytope.log_partition(scores).exp().item())
    with pytest.raises(ValueError, match=f"only {count} structure"):
        polytope.top_k(scores, count + 1)
    return polytope.top_k(scores, count)


@each(SIZED)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 50.0, 1e3, 1e6])
def test_entropies_at_any_scale(polytope: Polytope, scale: float) -> None:
    points = every(polytope).flatten(1)
    for dtype in (torch.float32, torch.float64):
        plain = normal(polytope, 20, scale=scale).to(dtype)
        for scores in (plain, (plain > 0).to(dtype) * scale):  # the second ties
            logs = (scores.double().flatten(1) @ points.T).log_softmax(1)
            expected = torch.special.entr(logs.exp()).sum(1)
            entropy = polytope.entropy(scores)
            assert entropy.dtype == dtype
            assert bool((entropy >= 0).all())
            loss = 1e-14 * scale + 4 * torch.finfo(dtype).eps
            torch.testing.assert_close(entropy.double(), expected, atol=loss, rtol=loss)


@each([Sequence(4, 3), Sequence(3, 1), Sequence(1, 2), Sequence(1, 1)])
@pytest.mark.parametrize("step", [0, -1])
def test_a_step_without_arcs_leaves_no_sequence(polytope: Polytope, step: int) -> None:
    scores = normal(polytope, 3)
    scores[1, step] = -torch.inf
    for verb in (polytope.maximize, polytope.marginals, polytope.project, polytope.log_partition):
        with pytest.raises(NoStructure, match="in instance 1"):
            verb(scores)
    for listed in (polytope.sample, polytope.entropy):
        with pytest.raises(NoStructure, match="in instance 1"):
            listed(scores)
    with pytest.raises(NoStructure, match="in instance 1"):
        polytope.top_k(scores, 1)


@each(SIZED)
def test_too_large_a_k_names_the_instances(polytope: Polytope) -> None:
    scores = normal(polytope, 3)
    lengths = torch.stack([torch.as_tensor(polytope.length_range[i]) for i in (1, 0, 1)])
    small = every(polytope.at(polytope.length_range[0]))
    count = len(small)
    named = "instance 1" if len(every(polytope)) > count else "instances 0, 1, 2"
    with pytest.raises(ValueError, match=f"k = {count + 1}.* only {count} structure.* in {named}"):
        polytope.top_k(scores, count + 1, lengths=lengths)
    polytope.top_k(scores, count, lengths=lengths)


def test_a_hypergraph_without_a_derivation_left_says_so() -> None:
    ways = Hypergraph([("s", (), 0), ("s", (), 1)], shape=2, goal="s")
    keep = torch.tensor([[True, False], [False, False]])
    for k in (1, 2):
        with pytest.raises(NoStructure, match="in instance 1"):
            ways.top_k(torch.zeros(2, 2), k, keep=keep)


@each(CHAINS)
@pytest.mark.parametrize("regularizer", [Euclidean(), Euclidean(of=Sequence.tags)], ids=str)
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e6, 1e17, 1e30, 1e200])
def test_projections_of_sequences_at_any_scale(
    polytope: Polytope, regularizer: Euclidean, scale: float
) -> None:
    scores = normal(polytope, 12, scale=scale)
    for leaf in (scores, (scores > 0).double() * scale):  # the second ties
        leaf = leaf.clone().requires_grad_()
        y = polytope.maximize(leaf, regularizer)
        assert bool((y >= 0).all())
        torch.testing.assert_close(y.sum((2, 3)), torch.ones_like(y[:, :, 0, 0]))
        (pulled,) = torch.autograd.grad(y.square().sum(), leaf)
        assert bool(pulled.isfinite().all())
    if scale >= 1e6:
        best = polytope.maximize(scores)
        torch.testing.assert_close(polytope.maximize(scores, regularizer), best, atol=1e-9, rtol=0)


@each(SIZED)
def test_labels_of_no_instance(polytope: Polytope) -> None:
    lengths = shortest(polytope, 0)
    nothing = polytope.decode(normal(polytope, 0), lengths)
    assert len(nothing) == 0
    assert polytope.encode(nothing, lengths).shape == (0, *polytope.event_shape)


LABELLED: list[tuple[Polytope, object]] = [
    (Sequence(4, 3), [0, 1, 2, 1]),
    (ProjectiveTree(4), [-1, 0, 1, 2]),
    (ConstituencyTree(3), [[0, 2], [0, 1]]),
    (ConstituencyTree(2, labels=2), [[0, 1, 0], [0, 0, 1], [1, 1, 0]]),
    (SemiMarkov(4, 2, 3), [0, -1, 1, -1]),
    (Alignment(3, 4), [[0, 0], [1, 1], [2, 2], [2, 3]]),
    (Permutahedron([3.0, 1.0, 0.0, 0.0]), [1, 0, 2, 3]),
    (Xor(4), [1]),
    (OrOut(4), [0, 3]),
    (Subset(4, 2), [0, 2]),
    (Matching(2, 3), [2, 0]),
    (Arborescence(3), [-1, 0, 1]),
]


@pytest.mark.parametrize(("polytope", "labels"), LABELLED, ids=str)
def test_malformed_labels_are_named(polytope: Polytope, labels: object) -> None:
    plain = torch.tensor(labels)
    expected = polytope.encode(labels)
    for good in (plain, plain.numpy(), plain.int(), plain.numpy().astype("int16")):
        assert torch.equal(polytope.encode(good), expected)
    assert torch.equal(polytope.encode([labels, labels]), torch.stack([expected, expected]))
    ragged = [labels, labels[:-1]] if isinstance(labels, list) else None
    for bad in (None, "abc", ragged, plain.float(), plain.bool(), plain.to(torch.complex64)):
        with pytest.raises(TypeError, match="labels must be"):
            polytope.encode(bad)
    for wrong in (3, plain + 9, plain - 9):
        with pytest.raises(ValueError, match="labels"):
            polytope.encode(wrong)


@pytest.mark.parametrize(("polytope", "labels"), LABELLED, ids=str)
def test_malformed_lengths_of_labels_are_named(polytope: Polytope, labels: object) -> None:
    plain = torch.tensor(labels)[None]
    full = torch.tensor(polytope.length_range[1])[None]
    expected = polytope.encode(plain)
    assert torch.equal(polytope.encode(plain, full), expected)
    assert torch.equal(polytope.encode(plain, full.int()), expected)
    for bad in (4, [4], full.double()):
        with pytest.raises(TypeError, match="lengths must be"):
            polytope.encode(plain, bad)  # pyright: ignore[reportArgumentType]
    for wrong in (full + 1, full * 0, -full, torch.cat([full, full, full])):
        with pytest.raises(ValueError, match="lengths"):
            polytope.encode(plain, wrong)


@each([Sequence(4, 3), Xor(4)])
def test_malformed_counts_are_named(polytope: Polytope) -> None:
    scores = normal(polytope)
    with pytest.raises(TypeError, match=r"sample_shape must be a tuple, such as \(5,\), got 5"):
        polytope.sample(scores, 5)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="k must be a whole number"):
        polytope.top_k(scores, 1.5)  # pyright: ignore[reportArgumentType]
