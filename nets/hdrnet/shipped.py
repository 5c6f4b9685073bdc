"""The models that come with the package, by name, and any other by its file."""

from __future__ import annotations

from pathlib import Path

import torch

from nets import weights
from nets.hdrnet.model import HDRNet

_FOLDER = Path(__file__).parent / "weights"

SHIPPED = weights.names_in(_FOLDER)


def load(name: str | Path, device: str | torch.device = "cpu") -> HDRNet:
    """A trained network: one of `SHIPPED` by name, or a file that ``python -m nets.hdrnet train`` wrote.

    Raises:
        ValueError: a name that is neither, or a file that does not hold an HDRNet.

    Example:
        >>> load("contrast")(torch.rand(1, 3, 48, 64)).shape
        torch.Size([1, 3, 48, 64])
    """
    return weights.load_network(weights.found(name, _FOLDER), HDRNet, device)
