"""One process of `test_two_processes_train_as_one`: ``torchrun -m tests.distributed_worker OUT``, or alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from bilagrid import nn as modules

STEPS, BATCH = 3, 4


class Enhance(nn.Module):
    """What a trained enhancement is made of: a guide's curves, and a grid of colour maps that are sliced and applied."""

    def __init__(self) -> None:
        super().__init__()
        self.guide, self.render = modules.Curves(3, knots=4), modules.SliceApply()
        self.grid = nn.Parameter(torch.eye(3, 4).reshape(1, 12, 1, 1, 1).repeat(1, 1, 4, 3, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.render(self.grid.expand(image.shape[0], -1, -1, -1, -1), self.guide(image), image)


def train() -> dict[str, Tensor]:
    """Some steps on a batch that is shared out among the processes; the parameters, which are the same everywhere."""
    torch.manual_seed(0)
    module: nn.Module = Enhance()
    images = torch.rand(STEPS, BATCH, 3, 24, 30)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        torch.distributed.init_process_group("gloo")
        # Of its own: torch keeps the group that it has taken alive, and a thread of it may abort the process at its end.
        module = nn.parallel.DistributedDataParallel(module, process_group=torch.distributed.new_group())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in images.chunk(world, 1)[rank]:
        optimizer.zero_grad()
        (module(batch) - batch.sqrt()).square().mean().backward()
        optimizer.step()
    state = {name.removeprefix("module."): value for name, value in module.state_dict().items()}
    if world > 1:
        for value in state.values():
            first = value.clone()
            torch.distributed.broadcast(first, 0)
            assert torch.equal(first, value), "the processes' parameters have drifted apart"
        torch.distributed.destroy_process_group()
    return state


if __name__ == "__main__":
    state = train()
    if os.environ.get("RANK", "0") == "0":
        torch.save(state, Path(sys.argv[1]))
