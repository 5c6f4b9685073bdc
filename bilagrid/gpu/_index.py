"""Choosing grids from a bank of them by an index, in Triton."""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import widen
from bilagrid.ops._index import check_range


def check(index: torch.Tensor | None, count: int) -> None:
    """Refuses an index out of range where ``BILAGRID_DEBUG=1``; else nobody looks, since looking would wait for the GPU."""
    if index is not None and index.device.type != "meta" and os.environ.get("BILAGRID_DEBUG") == "1":
        check_range(index, count)


def bank_arguments(grid: torch.Tensor, index: torch.Tensor | None) -> dict[str, Any]:
    """The arguments by which a kernel chooses grids."""
    return {
        "index_ptr": None if index is None else index.contiguous(),
        "M": grid.shape[0],
        "INDEXED": index is not None,
    }


@triton.jit
def grid_of_image(index_ptr, n, M, INDEXED: tl.constexpr, WIDE: tl.constexpr):
    """The grid that image n reads: its own, or where INDEXED that of a bank of M; and whether there is such a grid. Where not, another may be read."""
    if INDEXED:
        m, valid = in_range(tl.load(index_ptr + n), M, WIDE)
        return m, valid
    else:
        return n, True


@triton.jit
def in_range(m, count, WIDE: tl.constexpr):
    """The index, or 0 where it is none of ``count`` grids, and whether it is one of them."""
    valid = (m >= 0) & (m < count)
    return widen(tl.where(valid, m, 0).to(tl.int64 if WIDE else tl.int32), WIDE), valid
