"""Dependency trees: against lists of all trees, networkx, mpmath and the generic roads."""

from __future__ import annotations

from typing import Any

import mpmath
import networkx as nx
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import Relaxed
from spigot.polytopes import Arborescence, Euclidean, Gibbs, NoStructure, Regularizer
from spigot.polytopes.kernels.pool import over_instances
from spigot.polytopes.posing import pose
from spigot.polytopes.solvers import ActiveSet
from spigot.polytopes.structures.tree import BatchedMatrixTree, MatrixTree
from tests.structures import arborescences
from tests.tensors import normal

either = pytest.mark.parametrize("single_root", [False, True])


def thinned(n: int, batch: int, single_root: bool = False, seed: int = 0) -> Tensor:
    """Masks that leave at least one tree."""
    tree = Arborescence(n, single_root).maximize(normal(batch, n, n, seed=seed))
    return (tree > 0) | (normal(batch, n, n, seed=seed + 1) > 0)


def energies(scores: Tensor, keep: Tensor | None, single_root: bool) -> tuple[Tensor, Tensor]:
    """All trees `(m, n, n)` and their scores `(batch, m)`, -inf at those that the mask excludes."""
    trees = arborescences(scores.shape[-1], single_root).vertices().double()
    scores = scores if keep is None else scores.masked_fill(~keep, -torch.inf)
    used = torch.where(trees > 0, scores[:, None], 0.0)
    return trees, used.sum((2, 3))


def test_cayley() -> None:
    """(n + 1)^(n - 1) trees, n^(n - 1) of them with one root."""
    for n in range(1, 8):
        counts = [
            Arborescence(n, one).log_partition(torch.zeros(n, n).double()) for one in (False, True)
        ]
        exact = torch.tensor([(n + 1.0) ** (n - 1), float(n) ** (n - 1)], dtype=torch.float64)
        torch.testing.assert_close(torch.stack(counts).exp(), exact)


@either
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "huge", "tiny", "one huge", "thinned"])
def test_the_best_tree_is_best(n: int, single_root: bool, kind: str) -> None:
    scores = normal(40, n, n)
    keep = thinned(n, 40, single_root) if kind == "thinned" else None
    scores = {
        "ties": scores.round(),
        "zeros": 0 * scores,
        "huge": 1e6 * scores,
        "tiny": 1e-9 * scores,
        "one huge": torch.where(scores == scores.amax((1, 2), keepdim=True), 1e12, scores),
    }.get(kind, scores)
    tree = Arborescence(n, single_root)
    trees, values = energies(scores, keep, single_root)
    best = tree.maximize(scores, keep=keep)
    assert bool((best.flatten(1)[:, None] == trees.flatten(1)).all(2).any(1).all())
    torch.testing.assert_close((scores * best).sum((1, 2)), values.amax(1), rtol=1e-12, atol=0)
    alone = torch.stack(
        [tree.maximize(scores[i], keep=None if keep is None else keep[i]) for i in range(40)]
    )
    assert torch.equal(best, alone)
    assert torch.equal(
        tree.maximize(scores.flip(0), keep=None if keep is None else keep.flip(0)).flip(0), best
    )


def test_networkx_finds_no_better_tree() -> None:
    for n in (6, 15, 30):
        scores = normal(n, n, seed=n)
        graph: Any = nx.DiGraph()
        for h in range(n):
            for d in range(n):
                graph.add_edge("root" if h == d else h, d, weight=float(scores[h, d]))
        expected = nx.maximum_spanning_arborescence(graph).size(weight="weight")
        best = Arborescence(n).maximize(scores)
        torch.testing.assert_close((scores * best).sum(), torch.tensor(expected).double())


def test_single_root_at_full_size_beats_every_choice_of_the_root() -> None:
    n = 12
    scores = normal(n, n) + 3 * torch.eye(n).double()  # many roots would pay
    best = Arborescence(n, True).maximize(scores)
    assert best.trace() == 1
    values: list[Tensor] = []
    for root in range(n):
        keep = ~torch.eye(n, dtype=torch.bool)
        keep[root, root] = True
        values.append((Arborescence(n).maximize(scores, keep=keep) * scores).sum())
    torch.testing.assert_close((scores * best).sum(), torch.stack(values).amax())


