"""The gradients of `slice_apply` by image and guide, in one pass over the pixels."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._gather import dot_quad, lerp, load_terms, table_corner, table_quad
from bilagrid.gpu._geometry import guide_factor, luma_weight, widen
from bilagrid.gpu._launch import RUNTIME
from bilagrid.gpu._pixels import load_guide, pixel_tile, split_quad

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
def _slice_apply_bwd_pixels_kernel(
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
    W,
    rows,
    columns,
    first_y,
    first_x,
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
    C_IN: tl.constexpr,
    TERMS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    D: tl.constexpr,
    LUMA: tl.constexpr,
    COLUMN: tl.constexpr,
    FINE: tl.constexpr,
    UNROLL: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row. With A[o, k] the table at a pixel and A' its derivative by the guide:

    grad_image[n, k] = sum_o grad[n, o] A[o, k],  grad_guide[n] = sum_o,k grad[n, o] A'[o, k] term[n, k], which LUMA adds to grad_image instead.

    table as in `_slice_apply_kernel`, guide and grad_guide (N, H, W), image and grad_image (N, C_IN, H, W), grad (N, OUTPUTS, H, W).
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
    corner = table_corner(
        table_ptr, n, row, guide, offs_x, rows, columns, first_y, first_x, Gh, Gw, top, left,
        scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x, D, NODE, COLUMN, False, FINE, ACC, WIDE,
    )  # fmt: skip
    _corner_ptr, _step_y, _weight_y, weight_x, lower, upper = corner
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
            v00, v10, v01, v11 = table_quad(corner, o * QUADS + quad, NODE, COLUMN, FINE)
            sum00 = tl.fma(grad, v00, sum00)
            sum10 = tl.fma(grad, v10, sum10)
            sum01 = tl.fma(grad, v01, sum01)
            sum11 = tl.fma(grad, v11, sum11)
        below = lerp(sum00, sum10, right)
        above = lerp(sum01, sum11, right)
        by_terms = tl.fma(above, upper[:, None], below * lower[:, None])
        by_guide += dot_quad(above - below, load_terms(image_ptr, stride_image_c, quad, C_IN, mask, ACC, WIDE))
        _store_quad_grad(grad_image_ptr, stride_grad_image_c, quad, by_terms, by_guide * to_guide, C_IN, LUMA, mask, WIDE)  # fmt: skip
    if not LUMA:
        offset = n * stride_grad_guide_n + i * stride_grad_guide_y + j * stride_grad_guide_x
        tl.store(grad_guide_ptr + offset, by_guide * to_guide, mask=mask)
