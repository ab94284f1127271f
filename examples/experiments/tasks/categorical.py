"""A categorical latent variable: which of K linear classifiers does a point belong to?

Points lie around K centres, and each cluster has a linear classifier of its own. A linear encoder
scores the clusters from a point, a choice of one is made, and a bilinear decoder reads the label from
the choice and the point. Nobody says which cluster is right, so the encoder learns through the choice
alone.

The settings are those of Mihaylova, Niculae and Martins, "Understanding the Mechanics of SPIGOT"
(EMNLP 2020), and of the code that they published, github.com/deep-spin/understanding-spigot, folder
synthetic (generate_latent_clf.py, models.py, ste.py, main.py): 100 features; 5,000 points for training,
all of them in every step, 1,000 for validation and 1,000 for the test; PyTorch's first weights of
`nn.Linear` and `nn.Bilinear`; Adam for 10,000 steps at the rates in `RATES`, without regularisation;
relaxed rows are tested at the best cluster, and as mixtures, which is what the published table has.
SPIGOT-CE and SPIGOT-EG take the loss's gradient where their steps begin.

What differs. Labels are balanced by each cluster's median over the training points (theirs: by the
mean of whatever part is drawn). Every seed draws its own points (theirs: one set for all seeds). Score
functions are per point and of the log-probability (theirs multiplies the scores by the whole batch's
loss). And a step size here is for each point's own loss: the published code pulls back the gradient of
the mean over 5,000 points, which is a step 5,000 times shorter (the study "published-scale").

Which estimators would stay at the right answer, had they found it? In the study "from-gold" encoder and
decoder are first told the clusters, for a quarter of the steps, and then trained as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot, softplus

from examples.experiments.estimators import Choice, choice
from examples.experiments.experiment import Experiment, Metric, Study, Task, cells
from examples.experiments.run import Run, Settings
from spigot.polytopes import Simplex

__all__ = ["TASK", "Clusters", "costs"]

SPREAD = 0.1
TOLD = 0.001  # the rate at which the true clusters are learned
STRUCTURES = {"3-clusters": 3, "10-clusters": 10}


@dataclass(frozen=True)
class Size:
    features: int
    train: int
    rest: int  # points for validation, and as many for the test
    steps: int
    check_every: int


SIZES = {"full": Size(100, 5000, 1000, 10_000, 500), "smoke": Size(20, 200, 100, 60, 20)}


@dataclass(frozen=True)
class Points:
    inputs: Tensor  # (n, features)
    signs: Tensor  # (n,), the labels, -1 or 1
    clusters: Tensor  # (n,)


def drawn(seed: int, clusters: int, size: Size) -> dict[str, Points]:
    """The three parts of a seed's points."""
    rng = torch.Generator().manual_seed(seed)
    centres, weights = torch.randn(2, clusters, size.features, generator=rng)
    count = size.train + 2 * size.rest
    belongs = torch.randint(clusters, (count,), generator=rng)
    inputs = centres[belongs] + SPREAD * torch.randn(count, size.features, generator=rng)
    scores = (weights[belongs] * inputs).sum(1)
    seen, where = scores[: size.train], belongs[: size.train]
    middle = torch.stack([seen[where == cluster].median() for cluster in range(clusters)])
    signs = torch.where(scores > middle[belongs], 1.0, -1.0)
    sizes = [size.train, size.rest, size.rest]
    parts = zip(inputs.split(sizes), signs.split(sizes), belongs.split(sizes), strict=True)
    return {
        name: Points(*part) for name, part in zip(("train", "validation", "test"), parts, strict=True)
    }


class Model(nn.Module):
    """An encoder of scores and a bilinear decoder of two logits, of which only the difference counts."""

    def __init__(self, features: int, clusters: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, clusters)
        self.decoder = nn.Bilinear(clusters, features, 2)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # (n, K) each
        """The clusters' scores, and each cluster's logit but for the bias, by one product."""
        first, second = self.decoder.weight
        scores, logits = linear(inputs, torch.cat([self.encoder.weight, second - first])).chunk(2, 1)
        return scores + self.encoder.bias, logits

    def decide(self, mu: Tensor, logits: Tensor) -> Tensor:  # (n, K), (n, K) -> (n,)
        """The decoder's logit at a choice."""
        first, second = self.decoder.bias
        return (mu * logits).sum(-1) + (second - first)


def costs(logits: Tensor, signs: Tensor) -> Tensor:
    """Each point's cross-entropy: the logarithm of the other label's odds."""
    return softplus(-signs * logits)


