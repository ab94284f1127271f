"""Matchings: against scipy, enumeration, Clarabel and extended precision."""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import networkx as nx
import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from spigot.layers import Argmax, Relaxed
from spigot.polytopes import (
    Euclidean,
    Facets,
    Gibbs,
    Matching,
    NoStructure,
    Regularizer,
    Shannon,
    UnsupportedProblem,
)
from spigot.polytopes.structures.ranked_matchings import ranked_matchings
from spigot.pullback import SPIGOT
from tests.structures import matchings
from tests.tensors import normal

SHAPES = [(1, 1), (3, 3), (3, 5), (6, 2), (12, 12), (9, 20)]
KINDS = [(n, m, perfect) for n, m in SHAPES for perfect in (True, False)]
SMALL = [(3, 3, True), (2, 4, True), (4, 2, True), (3, 3, False), (2, 3, False), (3, 2, False)]
every_kind = pytest.mark.parametrize(("n", "m", "perfect"), KINDS)
every_small = pytest.mark.parametrize(("n", "m", "perfect"), SMALL)


def scored(n: int, m: int, seed: int = 0) -> Tensor:
    """Random, tied, zero, equal, repeated, huge and tiny scores."""
    random = normal(6, n, m, seed=seed)
    repeated = random[:1].clone()
    repeated[:, :, 0] = repeated[:, :, -1]
    return torch.cat(
        [
            random,
            torch.round(2 * random[:3]),
            torch.zeros(1, n, m),
            torch.full((1, n, m), -0.5),
            repeated,
            1e6 * random[:2],
            1e-6 * random[:2],
            random[:1] + 1e6,
        ]
    ).double()


def best_value(scores: Tensor, keep: Tensor, perfect: bool) -> float | None:
    """scipy's, None where there is no matching."""
    gains = np.where(keep.numpy(), scores.numpy(), -np.inf)
    if not perfect:
        gains = np.maximum(gains, 0.0)
    try:
        rows, columns = linear_sum_assignment(gains, maximize=True)
    except ValueError:
        return None
    return float(gains[rows, columns].sum())


def check_matching(vertex: Tensor, n: int, m: int, perfect: bool) -> None:
    assert bool(((vertex == 0) | (vertex == 1)).all())
    assert int(vertex.sum(-1).max()) <= 1
    assert int(vertex.sum(-2).max()) <= 1
    if perfect:
        assert bool((vertex.sum((-1, -2)) == min(n, m)).all())


@every_kind
def test_map_has_the_value_that_scipy_finds(n: int, m: int, perfect: bool) -> None:
    scores = scored(n, m)
    for dtype in (torch.float64, torch.float32):
        best = Matching(n, m, perfect).maximize(scores.to(dtype))
        assert best.dtype == dtype
        check_matching(best, n, m, perfect)
        for i, row in enumerate(scores.to(dtype).double()):
            expected = best_value(row, torch.ones(n, m, dtype=torch.bool), perfect)
            value = float((row * best[i]).sum())
            assert value == pytest.approx(expected, rel=1e-12, abs=1e-9)


@every_kind
def test_masks_are_exact(n: int, m: int, perfect: bool) -> None:
    scores = scored(n, m, seed=1)
    draws = torch.rand(scores.shape, generator=torch.Generator().manual_seed(2))
    matching = Matching(n, m, perfect)
    for i, row in enumerate(scores):
        keep = draws[i] < 0.6
        expected = best_value(row, keep, perfect)
        if expected is None:
            for regularizer in (None, Euclidean(), Shannon(), Gibbs()):
                if regularizer == Gibbs() and n == 12:
                    continue
                with pytest.raises(NoStructure, match="only instance"):
                    matching.maximize(row, regularizer, keep=keep)
            continue
        best = matching.maximize(row.masked_fill(~keep, -torch.inf))
        assert float((best * ~keep).sum()) == 0
        assert float((row * best).sum()) == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_no_structure_names_the_instance() -> None:
    keep = torch.ones(2, 3, 3, dtype=torch.bool)
    keep[1, :, 2] = False
    with pytest.raises(NoStructure, match="instance 1"):
        Matching(3).maximize(normal(2, 3, 3), keep=keep)


@pytest.mark.parametrize("perfect", [True, False])
def test_map_of_500(perfect: bool) -> None:
    scores = normal(500, 500)
    best = Matching(500, perfect=perfect).maximize(scores)
    expected = best_value(scores, torch.ones(500, 500, dtype=torch.bool), perfect)
    assert float((scores * best).sum()) == pytest.approx(expected, rel=1e-12)


