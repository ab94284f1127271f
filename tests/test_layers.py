"""Layers and losses: values against cvxpy and enumeration, derivatives against differences."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from spigot.layers import Argmax, FenchelYoungLoss, Relaxed
from spigot.polytopes import (
    Convex,
    Euclidean,
    Facets,
    FermiDirac,
    Gibbs,
    Hull,
    Hypercube,
    Oracle,
    Polytope,
    Regularizer,
    Shannon,
    Simplex,
    Solution,
    Subset,
    Tsallis,
    UnsupportedProblem,
)
from spigot.polytopes.solvers import ActiveSet, Clarabel, Cvxpy, Enumerate, FrankWolfe, Highs
from spigot.pullback import SPIGOT, SPIGOTCE, SPIGOTEG, PullBack, SPIGOTSparseMAP
from tests.references import Reference, sparsemax, subsets
from tests.tensors import near as close
from tests.tensors import normal

# --- the table: a structure with its vertices listed by hand, a regularizer with its formulas ----


def ordered(y: Any) -> list[Any]:
    return [y[0] <= 1, y[:-1] >= y[1:], y[-1] >= 0]


def one_per_row(scores: np.ndarray) -> np.ndarray:
    return np.eye(scores.shape[1])[scores.argmax(1)]


def diamond(y: Any) -> list[Any]:
    return [cp.norm1(y) <= 1]


def box_to_two(y: Any) -> list[Any]:
    return [y >= 0, y <= 2]


def _choices() -> Tensor:
    rows = torch.eye(3, dtype=torch.float64)
    return torch.stack([torch.stack(pair) for pair in product(rows, rows)])


POINTS = 0.1 + 0.8 * torch.rand(7, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
STRUCTURES: dict[str, tuple[Polytope, Tensor]] = {
    "simplex": (Simplex(4), torch.eye(4, dtype=torch.float64)),
    "hypercube": (Hypercube(3), subsets(3, range(4))),
    "subset": (Subset(5, 2), subsets(5, [2])),
    "at most": (Subset(4, 2, at_most=True), subsets(4, range(3))),
    "hull": (Hull(POINTS), POINTS),
    "facets": (Facets(ordered, (4,)), torch.ones(5, 4).double().tril(-1)),
    "oracle": (Oracle(one_per_row, (2, 3)), _choices()),
}


@dataclass(frozen=True)
class Formula:
    """A separable regularizer written out: per-part value, slope, and the sum in cvxpy."""

    regularizer: Regularizer
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    expression: Callable[[Any], Any]


def _tsallis(alpha: float) -> Formula:
    scale = alpha * (alpha - 1)

    def expression(y: Any) -> Any:
        powers: Any = cp.power(y, alpha)
        return cp.sum(powers - y) / scale

    return Formula(
        Tsallis(alpha),
        lambda y: (y**alpha - y) / scale,
        lambda y: (alpha * y ** (alpha - 1) - 1) / scale,
        expression,
    )


FORMULAS: dict[str, Formula] = {
    "Euclidean": Formula(Euclidean(), lambda y: y**2 / 2, lambda y: y, lambda y: cp.sum_squares(y) / 2),
    "Shannon": Formula(
        Shannon(), lambda y: torch.xlogy(y, y), lambda y: 1 + y.log(), lambda y: -cp.sum(cp.entr(y))
    ),
    "FermiDirac": Formula(
        FermiDirac(),
        lambda y: torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y),
        lambda y: y.log() - (1 - y).log(),
        lambda y: -cp.sum(cp.entr(y)) - cp.sum(cp.entr(1 - y)),
    ),
    "Tsallis(1.5)": _tsallis(1.5),
    "Tsallis(2)": _tsallis(2.0),
}
WITH_GIBBS = ("simplex", "hypercube", "subset", "at most", "hull")
SEPARABLE = [(name, kind) for name in STRUCTURES for kind in FORMULAS]
EVERY = [*SEPARABLE, *((name, "Gibbs") for name in WITH_GIBBS)]
every_pair = pytest.mark.parametrize(("name", "kind"), EVERY)
every_structure = pytest.mark.parametrize("name", STRUCTURES)


def regularizer_of(kind: str) -> Regularizer:
    return Gibbs() if kind == "Gibbs" else FORMULAS[kind].regularizer


def in_vertices(vertices: Tensor) -> Callable[[Any], list[Any]]:
    """Constraints of a mixture of vertices, for cvxpy."""

    def constraints(y: Any) -> list[Any]:
        weights: Any = cp.Variable(len(vertices))
        flat: Any = cp.reshape(y, (vertices[0].numel(),), order="C")
        return [flat == vertices.flatten(1).numpy().T @ weights, weights >= 0, cp.sum(weights) == 1]

    return constraints


def moments(scores: Tensor, vertices: Tensor) -> Tensor:
    """The mean of p(z) ~ exp<s, z>, listed; `(n, *event)`."""
    chance = (scores.flatten(1) @ vertices.flatten(1).t()).softmax(1)
    return (chance @ vertices.flatten(1)).reshape(scores.shape)


def exposed(name: str, kind: str, scores: Tensor, keep: Tensor | None = None) -> list[bool]:
    """Which vertices lie on the face where <s - grad Omega(y), .> is largest."""
    polytope, vertices = STRUCTURES[name]
    y = polytope.maximize(scores, regularizer_of(kind), keep=keep)
    if keep is not None:
        vertices = vertices[(vertices * ~keep).flatten(1).abs().amax(1) == 0]
        vertices, y, scores = vertices[:, keep], y[keep], scores[keep]
    slope = scores - FORMULAS[kind].slope(y.clamp_min(0))
    return (((y - vertices) * slope).flatten(1).sum(1) < 1e-4).tolist()


def generic_point(name: str, kind: str, seed: int, keep: Tensor | None = None) -> Tensor:
    """Scores around which, within 1e-3 a part, the exposed face stays what it is: no vertex."""
    polytope = STRUCTURES[name][0]
    for draw in range(100):
        scores = normal(*polytope.event_shape, seed=1000 * seed + draw, scale=0.8)
        if kind == "Gibbs":
            return scores
        face = exposed(name, kind, scores, keep)
        if sum(face) < 2:
            continue
        size = scores.numel()
        nudges = 1e-3 * torch.cat([torch.eye(size), -torch.eye(size)]).double()
        near = (exposed(name, kind, scores + n.reshape(scores.shape), keep) for n in nudges)
        if all(other == face for other in near):
            return scores
    raise AssertionError("no generic point found")


# --- Relaxed: values --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), SEPARABLE)
def test_values_are_cvxpys(name: str, kind: str) -> None:
    polytope, vertices = STRUCTURES[name]
    event = polytope.event_shape
    scores = normal(3, *event, seed=3, scale=1.5)
    value = Relaxed(polytope, regularizer_of(kind))(scores)
    assert value.shape == scores.shape
    if kind == "Euclidean":
        reference, tolerance = Reference(in_vertices(vertices), event), 1e-6
    else:
        formula = FORMULAS[kind].expression
        reference, tolerance = Reference(in_vertices(vertices), event, formula), 2e-5
    close(value, reference.batch(scores, len(event)), tolerance)


@pytest.mark.parametrize(("name", "kind"), SEPARABLE)
def test_values_satisfy_the_optimality_conditions(name: str, kind: str) -> None:
    """No vertex is better than y along the slope at y, and y is a mixture of vertices."""
    polytope, vertices = STRUCTURES[name]
    scores = normal(4, *polytope.event_shape, seed=3, scale=1.5)
    value = Relaxed(polytope, regularizer_of(kind))(scores)
    slope = scores - FORMULAS[kind].slope(value.clamp_min(1e-300))
    for y, s in zip(value, slope, strict=True):
        gain = ((vertices - y) * s).flatten(1).sum(1).max()
        assert float(gain) < 1e-8
    inside = Reference(in_vertices(vertices), polytope.event_shape)
    close(inside.batch(value, len(polytope.event_shape)), value)


@pytest.mark.parametrize("name", WITH_GIBBS)
def test_marginals_are_the_listed_mean(name: str) -> None:
    polytope, vertices = STRUCTURES[name]
    scores = normal(4, *polytope.event_shape, scale=2.0)
    close(Relaxed(polytope, Gibbs())(scores), moments(scores, vertices), 1e-12)


def test_sparsemax_and_softmax_are_rows_of_the_table() -> None:
    scores = normal(5, 4)
    close(Relaxed(Simplex(4), Euclidean())(scores), sparsemax(scores), 1e-12)
    close(Relaxed(Simplex(4), Tsallis(2.0))(scores), sparsemax(scores), 1e-12)
    for soft in (Gibbs(), Shannon()):
        close(Relaxed(Simplex(4), soft)(scores), scores.softmax(-1), 1e-12)
    close(Relaxed(Hypercube(4), Gibbs())(scores), scores.sigmoid(), 1e-12)
    close(Relaxed(Hypercube(4), FermiDirac())(scores), scores.sigmoid(), 1e-12)
    close(Relaxed(Hypercube(4), Euclidean())(scores), scores.clamp(0, 1), 1e-12)


def crowded(y: Any) -> list[Any]:
    """Needs auxiliary variables."""
    return [y >= 0, y <= 1, cp.sum_largest(y, 2) <= 1.5]


@pytest.mark.parametrize("kind", FORMULAS)
def test_values_over_constraints_with_auxiliary_variables(kind: str) -> None:
    scores = normal(20, 4)
    value = Relaxed(Facets(crowded, (4,)), regularizer_of(kind))(scores)
    omega = None if kind == "Euclidean" else FORMULAS[kind].expression
    close(value, Reference(crowded, (4,), omega).batch(scores, 1), 1e-5)


def pooled(scores: Tensor) -> Tensor:
    """Isotonic regression, decreasing: adjacent blocks that violate the order take their mean."""
    blocks: list[list[float]] = []
    for score in scores.tolist():
        blocks.append([score])
        while len(blocks) > 1 and sum(blocks[-2]) * len(blocks[-1]) <= sum(blocks[-1]) * len(blocks[-2]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    means = [sum(block) / len(block) for block in blocks for _ in block]
    return torch.tensor(means, dtype=torch.float64)


# FermiDirac's parts meet 1 - 2^-53 at scale 30, where float64 ends
@pytest.mark.parametrize(
    ("kind", "scale"),
    [("Shannon", 1.0), ("Shannon", 10.0), ("Shannon", 30.0), ("FermiDirac", 1.0), ("FermiDirac", 10.0)],
)
def test_slopes_by_constraints_are_right_where_parts_underflow(kind: str, scale: float) -> None:
    """The answer's slope is that of isotonic regression, cut where the bound y <= 1 binds."""
    polytope = Facets(ordered, (4,))
    scores = normal(40, 4, scale=scale)
    wanted = torch.stack([pooled(row) for row in scores])
    wanted = wanted.clamp_max(1.0) if kind == "Shannon" else wanted
    solution = polytope.solve(scores, regularizer_of(kind))
    assert solution.gradient is not None
    close(solution.gradient, wanted, 1e-5)
    close(solution.value, (wanted - 1).exp() if kind == "Shannon" else wanted.sigmoid(), 1e-7)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("name", ["oracle", "listed", "constraints"])
