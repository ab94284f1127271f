"""Rows that are no mirror steps, noise, step sizes, and several latent structures, by plain loops."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from spigot.layers import Argmax, Relaxed
from spigot.polytopes import (
    Arborescence,
    Euclidean,
    Gibbs,
    IntegerHull,
    Matching,
    Oracle,
    Polytope,
    Sequence,
    Shannon,
    Simplex,
    Subset,
    UnsupportedProblem,
)
from spigot.pullback import (
    IMLE,
    SPIGOT,
    SPIGOTCE,
    SPIGOTEG,
    Adaptive,
    BlackBox,
    Estimator,
    FrankWolfePullBack,
    Gumbel,
    GumbelSTE,
    Identity,
    LineSearch,
    Noise,
    Normal,
    PullBack,
    RelaxedBackward,
    SPIGOTSparseMAP,
    STEIdentity,
    STEMarginals,
    STESoftmax,
    SumOfGamma,
)
from tests.references import Reference, sparsemax
from tests.tensors import near as close
from tests.tensors import normal, one_hot, pulled

# --- the formulas, on the simplex and on trees ----------------------------------------------------


def _identity(s: Tensor, g: Tensor) -> Tensor:
    """The Jacobian of the standardised scores, by autograd."""
    leaf = s.clone().requires_grad_()
    centred = leaf - leaf.mean(-1, keepdim=True)
    (centred / centred.norm(dim=-1, keepdim=True)).backward(g)
    assert leaf.grad is not None
    return leaf.grad


def _softmax(s: Tensor, g: Tensor, temperature: float = 1.0) -> Tensor:
    """The whole Jacobian of the softmax, written out."""
    p = (s / temperature).softmax(-1)
    jacobian = torch.diag_embed(p) - p[..., None] * p[..., None, :]
    return (jacobian @ g[..., None])[..., 0] / temperature


def _frank_wolfe(s: Tensor, g: Tensor, eta: float) -> Tensor:
    z, v = one_hot(s), one_hot(-g)
    fall, length = (g * (z - v)).sum(-1), ((z - v) ** 2).sum(-1)
    gamma = torch.where(fall == 0, 0.0, (eta * fall / length).clamp(0, 1))
    return gamma[..., None] * (z - v)


Formula = Callable[[Tensor, Tensor], Tensor]
FORMULAS: dict[str, tuple[Estimator, Formula]] = {
    "BlackBox": (BlackBox(0.8), lambda s, g: one_hot(s) - one_hot(s - 0.8 * g)),
    "FrankWolfe": (FrankWolfePullBack(0.3), lambda s, g: _frank_wolfe(s, g, 0.3)),
    "FrankWolfe, far": (FrankWolfePullBack(30.0), lambda s, g: _frank_wolfe(s, g, 30.0)),
    "STESoftmax": (STESoftmax(), _softmax),
    "STEMarginals": (STEMarginals(temperature=0.5), lambda s, g: _softmax(s, g, 0.5)),
    "Identity": (Identity(), _identity),
    "Identity, centred": (Identity(normalize=False), lambda _, g: g - g.mean(-1, keepdim=True)),
    "Identity, plain": (Identity(center=False, normalize=False), lambda _, g: g),
}


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("estimator", "formula"), FORMULAS.values(), ids=FORMULAS.keys())
def test_rows_on_the_simplex_are_their_formulas(
    estimator: Estimator, formula: Formula, count: int
) -> None:
    scores, g = normal(count, 6), normal(count, 6, seed=1)
    value, grad = pulled(Argmax(Simplex(6), estimator), scores, g / count)
    close(grad, formula(scores, g) / count, 1e-10)
    close(value, one_hot(scores), 0.0)


def test_enough_frank_wolfe_iterates_are_spigot() -> None:
    scores, g = normal(6, 8), normal(6, 8, seed=1)
    spigot = pulled(Argmax(Subset(8, 3), SPIGOT(0.4)), scores, g)[1]
    errors: list[float] = []
    for inner in (1, 10, 1000):
        grad = pulled(Argmax(Subset(8, 3), FrankWolfePullBack(0.4, inner=inner)), scores, g)[1]
        errors.append((grad - spigot).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 2e-3


def test_frank_wolfe_needs_an_oracle_alone() -> None:
    def oracle(scores: Any) -> Any:
        return (scores.argsort().argsort() >= len(scores) - 2).astype(float)

    scores, g = normal(3, 5), normal(3, 5, seed=1)
    plain = pulled(Argmax(Oracle(oracle, (5,)), FrankWolfePullBack(0.5)), scores, g)[1]
    close(plain, pulled(Argmax(Subset(5, 2), FrankWolfePullBack(0.5)), scores, g)[1], 1e-12)


def _trees(n: int) -> tuple[Arborescence, Reference]:
    polytope = Arborescence(n)
    return polytope, Reference(polytope.constraints, (n, n))


@pytest.mark.parametrize("eta", [0.3, 2.0])
def test_rows_on_trees_against_cvxpy(eta: float) -> None:
    polytope, project = _trees(4)
    scores, g = normal(3, 4, 4), normal(3, 4, 4, seed=1)
    z, p = polytope.maximize(scores), polytope.marginals(scores)
    y = project.batch(scores, 2)
    expected = {
        STEIdentity: eta * g,
        SPIGOT: z - project.batch(z - eta * g, 2),
        SPIGOTCE: p - project.batch(p - eta * g, 2),
        SPIGOTEG: p - polytope.marginals(scores - eta * g),
        SPIGOTSparseMAP: y - project.batch(y - eta * g, 2),
        BlackBox: z - polytope.maximize(scores - eta * g),
    }
    for make, wanted in expected.items():
        value, grad = pulled(Argmax(polytope, make(eta, reduction="sum")), scores, g)
        close(grad, wanted)
        close(value, z, 0.0)


def test_marginals_backward_on_trees_is_the_covariance() -> None:
    """By enumeration: Cov(z) g over all trees of three words."""
    polytope = Arborescence(3)
    scores, g = normal(3, 3), normal(3, 3, seed=1)
    trees = polytope.top_k(scores, 16).flatten(1)
    weights = (trees @ scores.flatten()).softmax(0)
    mean = weights @ trees
    covariance = ((trees - mean).T * weights) @ (trees - mean)
    grad = pulled(Argmax(polytope, STEMarginals()), scores, g)[1]
    close(grad.flatten(), covariance @ g.flatten(), 1e-10)


def test_any_relaxation_can_be_the_backward() -> None:
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    leaf = scores.clone().requires_grad_()
    Relaxed(Subset(6, 2), Euclidean())(leaf).backward(g)
    assert leaf.grad is not None
    layer = Argmax(Subset(6, 2), RelaxedBackward(relaxation=Euclidean()))
    close(pulled(layer, scores, g)[1], leaf.grad, 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", 7.0])
@pytest.mark.parametrize("make", [RelaxedBackward, Identity])
def test_estimators_that_are_linear_do_not_see_the_reduction(make: Any, reduction: Any) -> None:
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    plain = pulled(Argmax(Simplex(6), make()), scores, g)[1]
    close(pulled(Argmax(Simplex(6), make(reduction=reduction)), scores, g)[1], plain, 1e-12)


def test_identity_where_the_scores_are_equal_passes_the_gradient() -> None:
    g = normal(2, 5, seed=1)
    grad = pulled(Argmax(Subset(5, 2), Identity(reduction="sum")), torch.zeros(2, 5).double(), g)[1]
    close(grad, g - g.mean(-1, keepdim=True), 1e-12)


def test_identity_counts_the_parts_that_can_be_used() -> None:
    scores, g = normal(2, 6), normal(2, 6, seed=1)
    keep = torch.tensor([True, True, False, True, True, False]).expand(2, 6)
    grad = pulled(Argmax(Subset(6, 2), Identity()), scores, g, keep=keep)[1]
    close(grad[:, keep[0]], _identity(scores[:, keep[0]], g[:, keep[0]]), 1e-12)
    assert bool((grad[~keep] == 0).all())


# --- every estimator on every kind of polytope: the cells that are left ---------------------------

POLYTOPES: list[Polytope] = [
    Simplex(5),
    Subset(5, 2),
    Matching(3, 3),
    Arborescence(3),
    Sequence(3, 2),
]
ROWS: dict[str, Callable[..., Estimator]] = {
    "STEIdentity": STEIdentity,
    "SPIGOT": SPIGOT,
    "SPIGOTCE": SPIGOTCE,
    "SPIGOTCE of marginals": lambda **given: SPIGOTCE(forward=Gibbs(), **given),
    "SPIGOTEG": SPIGOTEG,
    "SPIGOTEG of marginals": lambda **given: SPIGOTEG(forward=Gibbs(), **given),
    "SPIGOTSparseMAP": SPIGOTSparseMAP,
    "FrankWolfePullBack": FrankWolfePullBack,
    "BlackBox": BlackBox,
    "IMLE": IMLE,
    "STEMarginals": lambda **given: RelaxedBackward(**given),
    "GumbelSTE": lambda **given: RelaxedBackward(noise=Gumbel(), **given),
    "Identity": lambda **given: Identity(**given),
    "SPIGOT of noisy scores": lambda **given: PullBack(noise=Normal(), samples=2, **given),
}
every_row = pytest.mark.parametrize("make", ROWS.values(), ids=ROWS.keys())


@pytest.mark.parametrize("polytope", POLYTOPES, ids=str)
@every_row
def test_every_row_on_every_structure(make: Callable[..., Estimator], polytope: Polytope) -> None:
    event = polytope.event_shape
    scores, g = normal(2, 3, *event), normal(2, 3, *event, seed=1)
    layer = Argmax(polytope, make())
    value, grad = pulled(layer, scores, g, generator=torch.Generator().manual_seed(0))
    again = pulled(layer, scores, g, generator=torch.Generator().manual_seed(0))
    assert bool(polytope.contains(value).all())
    assert bool(grad.isfinite().all())
    close(again[0], value, 0.0)
    close(again[1], grad, 0.0)
    if "marginals" not in repr(layer) and layer.pullback.forward is None:
        assert bool(((value == 0) | (value == 1)).all())
    silent = pulled(layer, scores, torch.zeros_like(g))[1]
    assert bool((silent == 0).all())


@every_row
def test_every_row_keeps_masks_dtypes_and_neighbours(make: Callable[..., Estimator]) -> None:
    polytope = Subset(6, 2)
    layer = Argmax(polytope, make())
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    keep = torch.rand(4, 6, generator=torch.Generator().manual_seed(3)) < 0.7
    keep[:, :3] = True
    value, grad = pulled(layer, scores, g, keep=keep)
    assert bool((value[~keep] == 0).all())
    assert bool((grad[~keep] == 0).all())
    lengths = torch.tensor([6, 3, 4, 5])
    value, grad = pulled(layer, scores, g, lengths=lengths)
    padding = torch.arange(6) >= lengths[:, None]
    assert bool((value[padding] == 0).all())
    assert bool((grad[padding] == 0).all())
    for dtype in (torch.float32, torch.bfloat16):
        value, grad = pulled(layer, scores.to(dtype), g.to(dtype))
        assert (value.dtype, grad.dtype) == (dtype, dtype)
    spoilt = g.clone()
    spoilt[1, 2] = torch.nan
    grad = pulled(layer, scores, spoilt)[1]
    assert bool(grad[1].isnan().all())
    assert bool(grad[[0, 2, 3]].isfinite().all())
    empty = pulled(layer, scores[:0], g[:0])
    assert empty[1].shape == (0, 6)


@every_row
def test_every_row_prints_copies_and_pickles(make: Callable[..., Estimator]) -> None:
    layer = Argmax(Subset(6, 2), make())
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    grad = pulled(layer, scores, g, generator=torch.Generator().manual_seed(5))[1]
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), eval(repr(layer))):
        assert repr(twin) == repr(layer)
        again = pulled(twin, scores, g, generator=torch.Generator().manual_seed(5))[1]
        close(again, grad, 0.0)


@every_row
def test_in_eval_mode_there_is_no_noise(make: Callable[..., Estimator]) -> None:
    polytope = Subset(6, 2)
    layer = Argmax(polytope, make()).eval()
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    first, second = (pulled(layer, scores, g) for _ in range(2))
    close(first[0], second[0], 0.0)
    close(first[1], second[1], 0.0)
    close(first[0], polytope.maximize(scores, layer.pullback.forward), 0.0)


PRINTED = {
    "BlackBox(step_size=2.0)": BlackBox(2.0),
    "FrankWolfePullBack(step_size=1.0)": FrankWolfePullBack(),
    "FrankWolfePullBack(inner=4, step_size=1.0, reduction='sum')": FrankWolfePullBack(
        inner=4, reduction="sum"
    ),
    "IMLE(step_size=1.0)": IMLE(),
    "IMLE(step_size=1.0, noise=Normal(scale=2.0), samples=3)": IMLE(noise=Normal(2.0), samples=3),
    "STEMarginals()": STEMarginals(),
    "STESoftmax(temperature=2.0)": STESoftmax(temperature=2.0),
    "GumbelSTE(samples=2)": GumbelSTE(samples=2),
    "Identity(center=False)": Identity(center=False),
    "RelaxedBackward(relaxation=Shannon())": RelaxedBackward(relaxation=Shannon()),
    "PullBack(geometry=None, step_size=1.0, noise=Gumbel(scale=1.0))": PullBack(
        geometry=None, noise=Gumbel()
    ),
    "SPIGOT(step_size=LineSearch(initial=1.0, shrink=0.5, sufficient=0.0001, tries=10))": SPIGOT(
        LineSearch()
    ),
}


@pytest.mark.parametrize(("text", "estimator"), PRINTED.items(), ids=PRINTED.keys())
def test_an_estimator_prints_as_its_call(text: str, estimator: Estimator) -> None:
    assert repr(estimator) == text
    assert eval(text) == estimator
    assert hash(eval(text)) == hash(estimator)


# --- what cannot be had is refused when the layer is made ------------------------------------------


def _hull() -> Polytope:
    def constraints(y: Any) -> list[Any]:
        return [y >= 0, y <= 1, sum(2 * y[i] for i in range(4)) <= 5]

    return IntegerHull(constraints, (4,))


@pytest.mark.parametrize("estimator", [STEMarginals(), SPIGOTEG(), SPIGOTCE(), GumbelSTE()], ids=repr)
def test_what_a_polytope_cannot_do_is_refused(estimator: Estimator) -> None:
    with pytest.raises(UnsupportedProblem, match=r"Gibbs\(\).*no road(.|\n)*vertices"):
        Argmax(_hull(), estimator)


@pytest.mark.parametrize(
    "estimator",
    [STEIdentity(), SPIGOT(), SPIGOTSparseMAP(), BlackBox(), IMLE(), FrankWolfePullBack(), Identity()],
    ids=repr,
)
def test_what_an_oracle_can_do_is_done(estimator: Estimator) -> None:
    polytope = _hull()
    value, grad = pulled(Argmax(polytope, estimator), normal(2, 4), normal(2, 4, seed=1))
    assert bool(polytope.contains(value).all())
    assert bool(grad.isfinite().all())


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="samples=3 without noise"):
        PullBack(samples=3)
    with pytest.raises(ValueError, match="samples"):
        IMLE(samples=0)
    with pytest.raises(ValueError, match="inner"):
        FrankWolfePullBack(inner=0)
    with pytest.raises(ValueError, match="temperature"):
        STEMarginals(temperature=0.0)
    with pytest.raises(ValueError, match="scale"):
        Gumbel(scale=-1.0)
    with pytest.raises(ValueError, match="SumOfGamma: k must be at least 1, got 0"):
        SumOfGamma(k=0)
    of_another_type: list[tuple[Any, dict[str, Any]]] = [
        (SumOfGamma, {"k": 2.5}),
        (LineSearch, {"tries": 2.5}),
        (GumbelSTE, {"samples": 1.5}),
        (STEMarginals, {"temperature": "warm"}),
        (Gumbel, {"scale": "wide"}),
        (PullBack, {"geometry": "euclidean"}),
    ]
    for made, settings in of_another_type:
        with pytest.raises(TypeError, match="must be a"):
            made(**settings)
    with pytest.raises(TypeError, match=r"step_size.*'small'"):
        SPIGOT("small")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"estimator.*SPIGOT\(step_size=1.0\)"):
        Argmax(Simplex(3), Euclidean())  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedProblem, match=r"part \(0, 0\) ranges over|domain"):
        Argmax(_signed(), PullBack(start=Shannon(), geometry=Shannon(), loss=Shannon()))


def _signed() -> Polytope:
    from spigot.polytopes import Hull

    return Hull(torch.tensor([[1.0, -1.0], [0.0, 1.0]]))


# --- noise -----------------------------------------------------------------------------------------


def test_imle_is_its_formula_with_the_same_noise_in_both() -> None:
    polytope, eta = Subset(6, 2), 0.7
    scores, g = normal(3, 6), normal(3, 6, seed=1)
    noise = Gumbel().draw((4, 3, 6), scores, torch.Generator().manual_seed(9))
    value, grad = pulled(
        Argmax(polytope, IMLE(eta, samples=4, reduction="sum")),
        scores,
        g,
        generator=torch.Generator().manual_seed(9),
    )
    noisy = scores + noise
    differences = polytope.maximize(noisy) - polytope.maximize(noisy - eta * g)
    close(grad, differences.mean(0), 1e-12)
    close(value, polytope.maximize(noisy[0]), 0.0)


def test_gumbel_straight_through_is_its_formula() -> None:
    scores, g = normal(3, 6), normal(3, 6, seed=1)
    noisy = scores + Gumbel().draw((1, 3, 6), scores, torch.Generator().manual_seed(9))[0]
    layer = Argmax(Simplex(6), GumbelSTE(temperature=0.5))
    value, grad = pulled(layer, scores, g, generator=torch.Generator().manual_seed(9))
    close(value, one_hot(noisy), 0.0)
    close(grad, _softmax(noisy, g, 0.5), 1e-12)


def test_perturb_and_map_draws_from_the_softmax() -> None:
    scores = torch.tensor([1.0, 0.0, -0.5, 0.3])
    layer = Argmax(Simplex(4), IMLE())
    drawn = layer(scores.expand(20000, 4), generator=torch.Generator().manual_seed(0)).mean(0)
    error = (scores.softmax(0) * (1 - scores.softmax(0)) / 20000).sqrt()
    assert bool(((drawn - scores.softmax(0)).abs() < 5 * error).all())


NOISES: list[Noise] = [Gumbel(), Gumbel(2.0), Normal(), Normal(0.5), SumOfGamma(k=3), SumOfGamma(k=1)]


@pytest.mark.parametrize("noise", NOISES, ids=str)
def test_noise_has_mean_zero_and_its_own_spread(noise: Noise) -> None:
    draws = noise.draw((40000,), torch.empty(0).double(), torch.Generator().manual_seed(0))
    assert abs(draws.mean().item()) < 5 * draws.std().item() / 200
    pi = torch.pi
    spread: dict[type[Noise], float] = {Gumbel: pi / 6**0.5, Normal: 1.0}
    if type(noise) in spread:
        assert draws.std().item() == pytest.approx(noise.scale * spread[type(noise)], rel=0.03)
    else:  # a sum of k draws is nearly a Gumbel one
        assert isinstance(noise, SumOfGamma)
        assert draws.std().item() * noise.k**0.5 == pytest.approx(pi / 6**0.5, rel=0.06)


@pytest.mark.parametrize("noise", [Gumbel(), Gumbel(2.0), Normal(), Normal(0.5)], ids=str)
def test_the_score_of_noise_is_minus_the_slope_of_its_log_density(noise: Noise) -> None:
    points = torch.linspace(-2, 4, 13, dtype=torch.float64).requires_grad_()
    if isinstance(noise, Gumbel):
        euler = 0.5772156649015329
        density: Any = torch.distributions.Gumbel(-euler * noise.scale, noise.scale)
    else:
        density = torch.distributions.Normal(0.0, noise.scale)
    (slope,) = torch.autograd.grad(density.log_prob(points).sum(), points)
    close(noise.score(points.detach()), -slope, 1e-5)


def test_noise_without_a_score_says_so() -> None:
    with pytest.raises(UnsupportedProblem, match=r"SumOfGamma\((.|\n)*Gumbel\(\) or Normal\(\)"):
        SumOfGamma(k=2).score(torch.zeros(3))


# --- step sizes that are found or adapt ------------------------------------------------------------


def _energy(mu: Tensor) -> Tensor:
    return ((mu - torch.tensor([0.1, 0.6, 0.3, 0.0]).to(mu)) ** 2).sum(-1)


def test_line_search_takes_the_largest_step_that_lowers_the_loss() -> None:
    search = LineSearch(initial=8.0, shrink=0.5)
    scores = normal(5, 4)
    leaf = scores.clone().requires_grad_()
    z = Argmax(Simplex(4), SPIGOT(search))(leaf, downstream=_energy)
    _energy(z).mean().backward()
    assert leaf.grad is not None
    start = z.detach()
    g = 2 * (start - torch.tensor([0.1, 0.6, 0.3, 0.0]).double())
    for i in range(5):
        target = start[i]
        for power in range(10):
            eta = 8.0 * 0.5**power
            target = sparsemax((start[i] - eta * g[i])[None])[0]
            slope = 1e-4 * float((g[i] * (target - start[i])).sum())
            if float(_energy(target)) <= float(_energy(start[i])) + slope:
                break
        close(leaf.grad[i], (start[i] - target) / 5, 1e-10)


def test_line_search_counts_what_the_closure_does_not_see() -> None:
    """A linear aside that outweighs the loss turns the step round."""
    aside = torch.tensor([[0.0, -9.0, 0.0, 9.0]]).double()
    leaf = torch.tensor([[0.0, 0.0, 1.0, 0.5]]).double().requires_grad_()
    z = Argmax(Simplex(4), SPIGOT(LineSearch()))(leaf, downstream=_energy)
    (_energy(z).sum() + (aside * z).sum()).backward()
    assert leaf.grad is not None
    target = z.detach() - leaf.grad
    assert target[0].argmax() == 1


def test_line_search_without_a_step_that_will_do_stays() -> None:
    def rising(mu: Tensor) -> Tensor:
        return cast(Any, _Liar).apply(mu)

    leaf = normal(3, 4).requires_grad_()
    z = Argmax(Simplex(4), SPIGOT(LineSearch(tries=3), residual=False))(leaf, downstream=rising)
    z.sum().backward()
    assert leaf.grad is not None
    assert bool((leaf.grad == 0).all())


class _Liar(torch.autograd.Function):
    """-|mu|^2 with the gradient of something else: steps along it from a vertex raise the loss."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor) -> Tensor:
        ctx.save_for_backward(mu)
        return -(mu**2).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (mu,) = ctx.saved_tensors
        return grad[..., None] * mu * torch.tensor([1.0, 2.0, 3.0, 4.0]).double()


