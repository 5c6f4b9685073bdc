"""How far a picture is from the truth, both (H, W, C) in [0, 1]."""

from __future__ import annotations

import numpy as np
import skimage.metrics

# Pixels that the Gaussian of `ssim` covers.
_WINDOW = 11


def psnr(result: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, peak 1; infinite where the two are equal."""
    error = np.mean((result.astype(np.float64) - truth) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(result: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity by scikit-image, Gaussian-weighted as published. Pictures smaller than its window of 11 are mirrored beyond their borders."""
    pads = [(missing // 2, missing - missing // 2) for missing in (max(0, _WINDOW - n) for n in result.shape[:2])]
    result, truth = (np.pad(pixels, [*pads, (0, 0)], mode="symmetric") for pixels in (result, truth))
    return float(
        skimage.metrics.structural_similarity(
            result, truth, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
    )