def test_entropy_of_choices_is_a_softmax_a_row(name: str, scale: float) -> None:
    def one_a_row(y: Any) -> list[Any]:
        return [y >= 0, cp.sum(y, axis=1) == 1]

    facts = {
        "oracle": Oracle(one_per_row, (2, 3)),
        "listed": Hull(_choices()),
        "constraints": Facets(one_a_row, (2, 3)),
    }
    scores = normal(40, 2, 3, scale=scale)
    solution = facts[name].solve(scores, Shannon())
    close(solution.value, scores.softmax(-1), 1e-7)
    assert solution.gradient is not None
    # an oracle alone says nothing of parts below 1e-10 but that they are that small
    lowest = -math.inf if name == "constraints" else 1 + math.log(1e-10)
    close(solution.gradient, (1 + scores.log_softmax(-1)).clamp_min(lowest), 1e-3)


def test_a_convex_function_of_ones_own() -> None:
    smooth = Convex(lambda y: cp.sum_squares(y) + cp.norm_inf(y))
    scores = normal(2, 4)
    value = Relaxed(Simplex(4), smooth)(scores)
    reference = Reference(Simplex(4).constraints, (4,), smooth.expression)
    close(value, reference.batch(scores, 1), 1e-5)


# --- Relaxed: derivatives ------------------------------------------------------------------------


@every_pair
def test_gradcheck_at_generic_points(name: str, kind: str) -> None:
    layer = Relaxed(STRUCTURES[name][0], regularizer_of(kind))
    points = torch.stack([generic_point(name, kind, seed) for seed in (1, 2)]).requires_grad_()
    assert torch.autograd.gradcheck(layer, (points,), eps=1e-4, atol=1e-4, rtol=0)


