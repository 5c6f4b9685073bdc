"""How outputs lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def empty_as(image: Tensor, channels: int) -> Tensor:
    """An uninitialised ``(N, channels, H, W)`` laid out as ``image``: with its strides, or if it has another number of channels, contiguous or channels last."""
    if channels == image.shape[1]:
        return torch.empty_like(image)
    batch, _, height, width = image.shape
    interleaved = image.stride(1) < image.stride(3)
    layout = torch.channels_last if interleaved else torch.contiguous_format
    return torch.empty((batch, channels, height, width), dtype=image.dtype, device=image.device, memory_format=layout)


def empty_grid(like: Tensor, channels: int, size: Sequence[int], dtype: torch.dtype, *, interleaved: bool) -> Tensor:
    """An uninitialised grid ``(N, channels, D, Gh, Gw)`` with the batch size of ``like``: contiguous, or interleaved, ``(N, Gh, Gw, D, channels)`` in memory.

    In an interleaved grid all that a pixel reads at one node of the plane lies together, and a row of nodes is one piece of memory.
    """
    if not interleaved:
        return like.new_empty((like.shape[0], channels, *size), dtype=dtype)
    depth, rows, columns = size
    return like.new_empty((like.shape[0], rows, columns, depth, channels), dtype=dtype).permute(0, 4, 3, 1, 2)


def empty_grid_as(grid: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised grid of the same shape: interleaved if ``grid`` is, else contiguous."""
    interleaved = grid.stride(1) < grid.stride(4)
    return empty_grid(grid, grid.shape[1], grid.shape[2:], dtype or grid.dtype, interleaved=interleaved)
