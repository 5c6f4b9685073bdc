"""Reading the grid at pixels: what `slice` and `slice_apply` share.

From a table a pixel reads quads of coefficients, sixteen bytes each: of a coarse grid's `row_table` at four corners, of a fine grid's `node_table` at eight.
A fine grid of few channels is read as it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._corners import packed
from bilagrid.gpu._geometry import coordinate, gather_weights, widen
from bilagrid.gpu._grid_table import node_table, row_table
from bilagrid.gpu._index import bank_arguments, check
from bilagrid.gpu._launch import cdiv, lattice_arguments, launch_pixels, needs_int64, strides, triton_dtype
from bilagrid.gpu._pixels import load_term, split_quad
from bilagrid.gpu._regime import choose
from bilagrid.lattice import Lattice

# Loops over quads of coefficients are unrolled where a pixel loads no more than this many in all, so that code stays short for wide images and networks'
# features, and registers last on gfx1100.
_UNROLLED_LOADS = 32

# Of so few channels a table would have one quad: what it saves in loads it costs in moves of the grid.
_FEW_CHANNELS = 4


@triton.jit
def table_corner(
    table_ptr,
    n,
    row,
    guide,
    offs_x,
    rows,
    columns,
    first_y,
    first_x,
    Gh,
    Gw,
    top,
    left,
    scale_z,
    anchor_z,
    scale_y,
    anchor_y,
    scale_x,
    anchor_x,
    D: tl.constexpr,
    NODE: tl.constexpr,
    COLUMN: tl.constexpr,
    DZ: tl.constexpr,
    FINE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Where the pixels of a row read their table, a `node_table` where FINE and else a `row_table`, and with what weights.

    Returns pointers to the first quad of the corner below in every axis, [BLOCK, 4], one load of sixteen bytes a pixel where float32; a step of them in y
    and the weight of y above, which a row table does not need; then the weight of x above and two weights in z: [BLOCK].
    """
    x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    step_y = widen(columns, WIDE) * COLUMN
    if FINE:
        y, y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        first = y0 - first_y
        weight_y = y - y0
        # Pixels beyond the image's border would read beyond the table's.
        column = widen(tl.minimum(x0 - first_x, columns - 2), WIDE)
    else:
        first = row
        weight_y = 0.0
        column = x0
    row_ptr = table_ptr + (n * rows + first) * step_y
    corner_ptr = row_ptr + (column * COLUMN + z0 * NODE)[:, None] + tl.arange(0, 4)[None, :]
    return corner_ptr, step_y, weight_y, x - x0, lower, upper


@triton.jit
def _row_quad(ptr, NODE: tl.constexpr, COLUMN: tl.constexpr):
    return tl.load(ptr), tl.load(ptr + COLUMN), tl.load(ptr + NODE), tl.load(ptr + (COLUMN + NODE))


@triton.jit
def lerp(below, above, weight):
    """``below`` where weight is 0, ``above`` where it is 1."""
    return tl.fma(above, weight, below * (1.0 - weight))


@triton.jit
def table_quad(corner, quad, NODE: tl.constexpr, COLUMN: tl.constexpr, FINE: tl.constexpr):
    """A quad of the pixels' four corners, in y interpolated: x and z below, x above, z above, both above: [BLOCK, 4] each."""
    corner_ptr, step_y, weight_y, _weight_x, _lower, _upper = corner
    ptr = corner_ptr + quad * 4
    v00, v10, v01, v11 = _row_quad(ptr, NODE, COLUMN)
    if FINE:
        w00, w10, w01, w11 = _row_quad(ptr + step_y, NODE, COLUMN)
        v00 = lerp(v00, w00, weight_y)
        v10 = lerp(v10, w10, weight_y)
        v01 = lerp(v01, w01, weight_y)
        v11 = lerp(v11, w11, weight_y)
    return v00, v10, v01, v11


@triton.jit
def _row_value(ptr, weight_x, lower, upper, NODE: tl.constexpr, COLUMN: tl.constexpr):
    v00, v10, v01, v11 = _row_quad(ptr, NODE, COLUMN)
    left = 1.0 - weight_x
    value = v00 * (left * lower)[:, None]
    value = tl.fma(v10, (weight_x * lower)[:, None], value)
    value = tl.fma(v01, (left * upper)[:, None], value)
    return tl.fma(v11, (weight_x * upper)[:, None], value)


@triton.jit
def table_value(corner, quad, NODE: tl.constexpr, COLUMN: tl.constexpr, FINE: tl.constexpr):
    """A quad of the table at the pixels: [BLOCK, 4]."""
    corner_ptr, step_y, weight_y, weight_x, lower, upper = corner
    ptr = corner_ptr + quad * 4
    if FINE:
        below = 1.0 - weight_y
        value = _row_value(ptr, weight_x, lower * below, upper * below, NODE, COLUMN)
        return value + _row_value(ptr + step_y, weight_x, lower * weight_y, upper * weight_y, NODE, COLUMN)
    else:
        return _row_value(ptr, weight_x, lower, upper, NODE, COLUMN)


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
def dot_quad(left, right):
    """The sum over a quad of left times right: [BLOCK]."""
    a, b, c, d = split_quad(left)
    e, f, g, h = split_quad(right)
    return tl.fma(d, h, tl.fma(c, g, tl.fma(b, f, a * e)))


def launch_gather(
    kernel: Any,
    grid: torch.Tensor,
    lattice: Lattice,
    image_size: torch.Size,
    terms: int,
    dtype: torch.dtype,
    configs: Sequence[triton.Config],
    *,
    index: torch.Tensor | None,
    wide: bool,
    direct: Any = None,
    **arguments: Any,
) -> None:
    """Launch ``kernel`` behind the table of the regime for every pixel of an image (H, W); for fine grids of few channels ``direct``, where there is one.

    Channel ``o * terms + k`` of the grid is output o's coefficient of term k. An ``index`` says which grid each image reads. ``wide`` says whether ``arguments`` need 64-bit addresses.
    """
    channels, depth, rows, columns = grid.shape[1:]
    batch = grid.shape[0] if index is None else index.shape[0]
    check(index, grid.shape[0])
    height, width = image_size
    outputs = channels // terms
    fine = choose(outputs, terms, (depth, rows, columns), width) == "fine"
    pixels = batch, height, width
    arguments.update(lattice_arguments(lattice, dtype), W=width, Gh=rows, Gw=columns, D=depth, ACC=triton_dtype(dtype))
    if fine and direct is not None and channels <= _FEW_CHANNELS:
        launch_pixels(
            direct,
            pixels,
            configs,
            grid,
            grid_ptr=grid,
            **strides("grid", grid, "ncdyx"),
            **bank_arguments(grid, index),
            **arguments,
            PACKED=packed(grid),
            WIDE=wide or needs_int64(grid),
        )
        return
    first_y = first_x = 0
    if fine:
        table, first_y, first_x = node_table(grid, lattice, (height, width), outputs, terms, dtype, index)
    else:
        table = row_table(grid, lattice, height, outputs, terms, dtype, index)
    launch_pixels(
        kernel,
        pixels,
        configs,
        grid,
        table_ptr=table,
        rows=table.shape[1],
        columns=table.shape[2],
        first_y=first_y,
        first_x=first_x,
        **arguments,
        COLUMN=table.stride(2),
        FINE=fine,
        UNROLL=outputs * cdiv(terms, 4) * (8 if fine else 4) <= _UNROLLED_LOADS,
        WIDE=wide or needs_int64(table),
    )
