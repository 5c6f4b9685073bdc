"""Adding points up into grids: they are sorted by the cells that they lie in, and a node adds up those of its eight cells, in order. No atomics."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, cdiv, launch, needs_int64, strides, triton_dtype
from bilagrid.gpu._points import grid_of, launch_points, place_of, weights_along
from bilagrid.gpu._regime import is_amd
from bilagrid.ops._dtypes import compute_type

# A point a lane, so that what a point shares among channels is computed once; a warp of AMD's may have 64 lanes. BLOCK changes the order of a sum, so it is
# not tuned.
POINT_SUM_CONFIGS = [triton.Config({"BLOCK": 32}, num_warps=1)]
POINT_SUM_CONFIGS_AMD = [triton.Config({"BLOCK": 64}, num_warps=1)]
SHARE_CONFIGS = [triton.Config({"BLOCK": 256}, num_warps=4)]

# Channels that a program adds up.
_CHANNELS = 16

# Programs that keep a large GPU busy; the parts, at most, that the points of a cell are divided into for that; and the points that make a part worth it.
_PROGRAMS = 8192
_PARTS = 16
_POINTS_A_PART = 64


@triton.jit(do_not_specialize=RUNTIME)
def _cells_of_points_kernel(
    points_ptr,
    index_ptr,
    cells_ptr,
    stride_points_n,
    stride_points_y,
    stride_points_x,
    stride_points_k,
    stride_index_n,
    stride_index_y,
    stride_index_x,
    count,
    M,
    H,
    W,
    D,
    Gh,
    Gw,
    INDEXED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK points: cells[p] = the number of the cell (m, z, y, x) that the point lies in; that after the last where it lies in none.

    points (N, H, W, 3), index (N, H, W), cells (N * H * W).
    """
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    n, i, j = place_of(offs, H, W, WIDE)
    m, valid = grid_of(index_ptr, n, i, j, stride_index_n, stride_index_y, stride_index_x, M, mask, INDEXED, WIDE)
    point_ptr = points_ptr + n * stride_points_n + i * stride_points_y + j * stride_points_x
    x, weight_x, _x1 = weights_along(point_ptr, stride_points_k, 0, Gw, mask, False, ACC)
    y, weight_y, _y1 = weights_along(point_ptr, stride_points_k, 1, Gh, mask, False, ACC)
    z, weight_z, _z1 = weights_along(point_ptr, stride_points_k, 2, D, mask, False, ACC)
    weight = weight_x + weight_y + weight_z
    planes = widen(tl.maximum(D - 1, 1), WIDE)
    lines = widen(tl.maximum(Gh - 1, 1), WIDE)
    columns = widen(tl.maximum(Gw - 1, 1), WIDE)
    cell = ((m * planes + z) * lines + y) * columns + x
    tl.store(cells_ptr + offs, tl.where(valid & (weight == weight), cell, M * planes * lines * columns), mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_points_bwd_grid_kernel(
    values_ptr,
    points_ptr,
    order_ptr,
    starts_ptr,
    out_ptr,
    stride_values_n,
    stride_values_y,
    stride_values_x,
    stride_values_k,
    stride_points_n,
    stride_points_y,
    stride_points_x,
    stride_points_k,
    M,
    H,
    W,
    D,
    Gh,
    Gw,
    C: tl.constexpr,
    TILE_C: tl.constexpr,
    PARTS: tl.constexpr,
    BY: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns a node, TILE_C channels and one of PARTS of the points of each cell: out[part, m, c, k] = sum over these points of w_k(p) values[p, c].

    values (N, H, W, C), points (N, H, W, 3), order (N * H * W) the points sorted by their cells, starts[cell] the first there of a cell;
    out (PARTS, M, C, D, Gh, Gw), contiguous.
    """
    pid = widen(tl.program_id(0), WIDE)
    tiles = tl.cdiv(C, TILE_C)
    x = pid % Gw
    y = pid // Gw % Gh
    z = pid // Gw // Gh % D
    tile = pid // Gw // Gh // D % tiles
    part = pid // Gw // Gh // D // tiles % PARTS
    m = pid // Gw // Gh // D // tiles // PARTS
    planes = tl.maximum(D - 1, 1)
    lines = tl.maximum(Gh - 1, 1)
    columns = tl.maximum(Gw - 1, 1)
    channel = (tile * TILE_C + tl.arange(0, TILE_C))[:, None]
    acc = tl.zeros([TILE_C, BLOCK], ACC)
    for corner in range(8):
        in_z = corner // 4
        in_y = corner // 2 % 2
        in_x = corner % 2
        exists = (z >= in_z) & (z - in_z < planes) & (y >= in_y) & (y - in_y < lines)
        exists = exists & (x >= in_x) & (x - in_x < columns)
        cell = ((m * planes + z - in_z) * lines + y - in_y) * columns + x - in_x
        start = tl.load(starts_ptr + cell, mask=exists, other=0)
        end = tl.load(starts_ptr + cell + 1, mask=exists, other=0)
        each = tl.cdiv(end - start, PARTS)
        first = start + each * part
        last = tl.minimum(first + each, end)
        for at in range(first, last, BLOCK):
            offs = at + tl.arange(0, BLOCK)
            mask = offs < last
            p = widen(tl.load(order_ptr + offs, mask=mask, other=0).to(tl.int64 if WIDE else tl.int32), WIDE)
            n, i, j = place_of(p, H, W, WIDE)
            point_ptr = points_ptr + n * stride_points_n + i * stride_points_y + j * stride_points_x
            _x, x0, x1 = weights_along(point_ptr, stride_points_k, 0, Gw, mask, BY & 1 != 0, ACC)
            _y, y0, y1 = weights_along(point_ptr, stride_points_k, 1, Gh, mask, BY & 2 != 0, ACC)
            _z, z0, z1 = weights_along(point_ptr, stride_points_k, 2, D, mask, BY & 4 != 0, ACC)
            weight = tl.where(in_z == 1, z1, z0) * tl.where(in_y == 1, y1, y0) * tl.where(in_x == 1, x1, x0)
            value_ptr = values_ptr + n * stride_values_n + i * stride_values_y + j * stride_values_x
            value_ptr = value_ptr[None, :] + channel * stride_values_k
            value = tl.load(value_ptr, mask=mask[None, :] & (channel < C), other=0.0).to(ACC)
            acc = tl.fma(weight[None, :], value, acc)
    nodes = widen(D, WIDE) * Gh * Gw
    out_ptr += ((part * M + m) * C + channel) * nodes + (z * Gh + y) * Gw + x
    tl.store(out_ptr, tl.sum(acc, axis=1)[:, None], mask=channel < C)


@triton.jit(do_not_specialize=RUNTIME)
def _add_shares_kernel(parts_ptr, out_ptr, count, PARTS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """A program owns BLOCK numbers: out[k] = sum over parts of parts[part, k], in order. parts (PARTS, count), out (count)."""
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    acc = tl.zeros([BLOCK], ACC)
    for part in range(PARTS):
        acc += tl.load(parts_ptr + widen(part, WIDE) * count + offs, mask=mask, other=0.0)
    tl.store(out_ptr + offs, acc, mask=mask)


def reduce_points(
    values: torch.Tensor, points: torch.Tensor, index: torch.Tensor | None, size: list[int], derivative: int
) -> torch.Tensor:
    """The adjoint of `slice_points` in its grids: (M, C, D, Gh, Gw) for ``size`` (M, D, Gh, Gw), float64 if ``values`` is, else float32."""
    grids, depth, rows, columns = size
    channels, count = values.shape[3], points.shape[0] * points.shape[1] * points.shape[2]
    dtype = compute_type(values, points)
    cells = grids * math.prod(max(extent - 1, 1) for extent in size[1:])
    place = torch.empty((count,), dtype=torch.int64 if cells >= 2**31 else torch.int32, device=points.device)
    launch_points(
        _cells_of_points_kernel,
        points,
        points,
        index,
        grids,
        size[1:],
        compute_type(points) if dtype == torch.float32 else dtype,
        (points, index, place),
        cells_ptr=place,
        wide=cells >= 2**31,
    )
    place, order = torch.sort(place, stable=True)
    edges = torch.arange(cells + 1, dtype=place.dtype, device=place.device)
    starts = torch.searchsorted(place, edges)
    nodes = depth * rows * columns
    parts = _parts(nodes, points.shape[1] * points.shape[2])
    out = torch.empty(
        (grids, channels, *size[1:]),
        dtype=compute_type(values),
        device=values.device,
    )
    partial = torch.empty((parts, *out.shape), dtype=dtype, device=values.device) if parts > 1 else out
    tile = min(triton.next_power_of_2(channels), _CHANNELS)
    launch(
        _slice_points_bwd_grid_kernel,
        grids * parts * cdiv(channels, tile) * nodes,
        POINT_SUM_CONFIGS_AMD if is_amd(values.device) else POINT_SUM_CONFIGS,
        values,
        values_ptr=values,
        points_ptr=points,
        order_ptr=order,
        starts_ptr=starts,
        out_ptr=partial,
        **strides("values", values, "nyxk"),
        **strides("points", points, "nyxk"),
        M=grids,
        H=points.shape[1],
        W=points.shape[2],
        D=depth,
        Gh=rows,
        Gw=columns,
        C=channels,
        TILE_C=tile,
        PARTS=parts,
        BY=derivative,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(values, points, partial) or max(count, cells) >= 2**30,
    )
    if parts > 1:
        launch(
            _add_shares_kernel,
            lambda meta: cdiv(out.numel(), meta["BLOCK"]),
            SHARE_CONFIGS,
            values,
            parts_ptr=partial,
            out_ptr=out,
            count=out.numel(),
            PARTS=parts,
            ACC=triton_dtype(dtype),
            WIDE=needs_int64(partial),
        )
    return out


def _parts(nodes: int, points: int) -> int:
    """Parts of the points of a cell: as many as leave ``_PROGRAMS`` programs to a grid. The batch has no say: it must not change a sum's order."""
    parts = 1
    while parts < _PARTS and parts * nodes < _PROGRAMS and 2 * parts * nodes * _POINTS_A_PART <= points:
        parts *= 2
    return parts
