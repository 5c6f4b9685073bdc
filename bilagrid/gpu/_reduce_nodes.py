"""The fine reduction: a program owns nodes of the grid and adds up the pixels of their footprint."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, pixel_range, tent, tent_z, widen
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_guide, load_term

# A node a lane, so that what a pixel shares among planes and channels is computed once. Blocks of other sizes add in the same order.
# On AMD, where a warp may have 64 lanes, Triton 3.7 rejects its own layouts with fewer nodes than lanes or more warps than one.
NODE_CONFIGS = [
    triton.Config({"NODES": 32}, num_warps=1),
    triton.Config({"NODES": 64}, num_warps=2),
    triton.Config({"NODES": 128}, num_warps=4),
]
NODE_CONFIGS_AMD = [triton.Config({"NODES": 64}, num_warps=1)]


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
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    NODES: tl.constexpr,
):
    """A program owns NODES nodes along a row of the grid, for PLANES planes and TILE_C channels: out = sum over pixels w_x w_y w_z product.

    A lane walks its node's footprint, the pixels less than a node away, row by row; footprints overlap, and what is read twice comes from the cache.

    guide (N, H, W), image (N, C_IN, H, W), grad (N, CHANNELS / TERMS, H, W), out (N, CHANNELS, D, Gh, Gw).
    Where out is INTERLEAVED, sums are turned before they are stored, so that lanes write what lies together.
    """
    pid = tl.program_id(0)
    blocks_x = tl.cdiv(Gw, NODES)
    tiles_c = tl.cdiv(CHANNELS, TILE_C)
    tiles_z = tl.cdiv(D, PLANES)
    block_x = pid % blocks_x
    tile_c = pid // blocks_x % tiles_c
    tile_z = pid // (blocks_x * tiles_c) % tiles_z
    node_y = pid // (blocks_x * tiles_c * tiles_z) % Gh
    n = widen(pid // (blocks_x * tiles_c * tiles_z * Gh), WIDE)

    node_x = block_x * NODES + tl.arange(0, NODES)
    plane = (tile_z * PLANES + tl.arange(0, PLANES))[:, None]
    channel = (tile_c * TILE_C + tl.arange(0, TILE_C))[:, None]
    term = channel % TERMS
    mask_c = channel < CHANNELS
    first_row, last_row = pixel_range(node_y - 1, node_y + 1, per_y, anchor_y, top, slack_y, Gh, H, ACC)
    first_x, last_x = pixel_range(node_x - 1, node_x + 1, per_x, anchor_x, left, slack_x, Gw, W, ACC)
    last_x = tl.where(node_x < Gw, last_x, first_x)
    longest = tl.max(last_x - first_x, axis=0)
    image_ptr += n * stride_image_n
    acc = tl.zeros([TILE_C, PLANES, NODES], ACC)
    for row in range(first_row, last_row):
        y, _y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
        weight_y = tent(y, node_y)
        i = widen(row, WIDE)
        for step in range(longest):
            offs_x = first_x + step
            mask = offs_x < last_x
            j = widen(offs_x, WIDE)
            pixel_ptr = image_ptr + i * stride_image_y + j * stride_image_x
            offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
            guide = load_guide(guide_ptr, offset, pixel_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
            x, _x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
            z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
            weight = tent(x, node_x) * weight_y
            valid = mask & (guide == guide) & (weight > 0)

            exists = mask[None, :] & mask_c
            value = load_term(pixel_ptr[None, :], stride_image_c, term, C_IN, exists, ACC, WIDE)
            if PRODUCT:
                offset_g = n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
                pointers_g = grad_ptr + offset_g[None, :] + widen(channel // TERMS, WIDE) * stride_grad_c
                value *= tl.load(pointers_g, mask=exists).to(ACC)
            value = tl.where(valid[None, :], value * weight[None, :], 0.0)
            weight_z = tent_z(z[None, :], z0[None, :], plane, D, DZ)
            acc = tl.fma(value[:, None, :], weight_z[None, :, :], acc)
    c = channel[:, :, None]
    z = plane[None, :, :]
    x = node_x[None, None, :]
    if INTERLEAVED:
        acc = tl.permute(acc, (2, 1, 0))
        c = tl.permute(c, (2, 1, 0))
        z = tl.permute(z, (2, 1, 0))
        x = tl.permute(x, (2, 1, 0))
    out_ptr += n * stride_out_n + widen(node_y, WIDE) * stride_out_y + widen(x, WIDE) * stride_out_x
    out_ptr += widen(z, WIDE) * stride_out_d + widen(c, WIDE) * stride_out_c
    tl.store(out_ptr, acc, mask=(c < CHANNELS) & (z < D) & (x < Gw))
