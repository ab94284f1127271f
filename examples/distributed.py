"""One model trained by several processes, with plain torch.distributed.

    torchrun --nproc-per-node 2 examples/distributed.py

Every process takes its share of a batch, and DistributedDataParallel averages the gradients. An
estimator that takes steps needs to know what the loss was divided by, since it is not linear in the
loss's gradient: `reduction="mean"` stands for the process's own share of the batch, which is right where
all shares are equal. Here they are not, B = 25 in two processes, so each divides by B / processes and
says so. The averaged gradients are then those of one process with the whole batch.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from spigot.layers import Argmax
from spigot.polytopes import Subset
from spigot.pullback import SPIGOT

BATCH, FEATURES, PARTS, CHOSEN = 25, 8, 6, 2
RULE = torch.linspace(-1, 1, PARTS * FEATURES, dtype=torch.float64).reshape(PARTS, FEATURES)


@dataclass
class Share:
    """One process of several, and what its loss is divided by."""

    rank: int = 0
    processes: int = 1

    @property
    def divisor(self) -> float:
        """Averaged over the processes, sums over shares divided by this are the batch's mean."""
        return BATCH / self.processes

    def of(self, batch: Tensor) -> Tensor:
        """Every so-and-so-manieth row: the first processes may have one more."""
        return batch[self.rank :: self.processes]


class Model(nn.Module):
    """Two of six parts are chosen from what is seen, and a number is read from the choice."""

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.encoder = nn.Linear(FEATURES, PARTS)
        self.choose = Argmax(Subset(PARTS, CHOSEN), SPIGOT(reduction=lambda: share.divisor))
        self.decoder = nn.Bilinear(PARTS, FEATURES, 1)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Each instance's loss."""
        found = self.decoder(self.choose(self.encoder(inputs)), inputs)[:, 0]
        return (found - targets).square()


def batch(step: int) -> tuple[Tensor, Tensor]:
    """The whole batch of a step, the same in every process."""
    rng = torch.Generator().manual_seed(step)
    inputs = torch.randn(BATCH, FEATURES, dtype=torch.float64, generator=rng)
    return inputs, Subset(PARTS, CHOSEN).maximize(inputs @ RULE.T).mul(inputs @ RULE.T).sum(1)


@dataclass(frozen=True)
class Trained:
    losses: list[float]  # of whole batches
    gradients: list[Tensor]  # of the first step
    weights: list[Tensor]


def train(share: Share, steps: int) -> Trained:
    torch.manual_seed(0)
    model: nn.Module = Model(share).double()
    weights = list(model.parameters())
    if share.processes > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(weights, 0.01)
    losses: list[float] = []
    gradients: list[Tensor] = []
    for step in range(steps):
        inputs, targets = (share.of(part) for part in batch(step))
        optimizer.zero_grad()
        loss = model(inputs, targets).sum() / share.divisor
        loss.backward()
        optimizer.step()
        total = loss.detach().clone()
        if share.processes > 1:
            distributed.all_reduce(total)
        losses.append(total.item() / share.processes)
        if step == 0:
            gradients = [weight.grad.clone() for weight in weights if weight.grad is not None]
    return Trained(losses, gradients, [weight.detach().clone() for weight in weights])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="%(default)s")
    parser.add_argument("--save", type=Path, help="where to put losses, first gradients and weights")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    share = Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    if share.processes > 1:
        distributed.init_process_group("gloo")
    trained = train(share, options.steps)
    if share.rank == 0:
        first, last = trained.losses[0], sum(trained.losses[-20:]) / len(trained.losses[-20:])
        print(f"{share.processes} processes, {options.steps} steps: loss {first:.3f}, then {last:.3f}")
        if options.save is not None:
            torch.save(vars(trained), options.save)
    if share.processes > 1:
        gc.collect()  # the wrapped model holds itself, and with it the group, whose threads end with it
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
