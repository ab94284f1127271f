"""Which corner of a house is which, in two frames of a film?

The camera moves around a house on which 30 corners are marked. A corner is described by where the others
lie around it, its shape context: 60 counts by distance and direction. Two frames are matched by the best
assignment of corners whose descriptions agree. The further apart the frames, the less they do; so a
linear map of the descriptions is learned, through the assignment, on every twelfth frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from data import house_and_hotel
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from spigot.layers import Argmax, FenchelYoungLoss
from spigot.polytopes import Euclidean, Matching, Shannon
from spigot.pullback import SPIGOT

POINTS = 30
MATCHING = Matching(POINTS)
GAPS = (15, 30, 45, 60, 75, 90)
EVERY = 12  # frames, one to learn from
SCALE = 20.0  # of the scores: agreements of unit vectors lie between -1 and 1

Loss = Callable[[Tensor], Tensor]  # of scores (batch, 30, 30), against the identity


def through(layer: nn.Module) -> Loss:
    """How many corners the best assignment gets wrong, through an estimator."""
    return lambda scores: (layer(scores) - torch.eye(POINTS)).square().sum((1, 2)).mean() / 2


def fenchel_young(loss: nn.Module) -> Loss:
    return lambda scores: loss(scores, torch.eye(POINTS).expand_as(scores))


LOSSES: dict[str, Loss] = {
    "SPIGOT": through(Argmax(MATCHING, SPIGOT())),
    "SparseMAP loss": fenchel_young(FenchelYoungLoss(MATCHING, Euclidean())),
    "Sinkhorn loss": fenchel_young(FenchelYoungLoss(MATCHING, Shannon())),
}


class Agreement(nn.Module):
    """Cosines of mapped descriptions, (n, 30, 60) and (n, 30, 60) to (n, 30, 30)."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.map = nn.Linear(bins, bins, bias=False)
        nn.init.eye_(self.map.weight)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        left, right = (nn.functional.normalize(self.map(part), dim=-1) for part in (first, second))
        return SCALE * left @ right.transpose(1, 2)


def pairs(frames: Tensor, gap: int) -> tuple[Tensor, Tensor]:
    """All pairs of frames so far apart, but for those learned from."""
    first = torch.arange(len(frames) - gap)
    first = first[(first % EVERY > 0) & ((first + gap) % EVERY > 0)]
    return frames[first], frames[first + gap]


def learn(loss: Loss, frames: Tensor, steps: int) -> Agreement:
    """Adam on random pairs of the training frames."""
    torch.manual_seed(0)
    model = Agreement(frames.shape[-1])
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        first, second = torch.randint(len(frames), (2, 32))
        optimizer.zero_grad()
        loss(model(frames[first], frames[second])).backward()
        optimizer.step()
    return model


def assigned(scores: Tensor) -> Tensor:
    return MATCHING.decode(MATCHING.maximize(scores))


def nearest(scores: Tensor) -> Tensor:
    return scores.argmax(-1)


@torch.no_grad()
def accuracy(model: Agreement, frames: Tensor, gap: int, choose: Callable[[Tensor], Tensor]) -> float:
    """The share of corners matched rightly, over pairs so far apart."""
    found = choose(model(*pairs(frames, gap)))
    return (found == torch.arange(POINTS)).float().mean().item()


Row = tuple[str, float, list[float]]  # a name, seconds, and an accuracy for every gap


def run(contexts: Tensor, steps: int) -> list[Row]:
    frames = contexts.float().sqrt()  # counts: their roots vary alike
    plain = Agreement(frames.shape[-1])
    rows: list[Row] = []
    for name, choose in (("each corner's nearest", nearest), ("best assignment", assigned)):
        rows.append((name, 0.0, [accuracy(plain, frames, gap, choose) for gap in GAPS]))
    for name, loss in LOSSES.items():
        started = time.perf_counter()
        model = learn(loss, frames[::EVERY], steps)
        seconds = time.perf_counter() - started
        found = [accuracy(model, frames, gap, assigned) for gap in GAPS]
        rows.append((f"learned: {name}", seconds, found))
    return rows


def table(rows: list[Row]) -> Table:
    shown = Table(title="Corners matched rightly in frames not learned from, %", title_justify="left")
    shown.add_column("frames apart", no_wrap=True)
    for gap in GAPS:
        shown.add_column(str(gap), justify="right", no_wrap=True)
    shown.add_column("time", justify="right", no_wrap=True)
    for i, (name, seconds, found) in enumerate(rows):
        if i == 2:
            shown.add_section()
        spent = f"{seconds:.0f} s" if seconds else ""
        shown.add_row(name, *(f"{100 * value:.0f}" for value in found), spent)
    return shown


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="the folder of the CMU house and hotel")
    parser.add_argument("--steps", type=int, default=150, help="of training; %(default)s")
    options = parser.parse_args(argv)
    rows = run(house_and_hotel(options.data).contexts, options.steps)
    Console().print(table(rows))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
