"""Adding pixels up into the grid: what `splat` and the grid gradient of `slice_apply` share. Every sum is taken in a fixed order.

The rows of an image are divided into bands, and each row of cells into tiles whose cells stay in a near cache. A pixel adds to its cell; when a tile is done, its
cells are added up to nodes. A row of nodes belongs to the first band that reaches it. What later bands have for it is kept aside, and added in their order when all
bands are done.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import Geometry, is_contiguous
from bilagrid.cpu._lanes import CELL, close_node, contiguous, scatter_pairs
from bilagrid.cpu._run import Kernel, helper

# Rows of pixels of a band: fixed, so that sums keep their order on any machine. Rows of cells with fewer are joined, those with more are divided.
_LEAST_ROWS = 32
_MOST_ROWS = 64

# The size of a tile's cells: those in use at a time fit a first-level cache, all of them a second-level one. And the least number of pixels along a tile.
_TILE_BYTES = 128 * 1024
_LEAST_TILE = 64


@helper
def cells_of_tile(columns, depth, pairs, real):
    """Room for a tile's cells, ``(cell, pair, 16)``, as a flat vector of zeros.

    Cells are numbered as nodes are, after a column and a plane of further cells: the column comes from the tile before, the plane stays 0. Each cell begins a
    cache line. The last is none of the grid's: what a pixel with a NaN guide adds is lost there.
    """
    size = ((columns + 1) * (depth + 1) + 1) * pairs * CELL
    room = np.zeros(size + CELL, real)
    start = -(room.ctypes.data // room.itemsize) % CELL
    return room[start : start + size]


@helper
def place_row(base, upper, first_column, depth, pairs, cells, places):
    """Where in a tile's cells each pixel of a row adds. One with a NaN guide adds to the cell that is lost, so that the loop over pixels needs no branch."""
    size = pairs * CELL
    start = np.int32((1 - first_column) * (depth + 1) + 1)
    each, lost = np.int32(size), np.int32(cells.size - size)
    for j in range(places.size):
        places[j] = (base[j] + start) * each if upper[j] == upper[j] else lost


@helper
def scatter_row(cells, places, column_weights, upper, unit, above, values, pairs, columns):
    """Every pixel of a row adds its values, a flat ``(pair, j, channel)``, to its cell. ``unit`` is 1, or 0 where weights are derivatives by z.

    Each next pixel is one column of cells farther on, of which a tile has ``columns``: if two pixels in a row added to the same cell, the second would wait for
    the first.
    """
    width = places.size
    stride = (width + columns - 1) // columns
    for first in range(stride):
        if pairs == 1:
            for j in range(first, width, stride):
                at = np.uintp(j)
                place = np.intp(places[at])
                scatter_pairs(cells, place, column_weights[at], upper[at], unit, above, values, 2 * j, 0, 1)
        else:
            for j in range(first, width, stride):
                at = np.uintp(j)
                place = np.intp(places[at])
                scatter_pairs(cells, place, column_weights[at], upper[at], unit, above, values, 2 * j, 2 * width, pairs)


@helper
def end_of_cells(rows, i, stop):
    """The first row of pixels after ``i``, up to ``stop``, that lies in another row of cells."""
    last = i + 1
    while last < stop and rows[last] == rows[i]:
        last += 1
    return last


@helper
def close_tile(cells, first_column, columns, grid, pairs, lower, upper):
    """Adds up a tile's cells to nodes: ``lower`` grows by the sums for y below, ``upper`` is set to those for y above, both ``(node, pair, channel)``.

    The last column of cells is handed on to the next tile of the row.
    """
    depth, end = grid.shape[2], grid.shape[4]
    columns = min(columns, end - first_column)
    size = pairs * CELL
    stride = (depth + 1) * size
    for x in range(columns):
        for pair in range(pairs):
            for z in range(depth):
                node = (first_column + x) * depth + z
                offset = (x + 1) * stride + (z + 1) * size + pair * CELL
                close_node(cells, offset, size, stride, lower, upper, 2 * (node * pairs + pair))
    if first_column + columns < end:
        cells[:stride] = cells[columns * stride : (columns + 1) * stride]
    else:
        cells[:stride] = 0
    cells[stride:] = 0


