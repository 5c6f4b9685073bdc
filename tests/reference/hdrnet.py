"""HDRNet's two operators, channels last, one pixel and one corner after another, as its CPU code has them."""

from __future__ import annotations

import numpy as np


def _corners(guide: float, row: int, column: int, image_size: tuple[int, int], size: tuple[int, int, int], eps: float):
    """Of one pixel: each corner's cell (y, x, z), its weight, and the derivative of that by the guide."""
    rows, columns, planes = size
    y, x, z = (row + 0.5) * rows / image_size[0], (column + 0.5) * columns / image_size[1], guide * planes
    for j in (0, 1):
        for i in (0, 1):
            for k in (0, 1):
                cell = [int(np.floor(at - 0.5)) + step for at, step in ((y, j), (x, i), (z, k))]
                along_y, along_x = (max(1 - abs(cell[axis] + 0.5 - at), 0) for axis, at in ((0, y), (1, x)))
                distance = cell[2] + 0.5 - z
                smoothed = np.sqrt(distance**2 + eps)
                along_z = max(1 - smoothed, 0)
                slope = planes * distance / smoothed if smoothed <= 1 and distance else 0.0
                inside = tuple(np.clip(cell, 0, [rows - 1, columns - 1, planes - 1]))
                yield inside, along_y * along_x * along_z, along_y * along_x * slope


def bilateral_slice(grid: np.ndarray, guide: np.ndarray, eps: float) -> np.ndarray:
    out = np.zeros((*guide.shape, grid.shape[4]))
    for n, row, column in np.ndindex(guide.shape):
        for cell, weight, _ in _corners(guide[n, row, column], row, column, guide.shape[1:], grid.shape[1:4], eps):
            out[n, row, column] += weight * grid[(n, *cell)]
    return out


def bilateral_slice_bwd(grid: np.ndarray, guide: np.ndarray, grad: np.ndarray, eps: float):
    """Gradients by grid and guide."""
    by_grid, by_guide = np.zeros(grid.shape), np.zeros(guide.shape)
    for n, row, column in np.ndindex(guide.shape):
        for cell, weight, slope in _corners(guide[n, row, column], row, column, guide.shape[1:], grid.shape[1:4], eps):
            by_grid[(n, *cell)] += weight * grad[n, row, column]
            by_guide[n, row, column] += slope * np.sum(grad[n, row, column] * grid[(n, *cell)])
    return by_grid, by_guide


def _maps(coefficients: np.ndarray, image: np.ndarray, has_offset: bool):
    """Coefficients as matrices (..., C_out, terms), and the image with a one where there is an offset."""
    terms = np.concatenate([image, np.ones_like(image[..., :1])], -1) if has_offset else image
    return coefficients.reshape(*coefficients.shape[:-1], -1, terms.shape[-1]), terms


def bilateral_slice_apply(grid, guide, image, has_offset: bool, eps: float) -> np.ndarray:
    maps, terms = _maps(bilateral_slice(grid, guide, eps), image, has_offset)
    return np.einsum("nyxoi,nyxi->nyxo", maps, terms)


def bilateral_slice_apply_bwd(grid, guide, image, grad, has_offset: bool, eps: float):
    """Gradients by grid, guide and image."""
    maps, terms = _maps(bilateral_slice(grid, guide, eps), image, has_offset)
    products = np.einsum("nyxo,nyxi->nyxoi", grad, terms).reshape(*grad.shape[:3], -1)
    by_grid, by_guide = bilateral_slice_bwd(grid, guide, products, eps)
    return by_grid, by_guide, np.einsum("nyxo,nyxoi->nyxi", grad, maps)[..., : image.shape[3]]


def published_bwd_grid(shape: tuple[int, ...], guide: np.ndarray, grad: np.ndarray, eps: float) -> np.ndarray:
    """The gradient by the grid as published: each cell gathers from the pixels about it, the image mirrored at its border, and what lies beyond the
    middles of the outermost planes weighs 1 there."""
    batch, rows, columns, planes, _ = shape
    _, height, width = guide.shape
    out = np.zeros(shape)
    for n, j, i, k in np.ndindex(batch, rows, columns, planes):
        for row in range(int(np.floor(height / rows * (j - 0.5))), int(np.ceil(height / rows * (j + 1.5)))):
            for column in range(int(np.floor(width / columns * (i - 0.5))), int(np.ceil(width / columns * (i + 1.5)))):
                at = tuple(
                    -t - 1 if t < 0 else 2 * extent - 1 - t if t >= extent else t
                    for t, extent in ((row, height), (column, width))
                )
                along_y = max(1 - abs(j + 0.5 - (row + 0.5) * rows / height), 0)
                along_x = max(1 - abs(i + 0.5 - (column + 0.5) * columns / width), 0)
                z = guide[(n, *at)] * planes
                along_z = max(1 - np.sqrt((k + 0.5 - z) ** 2 + eps), 0)
                if (k == 0 and z < 0.5) or (k == planes - 1 and z > planes - 0.5):
                    along_z = 1
                out[n, j, i, k] += along_y * along_x * along_z * grad[(n, *at)]
    return out
