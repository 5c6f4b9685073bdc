"""How outputs lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def empty_as(image: Tensor, channels: int) -> Tensor:
    """An uninitialised ``(N, channels, H, W)`` that lies as ``image`` does: with its strides, or channels last if it is so and the count differs."""
    if channels == image.shape[1]:
        return torch.empty_like(image)
    batch, _, height, width = image.shape
    interleaved = image.stride(1) < image.stride(3)
    layout = torch.channels_last if interleaved else torch.contiguous_format
    return torch.empty((batch, channels, height, width), dtype=image.dtype, device=image.device, memory_format=layout)
