"""An image's colours warped to another's before the two are compared, as metrics of gsplat, nerfstudio and Mip-NeRF 360 do."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bilagrid._numbers import number
from bilagrid.ops import _checks

# Pixels whose quadratic terms are computed at a time: as many as a cache holds, so that a 12-megapixel image takes no more memory than a small one.
_ROWS = 1 << 15
# Singular values below float32's rounding of the largest count as 0; their squares are the eigenvalues of the normal equations.
_RANK_TOLERANCE = torch.finfo(torch.float32).eps ** 2
# The least variance of a channel of the reference, and the least slope that is divided by.
_LEAST = 1e-8


def color_correct(img: Tensor, ref: Tensor, num_iters: int = 5, eps: float = 0.5 / 255) -> Tensor:
    """Warps the colours of ``img`` to those of ``ref`` by a quadratic polynomial a channel, refitted ``num_iters`` times::

        out_c = clip(sum_{i<=j} q_cij img_i img_j + sum_i l_ci img_i + b_c, 0, 1)     least squares over the pixels that are not clipped

    A pixel takes part in a channel's fit if its values in ``img``, in ``ref`` and in the estimate so far lie in [eps, 1 - eps]. It is used on a rendered image
    before that is measured against a photograph whose exposure it cannot know.

    Args:
        img: ``(..., C)`` in [0, 1]; all pixels share one warp.
        ref: of the same shape.
        num_iters: number of fits; each starts from the result of the one before.
        eps: how near 0 or 1 a value counts as clipped.

    Returns:
        An image of ``img``'s shape and dtype. The normal equations are summed in float64, block by block, so that no copies of the image are stored. Where the
        pixels do not determine the polynomial, as of a flat image, it is the smallest one that fits.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: other shapes, values or an ``eps`` that are not finite, or a negative ``num_iters``.

    Source: the metric of Barron et al., "Mip-NeRF 360", CVPR 2022, as gsplat's ``color_correct_quadratic`` and nerfstudio have it.

    Example:
        >>> image = 0.1 + 0.8 * torch.rand(20, 30, 3)
        >>> torch.testing.assert_close(color_correct(image.square(), image.square() / 2 + 0.1), image.square() / 2 + 0.1, atol=1e-5, rtol=0)
    """
    pixels, wanted = _pixels(img, ref)
    if not isinstance(num_iters, int) or num_iters < 0:
        raise ValueError(f"num_iters must be a number of fits, 0 or more, got {num_iters!r}")

    if not math.isfinite(number("eps", eps)):
        raise ValueError(f"eps must be finite, got {eps}")

    def unclipped(values: Tensor) -> Tensor:
        return (values >= eps) & (values <= 1 - eps)

    fixed = unclipped(pixels) & unclipped(wanted)
    for _ in range(num_iters):
        warp = _fit(pixels, wanted, fixed & unclipped(pixels))
        pixels = torch.cat([(_terms(block) @ warp).clamp(0, 1).to(pixels.dtype) for block in pixels.split(_ROWS)])
    return pixels.reshape(img.shape)


color_correct_quadratic = color_correct


def color_correct_affine(img: Tensor, ref: Tensor) -> Tensor:
    """Warps the colours of ``img`` to those of ``ref`` by a gain and an offset a channel::

        out = clip((img - b) / a, 0, 1),   a = cov(ref, img) / var(ref),   b = mean(img) - a mean(ref)

    which is the inverse of the line that leads best from ``ref`` to ``img``.

    Args:
        img: ``(..., C)`` in [0, 1]; all pixels share one warp.
        ref: of the same shape.

    Returns:
        An image of ``img``'s shape and dtype; sums are in float64. A channel whose slope a is below 1e-8 keeps its contrast.

    Raises:
        TypeError: a dtype that is not floating.
        ValueError: other shapes, or values that are not finite.

    Source: gsplat's ``color_correct_affine``.

    Example:
        >>> image = torch.rand(20, 30, 3)
        >>> torch.testing.assert_close(color_correct_affine(image / 2 + 0.1, image), image, atol=1e-5, rtol=0)
    """
    pixels, wanted = _pixels(img, ref)
    mean, wanted_mean = pixels.mean(0, dtype=torch.float64), wanted.mean(0, dtype=torch.float64)
    off = wanted.double() - wanted_mean
    slope = (off * (pixels.double() - mean)).mean(0) / off.square().mean(0).clamp(min=_LEAST)
    offset = mean - slope * wanted_mean
    slope = torch.where(slope.abs() < _LEAST, torch.ones_like(slope), slope)
    return ((pixels - offset) / slope).clamp(0, 1).to(img.dtype).reshape(img.shape)


def _pixels(img: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
    """Checks both images and gives them as pixels ``(P, C)``."""
    _checks.tensors(img=img, ref=ref)
    if img.ndim < 1 or img.shape != ref.shape:
        raise ValueError(f"ref must have the shape of img, (..., C) = {tuple(img.shape)}, got {tuple(ref.shape)}")
    if img.numel() == 0:
        raise ValueError(f"img must hold at least one pixel, got {tuple(img.shape)}")
    for name, tensor in (("img", img), ("ref", ref)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got values that are NaN or infinite")
    return img.reshape(-1, img.shape[-1]), ref.reshape(-1, ref.shape[-1])


def _terms(pixels: Tensor) -> Tensor:
    """Products of any two channels, the channels and 1, in float64."""
    pixels = pixels.double()
    channels = pixels.shape[1]
    products = [pixels[:, c : c + 1] * pixels[:, c:] for c in range(channels)]
    return torch.cat([*products, pixels, torch.ones_like(pixels[:, :1])], 1)


def _fit(pixels: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """The coefficients ``(terms, C)`` that lead from the terms of ``pixels`` to ``wanted`` by least squares, each channel over the pixels of its ``mask``."""
    channels = pixels.shape[1]
    normal: list[Tensor | float] = [0.0] * channels
    right: list[Tensor | float] = [0.0] * channels
    for block, target, kept in zip(pixels.split(_ROWS), wanted.split(_ROWS), mask.split(_ROWS), strict=True):
        terms = _terms(block)
        for c in range(channels):
            weighted = terms * kept[:, c : c + 1]
            normal[c] = normal[c] + weighted.T @ terms
            right[c] = right[c] + weighted.T @ target[:, c].double()
    solved = [
        torch.linalg.pinv(n, rtol=_RANK_TOLERANCE, hermitian=True) @ r for n, r in zip(normal, right, strict=True)
    ]
    return torch.stack(solved, 1)
