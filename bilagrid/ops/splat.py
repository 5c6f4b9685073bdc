"""Splat: gather an image into a grid; the adjoint of slice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Slice imports splat as splat does slice, since each is the other's gradient: by module, so that names are looked up when they are called.
import bilagrid.ops.slice as adjoint
from bilagrid.lattice import Lattice
from bilagrid.ops import _checks, _index
from bilagrid.ops._bank import raw_collect
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._function import Function
from bilagrid.ops._memory import empty_grid
from bilagrid.ops._plain import once
from bilagrid.ops._register import LATTICE, Packed, pack, raw_operator, unpack
from bilagrid.ops.blur import blur_


def splat(
    values: Tensor,
    guide: Tensor,
    size: tuple[int, int, int],
    *,
    lattice: Lattice | None = None,
    index: Tensor | None = None,
    count: int | None = None,
) -> Tensor:
    """Adds each pixel to the eight grid nodes around its place and guide value, by the weights with which `slice` would read them::

        grid[n, c, k] = sum_p w_k(p) values[n, c, p]

    with the tent weights ``w_k(p)`` of grid node ``k`` at pixel ``p``. So ``<splat(v, g), G> = <v, slice(G, g)>`` for all values v, guides g and grids G: splat
    and slice are adjoint, border included.

    Args:
        values: ``(N, C, H, W)``, any floating type and strides.
        guide: ``(N, H, W)``; under the default lattice 0 to 1 spans the grid. A pixel whose guide is NaN is left out, infinite values saturate.
        size: nodes ``(D, Gh, Gw)`` of the grid.
        lattice: where pixels land; `Lattice.cell_centered` by default.
        index: ``(N,)``, int64 or int32: the grid of a bank that each image is added to. Images of one grid are added up in their order.
        count: the number of grids in the bank, required with an index. Grids that no image is added to are 0.

    Returns:
        ``(N, C, D, Gh, Gw)``, or ``(count, C, D, Gh, Gw)`` with an index, contiguous: float64 for float64 values, else float32, since a float16 sum of ones
        overflows at 1080p. A value that is not finite makes the nodes around it, and on a GPU others of the same columns, not finite.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes, devices or a lattice that do not fit, or an index without a count.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, such an image is added to no grid and its
            gradients are NaN; ``BILAGRID_DEBUG=1`` in the environment raises there too.

    Gradients: to values (`slice` of the incoming gradient) and to guide, of any order in reverse mode. No atomics: the same bits on every run, for any
    number of threads and in any batch.

    Source: Chen, Paris and Durand, "Real-time edge-aware image processing with the bilateral grid", SIGGRAPH 2007, section 3, with tents instead of
    rounding.

    Example:
        >>> grid = splat(torch.ones(1, 1, 6, 8), torch.rand(1, 6, 8), (4, 2, 2))
        >>> grid.shape, round(grid.sum().item(), 3)
        (torch.Size([1, 1, 4, 2, 2]), 48.0)
    """
    lattice = _checked(values, guide, size, lattice, index, count)
    if index is None:
        return splat_(values, guide, lattice)
    return _SplatToBank.apply(values, guide, pack(lattice), index.long(), count)


@once
def _checked(
    values: Tensor,
    guide: Tensor,
    size: tuple[int, int, int],
    lattice: Lattice | None,
    index: Tensor | None,
    count: int | None,
) -> Lattice:
    """The lattice of arguments that fit each other."""
    _checks.tensors(values=values, guide=guide)
    _checks.rank("values", values, "(N, C, H, W)")
    _checks.same("guide", guide, "(N, H, W)", (values.shape[0], *values.shape[2:]), "values")
    if (index is None) != (count is None):
        raise ValueError("index and count go together: the grid of each image, and how many grids the bank has")
    if index is not None and count is not None:
        if not isinstance(count, (int, torch.SymInt)) or isinstance(count, bool) or count < 1:
            raise ValueError(f"count must be a whole number of grids, 1 or more, got {count!r}")
        _index.for_images(index, values, "values")
    return _checks.lattice_for(lattice, size, guide, what="size")


def splat_(values: Tensor, guide: Tensor, lattice: Lattice, dz: bool = False) -> Tensor:
    """`splat` of checked arguments; with ``dz`` the weights are differentiated by the guide's grid coordinate."""
    return _Splat.apply(values, guide, dz, pack(lattice))


