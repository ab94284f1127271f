"""The one table of estimators: how each carries a loss back to the scores, for every task alike.

A row is of one of four kinds.

- layer: scores -> a point of the polytope; its backward is the estimator;
- expectation: (scores, loss) -> each instance's expected loss, an `Objective`;
- loss: (scores, target) -> each instance's loss, for tasks whose structures are given in training;
- baseline: no estimator at all; the task that names it knows what it is.

`choice` makes the first two alike, which is all that most tasks need:

    choose = choice("spigot", Simplex(10), settings)
    choose(scores, loss)  # each instance's own loss, (batch,)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from examples.experiments.run import Settings, Value
from spigot.layers import (
    Argmax,
    FenchelYoungLoss,
    LeaveOneOut,
    MarginalizedExpectation,
    Perturbed,
    PerturbedLoss,
    Relaxed,
    RunningMean,
    ScoreFunction,
    SelfCritical,
    SPOPlusLoss,
    StructuredHingeLoss,
)
from spigot.polytopes import Euclidean, Gibbs, Polytope, Regularizer, Shannon
from spigot.pullback import (
    IMLE,
    SPIGOT,
    Adaptive,
    BlackBox,
    Estimator,
    FrankWolfePullBack,
    Gumbel,
    GumbelSTE,
    Identity,
    LineSearch,
    Noise,
    NoiseInjection,
    Normal,
    Objective,
    PullBack,
    RelaxedBackward,
    SPIGOTSparseMAP,
    STEIdentity,
)

__all__ = ["ESTIMATORS", "Choice", "Row", "choice", "layer", "row"]

Make = Callable[[Polytope, Settings], nn.Module]
Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """An estimator by name.

    Args:
        name: the same in every task.
        kind: "layer", "expectation", "loss" or "baseline".
        family: which rows it is drawn beside.
        says: what it is, in a line.
        make: the module for a polytope; None for a baseline.
        options: what it takes, with the usual values.
    """

    name: str
    kind: str
    family: str
    says: str
    make: Make | None = None
    options: Mapping[str, Value] = field(default_factory=dict[str, Value])


@dataclass(frozen=True, kw_only=True, repr=False)
class DiagonalSTE(Estimator):
    """g times the diagonal of the marginals' Jacobian, p (1 - p).

    So does the STE-softmax of the code published with Mihaylova et al. (2020). The whole Jacobian of the
    softmax is diag(p) - p p'; without its rest the scores' common part moves too.
    """

    def surrogate(self, solutions: Any, slope: Any) -> Tensor:
        p: Tensor = solutions.at(Gibbs()).value
        return p * (1 - p) * slope.at(solutions.at(self.forward).value)


class Tempered(nn.Module):
    """layer(scores / temperature)."""

    def __init__(self, layer: nn.Module, temperature: float) -> None:
        super().__init__()
        self.layer = layer
        self.temperature = temperature

    def forward(self, scores: Tensor, **given: Any) -> Tensor:
        return self.layer(scores / self.temperature, **given)


def _step_size(settings: Settings) -> Any:
    """A number, or the word for what finds one."""
    named: dict[Value, Callable[[], Any]] = {"adaptive": Adaptive, "line-search": LineSearch}
    value = settings["step_size"]
    return named[value]() if value in named else settings.number("step_size")


def _stepping(constructor: Callable[..., Estimator], **more: str) -> Make:
    """Argmax with a pull-back that takes steps; `more` names further options and their arguments."""

    def make(polytope: Polytope, settings: Settings) -> nn.Module:
        given = {argument: settings[option] for option, argument in more.items()}
        pullback = constructor(
            step_size=_step_size(settings),
            steps=settings.whole("steps"),
            **given,
        )
        return Argmax(polytope, pullback)

    return make


def _imle(polytope: Polytope, settings: Settings) -> nn.Module:
    pullback = IMLE(
        step_size=_step_size(settings),
        noise=_noise(settings),
        samples=settings.whole("samples"),
    )
    return Argmax(polytope, pullback)


def _noise(settings: Settings) -> Noise:
    named: dict[str, Callable[[float], Noise]] = {"gumbel": Gumbel, "normal": Normal}
    if settings.text("noise") not in named:
        raise SystemExit(f"noise must be one of {', '.join(named)}; got {settings['noise']}.")
    return named[settings.text("noise")](settings.number("scale"))


def _gumbel_softmax(polytope: Polytope, settings: Settings) -> nn.Module:
    temperature = settings.number("temperature")
    noise = NoiseInjection(forward=Gibbs(), noise=Gumbel(1 / temperature))
    return Tempered(Argmax(polytope, noise), temperature)


def _entropy(settings: Settings) -> Regularizer:
    """Gibbs', over structures; Shannon's, over parts, where structures are too many to sum over."""
    named: dict[str, Regularizer] = {"gibbs": Gibbs(), "shannon": Shannon()}
    if settings.text("entropy") not in named:
        raise SystemExit(f"entropy must be one of {', '.join(named)}; got {settings['entropy']}.")
    return named[settings.text("entropy")]


def _euclidean(_: Settings) -> Regularizer:
    return Euclidean()


def _from_marginals(geometry: Callable[[Settings], Regularizer]) -> Make:
    """Argmax with a pull-back from the marginals, by steps in that geometry."""

    def make(polytope: Polytope, settings: Settings) -> nn.Module:
        entropy = _entropy(settings)
        pullback = PullBack(
            start=entropy,
            geometry=geometry(settings),
            loss=entropy,
            step_size=_step_size(settings),
            steps=settings.whole("steps"),
        )
        return Argmax(polytope, pullback)

    return make


def _ste_softmax(polytope: Polytope, settings: Settings) -> nn.Module:
    pullback = RelaxedBackward(
        relaxation=_entropy(settings), temperature=settings.number("temperature"), noisy=False
    )
    return Argmax(polytope, pullback)


def _relaxed(omega: Callable[[Settings], Regularizer]) -> Make:
    def make(polytope: Polytope, settings: Settings) -> nn.Module:
        return Tempered(Relaxed(polytope, omega(settings)), settings.number("temperature"))

    return make


def _score_function(baseline: Callable[[], Any]) -> Make:
    def make(polytope: Polytope, settings: Settings) -> nn.Module:
        return ScoreFunction(polytope, samples=settings.whole("samples"), baseline=baseline())

    return make


STEPS: dict[str, Value] = {"step_size": 1.0, "steps": 1}
FROM_START: dict[str, Value] = {**STEPS, "gradient_at": "answer"}
ENTROPY: dict[str, Value] = {"entropy": "gibbs"}
FROM_MARGINALS: dict[str, Value] = {**FROM_START, **ENTROPY}
TEMPERED: dict[str, Value] = {"temperature": 1.0}
NOISY: dict[str, Value] = {"noise": "gumbel", "scale": 1.0}
PLAIN: Any = {
    "reduction": "none",
    "validate": False,
}  # targets here are structures: no need of a projection

_ROWS = (
    Row("linear", "baseline", "baselines", "a linear classifier, no structure"),
    Row("gold", "baseline", "baselines", "the true structure is given"),
    Row("no-tree", "baseline", "baselines", "the words without a tree"),
    Row("random-tree", "baseline", "baselines", "a tree at random, another each time"),
    Row("flat-attention", "baseline", "baselines", "each word's heads by a softmax of its own"),
    Row("untrained", "baseline", "baselines", "the structure by itself, nothing learned"),
    Row("pointwise", "baseline", "baselines", "every part learns by itself, the structure unseen"),
    Row("listwise", "baseline", "baselines", "cross-entropy of the softmax over the parts"),
    Row("two-stage", "baseline", "baselines", "predicts the scores by themselves, the structure unseen"),
    Row(
        "ste-identity",
        "layer",
        "straight-through",
        "MAP; g passes as it is",
        _stepping(STEIdentity),
        STEPS,
    ),
    Row(
        "ste-softmax",
        "layer",
        "straight-through",
        "MAP; the whole Jacobian of the marginals",
        _ste_softmax,
        {**TEMPERED, **ENTROPY},
    ),
    Row(
        "ste-softmax-diagonal",
        "layer",
        "straight-through",
        "MAP; the diagonal of that Jacobian alone",
        lambda polytope, _: Argmax(polytope, DiagonalSTE()),
    ),
    Row(
        "gumbel-ste",
        "layer",
        "straight-through",
        "MAP of noisy scores; the Jacobian of their marginals",
        lambda polytope, settings: Argmax(polytope, GumbelSTE(settings.number("temperature"))),
        TEMPERED,
    ),
    Row(
        "identity-projected",
        "layer",
        "straight-through",
        "MAP; g through the scores' normalisation",
        lambda polytope, _: Argmax(polytope, Identity()),
    ),
    Row("spigot", "layer", "spigot", "z - proj(z - eta g)", _stepping(SPIGOT), STEPS),
    Row(
        "spigot-ce",
        "layer",
        "spigot",
        "p - proj(p - eta g)",
        _from_marginals(_euclidean),
        FROM_MARGINALS,
    ),
    Row(
        "spigot-eg",
        "layer",
        "spigot",
        "p - marginals(s - eta g)",
        _from_marginals(_entropy),
        FROM_MARGINALS,
    ),
    Row(
        "spigot-sparsemap",
        "layer",
        "spigot",
        "y - proj(y - eta g), y SparseMAP's",
        _stepping(SPIGOTSparseMAP),
        FROM_START,
    ),
    Row(
        "frank-wolfe",
        "layer",
        "spigot",
        "SPIGOT's projection by MAP alone",
        _stepping(FrankWolfePullBack, inner="inner"),
        {**STEPS, "inner": 1},
    ),
    Row("blackbox", "layer", "perturbation", "z - MAP(s - eta g)", _stepping(BlackBox), STEPS),
    Row(
        "imle",
        "layer",
        "perturbation",
        "the same at noisy scores",
        _imle,
        {"step_size": 1.0, "samples": 1, **NOISY},
    ),
    Row(
        "perturbed",
        "layer",
        "perturbation",
        "the mean of MAP over noise",
        lambda polytope, settings: Perturbed(
            polytope, _noise(settings), samples=settings.whole("samples")
        ),
        {"samples": 8, **NOISY},
    ),
    Row(
        "marginals",
        "layer",
        "relaxed",
        "the mean structure; softmax",
        _relaxed(_entropy),
        {**TEMPERED, **ENTROPY},
    ),
    Row("sparsemap", "layer", "relaxed", "the projection; sparsemax", _relaxed(_euclidean), TEMPERED),
    Row("gumbel-softmax", "layer", "relaxed", "marginals of noisy scores", _gumbel_softmax, TEMPERED),
    Row(
        "reinforce",
        "expectation",
        "expectation",
        "score function, one sample",
        _score_function(lambda: None),
        {"samples": 1},
    ),
    Row(
        "reinforce-baseline",
        "expectation",
        "expectation",
        "the same, less the running mean of the loss",
        _score_function(RunningMean),
        {"samples": 1},
    ),
    Row(
        "reinforce-leave-one-out",
        "expectation",
        "expectation",
        "several samples, each less the others' mean",
        _score_function(LeaveOneOut),
        {"samples": 4},
    ),
    Row(
        "reinforce-self-critical",
        "expectation",
        "expectation",
        "less the loss at MAP",
        _score_function(SelfCritical),
        {"samples": 1},
    ),
    Row(
        "minimum-risk",
        "expectation",
        "expectation",
        "the exact sum over all structures",
        lambda polytope, _: MarginalizedExpectation(polytope, Gibbs()),
    ),
    Row(
        "sparse-sum",
        "expectation",
        "expectation",
        "the exact sum over SparseMAP's support",
        lambda polytope, _: MarginalizedExpectation(polytope, Euclidean()),
    ),
    Row(
        "fenchel-young-gibbs",
        "loss",
        "losses",
        "conditional random field",
        lambda polytope, _: FenchelYoungLoss(polytope, Gibbs(), **PLAIN),
    ),
    Row(
        "fenchel-young-shannon",
        "loss",
        "losses",
        "the loss of Shannon's entropy over the parts; Sinkhorn's",
        lambda polytope, _: FenchelYoungLoss(polytope, Shannon(), **PLAIN),
    ),
    Row(
        "fenchel-young-sparsemap",
        "loss",
        "losses",
        "SparseMAP loss",
        lambda polytope, _: FenchelYoungLoss(polytope, Euclidean(), **PLAIN),
    ),
    Row(
        "perceptron",
        "loss",
        "losses",
        "structured perceptron",
        lambda polytope, _: FenchelYoungLoss(polytope, **PLAIN),
    ),
    Row(
        "hinge",
        "loss",
        "losses",
        "margin of the structured support vector machine",
        lambda polytope, _: StructuredHingeLoss(polytope, **PLAIN),
    ),
    Row(
        "perturbed-fenchel-young",
        "loss",
        "losses",
        "the perturbed maximum's own loss",
        lambda polytope, settings: PerturbedLoss(
            polytope, _noise(settings), samples=settings.whole("samples"), **PLAIN
        ),
        {"samples": 8, **NOISY},
    ),
    Row(
        "spo-plus",
        "loss",
        "losses",
        "SPO+: a bound on the regret",
        lambda polytope, _: SPOPlusLoss(polytope, **PLAIN),
    ),
)

ESTIMATORS: dict[str, Row] = {row.name: row for row in _ROWS}


def row(name: str) -> Row:
    """The row of that name.

    Raises:
        SystemExit: there is none; names those that are.
    """
    if name not in ESTIMATORS:
        raise SystemExit(f"There is no estimator {name!r}. There are: {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]


def layer(name: str, polytope: Polytope, settings: Settings) -> nn.Module:
    """The row's module for that polytope."""
    make = row(name).make
    if make is None:
        raise SystemExit(f"{name} is a baseline, without a layer; the task makes it.")
    return make(polytope, settings)


