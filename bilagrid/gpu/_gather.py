"""Reading the grid at pixels: what `slice` and `slice_apply` share.

Coarse: `row_table` interpolates the grid in y once for each image row, so that a pixel reads four corners instead of eight, sixteen bytes at a time.
Fine: a pixel reads its eight corners from the grid as it lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, gather_weights, widen
from bilagrid.gpu._index import bank_arguments, check, grid_of_image
from bilagrid.gpu._launch import (
    RUNTIME,
    cdiv,
    lattice_arguments,
    launch_pixels,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._pixels import load_term
from bilagrid.gpu._regime import choose, is_wide
from bilagrid.lattice import Lattice


@triton.constexpr_function
def table_column(planes, node):
    """Elements of a row table from one column to the next: of at least two planes, so that a pixel finds its four corners at fixed distances."""
    return max(planes, 2) * node


# A lane owns a quad of coefficients and marches down the rows of a strip, for which it reads the nodes above and below once. 32 lanes share four columns of
# eight quads: they store whole lines of 128 bytes, and of a contiguous grid each load touches 8 lines, and up to 32 were they 32 quads on end.
ROWS_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=4)]
ROWS_CONFIGS_WIDE = [triton.Config({"BLOCK": 128}, num_warps=2)]

# Programs that keep a large GPU busy, three to a multiprocessor. Strips are no higher than that leaves, but of so many rows at least and at most.
_PROGRAMS = 400
_STRIP_ROWS = (4, 32)

# Loops over quads of coefficients are unrolled up to this many a pixel, so that code stays short for wide images and networks' features.
_UNROLLED_QUADS = 8


@triton.jit(do_not_specialize=RUNTIME)
def _interpolate_rows_kernel(
    grid_ptr,
    index_ptr,
    table_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    first_n,
    first_row,
    M,
    H,
    Gh,
    Gw,
    top,
    scale_y,
    anchor_y,
    strip_rows,
    INDEXED: tl.constexpr,
    D: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    QUADS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK quads of strip_rows rows of the table: table[n, i, x, d, o, k] = sum_y w_y(i) grid[n, o * TERMS + k, d, y, x].

    grid (N, OUTPUTS * TERMS, D, Gh, Gw), or where INDEXED a bank of M, of which image n has grid index[n], and NaN where there is none; table (N, H, columns, planes, OUTPUTS, 4 * QUADS), zero where k >= TERMS. Columns and planes are Gw and D,
    but two where the grid has one, the second like the first.
    """
    NODE: tl.constexpr = OUTPUTS * QUADS
    COLUMN: tl.constexpr = table_column(D, NODE)
    TILES: tl.constexpr = (COLUMN + 7) // 8
    n = widen(tl.program_id(2) + first_n, WIDE)
    first = (tl.program_id(1) + first_row) * strip_rows
    last = tl.minimum(first + strip_rows, H)
    columns = tl.maximum(Gw, 2)
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tile = lane // 32
    quad = tile % TILES * 8 + lane % 8
    column = tile // TILES * 4 + lane // 8 % 4
    mask = ((quad < COLUMN) & (column < columns))[:, None]

    d = widen(tl.minimum(quad // NODE, D - 1), WIDE)
    x = widen(tl.minimum(column, Gw - 1), WIDE)
    four = tl.arange(0, 4)[None, :]
    term = (quad % QUADS * 4)[:, None] + four
    channel = widen((quad // QUADS % OUTPUTS * TERMS)[:, None] + term, WIDE)
    m, valid = grid_of_image(index_ptr, n, M, INDEXED, WIDE)
    node_ptr = grid_ptr + m * stride_grid_n + (d * stride_grid_d + x * stride_grid_x)[:, None] + channel * stride_grid_c
    mask_term = mask & (term < TERMS)
    table_ptr += n * H * (columns * COLUMN * 4)
    offs = ((column * COLUMN + quad) * 4)[:, None] + four

    row = first
    while row < last:
        _y, y0, y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        below = tl.load(node_ptr + widen(y0, WIDE) * stride_grid_y, mask=mask_term, other=0.0).to(ACC)
        above = tl.load(node_ptr + widen(y1, WIDE) * stride_grid_y, mask=mask_term, other=0.0).to(ACC)
        if INDEXED:
            below = tl.where(valid, below, float("nan"))
        # Of the next rows, no fewer than a strip has, those that lie in the same cell.
        _ys, cells, _above = coordinate(row + tl.arange(0, 32) + top, scale_y, anchor_y, Gh, ACC)
        end = tl.minimum(row + tl.sum((cells == y0).to(tl.int32), axis=0), last)
        for i in range(row, end):
            y, _y0, _y1 = coordinate(i + top, scale_y, anchor_y, Gh, ACC)
            weight = y - y0
            value = below * (1.0 - weight) + above * weight
            tl.store(table_ptr + widen(i, WIDE) * (columns * COLUMN * 4) + offs, value, mask=mask)
        row = end


def row_table(
    grid: torch.Tensor,
    lattice: Lattice,
    height: int,
    outputs: int,
    terms: int,
    dtype: torch.dtype,
    index: torch.Tensor | None,
) -> torch.Tensor:
    """The grids, or those of ``index``, interpolated in y for each of ``height`` image rows: (N, H, Gw, D, outputs, terms padded to quads of 4), Gw and D at least 2.

    Channel ``o * terms + k`` of the grid becomes ``[..., o, k]``.
    """
    depth, rows, columns = grid.shape[2:]
    batch = grid.shape[0] if index is None else index.shape[0]
    quads = cdiv(terms, 4)
    table = grid.new_empty((batch, height, max(columns, 2), max(depth, 2), outputs, 4 * quads), dtype=dtype)
    lanes = 32 * cdiv(math.prod(table.shape[3:]) // 4, 8) * cdiv(table.shape[2], 4)
    least, most = _STRIP_ROWS
    configs = ROWS_CONFIGS_WIDE if is_wide(grid.device) else ROWS_CONFIGS
    blocks = batch * cdiv(lanes, configs[0].kwargs["BLOCK"])
    strip_rows = min(max(blocks * height // _PROGRAMS, least), most)
    launch_pixels(
        _interpolate_rows_kernel,
        (batch, cdiv(height, strip_rows), lanes),
        configs,
        grid,
        grid_ptr=grid,
        table_ptr=table,
        **bank_arguments(grid, index),
        **strides("grid", grid, "ncdyx"),
        H=height,
        Gh=rows,
        Gw=columns,
        **lattice_arguments(lattice, dtype, "y"),
        strip_rows=strip_rows,
        D=depth,
        OUTPUTS=outputs,
        TERMS=terms,
        QUADS=quads,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, table),
    )
    return table


@triton.jit
def table_corner(
    table_ptr,
    n,
    row,
    guide,
    offs_x,
    H,
    Gw,
    left,
    scale_z,
    anchor_z,
    scale_x,
    anchor_x,
    D: tl.constexpr,
    NODE: tl.constexpr,
    DZ: tl.constexpr,
    ACC: tl.constexpr,
):
    """Where the pixels of a row read its table, and with what weights.

    Returns pointers to the first quad of the corner below in x and z, [BLOCK, 4], one load of sixteen bytes a pixel where float32; then the weight of x
    above and two weights in z: [BLOCK].
    """
    COLUMN: tl.constexpr = table_column(D, NODE)
    x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    row_ptr = table_ptr + (n * H + row) * (tl.maximum(Gw, 2) * COLUMN)
    return row_ptr + (x0 * COLUMN + z0 * NODE)[:, None] + tl.arange(0, 4)[None, :], x - x0, lower, upper


@triton.jit
def table_quad(corner_ptr, quad, D: tl.constexpr, NODE: tl.constexpr):
    """A quad of the pixels' four corners: x and z below, x above, z above, both above: [BLOCK, 4] each."""
    COLUMN: tl.constexpr = table_column(D, NODE)
    ptr = corner_ptr + quad * 4
    return tl.load(ptr), tl.load(ptr + COLUMN), tl.load(ptr + NODE), tl.load(ptr + (COLUMN + NODE))


@triton.jit
def table_value(corner_ptr, weight_x, lower, upper, quad, D: tl.constexpr, NODE: tl.constexpr):
    """A quad of the table at the pixels: [BLOCK, 4]."""
    v00, v10, v01, v11 = table_quad(corner_ptr, quad, D, NODE)
    left = 1.0 - weight_x
    value = v00 * (left * lower)[:, None]
    value = tl.fma(v10, (weight_x * lower)[:, None], value)
    value = tl.fma(v01, (left * upper)[:, None], value)
    return tl.fma(v11, (weight_x * upper)[:, None], value)


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
    y, y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
    x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    corner = widen(y0, WIDE) * stride_grid_y + widen(x0, WIDE) * stride_grid_x + widen(z0, WIDE) * stride_grid_d
    # Where there is a neighbour, it is the next node: the node below is never the last.
    step_y = tl.where(Gh > 1, stride_grid_y, 0)
    step_x = tl.where(Gw > 1, stride_grid_x, 0)
    step_z = stride_grid_d if D > 1 else 0
    return corner, step_y, step_x, step_z, y - y0, x - x0, lower, upper


@triton.jit
def grid_planes(channel_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC: tl.constexpr):
    """One channel of the grid interpolated in y and x on the plane below the pixels and on the one above: two [BLOCK]."""
    w00 = (1.0 - weight_y) * (1.0 - weight_x)
    w01 = (1.0 - weight_y) * weight_x
    w10 = weight_y * (1.0 - weight_x)
    w11 = weight_y * weight_x
    below = plane(channel_ptr + corner, step_y, step_x, w00, w01, w10, w11, ACC)
    above = plane(channel_ptr + corner + step_z, step_y, step_x, w00, w01, w10, w11, ACC)
    return below, above


@triton.jit
def plane(corner_ptr, step_y, step_x, w00, w01, w10, w11, ACC: tl.constexpr):
    """Four corners that share z, weighted."""
    value = tl.load(corner_ptr).to(ACC) * w00
    value = tl.fma(tl.load(corner_ptr + step_x).to(ACC), w01, value)
    value = tl.fma(tl.load(corner_ptr + step_y).to(ACC), w10, value)
    return tl.fma(tl.load(corner_ptr + step_y + step_x).to(ACC), w11, value)


def packed(grid: torch.Tensor) -> bool:
    """Whether the two or four channels of a node, and the planes of a column, lie side by side, so that `packed_planes` can read them."""
    channels = grid.shape[1]
    others = (grid.stride(0), grid.stride(3), grid.stride(4))
    together = grid.stride()[1:3] == (1, channels) and not any(step % channels for step in others)
    return channels in (2, 4) and together


@triton.jit
def packed_planes(grid_ptr, first, corner, step_y, step_x, weight_y, weight_x, C: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """All channels of a `packed` grid interpolated in y and x on the plane below the pixels and on the one above: two [BLOCK, C].

    ``first`` is the image's offset in the grid. A load takes all channels of a node.
    """
    w00 = ((1.0 - weight_y) * (1.0 - weight_x))[:, None]
    w01 = ((1.0 - weight_y) * weight_x)[:, None]
    w10 = (weight_y * (1.0 - weight_x))[:, None]
    w11 = (weight_y * weight_x)[:, None]
    node_ptr = grid_ptr + tl.multiple_of(first + corner, C)[:, None] + tl.arange(0, C)[None, :]
    # `tl.multiple_of` a step would be forgotten on the way to the load.
    step_y = step_y // C * C
    step_x = step_x // C * C
    below = plane(node_ptr, step_y, step_x, w00, w01, w10, w11, ACC)
    above = plane(node_ptr + (C if D > 1 else 0), step_y, step_x, w00, w01, w10, w11, ACC)
    return below, above


@triton.jit
def unpack(value):
    """Two or four channels, [BLOCK, C], as four [BLOCK] of which the last is the last: two are repeated."""
    if value.shape[1] == 2:
        a, b = tl.split(value)
        return a, b, a, b
    else:
        return split_quad(value)


@triton.jit
def join_quad(a, b, c, d):
    """Four [BLOCK] as one [BLOCK, 4]."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@triton.jit
def load_terms(image_ptr, stride_c, quad, C_IN: tl.constexpr, mask, ACC: tl.constexpr, WIDE: tl.constexpr):
    """Four terms: [BLOCK, 4]."""
    return join_quad(
        load_term(image_ptr, stride_c, quad * 4, C_IN, mask, ACC, WIDE),
        load_term(image_ptr, stride_c, quad * 4 + 1, C_IN, mask, ACC, WIDE),
        load_term(image_ptr, stride_c, quad * 4 + 2, C_IN, mask, ACC, WIDE),
        load_term(image_ptr, stride_c, quad * 4 + 3, C_IN, mask, ACC, WIDE),
    )


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


def launch_gather(
    coarse: Any,
    fine: Any,
    grid: torch.Tensor,
    lattice: Lattice,
    image_size: torch.Size,
    terms: int,
    dtype: torch.dtype,
    configs: Sequence[triton.Config],
    *,
    index: torch.Tensor | None,
    wide: bool,
    fine_arguments: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """Launch the kernel of the regime, ``coarse`` behind its `row_table`, for every pixel of an image (H, W).

    Channel ``o * terms + k`` of the grid is output o's coefficient of term k. An ``index`` says which grid each image reads. ``wide`` says whether ``arguments`` need 64-bit addresses.
    """
    channels, depth, rows, columns = grid.shape[1:]
    batch = grid.shape[0] if index is None else index.shape[0]
    check(index, grid.shape[0])
    height, width = image_size
    outputs = channels // terms
    pixels = batch, height, width
    arguments.update(W=width, Gw=columns, D=depth, ACC=triton_dtype(dtype))
    if choose(channels, (depth, rows, columns), width) == "coarse":
        table = row_table(grid, lattice, height, outputs, terms, dtype, index)
        launch_pixels(
            coarse,
            pixels,
            configs,
            grid,
            table_ptr=table,
            **lattice_arguments(lattice, dtype, "zx"),
            **arguments,
            H=height,
            UNROLL=outputs * cdiv(terms, 4) <= _UNROLLED_QUADS,
            WIDE=wide or needs_int64(table),
        )
    else:
        launch_pixels(
            fine,
            pixels,
            configs,
            grid,
            grid_ptr=grid,
            **strides("grid", grid, "ncdyx"),
            **lattice_arguments(lattice, dtype),
            **bank_arguments(grid, index),
            **arguments,
            **(fine_arguments or {}),
            Gh=rows,
            WIDE=wide or needs_int64(grid),
        )
