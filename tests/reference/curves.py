from __future__ import annotations

import numpy as np


def _unclipped(pixel: np.ndarray, parameters: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """Of one pixel (C,): the mixed channels u (M,), what the curve of each gives (M,), and their weighted sum."""
    matrix, bias, shifts, slopes, mix, mix_bias = parameters
    mixed = np.zeros(len(bias))
    curved = np.zeros(len(bias))
    total = float(mix_bias)
    for c in range(len(bias)):
        mixed[c] = bias[c]
        for i in range(len(pixel)):
            mixed[c] += matrix[c, i] * pixel[i]
        for k in range(shifts.shape[1]):
            curved[c] += slopes[c, k] * np.maximum(mixed[c] - shifts[c, k], 0)
        total += mix[c] * curved[c]
    return mixed, curved, total


def curves(image: np.ndarray, *parameters: np.ndarray) -> np.ndarray:
    """``clip(sum_c mix_c sum_k slopes_ck relu(u_c - shifts_ck) + mix_bias, 0, 1)``, ``u = matrix image + bias``."""
    batch, _, height, width = image.shape
    out = np.zeros((batch, height, width))
    for n, i, j in np.ndindex(out.shape):
        out[n, i, j] = np.clip(_unclipped(image[n, :, i, j], list(parameters))[2], 0, 1)
    return out


def curves_bwd(image: np.ndarray, grad: np.ndarray, *parameters: np.ndarray) -> list[np.ndarray]:
    """Gradients by the image and every parameter. A pixel outside of [0, 1] has none, and is NaN in the image's where it is NaN itself."""
    matrix, bias, shifts, slopes, mix, _ = parameters
    by_image = np.zeros(image.shape)
    by_matrix, by_bias, by_shifts, by_slopes, by_mix, by_mix_bias = (np.zeros(p.shape) for p in parameters)
    for n, i, j in np.ndindex(grad.shape):
        pixel = image[n, :, i, j]
        mixed, curved, total = _unclipped(pixel, list(parameters))
        if np.isnan(total):
            by_image[n, :, i, j] = np.nan
        if not 0 <= total <= 1:
            continue
        g = grad[n, i, j]
        by_mix_bias += g
        for c in range(len(bias)):
            by_mix[c] += g * curved[c]
            by_mixed = 0.0
            for k in range(shifts.shape[1]):
                if mixed[c] > shifts[c, k]:
                    by_slopes[c, k] += g * mix[c] * (mixed[c] - shifts[c, k])
                    by_shifts[c, k] -= g * mix[c] * slopes[c, k]
                    by_mixed += g * mix[c] * slopes[c, k]
            by_bias[c] += by_mixed
            by_matrix[c] += by_mixed * pixel
            by_image[n, :, i, j] += by_mixed * matrix[c]
    return [by_image, by_matrix, by_bias, by_shifts, by_slopes, by_mix, by_mix_bias]
