"""Total variation on the CPU, and its gradient."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._bank import chosen
from bilagrid.cpu._run import Kernel
from bilagrid.ops._dtypes import compute_type


def _total_variation_kernel(start, stop, grid, which, weights, sums):
    """``sums[n, c] = sum over axes of weight * difference²`` in one volume. An item is a volume ``(n, c)``."""
    channels, depth, rows, columns = grid.shape[1:]
    for item in range(start, stop):
        volume = grid[which[item // channels], item % channels]
        by_z, by_y, by_x = weights[0] * 0, weights[0] * 0, weights[0] * 0
        for z in range(depth):
            for y in range(rows):
                for x in range(columns):
                    if z > 0:
                        by_z += (volume[z, y, x] - volume[z - 1, y, x]) ** 2
                    if y > 0:
                        by_y += (volume[z, y, x] - volume[z, y - 1, x]) ** 2
                    if x > 0:
                        by_x += (volume[z, y, x] - volume[z, y, x - 1]) ** 2
        sums[item] = weights[0] * by_z + weights[1] * by_y + weights[2] * by_x


def _total_variation_bwd_kernel(start, stop, grid, which, weights, out):
    """``out = 2 sum over axes of weight * (differences to both neighbours)``. An item is a plane ``(n, c, z)``."""
    channels, depth, rows, columns = grid.shape[1:]
    for item in range(start, stop):
        n, rest = item // (channels * depth), item % (channels * depth)
        c, z = rest // depth, rest % depth
        volume = grid[which[n], c]
        for y in range(rows):
            for x in range(columns):
                here = volume[z, y, x]
                by_z, by_y, by_x = here * 0, here * 0, here * 0
                if z > 0:
                    by_z += here - volume[z - 1, y, x]
                if z < depth - 1:
                    by_z += here - volume[z + 1, y, x]
                if y > 0:
                    by_y += here - volume[z, y - 1, x]
                if y < rows - 1:
                    by_y += here - volume[z, y + 1, x]
                if x > 0:
                    by_x += here - volume[z, y, x - 1]
                if x < columns - 1:
                    by_x += here - volume[z, y, x + 1]
                out[n, c, z, y, x] = 2 * (weights[0] * by_z + weights[1] * by_y + weights[2] * by_x)


_total_variation = Kernel(_total_variation_kernel)
_total_variation_bwd = Kernel(_total_variation_bwd_kernel)


def _weights(shape: torch.Size, grids: int, like: np.ndarray) -> np.ndarray:
    """For each axis 1 over the number of differences along it in that many ``grids``, 0 where there are none."""
    counts = [grids * int(np.prod(shape[1:])) // extent * (extent - 1) for extent in shape[2:]]
    return np.array([1 / count if count else 0 for count in counts], like.dtype)


def total_variation(grid: Tensor, index: Tensor | None = None) -> Tensor:
    volumes, which = chosen(grid, index, compute_type(grid))
    grids = len(which)
    sums = grid.new_empty(grids * grid.shape[1], dtype=compute_type(grid))
    work = 6 * grids * math.prod(grid.shape[1:])
    _total_variation(sums.numel(), work, volumes, which, _weights(grid.shape, grids, volumes), sums.numpy())
    # NumPy's sum keeps one order whatever the number of threads; torch's need not.
    return grid.new_tensor(sums.numpy().sum(dtype=np.float64))


def total_variation_bwd(grid: Tensor, index: Tensor | None = None) -> Tensor:
    volumes, which = chosen(grid, index, compute_type(grid))
    grids = len(which)
    out = grid.new_empty((grids, *grid.shape[1:]), dtype=compute_type(grid))
    planes = grids * grid.shape[1] * grid.shape[2]
    _total_variation_bwd(planes, 12 * out.numel(), volumes, which, _weights(grid.shape, grids, volumes), out.numpy())
    return out.to(grid.dtype)
