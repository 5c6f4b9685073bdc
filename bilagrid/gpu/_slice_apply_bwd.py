"""The gradients of `slice_apply` by image and guide, in one pass over the pixels."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._gather import dot_quad, grid_corners, grid_planes, load_terms, split_quad, table_corner, table_quad
from bilagrid.gpu._geometry import guide_factor, luma_weight, widen
from bilagrid.gpu._index import grid_of_image
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_guide, load_term, pixel_tile

# A pixel a thread: with two, quads would be traded through shared memory. With more warps fewer programs find their place in the image.
BWD_PIXELS_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=4), triton.Config({"BLOCK": 256}, num_warps=8)]


@triton.jit
def _store_quad_grad(
    grad_image_ptr, stride_c, quad, by_terms, by_guide, C_IN: tl.constexpr, LUMA: tl.constexpr, mask, WIDE: tl.constexpr
):
    """Store the gradient by a quad's image channels, to which luma adds the guide's."""
    a, b, c, d = split_quad(by_terms)
    if LUMA:
        a += luma_weight(0, by_guide.dtype) * by_guide
        b += luma_weight(1, by_guide.dtype) * by_guide
        c += luma_weight(2, by_guide.dtype) * by_guide
    first = widen(quad * 4, WIDE)
    tl.store(grad_image_ptr + first * stride_c, a, mask=mask & (quad * 4 < C_IN))
    tl.store(grad_image_ptr + (first + 1) * stride_c, b, mask=mask & (quad * 4 + 1 < C_IN))
    tl.store(grad_image_ptr + (first + 2) * stride_c, c, mask=mask & (quad * 4 + 2 < C_IN))
    tl.store(grad_image_ptr + (first + 3) * stride_c, d, mask=mask & (quad * 4 + 3 < C_IN))


@triton.jit(do_not_specialize=RUNTIME)
def _slice_apply_bwd_pixels_coarse_kernel(
    table_ptr,
    guide_ptr,
    image_ptr,
    grad_ptr,
    grad_image_ptr,
    grad_guide_ptr,
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
    stride_grad_image_n,
    stride_grad_image_c,
    stride_grad_image_y,
    stride_grad_image_x,
    stride_grad_guide_n,
    stride_grad_guide_y,
    stride_grad_guide_x,
    first_n,
    first_row,
    H,
    W,
    Gw,
    left,
    scale_z,
    scale_x,
    anchor_z,
    anchor_x,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    D: tl.constexpr,
    LUMA: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row. With A[o, k] the table at a pixel and A' its derivative by the guide:

    grad_image[n, k] = sum_o grad[n, o] A[o, k],  grad_guide[n] = sum_o,k grad[n, o] A'[o, k] term[n, k], which LUMA adds to grad_image instead.

    table as `row_table` leaves it, guide and grad_guide (N, H, W), image and grad_image (N, C_IN, H, W), grad (N, OUTPUTS, H, W).
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + i * stride_image_y + j * stride_image_x
    grad_ptr += n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
    grad_image_ptr += n * stride_grad_image_n + i * stride_grad_image_y + j * stride_grad_image_x
    offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = load_guide(guide_ptr, offset, image_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
    QUADS: tl.constexpr = (TERMS + 3) // 4
    NODE: tl.constexpr = OUTPUTS * QUADS * 4
    corner_ptr, weight_x, lower, upper = table_corner(
        table_ptr, n, row, guide, offs_x, H, Gw, left, scale_z, anchor_z, scale_x, anchor_x, D, NODE, False, ACC
    )
    right = weight_x[:, None]
    to_guide = guide_factor(guide, scale_z, anchor_z, D, ACC)
    by_guide = tl.zeros([BLOCK], ACC)
    for quad in tl.range(QUADS, loop_unroll_factor=QUADS if UNROLL else 1):
        # What the interpolation is linear in can be summed over outputs first: at each corner alone, so it is done once.
        sum00 = tl.zeros([BLOCK, 4], ACC)
        sum10 = tl.zeros([BLOCK, 4], ACC)
        sum01 = tl.zeros([BLOCK, 4], ACC)
        sum11 = tl.zeros([BLOCK, 4], ACC)
        for o in tl.range(OUTPUTS, loop_unroll_factor=OUTPUTS if UNROLL else 1):
            grad = tl.load(grad_ptr + widen(o, WIDE) * stride_grad_c, mask=mask).to(ACC)[:, None]
            v00, v10, v01, v11 = table_quad(corner_ptr, o * QUADS + quad, D, NODE)
            sum00 = tl.fma(grad, v00, sum00)
            sum10 = tl.fma(grad, v10, sum10)
            sum01 = tl.fma(grad, v01, sum01)
            sum11 = tl.fma(grad, v11, sum11)
        below = tl.fma(sum10, right, sum00 * (1.0 - right))
        above = tl.fma(sum11, right, sum01 * (1.0 - right))
        by_terms = tl.fma(above, upper[:, None], below * lower[:, None])
        by_guide += dot_quad(above - below, load_terms(image_ptr, stride_image_c, quad, C_IN, mask, ACC, WIDE))
        _store_quad_grad(grad_image_ptr, stride_grad_image_c, quad, by_terms, by_guide * to_guide, C_IN, LUMA, mask, WIDE)  # fmt: skip
    if not LUMA:
        offset = n * stride_grad_guide_n + i * stride_grad_guide_y + j * stride_grad_guide_x
        tl.store(grad_guide_ptr + offset, by_guide * to_guide, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_apply_bwd_pixels_fine_kernel(
    grid_ptr,
    index_ptr,
    guide_ptr,
    image_ptr,
    grad_ptr,
    grad_image_ptr,
    grad_guide_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
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
    stride_grad_image_n,
    stride_grad_image_c,
    stride_grad_image_y,
    stride_grad_image_x,
    stride_grad_guide_n,
    stride_grad_guide_y,
    stride_grad_guide_x,
    first_n,
    first_row,
    M,
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
    INDEXED: tl.constexpr,
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    D: tl.constexpr,
    LUMA: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row, and does what the coarse kernel does, with A[o, k] from channel o * TERMS + k of the grid.

    With luma the guide's gradient takes a first loop over all coefficients, since every channel's gradient needs it.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + i * stride_image_y + j * stride_image_x
    grad_ptr += n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
    grad_image_ptr += n * stride_grad_image_n + i * stride_grad_image_y + j * stride_grad_image_x
    offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = load_guide(guide_ptr, offset, image_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
    corner, step_y, step_x, step_z, weight_y, weight_x, lower, upper = grid_corners(
        guide, row, offs_x, top, left, scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x,
        stride_grid_d, stride_grid_y, stride_grid_x, Gh, Gw, D, False, ACC, WIDE,
    )  # fmt: skip
    to_guide = guide_factor(guide, scale_z, anchor_z, D, ACC)
    m, valid = grid_of_image(index_ptr, n, M, INDEXED, WIDE)
    if INDEXED:
        upper = tl.where(valid, upper, float("nan"))
        to_guide = tl.where(valid, to_guide, float("nan"))
    grid_ptr += m * stride_grid_n
    by_guide = tl.zeros([BLOCK], ACC)
    if LUMA:
        for channel in range(OUTPUTS * TERMS):
            o = widen(channel // TERMS, WIDE)
            offset_c = widen(channel, WIDE) * stride_grid_c
            grad = tl.load(grad_ptr + o * stride_grad_c, mask=mask, other=0.0).to(ACC)
            below, above = grid_planes(grid_ptr + offset_c, corner, step_y, step_x, step_z, weight_y, weight_x, ACC)
            term = load_term(image_ptr, stride_image_c, channel % TERMS, C_IN, mask, ACC, WIDE)
            by_guide = tl.fma((above - below) * term, grad, by_guide)
    for k in range(TERMS):
        term = load_term(image_ptr, stride_image_c, k, C_IN, mask, ACC, WIDE)
        by_term = tl.zeros([BLOCK], ACC)
        for o in range(OUTPUTS):
            channel = widen(o * TERMS + k, WIDE)
            offset_o = widen(o, WIDE) * stride_grad_c
            grad = tl.load(grad_ptr + offset_o, mask=mask, other=0.0).to(ACC)
            below, above = grid_planes(
                grid_ptr + channel * stride_grid_c, corner, step_y, step_x, step_z, weight_y, weight_x, ACC
            )
            by_term = tl.fma(tl.fma(upper, above, lower * below), grad, by_term)
            if not LUMA:
                by_guide = tl.fma((above - below) * term, grad, by_guide)
        if LUMA:
            green_or_blue = tl.where(k == 1, luma_weight(1, ACC), luma_weight(2, ACC))
            weight = tl.where(k == 0, luma_weight(0, ACC), green_or_blue)
            by_term += weight * (by_guide * to_guide)
        offset_k = widen(k, WIDE) * stride_grad_image_c
        tl.store(grad_image_ptr + offset_k, by_term, mask=mask & (k < C_IN))
    if not LUMA:
        offset = n * stride_grad_guide_n + i * stride_grad_guide_y + j * stride_grad_guide_x
        tl.store(grad_guide_ptr + offset, by_guide * to_guide, mask=mask)
