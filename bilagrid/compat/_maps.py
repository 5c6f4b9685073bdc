"""Affine colour maps read from a bank of grids, for pixels on a lattice or anywhere: what the splatting modules of `bilagrid.compat` share."""

from __future__ import annotations

import torch
from torch import Tensor

from bilagrid.compat._places import lattice_of
from bilagrid.lattice import Lattice
from bilagrid.ops import _checks
from bilagrid.ops._luma import luma
from bilagrid.ops.slice import slice as slice_grid
from bilagrid.ops.slice_apply import slice_apply
from bilagrid.ops.slice_points import slice_points

_INDEX_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64)


def color_affine_transform(affine_mats: Tensor, rgb: Tensor) -> Tensor:
    """Applies a colour map to each colour: ``out_o = sum_i A_oi rgb_i + A_o3``.

    Args:
        affine_mats: ``(..., 3, 4)``.
        rgb: ``(..., 3)``; the leading dimensions of both broadcast.

    Returns:
        ``(..., 3)``.

    Raises:
        TypeError: an argument that is no tensor.
        ValueError: other last dimensions, or leading ones that do not broadcast.

    Example:
        >>> color_affine_transform(torch.eye(3, 4), torch.tensor([0.1, 0.2, 0.3]))
        tensor([0.1000, 0.2000, 0.3000])
    """
    for name, tensor in (("affine_mats", affine_mats), ("rgb", rgb)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if affine_mats.shape[-2:] != (3, 4):
        raise ValueError(f"affine_mats must have shape (..., 3, 4), got {tuple(affine_mats.shape)}")
    if rgb.shape[-1:] != (3,):
        raise ValueError(f"rgb must have shape (..., 3), got {tuple(rgb.shape)}")
    pairs = zip(reversed(affine_mats.shape[:-2]), reversed(rgb.shape[:-1]), strict=False)
    if any(a != b and a != 1 and b != 1 for a, b in pairs):
        raise ValueError(
            f"rgb must have leading dimensions that broadcast with those of affine_mats, {tuple(affine_mats.shape[:-2])}, got {tuple(rgb.shape)}"
        )
    return (affine_mats[..., :3] * rgb.unsqueeze(-2)).sum(-1) + affine_mats[..., 3]


def transformed(bank: Tensor, xy: Tensor | None, rgb: Tensor, index: Tensor | None, *, sparse: bool = False) -> Tensor:
    """Applies to each colour the map that the bank holds for it; of rgb's shape and dtype. Fused where ``xy`` is regular; None means corner-aligned pixels."""
    lattice = _check(bank, xy, rgb, index)
    if lattice is None:
        assert xy is not None
        maps = _at_points(bank, xy, rgb, index, sparse)
        return color_affine_transform(maps, rgb).to(rgb.dtype)
    image, chosen = _images(rgb, index)
    out = slice_apply(bank, None, image, lattice=lattice, index=chosen, sparse=sparse)
    return out.permute(0, 2, 3, 1).reshape(rgb.shape)


def affine_maps(bank: Tensor, xy: Tensor, rgb: Tensor, index: Tensor | None, *, sparse: bool = False) -> Tensor:
    """The maps ``(..., 3, 4)`` that `transformed` applies."""
    lattice = _check(bank, xy, rgb, index)
    if lattice is None:
        return _at_points(bank, xy, rgb, index, sparse)
    image, chosen = _images(rgb, index)
    coefficients = slice_grid(bank, luma(image), lattice=lattice, index=chosen, sparse=sparse)
    return coefficients.permute(0, 2, 3, 1).reshape(*rgb.shape[:-1], 3, 4)


def index_vector(name: str, index: Tensor | int, like: Tensor) -> Tensor:
    """Indices ``(N,)`` from a number, or from the first index in each leading row of a tensor of up to four dimensions.

    Where strides tell that all are the same, one.
    """
    if isinstance(index, int) and not isinstance(index, bool):
        return torch.full((1,), index, dtype=torch.int64, device=like.device)
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be an integer or a tensor of integers, got {type(index).__name__}")
    if index.dtype not in _INDEX_DTYPES:
        raise TypeError(f"{name} must be a tensor of integers such as int64, got {index.dtype}")
    if index.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {index.device}")
    if index.layout != torch.strided or 0 in index.shape[1:]:
        raise ValueError(
            f"{name} must be a dense (strided) tensor with an index in each leading row, got {tuple(index.shape)}, {index.layout}"
        )
    if index.ndim > 4:
        raise ValueError(f"{name} must have 0 to 4 dimensions, got {tuple(index.shape)}")
    strides = index.stride()
    same = all(stride == 0 or extent == 1 for extent, stride in zip(index.shape, strides, strict=True))
    for _ in range(index.ndim - 1):
        index = index[:, 0]
    return (index.reshape(-1)[:1] if same else index).long()


def row_index(name: str, index: Tensor | int, rgb: Tensor) -> Tensor:
    """Indices as a vector: one for all of ``rgb``, or one for each of its leading rows."""
    if not isinstance(rgb, Tensor):
        raise TypeError(f"rgb must be a torch.Tensor, got {type(rgb).__name__}")
    if rgb.ndim == 0:
        raise ValueError("rgb must have shape (..., 3) and 2 to 5 dimensions, got ()")
    vector = index_vector(name, index, rgb)
    if vector.shape[0] != 1 and vector.shape[0] != rgb.shape[0]:
        raise ValueError(
            f"{name} must hold one index, or one for each leading row of rgb, (N, ...) with N = {rgb.shape[0]}, got {vector.shape[0]}"
        )
    return vector


def _check(bank: Tensor, xy: Tensor | None, rgb: Tensor, index: Tensor | None) -> Lattice | None:
    """Refuses what does not fit. Gives the lattice of the pixels if they are known to lie on one and each image has one grid, else None."""
    _checks.tensors(grids=bank, rgb=rgb, **({} if xy is None else {"xy": xy}))
    _checks.rank("grids", bank, "(M, C, D, Gh, Gw)")
    if bank.shape[1] != 12:
        raise ValueError(f"grids must have 12 channels, a 3x4 colour map, got {bank.shape[1]}")
    if not 2 <= rgb.ndim <= 5 or rgb.shape[-1] != 3:
        raise ValueError(f"rgb must have shape (..., 3) and 2 to 5 dimensions, got {tuple(rgb.shape)}")
    size = (bank.shape[2], bank.shape[3], bank.shape[4])
    lead = tuple(rgb.shape[:-1])
    if xy is not None and not (xy.ndim > 1 and xy.shape[-1] == 2 and _broadcasts(tuple(xy.shape[:-1]), lead)):
        raise ValueError(f"xy must have shape (..., 2) = {(*lead, 2)} to match rgb, got {tuple(xy.shape)}")
    if index is None and rgb.shape[0] != bank.shape[0]:
        raise ValueError(
            f"rgb must have one leading row for each of the {bank.shape[0]} grids where no index is given, got {rgb.shape[0]}"
        )
    of_images = rgb.ndim > 3 or (rgb.ndim == 3 and index is not None and index.shape[0] == 1)
    if xy is None:
        if not of_images:
            raise ValueError(
                f"xy must be given for rgb that is no image (..., H, W, 3) of one grid each, got {tuple(rgb.shape)}"
            )
        return Lattice.corner_aligned(size, (lead[-2], lead[-1]))
    return lattice_of(xy, size) if of_images and tuple(xy.shape[-3:-1]) == lead[-2:] else None


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether ``shape``, leading ones aside, expands to ``to``."""
    extra = max(0, len(shape) - len(to))
    if any(extent != 1 for extent in shape[:extra]):
        return False
    pairs = zip(reversed(shape[extra:]), reversed(to), strict=False)
    # One by one: of symbolic sizes Dynamo finds none in a tuple.
    return all(have == 1 or have == wanted for have, wanted in pairs)


def _images(rgb: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Colours ``(..., H, W, 3)`` viewed as images ``(N, 3, H, W)``, and the index of each image's grid; None where image n has grid n."""
    image = rgb.reshape(-1, *rgb.shape[-3:]).permute(0, 3, 1, 2)
    rows = rgb.shape[0] if rgb.ndim > 3 else 1
    each = image.shape[0] // rows if rows else 1
    if index is None:
        if each == 1:
            return image, None
        index = torch.arange(rows, device=rgb.device)
    return image, index.expand(rows)[:, None].expand(rows, each).reshape(-1)


def _at_points(bank: Tensor, xy: Tensor, rgb: Tensor, index: Tensor | None, sparse: bool) -> Tensor:
    """The maps at arbitrary places: the grid's own coordinates are x (Gw - 1), y (Gh - 1) and luma (D - 1)."""
    depth, rows, columns = bank.shape[2:]
    lead = rgb.shape[:-1]
    xy = xy.reshape(xy.shape[max(0, xy.ndim - rgb.ndim) :]).expand(*lead, 2)
    guide = luma(rgb.reshape(-1, 3)).reshape(lead)
    points = torch.stack([xy[..., 0] * (columns - 1), xy[..., 1] * (rows - 1), guide * (depth - 1)], -1)
    return slice_points(bank, points, index, sparse=sparse).reshape(*lead, 3, 4)
