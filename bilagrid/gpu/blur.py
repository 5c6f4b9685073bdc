"""`blur` in Triton: the grid convolved with a Gaussian along each axis. Small grids take one launch, larger ones two: a pair of axes, then the third."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._gaussian import convolve, taps, tuple_of_taps
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, cdiv, launch, needs_int64, strides, triton_dtype
from bilagrid.ops._dtypes import compute_type
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

# A pair of axes has so many taps to each side, at most: they and the sums along one axis stay in registers.
_NEAR = 8

# Longer strips read fewer rows twice, shorter ones and smaller blocks make more programs.
PAIR_CONFIGS = [
    triton.Config({"STRIP": 32, "BLOCK": 256}, num_warps=4),
    triton.Config({"STRIP": 16, "BLOCK": 128}, num_warps=4),
    triton.Config({"STRIP": 64, "BLOCK": 512}, num_warps=4),
]

# A program has a multiprocessor for itself where the grid has few channels, so it brings many warps.
VOLUME_CONFIGS = [triton.Config({"BLOCK": 1024}, num_warps=8), triton.Config({"BLOCK": 1024}, num_warps=16)]


@triton.jit
def _node(
    grid_ptr, offs, stride_grid_0, stride_grid_1, stride_grid_2, stride_grid_3, stride_grid_4, size_1, size_2, size_3, size_4,
    ALIKE: tl.constexpr,
):  # fmt: skip
    """Where the nodes lie in the grid that lie at ``offs`` in the output, whose axes are numbered as they lie in memory, the fastest last."""
    if ALIKE:
        return grid_ptr + offs
    else:
        node_ptr = grid_ptr + offs % size_4 * stride_grid_4
        node_ptr += offs // size_4 % size_3 * stride_grid_3
        node_ptr += offs // size_4 // size_3 % size_2 * stride_grid_2
        node_ptr += offs // size_4 // size_3 // size_2 % size_1 * stride_grid_1
        node_ptr += offs // size_4 // size_3 // size_2 // size_1 * stride_grid_0
        return node_ptr


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
    node_ptr = _node(
        grid_ptr, offs, stride_grid_0, stride_grid_1, stride_grid_2, stride_grid_3, stride_grid_4, size_1, size_2, size_3, size_4,
        ALIKE,
    )  # fmt: skip
    acc = convolve(node_ptr, stride_grid_k, k, nodes, radius, taps_exponent, taps_scale, mask, ACC, WIDE)
    tl.store(out_ptr + offs, acc, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _blur_pair_kernel(
    grid_ptr,
    out_ptr,
    stride_grid_0,
    stride_grid_1,
    stride_grid_2,
    stride_grid_3,
    stride_grid_4,
    stride_grid_k,
    stride_grid_m,
    stride_out_k,
    stride_out_m,
    size_1,
    size_2,
    size_3,
    size_4,
    nodes,
    nodes_m,
    taps_exponent,
    taps_scale,
    taps_exponent_m,
    taps_scale_m,
    RADIUS_K: tl.constexpr,
    RADIUS_M: tl.constexpr,
    ALIKE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    STRIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK nodes that follow one another in memory, at STRIP places along a slower axis, that of the index m and of ``nodes_m`` nodes.

    It marches along that axis. What it reads there it convolves along the axis of the index k, and adds that, weighted, to the sums of the RADIUS_M places
    before and after, which it holds until they are whole: out = grid convolved along k, then along m, zero outside.

    The five axes are numbered as in `_blur_axis_kernel`.
    """
    pid = tl.program_id(0)
    blocks = tl.cdiv(stride_out_m, BLOCK)
    strips = tl.cdiv(nodes_m, STRIP)
    side = tl.max_contiguous(pid % blocks * BLOCK + tl.arange(0, BLOCK), 1)
    first = pid // blocks % strips * STRIP
    last = tl.minimum(first + STRIP, nodes_m)
    offs = widen(pid // (blocks * strips), WIDE) * nodes_m * stride_out_m + side
    mask = side < stride_out_m
    k = side // stride_out_k % nodes
    node_ptr = _node(
        grid_ptr, offs, stride_grid_0, stride_grid_1, stride_grid_2, stride_grid_3, stride_grid_4, size_1, size_2, size_3, size_4,
        ALIKE,
    )  # fmt: skip
    taps_k = tuple_of_taps(RADIUS_K, taps_exponent, taps_scale, ACC)
    taps_m = tuple_of_taps(RADIUS_M, taps_exponent_m, taps_scale_m, ACC)
    # Beyond a border in the block's last nodes too, so that nothing is read there.
    k = tl.where(mask, k, -nodes).to(tl.int32)
    sums = (tl.zeros([BLOCK], ACC),) * (2 * RADIUS_M)
    for m in range(tl.maximum(first - RADIUS_M, 0), last + RADIUS_M):
        place_ptr = node_ptr + widen(m, WIDE) * stride_grid_m
        value = tl.zeros([BLOCK], ACC)
        for t in tl.static_range(-RADIUS_K, RADIUS_K + 1):
            inside = ((k + t).to(tl.uint32) < nodes.to(tl.uint32)) & (m < nodes_m)
            node = tl.load(place_ptr + widen(t, WIDE) * stride_grid_k, mask=inside, other=0.0).to(ACC)
            value = tl.fma(node, taps_k[RADIUS_K + t], value)
        row = m - RADIUS_M
        whole = tl.fma(value, taps_m[0], sums[0])
        tl.store(out_ptr + offs + widen(row, WIDE) * stride_out_m, whole, mask=mask & (row >= first))
        later = ()
        for step in tl.static_range(1, 2 * RADIUS_M):
            later = later + (tl.fma(value, taps_m[step], sums[step]),)  # type: ignore[assignment]
        sums = later + (value * taps_m[0],)


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
        value = convolve(node_ptr, stride_grid_d, z, D, radius_z, taps_exponent_z, taps_scale_z, mask, ACC, WIDE)
        tl.store(along_z_ptr + offs, value, mask=mask)
    tl.debug_barrier()
    for start in range(0, volume, BLOCK):
        offs = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
        mask = offs < volume
        _z, y, _x = _locate(offs, Gh, Gw)
        value = convolve(along_z_ptr + offs, Gw, y, Gh, radius_y, taps_exponent_y, taps_scale_y, mask, ACC, WIDE)
        tl.store(along_zy_ptr + offs, value, mask=mask)
    tl.debug_barrier()
    for start in range(0, volume, BLOCK):
        offs = tl.max_contiguous(start + tl.arange(0, BLOCK), 1)
        mask = offs < volume
        z, y, x = _locate(offs, Gh, Gw)
        value = convolve(along_zy_ptr + offs, 1, x, Gw, radius_x, taps_exponent_x, taps_scale_x, mask, ACC, WIDE)
        offset = widen(z, WIDE) * stride_out_d + widen(y, WIDE) * stride_out_y + widen(x, WIDE) * stride_out_x
        tl.store(out_ptr + offset, value, mask=mask)


def blur(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """The grid convolved with Gaussians of ``sigma`` nodes along (z, y, x): of its layout and dtype, accumulated in float32 or float64.

    Taps exp(-k² / 2 sigma²) for |k| <= ceil(3 sigma), summing to 1; zero outside the grid; 0 leaves an axis alone.
    """
    axes = [axis for axis in range(3) if sigma[axis] > 0]
    if axes and math.prod(grid.shape[2:]) <= _REACH:
        return _blur_volumes(grid, sigma)
    out = empty_grid_as(grid)
    if not axes:
        return out.copy_(grid)
    launches = _launches(out, axes, sigma)
    source = grid
    for axis, march in launches:
        target = out if axis == launches[-1][0] else empty_grid_as(grid, compute_type(grid))
        if march is None:
            _blur_axis(source, axis, sigma, target)
        else:
            _blur_pair(source, axis, march, sigma, target)
        source = target
    return out


def _launches(
    out: torch.Tensor, axes: Sequence[int], sigma: tuple[float, float, float]
) -> list[tuple[int, int | None]]:
    """The axis that each launch convolves along, and one that it marches along too, if any: the slowest."""
    slowest, *others = sorted(axes, key=lambda axis: -out.stride(2 + axis))
    first, *last = sorted(others) or [slowest]
    radii = [taps(sigma[axis], out.shape[2 + axis], out.dtype)["radius"] for axis in (first, slowest)]
    if first == slowest or out.stride(2 + slowest) < _FAR or not all(1 <= radius <= _NEAR for radius in radii):
        return [(axis, None) for axis in axes]
    return [(first, slowest), *((axis, None) for axis in last)]


def _blur_volumes(grid: torch.Tensor, sigma: tuple[float, float, float]) -> torch.Tensor:
    """All axes in one launch."""
    batch, channels, *size = grid.shape
    dtype = compute_type(grid)
    out = empty_grid_as(grid)
    scratch = grid.new_empty((batch * channels, 2, math.prod(size)), dtype=dtype)
    gaussians: dict[str, Any] = {}
    for name, s, nodes in zip("zyx", sigma, size, strict=True):
        gaussians |= {f"{key}_{name}": value for key, value in taps(s, nodes, dtype).items()}
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
        **gaussians,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, scratch, out),
    )
    return out


