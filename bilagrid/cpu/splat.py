"""Splat on the CPU: a pixel adds its values to its cell, with the weights of the eight corners."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._geometry import Geometry, array, compute_type, load_line, locate_row
from bilagrid.cpu._lanes import CELL, scatter_pairs
from bilagrid.cpu._reduction import Bands, cells_of_row, end_row, first_cell
from bilagrid.cpu._run import Kernel, helper
from bilagrid.lattice import Lattice
from bilagrid.ops._memory import empty_grid


@helper
def load_pairs(values, i, ones, scratch, other, pixels):
    """Row i of the values (C, H, W) as ``pixels[c // 2, j, c % 2]``; channels beyond theirs are ones."""
    channels = values.shape[0]
    for pair in range(pixels.shape[0]):
        c = 2 * pair
        first = load_line(values[c, i], scratch) if c < channels else ones
        second = load_line(values[c + 1, i], other) if c + 1 < channels else ones
        for j in range(ones.size):
            pixels[pair, j, 0], pixels[pair, j, 1] = first[j], second[j]


def _splat_kernel(
    start, stop, values, channels, guide, guide_map, dz, bands, owners, rows, row_weights, columns, column_weights,
    grid, aside,
):  # fmt: skip
    """``grid[n, c, k] = sum_p w_k(p) values[n, c, p]``; a band ``(n, band)`` an item. A channel that the values lack, up to ``channels``, is one of ones."""
    depth, width = grid.shape[2], guide.shape[2]
    real = row_weights.dtype.type
    pairs, count = (channels + 1) // 2, bands.size - 1
    unit = real(0) if dz else real(1)
    cells = cells_of_row(grid.shape[4], depth, pairs, row_weights.dtype)
    sums = np.zeros((2, 2 * grid.shape[4] * (depth + 1) * pairs), row_weights.dtype)
    pixels, ones = np.empty((pairs, width, 2), row_weights.dtype), np.ones(width, row_weights.dtype)
    flat, scratch, other = pixels.reshape(-1), np.empty(width, row_weights.dtype), np.empty(width, row_weights.dtype)
    base, upper = np.empty(width, np.int32), np.empty(width, row_weights.dtype)
    for item in range(start, stop):
        n, band = item // count, item % count
        side = 0
        for i in range(bands[band], bands[band + 1]):
            load_pairs(values[n], i, ones, scratch, other, pixels)
            locate_row(load_line(guide[n, i], scratch), guide_map, depth, dz, columns, base, upper)
            for j in range(width):
                if upper[j] == upper[j]:
                    cell = (base[j] + first_cell(depth)) * pairs * CELL
                    scatter_pairs(
                        cells, cell, column_weights[j], upper[j], unit, row_weights[i], flat, 2 * j, 2 * width, pairs
                    )
            side = end_row(n, band, i, bands, rows, owners, pairs, cells, sums, side, grid, aside)


_splat = Kernel(_splat_kernel)


def splat(values: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool = False, homogeneous: bool = False) -> Tensor:
    dtype = compute_type(values, guide)
    at = Geometry(lattice, guide.shape[1], guide.shape[2], dtype)
    channels = values.shape[1] + homogeneous
    grid = empty_grid(values, channels, lattice.size, dtype, interleaved=homogeneous)
    bands = Bands(grid, at)
    _splat(
        bands.items, 8 * channels * guide.numel(), array(values, dtype), channels, array(guide, dtype), at.guide_map, dz,
        bands.bands, bands.owners, at.rows, at.row_weights, at.columns, at.column_weights, grid.numpy(), bands.aside,
    )  # fmt: skip
    bands.add_aside()
    return grid.to(torch.float64 if values.dtype == torch.float64 else torch.float32)
