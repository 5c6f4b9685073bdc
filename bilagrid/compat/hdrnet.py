"""HDRNet's two operators under its own names, layout and argument order: ``from bilagrid.compat.hdrnet import bilateral_slice_apply``.

Channels come last: grid ``(N, Gh, Gw, D, C)``, guide ``(N, H, W)``, images ``(N, H, W, C)``. Grids of six dimensions ``(N, Gh, Gw, D, C_out, terms)`` are
taken as HDRNet's layers take them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bilagrid._numbers import number
from bilagrid.lattice import Lattice
from bilagrid.ops import _checks
from bilagrid.ops._dtypes import widened
from bilagrid.ops.slice import slice as slice_grid
from bilagrid.ops.slice_apply import slice_apply

__all__ = ["bilateral_slice", "bilateral_slice_apply"]

_GRID = "(N, Gh, Gw, D, C)"
_MAPS = "(N, Gh, Gw, D, C_out, terms)"

# In planes. Farther out float32 no longer tells where between two planes a value lies, so values saturate here.
_FARTHEST = 2.0**22


def bilateral_slice(grid: Tensor, guide: Tensor, name: str | None = None, *, eps: float | None = None) -> Tensor:
    """Reads a grid at each pixel's place and guide value, as HDRNet's ``bilateral_slice`` does::

        out[n, y, x, c] = sum_k w_k(y, x) grid[n, k, c]

    It is `bilagrid.slice` on the default lattice with the channels last: tensors are only viewed, never copied.

    Args:
        grid: ``(N, Gh, Gw, D, C)``, or ``(N, Gh, Gw, D, C_out, C_in)``.
        guide: ``(N, H, W)``, 0 to 1 over the grid.
        name: accepted and ignored: a label of TensorFlow's graph.
        eps: None or 0 for tents ``max(1 - |t|, 0)`` on every axis. The published operator smooths those along z to ``max(1 - sqrt(t² + eps), 0)`` with
            eps = 1e-8, so that the weights at the middle of a cell sum to ``1 - sqrt(eps)``; give 1e-8 for its values and gradients. At least 0 and below 1.
            It takes a weighted sum of two slices, at the planes below and above each pixel, so more than twice the time; no corners are stored.

    Returns:
        ``(N, H, W, C)``, or ``(N, H, W, C_out, C_in)``, in the grid's dtype.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes or devices that do not fit, or an eps out of range.

    Gradients: to grid and guide, of any order in reverse mode; with eps they are exactly those of the values. (The published gradient by the grid leaves the
    smoothing out in the two outermost half cells, and differs there by a share of at most sqrt(eps) = 1e-4.) Deterministic.

    Source: Gharbi et al., "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017, and github.com/google/hdrnet.

    Example:
        >>> grid = torch.arange(4.0).view(1, 1, 1, 4, 1).expand(1, 3, 3, 4, 2)
        >>> bilateral_slice(grid, torch.full((1, 5, 7), 0.5))[0, 2, 2]
        tensor([1.5000, 1.5000])
        >>> bilateral_slice(grid, torch.full((1, 5, 7), 0.375), eps=1e-8)[0, 2, 2]  # the middle of cell 1
        tensor([0.9999, 0.9999])
    """
    _checks.tensors(grid=grid, guide=guide)
    outputs = grid.shape[4:]
    grid, guide, eps = _arguments(grid, guide, eps)
    if eps is None:
        out = slice_grid(grid, guide)
    else:
        wide = widened(grid)
        out = _on_two_planes(lambda at, lattice: slice_grid(wide, at, lattice=lattice), grid, guide, eps).to(grid.dtype)
    out = out.permute(0, 2, 3, 1)
    return out.unflatten(3, outputs) if len(outputs) == 2 else out


def bilateral_slice_apply(
    grid: Tensor,
    guide: Tensor,
    input_image: Tensor,
    has_offset: bool = True,
    name: str | None = None,
    *,
    eps: float | None = None,
) -> Tensor:
    """Slices the coefficients of an affine map at each pixel and applies it, as HDRNet's ``bilateral_slice_apply`` does::

        out[n, y, x, o] = sum_i A_oi(y, x) input_image[n, y, x, i] + A_o,offset(y, x),   A = bilateral_slice(grid, guide)

    It is `bilagrid.slice_apply` on the default lattice with the channels last: tensors are only viewed, never copied, and coefficients are not stored.

    Args:
        grid: ``(N, Gh, Gw, D, C_out * terms)`` with ``terms = C_in + 1``, channel ``o * terms + i``, the offset last in each row; ``terms = C_in`` without
            offset. Or ``(N, Gh, Gw, D, C_out, terms)``.
        guide: ``(N, H, W)``, 0 to 1 over the grid.
        input_image: ``(N, H, W, C_in)``.
        has_offset: whether the maps have a constant term. (The bare TensorFlow operator has no default; HDRNet's layer has True.)
        name: accepted and ignored: a label of TensorFlow's graph.
        eps: None for tents along z; 1e-8 for the published, smoothed ones, in more than twice the time. See `bilateral_slice`.

    Returns:
        ``(N, H, W, C_out)`` in the image's dtype.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes or devices that do not fit, or an eps out of range.

    Gradients: to grid, guide and image, of any order in reverse mode; with eps they are exactly those of the values. Deterministic.

    Source: Gharbi et al., "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017, and github.com/google/hdrnet.

    Example:
        >>> identity = torch.eye(3, 4).reshape(12).expand(1, 16, 16, 8, 12)
        >>> image = torch.rand(1, 48, 64, 3)
        >>> torch.testing.assert_close(bilateral_slice_apply(identity, image.mean(3), image, has_offset=True), image)
    """
    _checks.tensors(grid=grid, guide=guide, input_image=input_image)
    _checks.flag("has_offset", has_offset)
    _checks.rank("input_image", input_image, "(N, H, W, C_in)")
    shape, terms = tuple(grid.shape), input_image.shape[3] + int(has_offset)
    grid, guide, eps = _arguments(grid, guide, eps)
    if shape[-1] % terms or (len(shape) == 6 and shape[-1] != terms):
        what = "C_in + 1" if has_offset else "C_in"
        raise ValueError(
            f"grid must have shape (N, Gh, Gw, D, C_out * terms) or {_MAPS} with terms = {what} = {terms} for has_offset={has_offset}, got {shape}"
        )
    _checks.same("input_image", input_image, "(N, H, W, C_in)", (*guide.shape, input_image.shape[3]), "guide")
    image = input_image.permute(0, 3, 1, 2)
    if eps is None:
        out = slice_apply(grid, guide, image, offset=has_offset)
    else:
        out = _on_two_planes(
            lambda at, lattice: slice_apply(grid, at, image, lattice=lattice, offset=has_offset), grid, guide, eps
        ).to(image.dtype)
    return out.permute(0, 2, 3, 1)


def _arguments(grid: Tensor, guide: Tensor, eps: float | None) -> tuple[Tensor, Tensor, float | None]:
    """The checked arguments: a view of the grid with the channels first, the guide, and eps, None where nothing is smoothed."""
    if grid.ndim == 6:
        _checks.rank("grid", grid, _MAPS)
        grid = grid.flatten(4)
    _checks.rank("grid", grid, _GRID)
    _checks.rank("guide", guide, "(N, H, W)")
    _checks.same("guide", guide, "(N, H, W)", (grid.shape[0], *guide.shape[1:]), "grid")
    if eps is not None:
        eps = float(number("eps", eps))
        if not (math.isfinite(eps) and 0 <= eps < 1):
            raise ValueError(f"eps must be at least 0 and less than 1, where every weight is 0, got {eps}")
    return grid.permute(0, 4, 3, 1, 2), guide, eps or None


def _on_two_planes(read: Callable[[Tensor, Lattice], Tensor], grid: Tensor, guide: Tensor, eps: float) -> Tensor:
    """The sum of what ``read`` gives at the planes below and above each pixel, weighed by the smoothed tent. Which planes these are has no gradient.

    A plane beyond the grid is its outermost one, weighed as if it lay where it would be, as published.
    """
    depth, rows, columns = grid.shape[2:]
    # The default lattice along y and x; along z the guide is the number of a plane.
    unit = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    lattice = Lattice(
        "sigma", (depth, rows, columns), (guide.shape[1], guide.shape[2]), steps=unit, steps_size=(rows, columns)
    )
    # By where, since clamp's gradient at NaN is 0.
    z = widened(guide) * depth
    z = torch.where(z.abs() > _FARTHEST, z.detach().clamp(-_FARTHEST, _FARTHEST), z)
    below = (z.detach() - 0.5).floor()

    def share(plane: Tensor) -> Tensor:
        weight = 1 - ((plane + 0.5 - z).square() + eps).sqrt()
        weight = torch.where(weight < 0, 0, weight)
        return weight.unsqueeze(1) * read(plane.clamp(0, depth - 1), lattice)

    return share(below) + share(below + 1)
