"""Slice on the CPU: the two rows of nodes around a row of pixels are laid out so that two loads give a pixel's eight corners for a pair of channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._bank import chosen
from bilagrid.cpu._geometry import Geometry, array, is_contiguous, load_line, locate_row
from bilagrid.cpu._lanes import contiguous, gather_pair
from bilagrid.cpu._run import Kernel, helper
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type


@helper
def load_nodes(grid, row, table):
    """Two rows of nodes as ``table[c // 2, x * (D + 1) + z, y, c % 2]``: what a pixel reads at one x, for two channels, lies together."""
    channels, depth, rows, columns = grid.shape
    for y in range(2):
        nodes = grid[:, :, min(row + y, rows - 1)].transpose(2, 1, 0)
        for pair in range(table.shape[0]):
            c, d = 2 * pair, min(2 * pair + 1, channels - 1)
            target = table[pair].reshape(-1)
            if is_contiguous(nodes):
                flat = contiguous(nodes).reshape(-1)
                for x in range(columns):
                    for z in range(depth):
                        place, node = 4 * (x * (depth + 1) + z) + 2 * y, (x * depth + z) * channels
                        target[place], target[place + 1] = flat[node + c], flat[node + d]
            else:
                for z in range(depth):
                    for x in range(columns):
                        place = 4 * (x * (depth + 1) + z) + 2 * y
                        target[place], target[place + 1] = nodes[x, z, c], nodes[x, z, d]


@helper
def gather_row(table, pair, stride, column_weights, above, base, upper, unit, first, second):
    """Slices two channels, a pair of the table's, for a row of pixels."""
    flat = table[pair].reshape(-1)
    for j in range(base.size):
        near = 4 * np.intp(base[j])
        first[j], second[j] = gather_pair(flat, near, near + 4 * stride, column_weights[j], above, upper[j], unit)


def _slice_kernel(start, stop, grid, which, guide, guide_map, dz, rows, row_weights, columns, column_weights, out):
    """``out[n, c, i, j] = sum_k w_k grid[which[n], c, k]``, with ``dz`` w differentiated by z. An item is a row ``(n, i)``."""
    channels, depth, _, width = grid.shape[1:]
    height = guide.shape[1]
    real = out.dtype.type
    unit = real(0) if dz else real(1)
    stride = depth + 1
    table = np.zeros(((channels + 1) // 2, (width + 1) * stride, 2, 2), out.dtype)
    base, upper = np.empty(guide.shape[2], np.int32), np.empty(guide.shape[2], out.dtype)
    scratch = np.empty(guide.shape[2], out.dtype)
    batch, loaded = -1, -1
    for item in range(start, stop):
        n, i = item // height, item % height
        if n != batch or rows[i] != loaded:
            batch, loaded = n, rows[i]
            load_nodes(grid[which[n]], loaded, table)
        locate_row(load_line(guide[n, i], scratch), guide_map, depth, dz, columns, base, upper)
        for pair in range(table.shape[0]):
            first = contiguous(out[n, 2 * pair, i])
            second = contiguous(out[n, 2 * pair + 1, i]) if 2 * pair + 1 < channels else scratch
            gather_row(table, pair, stride, column_weights, row_weights[i], base, upper, unit, first, second)


def _slice_normalized_kernel(
    start, stop, grid, which, guide, guide_map, rows, row_weights, columns, column_weights, out
):
    """``out[n, c, i, j]``: the sliced channel c over the sliced last channel. An item is a row ``(n, i)``."""
    channels, depth, _, width = grid.shape[1:]
    height, last = guide.shape[1], channels - 1
    real = out.dtype.type
    stride = depth + 1
    table = np.zeros(((channels + 1) // 2, (width + 1) * stride, 2, 2), out.dtype)
    base, upper = np.empty(guide.shape[2], np.int32), np.empty(guide.shape[2], out.dtype)
    divisor, scratch = np.empty(guide.shape[2], out.dtype), np.empty(guide.shape[2], out.dtype)
    batch, loaded = -1, -1
    for item in range(start, stop):
        n, i = item // height, item % height
        if n != batch or rows[i] != loaded:
            batch, loaded = n, rows[i]
            load_nodes(grid[which[n]], loaded, table)
        locate_row(load_line(guide[n, i], scratch), guide_map, depth, False, columns, base, upper)
        for pair in range(table.shape[0]):
            c = 2 * pair
            first = contiguous(out[n, c, i]) if c < last else divisor
            second = contiguous(out[n, c + 1, i]) if c + 1 < last else divisor if c + 1 == last else scratch
            gather_row(table, pair, stride, column_weights, row_weights[i], base, upper, real(1), first, second)
        for j in range(base.size):
            divisor[j] = real(1) / divisor[j]
        for c in range(last):
            target = contiguous(out[n, c, i])
            for j in range(base.size):
                target[j] *= divisor[j]


def _slice_bwd_guide_kernel(
    start, stop, grid, which, guide, values, homogeneous, guide_map, rows, row_weights, columns, column_weights, out
):
    """``out[n, i, j] = scale_z sum_c values_c sum_k dw_k/dz grid[which[n], c, k]``. An item is a row ``(n, i)``."""
    depth, width = grid.shape[2], grid.shape[4]
    channels = values.shape[1]
    height = guide.shape[1]
    real = out.dtype.type
    stride = depth + 1
    table = np.zeros(((grid.shape[1] + 1) // 2, (width + 1) * stride, 2, 2), out.dtype)
    flat, plane = table.reshape(-1), 4 * table.shape[1]
    base, upper = np.empty(guide.shape[2], np.int32), np.empty(guide.shape[2], out.dtype)
    scratch = np.empty(guide.shape[2], out.dtype)
    batch, loaded = -1, -1
    for item in range(start, stop):
        n, i = item // height, item % height
        if n != batch or rows[i] != loaded:
            batch, loaded = n, rows[i]
            load_nodes(grid[which[n]], loaded, table)
        locate_row(load_line(guide[n, i], scratch), guide_map, depth, True, columns, base, upper)
        for j in range(guide.shape[2]):
            right = column_weights[j]
            near, far = 4 * np.intp(base[j]), 4 * (base[j] + stride)
            total = real(0)
            for c in range(0, channels, 2):
                block = c // 2 * plane
                a, b = gather_pair(flat, block + near, block + far, right, row_weights[i], upper[j], real(0))
                total += values[n, c, i, j] * a
                if c + 1 < channels:
                    total += values[n, c + 1, i, j] * b
                elif homogeneous:
                    total += b
            if homogeneous and channels % 2 == 0:
                block = channels // 2 * plane
                total += gather_pair(flat, block + near, block + far, right, row_weights[i], upper[j], real(0))[0]
            out[n, i, j] = guide_map[0] * total


_slice = Kernel(_slice_kernel)
_slice_normalized = Kernel(_slice_normalized_kernel)
_slice_bwd_guide = Kernel(_slice_bwd_guide_kernel)


def _prepare(
    grid: Tensor, guide: Tensor, lattice: Lattice, dtype: torch.dtype, index: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Geometry]:
    return *chosen(grid, index, dtype), array(guide, dtype), Geometry(lattice, guide.shape[1], guide.shape[2], dtype)


def slice(grid: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool = False, index: Tensor | None = None) -> Tensor:
    dtype = compute_type(grid, guide)
    grid_, which, guide_, at = _prepare(grid, guide, lattice, dtype, index)
    batch, height, width = guide.shape
    out = grid.new_empty((batch, grid.shape[1], height, width), dtype=dtype)
    _slice(
        batch * height, 8 * out.numel(), grid_, which, guide_, at.guide_map, dz,
        at.rows, at.row_weights, at.columns, at.column_weights, out.numpy(),
    )  # fmt: skip
    return out.to(grid.dtype)


def slice_normalized(grid: Tensor, guide: Tensor, lattice: Lattice) -> Tensor:
    dtype = compute_type(grid, guide)
    grid_, which, guide_, at = _prepare(grid, guide, lattice, dtype)
    batch, height, width = guide.shape
    out = grid.new_empty((batch, grid.shape[1] - 1, height, width), dtype=dtype)
    _slice_normalized(
        batch * height, 16 * guide.numel(), grid_, which, guide_, at.guide_map,
        at.rows, at.row_weights, at.columns, at.column_weights, out.numpy(),
    )  # fmt: skip
    return out.to(grid.dtype)


def slice_bwd_guide(
    grid: Tensor,
    guide: Tensor,
    values: Tensor,
    lattice: Lattice,
    *,
    homogeneous: bool = False,
    index: Tensor | None = None,
) -> Tensor:
    dtype = compute_type(grid, guide, values)
    grid_, which, guide_, at = _prepare(grid, guide, lattice, dtype, index)
    out = guide.new_empty(guide.shape, dtype=dtype)
    _slice_bwd_guide(
        guide.shape[0] * guide.shape[1], 8 * values.numel(), grid_, which, guide_, array(values, dtype), homogeneous,
        at.guide_map, at.rows, at.row_weights, at.columns, at.column_weights, out.numpy(),
    )  # fmt: skip
    return out.to(guide.dtype)
