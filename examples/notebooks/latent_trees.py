# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Latent trees: what a sentence's loss alone says about its syntax
#
# A model that needs a dependency tree can learn one without ever seeing it. Here a reader is asked
# for each word's *head*: for its word, or its part of speech where the word is rare. It is shown
# nothing but the word that a latent tree says is the head. Whoever draws the trees learns from the
# reader's loss alone. How close do they come to a linguist's?

# %%
import gzip
import os
from collections import Counter
from pathlib import Path
from zlib import crc32

import torch

from spigot import plot
from spigot.layers import Argmax, FenchelYoungLoss, Relaxed
from spigot.polytopes import Arborescence, Euclidean, Gibbs
from spigot.pullback import SPIGOT, SPIGOTCE, STEIdentity

LONGEST, BUCKETS, FREQUENT = 10, 4096, 100

# %% [markdown]
# ## Sentences
#
# With `SPIGOT_DATA` naming a folder that holds `ud_english_ewt` (Universal Dependencies'
# UD_English-EWT, its `.conllu` files packed by gzip) these are 2,000 real ones of 4 to 10 words.
# Without it they come from the small grammar below, with the trees that Universal Dependencies would
# give them: articles and adjectives depend on their noun, a preposition on the noun that follows it.

# %%
WORDS = {
    "DET": ["the", "a", "every", "this"],
    "ADJ": ["old", "small", "green", "tired", "early"],
    "NOUN": [
        "dog",
        "farmer",
        "letter",
        "river",
        "train",
        "market",
        "teacher",
        "stone",
        "garden",
        "bird",
    ],
    "VERB": ["sees", "follows", "finds", "paints", "likes"],
    "ADP": ["near", "behind", "of", "with"],
    "ADV": ["slowly", "again", "today"],
}


def chance(p):
    return float(torch.rand((), generator=generator)) < p


def word(tag):
    return WORDS[tag][int(torch.randint(len(WORDS[tag]), (), generator=generator))]


def noun_phrase(said, deep):
    """Says one, and gives its noun's place; heads are filled in by whoever asked for it."""
    first = len(said)
    said.append([word("DET"), "DET", None])
    if chance(0.4):
        said.append([word("ADJ"), "ADJ", None])
    noun = len(said)
    said.append([word("NOUN"), "NOUN", None])
    for part in said[first:noun]:
        part[2] = noun
    if deep and chance(0.4):
        prepositional(said, noun)
    return noun


def prepositional(said, head):
    place = len(said)
    said.append([word("ADP"), "ADP", None])
    noun = noun_phrase(said, deep=False)
    said[place][2], said[noun][2] = noun, head


def invented():
    """A list of (word, tag, head), the root's head -1."""
    said = []
    subject = noun_phrase(said, deep=True)
    verb = len(said)
    said.append([word("VERB"), "VERB", -1])
    said[subject][2] = verb
    said[noun_phrase(said, deep=False)][2] = verb
    if chance(0.4):
        prepositional(said, verb)
    if chance(0.4):
        said.append([word("ADV"), "ADV", verb])
    return said


def treebank(part):
    folder = Path(os.environ["SPIGOT_DATA"]) / "ud_english_ewt"
    with gzip.open(folder / f"en_ewt-ud-{part}.conllu.gz", "rt", encoding="utf-8") as file:
        for block in file.read().split("\n\n"):
            rows = [line.split("\t") for line in block.split("\n") if line[:1].isdigit()]
            yield [(row[1], row[3], int(row[6]) - 1) for row in rows if row[0].isdigit()]


def fits(sentence):
    return 4 <= len(sentence) <= LONGEST


generator = torch.Generator().manual_seed(0)
real = "SPIGOT_DATA" in os.environ and (Path(os.environ["SPIGOT_DATA"]) / "ud_english_ewt").is_dir()
if real:
    train = [sentence for sentence in treebank("train") if fits(sentence)][:2000]
    test = [sentence for sentence in treebank("dev") if fits(sentence)][:400]
