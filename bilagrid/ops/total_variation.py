"""Total variation: how far neighbouring nodes of a grid differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _checks
from bilagrid.ops._function import Function
from bilagrid.ops._register import raw_operator


def total_variation(grid: Tensor) -> Tensor:
    """The mean squared difference of neighbouring nodes along z, plus that along y, plus that along x::

        sum over axes of mean((grid[.., k + 1, ..] - grid[.., k, ..])²)

    each mean over batch, channels and all neighbours; an axis of one node adds 0, and so does an empty batch.

    Args:
        grid: ``(N, C, D, Gh, Gw)``, any floating type and strides.

    Returns:
        A scalar in the grid's dtype, accumulated in float32 (float64 for float64).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a grid of another rank.

    Gradients: to grid, of any order in reverse mode. Deterministic.

    Source: the regulariser of Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024, averaged over all grids.

    Example:
        >>> total_variation(torch.arange(8.0).view(1, 1, 2, 2, 2))
        tensor(21.)
    """
    _checks.tensors(grid=grid)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    return _TotalVariation.apply(grid)


def _fake_total_variation(grid: Tensor) -> Tensor:
    return grid.new_empty(())


def _fake_total_variation_bwd(grid: Tensor) -> Tensor:
    return grid.new_empty(grid.shape)


def _vmap_total_variation(info: Any, in_dims: tuple[Any, ...], grid: Tensor) -> tuple[Tensor, int]:
    """One sum a grid: the mean runs over the batch, so the mapped dimension cannot join it."""
    return torch.stack([_raw_total_variation(one) for one in grid.unbind(in_dims[0])]), 0


def _vmap_total_variation_bwd(info: Any, in_dims: tuple[Any, ...], grid: Tensor) -> tuple[Tensor, int]:
    folded = _raw_total_variation_bwd(grid.movedim(in_dims[0], 0).flatten(0, 1))
    return info.batch_size * folded.unflatten(0, (info.batch_size, -1)), 0


_raw_total_variation = raw_operator(
    "total_variation", "total_variation(Tensor grid) -> Tensor", _fake_total_variation, vmap=_vmap_total_variation
)
_raw_total_variation_bwd = raw_operator(
    "total_variation",
    "total_variation_bwd(Tensor grid) -> Tensor",
    _fake_total_variation_bwd,
    vmap=_vmap_total_variation_bwd,
)


class _TotalVariation(Function):
    @staticmethod
    def forward(grid: Tensor) -> Tensor:
        return _raw_total_variation(grid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * _TotalVariationBwd.apply(*ctx.saved_tensors)


class _TotalVariationBwd(Function):
    """The gradient of total variation: linear in the grid and symmetric, so its own adjoint."""

    @staticmethod
    def forward(grid: Tensor) -> Tensor:
        return _raw_total_variation_bwd(grid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _TotalVariationBwd.apply(grad)