class Choice(nn.Module):
    """(scores, loss) -> each instance's own loss, by whatever estimator.

    The loss is a function of the structures, `(*batch, *event)` -> `(*batch,)`, not divided by anything.
    Several steps, a line search, and `gradient_at=start` evaluate it again in the backward.

    Args:
        made: the layer, or the objective.
        again: whether the loss is evaluated again.
        relaxed: whether what the loss sees is a mixture.
    """

    def __init__(self, made: nn.Module, again: bool = False, relaxed: bool = False) -> None:
        super().__init__()
        self.layer = made
        self.again = again
        self.relaxed = relaxed

    def forward(self, scores: Tensor, loss: Loss, **given: Any) -> Tensor:
        """Each instance's loss, `(*batch,)`; `given` are lengths=, keep=, params= of the layer."""
        if isinstance(self.layer, Objective):
            return self.layer(scores, loss, **given)
        if self.again:
            given["downstream"] = loss
        return loss(self.layer(scores, **given))


def choice(name: str, polytope: Polytope, settings: Settings) -> Choice:
    """The row, ready for the loss of a task."""
    again = (
        settings.get("steps", 1) != 1
        or settings.get("gradient_at") == "start"
        or settings.get("step_size") == "line-search"
    )
    return Choice(layer(name, polytope, settings), again, row(name).family == "relaxed")
