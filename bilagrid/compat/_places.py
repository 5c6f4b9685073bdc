"""The places of pixels as splatting trainers give them, ``xy`` in [0, 1], and how regular ones are recognised without reading their values."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from bilagrid._numbers import integer
from bilagrid.lattice import Lattice

_KINDS = ("half_pixel", "corner_aligned")
# The attribute that marks a regular xy; a view finds it at its base.
_KIND = "_bilagrid_kind"


def pixel_grid(
    height: int,
    width: int,
    *,
    kind: str = "half_pixel",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The places of all pixels of an image as ``(x, y)`` in [0, 1], which the functions of `bilagrid.compat` recognise as regular::

        half_pixel:      x = (j + 1/2) / W,   y = (i + 1/2) / H        gsplat, bilarf
        corner_aligned:  x = j / (W - 1),     y = i / (H - 1)          nerfstudio, fused-bilagrid without xy; 0 where W or H is 1

    It holds the very numbers that those trainers compute themselves, and takes their place. Where it is recognised an image is sliced by
    `bilagrid.slice_apply`, several times faster than at arbitrary points, and the numbers are never read. Recognised are the tensor and its views: ``expand``
    over a batch, ``[0]``, and ``[:, top:bottom, left:right]`` as a crop. Not recognised, and so sliced at arbitrary points, are copies (``.to(device)``,
    ``.clone()``, arithmetic), a tensor that requires gradients, and one that was changed in place.

    Args:
        height: rows H.
        width: columns W.
        kind: ``"half_pixel"`` or ``"corner_aligned"``.
        device: of the tensor: that of the images.
        dtype: of the tensor.

    Returns:
        ``(1, H, W, 2)``.

    Raises:
        ValueError: a size below 1 or a kind of another name.

    Under ``torch.compile`` the tensor itself is recognised, and uncropped views that enter the graph; a change in place is not noticed there.

    Example:
        >>> pixel_grid(2, 2).tolist()
        [[[[0.25, 0.25], [0.75, 0.25]], [[0.25, 0.75], [0.75, 0.75]]]]
    """
    for name, extent in (("height", height), ("width", width)):
        if integer(name, extent, "a whole number of pixels") < 1:
            raise ValueError(f"{name} must be at least 1 pixel, got {extent}")
    if kind not in _KINDS:
        raise ValueError(f"kind must be {' or '.join(map(repr, _KINDS))}, got {kind!r}")
    # A tensor made in inference mode has no counter of changes in place.
    with contextlib.nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False):
        y, x = (_line(extent, kind, device, dtype) for extent in (height, width))
        plane = (1, height, width)
        xy = torch.stack([x.expand(plane), y[:, None].expand(plane)], -1)
    setattr(xy, _KIND, kind)
    return xy


def lattice_of(xy: Tensor, size: tuple[int, int, int]) -> Lattice | None:
    """The lattice of a grid of ``size`` for an ``xy`` ``(..., H, W, 2)`` that comes from `pixel_grid`, whole, cropped or repeated; None for any other."""
    if xy.requires_grad or xy.ndim < 3:
        return None
    kind, whole = getattr(xy, _KIND, None), xy
    if kind is None and xy._base is not None:
        kind, whole = getattr(xy._base, _KIND, None), xy._base
    if kind is None or _is_changed(xy):
        return None
    make = Lattice.half_pixel if kind == "half_pixel" else Lattice.corner_aligned
    height, width = whole.shape[-3:-1]
    lattice = make(size, (height, width))
    if whole is xy:
        return lattice
    origin = _origin(xy, whole)
    return None if origin is None else lattice.crop(*origin)


def _line(extent: int, kind: str, device: torch.device | str | None, dtype: torch.dtype) -> Tensor:
    if kind == "half_pixel":
        return (torch.arange(extent, device=device, dtype=dtype) + 0.5) / extent
    return torch.linspace(0, 1, extent, device=device, dtype=dtype)


def _is_changed(xy: Tensor) -> bool:
    """Whether it was written to since it was made, or may have been: tensors of inference mode do not tell. A compiler cannot know, and takes it for unchanged."""
    return not torch.compiler.is_compiling() and (xy.is_inference() or xy._version > 0)


def _origin(view: Tensor, whole: Tensor) -> tuple[int, int] | None:
    """The first pixel (top, left) of a view of ``whole`` (1, H, W, 2) that is a rectangle of it, perhaps repeated over a batch; None for any other view."""
    if view.dtype != whole.dtype or view.shape[-1] != 2:
        return None
    extents, strides = view.shape, view.stride()
    if any(extent > 1 and stride for extent, stride in zip(extents[:-3], strides[:-3], strict=True)):
        return None
    if any(e > 1 and s != w for e, s, w in zip(extents[-3:], strides[-3:], whole.stride()[-3:], strict=True)):
        return None
    if tuple(extents[-3:-1]) == tuple(whole.shape[-3:-1]):
        return 0, 0
    # A compiler does not know where in its base a view begins.
    if torch.compiler.is_compiling():
        return None
    offset = view.storage_offset() - whole.storage_offset()
    top, left = divmod(offset // 2, whole.shape[-2])
    inside = top + extents[-3] <= whole.shape[-3] and left + extents[-2] <= whole.shape[-2]
    return (top, left) if inside and offset % 2 == 0 else None
