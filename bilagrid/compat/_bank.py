"""A module that holds a colour grid for every photograph: what those of gsplat, nerfstudio and fused-bilagrid have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bilagrid._numbers import integer
from bilagrid.compat._maps import index_vector
from bilagrid.ops import _checks
from bilagrid.ops._backend import has_values
from bilagrid.ops._bank import choose_
from bilagrid.ops._index import check_range
from bilagrid.ops._vmap import is_mapped
from bilagrid.ops.total_variation import total_variation


def total_variation_loss(x: Tensor, index: Tensor | int | None = None, *, sparse: bool = False) -> Tensor:
    """The mean squared difference of neighbours, summed over all axes but the first two::

        sum over axes of mean((x[.., k + 1, ..] - x[.., k, ..])²)

    Args:
        x: ``(B, C, ...)``, such as grids ``(B, 12, D, Gh, Gw)``.
        index: integers ``(N,)``, the rows of x to average over, each as often as it is named; None for all. Where a training step draws N of M photographs at
            random, give those: the loss is on average that over all of them, and costs N / M as much.
        sparse: whether the gradient by grids ``(B, C, D, Gh, Gw)`` is a sparse tensor of the chosen rows alone.

    Returns:
        A scalar. An axis of one node adds 0.

    Raises:
        TypeError: a dtype that is not floating, or an index that is not of integers.
        ValueError: fewer than two dimensions, an empty one other than the first, or an index of another shape.
        IndexError: an index out of range, on the CPU.

    Gradients: to x, of any order in reverse mode. Deterministic.

    Source: Wang et al., "Bilateral guided radiance field processing", SIGGRAPH 2024.

    Example:
        >>> total_variation_loss(torch.arange(4.0).view(2, 1, 1, 2), torch.tensor([1]))
        tensor(1.)
    """
    _checks.tensors(x=x)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (B, C, ...) with all but B at least 1, got {tuple(x.shape)}")
    _checks.flag("sparse", sparse)
    rows = None if index is None else index_vector("index", index, x)
    if x.ndim == 5:
        return total_variation(x, rows, sparse=sparse and rows is not None)
    x = x if rows is None else x[rows]
    if x.ndim < 5:
        return total_variation(x.reshape(*x.shape[:2], *(1,) * (5 - x.ndim), *x.shape[2:]))
    means = (x.diff(dim=axis).square().mean() for axis in range(2, x.ndim) if x.shape[axis] > 1)
    return sum(means, start=x.new_zeros(()))


class GridBank(nn.Module):
    """A colour grid for every photograph, each the identity at first; `bilagrid.compat.gsplat.BilateralGrid` documents its arguments."""

    def __init__(self, num: int, grid_X: int, grid_Y: int, grid_W: int, *, gauge: bool, sparse: bool) -> None:
        super().__init__()
        for name, extent in (("num", num), ("grid_X", grid_X), ("grid_Y", grid_Y), ("grid_W", grid_W)):
            if integer(name, extent, "an integer") < 1:
                raise ValueError(f"{name} must be at least 1, got {extent}")
        _checks.flag("gauge", gauge)
        _checks.flag("sparse", sparse)
        if gauge and sparse:
            raise ValueError(
                "gauge must be False where sparse is True: the mean has a gradient by every grid; call center_() in its place"
            )
        self.grid_width, self.grid_height, self.grid_guidance = grid_X, grid_Y, grid_W
        self.gauge, self.sparse = gauge, sparse
        self.grids = nn.Parameter(_identity().repeat(num, 1, grid_W, grid_Y, grid_X))

    def effective_grids(self, idx: Tensor | int | None = None) -> Tensor:
        """The grids that slicing reads, ``(N, 12, D, Gh, Gw)``: the parameter's, with ``gauge`` less the mean of all, plus the identity.

        Args:
            idx: which grids, an integer or integers ``(N,)``; None for all.
        """
        chosen = self.grids if idx is None else _chosen(self.grids, index_vector("idx", idx, self.grids))
        return chosen - _drift(self.grids) if self.gauge else chosen

    def mean_grid(self) -> Tensor:
        """The mean of the effective grids, ``(1, 12, D, Gh, Gw)``: how the photographs differ from the scene on average. Without drift it is the identity."""
        return self.effective_grids().mean(0, keepdim=True)

    @torch.no_grad()
    def center_(self) -> GridBank:
        """Makes the mean grid the identity, in place. Call it after the optimizer's steps, all or some of them, or before saving.

        With ``gauge`` this does not change what slicing gives, and afterwards the parameter holds the effective grids.
        """
        self.grids.sub_(_drift(self.grids))
        return self

    def tv_loss(self, idx: Tensor | int | None = None) -> Tensor:
        """`total_variation_loss` of the effective grids, or of those that ``idx`` chooses, an integer or integers ``(N,)``."""
        if self.gauge:
            return total_variation_loss(self.effective_grids(idx))
        rows = None if idx is None else index_vector("idx", idx, self.grids)
        return total_variation_loss(self.grids, rows, sparse=self.sparse)

    def extra_repr(self) -> str:
        sizes = (
            f"{self.grids.shape[0]}, grid_X={self.grid_width}, grid_Y={self.grid_height}, grid_W={self.grid_guidance}"
        )
        return sizes + "".join(f", {name}=True" for name in ("gauge", "sparse") if getattr(self, name))

    def _read(
        self, read: Callable[..., Tensor], grids: Tensor, xy: Tensor | None, rgb: Tensor, index: Tensor | None
    ) -> Tensor:
        """``read`` of the effective grids, those of ``grids``: the parameter, or what stands in for it."""
        if not self.gauge:
            return read(grids, xy, rgb, index, sparse=self.sparse and index is not None)
        if index is None:
            return read(grids - _drift(grids), xy, rgb, None)
        rows = torch.arange(index.shape[0], device=index.device)
        return read(_chosen(grids, index) - _drift(grids), xy, rgb, rows)


def _chosen(grids: Tensor, index: Tensor) -> Tensor:
    """The grids that an index names, refused on the CPU where it is out of range; elsewhere such a grid is NaN, as in the operators."""
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and has_values(index) and not is_mapped(index):
        check_range(index, grids.shape[0])
    return choose_(grids, index)


def _drift(grids: Tensor) -> Tensor:
    return grids.mean(0, keepdim=True) - _identity(grids.dtype, grids.device)


def _identity(dtype: torch.dtype | None = None, device: torch.device | None = None) -> Tensor:
    return torch.eye(3, 4, dtype=dtype, device=device).view(1, 12, 1, 1, 1)
