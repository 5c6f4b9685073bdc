"""Edits of photographs that the grid makes cheap: local histogram equalisation, and a noisy photograph cleaned by one with flash."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilagrid._numbers import integer, number, numbers
from bilagrid.filters import bilateral_filter, can_be_looked_at, filter_lattice, refuse_too_large
from bilagrid.lattice import Lattice
from bilagrid.ops import _backend, _checks
from bilagrid.ops._dtypes import widened
from bilagrid.ops._luma import luma, own_guide
from bilagrid.ops._same_bits import power
from bilagrid.ops.blur import blur
from bilagrid.ops.slice import slice_normalized_
from bilagrid.ops.splat import splat_

# Of equalisation: the default window, as a share of the longer side; the pixels that stand for an infinite window; and the fewest bins.
_WINDOW = 1 / 16
_ENDLESS = 1e10
_LEAST_BINS = 16
# One node per bin; and along y and x at least as many nodes per sigma as put no more than 5 % of the window's weight elsewhere than the Gaussian does.
_NODES = (1.0, 1.25, 1.25)

# Of a flash merge: the default sigma, as a share of the longer side; the published constant that keeps the detail of black finite; the lumas between which
# the flash picture goes over to a highlight; the shares of the light added by the flash between which a shadow ends; and the least luma that is compared.
_REACH = 0.01
_DETAIL_FLOOR = 0.02
_HIGHLIGHT = (0.92, 0.98)
_SHADOW = (0.05, 0.2)
_DARKEST = 1e-3


def equalize_histogram(
    image: Tensor,
    *,
    sigma_space: float | None = None,
    clip_limit: float | None = None,
    bins: int = 256,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Stretches the contrast of each neighbourhood over the whole range, by local histogram equalisation::

        out(p) = least + (greatest - least) F_p(v(p)),   F_p(v) = sum_q w(p, q) [v(q) < v] / sum_q w(p, q),   w(p, q) = exp(-|p - q|² / 2 sigma_space²)

    with v the image, or the luma of one in colour; of the pixels of exactly the same value half are counted. A column of the grid is the histogram of a
    neighbourhood: splat and blur make it, its running sum is F, and slice reads F at the pixel's place and value.

    With a ``clip_limit`` a bin counts at most that many times what it would hold in an even histogram, and what is cut off is spread evenly over the range. So
    no contrast is raised to more than ``clip_limit + 1`` times what it was; at 0 the image stays as it is.

    Args:
        image: ``(N, 1 or 3, H, W)``, any floating type and strides. The three colours of a pixel are multiplied by the factor by which its luma changes; where
            they would leave the range they lose saturation, not luma.
        sigma_space: standard deviation of the window, in pixels, above 0; by default a sixteenth of the longer side (give it for an export with dynamic
            sizes). ``math.inf`` takes one histogram for the whole image.
        clip_limit: at least 0; None does not limit. 2 to 4 are usual, and keep the grain of flat parts down.
        bins: number of bins of a histogram over ``value_range``, at least 16.
        value_range: ``(least, greatest)`` value of image and result; what lies beyond counts as its ends.

    Returns:
        ``(N, 1 or 3, H, W)`` in the image's dtype. It is exact to about two bins: F lies between its exact values two bins below and two above, give or take
        the share of the window's weight that the grid puts elsewhere than the Gaussian, which is at most 5 %, and 2 % where ``sigma_space`` is 16 or more.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes or numbers out of range, or a window so small that the grid would not fit in memory.

    Gradients: to image, of any order in reverse mode, with F piecewise linear between bins. Deterministic.

    Source: Chen, Paris and Durand, "Real-time edge-aware image processing with the bilateral grid", SIGGRAPH 2007, section 4; the limit is that of Pizer et
    al., "Adaptive histogram equalization and its variations", 1987.

    Example:
        >>> haze = 0.4 + 0.2 * torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
        >>> clear = equalize_histogram(haze, sigma_space=math.inf)
        >>> [round(end.item(), 1) for end in (haze.min(), haze.max(), clear.min(), clear.max())]
        [0.4, 0.6, 0.0, 1.0]
    """
    _checks.tensors(image=image)
    _checks.rank("image", image, "(N, C, H, W)")
    least, greatest = numbers("value_range", "(least, greatest)", value_range)
    if not -math.inf < least < greatest < math.inf:
        raise ValueError(f"value_range must be finite, (least, greatest) and not empty, got {value_range}")
    bins = integer("bins", bins)
    if bins < _LEAST_BINS:
        raise ValueError(f"bins must be at least {_LEAST_BINS}, got {bins}")
    clip_limit = None if clip_limit is None else number("clip_limit", clip_limit)
    if clip_limit is not None and not (math.isfinite(clip_limit) and clip_limit >= 0):
        raise ValueError(f"clip_limit must be a finite number, at least 0, or None, got {clip_limit}")
    if sigma_space is None:
        sigma_space = max(_WINDOW * max(image.shape[2:]), 1.0)
    elif number("sigma_space", sigma_space) == math.inf:
        sigma_space = _ENDLESS

    guide = own_guide("image", image)
    lattice, (_, *sigma) = filter_lattice(guide, sigma_space, (greatest - least) / bins, (least, greatest), _NODES)
    refuse_too_large(lattice, image[:, :1])
    histograms = blur(splat_(torch.ones_like(guide)[:, None], guide, lattice), (0.0, sigma[0], sigma[1]))
    total = histograms.sum(2, keepdim=True)
    counted = histograms if clip_limit is None else histograms.minimum(clip_limit / bins * total)
    # A node's own pixels lie half below it and half above.
    running = _running_sum(counted) - counted / 2
    if clip_limit is not None:
        running = running + (total - counted.sum(2, keepdim=True)) * _ramp(lattice, least, greatest, running)
    share = slice_normalized_(torch.cat([running, total.expand_as(running)], 1), guide, lattice)[:, 0]
    equalized = least + (greatest - least) * share
    if image.shape[1] == 1:
        return equalized[:, None].to(image.dtype)
    return _with_luma(widened(image), guide, equalized, least, greatest).to(image.dtype)


