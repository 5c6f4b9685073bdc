"""Slice-and-apply: slice affine colour maps from a grid and apply each to its pixel, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.lattice import Lattice
from bilagrid.ops import _checks, _index
from bilagrid.ops._bank import to_bank
from bilagrid.ops._dtypes import compute_type, widened
from bilagrid.ops._function import Function
from bilagrid.ops._luma import LUMA, luma
from bilagrid.ops._memory import empty_as
from bilagrid.ops._plain import once
from bilagrid.ops._register import LATTICE, Packed, pack, raw_operator, unpack
from bilagrid.ops.slice import slice_
from bilagrid.ops.splat import splat_


def slice_apply(
    grid: Tensor,
    guide: Tensor | None,
    image: Tensor,
    *,
    lattice: Lattice | None = None,
    offset: bool = True,
    index: Tensor | None = None,
    sparse: bool = False,
) -> Tensor:
    """Slices the coefficients of an affine map at each pixel and applies it, without storing the coefficients::

        out[n, o, p] = sum_i A_oi(p) image[n, i, p] + A_o,offset(p),   A = slice(grid, guide)

    Args:
        grid: ``(N, C_out * (C_in + 1), D, Gh, Gw)``, channel ``o * (C_in + 1) + i``, the offset last in each row; ``C_out * C_in`` without offset.
        guide: ``(N, H, W)``, or None for the BT.601 luma of a 3-channel image, computed in the kernel. Under the default lattice 0 to 1 spans the grid. NaN
            gives NaN at that pixel only; infinite values saturate.
        image: ``(N, C_in, H, W)``, any floating type and strides.
        lattice: where pixels land; `Lattice.cell_centered` by default.
        offset: whether each map has a constant term.
        index: ``(N,)``, int64 or int32: the grid of each image in a bank ``(M, C, D, Gh, Gw)``, which is not copied.
        sparse: whether the gradient by a bank is a sparse COO tensor of the chosen grids alone, as `torch.nn.Embedding` gives. ``torch.compile`` breaks its
            graph there, and under ``torch.vmap`` it is refused.

    Returns:
        ``(N, C_out, H, W)`` in the image's dtype, computed in float32 (float64 where an argument is float64). It keeps the image's strides: interleaved
        in, interleaved out.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes, devices or a lattice that do not fit, or no guide for an image of other than 3 channels.
        IndexError: an index out of range, on the CPU. On a GPU, where a check would make the host wait, such an image is NaN and adds to no gradient of
            the grid; ``BILAGRID_DEBUG=1`` in the environment raises there too.

    Gradients: to grid, guide (or through luma to image) and image, of any order in reverse mode. The second order stores the coefficients of every pixel, and
    copies the grids that an index chooses. Images that share a grid are added up in their order. Deterministic.

    Source: Gharbi et al., "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017, section 3.3.

    Example:
        >>> identity = torch.eye(3, 4).reshape(1, 12, 1, 1, 1).expand(1, 12, 8, 16, 16)
        >>> image = torch.rand(1, 3, 48, 64)
        >>> torch.testing.assert_close(slice_apply(identity, None, image), image)
    """
    lattice = _checked(grid, guide, image, lattice, offset, index, sparse)
    index = None if index is None else index.long()
    return _SliceApply.apply(grid, guide, image, offset, pack(lattice), index, sparse)


@once
def _checked(
    grid: Tensor,
    guide: Tensor | None,
    image: Tensor,
    lattice: Lattice | None,
    offset: bool,
    index: Tensor | None,
    sparse: bool,
) -> Lattice:
    """The lattice of arguments that fit each other."""
    _checks.tensors(grid=grid, image=image, optional=guide)
    _checks.flag("offset", offset)
    _checks.rank("grid", grid, "(N, C, D, Gh, Gw)")
    _checks.rank("image", image, "(N, C_in, H, W)")
    if guide is not None:
        _checks.same("guide", guide, "(N, H, W)", (image.shape[0], *image.shape[2:]), "image")
    elif image.shape[1] != 3:
        raise ValueError(f"image must have 3 channels for guide=None, the luma, got {image.shape[1]}; pass a guide")
    if index is None and grid.shape[0] != image.shape[0]:
        raise ValueError(
            f"grid must have the batch size of image, {image.shape[0]}, got {grid.shape[0]}; to choose grids pass index"
        )
    _index.for_images(index, image, "image", grid)
    _checks.sparse(sparse, index)
    terms = image.shape[1] + int(offset)
    if grid.shape[1] % terms:
        each = "C_in + 1" if offset else "C_in"
        raise ValueError(
            f"grid must have C_out * ({each}) channels, a multiple of {terms} for an image of {image.shape[1]}, got {grid.shape[1]}"
        )
    return _checks.lattice_for(lattice, grid.shape[2:], image, what="grid")


def slice_apply_bwd_grid_(guide: Tensor, image: Tensor, grad: Tensor, lattice: Lattice) -> Tensor:
    """The adjoint of `slice_apply` in its grid, offset included: ``splat(grad ⊗ [image; 1], guide)`` without the products, ``(N, C_out * (C_in + 1), ...)``."""
    return _SliceApplyBwdGrid.apply(guide, image, grad, True, pack(lattice))


def slice_apply_bwd_pixels_(
    grid: Tensor, guide: Tensor, image: Tensor, grad: Tensor, lattice: Lattice
) -> tuple[Tensor, Tensor]:
    """The gradients of ``sum(grad * slice_apply(grid, guide, image))`` by image and by guide."""
    return _SliceApplyBwdPixels.apply(grid, guide, image, grad, True, pack(lattice), None)


def _fake_slice_apply(
    grid: Tensor, guide: Tensor | None, image: Tensor, lattice: Lattice, *, offset: bool, index: Tensor | None
) -> Tensor:
    return empty_as(image, grid.shape[1] // (image.shape[1] + int(offset)))


def _fake_slice_apply_bwd_pixels(
    grid: Tensor,
    guide: Tensor | None,
    image: Tensor,
    grad_output: Tensor,
    lattice: Lattice,
    *,
    offset: bool,
    index: Tensor | None,
) -> list[Tensor]:
    grads = [torch.empty_like(image)]
    return grads if guide is None else [*grads, guide.new_empty(guide.shape)]


def _fake_slice_apply_bwd_grid(
    guide: Tensor | None, image: Tensor, grad_output: Tensor, lattice: Lattice, *, offset: bool
) -> Tensor:
    channels = grad_output.shape[1] * (image.shape[1] + int(offset))
    dtype = compute_type(guide, image, grad_output)
    return image.new_empty((image.shape[0], channels, *lattice.size), dtype=dtype)


_raw_slice_apply = raw_operator(
    "slice_apply",
    f"slice_apply(Tensor grid, Tensor? guide, Tensor image, {LATTICE}, bool offset, Tensor? index) -> Tensor",
    _fake_slice_apply,
)
_raw_slice_apply_bwd_pixels = raw_operator(
    "slice_apply",
    f"slice_apply_bwd_pixels(Tensor grid, Tensor? guide, Tensor image, Tensor grad_output, {LATTICE}, bool offset, Tensor? index) -> Tensor[]",
    _fake_slice_apply_bwd_pixels,
)
_raw_slice_apply_bwd_grid = raw_operator(
    "slice_apply",
    f"slice_apply_bwd_grid(Tensor? guide, Tensor image, Tensor grad_output, {LATTICE}, bool offset) -> Tensor",
    _fake_slice_apply_bwd_grid,
)


class _SliceApply(Function):
    @staticmethod
    def forward(
        grid: Tensor,
        guide: Tensor | None,
        image: Tensor,
        offset: bool,
        lattice: Packed,
        index: Tensor | None,
        sparse: bool,
    ) -> Tensor:
        return _raw_slice_apply(grid, guide, image, lattice, offset, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grid, guide, image, ctx.offset, ctx.lattice, index, ctx.sparse = inputs
        ctx.save_for_backward(grid, guide, image, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grid, guide, image, index = ctx.saved_tensors
        lattice = unpack(ctx.lattice, grid)
        by_grid = by_guide = by_image = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            by_image, *rest = _SliceApplyBwdPixels.apply(grid, guide, image, grad, ctx.offset, pack(lattice), index)
            by_guide = rest[0] if rest else None
        if ctx.needs_input_grad[0]:
            parts = _SliceApplyBwdGrid.apply(guide, image, grad, ctx.offset, pack(lattice))
            by_grid = to_bank(parts, grid, index, sparse=ctx.sparse)
        return by_grid, by_guide, by_image, None, None, None, None


class _SliceApplyBwdPixels(Function):
    """The gradients by image and guide; differentiated once more they fall back on slice and splat."""

    @staticmethod
    def forward(
        grid: Tensor,
        guide: Tensor | None,
        image: Tensor,
        grad_output: Tensor,
        offset: bool,
        lattice: Packed,
        index: Tensor | None,
    ) -> tuple[Tensor, ...]:
        return tuple(_raw_slice_apply_bwd_pixels(grid, guide, image, grad_output, lattice, offset, index))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        grid, guide, image, grad_output, ctx.offset, ctx.lattice, index = inputs
        ctx.save_for_backward(grid, guide, image, grad_output, index)

    @staticmethod
    def backward(ctx: Any, by_image: Tensor, *rest: Tensor) -> tuple[Any, ...]:
        """The gradients of ``sum_p grad^T (A u + scale_z v A' [image; 1])``, u and v the incoming gradients by image and guide, A' the slice with dw/dz."""
        *given, index = ctx.saved_tensors
        grid, image, grad, by_image = map(widened, (given[0], *given[2:], by_image))
        lattice = unpack(ctx.lattice, grid)
        fused = given[1] is None
        guide = luma(image) if fused else given[1]
        by_guide = luma(by_image) if fused else widened(rest[0])
        along = (by_guide * lattice.scale[0]).unsqueeze(1)
        direction = _terms(by_image, ctx.offset, 0)
        pixel = _terms(image, ctx.offset, 1)
        maps = _maps(slice_(grid, guide, lattice, False, index), pixel)
        slopes = _maps(slice_(grid, guide, lattice, True, index), pixel)
        grad_grad = (maps * direction).sum(2) + along * (slopes * pixel).sum(2)
        grad_grid = splat_(_products(grad, direction), guide, lattice)
        grad_grid = to_bank(grad_grid + splat_(along * _products(grad, pixel), guide, lattice, True), grid, index)
        pulled = (grad.unsqueeze(2) * slopes).sum(1)
        grad_image = along * pulled[:, : image.shape[1]]
        grad_guide = lattice.scale[0] * (pulled.unsqueeze(1) * direction).sum((1, 2))
        if fused:
            grad_image = grad_image + _by_luma(grad_guide)
        grads = (grad_grid, None if fused else grad_guide, grad_image, grad_grad)
        return (
            *(grad if grad is None else grad.to(t.dtype) for grad, t in zip(grads, given, strict=True)),
            None,
            None,
            None,
        )


class _SliceApplyBwdGrid(Function):
    """The gradient by grid, ``splat(grad ⊗ [image; 1], guide)``; differentiated once more it falls back on slice."""

    @staticmethod
    def forward(guide: Tensor | None, image: Tensor, grad_output: Tensor, offset: bool, lattice: Packed) -> Tensor:
        return _raw_slice_apply_bwd_grid(guide, image, grad_output, lattice, offset)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        guide, image, grad_output, ctx.offset, ctx.lattice = inputs
        ctx.save_for_backward(guide, image, grad_output)

    @staticmethod
    def backward(ctx: Any, by_grid: Tensor) -> tuple[Any, ...]:
        """``sum_p grad^T B [image; 1]``, B the slice of the incoming gradient, is a slice_apply whose output meets ``grad``."""
        guide, image, grad = ctx.saved_tensors
        lattice = unpack(ctx.lattice, by_grid)
        grad_grad = _SliceApply.apply(by_grid, guide, image, ctx.offset, pack(lattice), None, False)
        grad_image, *rest = _SliceApplyBwdPixels.apply(by_grid, guide, image, grad, ctx.offset, pack(lattice), None)
        by_guide = rest[0] if rest else None
        return by_guide, grad_image, grad_grad.to(grad.dtype), None, None


def _terms(image: Tensor, offset: bool, constant: int) -> Tensor:
    """``(N, 1, terms, H, W)``: the image's channels and, with an offset, a constant one."""
    if offset:
        image = torch.cat([image, torch.full_like(image[:, :1], constant)], 1)
    return image.unsqueeze(1)


def _maps(coefficients: Tensor, pixel: Tensor) -> Tensor:
    """Coefficients ``(N, C_out * terms, H, W)`` as maps ``(N, C_out, terms, H, W)``."""
    return coefficients.unflatten(1, (-1, pixel.shape[2]))


def _products(grad: Tensor, pixel: Tensor) -> Tensor:
    """``grad ⊗ pixel`` in the order of a grid's channels, ``(N, C_out * terms, H, W)``."""
    return (grad.unsqueeze(2) * pixel).flatten(1, 2)


def _by_luma(grad: Tensor) -> Tensor:
    """The gradient by luma carried on to the image."""
    return torch.stack([weight * grad for weight in LUMA], 1)
