"""Filters built from the operators: splat, blur and slice on a lattice whose nodes are a sigma apart."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from bilagrid._numbers import number, numbers
from bilagrid.lattice import Lattice
from bilagrid.ops import _backend, _checks
from bilagrid.ops._bilinear import bilinear_
from bilagrid.ops._dtypes import widened
from bilagrid.ops._luma import own_guide
from bilagrid.ops._same_bits import power, power_of_ten, spread
from bilagrid.ops.slice import slice_, slice_normalized_
from bilagrid.ops.splat import splat_blurred_

# Splat and slice each blur by a tent, whose variance is 1/6 node squared.
_TENT_VARIANCE = 1 / 3

# The least nodes per sigma along y and x. On a regular texture 1 comes within 50 dB of the exact filter, this within 53.
_LEAST_DENSITY = 1.1

# Wide sigmas get finer cells than they need, which cost no more than those of narrow ones.
_LEAST_CELLS = 13  # over the guide's range: with the padding 16 nodes, which the GPU's fine splat adds up at once
_LARGEST_CELL = 8.0  # pixels, unless that takes more nodes per sigma than:
_AMPLE_DENSITY = 2.0

# More nodes per sigma than this are a slip.
_LARGEST_DENSITY = 100.0

# Of tone mapping: the share of the pixels that each end of the base's range, and white, leave out; the range of luminance that is told apart, in decades
# about white; and how many pixels both are found from.
_EXTREME = 0.001
_DECADES = (-8.0, 4.0)
_SAMPLES = 2**18
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of linear Rec. 709 light

# The toe of tone mapping's gamma: below, it is a line, whose slope is finite.
_TOE = 1e-8

# The weight of the plain bilinear result in joint upsampling: it matters only where no low-resolution pixel of a similar guide value is near.
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

    Splat and slice each blur a little by themselves; the Gaussian between them is narrowed by that much, so that the three together have the sigma asked for.

    Args:
        image: ``(N, C, H, W)``, any floating type, strides and number of channels.
        guide: ``(N, H, W)``, what the colour term compares; by default the image itself where C is 1, its BT.601 luma where C is 3. Another image makes
            this the cross (joint) filter.
        sigma_space: standard deviation in pixels, above 0.
        sigma_color: standard deviation in units of the guide, above 0.
        guide_range: ``(least, greatest)`` guide value; values beyond saturate one grid node outside it. None measures the guide over the whole batch: the
            one host synchronisation, which is not possible under vmap, torch.export or ``torch.compile(fullgraph=True)``.
        nodes_per_sigma: least number of grid nodes per sigma along ``(z, y, x)``, from 0.58 to 100; more is closer to the exact filter and slower. The grid
            is made finer where that costs little: at least 1.1 nodes per sigma along y and x; cells of at most 8 pixels, unless that takes more than 2 nodes
            per sigma; and at least 13 cells over the guide's range where that is wider than ``sigma_color``.

    Returns:
        ``(N, C, H, W)`` in the image's dtype.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes that do not fit; no guide for an image of 2 or more than 3 channels; a sigma that is not positive; a guide whose range is to be
            measured but that is not finite or, as under vmap, cannot be read; or sigmas so small that the grid would not fit in memory.

    Gradients: to image and guide, of any order in reverse mode; a measured range is taken as a constant. Deterministic.

    Source: Paris and Durand, "A fast approximation of the bilateral filter using a signal processing approach", ECCV 2006; Chen, Paris and Durand,
    SIGGRAPH 2007.

    Example:
        >>> step = (torch.arange(64) > 31).float().expand(1, 1, 48, 64)
        >>> smooth = bilateral_filter(step + 0.05 * torch.rand(1, 1, 48, 64), sigma_space=8, sigma_color=0.1)
        >>> bool((smooth[..., 32] - smooth[..., 31]).min() > 0.9)
        True
    """
    _checks.tensors(image=image, optional=guide)
    _checks.rank("image", image, "(N, C, H, W)")
    if guide is None:
        guide = own_guide("image", image)
    else:
        _checks.same("guide", guide, "(N, H, W)", (image.shape[0], *image.shape[2:]), "image")
    lattice, sigma = filter_lattice(guide, sigma_space, sigma_color, guide_range, nodes_per_sigma)
    refuse_too_large(lattice, image)
    grid = splat_blurred_(image, guide, lattice, sigma)
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
    """Enlarges a low-resolution result to the size of a high-resolution guide, with the guide's edges::

        out(p) = sum_q w(p, q) low(q) / sum_q w(p, q),   w(p, q) = exp(-|p' - q|² / 2 sigma_space² - (guide_high(p) - guide_low(q))² / 2 sigma_color²)

    with ``p'`` the place of the high-resolution pixel p in the low-resolution image, both covering the same area: ``p' + 1/2 = (p + 1/2) low / high``.
    Where no low-resolution pixel of a similar guide value is near, the result goes over to plain bilinear upsampling.

    Args:
        low: ``(N, C, h, w)``, the result to enlarge, any floating type, strides and number of channels.
        guide_low: ``(N, h, w)``, the guide at low resolution.
        guide_high: ``(N, H, W)``, the guide at the size wanted.
        sigma_space: standard deviation in low-resolution pixels, above 0.
        sigma_color: standard deviation in units of the guides, above 0.
        guide_range: ``(least, greatest)`` value of both guides. None measures both: the one host synchronisation, which is not possible under vmap,
            torch.export or ``torch.compile(fullgraph=True)``.
        nodes_per_sigma: least number of grid nodes per sigma along ``(z, y, x)``, from 0.58 to 100, as in `bilateral_filter`.

    Returns:
        ``(N, C, H, W)`` in the dtype of ``low``.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes that do not fit; a sigma that is not positive; guides whose range is to be measured but that are not finite or, as under vmap,
            cannot be read; or sigmas so small that the grid would not fit in memory.

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
            measured_range("guide_low", guide_low),
            measured_range("guide_high", guide_high),
        )
        guide_range = min(low_least, high_least), max(low_most, high_most)
    lattice, sigma = filter_lattice(guide_low, sigma_space, sigma_color, guide_range, nodes_per_sigma)
    refuse_too_large(lattice, low)
    grid = splat_blurred_(low, guide_low, lattice, sigma)
    sliced = slice_(grid, guide_high, lattice.resize((guide_high.shape[1], guide_high.shape[2])))
    prior = bilinear_(low.to(sliced.dtype), guide_high)
    weighted, weight = sliced[:, :-1], sliced[:, -1:]
    return ((weighted + _UPSAMPLE_PRIOR * prior) / (weight + _UPSAMPLE_PRIOR)).to(low.dtype)


def tonemap(
    radiance: Tensor,
    *,
    contrast: float = 5.0,
    sigma_space: float | None = None,
    sigma_color: float = 0.4,
    gamma: float = 2.2,
) -> Tensor:
    """Makes a picture of a scene of high dynamic range: its large-scale contrast is compressed, its detail stays as it is::

        base = bilateral_filter(log10 L),   k = min(1, log10 contrast / (max base - min base)),   out = (radiance / L * 10^(k (base - max base) + log10 L - base))^(1 / gamma)

    with L the luminance (Rec. 709). The maximum and minimum are taken over each image's pixels that are not black, without the most extreme thousandth at
    either end, so that a few extreme pixels change nothing; what comes out above 1 is white.

    Args:
        radiance: ``(N, 3 or 1, H, W)``, linear, at least 0, in any unit: ``s * radiance`` gives the same picture.
        contrast: ratio of the base's brightest to its darkest part in the result, before gamma, at least 1. A scene that has less is not stretched.
        sigma_space: of the filter, in pixels, above 0; by default 2 % of the longer side, at least 1.
        sigma_color: of the filter, in decades (log10), above 0: what differs by more is an edge of the scene's light, what differs by less is detail.
        gamma: encoding of the result, above 0; 1 keeps it linear.

    Returns:
        ``(N, 3 or 1, H, W)`` in [0, 1], in the radiance's dtype. Black stays black. Luminance is told apart over twelve decades: from eight below to four
        above each image's brightest pixels but a thousandth.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: another shape, numbers out of range, or radiance that is negative, NaN or infinite. To see that the host waits for a GPU; under vmap,
            torch.export and torch.compile it is not checked.

    Gradients: to radiance, of any order in reverse mode; 0 where the result is white. Deterministic.

    Source: Durand and Dorsey, "Fast bilateral filtering for the display of high-dynamic-range images", SIGGRAPH 2002.

    Example:
        >>> light = torch.tensor([1.0, 1000.0]).repeat_interleave(32)  # a dark room, and what its window shows
        >>> picture = tonemap(light.expand(1, 3, 48, 64), contrast=5, gamma=1)
        >>> [round(value, 2) for value in picture[0, 0, 0, [0, -1]].tolist()]
        [0.2, 1.0]
    """
    _checks.tensors(radiance=radiance)
    _checks.rank("radiance", radiance, "(N, C, H, W)")
    if radiance.shape[1] not in (1, 3):
        raise ValueError(f"radiance must have 1 or 3 channels, got {radiance.shape[1]}")
    contrast, gamma = number("contrast", contrast), number("gamma", gamma)
    for name, value, least in (("contrast", contrast, 1.0), ("gamma", gamma, 1e-3)):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} must be a finite number, at least {least:g}, got {value}")
    if sigma_space is None:
        sigma_space = max(0.02 * max(radiance.shape[2:]), 1.0)
    if radiance.numel() and not torch.compiler.is_compiling() and can_be_looked_at(radiance):
        least, greatest = _backend.aminmax(radiance.detach().flatten(0, 1))
        if not (least >= 0 and math.isfinite(greatest)):
            raise ValueError(f"radiance must be finite and at least 0, got {least} to {greatest}")
    values = widened(radiance)
    _, white = _ends(_luminance(values), _luminance(values) > 0)
    least, most = _DECADES
    white = spread(torch.where(white > 0, white, 1), values[:, 0])
    values = (values / white[:, None]).clamp(max=10.0**most)
    luminance = _luminance(values)
    log = luminance.clamp(min=10.0**least).log10()
    base = bilateral_filter(
        log[:, None], log, sigma_space=sigma_space, sigma_color=sigma_color, guide_range=_DECADES
    ).squeeze(1)
    darkest, brightest = _ends(base, luminance > 0)
    factor = (math.log10(contrast) / (brightest - darkest).clamp(min=1e-6)).clamp(max=1)
    linear = values * power_of_ten(spread(factor, base) * (base - spread(brightest, base)) - base)[:, None]
    toe = linear * _TOE ** (1 / gamma - 1)
    return torch.where(linear > _TOE, power(linear.clamp(_TOE, 1), 1 / gamma), toe).to(radiance.dtype)


def _luminance(image: Tensor) -> Tensor:
    if image.shape[1] == 1:
        return image[:, 0]
    return sum(weight * channel for weight, channel in zip(_LUMINANCE, image.unbind(1), strict=True))  # type: ignore[return-value]


def _ends(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of each image's values that are counted, without the extreme ones, (N, 1, 1) each; 0 where none is. Found from a grid of samples."""
    # A power and a trunc: a compiler has both for symbolic sizes.
    step = max(math.trunc((values.shape[1] * values.shape[2] / _SAMPLES) ** 0.5), 1)
    values, counted = values[:, ::step, ::step].flatten(1), counted[:, ::step, ::step].flatten(1)
    ordered = torch.where(counted, values, torch.inf).sort(dim=1, stable=True).values
    last = counted.sum(1, keepdim=True) - 1
    place = torch.arange(values.shape[1], device=values.device)
    ends = ((share * last).round() for share in (_EXTREME, 1 - _EXTREME))
    # A sum, since the gradient of a gather is not deterministic everywhere.
    low, high = (torch.where((place == end) & (last >= 0), ordered, 0).sum(1)[:, None, None] for end in ends)
    return low, high


