"""What the tests of `bilagrid.compat` share: colour grids composed of torch's own operators in float64, and comparisons with them."""

from __future__ import annotations

import torch
from torch import Tensor

BT601 = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)


def maps_of(grids: Tensor, xy: Tensor, rgb: Tensor) -> Tensor:
    """Maps ``(N, ..., 3, 4)``: row n of places ``(N, ..., 2)`` and colours ``(N, ..., 3)`` read from grid n by 5-D ``grid_sample``."""
    count = rgb.shape[0]
    places = torch.cat([xy, (rgb @ BT601.to(rgb))[..., None]], -1) * 2 - 1
    read = torch.nn.functional.grid_sample(
        grids, places.reshape(count, 1, 1, -1, 3), mode="bilinear", padding_mode="border", align_corners=True
    )
    return read.reshape(count, 12, -1).movedim(1, 2).reshape(*rgb.shape[:-1], 3, 4)


def seen_through(grids: Tensor, xy: Tensor, rgb: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Colours and maps, row n through ``grids[index[n]]``, ``index`` of one entry standing for all rows."""
    count = rgb.shape[0]
    maps = maps_of(grids[index.expand(count)], xy.expand(*rgb.shape[:-1], 2), rgb)
    return torch.einsum("...ij,...j->...i", maps[..., :3], rgb) + maps[..., 3], maps


def smoothness(grids: Tensor) -> Tensor:
    """Sum over the trailing axes of the mean squared difference of neighbours."""
    total = grids.new_zeros(())
    for axis in range(2, grids.ndim):
        low, high = grids.narrow(axis, 0, grids.shape[axis] - 1), grids.narrow(axis, 1, grids.shape[axis] - 1)
        if low.numel():
            total = total + (high - low).pow(2).mean()
    return total


def half_pixels(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The places that gsplat's trainer computes, ``(1, H, W, 2)``."""
    rows, columns = (torch.arange(extent, dtype=dtype) + 0.5 for extent in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return (torch.stack([x, y], -1) / torch.tensor([width, height])).unsqueeze(0)


def corners(height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The places that nerfstudio's splatfacto computes."""
    rows, columns = (torch.linspace(0, 1, extent, dtype=dtype) for extent in (height, width))
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).unsqueeze(0)


def off_kinks(shape: tuple[int, ...], depth: int) -> Tensor:
    """Colours ``(*shape, 3)`` in float64, some outside [0, 1], whose luma keeps away from the nodes, where derivatives jump."""
    rgb = 1.2 * torch.rand(*shape, 3, dtype=torch.float64) - 0.1
    z = (rgb @ BT601) * (depth - 1)
    wanted = z.floor() + 0.1 + 0.8 * (z - z.floor())
    return rgb + ((wanted - z) / max(depth - 1, 1))[..., None]