def test_line_search_needs_the_loss() -> None:
    with pytest.raises(ValueError, match=r"searches along each step.*downstream"):
        pulled(Argmax(Simplex(4), SPIGOT(LineSearch())), normal(2, 4), normal(2, 4, seed=1))


@pytest.mark.parametrize(
    "wrong",
    [{"initial": 0.0}, {"shrink": 1.0}, {"sufficient": -0.1}, {"tries": 0}],
    ids=str,
)
def test_line_search_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        LineSearch(**wrong)


@pytest.mark.parametrize("per_instance", [False, True])
@pytest.mark.parametrize("initial", [1e-3, 50.0])
def test_an_adaptive_step_finds_the_size_asked_for(initial: float, per_instance: bool) -> None:
    adaptive = Adaptive(target_norm=0.5, initial=initial, rate=0.3, per_instance=per_instance)
    layer = Argmax(Subset(10, 3), IMLE(adaptive, noise=Gumbel(0.5)))
    sizes: list[float] = []
    rng = torch.Generator().manual_seed(0)
    for seed in range(120):
        scores, g = normal(32, 10, seed=seed), normal(32, 10, seed=seed + 999, scale=1e-2)
        grad = pulled(layer, scores, g / 32, generator=rng)[1] * 32
        sizes.append(grad.norm(dim=1).mean().item())
    assert sum(sizes[-40:]) / 40 == pytest.approx(0.5, rel=0.2)
    assert float(adaptive.value) != initial


