"""Who depends on whom? A dependency parser of Universal Dependencies, trained by four losses.

Each word has a hashed vector that a small convolution mixes with its neighbours'; a bilinear form scores
every pair of head and dependent. The same network learns English trees (single root, crossing arcs
allowed) by words on their own, by the conditional random field (marginals by the matrix-tree theorem),
by SparseMAP (cutting planes) and by the perceptron, and is asked for the best tree of new sentences.
With marginals comes the entropy, in nats: how sure the parser is.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from data import Parsed, dependency_trees
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from spigot.layers import FenchelYoungLoss
from spigot.polytopes import Arborescence, Euclidean, Gibbs, Regularizer

BUCKETS, WIDTH, LONGEST = 1 << 13, 64, 25
BATCH, RATE = 32, 4e-3


@dataclass(frozen=True)
class Row:
    """A loss, and whether the words' heads must form a tree in it."""

    name: str
    omega: Regularizer | None
    tree: bool = True


ROWS = (
    Row("each word alone", Gibbs(), tree=False),
    Row("random field", Gibbs()),
    Row("SparseMAP", Euclidean()),
    Row("perceptron", None),
)


@dataclass(frozen=True)
class Sentences:
    """Padded to the longest one's length."""

    features: Tensor  # (batch, n, 3), hashed
    heads: Tensor  # (batch, n), -1 for the root, -2 in the padding
    lengths: Tensor  # (batch,)


def described(word: str) -> list[int]:
    """The word, its end and its shape, each hashed."""
    shape = "".join(
        "X" if c.isupper() else "x" if c.islower() else "0" if c.isdigit() else c for c in word
    )
    parts = (word.lower(), "*" + word.lower()[-3:], "shape " + shape[:4])
    return [crc32(part.encode()) % (BUCKETS - 1) + 1 for part in parts]


def padded(sentences: list[Parsed]) -> Sentences:
    lengths = torch.tensor([len(sentence.heads) for sentence in sentences])
    heads = torch.full((len(sentences), int(lengths.max())), -2)
    features = torch.zeros(*heads.shape, 3, dtype=torch.long)
    for k, sentence in enumerate(sentences):
        heads[k, : lengths[k]] = torch.tensor(sentence.heads)
        features[k, : lengths[k]] = torch.tensor([described(word) for word in sentence.words])
    return Sentences(features, heads, lengths)


def batches(sentences: list[Parsed], shuffle: bool) -> Iterator[Sentences]:
    """Sentences of about the same length together."""
    rows = sorted(sentences, key=lambda sentence: len(sentence.heads))
    groups = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    for i in torch.randperm(len(groups)).tolist() if shuffle else range(len(groups)):
        yield padded(groups[i])


class Scorer(nn.Module):
    """Arc scores `(batch, n, n)`, the root's on the diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", padding_idx=0)
        self.mix = nn.Conv1d(WIDTH, WIDTH, 5, padding=2)
        self.head, self.dependent = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.root = nn.Linear(WIDTH, 1)
        self.distance = nn.Embedding(2 * LONGEST + 1, 1)

    def forward(self, features: Tensor) -> Tensor:
        batch, n, _ = features.shape
        words = self.table(features.flatten(0, 1)).reshape(batch, n, WIDTH)
        words = torch.relu(words + self.mix(words.mT).mT)
        scores = self.head(words) @ self.dependent(words).mT / WIDTH**0.5
        place = torch.arange(n)
        scores = scores + self.distance(place[:, None] - place + LONGEST)[..., 0]
        return torch.where(torch.eye(n, dtype=torch.bool), self.root(words).mT, scores)


def word_by_word(scores: Tensor, batch: Sentences) -> Tensor:
    """The cross-entropy of each word's head, whatever the others are."""
    n = scores.shape[1]
    padding = torch.arange(n) >= batch.lengths[:, None]
    logits = scores.masked_fill(padding[:, :, None], -torch.inf)
    heads = torch.where(batch.heads == -1, torch.arange(n), batch.heads)
    return nn.functional.cross_entropy(logits, heads, ignore_index=-2, reduction="sum") / len(heads)


def train(row: Row, sentences: list[Parsed], epochs: int) -> Scorer:
    torch.manual_seed(0)
    scorer = Scorer()
    optimiser = torch.optim.Adam(scorer.parameters(), RATE)
    for _ in range(epochs):
        for batch in batches(sentences, shuffle=True):
            scores = scorer(batch.features)
            if row.tree:
                loss = FenchelYoungLoss(Arborescence(scores.shape[1], single_root=True), row.omega)
                value = loss(scores, labels=batch.heads, lengths=batch.lengths).mean()
            else:
                value = word_by_word(scores, batch)
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
    return scorer


@torch.no_grad()
def judged(scorer: Scorer, sentences: list[Parsed]) -> tuple[float, float, float]:
    """Heads found, whole trees found, and the mean entropy in nats."""
    right = words = whole = 0
    entropy = 0.0
    for batch in batches(sentences, shuffle=False):
        scores, lengths = scorer(batch.features), batch.lengths
        tree = Arborescence(scores.shape[1], single_root=True)
        found = tree.decode(tree.maximize(scores, lengths=lengths), lengths)
        hit = (found == batch.heads) & (batch.heads > -2)
        right, words = right + int(hit.sum()), words + int(lengths.sum())
        whole += int((hit.sum(1) == lengths).sum())
        entropy += float(tree.entropy(scores.double(), lengths=lengths).sum())
    return right / words, whole / len(sentences), entropy / len(sentences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of UD_English-EWT's files")
    parser.add_argument("--sentences", type=int, default=800, help="how many to learn from")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)  # many small steps: threads would only wait for each other
    learn, test = (
        [tree for tree in dependency_trees("english", part, options.data) if len(tree.heads) <= LONGEST]
        for part in ("train", "test")
    )
    learn, test = learn[: options.sentences], test[:500]
    table = Table(title=f"English trees, {len(learn)} sentences to learn from, {len(test)} new ones")
    for column in ("loss", "heads right", "whole trees", "entropy", "seconds"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for row in ROWS:
        start = time.perf_counter()
        scorer = train(row, learn, options.epochs)
        seconds = time.perf_counter() - start
        heads, whole, entropy = judged(scorer, test)
        table.add_row(row.name, f"{heads:.1%}", f"{whole:.1%}", f"{entropy:.2f}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
