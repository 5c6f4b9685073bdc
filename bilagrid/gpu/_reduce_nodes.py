"""The fine reduction: a lane owns a column of cells of the grid and marches down their pixels; once a row of pixels the lanes add up into nodes."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._gaussian import convolve_planes
from bilagrid.gpu._geometry import coordinate, first_pixel, tent_z, widen
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_guide, load_term

# A cell a lane, so that what a pixel shares among planes and channels is computed once; as many as a warp has lanes.
# Triton 3.7 rejects its own layouts where a block has fewer. Sums are in the same order either way.
NODE_CONFIGS = [triton.Config({"CELLS": 32}, num_warps=1)]
NODE_CONFIGS_WIDE = [triton.Config({"CELLS": 64}, num_warps=1)]


@triton.jit(do_not_specialize=RUNTIME)
def _reduce_nodes_kernel(
    guide_ptr,
    image_ptr,
    grad_ptr,
    out_ptr,
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
    strip_rows,
    taps_exponent,
    taps_scale,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    PLANES: tl.constexpr,
    TILE_C: tl.constexpr,
    DZ: tl.constexpr,
    PRODUCT: tl.constexpr,
    LUMA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    RADIUS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    CELLS: tl.constexpr,
):
    """A program owns CELLS - 1 nodes along x and strip_rows along y of the grid, for PLANES planes and TILE_C channels: out = sum over pixels w_x w_y w_z product.

    A lane owns a column of cells and adds up each row of their pixels, for all planes at once, by what it weighs on a cell's left and right. The sum on the
    right goes to the lane of the next cell, so that each lane has its node's, and adds it to the node above and below by the row's two weights. Where a row of
    cells ends, the nodes above it are complete, and are stored: with RADIUS, convolved along z. A strip begins a row of cells early.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W), out (N, CHANNELS, D, Gh, Gw).
    Where out is INTERLEAVED, sums are turned before they are stored, so that lanes write what lies together.
    """
    pid = tl.program_id(0)
    blocks_x = tl.cdiv(Gw, CELLS - 1)
    tiles_c = tl.cdiv(CHANNELS, TILE_C)
    tiles_z = tl.cdiv(D, PLANES)
    strips = tl.cdiv(Gh, strip_rows)
    block_x = pid % blocks_x
    tile_c = pid // blocks_x % tiles_c
    tile_z = pid // (blocks_x * tiles_c) % tiles_z
    strip = pid // (blocks_x * tiles_c * tiles_z) % strips
    n = widen(pid // (blocks_x * tiles_c * tiles_z * strips), WIDE)

    lane = tl.arange(0, CELLS)
    node_x = block_x * (CELLS - 1) - 1 + lane
    first_x = first_pixel(node_x, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)
    last_x = first_pixel(node_x + 1, per_x, scale_x, anchor_x, left, slack_x, Gw, W, ACC)
    last_x = tl.where((node_x >= 0) & (node_x < Gw), last_x, first_x)
    longest = tl.max(last_x - first_x, axis=0)

    plane = (tile_z * PLANES + tl.arange(0, PLANES))[None, :, None]
    if CHANNELS <= TILE_C:
        first_c: tl.constexpr = 0
    else:
        first_c = tile_c * TILE_C
    channel = tl.arange(0, TILE_C)[:, None]
    image_ptr += n * stride_image_n
    guides = guide_ptr
    if not LUMA:
        guides += n * stride_guide_n
    grads = grad_ptr
    if PRODUCT:
        grads += n * stride_grad_n
    before = tl.broadcast_to(tl.maximum(lane - 1, 0)[None, None, :], (TILE_C, PLANES, CELLS))
    c = (first_c + channel)[:, :, None]
    x = node_x[None, None, :]
    owned = (lane > 0)[None, None, :] & (x < Gw) & (c < CHANNELS) & (plane < D)
    if INTERLEAVED:
        owned = tl.permute(owned, (2, 1, 0))

    first_node = strip * strip_rows
    last_node = tl.minimum(first_node + strip_rows, Gh)
    first_cell = tl.maximum(first_node - 1, 0)
    next_row = first_pixel(first_cell, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
    above = tl.zeros([TILE_C, PLANES, CELLS], ACC)
    for node_y in range(first_cell, last_node):
        first_row = next_row
        next_row = first_pixel(node_y + 1, per_y, scale_y, anchor_y, top, slack_y, Gh, H, ACC)
        below = tl.zeros([TILE_C, PLANES, CELLS], ACC)
        # Not from first_row on: Triton 3.6 and 3.7 forget what a loop carries if it is but the bound of another, and would begin at the strip's first row.
        for down in range(next_row - first_row):
            row = first_row + down
            i = widen(row, WIDE)
            left_sum = tl.zeros([TILE_C, PLANES, CELLS], ACC)
            right_sum = tl.zeros([TILE_C, PLANES, CELLS], ACC)
            for step in range(longest):
                offs_x = first_x + step
                mask = offs_x < last_x
                j = widen(offs_x, WIDE)
                pixel_ptr = image_ptr + i * stride_image_y + j * stride_image_x
                offset = i * stride_guide_y + j * stride_guide_x
                guide = load_guide(guides, offset, pixel_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
                x_pixel, _x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
                z_pixel, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
                valid = mask & (guide == guide)
                value = tl.zeros([TILE_C, CELLS], ACC)
                for k in tl.static_range(TILE_C):
                    exists = valid & (first_c + k < CHANNELS)
                    product = load_term(pixel_ptr, stride_image_c, (first_c + k) % TERMS, C_IN, exists, ACC, WIDE)
                    if PRODUCT:
                        by_out_ptr = grads + widen((first_c + k) // TERMS, WIDE) * stride_grad_c
                        by_out_ptr += i * stride_grad_y + j * stride_grad_x
                        product *= tl.load(by_out_ptr, mask=exists).to(ACC)
                    value = tl.where(valid[None, :] & (channel == k), product[None, :], value)
                right = value * (x_pixel - node_x)[None, :]
                weight_z = tent_z(z_pixel[None, None, :], z0[None, None, :], plane, D, DZ)
                left_sum = tl.fma((value - right)[:, None, :], weight_z, left_sum)
                right_sum = tl.fma(right[:, None, :], weight_z, right_sum)
            sums = left_sum + tl.gather(right_sum, before, axis=2)
            y, _y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
            weight_y = y - node_y
            above = tl.fma(sums, 1.0 - weight_y, above)
            below = tl.fma(sums, weight_y, below)
        if node_y >= first_node:
            total = above
            if RADIUS is not None:
                total = convolve_planes(total, taps_exponent, taps_scale, RADIUS, ACC)
            if INTERLEAVED:
                place = ((n * Gh + node_y) * Gw + widen(x, WIDE)) * (D * CHANNELS) + (plane * CHANNELS + c)
                place = tl.permute(place, (2, 1, 0))
                total = tl.permute(total, (2, 1, 0))
            else:
                place = (((n * CHANNELS + c) * D + plane) * Gh + node_y) * Gw + x
            tl.store(out_ptr + place, total, mask=owned)
        above = below
