"""kornia's bilateral filters under their own names and signatures, on the grid: ``from bilagrid.compat.kornia import bilateral_blur``.

kornia weighs every pixel of a window and holds the windows of all pixels in memory. The grid's cost does not grow with the window. Two things differ:

- The window. kornia's is a Gaussian cut off at the window's edge; here it is a Gaussian of the variance that is left after the cut, along y and along x.
- The colour distance. A grid tells colours apart along one axis only. For a guidance of one channel that is kornia's own distance. One of more channels is
  refused unless ``gray_distance=True`` asks for the distance along gray: ``|sum_c d_c|`` in place of ``sum_c |d_c|`` (l1), ``|sum_c d_c| / sqrt(C)`` in place of
  ``sqrt(sum_c d_c²)`` (l2). It is the same where all channels differ by as much, and smaller where they differ in colour.

Accuracy against kornia 0.8.1, values from 0 to 1, sigma_color 0.1 and 0.2, held by ``python -m pytest tests/test_compat_kornia.py`` on crops of photographs. One
channel: at least 53 dB for windows of 3 sigma to each side, 49 dB from 2 sigma and 38 dB for any, the worst on a page of text. Along gray: at least 43 dB where
colours are muted, but 35 dB on a colourful portrait, where edges between colours of similar brightness are smoothed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bilagrid._numbers import numbers
from bilagrid.filters import can_be_looked_at, filter_lattice, measured_range, refuse_too_large
from bilagrid.ops import _checks
from bilagrid.ops._backend import has_values
from bilagrid.ops._dtypes import widened
from bilagrid.ops._same_bits import spread
from bilagrid.ops._vmap import is_mapped
from bilagrid.ops.slice import slice_normalized_
from bilagrid.ops.splat import splat_blurred_

__all__ = ["BilateralBlur", "JointBilateralBlur", "bilateral_blur", "joint_bilateral_blur"]

_BORDERS = ("constant", "reflect", "replicate", "circular")
_DISTANCES = ("l1", "l2")


def bilateral_blur(
    input: Tensor,
    kernel_size: tuple[int, int] | int,
    sigma_color: float | Tensor,
    sigma_space: tuple[float, float] | Tensor,
    border_type: str = "reflect",
    color_distance_type: str = "l1",
    *,
    gray_distance: bool = False,
    guide_range: tuple[float, float] | None = None,
) -> Tensor:
    """Smooths an image within its edges, as ``kornia.filters.bilateral_blur``: `joint_bilateral_blur` with the image as its own guidance.

    Args:
        input: ``(B, C, H, W)``, any floating type and strides. For more than one channel pass ``gray_distance=True``, or use `joint_bilateral_blur` with a
            guidance of one channel, such as the luma.
        kernel_size, sigma_color, sigma_space, border_type, color_distance_type, gray_distance, guide_range: as in `joint_bilateral_blur`.

    Returns:
        ``(B, C, H, W)`` in the input's dtype.

    Raises:
        TypeError, ValueError: as in `joint_bilateral_blur`.

    Gradients: to input and a tensor of sigma_color, of any order in reverse mode. Deterministic. Accuracy: see `bilagrid.compat.kornia`.

    Example:
        >>> step = (torch.arange(64) > 31).float().expand(1, 1, 48, 64)
        >>> smooth = bilateral_blur(step + 0.05 * torch.rand(1, 1, 48, 64), (13, 13), 0.1, (2, 2))
        >>> bool((smooth[..., 32] - smooth[..., 31]).min() > 0.9)
        True
    """
    options = (kernel_size, sigma_color, sigma_space, border_type, color_distance_type, gray_distance, guide_range)
    return _blur(input, input, "input", *options)


def joint_bilateral_blur(
    input: Tensor,
    guidance: Tensor,
    kernel_size: tuple[int, int] | int,
    sigma_color: float | Tensor,
    sigma_space: tuple[float, float] | Tensor,
    border_type: str = "reflect",
    color_distance_type: str = "l1",
    *,
    gray_distance: bool = False,
    guide_range: tuple[float, float] | None = None,
) -> Tensor:
    """Smooths an image within another's edges, as ``kornia.filters.joint_bilateral_blur``::

        out(p) = sum_q w(p, q) input(q) / sum_q w(p, q),   w(p, q) = exp(-|p - q|² / 2 sigma_space² - |guidance(p) - guidance(q)|² / 2 sigma_color²)

    with q in the window around p, and pixels beyond the border continued by ``border_type``.

    Args:
        input: ``(B, C, H, W)``, any floating type, strides and number of channels.
        guidance: ``(B, 1, H, W)``; of more channels with ``gray_distance=True``.
        kernel_size: ``(y, x)`` or one number, the size of the window in pixels, odd and at least 3. It counts only by the variance that it leaves of the
            Gaussian, and by how far the image is continued beyond its border.
        sigma_color: standard deviation in units of the distance: a number, or a tensor ``(B,)`` with one for each image. With a ``guide_range`` the host waits
            for the tensor's values.
        sigma_space: standard deviations ``(y, x)`` in pixels: two numbers, or a tensor ``(2,)`` or ``(B, 2)``, whose values the host waits for and which has
            no gradient.
        border_type: ``"constant"`` (0), ``"reflect"`` (without repeating the border pixel), ``"replicate"`` or ``"circular"``.
        color_distance_type: ``"l1"`` or ``"l2"``; for one channel they are the same.
        gray_distance: whether the distance of several channels is taken along gray; `bilagrid.compat.kornia` says what that changes.
        guide_range: least and greatest value of the guidance, over all channels; None measures it, a synchronisation, as in `bilagrid.bilateral_filter`.

    Returns:
        ``(B, C, H, W)`` in the input's dtype.

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes that do not fit, a guidance of several channels without ``gray_distance``, an even window or one that reaches beyond what the
            border type can continue, a sigma that is not positive, another border or distance, or a grid that would not fit in memory.

    Gradients: to input, guidance and a tensor of sigma_color, of any order in reverse mode. Deterministic.

    Accuracy: `bilagrid.compat.kornia` says how near it comes to kornia's own.

    Source: kornia's documentation; Paris and Durand, ECCV 2006.

    Example:
        >>> image = torch.rand(2, 3, 48, 64)
        >>> joint_bilateral_blur(image, image.mean(1, keepdim=True), 13, torch.tensor([0.1, 0.2]), (2, 2)).shape
        torch.Size([2, 3, 48, 64])
    """
    options = (kernel_size, sigma_color, sigma_space, border_type, color_distance_type, gray_distance, guide_range)
    return _blur(input, guidance, "guidance", *options)


class _Blur(nn.Module):
    """The options of both modules, shown as kornia shows them."""

    def __init__(
        self,
        kernel_size: tuple[int, int] | int,
        sigma_color: float | Tensor,
        sigma_space: tuple[float, float] | Tensor,
        border_type: str = "reflect",
        color_distance_type: str = "l1",
        *,
        gray_distance: bool = False,
        guide_range: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.sigma_color, self.sigma_space = kernel_size, sigma_color, sigma_space
        self.border_type, self.color_distance_type = border_type, color_distance_type
        self.gray_distance, self.guide_range = gray_distance, guide_range

    def _options(self) -> dict[str, Any]:
        names = ("kernel_size", "sigma_color", "sigma_space", "border_type", "color_distance_type")
        return {name: getattr(self, name) for name in (*names, "gray_distance", "guide_range")}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._options().items())


class BilateralBlur(_Blur):
    """`bilateral_blur` as a module, as ``kornia.filters.BilateralBlur``.

    Example:
        >>> BilateralBlur((13, 13), 0.1, (2.0, 2.0))(torch.rand(2, 1, 48, 64)).shape
        torch.Size([2, 1, 48, 64])
    """

    def forward(self, input: Tensor) -> Tensor:
        return bilateral_blur(input, **self._options())


class JointBilateralBlur(_Blur):
    """`joint_bilateral_blur` as a module, as ``kornia.filters.JointBilateralBlur``.

    Example:
        >>> JointBilateralBlur((13, 13), 0.1, (2.0, 2.0))(torch.rand(2, 3, 48, 64), torch.rand(2, 1, 48, 64)).shape
        torch.Size([2, 3, 48, 64])
    """

    def forward(self, input: Tensor, guidance: Tensor) -> Tensor:
        return joint_bilateral_blur(input, guidance, **self._options())


def _blur(
    input: Tensor,
    guidance: Tensor,
    name: str,
    kernel_size: tuple[int, int] | int,
    sigma_color: float | Tensor,
    sigma_space: tuple[float, float] | Tensor,
    border_type: str,
    color_distance_type: str,
    gray_distance: bool,
    guide_range: tuple[float, float] | None,
) -> Tensor:
    """Both filters. An error calls the guidance by its ``name``."""
    _checks.tensors(input=input, guidance=guidance)
    _checks.rank("input", input, "(N, C, H, W)")
    _checks.rank(name, guidance, "(N, C, H, W)")
    _checks.same(name, guidance, "(N, C, H, W)", (len(input), guidance.shape[1], *input.shape[2:]), "input")
    reach = _reach(kernel_size, (input.shape[2], input.shape[3]), border_type)
    _checks.flag("gray_distance", gray_distance)
    if color_distance_type not in _DISTANCES:
        raise ValueError(f'color_distance_type must be "l1" or "l2", got {color_distance_type!r}')
    channels = guidance.shape[1]
    if channels > 1 and not gray_distance:
        raise ValueError(
            f"{name} must have 1 channel for a grid to measure its distances, got {channels}: pass gray_distance=True for distances along gray, "
            "or a guidance of one channel to joint_bilateral_blur"
        )
    sigmas = _sigmas_space(sigma_space, len(input))

    # With one channel, both distances are the difference of the guide.
    share = channels ** (0.0 if color_distance_type == "l1" else -0.5)
    guide = widened(guidance)[:, 0] if channels == 1 else share * widened(guidance).sum(1)
    if guide_range is not None:
        least, greatest = numbers("guide_range", "(least, greatest)", guide_range)
        guide_range = channels * share * least, channels * share * greatest
        ranges = [guide_range]
    if isinstance(sigma_color, Tensor):
        sigma = _sigma_color(sigma_color, input).to(guide.dtype)
        guide = guide / spread(sigma[:, None, None], guide)
        if guide_range is not None:
            _refuse_unseen("sigma_color", sigma, "a number")
            # Each image's own, or an image would depend on the others of its batch.
            ranges = [(guide_range[0] / one, guide_range[1] / one) for one in sigma.detach().tolist()]
        sigma_color = 1.0

    padded, around = input, guide
    for axis, pixels in enumerate(reach, -2):
        padded, around = (_continued(one, axis, pixels, border_type) for one in (padded, around))
    if guide_range is None:
        ranges = [measured_range(name, around)]
    parts = [
        _on_grid(padded[images], around[images], guide[images], pair, reach, sigma_color, ends)
        for images, pair, ends in _shares(len(input), sigmas, ranges)
    ]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(input.dtype)


def _on_grid(
    padded: Tensor,
    around: Tensor,
    guide: Tensor,
    sigmas: Sequence[float],
    reach: tuple[int, int],
    sigma_color: float,
    guide_range: tuple[float, float],
) -> Tensor:
    """Filters an image that was continued by ``reach``; the result is of the image itself."""
    lattice, (z, _, _) = filter_lattice(around, 1.0, sigma_color, guide_range)
    size, steps, blurs = [lattice.size[0]], [lattice.steps[0]], [z]
    for axis, (sigma, pixels) in enumerate(zip(sigmas, reach, strict=True), 1):
        left = _deviation(sigma, pixels)
        if left < 1:
            # A node at each pixel, where the tents blur nothing.
            size.append(around.shape[axis])
            steps.append(1.0)
            blurs.append(_with_deviation(left))
        else:
            along, sigma_nodes = filter_lattice(around, left, sigma_color, guide_range)
            size.append(along.size[axis])
            steps.append(along.steps[axis])
            blurs.append(sigma_nodes[axis])
    depth, rows, columns = size
    lattice = replace(lattice, size=(depth, rows, columns), steps=(*steps, *lattice.steps[3:]))
    refuse_too_large(lattice, padded)
    grid = splat_blurred_(padded, around, lattice, (blurs[0], blurs[1], blurs[2]))
    return slice_normalized_(grid, guide, lattice.crop(*reach))


def _deviation(sigma: float, reach: int) -> float:
    """The standard deviation of a Gaussian's taps within ``reach`` pixels of the middle."""
    taps = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(reach + 1)]
    spread = sum(2 * k**2 * tap for k, tap in enumerate(taps))
    return math.sqrt(spread / (2 * sum(taps) - 1))


