"""`splat` in Triton: pixels added up into the grid. Its kernels are those of `_reduction`, shared with the grid gradient of `slice_apply`."""

from __future__ import annotations

import torch

from bilagrid.gpu._reduction import holds_all_planes, reduce_products
from bilagrid.gpu.blur import blur
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._memory import empty_grid


def splat(values: torch.Tensor, guide: torch.Tensor, lattice: Lattice, *, dz: bool = False) -> torch.Tensor:
    """The sum over pixels of weight times value, or with ``dz`` of the weight's derivative by the grid coordinate z times value.

    (N, C, D, Gh, Gw), contiguous, float64 if ``values`` is, else float32.
    """
    grid = empty_grid(values, values.shape[1], lattice.size, compute_type(values), interleaved=False)
    return reduce_products(guide, values, None, lattice, grid, dz=dz)


def splat_blurred(
    values: torch.Tensor, guide: torch.Tensor, sigma: tuple[float, float, float], lattice: Lattice
) -> torch.Tensor:
    """`splat` of the values and of ones, convolved with Gaussians of ``sigma`` nodes along (z, y, x).

    (N, C + 1, D, Gh, Gw), interleaved, float64 if ``values`` is, else float32.
    """
    grid = empty_grid(values, values.shape[1] + 1, lattice.size, compute_type(values), interleaved=True)
    whole = holds_all_planes(guide, values, lattice, grid)
    reduce_products(guide, values, None, lattice, grid, ones=True, sigma_z=sigma[0] if whole else 0.0)
    left = (0.0, sigma[1], sigma[2]) if whole else sigma
    return blur(grid, left) if any(left) else grid