def test_an_adaptive_step_stands_still_in_eval_mode_and_is_saved() -> None:
    layer = Argmax(Subset(6, 2), SPIGOT(Adaptive(initial=0.2)))
    scores, g = normal(4, 6), normal(4, 6, seed=1)
    layer.eval()
    pulled(layer, scores, g)
    assert float(layer.state_dict()["step_size.value"]) == pytest.approx(0.2)
    layer.train()
    pulled(layer, scores, g)
    moved = float(layer.state_dict()["step_size.value"])
    assert moved != pytest.approx(0.2, rel=1e-3)
    other = Argmax(Subset(6, 2), SPIGOT(Adaptive()))
    other.load_state_dict(layer.state_dict())
    close(pulled(other.eval(), scores, g)[1], pulled(layer.eval(), scores, g)[1], 1e-12)
    twin = copy.deepcopy(layer).train()
    pulled(twin, scores, g)
    assert float(layer.state_dict()["step_size.value"]) == moved
    assert float(twin.state_dict()["step_size.value"]) != moved


def test_an_adaptive_step_in_eval_mode_does_not_mix_instances() -> None:
    for per_instance in (False, True):
        adaptive = Adaptive(initial=0.4, per_instance=per_instance)
        layer = Argmax(Subset(6, 2), SPIGOT(adaptive)).eval()
        scores, g = normal(5, 6), normal(5, 6, seed=1)
        together = pulled(layer, scores, g / 5)[1] * 5
        for i in range(5):
            close(together[i], pulled(layer, scores[i], g[i])[1], 1e-12)
        step = 0.4 * scores.norm(dim=1) / g.norm(dim=1) if per_instance else torch.full((5,), 0.4)
        fixed = Argmax(Subset(6, 2), SPIGOT(step.double()))
        close(together, pulled(fixed, scores, g / 5)[1] * 5, 1e-7)


