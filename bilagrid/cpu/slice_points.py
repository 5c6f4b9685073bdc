"""Slice at points on the CPU.

For the grid's gradient the points are sorted by their grids, and those of a grid are added up in chunks. If a grid is too large for a cache, they are sorted by the
rows of cells that they lie in, and each row of nodes adds up its own. Either way every sum is taken in a fixed order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._bank import used
from bilagrid.cpu._geometry import array
from bilagrid.cpu._run import Kernel, helper
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._index import check_range

# Points of a work item.
_BLOCK = 2048

# The most numbers of a grid for which a chunk of points is added up to a whole grid; and the least points of a chunk per node, so that what chunks keep aside
# takes less memory than the points' values.
_LARGEST = 1 << 18
_POINTS_A_NODE = 8

# The most parts in which points are counted and sorted. Their number does not change the order.
_PARTS = 64


@helper
def locate(points, n, i, j, axis, nodes, is_slope):
    """Along an axis: the node below a point, and the weights of that and of the node above, or their derivatives. The weights are NaN if the point is."""
    real = points.dtype.type
    zero, one, last = real(0), real(1), real(nodes - 1)
    t = points[n, i, j, axis]
    clipped = t if t > zero else zero
    clipped = clipped if clipped < last else last
    cell = min(np.intp(clipped), max(nodes - 2, 0))
    if t != t:
        return cell, real(np.nan), real(np.nan)
    if is_slope:
        slope = one if t > zero and t < last else zero
        return cell, -slope, slope
    upper = clipped - real(cell)
    return cell, one - upper, upper


@helper
def grid_of(index, has_index, n, i, j, grids):
    """The grid of a point: as the index says, else the image's own, or the only one."""
    return index[n, i, j] if has_index else min(n, grids - 1)


@helper
def corners(grid, m, c, z, y, x):
    """One channel at the eight corners of a cell, x fastest; at the end of an axis the last node stands for the next."""
    depth, rows, columns = grid.shape[2:]
    above, after, right = min(z + 1, depth - 1), min(y + 1, rows - 1), min(x + 1, columns - 1)
    return (
        grid[m, c, z, y, x],
        grid[m, c, z, y, right],
        grid[m, c, z, after, x],
        grid[m, c, z, after, right],
        grid[m, c, above, y, x],
        grid[m, c, above, y, right],
        grid[m, c, above, after, x],
        grid[m, c, above, after, right],
    )


def _slice_points_kernel(start, stop, grid, points, index, has_index, derivative, block, out):
    """``out[p, c] = sum_k w_k(p) grid[index[p], c, k]``. An item is ``block`` points of a row ``(n, i)``."""
    grids, channels, depth, rows, columns = grid.shape
    height, width = points.shape[1:3]
    blocks = (width + block - 1) // block
    for item in range(start, stop):
        n, i, first = item // (blocks * height), item // blocks % height, item % blocks * block
        for j in range(first, min(first + block, width)):
            m = grid_of(index, has_index, n, i, j, grids)
            x, x0, x1 = locate(points, n, i, j, 0, columns, derivative & 1 != 0)
            y, y0, y1 = locate(points, n, i, j, 1, rows, derivative & 2 != 0)
            z, z0, z1 = locate(points, n, i, j, 2, depth, derivative & 4 != 0)
            w0, w1, w2, w3 = y0 * x0, y0 * x1, y1 * x0, y1 * x1
            for c in range(channels):
                a, b, d, e, f, g, h, k = corners(grid, m, c, z, y, x)
                below = w0 * a + w1 * b + w2 * d + w3 * e
                above = w0 * f + w1 * g + w2 * h + w3 * k
                out[n, i, j, c] = z0 * below + z1 * above


