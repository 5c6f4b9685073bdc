"""`blur` in Triton: the grid convolved with a Gaussian, an axis at a time."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import constant as constant_of
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, compute_dtype, constant, launch, needs_int64, strides, triton_dtype

# An element or two a thread: neighbours read the same elements, from the cache.
BLUR_CONFIGS = [triton.Config({"BLOCK": 256}, num_warps=4), triton.Config({"BLOCK": 128}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _blur_kernel(
    grid_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    N,
    Gh,
    Gw,
    radius,
    taps_exponent,
    taps_scale,
    C: tl.constexpr,
    D: tl.constexpr,
    AXIS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK nodes: out[k] = sum_t taps_scale exp(taps_exponent t²) grid[k + t] over |t| <= radius along AXIS, zero outside.

    grid (N, C, D, Gh, Gw), out the same, contiguous; AXIS 0, 1, 2 is z, y, x.
    """
    exponent = constant_of(taps_exponent, ACC)
    scale = constant_of(taps_scale, ACC)
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    x = offs % Gw
    y = offs // Gw % Gh
    d = offs // Gw // Gh % D
    c = offs // Gw // Gh // D % C
    n = offs // Gw // Gh // D // C
    mask = n < N
    grid_ptr += n * stride_grid_n + c * stride_grid_c + d * stride_grid_d + y * stride_grid_y + x * stride_grid_x
    if AXIS == 0:
        k, nodes, stride = d, D, stride_grid_d
    elif AXIS == 1:
        k, nodes, stride = y, Gh, stride_grid_y
    else:
        k, nodes, stride = x, Gw, stride_grid_x
    acc = tl.zeros([BLOCK], ACC)
    for step in range(2 * radius + 1):
        t = step - radius
        inside = mask & (k + t >= 0) & (k + t < nodes)
        value = tl.load(grid_ptr + widen(t, WIDE) * stride, mask=inside, other=0.0).to(ACC)
        distance = t.to(ACC)
        acc = tl.fma(value, scale * tl.exp(exponent * (distance * distance)), acc)
    tl.store(out_ptr + offs, acc, mask=mask)


def blur(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """The grid convolved with Gaussians of ``sigma`` nodes along (z, y, x): contiguous, of the grid's dtype, accumulated in float32 or float64.

    Taps exp(-k² / 2 sigma²) for |k| <= ceil(3 sigma), summing to 1; zero outside the grid; 0 leaves an axis alone.
    """
    dtype = compute_dtype(grid)
    axes = [axis for axis in range(3) if sigma[axis] > 0]
    if not axes:
        return grid.clone(memory_format=torch.contiguous_format)
    batch, channels, depth, rows, columns = grid.shape
    count = grid.numel()
    source = grid
    for axis in axes:
        out = torch.empty(grid.shape, dtype=grid.dtype if axis == axes[-1] else dtype, device=grid.device)
        # Taps farther than the axis is long meet only zeros, but count in the sum that makes them 1.
        radius = math.ceil(3 * sigma[axis])
        exponent = -0.5 / sigma[axis] ** 2
        total = math.fsum(math.exp(exponent * k * k) for k in range(-radius, radius + 1))
        launch(
            _blur_kernel,
            lambda meta: triton.cdiv(count, meta["BLOCK"]),
            BLUR_CONFIGS,
            grid,
            grid_ptr=source,
            out_ptr=out,
            **strides("grid", source, "ncdyx"),
            N=batch,
            Gh=rows,
            Gw=columns,
            radius=min(radius, grid.shape[2 + axis] - 1),
            taps_exponent=constant(exponent, dtype),
            taps_scale=constant(1 / total, dtype),
            C=channels,
            D=depth,
            AXIS=axis,
            ACC=triton_dtype(dtype),
            WIDE=needs_int64(source, out),
        )
        source = out
    return source