def test_an_adaptive_step_passes_over_gradients_that_are_not_finite() -> None:
    adaptive = Adaptive(initial=0.2)
    g = torch.full((4, 6), torch.nan).double()
    pulled(Argmax(Subset(6, 2), SPIGOT(adaptive)), normal(4, 6), g)
    assert float(adaptive.value) == pytest.approx(0.2)


def test_a_tensor_step_size_may_be_scheduled_in_place() -> None:
    eta = torch.tensor(0.1, dtype=torch.float64)
    layer = Argmax(Simplex(5), SPIGOT(eta, reduction="sum"))
    scores, g = normal(3, 5), normal(3, 5, seed=1)
    for value in (0.1, 0.5):
        eta.fill_(value)
        z, grad = pulled(layer, scores, g)
        close(grad, z - sparsemax(z - value * g), 1e-12)


# --- several latent structures in one model --------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "start", "advance"),
    [
        (SPIGOT, lambda trees, s: trees.maximize(s), "projection"),
        (SPIGOTCE, lambda trees, s: trees.marginals(s), "projection"),
        (SPIGOTEG, lambda trees, s: trees.marginals(s), "scores"),
    ],
    ids=["SPIGOT", "CE", "EG"],
)
def test_two_latent_trees_three_steps_weights_and_dropout_are_a_plain_loop(
    make: Any, start: Callable[[Arborescence, Tensor], Tensor], advance: str
) -> None:
    """Premise and hypothesis trees, as in the paper's model; the reference knows no layer."""
    count, n, eta, steps = 3, 3, 0.3, 3
    trees, project = _trees(n)
    a, b = normal(count, n, n), normal(count, n, n, seed=1)
    couple, weights = normal(n * n, n * n, seed=2), torch.tensor([1.0, 0.0, 2.5]).double()

    def loss(x: Tensor, y: Tensor) -> Tensor:  # (count,): each instance's own, with dropout
        u, v = nn.functional.dropout(x, 0.3).flatten(1), y.flatten(1)
        return weights * (((u @ couple) * v).sum(1) + (u**3).sum(1) + (v**2).sum(1))

    torch.manual_seed(5)
    one, two = a.clone().requires_grad_(), b.clone().requires_grad_()
    first = Argmax(trees, make(eta, steps=steps))(one, downstream=lambda mu: loss(mu, second))
    state = torch.get_rng_state()
    second = Argmax(trees, make(eta, steps=steps))(two, downstream=lambda mu: loss(first, mu))
    loss(first, second).mean().backward()
    assert one.grad is not None
    assert two.grad is not None

    z, w = trees.maximize(a), trees.maximize(b)

    def slope(of: int, mu: Tensor) -> Tensor:
        leaf = mu.clone().requires_grad_()
        torch.set_rng_state(state)
        value = loss(leaf, w) if of == 0 else loss(z, leaf)
        return torch.autograd.grad(value.sum(), leaf)[0]

    for of, scores, grad in ((0, a, one.grad), (1, b, two.grad)):
        mu = begun = start(trees, scores)
        theta = scores
        for _ in range(steps):
            g = slope(of, mu)
            if advance == "scores":
                theta = theta - eta * g
                mu = trees.marginals(theta)
            else:
                mu = project.batch(mu - eta * g, 2)
        close(grad, (begun - mu) / count)
        assert bool((grad[1] == 0).all())
        assert bool((grad[[0, 2]] != 0).any())


