"""In which type things are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def compute_type(*tensors: Tensor | None) -> torch.dtype:
    """The type in which operators compute and add up: float64 where any tensor is float64, else float32."""
    double = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 if it is of a half type, else itself: products and sums are computed so, and rounded once, at the end."""
    return tensor.float() if tensor.dtype in HALF else tensor


def promoted(*tensors: Tensor) -> torch.dtype:
    """The smallest type that holds the values of all, scalars counted like the rest."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors))


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Within it autocast rounds no product on this tensor's device to half types."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if device in ("cpu", "cuda") else nullcontext()
