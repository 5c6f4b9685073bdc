"""Merges that do not know of motion: Debevec and Malik's radiance, and Mertens, Kautz and Van Reeth's exposure fusion."""

from __future__ import annotations

import cv2
import numpy as np


def debevec(ldr: np.ndarray, ev: np.ndarray, gamma: float = 2.2, valid: np.ndarray | None = None) -> np.ndarray:
    """The radiance that several exposures agree on, each pixel weighed by how well it is exposed::

        H(p) = sum_i w_i(p) I_i(p)^gamma / t_i / sum_i w_i(p),   w_i(p) = 1 - |2 I_i(p) - 1|,   t_i = 2^(ev_i - min ev)

    Where all weights are 0, what is white is taken from the shortest exposure, and what is black from the longest.

    Args:
        ldr: ``(K, H, W, 3)`` in [0, 1], the exposures, encoded by gamma.
        ev: ``(K,)``, their log2 exposures, in any order and from any zero.
        gamma: the encoding; 1 for what is linear already.
        valid: ``(K, H, W)``, where each exposure shows the scene; by default everywhere. A pixel that none shows is treated as if all did.

    Returns:
        ``(H, W, 3)`` float32 in [0, 1], where 1 is white in the shortest exposure.

    Raises:
        ValueError: shapes that do not fit, or exposures that are not finite.

    Source: Debevec and Malik, "Recovering high dynamic range radiance maps from photographs", SIGGRAPH 1997.

    Example:
        >>> radiance = np.full((4, 4, 3), 0.1, np.float32)
        >>> ldr = np.stack([radiance, 4 * radiance]) ** (1 / 2.2)
        >>> bool(np.allclose(debevec(ldr, np.array([0.0, 2.0])), radiance))
        True
    """
    ldr, ev = np.asarray(ldr, np.float32), np.asarray(ev, np.float64)
    _check(ldr)
    if ev.shape != ldr.shape[:1] or not np.isfinite(ev).all():
        raise ValueError(f"ev must be {ldr.shape[0]} finite numbers to match ldr, got {ev}")
    shown = np.ones(ldr.shape[:3], bool) if valid is None else np.asarray(valid, bool)
    if shown.shape != ldr.shape[:3]:
        raise ValueError(f"valid must have shape (K, H, W) = {ldr.shape[:3]} to match ldr, got {shown.shape}")
    shown = shown | ~shown.any(0)
    order = np.argsort(ev, kind="stable")
    total = np.zeros(ldr.shape[1:], np.float32)
    weight, fallback = np.zeros_like(total), np.zeros_like(total)
    seen = np.zeros((*total.shape[:2], 1), bool)
    for i in order[::-1]:
        encoded, here = np.clip(ldr[i], 0, 1), shown[i, ..., None]
        radiance = encoded**gamma / np.float32(2 ** (ev[i] - ev.min()))
        hat = (1 - np.abs(2 * encoded - 1)) * here
        total += hat * radiance
        weight += hat
        fallback = np.where(here & (~seen | (encoded > 0.5)), radiance, fallback)
        seen |= here
    return np.where(weight > 0, total / np.maximum(weight, np.float32(1e-12)), fallback)


def mertens(ldr: np.ndarray) -> np.ndarray:
    """Exposure fusion: a picture to look at, not a radiance; contrast, saturation and exposedness weigh the exposures in a pyramid.

    Args:
        ldr: ``(K, H, W, 3)`` in [0, 1], the exposures as the camera encoded them.

    Returns:
        ``(H, W, 3)`` float32 in [0, 1].

    Raises:
        ValueError: another shape.

    Source: Mertens, Kautz and Van Reeth, "Exposure fusion", Pacific Graphics 2007, as OpenCV has it.

    Example:
        >>> mertens(np.stack([np.full((8, 8, 3), value, np.float32) for value in (0.2, 0.8)])).shape
        (8, 8, 3)
    """
    ldr = np.asarray(ldr, np.float32)
    _check(ldr)
    # It divides by 255 whatever the type. It takes the first channel for blue, which does not matter, since its weights treat all channels alike.
    fused = cv2.createMergeMertens().process([np.ascontiguousarray(picture * 255) for picture in ldr])
    return np.clip(fused, 0, 1).astype(np.float32)


def _check(ldr: np.ndarray) -> None:
    if ldr.ndim != 4 or ldr.shape[0] < 2 or ldr.shape[3] != 3 or 0 in ldr.shape:
        raise ValueError(f"ldr must have shape (K, H, W, 3) with K at least 2, got {ldr.shape}")
