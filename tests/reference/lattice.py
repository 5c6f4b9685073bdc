"""Tent weights of the nodes at a pixel, from the lattice's scale and offset."""

from __future__ import annotations

import numpy as np


def axis_weights(coordinate: float, nodes: int) -> np.ndarray:
    """``max(0, 1 - |t - k|)`` for each node k, t clamped to the grid."""
    t = min(max(coordinate, 0.0), nodes - 1.0)
    return np.array([max(0.0, 1.0 - abs(t - k)) for k in range(nodes)])


def axis_slopes(coordinate: float, nodes: int) -> np.ndarray:
    """Derivative of `axis_weights`: 0 where t <= 0 or t >= nodes - 1, at an interior integer that of the cell above."""
    slopes = np.zeros(nodes)
    if 0 < coordinate < nodes - 1:
        below = int(np.floor(coordinate))
        slopes[below], slopes[below + 1] = -1.0, 1.0
    return slopes


def pixel_weights(lattice, row: int, column: int, guide: float, dz: bool = False) -> np.ndarray:
    """``w[z, y, x]`` of all nodes at one pixel; NaN for a NaN guide."""
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = lattice.scale, lattice.offset
    depth, rows, columns = lattice.size
    z = guide * scale_z + offset_z if not (np.isinf(guide) and scale_z == 0) else 0.0
    along_z = np.full(depth, np.nan) if np.isnan(guide) else (axis_slopes if dz else axis_weights)(z, depth)
    along_y = axis_weights(row * scale_y + offset_y, rows)
    along_x = axis_weights(column * scale_x + offset_x, columns)
    return along_z[:, None, None] * along_y[:, None] * along_x
