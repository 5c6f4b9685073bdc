"""Inputs for the operators: random numbers that are the same in every run, and pictures whose luma is a guide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

# The kinds of picture, and so of guide.
GUIDES = ("photograph", "random")


@dataclass(frozen=True)
class Draw:
    """Random numbers in float32, the same for every run."""

    device: torch.device
    generator: torch.Generator

    @classmethod
    def on(cls, device: torch.device) -> Draw:
        return cls(device, torch.Generator(device).manual_seed(0))

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)


@cache
def _photograph() -> np.ndarray:
    """A photograph that comes with scikit-image, (H, W, 3) in [0, 1]."""
    from skimage import data

    return data.coffee().astype(np.float32) / 255


# The cases of one size follow one another, on one kind of picture or on both in turn.
@lru_cache(maxsize=len(GUIDES))
def picture(kind: str, height: int, width: int, device: torch.device) -> Tensor:
    """``(1, 3, H, W)`` in [0, 1], not to be written to: noise, or mirrored copies of the photograph side by side, which have its detail at any size."""
    draw = Draw.on(device)
    if kind == "random":
        return draw.uniform(1, 3, height, width)
    photograph = _photograph()
    padding = [(0, max(0, wanted - have)) for wanted, have in zip((height, width), photograph.shape[:2], strict=True)]
    tiled = np.pad(photograph, [*padding, (0, 0)], mode="symmetric")[:height, :width]
    image = torch.from_numpy(np.ascontiguousarray(tiled.transpose(2, 0, 1)))[None].to(device)
    # Noise below the photograph's own steps of 1/255. Without it gray levels would lie exactly on nodes, where the derivative by the guide jumps.
    return (image + (draw.uniform(*image.shape) - 0.5) / 255).clamp_(0, 1)
