"""The taps of a Gaussian in nodes."""

from __future__ import annotations

import math

import numpy as np

# Of any Gaussian narrower than this, all taps but the middle one are 0 in float64 too, and of some the exponents would overflow.
NARROWEST = 0.01


def radius(sigma: float) -> int:
    """Taps on either side of the middle one."""
    return math.ceil(3 * sigma)


def gaussian_taps(sigma: float) -> np.ndarray:
    """``exp(-k² / 2 sigma²)`` for ``|k| <= ceil(3 sigma)``, summing to 1, in float64; a single 1 for sigma 0."""
    k = np.arange(-radius(sigma), radius(sigma) + 1)
    taps = np.exp(-0.5 * (k / max(sigma, NARROWEST)) ** 2)
    return taps / taps.sum()
