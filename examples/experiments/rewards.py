"""Reward and punishment: what surrogate gradients do to a choice that is right, under the microscope.

    python -m examples.experiments.rewards --docs docs/experiments.md

The categorical task, its encoder and decoder told the true clusters. A point's surrogate *rewards* the
cluster chosen (+) if a step against it raises that score above the mean of the others', *punishes* it
(-) if it lowers it there, and is *silent* if it is 0. The net is the mean of this push over the points,
relative to its mean size: 1 if all are rewarded, -1 if all are punished.

Twice: as the encoder is, sure of its clusters, and with scores so small that it is unsure of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor

from examples.experiments.estimators import choice
from examples.experiments.experiment import Cell
from examples.experiments.report import markdown_table, replaced, terminal_table
from examples.experiments.tasks.categorical import TASK, Clusters, costs
from spigot.polytopes import Simplex

__all__ = ["Push", "pushes"]

STRUCTURE = "3-clusters"
ESTIMATORS = (
    *("minimum-risk", "ste-identity", "ste-softmax", "spigot", "spigot-ce", "spigot-eg"),
    *("spigot-sparsemap", "frank-wolfe", "blackbox", "imle"),
)
UNSURE = 0.6  # the probability of the chosen cluster, on average
HEAD = [
    "estimator",
    *(f"{name}, {how}" for how in ("sure", "unsure") for name in ("+", "-", "0", "net")),
]


@dataclass(frozen=True)
class Push:
    """Shares of the points, and the net."""

    rewarded: float
    punished: float
    silent: float
    net: float

    @classmethod
    def of(cls, surrogate: Tensor, chosen: Tensor) -> Push:
        """Of the scores' gradients `(n, K)`, and the clusters chosen `(n,)`."""
        others = surrogate.shape[1] - 1
        own = surrogate.gather(1, chosen[:, None])[:, 0]
        push = (surrogate.sum(1) - own) / others - own
        return cls(
            *((part.double().mean().item()) for part in (push > 0, push < 0, (surrogate == 0).all(1))),
            net=(push.mean() / push.abs().mean().clamp(min=1e-30)).item(),
        )

    def cells(self) -> list[str]:
        shares = [f"{100 * share:.0f}%" for share in (self.rewarded, self.punished, self.silent)]
        return [*shares, f"{self.net:+.2f}"]


def unsure(scores: Tensor, chosen: Tensor) -> Tensor:
    """The scores times what makes the chosen clusters' probability `UNSURE` on average."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        chance = (middle * scores).softmax(1).gather(1, chosen[:, None]).mean()
        low, high = (middle, high) if chance < UNSURE else (low, middle)
    return low * scores


def pushes(seed: int, size: str = "full") -> dict[str, tuple[Push, Push]]:
    """Of every estimator, sure and unsure."""
    run = TASK.run(Cell("spigot", (("from_gold", True),)), STRUCTURE, seed, size)
    told = TASK.experiment(run)
    assert isinstance(told, Clusters)
    points, network = told.points["train"], told.network
    scores, logits = (part.detach() for part in network(points.inputs))
    chosen, polytope = scores.argmax(1), Simplex(scores.shape[1])

    def loss(mu: Tensor) -> Tensor:
        return costs(network.decide(mu, logits), points.signs)

    def push(name: str, scores: Tensor) -> Push:
        torch.manual_seed(seed)
        given = scores.clone().requires_grad_()
        settings = TASK.settings(TASK.run(Cell(name), STRUCTURE, seed, size))
        choice(name, polytope, settings)(given, loss).mean().backward()
        assert given.grad is not None
        return Push.of(given.grad, chosen)

    doubtful = unsure(scores, chosen)
    return {name: (push(name, scores), push(name, doubtful)) for name in ESTIMATORS}


def mean(found: Sequence[Push]) -> Push:
    """Over seeds."""
    return Push(*(fmean(getattr(each, name) for each in found) for name in Push.__annotations__))


def main(argv: Sequence[str] | None = None) -> list[list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many; %(default)s")
    parser.add_argument("--size", choices=("full", "smoke"), default="full", help="smoke: to try it")
    parser.add_argument("--docs", type=Path, help="a page whose marked part is written anew")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    every = [pushes(seed, options.size) for seed in range(options.seeds)]
    rows = [
        [name, *(cell for k in (0, 1) for cell in mean([each[name][k] for each in every]).cells())]
        for name in ESTIMATORS
    ]
    table = terminal_table(HEAD)
    for row in rows:
        table.add_row(*row)
    console = Console(width=None if Console().is_terminal else 100)
    console.print(table)
    if options.docs is not None:
        command = f"`python -m examples.experiments.rewards --seeds {options.seeds}`"
        text = (
            f"{markdown_table(HEAD, rows)}\n\n{command}; the mean over seeds, on the training points.\n"
        )
        page = options.docs.read_text(encoding="utf-8")
        options.docs.write_text(replaced(page, "rewards", text), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
