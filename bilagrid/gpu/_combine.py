"""Partial sums of the coarse reductions added up into the grid."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, end_of_cell, first_pixel
from bilagrid.gpu._launch import RUNTIME

# So many partial sums are read at once, for a program has little else to do than wait for them. One warp, because with more some architecture spills two
# registers for some shape. PARTS changes the order of a sum, so it is not tuned.
COMBINE_CONFIGS = [triton.Config({"PARTS": 8}, num_warps=1)]


@triton.jit(do_not_specialize=RUNTIME)
def _combine_kernel(
    partial_ptr,
    out_ptr,
    stride_out_n,
    stride_out_c,
    stride_out_d,
    stride_out_y,
    stride_out_x,
    H,
    W,
    Gh,
    Gw,
    top,
    left,
    scale_y,
    scale_x,
    anchor_y,
    anchor_x,
    per_y,
    per_x,
    slack_y,
    slack_x,
    strips,
    strip_rows,
    slots,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    TILE_C: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """A program owns a node of the xy lattice, for PLANES planes and TILE_C channels: it adds up the partial sums of the node's up to four cells.

    partial as `_reduce_columns_kernel` leaves it, or with COLUMNS of 0 `_reduce_cells_kernel`, whose blocks are cells; out (N, CHANNELS, D, Gh, Gw).
    """
    ACC: tl.constexpr = tl.float32
    CHANNEL_TILES: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    TILES: tl.constexpr = (D + PLANES - 1) // PLANES * CHANNEL_TILES
    QUADS: tl.constexpr = (TILE_C + 3) // 4
    STRIDE: tl.constexpr = TILES * QUADS * PLANES * 16
    # A sum for each thread, or registers spill.
    PADDED: tl.constexpr = max(triton.next_power_of_2(4 * QUADS), 32 // PLANES)
    pid = tl.program_id(0)
    cells_y = tl.maximum(Gh - 1, 1)
    cells_x = tl.maximum(Gw - 1, 1)
    blocks = tl.cdiv(W, COLUMNS) if COLUMNS else cells_x
    node_x = pid % Gw
    node_y = pid // Gw % Gh
    tile = pid // (Gw * Gh) % TILES
    n = (pid // (Gw * Gh * TILES)).to(tl.int64)
    z = tl.arange(0, PLANES)[:, None]
    c = tl.arange(0, PADDED)[None, :]
    place = tile * (QUADS * PLANES * 16) + c // 4 * (PLANES * 16) + z * 16 + c % 4
    acc = tl.zeros([PLANES, PADDED], ACC)
    for up in range(2):
        cell_y = node_y - up
        row_ptr = partial_ptr + (n * cells_y + cell_y) * strips * blocks * slots * STRIDE + up * 4
        rows = 0
        if (cell_y >= 0) & (cell_y < cells_y):
            rows = end_of_cell(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
            rows -= first_pixel(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
        for right in range(2):
            cell_x = node_x - right
            across = ((cell_x >= 0) & (cell_x < cells_x)).to(tl.int32)
            first_block = cell_x
            if COLUMNS and across > 0:
                first_x = first_pixel(cell_x, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)
                last_x = end_of_cell(cell_x, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)
                first_block = first_x // COLUMNS
                across = tl.where(first_x < last_x, (last_x - 1) // COLUMNS + 1 - first_block, 0)
            count = tl.cdiv(rows, strip_rows) * across
            for first in range(0, count, PARTS):
                part = first + tl.arange(0, PARTS)
                if COLUMNS:
                    block = first_block + part % across
                    _x, first_cell, _x1 = coordinate(block * COLUMNS + left, scale_x, anchor_x, Gw, ACC)
                    index = (part // across * blocks + block) * slots + (cell_x - first_cell)
                else:
                    index = part * blocks + first_block
                sum_ptr = row_ptr + index.to(tl.int64)[:, None, None] * STRIDE + (place + right * 8)[None, :, :]
                mask = (part < count)[:, None, None] & (c < TILE_C)[None, :, :]
                sums = tl.load(sum_ptr, mask=mask, other=0.0)
                acc += tl.sum(sums, axis=0)
    z += tile // CHANNEL_TILES * PLANES
    c += tile % CHANNEL_TILES * TILE_C
    out_ptr += n * stride_out_n + node_y.to(tl.int64) * stride_out_y + node_x.to(tl.int64) * stride_out_x
    out_ptr += z.to(tl.int64) * stride_out_d + c.to(tl.int64) * stride_out_c
    there = (z < D) & (tl.arange(0, PADDED)[None, :] < TILE_C) & (c < CHANNELS)
    tl.store(out_ptr, acc, mask=there)