def _slice_points_bwd_points_kernel(start, stop, grid, points, index, has_index, values, derivative, block, out):
    """``out[p, axis] = sum_c values[p, c] sum_k dw_k/d(axis) grid[index[p], c, k]``, 0 for an axis of ``derivative``. An item is ``block`` points of a row."""
    grids, channels, depth, rows, columns = grid.shape
    height, width = points.shape[1:3]
    blocks = (width + block - 1) // block
    zero = points.dtype.type(0)
    for item in range(start, stop):
        n, i, first = item // (blocks * height), item // blocks % height, item % blocks * block
        for j in range(first, min(first + block, width)):
            m = grid_of(index, has_index, n, i, j, grids)
            x, x0, x1 = locate(points, n, i, j, 0, columns, derivative & 1 != 0)
            y, y0, y1 = locate(points, n, i, j, 1, rows, derivative & 2 != 0)
            z, z0, z1 = locate(points, n, i, j, 2, depth, derivative & 4 != 0)
            s0, s1, s2, s3, s4, s5, s6, s7 = zero, zero, zero, zero, zero, zero, zero, zero
            for c in range(channels):
                a, b, d, e, f, g, h, k = corners(grid, m, c, z, y, x)
                value = values[n, i, j, c]
                s0, s1, s2, s3 = s0 + value * a, s1 + value * b, s2 + value * d, s3 + value * e
                s4, s5, s6, s7 = s4 + value * f, s5 + value * g, s6 + value * h, s7 + value * k
            low0, low1, high0, high1 = y0 * x0, y0 * x1, y1 * x0, y1 * x1
            by_x, by_y, by_z = zero, zero, zero
            if not derivative & 1:
                _, d0, d1 = locate(points, n, i, j, 0, columns, True)
                below = y0 * (d0 * s0 + d1 * s1) + y1 * (d0 * s2 + d1 * s3)
                by_x = z0 * below + z1 * (y0 * (d0 * s4 + d1 * s5) + y1 * (d0 * s6 + d1 * s7))
            if not derivative & 2:
                _, d0, d1 = locate(points, n, i, j, 1, rows, True)
                below = d0 * (x0 * s0 + x1 * s1) + d1 * (x0 * s2 + x1 * s3)
                by_y = z0 * below + z1 * (d0 * (x0 * s4 + x1 * s5) + d1 * (x0 * s6 + x1 * s7))
            if not derivative & 4:
                _, d0, d1 = locate(points, n, i, j, 2, depth, True)
                below = low0 * s0 + low1 * s1 + high0 * s2 + high1 * s3
                by_z = d0 * below + d1 * (low0 * s4 + low1 * s5 + high0 * s6 + high1 * s7)
            out[n, i, j, 0], out[n, i, j, 1], out[n, i, j, 2] = by_x, by_y, by_z


def _count_kernel(start, stop, points, index, has_index, size, by_row, part, keys, counts):
    """For each point its key: its grid, or with ``by_row`` its row of cells ``(m, z, y)``. And how many points of each ``part`` have each key. An item is a part.

    ``size`` is (M, D, Gh, Gw). A point that is NaN has the key after the last.
    """
    height, width = points.shape[1:3]
    grids, depth, rows, columns = size
    planes, lines = max(depth - 1, 1) if by_row else 1, max(rows - 1, 1) if by_row else 1
    for item in range(start, stop):
        for p in range(item * part, min((item + 1) * part, keys.size)):
            n, i, j = p // (height * width), p // width % height, p % width
            _, weight_x, _ = locate(points, n, i, j, 0, columns, False)
            y, weight_y, _ = locate(points, n, i, j, 1, rows, False)
            z, weight_z, _ = locate(points, n, i, j, 2, depth, False)
            weight = weight_x + weight_y + weight_z
            key = grid_of(index, has_index, n, i, j, grids)
            if by_row:
                key = (key * planes + z) * lines + y
            keys[p] = key if weight == weight else grids * planes * lines
            counts[item, keys[p]] += 1


def _order_kernel(start, stop, keys, part, places, order):
    """Lists the points in ``order`` by their keys, those of one key in their own order. An item is a part, which writes from ``places[part, key]`` on."""
    for item in range(start, stop):
        for p in range(item * part, min((item + 1) * part, keys.size)):
            order[places[item, keys[p]]] = p
            places[item, keys[p]] += 1