def test_networkx_agrees() -> None:
    scores = normal(5, 7)
    graph: Any = nx.Graph()
    for i, j in itertools.product(range(5), range(7)):
        graph.add_edge(i, 5 + j, weight=scores[i, j].item())
    pairs = {tuple(sorted(pair)) for pair in nx.max_weight_matching(graph)}
    found = Matching(5, 7, perfect=False).decode(Matching(5, 7, perfect=False).maximize(scores))
    assert {(i, 5 + int(j)) for i, j in enumerate(found) if j >= 0} == pairs


def test_ties_do_not_depend_on_the_batch_or_the_dtype() -> None:
    scores = torch.randint(-1, 2, (40, 6, 6), generator=torch.Generator().manual_seed(0)).double()
    whole = Matching(6).maximize(scores)
    assert torch.equal(whole, torch.stack([Matching(6).maximize(row) for row in scores]))
    assert torch.equal(whole, Matching(6).maximize(scores.float()).double())
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(whole, Matching(6).maximize(scores))
    finally:
        torch.set_num_threads(threads)


@every_small
@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon()], ids=str)
def test_relaxations_and_their_gradients_are_those_of_the_generic_roads(
    n: int, m: int, perfect: bool, regularizer: Regularizer
) -> None:
    matching = Matching(n, m, perfect)
    facets = Facets(matching.constraints, (n, m))
    scores = scored(n, m)[:11]
    keep = (matching.maximize(normal(11, n, m, seed=3)) > 0) | (normal(11, n, m, seed=4) > 0)
    weight = normal(11, n, m, seed=5)
    for mask in (None, keep):
        found: list[tuple[Tensor, Tensor]] = []
        for polytope in (matching, facets):
            leaf = scores.clone().requires_grad_()
            value = polytope.maximize(leaf, regularizer, keep=mask)
            (gradient,) = torch.autograd.grad((value * weight).sum(), leaf)
            found.append((value.detach(), gradient))
        torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


@every_kind
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 100.0, 1000.0])
def test_projections_are_certified_at_every_scale(n: int, m: int, perfect: bool, scale: float) -> None:
    matching = Matching(n, m, perfect)
    scores = scale * normal(20, n, m)
    for rows in (scores, torch.round(scores), scores + 1e5):
        solution = matching.solve(rows, Euclidean())
        assert solution.gap is not None
        relative = solution.gap.abs() / (1 + (rows * solution.value).sum((1, 2)).abs())
        assert float(relative.max()) < 1e-11
        sums = [solution.value.sum(2), solution.value.sum(1)]
        for side, total in enumerate(sums):
            assert float(total.max()) < 1 + 1e-9
            if perfect and (n, m)[side] == min(n, m):
                assert float(total.min()) > 1 - 1e-9


@pytest.mark.parametrize("away", [1e-12, 1e-11, 1e-10])
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_entries_that_are_nearly_in_the_support_do_not_stop_a_projection(
    away: float, share: float
) -> None:
    """A matching learned from real frames was given up at sums 1.4e-10 away from 1."""
    polytope, generator = Matching(30), torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(300, 30, 30, generator=generator, dtype=torch.float64)
    found = polytope.solve(scores, Euclidean())
    assert found.duals is not None
    edge = found.duals[:, :30, None] + found.duals[:, None, 30:]
    some = (found.value == 0) & (torch.rand(scores.shape, generator=generator) < share)
    near = edge + away * torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    value = polytope.project(torch.where(some, near, scores))
    for sums in (value.sum(-1), value.sum(-2)):
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=2e-12)


