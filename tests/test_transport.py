"""Transport plans: against HiGHS, Clarabel, POT and matchings; derivatives by the masses."""

from __future__ import annotations

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import FenchelYoungLoss, Relaxed
from spigot.polytopes import (
    Euclidean,
    Facets,
    Gibbs,
    Matching,
    NoStructure,
    Regularizer,
    Shannon,
    Transport,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import Highs
from tests.tensors import normal

SHAPES = [(1, 1), (2, 3), (5, 4), (8, 12)]
SMOOTH = [Euclidean(), Shannon()]
every_shape = pytest.mark.parametrize(("n", "m"), SHAPES)
every_smooth = pytest.mark.parametrize("regularizer", SMOOTH, ids=str)


def masses(n: int, m: int, batch: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Positive ones of equal totals, `(batch, n)` and `(batch, m)`."""
    rng = torch.Generator().manual_seed(seed)
    row, column = (torch.rand(batch, size, generator=rng).double() + 0.1 for size in (n, m))
    return row, column * (row.sum(1) / column.sum(1))[:, None]


def plans(row: Tensor, column: Tensor) -> Facets:
    shape = (len(row), len(column))
    sums = row.numpy(), column.numpy()
    return Facets(lambda y: [y >= 0, cp.sum(y, axis=1) == sums[0], cp.sum(y, axis=0) == sums[1]], shape)


def transport(row: Tensor, column: Tensor) -> Transport:
    return Transport(row, column)


@every_shape
def test_map_has_the_value_that_highs_finds_and_is_a_vertex(n: int, m: int) -> None:
    row, column = masses(n, m)
    polytope = transport(row[0], column[0])
    random = normal(5, n, m)
    scores = torch.cat([random, torch.round(random), torch.zeros(1, n, m), 1e6 * random])
    best = polytope.maximize(scores)
    exact = polytope.maximize(scores, solver=Highs())
    torch.testing.assert_close(
        (scores * best).sum((1, 2)), (scores * exact).sum((1, 2)), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(best.sum(2), row.expand(16, n), atol=1e-13, rtol=0)
    torch.testing.assert_close(best.sum(1), column.expand(16, m), atol=1e-13, rtol=0)
    assert bool((best >= 0).all())
    assert int((best > 0).flatten(1).sum(1).max()) <= n + m - 1
    for i in range(16):
        assert torch.equal(polytope.maximize(scores[i]), best[i])


def test_unit_masses_are_matchings() -> None:
    scores = normal(20, 6, 6)
    matching, polytope = Matching(6), Transport([1.0] * 6, [1.0] * 6)
    assert torch.equal(polytope.maximize(scores), matching.maximize(scores))
    for regularizer in SMOOTH:
        for scale in (1.0, 100.0):
            torch.testing.assert_close(
                polytope.maximize(scale * scores, regularizer),
                matching.maximize(scale * scores, regularizer),
                atol=1e-10,
                rtol=0,
            )


def test_degenerate_masses() -> None:
    """Whole numbers: most vertices have fewer than n + m - 1 positive entries."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        row = torch.randint(0, 3, (6,), generator=rng).double()
        column = row[torch.randperm(6, generator=rng)]
        scores = torch.randint(-2, 3, (6, 6), generator=rng).double()
        best = transport(row, column).maximize(scores)
        assert torch.equal(best, best.round())
        exact = transport(row, column).maximize(scores, solver=Highs())
        assert float((scores * best).sum()) == pytest.approx(float((scores * exact).sum()))


@every_shape
@every_smooth
def test_relaxations_and_their_gradients_are_those_of_the_generic_roads(
    n: int, m: int, regularizer: Regularizer
) -> None:
    row, column = masses(n, m, seed=1)
    polytope, facets = transport(row[0], column[0]), plans(row[0], column[0])
    scores = torch.cat([normal(3, n, m), torch.zeros(1, n, m).double()])
    weight = normal(4, n, m, seed=2)
    keep = (polytope.maximize(normal(4, n, m, seed=3)) > 0) | (normal(4, n, m, seed=4) > 0)
    for mask in (None, keep):
        found: list[tuple[Tensor, Tensor]] = []
        for each in (polytope, facets):
            leaf = scores.clone().requires_grad_()
            value = each.maximize(leaf, regularizer, keep=mask)
            (gradient,) = torch.autograd.grad((value * weight).sum(), leaf)
            found.append((value.detach(), gradient))
        torch.testing.assert_close(found[0][0], found[1][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=0)


@every_smooth
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 10.0, 100.0, 1000.0])
def test_sums_hold_at_every_scale(regularizer: Regularizer, scale: float) -> None:
    row, column = masses(7, 9, batch=10)
    scores = scale * normal(10, 7, 9)
    polytope = Transport(row[0], column[0])
    solution = polytope.solve(scores, regularizer, params={"row": row, "column": column})
    torch.testing.assert_close(solution.value.sum(2), row, atol=1e-10, rtol=0)
    torch.testing.assert_close(solution.value.sum(1), column, atol=1e-10, rtol=0)
    assert solution.gap is not None
    value = (scores * solution.value).sum((1, 2)).abs()
    assert float((solution.gap.abs() / (1 + value)).max()) < 1e-10


@pytest.mark.parametrize("regularizer", [None, Euclidean(), Shannon(), Tsallis(1.5)], ids=str)
def test_masses_of_each_instance(regularizer: Regularizer | None) -> None:
    row, column = masses(3, 4, batch=6, seed=3)
    row[0, 1], column[1, 2] = 0.0, 0.0
    column *= (row.sum(1) / column.sum(1))[:, None]
    scores = normal(2, 3, 3, 4)
    params = {"row": row.reshape(2, 3, 3), "column": column.reshape(2, 3, 4)}
    value = Transport([1.0] * 3, [0.75] * 4).maximize(scores, regularizer, params=params)
    for i in range(6):
        alone = transport(row[i], column[i]).maximize(scores.flatten(0, 1)[i], regularizer)
        torch.testing.assert_close(value.flatten(0, 1)[i], alone, atol=1e-6, rtol=0)
    assert not bool(value[0, 0, 1].any())
    assert not bool(value[0, 1, :, 2].any())


@every_smooth
def test_gradients_by_scores_and_masses(regularizer: Regularizer) -> None:
    """Masses are perturbed so that their totals agree: softmax of free numbers."""
    polytope = Transport([0.5, 0.5], [1 / 3] * 3)

    def solved(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        params = {"row": rows.softmax(-1), "column": columns.softmax(-1)}
        return polytope.maximize(scores, regularizer, params=params)

    def valued(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        params = {"row": rows.softmax(-1), "column": columns.softmax(-1)}
        return polytope.conjugate(scores, regularizer, params=params)

    for seed in range(3):
        inputs = tuple(
            0.3 * normal(*shape, seed=seed + 10 * k).requires_grad_()
            for k, shape in enumerate([(2, 2, 3), (2, 2), (2, 3)])
        )
        assert torch.autograd.gradcheck(solved, inputs, atol=1e-5)
        assert torch.autograd.gradcheck(valued, inputs, atol=1e-5)


def test_masked_entries() -> None:
    keep = torch.tensor([[True, True, False], [False, True, True]])
    polytope = Transport([0.5, 0.5], [0.4, 0.2, 0.4])
    for regularizer in (None, *SMOOTH):
        value = polytope.maximize(normal(2, 3), regularizer, keep=keep)
        assert not bool(value[~keep].any())
        with pytest.raises(NoStructure, match="only instance"):
            Transport([0.5, 0.5], [0.4, 0.4, 0.2]).maximize(
                normal(2, 3), regularizer, keep=torch.tensor([[True, False, False], [False, True, True]])
            )


def test_padding_by_masses_of_zero() -> None:
    scores = normal(3, 4).requires_grad_()
    params = {"row": torch.tensor([0.5, 0.5, 0.0]), "column": torch.tensor([0.2, 0.8, 0.0, 0.0])}
    for regularizer in SMOOTH:
        value = Transport([1.0] * 3, [0.75] * 4).maximize(scores, regularizer, params=params)
        small = Transport([0.5, 0.5], [0.2, 0.8]).maximize(scores[:2, :2], regularizer)
        torch.testing.assert_close(value[:2, :2], small, atol=1e-6, rtol=0)
        assert not bool(value[2:].any() | value[:, 2:].any())
        (gradient,) = torch.autograd.grad(value.square().sum(), scores)
        assert bool(gradient.isfinite().all())
        assert not bool(gradient[2:].any() | gradient[:, 2:].any())


def test_labels_are_the_plans() -> None:
    polytope = Transport([0.5, 0.5], [0.25, 0.75])
    plan = polytope.maximize(normal(5, 2, 2))
    assert torch.equal(polytope.encode(polytope.decode(plan)), plan)
    with pytest.raises(ValueError, match=r"must lie in Transport.*; instance 1 has \[\[1\.0, 1\.0\]"):
        polytope.encode(torch.stack([plan[0], torch.ones(2, 2)]))


def test_losses_and_layers_take_masses() -> None:
    polytope = Transport([0.5, 0.5], [0.5, 0.5])
    scores = normal(3, 2, 2).requires_grad_()
    params = {"row": torch.tensor([[0.3, 0.7]]).double(), "column": torch.tensor([[0.6, 0.4]]).double()}
    value = Relaxed(polytope, Shannon())(scores, params=params)
    torch.testing.assert_close(value.sum(2), torch.tensor([[0.3, 0.7]]).double().expand(3, 2))
    target = polytope.maximize(normal(3, 2, 2))
    FenchelYoungLoss(polytope, Euclidean())(scores, target).backward()
    assert scores.grad is not None


@pytest.mark.parametrize(
    ("row", "column", "message"),
    [
        ([1.0], [2.0], "equal totals"),
        ([2.0, -1.0], [1.0], r"negative.*, -1 at position 1"),
        ([float("nan")], [1.0], r"not finite, nan at position 0"),
        ([], [1.0], "vector of masses"),
        ([[1.0]], [1.0], "vector of masses"),
    ],
)
def test_bad_masses(row: Any, column: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transport(row, column)


def test_bad_masses_of_an_instance() -> None:
    polytope = Transport([1.0], [0.5, 0.5])
    scores = torch.zeros(2, 1, 2)
    unequal = {"row": torch.tensor([[1.0], [2.0]])}
    for regularizer in (None, *SMOOTH):
        with pytest.raises(ValueError, match=r"equal totals; instance 1 has 2 and 1\."):
            polytope.maximize(scores, regularizer, params=unequal)
    with pytest.raises(ValueError, match=r"negative mass; instance 0 has -0\.5\."):
        polytope.maximize(scores, params={"column": torch.tensor([[1.5, -0.5], [0.5, 0.5]])})
    with pytest.raises(UnsupportedProblem):
        polytope.maximize(scores, Gibbs())


def test_float32_masses_need_not_agree_to_the_last_bit() -> None:
    row, column = torch.full((7,), 1 / 7), torch.full((3,), 1 / 3)
    value = Transport(row, column).project(normal(7, 3).float())
    torch.testing.assert_close(value.sum(1), row)


def test_pot_agrees() -> None:
    ot = pytest.importorskip("ot")
    row, column = masses(20, 30)
    row, column = row[0] / row.sum(), column[0] / column.sum()
    scores = normal(20, 30)
    polytope = transport(row, column)
    cost = -scores.numpy()
    best = ot.emd(row.numpy(), column.numpy(), cost)
    assert float((polytope.maximize(scores) * scores).sum()) == pytest.approx(-np.sum(best * cost))
    # both regularize at strength 1; KL to the product of masses or to 1 makes no difference
    entropic = ot.sinkhorn(row.numpy(), column.numpy(), cost, 1.0, stopThr=1e-14, numItermax=100_000)
    found = polytope.maximize(scores, Shannon())
    torch.testing.assert_close(found, torch.as_tensor(entropic), atol=1e-10, rtol=0)
    smooth = ot.smooth.smooth_ot_dual(
        row.numpy(), column.numpy(), cost, 1.0, reg_type="l2", stopThr=1e-14, numItermax=10_000
    )
    torch.testing.assert_close(polytope.project(scores), torch.as_tensor(smooth), atol=1e-4, rtol=0)