def filter_lattice(
    guide: Tensor,
    sigma_space: float,
    sigma_color: float,
    guide_range: tuple[float, float] | None = None,
    nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
) -> tuple[Lattice, tuple[float, float, float]]:
    """The lattice of a filter, and the sigma ``(z, y, x)`` of its blur in nodes: with the tents of splat and slice it makes the sigmas asked for."""
    least = math.sqrt(_TENT_VARIANCE)
    along_z, along_y, along_x = numbers("nodes_per_sigma", "(z, y, x)", nodes_per_sigma)
    if not all(least <= nodes <= _LARGEST_DENSITY for nodes in (along_z, along_y, along_x)):
        raise ValueError(
            f"nodes_per_sigma must be from {least:.3f}, below which the tents alone blur by more than sigma, to {_LARGEST_DENSITY:.0f} each, "
            f"got {nodes_per_sigma}"
        )
    sigma_space, sigma_color = number("sigma_space", sigma_space), number("sigma_color", sigma_color)
    if guide_range is None:
        guide_range = measured_range("guide", guide)
    low, high = numbers("guide_range", "(least, greatest)", guide_range)
    if 0 < sigma_color < high - low:
        along_z = max(along_z, _LEAST_CELLS * sigma_color / (high - low))
    finest = max(_LEAST_DENSITY, min(sigma_space / _LARGEST_CELL, _AMPLE_DENSITY))
    along = (along_z, max(along_y, finest), max(along_x, finest))
    along_z, along_y, along_x = (number("nodes_per_sigma", nodes) for nodes in along)
    density = along_z, along_y, along_x
    lattice, _ = Lattice.from_sigma(
        sigma_space, sigma_color, (guide.shape[1], guide.shape[2]), guide_range=(low, high), nodes_per_sigma=density
    )
    z, y, x = (math.sqrt(max(nodes**2 - _TENT_VARIANCE, 0.0)) for nodes in density)
    return lattice, (z, y, x)


