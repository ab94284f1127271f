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
# # Predict, then optimise: ways over a map
#
# A map is seen through noise, and from ways that were taken over other maps we want to know what a
# cell costs. Predicting costs well is not the aim: the way that they lead to should be a good one. So
# the network is trained through the shortest path.

# %%
import matplotlib.pyplot as plt
import torch

from spigot import plot
from spigot.layers import Argmax, PerturbedLoss, SPOPlusLoss
from spigot.polytopes import GridPath
from spigot.pullback import SPIGOT, BlackBox, Normal, STEIdentity

SIDE = 10
grid = GridPath(SIDE, SIDE, neighbours=8)  # from the first cell to the last one, unless told otherwise
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## Maps
#
# Mountains: smooth heights, the true cost of a cell. What is seen of them are two noisy pictures. Ways
# go from corner to corner. (`examples/maps.py` does this on published maps, with walls.)


# %%
def maps(count):
    rough = torch.rand(count, 1, SIDE + 6, SIDE + 6, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(rough, 7, stride=1)[:, 0]
    heights = (smooth - smooth.amin((1, 2), keepdim=True)) / 0.2
    costs = 0.1 + heights**2
    noise = torch.randn(2, count, SIDE, SIDE, generator=generator)
    seen = torch.stack([heights + noise[0], heights.square() + noise[1]], 1)
    return seen, costs, grid.maximize(-costs)


train, test = maps(64), maps(200)
seen, costs, ways = test
figure, axes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for ax, picture, title in zip(axes, (*seen[0], costs[0]), ("seen", "seen", ""), strict=True):
    ax.imshow(picture, cmap="Greys")
    ax.set_title(title)
    ax.set_axis_off()
axes[2].cla()
plot.grid_path(ways[0], axes[2], background=costs[0], source=(0, 0), target=(SIDE - 1, SIDE - 1))
_ = axes[2].set_title("true cost, best way")

# %% [markdown]
# ## A network, and ways to train it
#
# It predicts a positive cost for each cell. Scores are negative costs, for everything here is
# maximised. *Two-stage* fits the true costs, SPO+ bounds the regret at them; all the others see
# nothing but the ways.


# %%
class Costs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(2, 16, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 1, 5, padding=2)
        )

    def forward(self, seen):
        return 0.1 + torch.nn.functional.softplus(self.layers(seen)[:, 0])


def through(estimator):
    layer = Argmax(grid, estimator)

    def loss(predicted, _, ways):
        return (layer(-predicted) - ways).square().sum((1, 2)).mean()

    return loss


perturbed = PerturbedLoss(grid, Normal(1.0), samples=4, validate=False)
spo = SPOPlusLoss(grid)
losses = {
    "two-stage": lambda predicted, costs, _: (predicted - costs).square().mean(),
    "SPO+": lambda predicted, costs, _: spo(-predicted, -costs),
    "STE-identity": through(STEIdentity()),
    "SPIGOT": through(SPIGOT(step_size=0.5)),
    "black-box": through(BlackBox(step_size=5.0)),
    "perturbed loss": lambda predicted, _, ways: perturbed(-predicted, ways),
}


def fit(loss, steps=80):
    torch.manual_seed(0)
    model = Costs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    seen, costs, ways = train
    for _ in range(steps):
        some = torch.randperm(len(seen))[:32]
        value = loss(model(seen[some]), costs[some], ways[some])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return model


@torch.no_grad()
def judged(model):
    seen, costs, ways = test
    found = grid.maximize(-model(seen))
    ratio = (found * costs).sum((1, 2)) / (ways * costs).sum((1, 2))
    return found, (ratio.mean().item(), (ratio < 1.05).float().mean().item())


# %% [markdown]
# ## What comes of it
#
# A path's cost relative to the best one's, and the share of paths within 5% of it.

# %%
found = {}
for name, loss in losses.items():
    found[name], (ratio, good) = judged(fit(loss))
    print(f"{name:15} cost over the best {ratio:.3f}   within 5%: {good:.0%}")

# %% [markdown]
# Where the true costs are known and the network can represent them, fitting them is hard to beat, and
# so it is here. Ways alone lead nearly as far, through the choice by any of three estimators; in
# `docs/experiments.md` the same is done at full size, on published maps.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for ax, name in zip(axes, ("two-stage", "STE-identity", "perturbed loss"), strict=True):
    ends = {"source": (0, 0), "target": (SIDE - 1, SIDE - 1)}
    plot.grid_path(found[name][0], ax, background=costs[0], **ends)
    ax.set_title(name)