@pytest.mark.slow
def test_five_hundred_words() -> None:
    scores = normal(1, 500, 500)
    tree = Arborescence(500)
    heads = tree.decode(tree.maximize(scores))
    assert torch.equal(tree.encode(heads).sum((1, 2)), torch.tensor([500.0]))
    solution = tree.solve(scores, Euclidean())
    assert solution.gap is not None
    assert float(solution.gap) < 1e-8 * (1 + float((scores * solution.value).sum()))
    torch.testing.assert_close(tree.marginals(scores).sum(1), torch.ones(1, 500).double())


@either
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 20.0, 1000.0])
def test_sums_over_all_trees(single_root: bool, masked: bool, scale: float) -> None:
    for n in (1, 2, 3, 4, 5):
        scores = scale * normal(20, n, n, seed=n)
        keep = thinned(n, 20, single_root, seed=n) if masked else None
        trees, values = energies(scores, keep, single_root)
        chance = values.softmax(1)
        tree = Arborescence(n, single_root)
        marginals = tree.marginals(scores, keep=keep)
        torch.testing.assert_close(
            marginals, torch.einsum("bm,mij->bij", chance, trees), atol=1e-9, rtol=1e-9
        )
        torch.testing.assert_close(
            tree.log_partition(scores, keep=keep), values.logsumexp(1), atol=1e-9, rtol=1e-9
        )
        direction = normal(20, n, n, seed=9)
        along = torch.einsum("mij,bij->bm", trees, direction)
        centred = chance * (along - (chance * along).sum(1, keepdim=True))
        leaf = scores.clone().requires_grad_()
        tree.marginals(leaf, keep=keep).backward(direction)
        torch.testing.assert_close(
            leaf.grad, torch.einsum("bm,mij->bij", centred, trees), atol=1e-9, rtol=1e-9
        )


def exact_marginals(scores: Tensor, digits: int) -> Tensor:
    """By Gaussian elimination in many digits: w_hm (G_mm - G_hm), G the Laplacian's inverse."""
    n = len(scores)
    with mpmath.workdps(digits):
        weight = [[mpmath.exp(mpmath.mpf(float(value))) for value in row] for row in scores]
        laplacian = mpmath.matrix(n, n)
        for d in range(n):
            laplacian[d, d] = mpmath.fsum(weight[h][d] for h in range(n))
            for h in range(n):
                if h != d:
                    laplacian[d, h] = -weight[h][d]
        inverse = laplacian**-1
        return torch.tensor(
            [
                [
                    float(weight[h][d] * (inverse[d, d] - (inverse[h, d] if h != d else 0)))
                    for d in range(n)
                ]
                for h in range(n)
            ],
            dtype=torch.float64,
        )


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, pytest.param(1000.0, marks=pytest.mark.slow)])
def test_peaked_marginals_equal_many_digits(scale: float) -> None:
    scores = (scale * normal(20, 20, seed=4)).float()
    marginals = Arborescence(20).marginals(scores).double()
    digits = 60 + int(8 * scale)  # three times the weights' range
    torch.testing.assert_close(marginals, exact_marginals(scores, digits), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_peaked_marginals_of_long_sentences_equal_many_digits() -> None:
    scores = (100 * normal(80, 80, seed=5)).float()
    marginals = Arborescence(80).marginals(scores).double()
    torch.testing.assert_close(marginals, exact_marginals(scores, 900), atol=1e-5, rtol=0)


@either
@pytest.mark.parametrize("n", [20, 80])
@pytest.mark.parametrize("scale", [1.0, 10.0, 50.0, 1000.0])
def test_peaked_scores_stay_in_range(n: int, scale: float, single_root: bool) -> None:
    leaf = (scale * normal(3, n, n)).float().requires_grad_()
    marginals = Arborescence(n, single_root).marginals(leaf)
    assert bool(((marginals >= 0) & (marginals <= 1)).all())
    torch.testing.assert_close(marginals.sum(1), torch.ones(3, n), atol=1e-5, rtol=0)
    if single_root:
        roots = marginals.diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(roots, torch.ones(3), atol=1e-5, rtol=0)
    marginals.square().sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())


