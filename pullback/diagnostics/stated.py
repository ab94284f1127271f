r"""What a surrogate gradient is held against: the exact gradient of a stated objective.

ExpectedLoss           E over z ~ exp<s, z> of l(z)
PerturbedExpectedLoss  E over noise e of l(MAP(s + e))
RelaxedLoss            l(maximize(M, s, Omega))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from spigot.polytopes import Gibbs, Regularizer, UnsupportedProblem, implicit
from spigot.polytopes.arrays import distinct
from spigot.polytopes.dispatch import choose
from spigot.polytopes.problem import Problem
from spigot.polytopes.settings import counts
from spigot.pullback.diagnostics.bench import Bench
from spigot.pullback.noise import Gumbel, Noise
from spigot.pullback.roads import road
from spigot.pullback.slope import column, lengths

__all__ = ["Exact", "ExpectedLoss", "PerturbedExpectedLoss", "RelaxedLoss", "Stated"]

GIBBS, GUMBEL = Gibbs(), Gumbel()
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Exact:
    """The gradient of each instance's objective by its own scores, in float64.

    Attributes:
        gradient: `(n, *event)`; exactly 0 where only rounding is left of it.
        error: its standard error, `(n,)`: the length of the error vector to be expected.
        here: the objective, `(n,)`.
        value: the objective at other scores, `(n, *event)` -> `(n,)`.
        how: in words.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback.diagnostics import ExpectedLoss
        >>> from spigot.pullback.diagnostics.bench import Bench
        >>> bench = Bench.of(Simplex(2), torch.zeros(2), lambda mu: mu[..., 0])
        >>> exact = ExpectedLoss().exact(bench)
        >>> exact.gradient, exact.how
        (tensor([[ 0.2500, -0.2500]], dtype=torch.float64), 'the list of all 2 structures')
    """

    gradient: Tensor
    error: Tensor
    here: Tensor
    value: Callable[[Tensor], Tensor]
    how: str


class Stated:
    """An objective whose gradient can be had exactly, or to a known error.

    Example:
        >>> from spigot.pullback.diagnostics import ExpectedLoss, Stated
        >>> isinstance(ExpectedLoss(), Stated), ExpectedLoss().words
        (True, 'E l(z) under p(z) ~ exp<s, z>')
    """

    words: ClassVar[str] = ""
    """What it is, for captions."""

    def exact(self, bench: Bench) -> Exact:
        """Its gradient on one problem.

        Raises:
            UnsupportedProblem: the polytope cannot do what this needs.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ExpectedLoss(Stated):
    """E over z ~ exp<s, z> of l(z), with gradient sum over z of p(z) (l(z) - E l) (z - E z).

    Where every instance has at most `limit` structures they are listed and summed over. Elsewhere the
    gradient is a mean over exact samples, the mean loss of the other samples taken off each one's:
    unbiased, with its standard error. The loss is evaluated once a structure, or once a sample.

    Args:
        limit: how many structures are listed at most.
        samples: how many are drawn where there are more; at least 2.

    Raises:
        ValueError: samples below 2.
        TypeError: samples that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STEMarginals
        >>> from spigot.pullback.diagnostics import ExpectedLoss, compare
        >>> def loss(mu):
        ...     return mu.square().sum(-1)
        >>> ways, stated = {"STE": STEMarginals()}, ExpectedLoss()
        >>> found = compare(Simplex(3), torch.tensor([1.0, 0.0, 0.0]), loss, ways, objective=stated)
        >>> found.row("STE").norm  # all vertices have the same loss: there is nothing to gain
        nan

    References:
        Williams, "Simple statistical gradient-following algorithms" (Machine Learning 1992), for the
        score function; Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for
        free!" (ICLR workshop 2019), for the baseline.
    """

    limit: int = 2000
    samples: int = 2000

    words: ClassVar[str] = "E l(z) under p(z) ~ exp<s, z>"

    def __post_init__(self) -> None:
        counts(self, 2, samples=self.samples)

    def exact(self, bench: Bench) -> Exact:
        """By the list of structures where it is short, else by samples."""
        problem = _double(bench.problem).asking(GIBBS)
        counts = _how_many(problem)
        if bool((counts <= self.limit).all()):
            try:
                return _listed(bench, *_structures(problem, counts.round().long()))
            except UnsupportedProblem:  # no road lists the best ones
                pass
        return _sampled(bench, problem, self.samples)


