"""Total variation: how far neighbouring nodes of a grid differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _checks, _index
from bilagrid.ops._bank import to_bank
from bilagrid.ops._function import Function
from bilagrid.ops._register import raw_operator
from bilagrid.ops._vmap import one_by_one


def total_variation(grid: Tensor, index: Tensor | None = None, *, sparse: bool = False) -> Tensor:
    """The mean squared difference of neighbouring nodes along z, plus that along y, plus that along x::

        sum over axes of mean((grid[.., k + 1, ..] - grid[.., k, ..])²)

    each mean over batch, channels and all neighbours; an axis of one node adds 0, and so does an empty batch.

    Args:
        grid: ``(N, C, D, Gh, Gw)``, any floating type and strides.
        index: ``(K,)``, int64 or int32: the grids to average over, which are not copied; one that is named several times counts as often. All by default.
        sparse: whether the gradient is a sparse COO tensor of the chosen grids alone, as `torch.nn.Embedding` gives. ``torch.compile`` breaks its graph
            there, and under ``torch.vmap`` it is refused.

    Returns:
        A scalar in the grid's dtype, accumulated in float32 (float64 for float64).

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: a grid of another rank, an index of another shape or device.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, the result is NaN; ``BILAGRID_DEBUG=1`` in the
            environment raises there too.

    Gradients: to grid, of any order in reverse mode. Deterministic.

    Source: the regulariser of Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024, averaged over all grids.

    Example:
        >>> total_variation(torch.arange(8.0).view(1, 1, 2, 2, 2))
        tensor(21.)
    """
    _checks.tensors(grid=grid)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    if index is not None:
        _index.check_index(index, grid, "grid")
        if index.ndim != 1:
            raise ValueError(f"index must have shape (K,), got {tuple(index.shape)}")
        _index.check_bank(grid, index)
        index = index.long()
    _checks.sparse(sparse, index)
    return _TotalVariation.apply(grid, index, sparse)


def _fake_total_variation(grid: Tensor, index: Tensor | None) -> Tensor:
    return grid.new_empty(())


def _fake_total_variation_bwd(grid: Tensor, index: Tensor | None) -> Tensor:
    return grid.new_empty(grid.shape if index is None else (index.shape[0], *grid.shape[1:]))


def _vmap(name: str) -> Any:
    """A call for each item: the mean runs over the batch, so the mapped dimension cannot join it."""

    def rule(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Tensor, int]:
        operator = getattr(torch.ops.bilagrid, name).default
        return torch.stack([operator(*one) for one in one_by_one(info.batch_size, in_dims, given)]), 0

    return rule


_raw_total_variation = raw_operator(
    "total_variation",
    "total_variation(Tensor grid, Tensor? index) -> Tensor",
    _fake_total_variation,
    vmap=_vmap("total_variation"),
)
_raw_total_variation_bwd = raw_operator(
    "total_variation",
    "total_variation_bwd(Tensor grid, Tensor? index) -> Tensor",
    _fake_total_variation_bwd,
    vmap=_vmap("total_variation_bwd"),
)


class _TotalVariation(Function):
    @staticmethod
    def forward(grid: Tensor, index: Tensor | None, sparse: bool) -> Tensor:
        return _raw_total_variation(grid, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, index, ctx.sparse = inputs
        ctx.save_for_backward(grid, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, index = ctx.saved_tensors
        return to_bank(grad * _TotalVariationBwd.apply(grid, index), grid, index, sparse=ctx.sparse), None, None


class _TotalVariationBwd(Function):
    """The gradient of total variation by the chosen grids: linear in them and symmetric, so its own adjoint."""

    @staticmethod
    def forward(grid: Tensor, index: Tensor | None) -> Tensor:
        return _raw_total_variation_bwd(grid, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, index = ctx.saved_tensors
        return to_bank(_TotalVariationBwd.apply(grad, None), grid, index), None
