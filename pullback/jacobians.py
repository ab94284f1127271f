"""Straight-through estimators that differentiate something smooth in the place of MAP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spigot.polytopes import Gibbs, Polytope, Regularizer, implicit
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.settings import POSITIVE
from spigot.pullback.estimator import Estimator
from spigot.pullback.noise import Gumbel, Noise, Normal
from spigot.pullback.reduction import Reduction
from spigot.pullback.roads import Solutions, road
from spigot.pullback.slope import Slope, column, lengths

__all__ = ["GumbelSTE", "Identity", "NoiseInjection", "RelaxedBackward", "STEMarginals", "STESoftmax"]

GIBBS = Gibbs()
NORMAL = Normal()


@dataclass(frozen=True, kw_only=True, repr=False)
class RelaxedBackward(Estimator):
    """MAP in the forward; in the backward the exact Jacobian of a relaxation, J' g.

    The relaxation is maximize(M, s / temperature, Omega). It is linear in g, so it has no step size and
    does not depend on `reduction`. g and J' g are `(*batch, *event)`.

    Args:
        relaxation: Omega; `Gibbs()` unless told.
        temperature: above 0.
        noisy: whether the Jacobian is that at the noisy scores, as for Gumbel straight-through, or at s.
        solver: forces a generic road for the relaxation.
        forward: what the layer returns: None for MAP, or maximize(M, s, forward).
        noise: added to the scores in train mode, in the forward and in the backward alike.
        samples: over how many draws of the noise the backward averages.
        reduction: accepted so that estimators can be exchanged; without effect.
        residual: with `downstream`, whether what the closure does not see counts.
        name: how it prints.

    Raises:
        ValueError: a temperature that is not positive, samples below 1, or several without noise.
        TypeError: a temperature that is no number, samples that are no whole number, or noise that is
            no `Noise`.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Euclidean, Simplex
        >>> from spigot.pullback import RelaxedBackward
        >>> scores = torch.tensor([0.75, 0.25, -2.0], requires_grad=True)
        >>> Argmax(Simplex(3), RelaxedBackward(relaxation=Euclidean()))(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.5000, -0.5000,  0.0000])

    References:
        Mihaylova, Niculae and Martins (2020), section 4.1; Jang, Gu and Poole, "Categorical
        reparameterization with Gumbel-softmax" (ICLR 2017), section 2.2.
    """

    relaxation: Regularizer = GIBBS
    temperature: float = 1.0
    noisy: bool = True
    solver: Solver | None = None

    rows: ClassVar[dict[str, dict[str, Any]]] = {
        "STEMarginals": {"noisy": False},
        "STESoftmax": {},
        "GumbelSTE": {"noise": Gumbel()},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        POSITIVE.check(self, temperature=self.temperature)

    def check(self, polytope: Polytope) -> None:
        """Raises UnsupportedProblem where the polytope cannot do what this needs."""
        super().check(polytope)
        road(polytope, self.relaxation, self.solver)

    def surrogate(self, solutions: Solutions, slope: Slope) -> Tensor:
        """The relaxation's vector-Jacobian product."""
        problem = solutions.problem if self.noisy else slope.problem
        relaxed = problem.with_scores(problem.scores / self.temperature).asking(self.relaxation)
        way = road(problem.polytope, self.relaxation, self.solver)
        g = slope.at(solutions.at(self.forward).value.to(problem.scores))
        return implicit.pull(relaxed, way, way.solve(relaxed), g.to(problem.scores)) / self.temperature


