"""Splat on the CPU: strips of rows are summed into two rows of nodes each, and the strips' sums are added in a fixed order."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._geometry import Geometry, array, compute_type, locate_row
from bilagrid.cpu._lanes import scatter_pair
from bilagrid.cpu._run import Kernel, helper
from bilagrid.lattice import Lattice


@helper
def load_row(image, i, pixels):
    """Row i of an image (C, H, W) as ``pixels[j, c]``; a channel beyond the image's stays as it is."""
    for c in range(image.shape[0]):
        for j in range(image.shape[2]):
            pixels[j, c] = image[c, i, j]


@helper
def close_strip(strip, partial):
    """A strip's cells ``(y, pair, cell, corner and channel)`` as nodes ``(y, pair, node, channel)``: each node from the cell above it and the cell below."""
    for y in range(2):
        for pair in range(strip.shape[1]):
            for channel in range(2):
                partial[y, pair, 0, channel] = strip[y, pair, 0, channel]
                for node in range(1, strip.shape[2]):
                    partial[y, pair, node, channel] = (
                        strip[y, pair, node, channel] + strip[y, pair, node - 1, 2 + channel]
                    )


def _splat_kernel(
    start, stop, values, channels, guide, guide_map, depth, dz, strips, row_weights, columns, column_weights, partials
):
    """``partials[n, s, y, c // 2, k, c % 2] = sum_p w_k(p) values[n, c, p]`` over the pixels of strip s, y below or above; a strip ``(n, s)`` an item.

    A channel that the values lack, up to ``channels``, is one of ones.
    """
    width = guide.shape[2]
    real = partials.dtype.type
    stride = depth + 1
    pairs, nodes = partials.shape[3:5]
    strip = np.empty((2, pairs, nodes, 4), partials.dtype)
    flat, plane = strip.reshape(-1), 4 * nodes
    pixels = np.zeros((width, 2 * pairs), partials.dtype)
    pixels[:, values.shape[1] : channels] = 1
    base = np.empty(width, np.int64)
    lower, upper = np.empty(width, partials.dtype), np.empty(width, partials.dtype)
    count = partials.shape[1]
    for item in range(start, stop):
        n, s = item // count, item % count
        strip[:] = 0
        for i in range(strips[s], strips[s + 1]):
            locate_row(guide[n, i], guide_map, depth, dz, columns, base, lower, upper)
            load_row(values[n], i, pixels)
            above = row_weights[i]
            below = real(1) - above
            for j in range(width):
                if lower[j] != lower[j]:
                    continue
                right = column_weights[j]
                left = real(1) - right
                near, far = 4 * base[j], 4 * (base[j] + stride)
                for pair in range(pairs):
                    for y in range(2):
                        share = above if y else below
                        place = (y * pairs + pair) * plane
                        scatter_pair(
                            flat, place + near, place + far, share * left, share * right,
                            lower[j], upper[j], pixels[j, 2 * pair], pixels[j, 2 * pair + 1],
                        )  # fmt: skip
        close_strip(strip, partials[n, s])


def _gather_kernel(start, stop, partials, cells, strips, grid):
    """``grid[n, c, z, y, x]``: the strips above and below a row of nodes, top to bottom; a row of nodes ``(n, y)`` an item."""
    channels, depth, rows, columns = grid.shape[1:]
    total = np.empty((columns, depth, channels), partials.dtype)
    for item in range(start, stop):
        n, y = item // rows, item % rows
        total[:] = 0
        for s in range(partials.shape[1]):
            cell = cells[strips[s]]
            if cell == y or cell == y - 1:
                part = partials[n, s, y - cell]
                for x in range(columns):
                    for z in range(depth):
                        for c in range(channels):
                            total[x, z, c] += part[c // 2, x * (depth + 1) + z, c % 2]
        for c in range(channels):
            for z in range(depth):
                for x in range(columns):
                    grid[n, c, z, y, x] = total[x, z, c]


_splat = Kernel(_splat_kernel)
_gather = Kernel(_gather_kernel)


class StripSums:
    """Room for the sums of each strip, and their addition to a grid. A spare plane and column take what lies above the last node, which is 0."""

    def __init__(self, batch: int, channels: int, at: Geometry, lattice: Lattice, dtype: torch.dtype) -> None:
        self.strips = at.strips()
        self._cells = at.rows
        self._shape = (batch, channels, *lattice.size)
        depth, _, columns = lattice.size
        self.partials = torch.empty(
            (batch, len(self.strips) - 1, 2, (channels + 1) // 2, (columns + 1) * (depth + 1), 2), dtype=dtype
        ).numpy()
        self.items = batch * (len(self.strips) - 1)

    def total(self) -> Tensor:
        dtype = torch.float64 if self.partials.dtype == np.float64 else torch.float32
        grid = torch.empty(self._shape, dtype=dtype)
        _gather(
            grid.shape[0] * grid.shape[3], self.partials.size, self.partials, self._cells, self.strips, grid.numpy()
        )
        return grid


def splat(values: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool = False, homogeneous: bool = False) -> Tensor:
    dtype = compute_type(values, guide)
    at = Geometry(lattice, guide.shape[1], guide.shape[2], dtype)
    channels = values.shape[1] + homogeneous
    sums = StripSums(values.shape[0], channels, at, lattice, dtype)
    _splat(
        sums.items, 8 * channels * guide.numel(), array(values, dtype), channels, array(guide, dtype),
        at.guide_map, lattice.size[0], dz, sums.strips, at.row_weights, at.columns, at.column_weights, sums.partials,
    )  # fmt: skip
    return sums.total().to(torch.float64 if values.dtype == torch.float64 else torch.float32)
