from __future__ import annotations

import math

import numpy as np


def bilateral_filter(image: np.ndarray, guide: np.ndarray, sigma_space: float, sigma_color: float) -> np.ndarray:
    """The exact filter of an image ``(C, H, W)``, over a window of three sigma: one shift of the image after another."""
    reach = math.ceil(3 * sigma_space)
    _, height, width = image.shape
    weighted, weights = np.zeros_like(image), np.zeros_like(guide)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            here = np.s_[max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
            there = np.s_[max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
            if abs(down) >= height or abs(right) >= width:
                continue
            space = math.exp(-(down**2 + right**2) / (2 * sigma_space**2))
            weight = space * np.exp(-((guide[here] - guide[there]) ** 2) / (2 * sigma_color**2))
            weighted[(slice(None), *here)] += weight * image[(slice(None), *there)]
            weights[here] += weight
    return weighted / weights


def joint_bilateral_upsample(low, guide_low, guide_high, sigma_space, sigma_color) -> np.ndarray:
    """Every high-resolution pixel from all low-resolution ones, pixel areas aligned."""
    channels, rows, columns = low.shape
    height, width = guide_high.shape
    out = np.zeros((channels, height, width))
    y, x = np.mgrid[:rows, :columns]
    for i in range(height):
        for j in range(width):
            down, right = (i + 0.5) * rows / height - 0.5 - y, (j + 0.5) * columns / width - 0.5 - x
            distance = (down**2 + right**2) / (2 * sigma_space**2)
            weight = np.exp(-distance - (guide_high[i, j] - guide_low) ** 2 / (2 * sigma_color**2))
            out[:, i, j] = (weight * low).sum((1, 2)) / weight.sum()
    return out
