"""Which corner of a house is which, in two frames of a film far apart, the places seen with an error?

Thirty corners are marked in every frame of the CMU house and of the CMU hotel, around which the camera
moves. Their places are disturbed by Gaussian errors of 8 pixels (a seed's own), and a corner is then
described by where the others lie around it (the shape context of Belongie, Malik and Puzicha, "Shape
matching and object recognition using shape contexts", PAMI 2002: roots of counts in 5 rings and 12
sectors) and by its place relative to them all. A small network maps descriptions to 32 numbers, a
pair's score is their inner product, and two frames are matched by the best assignment, `Matching(30,
30)`. The second frame's corners come in a random order.

Training is on few pairs: of every twentieth frame, the six pairs of each film at least 60 frames
apart. Validation and test take the pairs so far apart among other frames.

Two kinds of rows. Losses see the true matching y*. The others learn through the choice y, from how far
the matched corners are from the right ones in the second frame (distances in units of the points'
spread), and this can be said in two ways that agree at every matching and differ between them:

- distance: sum_ij y_ij |x_j - x*_i|^2, the mean over matchings where y is a mixture. It is linear, so
  its gradient never depends on y, and STE-identity, which hands it on, never stops growing.
- mean-point: sum_i |sum_j y_ij x_j - x*_i|^2, how far the mean of the matched corners is. Its gradient
  is 0 at the true matching; but at a wrong one it points beyond the right corner, to whatever lies
  farthest that way, so that long steps to a vertex (SPIGOT, black-box) lead to wrong matchings.

Gibbs marginals of matchings of 30 are out of reach (a permanent): `marginals`, SPIGOT-CE, SPIGOT-EG
and STE-softmax take Shannon's entropy over the parts instead, whose maximiser is Sinkhorn's.

Chosen on the validation part of seed 0, one value of 0.1, 1, 10 at a time: step sizes of 1 (SPIGOT
67.9 against 66.6 and 64.9, SPIGOT-CE 83.6 against 77.8 and 82.4; EG and black-box differ by less than
2.5), noise of scale 1 (of 0.1, 0.3, 1, 3), temperatures of 0.3 for the two relaxed rows (of 0.3, 1,
3). Size "full" is 400 steps on all twelve pairs: three seeds of the main study took a minute on two
cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from examples.data import CMU, house_and_hotel
from examples.experiments.estimators import choice, layer, row
from examples.experiments.experiment import Experiment, Metric, Needs, Study, Task, cells
from examples.experiments.run import Run, Settings, Value
from spigot.polytopes import Matching

__all__ = ["TASK", "Pairs", "contexts", "distance", "mean_point", "turned"]

RINGS, SECTORS = 5, 12
HIDDEN, WIDTH = 64, 32
EVERY, CHECKED = 20, (6, 13)  # of twenty frames the first is learned from, these are for validation


@dataclass(frozen=True)
class Size:
    apart: int  # frames, at least
    error: float  # of the places, in pixels
    steps: int
    check_every: int


SIZES = {"full": Size(60, 8.0, 400, 20), "smoke": Size(20, 1.0, 20, 10)}


def turned(points: int, frames: int, seed: int) -> Tensor:  # (frames, points, 2)
    """A film of points in space that turn by a right angle."""
    rng = torch.Generator().manual_seed(seed)
    x, y, z = 100 * torch.randn(3, points, generator=rng)
    angle = torch.linspace(0, math.pi / 2, frames)[:, None]
    return torch.stack([x * angle.cos() + z * angle.sin(), y.expand(frames, -1)], -1)


def contexts(places: Tensor) -> Tensor:  # (n, points, 2) -> (n, points, 60)
    """Roots of how many others lie in each ring and sector around a point; rings double in width."""
    away = places[:, None] - places[:, :, None]  # [n, i, j] from i to j
    points = places.shape[1]
    others = ~torch.eye(points, dtype=torch.bool)
    lengths = away.norm(dim=-1)
    mean = lengths[:, others].mean(1)[:, None, None]
    rings = (lengths / mean).clamp(min=1e-9).log2().floor().long().add(3).clamp(0, RINGS - 1)
    turns = torch.atan2(away[..., 1], away[..., 0]) / (2 * math.pi) % 1
    sectors = (turns * SECTORS).long().clamp(max=SECTORS - 1)
    counts = one_hot(rings * SECTORS + sectors, RINGS * SECTORS) * others[:, :, None]
    return counts.sum(2).float().sqrt()


def spread(places: Tensor) -> Tensor:
    """Places around their mean, at a mean square of 1."""
    centred = places - places.mean(1, keepdim=True)
    return centred / centred.square().sum(-1, keepdim=True).mean(1, keepdim=True).sqrt()


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames, the second one's points in an order of its own."""

    first: Tensor  # (n, points, features)
    second: Tensor  # (n, points, features)
    places: Tensor  # (n, points, 2), of the second
    labels: Tensor  # (n, points): which of the second is point i of the first

    @classmethod
    def of(cls, film: Tensor, frames: list[int], apart: int, rng: torch.Generator) -> Pairs:
        """All pairs so far apart."""
        far = [(a, b) for a in frames for b in frames if b - a >= apart]
        first, second = torch.tensor(far).T
        labels = torch.rand(len(far), film.shape[1], generator=rng).argsort(1)
        order = labels.argsort(1)[:, :, None]
        places = spread(film)
        features = torch.cat([contexts(film), places], -1)
        shuffled = features[second].take_along_dim(order, 1)
        return cls(features[first], shuffled, places[second].take_along_dim(order, 1), labels)

    def joined(self, other: Pairs) -> Pairs:
        both = zip(vars(self).values(), vars(other).values(), strict=True)
        return Pairs(*(torch.cat(pair) for pair in both))


