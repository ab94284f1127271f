r"""Pull-backs: rows of one table.

An estimator is a forward choice, a start point, a geometry and an intermediate loss. Given the
loss's gradient g it takes steps of size eta from the start point to a target in M, and hands back the
gradient of the intermediate Fenchel-Young loss there:

    surrogate = maximize(M, s, loss) - target.

| estimator          | forward           | start     | geometry        | loss      |
| ------------------ | ----------------- | --------- | --------------- | --------- |
| STEIdentity        | MAP               | MAP       | Unconstrained   | None      |
| SPIGOT             | MAP               | MAP       | Euclidean       | None      |
| SPIGOTCE           | MAP, or marginals | marginals | Euclidean       | Gibbs     |
| SPIGOTEG           | MAP, or marginals | marginals | Gibbs           | Gibbs     |
| SPIGOTSparseMAP    | MAP, or SparseMAP | SparseMAP | Euclidean       | Euclidean |
| FrankWolfePullBack | MAP               | MAP       | FrankWolfeSteps | None      |
| BlackBox           | MAP               | MAP       | None            | None      |
| IMLE               | MAP of s + noise  | the same  | None            | None      |

Without a geometry steps are carried in the scores: target = MAP(s - eta g). Any other combination is a
`PullBack` that names it. The estimators that differentiate something else instead are in
`spigot.pullback.jacobians`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spigot.polytopes import Euclidean, Gibbs, Polytope, Regularizer
from spigot.polytopes.dispatch import Solver
from spigot.polytopes.posing import detached, pose
from spigot.polytopes.problem import Problem
from spigot.polytopes.settings import counts
from spigot.pullback.downstream import Closure, Downstream
from spigot.pullback.estimator import Estimator
from spigot.pullback.noise import Gumbel, Noise
from spigot.pullback.reduction import Reduction
from spigot.pullback.roads import Solutions, road
from spigot.pullback.slope import Slope
from spigot.pullback.step_size import LineSearch, StepSize, check_step_size, record, stepped
from spigot.pullback.steps import FrankWolfeSteps, Geometry, Point, Unconstrained, check_start, steps_of

__all__ = [
    "IMLE",
    "SPIGOT",
    "SPIGOTCE",
    "SPIGOTEG",
    "BlackBox",
    "FrankWolfePullBack",
    "PullBack",
    "SPIGOTSparseMAP",
    "STEIdentity",
]


EUCLIDEAN = Euclidean()


@dataclass(frozen=True, kw_only=True, repr=False)
class PullBack(Estimator):
    """A row of the table, by its cells.

    surrogate = maximize(M, s, loss) - target, for g and scores s `(*batch, *event)`; the target is where
    steps of size eta against g lead from maximize(M, s, start).

    Args:
        forward: what the layer returns: None for MAP (a vertex), or maximize(M, s, forward).
        start: where the gradient is taken from and the steps begin, likewise.
        geometry: phi of the mirror steps; `Unconstrained()` for mu - eta g, `FrankWolfeSteps()` for
            steps by MAP alone, None for MAP(s - eta g).
        loss: the intermediate Fenchel-Young loss's regularizer; None for the perceptron's.
        step_size: eta, a positive number, a 0-dim tensor, one an instance `(*batch,)`, or
            `LineSearch()` or `Adaptive()`. A tensor is read anew at every backward.
        steps: how many; more than one needs the layer's `downstream=`.
        solver: forces a generic road for the steps.
        noise: added to the scores in train mode, in the forward and in the backward alike: the
            forward is then perturb-and-MAP.
        samples: over how many draws of the noise the surrogate gradient is a mean; the forward's
            value is that of the first.
        reduction: what the loss was divided by: "mean" (the number of instances), "sum" (1), a
            number, a 0-dim tensor, or a callable that returns one. g is multiplied by it before the
            steps and the surrogate divided by it after, so eta does not depend on the batch size.
        residual: with `downstream`, whether the part of the upstream gradient that the closure does
            not see is kept.
        name: how it prints.

    Raises:
        ValueError: a step size, number of steps or samples, or reduction out of range; several samples
            without noise.
        TypeError: a step size, geometry or noise that is none; steps or samples that are no whole
            numbers.
        UnsupportedProblem: a steep geometry started at a vertex, with the start that works.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Shannon, Simplex
        >>> from spigot.pullback import PullBack
        >>> row = PullBack(start=Shannon(), geometry=Shannon(), loss=Shannon(), step_size=0.5)
        >>> row
        PullBack(start=Shannon(), geometry=Shannon(), loss=Shannon(), step_size=0.5)
        >>> row.path(Simplex(3), torch.tensor([1.0, 0.5, 0.0]), lambda mu: mu[..., 0])  # start, target
        tensor([[0.5065, 0.3072, 0.1863],
                [0.3837, 0.3837, 0.2327]])

    References:
        Mihaylova, Niculae and Martins, "Understanding the Mechanics of SPIGOT" (EMNLP 2020),
        sections 3 and 4.
    """

    start: Regularizer | None = None
    geometry: Geometry = EUCLIDEAN
    loss: Regularizer | None = None
    step_size: StepSize = 1.0
    steps: int = 1
    solver: Solver | None = None

    rows: ClassVar[dict[str, dict[str, Any]]] = {
        "STEIdentity": {"geometry": Unconstrained()},
        "SPIGOT": {},
        "SPIGOTCE": {"start": Gibbs(), "loss": Gibbs()},
        "SPIGOTEG": {"start": Gibbs(), "geometry": Gibbs(), "loss": Gibbs()},
        "SPIGOTSparseMAP": {"start": Euclidean(), "loss": Euclidean()},
        "FrankWolfePullBack": {"geometry": FrankWolfeSteps()},
        "BlackBox": {"geometry": None},
        "IMLE": {"geometry": None, "noise": Gumbel()},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self.step_size)
        counts(self, steps=self.steps)
        check_start(self.start, self.geometry)

    def _spelled(self, field: str, usual: object) -> str:
        if field == "geometry" and isinstance(usual, FrankWolfeSteps):
            assert isinstance(self.geometry, FrankWolfeSteps)
            return f"inner={self.geometry.inner}"
        return super()._spelled(field, usual)

    def check(self, polytope: Polytope) -> None:
        """Raises UnsupportedProblem where the polytope cannot do what this needs."""
        for regularizer in (self.forward, self.start, self.loss):
            road(polytope, regularizer)
        steps_of(self.geometry).check(polytope, self.solver)

    def check_downstream(self, downstream: object) -> None:
        """Raises ValueError for several steps, or a line search, without `downstream`."""
        searches = isinstance(self.step_size, LineSearch)
        if downstream is not None or not (self.steps > 1 or searches):
            return
        found = (
            "searches along each step, and needs the loss"
            if searches
            else f"takes {self.steps} steps, and every step needs the loss's gradient"
        )
        raise ValueError(
            f"{self} {found} at new points: hand the layer downstream=closure, mu (*batch, *event) -> "
            "loss (*batch)."
        )

    def surrogate(self, solutions: Solutions, slope: Slope) -> Tensor:
        """maximize(M, s, loss) less the target, not yet divided by what the loss was divided by."""
        target = self.target(solutions, slope)
        return solutions.at(self.loss).value.to(target) - target

    def target(self, solutions: Solutions, slope: Slope) -> Tensor:
        """Where the steps lead, `(n, *event)`.

        Args:
            solutions: at the scores, as for `surrogate`.
            slope: the loss's gradient.
        """
        return deque(self._points(solutions, slope), maxlen=1)[0].mu

    def path(
        self,
        polytope: Polytope,
        scores: Tensor,
        loss: Closure,
        *,
        lengths: Tensor | None = None,
        keep: Tensor | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The points that the steps go through, from the start to the target, without noise.

        The surrogate gradient is `maximize(polytope, scores, self.loss)` less the last of them.

        Args:
            polytope: the structure.
            scores: `(*batch, *event)`.
            loss: mu `(*batch, *event)` -> each instance's own loss `(*batch,)`.
            lengths: `(*batch,)`, integers.
            keep: bool, broadcast to the scores.
            params: per-instance values of what `polytope.parameters` names.

        Returns:
            `(steps + 1, *batch, *event)`, detached.

        Raises:
            UnsupportedProblem: the polytope cannot do what the row needs.
            ValueError: the scores and masks do not fit the polytope, or the loss is not `(*batch,)`.

        Example:
            >>> import torch
            >>> from spigot.polytopes import Simplex
            >>> from spigot.pullback import SPIGOT
            >>> scores, wanted = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 1.0, 0.0])
            >>> SPIGOT(step_size=0.5, steps=2).path(
            ...     Simplex(3), scores, lambda mu: (mu - wanted).square().sum(-1) / 2
            ... )
            tensor([[1.0000, 0.0000, 0.0000],
                    [0.5000, 0.5000, 0.0000],
                    [0.2500, 0.7500, 0.0000]])
        """
        self.check(polytope)
        problem = detached(pose(polytope, scores, self.forward, lengths, keep, params))
        downstream = Downstream.capture(loss, problem.batch_shape, scores.dtype, scores.device)
        solutions = Solutions(problem)
        value = solutions.at(self.forward).value
        slope = Slope(problem, value, downstream.gradient(value), downstream, self.residual)
        points = torch.stack([point.mu for point in self._points(solutions, slope)])
        return points.reshape(-1, *scores.shape).to(scores.dtype)

    def _points(self, solutions: Solutions, slope: Slope) -> Iterator[Point]:
        """The start, and where each step leads."""
        problem = solutions.problem
        point = steps_of(self.geometry).point(problem, solutions.at(self.start))
        yield point
        for _ in range(self.steps):
            point = self._stepped(problem, slope, point)
            yield point

    def _stepped(self, problem: Problem, slope: Slope, point: Point) -> Point:
        def step(shift: Tensor) -> Point:
            return steps_of(self.geometry).step(problem, point, shift.to(point.dual), self.solver)

        return stepped(self.step_size, problem, slope, point, step)

    def record(self, surrogate: Tensor) -> None:
        """For a step size that adapts."""
        record(self.step_size, surrogate)


