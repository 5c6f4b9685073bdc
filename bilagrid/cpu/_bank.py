"""Grids chosen from a bank, on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._geometry import array
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._index import check_range


def chosen(grid: Tensor, index: Tensor | None, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The grids in the type ``dtype`` that is computed in, and which of them each image reads. Of a bank of another type only the grids in use are copied."""
    if index is None:
        return array(grid, dtype), np.arange(grid.shape[0])
    if grid.dtype != dtype:
        grid, which = used(grid, index)
        return array(grid, dtype), which
    check_range(index, grid.shape[0])
    return array(grid, dtype), np.ascontiguousarray(index.numpy())


def used(grid: Tensor, index: Tensor) -> tuple[Tensor, np.ndarray]:
    """A copy of the grids that the index names, and the index into that copy."""
    check_range(index, grid.shape[0])
    places, which = np.unique(index.numpy(), return_inverse=True)
    return grid.detach()[places.tolist()], np.ascontiguousarray(which).reshape(tuple(index.shape))


def collect(parts: Tensor, index: Tensor, count: int) -> Tensor:
    """``bank[m]``, the sum of ``parts[n]`` where ``index[n]`` is m, in the order of n, for a bank of ``count`` grids."""
    check_range(index, count)
    dtype = compute_type(parts)
    bank = parts.new_zeros((count, *parts.shape[1:]), dtype=dtype)
    sums = bank.numpy()
    for m, part in zip(index.tolist(), array(parts, dtype), strict=True):
        sums[m] += part
    return bank.to(parts.dtype)