def STEMarginals(
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    noise: Noise | None = None,
) -> RelaxedBackward:
    """MAP in the forward, the whole Jacobian of the marginals in the backward: Cov(z) g.

    With noise the forward is MAP(s + e) in train mode, and the Jacobian still that at s. On the
    hypercube with `Logistic()` this is straight-through of Bernoulli draws h ~ sigmoid(s) with the
    factor sigmoid'(s); `STEIdentity(noise=Logistic())` is the one without.

    Args:
        temperature: what the scores are divided by, above 0.
        reduction: accepted so that estimators can be exchanged; without effect.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road to the marginals.
        noise: added to the scores in train mode; None for none.

    Returns:
        The estimator, from g to Cov(z) g, both `(*batch, *event)`.

    Raises:
        ValueError: a temperature that is not positive.
        TypeError: a temperature that is no number, or noise that is no `Noise`.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Subset
        >>> from spigot.pullback import Logistic, STEMarginals
        >>> scores = torch.zeros(3, requires_grad=True)
        >>> Argmax(Subset(3, 2), STEMarginals())(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.2222, -0.1111, -0.1111])
        >>> STEMarginals(noise=Logistic())
        STEMarginals(noise=Logistic(scale=1.0))

    References:
        Mihaylova, Niculae and Martins (2020), section 4.1; Bengio, Leonard and Courville, "Estimating or
        propagating gradients through stochastic neurons for conditional computation" (2013).
    """
    return RelaxedBackward(
        name="STEMarginals",
        temperature=temperature,
        noisy=False,
        reduction=reduction,
        residual=residual,
        solver=solver,
        noise=noise,
    )


