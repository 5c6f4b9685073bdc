"""`splat` in Triton: pixels added up into the grid. Its kernels are those of `_reduction`, shared with the grid gradient of `slice_apply`."""

from __future__ import annotations

import torch

from bilagrid.gpu._launch import compute_dtype
from bilagrid.gpu._reduction import reduce_products
from bilagrid.lattice import Lattice


def splat(
    values: torch.Tensor, guide: torch.Tensor, lattice: Lattice, *, dz: bool = False, homogeneous: bool = False
) -> torch.Tensor:
    """The sum over pixels of weight times value, or with ``dz`` of the weight's derivative by the grid coordinate z times value.

    (N, C, D, Gh, Gw), float64 if ``values`` is, else float32: contiguous, or where homogeneous, interleaved and with one channel more, as if of ones.
    """
    dtype = compute_dtype(values)
    return reduce_products(
        guide, values, None, lattice, ones=homogeneous, dz=dz, interleaved=homogeneous, out_dtype=dtype
    )
