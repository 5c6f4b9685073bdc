"""The bilateral filter over a window, one pixel of it after another, as kornia and OpenCV define it."""

from __future__ import annotations

import numpy as np

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def bilateral_blur(image, guidance, kernel_size, sigma_color, sigma_space, border_type, color_distance_type):
    """Of one image ``(C, H, W)`` by the differences of a guidance ``(G, H, W)``."""
    down, right = kernel_size[0] // 2, kernel_size[1] // 2
    around = [np.pad(a, [(0, 0), (down, down), (right, right)], mode=_MODES[border_type]) for a in (image, guidance)]
    _, height, width = image.shape
    weighted, weights = np.zeros(image.shape), np.zeros((height, width))
    for i in range(kernel_size[0]):
        for j in range(kernel_size[1]):
            there, guide = (a[:, i : i + height, j : j + width] for a in around)
            difference = np.abs(guide - guidance)
            squared = difference.sum(0) ** 2 if color_distance_type == "l1" else (difference**2).sum(0)
            away = ((i - down) / sigma_space[0]) ** 2 + ((j - right) / sigma_space[1]) ** 2
            weight = np.exp(-0.5 * away - 0.5 * squared / sigma_color**2)
            weighted += weight * there
            weights += weight
    return weighted / weights