def STESoftmax(
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
) -> RelaxedBackward:
    """`STEMarginals` under its name on the simplex, where the marginals are the softmax.

    Args:
        temperature: what the scores are divided by, above 0.
        reduction: accepted so that estimators can be exchanged; without effect.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road to the marginals.

    Returns:
        The estimator, from g to Cov(z) g, both `(*batch, *event)`.

    Raises:
        ValueError: a temperature that is not positive.
        TypeError: a temperature that is no number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STESoftmax
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> Argmax(Simplex(2), STESoftmax())(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.2500, -0.2500])
    """
    return RelaxedBackward(
        name="STESoftmax",
        temperature=temperature,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def GumbelSTE(
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    noise: Noise | None = None,
    samples: int = 1,
) -> RelaxedBackward:
    """Gumbel straight-through: MAP(s + e), and the Jacobian of the marginals at (s + e) / temperature.

    Args:
        temperature: what the noisy scores are divided by, above 0.
        reduction: accepted so that estimators can be exchanged; without effect.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road to the marginals.
        noise: `Gumbel()` unless told.
        samples: how many draws of it the backward averages over.

    Returns:
        The estimator, from g to the Jacobian's product with it, both `(*batch, *event)`.

    Raises:
        ValueError: a temperature that is not positive, or samples below 1.
        TypeError: a temperature that is no number, samples that are no whole number, or noise that is
            no `Noise`.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import GumbelSTE
        >>> layer, scores = Argmax(Simplex(3), GumbelSTE(temperature=0.5)), torch.zeros(2000, 3)
        >>> layer(scores, generator=torch.Generator().manual_seed(0)).mean(0).round(decimals=1)
        tensor([0.3000, 0.3000, 0.3000])

    References:
        Jang, Gu and Poole (2017), section 2.2.
    """
    return RelaxedBackward(
        name="GumbelSTE",
        temperature=temperature,
        reduction=reduction,
        residual=residual,
        solver=solver,
        noise=Gumbel() if noise is None else noise,
        samples=samples,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class NoiseInjection(Estimator):
    """A smooth structure of noisy scores, y = maximize(M, s + e, Omega), and its own Jacobian: J' g.

    The noise does not depend on s, so this is the unbiased gradient of E[l(y)] (by reparameterisation),
    and the smooth structure what the layer returns. On the hypercube `Gibbs()` gives sigmoid(s + e) for
    each neuron, with logistic noise a relaxed Bernoulli draw (at temperature T: scores s / T and noise
    of scale 1 / T); `Euclidean()` gives clip(s + e, 0, 1), a noisy rectifier with a ceiling, which is
    exactly 0 or 1 for many inputs. y, g and J' g are `(*batch, *event)`.

    Args:
        forward: Omega, of which the layer returns the maximiser; `Gibbs()` unless told.
        noise: `Normal()` unless told. In eval mode there is none.
        samples: over how many draws the backward averages; the value is that of the first, so that
            more than one is no longer its gradient.
        solver: forces a generic road in the backward.
        reduction, residual, name: as for `RelaxedBackward`.

    Raises:
        ValueError: no regularizer, samples below 1, or several without noise.
        TypeError: samples that are no whole number, or noise that is no `Noise`.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Euclidean, Hypercube
        >>> from spigot.pullback import NoiseInjection, Normal
        >>> neurons = Argmax(Hypercube(3), NoiseInjection(forward=Euclidean(), noise=Normal(scale=0.1)))
        >>> scores = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
        >>> h = neurons(scores, generator=torch.Generator().manual_seed(0))
        >>> h.sum().backward()
        >>> scores.grad
        tensor([0., 1., 0.])

    References:
        Bengio, Leonard and Courville, "Estimating or propagating gradients through stochastic neurons
        for conditional computation" (2013), on noisy rectifiers; Maddison, Mnih and Teh, "The concrete
        distribution" (ICLR 2017), on relaxed Bernoulli draws.
    """

    forward: Regularizer | None = GIBBS
    noise: Noise | None = NORMAL
    solver: Solver | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.forward is None:
            raise ValueError(
                "NoiseInjection differentiates what the layer returns, and MAP is constant: give "
                "forward=Gibbs() or forward=Euclidean()."
            )

    def surrogate(self, solutions: Solutions, slope: Slope) -> Tensor:
        """The maximiser's vector-Jacobian product at the noisy scores."""
        relaxed = solutions.problem.asking(self.forward)
        way = road(relaxed.polytope, self.forward, self.solver)
        solution = way.solve(relaxed)
        g = slope.at(solution.value.to(relaxed.scores))
        return implicit.pull(relaxed, way, solution, g.to(relaxed.scores))


@dataclass(frozen=True, kw_only=True, repr=False)
class Identity(Estimator):
    """The gradient passes as if MAP were the identity after a projection of the scores.

    MAP does not change when the scores are scaled, or, where sum(y) is constant over M, moved by a
    constant. P removes what does not matter, P(s) = (s - mean s) / |s - mean s|, and the backward is
    P's Jacobian alone: g less its parts along the constants and along s, over |s - mean s|. It is
    linear in g, so it does not depend on `reduction`. s and g are `(*batch, *event)`.

    Args:
        center: whether P subtracts the mean (over the parts that can be used).
        normalize: whether P divides by the norm; where that is 0 it does not.
        forward, noise, samples, reduction, residual, name: as for `PullBack`.

    Raises:
        ValueError: samples below 1, or several without noise; a reduction that is none.
        TypeError: samples that are no whole number, or noise that is no `Noise`.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import Identity
        >>> scores = torch.tensor([3.0, 1.0, 0.0], requires_grad=True)
        >>> Argmax(Simplex(3), Identity(normalize=False))(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.6667, -0.3333, -0.3333])

    References:
        Sahoo, Paulus, Vlastelica, Musil, Kuleshov and Martius, "Backpropagation through combinatorial
        algorithms: identity with projection works" (ICLR 2023), section 3.3.
    """

    center: bool = True
    normalize: bool = True

    def surrogate(self, solutions: Solutions, slope: Slope) -> Tensor:
        """P's vector-Jacobian product."""
        problem = solutions.problem
        g = slope.at(solutions.at(self.forward).value.to(problem.scores))
        counted = problem.mask
        scores, g = problem.scores, g.to(problem.scores)
        if self.center:
            scores, g = _centred(scores, counted), _centred(g, counted)
        if not self.normalize:
            return g
        norm = column(lengths(scores), scores)
        unit = scores / norm.masked_fill(norm == 0, 1.0)
        along = column((g * unit).flatten(1).sum(1), g)
        return (g - along * unit) / norm.masked_fill(norm == 0, 1.0)


def _centred(values: Tensor, counted: Tensor | None) -> Tensor:
    """Less the mean over the counted parts, and 0 at the others."""
    if counted is None:
        return values - column(values.flatten(1).mean(1), values)
    count = counted.flatten(1).sum(1).clamp_min(1)
    values = torch.where(counted, values, 0.0)
    mean = values.flatten(1).sum(1) / count
    return torch.where(counted, values - column(mean, values), 0.0)
