"""Slice: read a grid at every pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import bilagrid.ops.splat as adjoint
from bilagrid.lattice import Lattice
from bilagrid.ops import _checks, _index
from bilagrid.ops._bank import to_bank
from bilagrid.ops._dtypes import widened
from bilagrid.ops._function import Function
from bilagrid.ops._plain import once
from bilagrid.ops._register import LATTICE, Packed, pack, raw_operator, unpack


def slice(
    grid: Tensor,
    guide: Tensor,
    *,
    lattice: Lattice | None = None,
    index: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """Reads the grid at each pixel's place and guide value, by trilinear interpolation::

        out[n, c, p] = sum_k w_k(p) grid[n, c, k]          or with an index grid[index[n], c, k]

    with the tent weights ``w_k(p)`` of grid node ``k`` at pixel ``p``. Coordinates outside the grid saturate at its border.

    Args:
        grid: ``(N, C, D, Gh, Gw)``, any floating type and strides.
        guide: ``(N, H, W)``; under the default lattice 0 to 1 spans the grid. NaN gives NaN at that pixel only; infinite values saturate.
        lattice: where pixels land; `Lattice.cell_centered` by default.
        index: ``(N,)``, int64 or int32: the grid of each image in a bank ``(M, C, D, Gh, Gw)``, which is not copied.
        sparse: whether the gradient by a bank is a sparse COO tensor of the chosen grids alone, as `torch.nn.Embedding` gives. ``torch.compile`` breaks its
            graph there, and under ``torch.vmap`` it is refused.

    Returns:
        ``(N, C, H, W)``, contiguous, in the grid's dtype, computed in float32 (float64 where an argument is float64).

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes, devices or a lattice that do not fit.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, such an image is NaN and adds to no gradient;
            ``BILAGRID_DEBUG=1`` in the environment raises there too.

    Gradients: to grid (`splat` of the incoming gradient; images that share a grid are added up in their order) and to guide (0 where z <= 0 or z >= D - 1; at
    an interior integer that of the cell above), of any order in reverse mode. Deterministic, forward and backward.

    Source: Chen, Paris and Durand, "Real-time edge-aware image processing with the bilateral grid", SIGGRAPH 2007, section 3.

    Example:
        >>> grid = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 2, 4, 3, 3)
        >>> slice(grid, torch.full((1, 5, 7), 0.5))[0, :, 2, 2]
        tensor([1.5000, 1.5000])
    """
    lattice = _checked(grid, guide, lattice, index, sparse)
    return _Slice.apply(grid, guide, False, pack(lattice), None if index is None else index.long(), sparse)


@once
def _checked(grid: Tensor, guide: Tensor, lattice: Lattice | None, index: Tensor | None, sparse: bool) -> Lattice:
    """The lattice of arguments that fit each other."""
    _checks.tensors(grid=grid, guide=guide)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    _checks.rank("guide", guide, "(N, H, W)")
    if index is None:
        _checks.same("guide", guide, "(N, H, W)", (grid.shape[0], *guide.shape[1:]), "grid")
    _index.for_images(index, guide, "guide", grid)
    _checks.sparse(sparse, index)
    return _checks.lattice_for(lattice, grid.shape[2:], guide, what="grid")


def slice_(grid: Tensor, guide: Tensor, lattice: Lattice, dz: bool = False, index: Tensor | None = None) -> Tensor:
    """`slice` of checked arguments; with ``dz`` the weights are differentiated by the guide's grid coordinate."""
    return _Slice.apply(grid, guide, dz, pack(lattice), index, False)


def slice_normalized_(grid: Tensor, guide: Tensor, lattice: Lattice) -> Tensor:
    """The first C - 1 sliced channels divided by the last, its weight: the image ``(N, C - 1, H, W)`` of a grid as `splat_blurred_` makes it."""
    return _SliceNormalized.apply(grid, guide, pack(lattice))


def slice_bwd_guide_(
    grid: Tensor,
    guide: Tensor,
    values: Tensor,
    lattice: Lattice,
    homogeneous: bool = False,
    index: Tensor | None = None,
) -> Tensor:
    """The gradient by the guide that slice and splat share: ``scale_z sum_c values_c slice_dz(grid, guide)_c``, ``(N, H, W)``.

    With ``homogeneous`` the grid has one channel more than ``values``, whose value is 1.
    """
    return _SliceBwdGuide.apply(grid, guide, values, homogeneous, pack(lattice), index)


