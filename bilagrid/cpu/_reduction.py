"""Adding pixels up into the grid: what `splat` and the grid gradient of `slice_apply` share. Every sum has one order.

The rows of an image are divided into bands. A pixel adds to its cell; when a band has left a row of cells, the cells become nodes. A row of nodes belongs
to the first band that reaches it; what later bands add to it is kept aside, and added in their order when all bands are done.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import Geometry, is_interleaved
from bilagrid.cpu._lanes import CELL, close_node
from bilagrid.cpu._run import Kernel, helper

# Rows of a band: fixed, so that sums keep their order on any machine. Rows of cells are joined up to the least and divided at the greatest.
_LEAST_ROWS = 32
_MOST_ROWS = 64


@helper
def cells_of_row(columns, depth, pairs, real):
    """Room for one row of cells, ``(cell, pair, 16)``, as a flat vector of zeros.

    Cells are numbered as nodes are, after one more column and plane of cells: those before the first node stay 0. Each begins a cache line.
    """
    size = (columns + 1) * (depth + 1) * pairs * CELL + pairs * CELL
    room = np.zeros(size + CELL, real)
    start = -(room.ctypes.data // room.itemsize) % CELL
    return room[start : start + size]


@helper
def first_cell(depth):
    """The number of the cell whose first corner is node 0."""
    return depth + 2


@helper
def _write_row(row, is_owned, place, pairs, sums, grid, aside):
    """A row of nodes goes to the grid where the band owns it, else aside."""
    target = grid[:, :, row] if is_owned else aside[place]
    channels, depth, columns = target.shape
    if is_interleaved(target):
        for x in range(columns):
            for c in range(0, channels, 2):
                after = min(c + 1, channels - 1)
                for z in range(depth):
                    place = 2 * (x * (depth + 1) + z) * pairs
                    target[c, z, x], target[after, z, x] = sums[place + c], sums[place + after]
    else:
        for c in range(channels):
            for z in range(depth):
                for x in range(columns):
                    target[c, z, x] = sums[2 * (x * (depth + 1) + z) * pairs + c]


@helper
def end_row(n, band, i, bands, rows, owners, pairs, cells, sums, side, grid, aside):
    """After image row i: where that is the band's last row in a row of cells, the cells become nodes, and nodes that the band has left are written.

    ``sums[side]`` holds what the band has for the lower row of nodes. Returns the side that does so for the next image row.
    """
    is_last = i + 1 == bands[band + 1]
    row = rows[i]
    if not is_last and rows[i + 1] == row:
        return side
    lower, upper = sums[side], sums[1 - side]
    depth, columns = grid.shape[2], grid.shape[4]
    size = pairs * CELL
    stride = (depth + 1) * size
    for x in range(columns):
        for pair in range(pairs):
            for z in range(depth):
                node = x * (depth + 1) + z
                offset = (node + first_cell(depth)) * size + pair * CELL
                close_node(cells, offset, size, stride, lower, upper, 2 * (node * pairs + pair))
        # The column before has been read for the last time, and is still in cache.
        cells[x * stride : (x + 1) * stride + size] = 0
    cells[columns * stride :] = 0
    lowest = rows[bands[band]]
    _write_row(row, owners[row] == band, row - lowest, pairs, lower, grid[n], aside[n, band])
    lower[:] = 0
    if is_last or rows[i + 1] != row + 1:
        if row + 1 < grid.shape[3]:
            _write_row(row + 1, owners[row + 1] == band, row + 1 - lowest, pairs, upper, grid[n], aside[n, band])
        upper[:] = 0
    return 1 - side


def _add_aside_kernel(start, stop, bands, rows, owners, aside, grid):
    """Rows of nodes get what the bands after the owner have for them, in order, and 0 where no pixel reaches; a row of nodes ``(n, y)`` an item."""
    channels, depth, height, columns = grid.shape[1:]
    for item in range(start, stop):
        n, y = item // height, item % height
        target = grid[n, :, :, y]
        if owners[y] < 0:
            target[:] = 0
            continue
        for band in range(owners[y] + 1, bands.size - 1):
            lowest = rows[bands[band]]
            if lowest > y:
                break
            added = aside[n, band, y - lowest]
            for x in range(columns):
                for c in range(channels):
                    for z in range(depth):
                        target[c, z, x] += added[c, z, x]


_add_aside = Kernel(_add_aside_kernel)


class Bands:
    """The bands of an image's rows; `items` of them in a batch, and room for what they add to rows of nodes that are not theirs.

    Attributes:
        bands: first rows of the bands, and the end.
        owners: for each row of nodes the first band that reaches it, or -1.
        aside: ``(N, band, 2, C, D, Gw)``, the lowest row of nodes a band reaches and the next.
    """

    def __init__(self, grid: Tensor, at: Geometry) -> None:
        batch, channels, depth, rows, columns = grid.shape
        self._grid, self._rows = grid.numpy(), at.rows
        self.bands = _bands(at.rows)
        self.owners = np.full(rows + 1, -1)
        for band in reversed(range(len(self.bands) - 1)):
            reached = at.rows[self.bands[band] : self.bands[band + 1]]
            self.owners[reached] = self.owners[reached + 1] = band
        self.items = batch * (len(self.bands) - 1)
        # Pages that nobody writes cost nothing.
        count = len(self.bands) - 1
        self.aside = np.empty((batch, count, 2, columns, depth, channels), self._grid.dtype).transpose(0, 1, 2, 5, 4, 3)

    def add_aside(self) -> None:
        batch, _, _, rows, _ = self._grid.shape
        _add_aside(batch * rows, self._grid.size // 8, self.bands, self._rows, self.owners, self.aside, self._grid)


def _bands(rows: np.ndarray) -> np.ndarray:
    """First rows of the bands, and the end: whole rows of cells until they have the least number of image rows, or an even part of a tall one."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    bands: list[int] = []
    height = _LEAST_ROWS
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        parts = -(-(end - start) // _MOST_ROWS)
        if parts == 1 and height < _LEAST_ROWS:
            height += end - start
            continue
        bands.extend(start + (end - start) * part // parts for part in range(parts))
        height = end - start if parts == 1 else _LEAST_ROWS
    return np.array([*bands, len(rows)], np.int64)
