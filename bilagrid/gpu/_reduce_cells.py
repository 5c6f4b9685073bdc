"""The coarse reduction where tf32 will do: the pixels of one cell of the xy lattice touch the same four columns of the grid, so a strip of its rows is a small
matrix product."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, end_of_cell, first_pixel, tent_z, widen
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_guide, load_term

# One warp, because the product is so small that more of them would repeat the work. PIXELS changes the order of a sum, so it is not tuned.
CELL_CONFIGS = [triton.Config({"PIXELS": 64}, num_warps=1, num_stages=1)]


@triton.jit(do_not_specialize=RUNTIME)
def _reduce_cells_kernel(
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
    per_x,
    slack_y,
    slack_x,
    strips,
    strip_rows,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    DZ: tl.constexpr,
    PRODUCT: tl.constexpr,
    LUMA: tl.constexpr,
    WIDE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A program owns strip_rows rows of one cell of the xy lattice, for PLANES planes and 16 channels of the grid.

    For each row, R[x corner and plane, channel] = W[x corner and plane, pixels] . X[pixels, channel] as a matrix product; then
    partial[y corner] += w_y R, for the cell's two y nodes.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W);
    partial as `_reduce_columns_kernel` leaves it, with one slot, and cells in the place of blocks: (N, y cells, strips, x cells, plane tiles, channel tiles, 4,
    PLANES, 2 for x, 2 for y, 4).
    """
    ACC: tl.constexpr = tl.float32
    PLANE_TILES: tl.constexpr = (D + PLANES - 1) // PLANES
    CHANNEL_TILES: tl.constexpr = (CHANNELS + 15) // 16
    CORNERS: tl.constexpr = 2 * PLANES
    pid = tl.program_id(0)
    cells_y = tl.maximum(Gh - 1, 1)
    cells_x = tl.maximum(Gw - 1, 1)
    tile = pid % (PLANE_TILES * CHANNEL_TILES)
    part = pid // (PLANE_TILES * CHANNEL_TILES)
    cell_x = part % cells_x
    strip = part // cells_x % strips
    cell_y = part // (cells_x * strips) % cells_y
    n = widen(part // (cells_x * strips * cells_y), WIDE)

    first_row = first_pixel(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC) + strip * strip_rows
    last_row = end_of_cell(cell_y, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
    last_row = tl.minimum(first_row + strip_rows, last_row)
    if first_row >= last_row:
        return
    first_x = first_pixel(cell_x, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)
    last_x = end_of_cell(cell_x, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)

    first_plane = tile // CHANNEL_TILES * PLANES
    corner = tl.arange(0, CORNERS)[:, None]
    plane = first_plane + corner % PLANES
    is_right = corner >= PLANES
    if CHANNEL_TILES == 1:
        c: tl.constexpr = 0
    else:
        c = tile % CHANNEL_TILES * 16

    image_ptr += n * stride_image_n
    below = tl.zeros([CORNERS, 16], ACC)
    above = tl.zeros([CORNERS, 16], ACC)
    for row in range(first_row, last_row):
        y, _y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        i = widen(row, WIDE)
        row_sum = tl.zeros([CORNERS, 16], ACC)
        for start in range(first_x, last_x, PIXELS):
            offs_x = start + tl.arange(0, PIXELS)
            x, _x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
            mask = offs_x < last_x
            j = widen(offs_x, WIDE)
            pixel_ptr = image_ptr + i * stride_image_y + j * stride_image_x
            offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
            guide = load_guide(guide_ptr, offset, pixel_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
            valid = mask & (guide == guide)
            z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)

            weight_x = x - cell_x
            weight = tl.where(is_right, weight_x[None, :], 1.0 - weight_x[None, :])
            weight = tl.where(valid[None, :], weight, 0.0) * tent_z(z[None, :], z0[None, :], plane, D, DZ)
            g = grad_ptr
            if PRODUCT:
                g += n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
            low = _terms8(pixel_ptr, stride_image_c, g, stride_grad_c, c, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
            high = _terms8(pixel_ptr, stride_image_c, g, stride_grad_c, c + 1, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
            terms = tl.reshape(tl.join(low, high), [PIXELS, 16])
            row_sum = tl.dot(weight, terms, row_sum, input_precision="tf32")
        weight_y = y - cell_y
        below = tl.fma(row_sum, 1.0 - weight_y, below)
        above = tl.fma(row_sum, weight_y, above)
    channel = tl.arange(0, 16)[None, :]
    offs = channel // 4 * (PLANES * 16) + corner % PLANES * 16 + corner // PLANES * 8 + channel % 4
    partial_ptr += pid.to(tl.int64) * (PLANES * 64)
    tl.store(partial_ptr + offs, below)
    tl.store(partial_ptr + offs + 4, above)


@triton.jit
def _term(
    image_ptr, stride_image_c, grad_ptr, stride_grad_c, channel,
    C_IN: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, PRODUCT: tl.constexpr,
    mask, valid, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What pixels add to a channel, before their weight: 0 where not valid, and for channels that are not there."""
    channel = tl.zeros([], tl.int32) + channel
    exists = mask & (channel < CHANNELS)
    value = load_term(image_ptr, stride_image_c, channel % TERMS, C_IN, exists, ACC, WIDE)
    if PRODUCT:
        value *= tl.load(grad_ptr + widen(channel // TERMS, WIDE) * stride_grad_c, mask=exists).to(ACC)
    return tl.where(valid & (channel < CHANNELS), value, 0.0)


@triton.jit
def _terms8(
    image_ptr, stride_image_c, grad_ptr, stride_grad_c, c,
    C_IN: tl.constexpr, TERMS: tl.constexpr, CHANNELS: tl.constexpr, PRODUCT: tl.constexpr,
    mask, valid, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Channels c, c + 2, ..., c + 14 of some pixels: [P, 2, 2, 2], the first of them slowest."""
    a0 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a1 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 2, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a2 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 4, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a3 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 6, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a4 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 8, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a5 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 10, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a6 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 12, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    a7 = _term(image_ptr, stride_image_c, grad_ptr, stride_grad_c, c + 14, C_IN, TERMS, CHANNELS, PRODUCT, mask, valid, ACC, WIDE)  # fmt: skip
    even = tl.join(tl.join(a0, a4), tl.join(a2, a6))
    odd = tl.join(tl.join(a1, a5), tl.join(a3, a7))
    return tl.join(even, odd)