@dataclass(frozen=True)
class PerturbedExpectedLoss(Stated):
    """E over noise e of l(MAP(s + e)): the objective of perturb-and-MAP.

    Its gradient is E l(MAP(s + e)) score(e), with score minus the gradient of the noise's log-density.

    Args:
        noise: e, of a density with a score in closed form.
        samples: how many draws the mean is over; at least 2.

    Raises:
        ValueError: samples below 2.
        TypeError: samples that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import GumbelSTE
        >>> from spigot.pullback.diagnostics import PerturbedExpectedLoss, compare
        >>> scores, costs = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.0, 0.0])
        >>> ways, stated = {"Gumbel": GumbelSTE()}, PerturbedExpectedLoss(samples=10000)
        >>> rng = torch.Generator().manual_seed(0)
        >>> found = compare(
        ...     Simplex(3), scores, lambda mu: mu @ costs, ways, objective=stated, generator=rng
        ... )
        >>> found.row("Gumbel").cosine > 0.99
        True

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, "Learning with differentiable perturbed
        optimizers" (NeurIPS 2020), proposition 3.1.
    """

    noise: Noise = GUMBEL
    samples: int = 2000

    words: ClassVar[str] = "E l(MAP(s + e)) over the noise e"

    def __post_init__(self) -> None:
        counts(self, 2, samples=self.samples)

    def exact(self, bench: Bench) -> Exact:
        """By many draws."""
        problem = _double(bench.problem)
        draws = self.noise.draw((self.samples, *problem.scores.shape), problem.scores)
        scores = self.noise.score(draws)
        if problem.mask is not None:
            draws, scores = (torch.where(problem.mask, each, 0.0) for each in (draws, scores))

        rows = torch.arange(problem.size, device=draws.device).repeat(self.samples)
        repeated, way = problem.take(rows), road(problem.polytope, None)

        def losses(at: Tensor) -> Tensor:
            structures = way.solve(repeated.linear((at + draws).flatten(0, 1))).value
            return bench.losses(structures.reshape(draws.shape))

        drawn = losses(problem.scores)
        gradient, error = _mean_of(_centred(drawn), scores)
        gradient = _without_rounding(gradient, drawn)
        return Exact(
            gradient, error, drawn.mean(0), lambda at: losses(at).mean(0), f"{self.samples} draws"
        )


@dataclass(frozen=True)
class RelaxedLoss(Stated):
    """l(maximize(M, s, Omega)): the loss at the relaxation, which must be defined inside M.

    Args:
        regularizer: Omega; with Gibbs() this is l(E z) where ExpectedLoss is E l(z).

    Example:
        >>> import torch
        >>> from spigot.polytopes import Gibbs, Simplex
        >>> from spigot.pullback import RelaxedBackward
        >>> from spigot.pullback.diagnostics import RelaxedLoss, compare
        >>> def loss(mu):
        ...     return mu.square().sum(-1)
        >>> ways, stated = {"marginals": RelaxedBackward(forward=Gibbs())}, RelaxedLoss()
        >>> found = compare(Simplex(3), torch.tensor([1.0, 0.0, 0.0]), loss, ways, objective=stated)
        >>> round(found.row("marginals").bias, 6)
        0.0
    """

    regularizer: Regularizer = GIBBS

    words: ClassVar[str] = "l at the relaxation"

    def exact(self, bench: Bench) -> Exact:
        """By the relaxation's own Jacobian."""
        problem = _double(bench.problem).asking(self.regularizer)
        way = road(problem.polytope, self.regularizer)

        def value(at: Tensor) -> Tensor:
            return bench.loss(implicit.maximize(problem.with_scores(at), way)).double()

        with torch.enable_grad():
            scores = problem.scores.detach().requires_grad_()
            found = value(scores)
            gradient = bench.pulled(found, scores)
        here = found.detach()
        gradient = _without_rounding(gradient, here[None])
        return Exact(
            gradient, torch.zeros_like(here), here, lambda at: value(at).detach(), "its Jacobian"
        )


