"""What is computed in which type."""

from __future__ import annotations

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is of a half type, else itself: what products and sums are computed in before they are rounded once, at the end."""
    return tensor.float() if tensor.dtype in HALF else tensor
