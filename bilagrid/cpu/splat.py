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
def load_row(image, i, scratch, pixels):
    """Row i of an image (C, H, W) as ``pixels[j, c]``; a channel beyond the image's stays as it is."""
    for c in range(image.shape[0]):
        line = load_line(image[c, i], scratch)
        for j in range(line.size):
            pixels[j, c] = line[j]


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
    pixels = np.zeros((width, 2 * pairs), row_weights.dtype)
    pixels[:, values.shape[1] : channels] = 1
    flat, scratch = pixels.reshape(-1), np.empty(width, row_weights.dtype)
    base, upper = np.empty(width, np.int32), np.empty(width, row_weights.dtype)
    for item in range(start, stop):
        n, band = item // count, item % count
        side = 0
        for i in range(bands[band], bands[band + 1]):
            load_row(values[n], i, scratch, pixels)
            locate_row(load_line(guide[n, i], scratch), guide_map, depth, dz, columns, base, upper)
            for j in range(width):
                if upper[j] == upper[j]:
                    cell = (base[j] + first_cell(depth)) * pairs * CELL
                    scatter_pairs(
                        cells, cell, column_weights[j], upper[j], unit, row_weights[i], flat, 2 * pairs * j, pairs
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