def _blur_pair(grid: torch.Tensor, axis: int, march: int, sigma: tuple[float, float, float], out: torch.Tensor) -> None:
    """Two axes of three, into ``out``."""
    dtype = compute_type(grid)
    nodes_m, step = grid.shape[2 + march], out.stride(2 + march)
    along_k, along_m = taps(sigma[axis], grid.shape[2 + axis], dtype), taps(sigma[march], nodes_m, dtype)

    def programs(meta: dict[str, int]) -> int:
        return grid.numel() // (nodes_m * step) * cdiv(nodes_m, meta["STRIP"]) * cdiv(step, meta["BLOCK"])

    launch(
        _blur_pair_kernel,
        programs,
        PAIR_CONFIGS,
        grid,
        **_places(grid, axis, out),
        stride_grid_m=grid.stride(2 + march),
        stride_out_m=step,
        nodes_m=nodes_m,
        RADIUS_K=along_k.pop("radius"),
        RADIUS_M=along_m.pop("radius"),
        **along_k,
        **{f"{name}_m": value for name, value in along_m.items()},
    )


def _blur_axis(grid: torch.Tensor, axis: int, sigma: tuple[float, float, float], out: torch.Tensor) -> None:
    """One axis of three, into ``out``."""
    dtype = compute_type(grid)
    count, nodes = grid.numel(), grid.shape[2 + axis]
    places = _places(grid, axis, out)
    step = places["stride_out_k"]
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
        **places,
        count=count,
        **taps(sigma[axis], nodes, dtype),
        TILED=tiled,
    )


def _places(grid: torch.Tensor, axis: int, out: torch.Tensor) -> dict[str, Any]:
    """Where nodes lie, and which follow one another along the axis of the index k, as the kernels take it."""
    order = sorted(range(5), key=out.stride, reverse=True)
    return {
        "grid_ptr": grid,
        "out_ptr": out,
        **{f"stride_grid_{i}": grid.stride(order[i]) for i in range(5)},
        **{f"size_{i}": grid.shape[order[i]] for i in range(1, 5)},
        "stride_grid_k": grid.stride(2 + axis),
        "stride_out_k": max(out.stride(2 + axis), 1),
        "nodes": grid.shape[2 + axis],
        "ALIKE": grid.stride() == out.stride(),
        "ACC": triton_dtype(compute_type(grid)),
        "WIDE": needs_int64(grid, out),
    }
