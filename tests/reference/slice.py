from __future__ import annotations

import numpy as np

from tests.reference.lattice import Lattice, pixel_weights


def slice(grid: np.ndarray, guide: np.ndarray, lattice: Lattice, dz: bool = False) -> np.ndarray:
    """``out[n, c, p] = sum_k w_k(p) grid[n, c, k]``."""
    batch, height, width = guide.shape
    out = np.zeros((batch, grid.shape[1], height, width))
    for n in range(batch):
        for i in range(height):
            for j in range(width):
                weights = pixel_weights(lattice, i, j, guide[n, i, j], dz)
                for c in range(grid.shape[1]):
                    out[n, c, i, j] = np.sum(weights * grid[n, c])
    return out


def slice_bwd_guide(grid: np.ndarray, guide: np.ndarray, grad: np.ndarray, lattice: Lattice) -> np.ndarray:
    """The gradient of slice by the guide: ``dz/dguide sum_c grad_c sum_k dw_k/dz grid[c, k]``."""
    return lattice.scale[0] * np.sum(grad * slice(grid, guide, lattice, dz=True), axis=1)