def parts(film: Tensor, size: Size, rng: torch.Generator) -> dict[str, Pairs]:
    """Pairs to learn from, to choose by and to be tested on."""
    seen = film + size.error * torch.randn(film.shape, generator=rng)
    held: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for frame in range(len(film)):
        place = frame % EVERY
        held["train" if place == 0 else "validation" if place in CHECKED else "test"].append(frame)
    return {name: Pairs.of(seen, frames, size.apart, rng) for name, frames in held.items()}


def distance(mu: Tensor, pairs: Pairs) -> Tensor:  # (n,)
    """How far matched points are from the right ones, the mean over the matchings that mu mixes."""
    return (mu * torch.cdist(true_places(pairs), pairs.places).square()).sum((1, 2))


def mean_point(mu: Tensor, pairs: Pairs) -> Tensor:  # (n,)
    """How far the matched points' mean is from the right one."""
    return (mu @ pairs.places - true_places(pairs)).square().sum((1, 2))


def true_places(pairs: Pairs) -> Tensor:
    return pairs.places.take_along_dim(pairs.labels[:, :, None], 1)


def pointwise(scores: Tensor, pairs: Pairs) -> Tensor:  # (n,)
    """Every point chooses its own, whatever the others do."""
    return cross_entropy(scores.transpose(1, 2), pairs.labels, reduction="none").sum(1)


LOSSES: dict[str, Callable[[Tensor, Pairs], Tensor]] = {"distance": distance, "mean-point": mean_point}
Judge = Callable[[Tensor, Pairs], Tensor]  # scores (n, points, points) -> each pair's loss (n,)


def judge(run: Run, polytope: Matching, settings: Settings) -> Judge:
    """The row's loss."""
    kind = row(run.estimator).kind
    if kind == "baseline":
        return pointwise
    if kind == "loss":
        fitted = layer(run.estimator, polytope, settings)
        return lambda scores, pairs: fitted(scores, labels=pairs.labels)
    choose, told = choice(run.estimator, polytope, settings), LOSSES[settings.text("loss")]
    return lambda scores, pairs: choose(scores, lambda mu: told(mu, pairs))


class Agreement(nn.Module):
    """Inner products of mapped descriptions, (n, points, features) twice to (n, points, points)."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Sequential(
            nn.Linear(RINGS * SECTORS + 2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.map(first) @ self.map(second).transpose(1, 2) / math.sqrt(WIDTH)


class Raw(nn.Module):
    """Nothing learned: minus the descriptions' squared distances."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return -torch.cdist(first, second).square()


class KeyPoints(Experiment):
    """Every row; `untrained` takes no step."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size = SIZES[run.size]
        rng = torch.Generator().manual_seed(run.seed)
        if run.size == "smoke":
            films = {name: turned(8, 41, run.seed + k) for k, name in enumerate(("house", "hotel"))}
        else:
            frames = house_and_hotel()
            films = {"house": frames.house.float(), "hotel": frames.hotel.float()}
        self.films = {name: parts(film, size, rng) for name, film in films.items()}
        self.train = self.films["house"]["train"].joined(self.films["hotel"]["train"])
        self.polytope = Matching(self.train.labels.shape[1])
        self.check_every = size.check_every
        if run.estimator == "untrained":
            self.model, self.optimizers, self.steps = Raw(), [], 0
            return
        self.model, self.steps = Agreement(), size.steps
        self.optimizers = [torch.optim.Adam(self.model.parameters(), settings.number("learning_rate"))]
        self.judge = judge(run, self.polytope, settings)

    def loss(self, step: int) -> Tensor:
        scores = self.model(self.train.first, self.train.second)
        return self.judge(scores, self.train).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        found = {name: self._matched(pairs[part]) for name, pairs in self.films.items()}
        return {"matched": sum(found.values()) / len(found), **found}

    def _matched(self, pairs: Pairs) -> float:
        best = self.polytope.maximize(self.model(pairs.first, pairs.second))
        return (self.polytope.decode(best) == pairs.labels).double().mean().item()


THROUGH = (
    *("ste-identity", "ste-softmax", "spigot", "spigot-ce", "spigot-eg", "spigot-sparsemap"),
    *("blackbox", "imle", "perturbed", "sparsemap", "marginals"),
)
FITTED = ("fenchel-young-shannon", "fenchel-young-sparsemap", "perturbed-fenchel-young")
MARGINS = ("perceptron", "hinge")
RATE = 0.003
USUAL: dict[str, dict[str, Value]] = {
    **{name: {"entropy": "shannon"} for name in ("ste-softmax", "spigot-ce", "spigot-eg")},
    "marginals": {"entropy": "shannon", "temperature": 0.3},
    "sparsemap": {"temperature": 0.3},
}

TASK = Task(
    name="keypoints",
    title="Key points of a house and a hotel, matched over frames far apart",
    structures=("matching",),
    studies=(
        Study(
            "main",
            "Every estimator",
            cells("pointwise", "untrained", *FITTED, *MARGINS, *THROUGH),
            curves=True,
        ),
        Study(
            "mean-point",
            "The same loss of every matching, another one between them",
            cells(*THROUGH, loss=tuple(LOSSES)),
        ),
        Study(
            "samples",
            "More samples, and less noise",
            cells("perturbed", samples=(8, 64), scale=(0.3, 1.0)),
        ),
    ),
    metrics=(
        Metric("matched", "points matched rightly, %", percent=True),
        Metric("house", "of the house, %", percent=True),
        Metric("hotel", "of the hotel, %", percent=True),
    ),
    baseline="pointwise",
    make=KeyPoints,
    options={"learning_rate": RATE, "loss": "distance"},
    usual=USUAL,
    select="matched",
    needs=Needs("matching_cmu_house_hotel", CMU),
)