@helper
def _write_row(row, is_owned, place, pairs, sums, grid, aside):
    """Writes a row of nodes to the grid if the band owns it, else aside."""
    target = grid[:, :, row] if is_owned else aside[place]
    channels, depth, columns = target.shape
    nodes = target.transpose(2, 1, 0)
    if is_contiguous(nodes) and channels == 2 * pairs:
        contiguous(nodes).reshape(-1)[:] = sums
    else:
        for c in range(channels):
            for z in range(depth):
                for x in range(columns):
                    nodes[x, z, c] = sums[2 * (x * depth + z) * pairs + c]


@helper
def end_row(n, band, i, bands, rows, owners, pairs, sums, side, grid, aside):
    """After image row i, the band's last in a row of cells, writes the rows of nodes that the band will not reach again.

    ``sums[side]`` holds what the band has for the lower row of nodes, 0 at first. Returns the side that does so for the next row of cells.
    """
    is_last = i + 1 == bands[band + 1]
    row, lowest = rows[i], rows[bands[band]]
    lower, upper = sums[side], sums[1 - side]
    _write_row(row, owners[row] == band, row - lowest, pairs, lower, grid[n], aside[n, band])
    if is_last or rows[i + 1] != row + 1:
        if row + 1 < grid.shape[3]:
            _write_row(row + 1, owners[row + 1] == band, row + 1 - lowest, pairs, upper, grid[n], aside[n, band])
        sums[:] = 0
    return 1 - side


def _add_aside_kernel(start, stop, bands, rows, owners, aside, grid):
    """Adds to rows of nodes what the bands after their owner have for them, in order; 0 where no pixel reaches. An item is a row of nodes ``(n, y)``."""
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
    """The bands of an image's rows, `items` in a whole batch, and room for what they add to rows of nodes that belong to others.

    Attributes:
        bands: first rows of the bands, and the end.
        owners: for each row of nodes the first band that reaches it, or -1 for none.
        tiles: first pixels of the tiles of a row, and the end; each has ``tile_columns`` columns of cells.
        aside: ``(N, band, 2, C, D, Gw)``, the lowest row of nodes a band reaches and the next.
    """

    def __init__(self, grid: Tensor, at: Geometry) -> None:
        batch, channels, depth, rows, columns = grid.shape
        self._grid, self._rows = grid.numpy(), at.rows
        self.bands = _bands(at.rows)
        count = len(self.bands) - 1
        band = np.repeat(np.arange(count), np.diff(self.bands))
        self.owners = np.full(rows + 1, count)
        np.minimum.at(self.owners, at.rows, band)
        np.minimum.at(self.owners, at.rows + 1, band)
        self.owners[self.owners == count] = -1
        self.items = batch * count
        column = (depth + 1) * -(-channels // 2) * CELL * self._grid.itemsize
        least = -(-_LEAST_TILE * columns // len(at.columns))
        self.tile_columns = min(max(_TILE_BYTES // column, least, 1), columns)
        edges = np.arange(0, columns, self.tile_columns)
        self.tiles = np.append(np.searchsorted(at.columns, edges), len(at.columns))
        # Pages that nobody writes cost nothing.
        self.aside = np.empty((batch, count, 2, columns, depth, channels), self._grid.dtype).transpose(0, 1, 2, 5, 4, 3)

    @property
    def order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
        """The attributes that a kernel goes by."""
        return self.bands, self.owners, self.tiles, self.tile_columns

    def add_aside(self) -> None:
        batch, _, _, rows, _ = self._grid.shape
        _add_aside(batch * rows, self._grid.size // 8, self.bands, self._rows, self.owners, self.aside, self._grid)


def _bands(rows: np.ndarray) -> np.ndarray:
    """First rows of the bands, and the end. A band is some whole rows of cells with at least `_LEAST_ROWS` rows of pixels, or an even part of a tall one."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
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
