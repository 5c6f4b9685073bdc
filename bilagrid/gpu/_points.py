"""Where points lie in grids: what the kernels of `slice_points` share."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import clamp_to_cell, slope, widen
from bilagrid.gpu._index import check, in_range
from bilagrid.gpu._launch import cdiv, launch, needs_int64, strides, triton_dtype

# A point a thread, as pixels are in `slice`.
POINT_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=4), triton.Config({"BLOCK": 256}, num_warps=8)]


@triton.jit
def place_of(offs, H, W, WIDE: tl.constexpr):
    """Points counted in order as (n, i, j)."""
    return widen(offs // W // H, WIDE), widen(offs // W % H, WIDE), widen(offs % W, WIDE)


@triton.jit
def grid_of(index_ptr, n, i, j, stride_n, stride_y, stride_x, M, mask, INDEXED: tl.constexpr, WIDE: tl.constexpr):
    """The grid of some points, as the index says, else the image's own or the only one; and whether there is such a grid."""
    if INDEXED:
        m = tl.load(index_ptr + n * stride_n + i * stride_y + j * stride_x, mask=mask, other=0)
    else:
        m = tl.minimum(n, M - 1)
    return in_range(m, M, WIDE)


@triton.jit
def weights_along(point_ptr, stride_k, axis, nodes, mask, SLOPE: tl.constexpr, ACC: tl.constexpr):
    """Along an axis the node below some points, and the weights of it and of the node above, or their derivatives; NaN weights where the point is."""
    t = tl.load(point_ptr + axis * stride_k, mask=mask, other=0.0).to(ACC)
    clamped, below, _above = clamp_to_cell(tl.where(t == t, t, 0.0), nodes)
    upper = tl.where(t != t, float("nan"), slope(clamped, nodes) if SLOPE else clamped - below)
    lower = -upper if SLOPE else 1.0 - upper
    return below, lower, upper


def launch_points(
    kernel: Any,
    tensor: torch.Tensor,
    points: torch.Tensor,
    index: torch.Tensor | None,
    grids: int,
    size: torch.Size | list[int],
    dtype: torch.dtype,
    addressed: tuple[torch.Tensor | None, ...],
    *,
    wide: bool = False,
    **arguments: Any,
) -> None:
    """Launch ``kernel`` for every BLOCK of ``points``, of ``grids`` grids of ``size``; its configuration is chosen by ``tensor``'s dtype."""
    check(index, grids)
    count = points.shape[0] * points.shape[1] * points.shape[2]
    launch(
        kernel,
        lambda meta: cdiv(count, meta["BLOCK"]),
        POINT_CONFIGS,
        tensor,
        points_ptr=points,
        index_ptr=index,
        **strides("points", points, "nyxk"),
        **strides("index", index, "nyx"),
        **arguments,
        count=count,
        M=grids,
        H=points.shape[1],
        W=points.shape[2],
        D=size[0],
        Gh=size[1],
        Gw=size[2],
        INDEXED=index is not None,
        ACC=triton_dtype(dtype),
        WIDE=wide or needs_int64(*addressed) or count >= 2**30,
    )
