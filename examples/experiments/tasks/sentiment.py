"""Latent dependency trees for sentiment: is what is said of a film good or bad?

A sentence's words have fixed vectors; a BiLSTM reads them, and a biaffine scorer rates every pair of
head and dependent. A tree is chosen. Then every word is seen beside its head (a root beside a learned
vector),

    r = mean over words d of relu(W [v_d; sum over h of y[h, d] v_h]),

and r is classified. Nobody says what the trees are. Beside the estimators stand: no tree (every word its
own root), flat attention (each word's heads by a softmax of its own), and random trees, new ones each
time.

The data are the binary Stanford Sentiment Treebank (Socher et al., EMNLP 2013), whole sentences only:
6,920 for training, 872 for validation and 1,821 for the test. A word's vector is the mean of its word
pieces' in the input table of all-MiniLM-L6-v2, reduced to 100 dimensions by the principal components of
the training set's words. The model tested is that of the best validation accuracy.

To have the study done in two hours on two cores, sentences of more than 30 words are left out of
training (11 %), and none out of validation and test; 128 units, 8 epochs of batches of 32. By
projective trees the rows that project mixtures of many trees are left out: half an hour a run.

"Accuracy" is that of the row as it is trained, but for noise in the scores of an argmax (relaxations are
tested relaxed, the perturbed maximum with its noise, score functions at the best tree); "best tree" is
that at the tree of largest score, for all.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from examples.data import SST, Judged, sentiments, word_pieces
from examples.experiments.dependencies import (
    ADAPTIVE,
    ROWS,
    TREES,
    ArcScorer,
    Encoder,
    LatentTree,
    by_length,
    group,
    real,
    studies,
)
from examples.experiments.experiment import Experiment, Metric, Needs, Task
from examples.experiments.run import Run, Settings

__all__ = ["TASK"]


@dataclass(frozen=True)
class Size:
    width: int  # of the BiLSTM's two directions together
    longest: int  # sentence to learn from
    batch: int
    epochs: int


SIZES = {"full": Size(128, 30, 32, 8), "smoke": Size(16, 30, 16, 3)}
VECTOR, DROPPED = 100, 0.3


@dataclass(frozen=True)
class Sentences:
    words: Tensor  # (count, longest), rows of the vectors; 0 in the padding
    lengths: Tensor  # (count,)
    positive: Tensor  # (count,), 0 or 1


@dataclass(frozen=True)
class Corpus:
    vectors: Tensor  # (words + 1, d), the first of zeros
    parts: dict[str, Sentences]


def padded(rows: Sequence[Judged], place: dict[str, int]) -> Sentences:
    lengths = torch.tensor([len(row.words) for row in rows])
    words = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for k, row in enumerate(rows):
        words[k, : lengths[k]] = torch.tensor([place[word] for word in row.words])
    return Sentences(words, lengths, torch.tensor([int(row.positive) for row in rows]))


def principal(vectors: Tensor, known: Tensor, dimensions: int) -> Tensor:
    """The vectors along the known ones' largest principal components, of mean square 1 there."""
    seen = vectors[known]
    middle = seen.mean(0)
    _, _, axes = torch.linalg.svd(seen - middle, full_matrices=False)
    found = (vectors - middle) @ axes[:dimensions].mT
    return found / found[known].square().mean().sqrt()


@functools.cache
def treebank(longest: int) -> Corpus:
    """The published one, read once a process."""
    rows = {
        name: sentiments(part)
        for name, part in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    rows["train"] = [row for row in rows["train"] if len(row.words) <= longest]
    place: dict[str, int] = {}
    for part in rows.values():
        for row in part:
            for word in row.words:
                place.setdefault(word, len(place) + 1)
    pieces = word_pieces()
    vectors = torch.stack([pieces.word(word) for word in place])
    seen = {word for row in rows["train"] for word in row.words}
    known = torch.tensor(sorted(place[word] - 1 for word in seen))  # a set's order is the process's own
    reduced = principal(vectors, known, VECTOR)
    table = torch.cat([torch.zeros(1, VECTOR), reduced])
    return Corpus(table, {name: padded(part, place) for name, part in rows.items()})


@functools.cache
def invented(longest: int, count: int = 96) -> Corpus:
    """Of 40 words ten speak well, ten ill, and one turns the sense of the next around."""
    rng = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, longest, (3 * count,), generator=rng)
    words = torch.randint(1, 41, (3 * count, longest), generator=rng)
    words[torch.arange(longest) >= lengths[:, None]] = 0
    sense = ((words > 0) & (words <= 10)).float() - ((words > 10) & (words <= 20)).float()
    turned = torch.cat([torch.ones(len(words), 1), 1 - 2 * (words[:, :-1] == 21).float()], 1)
    positive = (sense * turned).sum(1) > 0
    vectors = torch.cat([torch.zeros(1, 16), torch.randn(40, 16, generator=rng)])
    pieces = (part.split(count) for part in (words, lengths, positive.long()))
    names = ("train", "validation", "test")
    return Corpus(vectors, dict(zip(names, map(Sentences, *pieces), strict=True)))


