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
# # Checking a fast solver against cvxpy
#
# You wrote a fast algorithm, and it is wrong in one case in a hundred. Projections made from it will
# then be wrong everywhere, a little. The cure is a second declaration of the same set, and `check`.
#
# The structure: a closed bracket of k consecutive parts on a ring of d, a *window* that may wrap
# around.

# %%
from dataclasses import dataclass

import cvxpy as cp
import torch

from spigot.polytopes import Polytope
from spigot.testing import check

# %% [markdown]
# Slowly and surely: the windows, listed, and as constraints with a weight for each window.


# %%
@dataclass(frozen=True)
class Ring(Polytope):
    """k consecutive parts of a ring of d."""

    d: int = 6
    k: int = 3

    @property
    def event_shape(self):
        return (self.d,)

    def vertices(self):
        first = torch.zeros(self.d, dtype=torch.float64)
        first[: self.k] = 1.0
        return torch.stack([first.roll(shift) for shift in range(self.d)])

    def constraints(self, y):
        weights = cp.Variable(self.d, nonneg=True)
        return [cp.sum(weights) == 1, y == weights @ self.vertices().numpy()]


assert check(Ring()).passed

# %% [markdown]
# ## Fast, and wrong
#
# A moving sum finds the best window in one pass. This one forgets that a window may wrap around:


# %%
class Hasty(Ring):
    def argmax(self, scores):
        sums = scores.unfold(-1, self.k, 1).sum(-1)
        start = sums.argmax(-1, keepdim=True)
        part = torch.arange(self.d)
        return ((part >= start) & (part < start + self.k)).to(scores)


report = check(Hasty())
assert not report.passed
print(report)

# %% [markdown]
# The first lines say which fact is wrong and where: scores shrunk to the simplest ones that still
# show it, what was found, and what was expected. From these one sees that the answer should have
# wrapped around.
#
# ## Fast, and right


# %%
class Quick(Ring):
    def argmax(self, scores):
        around = torch.cat([scores, scores[..., : self.k - 1]], -1)
        start = around.unfold(-1, self.k, 1).sum(-1).argmax(-1, keepdim=True)
        part = torch.arange(self.d)
        return ((part - start) % self.d < self.k).to(scores)


report = check(Quick())
print(report)
assert report.passed

# %% [markdown]
# ## Nearly right
#
# The nastiest bugs show at ties only. This oracle returns, at ties, a mixture of the best windows, no
# vertex:


# %%
class Mixed(Ring):
    def argmax(self, scores):
        sums = torch.stack([(scores * window).sum(-1) for window in self.vertices().to(scores)], -1)
        best = (sums == sums.amax(-1, keepdim=True)).to(scores)
        return best @ self.vertices().to(scores) / best.sum(-1, keepdim=True)


report = check(Mixed())
print(report)
assert not report.passed
