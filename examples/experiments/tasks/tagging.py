"""Which words of a tweet name a person, a place, a product?

WNUT-17: 3394 sentences to learn from, 1009 to choose by, 1287 to be tested on; six kinds of entities,
hence 13 tags (Derczynski, Nichols, van Erp and Limsopatham, "Results of the WNUT2017 shared task on
novel and emerging entity recognition", 2017). A word is its hashed letters' embeddings and a fixed
vector of its word pieces; a BiLSTM scores the tags of every word, and a matrix of transitions is
added. Tests take whole sentences, of up to 105 words.

Structures:

- sequence: `Sequence`, parts are arcs, a pair of neighbouring tags at its place;
- tagging: `Tagging`, parts are the tags at their places and how often each pair occurs.

The structures are the same, and so are MAP and the tags' marginals; projections are not, and so differ
SPIGOT and SparseMAP.

Two kinds of rows. Losses see the true tags: `fenchel-young-gibbs` is the conditional random field. The
others learn through the choice from its Hamming distance, sum_t |u_t - u*_t|^2 / 2, where u are the
tags' parts of y: the number of wrong tags at every structure. The loss does not look at transitions,
so STE-identity hands nothing to their counts in `tagging`, and the same gradient to all of a tag's
arcs in `sequence`; the others pull back to a tagging, whose transitions are the right ones'.
`pointwise` is the baseline: each word on its own, cross-entropy, no transitions.

Metrics: F1 of entities as CoNLL's evaluation has it, an entity being right if its first word, its last
word and its kind are; and the share of words with the right tag, most of which are O. Published on
this set: F1 41.86 by the shared task's winner (Aguilar et al. 2017), with word vectors from tweets and
gazetteers that are not used here, so for scale only.

Projecting onto tagged sentences whose transitions are counted is no matter of one sentence's dynamic
programme: 0.1 s a sentence. So by `tagging` the rows that project what is no tagging are left out,
and SPIGOT-SparseMAP by `sequence`, six minutes a run.

Size "full" is 600 steps of 32 sentences, five to six epochs, the best of twelve looks at the validation
part: three seeds by `sequence` took twelve minutes on two cores. Step sizes and temperatures of 1 are
as in the table of estimators. Noise was tried at scales of 0.1, 0.3 and 1 on the validation part of
seed 0: I-MLE learns at 0.1 (F1 of 43, 41 and 0), the perturbed maximum at none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.nn.utils.rnn import pad_sequence

from examples.data import WNUT, Tagged, named_entities, word_pieces
from examples.experiments.estimators import choice, layer, row
from examples.experiments.experiment import Experiment, Metric, Needs, Study, Task, cells, minibatch
from examples.experiments.run import Run, Settings
from spigot.layers import StructuredHingeLoss
from spigot.polytopes import Polytope, Sequence, Tagging

__all__ = ["TASK", "Sentences", "drawn_sentences", "entities", "f1"]

BUCKETS, WIDTH, HIDDEN, DROPOUT = 1 << 14, 64, 64, 0.4
PADDING = -1
PARTS: tuple[str, ...] = ("train", "validation", "test")
AT_ONCE = 256  # sentences in evaluation


@dataclass(frozen=True)
class Size:
    steps: int
    check_every: int


SIZES = {"full": Size(600, 50), "smoke": Size(20, 10)}


@dataclass(frozen=True)
class Sentences:
    """Padded to the longest one's length."""

    words: Tensor  # (n, length), rows of the table of vectors, 0 in the padding
    features: Tensor  # (n, length, 5), hashed, 0 in the padding
    ids: Tensor  # (n, length), tags, -1 in the padding
    lengths: Tensor  # (n,)

    def some(self, rows: Tensor) -> Sentences:
        return Sentences(self.words[rows], self.features[rows], self.ids[rows], self.lengths[rows])


def described(word: str) -> list[int]:
    """The word, its first and last letters, its shape and its first letter's, each hashed."""
    shape = "".join(
        "X" if c.isupper() else "x" if c.islower() else "0" if c.isdigit() else c for c in word
    )
    plain = word.lower()
    parts = (plain, f"{plain[:3]}*", f"*{plain[-3:]}", f"shape {shape[:6]}", f"first {shape[:1]}")
    return [crc32(part.encode()) % (BUCKETS - 1) + 1 for part in parts]


def padded(sentences: list[Tagged], places: dict[str, int], names: list[str]) -> Sentences:
    words = [torch.tensor([places[word] for word in sentence.words]) for sentence in sentences]
    features = [torch.tensor([described(word) for word in sentence.words]) for sentence in sentences]
    ids = [torch.tensor([names.index(tag) for tag in sentence.tags]) for sentence in sentences]
    lengths = torch.tensor([len(sentence.words) for sentence in sentences])
    return Sentences(
        pad_sequence(words, batch_first=True),
        pad_sequence(features, batch_first=True),
        pad_sequence(ids, batch_first=True, padding_value=PADDING),
        lengths,
    )


