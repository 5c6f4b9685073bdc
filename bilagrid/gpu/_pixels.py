"""Reading the pixels of an image: what kernels that go through one share."""

from __future__ import annotations

import triton
import triton.language as tl

from bilagrid.gpu._geometry import luma, widen


@triton.jit
def pixel_tile(first_n, first_row, W, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    """The pixels that a program of `launch_pixels` owns: batch, row, BLOCK columns, and which of these there are."""
    n = widen(tl.program_id(2) + first_n, WIDE)
    row = tl.program_id(1) + first_row
    offs_x = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    return n, row, offs_x, offs_x < W


@triton.jit
def load_term(image_ptr, stride_c, i, C_IN: tl.constexpr, mask, ACC: tl.constexpr, WIDE: tl.constexpr):
    """Channel i of some pixels; ones after the last of them (for an offset, or homogeneous coordinates), then zeros. Undefined where not mask."""
    if_there = mask & (i < C_IN)
    value = tl.load(image_ptr + widen(i, WIDE) * stride_c, mask=if_there).to(ACC)
    return tl.where(i < C_IN, value, tl.where(i == C_IN, 1.0, 0.0))


@triton.jit
def load_guide(
    guide_ptr, offset, image_ptr, stride_image_c, LUMA: tl.constexpr, mask, ACC: tl.constexpr, WIDE: tl.constexpr
):
    """The guide of some pixels, or the luma of their image. Undefined where not mask."""
    if LUMA:
        return luma(
            load_term(image_ptr, stride_image_c, 0, 3, mask, ACC, WIDE),
            load_term(image_ptr, stride_image_c, 1, 3, mask, ACC, WIDE),
            load_term(image_ptr, stride_image_c, 2, 3, mask, ACC, WIDE),
        )
    else:
        return tl.load(guide_ptr + offset, mask=mask).to(ACC)


@triton.jit
def split_quad(quad):
    """[BLOCK, 4] as four [BLOCK]."""
    even, odd = tl.split(tl.reshape(quad, [quad.shape[0], 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def store_four(out_ptr, stride_c, first, a, b, c, d, CHANNELS: tl.constexpr, mask, WIDE: tl.constexpr):
    """Store channels first to first + 3, where there are so many."""
    channel = widen(first, WIDE)
    tl.store(out_ptr + channel * stride_c, a, mask=mask & (first < CHANNELS))
    tl.store(out_ptr + (channel + 1) * stride_c, b, mask=mask & (first + 1 < CHANNELS))
    tl.store(out_ptr + (channel + 2) * stride_c, c, mask=mask & (first + 2 < CHANNELS))
    tl.store(out_ptr + (channel + 3) * stride_c, d, mask=mask & (first + 3 < CHANNELS))