def _with_deviation(deviation: float) -> float:
    """The sigma for which `blur`'s taps have this standard deviation, which is less than a node."""
    least, most = 0.0, 2.0
    for _ in range(50):
        middle = (least + most) / 2
        least, most = (middle, most) if _deviation(middle, math.ceil(3 * middle)) < deviation else (least, middle)
    return most


def _continued(image: Tensor, axis: int, pixels: int, border_type: str) -> Tensor:
    """The image with that many more ``pixels`` at both ends of an axis. Made of slices: torch's own padding adds its gradients in no fixed order on a GPU."""
    extent = image.shape[axis]
    if border_type == "constant":
        shape = [pixels if axis in (k, k - image.ndim) else size for k, size in enumerate(image.shape)]
        before = after = image.new_zeros(shape)
    elif border_type == "reflect":
        before = image.narrow(axis, 1, pixels).flip(axis)
        after = image.narrow(axis, extent - 1 - pixels, pixels).flip(axis)
    elif border_type == "replicate":
        times = [pixels if axis in (k, k - image.ndim) else -1 for k in range(image.ndim)]
        before, after = image.narrow(axis, 0, 1).expand(times), image.narrow(axis, extent - 1, 1).expand(times)
    else:
        before, after = image.narrow(axis, extent - pixels, pixels), image.narrow(axis, 0, pixels)
    return torch.cat([before, image, after], axis)