def drawn_sentences(count: int, seed: int) -> list[Tagged]:
    """Words drawn at random, among them names of one to three words, each kind's spelled in its way."""
    rng = torch.Generator().manual_seed(seed)

    def some(most: int) -> int:
        return int(torch.randint(most, (), generator=rng))

    found: list[Tagged] = []
    for _ in range(count):
        words, tags = list[str](), list[str]()
        for _ in range(2 + some(3)):
            kind = ("O", "person", "place")[some(3)]
            for place in range(1 + some(3)):
                words.append(f"{'it' if kind == 'O' else kind.title()}{some(9)}")
                tags.append("O" if kind == "O" else f"{'I' if place else 'B'}-{kind}")
        found.append(Tagged(tuple(words), tuple(tags)))
    return found


def entities(tags: list[str]) -> set[tuple[int, int, str]]:
    """First word, last word and kind of each, as CoNLL's evaluation reads tags.

    An entity begins at a B-, and at an I- that continues none of its kind; it ends where no I- of its
    kind follows.
    """
    found: set[tuple[int, int, str]] = set()
    first, open_kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if mark == "I" and kind == open_kind:
            continue
        if open_kind:
            found.add((first, place - 1, open_kind))
        first, open_kind = place, kind
    return found


def f1(guesses: list[list[str]], truths: list[list[str]]) -> float:
    """Of entities over all sentences; 0 where there is none at all."""
    right = told = real = 0
    for guess, truth in zip(guesses, truths, strict=True):
        found, wanted = entities(guess), entities(truth)
        right, told, real = right + len(found & wanted), told + len(found), real + len(wanted)
    return 2 * right / max(told + real, 1)


