"""Filters built from the operators: splat, blur and slice on a lattice whose nodes are a sigma apart."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from bilagrid.lattice import Lattice
from bilagrid.ops import _checks
from bilagrid.ops._luma import luma
from bilagrid.ops.blur import blur
from bilagrid.ops.slice import slice_, slice_normalized_
from bilagrid.ops.splat import splat_

# A tent's variance, in nodes squared, is 1/6; splat and slice each blur by one.
_TENT_VARIANCE = 1 / 3

# Cells are at least so fine: wide sigmas then cost what narrow ones do, and come closer to the exact filter.
_LEAST_CELLS = 12  # over the guide's range
_LARGEST_CELL = 8.0  # pixels

# Joint upsampling's share of the plain bilinear result: it decides only where no low-resolution pixel of a like guide value is near.
_UPSAMPLE_PRIOR = 1e-5


def bilateral_filter(
    image: Tensor,
    guide: Tensor | None = None,
    *,
    sigma_space: float,
    sigma_color: float,
    guide_range: tuple[float, float] | None = None,
    nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
) -> Tensor:
    """Smooths an image within its edges, by splat, blur and slice::

        out(p) = sum_q w(p, q) image(q) / sum_q w(p, q),   w(p, q) = exp(-|p - q|² / 2 sigma_space² - (guide(p) - guide(q))² / 2 sigma_color²)

    The grid's Gaussian is narrowed by the tents of splat and slice, so that the three together have the sigma asked for.

    Args:
        image: ``(N, C, H, W)``, any floating type, strides and number of channels.
        guide: ``(N, H, W)``, what the colour term reads; by default the image itself where C is 1, else its BT.601 luma where C is 3. Another image's values
            make the cross (joint) filter.
        sigma_space: standard deviation in pixels.
        sigma_color: standard deviation in units of the guide.
        guide_range: least and greatest guide value; values beyond are filtered as if at the border. None measures the guide: the one host synchronisation.
        nodes_per_sigma: least number of grid nodes a sigma along ``(z, y, x)``, 0.58 or more; more is closer to the exact filter and slower. Wide
            sigmas get more by themselves: cells of at most 8 pixels, and at least 12 over the guide's range.

    Returns:
        ``(N, C, H, W)`` in the image's dtype.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes that do not fit, no guide for an image of 2 or more than 3 channels, a sigma that is not positive, a guide that is not finite when
            its range is measured, or sigmas so small that the grid would not fit in memory, with the size it would need.

    Gradients: to image and guide, of any order in reverse mode; a measured range is taken as a constant. Deterministic.

    Source: Paris and Durand, "A fast approximation of the bilateral filter using a signal processing approach", ECCV 2006; Chen, Paris and Durand,
    SIGGRAPH 2007.

    Example:
        >>> step = (torch.arange(64) > 31).float().expand(1, 1, 48, 64)
        >>> smooth = bilateral_filter(step + 0.05 * torch.rand(1, 1, 48, 64), sigma_space=8, sigma_color=0.1)
        >>> bool((smooth[..., 32] - smooth[..., 31]).min() > 0.9)
        True
    """
    _checks.tensors(image=image, guide=guide)
    _checks.rank("image", image, "(N, C, H, W)")
    if guide is None:
        guide = _own_guide("image", image)
    else:
        _checks.same("guide", guide, "(N, H, W)", (image.shape[0], *image.shape[2:]), "image")
    lattice, sigma = filter_lattice(guide, sigma_space, sigma_color, guide_range, nodes_per_sigma)
    _refuse_too_large(lattice, image)
    grid = blur(splat_(image, guide, lattice, homogeneous=True), sigma)
    return slice_normalized_(grid, guide, lattice).to(image.dtype)


def joint_bilateral_upsample(
    low: Tensor,
    guide_low: Tensor,
    guide_high: Tensor,
    *,
    sigma_space: float,
    sigma_color: float,
    guide_range: tuple[float, float] | None = None,
    nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
) -> Tensor:
    """Brings a low-resolution result to the size of a high-resolution guide, keeping the guide's edges::

        out(p) = sum_q w(p, q) low(q) / sum_q w(p, q),   w(p, q) = exp(-|p' - q|² / 2 sigma_space² - (guide_high(p) - guide_low(q))² / 2 sigma_color²)

    with ``p'`` the place of the high-resolution pixel p in the low-resolution image, the areas of the two aligned: ``p' + 1/2 = (p + 1/2) low / high``.
    Where no low-resolution pixel of a like guide value is near, the result goes over to plain bilinear upsampling.

    Args:
        low: ``(N, C, h, w)``, the result to bring up, any floating type and number of channels.
        guide_low: ``(N, h, w)``, the guide at low resolution.
        guide_high: ``(N, H, W)``, the guide at the size wanted.
        sigma_space: standard deviation in low-resolution pixels.
        sigma_color: standard deviation in units of the guides.
        guide_range: least and greatest value of both guides; None measures both: the one host synchronisation.
        nodes_per_sigma: as in `bilateral_filter`.

    Returns:
        ``(N, C, H, W)`` in the dtype of ``low``.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: as `bilateral_filter`.

    Gradients: to all three tensors, of any order in reverse mode. Deterministic.

    Source: Kopf, Cohen, Lischinski and Uyttendaele, "Joint bilateral upsampling", SIGGRAPH 2007.

    Example:
        >>> guide = (torch.arange(64) > 31).float().expand(1, 48, 64)
        >>> low = torch.nn.functional.interpolate(guide[:, None], size=(12, 16), mode="area")
        >>> joint_bilateral_upsample(low, low[:, 0], guide, sigma_space=1, sigma_color=0.1).shape
        torch.Size([1, 1, 48, 64])
    """
    _checks.tensors(low=low, guide_low=guide_low, guide_high=guide_high)
    _checks.rank("low", low, "(N, C, h, w)")
    _checks.rank("guide_high", guide_high, "(N, H, W)")
    _checks.same("guide_low", guide_low, "(N, h, w)", (low.shape[0], *low.shape[2:]), "low")
    _checks.same("guide_high", guide_high, "(N, H, W)", (low.shape[0], *guide_high.shape[1:]), "low")
    if guide_range is None:
        (low_least, low_most), (high_least, high_most) = (
            _measure("guide_low", guide_low),
            _measure("guide_high", guide_high),
        )
        guide_range = min(low_least, high_least), max(low_most, high_most)
    lattice, sigma = filter_lattice(guide_low, sigma_space, sigma_color, guide_range, nodes_per_sigma)
    _refuse_too_large(lattice, low)
    grid = blur(splat_(low, guide_low, lattice, homogeneous=True), sigma)
    sliced = slice_(grid, guide_high, _at_size(lattice, guide_high.shape[1], guide_high.shape[2]))
    prior = torch.nn.functional.interpolate(low.to(sliced.dtype), size=guide_high.shape[1:], mode="bilinear")
    weighted, weight = sliced[:, :-1], sliced[:, -1:]
    return ((weighted + _UPSAMPLE_PRIOR * prior) / (weight + _UPSAMPLE_PRIOR)).to(low.dtype)


def _own_guide(name: str, image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return image[:, 0]
    if image.shape[1] == 3:
        return luma(image)
    raise ValueError(
        f"{name} must have 1 or 3 channels to be its own guide, got {image.shape[1]}; pass guide=(N, H, W)"
    )


def filter_lattice(
    guide: Tensor,
    sigma_space: float,
    sigma_color: float,
    guide_range: tuple[float, float] | None = None,
    nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
) -> tuple[Lattice, tuple[float, float, float]]:
    """The lattice that a filter uses, and the Gaussian in nodes that together with the tents of splat and slice has the sigmas asked for."""
    if any(nodes**2 < _TENT_VARIANCE for nodes in nodes_per_sigma):
        raise ValueError(
            f"nodes_per_sigma must be at least {math.sqrt(_TENT_VARIANCE):.3f} each, below which the tents alone blur by more than sigma, got {nodes_per_sigma}"
        )
    if guide_range is None:
        guide_range = _measure("guide", guide)
    height, width = guide.shape[1:]
    along_z, along_y, along_x = nodes_per_sigma
    extent = guide_range[1] - guide_range[0]
    if 0 < sigma_color < extent:
        along_z = max(along_z, _LEAST_CELLS * sigma_color / extent)
    finest = sigma_space / _LARGEST_CELL
    nodes_per_sigma = along_z, max(along_y, finest), max(along_x, finest)
    lattice, _ = Lattice.from_sigma(
        sigma_space, sigma_color, (height, width), guide_range=guide_range, nodes_per_sigma=nodes_per_sigma
    )
    z, y, x = (math.sqrt(max(nodes**2 - _TENT_VARIANCE, 0.0)) for nodes in nodes_per_sigma)
    return lattice, (z, y, x)


def _measure(name: str, guide: Tensor) -> tuple[float, float]:
    """Least and greatest value; a batch of none spans nothing."""
    if guide.numel() == 0:
        return 0.0, 0.0
    least, greatest = torch.stack(guide.detach().aminmax()).tolist()
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise ValueError(
            f"{name} must be finite for its range to be measured, got {least} to {greatest}; pass guide_range"
        )
    return least, greatest


def _at_size(lattice: Lattice, height: int, width: int) -> Lattice:
    """The same grid seen by an image of another size that covers the same area."""
    scale_z, scale_y, scale_x, anchor_z, anchor_y, anchor_x = lattice.steps
    ratio_y, ratio_x = lattice.image_size[0] / height, lattice.image_size[1] / width
    steps = (
        scale_z,
        scale_y * ratio_y,
        scale_x * ratio_x,
        anchor_z,
        anchor_y + scale_y * (ratio_y - 1) / 2,
        anchor_x + scale_x * (ratio_x - 1) / 2,
    )
    return Lattice(lattice.kind, lattice.size, (height, width), (0, 0), steps)


def _refuse_too_large(lattice: Lattice, values: Tensor) -> None:
    """The grid, before and after its blur, must fit in the memory of its device."""
    depth, rows, columns = lattice.size
    needed = 2 * values.shape[0] * (values.shape[1] + 1) * depth * rows * columns * max(values.element_size(), 4)
    if torch.compiler.is_compiling():
        return
    if values.is_cuda:
        available = torch.cuda.get_device_properties(values.device).total_memory
    elif hasattr(os, "sysconf"):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if needed > available:
        raise ValueError(
            f"sigma_space and sigma_color need a grid of (D, Gh, Gw) = {tuple(lattice.size)}, {needed / 2**30:.1f} GiB with its blurred copy, and the "
            f"{values.device.type} has {available / 2**30:.1f} GiB: raise sigma_space for smaller Gh and Gw, sigma_color for smaller D"
        )
