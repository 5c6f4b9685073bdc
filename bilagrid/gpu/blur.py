"""`blur` in Triton: the grid convolved with a Gaussian, an axis at a time."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import constant as constant_of
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, compute_dtype, constant, launch, needs_int64, triton_dtype

# An element or two a thread: neighbours read the same elements, from the cache.
BLUR_CONFIGS = [triton.Config({"BLOCK": 256}, num_warps=4), triton.Config({"BLOCK": 128}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _blur_kernel(
    grid_ptr,
    out_ptr,
    stride_grid_0,
    stride_grid_1,
    stride_grid_2,
    stride_grid_3,
    stride_grid_4,
    stride_grid_k,
    stride_out_k,
    size_1,
    size_2,
    size_3,
    size_4,
    nodes,
    count,
    radius,
    taps_exponent,
    taps_scale,
    ALIKE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK nodes: out[k] = sum_t taps_scale exp(taps_exponent t²) grid[k + t] over |t| <= radius along one axis, zero outside.

    The five axes are numbered as out, which has no gaps, lies in memory, the fastest last, so that an index of a node is its offset; so it is in grid
    where the two lie ALIKE. The axis of the taps has the index k and ``nodes`` nodes.
    """
    exponent = constant_of(taps_exponent, ACC)
    scale = constant_of(taps_scale, ACC)
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    k = offs // stride_out_k % nodes
    if ALIKE:
        grid_ptr += offs
    else:
        grid_ptr += offs % size_4 * stride_grid_4
        grid_ptr += offs // size_4 % size_3 * stride_grid_3
        grid_ptr += offs // size_4 // size_3 % size_2 * stride_grid_2
        grid_ptr += offs // size_4 // size_3 // size_2 % size_1 * stride_grid_1
        grid_ptr += offs // size_4 // size_3 // size_2 // size_1 * stride_grid_0
    acc = tl.zeros([BLOCK], ACC)
    for step in range(2 * radius + 1):
        t = step - radius
        inside = mask & (k + t >= 0) & (k + t < nodes)
        value = tl.load(grid_ptr + widen(t, WIDE) * stride_grid_k, mask=inside, other=0.0).to(ACC)
        distance = t.to(ACC)
        acc = tl.fma(value, scale * tl.exp(exponent * (distance * distance)), acc)
    tl.store(out_ptr + offs, acc, mask=mask)


def blur(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """The grid convolved with Gaussians of ``sigma`` nodes along (z, y, x): of its layout and dtype, accumulated in float32 or float64.

    Taps exp(-k² / 2 sigma²) for |k| <= ceil(3 sigma), summing to 1; zero outside the grid; 0 leaves an axis alone.
    """
    dtype = compute_dtype(grid)
    axes = [axis for axis in range(3) if sigma[axis] > 0]
    if not axes:
        return grid.clone()
    count = grid.numel()
    source = grid
    for axis in axes:
        out = torch.empty_like(grid, dtype=grid.dtype if axis == axes[-1] else dtype)
        order = sorted(range(5), key=out.stride, reverse=True)
        # Taps farther than the axis is long meet only zeros, but count in the sum that makes them 1.
        radius = math.ceil(3 * sigma[axis])
        exponent = -0.5 / sigma[axis] ** 2
        total = math.fsum(math.exp(exponent * k * k) for k in range(-radius, radius + 1))
        nodes = grid.shape[2 + axis]
        launch(
            _blur_kernel,
            lambda meta: triton.cdiv(count, meta["BLOCK"]),
            BLUR_CONFIGS,
            grid,
            grid_ptr=source,
            out_ptr=out,
            **{f"stride_grid_{i}": source.stride(order[i]) for i in range(5)},
            stride_grid_k=source.stride(2 + axis),
            stride_out_k=max(out.stride(2 + axis), 1),
            **{f"size_{i}": grid.shape[order[i]] for i in range(1, 5)},
            nodes=nodes,
            count=count,
            radius=min(radius, nodes - 1),
            taps_exponent=constant(exponent, dtype),
            taps_scale=constant(1 / total, dtype),
            ALIKE=source.stride() == out.stride(),
            ACC=triton_dtype(dtype),
            WIDE=needs_int64(source, out),
        )
        source = out
    return source