class Clusters(Experiment):
    """Every row but the linear one."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size, clusters = SIZES[run.size], STRUCTURES[run.structure]
        self.points = drawn(run.seed, clusters, size)
        self.gold = run.estimator == "gold"
        self.polytope = Simplex(clusters)
        self.network = Model(size.features, clusters)
        self.choose = nn.Identity() if self.gold else choice(run.estimator, self.polytope, settings)
        self.model = nn.ModuleList([self.network, self.choose])
        self.optimizers = [torch.optim.Adam(self.network.parameters(), settings.number("learning_rate"))]
        self.steps, self.check_every = size.steps, size.check_every
        self.chosen = one_hot(self.points["train"].clusters, clusters).float()
        if settings.flag("from_gold"):
            tell(self.network, self.points["train"], size.steps // 4)

    def loss(self, step: int) -> Tensor:
        points = self.points["train"]
        scores, logits = self.network(points.inputs)

        def each(mu: Tensor) -> Tensor:
            return costs(self.network.decide(mu, logits), points.signs)

        return (each(self.chosen) if self.gold else self.choose(scores, each)).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        points = self.points[part]
        scores, logits = self.network(points.inputs)
        found = points.clusters if self.gold else scores.argmax(1)
        given = self.network.decide(one_hot(found, scores.shape[1]), logits)
        told = {"accuracy": right(given, points), "v_measure": agreement(points.clusters, found)}
        if isinstance(self.choose, Choice) and self.choose.relaxed:
            mixed = self.network.decide(self.choose.layer(scores), logits)
            told["relaxed"] = right(mixed, points)
        return told


def tell(network: Model, points: Points, steps: int) -> None:
    """Trains both the encoder and the decoder on the true clusters."""
    optimizer = torch.optim.Adam(network.parameters(), TOLD)
    for _ in range(steps):
        optimizer.zero_grad()
        scores, logits = network(points.inputs)
        right_one = one_hot(points.clusters, scores.shape[1])
        loss = costs(network.decide(right_one, logits), points.signs).mean()
        (loss + cross_entropy(scores, points.clusters)).backward()
        optimizer.step()


class Linear(Experiment):
    """The row that knows of no clusters."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size = SIZES[run.size]
        self.points = drawn(run.seed, STRUCTURES[run.structure], size)
        self.model = nn.Linear(size.features, 2)
        self.optimizers = [torch.optim.Adam(self.model.parameters(), settings.number("learning_rate"))]
        self.steps, self.check_every = size.steps, size.check_every

    def _logits(self, points: Points) -> Tensor:
        first, second = self.model(points.inputs).unbind(1)
        return second - first

    def loss(self, step: int) -> Tensor:
        points = self.points["train"]
        return costs(self._logits(points), points.signs).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        points = self.points[part]
        return {"accuracy": right(self._logits(points), points)}


def right(logits: Tensor, points: Points) -> float:
    return ((logits > 0) == (points.signs > 0)).double().mean().item()


def agreement(true: Tensor, found: Tensor) -> float:
    """The V-measure: 1 where the two are the same up to names, 0 where one says nothing of the other."""
    from sklearn import metrics

    return float(cast(Any, metrics).v_measure_score(true.numpy(), found.numpy()))


def made(run: Run, settings: Settings) -> Experiment:
    kind: Callable[[Run, Settings], Experiment] = Linear if run.estimator == "linear" else Clusters
    return kind(run, settings)


FAST = 0.002
RATES = {  # the published code's, and the faster of its two for others that move the scores as these do
    **dict.fromkeys(("marginals", "gumbel-softmax", "gumbel-ste", "ste-softmax", "spigot-ce"), FAST),
    **dict.fromkeys(("spigot-eg", "reinforce", "reinforce-baseline", "ste-softmax-diagonal"), FAST),
    **dict.fromkeys(("perturbed", "imle", "blackbox", "minimum-risk"), FAST),
}
FROM_START = ("spigot-ce", "spigot-eg", "spigot-sparsemap")
STEPPING = ("ste-identity", "spigot", "spigot-ce", "spigot-eg")

MAIN = Study(
    "main",
    "Every estimator",
    (
        *cells("linear", "gold"),
        *cells("minimum-risk", "reinforce", "reinforce-baseline"),
        *cells("marginals", "sparsemap", "gumbel-softmax"),
        *cells("gumbel-ste", "ste-identity", "ste-softmax", "ste-softmax-diagonal"),
        *cells("spigot", "spigot-ce"),
        *cells("spigot-eg", step_size=(0.1, 1.0, 2.0)),
        *cells("spigot-sparsemap", "frank-wolfe", "blackbox", "imle", "perturbed"),
    ),
    curves=True,
)
STUDIES = (
    MAIN,
    Study(
        "from-gold",
        "Begun at the true clusters",
        cells(
            "minimum-risk",
            *("ste-identity", "ste-softmax", "spigot", "spigot-ce", "spigot-eg", "spigot-sparsemap"),
            *("frank-wolfe", "blackbox", "imle"),
            from_gold=(True,),
        ),
        ("3-clusters",),
        curves=True,
    ),
    Study("steps", "Several pull-back steps", cells(*STEPPING, steps=(1, 5, 10))),
    Study(
        "step-size",
        "Step sizes",
        cells(
            *STEPPING,
            "spigot-sparsemap",
            "blackbox",
            "imle",
            step_size=(0.01, 0.1, 1.0, 10.0),
        ),
    ),
    Study(
        "published-scale",
        "Steps of each point's own loss, and of the mean loss as in the published code",
        cells(*STEPPING, "blackbox", step_size=(1.0, 0.0002)),
    ),
)

TASK = Task(
    name="categorical",
    title="A categorical latent variable",
    structures=tuple(STRUCTURES),
    studies=STUDIES,
    metrics=(
        Metric("accuracy", "accuracy, %", percent=True),
        Metric("v_measure", "V-measure, %", percent=True),
        Metric("relaxed", "accuracy of mixtures, %", percent=True, drawn=False),
    ),
    baseline="linear",
    make=made,
    options={"learning_rate": 0.001, "from_gold": False},
    usual={
        name: {
            **({"learning_rate": RATES[name]} if name in RATES else {}),
            **({"gradient_at": "start"} if name in FROM_START else {}),
        }
        for name in (*RATES, *FROM_START)
    },
    centre="median",
)
