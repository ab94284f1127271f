"""Exact expectations over sparse supports: values written out, gradients against differences."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import cvxpy as cp
import pytest
import torch
from torch import Tensor

from spigot.layers import MarginalizedExpectation, Relaxed
from spigot.polytopes import (
    Arborescence,
    Euclidean,
    Facets,
    FermiDirac,
    Gibbs,
    Hypercube,
    Intersection,
    Matching,
    Oracle,
    Path,
    Permutahedron,
    Polytope,
    Regularizer,
    Sequence,
    Shannon,
    Simplex,
    Subset,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import ActiveSet, Clarabel, FrankWolfe
from tests.references import sparsemax
from tests.structures import STRUCTURES, Row
from tests.tensors import close, normal

STEP = 1e-6
REGULARIZERS: dict[str, Regularizer] = {
    "Euclidean": Euclidean(),
    "Tsallis(1.5)": Tsallis(1.5),
    "Gibbs": Gibbs(),
}


def along(z: Tensor, event: tuple[int, ...]) -> Tensor:
    """A linear function of the structure."""
    flat = z.flatten(z.dim() - len(event))
    return flat @ torch.linspace(-1.0, 1.5, flat.shape[-1]).exp().to(z)


def rough(z: Tensor, event: tuple[int, ...]) -> Tensor:
    """One that is neither linear nor convex."""
    return (3 * along(z, event)).sin() + 0.2 * along(z, event) ** 2


def made(polytope: Polytope, regularizer: Regularizer) -> MarginalizedExpectation | None:
    try:
        return MarginalizedExpectation(polytope, regularizer)
    except UnsupportedProblem:
        return None


PAIRS = [
    (row, kind)
    for row in STRUCTURES
    for kind, regularizer in REGULARIZERS.items()
    if made(row.polytope, regularizer) is not None
]
every_pair = pytest.mark.parametrize(("row", "kind"), PAIRS, ids=str)


def structures_seen(layer: MarginalizedExpectation, scores: Tensor) -> list[list[tuple[float, ...]]]:
    """The structures that the loss is called with, an instance each."""
    seen: list[Tensor] = []

    def loss(z: Tensor) -> Tensor:
        seen.append(z.flatten(1))
        return z.flatten(1).sum(1)

    layer(scores, loss)
    return [sorted({tuple(row) for row in instance.tolist()}) for instance in torch.stack(seen, 1)]


def test_the_table_covers_most_structures() -> None:
    """Those without an oracle, and for Gibbs those that cannot be counted, are left out."""
    counts = {kind: sum(kind == other for _, other in PAIRS) for kind in REGULARIZERS}
    assert counts["Euclidean"] >= 45, counts
    assert counts["Tsallis(1.5)"] >= 40, counts
    assert counts["Gibbs"] >= 40, counts


@every_pair
def test_a_linear_loss_is_that_of_the_answer(row: Row, kind: str) -> None:
    """sum w_i <c, z_i> = <c, y>: value and gradient by another road."""
    polytope, regularizer = row.polytope, REGULARIZERS[kind]
    event = polytope.event_shape
    scores = normal(4, *event, seed=3).requires_grad_()
    value = MarginalizedExpectation(polytope, regularizer)(scores, lambda z: along(z, event))
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    expected = along(Relaxed(polytope, regularizer)(scores), event)
    (wanted,) = torch.autograd.grad(expected.sum(), scores)
    scale = 1 + float(expected.detach().abs().max())
    close(value.detach(), expected.detach(), 1e-6 * scale)
    close(gradient, wanted, 1e-5 * scale)


@every_pair
def test_gradients_against_differences(row: Row, kind: str) -> None:
    """At points where the same structures are found on all sides."""
    polytope, regularizer = row.polytope, REGULARIZERS[kind]
    event = polytope.event_shape
    layer = MarginalizedExpectation(polytope, regularizer)
    d = math.prod(event)
    checked = 0
    for seed in range(8):
        center = normal(*event, seed=100 + seed)
        shifts = STEP * torch.eye(d).double().reshape(d, *event)
        around = torch.cat([center[None], center + shifts, center - shifts])
        found = structures_seen(layer, around)
        if any(other != found[0] for other in found):
            continue
        values = layer(around, lambda z: rough(z, event))
        differences = (values[1 : d + 1] - values[d + 1 :]) / (2 * STEP)
        leaf = center.clone().requires_grad_()
        layer(leaf, lambda z: rough(z, event)).backward()
        assert leaf.grad is not None
        close(leaf.grad.flatten(), differences, 2e-5)
        checked += 1
        if checked == 2:
            return
    assert checked, "no point where the support stands still"


@every_pair
def test_one_call_for_each_structure_of_the_support(row: Row, kind: str) -> None:
    """What the loss sees are structures: those of the support, or all of them."""
    polytope, regularizer = row.polytope, REGULARIZERS[kind]
    event = polytope.event_shape
    scores = normal(3, *event, seed=5)
    found = structures_seen(MarginalizedExpectation(polytope, regularizer), scores)
    listed = [torch.tensor(rows).double().reshape(-1, *event) for rows in found]
    for points in listed:
        assert bool(polytope.contains(points, tolerance=1e-7).all())
    if kind == "Gibbs":
        count = round(float(polytope.log_partition(torch.zeros(event).double()).exp()))
        assert [len(points) for points in listed] == [count] * 3


def test_the_simplex_by_hand() -> None:
    """Sparsemax, entmax and softmax weights; costs of parts without weight do not matter."""
    s, costs = normal(6, 5), normal(5, seed=1)
    for regularizer, weights in [
        (Euclidean(), sparsemax(s)),
        (Gibbs(), s.softmax(1)),
        (Shannon(), s.softmax(1)),
        (Tsallis(2.0), sparsemax(s)),
    ]:
        scores = s.clone().requires_grad_()
        calls: list[int] = []

        def loss(z: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(len(calls))
            return (z @ costs) ** 3

        value = MarginalizedExpectation(Simplex(5), regularizer)(scores, loss)
        close(value.detach(), weights @ costs**3)
        assert len(calls) == int((weights > 0).sum(1).max())
        value.sum().backward()
        assert scores.grad is not None
        g = (costs**3).expand_as(s)
        if isinstance(regularizer, Gibbs | Shannon):
            expected = weights * (g - (weights * g).sum(1, keepdim=True))
        else:
            held = (weights > 0).double()
            expected = held * (g - (held * g).sum(1, keepdim=True) / held.sum(1, keepdim=True))
        close(scores.grad, expected)


def test_the_support_of_a_tree_by_hand() -> None:
    """Weights and their derivative from the KKT system of the support, one instance at a time."""
    polytope, scores = Arborescence(4), normal(3, 4, 4, seed=2)
    leaf = scores.clone().requires_grad_()
    value = MarginalizedExpectation(polytope)(leaf, lambda z: rough(z, (4, 4)))
    value.sum().backward()
    assert leaf.grad is not None
    solution = polytope.solve(scores, Euclidean(), solver=ActiveSet())
    assert solution.support is not None
    assert solution.weights is not None
    for i in range(3):
        held = solution.weights[i] > 1e-12
        z = solution.support[i][held].flatten(1)
        m = len(z)
        system = torch.zeros(m + 1, m + 1).double()
        system[:m, :m], system[:m, m], system[m, :m] = z @ z.t(), 1.0, 1.0
        right = torch.cat([z @ scores[i].flatten(), torch.ones(1).double()])
        weights = torch.linalg.solve(system, right)[:m]  # of s, without knowing the solver's
        losses = rough(solution.support[i][held], (4, 4))
        close(value[i].detach(), weights @ losses, 1e-8)
        pulled = torch.linalg.solve(system, torch.cat([losses, torch.zeros(1).double()]))[:m]
        close(leaf.grad[i].flatten(), z.t() @ pulled, 1e-7)


def test_tags_alone_can_be_regularized() -> None:
    """Euclidean(of=T): the linear loss of T y, and differences where the support stands still."""
    polytope, regularizer = Sequence(3, 2), Euclidean(of=Sequence.tags)
    layer = MarginalizedExpectation(polytope, regularizer)
    scores = normal(4, 3, 2, 2, seed=4).requires_grad_()
    costs = normal(3, 2, seed=6)
    value = layer(scores, lambda z: (Sequence.tags.apply(z) * costs).flatten(1).sum(1))
    expected = Relaxed(polytope, regularizer, solver=ActiveSet())(scores)
    linear = (Sequence.tags.apply(expected) * costs).flatten(1).sum(1)
    close(value.detach(), linear.detach(), 1e-8)
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    (wanted,) = torch.autograd.grad(linear.sum(), scores)
    close(gradient, wanted, 1e-7)


def test_the_whole_list_is_the_expected_loss() -> None:
    """Gibbs: E[l(z)] by the listed vertices, and its gradient Cov(z, l)."""
    row = next(row for row in STRUCTURES if row.name == "dependency tree")
    vertices = row.twin.vertices().double()
    scores = normal(2, 3, 3).requires_grad_()
    value = MarginalizedExpectation(Arborescence(3), Gibbs())(scores, lambda z: rough(z, (3, 3)))
    p = (scores.detach().flatten(1) @ vertices.flatten(1).t()).softmax(1)
    losses = rough(vertices, (3, 3))
    close(value.detach(), p @ losses)
    value.sum().backward()
    assert scores.grad is not None
    centred = p * (losses - (p @ losses)[:, None])
    close(scores.grad.flatten(1), centred @ vertices.flatten(1))


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_the_loss_s_own_parameters_get_the_gradient_of_the_sum(kind: str) -> None:
    polytope, regularizer = Subset(5, 2), REGULARIZERS[kind]
    weight = normal(5, seed=7).requires_grad_()
    scores = normal(3, 5, seed=8)
    layer = MarginalizedExpectation(polytope, regularizer)
    layer(scores, lambda z: (z @ weight) ** 2).sum().backward()
    assert weight.grad is not None
    step = STEP * torch.eye(5).double()
    still = weight.detach()
    for i in range(5):
        upper, lower = (
            layer(scores, lambda z, w=still + sign * step[i]: (z @ w) ** 2).sum() for sign in (1, -1)
        )
        close(weight.grad[i], (upper - lower) / (2 * STEP), 1e-6)


def test_dense_mixtures_have_the_loss_of_the_mean_and_no_other() -> None:
    """The expected loss is no loss of the mean: a parity of two coins."""
    value = MarginalizedExpectation(Hypercube(2), Gibbs())(
        torch.zeros(2), lambda z: (z[..., 0] - z[..., 1]).abs()
    )
    close(value, torch.tensor(0.5))


# --- sizes, masks, parameters, shapes -----------------------------------------------------------


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_lengths_leave_the_smaller_structure(kind: str) -> None:
    regularizer = REGULARIZERS[kind]
    scores, lengths = normal(3, 4, 4, seed=1), torch.tensor([2, 4, 3])
    layer = MarginalizedExpectation(Arborescence(4), regularizer)
    leaf = scores.clone().requires_grad_()
    value = layer(leaf, lambda z: along(z, (4, 4)) ** 2, lengths=lengths)
    value.sum().backward()
    assert leaf.grad is not None
    for i, n in enumerate(lengths.tolist()):
        small = scores[i, :n, :n].clone().requires_grad_()

        def loss(z: Tensor, n: int = n) -> Tensor:
            return along(torch.nn.functional.pad(z, (0, 4 - n, 0, 4 - n)), (4, 4)) ** 2

        alone = MarginalizedExpectation(Arborescence(n), regularizer)(small, loss)
        alone.backward()
        assert small.grad is not None
        wanted = torch.zeros(4, 4).double()
        wanted[:n, :n] = small.grad
        if kind == "Gibbs" or n < 4:  # (the largest face may have several supports)
            close(value[i].detach(), alone.detach(), 1e-7)
            close(leaf.grad[i], wanted, 1e-6)
        assert float(leaf.grad[i, n:].abs().sum() + leaf.grad[i, :, n:].abs().sum()) == 0


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("polytope", [Simplex(4), Subset(4, 2), Subset(4, 3)], ids=str)
def test_excluded_parts_are_left_out(kind: str, polytope: Polytope) -> None:
    layer = MarginalizedExpectation(polytope, REGULARIZERS[kind])
    keep = torch.tensor([True, True, False, True])
    scores = normal(3, 4)
    scores[:, 2] = 5.0
    for masked, options in [
        (scores.clone(), {"keep": keep}),
        (scores.masked_fill(~keep, -math.inf), dict[str, Any]()),
    ]:
        leaf = masked.requires_grad_()
        value = layer(leaf, lambda z: torch.where(z[..., 2] > 0, math.nan, along(z, (4,))), **options)
        value.sum().backward()
        assert leaf.grad is not None
        assert bool(value.isfinite().all())
        assert bool(leaf.grad.isfinite().all())
        assert leaf.grad[:, 2].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_parameters_of_instances(kind: str) -> None:
    layer, scores = MarginalizedExpectation(Subset(4, 1), REGULARIZERS[kind]), normal(3, 4)
    k = torch.tensor([1, 2, 3])
    value = layer(scores, lambda z: z.sum(-1) ** 2, params={"k": k})
    close(value, (k**2).double())
    leaf = normal(2, 3).requires_grad_()
    weights = torch.tensor([[0.0, 1.0, 2.0], [1.0, 3.0, 4.0]]).double().requires_grad_()
    of_ranks = MarginalizedExpectation(Permutahedron([1.0, 2.0, 3.0]), REGULARIZERS[kind])
    value = of_ranks(leaf, lambda z: along(z, (3,)), params={"w": weights})
    value.sum().backward()
    assert weights.grad is None
    assert leaf.grad is not None


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("polytope", [Simplex(4), Subset(4, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,), (2, 0)])
def test_shapes_and_dtypes(
    kind: str, polytope: Polytope, dtype: torch.dtype, batch: tuple[int, ...]
) -> None:
    layer = MarginalizedExpectation(polytope, REGULARIZERS[kind])
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(*batch, 4, generator=generator).to(dtype).requires_grad_()
    value = layer(scores, lambda z: along(z, (4,)))
    value.sum().backward()
    assert scores.grad is not None
    assert value.dtype == scores.grad.dtype == dtype
    assert tuple(value.shape) == batch
    assert scores.grad.shape == scores.shape
    exact = layer(scores.detach().double(), lambda z: along(z, (4,)))
    close(value.detach().double(), exact, {torch.bfloat16: 0.2, torch.float32: 1e-4}.get(dtype, 1e-12))


def test_instances_do_not_touch_each_other() -> None:
    """Alone, in a batch of others, in any order, by any number of threads."""
    layer, scores = MarginalizedExpectation(Matching(3)), normal(6, 3, 3)
    found: list[tuple[Tensor, Tensor]] = []
    before = torch.get_num_threads()
    for threads, rows in [(1, range(6)), (2, range(6)), (1, range(5, -1, -1)), (1, [0, 3])]:
        torch.set_num_threads(threads)
        leaf = scores[list(rows)].clone().requires_grad_()
        value = layer(leaf, lambda z: rough(z, (3, 3)))
        value.sum().backward()
        assert leaf.grad is not None
        found.append((value.detach(), leaf.grad))
    torch.set_num_threads(before)
    close(found[1][0], found[0][0], 1e-12)
    close(found[2][0].flip(0), found[0][0], 1e-12)
    close(found[2][1].flip(0), found[0][1], 1e-12)
    close(found[3][0], found[0][0][[0, 3]], 1e-12)
    close(found[3][1], found[0][1][[0, 3]], 1e-12)


def test_strides_do_not_matter() -> None:
    layer, wide = MarginalizedExpectation(Matching(2, 3)), normal(3, 4, 2)
    found: list[Tensor] = []
    for view in (wide.transpose(1, 2)[..., :3], wide.transpose(1, 2)[..., :3].contiguous()):
        leaf = view.detach().requires_grad_()
        layer(leaf, lambda z: rough(z, (2, 3))).sum().backward()
        assert leaf.grad is not None
        found.append(leaf.grad)
    close(found[0], found[1], 0)


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("level", [math.nan, math.inf])
@pytest.mark.parametrize("polytope", [Simplex(4), Subset(4, 2)], ids=str)
def test_a_loss_that_is_not_finite_spoils_its_own_instance_only(
    kind: str, level: float, polytope: Polytope
) -> None:
    scores = (0.1 * normal(3, 4)).requires_grad_()
    bad = torch.tensor([0.0, level, 0.0])
    value = MarginalizedExpectation(polytope, REGULARIZERS[kind])(scores, lambda z: z[..., 0] + bad)
    value.sum().backward()
    assert scores.grad is not None
    assert value.isfinite().tolist() == [True, False, True]
    assert not bool(scores.grad[1].isfinite().any())
    assert bool(scores.grad[[0, 2]].isfinite().all())


@pytest.mark.parametrize("kind", REGULARIZERS)
@pytest.mark.parametrize("polytope", [Simplex(3), Matching(3), Arborescence(3)], ids=str)
def test_ties_and_huge_scores(kind: str, polytope: Polytope) -> None:
    event = polytope.event_shape
    scores = torch.stack([torch.zeros(event), 1e8 * normal(*event).float()]).requires_grad_()
    value = MarginalizedExpectation(polytope, REGULARIZERS[kind])(scores, lambda z: rough(z, event))
    value.sum().backward()
    assert scores.grad is not None
    best = polytope.maximize(scores[1].detach())
    close(value[1].detach(), rough(best, event), 1e-4)
    assert bool(scores.grad.isfinite().all())
    close(scores.grad[1], torch.zeros(event), 1e-4)


def test_no_gradient_no_graph() -> None:
    for polytope in (Simplex(3), Subset(3, 2)):
        for regularizer in REGULARIZERS.values():
            layer = MarginalizedExpectation(polytope, regularizer)
            assert not layer(normal(2, 3), lambda z: along(z, (3,))).requires_grad


# --- making it ----------------------------------------------------------------------------------


def at_most_two(y: Any) -> list[Any]:
    return [y >= 0, y <= 1, cp.sum(y) <= 2]


def test_repr_pickle_and_copy() -> None:
    written = {
        "MarginalizedExpectation(Simplex(d=4), Euclidean())": MarginalizedExpectation(Simplex(4)),
        "MarginalizedExpectation(Matching(n=3, m=None, perfect=True), Gibbs())": (
            MarginalizedExpectation(Matching(3), Gibbs())
        ),
        "MarginalizedExpectation(Arborescence(n=3, single_root=False), Tsallis(alpha=1.5), "
        f"solver={FrankWolfe()})": MarginalizedExpectation(
            Arborescence(3), Tsallis(1.5), solver=FrankWolfe()
        ),
    }
    for text, layer in written.items():
        event = layer.polytope.event_shape
        scores = normal(2, *event)
        expected = layer(scores, lambda z, event=event: along(z, event))
        for other in (layer, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert repr(other) == text
            close(other(scores, lambda z, event=event: along(z, event)), expected, 0)


def test_another_solver() -> None:
    """On the simplex too: the same sum by the active set and by Frank-Wolfe."""
    scores = normal(4, 5)
    for solver in (ActiveSet(), FrankWolfe()):
        found: list[Tensor] = []
        for layer in (
            MarginalizedExpectation(Simplex(5)),
            MarginalizedExpectation(Simplex(5), solver=solver),
        ):
            leaf = scores.clone().requires_grad_()
            value = layer(leaf, lambda z: rough(z, (5,)))
            value.sum().backward()
            assert leaf.grad is not None
            found += [value.detach(), leaf.grad]
        close(found[0], found[2], 1e-8)
        close(found[1], found[3], 1e-6)


def test_a_budget_truncates() -> None:
    """Fewer calls of the oracle, a smaller support; weights still of a mixture."""
    scores = normal(1, 6, 6, seed=3)
    seen: list[int] = []
    for solver in (ActiveSet(max_steps=2), None):
        layer = MarginalizedExpectation(Arborescence(6), solver=solver)
        close(layer(scores, lambda z: torch.ones(len(z)).double()), torch.ones(1).double())
        seen.append(len(structures_seen(layer, scores)[0]))
    assert seen[0] <= 3 < seen[1]


def test_what_cannot_work_is_refused_when_it_is_made() -> None:
    with pytest.raises(UnsupportedProblem, match=r"found by argmax or vertices.*\n.*\n.*Oracle\("):
        MarginalizedExpectation(Facets(at_most_two, (3,)))
    with pytest.raises(UnsupportedProblem, match=r"found by argmax or vertices"):
        MarginalizedExpectation(Intersection([(Simplex(2), [0, 1]), (Simplex(2), [1, 2])]))
    for steep in (Shannon(), FermiDirac()):
        with pytest.raises(UnsupportedProblem, match=r"no sparse mixtures.*\n.*\n.*Use Euclidean\(\)"):
            MarginalizedExpectation(Subset(4, 2), steep)
    with pytest.raises(UnsupportedProblem, match=r"finds no support.*\n.*\n.*solver=ActiveSet\(\)"):
        MarginalizedExpectation(Subset(4, 2), solver=Clarabel())
    with pytest.raises(UnsupportedProblem, match="no road leads there"):
        MarginalizedExpectation(Facets(at_most_two, (3,)), Gibbs())
    with pytest.raises(UnsupportedProblem, match="does not solve it"):
        MarginalizedExpectation(Subset(4, 2), Tsallis(1.5), solver=ActiveSet())


def test_the_way_out_of_constraints_alone() -> None:
    declared = Facets(at_most_two, (3,))
    polytope = Oracle(declared.maximize, declared.event_shape, batched=True)
    scores = normal(3, 3)
    value = MarginalizedExpectation(polytope)(scores, lambda z: along(z, (3,)))
    close(value, along(declared.project(scores), (3,)), 1e-6)


def test_too_many_structures_are_named() -> None:
    layer = MarginalizedExpectation(Hypercube(40), Gibbs())
    scores, keep = torch.zeros(2, 40), torch.zeros(2, 40, dtype=torch.bool)
    keep[0, :3], keep[1] = True, True
    with pytest.raises(UnsupportedProblem, match=r"instance 1 has 1\.1e\+12 .* at most 10000 are"):
        layer(scores, lambda z: z[..., 0], keep=keep)
    close(layer(scores[:1], lambda z: z.sum(-1) ** 2, keep=keep[:1]), torch.tensor([3.0]))  # 3/4 + 9/4


def test_bad_losses_are_named() -> None:
    for regularizer in REGULARIZERS.values():
        with pytest.raises(ValueError, match=r"of shape \(2,\); it returned shape \(\)"):
            MarginalizedExpectation(Subset(3, 1), regularizer)(torch.zeros(2, 3), lambda z: z.sum())


def test_a_graph_with_one_path() -> None:
    """A single structure: its loss, and no gradient."""
    polytope = Path([("a", "b"), ("b", "c")], "a", "c")
    for regularizer in REGULARIZERS.values():
        scores = normal(2, 2).requires_grad_()
        value = MarginalizedExpectation(polytope, regularizer)(scores, lambda z: rough(z, (2,)))
        close(value.detach(), rough(torch.ones(2, 2).double(), (2,)))
        value.sum().backward()
        assert scores.grad is not None
        close(scores.grad, torch.zeros(2, 2).double())


@pytest.mark.parametrize(
    ("polytope", "regularizer", "solver"),
    [
        (3, Euclidean(), None),
        (Simplex, Euclidean(), None),
        (Simplex(3), "euclidean", None),
        (Simplex(3), Gibbs(), "x"),
    ],
)
def test_what_is_no_object_of_its_kind(polytope: Any, regularizer: Any, solver: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a .*object|must be an object"):
        MarginalizedExpectation(polytope, regularizer, solver=solver)