class Model(nn.Module):
    """Words to the arcs' scores, and words with arcs to logits."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.encoder = Encoder(vectors.shape[1], width)
        self.scorer = ArcScorer(width)
        self.root = nn.Parameter(torch.zeros(width))
        self.pair = nn.Linear(2 * width, width)
        self.logits = nn.Linear(width, 2)

    def encoded(self, words: Tensor, lengths: Tensor) -> Tensor:
        """`(batch, n, width)`, with dropout before and after the BiLSTM."""
        inputs = dropout(self.table(words), DROPPED, self.training)
        return dropout(self.encoder(inputs, lengths), DROPPED, self.training)

    def judged(self, encoded: Tensor, lengths: Tensor, arcs: Tensor) -> Tensor:
        """The logits, `(batch, 2)`."""
        roots = arcs.diagonal(dim1=-2, dim2=-1)[..., None]
        heads = arcs.mT @ encoded + roots * (self.root - encoded)
        pairs = torch.relu(self.pair(torch.cat([encoded, heads], -1)))
        words = real(lengths, encoded.shape[1])[..., None]
        return self.logits((pairs * words).sum(1) / lengths[:, None])


class Sentiment(Experiment):
    """One estimator, one kind of tree."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size = SIZES[run.size]
        self.seed = run.seed
        self.corpus = (invented if run.size == "smoke" else treebank)(size.longest)
        self.network = Model(self.corpus.vectors, size.width)
        longest = max(int(part.lengths.max()) for part in self.corpus.parts.values())
        self.trees = LatentTree(run.estimator, run.structure, settings, longest)
        self.model = nn.ModuleList([self.network, self.trees])
        self.optimizers = [torch.optim.Adam(self.network.parameters(), settings.number("learning_rate"))]
        self.groups = {
            name: by_length(part.lengths, size.batch) for name, part in self.corpus.parts.items()
        }
        self.check_every = len(self.groups["train"])
        self.steps = size.epochs * self.check_every

    def _read(self, part: str, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The words' encodings, the arcs' scores, the lengths and the labels of some rows."""
        sentences = self.corpus.parts[part]
        lengths = sentences.lengths[rows]
        encoded = self.network.encoded(sentences.words[rows, : int(lengths.max())], lengths)
        return encoded, self.network.scorer(encoded), lengths, sentences.positive[rows]

    def loss(self, step: int) -> Tensor:
        encoded, scores, lengths, positive = self._read(
            "train", group(self.groups["train"], self.seed, step)
        )

        def each(arcs: Tensor) -> Tensor:
            logits = self.network.judged(encoded, lengths, arcs)
            return cross_entropy(logits, positive, reduction="none")

        return self.trees(scores, lengths, each).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        torch.manual_seed(self.seed)  # for what is random in the test too
        found: dict[str, list[Tensor]] = {"accuracy": [], "best_tree": []}
        for rows in self.groups[part]:
            encoded, scores, lengths, positive = self._read(part, rows)

            def right(
                arcs: Tensor,
                encoded: Tensor = encoded,
                lengths: Tensor = lengths,
                positive: Tensor = positive,
            ) -> Tensor:
                logits = self.network.judged(encoded, lengths, arcs)
                return (logits.argmax(1) == positive).to(arcs)

            found["accuracy"].append(self.trees(scores, lengths, right))
            if self.trees.scored:
                found["best_tree"].append(right(self.trees.best(scores, lengths)))
        return {name: torch.cat(each).mean().item() for name, each in found.items() if each}


TASK = Task(
    name="sentiment",
    title="Latent dependency trees for sentiment",
    structures=tuple(TREES),
    studies=studies("Test accuracy with a tree between the words and the judgement", *ROWS),
    metrics=(
        Metric("accuracy", "accuracy, %", percent=True),
        Metric("best_tree", "best tree, %", percent=True),
    ),
    baseline="no-tree",
    make=Sentiment,
    options={"learning_rate": 1e-3},
    usual=ADAPTIVE,
    select="accuracy",
    needs=Needs("sst", SST),
)