def test_the_projection_of_500() -> None:
    scores = normal(500, 500).requires_grad_()
    value = Matching(500).project(scores)
    gap = Matching(500).gap(value.detach(), scores.detach(), Euclidean())
    assert abs(float(gap)) < 1e-9
    torch.testing.assert_close(value.sum(0), torch.ones(500).double(), atol=1e-10, rtol=0)
    value.square().sum().backward()
    assert scores.grad is not None
    # the projector annihilates what only moves rows and columns, and is idempotent
    torch.testing.assert_close(scores.grad.sum(0), torch.zeros(500).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_the_jacobian_where_every_entry_ties(n: int) -> None:
    """At s = 0 the face is the whole polytope: its directions have dimension (n - 1)^2."""
    scores = torch.zeros(n, n, dtype=torch.float64)
    jacobian: Any = torch.autograd.functional.jacobian(Matching(n).project, scores)
    centre = torch.eye(n).double() - 1 / n
    expected = torch.kron(centre, centre)
    torch.testing.assert_close(jacobian.reshape(n * n, n * n), expected, atol=1e-12, rtol=0)


def test_the_jacobian_on_a_face_of_several_components() -> None:
    """Two blocks that nothing joins: two independent directions; none at a vertex of clear scores."""
    scores = torch.full((4, 4), -9.0, dtype=torch.float64)
    scores[:2, :2] = scores[2:, 2:] = 0.0
    jacobian: Any = torch.autograd.functional.jacobian(Matching(4).project, scores)
    assert int(torch.linalg.matrix_rank(jacobian.reshape(16, 16), atol=1e-9)) == 2
    vertex: Any = torch.autograd.functional.jacobian(Matching(4).project, 9 * torch.eye(4).double())
    assert float(vertex.abs().max()) == 0


@every_small
@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon(), Gibbs()], ids=str)
def test_gradcheck(n: int, m: int, perfect: bool, regularizer: Regularizer) -> None:
    matching = Matching(n, m, perfect)
    for seed in range(3):
        scores = normal(n, m, seed=seed).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda s: matching.maximize(s, regularizer), scores, eps=1e-6, atol=1e-5
        )
        assert torch.autograd.gradcheck(lambda s: matching.conjugate(s, regularizer), scores, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "m", "perfect"), [(4, 4, True), (3, 5, True), (4, 3, False)])