MASKED = [
    (name, kind)
    for name in ("simplex", "subset", "at most", "facets", "oracle")
    for kind in ("Euclidean", "Shannon", "Tsallis(1.5)")
]


@pytest.mark.parametrize(("name", "kind"), MASKED)
def test_gradcheck_under_a_mask(name: str, kind: str) -> None:
    polytope = STRUCTURES[name][0]
    keep = torch.ones(polytope.event_shape, dtype=torch.bool)
    keep.view(-1)[-1] = False
    layer = Relaxed(polytope, regularizer_of(kind))
    point = generic_point(name, kind, 3, keep)[None].requires_grad_()

    def masked(scores: Tensor) -> Tensor:
        return layer(scores, keep=keep)

    assert torch.autograd.gradcheck(masked, (point,), eps=1e-4, atol=1e-4, rtol=0)
    y = masked(point)
    (grad,) = torch.autograd.grad(y, point, normal(*y.shape))
    assert bool((y[0][~keep] == 0).all())
    assert bool((grad[0][~keep] == 0).all())
    assert bool((grad != 0).any())


ROADS = [
    ("simplex", "Euclidean", ActiveSet()),
    ("simplex", "Euclidean", Clarabel()),
    ("subset", "Euclidean", ActiveSet()),
    ("subset", "Euclidean", Clarabel()),
    ("subset", "FermiDirac", FrankWolfe()),
    ("subset", "FermiDirac", Cvxpy()),
    ("at most", "Tsallis(1.5)", FrankWolfe()),
    ("at most", "Tsallis(1.5)", Cvxpy()),
    ("hull", "Shannon", FrankWolfe()),
    ("hull", "Gibbs", Enumerate()),
]


@pytest.mark.parametrize(("name", "kind", "solver"), ROADS, ids=str)
def test_gradcheck_by_forced_roads(name: str, kind: str, solver: Any) -> None:
    layer = Relaxed(STRUCTURES[name][0], regularizer_of(kind), solver=solver)
    points = torch.stack([generic_point(name, kind, seed) for seed in (1, 2)]).requires_grad_()
    assert torch.autograd.gradcheck(layer, (points,), eps=1e-4, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", [kind for kind in FORMULAS if kind != "Euclidean"])
def test_a_cone_program_over_vertices_has_the_same_jacobian(kind: str) -> None:
    """Its values are too rough for differences: its exposed face must be that of the exact road."""
    omega, points = regularizer_of(kind), [generic_point("hull", kind, seed) for seed in range(6)]
    exact, cone = Relaxed(Hull(POINTS), omega), Relaxed(Hull(POINTS), omega, solver=Cvxpy())
    for point in points:
        close(cone(point), exact(point), 2e-5)
        jacobians: list[Any] = [
            torch.autograd.functional.jacobian(layer, point) for layer in (exact, cone)
        ]
        close(jacobians[1], jacobians[0], 1e-4)
        assert float(jacobians[0].abs().max()) > 1e-3


def test_gradcheck_by_vertices_of_a_flat_hull() -> None:
    """More points than dimensions, in a plane of R^4, some of them repeated."""
    plane = normal(8, 2) @ normal(2, 4, seed=1) + normal(4, seed=2)
    layer = Relaxed(Hull(torch.cat([plane, plane[:3]])), Euclidean())
    points = (plane.mean(0) + 0.02 * normal(3, 4, seed=4)).requires_grad_()  # inside: full face
    assert torch.autograd.gradcheck(layer, (points,), eps=1e-5, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(layer, points[0].detach())
    assert isinstance(jacobian, Tensor)
    assert np.linalg.matrix_rank(jacobian.numpy(), tol=1e-6) == 2


def test_the_jacobian_where_everything_ties_is_that_of_the_whole_face() -> None:
    """At equal scores the answer is the centre, and no single mixture shows all directions."""
    zeros = torch.zeros(4, dtype=torch.float64)
    whole = torch.eye(4, dtype=torch.float64) - 0.25
    declared = [Subset(4, 2), Hull(subsets(4, [2])), Facets(Subset(4, 2).constraints, (4,))]
    for polytope in declared:
        jacobian: Any = torch.autograd.functional.jacobian(Relaxed(polytope, Euclidean()), zeros)
        close(jacobian, whole, 1e-9)


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_jacobian_of_a_separable_regularizer_is_symmetric_and_positive(kind: str) -> None:
    layer = Relaxed(Subset(6, 2), regularizer_of(kind))
    jacobian: Any = torch.autograd.functional.jacobian(layer, normal(6))
    close(jacobian, jacobian.t(), 1e-10)
    assert float(torch.linalg.eigvalsh(jacobian).min()) > -1e-10
    close(jacobian.sum(1), torch.zeros(6, dtype=torch.float64), 1e-10)  # the sum stays k


@every_pair
def test_a_conjugate_differentiated_twice_is_the_jacobian(name: str, kind: str) -> None:
    polytope, regularizer = STRUCTURES[name][0], regularizer_of(kind)
    point = generic_point(name, kind, 4)

    def conjugate(scores: Tensor) -> Tensor:
        return polytope.conjugate(scores, regularizer)

    hessian: Any = torch.autograd.functional.hessian(conjugate, point)
    jacobian: Any = torch.autograd.functional.jacobian(Relaxed(polytope, regularizer), point)
    close(hessian, jacobian, 1e-9)
    assert float(jacobian.abs().max()) > 1e-3
    leaf = point.clone().requires_grad_()
    (grad,) = torch.autograd.grad(conjugate(leaf), leaf)
    close(grad, polytope.maximize(point, regularizer), 1e-9)


@pytest.mark.parametrize("name", WITH_GIBBS)
def test_log_partition_and_entropy(name: str) -> None:
    polytope, vertices = STRUCTURES[name]
    scores = normal(3, *polytope.event_shape).requires_grad_()
    energies = scores.flatten(1) @ vertices.flatten(1).t()
    logs = energies.log_softmax(1)
    close(polytope.log_partition(scores), energies.logsumexp(1), 1e-12)
    close(polytope.entropy(scores), -(logs.exp() * logs).sum(1), 1e-11)
    assert torch.autograd.gradcheck(polytope.log_partition, (scores,))
    assert torch.autograd.gradcheck(polytope.entropy, (scores,))


def test_a_gradient_that_is_not_finite_spoils_its_own_instance_only() -> None:
    for name in ("subset", "hull", "facets", "oracle"):
        polytope = STRUCTURES[name][0]
        layer = Relaxed(polytope, Euclidean())
        scores = normal(3, *polytope.event_shape).requires_grad_()
        upstream = normal(3, *polytope.event_shape, seed=1)
        (clean,) = torch.autograd.grad(layer(scores), scores, upstream)
        upstream[1].view(-1)[0] = torch.inf
        (spoilt,) = torch.autograd.grad(layer(scores), scores, upstream)
        assert bool(spoilt[1].isnan().any())
        close(spoilt[[0, 2]], clean[[0, 2]], 1e-12)


def test_a_third_derivative_of_a_maximiser_is_refused_not_wrong() -> None:
    scores = normal(4).requires_grad_()
    found = Relaxed(Simplex(4), Gibbs())(scores) @ normal(4, seed=1)
    for _ in range(2):
        (grad,) = torch.autograd.grad(found, scores, create_graph=True)
        found = grad.pow(2).sum()
    with pytest.raises(UnsupportedProblem, match=r"third|twice"):
        found.backward()


# --- Relaxed: use --------------------------------------------------------------------------------


@every_structure
def test_a_layer_used_twice_in_one_graph_adds_up(name: str) -> None:
    polytope = STRUCTURES[name][0]
    layer, event = Relaxed(polytope, Euclidean()), polytope.event_shape
    a, b, scores = normal(2, *event, seed=1), normal(2, *event, seed=2), normal(2, *event)

    def gradient(weights: list[tuple[float, Tensor]]) -> Tensor:
        leaf = scores.clone().requires_grad_()
        torch.stack([(layer(f * leaf) * w).sum() for f, w in weights]).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    close(gradient([(1.0, a), (0.5, b)]), gradient([(1.0, a)]) + gradient([(0.5, b)]), 1e-9)


def test_one_layer_may_feed_another() -> None:
    """The projection of a projection is itself, and so is its derivative (a projector)."""
    layer = Relaxed(Subset(5, 2), Euclidean())
    scores = generic_point("subset", "Euclidean", 6)

    def twice(s: Tensor) -> Tensor:
        return layer(layer(s))

    close(twice(scores), layer(scores), 1e-12)
    once: Any = torch.autograd.functional.jacobian(layer, scores)
    close(once @ once, once, 1e-12)


def test_backward_may_run_twice() -> None:
    for name in STRUCTURES:
        layer = Relaxed(STRUCTURES[name][0], Euclidean())
        leaf = normal(2, *STRUCTURES[name][0].event_shape).requires_grad_()
        value = layer(leaf)
        upstream = normal(*value.shape, seed=1)
        (first,) = torch.autograd.grad(value, leaf, upstream, retain_graph=True)
        (second,) = torch.autograd.grad(value, leaf, upstream)
        close(second, first, 1e-12)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)], ids=str)
