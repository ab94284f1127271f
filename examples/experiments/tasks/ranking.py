"""Which documents answer a query best? Learning to rank, through the ranking and around it.

The set is LightGBM's own example: 201 queries of 1 to 27 documents with 300 features, each document
judged from 0 to 4; 50 queries for the test. Of the 201 each seed holds 40 out for validation. A small
network scores each document by itself.

A gain is 2^grade - 1, a discount 1 / log2(1 + rank), and NDCG the sum of gains times discounts over
that of the ideal ranking; NDCG@k counts the first k. The metric is computed as LightGBM does: a query
without any relevant document counts 1. No such query is learned from.

Structures, both a `Permutahedron` of as many items as there are documents, by `lengths=`:

- ranks: weights m, ..., 1 for m documents, so the rank is m + 1 - y. The loss 1 - NDCG is a curved
  function of soft ranks; `sparsemap` here is `SoftRank` at strength `temperature`.
- discounts: the weights are the discounts themselves, and the loss is linear in y. Its gradient does
  not depend on y, so STE-identity never stops growing.

Rows that learn through the choice see 1 - NDCG of it. The losses' target is the mean of all ideal
rankings: documents judged alike share their weights. Gibbs marginals of rankings of 27 are out of
reach: `marginals`, SPIGOT-CE, SPIGOT-EG and STE-softmax take Shannon's entropy over the parts instead
(entropic soft ranks). Baselines: `pointwise` fits the grades by squared error, `listwise` is the
cross-entropy of the softmax over a query's documents from their shares of the gain.

LightGBM prints a log for this example, but keeps none; what it does publish are two bounds in its own
tests (test_lambdarank: NDCG@1 above 0.5674 and NDCG@3 above 0.578), for trees whose number was chosen
on the test set. They stand beside ours for scale and cannot be compared.

The perceptron's loss is 0 wherever a query's scores are all equal, and its target is no ranking where
grades repeat: it has nothing to hold the scores apart, and ends near a random order.

Size "full" is 600 steps of 32 queries, the best of 30 looks at the validation part: three seeds, over
two structures and 17 rows, took three minutes on two cores. Step sizes were tried at 0.1, 1 and 10 on
the validation part of seed 0 over both structures (SPIGOT 66.1, 63.8 and 60.4, SPIGOT-CE 70.1, 69.4
and 69.3, SPIGOT-EG 70.4, 70.4 and 69.2): SPIGOT takes 0.1, the others 1. Noise of scale 1 and
temperatures of 1 are as in the table of estimators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from examples.data import LTR, Query, graded_queries
from examples.experiments.estimators import choice, layer, row
from examples.experiments.experiment import Experiment, Metric, Needs, Study, Task, cells, minibatch
from examples.experiments.run import Run, Settings
from spigot.polytopes import Permutahedron

__all__ = ["TASK", "Queries", "drawn_queries", "ndcg", "shared_weights"]

CUTOFFS = (1, 3, 5, 10)
HIDDEN, DROPOUT = 64, 0.3
HELD_OUT = 40
NO_SCORE = -torch.inf


@dataclass(frozen=True)
class Size:
    steps: int
    check_every: int


SIZES = {"full": Size(600, 20), "smoke": Size(20, 10)}


@dataclass(frozen=True)
class Queries:
    """Padded to the largest one's documents."""

    features: Tensor  # (n, documents, features)
    grades: Tensor  # (n, documents), -1 in the padding
    lengths: Tensor  # (n,)

    @classmethod
    def of(cls, queries: list[Query], documents: int) -> Queries:
        lengths = torch.tensor([len(query.grades) for query in queries])
        features = pad_sequence([query.features for query in queries], batch_first=True)
        grades = pad_sequence([query.grades for query in queries], batch_first=True, padding_value=-1)
        more = documents - grades.shape[1]
        return cls(pad(features, (0, 0, 0, more)), pad(grades, (0, more), value=-1), lengths)

    def some(self, rows: Tensor) -> Queries:
        return Queries(self.features[rows], self.grades[rows], self.lengths[rows])

    @property
    def inside(self) -> Tensor:  # (n, documents), bool
        return self.grades >= 0

    @property
    def gains(self) -> Tensor:  # (n, documents), 0 in the padding
        return 2.0 ** self.grades.clamp(min=0) - 1

    @property
    def ideal(self) -> Tensor:  # (n,)
        """The best ranking's sum of gains times discounts."""
        gains = self.gains.sort(1, descending=True).values
        return (gains * discounts(gains.shape[1])).sum(1)


