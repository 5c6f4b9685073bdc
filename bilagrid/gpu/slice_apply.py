"""`slice_apply` in Triton: the grid read at every pixel and applied to it as an affine map, and the gradients of that."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._gather import dot_quad, launch_gather, load_terms, table_corner, table_value
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, needs_int64, strides
from bilagrid.gpu._pixels import load_guide, pixel_tile
from bilagrid.gpu._reduction import reduce_products
from bilagrid.gpu._slice_apply_bwd import BWD_PIXELS_CONFIGS, _slice_apply_bwd_pixels_kernel
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._memory import empty_as, empty_grid

# A pixel a thread: few registers, so many warps hide the loads from L1. Two pixels a thread spend a seventh less on coordinates and addresses.
APPLY_CONFIGS = [
    triton.Config({"BLOCK": 128}, num_warps=4),
    triton.Config({"BLOCK": 256}, num_warps=8),
    triton.Config({"BLOCK": 256}, num_warps=4),
]


@triton.jit(do_not_specialize=RUNTIME)
def _slice_apply_kernel(
    table_ptr,
    guide_ptr,
    image_ptr,
    out_ptr,
    stride_guide_n,
    stride_guide_y,
    stride_guide_x,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    stride_out_n,
    stride_out_c,
    stride_out_y,
    stride_out_x,
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
    """A program owns BLOCK pixels of a row: out[n, o, i, j] = sum_k (sum_x,z w_x w_z table[n, i, x, z, o, k]) term[n, k, i, j].

    table as `row_table` leaves it, or where FINE as `node_table` does, of which w_y weighs two rows; guide (N, H, W), image (N, C_IN, H, W), out (N, OUTPUTS,
    H, W). The terms are the image's channels and, where the map has an offset, ones. The slicing layer of Gharbi et al. 2017, section 3.3, fused with equation 6.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + i * stride_image_y + j * stride_image_x
    offset = n * stride_guide_n + i * stride_guide_y + j * stride_guide_x
    guide = load_guide(guide_ptr, offset, image_ptr, stride_image_c, LUMA, mask, ACC, WIDE)
    QUADS: tl.constexpr = (TERMS + 3) // 4
    NODE: tl.constexpr = OUTPUTS * QUADS * 4
    corner = table_corner(
        table_ptr, n, row, guide, offs_x, rows, columns, first_y, first_x, Gh, Gw, top, left,
        scale_z, anchor_z, scale_y, anchor_y, scale_x, anchor_x, D, NODE, COLUMN, False, FINE, ACC, WIDE,
    )  # fmt: skip
    out_ptr += n * stride_out_n + i * stride_out_y + j * stride_out_x
    if QUADS == 1:
        terms = load_terms(image_ptr, stride_image_c, 0, C_IN, mask, ACC, WIDE)
        for o in tl.range(OUTPUTS, loop_unroll_factor=OUTPUTS if UNROLL else 1):
            coefficients = table_value(corner, o, NODE, COLUMN, FINE)
            tl.store(out_ptr + widen(o, WIDE) * stride_out_c, dot_quad(coefficients, terms), mask=mask)
    else:
        for o in range(OUTPUTS):
            acc = tl.zeros([BLOCK], ACC)
            for quad in range(QUADS):
                coefficients = table_value(corner, o * QUADS + quad, NODE, COLUMN, FINE)
                acc += dot_quad(coefficients, load_terms(image_ptr, stride_image_c, quad, C_IN, mask, ACC, WIDE))
            tl.store(out_ptr + widen(o, WIDE) * stride_out_c, acc, mask=mask)


def slice_apply(
    grid: torch.Tensor,
    guide: torch.Tensor | None,
    image: torch.Tensor,
    lattice: Lattice,
    *,
    offset: bool,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """The grid's affine map at every pixel applied to the image: (N, C_out, H, W), lying as the image does; the guide is luma where None."""
    terms = image.shape[1] + int(offset)
    out = empty_as(image, grid.shape[1] // terms)
    launch_gather(
        _slice_apply_kernel,
        grid,
        lattice,
        image.shape[2:],
        terms,
        compute_type(grid, guide, image),
        APPLY_CONFIGS,
        index=index,
        wide=needs_int64(guide, image, out),
        **_pixels(grid, guide, image, terms),
        out_ptr=out,
        **strides("out", out, "ncyx"),
    )
    return out


def slice_apply_bwd_pixels(
    grid: torch.Tensor,
    guide: torch.Tensor | None,
    image: torch.Tensor,
    grad_output: torch.Tensor,
    lattice: Lattice,
    *,
    offset: bool,
    index: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The gradients of `slice_apply` by image and guide, in one pass; where the guide is luma, its gradient is part of the image's."""
    grad_image = torch.empty_like(image)
    grad_guide = None if guide is None else torch.empty(guide.shape, dtype=guide.dtype, device=guide.device)
    terms = image.shape[1] + int(offset)
    launch_gather(
        _slice_apply_bwd_pixels_kernel,
        grid,
        lattice,
        image.shape[2:],
        terms,
        compute_type(grid, guide, image, grad_output),
        BWD_PIXELS_CONFIGS,
        index=index,
        wide=needs_int64(guide, image, grad_output, grad_image, grad_guide),
        **_pixels(grid, guide, image, terms),
        grad_ptr=grad_output,
        grad_image_ptr=grad_image,
        grad_guide_ptr=grad_guide,
        **strides("grad", grad_output, "ncyx"),
        **strides("grad_image", grad_image, "ncyx"),
        **strides("grad_guide", grad_guide, "nyx"),
    )
    return [grad_image] if grad_guide is None else [grad_image, grad_guide]


def slice_apply_bwd_grid(
    guide: torch.Tensor | None,
    image: torch.Tensor,
    grad_output: torch.Tensor,
    lattice: Lattice,
    *,
    offset: bool,
) -> torch.Tensor:
    """The gradient of `slice_apply` by the grid: (N, C, D, Gh, Gw), contiguous, float64 if any argument is, else float32."""
    channels = grad_output.shape[1] * (image.shape[1] + int(offset))
    dtype = compute_type(guide, image, grad_output)
    grid = empty_grid(image, channels, lattice.size, dtype, interleaved=False)
    return reduce_products(guide, image, grad_output, lattice, grid, ones=offset)


def _pixels(grid: torch.Tensor, guide: torch.Tensor | None, image: torch.Tensor, terms: int) -> dict[str, Any]:
    """The arguments that tell a kernel of the image, its guide and the map."""
    return dict(
        guide_ptr=guide,
        image_ptr=image,
        **strides("guide", guide, "nyx"),
        **strides("image", image, "ncyx"),
        C_IN=image.shape[1],
        TERMS=terms,
        OUTPUTS=grid.shape[1] // terms,
        LUMA=guide is None,
    )
