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
# # Which estimator?
#
# Before training for a day: hold every estimator's gradient against the exact one, on your own
# structure and loss. Structures here are small, so the expected loss `E[loss(z)]`, z drawn from p(z)
# ~ exp<s, z>, and its gradient can be summed exactly.

# %%
import torch

from spigot.polytopes import Arborescence, Euclidean, Matching, Sequence, Simplex, Subset
from spigot.pullback.diagnostics import Case, RelaxedLoss, compare, compare_all

torch.manual_seed(0)


def quadratic(wanted):
    """How far the structure is from a point that is none: bent, as most losses are."""
    flat = wanted.flatten()

    def loss(mu):
        return (mu.flatten(-len(wanted.shape)) - flat).square().sum(-1) / 2

    return loss


structures = {
    "simplex": Simplex(6),
    "subset": Subset(6, 2),
    "matching": Matching(3, 3),
    "trees": Arborescence(4),
    "sequence": Sequence(4, 2),
}
cases = {
    name: Case(M, torch.randn(32, *M.event_shape), quadratic(torch.rand(M.event_shape)))
    for name, M in structures.items()
}

# %% [markdown]
# ## One structure
#
# *cosine* with the exact gradient, *length* relative to it, the share of instances whose gradient is
# *null*, and the share in which a step against it *falls*: really lowers the expected loss.

# %%
subset = cases["subset"]
table = compare(subset.polytope, subset.scores, subset.loss)
print(table)

# %% [markdown]
# ## Five structures, a figure

# %%
everything = compare_all(cases, samples=16)
everything.figure()

# %% [markdown]
# What to look for:
#
# - A gradient may be null for many instances (SPIGOT at a good structure: that is right, there is
#   nothing to learn there) and still have a large cosine on the others.
# - Rows that fall in half of the instances only go up as often as down: they will not learn on such
#   a problem, however good their cosine is.
# - Lengths differ by orders of magnitude. With Adam that matters little, with plain gradient descent
#   the learning rate has to follow.
#
# ## Step sizes
#
# Estimators with a step size are measured at several; the second table shows how the cosine depends
# on them. The picture for your own loss may be another one: its gradient may have another scale.

# %%
rows = [row for row in table.rows if row.estimator.startswith("SPIGOT")]
for row in rows:
    print(f"{row.estimator:45} cosine {row.cosine:5.2f}  falls {row.falls:4.0%}")

# %% [markdown]
# ## Another objective
#
# A relaxed model is trained and used relaxed: its objective is the loss at the relaxed point, and
# there the relaxation's gradient is exact by definition.

# %%
print(compare(subset.polytope, subset.scores, subset.loss, objective=RelaxedLoss(Euclidean())))