def _fake_slice(grid: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool, index: Tensor | None) -> Tensor:
    return grid.new_empty((guide.shape[0], grid.shape[1], *guide.shape[1:]))


def _fake_slice_normalized(grid: Tensor, guide: Tensor, lattice: Lattice) -> Tensor:
    return grid.new_empty((guide.shape[0], grid.shape[1] - 1, *guide.shape[1:]))


def _fake_slice_bwd_guide(
    grid: Tensor, guide: Tensor, values: Tensor, lattice: Lattice, *, homogeneous: bool, index: Tensor | None
) -> Tensor:
    return guide.new_empty(guide.shape)


_raw_slice = raw_operator(
    "slice", f"slice(Tensor grid, Tensor guide, {LATTICE}, bool dz, Tensor? index) -> Tensor", _fake_slice
)
_raw_slice_normalized = raw_operator(
    "slice", f"slice_normalized(Tensor grid, Tensor guide, {LATTICE}) -> Tensor", _fake_slice_normalized
)
_raw_slice_bwd_guide = raw_operator(
    "slice",
    f"slice_bwd_guide(Tensor grid, Tensor guide, Tensor values, {LATTICE}, bool homogeneous, Tensor? index) -> Tensor",
    _fake_slice_bwd_guide,
)


class _Slice(Function):
    @staticmethod
    def forward(grid: Tensor, guide: Tensor, dz: bool, lattice: Packed, index: Tensor | None, sparse: bool) -> Tensor:
        return _raw_slice(grid, guide, lattice, dz, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, guide, ctx.dz, ctx.lattice, index, ctx.sparse = inputs
        ctx.save_for_backward(grid, guide, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, guide, index = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grid)
        by_grid = by_guide = None
        if ctx.needs_input_grad[0]:
            by_grid = to_bank(adjoint.splat_(grad, guide, lattice, ctx.dz), grid, index, sparse=ctx.sparse)
        if ctx.needs_input_grad[1] and not ctx.dz:
            by_guide = slice_bwd_guide_(grid, guide, grad, lattice, index=index)
        return by_grid, by_guide, None, None, None, None


class _SliceNormalized(Function):
    @staticmethod
    def forward(grid: Tensor, guide: Tensor, lattice: Packed) -> Tensor:
        return _raw_slice_normalized(grid, guide, lattice)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, guide, ctx.lattice = inputs
        ctx.save_for_backward(grid, guide, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, guide, output = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grid)
        by_numerator = widened(grad) / slice_(widened(grid[:, -1:]), guide, lattice)
        by_sliced = torch.cat([by_numerator, -(by_numerator * output).sum(1, keepdim=True)], 1)
        by_grid = by_guide = None
        if ctx.needs_input_grad[0]:
            by_grid = adjoint.splat_(by_sliced, guide, lattice).to(grid.dtype)
        if ctx.needs_input_grad[1]:
            by_guide = slice_bwd_guide_(grid, guide, by_sliced, lattice)
        return by_grid, by_guide, None


class _SliceBwdGuide(Function):
    @staticmethod
    def forward(
        grid: Tensor, guide: Tensor, values: Tensor, homogeneous: bool, lattice: Packed, index: Tensor | None
    ) -> Tensor:
        return _raw_slice_bwd_guide(grid, guide, values, lattice, homogeneous, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, guide, values, ctx.homogeneous, ctx.lattice, index = inputs
        ctx.save_for_backward(grid, guide, values, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, guide, values, index = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grid)
        by_sum = (lattice.scale[0] * widened(grad)).unsqueeze(1)
        by_grid = by_values = None
        if ctx.needs_input_grad[0]:
            products = by_sum * values
            if ctx.homogeneous:
                products = torch.cat([products, by_sum], 1)
            by_grid = to_bank(adjoint.splat_(products, guide, lattice, True), grid, index)
        if ctx.needs_input_grad[2]:
            sliced = slice_(grid[:, : values.shape[1]], guide, lattice, True, index)
            by_values = (by_sum * sliced).to(values.dtype)
        return by_grid, None, by_values, None, None, None
