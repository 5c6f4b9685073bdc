"""The full-size guide of HDRNet, three ways: learned curves, a small pointwise network, or luma."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bilagrid.nn import Curves


class Pointwise(nn.Module):
    """Two 1x1 convolutions with batch norm and ReLU between, and a sigmoid."""

    def __init__(self, channels: int, features: int = 16) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, features, 1, bias=False)
        self.norm = nn.BatchNorm2d(features)
        self.mix = nn.Conv2d(features, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Image ``(N, C, H, W)`` to guide ``(N, H, W)`` in [0, 1]."""
        return torch.sigmoid(self.mix(torch.relu(self.norm(self.expand(image)))))[:, 0]


class Luma(nn.Module):
    """BT.601 luma of three channels, which the slicing computes itself; one channel as it is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels not in (1, 3):
            raise ValueError(f'guide "luma" needs 1 or 3 input channels, got {channels}; take "curves" or "pointwise"')

    def forward(self, image: Tensor) -> Tensor | None:
        """None for three channels, as `bilagrid.slice_apply` takes it."""
        return image[:, 0] if image.shape[1] == 1 else None


GUIDES: dict[str, Callable[[int], nn.Module]] = {"curves": Curves, "pointwise": Pointwise, "luma": Luma}