else:
    many = [sentence for sentence in (invented() for _ in range(1200)) if fits(sentence)]
    train, test = many[200:800], many[:200]
print("UD_English-EWT" if real else "a small grammar", end=": ")
print(len(train), "sentences to learn from,", len(test), "to test. The first of these:")
print(" ".join(text for text, _, _ in test[0]))

# %% [markdown]
# Sentences are padded, and every call is told their `lengths`. A word is predicted as itself if it is
# among the hundred most frequent ones, else as its part of speech; the root is a label of its own.

# %%
counts = Counter(text.lower() for sentence in train for text, _, _ in sentence)
frequent = {text for text, _ in counts.most_common(FREQUENT)}
LABELS = [
    "root",
    *sorted(frequent),
    *sorted({tag for sentence in train + test for _, tag, _ in sentence}),
]


def label(sentence, head):
    text, tag, _ = sentence[head] if head >= 0 else ("root", "root", None)
    return LABELS.index(text.lower() if text.lower() in frequent else tag)


def padded(sentences):
    lengths = torch.tensor([len(sentence) for sentence in sentences])
    words = torch.zeros(len(sentences), LONGEST, 2, dtype=torch.long)
    wanted = torch.full((len(sentences), LONGEST), -100)  # what cross-entropy leaves out
    heads = torch.full((len(sentences), LONGEST), -2)
    for n, sentence in enumerate(sentences):
        for i, (text, _, head) in enumerate(sentence):
            words[n, i] = torch.tensor(
                [crc32(part.lower().encode()) % BUCKETS for part in (text, "-" + text[-3:])]
            )
            wanted[n, i] = label(sentence, head)
            heads[n, i] = head
    return words, lengths, wanted, heads


train_batch, test_batch = padded(train), padded(test)
latent = Arborescence(LONGEST)

# %% [markdown]
# ## A model with a tree inside
#
# An encoder scores each pair of head and dependent. The tree `z`, an `(n, n)` matrix `[head,
# dependent]` with the root's arcs on its diagonal, picks for each word what the reader may see: the
# embedding of its head. The layer that makes `z` of scores is the only thing that differs below.


# %%
class Model(torch.nn.Module):
    def __init__(self, choose, width=32):
        super().__init__()
        self.choose = choose
        self.embedding = torch.nn.EmbeddingBag(BUCKETS, width)
        self.encoder = torch.nn.LSTM(width, width, bidirectional=True, batch_first=True)
        self.head, self.dependent = torch.nn.Linear(2 * width, width), torch.nn.Linear(2 * width, width)
        self.is_root = torch.nn.Linear(2 * width, 1)
        self.seen = torch.nn.EmbeddingBag(BUCKETS, width)  # the reader's own embedding of a head
        self.root = torch.nn.Parameter(torch.zeros(width))
        self.reader = torch.nn.Linear(width, len(LABELS))

    def scores(self, words):
        state, _ = self.encoder(self.embedding(words.flatten(0, 1)).unflatten(0, words.shape[:2]))
        arcs = self.head(state) @ self.dependent(state).transpose(1, 2) / 6.0
        return arcs.diagonal_scatter(self.is_root(state)[..., 0], dim1=1, dim2=2)

    def forward(self, words, lengths):
        tree = self.choose(self.scores(words), lengths=lengths)
        seen = self.seen(words.flatten(0, 1)).unflatten(0, words.shape[:2])
        root = tree.diagonal(dim1=1, dim2=2)
        others = tree - torch.diag_embed(root)
        return self.reader(others.transpose(1, 2) @ seen + root[..., None] * self.root)


def batches(epochs, size=50):
    torch.manual_seed(0)
    for _ in range(epochs):
        for some in torch.randperm(len(train)).split(size):
            yield [part[some] for part in train_batch]


