"""Slice at points: read grids at arbitrary places, such as the rays of many photographs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _checks, _index
from bilagrid.ops._bank import refuse_unless_sparse, to_bank
from bilagrid.ops._dtypes import compute_type, widened
from bilagrid.ops._function import Function
from bilagrid.ops._register import raw_operator
from bilagrid.ops._vmap import folded

# By which coordinates the tent weights are differentiated: the sum of the bits of x, y and z.
_AXES = (1, 2, 4)
_ALL = sum(_AXES)


def slice_points(grid: Tensor, points: Tensor, index: Tensor | None = None, *, sparse: bool = False) -> Tensor:
    """Reads a grid at points given in its own coordinates, by trilinear interpolation::

        out[p, c] = sum_k w_k(p) grid[index[p], c, k]

    with the tent weights ``w_k(p) = max(0, 1 - |x - k_x|) max(0, 1 - |y - k_y|) max(0, 1 - |z - k_z|)`` of grid node ``k``. Coordinates outside the grid
    saturate at its border.

    Args:
        grid: ``(N, C, D, Gh, Gw)``, any floating type and strides.
        points: ``(..., 3)``, each ``(x, y, z)`` in nodes: x from 0 to Gw - 1, y to Gh - 1, z to D - 1. NaN gives NaN at that point only; infinite values
            saturate.
        index: int64 or int32, the grid of each point. Its dimensions are the leading ones of ``points``, each of the same extent or 1; trailing ones may be
            left out. For points ``(R, 3)`` it is ``(R,)``; for points ``(B, H, W, 3)`` it is ``(B, H, W)``, ``(B, H)``, ``(B,)`` or ``()``. Without an index
            a single grid serves all points, and of several grids ``grid[n]`` serves ``points[n]``.
        sparse: whether the gradient by the grids is a sparse COO tensor of those that the index names, as `torch.nn.Embedding` gives; to find them the
            host waits for a GPU. ``torch.compile`` breaks its graph there, and under ``torch.vmap`` it is refused.

    Returns:
        ``(..., C)``, contiguous, in the grid's dtype, computed in float32 (float64 where an argument is float64).

    Raises:
        TypeError: a dtype that does not fit, or an argument of another kind.
        ValueError: shapes or devices that do not fit.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, such points are NaN and add to no gradient;
            ``BILAGRID_DEBUG=1`` in the environment raises there too.

    Gradients: to grid and to points, of any order in reverse mode. That by a coordinate is 0 outside the grid and on its border, and at an interior integer that
    of the cell above. Points that are NaN add nothing to the grid's. No atomics: the same bits on every run, for any number of threads.

    Source: the slicing of Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024, section 3.2, in the grid's own coordinates.

    Example:
        >>> grids = torch.tensor([1.0, 3.0, 10.0, 30.0]).view(2, 1, 1, 1, 2)  # two grids, each of two nodes along x
        >>> points = torch.tensor([[0.5, 0.0, 0.0], [0.25, 0.0, 0.0]])
        >>> slice_points(grids, points, torch.tensor([0, 1])).flatten()
        tensor([ 2., 15.])
    """
    _checks.tensors(grid=grid, points=points)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    if points.ndim < 1 or points.shape[-1] != 3:
        raise ValueError(f"points must have shape (..., 3), each (x, y, z), got {tuple(points.shape)}")
    leading, given = points.shape[:-1], index
    if index is None:
        if grid.shape[0] != 1:
            if points.ndim < 2 or leading[0] != grid.shape[0]:
                raise ValueError(
                    f"points must have shape (N, ..., 3) with N = {grid.shape[0]} to match grid, got {tuple(points.shape)}; "
                    "to choose a grid for each point pass index"
                )
            if points.ndim == 2:
                index = torch.arange(grid.shape[0], device=grid.device)
    else:
        _index.check_index(index, grid, "grid")
        fits = index.ndim <= len(leading) and all(
            a == b or a == 1 for a, b in zip(index.shape, leading[: index.ndim], strict=True)
        )
        if not fits:
            raise ValueError(
                f"index must have the dimensions of points, {tuple(leading)}, from the first on, or 1 in their place, got {tuple(index.shape)}"
            )
        _index.check_bank(grid, points)
        index = _index.along(index.long(), leading)
    _checks.sparse(sparse, given)
    if index is not None:
        index = _as_images(index, leading)
    out = _SlicePoints.apply(grid, _as_images(points, leading), index, 0, sparse)
    return out.reshape(*leading, grid.shape[1])


def slice_points_(grid: Tensor, points: Tensor, index: Tensor | None, derivative: int = 0) -> Tensor:
    """`slice_points` of checked arguments: points ``(N, H, W, 3)``, index ``(N, H, W)`` or None, values ``(N, H, W, C)``.

    ``derivative`` says by which coordinates the weights are differentiated, a sum of 1 for x, 2 for y and 4 for z.
    """
    return _SlicePoints.apply(grid, points, index, derivative, False)


def splat_points_(
    values: Tensor, points: Tensor, index: Tensor | None, size: tuple[int, int, int, int], derivative: int = 0
) -> Tensor:
    """The adjoint of `slice_points_` in its grid: values ``(N, H, W, C)`` gathered into grids ``(M, C, D, Gh, Gw)`` of ``size`` ``(M, D, Gh, Gw)``."""
    return _SplatPoints.apply(values, points, index, derivative, size)


def _as_images(tensor: Tensor, leading: tuple[int, ...]) -> Tensor:
    """The dimensions ``leading`` as three: ``(R,)`` becomes ``(1, 1, R)``, ``(B, R)`` ``(B, 1, R)``, and of more than three all but the first and last are joined."""
    rest = tensor.shape[len(leading) :]
    if len(leading) < 2:
        return tensor.reshape(1, 1, *(leading or (1,)), *rest)
    if len(leading) == 2:
        return tensor.unsqueeze(1)
    return tensor if len(leading) == 3 else tensor.flatten(1, len(leading) - 2)


def _fake_slice_points(grid: Tensor, points: Tensor, index: Tensor | None, derivative: int) -> Tensor:
    return grid.new_empty((*points.shape[:3], grid.shape[1]))


def _fake_slice_points_bwd_points(
    grid: Tensor, points: Tensor, index: Tensor | None, values: Tensor, derivative: int
) -> Tensor:
    return points.new_empty(points.shape)


def _fake_slice_points_bwd_grid(
    values: Tensor, points: Tensor, index: Tensor | None, size: list[int], derivative: int
) -> Tensor:
    return values.new_empty((size[0], values.shape[3], *size[1:]), dtype=compute_type(values))


def _fold_index(points: Tensor, index: Tensor | None, dim: int | None, batch: int, count: int, banks: bool) -> Tensor:
    """The index ``(B * N, H, W)`` of folded points: into one bank of ``count`` grids, or where ``banks`` into as many as are folded."""
    if index is None:
        images = points.shape[0] // batch
        own = torch.arange(images, device=points.device) * (count != 1)
        index, dim = own.view(images, 1, 1), None
    every = _index.folded(index, dim, batch, count if banks else None)
    return every.expand(-1, *points.shape[1:3])


def _vmap_read(operator: str) -> Any:
    """The rule of an operator ``(grid, points, index, ...)``: the points of all items in a row, and the grids too, or the same bank for all."""

    def rule(info: Any, in_dims: tuple[Any, ...], grid: Tensor, points: Tensor, index: Any, *rest: Any) -> Any:
        batch, mapped = info.batch_size, in_dims[0] is not None
        count = grid.movedim(in_dims[0], 0).shape[1] if mapped else grid.shape[0]
        points = folded(points, in_dims[1], batch)
        index = _fold_index(points, index, in_dims[2], batch, count, mapped)
        grid = folded(grid, in_dims[0], batch) if mapped else grid
        rest = tuple(
            folded(t, d, batch) if isinstance(t, Tensor) else t for t, d in zip(rest, in_dims[3:], strict=True)
        )
        out = getattr(torch.ops.bilagrid, operator).default(grid, points, index, *rest)
        return out.unflatten(0, (batch, -1)), 0

    return rule


def _vmap_bwd_grid(
    info: Any, in_dims: Any, values: Tensor, points: Tensor, index: Any, size: list[int], derivative: int
) -> Any:
    batch = info.batch_size
    points = folded(points, in_dims[1], batch)
    index = _fold_index(points, index, in_dims[2], batch, size[0], True)
    size = [batch * size[0], *size[1:]]
    out = _raw_slice_points_bwd_grid(folded(values, in_dims[0], batch), points, index, size, derivative)
    return out.unflatten(0, (batch, -1)), 0


_raw_slice_points = raw_operator(
    "slice_points",
    "slice_points(Tensor grid, Tensor points, Tensor? index, int derivative) -> Tensor",
    _fake_slice_points,
    vmap=_vmap_read("slice_points"),
)
_raw_slice_points_bwd_points = raw_operator(
    "slice_points",
    "slice_points_bwd_points(Tensor grid, Tensor points, Tensor? index, Tensor values, int derivative) -> Tensor",
    _fake_slice_points_bwd_points,
    vmap=_vmap_read("slice_points_bwd_points"),
)
_raw_slice_points_bwd_grid = raw_operator(
    "slice_points",
    "slice_points_bwd_grid(Tensor values, Tensor points, Tensor? index, SymInt[] size, int derivative) -> Tensor",
    _fake_slice_points_bwd_grid,
    vmap=_vmap_bwd_grid,
)


class _SlicePoints(Function):
    @staticmethod
    def forward(grid: Tensor, points: Tensor, index: Tensor | None, derivative: int, sparse: bool) -> Tensor:
        return _raw_slice_points(grid, points, index, derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, points, index, ctx.derivative, ctx.sparse = inputs
        ctx.save_for_backward(grid, points, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, points, index = ctx.saved_tensors
        by_grid = by_points = None
        if ctx.needs_input_grad[0] and ctx.sparse:
            refuse_unless_sparse(grad, index)
            used, place = torch.unique(index, return_inverse=True)
            parts = splat_points_(grad, points, place, (len(used), *_size(grid)[1:]), ctx.derivative)
            by_grid = to_bank(parts, grid, used, sparse=True)
        elif ctx.needs_input_grad[0]:
            by_grid = splat_points_(grad, points, index, _size(grid), ctx.derivative).to(grid.dtype)
        if ctx.needs_input_grad[1] and ctx.derivative != _ALL:
            by_points = _SlicePointsBwdPoints.apply(grid, points, index, grad, ctx.derivative)
        return by_grid, by_points, None, None, None


class _SplatPoints(Function):
    @staticmethod
    def forward(
        values: Tensor, points: Tensor, index: Tensor | None, derivative: int, size: tuple[int, int, int, int]
    ) -> Tensor:
        return _raw_slice_points_bwd_grid(values, points, index, size, derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, points, index, ctx.derivative, _ = inputs
        ctx.save_for_backward(values, points, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, points, index = ctx.saved_tensors
        by_values = by_points = None
        if ctx.needs_input_grad[0]:
            by_values = slice_points_(grad, points, index, ctx.derivative).to(values.dtype)
        if ctx.needs_input_grad[1] and ctx.derivative != _ALL:
            by_points = _SlicePointsBwdPoints.apply(grad, points, index, values, ctx.derivative)
        return by_values, by_points, None, None, None


class _SlicePointsBwdPoints(Function):
    """``sum_c values_c (d/dx, d/dy, d/dz) slice_points(grid)_c``; differentiated once more it falls back on the two above, a coordinate at a time."""

    @staticmethod
    def forward(grid: Tensor, points: Tensor, index: Tensor | None, values: Tensor, derivative: int) -> Tensor:
        return _raw_slice_points_bwd_points(grid, points, index, values, derivative)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, points, index, values, ctx.derivative = inputs
        ctx.save_for_backward(grid, points, index, values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, points, index, values = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        by_grid = by_points = by_values = None
        for axis, bit in enumerate(_AXES):
            derivative = ctx.derivative | bit
            if derivative == ctx.derivative:
                continue
            weight = widened(grad[..., axis : axis + 1])
            if wanted[0]:
                by_grid = _plus(by_grid, splat_points_(weight * values, points, index, _size(grid), derivative))
            if wanted[1] and derivative != _ALL:
                slopes = _SlicePointsBwdPoints.apply(grid, points, index, values, derivative)
                by_points = _plus(by_points, weight * slopes)
            if wanted[3]:
                by_values = _plus(by_values, weight * slice_points_(grid, points, index, derivative))
        given = ((by_grid, grid), (by_points, points), (by_values, values))
        by_grid, by_points, by_values = (None if by is None else by.to(t.dtype) for by, t in given)
        return by_grid, by_points, None, by_values, None


def _size(grid: Tensor) -> tuple[int, int, int, int]:
    return grid.shape[0], grid.shape[2], grid.shape[3], grid.shape[4]


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part