@either
def test_two_arithmetics_and_torch_agree(single_root: bool) -> None:
    """One column far below the others' range sends an instance to logarithms."""
    for n, scale in ((7, 1.0), (12, 60.0), (12, 1000.0)):
        tree = Arborescence(n, single_root)
        scores, direction = scale * normal(4, n, n, seed=n), normal(4, n, n, seed=1)
        lengths = torch.tensor([1, 3, n - 1, n])
        keep = thinned(n, 4, True) | torch.eye(n, dtype=torch.bool)
        for sizes, mask in ((None, None), (lengths, None), (lengths, keep)):
            problem = pose(tree, scores, Gibbs(), sizes, mask)
            roads = MatrixTree(), BatchedMatrixTree()
            one, other = (road.solve(problem) for road in roads)
            torch.testing.assert_close(one.value, other.value, atol=1e-8, rtol=0)
            torch.testing.assert_close(one.objective, other.objective)
            pulled = [road.vjp(problem, one, direction) for road in roads]
            torch.testing.assert_close(pulled[0], pulled[1], atol=1e-7, rtol=0)
    wide = normal(2, 5, 5)
    wide[0, 1, 2] -= 500.0  # logarithms, the second instance plain numbers
    plain = wide.clone()
    plain[0, 1, 2] = -torch.inf
    tree = Arborescence(5, single_root)
    torch.testing.assert_close(tree.marginals(wide), tree.marginals(plain))


@either
@pytest.mark.parametrize("scale", [1.0, 6.0, 50.0, 1000.0])
def test_log_z_alone_is_log_z_beside_the_marginals(single_root: bool, scale: float) -> None:
    for n in (1, 4, 7, 13):  # an inverse for some instances, elimination or logarithms for others
        tree = Arborescence(n, single_root)
        scores = scale * normal(8, n, n, seed=n)
        lengths = torch.arange(8) % n + 1
        beside = tree.log_partition(scores.clone().requires_grad_(), lengths=lengths).detach()
        torch.testing.assert_close(tree.log_partition(scores, lengths=lengths), beside)


@either
def test_derivatives(single_root: bool) -> None:
    tree = Arborescence(4, single_root)
    scores = normal(2, 4, 4, seed=3).requires_grad_()
    for verb in (tree.marginals, tree.entropy, tree.project):
        assert torch.autograd.gradcheck(verb, scores)
    assert torch.autograd.gradgradcheck(tree.log_partition, scores)


@either
@pytest.mark.parametrize("scale", [1.0, 4.0, 100.0])
def test_projections_are_certified(scale: float, single_root: bool) -> None:
    for n in (10, 20, 40):
        tree = Arborescence(n, single_root)
        scores = scale * normal(6, n, n, seed=n)
        solution = tree.solve(scores, Euclidean())
        assert solution.gap is not None
        value = (scores * solution.value).sum((1, 2)).abs()
        assert bool((solution.gap.abs() <= 1e-8 * (1 + value)).all())
        assert bool(solution.converged.all())
        # what is projected lies in M: projected again it stays
        again = tree.project(solution.value)
        torch.testing.assert_close(again, solution.value, atol=1e-7, rtol=0)


