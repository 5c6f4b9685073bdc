"""Bilinear interpolation as an image of another size needs it, with gradients that have the same bits on every run."""

from __future__ import annotations

from torch import Tensor

from bilagrid.lattice import Lattice
from bilagrid.ops.slice import slice_


def bilinear_(image: Tensor, at: Tensor) -> Tensor:
    """A checked image ``(N, C, h, w)`` at the size of ``at`` ``(N, H, W)``, as torch's ``interpolate(mode="bilinear")``, whose gradient adds by atomics.

    An image is a grid of one plane, and slicing that is bilinear interpolation. The values of ``at`` do not matter, but where it is NaN so is the result.
    """
    height, width = image.shape[2:]
    plane = Lattice.cell_centered((1, height, width), (at.shape[1], at.shape[2]))
    return slice_(image.unsqueeze(2), at.detach(), plane)
