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
# # Your own structure in ten minutes
#
# A structure is a set of vectors of zeros and ones, and M is its convex hull. You declare one fact
# about it, by constraints, by an oracle or by its vertices, and get everything else.
#
# The example: a week of seven days, of which some are days off. No three working days in a row may be
# without one, and at most three days are off.

# %%
from dataclasses import dataclass
from itertools import product

import cvxpy as cp
import numpy as np
import torch

from spigot import plot
from spigot.layers import Argmax
from spigot.polytopes import Euclidean, Facets, Hull, Oracle, Polytope
from spigot.pullback import SPIGOT, STEIdentity
from spigot.testing import check

DAYS, MOST = 7, 3

# %% [markdown]
# ## By constraints
#
# `y` is a cvxpy variable of the event's shape. Linear constraints, auxiliary variables allowed.


# %%
@dataclass(frozen=True)
class DaysOff(Polytope):
    """Days off in a week: one in any three days, at most three in all."""

    @property
    def event_shape(self):
        return (DAYS,)

    def constraints(self, y):
        windows = [y[day] + y[day + 1] + y[day + 2] >= 1 for day in range(DAYS - 2)]
        return [y >= 0, y <= 1, cp.sum(y) <= MOST, *windows]


by_constraints = DaysOff()
scores = torch.tensor([0.1, -0.5, 0.3, -0.2, 0.4, -1.0, 0.2])
by_constraints.maximize(scores)

# %% [markdown]
# ## By an oracle
#
# Any function from the scores of one instance to the best structure, in numpy or with any solver.


# %%
def best_week(scores: np.ndarray) -> np.ndarray:
    weeks = [week for week in product([0.0, 1.0], repeat=DAYS) if fits(week)]
    return np.array(max(weeks, key=lambda week: float(np.dot(week, scores))))


def fits(week) -> bool:
    return sum(week) <= MOST and all(any(week[day : day + 3]) for day in range(DAYS - 2))


by_oracle = Oracle(best_week, (DAYS,))
assert torch.equal(by_oracle.maximize(scores), by_constraints.maximize(scores))

# %% [markdown]
# ## By its vertices
#
# Where structures are few, list them. Marginals, samples and entropies need the structures
# themselves, so they come with this declaration.

# %%
weeks = torch.tensor([week for week in product([0.0, 1.0], repeat=DAYS) if fits(week)])
by_vertices = Hull(weeks)
print(f"{len(weeks)} weeks")
by_vertices.marginals(scores), by_vertices.log_partition(scores)

# %% [markdown]
# The three agree: the projection of the scores is the same point by each, found by three quite
# different methods.

# %%
for polytope in (by_constraints, by_oracle, by_vertices):
    print(f"{polytope.project(scores).numpy().round(4)}  {polytope.which(Euclidean()).rule}")

# %% [markdown]
# ## Is it right?
#
# `check` compares whatever can be compared, at scores made to find mistakes.

# %%
print(check(by_constraints))

# %% [markdown]
# Now with a slip: the last window is forgotten. The vertices that we listed say so, if both are
# declared:


# %%
@dataclass(frozen=True)
class Slip(DaysOff):
    def constraints(self, y):
        return super().constraints(y)[:-1]

    def vertices(self):
        return weeks.double()


found = check(Slip())
print(found)
assert not found.passed

# %% [markdown]
# ## Train through it
#
# A small network sees what the coming week looks like and picks the days off; what comes back is only
# how good the week was. The true preference is hidden: days off are worth more when it rains.

# %%
torch.manual_seed(0)
weather = torch.rand(512, DAYS)  # rain
best = by_constraints.maximize(weather)


def loss(chosen):
    return ((best - chosen) * weather).sum(-1)  # what was missed


def train(estimator, steps=80):
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(DAYS, 32), torch.nn.Tanh(), torch.nn.Linear(32, DAYS))
    layer = Argmax(by_constraints, estimator)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    missed = []
    for _ in range(steps):
        value = loss(layer(network(weather))).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        missed.append(value.item())
    return layer(network(weather)), missed


for estimator in (STEIdentity(), SPIGOT(step_size=0.5)):
    chosen, missed = train(estimator)
    print(f"{estimator}: missed {missed[0]:.2f} at first, {missed[-1]:.2f} at last")

# %% [markdown]
# The loss is linear in the structure, so its gradient is the same whatever was chosen.
# Straight-through pushes every day up for ever; SPIGOT compares with the week that the gradient asks
# for, and stops there.
#
# Shades: how much it rains; outlined: the days off that were chosen.

# %%
ax = plot.cells(
    weather[:6], chosen[:6], rows=[f"week {i}" for i in range(6)], columns="MTWTFSS", label="rain"
)

# %% [markdown]
# ## Without a class
#
# `Facets` takes constraints in a line, for a notebook:

# %%
Facets(lambda y: [y >= 0, y <= 1, cp.sum(y) <= MOST], (DAYS,)).project(scores)