@every_structure
def test_batch_shapes(name: str, batch: tuple[int, ...]) -> None:
    polytope = STRUCTURES[name][0]
    layer, event = Relaxed(polytope, Euclidean()), polytope.event_shape
    leaf, upstream = normal(*batch, *event).requires_grad_(), normal(*batch, *event, seed=1)
    value = layer(leaf)
    (grad,) = torch.autograd.grad(value, leaf, upstream)
    assert value.shape == grad.shape == leaf.shape
    for place in product(*map(range, batch)):
        alone = leaf.detach()[place].requires_grad_()
        close(value[place], layer(alone), 1e-12)
        close(grad[place], torch.autograd.grad(layer(alone), alone, upstream[place])[0], 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_pair
def test_dtypes_come_back_as_they_went_in(name: str, kind: str, dtype: torch.dtype) -> None:
    polytope = STRUCTURES[name][0]
    layer = Relaxed(polytope, regularizer_of(kind))
    scores = torch.stack([generic_point(name, kind, seed) for seed in (1, 2)]).to(dtype)
    upstream = normal(*scores.shape, seed=1).to(dtype)
    leaf, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    value, wanted = layer(leaf), layer(exact)
    (grad,) = torch.autograd.grad(value, leaf, upstream)
    (wanted_grad,) = torch.autograd.grad(wanted, exact, upstream.double())
    assert (value.dtype, grad.dtype) == (dtype, dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    close(value.double(), wanted, tolerance)
    close(grad.double(), wanted_grad, tolerance)


@every_structure
def test_layouts_do_not_matter(name: str) -> None:
    polytope = STRUCTURES[name][0]
    layer, event = Relaxed(polytope, Euclidean()), polytope.event_shape
    wide = normal(4, *(2 * size + 1 for size in event))
    strided = wide[(slice(None, None, 2), *(slice(1, None, 2) for _ in event))]
    turned = normal(*reversed(event), 3).permute(*reversed(range(len(event) + 1)))
    for view in (strided, turned, normal(*event).expand(3, *event)):
        assert not view.is_contiguous()
        leaf = view.detach().requires_grad_()
        upstream = normal(*reversed(view.shape), seed=1).permute(*reversed(range(view.dim())))
        value = layer(leaf)
        (grad,) = torch.autograd.grad(value, leaf, upstream)
        plain = view.contiguous().requires_grad_()
        close(value, layer(plain), 1e-12)
        close(grad, torch.autograd.grad(layer(plain), plain, upstream.contiguous())[0], 1e-12)


def test_masks_are_the_smaller_problem() -> None:
    lengths = torch.tensor([3, 5, 2])
    kept = torch.arange(5) < lengths[:, None]
    scores, upstream = normal(3, 5), normal(3, 5, seed=1)
    ways: list[tuple[Tensor, dict[str, Tensor]]] = [
        (scores.masked_fill(~kept, 40.0), {"keep": kept}),
        (scores.masked_fill(~kept, 40.0), {"lengths": lengths}),
        (scores.masked_fill(~kept, -torch.inf), {}),
    ]
    regularizers = [Gibbs(), *(formula.regularizer for formula in FORMULAS.values())]
    for (given, masks), regularizer in product(ways, regularizers):
        leaf = given.clone().requires_grad_()
        value = Relaxed(Subset(5, 2), regularizer)(leaf, **masks)
        (grad,) = torch.autograd.grad(value, leaf, upstream)
        assert bool((value[~kept] == 0).all())
        assert bool((grad[~kept] == 0).all())
        for i, m in enumerate(lengths.tolist()):
            small = scores[i, :m].clone().requires_grad_()
            alone = Relaxed(Subset(m, 2), regularizer)(small)
            close(value[i, :m], alone, 1e-9)
            (wanted,) = torch.autograd.grad(alone, small, upstream[i, :m])
            close(grad[i, :m], wanted, 1e-9)


# --- Argmax --------------------------------------------------------------------------------------


@every_structure
def test_argmax_returns_the_best_listed_vertex(name: str) -> None:
    polytope, vertices = STRUCTURES[name]
    scores = normal(20, *polytope.event_shape)
    z = Argmax(polytope, SPIGOT())(scores)
    energies = scores.flatten(1) @ vertices.flatten(1).t()
    close(z, vertices[energies.argmax(1)], 1e-12)


@every_structure
def test_argmax_returns_its_solution_too(name: str) -> None:
    polytope, vertices = STRUCTURES[name]
    scores = normal(2, 3, *polytope.event_shape).float()
    layer = Argmax(polytope, SPIGOT())
    leaf = scores.requires_grad_()
    z, solution = layer(leaf, return_solution=True)
    assert isinstance(solution, Solution)
    assert z.requires_grad
    assert solution.value.dtype == torch.float32
    assert not solution.value.requires_grad
    assert torch.equal(solution.value, z)
    assert solution.status.shape == solution.iterations.shape == (2, 3)
    assert bool(solution.converged.all())
    assert solution.objective is not None
    flat = scores.detach().reshape(6, -1) @ vertices.float().flatten(1).t()
    close(solution.objective, flat.amax(1).reshape(2, 3), 1e-5)
    assert torch.equal(layer(leaf), z)


def test_argmax_of_a_relaxed_forward_returns_that_solution() -> None:
    layer = Argmax(Hull(POINTS), SPIGOTSparseMAP(forward=Euclidean()))
    scores = normal(4, 3)
    value, solution = layer(scores, return_solution=True)
    close(value, Reference(in_vertices(POINTS), (3,)).batch(scores, 1))
    assert solution.gap is not None
    assert bool((solution.gap.abs() < 1e-9).all())
    assert solution.support is not None
    assert solution.weights is not None
    close((solution.weights[..., None] * solution.support).sum(-2), value, 1e-12)
    close(solution.weights.sum(-1), torch.ones(4, dtype=torch.float64), 1e-12)


def test_the_solution_may_be_changed_without_harm() -> None:
    layer = Argmax(Subset(5, 2), SPIGOT(reduction="sum"))
    scores, upstream = normal(3, 5), normal(3, 5, seed=1)
    grads: list[Tensor] = []
    for meddle in (False, True):
        leaf = scores.clone().requires_grad_()
        z, solution = layer(leaf, return_solution=True)
        if meddle:
            solution.value.zero_()
        z.backward(upstream)
        assert leaf.grad is not None
        grads.append(leaf.grad)
    close(grads[1], grads[0], 0.0)


FORCED = [
    ("simplex", Highs()),
    ("subset", Highs()),
    ("at most", Highs()),
    ("hull", Enumerate()),
    ("facets", Highs()),
]


@pytest.mark.parametrize(("name", "solver"), FORCED, ids=str)
def test_argmax_by_a_forced_road(name: str, solver: Any) -> None:
    polytope, vertices = STRUCTURES[name]
    scores = normal(20, *polytope.event_shape)
    layer = Argmax(polytope, SPIGOT(), solver=solver)
    assert f"solver={type(solver).__name__}(" in repr(layer)
    energies = scores.flatten(1) @ vertices.flatten(1).t()
    close(layer(scores), vertices[energies.argmax(1)], 1e-12)


# --- the losses ----------------------------------------------------------------------------------

LOSSES = [*EVERY, *((name, "None") for name in STRUCTURES)]


def loss_of(kind: str) -> Regularizer | None:
    return None if kind == "None" else regularizer_of(kind)


@pytest.mark.parametrize(("name", "kind"), LOSSES)
def test_the_losses_value_and_gradient(name: str, kind: str) -> None:
    polytope, vertices = STRUCTURES[name]
    omega, event = loss_of(kind), polytope.event_shape
    scores = normal(4, *event).requires_grad_()
    mixture = 0.5 * (vertices[[1, 2]] + vertices[[2, 3]])
    target = torch.cat([vertices[[0, -1]], mixture])
    loss = FenchelYoungLoss(polytope, omega, reduction="none")
    value = loss(scores, target)
    assert value.shape == (4,)
    assert bool((value > -1e-9).all())
    assert bool((value > 1e-2).any())

    best = polytope.maximize(scores.detach(), omega)
    (grad,) = torch.autograd.grad(value.sum(), scores)
    close(grad, best - target, 1e-7)

    s = scores.detach()
    if kind == "Gibbs":
        top = (s.flatten(1) @ vertices.flatten(1).t()).logsumexp(1)
        wanted = top - (s * target).flatten(1).sum(1)
    elif omega is None:
        top = (s.flatten(1) @ vertices.flatten(1).t()).amax(1)
        wanted = top - (s * target).flatten(1).sum(1)
    else:
        penalty = FORMULAS[kind].value
        top = (s * best - penalty(best)).flatten(1).sum(1)
        wanted = top + (penalty(target) - s * target).flatten(1).sum(1)
    close(value.detach(), wanted, 1e-8)


@pytest.mark.parametrize(("name", "kind"), [*SEPARABLE, *((name, "None") for name in STRUCTURES)])
def test_the_loss_is_zero_at_the_maximiser(name: str, kind: str) -> None:
    polytope, omega = STRUCTURES[name][0], loss_of(kind)
    scores = normal(4, *polytope.event_shape).requires_grad_()
    target = polytope.maximize(scores.detach(), omega)
    value = FenchelYoungLoss(polytope, omega, reduction="sum")(scores, target)
    (grad,) = torch.autograd.grad(value, scores)
    assert abs(value.item()) < 1e-8
    close(grad, torch.zeros_like(grad), 1e-8)


@pytest.mark.parametrize(("name", "kind"), [("subset", "Euclidean"), ("hull", "Gibbs")])
def test_the_losses_gradcheck(name: str, kind: str) -> None:
    polytope, vertices = STRUCTURES[name]
    loss = FenchelYoungLoss(polytope, regularizer_of(kind))
    points = torch.stack([generic_point(name, kind, seed) for seed in (1, 2)]).requires_grad_()

    def of_scores(scores: Tensor) -> Tensor:
        return loss(scores, vertices[:2])

    assert torch.autograd.gradcheck(of_scores, (points,))
    assert torch.autograd.gradgradcheck(of_scores, (points,), eps=1e-5, atol=1e-4)


def test_the_crf_loss_on_the_simplex_is_cross_entropy() -> None:
    scores, labels = normal(6, 4).requires_grad_(), torch.tensor([0, 3, 1, 1, 2, 0])
    for reduction in ("none", "mean", "sum"):
        loss = FenchelYoungLoss(Simplex(4), Gibbs(), reduction=reduction)
        wanted = torch.nn.functional.cross_entropy(scores, labels, reduction=reduction)
        value = loss(scores, labels=labels)
        close(value, wanted, 1e-12)
        ours, theirs = (torch.autograd.grad(v.sum(), scores)[0] for v in (value, wanted))
        close(ours, theirs, 1e-12)


def test_the_loss_without_a_regularizer_is_the_perceptrons() -> None:
    scores, labels = normal(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    value = FenchelYoungLoss(Simplex(4))(scores, labels=labels)
    close(value, (scores.amax(1) - scores[torch.arange(6), labels]).mean(), 1e-12)


def test_the_sparsemax_loss_is_its_formula() -> None:
    """Martins and Astudillo (2016), equation 12."""
    scores, labels = normal(6, 4), torch.tensor([0, 3, 1, 1, 2, 0])
    p = sparsemax(scores)
    tau = ((scores * (p > 0)).sum(1) - 1) / (p > 0).sum(1)
    terms = ((scores**2 - tau[:, None] ** 2) * (p > 0)).sum(1)
    wanted = -scores[torch.arange(6), labels] + terms / 2 + 0.5
    loss = FenchelYoungLoss(Simplex(4), Euclidean(), reduction="none")
    close(loss(scores, labels=labels), wanted, 1e-12)


def test_binary_cross_entropy_on_the_hypercube() -> None:
    scores, target = normal(6, 3), (normal(6, 3, seed=1) > 0).double()
    for omega in (Gibbs(), FermiDirac()):
        value = FenchelYoungLoss(Hypercube(3), omega, reduction="sum")(scores, target)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        close(value, bce(scores, target, reduction="sum"), 1e-12)


def test_reductions() -> None:
    scores, target = normal(2, 3, 5), STRUCTURES["subset"][1][:6].reshape(2, 3, 5)
    values = FenchelYoungLoss(Subset(5, 2), Euclidean(), reduction="none")(scores, target)
    assert values.shape == (2, 3)
    for reduction, wanted in (("sum", values.sum()), ("mean", values.sum() / 6)):
        value = FenchelYoungLoss(Subset(5, 2), Euclidean(), reduction=reduction)(scores, target)
        assert value.shape == ()
        close(value, wanted, 1e-12)
    single = FenchelYoungLoss(Subset(5, 2), Euclidean())(scores[1, 2], target[1, 2])
    close(single, values[1, 2], 1e-12)


def test_the_mean_is_the_default_and_divides_the_gradient() -> None:
    scores, target = normal(4, 5).requires_grad_(), STRUCTURES["subset"][1][:4]
    FenchelYoungLoss(Subset(5, 2), Euclidean())(scores, target).backward()
    assert scores.grad is not None
    close(scores.grad, (Subset(5, 2).project(scores.detach()) - target) / 4, 1e-12)


def test_an_empty_batch_has_no_loss() -> None:
    scores = torch.zeros(0, 5, requires_grad=True)
    target = torch.zeros(0, 5)
    assert FenchelYoungLoss(Subset(5, 2), Gibbs(), reduction="none")(scores, target).shape == (0,)
    total = FenchelYoungLoss(Subset(5, 2), Euclidean(), reduction="sum")(scores, target)
    assert total.item() == 0.0
    total.backward()
    assert scores.grad is not None
    assert scores.grad.shape == (0, 5)


def test_an_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reduction.*'average'"):
        FenchelYoungLoss(Simplex(3), reduction="average")


LABELS: list[tuple[Polytope, Any, Tensor]] = [
    (Simplex(3), torch.tensor([2, 0]), torch.tensor([[0, 0, 1], [1, 0, 0]])),
    (Simplex(3), [2, 0], torch.tensor([[0, 0, 1], [1, 0, 0]])),
    (Subset(4, 2), torch.tensor([[0, 3], [1, 2]]), torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]])),
    (
        Subset(4, 2, at_most=True),
        torch.tensor([[2, -1], [-1, -1]]),
        torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]]),
    ),
    (Hypercube(2), torch.tensor([[0, 1], [1, -1]]), torch.tensor([[1, 1], [0, 1]])),
    (Hull(POINTS), torch.tensor([4, 1]), POINTS[[4, 1]]),
    (Facets(ordered, (2,)), torch.tensor([[1, 0], [1, 1]]), torch.tensor([[1, 0], [1, 1]])),
]


