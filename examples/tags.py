"""Which words of a tweet name a person, a place, a product?

A small network scores the thirteen tags of every word of WNUT-17 from its letters and its neighbours,
and a chain adds scores of neighbouring tags. The same network is trained by four losses: each word on
its own, the conditional random field, SparseMAP on the tags, and the structured perceptron. A chain
learns that nothing is inside a person that has not begun.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import torch
from data import Tagged, named_entities
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from spigot.layers import FenchelYoungLoss
from spigot.polytopes import Euclidean, Gibbs, Regularizer, Sequence

BUCKETS, WIDTH, LONGEST = 1 << 14, 64, 41
BATCH, RATE = 32, 1e-2


@dataclass(frozen=True)
class Row:
    """A loss, and whether neighbouring tags have scores."""

    name: str
    omega: Regularizer | None
    chained: bool = True


ROWS = (
    Row("each word alone", Gibbs(), chained=False),
    Row("random field", Gibbs()),
    Row("SparseMAP", Euclidean(of=Sequence.tags)),
    Row("perceptron", None),
)


@dataclass(frozen=True)
class Sentences:
    """Padded to the longest one's length."""

    features: Tensor  # (n, length, 5), hashed
    ids: Tensor  # (n, length), -1 in the padding
    lengths: Tensor  # (n,)

    def batches(self, size: int) -> Iterator[Sentences]:
        for rows in torch.randperm(len(self.ids)).split(size):
            yield Sentences(self.features[rows], self.ids[rows], self.lengths[rows])


def described(word: str) -> list[int]:
    """The word, its last and first letters, and its shape, each hashed."""
    shape = "".join(
        "X" if c.isupper() else "x" if c.islower() else "0" if c.isdigit() else c for c in word
    )
    plain = word.lower()
    parts = (plain, "*" + plain[-3:], plain[:3] + "*", "shape " + shape[:6], "first " + shape[:1])
    return [crc32(part.encode()) % (BUCKETS - 1) + 1 for part in parts]


def padded(sentences: list[Tagged], names: list[str]) -> Sentences:
    lengths = torch.tensor([len(sentence.words) for sentence in sentences])
    features = torch.zeros(len(sentences), int(lengths.max()), 5, dtype=torch.long)
    ids = torch.full(features.shape[:2], -1)
    for k, sentence in enumerate(sentences):
        size = len(sentence.words)
        features[k, :size] = torch.tensor([described(word) for word in sentence.words])
        ids[k, :size] = torch.tensor([names.index(tag) for tag in sentence.tags])
    return Sentences(features, ids, lengths)


class Tagger(nn.Module):
    """Arc scores of sentences."""

    def __init__(self, tags: int, chained: bool) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", padding_idx=0)
        self.context = nn.Conv1d(WIDTH, WIDTH, 5, padding=2)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(2 * WIDTH, tags)
        self.transition = nn.Parameter(torch.zeros(tags, tags), requires_grad=chained)

    def forward(self, features: Tensor) -> Tensor:  # (n, length, 5) -> (n, length, tags, tags)
        n, length = features.shape[:2]
        words = self.drop(self.words(features.flatten(0, 1)).reshape(n, length, WIDTH))
        context = torch.relu(self.context(words.transpose(1, 2))).transpose(1, 2)
        return Sequence.pack(self.out(torch.cat([words, self.drop(context)], -1)), self.transition)


def trained(row: Row, sentences: Sentences, tags: int, epochs: int) -> Tagger:
    torch.manual_seed(0)
    model = Tagger(tags, row.chained)
    loss = FenchelYoungLoss(Sequence(sentences.ids.shape[1], tags), row.omega, validate=False)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=RATE)
    for _ in range(epochs):
        for batch in sentences.batches(BATCH):
            optimiser.zero_grad()
            loss(model(batch.features), labels=batch.ids, lengths=batch.lengths).backward()
            optimiser.step()
    return model.eval()


def spans(tags: list[str]) -> set[tuple[int, int, str]]:
    """The entities: first word, last word and kind."""
    found: set[tuple[int, int, str]] = set()
    first, kind = 0, ""
    for t, tag in enumerate([*tags, "O"]):
        if kind and tag != f"I-{kind}":
            found.add((first, t - 1, kind))
            kind = ""
        if tag.startswith("B-"):
            first, kind = t, tag[2:]
    return found


@dataclass(frozen=True)
class Scores:
    """On sentences not seen: words right, entities found (F1), and tags inside what has not begun."""

    accuracy: float
    f1: float
    orphans: int


@torch.no_grad()
def tested(model: Tagger, sentences: Sentences, names: list[str]) -> Scores:
    chain = Sequence(sentences.ids.shape[1], len(names))
    best = chain.maximize(model(sentences.features), lengths=sentences.lengths)
    guesses = chain.decode(best)
    right = int((guesses == sentences.ids)[sentences.ids >= 0].sum())
    shared = predicted = actual = orphans = 0
    for guess, truth, size in zip(guesses, sentences.ids, sentences.lengths.tolist(), strict=True):
        told, gold = ([names[int(k)] for k in row[:size]] for row in (guess, truth))
        found, wanted = spans(told), spans(gold)
        shared, predicted, actual = (
            shared + len(found & wanted),
            predicted + len(found),
            actual + len(wanted),
        )
        before = ["O", *told[:-1]]
        orphans += sum(b[:1] == "I" and a[2:] != b[2:] for a, b in zip(before, told, strict=True))
    f1 = 2 * shared / max(predicted + actual, 1)
    return Scores(right / int(sentences.lengths.sum()), f1, orphans)


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, help="the folder of WNUT-17")
    options.add_argument("--sentences", type=int, default=1000, help="how many to train on")
    options.add_argument("--epochs", type=int, default=5)
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)  # many small calls: several threads only wait for each other
    train, dev = (
        [sentence for sentence in named_entities(part, chosen.data) if len(sentence.words) <= LONGEST]
        for part in ("train", "dev")
    )
    names = sorted({tag for sentence in train for tag in sentence.tags})
    seen, unseen = padded(train[: chosen.sentences], names), padded(dev, names)
    table = Table(
        title=f"WNUT-17: {len(seen.ids)} sentences to learn from, {len(unseen.ids)} to test on"
    )
    for column in ("loss", "words right", "entities (F1)", "inside nothing", "seconds"):
        table.add_column(column, justify="left" if column == "loss" else "right", no_wrap=True)
    for row in ROWS:
        begun = time.perf_counter()
        scores = tested(trained(row, seen, len(names), chosen.epochs), unseen, names)
        taken = time.perf_counter() - begun
        table.add_row(
            row.name, f"{scores.accuracy:.1%}", f"{scores.f1:.1%}", str(scores.orphans), f"{taken:.1f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
