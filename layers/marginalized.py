"""An expected loss without sampling: the sum over the few structures that have a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spigot.polytopes import Euclidean, Gibbs, Polytope, Regularizer, Simplex, implicit, opaque
from spigot.polytopes.arrays import distinct, rows_where
from spigot.polytopes.base import Checked
from spigot.polytopes.dispatch import Solver, check_types, choose
from spigot.polytopes.errors import unsupported
from spigot.polytopes.posing import detached, pose
from spigot.polytopes.problem import Problem
from spigot.polytopes.regularizers import EuclideanOf, Separable
from spigot.polytopes.solvers import ActiveSet, FrankWolfe
from spigot.polytopes.solvers.active_set import MixtureSolver
from spigot.pullback.objective import Loss, Objective, loss_at
from spigot.pullback.roads import road

__all__ = ["MarginalizedExpectation"]

EUCLIDEAN = Euclidean()
MOST = 10_000  # structures that are listed
LEAST = 1e-12  # a weight below is rounding
RANK = 1e-12  # relative: eigenvalues of a Gram matrix below are 0


class MarginalizedExpectation(Objective):
    r"""sum over i of w_i(s) l(z_i): the expected loss under the mixture of structures that an answer is.

    The answer is y(s) = maximize(M, s, Omega) = sum w_i z_i. No sampling, no bias, and a few calls of
    the loss; the gradient by the scores is that of the weights, the gradient by the loss's own
    parameters exact. Which mixture depends on Omega:

    - on `Simplex` the weights are y itself: sparsemax for `Euclidean()`, entmax for `Tsallis(alpha)`,
      softmax for `Gibbs()`. So only the parts with a weight are looked at.
    - `Gibbs()` sums over all structures, p(z) ~ exp<s, z>, which are listed: at most 10000.
    - `Euclidean()` sums over the support that the active set ends with, of at most dim M + 1
      structures: SparseMAP. `Euclidean(of=T)` and `Tsallis(alpha)` likewise.

    On a support z_1, ..., z_m, the rows of V, the weights solve V'(s - grad Omega(V w)) = tau 1,
    1'w = 1. Hence with C the rows of V less their mean and H = grad^2 Omega(y)

        dw = (C H C')^+ C ds,    and the backward is    C' (C H C')^+ (l(z_1), ..., l(z_m)).

    The supports that the solvers here end with are affinely independent, and their weights unique;
    were they not, the pseudo-inverse would take the smallest change of the weights. But y may be the
    mean of other structures too, where the face that it lies on is no simplex. Unless l is linear the
    value is then that of the support found, and it jumps where another one is found: of supports that
    are as good, rounding may choose.

    Args:
        polytope: M.
        regularizer: Omega.
        solver: what finds the support: `ActiveSet()`, the default where it can be, or
            `FrankWolfe()`. Its budget (`max_steps`) may truncate the answer.

    Raises:
        TypeError: the polytope, the regularizer or the solver is no object of its kind.
        UnsupportedProblem: when the layer is made: no road to a support; a steep regularizer, of which
            every structure has a weight; a solver that finds no support. When called: too many
            structures to list.

    Example:
        >>> import torch
        >>> from spigot.layers import MarginalizedExpectation
        >>> from spigot.polytopes import Simplex
        >>> layer = MarginalizedExpectation(Simplex(4))
        >>> layer
        MarginalizedExpectation(Simplex(d=4), Euclidean())
        >>> scores = torch.tensor([1.0, 0.5, -1.0, -2.0], requires_grad=True)
        >>> costs = torch.tensor([1.0, 3.0, 5.0, 7.0])
        >>> value = layer(scores, lambda z: z @ costs)  # two calls of the loss
        >>> value.detach()
        tensor(1.5000)
        >>> value.backward()
        >>> scores.grad
        tensor([-1.,  1.,  0.,  0.])

    References:
        Correia, Niculae, Aziz and Martins, "Efficient marginalization of discrete and structured latent
        variables via sparsity" (NeurIPS 2020), sections 3 and 4.
        Niculae, Martins, Blondel and Cardie, "SparseMAP" (ICML 2018), section 3.
    """

    def __init__(
        self, polytope: Polytope, regularizer: Regularizer = EUCLIDEAN, *, solver: Solver | None = None
    ) -> None:
        super().__init__()
        self.polytope = polytope
        self.regularizer = regularizer
        self.solver = solver
        self._mixtures = _mixtures(polytope, regularizer, solver)

    def __repr__(self) -> str:
        solver = "" if self.solver is None else f", solver={self.solver}"
        return f"MarginalizedExpectation({self.polytope}, {self.regularizer}{solver})"

    @opaque.uncompiled
    def forward(
        self,
        scores: Tensor,
        loss: Loss,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The expected loss, `(*batch,)`.

        Args:
            scores: `(*batch, *event)`.
            loss: z `(*batch, *event)` -> each instance's own loss `(*batch,)`; called once for each
                structure of the largest support in the batch, the heaviest first. Instances with a
                smaller one see their first structure again, without weight.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names, detached.
            generator: without effect: nothing is random.

        Raises:
            ValueError: bad input as for `Polytope.solve`, or a loss of another shape than the batch's.
            UnsupportedProblem: more structures than can be listed.
            ConvergenceError: a solver did not converge.
        """
        still = {name: values.detach() for name, values in (params or {}).items()}
        problem = pose(self.polytope, scores, self.regularizer, lengths, keep, still)
        mixture = self._mixtures.of(problem) if problem.size else _nothing(problem)
        total, each = problem.scores.new_zeros(()), scores
        for slot in range(mixture.held.shape[1]):
            each = loss_at(loss, mixture.structures[:, slot], scores)
            counted = torch.where(mixture.held[:, slot], each.reshape(problem.size), 0.0)
            total = total + mixture.weights[:, slot] * counted
        return total.reshape(problem.batch_shape).to(each.dtype)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Weights `(n, m)`, differentiable, of structures `(n, m, *event)`; `held`: which slots count."""

    weights: Tensor
    structures: Tensor
    held: Tensor


class _Mixtures(Protocol):
    """Where mixtures come from."""

    def of(self, problem: Problem) -> _Mixture:
        """The mixtures of a batch that is not empty."""
        ...


def _mixtures(polytope: Polytope, regularizer: Regularizer, solver: Solver | None) -> _Mixtures:
    """The kind of mixture, checked.

    Raises:
        TypeError: something is no object of its kind.
        UnsupportedProblem: there is none.
    """
    check_types(polytope, regularizer, solver)
    if solver is None and isinstance(polytope, Simplex):
        road(polytope, regularizer)
        return _Parts(regularizer)
    if isinstance(regularizer, Gibbs):
        road(polytope, regularizer, solver)
        return _Listed()
    if not isinstance(regularizer, EuclideanOf | Separable) or getattr(regularizer, "steep", False):
        raise unsupported(
            polytope,
            regularizer,
            "its answers are no sparse mixtures of structures.",
            "Use Euclidean(), Tsallis(alpha), or Gibbs() to sum over all structures.",
        )
    chosen = _usual(regularizer) if solver is None else solver
    if not isinstance(chosen, MixtureSolver):
        raise unsupported(
            polytope,
            regularizer,
            f"{chosen} finds no support.",
            "Use solver=ActiveSet() or FrankWolfe().",
        )
    if not chosen.needs & polytope.facts:
        raise unsupported(
            polytope,
            regularizer,
            f"a support is found by {' or '.join(sorted(chosen.needs))}.",
            "Declare one of them: Oracle(polytope.maximize, polytope.event_shape, batched=True), say.",
        )
    choose(polytope, regularizer, chosen)
    return _Support(chosen, truncated=solver is not None)


def _usual(regularizer: Regularizer) -> MixtureSolver:
    return ActiveSet() if isinstance(regularizer, Euclidean | EuclideanOf) else FrankWolfe()


@dataclass(frozen=True)
class _Parts:
    """On the simplex: the parts are the structures, and y the weights."""

    regularizer: Regularizer

    def of(self, problem: Problem) -> _Mixture:
        way = road(problem.polytope, self.regularizer)
        y = implicit.maximize(problem, way)
        weights, order = _heaviest_first(y)
        units = torch.eye(y.shape[1], dtype=y.dtype, device=y.device)
        return _filled(weights, units[order])


@dataclass(frozen=True)
class _Listed:
    """All structures, with their Gibbs probabilities."""

    def of(self, problem: Problem) -> _Mixture:
        structures, held = _listed(detached(problem))
        energies = torch.einsum(
            "nd,nmd->nm", problem.flat_scores.double(), structures.double().flatten(2)
        )
        chances = energies.masked_fill(~held, -torch.inf).softmax(1)
        return _Mixture(chances.to(problem.scores), structures, held)


@dataclass(frozen=True)
class _Support:
    """The support that a solver ends with."""

    solver: MixtureSolver
    truncated: bool

    def of(self, problem: Problem) -> _Mixture:
        posed = detached(problem)
        way = Checked(choose(problem.polytope, problem.regularizer, self.solver), self.truncated)
        solution = way.solve(posed)
        assert solution.support is not None and solution.weights is not None
        found = torch.where(solution.weights > LEAST, solution.weights, 0.0)
        weights, order = _heaviest_first(found)
        rows = torch.arange(len(order), device=order.device)[:, None]
        mixture = _filled(weights, solution.support[rows, order])
        moved: Tensor = cast(Any, _Weights).apply(problem.scores, mixture, posed, solution.value)
        return _Mixture(
            moved, mixture.structures.to(problem.scores), mixture.held.to(problem.scores.device)
        )


def _heaviest_first(weights: Tensor) -> tuple[Tensor, Tensor]:  # (n, d) -> (n, m), (n, m)
    """The slots that count, sorted, and where they were."""
    order = weights.detach().sort(dim=1, descending=True, stable=True).indices
    order = order[:, : int((weights > 0).sum(1).max())]
    return weights.gather(1, order), order


def _filled(weights: Tensor, structures: Tensor) -> _Mixture:
    """Slots without weight get the first structure."""
    held = weights.detach() > 0
    shape = (*held.shape, *[1] * (structures.dim() - 2))
    return _Mixture(weights, torch.where(held.reshape(shape), structures, structures[:, :1]), held)


def _nothing(problem: Problem) -> _Mixture:
    """One empty slot for an empty batch."""
    return _Mixture(
        problem.flat_scores.sum(1, keepdim=True),
        problem.scores[:, None].detach(),
        torch.zeros(0, 1, dtype=torch.bool, device=problem.scores.device),
    )


def _listed(problem: Problem) -> tuple[Tensor, Tensor]:  # (n, m, *event), (n, m)
    """Every instance's structures: as many as exp of the log-partition at scores 0 says, by top_k."""
    flat = problem.with_scores(torch.zeros_like(problem.scores, dtype=torch.float64))
    way = choose(problem.polytope, problem.regularizer)
    objective = way.solve(flat).objective
    assert objective is not None
    counts = objective.exp().round()
    if float(counts.max()) > MOST:
        rows = rows_where(counts > MOST)
        count = f"{counts[rows[0]].item():.3g}"
        raise unsupported(
            problem.polytope,
            problem.regularizer,
            problem.describe_wrong(rows, f"has {count} structures, and at most {MOST} are listed"),
            "Use Euclidean(), whose support is sparse, or ScoreFunction, which samples.",
        )
    sizes, which = distinct(counts.long())
    most = int(sizes.max())
    structures = problem.scores.new_zeros(problem.size, most, *problem.scores.shape[1:])
    for group, size in enumerate(sizes):
        rows = (which == group).nonzero().flatten()
        found = way.top_k(flat.take(rows), int(size)).to(structures).transpose(0, 1)
        structures[rows, : int(size)] = found
        structures[rows, int(size) :] = found[:, :1]
    return structures, torch.arange(most, device=which.device) < sizes[which][:, None]


class _Weights(torch.autograd.Function):
    """The weights of a support, `(n, m)`, as functions of the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, mixture: _Mixture, problem: Problem, value: Tensor) -> Tensor:
        ctx.mixture, ctx.problem, ctx.value = mixture, problem, value
        return mixture.weights.to(scores)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        held = ctx.mixture.held[..., None]  # (n, m, 1)
        vertices = ctx.mixture.structures.double().flatten(2)
        mean = torch.where(held, vertices, 0.0).sum(1, keepdim=True) / held.sum(1, keepdim=True)
        centred = torch.where(held, vertices - mean, 0.0)
        image = _image(centred, ctx.problem, ctx.value)
        inverse: Tensor = cast(Any, torch.linalg).pinv(image @ image.mT, rtol=RANK, hermitian=True)
        shares = inverse @ grad.to(centred)[..., None]
        return (centred.mT @ shares).to(grad).reshape(ctx.problem.scores.shape), None, None, None


def _image(directions: Tensor, problem: Problem, value: Tensor) -> Tensor:  # (n, m, d) -> (n, m, r)
    """H^(1/2) times the directions, or T times them for |T y|^2 / 2."""
    regularizer = problem.regularizer
    if isinstance(regularizer, EuclideanOf):
        shaped = directions.reshape(-1, *problem.scores.shape[1:])
        return regularizer.of.apply(shaped).reshape(*directions.shape[:2], -1)
    assert isinstance(regularizer, Separable)
    root = regularizer.spread(value.to(directions).flatten(1)).rsqrt()[:, None]
    return torch.where(directions == 0, 0.0, directions * root)
