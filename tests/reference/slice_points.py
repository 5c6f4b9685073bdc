from __future__ import annotations

import numpy as np

from tests.reference.lattice import axis_slopes, axis_weights


def _weights(point: np.ndarray, size: tuple[int, ...], by: str) -> np.ndarray:
    """``w[z, y, x]`` of all nodes at one point, differentiated by each coordinate named in ``by``; NaN where a coordinate is."""
    along = []
    for name, coordinate, nodes in zip("xyz", point, reversed(size), strict=True):
        if np.isnan(coordinate):
            along.append(np.full(nodes, np.nan))
        else:
            along.append((axis_slopes if name in by else axis_weights)(coordinate, nodes))
    return along[2][:, None, None] * along[1][:, None] * along[0]


def slice_points(grid: np.ndarray, points: np.ndarray, index: np.ndarray, by: str = "") -> np.ndarray:
    """``out[p, c] = sum_k w_k(p) grid[index[p], c, k]`` for points (P, 3)."""
    out = np.zeros((len(points), grid.shape[1]))
    for p, point in enumerate(points):
        weights = _weights(point, grid.shape[2:], by)
        for c in range(grid.shape[1]):
            out[p, c] = np.sum(weights * grid[index[p], c])
    return out


def slice_points_bwd_points(
    grid: np.ndarray, points: np.ndarray, index: np.ndarray, values: np.ndarray, by: str = ""
) -> np.ndarray:
    """The gradient of ``sum values * slice_points`` by the points; 0 by a coordinate that the weights were differentiated by before."""
    out = np.zeros(points.shape)
    for axis, name in enumerate("xyz"):
        if name not in by:
            out[:, axis] = np.sum(values * slice_points(grid, points, index, by + name), axis=1)
    return out


def slice_points_bwd_grid(
    values: np.ndarray, points: np.ndarray, index: np.ndarray, size: tuple[int, ...], by: str = ""
) -> np.ndarray:
    """``grid[m, c, k] = sum over the points of grid m of w_k(p) values[p, c]``; those that are NaN are left out. ``size`` is (M, D, Gh, Gw)."""
    grid = np.zeros((size[0], values.shape[1], *size[1:]))
    for p, point in enumerate(points):
        if not np.isnan(point).any():
            weights = _weights(point, size[1:], by)
            for c in range(values.shape[1]):
                grid[index[p], c] += weights * values[p, c]
    return grid