def _double(problem: Problem) -> Problem:
    return problem.with_scores(problem.scores.double())


def _how_many(problem: Problem) -> Tensor:  # (n,)
    """The number of each instance's structures: their sum of exp<0, z>."""
    flat = problem.with_scores(torch.zeros_like(problem.scores))
    objective = choose(problem.polytope, GIBBS).solve(flat).objective
    assert objective is not None
    return objective.exp()


def _structures(problem: Problem, counts: Tensor) -> tuple[Tensor, Tensor]:  # (m, n, *event), (m, n)
    """All structures an instance, and which of the m are its own: the others repeat its best."""
    way, most = choose(problem.polytope, GIBBS), int(counts.max())
    found = problem.scores.new_zeros(most, *problem.scores.shape)
    sizes, which = distinct(counts)
    for index, size in enumerate(sizes):
        rows = (which == index).nonzero().flatten()
        best = way.top_k(problem.take(rows), int(size)).to(found)
        found[:, rows] = torch.cat([best, best[:1].expand(most - len(best), *best.shape[1:])])
    return found, torch.arange(most, device=counts.device)[:, None] < counts


def _listed(bench: Bench, structures: Tensor, own: Tensor) -> Exact:
    """The sum over a list of structures."""
    losses = bench.losses(structures).to(structures)

    def chances(at: Tensor) -> Tensor:  # (m, n)
        return _energies(structures, at).masked_fill(~own, -torch.inf).softmax(0)

    def value(at: Tensor) -> Tensor:
        return (chances(at) * losses).sum(0)

    scores = bench.problem.scores.double()
    p, here = chances(scores), value(scores)
    mean = (_rows(p, structures) * structures).sum(0)
    gradient = (_rows(p * (losses - here), structures) * (structures - mean)).sum(0)
    gradient = _without_rounding(gradient, losses)
    how = f"the list of all {len(structures)} structures"
    return Exact(gradient, torch.zeros_like(here), here, value, how)


def _sampled(bench: Bench, problem: Problem, samples: int) -> Exact:
    """The mean over exact samples; elsewhere the same samples by their weights exp<s' - s, z>."""
    way = choose(problem.polytope, GIBBS)
    structures = way.sample(problem, samples, None).to(problem.scores)
    losses = bench.losses(structures).to(structures)
    mean = way.solve(problem).value.to(structures)
    gradient, error = _mean_of(_centred(losses), structures - mean)

    def value(at: Tensor) -> Tensor:
        return (_energies(structures, at - problem.scores).softmax(0) * losses).sum(0)

    gradient = _without_rounding(gradient, losses)
    return Exact(gradient, error, value(problem.scores), value, f"{samples} samples")


def _centred(losses: Tensor) -> Tensor:  # (m, n)
    """Each loss less the mean of the others'."""
    return (losses - losses.mean(0)) * (len(losses) / (len(losses) - 1))


def _mean_of(weights: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:  # (n, *event), (n,)
    """The mean of weights `(m, n)` times directions `(m, n, *event)`, and its standard error."""
    terms = _rows(weights, directions) * directions
    return terms.mean(0), (terms.var(0).flatten(1).sum(1) / len(terms)).sqrt()


def _rows(values: Tensor, like: Tensor) -> Tensor:  # (m, n) -> (m, n, 1, ...)
    return values.reshape(*values.shape, *[1] * (like.dim() - 2))


def _energies(structures: Tensor, scores: Tensor) -> Tensor:  # (m, n)
    return (structures * scores).flatten(2).sum(2)


def _without_rounding(gradient: Tensor, losses: Tensor) -> Tensor:
    """Exactly 0 in instances where the gradient is no larger than the losses' rounding."""
    live = lengths(gradient) > ROUNDING * losses.abs().amax(0)
    return gradient.masked_fill(~column(live, gradient), 0.0)
