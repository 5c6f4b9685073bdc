"""Pictures between the file's order, (H, W, C), and the networks', (1, C, H, W)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def tensor_of(pixels: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """``(H, W, C)`` as ``(1, C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].to(device)


def pixels_of(image: Tensor) -> np.ndarray:
    """``(1, C, H, W)`` as ``(H, W, C)``."""
    return image[0].permute(1, 2, 0).cpu().numpy()
