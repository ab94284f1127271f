"""What the tasks with latent dependency trees share: arcs' scores, trees, batches of one length.

Arcs are `(batch, n, n)`, the head by row, the dependent by column, and the root's on the diagonal.
Padding has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from examples.experiments.estimators import choice, row
from examples.experiments.experiment import Study, cells, minibatch
from examples.experiments.run import Settings, Value
from spigot.polytopes import Arborescence, Polytope, ProjectiveTree

__all__ = [
    "ADAPTIVE",
    "ROWS",
    "TREES",
    "ArcScorer",
    "Encoder",
    "LatentTree",
    "by_length",
    "group",
    "real",
    "studies",
]

Loss = Callable[[Tensor], Tensor]
TREES: dict[str, Callable[[int], Polytope]] = {
    "arborescence": Arborescence,
    "projective": ProjectiveTree,
}
WIDTH_STEP = 8
DENSE = ("spigot-ce", "spigot-sparsemap", "sparsemap")  # project mixtures of many trees

ADAPTIVE: dict[str, dict[str, Value]] = {
    name: {"step_size": "adaptive"} for name in ("blackbox", "imle")
}
"""These step in the scores: by a step of 1, on gradients of 0.01, the tree stays as it is."""

ROWS = (
    "no-tree",
    "random-tree",
    "flat-attention",
    "ste-identity",
    "ste-softmax",
    "gumbel-ste",
    "spigot",
    "spigot-ce",
    "spigot-eg",
    "spigot-sparsemap",
    "frank-wolfe",
    "blackbox",
    "imle",
    "perturbed",
    "sparsemap",
    "marginals",
    "reinforce-baseline",
    "reinforce-leave-one-out",
)


def studies(title: str, *estimators: str) -> tuple[Study, ...]:
    """All rows by arborescences; by projective trees those whose projections end near a vertex.

    Projecting a mixture of many trees onto projective ones asks for hundreds of trees: 60 ms a
    sentence, where arborescences take 0.3 ms.
    """
    some = (name for name in estimators if name not in DENSE)
    return (
        Study("arborescence", title, cells(*estimators), ("arborescence",)),
        Study("projective", f"{title}, projective trees", cells(*some), ("projective",)),
    )


def real(lengths: Tensor, n: int) -> Tensor:
    """Which of n places hold a word, `(batch, n)`."""
    return torch.arange(n) < lengths[:, None]


def by_length(lengths: Tensor, batch: int) -> list[Tensor]:
    """The rows in groups of about the same length, shortest first."""
    return list(lengths.argsort(stable=True).split(batch))


def group(groups: Sequence[Tensor], seed: int, step: int) -> Tensor:
    """The group whose turn it is; every epoch has an order of its own, the same for all estimators."""
    return groups[int(minibatch(seed, step, len(groups), 1))]


class Encoder(nn.Module):
    """A BiLSTM: `(batch, n, inputs)` -> `(batch, n, width)`. It does not see the padding; 0 there."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width // 2, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        found, _ = pad_packed_sequence(self.lstm(packed)[0], True, total_length=words.shape[1])
        return found


class ArcScorer(nn.Module):
    """Biaffine scores with a term for how far the head is: `(batch, n, width)` -> `(batch, n, n)`."""

    def __init__(self, width: int, farthest: int = 8) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)  # without it first scores are 0.01, and trees noise for long
        self.head, self.dependent = nn.Linear(width, width), nn.Linear(width, width)
        self.root = nn.Linear(width, 1)
        self.distance = nn.Parameter(torch.zeros(2 * farthest + 1))
        self.farthest = farthest

    def forward(self, words: Tensor) -> Tensor:
        n, width = words.shape[1:]
        words = self.norm(words)
        scores = self.head(words) @ self.dependent(words).mT / width**0.5
        place = torch.arange(n)
        away = (place - place[:, None]).clamp(-self.farthest, self.farthest) + self.farthest
        return torch.where(
            torch.eye(n, dtype=torch.bool), self.root(words).mT, scores + self.distance[away]
        )


class LatentTree(nn.Module):
    """(scores, loss) -> each instance's loss, through the trees of an estimator or a baseline.

    A structure's work grows with its own size, not with the instance's, so there is one for every eight
    words. What an estimator remembers from step to step it remembers for each.
    """

    def __init__(self, estimator: str, structure: str, settings: Settings, longest: int) -> None:
        super().__init__()
        self.row = row(estimator)
        self.tree = TREES[structure]
        self.widths = range(WIDTH_STEP, longest + WIDTH_STEP, WIDTH_STEP)
        made = (choice(estimator, self.tree(n), settings) for n in self.widths if self.learned)
        self.choices = nn.ModuleList(made)

    @property
    def learned(self) -> bool:
        """Whether trees come of the scores."""
        return self.row.kind != "baseline"

    @property
    def scored(self) -> bool:
        """Whether the scores have a meaning, by trees or by flat attention."""
        return self.learned or self.row.name == "flat-attention"

    def forward(self, scores: Tensor, lengths: Tensor, loss: Loss, gold: Tensor | None = None) -> Tensor:
        """Each instance's loss, `(batch,)`, of arcs cut to the scores' own size."""
        if not self.learned:
            return loss(self._given(scores, lengths, gold))
        n = scores.shape[-1]
        chosen = self.choices[self._place(n)]
        if not self.training and self.row.kind == "expectation":
            return loss(self.best(scores, lengths))
        return chosen(self._padded(scores), lambda arcs: loss(arcs[..., :n, :n]), lengths=lengths)

    def best(self, scores: Tensor, lengths: Tensor) -> Tensor:
        """The tree of largest score."""
        n, padded = scores.shape[-1], self._padded(scores)
        return self.tree(padded.shape[-1]).maximize(padded, lengths=lengths)[..., :n, :n]

    def _place(self, n: int) -> int:
        return -(-n // WIDTH_STEP) - 1

    def _padded(self, scores: Tensor) -> Tensor:
        more = self.widths[self._place(scores.shape[-1])] - scores.shape[-1]
        return nn.functional.pad(scores, (0, more, 0, more))

    def _given(self, scores: Tensor, lengths: Tensor, gold: Tensor | None) -> Tensor:
        if self.row.name == "gold":
            assert gold is not None
            return gold
        if self.row.name == "random-tree":
            return self.best(torch.randn_like(scores), lengths)
        words = real(lengths, scores.shape[-1])
        if self.row.name == "no-tree":
            return torch.diag_embed(words.to(scores))
        heads = scores.masked_fill(~words[:, :, None], -torch.inf).softmax(1)  # flat attention
        return heads * words[:, None]