def _reduce_chunks_kernel(start, stop, values, points, derivative, order, has_order, chunks, grid, aside):
    """``sum over a chunk's points of w_k(p) values[p, c]``, in order, for all nodes of its grid. An item is a chunk.

    A row of ``chunks`` is (grid, first point, end, place aside). The first chunk of a grid has place -1 and writes to the grid, the others write aside.
    """
    channels, depth, rows, columns = grid.shape[1:]
    height, width = points.shape[1:3]
    sums = np.empty(depth * rows * columns * channels, points.dtype)
    both = np.empty(2 * channels, points.dtype)
    above, after, length = min(depth, 2), min(rows, 2), channels * min(columns, 2)
    for item in range(start, stop):
        m, first, last, place = chunks[item]
        sums[:] = 0
        for q in range(first, last):
            p = order[q] if has_order else q
            n, i, j = p // (height * width), p // width % height, p % width
            x, x0, x1 = locate(points, n, i, j, 0, columns, derivative & 1 != 0)
            y, y0, y1 = locate(points, n, i, j, 1, rows, derivative & 2 != 0)
            z, z0, z1 = locate(points, n, i, j, 2, depth, derivative & 4 != 0)
            weight = x0 + y0 + z0
            if weight != weight:
                continue
            for c in range(channels):
                value = values[n, i, j, c]
                both[c], both[channels + c] = x0 * value, x1 * value
            for in_z in range(above):
                for in_y in range(after):
                    weight = (z1 if in_z else z0) * (y1 if in_y else y0)
                    node = ((z + in_z) * rows + y + in_y) * columns + x
                    target = sums[node * channels : node * channels + length]
                    for k in range(length):
                        target[k] += weight * both[k]
        out = grid[m] if place < 0 else aside[place]
        for c in range(channels):
            for z in range(depth):
                for y in range(rows):
                    for x in range(columns):
                        out[c, z, y, x] = sums[((z * rows + y) * columns + x) * channels + c]


def _add_aside_kernel(start, stop, firsts, aside, grid):
    """Adds to ``grid[m, c]`` what is aside for grid m, from ``aside[firsts[m]]`` to before ``aside[firsts[m + 1]]``. An item is a channel ``(m, c)``."""
    channels, depth, rows, columns = grid.shape[1:]
    for item in range(start, stop):
        m, c = item // channels, item % channels
        for place in range(firsts[m], firsts[m + 1]):
            for z in range(depth):
                for y in range(rows):
                    for x in range(columns):
                        grid[m, c, z, y, x] += aside[place, c, z, y, x]


def _reduce_rows_kernel(start, stop, values, points, derivative, order, ends, grid):
    """``grid[m, c, k] = sum over points of grid m of w_k(p) values[p, c]``. An item is a row of nodes ``(m, z, y)``.

    It goes through the points of the four rows of cells around, each in order. ``ends[row]`` is where the points of a row of cells end in ``order``.
    """
    channels, depth, rows, columns = grid.shape[1:]
    height, width = points.shape[1:3]
    planes, lines = max(depth - 1, 1), max(rows - 1, 1)
    sums = np.empty(columns * channels, points.dtype)
    for item in range(start, stop):
        m, z, y = item // (depth * rows), item // rows % depth, item % rows
        sums[:] = 0
        for corner in range(4):
            in_z, in_y = corner // 2, corner % 2
            if not (0 <= z - in_z < planes and 0 <= y - in_y < lines):
                continue
            key = (m * planes + z - in_z) * lines + y - in_y
            for q in range(ends[key - 1] if key else 0, ends[key]):
                p = order[q]
                n, i, j = p // (height * width), p // width % height, p % width
                x, x0, x1 = locate(points, n, i, j, 0, columns, derivative & 1 != 0)
                _, y0, y1 = locate(points, n, i, j, 1, rows, derivative & 2 != 0)
                _, z0, z1 = locate(points, n, i, j, 2, depth, derivative & 4 != 0)
                weight = (z1 if in_z else z0) * (y1 if in_y else y0)
                left, right = x * channels, min(x + 1, columns - 1) * channels
                x0, x1 = weight * x0, weight * x1
                for c in range(channels):
                    sums[left + c] += x0 * values[n, i, j, c]
                if columns > 1:
                    for c in range(channels):
                        sums[right + c] += x1 * values[n, i, j, c]
        for c in range(channels):
            for x in range(columns):
                grid[m, c, z, y, x] = sums[x * channels + c]


_slice_points = Kernel(_slice_points_kernel)
_slice_points_bwd_points = Kernel(_slice_points_bwd_points_kernel)
_count = Kernel(_count_kernel)
_order = Kernel(_order_kernel)
_reduce_chunks = Kernel(_reduce_chunks_kernel)
_add_aside = Kernel(_add_aside_kernel)
_reduce_rows = Kernel(_reduce_rows_kernel)


def _index_array(index: Tensor | None) -> np.ndarray:
    """The index, or in its place an array of the same rank that no loop reads."""
    return np.zeros((1, 1, 1), np.int64) if index is None else index.numpy()


def _bank(grid: Tensor, index: Tensor | None, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, bool]:
    """The grids in the type ``dtype`` that is computed in, the index, and whether there is one. Of a bank of another type only the grids in use are copied."""
    if index is not None and grid.dtype != dtype:
        grid, which = used(grid, index)
        return array(grid, dtype), which, True
    check_range(index, grid.shape[0])
    return array(grid, dtype), _index_array(index), index is not None


