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
# # How SPIGOT works
#
# Three choices, one of which is made: M is a triangle, and everything can be drawn. The scores prefer
# the first choice; the loss would rather have the second.

# %%
import matplotlib.pyplot as plt
import torch

from spigot import plot
from spigot.layers import Argmax
from spigot.polytopes import Euclidean, Gibbs, Simplex
from spigot.pullback import SPIGOT, SPIGOTCE, SPIGOTEG, FrankWolfePullBack, STEIdentity

M = Simplex(3)
scores = torch.tensor([0.9, 0.3, 0.2], dtype=torch.float64)
wanted = torch.tensor([0.1, 0.8, 0.1], dtype=torch.float64)


def loss(mu):  # (*batch, 3) -> (*batch,)
    return (mu - wanted).square().sum(-1) / 2


ax = plot.polytope(M)
plot.points(M, M.maximize(scores), ax, label="MAP: the structure", colour="#009e73", marker="D")
plot.points(M, M.project(scores), ax, label="projection: SparseMAP", colour="#0072b2")
plot.points(M, M.marginals(scores), ax, label="marginals", colour="#d55e00", marker="s")
plot.points(M, wanted, ax, label="where the loss is 0", colour="black", marker="*", size=90)
_ = ax.legend(loc="upper right", frameon=False, fontsize=9)
# %% [markdown]
# ## The problem
#
# The layer returns the vertex z, whatever the scores are exactly. So the true gradient of the loss by
# the scores is zero, almost everywhere:

# %%
step = 1e-4 * torch.eye(3, dtype=torch.float64)
[(loss(M.maximize(scores + d)) - loss(M.maximize(scores - d))).item() for d in step]

# %% [markdown]
# But the loss has a gradient by the *structure*, g = z - wanted. It says: less of the first choice,
# more of the second. Straight-through hands it to the scores as it is. SPIGOT asks which point of M
# is meant: a gradient step from z leaves M, the projection leads back, and the target is what should
# have been chosen.

# %%
estimator = SPIGOT(step_size=1.3)
ax = plot.pull_back(estimator, M, scores, loss)

# %% [markdown]
# The surrogate gradient is the structure less the target. It is the gradient of an *intermediate*
# loss, the perceptron's, `max over z' of <s, z'> - <s, target>`: as if somebody had told us the
# target as a label.

# %%
path = estimator.path(M, scores, loss)
target = path[-1]
leaf = scores.clone().requires_grad_()
loss(Argmax(M, estimator)(leaf)).backward()
print("target   ", target.numpy().round(3))
print("surrogate", leaf.grad.numpy().round(3))
assert torch.allclose(leaf.grad, M.maximize(scores) - target)

# %% [markdown]
# ## Other ways to step
#
# The step may start elsewhere and be measured otherwise. Cross-entropy (SPIGOT-CE) starts at the
# marginals and projects; exponentiated gradient (SPIGOT-EG) starts there too and moves the scores
# behind them, so that it never leaves M and needs no projection; Frank-Wolfe stays at vertices'
# mixtures and asks for one more MAP.

# %%
estimators = {
    "SPIGOT": SPIGOT(step_size=0.6),
    "SPIGOT-CE": SPIGOTCE(step_size=0.6),
    "SPIGOT-EG": SPIGOTEG(step_size=2.0),
    "Frank-Wolfe": FrankWolfePullBack(step_size=0.6),
}
figure, grid = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
figure.get_layout_engine().set(wspace=0.1)
for ax, (name, each) in zip(grid, estimators.items(), strict=True):
    plot.pull_back(each, M, scores, loss, ax, legend=False)
    ax.set_title(name)

# %% [markdown]
# ## Several steps
#
# With the loss at hand (`downstream=`), the gradient can be taken anew at every point reached: the
# target then comes closer to the best point of M, for a loss that is no straight line.

# %%
figure, grid = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
figure.get_layout_engine().set(wspace=0.1)
for ax, steps in zip(grid, (1, 3, 12), strict=True):
    plot.polytope(M, ax)
    for each, look in (
        (SPIGOT(step_size=0.25, steps=steps), {"colour": "#d55e00"}),
        (SPIGOTEG(step_size=1.0, steps=steps), {"colour": "#0072b2", "marker": "s", "style": "--"}),
        (
            FrankWolfePullBack(step_size=0.25, steps=steps),
            {"colour": "#009e73", "marker": "^", "style": ":"},
        ),
    ):
        plot.path(M, each.path(M, scores, loss), ax, label=each.name, **look)
    plot.points(M, wanted, ax, colour="black", marker="*", size=90)
    ax.set_title(f"{steps} step{'s' * (steps > 1)}")
entries = grid[0].get_legend_handles_labels()
_ = figure.legend(*entries, loc="outside lower center", ncols=3, frameon=False)

# %% [markdown]
# ## What a training run does with it
#
# Scores that follow the surrogates of a linear loss, whose gradient is the same at every structure.
# STE-identity moves them for ever; SPIGOT stops when no structure is better along -g; SPIGOT-CE goes
# on ever more slowly, as a classifier's cross-entropy does.


# %%
def linear(mu):
    return -(mu * wanted).sum(-1)


figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
for each, style in ((STEIdentity(), "--"), (SPIGOT(step_size=0.6), "-"), (SPIGOTCE(step_size=0.6), ":")):
    leaf, history = scores.clone().requires_grad_(), []
    layer = Argmax(M, each)
    for _ in range(60):
        leaf.grad = None
        linear(layer(leaf)).backward()
        with torch.no_grad():
            leaf -= 0.1 * leaf.grad
        history.append((leaf[1] - leaf[0]).item())
    ax.plot(history, style, color="black", label=each.name)
ax.axhline(0.0, color="0.7", linewidth=0.8)
ax.set_xlabel("step")
ax.set_ylabel("score of the second\nless that of the first")
_ = ax.legend(frameon=False)
# %% [markdown]
# ## Relaxations take another road
#
# They return a point inside M whose derivative is exact, so no surrogate is needed; the loss must
# then make sense at mixtures of structures.

# %%
for omega in (Euclidean(), Gibbs()):
    leaf = scores.clone().requires_grad_()
    value = loss(M.maximize(leaf, omega))
    value.backward()
    print(f"{omega}: loss {value.item():.3f}, gradient {leaf.grad.numpy().round(3)}")
