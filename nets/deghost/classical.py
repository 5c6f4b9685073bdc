"""The merges that know nothing of motion: Debevec and Malik's radiance, and Mertens, Kautz and Van Reeth's fusion."""

from __future__ import annotations

import cv2
import numpy as np


def debevec(ldr: np.ndarray, ev: np.ndarray, gamma: float = 2.2) -> np.ndarray:
    """The radiance that several exposures ``(K, H, W, 3)`` agree on, each pixel weighed by how well it is exposed: ``(H, W, 3)`` float32 in [0, 1]."""
    radiance = ldr**gamma / np.exp2(ev - ev.min())[:, None, None, None]
    weight = 1 - np.abs(2 * ldr - 1)
    total = weight.sum(0)
    clipped = np.where(ldr[np.argmin(ev)] > 0.5, radiance[np.argmin(ev)], radiance[np.argmax(ev)])
    merged = np.where(total > 0, (weight * radiance).sum(0) / np.maximum(total, 1e-12), clipped)
    return merged.astype(np.float32)


def mertens(ldr: np.ndarray) -> np.ndarray:
    """Exposure fusion of ``(K, H, W, 3)``: a picture to look at, ``(H, W, 3)`` float32 in [0, 1]."""
    fused = cv2.createMergeMertens().process([np.ascontiguousarray(picture * 255) for picture in ldr])
    return np.clip(fused, 0, 1).astype(np.float32)