@pytest.mark.parametrize(("polytope", "labels", "target"), LABELS, ids=lambda item: type(item).__name__)
def test_labels_stand_for_their_targets(polytope: Polytope, labels: Any, target: Tensor) -> None:
    scores = normal(2, *polytope.event_shape)
    loss = FenchelYoungLoss(polytope, Euclidean(), reduction="none")
    close(loss(scores, labels=labels), loss(scores, target.double()), 1e-6)


def test_labels_with_lengths() -> None:
    scores, lengths = normal(2, 4), torch.tensor([2, 4])
    loss = FenchelYoungLoss(Simplex(4), Gibbs(), reduction="none")
    value = loss(scores, labels=torch.tensor([1, 3]), lengths=lengths)
    close(value[0], torch.nn.functional.cross_entropy(scores[0, :2], torch.tensor(1)), 1e-12)
    close(value[1], torch.nn.functional.cross_entropy(scores[1], torch.tensor(3)), 1e-12)
    with pytest.raises(ValueError, match="label"):
        loss(scores, labels=torch.tensor([2, 3]), lengths=lengths)


@pytest.mark.parametrize("kind", ["None", "Gibbs", "Euclidean", "Shannon"])
def test_the_loss_under_masks_is_that_of_the_smaller_problem(kind: str) -> None:
    keep = torch.tensor([[True, True, False, True, True], [True] * 5])
    scores = normal(2, 5).masked_fill(~keep, 30.0).requires_grad_()
    target = torch.tensor([[1.0, 0, 0, 0, 1], [0, 1, 1, 0, 0]]).double()
    loss = FenchelYoungLoss(Subset(5, 2), loss_of(kind), reduction="none")
    value = loss(scores, target, keep=keep)
    (grad,) = torch.autograd.grad(value.sum(), scores)
    assert float(grad[0, 2]) == 0.0
    small = FenchelYoungLoss(Subset(4, 2), loss_of(kind))
    close(value[0], small(scores[0, keep[0]], target[0, keep[0]]), 1e-10)
    by_scores = loss(scores.detach().masked_fill(~keep, -torch.inf), target)
    close(by_scores, value.detach(), 1e-12)


OUTSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "too large": lambda y: 3 * y + 0.2,
    "near": lambda y: y + 1.2 * (y - y.mean()) + 0.01,
    "negative": lambda y: -y - 0.1,
}


@pytest.mark.parametrize("spoil", OUTSIDE.values(), ids=OUTSIDE.keys())
@every_structure
def test_a_target_outside_names_its_instance(name: str, spoil: Callable[[Tensor], Tensor]) -> None:
    polytope, vertices = STRUCTURES[name]
    target = vertices[torch.tensor([[1, 2, 1], [2, 3, 1]])].clone()
    target[1, 1] = spoil(target[1, 1])
    scores = normal(2, 3, *polytope.event_shape)
    loss = FenchelYoungLoss(polytope, Euclidean())
    with pytest.raises(ValueError, match=r"target.*instance \(1, 1\)"):
        loss(scores, target)


def test_an_excluded_target_names_its_instance() -> None:
    scores, target = normal(3, 5), STRUCTURES["subset"][1][:3].clone()
    keep = torch.ones(3, 5, dtype=torch.bool)
    part = int(target[2].argmax())
    keep[2, part] = False
    loss = FenchelYoungLoss(Subset(5, 2), Gibbs())
    with pytest.raises(ValueError, match=r"keep.*instance 2"):
        loss(scores, target, keep=keep)
    with pytest.raises(ValueError, match=r"-inf.*instance 2"):
        loss(scores.masked_fill(~keep, -torch.inf), target)
    with pytest.raises(ValueError, match=r"target.*instance 2"):
        loss(scores, target, lengths=torch.tensor([5, 5, part]).clamp_min(2))


