"""Grids chosen from a bank, in Triton: what was added up for each image goes to its grid."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import widen
from bilagrid.gpu._index import check
from bilagrid.gpu._launch import RUNTIME, cdiv, launch, needs_int64

# A program looks at all indices, so it has many numbers to add up for them.
COLLECT_CONFIGS = [triton.Config({"BLOCK": 1024}, num_warps=4), triton.Config({"BLOCK": 512}, num_warps=4)]


@triton.jit(do_not_specialize=RUNTIME)
def _collect_kernel(
    parts_ptr,
    index_ptr,
    out_ptr,
    N,
    count,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK numbers of a grid m: out[m] = sum of parts[n] where index[n] is m, in the order of n. parts (N, count), out (M, count)."""
    blocks = tl.cdiv(count, BLOCK)
    pid = widen(tl.program_id(0), WIDE)
    m = pid // blocks
    offs = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    acc = tl.zeros([BLOCK], ACC)
    for n in range(N):
        if tl.load(index_ptr + n) == m:
            acc += tl.load(parts_ptr + widen(n, WIDE) * count + offs, mask=mask, other=0.0)
    tl.store(out_ptr + m * count + offs, acc, mask=mask)


def collect(parts: torch.Tensor, index: torch.Tensor, count: int) -> torch.Tensor:
    """``bank[m] = sum of parts[n] where index[n] is m``, in the order of n: contiguous, of the parts' dtype."""
    check(index, count)
    parts = parts.contiguous()
    out = torch.empty((count, *parts.shape[1:]), dtype=parts.dtype, device=parts.device)
    each = math.prod(parts.shape[1:])
    launch(
        _collect_kernel,
        lambda meta: count * cdiv(each, meta["BLOCK"]),
        COLLECT_CONFIGS,
        parts,
        parts_ptr=parts,
        index_ptr=index.contiguous(),
        out_ptr=out,
        N=parts.shape[0],
        count=each,
        ACC=tl.float64 if parts.dtype == torch.float64 else tl.float32,
        WIDE=needs_int64(parts, out),
    )
    return out