@either
def test_the_active_set_gives_the_same_projection_and_derivative(single_root: bool) -> None:
    tree = Arborescence(7, single_root)
    direction = normal(6, 7, 7, seed=2)
    keep = thinned(7, 6, single_root)
    for scores in (normal(6, 7, 7), 5 * normal(6, 7, 7, seed=1), torch.zeros(6, 7, 7).double()):
        for mask in (None, keep):
            answers: list[tuple[Tensor, Tensor]] = []
            for solver in (None, ActiveSet()):
                leaf = scores.clone().requires_grad_()
                value = tree.maximize(leaf, Euclidean(), keep=mask, solver=solver)
                value.backward(direction)
                assert leaf.grad is not None
                answers.append((value.detach(), leaf.grad))
            for mine, other in zip(*answers, strict=True):
                torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


def test_a_tie_at_an_unused_arc_counts_as_free_where_a_tree_uses_it() -> None:
    tree = Arborescence(3)
    scores = torch.full((3, 3), -5.0, dtype=torch.float64)
    scores.fill_diagonal_(1.0)
    scores[0, 1] = 0.0  # one below the root's arc: sparsemax's threshold
    answers: list[Tensor] = []
    for solver in (None, ActiveSet()):
        leaf = scores.clone().requires_grad_()
        tree.maximize(leaf, Euclidean(), solver=solver)[0, 1].backward()
        assert leaf.grad is not None
        answers.append(leaf.grad)
    torch.testing.assert_close(answers[0], answers[1])
    torch.testing.assert_close(answers[0][0, 1], torch.tensor(0.5).double())


OMEGAS: list[Regularizer | None] = [None, Euclidean(), Gibbs()]


@either
@pytest.mark.parametrize("omega", OMEGAS, ids=str)
def test_lengths_equal_each_instance_alone(omega: Regularizer | None, single_root: bool) -> None:
    n, lengths = 9, torch.tensor([[1, 9, 4], [2, 7, 9]])
    tree = Arborescence(n, single_root)
    scores, keep = normal(2, 3, n, n), thinned(n, 6, single_root).reshape(2, 3, n, n)
    keep = keep | torch.eye(n, dtype=torch.bool)
    keep[..., 0, :] = True  # a tree is left at every length
    scores = torch.where(tree.padding(lengths), scores, torch.nan_to_num(scores * 1e9))
    leaf = scores.clone().requires_grad_()
    together = tree.maximize(leaf, omega, lengths=lengths, keep=keep)
    if omega is not None:
        together.square().sum().backward()
    for i, j in np.ndindex(2, 3):
        size = int(lengths[i, j])
        part = scores[i, j, :size, :size].clone().requires_grad_()
        alone = Arborescence(size, single_root).maximize(part, omega, keep=keep[i, j, :size, :size])
        torch.testing.assert_close(together[i, j, :size, :size], alone)
        assert bool((together[i, j, size:] == 0).all() and (together[i, j, :, size:] == 0).all())
        if omega is not None:
            alone.square().sum().backward()
            assert leaf.grad is not None and part.grad is not None
            torch.testing.assert_close(leaf.grad[i, j, :size, :size], part.grad)
            assert bool((leaf.grad[i, j, size:] == 0).all())