def _reach(kernel_size: Any, image_size: tuple[int, int], border_type: str) -> tuple[int, int]:
    """How far the window goes from its middle along y and x."""
    if border_type not in _BORDERS:
        raise ValueError(f"border_type must be one of {', '.join(_BORDERS)}, got {border_type!r}")
    pair = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size, kernel_size)
    if len(pair) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) for size in pair):
        raise TypeError(f"kernel_size must be (y, x) in whole pixels, or one number for both, got {kernel_size!r}")
    if not all(size >= 3 and size % 2 for size in pair):
        raise ValueError(f"kernel_size must be odd and at least 3 along y and x, got {kernel_size!r}")
    reach = pair[0] // 2, pair[1] // 2
    # An image is continued by its own pixels: reflected by at most one less than its extent, in a circle by as many.
    spare = {"reflect": -1, "circular": 0}.get(border_type)
    if spare is not None and any(pixels > extent + spare for pixels, extent in zip(reach, image_size, strict=True)):
        raise ValueError(
            f"kernel_size must reach at most {'as far as' if spare == 0 else 'one pixel less than'} the image's (H, W) = {tuple(image_size)} for "
            f'border_type "{border_type}", got {kernel_size!r}; take a smaller window or "replicate"'
        )
    return reach


def _sigmas_space(sigma_space: Any, batch: int) -> list[tuple[float, float]]:
    """Standard deviations ``(y, x)``: one pair for all images, or one for each where they differ."""
    if isinstance(sigma_space, Tensor):
        if tuple(sigma_space.shape) not in ((2,), (1, 2), (batch, 2)):
            raise ValueError(
                f"sigma_space must have shape (2,) or (B, 2) = {(batch, 2)}, got {tuple(sigma_space.shape)}"
            )
        _refuse_unseen("sigma_space", sigma_space, "(y, x), two numbers,")
        if sigma_space.requires_grad:
            raise ValueError("sigma_space must have no gradient, which the grid has not: pass sigma_space.detach()")
        pairs = [(y, x) for y, x in sigma_space.double().reshape(-1, 2).tolist()]
    else:
        y, x = numbers("sigma_space", "(y, x)", sigma_space)
        pairs = [(y, x)]
    for pair in pairs:
        if not all(0 < sigma < math.inf for sigma in pair):
            raise ValueError(f"sigma_space must be finite numbers above 0, got {pair}")
    return pairs[:1] if len(set(pairs)) == 1 else pairs


