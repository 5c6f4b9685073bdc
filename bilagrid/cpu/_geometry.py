"""Where pixels land, for the Numba loops: rows and columns ahead of time, the guide pixel by pixel, and the grid row by row."""

from __future__ import annotations

import numpy as np
import torch

from bilagrid.cpu._run import helper
from bilagrid.lattice import Lattice

# A strip of rows is the unit of a reduction: it never crosses a row of nodes, and its height is fixed so that sums keep their order on any machine.
_STRIP_ROWS = 64


def compute_type(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 where any tensor is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def array(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """The tensor's memory as it lies, with its strides; a copy only where the type differs."""
    return tensor.detach().to(dtype).numpy()


class Geometry:
    """A lattice worked out for one image: cell and fraction of every row and column, and the map of the guide.

    Attributes:
        rows, row_weights: the node below each row, and the weight of the node after it.
        columns, column_weights: the same for columns.
        guide_map: scale and offset from guide to z.
    """

    def __init__(self, lattice: Lattice, height: int, width: int, dtype: torch.dtype) -> None:
        real = np.float64 if dtype == torch.float64 else np.float32
        (scale_z, scale_y, scale_x), (anchor_z, anchor_y, anchor_x) = lattice.scale, lattice.anchor
        self.guide_map = np.array([scale_z, anchor_z], real)
        self.rows, self.row_weights = _cells(lattice.origin[0], height, scale_y, anchor_y, lattice.size[1], real)
        self.columns, self.column_weights = _cells(lattice.origin[1], width, scale_x, anchor_x, lattice.size[2], real)

    def strips(self) -> np.ndarray:
        """First rows of the strips, and the end: strips are at most 64 rows and lie between two rows of nodes."""
        cell_starts = np.flatnonzero(np.diff(self.rows, prepend=-1))
        cell_ends = np.append(cell_starts[1:], len(self.rows))
        starts = [np.arange(start, end, _STRIP_ROWS) for start, end in zip(cell_starts, cell_ends, strict=True)]
        return np.append(np.concatenate(starts), len(self.rows)).astype(np.int64)


def _cells(
    first: int, count: int, scale: float, anchor: float, nodes: int, real: type[np.floating]
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each pixel along an axis, saturated at the border, and the weight of the cell's upper node."""
    coordinate = np.arange(first, first + count).astype(real) * real(scale) + real(anchor)
    coordinate = np.clip(coordinate, real(0), real(nodes - 1))
    cell = np.minimum(np.floor(coordinate), max(nodes - 2, 0))
    return cell.astype(np.int64), (coordinate - cell).astype(real)


@helper
def locate_row(guide, guide_map, depth, dz, columns, base, lower, upper):
    """For each pixel of a row: the index of its first corner, and the weights of the nodes below and above it in z (or their derivatives by z).

    Nodes are numbered ``x * (D + 1) + z``: the spare plane (and column) lets the corner above always be read, with weight 0. A NaN guide gets two NaN
    weights, so that a gather yields NaN and a scatter can leave the pixel out.
    """
    real = lower.dtype.type
    zero, one, last = real(0), real(1), real(depth - 1)
    highest = max(depth - 2, 0)
    for j in range(guide.shape[0]):
        g = guide[j]
        z = g * guide_map[0] + guide_map[1]
        clipped = z if z > zero else zero
        clipped = clipped if clipped < last else last
        cell = min(int(clipped), highest)
        fraction = clipped - real(cell)
        slope = one if z > zero and z < last else zero
        above = slope if dz else fraction
        below = -slope if dz else one - fraction
        missing = g != g
        upper[j] = real(np.nan) if missing else above
        lower[j] = real(np.nan) if missing else below
        base[j] = columns[j] * (depth + 1) + cell


@helper
def lerp_rows(grid, row, weight, loaded, below, step, table):
    """The grid interpolated in y at one image row: ``table[c // lanes, x * (D + 1) + z, c % lanes]``, so that a pixel reads its corners together.

    ``below`` and ``step`` hold the node row and its difference to the next; they are read anew where ``row`` is not ``loaded``. Returns ``row``.
    """
    channels, depth, rows, columns = grid.shape
    lanes = table.shape[2]
    if row != loaded:
        above = min(row + 1, rows - 1)
        for c in range(channels):
            block, lane = c // lanes, c % lanes
            for z in range(depth):
                for x in range(columns):
                    node = x * (depth + 1) + z
                    below[block, node, lane] = grid[c, z, row, x]
                    step[block, node, lane] = grid[c, z, above, x] - grid[c, z, row, x]
    flat, start, slope = table.reshape(-1), below.reshape(-1), step.reshape(-1)
    for k in range(flat.size):
        flat[k] = start[k] + weight * slope[k]
    return row
