"""`blur` in Triton: the grid convolved with a Gaussian along each axis. Small grids take one launch, larger ones a launch an axis."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import constant as constant_of
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, cdiv, compute_dtype, constant, launch, needs_int64, strides, triton_dtype
from bilagrid.ops._memory import empty_grid_as

# Nodes of a channel, at most, that one program blurs along all axes: its values stay in the cache of the program's multiprocessor.
_REACH = 4096

# Nodes that follow one another along the axis lie far apart from this many elements on.
_FAR = 64

# Eight nodes a thread share the taps. A taller tile reads fewer nodes twice, a wider one reads longer pieces of memory; 16 nodes a thread share more.
AXIS_CONFIGS = [
    triton.Config({"ROWS": 16, "COLUMNS": 64}, num_warps=4),
    triton.Config({"ROWS": 8, "COLUMNS": 128}, num_warps=4),
    triton.Config({"ROWS": 16, "COLUMNS": 64}, num_warps=2),
]

# A program has a multiprocessor for itself where the grid has few channels, so it brings many warps.
VOLUME_CONFIGS = [triton.Config({"BLOCK": 1024}, num_warps=8), triton.Config({"BLOCK": 1024}, num_warps=16)]


@triton.jit
def _convolve(node_ptr, stride, k, nodes, radius, taps_exponent, taps_scale, mask, ACC: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """sum_t taps_scale exp(taps_exponent t²) node[k + t] over |t| <= radius and 0 <= k + t < nodes, with node k at ``node_ptr``; 0 where not mask."""
    k = tl.where(mask, k, -nodes).to(tl.int32)
    exponent = constant_of(taps_exponent, ACC)
    scale = constant_of(taps_scale, ACC)
    acc = tl.zeros(mask.shape, ACC)
    for step in range(2 * radius + 1):
        t = step - radius
        inside = (k + t).to(tl.uint32) < nodes.to(tl.uint32)
        value = tl.load(node_ptr + widen(t, WIDE) * stride, mask=inside, other=0.0).to(ACC)
        distance = t.to(ACC)
        acc = tl.fma(value, scale * tl.exp(exponent * (distance * distance)), acc)
    return acc


@triton.jit(do_not_specialize=RUNTIME)
def _blur_axis_kernel(
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
    TILED: tl.constexpr,
    ALIKE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A program owns ROWS * COLUMNS nodes: out = grid convolved along one axis, that of the index k and of ``nodes`` nodes, zero outside.

    They follow one another in memory; where the axis is slow, so that this would read every node for each tap anew, they are a tile (TILED): ROWS
    nodes along the axis, COLUMNS that lie side by side.

    The five axes are numbered as out, which has no gaps, lies in memory, the fastest last, so that an index of a node is its offset; so it is in grid
    where the two lie ALIKE.
    """
    pid = tl.program_id(0)
    if TILED:
        blocks = tl.cdiv(stride_out_k, COLUMNS)
        strips = tl.cdiv(nodes, ROWS)
        side = pid % blocks * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        k = pid // blocks % strips * ROWS + tl.arange(0, ROWS)[:, None]
        outer = widen(pid // (blocks * strips), WIDE)
        offs = (outer * nodes + k) * stride_out_k + side
        mask = (side < stride_out_k) & (k < nodes)
    else:
        offs = tl.max_contiguous(widen(pid, WIDE) * (ROWS * COLUMNS) + tl.arange(0, ROWS * COLUMNS), 1)
        k = offs // stride_out_k % nodes
        mask = offs < count
    if ALIKE:
        node_ptr = grid_ptr + offs
    else:
        node_ptr = grid_ptr + offs % size_4 * stride_grid_4
        node_ptr += offs // size_4 % size_3 * stride_grid_3
        node_ptr += offs // size_4 // size_3 % size_2 * stride_grid_2
        node_ptr += offs // size_4 // size_3 // size_2 % size_1 * stride_grid_1
        node_ptr += offs // size_4 // size_3 // size_2 // size_1 * stride_grid_0
    acc = _convolve(node_ptr, stride_grid_k, k, nodes, radius, taps_exponent, taps_scale, mask, ACC, WIDE)
    tl.store(out_ptr + offs, acc, mask=mask)


@triton.jit
def _locate(offs, Gh, Gw):
    """Indices (z, y, x) of nodes of a channel, counted in order."""
    return offs // (Gh * Gw), offs // Gw % Gh, offs % Gw


@triton.jit(do_not_specialize=[*RUNTIME, "C", "D"])
def _blur_volume_kernel(
    grid_ptr,
    scratch_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    stride_out_n,
    stride_out_c,
    stride_out_d,
    stride_out_y,
    stride_out_x,
    C,
    D,
    Gh,
    Gw,
    radius_z,
    radius_y,
    radius_x,
    taps_exponent_z,
    taps_exponent_y,
    taps_exponent_x,
    taps_scale_z,
    taps_scale_y,
    taps_scale_x,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns a channel of one grid, and convolves it along z, then y, then x, BLOCK nodes at a time.

    grid and out (N, C, D, Gh, Gw), scratch (N * C, 2, D * Gh * Gw): the channel after the first axis, and after the second. A program's threads meet at a
    barrier before they read what others of them wrote.
    """
    pid = tl.program_id(0)
    n = widen(pid // C, WIDE)
    c = widen(pid % C, WIDE)
    volume = D * Gh * Gw
    grid_ptr += n * stride_grid_n + c * stride_grid_c
    out_ptr += n * stride_out_n + c * stride_out_c
    along_z_ptr = scratch_ptr + widen(pid, WIDE) * (2 * volume)
    along_zy_ptr = along_z_ptr + volume
    for start in range(0, volume, BLOCK):
        offs = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
        mask = offs < volume
        z, y, x = _locate(offs, Gh, Gw)
        node_ptr = grid_ptr + widen(z, WIDE) * stride_grid_d + widen(y, WIDE) * stride_grid_y + widen(x, WIDE) * stride_grid_x  # fmt: skip
        value = _convolve(node_ptr, stride_grid_d, z, D, radius_z, taps_exponent_z, taps_scale_z, mask, ACC, WIDE)
        tl.store(along_z_ptr + offs, value, mask=mask)
    tl.debug_barrier()
    for start in range(0, volume, BLOCK):
        offs = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
        mask = offs < volume
        _z, y, _x = _locate(offs, Gh, Gw)
        value = _convolve(along_z_ptr + offs, Gw, y, Gh, radius_y, taps_exponent_y, taps_scale_y, mask, ACC, WIDE)
        tl.store(along_zy_ptr + offs, value, mask=mask)
    tl.debug_barrier()
    for start in range(0, volume, BLOCK):
        offs = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
        mask = offs < volume
        z, y, x = _locate(offs, Gh, Gw)
        value = _convolve(along_zy_ptr + offs, 1, x, Gw, radius_x, taps_exponent_x, taps_scale_x, mask, ACC, WIDE)
        offset = widen(z, WIDE) * stride_out_d + widen(y, WIDE) * stride_out_y + widen(x, WIDE) * stride_out_x
        tl.store(out_ptr + offset, value, mask=mask)


def blur(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """The grid convolved with Gaussians of ``sigma`` nodes along (z, y, x): of its layout and dtype, accumulated in float32 or float64.

    Taps exp(-k² / 2 sigma²) for |k| <= ceil(3 sigma), summing to 1; zero outside the grid; 0 leaves an axis alone. Both ways give the same bits.
    """
    axes = [axis for axis in range(3) if sigma[axis] > 0]
    if not axes:
        return empty_grid_as(grid).copy_(grid)
    if math.prod(grid.shape[2:]) <= _REACH:
        return _blur_volumes(grid, sigma)
    source = grid
    for axis in axes:
        dtype = grid.dtype if axis == axes[-1] else compute_dtype(grid)
        source = _blur_axis(source, axis, sigma[axis], empty_grid_as(grid, dtype))
    return source


def _blur_volumes(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """All axes in one launch."""
    batch, channels, *size = grid.shape
    dtype = compute_dtype(grid)
    out = empty_grid_as(grid)
    scratch = grid.new_empty((batch * channels, 2, math.prod(size)), dtype=dtype)
    taps: dict[str, Any] = {}
    for name, s, nodes in zip("zyx", sigma, size, strict=True):
        taps |= {f"{key}_{name}": value for key, value in _taps(s, nodes, dtype).items()}
    launch(
        _blur_volume_kernel,
        batch * channels,
        VOLUME_CONFIGS,
        grid,
        grid_ptr=grid,
        scratch_ptr=scratch,
        out_ptr=out,
        **strides("grid", grid, "ncdyx"),
        **strides("out", out, "ncdyx"),
        C=channels,
        D=size[0],
        Gh=size[1],
        Gw=size[2],
        **taps,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, scratch, out),
    )
    return out


def _blur_axis(grid: torch.Tensor, axis: int, sigma: float, out: torch.Tensor) -> torch.Tensor:
    """One axis of three, into ``out``."""
    dtype = compute_dtype(grid)
    count, nodes = grid.numel(), grid.shape[2 + axis]
    order = sorted(range(5), key=out.stride, reverse=True)
    step = max(out.stride(2 + axis), 1)
    tiled = nodes > 1 and step >= _FAR

    def programs(meta: dict[str, int]) -> int:
        if not tiled:
            return cdiv(count, meta["ROWS"] * meta["COLUMNS"])
        return count // (nodes * step) * cdiv(nodes, meta["ROWS"]) * cdiv(step, meta["COLUMNS"])

    launch(
        _blur_axis_kernel,
        programs,
        AXIS_CONFIGS,
        grid,
        grid_ptr=grid,
        out_ptr=out,
        **{f"stride_grid_{i}": grid.stride(order[i]) for i in range(5)},
        stride_grid_k=grid.stride(2 + axis),
        stride_out_k=step,
        **{f"size_{i}": grid.shape[order[i]] for i in range(1, 5)},
        nodes=nodes,
        count=count,
        **_taps(sigma, nodes, dtype),
        TILED=tiled,
        ALIKE=grid.stride() == out.stride(),
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, out),
    )
    return out


def _taps(sigma: float, nodes: int, dtype: torch.dtype) -> dict[str, Any]:
    """The Gaussian of an axis, as the kernels take it: taps farther than the axis is long meet only zeros, but count in the sum that makes them 1."""
    radius = math.ceil(3 * sigma)
    exponent = -0.5 / sigma**2 if sigma > 0 else 0.0
    total = math.fsum(math.exp(exponent * k * k) for k in range(-radius, radius + 1))
    return {
        "radius": min(radius, nodes - 1),
        "taps_exponent": constant(exponent, dtype),
        "taps_scale": constant(1 / total, dtype),
    }