def test_marginals_at_peaked_scores(
    scale: float, dtype: torch.dtype, n: int, m: int, perfect: bool
) -> None:
    """Against sums over all matchings with 60 digits."""
    scores = (scale * normal(n, m)).to(dtype)
    vertices = matchings(n, m, perfect).vertices()
    with mpmath.workdps(60):
        exact = [[mpmath.mpf(x) for x in row] for row in scores.double().tolist()]
        weights = [
            mpmath.exp(mpmath.fsum(exact[i][j] for i, j in z.nonzero().tolist())) for z in vertices
        ]
        total = mpmath.fsum(weights)
        chance = torch.tensor([float(w / total) for w in weights], dtype=torch.float64)
        log_total = float(mpmath.log(total))
    expected = torch.einsum("k,kij->ij", chance, vertices)
    leaf = scores.clone().requires_grad_()
    marginals = Matching(n, m, perfect).marginals(leaf)
    torch.testing.assert_close(marginals.double(), expected, atol=1e-6, rtol=0)
    if dtype == torch.float64:
        torch.testing.assert_close(marginals, expected, atol=1e-13, rtol=1e-9)
    found = Matching(n, m, perfect).log_partition(scores).double()
    torch.testing.assert_close(found, torch.tensor(log_total, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    marginals.square().sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()


@every_kind
@pytest.mark.parametrize("scale", [1e-3, 1.0, 10.0, 100.0, 1000.0])
def test_shannon_satisfies_its_optimality_conditions(
    n: int, m: int, perfect: bool, scale: float
) -> None:
    """Sums right, s - 1 - log y = u_i + v_j, and u, v >= 0 of inequalities, 0 where sums fall short."""
    matching = Matching(n, m, perfect)
    for scores in (
        scale * normal(10, n, m),
        scale * torch.round(2 * normal(10, n, m)),
        scale * normal(10, n, m) + 1e4,
    ):
        solution = matching.solve(scores, Shannon())
        value, gradient, duals = solution.value, solution.gradient, solution.duals
        assert gradient is not None
        assert duals is not None
        size = 1 + float(scores.abs().max())
        row, column = duals.split([n, m], dim=1)
        torch.testing.assert_close(
            scores - gradient, row[:, :, None] + column[:, None, :], atol=1e-13 * size, rtol=0
        )
        torch.testing.assert_close(value, (gradient - 1).exp(), atol=1e-12, rtol=1e-10)
        for total, price, exact in (
            (value.sum(2), row, perfect and n <= m),
            (value.sum(1), column, perfect and m <= n),
        ):
            assert float((total - 1).max()) < 1e-10
            if exact:
                assert float((total - 1).abs().max()) < 1e-10
            else:
                assert float(price.min()) >= 0
                assert float((price * (1 - total)).abs().max()) < 1e-9 * size


@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_shannon_against_extended_precision(scale: float) -> None:
    """The multipliers by Newton's method with 400 digits: the root is the only one."""
    scores = scale * normal(3, 3, seed=7)
    solution = Matching(3).solve(scores, Shannon())
    assert solution.duals is not None
    with mpmath.workdps(400):
        exact = [[mpmath.mpf(x) for x in row] for row in scores.tolist()]

        def entry(dual: tuple[Any, ...], i: int, j: int) -> Any:
            return mpmath.exp(exact[i][j] - 1 - dual[i] - (dual[3 + j] if j < 2 else 0))

        def excess(*dual: Any) -> list[Any]:
            rows = [sum(entry(dual, i, j) for j in range(3)) - 1 for i in range(3)]
            return rows + [sum(entry(dual, i, j) for i in range(3)) - 1 for j in range(2)]

        start = solution.duals + solution.duals[5] * torch.tensor([1.0] * 3 + [-1.0] * 3).double()
        root = tuple(mpmath.findroot(excess, start[:5].tolist(), tol=1e-300, maxsteps=2000))
        expected = [[float(entry(root, i, j)) for j in range(3)] for i in range(3)]
    reference = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(solution.value, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("regularizer", [Euclidean(), Shannon(), Gibbs()], ids=str)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1000.0])
def test_gradients_at_peaked_scores_are_finite_and_small(regularizer: Regularizer, scale: float) -> None:
    scores = (scale * normal(10, 6, 6)).requires_grad_()
    weight = normal(10, 6, 6, seed=1)
    value = Matching(6).maximize(scores, regularizer)
    assert bool(((value >= 0) & (value <= 1 + 1e-12)).all())
    (value * weight).sum().backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert float(scores.grad.abs().max()) < 40


def test_masked_entries_that_no_matching_uses() -> None:
    """Entry (0, 0) is kept, but then row 1 has no column: Sinkhorn's sweeps alone would crawl."""
    keep = torch.tensor([[True, True], [True, False]])
    scores = torch.tensor([[5.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = Matching(2).maximize(scores, Shannon(), keep=keep)
    assert torch.equal(value, torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double())
    value.square().sum().backward()
    assert scores.grad is not None
    assert float(scores.grad.abs().max()) < 1e-12


@pytest.mark.parametrize("perfect", [True, False])
@pytest.mark.parametrize("regularizer", [None, Euclidean(), Shannon(), Gibbs()], ids=str)
def test_lengths_give_what_each_instance_gives_alone(
    perfect: bool, regularizer: Regularizer | None
) -> None:
    lengths = torch.tensor([[4, 5], [1, 1], [3, 2], [4, 2], [2, 5]])
    scores = normal(5, 4, 5).requires_grad_()
    keep = torch.ones(5, 4, 5, dtype=torch.bool)
    keep[:, 0, 0] = False
    keep[1] = True
    whole = Matching(4, 5, perfect)
    value = whole.maximize(scores, regularizer, lengths=lengths, keep=keep)
    weight = normal(5, 4, 5, seed=9)
    if regularizer is not None:
        (value * weight).sum().backward()
    for i, (rows, columns) in enumerate(lengths.tolist()):
        alone = scores.detach()[i, :rows, :columns].clone().requires_grad_()
        part = Matching(rows, columns, perfect).maximize(
            alone, regularizer, keep=keep[i, :rows, :columns]
        )
        torch.testing.assert_close(value[i, :rows, :columns], part)
        assert not bool(value[i, rows:].any() | value[i, :, columns:].any())
        if regularizer is not None:
            (part * weight[i, :rows, :columns]).sum().backward()
            assert scores.grad is not None
            torch.testing.assert_close(scores.grad[i, :rows, :columns], alone.grad)
            assert float(scores.grad[i, rows:].abs().sum()) == 0
            assert float(scores.grad[i, :, columns:].abs().sum()) == 0


@pytest.mark.parametrize("batch", [(), (1,), (3, 4), (0,)], ids=str)
def test_batches_layouts_and_layers(batch: tuple[int, ...]) -> None:
    scores = normal(*batch, 4, 4).requires_grad_()
    matching = Matching(4)
    flipped = matching.project(scores.transpose(-1, -2))
    torch.testing.assert_close(flipped.transpose(-1, -2), matching.project(scores))
    for layer in (Argmax(matching, SPIGOT(1.0)), Relaxed(matching, Shannon())):
        out = layer(scores)
        assert out.shape == scores.shape
        out.sum().backward()


@every_small
def test_samples_have_the_right_frequencies(n: int, m: int, perfect: bool) -> None:
    matching, listed = Matching(n, m, perfect), matchings(n, m, perfect).vertices()
    scores = normal(n, m)
    rng = torch.Generator().manual_seed(0)
    drawn = matching.sample(scores, (4000,), generator=rng)
    check_matching(drawn, n, m, perfect)
    chance = (listed * scores).sum((1, 2)).softmax(0)
    same = (drawn[:, None] == listed).flatten(2).all(2)
    assert bool((same.sum(1) == 1).all())
    frequency = same.double().mean(0)
    error = (frequency - chance).abs() / (chance / 4000).sqrt()
    assert float(error.max()) < 5
    again = matching.sample(scores, (4000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize(
    ("n", "m", "perfect"), [(4, 4, True), (3, 4, True), (4, 2, True), (3, 3, False)]
)
def test_the_ranking_is_that_of_the_list(n: int, m: int, perfect: bool) -> None:
    listed = matchings(n, m, perfect).vertices()
    for scores in (normal(n, m), torch.round(normal(n, m))):
        best = Matching(n, m, perfect).top_k(scores, len(listed))
        values = (best * scores).sum((1, 2))
        expected = (listed * scores).sum((1, 2)).sort(descending=True).values
        torch.testing.assert_close(values, expected)
        assert len(best.flatten(1).unique(dim=0)) == len(listed)
        with pytest.raises(ValueError, match=f"only {len(listed)} structure"):
            Matching(n, m, perfect).top_k(scores, len(listed) + 1)
    assert len(ranked_matchings(normal(60, 60).numpy(), np.ones((60, 60), np.bool_), True, 5)) == 5


def test_too_many_matchings_to_sum_over() -> None:
    with pytest.raises(UnsupportedProblem, match="#P-hard"):
        Matching(30).marginals(torch.zeros(30, 30))
    # a long other side is fine, and so is a short instance of a long structure
    assert Matching(6, 300).marginals(torch.zeros(6, 300)).sum() == pytest.approx(6)
    short = Matching(30).marginals(torch.zeros(1, 30, 30), lengths=torch.tensor([[3, 3]]))
    torch.testing.assert_close(short[0, :3, :3], torch.full((3, 3), 1 / 3))


def test_labels() -> None:
    matching = Matching(3, 4)
    labels = torch.tensor([[2, 0, 3], [0, 1, 2]])
    assert torch.equal(matching.decode(matching.encode(labels)), labels)
    partial = Matching(3, 2, perfect=False)
    some = torch.tensor([-1, 1, -1])
    assert torch.equal(partial.decode(partial.encode(some)), some)
    short = torch.tensor([[1, -1, -1]])
    assert torch.equal(matching.decode(matching.encode(short, lengths=torch.tensor([[1, 2]]))), short)
    with pytest.raises(TypeError, match="column indices"):
        matching.encode(torch.zeros(3))
    for wrong in ([0, 0, 1], [0, 1, 4], [0, 1, -1], [0, 1]):
        with pytest.raises(ValueError, match=r"labels .*must"):
            matching.encode(torch.tensor(wrong))


@pytest.mark.parametrize(
    ("wrong", "lengths", "message"),
    [
        ([0, 1, 4], None, r"0\.\.3.*; instance 1 has 4 at position 2\."),
        ([0, 1, -1], [2, 1], r"instance 1 \(lengths \[2, 1\]\) has 1 at position 1\."),
        ([2, 1, 1], None, r"no column twice; instance 1 has 1 at position 1\."),
        ([2, -1, 1], None, r"the smaller side wholly.*; instance 1 has \[2, -1, 1\]\."),
    ],
)
def test_labels_that_match_nothing_are_named(
    wrong: list[int], lengths: list[int] | None, message: str
) -> None:
    sizes = None if lengths is None else torch.tensor([[3, 4], lengths])
    with pytest.raises(ValueError, match=message):
        Matching(3, 4).encode(torch.tensor([[0, 1, 2], wrong]), sizes)


@pytest.mark.parametrize(
    ("arguments", "error"), [((0,), ValueError), ((2, 0), ValueError), ((2.0,), TypeError)]
)
def test_bad_sizes(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error, match="Matching"):
        Matching(*arguments)


def test_bad_lengths() -> None:
    with pytest.raises(ValueError, match="two numbers"):
        Matching(3).maximize(torch.zeros(2, 3, 3), lengths=torch.tensor([2, 3]))
    with pytest.raises(ValueError, match=r"1\.\.3 by 1\.\.3"):
        Matching(3).maximize(torch.zeros(1, 3, 3), lengths=torch.tensor([[0, 3]]))


@pytest.mark.slow
def test_random_instances_by_thousands() -> None:
    """Every projection converges: near ties, tiny masses of a component, steps that end at a bound."""
    for n, m, perfect in ((2, 5, True), (5, 4, True), (8, 8, True), (5, 4, False), (7, 12, False)):
        for scale in (0.3, 3.0, 30.0, 300.0, 1e4):
            scores = scale * normal(1500, n, m)
            for regularizer in (Euclidean(), Shannon()):
                assert bool(Matching(n, m, perfect).solve(scores, regularizer).converged.all())
