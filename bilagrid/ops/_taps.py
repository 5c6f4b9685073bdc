"""The taps of a Gaussian in nodes."""

from __future__ import annotations

import math

import numpy as np

# A narrower Gaussian has no tap but the middle one, even in float64, and the exponents of the others could overflow.
NARROWEST = 0.01


def radius(sigma: float) -> int:
    """The number of taps on either side of the middle one."""
    return math.ceil(3 * sigma)


def gaussian_taps(sigma: float) -> np.ndarray:
    """``exp(-k² / 2 sigma²)`` for ``|k| <= ceil(3 sigma)``, summing to 1, in float64; a single 1 for sigma 0."""
    k = np.arange(-radius(sigma), radius(sigma) + 1)
    taps = np.exp(-0.5 * (k / max(sigma, NARROWEST)) ** 2)
    return taps / taps.sum()
