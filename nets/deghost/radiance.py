"""From exposures to radiance, and from radiance to what the eye sees of it: gamma, the μ-law and the loss."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

GAMMA = 2.2
"""What exposures are encoded by: linear values are their power of it."""
MU = 5000.0
"""The range of the μ-law, as published."""

Array = TypeVar("Array", Tensor, np.ndarray)


def linearised(ldr: Tensor, ev: Tensor) -> Tensor:
    """The radiance that each exposure shows by itself::

        H_i = I_i^γ / 2^(ev_i - min ev)

    Args:
        ldr: ``(N, K, 3, H, W)`` in [0, 1].
        ev: ``(N, K)`` in stops, from any zero.

    Returns:
        As ``ldr``, where 1 is white in the shortest exposure.
    """
    gain = torch.exp2(ev.amin(1, keepdim=True) - ev)
    return ldr.clamp(min=0) ** GAMMA * gain[:, :, None, None, None]


def compressed(radiance: Array) -> Array:
    """The μ-law, ``T(H) = log(1 + μH) / log(1 + μ)``, of radiance in [0, 1]: equal differences of T look about equal. Negative values count as 0."""
    if isinstance(radiance, np.ndarray):
        return np.log1p(MU * np.maximum(radiance, 0)) / math.log1p(MU)
    return torch.log1p(MU * radiance.clamp(min=0)) / math.log1p(MU)


def expanded(seen: Tensor) -> Tensor:
    """The inverse of `compressed`; what lies outside of [0, 1] counts as its nearer end."""
    return torch.expm1(seen.clamp(0, 1) * math.log1p(MU)) / MU


def loss(result: Tensor, truth: Tensor) -> Tensor:
    """The mean squared error of T(result) against T(truth). ``-10 log10`` of it is PSNR-μ. The published loss, of values in [-1, 1], is four times that."""
    return (compressed(result) - compressed(truth)).square().mean()