def discounts(documents: int) -> Tensor:
    return 1 / torch.arange(2.0, documents + 2).log2()


def drawn_queries(count: int, seed: int) -> list[Query]:
    """Queries drawn at random, grades by a linear score."""
    rng = torch.Generator().manual_seed(seed)
    slope = torch.randn(300, generator=torch.Generator().manual_seed(0))
    sizes = torch.randint(1, 10, (count,), generator=rng).tolist()
    features = [torch.rand(size, 300, generator=rng) for size in sizes]
    return [Query(x, ((x - 0.5) @ slope).add(2).clamp(0, 4).long()) for x in features]


def ndcg(scores: Tensor, queries: Queries, cutoff: int) -> float:
    """The mean over queries of NDCG@cutoff, as LightGBM's; the first of equal scores comes first."""
    order = scores.masked_fill(~queries.inside, NO_SCORE).argsort(dim=1, descending=True, stable=True)
    gains = queries.gains
    top = discounts(gains.shape[1])[:cutoff]
    found = (gains.take_along_dim(order, 1)[:, :cutoff] * top).sum(1)
    best = (gains.sort(1, descending=True).values[:, :cutoff] * top).sum(1)
    return torch.where(best > 0, found / best.clamp(min=1e-9), 1.0).double().mean().item()


def shared_weights(weights: Tensor, queries: Queries) -> Tensor:  # (documents,) -> (n, documents)
    """The mean of all ideal rankings: what the grades' places hold, shared by those judged alike."""
    grades, inside = queries.grades, queries.inside
    places = (
        weights.expand(grades.shape).masked_fill(~inside, -torch.inf).sort(1, descending=True).values
    )
    sums = pad(places.where(places.isfinite(), 0.0).cumsum(1), (1, 0))
    better = (grades[:, None] > grades[:, :, None]).sum(2)
    alike = (grades[:, None] == grades[:, :, None]).sum(2)
    shares = sums.take_along_dim(better + alike, 1) - sums.take_along_dim(better, 1)
    return (shares / alike).where(inside, 0.0)


def ranked(mu: Tensor, queries: Queries) -> Tensor:  # (n,)
    """1 - NDCG of soft ranks m + 1 - y."""
    ranks = (queries.lengths[:, None] + 1 - mu).clamp(min=1)
    return 1 - (queries.gains / (1 + ranks).log2()).sum(1) / queries.ideal


def discounted(mu: Tensor, queries: Queries) -> Tensor:  # (n,)
    """1 - NDCG of soft discounts."""
    return 1 - (queries.gains * mu).sum(1) / queries.ideal


def pointwise(scores: Tensor, queries: Queries) -> Tensor:  # (n,)
    """The mean squared error of the grades."""
    wrong = (scores - queries.grades).square().where(queries.inside, 0.0)
    return wrong.sum(1) / queries.lengths


def listwise(scores: Tensor, queries: Queries) -> Tensor:  # (n,)
    """The cross-entropy of the softmax from the shares of the gain."""
    logs = scores.masked_fill(~queries.inside, -1e9).log_softmax(1)
    return -(queries.gains * logs).sum(1) / queries.gains.sum(1)


Judge = Callable[[Tensor, Queries], Tensor]  # scores (n, documents) -> each query's loss (n,)
BASELINES: dict[str, Judge] = {"pointwise": pointwise, "listwise": listwise}


