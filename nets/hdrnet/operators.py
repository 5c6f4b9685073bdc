"""Photographic operators for a network to learn, by name: what a slow program does to a whole photograph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import skimage.exposure
import torch

import bilagrid
from bilagrid.pictures import array, tensor
from nets.luma import LUMA

# (H, W, 3) in [0, 1] to the same.
Operator = Callable[[np.ndarray], np.ndarray]


def tone(pixels: np.ndarray) -> np.ndarray:
    """An S-shaped tone curve on every channel, and more saturated colours."""
    curved = 0.5 + np.tanh(2.6 * (pixels - 0.45)) / (2 * np.tanh(2.6 * 0.55))
    gray = _luma(curved)
    return np.clip(gray + 1.4 * (curved - gray), 0, 1).astype(np.float32)


def clahe(pixels: np.ndarray) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of luma, in 8x8 tiles; the change is added to every channel."""
    gray = _luma(pixels)
    equal = skimage.exposure.equalize_adapthist(gray[..., 0].clip(0, 1).astype(np.float64), clip_limit=0.015)
    return np.clip(pixels + (equal[..., None] - gray), 0, 1).astype(np.float32)


def contrast(pixels: np.ndarray) -> np.ndarray:
    """Local contrast: the detail of luma, which a bilateral filter removes, is tripled, and the range of what remains is narrowed by a quarter."""
    gray = _luma(pixels)
    base = _base(gray)
    changed = 0.5 + 0.75 * (base - 0.5) + 3.0 * (gray - base)
    return np.clip(pixels + (changed - gray), 0, 1).astype(np.float32)


def shadows(pixels: np.ndarray) -> np.ndarray:
    """Shadows lifted and lights held back: each pixel gets the gain that takes its base, luma under a bilateral filter, to 0.85 times its 0.6th power."""
    base = np.clip(_base(_luma(pixels)), 0.02, 1)
    return np.clip(pixels * (0.85 * base**-0.4), 0, 1).astype(np.float32)


OPERATORS: dict[str, Operator] = {"tone": tone, "clahe": clahe, "contrast": contrast, "shadows": shadows}


def look(before: np.ndarray, after: np.ndarray) -> Operator:
    """What a pair of pictures does to colours, regardless of their place: an affine map for each of eight brightnesses, fitted to the pair."""
    image, target = tensor(before), tensor(after)
    grid = bilagrid.fit(image, target, size=(8, 1, 1), method="global")

    def apply(pixels: np.ndarray) -> np.ndarray:
        return array(bilagrid.slice_apply(grid, None, tensor(pixels)).clamp(0, 1))

    return apply


def _base(gray: np.ndarray) -> np.ndarray:
    """Luma (H, W, 1) smoothed within its edges, over 3 % of the longer side."""
    image = torch.from_numpy(np.ascontiguousarray(gray[None, None, ..., 0]))
    reach = 0.03 * max(image.shape[-2:])
    smooth = bilagrid.bilateral_filter(image, sigma_space=reach, sigma_color=0.15, guide_range=(0.0, 1.0))
    return smooth[0, 0, ..., None].numpy()


def _luma(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) to (H, W, 1)."""
    return (pixels @ np.array(LUMA, np.float32))[..., None]