def splat_blurred_(values: Tensor, guide: Tensor, lattice: Lattice, sigma: tuple[float, float, float]) -> Tensor:
    """``blur(splat([values, 1]), sigma)`` of checked arguments: what filters slice. The last channel, of ones, is never stored as an image.

    The grid is interleaved (`empty_grid`). It is one operator so that a splat that holds all planes of a node can blur along z before it writes them.
    """
    return _SplatBlurred.apply(values, guide, sigma, pack(lattice))


def _fake_splat(values: Tensor, guide: Tensor, lattice: Lattice, *, dz: bool) -> Tensor:
    return empty_grid(values, values.shape[1], lattice.size, compute_type(values), interleaved=False)


def _fake_splat_blurred(values: Tensor, guide: Tensor, sigma: list[float], lattice: Lattice) -> Tensor:
    return empty_grid(values, values.shape[1] + 1, lattice.size, compute_type(values), interleaved=True)


_raw_splat = raw_operator("splat", f"splat(Tensor values, Tensor guide, {LATTICE}, bool dz) -> Tensor", _fake_splat)
_raw_splat_blurred = raw_operator(
    "splat", f"splat_blurred(Tensor values, Tensor guide, float[] sigma, {LATTICE}) -> Tensor", _fake_splat_blurred
)


class _Splat(Function):
    @staticmethod
    def forward(values: Tensor, guide: Tensor, dz: bool, lattice: Packed) -> Tensor:
        return _raw_splat(values, guide, lattice, dz)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, guide, ctx.dz, ctx.lattice = inputs
        ctx.save_for_backward(values, guide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, guide = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grad)
        by_values = by_guide = None
        if ctx.needs_input_grad[0]:
            by_values = adjoint.slice_(grad, guide, lattice, ctx.dz).to(values.dtype)
        if ctx.needs_input_grad[1] and not ctx.dz:
            by_guide = adjoint.slice_bwd_guide_(grad, guide, values, lattice)
        return by_values, by_guide, None, None


class _SplatBlurred(Function):
    @staticmethod
    def forward(values: Tensor, guide: Tensor, sigma: tuple[float, float, float], lattice: Packed) -> Tensor:
        return _raw_splat_blurred(values, guide, sigma, lattice)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, guide, ctx.sigma, ctx.lattice = inputs
        ctx.save_for_backward(values, guide)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, guide = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grad)
        grad = blur_(grad, ctx.sigma)
        by_values = by_guide = None
        if ctx.needs_input_grad[0]:
            by_values = adjoint.slice_(grad[:, : values.shape[1]], guide, lattice).to(values.dtype)
        if ctx.needs_input_grad[1]:
            by_guide = adjoint.slice_bwd_guide_(grad, guide, values, lattice, homogeneous=True)
        return by_values, by_guide, None, None


class _SplatToBank(Function):
    """Each image splatted, and what goes to one grid added up."""

    @staticmethod
    def forward(values: Tensor, guide: Tensor, lattice: Packed, index: Tensor, count: int) -> Tensor:
        return raw_collect(_raw_splat(values, guide, lattice, False), index, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, guide, ctx.lattice, index, _ = inputs
        ctx.save_for_backward(values, guide, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, guide, index = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grad)
        by_values = by_guide = None
        if ctx.needs_input_grad[0]:
            by_values = adjoint.slice_(grad, guide, lattice, index=index).to(values.dtype)
        if ctx.needs_input_grad[1]:
            by_guide = adjoint.slice_bwd_guide_(grad, guide, values, lattice, index=index)
        return by_values, by_guide, None, None, None
