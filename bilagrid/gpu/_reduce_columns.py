"""The coarse reduction in plain float32: a lane owns a column of pixels and marches down its rows; where they end, lanes add up into the nodes around."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, end_of_cell, first_pixel, luma, tent_z, widen
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_term

# A block has a column for each lane of a warp, and its warps share the planes. Loads of two rows are under way at once: 12 warps, which is what registers
# leave to a multiprocessor, would otherwise wait for them. One configuration for each number of warps.
COLUMN_CONFIGS = {
    warps: [triton.Config({"COLUMNS": 32, "ROWS": 2}, num_warps=warps, num_stages=1)] for warps in (1, 2, 4)
}


@triton.jit(do_not_specialize=RUNTIME)
def _reduce_columns_kernel(
    guide_ptr,
    image_ptr,
    grad_ptr,
    partial_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    stride_grad_n,
    stride_grad_c,
    stride_grad_y,
    stride_grad_x,
    H,
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
    per_y,
    slack_y,
    strips,
    strip_rows,
    slots,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    TILE_C: tl.constexpr,
    DZ: tl.constexpr,
    PRODUCT: tl.constexpr,
    LUMA: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """A program owns COLUMNS columns and strip_rows rows of one row of cells, for PLANES planes and TILE_C channels of the grid.

    A lane adds up its column, sum over rows of w_z (1 - w_y) product and of w_z w_y product. Its w_x is the same in all rows, so it comes after them: for each
    cell that the columns lie in, partial[x corner, y corner] = sum over lanes of w_x sum, in a fixed order, for the cell's four columns of nodes.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W);
    partial (N, y cells, strips, blocks, slots, plane tiles, channel tiles, TILE_C / 4, PLANES, 2 for x, 2 for y, 4), a slot for each cell of a block's columns.
    """
    ACC: tl.constexpr = tl.float32
    CHANNEL_TILES: tl.constexpr = (CHANNELS + TILE_C - 1) // TILE_C
    TILES: tl.constexpr = (D + PLANES - 1) // PLANES * CHANNEL_TILES
    QUADS: tl.constexpr = (TILE_C + 3) // 4
    pid = tl.program_id(0)
    cells_y = tl.maximum(Gh - 1, 1)
    blocks = tl.cdiv(W, COLUMNS)
    tile = pid % TILES
    part = pid // TILES
    block = part % blocks
    strip = part // blocks % strips
    cell_y = part // (blocks * strips) % cells_y
    n = widen(part // (blocks * strips * cells_y), WIDE)

    first_row = first_pixel(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC) + strip * strip_rows
    last_row = end_of_cell(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
    last_row = tl.minimum(first_row + strip_rows, last_row)
    if first_row >= last_row:
        return

    # Lanes beyond the last column read it once more, and weigh nothing in the end.
    lane = tl.arange(0, COLUMNS)
    first_x = block * COLUMNS
    last_x = tl.minimum(first_x + COLUMNS, W) - 1
    offs_x = tl.minimum(first_x + lane, last_x)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + j * stride_image_x
    guides = guide_ptr
    if not LUMA:
        guides += n * stride_guide_n + j * stride_guide_x
    grads = grad_ptr
    if PRODUCT:
        grads += n * stride_grad_n + j * stride_grad_x
    plane = (tile // CHANNEL_TILES * PLANES + tl.arange(0, PLANES))[:, None]
    if CHANNEL_TILES == 1:
        c: tl.constexpr = 0
    else:
        c = tile % CHANNEL_TILES * TILE_C
    everywhere = tl.full([COLUMNS], True, tl.int1)

    below = _empty()
    for _ in tl.static_range(TILE_C):
        below = below + (tl.zeros([PLANES, COLUMNS], ACC),)
    above = below
    for row in tl.range(first_row, last_row, loop_unroll_factor=ROWS):
        y, _y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        i = widen(row, WIDE)
        offset = i * stride_image_y
        if LUMA:
            guide = luma(
                _term(image_ptr, stride_image_c, 0, offset, 3, everywhere, ACC, WIDE),
                _term(image_ptr, stride_image_c, 1, offset, 3, everywhere, ACC, WIDE),
                _term(image_ptr, stride_image_c, 2, offset, 3, everywhere, ACC, WIDE),
            )
        else:
            guide = tl.load(guides + i * stride_guide_y).to(ACC)
        valid = guide == guide
        z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
        weight = tent_z(z[None, :], z0[None, :], plane, D, DZ)
        upper = weight * (y - cell_y)
        lower = weight - upper
        rows_below = _empty()
        rows_above = _empty()
        for k in tl.static_range(TILE_C):
            # A tile begins with an output where it holds whole ones, so that only then the term is known now.
            term = k % TERMS if TILE_C % TERMS == 0 else (c + k) % TERMS
            exists = everywhere if CHANNELS % TILE_C == 0 else everywhere & (c + k < CHANNELS)
            value = tl.where(valid, _term(image_ptr, stride_image_c, term, offset, C_IN, exists, ACC, WIDE), 0.0)
            if PRODUCT:
                out = c // TERMS + k // TERMS if TILE_C % TERMS == 0 else (c + k) // TERMS
                by_out = tl.load(grads + widen(out, WIDE) * stride_grad_c + i * stride_grad_y, mask=exists).to(ACC)
                value *= tl.where(valid, by_out, 0.0)
            rows_below = rows_below + (tl.fma(lower, value[None, :], below[k]),)
            rows_above = rows_above + (tl.fma(upper, value[None, :], above[k]),)
        below = rows_below
        above = rows_above

    x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    _x, first_cell, _x1 = coordinate(first_x + left, scale_x, anchor_x, Gw, ACC)
    _x, last_cell, _x1 = coordinate(last_x + left, scale_x, anchor_x, Gw, ACC)
    lanes = tl.broadcast_to(lane[None, :], (PLANES, COLUMNS))
    weight_x = x - x0
    kept = tl.where(lane & 8 != 0, weight_x, 1.0 - weight_x)[None, :]
    given = tl.where(lane & 8 != 0, 1.0 - weight_x, weight_x)[None, :]
    offs = tl.arange(0, PLANES)[:, None] * 16 + lanes
    for cell_x in range(first_cell, last_cell + 1):
        inside = (first_x + lane <= last_x) & (x0 == cell_x)
        slot = part.to(tl.int64) * slots + (cell_x - first_cell)
        out_ptr = partial_ptr + (slot * TILES + tile) * (QUADS * PLANES * 16)
        for quad in tl.static_range(QUADS):
            sums = _empty()
            for k in tl.static_range(4 * quad, 4 * quad + 4):
                if k < TILE_C:
                    # A sum that is not finite would reach other cells through a weight of 0.
                    lower = tl.where(inside[None, :], below[k], 0.0)
                    upper = tl.where(inside[None, :], above[k], 0.0)
                    lower = tl.fma(lower, kept, _across(lower * given, lanes, 8))
                    upper = tl.fma(upper, kept, _across(upper * given, lanes, 8))
                    sums = sums + (_deal(lower, upper, lanes, 4),)
                else:
                    sums = sums + (tl.zeros([PLANES, COLUMNS], ACC),)
            total = _deal(_deal(sums[0], sums[1], lanes, 1), _deal(sums[2], sums[3], lanes, 1), lanes, 2)
            total += _across(total, lanes, 16)
            tl.store(out_ptr + quad * (PLANES * 16) + offs, total, mask=lanes < 16)


@triton.jit
def _empty():
    """A tuple to add to, whose type a checker does not guess."""
    return ()


@triton.jit
def _term(image_ptr, stride_c, k, offset, C_IN: tl.constexpr, mask, ACC: tl.constexpr, WIDE: tl.constexpr):
    """`load_term` at an offset, which is added last: the address of a channel is computed once, and not in each row."""
    return load_term(image_ptr + widen(k, WIDE) * stride_c + offset, 0, k, C_IN, mask, ACC, WIDE)


@triton.jit
def _across(values, lanes, bit: tl.constexpr):
    """What the lane has whose number differs in a bit."""
    return tl.gather(values, lanes ^ bit, axis=1)


@triton.jit
def _deal(a, b, lanes, bit: tl.constexpr):
    """Adds up the pairs of lanes that differ in a bit: sums of a are left in those without it, of b in the others. Half the work of adding up each."""
    has = lanes & bit != 0
    return tl.where(has, b, a) + _across(tl.where(has, a, b), lanes, bit)
