"""`slice` in Triton: the grid read at every pixel, and the gradient of that by the guide."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bilagrid.gpu._gather import (
    dot_quad,
    grid_corners,
    grid_planes,
    launch_gather,
    load_terms,
    packed,
    packed_planes,
    split_quad,
    table_corner,
    table_quad,
    table_value,
    unpack,
)
from bilagrid.gpu._geometry import constant, widen
from bilagrid.gpu._index import grid_of_image
from bilagrid.gpu._launch import RUNTIME, compute_dtype, needs_int64, strides
from bilagrid.gpu._pixels import load_term, pixel_tile, store_four
from bilagrid.lattice import Lattice

# A pixel a thread: few registers, so many warps hide the loads from L1. Longer blocks amortise the coordinates of a row over more pixels.
PIXEL_CONFIGS = [
    triton.Config({"BLOCK": 128}, num_warps=4),
    triton.Config({"BLOCK": 256}, num_warps=8),
    triton.Config({"BLOCK": 256}, num_warps=4),
]

# Two pixels a thread. With one, ptxas for sm_80 and sm_100 would rather spill two registers of half values than take more.
BWD_GUIDE_CONFIGS = [triton.Config({"BLOCK": 256}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _slice_coarse_kernel(
    table_ptr,
    guide_ptr,
    out_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_out_n,
    stride_out_c,
    stride_out_y,
    stride_out_x,
    first_n,
    first_row,
    H,
    W,
    Gw,
    left,
    scale_z,
    scale_x,
    anchor_z,
    anchor_x,
    C: tl.constexpr,
    D: tl.constexpr,
    DZ: tl.constexpr,
    NORMALIZED: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, c, i, j] = sum_x,z w_x w_z table[n, i, x, z, c], with w_z' in place of w_z where DZ.

    table as `row_table` leaves it, guide (N, H, W), out (N, C, H, W); where NORMALIZED, out holds the first C - 1 channels over the last.
    """
    QUADS: tl.constexpr = (C + 3) // 4
    NODE: tl.constexpr = QUADS * 4
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    guide_ptr += n * stride_guide_n + widen(row, WIDE) * stride_guide_y
    guide = tl.load(guide_ptr + widen(offs_x, WIDE) * stride_guide_x, mask=mask).to(ACC)
    corner_ptr, weight_x, lower, upper = table_corner(
        table_ptr, n, row, guide, offs_x, H, Gw, left, scale_z, anchor_z, scale_x, anchor_x, D, NODE, DZ, ACC
    )
    out_ptr += n * stride_out_n + widen(row, WIDE) * stride_out_y + widen(offs_x, WIDE) * stride_out_x
    if NORMALIZED:
        a, b, c, d = split_quad(table_value(corner_ptr, weight_x, lower, upper, QUADS - 1, D, NODE))
        LAST: tl.constexpr = (C - 1) % 4
        divisor = (a if LAST == 0 else b if LAST == 1 else c if LAST == 2 else d)[:, None]
    CHANNELS: tl.constexpr = C - 1 if NORMALIZED else C
    for quad in tl.range(QUADS, loop_unroll_factor=QUADS if UNROLL else 1):
        value = table_value(corner_ptr, weight_x, lower, upper, quad, D, NODE)
        if NORMALIZED:
            value = value / divisor
        a, b, c, d = split_quad(value)
        store_four(out_ptr, stride_out_c, quad * 4, a, b, c, d, CHANNELS, mask, WIDE)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_fine_kernel(
    grid_ptr,
    index_ptr,
    guide_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_out_n,
    stride_out_c,
    stride_out_y,
    stride_out_x,
    first_n,
    first_row,
    M,
    W,
    Gh,
    Gw,
    top,
    left,
    scale_z,
    scale_y,
    scale_x,
    anchor_z,
    anchor_y,
    anchor_x,
    INDEXED: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    DZ: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PACKED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, c, i, j] = sum_x,y,z w_x w_y w_z grid[n, c, z, y, x], with w_z' in place of w_z where DZ.

    grid (N, C, D, Gh, Gw), guide (N, H, W), out (N, C, H, W); where NORMALIZED, out holds the first C - 1 channels over the last.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    guide_ptr += n * stride_guide_n + widen(row, WIDE) * stride_guide_y
    guide = tl.load(guide_ptr + widen(offs_x, WIDE) * stride_guide_x, mask=mask).to(ACC)
    corner, step_y, step_x, step_z, weight_y, weight_x, lower, upper = grid_corners(
        guide, row, offs_x, top, left, scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x,
        stride_grid_d, stride_grid_y, stride_grid_x, Gh, Gw, D, DZ, ACC, WIDE,
    )  # fmt: skip
    out_ptr += n * stride_out_n + widen(row, WIDE) * stride_out_y + widen(offs_x, WIDE) * stride_out_x
    m, valid = grid_of_image(index_ptr, n, M, INDEXED, WIDE)
    if INDEXED:
        upper = tl.where(valid, upper, float("nan"))
    first = m * stride_grid_n
    CHANNELS: tl.constexpr = C - 1 if NORMALIZED else C
    if PACKED:
        below, above = packed_planes(grid_ptr, first, corner, step_y, step_x, weight_y, weight_x, C, D, ACC)
        a, b, c, d = unpack(tl.fma(upper[:, None], above, lower[:, None] * below))
        if NORMALIZED:
            a, b, c = a / d, b / d, c / d
        store_four(out_ptr, stride_out_c, 0, a, b, c, d, CHANNELS, mask, WIDE)
    else:
        if NORMALIZED:
            last_ptr = grid_ptr + first + widen(C - 1, WIDE) * stride_grid_c
            below, above = grid_planes(last_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC)
            divisor = tl.fma(upper, above, lower * below)
        for c in range(CHANNELS):
            channel = widen(c, WIDE)
            channel_ptr = grid_ptr + first + channel * stride_grid_c
            below, above = grid_planes(channel_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC)
            value = tl.fma(upper, above, lower * below)
            if NORMALIZED:
                value = value / divisor
            tl.store(out_ptr + channel * stride_out_c, value, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_bwd_guide_coarse_kernel(
    table_ptr,
    guide_ptr,
    values_ptr,
    out_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_values_n,
    stride_values_c,
    stride_values_y,
    stride_values_x,
    stride_out_n,
    stride_out_y,
    stride_out_x,
    first_n,
    first_row,
    H,
    W,
    Gw,
    left,
    scale_z,
    scale_x,
    anchor_z,
    anchor_x,
    C: tl.constexpr,
    VALUES: tl.constexpr,
    D: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, i, j] = scale_z sum_c values[n, c, i, j] sum_x,z w_x w_z' table[n, i, x, z, c].

    table as `row_table` leaves it, guide and out (N, H, W), values (N, VALUES, H, W), and ones where VALUES is C - 1.
    """
    QUADS: tl.constexpr = (C + 3) // 4
    NODE: tl.constexpr = QUADS * 4
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    guide_ptr += n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = tl.load(guide_ptr, mask=mask).to(ACC)
    corner_ptr, weight_x, _lower, upper = table_corner(
        table_ptr, n, row, guide, offs_x, H, Gw, left, scale_z, anchor_z, scale_x, anchor_x, D, NODE, True, ACC
    )
    values_ptr += n * stride_values_n + i * stride_values_y + j * stride_values_x
    acc = tl.zeros([BLOCK], ACC)
    for quad in tl.range(QUADS, loop_unroll_factor=QUADS if UNROLL else 1):
        v00, v10, v01, v11 = table_quad(corner_ptr, quad, D, NODE)
        right = weight_x[:, None]
        difference = tl.fma(v11 - v10, right, (v01 - v00) * (1.0 - right))
        acc += dot_quad(difference, load_terms(values_ptr, stride_values_c, quad, VALUES, mask, ACC, WIDE))
    out_ptr += n * stride_out_n + i * stride_out_y + j * stride_out_x
    tl.store(out_ptr, acc * upper * constant(scale_z, ACC), mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_bwd_guide_fine_kernel(
    grid_ptr,
    index_ptr,
    guide_ptr,
    values_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_values_n,
    stride_values_c,
    stride_values_y,
    stride_values_x,
    stride_out_n,
    stride_out_y,
    stride_out_x,
    first_n,
    first_row,
    M,
    W,
    Gh,
    Gw,
    top,
    left,
    scale_z,
    scale_y,
    scale_x,
    anchor_z,
    anchor_y,
    anchor_x,
    INDEXED: tl.constexpr,
    C: tl.constexpr,
    VALUES: tl.constexpr,
    D: tl.constexpr,
    PACKED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, i, j] = scale_z sum_c values[n, c, i, j] sum_x,y,z w_x w_y w_z' grid[n, c, z, y, x].

    grid (N, C, D, Gh, Gw), guide and out (N, H, W), values (N, VALUES, H, W), and ones where VALUES is C - 1.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    guide_ptr += n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = tl.load(guide_ptr, mask=mask).to(ACC)
    corner, step_y, step_x, step_z, weight_y, weight_x, _lower, upper = grid_corners(
        guide, row, offs_x, top, left, scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x,
        stride_grid_d, stride_grid_y, stride_grid_x, Gh, Gw, D, True, ACC, WIDE,
    )  # fmt: skip
    values_ptr += n * stride_values_n + i * stride_values_y + j * stride_values_x
    m, valid = grid_of_image(index_ptr, n, M, INDEXED, WIDE)
    if INDEXED:
        upper = tl.where(valid, upper, float("nan"))
    first = m * stride_grid_n
    acc = tl.zeros([BLOCK], ACC)
    if PACKED:
        below, above = packed_planes(grid_ptr, first, corner, step_y, step_x, weight_y, weight_x, C, D, ACC)
        a, b, c, d = unpack(above - below)
        acc = tl.fma(a, load_term(values_ptr, stride_values_c, 0, VALUES, mask, ACC, WIDE), acc)
        acc = tl.fma(b, load_term(values_ptr, stride_values_c, 1, VALUES, mask, ACC, WIDE), acc)
        if C == 4:
            acc = tl.fma(c, load_term(values_ptr, stride_values_c, 2, VALUES, mask, ACC, WIDE), acc)
            acc = tl.fma(d, load_term(values_ptr, stride_values_c, 3, VALUES, mask, ACC, WIDE), acc)
    else:
        for c in range(C):
            channel_ptr = grid_ptr + first + widen(c, WIDE) * stride_grid_c
            below, above = grid_planes(channel_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC)
            acc = tl.fma(above - below, load_term(values_ptr, stride_values_c, c, VALUES, mask, ACC, WIDE), acc)
    out_ptr += n * stride_out_n + i * stride_out_y + j * stride_out_x
    tl.store(out_ptr, acc * upper * constant(scale_z, ACC), mask=mask)


def slice(
    grid: torch.Tensor, guide: torch.Tensor, lattice: Lattice, *, dz: bool = False, index: torch.Tensor | None = None
) -> torch.Tensor:
    """The grid, or of a bank the one that ``index`` says, at every pixel, or with ``dz`` its derivative by the grid coordinate z: (N, C, H, W), contiguous, of the grid's dtype."""
    out = torch.empty((guide.shape[0], grid.shape[1], *guide.shape[1:]), dtype=grid.dtype, device=grid.device)
    _gather(grid, guide, out, lattice, dz=dz, normalized=False, index=index)
    return out


def slice_normalized(grid: torch.Tensor, guide: torch.Tensor, lattice: Lattice) -> torch.Tensor:
    """The first C - 1 channels of the grid at every pixel over the last: (N, C - 1, H, W), contiguous, of the grid's dtype."""
    out = torch.empty((grid.shape[0], grid.shape[1] - 1, *guide.shape[1:]), dtype=grid.dtype, device=grid.device)
    _gather(grid, guide, out, lattice, dz=False, normalized=True, index=None)
    return out


def _gather(
    grid: torch.Tensor,
    guide: torch.Tensor,
    out: torch.Tensor,
    lattice: Lattice,
    *,
    dz: bool,
    normalized: bool,
    index: torch.Tensor | None,
) -> None:
    launch_gather(
        _slice_coarse_kernel,
        _slice_fine_kernel,
        grid,
        lattice,
        guide.shape[1:],
        grid.shape[1],
        compute_dtype(grid, guide),
        PIXEL_CONFIGS,
        index=index,
        wide=needs_int64(guide, out),
        guide_ptr=guide,
        out_ptr=out,
        **strides("guide", guide, "nyx"),
        **strides("out", out, "ncyx"),
        fine_arguments={"PACKED": packed(grid)},
        C=grid.shape[1],
        DZ=dz,
        NORMALIZED=normalized,
    )


def slice_bwd_guide(
    grid: torch.Tensor,
    guide: torch.Tensor,
    values: torch.Tensor,
    lattice: Lattice,
    *,
    homogeneous: bool = False,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """``scale_z * sum_c values_c * slice(grid, guide, dz=True)_c``: (N, H, W), of the guide's dtype.

    Where homogeneous, the grid has one channel more than ``values``, whose value is 1.
    """
    out = torch.empty(guide.shape, dtype=guide.dtype, device=guide.device)
    launch_gather(
        _slice_bwd_guide_coarse_kernel,
        _slice_bwd_guide_fine_kernel,
        grid,
        lattice,
        guide.shape[1:],
        grid.shape[1],
        compute_dtype(grid, guide, values),
        BWD_GUIDE_CONFIGS,
        index=index,
        wide=needs_int64(guide, values, out),
        guide_ptr=guide,
        values_ptr=values,
        out_ptr=out,
        **strides("guide", guide, "nyx"),
        **strides("values", values, "ncyx"),
        **strides("out", out, "nyx"),
        fine_arguments={"PACKED": packed(grid)},
        C=grid.shape[1],
        VALUES=values.shape[1],
    )
    return out