def measured_range(name: str, guide: Tensor) -> tuple[float, float]:
    """The least and the greatest value of a guide, for which the host waits; 0 and 0 for an empty batch. An error calls the guide by its ``name``."""
    if guide.numel() == 0:
        return 0.0, 0.0
    if not can_be_looked_at(guide):
        raise ValueError(f"guide_range must be given where {name} cannot be looked at, as under vmap, got None")
    least, greatest = _backend.aminmax(guide.detach())
    if not (math.isfinite(least) and math.isfinite(greatest)):
        raise ValueError(
            f"{name} must be finite for its range to be measured, got {least} to {greatest}; pass guide_range"
        )
    return least, greatest


def can_be_looked_at(tensor: Tensor) -> bool:
    """Whether the host can read the tensor's values: not where it has none, as on the meta device, nor inside a transform of `torch.func`."""
    wrapped = not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return _backend.has_values(tensor) and not wrapped


def refuse_too_large(lattice: Lattice, values: Tensor) -> None:
    """Refuses a lattice whose grid, with a weight beside the channels of ``values``, would not fit in the device's memory before and after its blur."""
    if torch.compiler.is_compiling():
        return
    nodes = math.prod(map(float, lattice.size))
    needed = 2 * values.shape[0] * (values.shape[1] + 1) * max(values.element_size(), 4) * nodes
    if values.is_cuda:
        available = torch.cuda.get_device_properties(values.device).total_memory
    elif hasattr(os, "sysconf"):
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    if needed > available:
        raise ValueError(
            f"sigma_space and sigma_color need a grid of (D, Gh, Gw) = ({', '.join(f'{extent:.6g}' for extent in lattice.size)}), "
            f"{needed / 2**30:.3g} GiB with its blurred copy, and the {values.device.type} has {available / 2**30:.3g} GiB: raise sigma_space for smaller "
            "Gh and Gw, sigma_color for smaller D"
        )