class Tagger(nn.Module):
    """Scores of each word's tags `(n, length, tags)`, and of transitions `(tags, tags)`."""

    def __init__(self, vectors: Tensor, tags: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.pieces = nn.Linear(vectors.shape[1], WIDTH)
        self.letters = nn.EmbeddingBag(BUCKETS, WIDTH, mode="sum", padding_idx=0)
        self.drop = nn.Dropout(DROPOUT)
        self.context = nn.LSTM(2 * WIDTH, HIDDEN, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * HIDDEN, tags)
        self.transition = nn.Parameter(torch.zeros(tags, tags))

    def forward(self, sentences: Sentences) -> tuple[Tensor, Tensor]:
        letters = self.letters(sentences.features.flatten(0, 1)).unflatten(0, sentences.words.shape)
        words = torch.cat([self.pieces(self.vectors(sentences.words)), letters], -1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.drop(words), sentences.lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = nn.utils.rnn.pad_packed_sequence(
            self.context(packed)[0], batch_first=True, total_length=sentences.words.shape[1]
        )
        return self.out(self.drop(states)), self.transition


@dataclass(frozen=True)
class Structure:
    make: Callable[[int, int], Polytope]  # of so many positions and tags
    pack: Callable[[Tensor, Tensor], Tensor]  # scores of words and transitions to scores of parts
    tags: Callable[[Tensor, int], Tensor]  # parts and how many tags, to the tags' (n, length, tags)


STRUCTURES = {
    "sequence": Structure(Sequence, Sequence.pack, lambda parts, _: parts.sum(-2)),
    "tagging": Structure(Tagging, Tagging.pack, lambda parts, tags: parts[:, tags:]),
}


@dataclass(frozen=True)
class Data:
    """The three parts, the tags' names and the words' vectors."""

    parts: dict[str, Sentences]
    names: list[str]
    vectors: Tensor  # (words + 1, dimensions)


@cache
def data(smoke: bool) -> Data:
    """Read once a process."""
    if smoke:
        every = [drawn_sentences(count, seed) for seed, count in enumerate((64, 16, 16))]
    else:
        every = [named_entities(part) for part in ("train", "dev", "test")]
    names = sorted({tag for sentence in every[0] for tag in sentence.tags})
    words = sorted({word for part in every for sentence in part for word in sentence.words})
    if smoke:
        found = torch.zeros(len(words), 8)
    else:
        known = word_pieces()
        found = torch.stack([known.word(word) for word in words])
    places = {word: place for place, word in enumerate(words, 1)}
    held = (padded(part, places, names) for part in every)
    parts = dict(zip(PARTS, held, strict=True))
    return Data(parts, names, torch.cat([torch.zeros(1, found.shape[1]), found]))


Judge = Callable[[Tensor, Tensor, Sentences], Tensor]  # words' and transitions' scores -> (n,)


def pointwise(unary: Tensor, _: Tensor, sentences: Sentences) -> Tensor:
    return cross_entropy(
        unary.transpose(1, 2), sentences.ids, reduction="none", ignore_index=PADDING
    ).sum(1)


def truth(sentences: Sentences, tags: int) -> Tensor:  # (n, length, tags)
    """The right tags, zeros in the padding."""
    return one_hot(sentences.ids + 1, tags + 1)[..., 1:].float()


def judge(run: Run, length: int, tags: int, settings: Settings) -> Judge:
    """The row's loss, in units of wrong tags."""
    kind = row(run.estimator).kind
    if kind == "baseline":
        return pointwise
    structure = STRUCTURES[run.structure]
    polytope = structure.make(length, tags)
    if kind == "layer":
        choose = choice(run.estimator, polytope, settings)

        def through(unary: Tensor, transition: Tensor, sentences: Sentences) -> Tensor:
            right = truth(sentences, tags)

            def wrong(mu: Tensor) -> Tensor:
                return (structure.tags(mu, tags) - right).square().sum((1, 2)) / 2

            return choose(structure.pack(unary, transition), wrong, lengths=sentences.lengths)

        return through
    if run.estimator == "hinge":
        margin = StructuredHingeLoss(polytope, weight=None, reduction="none")

        def hinge(unary: Tensor, transition: Tensor, sentences: Sentences) -> Tensor:
            cost = structure.pack(1 - truth(sentences, tags), torch.zeros(tags, tags))
            scores = structure.pack(unary, transition)
            return margin(scores, labels=sentences.ids, lengths=sentences.lengths, cost=cost)

        return hinge
    loss = layer(run.estimator, polytope, settings)

    def fitted(unary: Tensor, transition: Tensor, sentences: Sentences) -> Tensor:
        scores = structure.pack(unary, transition)
        return loss(scores, labels=sentences.ids, lengths=sentences.lengths)

    return fitted


class Names(Experiment):
    """Every row."""

    def __init__(self, run: Run, settings: Settings) -> None:
        size = SIZES[run.size]
        self.data = data(run.size == "smoke")
        self.train = self.data.parts["train"]
        self.tags = len(self.data.names)
        self.structure = STRUCTURES[run.structure]
        self.alone = run.estimator == "pointwise"
        self.seed, self.batch = run.seed, settings.whole("batch")
        self.steps, self.check_every = size.steps, size.check_every
        self.model = Tagger(self.data.vectors, self.tags)
        learned = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizers = [torch.optim.Adam(learned, settings.number("learning_rate"))]
        self.judge = judge(run, self.train.ids.shape[1], self.tags, settings)

    def loss(self, step: int) -> Tensor:
        batch = self.train.some(minibatch(self.seed, step, len(self.train.ids), self.batch))
        unary, transition = self.model(batch)
        return self.judge(unary, transition, batch).mean()

    def evaluate(self, part: str) -> dict[str, float]:
        known = self.data.parts[part]
        rows = torch.arange(len(known.ids)).split(AT_ONCE)
        found = torch.cat([self._tagged(known.some(some)) for some in rows])
        inside = known.ids >= 0
        told, real = (self._names(ids, known.lengths) for ids in (found, known.ids))
        right = (found == known.ids)[inside].double().mean().item()
        return {"f1": f1(told, real), "words": right}

    def _tagged(self, sentences: Sentences) -> Tensor:  # (n, length)
        unary, transition = self.model(sentences)
        if self.alone:
            return unary.argmax(-1)
        polytope = self.structure.make(unary.shape[1], self.tags)
        best = polytope.maximize(self.structure.pack(unary, transition), lengths=sentences.lengths)
        return polytope.decode(best, lengths=sentences.lengths)

    def _names(self, ids: Tensor, lengths: Tensor) -> list[list[str]]:
        sizes = zip(ids.tolist(), lengths.tolist(), strict=True)
        return [[self.data.names[tag] for tag in row[:size]] for row, size in sizes]


THROUGH = (
    *("ste-identity", "ste-softmax", "spigot", "spigot-ce", "spigot-eg"),
    *("blackbox", "imle", "perturbed", "sparsemap", "marginals"),
)
DENSE = ("spigot-ce", "sparsemap", "fenchel-young-sparsemap")
FITTED = ("fenchel-young-gibbs", "fenchel-young-sparsemap", "hinge", "perceptron")

TASK = Task(
    name="tagging",
    title="Named entities in tweets",
    structures=tuple(STRUCTURES),
    studies=(
        Study(
            "main", "Every estimator", cells("pointwise", *FITTED, *THROUGH), ("sequence",), curves=True
        ),
        Study(
            "counted",
            "Every estimator but for mixtures' projections, transitions counted",
            cells(*(name for name in ("pointwise", *FITTED, *THROUGH) if name not in DENSE)),
            ("tagging",),
        ),
    ),
    metrics=(
        Metric("f1", "F1 of entities, %", percent=True),
        Metric("words", "words tagged rightly, %", percent=True),
    ),
    baseline="pointwise",
    make=Names,
    options={"learning_rate": 0.003, "batch": 32},
    usual={"imle": {"scale": 0.1}},
    select="f1",
    needs=Needs("tagging_wnut17", WNUT),
)
