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
# # Sequence tagging with three losses
#
# Names in a text: `B` begins one, `I` goes on with it, `O` is anything else. Words alone do not say it
# ("Jordan" may be a river or a player's second name), but tags follow each other by rules: no `I`
# after `O`. A tagger scores the tags of each word and the transitions between them, and is trained by
# the perceptron's, the random field's and the SparseMAP loss. They are three rows of one loss, the
# Fenchel-Young loss of a regularizer.

# %%
import matplotlib.pyplot as plt
import torch

from spigot import plot
from spigot.layers import FenchelYoungLoss
from spigot.polytopes import Euclidean, Gibbs, Sequence

TAGS, WORDS, LONGEST = "OBI", 60, 12
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Sentences
#
# Drawn from a small hidden Markov model, so that nothing has to be downloaded; `examples/tags.py` does
# the same on WNUT-17. A third of the words are only said outside of names, a third only in names, and
# the others anywhere.

# %%
follows = torch.tensor([[0.75, 0.25, 0.0], [0.35, 0.05, 0.6], [0.6, 0.1, 0.3]])
says = torch.zeros(3, WORDS)
says[0, : 2 * WORDS // 3] = 1.0
says[1:, WORDS // 3 :] = 1.0
says = says * torch.rand(3, WORDS, generator=generator) ** 2


def sentences(count):
    lengths = torch.randint(4, LONGEST + 1, (count,), generator=generator)
    words = torch.zeros(count, LONGEST, dtype=torch.long)
    tags = torch.full((count, LONGEST), -1)
    for n, length in enumerate(lengths.tolist()):
        tag = 0
        for t in range(length):
            tag = int(torch.multinomial(follows[tag], 1, generator=generator))
            tags[n, t] = tag
            words[n, t] = torch.multinomial(says[tag], 1, generator=generator)
    return words, tags, lengths


train, test = sentences(60), sentences(400)
words, tags, lengths = train
print(
    " ".join(f"{word}/{TAGS[tag]}" for word, tag in zip(words[0], tags[0, : lengths[0]], strict=False))
)

# %% [markdown]
# ## The structure
#
# `Sequence` is the set of tag sequences; its parts are the pairs of neighbouring tags at their places.
# `pack` puts the scores of tags and transitions together, `lengths=` is all that padding needs.

# %%
chain = Sequence(LONGEST, len(TAGS))


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.unary = torch.nn.Embedding(WORDS, len(TAGS))
        self.transition = torch.nn.Parameter(torch.zeros(len(TAGS), len(TAGS)))
        torch.nn.init.zeros_(self.unary.weight)

    def forward(self, words):
        return chain.pack(self.unary(words), self.transition)


def fit(regularizer, steps=150):
    torch.manual_seed(0)
    model, loss = Tagger(), FenchelYoungLoss(chain, regularizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=1e-3)
    history = []
    for _ in range(steps):
        value = loss(model(words), labels=tags, lengths=lengths)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        history.append(value.item())
    return model, history


@torch.no_grad()
def right(model):
    words, tags, lengths = test
    found = chain.decode(chain.maximize(model(words), lengths=lengths), lengths=lengths)
    return ((found == tags) & (tags >= 0)).sum().item() / int(lengths.sum())


# %% [markdown]
# ## Three losses
#
# Without a regularizer the loss is the perceptron's, max over z of <s, z> - <s, y>: it is 0 as soon as
# the right sequence is the best one. With `Gibbs()` it is the random field's negative log-likelihood,
# never 0. With `Euclidean(of=Sequence.tags)`, half the squared norm of the tags alone, it is
# SparseMAP's: 0 when the right sequence is best by a margin.

# %%
models = {}
figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
regularizers = {"perceptron": None, "random field": Gibbs(), "SparseMAP": Euclidean(of=Sequence.tags)}
for (name, omega), style in zip(regularizers.items(), ("--", "-", ":"), strict=True):
    models[name], history = fit(omega)
    ax.plot(history, style, color="black", label=name)
    print(f"{name:12}  {right(models[name]):.1%} of the tags of new sentences are right")
ax.set_xlabel("step")
ax.set_ylabel("loss")
_ = ax.legend(frameon=False)

# %% [markdown]
# ## How sure is it?
#
# The random field knows the probability of each tag, its marginals; SparseMAP a mixture of few
# sequences, with tags that it excludes at exactly 0. Outlined is the best sequence.

# %%
words, tags, lengths = test
row = int((lengths == LONGEST).nonzero()[0])
figure, grid = plt.subplots(1, 2, figsize=(13, 2.3), layout="constrained")
for ax, name in zip(grid, ("random field", "SparseMAP"), strict=True):
    with torch.no_grad():
        scores = models[name](words[row])
        shades = chain.maximize(scores, regularizers[name]).sum(-2).T  # over the tag before
        best = chain.maximize(scores).sum(-2).T
    plot.cells(shades, best, ax, rows=TAGS, columns=words[row].tolist(), label="")
    ax.set_title(name)
