"""`total_variation` in Triton: the sum over the grid's axes of mean squared differences, and its gradient."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import constant as constant_of
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._index import bank_arguments, check, in_range
from bilagrid.gpu._launch import RUNTIME, cdiv, constant, launch, needs_int64, strides, triton_dtype
from bilagrid.ops._dtypes import compute_type

# BLOCK and the number of programs change the order of the sum, so they are not tuned.
SUM_CONFIGS = [triton.Config({"BLOCK": 512}, num_warps=4)]
TOTAL_CONFIGS = [triton.Config({"BLOCK": 512}, num_warps=4)]

# A node a thread: neighbours read the same nodes, from the cache.
GRADIENT_CONFIGS = [triton.Config({"BLOCK": 128}, num_warps=4), triton.Config({"BLOCK": 256}, num_warps=4)]

# Programs, at most, that share the nodes: enough for a large GPU, few enough for one program to add up.
_PROGRAMS = 1024


@triton.jit
def _locate(offs, Gh, Gw, C: tl.constexpr, D: tl.constexpr):
    """Indices (n, c, d, y, x) of nodes counted in order."""
    x = offs % Gw
    y = offs // Gw % Gh
    d = offs // Gw // Gh % D
    c = offs // Gw // Gh // D % C
    n = offs // Gw // Gh // D // C
    return n, c, d, y, x


@triton.jit
def _grid_of(index_ptr, n, M, mask, INDEXED: tl.constexpr, WIDE: tl.constexpr):
    """The grids of nodes, and whether there are such."""
    if INDEXED:
        m, valid = in_range(tl.load(index_ptr + n, mask=mask, other=0), M, WIDE)
        return m, valid
    else:
        return n, mask


@triton.jit
def _difference(node_ptr, value, stride, exists, ACC: tl.constexpr):
    """The next node less this one, 0 where there is none."""
    following = tl.load(node_ptr + stride, mask=exists, other=0.0).to(ACC)
    return tl.where(exists, following - value, 0.0)


@triton.jit(do_not_specialize=RUNTIME)
def _sum_differences_kernel(
    grid_ptr,
    index_ptr,
    partial_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    N,
    M,
    Gh,
    Gw,
    INDEXED: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns every num_programs-th block of nodes: partial[axis, program] = the sum of their squared differences to the next node.

    grid (N, C, D, Gh, Gw), or where INDEXED N times one of a bank of M, index[n]; partial (3, programs), the axes z, y, x.
    """
    pid = tl.program_id(0)
    programs = tl.num_programs(0)
    count = widen(N, WIDE) * C * D * Gh * Gw
    sum_z = tl.zeros([BLOCK], ACC)
    sum_y = tl.zeros([BLOCK], ACC)
    sum_x = tl.zeros([BLOCK], ACC)
    for start in range(widen(pid, WIDE) * BLOCK, count, widen(programs, WIDE) * BLOCK):
        offs = start + tl.arange(0, BLOCK)
        n, c, d, y, x = _locate(offs, Gh, Gw, C, D)
        mask = offs < count
        m, valid = _grid_of(index_ptr, n, M, mask, INDEXED, WIDE)
        node_ptr = grid_ptr + m * stride_grid_n + c * stride_grid_c
        node_ptr += d * stride_grid_d + y * stride_grid_y + x * stride_grid_x
        value = tl.load(node_ptr, mask=mask, other=0.0).to(ACC)
        if INDEXED:
            value = tl.where(valid, value, float("nan"))
        step_z = _difference(node_ptr, value, stride_grid_d, mask & (d + 1 < D), ACC)
        step_y = _difference(node_ptr, value, stride_grid_y, mask & (y + 1 < Gh), ACC)
        step_x = _difference(node_ptr, value, stride_grid_x, mask & (x + 1 < Gw), ACC)
        sum_z = tl.fma(step_z, step_z, sum_z)
        sum_y = tl.fma(step_y, step_y, sum_y)
        sum_x = tl.fma(step_x, step_x, sum_x)
    tl.store(partial_ptr + pid, tl.sum(sum_z, axis=0))
    tl.store(partial_ptr + programs + pid, tl.sum(sum_y, axis=0))
    tl.store(partial_ptr + 2 * programs + pid, tl.sum(sum_x, axis=0))


