"""The perturbed maximum: the mean structure under noise on the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from spigot.polytopes import Polytope, opaque
from spigot.polytopes.base import empty_or
from spigot.polytopes.dispatch import Road, Solver
from spigot.polytopes.posing import pose
from spigot.polytopes.problem import Problem
from spigot.pullback.noise import Gumbel, Noise
from spigot.pullback.perturbation import Perturbation
from spigot.pullback.roads import road

__all__ = ["Perturbed"]

GUMBEL = Gumbel()


class Perturbed(nn.Module):
    r"""y(s) = E[argmax over y in M of <s + e, y>], estimated by the mean over draws of the noise e.

    It is differentiable although MAP is not. With z_k = MAP(s + e_k) for K draws, and score(e) minus
    the gradient of the noise's log-density, the backward is the Monte Carlo estimate

        J' g  ~  1 / (K - 1) sum over k of <z_k - mean of z, g> score(e_k)

    without bias: it equals 1 / K sum <z_k - b_k, g> score(e_k), where b_k, the mean of the other K - 1
    structures, does not depend on e_k, and the score has mean 0. One draw alone is compared with
    b = MAP(s). In antithetic pairs any b drops out: 1 / K sum <z_k, g> score(e_k).

    The noise is part of the function that the layer computes, not a disturbance of it, so train and
    eval mode are alike: both draw. For the structure itself use `polytope.maximize(scores)`; for a value
    that can be repeated, `generator=`.

    Args:
        polytope: M.
        noise: the distribution of e: `Gumbel()`, with which the simplex gives the softmax, or
            `Normal()`. Its `scale` is the temperature.
        samples: K. All draws of a batch are solved in one call of MAP.
        antithetic: whether draws come in pairs e, -e; for symmetric noise.
        multiplicative: whether the scores are s * exp(e - scale^2 / 2) instead of s + e, for `Normal`:
            noise in proportion, under which signs and zeros of scores stay, as costs need that must
            remain nonnegative. The backward then has score(e) / s, and 0 where s is 0.
        solver: forces a generic road to MAP.

    Raises:
        TypeError: noise that is no `Noise`, or samples that are no whole number.
        ValueError: see `Args`; samples below 1, or odd though antithetic.
        UnsupportedProblem: when the layer is made: noise without a score, such as `SumOfGamma`, or a
            polytope without MAP.

    Example:
        >>> import torch
        >>> from spigot.layers import Perturbed
        >>> from spigot.polytopes import Simplex
        >>> layer = Perturbed(Simplex(3), samples=10000)
        >>> layer
        Perturbed(Simplex(d=3), Gumbel(scale=1.0), samples=10000)
        >>> scores = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
        >>> y = layer(scores, generator=torch.Generator().manual_seed(0))
        >>> y.detach().round(decimals=1), scores.detach().softmax(0).round(decimals=1)
        (tensor([0.7000, 0.2000, 0.1000]), tensor([0.7000, 0.2000, 0.1000]))
        >>> y[0].backward()
        >>> scores.grad.round(decimals=1)
        tensor([ 0.2000, -0.2000, -0.1000])

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert and Bach, "Learning with differentiable perturbed
        optimizers" (NeurIPS 2020), section 3.
        Dalle, Baty, Bouvier and Parmentier, "Learning with combinatorial optimization layers: a
        probabilistic approach" (2022), on multiplicative noise.
    """

    def __init__(
        self,
        polytope: Polytope,
        noise: Noise = GUMBEL,
        samples: int = 10,
        *,
        antithetic: bool = False,
        multiplicative: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        self.polytope = polytope
        self.perturbation: Perturbation = Perturbation(noise, samples, antithetic, multiplicative)
        self.solver = solver
        self.perturbation.check_score()
        road(polytope, None, solver)

    def __repr__(self) -> str:
        held = self.perturbation
        flags = [name for name in ("antithetic", "multiplicative") if getattr(held, name)]
        shown = [f"{self.polytope}", f"{held.noise}", f"samples={held.samples}"]
        shown += [f"{name}=True" for name in flags]
        shown += [] if self.solver is None else [f"solver={self.solver}"]
        return f"Perturbed({', '.join(shown)})"

    @opaque.uncompiled
    def forward(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean structure, `(*batch, *event)`: a point of M.

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores; excluded parts have gradient exactly 0.
            params: per-instance values of what `polytope.parameters` names; they get no gradient.
            generator: for the noise.

        Raises:
            TypeError, ValueError: bad input as for `Polytope.solve`.
            ConvergenceError: a solver did not converge.
        """
        way = road(self.polytope, None, self.solver)
        problem = pose(self.polytope, scores, None, lengths, keep, params)
        draws = self.perturbation.draw(problem, generator)
        value: Tensor = cast(Any, _Mean).apply(problem.scores, problem, way, self.perturbation, draws)
        return value.reshape(scores.shape).to(scores.dtype)

    @opaque.uncompiled
    def conjugate(
        self,
        scores: Tensor,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The mean over draws of max over y in M of <s + e, y>, `(*batch,)`.

        Its gradient is the layer's value at the same draws. (With multiplicative noise it is the mean
        of the factors times the structures, whose own perturbed maximum leaves the factors out.)

        Args:
            scores: `(*batch, *event)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names, detached.
            generator: for the noise.

        Raises:
            TypeError, ValueError, ConvergenceError: as for `forward`.
        """
        way = road(self.polytope, None, self.solver)
        problem = pose(self.polytope, scores, None, lengths, keep, params)
        value = self.perturbation.conjugate(problem, way, generator)
        return value.reshape(problem.batch_shape).to(scores.dtype)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, problem: Problem, way: Road, perturbation: Perturbation, draws: Tensor
    ) -> Tensor:
        ctx.problem = problem.with_scores(scores.detach())
        ctx.way, ctx.perturbation = way, perturbation
        found = perturbation.maximizers(ctx.problem, draws, way)
        ctx.save_for_backward(draws, found)
        return found.mean(0)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        draws, found = ctx.saved_tensors
        contrast = _contrast(ctx.problem, ctx.way, ctx.perturbation, found)
        along = (contrast * grad).flatten(2).sum(2)  # (samples, n)
        score = ctx.perturbation.score(ctx.problem, draws)
        return torch.einsum("kn,kn...->n...", along, score), None, None, None, None


def _contrast(problem: Problem, way: Road, perturbation: Perturbation, found: Tensor) -> Tensor:
    """z_k - b_k over the number of draws, `(samples, n, *event)`."""
    if perturbation.antithetic:
        return found / perturbation.samples
    if perturbation.samples == 1:
        return found - empty_or(way, problem).value.to(found)
    return (found - found.mean(0)) / (perturbation.samples - 1)
