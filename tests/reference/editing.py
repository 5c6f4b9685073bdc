"""Equalisation from all pairs of pixels, colours from a dense matrix, and a flash merge by the exact filters."""

from __future__ import annotations

import numpy as np

from tests.reference.filters import bilateral_filter
from tests.reference.lattice import from_sigma, pixel_weights


def windows(height: int, width: int, sigma_space: float) -> np.ndarray:
    """The weight of each pixel (column) in the window of each (row), rows summing to 1."""
    place = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2)
    weight = np.exp(-((place[:, None] - place) ** 2).sum(-1) / (2 * sigma_space**2))
    return weight / weight.sum(1, keepdims=True)


def share_below(values: np.ndarray, sigma_space: float, shift: float = 0.0) -> np.ndarray:
    """The share of each pixel's window that lies below its value, moved by ``shift``; those of the same value count half."""
    height, width = values.shape
    flat = values.ravel()
    below = (flat < flat[:, None] + shift) + 0.5 * (flat == flat[:, None] + shift)
    return (windows(height, width, sigma_space) * below).sum(1).reshape(height, width)


def clipped_share(values: np.ndarray, bins: int, clip_limit: float) -> np.ndarray:
    """The same over the whole image for values in [0, 1], by a histogram of tents at k / bins, clipped, what is cut off spread evenly."""
    flat = values.ravel()
    nodes = np.arange(-1, bins + 2) / bins
    tents = np.maximum(0, 1 - bins * np.abs(flat[:, None] - nodes))
    histogram = tents.mean(0)
    kept = np.minimum(histogram, clip_limit / bins)
    below = np.array([kept[:k].sum() + kept[k] / 2 for k in range(len(nodes))])
    below += (1 - kept.sum()) * np.clip(nodes, 0, 1)
    return np.interp(flat, nodes, below).reshape(values.shape)


def spread(
    chroma: np.ndarray,
    weight: np.ndarray,
    guide: np.ndarray,
    sigma_space: float,
    sigma_color: float,
    smoothness: float,
) -> np.ndarray:
    """`colorize`'s grid, solved and sliced: chroma ``(C, H, W)`` of the strokes to that of every pixel, guide in [0, 1]."""
    channels, height, width = chroma.shape
    lattice = from_sigma(sigma_space, sigma_color, (height, width), (0.0, 1.0), (1.0, 1.0, 1.0))
    size = lattice.size
    tents = np.stack([pixel_weights(lattice, i, j, guide[i, j]) for i in range(height) for j in range(width)])
    pixels = tents.sum(0)
    index = np.arange(pixels.size).reshape(size)
    tents = tents.reshape(height * width, -1)
    mass = weight.ravel() @ tents
    matrix = np.diag(mass)
    for axis in range(3):
        for at in np.ndindex(*size):
            if at[axis] + 1 == size[axis]:
                continue
            after = tuple(n + (k == axis) for k, n in enumerate(at))
            a, b = (pixels[node] + 0.01 * sigma_space**2 for node in (at, after))
            link = smoothness * (0.1 if axis == 0 else 1.0) * 2 / (1 / a + 1 / b)
            k, n = index[at], index[after]
            matrix[[k, n, k, n], [k, n, n, k]] += [link, link, -link, -link]
    right = (weight.ravel() * chroma.reshape(channels, -1)) @ tents
    return (np.linalg.solve(matrix, right.T).T @ tents.T).reshape(channels, height, width)


def merge_flash(flash, no_flash, luma, sigma_space, sigma_color, exposure=None, gamma=2.2) -> np.ndarray:
    """Of images ``(C, H, W)``; ``luma`` makes ``(H, W)`` of one."""

    def step(value, start, end):
        t = np.clip((value - start) / (end - start), 0, 1)
        return 3 * t**2 - 2 * t**3

    guide = luma(flash)
    flash_base = bilateral_filter(flash, guide, sigma_space, sigma_color)
    cross = bilateral_filter(no_flash, guide, sigma_space, sigma_color)
    own = bilateral_filter(no_flash, luma(no_flash), sigma_space, sigma_color)
    mask = step(guide, 0.92, 0.98)
    if exposure is not None:
        added = 1 - exposure * luma(cross) ** gamma / luma(flash_base) ** gamma
        mask = np.maximum(mask, 1 - step(added, 0.05, 0.2))
    return (1 - mask) * cross * (flash + 0.02) / (flash_base + 0.02) + mask * own
