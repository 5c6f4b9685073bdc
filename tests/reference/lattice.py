"""Where pixels land in the grid, by the published tables, and the tent weights of the nodes there."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lattice:
    """``coordinate = position * scale + offset`` along z (the guide), y (the row) and x (the column), in a grid of ``size`` nodes."""

    size: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    def crop(self, top: int, left: int) -> Lattice:
        """Row 0 of the tile is row ``top`` of the image."""
        (_, per_row, per_column), (z, y, x) = self.scale, self.offset
        return Lattice(self.size, self.scale, (z, y + top * per_row, x + left * per_column))


def cell_centered(size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
    """The image and the range 0 to 1 are cut into as many equal cells as there are nodes; a node is in the middle of its cell, a pixel in the middle of its area."""
    (depth, rows, columns), (height, width) = size, image_size
    offset = (-1 / 2, rows / height / 2 - 1 / 2, columns / width / 2 - 1 / 2)
    return Lattice(size, (depth, rows / height, columns / width), offset)


def half_pixel(size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
    """The outermost nodes are on the border of the image's area, a pixel in the middle of its own."""
    (depth, rows, columns), (height, width) = size, image_size
    scale = (depth - 1, (rows - 1) / height, (columns - 1) / width)
    return Lattice(size, scale, (0, scale[1] / 2, scale[2] / 2))


def corner_aligned(size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
    """The outermost nodes are on the outermost pixels."""
    (depth, rows, columns), (height, width) = size, image_size
    per_row = (rows - 1) / (height - 1) if height > 1 else 0
    per_column = (columns - 1) / (width - 1) if width > 1 else 0
    return Lattice(size, (depth - 1, per_row, per_column), (0, 0, 0))


def from_sigma(
    sigma_space: float,
    sigma_color: float,
    image_size: tuple[int, int],
    guide_range: tuple[float, float],
    nodes_per_sigma: tuple[float, float, float],
) -> Lattice:
    """The first pixel is on the first node, the least guide value on the second plane; the grid ends at or after the last pixel, and a plane after the greatest guide value."""
    scale = (nodes_per_sigma[0] / sigma_color, nodes_per_sigma[1] / sigma_space, nodes_per_sigma[2] / sigma_space)
    extents = (guide_range[1] - guide_range[0], image_size[0] - 1, image_size[1] - 1)
    planes, rows, columns = (math.ceil(extent * step) + 1 for extent, step in zip(extents, scale, strict=True))
    return Lattice((planes + 2, rows, columns), scale, (1 - guide_range[0] * scale[0], 0, 0))


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


def pixel_weights(lattice: Lattice, row: int, column: int, guide: float, dz: bool = False) -> np.ndarray:
    """``w[z, y, x]`` of all nodes at one pixel; NaN for a NaN guide."""
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = lattice.scale, lattice.offset
    depth, rows, columns = lattice.size
    z = guide * scale_z + offset_z if not (np.isinf(guide) and scale_z == 0) else 0.0
    along_z = np.full(depth, np.nan) if np.isnan(guide) else (axis_slopes if dz else axis_weights)(z, depth)
    along_y = axis_weights(row * scale_y + offset_y, rows)
    along_x = axis_weights(column * scale_x + offset_x, columns)
    return along_z[:, None, None] * along_y[:, None] * along_x
