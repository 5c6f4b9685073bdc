from __future__ import annotations

import numpy as np

from tests.reference.lattice import Lattice, pixel_weights


def splat(values: np.ndarray, guide: np.ndarray, lattice: Lattice, dz: bool = False) -> np.ndarray:
    """``grid[n, c, k] = sum_p w_k(p) values[n, c, p]``; a pixel with a NaN guide is left out."""
    batch, channels, height, width = values.shape
    grid = np.zeros((batch, channels, *lattice.size))
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                if np.isnan(guide[n, i, j]):
                    continue
                weights = pixel_weights(lattice, i, j, guide[n, i, j], dz)
                for c in range(channels):
                    grid[n, c] += weights * values[n, c, i, j]
    return grid