def test_validation_can_be_skipped() -> None:
    scores = normal(2, 5).requires_grad_()
    target = torch.full((2, 5), 0.9, dtype=torch.float64)
    loss = FenchelYoungLoss(Subset(5, 2), Euclidean(), reduction="sum", validate=False)
    loss(scores, target).backward()
    assert scores.grad is not None
    close(scores.grad, Subset(5, 2).project(scores.detach()) - target, 1e-12)


def test_a_target_and_labels_are_one_thing() -> None:
    loss = FenchelYoungLoss(Simplex(3), Gibbs())
    scores, target, labels = normal(2, 3), torch.eye(3)[:2], torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"target or labels.*got neither"):
        loss(scores)
    with pytest.raises(ValueError, match=r"target or labels.*got both"):
        loss(scores, target, labels=labels)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        loss(scores, torch.eye(3))
    with pytest.raises(ValueError, match=r"event shape \(3,\)"):
        loss(scores, torch.eye(2))


def test_a_target_of_integers_is_a_target() -> None:
    scores = normal(2, 5)
    target = STRUCTURES["subset"][1][:2]
    loss = FenchelYoungLoss(Subset(5, 2), Gibbs())
    close(loss(scores, target.long()), loss(scores, target), 1e-12)


def test_a_target_gets_no_gradient() -> None:
    target = STRUCTURES["subset"][1][:2].clone().requires_grad_()
    FenchelYoungLoss(Subset(5, 2), Euclidean())(normal(2, 5).requires_grad_(), target).backward()
    assert target.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_loss_keeps_the_dtype(dtype: torch.dtype) -> None:
    scores = normal(3, 5).to(dtype).requires_grad_()
    target = STRUCTURES["subset"][1][:3]
    loss = FenchelYoungLoss(Subset(5, 2), Gibbs())
    value = loss(scores, target)
    value.backward()
    assert scores.grad is not None
    assert (value.dtype, scores.grad.dtype) == (dtype, dtype)
    close(value.detach().double(), loss(scores.detach().double(), target), 2e-2)


def test_training_by_the_loss_finds_the_structure() -> None:
    polytope, vertices = STRUCTURES["facets"]
    target = vertices[[0, 3, 2, 4]]
    scores = normal(4, 4).requires_grad_()
    loss = FenchelYoungLoss(polytope, Euclidean(), reduction="sum")
    optimizer = torch.optim.SGD([scores], lr=1.0)
    for _ in range(30):
        optimizer.zero_grad()
        loss(scores, target).backward()
        optimizer.step()
    close(polytope.project(scores.detach()), target, 1e-6)


# --- modules -------------------------------------------------------------------------------------


def test_training_and_evaluation_are_alike() -> None:
    scores, upstream = normal(3, 5), normal(3, 5, seed=1)
    target = STRUCTURES["subset"][1][:3]
    argmax = Argmax(Subset(5, 2), SPIGOTCE())
    relaxed = Relaxed(Subset(5, 2), Gibbs())
    loss = FenchelYoungLoss(Subset(5, 2), Gibbs())
    uses: list[Callable[[Tensor], Tensor]] = [
        lambda s: (argmax(s) * upstream).sum(),
        lambda s: (relaxed(s) * upstream).sum(),
        lambda s: loss(s, target),
    ]
    for module, use in zip((argmax, relaxed, loss), uses, strict=True):
        results: list[tuple[Tensor, Tensor]] = []
        for mode in (True, False):
            module.train(mode)
            leaf = scores.clone().requires_grad_()
            value = use(leaf)
            results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
        close(results[1][0], results[0][0], 0.0)
        close(results[1][1], results[0][1], 0.0)
        assert not list(module.parameters())
        assert not module.state_dict()


PRINTED: list[tuple[Callable[[], torch.nn.Module], str]] = [
    (lambda: Relaxed(Simplex(3), Euclidean()), "Relaxed(Simplex(d=3), Euclidean())"),
    (lambda: Relaxed(Simplex(3), Tsallis(1.5)), "Relaxed(Simplex(d=3), Tsallis(alpha=1.5))"),
    (lambda: Relaxed(Facets(ordered, (4,)), Shannon()), "Relaxed(Facets(ordered, (4,)), Shannon())"),
    (
        lambda: Argmax(Subset(4, 2), SPIGOT()),
        "Argmax(Subset(d=4, k=2, at_most=False), SPIGOT(step_size=1.0))",
    ),
    (
        lambda: FenchelYoungLoss(Simplex(3), Gibbs()),
        "FenchelYoungLoss(Simplex(d=3), Gibbs(), reduction='mean')",
    ),
    (
        lambda: FenchelYoungLoss(Simplex(3), reduction="sum"),
        "FenchelYoungLoss(Simplex(d=3), None, reduction='sum')",
    ),
]


@pytest.mark.parametrize(("make", "text"), PRINTED, ids=[text for _, text in PRINTED])
def test_layers_print_as_their_calls(make: Callable[[], torch.nn.Module], text: str) -> None:
    assert repr(make()) == text
    assert repr(eval(text)) == text
    assert repr(copy.deepcopy(make())) == text