def fit(model, loss, epochs):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for batch in batches(epochs):
        value = loss(model, *batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


def by_reading(model, words, lengths, wanted, _):
    return torch.nn.functional.cross_entropy(model(words, lengths).flatten(0, 1), wanted.flatten())


def best_trees(model):
    with torch.no_grad():
        words, lengths, _, _ = test_batch
        return latent.maximize(model.scores(words), lengths=lengths)


def agreement(trees):
    """The share of words whose head is the linguist's."""
    heads = test_batch[3]
    found = latent.decode(trees, lengths=test_batch[1])
    return (found == heads)[heads > -2].float().mean().item()


# %% [markdown]
# ## Five ways to train it
#
# Three estimators through the best tree, and two relaxations that mix trees while they learn. Beside
# them, what needs no learning (every word depends on the one after it) and what is told the trees (a
# random field on the scores). The reader is tested with the best tree for all of them.

# %%
EPOCHS = 10
torch.manual_seed(0)
told = fit(
    Model(Argmax(latent, STEIdentity())),
    lambda model, words, lengths, _, heads: FenchelYoungLoss(latent, Gibbs())(
        model.scores(words), latent.encode(heads, lengths=lengths), lengths=lengths
    ),
    EPOCHS,
)
ways = {
    "STE-identity": Argmax(latent, STEIdentity()),
    "SPIGOT": Argmax(latent, SPIGOT(step_size=1.0, reduction="mean")),
    "SPIGOT-CE": Argmax(latent, SPIGOTCE(step_size=1.0, reduction="mean")),
    "marginals": Relaxed(latent, Gibbs()),
    "SparseMAP": Relaxed(latent, Euclidean()),
}
places, last = torch.arange(LONGEST), test_batch[1][:, None] - 1
after = latent.encode(torch.where(places < last, places + 1, -1), lengths=test_batch[1])
print(f"{'':20} {'heads like the linguist':>25} {'heads read from the best tree':>31}")
print(f"{'the word after':20} {agreement(after):25.0%}")
models = {}
for name, layer in ways.items():
    torch.manual_seed(0)
    models[name] = fit(Model(layer), by_reading, EPOCHS)
    models[name].choose = Argmax(latent, STEIdentity())  # the best tree, in all of them
    with torch.no_grad():
        words, lengths, wanted, _ = test_batch
        read = models[name](words, lengths).argmax(-1)
    right = (read == wanted)[wanted >= 0].float().mean().item()
    print(f"{name:20} {agreement(best_trees(models[name])):25.0%} {right:31.0%}")
print(f"{'told the trees':20} {agreement(best_trees(told)):25.0%}")

# %% [markdown]
# With the grammar, where a head's word nearly gives its place away, reading alone leads to the
# linguist's trees by all but STE-identity, whose step leaves the trees. With 2,000 real sentences the
# same script finds much less: SPIGOT-CE 26% and SPIGOT 20% of the heads, the relaxations 4%, and whoever
# is told the trees 67%; to take the word after each is right for 28%. What helps a reader and what a
# linguist draws are different things, the more so the less a head's word says about its place.
#
# ## The trees
#
# Above the words what was learned from reading, below them the linguist's.

# %%
name = "SPIGOT-CE"
trees = best_trees(models[name])
for n in (0, 1):
    length = len(test[n])
    gold = Arborescence(length).encode(test_batch[3][n, :length])
    ax = plot.arcs(trees[n, :length, :length], [text for text, _, _ in test[n]], other=gold)
    ax.set_title(f"{name} above, Universal Dependencies below")

# %% [markdown]
# How sure is it? Marginals of the same scores, darker where a head is likelier.

# %%
scores = models[name].scores(test_batch[0][:1]).detach()
length = len(test[0])
chances = latent.marginals(scores, lengths=test_batch[1][:1])[0, :length, :length]
words = [text for text, _, _ in test[0]]
ax = plot.cells(chances, trees[0, :length, :length], rows=words, columns=words, bar=True)
ax.set_xlabel("word")
_ = ax.set_ylabel("its head (the diagonal: the root)")
