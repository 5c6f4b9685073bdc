"""`slice` and its gradient by the guide of a fine grid of few channels, which is read as it lies."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._corners import grid_corners, grid_planes, packed_planes, unpack
from bilagrid.gpu._geometry import constant, widen
from bilagrid.gpu._index import grid_of_image
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_term, pixel_tile, store_four


@triton.jit(do_not_specialize=RUNTIME)
def _slice_direct_kernel(
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
def _slice_bwd_guide_direct_kernel(
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