@triton.jit(do_not_specialize=[*RUNTIME, "parts", "weight_z", "weight_y", "weight_x"])
def _total_kernel(
    partial_ptr,
    out_ptr,
    parts,
    weight_z,
    weight_y,
    weight_x,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program: out = sum over axes of weight times the sum of the axis' partial sums. partial (3, parts), out a scalar."""
    sum_z = tl.zeros([BLOCK], ACC)
    sum_y = tl.zeros([BLOCK], ACC)
    sum_x = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        mask = offs < parts
        sum_z += tl.load(partial_ptr + offs, mask=mask, other=0.0)
        sum_y += tl.load(partial_ptr + parts + offs, mask=mask, other=0.0)
        sum_x += tl.load(partial_ptr + 2 * parts + offs, mask=mask, other=0.0)
    total = tl.sum(sum_z, axis=0) * constant_of(weight_z, ACC)
    total += tl.sum(sum_y, axis=0) * constant_of(weight_y, ACC)
    total += tl.sum(sum_x, axis=0) * constant_of(weight_x, ACC)
    tl.store(out_ptr, total)


@triton.jit(do_not_specialize=[*RUNTIME, "weight_z", "weight_y", "weight_x"])
def _total_variation_bwd_kernel(
    grid_ptr,
    index_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    N,
    M,
    Gh,
    Gw,
    weight_z,
    weight_y,
    weight_x,
    INDEXED: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK nodes: out[k] = sum over axes of 2 weight ((grid[k] - grid[k-1]) - (grid[k+1] - grid[k])), differences to outside being 0.

    grid (N, C, D, Gh, Gw), or where INDEXED N times one of a bank of M, index[n]; out (N, C, D, Gh, Gw), contiguous.
    """
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    n, c, d, y, x = _locate(offs, Gh, Gw, C, D)
    mask = n < N
    m, valid = _grid_of(index_ptr, n, M, mask, INDEXED, WIDE)
    node_ptr = grid_ptr + m * stride_grid_n + c * stride_grid_c
    node_ptr += d * stride_grid_d + y * stride_grid_y + x * stride_grid_x
    value = tl.load(node_ptr, mask=mask, other=0.0).to(ACC)
    if INDEXED:
        value = tl.where(valid, value, float("nan"))
    bend_z = _difference(node_ptr, value, -stride_grid_d, mask & (d > 0), ACC)
    bend_z += _difference(node_ptr, value, stride_grid_d, mask & (d + 1 < D), ACC)
    bend_y = _difference(node_ptr, value, -stride_grid_y, mask & (y > 0), ACC)
    bend_y += _difference(node_ptr, value, stride_grid_y, mask & (y + 1 < Gh), ACC)
    bend_x = _difference(node_ptr, value, -stride_grid_x, mask & (x > 0), ACC)
    bend_x += _difference(node_ptr, value, stride_grid_x, mask & (x + 1 < Gw), ACC)
    gradient = bend_z * constant_of(weight_z, ACC)
    gradient += bend_y * constant_of(weight_y, ACC)
    gradient += bend_x * constant_of(weight_x, ACC)
    tl.store(out_ptr + offs, gradient * -2.0, mask=mask)


def total_variation(grid: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """The sum over the axes z, y, x of the mean of (difference)² over batch, or ``index``, channels and differences: 0-dim, of the grid's dtype."""
    batch, count = _extent(grid, index)
    if count == 0:
        return torch.zeros((), dtype=grid.dtype, device=grid.device)
    check(index, grid.shape[0])
    out = torch.empty((), dtype=grid.dtype, device=grid.device)
    dtype = compute_type(grid)
    programs = min(cdiv(count, SUM_CONFIGS[0].kwargs["BLOCK"]), _PROGRAMS)
    partial = torch.empty((3, programs), dtype=dtype, device=grid.device)
    _, channels, depth, rows, columns = grid.shape
    launch(
        _sum_differences_kernel,
        programs,
        SUM_CONFIGS,
        grid,
        grid_ptr=grid,
        partial_ptr=partial,
        **bank_arguments(grid, index),
        **strides("grid", grid, "ncdyx"),
        N=batch,
        Gh=rows,
        Gw=columns,
        C=channels,
        D=depth,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid) or count >= 2**30,
    )
    launch(
        _total_kernel,
        1,
        TOTAL_CONFIGS,
        grid,
        partial_ptr=partial,
        out_ptr=out,
        parts=programs,
        **_weights(grid, count, dtype),
        ACC=triton_dtype(dtype),
    )
    return out


def total_variation_bwd(grid: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """The gradient of `total_variation` by the grids, or by those of ``index``: (N, C, D, Gh, Gw), contiguous, of the grid's dtype."""
    batch, count = _extent(grid, index)
    out = torch.empty((batch, *grid.shape[1:]), dtype=grid.dtype, device=grid.device)
    if count == 0:
        return out
    check(index, grid.shape[0])
    dtype = compute_type(grid)
    _, channels, depth, rows, columns = grid.shape
    launch(
        _total_variation_bwd_kernel,
        lambda meta: cdiv(count, meta["BLOCK"]),
        GRADIENT_CONFIGS,
        grid,
        grid_ptr=grid,
        out_ptr=out,
        **bank_arguments(grid, index),
        **strides("grid", grid, "ncdyx"),
        N=batch,
        Gh=rows,
        Gw=columns,
        **_weights(grid, count, dtype),
        C=channels,
        D=depth,
        ACC=triton_dtype(dtype),
        WIDE=needs_int64(grid, out),
    )
    return out


def _extent(grid: torch.Tensor, index: torch.Tensor | None) -> tuple[int, int]:
    """How many grids are averaged over, and their nodes with channels."""
    batch = grid.shape[0] if index is None else index.shape[0]
    return batch, batch * math.prod(grid.shape[1:])


def _weights(grid: torch.Tensor, count: int, dtype: torch.dtype) -> dict[str, float | int]:
    """One over the number of differences along each axis; 0 where there is none."""
    counts = [count // nodes * (nodes - 1) for nodes in grid.shape[2:]]
    names = ("weight_z", "weight_y", "weight_x")
    return {name: constant(1 / count if count else 0.0, dtype) for name, count in zip(names, counts, strict=True)}
