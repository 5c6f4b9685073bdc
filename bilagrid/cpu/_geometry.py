"""Where pixels land, for the Numba loops: worked out for rows and columns ahead of time, and for the guide pixel by pixel."""

from __future__ import annotations

import numpy as np
import torch

from bilagrid.cpu._lanes import contiguous
from bilagrid.cpu._run import helper
from bilagrid.lattice import Lattice


def array(tensor: torch.Tensor, dtype: torch.dtype) -> np.ndarray:
    """The tensor's memory as it lies, with its strides; a copy only where the type differs."""
    return tensor.detach().to(dtype).numpy()


class Geometry:
    """A lattice worked out for one image: the cell of every row and column, and the map from guide to z.

    Attributes:
        rows, row_weights: for each row of pixels the lower node of its cell, and the weight of the upper one.
        columns, column_weights: the same for columns.
        guide_map: scale and offset from guide to z.
    """

    def __init__(self, lattice: Lattice, height: int, width: int, dtype: torch.dtype) -> None:
        real = np.float64 if dtype == torch.float64 else np.float32
        (scale_z, scale_y, scale_x), (anchor_z, anchor_y, anchor_x) = lattice.scale, lattice.anchor
        self.guide_map = np.array([scale_z, anchor_z], real)
        self.rows, self.row_weights = _cells(lattice.origin[0], height, scale_y, anchor_y, lattice.size[1], real)
        columns, self.column_weights = _cells(lattice.origin[1], width, scale_x, anchor_x, lattice.size[2], real)
        self.columns = columns.astype(np.int32)


def _cells(
    first: int, count: int, scale: float, anchor: float, nodes: int, real: type[np.floating]
) -> tuple[np.ndarray, np.ndarray]:
    """The cell of each pixel along an axis, saturated at the border, and the weight of the cell's upper node."""
    coordinate = np.arange(first, first + count).astype(real) * real(scale) + real(anchor)
    coordinate = np.clip(coordinate, real(0), real(nodes - 1))
    cell = np.minimum(np.floor(coordinate), max(nodes - 2, 0))
    return cell.astype(np.int64), (coordinate - cell).astype(real)


@helper
def load_line(row, scratch):
    """The row as a contiguous vector: itself if it is one, else copied to ``scratch``."""
    if row.strides[0] == row.itemsize:
        return contiguous(row)
    scratch[:] = row
    return scratch


@helper
def locate_row(guide, guide_map, depth, dz, columns, base, upper):
    """For each pixel of a row: ``base``, the number of its first corner, and ``upper``, the weight of the node above that in z (with ``dz`` its derivative by z).

    Nodes are numbered ``x * (D + 1) + z``. The spare plane, and a spare column, let the next corner be read always, if only with weight 0. A NaN guide gets a
    NaN weight, so that a gather yields NaN and a scatter can leave the pixel out.
    """
    real = upper.dtype.type
    zero, one, last = real(0), real(1), real(depth - 1)
    highest, stride = np.int32(max(depth - 2, 0)), np.int32(depth + 1)
    for j in range(guide.size):
        g = guide[j]
        z = g * guide_map[0] + guide_map[1]
        clipped = z if z > zero else zero
        clipped = clipped if clipped < last else last
        cell = min(np.int32(clipped), highest)
        fraction = clipped - real(cell)
        slope = one if z > zero and z < last else zero
        upper[j] = real(np.nan) if g != g else (slope if dz else fraction)
        base[j] = columns[j] * stride + cell


@helper
def is_contiguous(nodes):
    """Whether an array (a, b, c) is one piece of memory, in this order."""
    _, b, c = nodes.shape
    return nodes.strides == (b * c * nodes.itemsize, c * nodes.itemsize, nodes.itemsize)