def _blocks(points: Tensor) -> int:
    batch, height, width, _ = points.shape
    return batch * height * -(-width // _BLOCK)


def slice_points(grid: Tensor, points: Tensor, index: Tensor | None, derivative: int) -> Tensor:
    dtype = compute_type(grid, points)
    grid_, which, has_index = _bank(grid, index, dtype)
    out = points.new_empty((*points.shape[:3], grid.shape[1]), dtype=dtype)
    _slice_points(
        _blocks(points), 8 * out.numel(), grid_, array(points, dtype), which, has_index, derivative, _BLOCK, out.numpy(),
    )  # fmt: skip
    return out.to(grid.dtype)


def slice_points_bwd_points(
    grid: Tensor, points: Tensor, index: Tensor | None, values: Tensor, derivative: int
) -> Tensor:
    dtype = compute_type(grid, points, values)
    grid_, which, has_index = _bank(grid, index, dtype)
    out = points.new_empty(points.shape, dtype=dtype)
    _slice_points_bwd_points(
        _blocks(points), 8 * values.numel(), grid_, array(points, dtype), which, has_index, array(values, dtype),
        derivative, _BLOCK, out.numpy(),
    )  # fmt: skip
    return out.to(points.dtype)


def _in_order(
    points: np.ndarray, index: Tensor | None, size: list[int], *, by_row: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The points sorted by their grids, or by their rows of cells, and where those of each end."""
    grids, depth, rows, _ = size
    count = points.size // 3
    buckets = grids * (max(depth - 1, 1) * max(rows - 1, 1) if by_row else 1)
    # Large enough that the counts of all parts take less memory than the points.
    part = max(-(-count // _PARTS), 4 * buckets, _BLOCK)
    parts = -(-count // part)
    keys, order = np.empty(count, np.int64), np.empty(count, np.int64)
    counts = np.zeros((parts, buckets + 1), np.int64)
    _count(
        parts, 32 * count, points, _index_array(index), index is not None, np.array(size), by_row, part, keys, counts
    )
    after = counts.T.cumsum().reshape(buckets + 1, parts).T
    _order(parts, 8 * count, keys, part, after - counts, order)
    return order, after[-1].copy() if parts else np.zeros(buckets + 1, np.int64)


def slice_points_bwd_grid(
    values: Tensor, points: Tensor, index: Tensor | None, size: list[int], derivative: int
) -> Tensor:
    check_range(index, size[0])
    dtype = compute_type(values, points)
    placed, given = array(points, dtype), array(values, dtype)
    grids, depth, rows, columns = size
    channels, nodes = values.shape[3], depth * rows * columns
    grid = values.new_empty((grids, channels, depth, rows, columns), dtype=dtype)
    work = 8 * values.numel() + grid.numel()
    if nodes * channels > _LARGEST:
        order, ends = _in_order(placed, index, size, by_row=True)
        _reduce_rows(grids * depth * rows, work, given, placed, derivative, order, ends, grid.numpy())
    else:
        if index is None:
            order, each = np.empty(0, np.int64), points.numel() // 3 // max(grids, 1)
            ends = np.arange(1, grids + 1) * each
        else:
            order, ends = _in_order(placed, index, size, by_row=False)
        chunks, firsts = _chunks(ends[:grids], max(_BLOCK, _POINTS_A_NODE * nodes))
        aside = np.empty((firsts[-1], *grid.shape[1:]), placed.dtype)
        _reduce_chunks(
            len(chunks), work, given, placed, derivative, order, index is not None, chunks, grid.numpy(), aside
        )
        _add_aside(grids * channels if len(aside) else 0, aside.size, firsts, aside, grid.numpy())
    return grid.to(compute_type(values))


def _chunks(ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Chunks of at most ``length`` points, at least one for each grid, as `_reduce_chunks_kernel` takes them; and each grid's first place aside, for `_add_aside_kernel`."""
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
    counts = np.maximum(-(-(ends - starts) // length), 1)
    grids = np.repeat(np.arange(len(ends)), counts)
    number = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
    first = starts[grids] + number * length
    place = np.where(number > 0, np.arange(len(grids)) - grids - 1, -1)
    chunks = np.stack([grids, first, np.minimum(first + length, ends[grids]), place], 1)
    return chunks, np.concatenate([[0], (counts - 1).cumsum()])