def _named(name: str, **settings: Any) -> PullBack:
    """The row of that name, with what its constructor was given."""
    return PullBack(name=name, **{**PullBack.rows[name], **settings})


def STEIdentity(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    noise: Noise | None = None,
) -> PullBack:
    """Straight-through: the gradient passes as if MAP were the identity, surrogate = eta g.

    With noise the forward is MAP(s + e) in train mode: on the hypercube with `Logistic()`, Bernoulli
    draws h ~ sigmoid(s).

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        noise: added to the scores in train mode; None for none.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size or noise that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STEIdentity
        >>> scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
        >>> Argmax(Simplex(3), STEIdentity())(scores)[0].backward()
        >>> scores.grad
        tensor([1., 0., 0.])

    References:
        Bengio, Leonard and Courville (2013); as a pull-back, Mihaylova et al. (2020), section 4.1.
    """
    return _named(
        "STEIdentity",
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        noise=noise,
    )


def SPIGOT(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
) -> PullBack:
    """surrogate = z - proj_M(z - eta g) with z the MAP structure.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road for the steps.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOT
        >>> scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
        >>> z = Argmax(Simplex(3), SPIGOT(step_size=0.5))(scores)
        >>> (z * torch.tensor([1.0, 0.0, 0.0])).sum().backward()
        >>> scores.grad
        tensor([ 0.3333, -0.1667, -0.1667])

    References:
        Peng, Thomson and Smith (ACL 2018), equation 7; Mihaylova et al. (2020), equation 9.
    """
    return _named(
        "SPIGOT",
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def SPIGOTCE(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    forward: Regularizer | None = None,
) -> PullBack:
    """surrogate = p - proj_M(p - eta g) with p the marginals: a cross-entropy intermediate loss.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road for the steps.
        forward: what the layer returns: None for MAP, `Gibbs()` for the marginals.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOTCE
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> Argmax(Simplex(2), SPIGOTCE(step_size=0.5))(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.2500, -0.2500])

    References:
        Mihaylova, Niculae and Martins (2020), section 4.2.
    """
    return _named(
        "SPIGOTCE",
        forward=forward,
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def SPIGOTEG(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    forward: Regularizer | None = None,
) -> PullBack:
    """surrogate = marginals(s) - marginals(s - eta g): exponentiated-gradient steps, no projection.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        forward: what the layer returns: None for MAP, `Gibbs()` for the marginals.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOTEG
        >>> scores = torch.zeros(2, requires_grad=True)
        >>> Argmax(Simplex(2), SPIGOTEG(step_size=0.5))(scores)[0].backward()
        >>> scores.grad
        tensor([ 0.1225, -0.1225])

    References:
        Mihaylova, Niculae and Martins (2020), section 4.3.
    """
    return _named(
        "SPIGOTEG",
        forward=forward,
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
    )


def SPIGOTSparseMAP(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    forward: Regularizer | None = None,
) -> PullBack:
    """surrogate = y - proj_M(y - eta g) with y = proj_M(s): a SparseMAP intermediate loss.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road for the steps.
        forward: what the layer returns: None for MAP, `Euclidean()` for SparseMAP.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Euclidean, Simplex
        >>> from spigot.pullback import SPIGOTSparseMAP
        >>> scores = torch.tensor([0.75, 0.25, -2.0], requires_grad=True)
        >>> y = Argmax(Simplex(3), SPIGOTSparseMAP(step_size=0.5, forward=Euclidean()))(scores)
        >>> y.detach()
        tensor([0.7500, 0.2500, 0.0000])
        >>> y[0].backward()
        >>> scores.grad
        tensor([ 0.3333, -0.1667, -0.1667])
    """
    return _named(
        "SPIGOTSparseMAP",
        forward=forward,
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def FrankWolfePullBack(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    inner: int = 1,
) -> PullBack:
    """surrogate = z - (z + gamma (v - z)) with v = MAP(-g): SPIGOT by MAP alone, without a projection.

    gamma = clip(eta <g, z - v> / |z - v|^2, 0, 1): the first Frank-Wolfe iterate on SPIGOT's own
    projection of z - eta g. With more iterates, `inner`, the target tends to SPIGOT's.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road to MAP.
        inner: how many iterates a step takes, at least 1.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or iterates, or reduction out of range.
        TypeError: a step size that is none; steps or iterates that are no whole numbers.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import FrankWolfePullBack
        >>> for inner in (1, 50):  # the second is SPIGOT's
        ...     scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
        ...     pullback = FrankWolfePullBack(step_size=0.5, inner=inner)
        ...     Argmax(Simplex(3), pullback)(scores)[0].backward()
        ...     scores.grad
        tensor([ 0.2500, -0.2500,  0.0000])
        tensor([ 0.3333, -0.1667, -0.1667])

    References:
        Jaggi, "Revisiting Frank-Wolfe" (ICML 2013), algorithm 1, for the iterates.
    """
    return _named(
        "FrankWolfePullBack",
        geometry=FrankWolfeSteps(inner),
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def BlackBox(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
) -> PullBack:
    """surrogate = MAP(s) - MAP(s - eta g), not divided by eta.

    The gradient of the linear interpolation of the loss in the scores. It is 0 where the step is too
    short to change the structure: eta is on the scores' scale.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road to MAP.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or reduction out of range.
        TypeError: a step size that is none; steps that are no whole number.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import BlackBox
        >>> scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
        >>> z = Argmax(Simplex(3), BlackBox(step_size=2.0))(scores)
        >>> z[0].backward()
        >>> scores.grad
        tensor([ 1., -1.,  0.])

    References:
        Vlastelica, Paulus, Musil, Martius and Rolinek, "Differentiation of blackbox combinatorial
        solvers" (ICLR 2020), algorithm 1; lambda there is eta.
    """
    return _named(
        "BlackBox",
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
    )


def IMLE(
    step_size: StepSize = 1.0,
    steps: int = 1,
    reduction: Reduction = "mean",
    residual: bool = True,
    solver: Solver | None = None,
    noise: Noise | None = None,
    samples: int = 1,
) -> PullBack:
    """surrogate = mean over noise e of MAP(s + e) - MAP(s + e - eta g), the same e in both.

    The forward is perturb-and-MAP, MAP(s + e) of the first draw; in eval mode there is no noise.

    Args:
        step_size: eta, a number, a tensor `()` or `(*batch,)`, `LineSearch()` or `Adaptive()`.
        steps: how many; more than one needs the layer's `downstream=`.
        reduction: what the loss was divided by, as for `PullBack`.
        residual: with `downstream`, whether what the closure does not see counts.
        solver: forces a generic road for the steps.
        noise: `Gumbel()` unless told; for structures of k parts `SumOfGamma(k=k)`.
        samples: how many draws of it the backward averages over.

    Returns:
        The pull-back, from g to the surrogate gradient, both `(*batch, *event)`.

    Raises:
        ValueError: a step size, number of steps or samples, or reduction out of range.
        TypeError: a step size or noise that is none; steps or samples that are no whole numbers.

    Example:
        >>> import torch
        >>> from spigot.layers import Argmax
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import IMLE, SumOfGamma
        >>> IMLE(noise=SumOfGamma(k=2), samples=3)
        IMLE(step_size=1.0, noise=SumOfGamma(scale=1.0, k=2, terms=10), samples=3)
        >>> scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
        >>> layer, rng = Argmax(Simplex(3), IMLE(samples=10000)), torch.Generator().manual_seed(0)
        >>> layer(scores, generator=rng)[0].backward()
        >>> scores.grad.round(decimals=1)
        tensor([ 0.2000, -0.1000, -0.1000])

    References:
        Niepert, Minervini and Franceschi, "Implicit MLE" (NeurIPS 2021), algorithm 1 and equation 9.
    """
    return _named(
        "IMLE",
        step_size=step_size,
        steps=steps,
        reduction=reduction,
        residual=residual,
        solver=solver,
        noise=Gumbel() if noise is None else noise,
        samples=samples,
    )