# --- the points of the steps ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        STEIdentity(steps=2),
        SPIGOT(step_size=0.3, steps=3),
        SPIGOTCE(steps=2),
        SPIGOTEG(step_size=0.5),
        SPIGOTSparseMAP(steps=2),
        FrankWolfePullBack(steps=2),
        BlackBox(step_size=3.0),
    ],
    ids=str,
)
def test_the_path_begins_at_the_start_and_the_surrogate_is_what_its_end_says(
    estimator: PullBack,
) -> None:
    subset, scores, wanted = Subset(5, 2), normal(2, 3, 5, seed=3), normal(2, 3, 5, seed=4)
    scores.requires_grad_()
    keep = torch.tensor([True, True, False, True, True])

    def loss(mu: Tensor) -> Tensor:
        return (mu - wanted).square().sum(-1)

    path = estimator.path(subset, scores, loss, keep=keep)
    assert path.shape == (estimator.steps + 1, 2, 3, 5)
    assert not path.requires_grad
    assert torch.equal(path[..., 2], torch.zeros(estimator.steps + 1, 2, 3, dtype=path.dtype))
    close(path[0], subset.maximize(scores.detach(), estimator.start, keep=keep))
    value = Argmax(subset, estimator)(scores, downstream=loss, keep=keep)
    (grad,) = torch.autograd.grad(loss(value).sum() / 6, scores)
    close(6 * grad, subset.maximize(scores.detach(), estimator.loss, keep=keep) - path[-1])
