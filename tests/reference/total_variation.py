from __future__ import annotations

import numpy as np


def total_variation(grid: np.ndarray) -> float:
    """The mean squared difference of neighbours along z, plus that along y, plus that along x."""
    total = 0.0
    for axis in (2, 3, 4):
        differences = [np.take(grid, k + 1, axis) - np.take(grid, k, axis) for k in range(grid.shape[axis] - 1)]
        if differences and grid.size:
            total += float(np.mean(np.square(differences)))
    return total


def total_variation_bwd(grid: np.ndarray) -> np.ndarray:
    """Its gradient: twice each difference, given to one neighbour and taken from the other, over the number of differences."""
    grad = np.zeros_like(grid)
    for axis in (2, 3, 4):
        nodes = grid.shape[axis]
        count = grid.size // nodes * (nodes - 1)
        for k in range(nodes - 1):
            below, above = [np.s_[:]] * 5, [np.s_[:]] * 5
            below[axis], above[axis] = k, k + 1
            step = 2 * (grid[tuple(above)] - grid[tuple(below)]) / max(count, 1)
            grad[tuple(above)] += step
            grad[tuple(below)] -= step
    return grad
