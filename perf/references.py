"""The operators once more, in plain torch: what `perf` checks results against before it times them.

Every pixel gathers from, or adds to, its eight nodes by index; autograd does the rest. Give float64 tensors: slow, large, and independent of the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilagrid import Lattice

# What `joint_bilateral_upsample` adds of the plain bilinear result.
_PRIOR = 1e-5


def _corners(guide: Tensor, lattice: Lattice) -> list[tuple[Tensor, Tensor]]:
    """For each of a pixel's eight nodes its index in ``(D * Gh * Gw)`` and its tent weight: ``(N, H * W)`` each."""
    batch, height, width = guide.shape
    columns = torch.arange(width, dtype=guide.dtype, device=guide.device).expand(guide.shape)
    rows = torch.arange(height, dtype=guide.dtype, device=guide.device)[:, None].expand(guide.shape)
    places = zip((guide, rows, columns), lattice.scale, lattice.offset, strict=True)
    near = _around([place * scale + offset for place, scale, offset in places], lattice.size)
    return [(index.view(batch, -1), weight.reshape(batch, -1)) for index, weight in near]


def _around(coordinates: list[Tensor], size: tuple[int, int, int]) -> list[tuple[Tensor, Tensor]]:
    """For each of the eight nodes around ``coordinates`` (z, y, x) its index in ``(D * Gh * Gw)`` and its tent weight, of their shape."""
    near = [(torch.zeros_like(coordinates[0], dtype=torch.long), torch.ones_like(coordinates[0]))]
    for coordinate, nodes in zip(coordinates, size, strict=True):
        inside = (coordinate > 0) & (coordinate < nodes - 1)
        # Saturated coordinates have no derivative; clamp's would be 1 on the border itself.
        coordinate = torch.where(inside, coordinate, coordinate.detach().clamp(0, nodes - 1))
        first = coordinate.detach().floor().clamp(max=max(nodes - 2, 0)).long()
        upper = coordinate - first
        near = [
            (index * nodes + node, weight * share)
            for index, weight in near
            for node, share in ((first, 1 - upper), ((first + 1).clamp(max=nodes - 1), upper))
        ]
    return near


def slice_points(grid: Tensor, points: Tensor) -> Tensor:
    """``(..., C)``: one grid at points ``(..., 3)``, each (x, y, z) in nodes."""
    flat = grid[0].flatten(1)
    total = torch.zeros((), dtype=grid.dtype, device=grid.device)
    depth, rows, columns = grid.shape[2:]
    for index, weight in _around(list(points.unbind(-1)[::-1]), (depth, rows, columns)):
        total = total + weight[..., None] * flat.T[index]
    return total


def slice(grid: Tensor, guide: Tensor, lattice: Lattice) -> Tensor:
    """``(N, C, H, W)``: the sum over eight nodes of weight times coefficient."""
    flat = grid.flatten(2)
    total = torch.zeros((), dtype=grid.dtype, device=grid.device)
    for index, weight in _corners(guide, lattice):
        total = total + weight[:, None] * flat.gather(2, index[:, None].expand(-1, flat.shape[1], -1))
    return total.view(*grid.shape[:2], *guide.shape[1:])


def splat(values: Tensor, guide: Tensor, lattice: Lattice) -> Tensor:
    """``(N, C, D, Gh, Gw)``: every pixel added to its eight nodes."""
    batch, channels = values.shape[:2]
    flat = values.flatten(2)
    grid = values.new_zeros(batch, channels, math.prod(lattice.size))
    for index, weight in _corners(guide, lattice):
        grid = grid.scatter_add(2, index[:, None].expand(-1, channels, -1), weight[:, None] * flat)
    return grid.view(batch, channels, *lattice.size)


def slice_apply(grid: Tensor, guide: Tensor, image: Tensor, lattice: Lattice) -> Tensor:
    """The sliced affine map applied to each pixel."""
    maps = slice(grid, guide, lattice).unflatten(1, (-1, image.shape[1] + 1))
    return (maps[:, :, :-1] * image[:, None]).sum(2) + maps[:, :, -1]


def luma(image: Tensor) -> Tensor:
    """BT.601 luma ``(N, H, W)``."""
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def curves(
    image: Tensor, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor
) -> Tensor:
    """Channels mixed, ramps from every knot, their sum clipped."""
    mixed = torch.einsum("mc,nchw->nmhw", matrix, image) + bias[:, None, None]
    ramps = torch.relu(mixed.unsqueeze(2) - shifts[:, :, None, None])
    return (torch.einsum("m,mk,nmkhw->nhw", mix, slopes, ramps) + mix_bias).clamp(0, 1)


def blur(grid: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    """A convolution with sampled Gaussians along z, y and x, cut at three sigma; zero outside. An axis of sigma 0 stays as it is."""
    batch, channels, *size = grid.shape
    out = grid.reshape(batch * channels, 1, *size)
    for axis, deviation in enumerate(sigma):
        if deviation == 0:
            continue
        radius = math.ceil(3 * deviation)
        steps = torch.arange(-radius, radius + 1, dtype=grid.dtype, device=grid.device)
        taps = torch.exp(-0.5 * (steps / deviation) ** 2)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(taps), radius
        out = torch.nn.functional.conv3d(out, (taps / taps.sum()).view(shape), padding=padding)
    return out.view_as(grid)


def total_variation(grid: Tensor) -> Tensor:
    """The sum over the axes of the mean squared difference."""
    means = (grid.diff(dim=axis).square().mean() for axis in (2, 3, 4) if grid.shape[axis] > 1)
    return sum(means, start=0 * grid.sum())


def homogeneous(values: Tensor) -> Tensor:
    """One channel more, of ones."""
    return torch.cat([values, torch.ones_like(values[:, :1])], 1)


def bilateral_filter(image: Tensor, guide: Tensor, lattice: Lattice, sigma: tuple[float, float, float]) -> Tensor:
    """Splat, blur, slice, divide."""
    sliced = slice(blur(splat(homogeneous(image), guide, lattice), sigma), guide, lattice)
    return sliced[:, :-1] / sliced[:, -1:]


def joint_bilateral_upsample(
    low: Tensor, guide_low: Tensor, guide_high: Tensor, lattice: Lattice, sigma: tuple[float, float, float]
) -> Tensor:
    """Splat and blur at low resolution, slice at high, where the pixels' areas are aligned."""
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = lattice.scale, lattice.offset
    height, width = guide_high.shape[1:]
    step_y, step_x = low.shape[2] / height, low.shape[3] / width
    steps = (scale_z, scale_y * step_y, scale_x * step_x)
    anchors = (offset_z, offset_y + scale_y * (step_y - 1) / 2, offset_x + scale_x * (step_x - 1) / 2)
    high = Lattice("sigma", lattice.size, (height, width), (0, 0), steps + anchors, (height, width))
    sliced = slice(blur(splat(homogeneous(low), guide_low, lattice), sigma), guide_high, high)
    prior = torch.nn.functional.interpolate(low, size=(height, width), mode="bilinear")
    return (sliced[:, :-1] + _PRIOR * prior) / (sliced[:, -1:] + _PRIOR)