@dataclass(frozen=True)
class Structure:
    weights: Callable[[int], Tensor]  # of so many documents
    loss: Judge  # of a point of the polytope


STRUCTURES = {
    "ranks": Structure(lambda documents: torch.arange(1.0, documents + 1), ranked),
    "discounts": Structure(discounts, discounted),
}


def judge(run: Run, documents: int, settings: Settings) -> Judge:
    """The row's loss."""
    kind = row(run.estimator).kind
    if kind == "baseline":
        return BASELINES[run.estimator]
    structure = STRUCTURES[run.structure]
    weights = structure.weights(documents)
    polytope = Permutahedron(weights)
    if kind == "loss":
        fitted = layer(run.estimator, polytope, settings)
        return lambda scores, queries: fitted(
            scores, shared_weights(weights, queries), lengths=queries.lengths
        )
    choose = choice(run.estimator, polytope, settings)
    return lambda scores, queries: choose(
        scores, lambda mu: structure.loss(mu, queries), lengths=queries.lengths
    )


class Scorer(nn.Module):
    """A score for every document, `(n, documents, features)` to `(n, documents)`."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.map = nn.Sequential(
            nn.Linear(features, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.map(features)[..., 0]


class Ranking(Experiment):
    """Every row."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size, smoke = SIZES[run.size], run.size == "smoke"
        seen = drawn_queries(60, run.seed) if smoke else graded_queries("train")
        unseen = drawn_queries(20, run.seed + 1) if smoke else graded_queries("test")
        documents = max(len(query.grades) for query in (*seen, *unseen))
        whole = Queries.of(seen, documents)
        held, rest = torch.randperm(len(seen)).split([HELD_OUT, len(seen) - HELD_OUT])
        train = whole.some(rest)
        self.train = train.some(torch.nonzero(train.ideal > 0)[:, 0])
        self.parts = {"validation": whole.some(held), "test": Queries.of(unseen, documents)}
        self.seed, self.batch = run.seed, settings.whole("batch")
        self.steps, self.check_every = size.steps, size.check_every
        self.model = Scorer(whole.features.shape[2])
        self.optimizers = [
            torch.optim.Adam(
                self.model.parameters(), settings.number("learning_rate"), weight_decay=1e-4
            )
        ]
        self.judge = judge(run, documents, settings)

    def loss(self, step: int) -> Tensor:
        batch = self.train.some(minibatch(self.seed, step, len(self.train.lengths), self.batch))
        return self.judge(self.model(batch.features), batch).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        queries = self.parts[part]
        scores = self.model(queries.features)
        return {f"ndcg_{cutoff}": ndcg(scores, queries, cutoff) for cutoff in CUTOFFS}


THROUGH = (
    *("ste-identity", "ste-softmax", "spigot", "spigot-ce", "spigot-eg", "spigot-sparsemap"),
    *("blackbox", "imle", "perturbed", "sparsemap", "marginals"),
)
FITTED = (
    *("fenchel-young-shannon", "fenchel-young-sparsemap", "perturbed-fenchel-young", "perceptron"),
)
ENTROPIC = ("ste-softmax", "spigot-ce", "spigot-eg", "marginals")

TASK = Task(
    name="ranking",
    title="Documents ranked for queries",
    structures=tuple(STRUCTURES),
    studies=(Study("main", "Every estimator", cells(*BASELINES, *FITTED, *THROUGH), curves=True),),
    metrics=(
        Metric("ndcg_5", "NDCG@5, %", percent=True),
        *(Metric(f"ndcg_{k}", f"NDCG@{k}, %", percent=True, drawn=False) for k in (1, 3, 10)),
    ),
    baseline="pointwise",
    make=Ranking,
    options={"learning_rate": 0.001, "batch": 32},
    usual={"spigot": {"step_size": 0.1}, **{name: {"entropy": "shannon"} for name in ENTROPIC}},
    select="ndcg_5",
    needs=Needs("ltr_lightgbm_lambdarank", LTR),
)