def _refuse_unseen(name: str, sigmas: Tensor, instead: str) -> None:
    if not torch.compiler.is_compiling() and (is_mapped(sigmas) or not has_values(sigmas)):
        raise ValueError(f"{name} must be {instead} where a tensor's values cannot be looked at, as under vmap")


def _shares(
    batch: int, sigmas: list[tuple[float, float]], ranges: list[tuple[float, float]]
) -> list[tuple[slice, tuple[float, float], tuple[float, float]]]:
    """The slices of the batch that are filtered at once, each with its sigmas and its range: all images, or one by one where these differ."""
    if batch == 0:
        return [(slice(0), (1.0, 1.0), (0.0, 0.0))]
    sigmas, ranges = (one * batch if len(one) == 1 else one for one in (sigmas, ranges))
    each = list(zip(sigmas, ranges, strict=True))
    if len(set(each)) == 1:
        return [(slice(batch), *each[0])]
    return [(slice(n, n + 1), *one) for n, one in enumerate(each)]


def _sigma_color(sigma_color: Tensor, input: Tensor) -> Tensor:
    """``(B,)``, above 0 where that can be looked at."""
    if tuple(sigma_color.shape) != (len(input),):
        raise ValueError(
            f"sigma_color must be a number or have shape (B,) = ({len(input)},), got {tuple(sigma_color.shape)}"
        )
    if not sigma_color.is_floating_point():
        raise TypeError(f"sigma_color must be floating, got {sigma_color.dtype}")
    if sigma_color.device != input.device:
        raise ValueError(f"sigma_color must be on {input.device} as input is, got {sigma_color.device}")
    look = sigma_color.device.type == "cpu" and not torch.compiler.is_compiling() and can_be_looked_at(sigma_color)
    if look and not bool((sigma_color > 0).all()):
        raise ValueError(f"sigma_color must be above 0 for every image, got {sigma_color.tolist()}")
    return sigma_color
