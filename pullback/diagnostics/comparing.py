"""`compare`: estimators side by side, on one problem or on several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spigot.polytopes import Euclidean, Gibbs, Polytope
from spigot.polytopes.arrays import numbers
from spigot.pullback.diagnostics.bench import Bench, seeded
from spigot.pullback.diagnostics.measure import Protocol, Row, measure, norm_of, ratio
from spigot.pullback.diagnostics.probe import Estimated, why_not
from spigot.pullback.diagnostics.stated import Exact, ExpectedLoss, Stated
from spigot.pullback.diagnostics.table import Comparison, LeftOut
from spigot.pullback.estimators import (
    IMLE,
    SPIGOT,
    SPIGOTCE,
    SPIGOTEG,
    BlackBox,
    FrankWolfePullBack,
    SPIGOTSparseMAP,
    STEIdentity,
)
from spigot.pullback.jacobians import GumbelSTE, Identity, RelaxedBackward, STEMarginals
from spigot.pullback.objective import Loss

__all__ = ["Case", "Estimators", "compare", "compare_all", "default_estimators"]

Estimators = Mapping[str, Estimated] | Sequence[Estimated]
"""By name, or a sequence whose names are their reprs."""

_GIBBS, _EUCLIDEAN = Gibbs(), Euclidean()

_ROWS: dict[str, Estimated] = {
    "STE-identity": STEIdentity(),
    "Identity": Identity(),
    "STE-marginals": STEMarginals(),
    "STE-SparseMAP": RelaxedBackward(relaxation=_EUCLIDEAN),
    "Gumbel-STE": GumbelSTE(),
    "SPIGOT": SPIGOT(),
    "SPIGOT-CE": SPIGOTCE(),
    "SPIGOT-CE, marginals": SPIGOTCE(forward=_GIBBS),
    "SPIGOT-EG": SPIGOTEG(),
    "SPIGOT-EG, marginals": SPIGOTEG(forward=_GIBBS),
    "SPIGOT-SparseMAP": SPIGOTSparseMAP(),
    "SPIGOT-SparseMAP, SparseMAP": SPIGOTSparseMAP(forward=_EUCLIDEAN),
    "Frank-Wolfe": FrankWolfePullBack(),
    "black-box": BlackBox(),
    "I-MLE": IMLE(),
    "marginals": RelaxedBackward(forward=_GIBBS),
    "SparseMAP": RelaxedBackward(relaxation=_EUCLIDEAN, forward=_EUCLIDEAN),
}
"""The forward is MAP, or what stands after the comma; the last two are relaxations throughout."""


@dataclass(frozen=True, eq=False)
class Case:
    """One problem of a comparison.

    Args:
        polytope: M.
        scores: `(*batch, *event)`.
        loss: mu `(*batch, *event)` -> each instance's own loss `(*batch,)`.
        estimators: by name, or a sequence; `default_estimators(polytope)` unless told.
        lengths: `(*batch,)`, integers.
        keep: bool, broadcast to the scores.
        params: per-instance values of what `polytope.parameters` names.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import STEMarginals
        >>> from spigot.pullback.diagnostics import Case, compare_all
        >>> case = Case(Simplex(3), torch.zeros(3), lambda mu: mu[..., 0], {"STE": STEMarginals()})
        >>> round(compare_all({"first": case}).row("STE").bias, 6)
        0.0
    """

    polytope: Polytope
    scores: Tensor
    loss: Loss
    estimators: Estimators | None = None
    lengths: Tensor | None = None
    keep: Tensor | None = None
    params: Mapping[str, Tensor] | None = None


def default_estimators(polytope: Polytope) -> dict[str, Estimated]:
    """The known estimators, with step sizes of 1, that this polytope can do.

    Layers join by name: `default_estimators(M) | {"REINFORCE": ScoreFunction(M, samples=8)}`.

    Args:
        polytope: M.

    Example:
        >>> from spigot.polytopes import Oracle
        >>> from spigot.pullback.diagnostics import default_estimators
        >>> best = Oracle(lambda scores: (scores == scores.max()).astype(float), (3,))
        >>> "SPIGOT" in default_estimators(best), "STE-marginals" in default_estimators(best)
        (True, False)
    """
    return {name: each for name, each in _ROWS.items() if not why_not(each, polytope)}


def compare(
    polytope: Polytope,
    scores: Tensor,
    loss: Loss,
    estimators: Estimators | None = None,
    *,
    objective: Stated | None = None,
    samples: int = 64,
    step: float = 1.0,
    step_sizes: Sequence[float] = (0.1, 1.0, 10.0),
    batch_sizes: Sequence[int] = (1,),
    tolerances: Sequence[float] = (1e-2,),
    reduction: str = "mean",
    downstream: bool = False,
    lengths: Tensor | None = None,
    keep: Tensor | None = None,
    params: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Comparison:
    """Each estimator's gradient of the scores against the exact gradient of a stated objective.

    Noise is drawn as in train mode, the same for all estimators. Nothing is changed: modules and
    step sizes that adapt are copied, and the random state moves on only by the seeds drawn.

    Args:
        polytope: M.
        scores: `(*batch, *event)`.
        loss: mu `(*batch, *event)` -> each instance's own loss `(*batch)`, at vertices and inside M;
            evaluated often, so without dropout, and with no batch statistics.
        estimators: by name, or a sequence whose names are their reprs: pull-backs, layers that return
            a point (the loss is taken at it), or an `Objective`. `default_estimators(polytope)`
            unless told. Those that the polytope cannot do are named in `left_out`.
        objective: whose gradient is the exact one; `ExpectedLoss()` unless told.
        samples: over how many draws the random ones are measured, at least 2.
        step: the length of the step that should lower the objective, relative to the exact gradient.
        step_sizes: at which the estimators that have a step size are measured too.
        batch_sizes: at which the loss is averaged over small batches instead of the whole one.
        tolerances: of `ActiveSet`, for the estimators whose steps it can take.
        reduction: "mean" or "sum", what the training loss is over the batch. Gradients are those of
            each instance's own loss all the same.
        downstream: whether estimators are handed the loss as `downstream=` even where they can do
            without.
        lengths: `(*batch,)`, integers.
        keep: bool, broadcast to the scores.
        params: per-instance values of what `polytope.parameters` names.
        generator: for the seeds of everything random.

    Raises:
        ValueError: bad input as for `Polytope.solve`, an empty batch, a setting out of range, or a
            loss of another shape than the batch's.
        UnsupportedProblem: the objective cannot be had on this polytope.
        TypeError: an estimator that is none.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex
        >>> from spigot.pullback import SPIGOT, BlackBox
        >>> from spigot.pullback.diagnostics import compare
        >>> scores = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]])
        >>> costs = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
        >>> found = compare(Simplex(3), scores, lambda mu: (mu * costs).sum(-1), [SPIGOT(), BlackBox()])
        >>> found.row("BlackBox(step_size=1.0)").null  # too short a step to change any structure
        1.0
    """
    case = Case(polytope, scores, loss, estimators, lengths, keep, params)
    protocol = Protocol(samples, step, step_sizes, batch_sizes, tolerances, reduction, downstream)
    return _compared({"": case}, objective or ExpectedLoss(), protocol, generator)


def compare_all(
    cases: Mapping[str, Case],
    *,
    objective: Stated | None = None,
    samples: int = 64,
    step: float = 1.0,
    step_sizes: Sequence[float] = (0.1, 1.0, 10.0),
    batch_sizes: Sequence[int] = (1,),
    tolerances: Sequence[float] = (1e-2,),
    reduction: str = "mean",
    downstream: bool = False,
    generator: torch.Generator | None = None,
) -> Comparison:
    """`compare` on several problems by name, as one table and one figure.

    Args:
        cases: by name.
        objective: whose gradient is the exact one; `ExpectedLoss()` unless told.
        samples: over how many draws the random ones are measured.
        step: the length of the step that should lower the objective, relative to the exact gradient.
        step_sizes: at which the estimators that have a step size are measured too.
        batch_sizes: at which the loss is averaged over small batches.
        tolerances: of `ActiveSet`, for the estimators whose steps it can take.
        reduction: "mean" or "sum", what the training loss is over the batch.
        downstream: whether estimators are handed the loss as `downstream=` wherever they take it.
        generator: for the seeds of everything random.

    Raises:
        ValueError, UnsupportedProblem, TypeError: as for `compare`.

    Example:
        >>> import torch
        >>> from spigot.polytopes import Simplex, Subset
        >>> from spigot.pullback import SPIGOT
        >>> from spigot.pullback.diagnostics import Case, compare_all
        >>> def loss(mu):
        ...     return (mu[..., 0] - mu[..., 1]) ** 2
        >>> cases = {
        ...     "one": Case(Simplex(3), torch.zeros(3), loss, [SPIGOT()]),
        ...     "two": Case(Subset(3, 2), torch.zeros(3), loss, [SPIGOT()]),
        ... }
        >>> [row.case for row in compare_all(cases).rows]
        ['one', 'two']
    """
    protocol = Protocol(samples, step, step_sizes, batch_sizes, tolerances, reduction, downstream)
    return _compared(cases, objective or ExpectedLoss(), protocol, generator)


def _compared(
    cases: Mapping[str, Case],
    objective: Stated,
    protocol: Protocol,
    generator: torch.Generator | None,
) -> Comparison:
    captions: list[str] = []
    rows: list[Row] = []
    missing: list[LeftOut] = []
    seeds = _seeds(protocol.samples + 1, generator)
    for name, case in cases.items():
        bench = Bench.of(case.polytope, case.scores, case.loss, case.lengths, case.keep, case.params)
        with seeded(seeds[0], bench.problem.scores.device):
            exact = objective.exact(bench)
        captions.append(_caption(name, bench, objective, exact))
        for label, estimated in _named(case.estimators).items():
            reason = why_not(estimated, case.polytope)
            if reason:
                missing.append(LeftOut(name, label, reason))
                continue
            rows.append(measure((name, label), estimated, bench, exact, protocol, seeds[1:]))
    return Comparison(tuple(captions), tuple(rows), tuple(missing), _note(protocol))


def _named(estimators: Estimators | None) -> Mapping[str, Estimated]:
    if estimators is None:
        return _ROWS
    return estimators if isinstance(estimators, Mapping) else {repr(each): each for each in estimators}


def _seeds(count: int, generator: torch.Generator | None) -> list[int]:
    device = "cpu" if generator is None else generator.device
    return numbers(torch.randint(2**62, (count,), generator=generator, device=device))


def _caption(name: str, bench: Bench, objective: Stated, exact: Exact) -> str:
    problem = bench.problem
    error = ratio(norm_of(exact.error), norm_of(exact.gradient))
    within = f", to {100 * error:.1f}%" if error > 0 else ""
    shown = f"{name}: " if name else ""
    return (
        f"{shown}{problem.polytope}, {problem.size} instance{'s' * (problem.size != 1)}; "
        f"G, the gradient of {objective.words}, by {exact.how}{within}"
    )


def _note(protocol: Protocol) -> str:
    return (
        "g against the exact gradient G: bias |E g - G| / |G|, then what an unbiased one may show;\n"
        "variance E |g - E g|^2 / |G|^2; cosine of E g, and of one draw, with G; norm |E g| / |G|;\n"
        f"null: g is exactly 0; falls: a step of length {protocol.step:g} |G| along -g lowers the "
        f"objective.\nRandom ones: {protocol.samples} draws. Change: |g' - g| / |g| for the same draws."
    )
