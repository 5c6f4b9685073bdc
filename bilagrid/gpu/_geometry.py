"""Where a pixel lands in the grid, in Triton: the one statement of it that every kernel shares."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def constant(value, ACC: tl.constexpr):
    """A number passed from Python, in the compute type: float64 comes as its bits."""
    if ACC == tl.float64:
        return value.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return value


@triton.jit
def widen(index, WIDE: tl.constexpr):
    """An index fit to be multiplied by a stride: int64 where an offset can pass 32 bits. A tensor, also of a loop's constant index."""
    if WIDE:
        return tl.zeros([], tl.int64) + index
    else:
        return tl.zeros([], tl.int32) + index


@triton.jit
def coordinate(position, scale, anchor, nodes, ACC: tl.constexpr):
    """``clamp(position * scale + anchor, 0, nodes - 1)`` and the nodes below and above it; 0 where position is NaN.

    The node below is at most ``nodes - 2``, so the coordinate less it is the weight of the node above, in [0, 1].
    """
    t = position.to(ACC) * constant(scale, ACC) + constant(anchor, ACC)
    if position.dtype.is_floating():
        t = tl.where(t == t, t, 0.0)
    return clamp_to_cell(t, nodes)


@triton.jit
def clamp_to_cell(t, nodes):
    """``t`` clamped to the grid, and the nodes below and above it."""
    t = tl.minimum(tl.maximum(t, 0.0), (nodes - 1) * 1.0)
    below = tl.minimum(tl.floor(t).to(tl.int32), tl.maximum(nodes - 2, 0))
    above = tl.minimum(below + 1, nodes - 1)
    return t, below, above


@triton.jit
def slope(t, nodes):
    """1 where the derivative along an axis may differ from 0, which is strictly inside the grid, else 0."""
    return tl.where((t > 0.0) & (t < nodes - 1), 1.0, 0.0).to(t.dtype)


@triton.jit
def guide_factor(guide, scale_z, anchor_z, D: tl.constexpr, ACC: tl.constexpr):
    """dz/dguide where the derivative by z may differ from 0, else 0; NaN where the guide is."""
    z, _z0, _z1 = coordinate(guide, scale_z, anchor_z, D, ACC)
    return tl.where(guide != guide, float("nan"), slope(z, D) * constant(scale_z, ACC))


@triton.jit
def gather_weights(guide, z, below, D: tl.constexpr, DZ: tl.constexpr):
    """The two weights along z of a pixel that reads the grid, or their derivatives by z; NaN where the guide is."""
    upper = tl.where(guide != guide, float("nan"), slope(z, D) if DZ else z - below)
    lower = -upper if DZ else 1.0 - upper
    return lower, upper


@triton.jit
def tent(t, node):
    """``max(0, 1 - |t - node|)``."""
    below_one = 1.0 - tl.abs(t - node)
    # In float32 a GPU adds and clamps to [0, 1] in one instruction.
    return tl.maximum(below_one, 0.0) if t.dtype == tl.float64 else tl.clamp(below_one, 0.0, 1.0)


@triton.jit
def tent_z(z, below, node, D: tl.constexpr, DZ: tl.constexpr):
    """The weight along z that a pixel at z has for ``node``, or its derivative by z."""
    if DZ:
        return tl.where(node == below + 1, slope(z, D), tl.where(node == below, -slope(z, D), 0.0))
    else:
        return tent(z, node)


@triton.jit
def luma_weight(channel: tl.constexpr, dtype: tl.constexpr):
    """BT.601's weight of red, green or blue, exact in ``dtype``: a bare Python float would be a float32."""
    if channel == 0:
        return tl.full([], 0.299, dtype)
    elif channel == 1:
        return tl.full([], 0.587, dtype)
    else:
        return tl.full([], 0.114, dtype)


@triton.jit
def luma(red, green, blue):
    """BT.601."""
    return luma_weight(0, red.dtype) * red + luma_weight(1, red.dtype) * green + luma_weight(2, red.dtype) * blue


@triton.jit
def pixel_range(lower, upper, per_node, anchor, origin, slack, nodes, size, ACC: tl.constexpr):
    """A half-open range of pixels that holds all those whose coordinate lies in [lower, upper].

    It may hold a few more, which `coordinate` tells apart. Pixels that saturate belong to the outermost nodes, so there the range reaches the border.
    ``per_node`` is pixels a node, and ``slack`` what rounding adds to the one pixel of it that is always allowed for.
    """
    first = tl.floor((lower.to(ACC) - constant(anchor, ACC)) * constant(per_node, ACC) - origin - slack)
    last = tl.floor((upper.to(ACC) - constant(anchor, ACC)) * constant(per_node, ACC) - origin + slack) + 2
    first = tl.where(lower <= 0, 0, tl.minimum(tl.maximum(first, 0.0), size * 1.0).to(tl.int32))
    last = tl.where(upper >= nodes - 1, size, tl.minimum(tl.maximum(last, 0.0), size * 1.0).to(tl.int32))
    return first, last


@triton.jit
def _any(mask):
    if mask.type.is_block():
        return tl.max(mask.to(tl.int32), axis=0) > 0
    else:
        return mask


@triton.jit
def first_pixel(cell, per_node, scale, anchor, origin, slack, nodes, size, ACC: tl.constexpr):
    """The first pixel along an axis that lies in ``cell`` or beyond; ``size`` where there is none. Exact, so that no two cells share a pixel."""
    cell = widen(cell, False)
    first, _last = pixel_range(cell, cell, per_node, anchor, origin, slack, nodes, size, ACC)
    _t, below, _above = coordinate(first + origin, scale, anchor, nodes, ACC)
    short = (below < cell) & (first < size)
    while _any(short):
        first += short.to(tl.int32)
        _t, below, _above = coordinate(first + origin, scale, anchor, nodes, ACC)
        short = (below < cell) & (first < size)
    return first


@triton.jit
def end_of_cell(cell, per_node, scale, anchor, origin, slack, nodes, size, ACC: tl.constexpr):
    """One past the last pixel along an axis that lies in ``cell``, a number and not a block; the last cell holds all that follow."""
    end = widen(size, False)
    if cell < nodes - 2:
        end = first_pixel(cell + 1, per_node, scale, anchor, origin, slack, nodes, size, ACC)
    return end