def test_what_was_asked_for_is_printed() -> None:
    assert "solver=ActiveSet(" in repr(Relaxed(Simplex(3), Euclidean(), solver=ActiveSet()))
    loss = FenchelYoungLoss(Simplex(3), Euclidean(), validate=False, solver=ActiveSet())
    assert "validate=False" in repr(loss)
    assert "solver=ActiveSet(" in repr(loss)


@every_pair
def test_layers_that_have_worked_can_be_pickled_and_copied(name: str, kind: str) -> None:
    polytope, vertices = STRUCTURES[name]
    layer = Relaxed(polytope, regularizer_of(kind))
    loss = FenchelYoungLoss(polytope, regularizer_of(kind))
    scores = normal(2, *polytope.event_shape)
    value, error = layer(scores), loss(scores, vertices[:2])
    for again in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        twin, other = again(layer), again(loss)
        assert repr(twin) == repr(layer)
        close(twin(scores), value, 1e-12)
        close(other(scores, vertices[:2]), error, 1e-12)


# --- what cannot be done is said when the layer is made -----------------------------------------

UNSUPPORTED: list[tuple[str, Callable[[], object], str]] = [
    (
        "Gibbs by constraints",
        lambda: Relaxed(Facets(ordered, (4,)), Gibbs()),
        r"Facets\(ordered, \(4,\)\)(.|\n)*Gibbs\(\)(.|\n)*facts: constraints(.|\n)*vertices",
    ),
    (
        "Gibbs by an oracle",
        lambda: Relaxed(Oracle(one_per_row, (2, 3)), Gibbs()),
        r"Oracle\(one_per_row(.|\n)*Gibbs\(\)(.|\n)*facts: argmax(.|\n)*vertices",
    ),
    (
        "a Gibbs loss by constraints",
        lambda: FenchelYoungLoss(Facets(ordered, (4,)), Gibbs()),
        r"Facets\(ordered(.|\n)*Gibbs\(\)(.|\n)*facts: constraints(.|\n)*vertices",
    ),
    (
        "a Gibbs pull-back by constraints",
        lambda: Argmax(Facets(ordered, (4,)), SPIGOTEG()),
        r"Facets\(ordered(.|\n)*Gibbs\(\)(.|\n)*facts: constraints(.|\n)*vertices",
    ),
    (
        "a Gibbs start by an oracle",
        lambda: Argmax(Oracle(one_per_row, (2, 3)), SPIGOTCE()),
        r"Oracle(.|\n)*Gibbs\(\)(.|\n)*facts: argmax(.|\n)*vertices",
    ),
    (
        "entropy of negative parts",
        lambda: Relaxed(Facets(diamond, (3,)), Shannon()),
        r"Facets\(diamond(.|\n)*Shannon\(\)(.|\n)*part \(0,\) ranges over \[-1, 1\]",
    ),
    (
        "binary entropies above one",
        lambda: Relaxed(Facets(box_to_two, (3,)), FermiDirac()),
        r"Facets\(box_to_two(.|\n)*FermiDirac\(\)(.|\n)*part \(0,\) ranges over \[0, 2\]",
    ),
    (
        "a geometry outside its domain",
        lambda: Argmax(Facets(diamond, (3,)), PullBack(geometry=Tsallis(1.5))),
        r"Facets\(diamond(.|\n)*Tsallis\(alpha=1.5\)(.|\n)*\[-1, 1\]",
    ),
    (
        "a convex function by an oracle",
        lambda: Relaxed(Oracle(one_per_row, (2, 3)), Convex(cp.sum_squares)),
        r"Oracle(.|\n)*Convex\((.|\n)*facts: argmax(.|\n)*constraints",
    ),
    (
        "a solver without its fact",
        lambda: Relaxed(Oracle(one_per_row, (2, 3)), Euclidean(), solver=Clarabel()),
        r"Oracle(.|\n)*Euclidean\(\)(.|\n)*needs constraints(.|\n)*facts: argmax",
    ),
    (
        "a solver of another problem",
        lambda: Relaxed(Subset(4, 2), Shannon(), solver=ActiveSet()),
        r"Subset(.|\n)*Shannon\(\)(.|\n)*active set(.|\n)*does not solve",
    ),
    (
        "a MAP solver without its fact",
        lambda: Argmax(Hull(POINTS), SPIGOT(), solver=Highs()),
        r"Hull(.|\n)*MAP(.|\n)*needs constraints(.|\n)*facts: vertices",
    ),
    (
        "a pull-back's solver without its fact",
        lambda: Argmax(Hull(POINTS), SPIGOT(solver=Clarabel())),
        r"Hull(.|\n)*Euclidean\(\)(.|\n)*needs constraints(.|\n)*facts: vertices",
    ),
]


@pytest.mark.parametrize(
    ("make", "match"),
    [(make, match) for _, make, match in UNSUPPORTED],
    ids=[label for label, _, _ in UNSUPPORTED],
)
def test_unsupported_problems_are_refused_when_made(make: Callable[[], object], match: str) -> None:
    with pytest.raises(UnsupportedProblem, match=match) as caught:
        make()
    assert len(str(caught.value).splitlines()) >= 3  # what, which facts, and a way out


def test_log_of_the_number_of_structures() -> None:
    close(Subset(6, 3).log_partition(torch.zeros(6)).double(), torch.tensor(20.0).double().log(), 1e-6)
    assert math.isclose(float(Hypercube(5).entropy(torch.zeros(5))), 5 * math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize("polytope", [Simplex(5), Subset(5, 2)], ids=str)
@pytest.mark.parametrize("omega", [Euclidean(), Gibbs(), Shannon(), Tsallis(1.5)], ids=str)
def test_a_value_is_the_users_to_write_into(polytope: Polytope, omega: Regularizer) -> None:
    """What the backward needs is held apart from what the layer returned."""
    layer = Relaxed(polytope, omega)
    generator = torch.Generator().manual_seed(0)
    scores, g = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    ways: list[Callable[[Tensor], Tensor]] = [lambda y: 2 * y, lambda y: y.mul_(2), _behind_autograd]
    grads: list[Tensor] = []
    for way in ways:
        leaf = scores.clone().requires_grad_()
        (way(layer(leaf)) * g).sum().backward()
        assert leaf.grad is not None
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])
    torch.testing.assert_close(grads[2], grads[0])


def _behind_autograd(y: Tensor) -> Tensor:
    y.detach().mul_(5)
    return 2 * y
