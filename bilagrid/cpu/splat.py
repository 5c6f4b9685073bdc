"""Splat on the CPU: each pixel adds its values to its cell, weighted for the eight corners."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import Geometry, array, load_line, locate_row
from bilagrid.cpu._reduction import (
    Bands,
    cells_of_tile,
    close_tile,
    end_of_cells,
    end_row,
    place_row,
    scatter_row,
)
from bilagrid.cpu._run import Kernel, helper
from bilagrid.cpu.blur import blur
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._memory import empty_grid


@helper
def load_pairs(values, ones, scratch, other, pixels):
    """A row of values (C, W) as the flat ``pixels[c // 2, j, c % 2]``; further channels are ones."""
    channels, width = values.shape
    for pair in range(pixels.size // (2 * width)):
        c, start = 2 * pair, 2 * pair * width
        first = load_line(values[c], scratch) if c < channels else ones
        second = load_line(values[c + 1], other) if c + 1 < channels else ones
        for j in range(width):
            pixels[start + 2 * j] = first[j]
            pixels[start + 2 * j + 1] = second[j]


def _splat_kernel(
    start, stop, values, channels, guide, guide_map, dz, bands, owners, tiles, tile_columns, rows, row_weights, columns,
    column_weights, grid, aside,
):  # fmt: skip
    """``grid[n, c, k] = sum_p w_k(p) values[n, c, p]``. An item is a band ``(n, band)``. Channels that the values lack, up to ``channels``, are ones."""
    depth, real = grid.shape[2], row_weights.dtype
    pairs, count = (channels + 1) // 2, bands.size - 1
    unit = real.type(0) if dz else real.type(1)
    cells = cells_of_tile(tile_columns, depth, pairs, real)
    sums = np.zeros((2, 2 * grid.shape[4] * depth * pairs), real)
    longest = np.diff(tiles).max()
    all_pixels, ones = np.empty(2 * pairs * longest, real), np.ones(longest, real)
    scratch, other = np.empty(longest, real), np.empty(longest, real)
    base, upper, places = np.empty(longest, np.int32), np.empty(longest, real), np.empty(longest, np.int32)
    for item in range(start, stop):
        n, band = item // count, item % count
        side, i = 0, bands[band]
        while i < bands[band + 1]:
            after = end_of_cells(rows, i, bands[band + 1])
            for tile in range(tiles.size - 1):
                first, last = tiles[tile], tiles[tile + 1]
                width = last - first
                by_x, pixels, part = column_weights[first:last], all_pixels[: 2 * pairs * width], scratch[:width]
                for row in range(i, after):
                    load_pairs(values[n, :, row, first:last], ones[:width], part, other[:width], pixels)
                    line = load_line(guide[n, row, first:last], part)
                    locate_row(line, guide_map, depth, dz, columns[first:last], base, upper)
                    place_row(base, upper, tile * tile_columns, depth, pairs, cells, places[:width])
                    scatter_row(cells, places[:width], by_x, upper, unit, row_weights[row], pixels, pairs, tile_columns)
                close_tile(cells, tile * tile_columns, tile_columns, grid, pairs, sums[side], sums[1 - side])
            side = end_row(n, band, after - 1, bands, rows, owners, pairs, sums, side, grid, aside)
            i = after


_splat = Kernel(_splat_kernel)


def splat(values: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool = False) -> Tensor:
    return _add_up(values, guide, lattice, dz=dz)


def splat_blurred(values: Tensor, guide: Tensor, sigma: tuple[float, float, float], lattice: Lattice) -> Tensor:
    return blur(_add_up(values, guide, lattice, homogeneous=True), sigma)


def _add_up(values: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool = False, homogeneous: bool = False) -> Tensor:
    dtype = compute_type(values, guide)
    at = Geometry(lattice, guide.shape[1], guide.shape[2], dtype)
    channels = values.shape[1] + int(homogeneous)
    grid = empty_grid(values, channels, lattice.size, dtype, interleaved=homogeneous)
    bands = Bands(grid, at)
    _splat(
        bands.items, 8 * channels * guide.numel(), array(values, dtype), channels, array(guide, dtype), at.guide_map, dz,
        *bands.order, at.rows, at.row_weights, at.columns, at.column_weights, grid.numpy(), bands.aside,
    )  # fmt: skip
    bands.add_aside()
    return grid.to(compute_type(values))
