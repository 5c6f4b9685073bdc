from __future__ import annotations

import numpy as np

from tests.reference.lattice import Lattice
from tests.reference.slice import slice, slice_bwd_guide
from tests.reference.splat import splat


def luma(image: np.ndarray) -> np.ndarray:
    """BT.601."""
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def _with_one(image: np.ndarray, offset: bool) -> np.ndarray:
    return np.concatenate([image, np.ones_like(image[:, :1])], axis=1) if offset else image


def slice_apply(
    grid: np.ndarray, guide: np.ndarray | None, image: np.ndarray, lattice: Lattice, offset: bool
) -> np.ndarray:
    """``out_o = sum_i A_oi image_i + A_o,offset`` with A the sliced grid."""
    maps = slice(grid, luma(image) if guide is None else guide, lattice)
    terms = _with_one(image, offset)
    out = np.zeros((image.shape[0], grid.shape[1] // terms.shape[1], *image.shape[2:]))
    for o in range(out.shape[1]):
        for i in range(terms.shape[1]):
            out[:, o] += maps[:, o * terms.shape[1] + i] * terms[:, i]
    return out


def slice_apply_bwd(
    grid: np.ndarray, guide: np.ndarray | None, image: np.ndarray, grad: np.ndarray, lattice: Lattice, offset: bool
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Gradients by grid, guide and image; without a guide the second is None and its share is in the third."""
    at = luma(image) if guide is None else guide
    terms = _with_one(image, offset)
    count = terms.shape[1]
    products = np.concatenate([grad[:, o : o + 1] * terms for o in range(grad.shape[1])], axis=1)
    maps = slice(grid, at, lattice)
    by_image = np.zeros_like(image)
    for o in range(grad.shape[1]):
        for i in range(image.shape[1]):
            by_image[:, i] += grad[:, o] * maps[:, o * count + i]
    by_guide = slice_bwd_guide(grid, at, products, lattice)
    if guide is None:
        by_image += by_guide[:, None] * np.array([0.299, 0.587, 0.114])[:, None, None]
        return splat(products, at, lattice), None, by_image
    return splat(products, at, lattice), by_guide, by_image