def merge_flash(
    flash: Tensor,
    no_flash: Tensor,
    *,
    sigma_space: float | None = None,
    sigma_color: float = 0.1,
    exposure: float | None = None,
    gamma: float = 2.2,
) -> Tensor:
    """Cleans a noisy photograph taken without flash by a sharp one of the same view with flash, and keeps the light of the former::

        out = (1 - M) cross(no_flash) (flash + 0.02) / (cross(flash) + 0.02) + M own(no_flash)

    with ``cross`` the bilateral filter guided by the luma of ``flash``, whose edges are clean, and ``own`` the one guided by the filtered image itself. The mask
    M goes from 0 to 1 where the flash picture does not show the scene: in its highlights, as its luma rises from 0.92 to 0.98, and, if ``exposure`` is given,
    in shadows that the flash casts, as the share of the light that it adds falls from a fifth to a twentieth::

        added = 1 - exposure cross(no_flash)^gamma / cross(flash)^gamma        (of the lumas)

    Args:
        flash: ``(N, 1 or 3, H, W)`` in [0, 1], the photograph with flash, any floating type and strides.
        no_flash: the same, without. The two must show every point at the same pixel: from a tripod, or aligned before.
        sigma_space: standard deviation of the filters in pixels, above 0; by default 1 % of the longer side, at least 1 (give it for an export with dynamic
            sizes). What is smaller is detail, and is taken from the flash picture.
        sigma_color: standard deviation of the filters in luma, above 0: choose it above the noise of ``no_flash`` and below the steps that are edges.
        exposure: the exposure of ``flash`` over that of ``no_flash`` (time times ISO over f-number squared; 1 for the same settings), above 0. None: not
            known, and shadows of the flash are not looked for.
        gamma: of the encoding of both, above 0; used for the shadows alone.

    Returns:
        ``(N, 1 or 3, H, W)`` in the dtype of ``no_flash``. It is not clamped: detail may exceed 1 a little.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes that do not fit, numbers out of range, or images whose values are far from [0, 1]; that is checked on the CPU alone, since the
            host would have to wait for a GPU.

    Gradients: to both images, of any order in reverse mode. Deterministic.

    Source: Petschnigg et al., "Digital photography with flash and no-flash image pairs", and Eisemann and Durand, "Flash photography enhancement via
    intrinsic relighting", both SIGGRAPH 2004; on the grid, Chen, Paris and Durand, SIGGRAPH 2007.

    Example:
        >>> scene = (torch.arange(64) > 31).float().expand(1, 3, 48, 64) * 0.6 + 0.2
        >>> noisy = 0.5 * scene + 0.05 * torch.randn(1, 3, 48, 64)
        >>> error = (merge_flash(scene, noisy, sigma_space=4) - 0.5 * scene).abs().mean()
        >>> bool(error < (noisy - 0.5 * scene).abs().mean() / 4)
        True
    """
    _checks.tensors(flash=flash, no_flash=no_flash)
    for name, image in (("flash", flash), ("no_flash", no_flash)):
        _checks.rank(name, image, "(N, C, H, W)")
        if image.shape[1] not in (1, 3):
            raise ValueError(f"{name} must have 1 or 3 channels, got {image.shape[1]}")
    _checks.same("no_flash", no_flash, "(N, C, H, W)", (len(flash), no_flash.shape[1], *flash.shape[2:]), "flash")
    gamma, exposure = number("gamma", gamma), None if exposure is None else number("exposure", exposure)
    for name, value in (("gamma", gamma), ("exposure", 1 if exposure is None else exposure)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
    refuse_other_scales(flash=flash, no_flash=no_flash)
    if sigma_space is None:
        sigma_space = max(_REACH * max(flash.shape[2:]), 1.0)
    dtype = torch.promote_types(widened(flash).dtype, widened(no_flash).dtype)
    lit, dark = flash.to(dtype), no_flash.to(dtype)

    def smooth(image: Tensor, guide: Tensor | None = None) -> Tensor:
        return bilateral_filter(image, guide, sigma_space=sigma_space, sigma_color=sigma_color, guide_range=(0.0, 1.0))

    guide = own_guide("flash", lit)
    lit_base, dark_base = smooth(torch.cat([lit, dark], 1), guide).split([lit.shape[1], dark.shape[1]], 1)
    own = smooth(dark)
    detail = (lit.clamp(min=0) + _DETAIL_FLOOR) / (lit_base + _DETAIL_FLOOR)
    if detail.shape[1] > dark.shape[1]:
        detail = luma(detail)[:, None]
    mask = _step(guide, *_HIGHLIGHT)
    if exposure is not None:
        floor = _DARKEST**gamma
        whole, ambient = (power(own_guide("base", base).clamp(min=_DARKEST), gamma) for base in (lit_base, dark_base))
        added = 1 - exposure * (ambient - floor) / whole
        mask = torch.maximum(mask, 1 - _step(added, *_SHADOW))
    mask = mask[:, None]
    return ((1 - mask) * dark_base * detail + mask * own).to(no_flash.dtype)


def refuse_other_scales(**images: Tensor) -> None:
    """Refuses images ``(N, C, H, W)`` on the CPU that are plainly not in [0, 1], such as those of 8 bits. Noise may leave it a little."""
    for name, image in images.items():
        if (
            torch.compiler.is_compiling()
            or image.device.type != "cpu"
            or not image.numel()
            or not can_be_looked_at(image)
        ):
            continue
        least, greatest = _backend.aminmax(image.detach().flatten(0, 1))
        # False where a value is not finite.
        if least < -1 or greatest > 2:
            raise ValueError(
                f"{name} must hold values from 0 to 1, got {least:g} to {greatest:g}: divide by their white"
            )


def within_range(luma: Tensor, chroma: Tensor, least: float = 0.0, greatest: float = 1.0) -> Tensor:
    """``luma + s chroma``, ``(N, 3, H, W)``, with the largest ``s`` up to 1 that keeps all channels in range: colours lose saturation, not luma or hue."""
    value = luma[:, None]
    room = torch.where(chroma > 0, greatest - value, value - least).clamp(min=torch.finfo(value.dtype).tiny ** 0.5)
    return value + chroma / (chroma.abs() / room).amax(1, keepdim=True).clamp(min=1)


def _with_luma(image: Tensor, before: Tensor, after: Tensor, least: float, greatest: float) -> Tensor:
    """The image ``(N, 3, H, W)`` with its luma changed from ``before`` to ``after``, ``(N, H, W)``."""
    gain = (after - least) / (before - least).clamp(min=1e-3 * (greatest - least))
    return within_range(after, gain[:, None] * (image - before[:, None]), least, greatest)


def _running_sum(grid: Tensor) -> Tensor:
    """The sum of each node and those below it in z, by doubling: torch's cumsum has no fixed order on a GPU."""
    reach = 1
    while reach < grid.shape[2]:
        grid = grid + torch.nn.functional.pad(grid[:, :, :-reach], (0, 0, 0, 0, reach, 0))
        reach *= 2
    return grid


def _ramp(lattice: Lattice, least: float, greatest: float, like: Tensor) -> Tensor:
    """From 0 at the node of the least value to 1 at that of the greatest, ``(D, 1, 1)``."""
    scale, offset = lattice.scale[0], lattice.offset[0]
    z = torch.arange(lattice.size[0], dtype=like.dtype, device=like.device)
    return (((z - offset) / scale - least) / (greatest - least)).clamp(0, 1)[:, None, None]


def _step(value: Tensor, start: float, end: float) -> Tensor:
    """From 0 at ``start`` to 1 at ``end``, without a kink at either."""
    t = ((value - start) / (end - start)).clamp(0, 1)
    return t * t * (3 - 2 * t)
