"""Reading a pixel's eight corners from the grid as it lies."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import coordinate, gather_weights, widen
from bilagrid.gpu._pixels import split_quad


@triton.jit
def grid_corners(
    guide,
    row,
    offs_x,
    top,
    left,
    scale_z,
    anchor_z,
    scale_y,
    anchor_y,
    scale_x,
    anchor_x,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    Gh,
    Gw,
    D: tl.constexpr,
    DZ: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Offsets in the grid and weights: the lowest corner, steps to its neighbours in y, x and z, weights in y and x, two weights in z."""
    y, y0, _y1 = coordinate(row + top, scale_y, anchor_y, Gh, ACC)
    x, x0, _x1 = coordinate(offs_x + left, scale_x, anchor_x, Gw, ACC)
    z, z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    lower, upper = gather_weights(guide, z, z0, D, DZ)
    corner = widen(y0, WIDE) * stride_grid_y + widen(x0, WIDE) * stride_grid_x + widen(z0, WIDE) * stride_grid_d
    # Where there is a neighbour, it is the next node: the node below is never the last.
    step_y = tl.where(Gh > 1, stride_grid_y, 0)
    step_x = tl.where(Gw > 1, stride_grid_x, 0)
    step_z = stride_grid_d if D > 1 else 0
    return corner, step_y, step_x, step_z, y - y0, x - x0, lower, upper


@triton.jit
def grid_planes(channel_ptr, corner, step_y, step_x, step_z, weight_y, weight_x, ACC: tl.constexpr):
    """One channel of the grid interpolated in y and x on the plane below the pixels and on the one above: two [BLOCK]."""
    w00 = (1.0 - weight_y) * (1.0 - weight_x)
    w01 = (1.0 - weight_y) * weight_x
    w10 = weight_y * (1.0 - weight_x)
    w11 = weight_y * weight_x
    below = plane(channel_ptr + corner, step_y, step_x, w00, w01, w10, w11, ACC)
    above = plane(channel_ptr + corner + step_z, step_y, step_x, w00, w01, w10, w11, ACC)
    return below, above


@triton.jit
def plane(corner_ptr, step_y, step_x, w00, w01, w10, w11, ACC: tl.constexpr):
    """Four corners that share z, weighted."""
    value = tl.load(corner_ptr).to(ACC) * w00
    value = tl.fma(tl.load(corner_ptr + step_x).to(ACC), w01, value)
    value = tl.fma(tl.load(corner_ptr + step_y).to(ACC), w10, value)
    return tl.fma(tl.load(corner_ptr + step_y + step_x).to(ACC), w11, value)


def packed(grid: torch.Tensor) -> bool:
    """Whether the two or four channels of a node, and the planes of a column, lie side by side, so that `packed_planes` can read them."""
    channels = grid.shape[1]
    others = (grid.stride(0), grid.stride(3), grid.stride(4))
    together = grid.stride()[1:3] == (1, channels) and not any(step % channels for step in others)
    return channels in (2, 4) and together


@triton.jit
def packed_planes(grid_ptr, first, corner, step_y, step_x, weight_y, weight_x, C: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """All channels of a `packed` grid interpolated in y and x on the plane below the pixels and on the one above: two [BLOCK, C].

    ``first`` is the image's offset in the grid. A load takes all channels of a node.
    """
    w00 = ((1.0 - weight_y) * (1.0 - weight_x))[:, None]
    w01 = ((1.0 - weight_y) * weight_x)[:, None]
    w10 = (weight_y * (1.0 - weight_x))[:, None]
    w11 = (weight_y * weight_x)[:, None]
    node_ptr = grid_ptr + tl.multiple_of(first + corner, C)[:, None] + tl.arange(0, C)[None, :]
    # `tl.multiple_of` a step would be forgotten on the way to the load.
    step_y = step_y // C * C
    step_x = step_x // C * C
    below = plane(node_ptr, step_y, step_x, w00, w01, w10, w11, ACC)
    above = plane(node_ptr + (C if D > 1 else 0), step_y, step_x, w00, w01, w10, w11, ACC)
    return below, above


@triton.jit
def unpack(value):
    """Two or four channels, [BLOCK, C], as four [BLOCK] of which the last is the last: two are repeated."""
    if value.shape[1] == 2:
        a, b = tl.split(value)
        return a, b, a, b
    else:
        return split_quad(value)
