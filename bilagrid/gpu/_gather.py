"""Reading the grid at pixels: what `slice` and `slice_apply` share.

Coarse: `row_table` interpolates the grid in y once for each image row, so that a pixel reads four corners instead of eight, sixteen bytes at a time.
Fine: a pixel reads its eight corners from the grid as it lies.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, gather_weights, widen
from bilagrid.gpu._launch import RUNTIME, lattice_arguments, launch, needs_int64, strides, triton_dtype
from bilagrid.lattice import Lattice

# One element a thread keeps two rows of the grid in registers while the image rows between them are written.
ROWS_CONFIGS = [triton.Config({"BLOCK": 128, "ROWS": 16}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _interpolate_rows_kernel(
    grid_ptr,
    table_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    H,
    Gh,
    Gw,
    top,
    scale_y,
    anchor_y,
    D: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    QUADS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program owns BLOCK elements of ROWS rows of the table: table[n, i, x, d, o, k] = sum_y w_y(i) grid[n, o * TERMS + k, d, y, x].

    grid (N, OUTPUTS * TERMS, D, Gh, Gw); table (N, H, Gw, D, OUTPUTS, 4 * QUADS), zero where k >= TERMS.
    """
    NODE: tl.constexpr = OUTPUTS * QUADS * 4
    row_length = Gw * (D * NODE)
    blocks = tl.cdiv(row_length, BLOCK)
    strips = tl.cdiv(H, ROWS)
    pid = tl.program_id(0)
    n = widen(pid // (blocks * strips), WIDE)
    first = (pid // blocks) % strips * ROWS

    offs = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = offs < row_length
    term = offs % (QUADS * 4)
    channel = widen(offs // (QUADS * 4) % OUTPUTS * TERMS + term, WIDE)
    d = widen(offs // NODE % D, WIDE)
    x = widen(offs // (NODE * D), WIDE)
    mask_term = mask & (term < TERMS)
    node_ptr = grid_ptr + n * stride_grid_n + channel * stride_grid_c + d * stride_grid_d + x * stride_grid_x

    held = -1
    below = tl.zeros([BLOCK], ACC)
    above = tl.zeros([BLOCK], ACC)
    for row in range(first, tl.minimum(first + ROWS, H)):
        y, y0, y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        if y0 != held:
            below = tl.load(node_ptr + widen(y0, WIDE) * stride_grid_y, mask=mask_term, other=0.0).to(ACC)
            above = tl.load(node_ptr + widen(y1, WIDE) * stride_grid_y, mask=mask_term, other=0.0).to(ACC)
            held = y0
        weight = y - y0
        tl.store(table_ptr + (n * H + row) * row_length + offs, below * (1.0 - weight) + above * weight, mask=mask)


def row_table(
    grid: torch.Tensor, lattice: Lattice, height: int, outputs: int, terms: int, dtype: torch.dtype
) -> torch.Tensor:
    """The grid interpolated in y for each of ``height`` image rows: (N, H, Gw, D, outputs, terms padded to quads of 4).

    Channel ``o * terms + k`` of the grid becomes ``[..., o, k]``.
    """
    batch, _, depth, rows, columns = grid.shape
    quads = triton.cdiv(terms, 4)
    table = torch.empty((batch, height, columns, depth, outputs, 4 * quads), dtype=dtype, device=grid.device)
    length = columns * depth * outputs * 4 * quads
    launch(
        _interpolate_rows_kernel,
        lambda meta: batch * triton.cdiv(length, meta["BLOCK"]) * triton.cdiv(height, meta["ROWS"]),
        ROWS_CONFIGS,
        grid,
        grid_ptr=grid,
        table_ptr=table,
        **strides("grid", grid, "ncdyx"),
        H=height,
        Gh=rows,
        Gw=columns,
        **lattice_arguments(lattice, dtype, "y"),
        D=depth,
        OUTPUTS=outputs,
        TERMS=terms,
        QUADS=quads,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, table),
    )
    return table


@triton.jit
def pixel_tile(H, W, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The pixels a program owns: batch, row, BLOCK columns, and which of these there are."""
    tiles = tl.cdiv(W, BLOCK)
    pid = tl.program_id(0)
    row = pid // tiles
    offs_x = pid % tiles * BLOCK + tl.arange(0, BLOCK)
    return widen(row // H, WIDE), row % H, offs_x, offs_x < W


@triton.jit
def table_corners(
    row_ptr,
    guide,
    offs_x,
    left,
    scale_z,
    anchor_z,
    scale_x,
    anchor_x,
    Gw,
    D: tl.constexpr,
    NODE: tl.constexpr,
    DZ: tl.constexpr,
    ACC: tl.constexpr,
):
    """Where the pixels of a row read its table, and with what weights.

    Returns pointers to the first quad of the corners, x and z below, x above, z above, both above: [BLOCK, 4] each, one load of sixteen bytes
    a pixel where float32; then the weight of x above and two weights in z: [BLOCK].
    """
    x, x0, x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    ptr00 = row_ptr + ((x0 * D + z0) * NODE)[:, None] + tl.arange(0, 4)[None, :]
    ptr10 = row_ptr + ((x1 * D + z0) * NODE)[:, None] + tl.arange(0, 4)[None, :]
    ptr01 = row_ptr + ((x0 * D + z1) * NODE)[:, None] + tl.arange(0, 4)[None, :]
    ptr11 = row_ptr + ((x1 * D + z1) * NODE)[:, None] + tl.arange(0, 4)[None, :]
    return ptr00, ptr10, ptr01, ptr11, x - x0, lower, upper


@triton.jit
def table_planes(ptr00, ptr10, ptr01, ptr11, weight_x, quad):
    """A quad interpolated in x on the plane below the pixels and on the one above: two [BLOCK, 4]."""
    right = weight_x[:, None]
    left = 1.0 - right
    below = tl.fma(tl.load(ptr10 + quad * 4), right, tl.load(ptr00 + quad * 4) * left)
    above = tl.fma(tl.load(ptr11 + quad * 4), right, tl.load(ptr01 + quad * 4) * left)
    return below, above


@triton.jit
def table_value(ptr00, ptr10, ptr01, ptr11, weight_x, lower, upper, quad):
    """A quad of the table at the pixels: [BLOCK, 4]."""
    left = 1.0 - weight_x
    value = tl.load(ptr00 + quad * 4) * (left * lower)[:, None]
    value = tl.fma(tl.load(ptr10 + quad * 4), (weight_x * lower)[:, None], value)
    value = tl.fma(tl.load(ptr01 + quad * 4), (left * upper)[:, None], value)
    return tl.fma(tl.load(ptr11 + quad * 4), (weight_x * upper)[:, None], value)


@triton.jit
def grid_corners(
    guide,
    row,
    offs_x,
    top,
    left,
    scale_z,
    anchor_z,
    scale_y,
    anchor_y,
    scale_x,
    anchor_x,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    Gh,
    Gw,
    D: tl.constexpr,
    DZ: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Offsets in the grid and weights: the lowest corner, steps to its neighbours in y, x and z, weights in y and x, two weights in z."""
    y, y0, y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
    x, x0, x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    corner = widen(y0, WIDE) * stride_grid_y + widen(x0, WIDE) * stride_grid_x + widen(z0, WIDE) * stride_grid_d
    step_y = widen(y1 - y0, WIDE) * stride_grid_y
    step_x = widen(x1 - x0, WIDE) * stride_grid_x
    step_z = widen(z1 - z0, WIDE) * stride_grid_d
    return corner, step_y, step_x, step_z, y - y0, x - x0, lower, upper


@triton.jit
def grid_planes(channel_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC: tl.constexpr):
    """One channel of the grid interpolated in y and x on the plane below the pixels and on the one above: two [BLOCK]."""
    w00 = (1.0 - weight_y) * (1.0 - weight_x)
    w01 = (1.0 - weight_y) * weight_x
    w10 = weight_y * (1.0 - weight_x)
    w11 = weight_y * weight_x
    below = _plane(channel_ptr + corner, step_y, step_x, w00, w01, w10, w11, ACC)
    above = _plane(channel_ptr + corner + step_z, step_y, step_x, w00, w01, w10, w11, ACC)
    return below, above


@triton.jit
def _plane(corner_ptr, step_y, step_x, w00, w01, w10, w11, ACC: tl.constexpr):
    """Four corners that share z, weighted."""
    value = tl.load(corner_ptr).to(ACC) * w00
    value = tl.fma(tl.load(corner_ptr + step_x).to(ACC), w01, value)
    value = tl.fma(tl.load(corner_ptr + step_y).to(ACC), w10, value)
    return tl.fma(tl.load(corner_ptr + step_y + step_x).to(ACC), w11, value)


@triton.jit
def join_quad(a, b, c, d):
    """Four [BLOCK] as one [BLOCK, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@triton.jit
def split_quad(quad):
    """[BLOCK, 4] as four [BLOCK]."""
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def dot_quad(left, right):
    """The sum over a quad of left times right: [BLOCK]."""
    a, b, c, d = split_quad(left)
    e, f, g, h = split_quad(right)
    return tl.fma(d, h, tl.fma(c, g, tl.fma(b, f, a * e)))
