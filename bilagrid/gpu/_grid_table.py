"""Tables of the grid, channels innermost and in quads, from which a pixel reads sixteen bytes at a time.

`row_table`, for coarse grids, holds a row for each row of the image, interpolated in y. `node_table`, for fine ones, holds the nodes that the image reads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, widen
from bilagrid.gpu._index import bank_arguments, grid_of_image
from bilagrid.gpu._launch import (
    RUNTIME,
    cdiv,
    lattice_arguments,
    launch_pixels,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._regime import is_wide
from bilagrid.lattice import Lattice

# A lane owns a quad of coefficients and marches down the rows of a strip, of which a row table's share the nodes above and below. 32 lanes share four columns
# of eight quads: they store whole lines of 128 bytes, and of a contiguous grid each load touches 8 lines, and up to 32 were they 32 quads on end.
TABLE_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=4)]
TABLE_CONFIGS_WIDE = [triton.Config({"BLOCK": 128}, num_warps=2)]

# Bytes that L1 gives a warp at a time: what lies a multiple of them apart comes from the same bank.
_BANKS = 128

# Programs that keep a large GPU busy, three to a multiprocessor. Strips are no higher than that leaves, but of so many rows at least and at most.
_PROGRAMS = 400
_STRIP_ROWS = (4, 32)


@triton.jit
def _place(
    grid_ptr,
    index_ptr,
    table_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_x,
    n,
    M,
    rows,
    columns,
    left,
    Gw,
    INDEXED: tl.constexpr,
    D: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    QUADS: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where a program's quads lie in row 0 of image n's grid and of its table, [BLOCK, 4], with masks of those read and those written; a row of the table in
    elements; and whether there is such a grid."""
    NODE: tl.constexpr = OUTPUTS * QUADS
    COUNT: tl.constexpr = max(D, 2) * NODE
    TILES: tl.constexpr = (COUNT + 7) // 8
    lane = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tile = lane // 32
    quad = tile % TILES * 8 + lane % 8
    column = tile // TILES * 4 + lane // 8 % 4
    mask = ((quad < COUNT) & (column < columns))[:, None]

    d = widen(tl.minimum(quad // NODE, D - 1), WIDE)
    x = widen(tl.minimum(column + left, Gw - 1), WIDE)
    four = tl.arange(0, 4)[None, :]
    term = (quad % QUADS * 4)[:, None] + four
    channel = widen((quad // QUADS % OUTPUTS * TERMS)[:, None] + term, WIDE)
    m, valid = grid_of_image(index_ptr, n, M, INDEXED, WIDE)
    grid_ptr += m * stride_grid_n + (d * stride_grid_d + x * stride_grid_x)[:, None] + channel * stride_grid_c
    row_size = widen(columns, WIDE) * COLUMN
    table_ptr += n * rows * row_size + (widen(column, WIDE) * COLUMN + quad * 4)[:, None] + four
    return grid_ptr, mask & (term < TERMS), table_ptr, mask, row_size, valid


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
    rows,
    columns,
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
    COLUMN: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK quads of strip_rows rows of the table: table[n, i, x, d, o, k] = sum_y w_y(i) grid[n, o * TERMS + k, d, y, x].

    grid (N, OUTPUTS * TERMS, D, Gh, Gw), or where INDEXED a bank of M, of which image n has grid index[n], and NaN where there is none; table (N, rows,
    columns, planes, OUTPUTS, 4 * QUADS) with columns COLUMN elements apart, zero where k >= TERMS. Rows are the image's. Columns and planes are Gw and D, but
    two where the grid has one, the second like the first.
    """
    n = widen(tl.program_id(2) + first_n, WIDE)
    first = (tl.program_id(1) + first_row) * strip_rows
    last = tl.minimum(first + strip_rows, rows)
    node_ptr, mask_node, table_ptr, mask, row_size, valid = _place(
        grid_ptr, index_ptr, table_ptr, stride_grid_n, stride_grid_c, stride_grid_d, stride_grid_x, n, M, rows, columns, 0, Gw,
        INDEXED, D, OUTPUTS, TERMS, QUADS, COLUMN, WIDE, BLOCK,
    )  # fmt: skip

    row = first
    while row < last:
        _y, y0, y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        below = tl.load(node_ptr + widen(y0, WIDE) * stride_grid_y, mask=mask_node, other=0.0).to(ACC)
        above = tl.load(node_ptr + widen(y1, WIDE) * stride_grid_y, mask=mask_node, other=0.0).to(ACC)
        if INDEXED:
            below = tl.where(valid, below, float("nan"))
        # Of the next rows, no fewer than a strip has, those that lie in the same cell.
        _ys, cells, _above = coordinate(row + tl.arange(0, 32) + top, scale_y, anchor_y, Gh, ACC)
        end = tl.minimum(row + tl.sum((cells == y0).to(tl.int32), axis=0), last)
        for i in range(row, end):
            y, _y0, _y1 = coordinate(i + top, scale_y, anchor_y, Gh, ACC)
            weight = y - y0
            value = below * (1.0 - weight) + above * weight
            tl.store(table_ptr + widen(i, WIDE) * row_size, value, mask=mask)
        row = end


@triton.jit(do_not_specialize=RUNTIME)
def _copy_nodes_kernel(
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
    rows,
    columns,
    Gh,
    Gw,
    top,
    left,
    strip_rows,
    INDEXED: tl.constexpr,
    D: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TERMS: tl.constexpr,
    QUADS: tl.constexpr,
    COLUMN: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK quads of strip_rows rows of the table: table[n, y, x, d, o, k] = grid[n, o * TERMS + k, d, top + y, left + x].

    grid and table as in `_interpolate_rows_kernel`, but that rows, too, are the grid's, and two where it has one.
    """
    n = widen(tl.program_id(2) + first_n, WIDE)
    first = (tl.program_id(1) + first_row) * strip_rows
    node_ptr, mask_node, table_ptr, mask, row_size, valid = _place(
        grid_ptr, index_ptr, table_ptr, stride_grid_n, stride_grid_c, stride_grid_d, stride_grid_x, n, M, rows, columns, left, Gw,
        INDEXED, D, OUTPUTS, TERMS, QUADS, COLUMN, WIDE, BLOCK,
    )  # fmt: skip
    for row in range(first, tl.minimum(first + strip_rows, rows)):
        y = widen(tl.minimum(row + top, Gh - 1), WIDE)
        value = tl.load(node_ptr + y * stride_grid_y, mask=mask_node, other=0.0).to(ACC)
        if INDEXED:
            value = tl.where(valid, value, float("nan"))
        tl.store(table_ptr + widen(row, WIDE) * row_size, value, mask=mask)


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
    size = height, max(grid.shape[4], 2)
    return _table(
        _interpolate_rows_kernel, grid, size, outputs, terms, dtype, index, **lattice_arguments(lattice, dtype, "y")
    )


def node_table(
    grid: torch.Tensor,
    lattice: Lattice,
    image_size: tuple[int, int],
    outputs: int,
    terms: int,
    dtype: torch.dtype,
    index: torch.Tensor | None,
) -> tuple[torch.Tensor, int, int]:
    """The nodes of the grids, or of those of ``index``, that an image (H, W) reads: (N, rows, columns, D, outputs, terms padded to quads of 4), all sizes but
    outputs at least 2; and which row and column of the grid come first.

    Pixels side by side read two columns at once. Where these lay a multiple of `_BANKS` apart, their quads would come from L1 one after the other, so columns
    lie a quad farther apart there.
    """
    (top, rows), (left, columns) = map(
        _nodes, lattice.origin, image_size, lattice.scale[1:], lattice.anchor[1:], grid.shape[3:]
    )
    column = max(grid.shape[2], 2) * outputs * cdiv(terms, 4) * 4
    gap = 0 if column * dtype.itemsize % _BANKS else 4
    table = _table(_copy_nodes_kernel, grid, (rows, columns), outputs, terms, dtype, index, gap, top=top, left=left)
    return table, top, left


def _nodes(origin: int, pixels: int, scale: float, anchor: float, nodes: int) -> tuple[int, int]:
    """The first node along an axis that pixels from ``origin`` on read, and how many they read: at least two."""
    # In float32 a coordinate may round into a neighbouring cell, or one farther off where cells are millions.
    slack = 1 + (nodes >> 20)
    last_cell = max(nodes - 2, 0)
    below = math.floor(origin * scale + anchor) - slack
    above = math.floor((origin + pixels - 1) * scale + anchor) + slack
    first, last = (min(max(cell, 0), last_cell) for cell in (below, above))
    return first, last - first + 2


def _table(
    kernel: Any,
    grid: torch.Tensor,
    size: tuple[int, int],
    outputs: int,
    terms: int,
    dtype: torch.dtype,
    index: torch.Tensor | None,
    gap: int = 0,
    **arguments: Any,
) -> torch.Tensor:
    """A table of (rows, columns) of nodes for each image, made by ``kernel``; ``gap`` elements that no one reads follow each column."""
    depth = grid.shape[2]
    batch = grid.shape[0] if index is None else index.shape[0]
    rows, columns = size
    quads = cdiv(terms, 4)
    column = max(depth, 2), outputs, 4 * quads
    table = grid.new_empty((batch, rows, columns, math.prod(column) + gap), dtype=dtype)
    table = table[..., : math.prod(column)].unflatten(3, column)
    lanes = 32 * cdiv(math.prod(table.shape[3:]) // 4, 8) * cdiv(columns, 4)
    least, most = _STRIP_ROWS
    configs = TABLE_CONFIGS_WIDE if is_wide(grid.device) else TABLE_CONFIGS
    blocks = batch * cdiv(lanes, configs[0].kwargs["BLOCK"])
    strip_rows = min(max(blocks * rows // _PROGRAMS, least), most)
    launch_pixels(
        kernel,
        (batch, cdiv(rows, strip_rows), lanes),
        configs,
        grid,
        grid_ptr=grid,
        table_ptr=table,
        **bank_arguments(grid, index),
        **strides("grid", grid, "ncdyx"),
        rows=rows,
        columns=columns,
        Gh=grid.shape[3],
        Gw=grid.shape[4],
        **arguments,
        strip_rows=strip_rows,
        D=depth,
        OUTPUTS=outputs,
        TERMS=terms,
        QUADS=quads,
        COLUMN=table.stride(2),
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, table),
    )
    return table
