"""Which of a kernel's configurations it is launched in: by a table that `perf.tune` makes, and without an entry there the safe one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton

from bilagrid.gpu._table import CHOSEN

# From so many programs on, in the safe configuration, a large GPU is busy with fewer and larger ones too.
_MANY = 2048


def choose_config(
    kernel: str, configs: Sequence[triton.Config], architecture: str, dtype: torch.dtype, programs: int
) -> triton.Config:
    """The table's configuration of ``kernel`` if it is among ``configs``, else the first of them; ``programs`` are those of the first."""
    name = CHOSEN.get((architecture, kernel, dtype_class(dtype), size_class(programs)))
    return configs[0] if name is None else next((c for c in configs if label(c) == name), configs[0])


def dtype_class(dtype: torch.dtype) -> str:
    """The table's word for a dtype: both half types are one."""
    return _DTYPES[dtype]


_DTYPES = {torch.float16: "half", torch.bfloat16: "half", torch.float32: "float32", torch.float64: "float64"}


def size_class(programs: int) -> str:
    """The table's word for how many programs the safe configuration has."""
    return "many" if programs >= _MANY else "few"


def label(config: triton.Config) -> str:
    """A configuration in words, as the table and perf's rows call it."""
    constants = [f"{name}={value}" for name, value in config.kwargs.items()]
    return " ".join([*constants, f"warps={config.num_warps}", f"stages={config.num_stages}"])