@either
@pytest.mark.parametrize("masked", [False, True])
def test_what_the_kernel_leaves_is_solved_by_the_active_set(
    single_root: bool, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same points and derivatives for sentences of all lengths, with masks and without."""
    from spigot.polytopes.structures import tree_projection

    tree = Arborescence(6, single_root)
    lengths = torch.tensor([6, 4, 3, 1])
    scores, grad = 2.0 * normal(4, 6, 6, seed=21), normal(4, 6, 6, seed=22)
    keep = torch.ones(4, 6, 6, dtype=torch.bool)
    keep[:, 2, 1] = not masked
    ours = scores.clone().requires_grad_()
    point = tree.project(ours, lengths=lengths, keep=keep)
    point.backward(grad)

    def leaves_odd_rows(kernel: Any, count: int, *arrays: Any) -> None:
        over_instances(kernel, count, *arrays)
        if kernel is tree_projection.project_trees:
            arrays[-1][1::2] = -1

    monkeypatch.setattr(tree_projection, "over_instances", leaves_odd_rows)
    other = scores.clone().requires_grad_()
    again = tree.project(other, lengths=lengths, keep=keep)
    again.backward(grad)
    torch.testing.assert_close(again, point, rtol=0, atol=1e-7)
    torch.testing.assert_close(other.grad, ours.grad, rtol=0, atol=1e-7)


@either
@pytest.mark.parametrize("scale", [1.5, 60.0])
def test_samples_have_the_distribution(single_root: bool, scale: float) -> None:
    """Frequencies of all trees by a chi-squared statistic; peaked ones draw word by word at times."""
    count = 20_000
    scores = torch.cat([scale * normal(2, 4, 4), scale * normal(1, 4, 4, seed=5).round() / 2])
    trees, values = energies(scores, None, single_root)
    chance = values.softmax(1)
    drawn = Arborescence(4, single_root).sample(
        scores, (count,), generator=torch.Generator().manual_seed(0)
    )
    code = 2.0 ** torch.arange(16, dtype=torch.float64)
    names, drawn_names = trees.flatten(1) @ code, drawn.flatten(2) @ code
    for i in range(3):
        observed = (drawn_names[:, i, None] == names).sum(0).double()
        assert observed.sum() == count
        expected = count * chance[i]
        likely = expected > 5
        statistic = ((observed - expected).square() / expected)[likely].sum()
        freedom = int(likely.sum())
        assert statistic <= freedom + 6 * (2 * freedom) ** 0.5 + 6
        assert observed[~likely].sum() <= 3 * (expected[~likely].sum() + 3)


def test_words_drawn_one_by_one_have_the_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    from spigot.polytopes.structures import tree_sums

    monkeypatch.setattr(tree_sums, "WALK", -(10**9))  # Wilson's walk gives up at once
    for single_root in (False, True):
        tree, scores = Arborescence(6, single_root), 2 * normal(6, 6)
        drawn = tree.sample(scores, (20_000,), generator=torch.Generator().manual_seed(1))
        exact = tree.marginals(scores)
        spread = (exact * (1 - exact) / 20_000).sqrt() + 1e-4
        assert bool(((drawn.mean(0) - exact).abs() <= 5 * spread).all())


def test_samples_do_not_depend_on_threads() -> None:
    tree, scores = Arborescence(10), normal(9, 10, 10)
    threads = torch.get_num_threads()
    drawn: list[Tensor] = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            generator = torch.Generator().manual_seed(7)
            drawn.append(tree.sample(scores, (5,), generator=generator))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])


@either
def test_the_k_best_are_all_trees_in_order(single_root: bool) -> None:
    scores = normal(2, 4, 4).round(decimals=1)
    _, values = energies(scores, None, single_root)
    tree = Arborescence(4, single_root)
    best = tree.top_k(scores, values.shape[1])
    found = (best * scores).sum((2, 3)).t()
    torch.testing.assert_close(found, values.sort(1, descending=True).values)
    assert all(len(best[:, i].flatten(1).unique(dim=0)) == values.shape[1] for i in range(2))
    with pytest.raises(ValueError, match="only"):
        tree.top_k(scores, values.shape[1] + 1)


def test_biaffine_scores() -> None:
    scores = normal(2, 5, 5).requires_grad_()
    ours = Arborescence.from_biaffine(scores)
    assert ours.shape == (2, 4, 4)
    torch.testing.assert_close(ours.diagonal(dim1=1, dim2=2), scores[:, 0, 1:])
    assert ours[1, 2, 0] == scores[1, 3, 1]
    assert torch.autograd.gradcheck(Arborescence.from_biaffine, scores)
    with pytest.raises(ValueError, match="n \\+ 1"):
        Arborescence.from_biaffine(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ([1, 0, -1], "without a cycle"),
        ([1, 2, 0], "with a root"),
        ([0, -1, -1], "its own head"),
        ([-1, 3, 0], "outside"),
        ([-1, -3, 0], "outside"),
        ([-1, -1, 0], "more than one root"),
        ([-1, 0], "do not fit"),
    ],
)
def test_labels_that_are_no_trees(heads: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arborescence(3, single_root=True).encode(heads)


@pytest.mark.parametrize(
    ("heads", "lengths", "message"),
    [
        ([-1, 3, 0], None, r"no head outside .*; instance 1 has 3 at position 1\."),
        ([-1, 2, 0], [3, 2], r"no head outside .*; instance 1 \(length 2\) has 2 at position 1\."),
        ([-1, 1, 0], None, r"no word its own head; instance 1 has 1 at position 1\."),
        ([1, 2, 0], None, r"with a root, whose head is -1; instance 1 has \[1, 2, 0\]\."),
        ([-1, 2, 1], None, r"without a cycle; instance 1 has 2 at position 1\."),
        ([-1, 0, -1], None, r"no more than one root; instance 1 has -1 at position 2\."),
    ],
)
def test_labels_name_the_first_wrong_head(
    heads: list[int], lengths: list[int] | None, message: str
) -> None:
    sizes = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(ValueError, match=message):
        Arborescence(3, single_root=True).encode([[-1, 0, 1], heads], sizes)


def test_labels() -> None:
    heads = torch.tensor([[[-1, 0, 1, 1]], [[2, 2, -1, -2]]])
    lengths = torch.tensor([[4], [3]])
    tree = Arborescence(4)
    assert torch.equal(tree.decode(tree.encode(heads, lengths), lengths), heads)
    assert torch.equal(tree.decode(tree.encode(heads, lengths)), heads)  # padding has no arc
    with pytest.raises(ValueError, match=r"a cycle; instance \(1, 0\) has 2 at position 1\."):
        tree.encode(torch.tensor([[[-1, 0, 1, 1]], [[-1, 2, 1, 0]]]))
    with pytest.raises(TypeError, match="head indices"):
        tree.encode(torch.zeros(4))


@pytest.mark.parametrize("omega", OMEGAS, ids=str)
def test_masks_that_leave_no_tree(omega: Regularizer | None) -> None:
    keep = torch.ones(2, 3, 3, dtype=torch.bool)
    keep[1, :, 2] = False
    with pytest.raises(NoStructure, match="instance 1"):
        Arborescence(3).maximize(torch.zeros(2, 3, 3), omega, keep=keep)
    keep = torch.ones(3, 3, dtype=torch.bool)
    keep[1, 0] = keep[2, 0] = keep[0, 1] = keep[2, 1] = False  # two words that only the root can head
    assert Arborescence(3).maximize(torch.zeros(3, 3), keep=keep).trace() >= 2
    with pytest.raises(NoStructure):
        Arborescence(3, True).maximize(torch.zeros(3, 3), omega, keep=keep)


def test_sizes_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Arborescence(0)
    with pytest.raises(TypeError, match="whole number"):
        Arborescence(2.5)  # pyright: ignore[reportArgumentType]


def test_a_parser_learns_through_sparsemap() -> None:
    target = Arborescence(6).maximize(normal(4, 6, 6, seed=8))
    scores = torch.zeros(4, 6, 6, dtype=torch.float64, requires_grad=True)
    layer = Relaxed(Arborescence(6), Euclidean())
    optimiser = torch.optim.SGD([scores], lr=2.0)
    losses: list[float] = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (layer(scores) - target).square().sum()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3


@pytest.mark.parametrize("single_root", [False, True])
def test_torch_struct_agrees(single_root: bool) -> None:
    """Marginals to the 1e-5 that torch-struct adds to its Laplacian, in a ragged batch."""
    deptree: Any = pytest.importorskip("torch_struct.deptree")
    lengths = torch.tensor([6, 9, 7])
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 9, 9, dtype=torch.float64, generator=generator)
    theirs = deptree.deptree_nonproj(scores, multi_root=not single_root, lengths=lengths)
    ours = Arborescence(9, single_root).marginals(scores, lengths=lengths)
    torch.testing.assert_close(ours, theirs.to(ours), atol=2e-4, rtol=0)
