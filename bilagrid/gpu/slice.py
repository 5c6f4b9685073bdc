"""`slice` in Triton: the grid read at every pixel, and the gradient of that by the guide."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bilagrid.gpu._gather import (
    dot_quad,
    launch_gather,
    lerp,
    load_terms,
    table_corner,
    table_quad,
    table_value,
)
from bilagrid.gpu._geometry import constant, widen
from bilagrid.gpu._launch import RUNTIME, needs_int64, strides
from bilagrid.gpu._pixels import pixel_tile, split_quad, store_four
from bilagrid.gpu._regime import is_amd, is_wide
from bilagrid.gpu._slice_direct import _slice_bwd_guide_direct_kernel, _slice_direct_kernel
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type

# A pixel a thread: few registers, so many warps hide the loads from L1. Longer blocks amortise the coordinates of a row over more pixels.
PIXEL_CONFIGS = [
    triton.Config({"BLOCK": 128}, num_warps=4),
    triton.Config({"BLOCK": 256}, num_warps=8),
    triton.Config({"BLOCK": 256}, num_warps=4),
]

# Two pixels a thread. With one, ptxas for sm_80 and sm_100 would rather spill two registers of half values than take more.
BWD_GUIDE_CONFIGS = [triton.Config({"BLOCK": 256}, num_warps=4)]

# One, where a warp has 32 lanes on AMD: with two, an unrolled loop's loads, which LLVM puts all first, take every register there is.
BWD_GUIDE_CONFIGS_RDNA = [triton.Config({"BLOCK": 128}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _slice_kernel(
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
    W,
    rows,
    columns,
    first_y,
    first_x,
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
    C: tl.constexpr,
    D: tl.constexpr,
    DZ: tl.constexpr,
    NORMALIZED: tl.constexpr,
    COLUMN: tl.constexpr,
    FINE: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, c, i, j] = sum_x,z w_x w_z table[n, i, x, z, c], with w_z' in place of w_z where DZ.

    table as `row_table` leaves it, or where FINE as `node_table` does, of which w_y weighs two rows; guide (N, H, W), out (N, C, H, W); where NORMALIZED, out
    holds the first C - 1 channels over the last.
    """
    QUADS: tl.constexpr = (C + 3) // 4
    NODE: tl.constexpr = QUADS * 4
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    guide_ptr += n * stride_guide_n + widen(row, WIDE) * stride_guide_y
    guide = tl.load(guide_ptr + widen(offs_x, WIDE) * stride_guide_x, mask=mask).to(ACC)
    corner = table_corner(
        table_ptr, n, row, guide, offs_x, rows, columns, first_y, first_x, Gh, Gw, top, left,
        scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x, D, NODE, COLUMN, DZ, FINE, ACC, WIDE,
    )  # fmt: skip
    out_ptr += n * stride_out_n + widen(row, WIDE) * stride_out_y + widen(offs_x, WIDE) * stride_out_x
    if NORMALIZED:
        a, b, c, d = split_quad(table_value(corner, QUADS - 1, NODE, COLUMN, FINE))
        LAST: tl.constexpr = (C - 1) % 4
        divisor = (a if LAST == 0 else b if LAST == 1 else c if LAST == 2 else d)[:, None]
    CHANNELS: tl.constexpr = C - 1 if NORMALIZED else C
    for quad in tl.range(QUADS, loop_unroll_factor=QUADS if UNROLL else 1):
        value = table_value(corner, quad, NODE, COLUMN, FINE)
        if NORMALIZED:
            value = value / divisor
        a, b, c, d = split_quad(value)
        store_four(out_ptr, stride_out_c, quad * 4, a, b, c, d, CHANNELS, mask, WIDE)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_bwd_guide_kernel(
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
    W,
    rows,
    columns,
    first_y,
    first_x,
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
    C: tl.constexpr,
    VALUES: tl.constexpr,
    D: tl.constexpr,
    COLUMN: tl.constexpr,
    FINE: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, i, j] = scale_z sum_c values[n, c, i, j] sum_x,z w_x w_z' table[n, i, x, z, c].

    table as in `_slice_kernel`, guide and out (N, H, W), values (N, VALUES, H, W), and ones where VALUES is C - 1.
    """
    QUADS: tl.constexpr = (C + 3) // 4
    NODE: tl.constexpr = QUADS * 4
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    guide_ptr += n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = tl.load(guide_ptr, mask=mask).to(ACC)
    corner = table_corner(
        table_ptr, n, row, guide, offs_x, rows, columns, first_y, first_x, Gh, Gw, top, left,
        scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x, D, NODE, COLUMN, True, FINE, ACC, WIDE,
    )  # fmt: skip
    _corner_ptr, _step_y, _weight_y, weight_x, _lower, upper = corner
    right = weight_x[:, None]
    values_ptr += n * stride_values_n + i * stride_values_y + j * stride_values_x
    acc = tl.zeros([BLOCK], ACC)
    for quad in tl.range(QUADS, loop_unroll_factor=QUADS if UNROLL else 1):
        v00, v10, v01, v11 = table_quad(corner, quad, NODE, COLUMN, FINE)
        difference = lerp(v01 - v00, v11 - v10, right)
        acc += dot_quad(difference, load_terms(values_ptr, stride_values_c, quad, VALUES, mask, ACC, WIDE))
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
        _slice_kernel,
        grid,
        lattice,
        guide.shape[1:],
        grid.shape[1],
        compute_type(grid, guide),
        PIXEL_CONFIGS,
        index=index,
        wide=needs_int64(guide, out),
        guide_ptr=guide,
        out_ptr=out,
        **strides("guide", guide, "nyx"),
        **strides("out", out, "ncyx"),
        direct=_slice_direct_kernel,
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
    is_rdna = is_amd(grid.device) and not is_wide(grid.device)
    launch_gather(
        _slice_bwd_guide_kernel,
        grid,
        lattice,
        guide.shape[1:],
        grid.shape[1],
        compute_type(grid, guide, values),
        BWD_GUIDE_CONFIGS_RDNA if is_rdna else BWD_GUIDE_CONFIGS,
        index=index,
        wide=needs_int64(guide, values, out),
        guide_ptr=guide,
        values_ptr=values,
        out_ptr=out,
        **strides("guide", guide, "nyx"),
        **strides("values", values, "ncyx"),
        **strides("out", out, "nyx"),
        direct=_slice_bwd_guide_direct_kernel,
        C=grid.shape[1],
        VALUES=values.shape[1],
    )
    return out
