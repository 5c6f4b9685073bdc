"""`slice_points` in Triton: grids read at points, and the gradients of that by points and by grids."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from bilagrid.gpu._corners import plane
from bilagrid.gpu._gather import join_quad
from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import RUNTIME, strides
from bilagrid.gpu._points import grid_of, launch_points, place_of, weights_along
from bilagrid.gpu._points_reduction import reduce_points
from bilagrid.ops._dtypes import compute_type


@triton.jit
def _steps(stride_d, stride_y, stride_x, D, Gh, Gw):
    """From a node to the next along z, y and x, where there is one: the node below a point is never the last."""
    return tl.where(D > 1, stride_d, 0), tl.where(Gh > 1, stride_y, 0), tl.where(Gw > 1, stride_x, 0)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_points_kernel(
    grid_ptr,
    points_ptr,
    index_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    stride_points_n,
    stride_points_y,
    stride_points_x,
    stride_points_k,
    stride_index_n,
    stride_index_y,
    stride_index_x,
    count,
    M,
    H,
    W,
    D,
    Gh,
    Gw,
    C: tl.constexpr,
    BY: tl.constexpr,
    INDEXED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK points: out[p, c] = sum_x,y,z w_x w_y w_z grid[index[p], c, z, y, x], weights being derivatives along the axes that BY has.

    grid (M, C, D, Gh, Gw), points (N, H, W, 3), index (N, H, W), out (N, H, W, C), contiguous.
    """
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    n, i, j = place_of(offs, H, W, WIDE)
    m, valid = grid_of(index_ptr, n, i, j, stride_index_n, stride_index_y, stride_index_x, M, mask, INDEXED, WIDE)
    point_ptr = points_ptr + n * stride_points_n + i * stride_points_y + j * stride_points_x
    x, x0, x1 = weights_along(point_ptr, stride_points_k, 0, Gw, mask, BY & 1 != 0, ACC)
    y, y0, y1 = weights_along(point_ptr, stride_points_k, 1, Gh, mask, BY & 2 != 0, ACC)
    z, z0, z1 = weights_along(point_ptr, stride_points_k, 2, D, mask, BY & 4 != 0, ACC)
    z0 = tl.where(valid, z0, float("nan"))
    w00, w01, w10, w11 = y0 * x0, y0 * x1, y1 * x0, y1 * x1
    step_z, step_y, step_x = _steps(stride_grid_d, stride_grid_y, stride_grid_x, D, Gh, Gw)
    corner_ptr = grid_ptr + m * stride_grid_n
    corner_ptr += widen(z, WIDE) * stride_grid_d + widen(y, WIDE) * stride_grid_y + widen(x, WIDE) * stride_grid_x
    offs_c = tl.arange(0, 4)[None, :]
    for quad in range((C + 3) // 4):
        a = _value(corner_ptr, quad * 4, stride_grid_c, step_z, step_y, step_x, w00, w01, w10, w11, z0, z1, C, ACC, WIDE)  # fmt: skip
        b = _value(corner_ptr, quad * 4 + 1, stride_grid_c, step_z, step_y, step_x, w00, w01, w10, w11, z0, z1, C, ACC, WIDE)  # fmt: skip
        c = _value(corner_ptr, quad * 4 + 2, stride_grid_c, step_z, step_y, step_x, w00, w01, w10, w11, z0, z1, C, ACC, WIDE)  # fmt: skip
        d = _value(corner_ptr, quad * 4 + 3, stride_grid_c, step_z, step_y, step_x, w00, w01, w10, w11, z0, z1, C, ACC, WIDE)  # fmt: skip
        target = out_ptr + offs[:, None] * C + (quad * 4 + offs_c)
        tl.store(target, join_quad(a, b, c, d), mask=mask[:, None] & (quad * 4 + offs_c < C))


@triton.jit
def _value(corner_ptr, c, stride_c, step_z, step_y, step_x, w00, w01, w10, w11, z0, z1, C: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """Channel c at some points, or the last channel where c is beyond it."""
    channel_ptr = corner_ptr + widen(tl.minimum(c, C - 1), WIDE) * stride_c
    below = plane(channel_ptr, step_y, step_x, w00, w01, w10, w11, ACC)
    above = plane(channel_ptr + step_z, step_y, step_x, w00, w01, w10, w11, ACC)
    return tl.fma(z1, above, z0 * below)


@triton.jit(do_not_specialize=RUNTIME)
def _slice_points_bwd_points_kernel(
    grid_ptr,
    points_ptr,
    index_ptr,
    values_ptr,
    out_ptr,
    stride_grid_n,
    stride_grid_c,
    stride_grid_d,
    stride_grid_y,
    stride_grid_x,
    stride_points_n,
    stride_points_y,
    stride_points_x,
    stride_points_k,
    stride_index_n,
    stride_index_y,
    stride_index_x,
    stride_values_n,
    stride_values_y,
    stride_values_x,
    stride_values_k,
    count,
    M,
    H,
    W,
    D,
    Gh,
    Gw,
    C: tl.constexpr,
    BY: tl.constexpr,
    INDEXED: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK points: out[p, axis] = sum_c values[p, c] sum_x,y,z dw/d(axis) grid[index[p], c, z, y, x], 0 along the axes that BY has.

    grid (M, C, D, Gh, Gw), points (N, H, W, 3), index (N, H, W), values (N, H, W, C), out (N, H, W, 3), contiguous. What the eight corners hold is
    weighted by the values first, and by the tents' products after.
    """
    offs = widen(tl.program_id(0), WIDE) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    n, i, j = place_of(offs, H, W, WIDE)
    m, valid = grid_of(index_ptr, n, i, j, stride_index_n, stride_index_y, stride_index_x, M, mask, INDEXED, WIDE)
    point_ptr = points_ptr + n * stride_points_n + i * stride_points_y + j * stride_points_x
    x, x0, x1 = weights_along(point_ptr, stride_points_k, 0, Gw, mask, BY & 1 != 0, ACC)
    y, y0, y1 = weights_along(point_ptr, stride_points_k, 1, Gh, mask, BY & 2 != 0, ACC)
    z, z0, z1 = weights_along(point_ptr, stride_points_k, 2, D, mask, BY & 4 != 0, ACC)
    step_z, step_y, step_x = _steps(stride_grid_d, stride_grid_y, stride_grid_x, D, Gh, Gw)
    corner_ptr = grid_ptr + m * stride_grid_n
    corner_ptr += widen(z, WIDE) * stride_grid_d + widen(y, WIDE) * stride_grid_y + widen(x, WIDE) * stride_grid_x
    values_ptr += n * stride_values_n + i * stride_values_y + j * stride_values_x
    s0 = tl.zeros([BLOCK], ACC)
    s1, s2, s3, s4, s5, s6, s7 = s0, s0, s0, s0, s0, s0, s0
    for c in range(C):
        value = tl.load(values_ptr + widen(c, WIDE) * stride_values_k, mask=mask, other=0.0).to(ACC)
        below_ptr = corner_ptr + widen(c, WIDE) * stride_grid_c
        above_ptr = below_ptr + step_z
        s0 = tl.fma(value, tl.load(below_ptr).to(ACC), s0)
        s1 = tl.fma(value, tl.load(below_ptr + step_x).to(ACC), s1)
        s2 = tl.fma(value, tl.load(below_ptr + step_y).to(ACC), s2)
        s3 = tl.fma(value, tl.load(below_ptr + step_y + step_x).to(ACC), s3)
        s4 = tl.fma(value, tl.load(above_ptr).to(ACC), s4)
        s5 = tl.fma(value, tl.load(above_ptr + step_x).to(ACC), s5)
        s6 = tl.fma(value, tl.load(above_ptr + step_y).to(ACC), s6)
        s7 = tl.fma(value, tl.load(above_ptr + step_y + step_x).to(ACC), s7)
    missing = tl.where(valid, 0.0, float("nan"))
    by_x, by_y, by_z = missing, missing, missing
    if BY & 1 == 0:
        _x, d0, d1 = weights_along(point_ptr, stride_points_k, 0, Gw, mask, True, ACC)
        by_x += z0 * _weigh(s0, s1, s2, s3, y0, y1, d0, d1) + z1 * _weigh(s4, s5, s6, s7, y0, y1, d0, d1)
    if BY & 2 == 0:
        _y, d0, d1 = weights_along(point_ptr, stride_points_k, 1, Gh, mask, True, ACC)
        by_y += z0 * _weigh(s0, s1, s2, s3, d0, d1, x0, x1) + z1 * _weigh(s4, s5, s6, s7, d0, d1, x0, x1)
    if BY & 4 == 0:
        _z, d0, d1 = weights_along(point_ptr, stride_points_k, 2, D, mask, True, ACC)
        by_z += d0 * _weigh(s0, s1, s2, s3, y0, y1, x0, x1) + d1 * _weigh(s4, s5, s6, s7, y0, y1, x0, x1)
    out_ptr += offs * 3
    tl.store(out_ptr, by_x, mask=mask)
    tl.store(out_ptr + 1, by_y, mask=mask)
    tl.store(out_ptr + 2, by_z, mask=mask)


@triton.jit
def _weigh(s00, s01, s10, s11, y0, y1, x0, x1):
    """Four corners that share z, by the weights along y and x."""
    return tl.fma(y1, tl.fma(x1, s11, x0 * s10), y0 * tl.fma(x1, s01, x0 * s00))


def slice_points(grid: torch.Tensor, points: torch.Tensor, index: torch.Tensor | None, derivative: int) -> torch.Tensor:
    """The grid of each point there, (N, H, W, C), contiguous, of the grid's dtype; weights differentiated by the coordinates of ``derivative``."""
    out = torch.empty((*points.shape[:3], grid.shape[1]), dtype=grid.dtype, device=grid.device)
    dtype = compute_type(grid, points)
    launch_points(
        _slice_points_kernel,
        grid,
        points,
        index,
        grid.shape[0],
        grid.shape[2:],
        dtype,
        (grid, points, index, out),
        grid_ptr=grid,
        out_ptr=out,
        **strides("grid", grid, "ncdyx"),
        C=grid.shape[1],
        BY=derivative,
    )
    return out


def slice_points_bwd_points(
    grid: torch.Tensor, points: torch.Tensor, index: torch.Tensor | None, values: torch.Tensor, derivative: int
) -> torch.Tensor:
    """The gradient of ``sum(values * slice_points(grid, points))`` by the points: (N, H, W, 3), contiguous, of their dtype."""
    out = torch.empty(points.shape, dtype=points.dtype, device=points.device)
    launch_points(
        _slice_points_bwd_points_kernel,
        grid,
        points,
        index,
        grid.shape[0],
        grid.shape[2:],
        compute_type(grid, points, values),
        (grid, points, index, values, out),
        grid_ptr=grid,
        values_ptr=values,
        out_ptr=out,
        **strides("grid", grid, "ncdyx"),
        **strides("values", values, "nyxk"),
        C=grid.shape[1],
        BY=derivative,
    )
    return out


def slice_points_bwd_grid(
    values: torch.Tensor, points: torch.Tensor, index: torch.Tensor | None, size: list[int], derivative: int
) -> torch.Tensor:
    """The adjoint of `slice_points` in its grids: (M, C, D, Gh, Gw) for ``size`` (M, D, Gh, Gw), float64 if ``values`` is, else float32."""
    return reduce_points(values, points, index, size, derivative)
