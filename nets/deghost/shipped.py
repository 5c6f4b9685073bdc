"""The model that comes with the package, by name, and any other by its file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from nets import weights
from nets.deghost.bilateral import BilateralDeghost
from nets.deghost.model import DeghostNet

_FOLDER = Path(__file__).parent / "weights"

SHIPPED = weights.names_in(_FOLDER)


def load(name: str | Path = "deghost", device: str | torch.device = "cpu") -> DeghostNet | BilateralDeghost:
    """A trained network: one of `SHIPPED` by name, or a file that ``python -m nets.deghost train`` wrote.

    Raises:
        ValueError: a name that is neither, or a file that holds no deghosting network.

    Example:
        >>> net = load("deghost")
        >>> net(torch.rand(1, 3, 3, 50, 70), torch.tensor([[-2.0, 0.0, 2.0]])).shape
        torch.Size([1, 3, 50, 70])
    """
    path = weights.found(name, _FOLDER)
    return cast(DeghostNet | BilateralDeghost, weights.load_network(path, (DeghostNet, BilateralDeghost), device))
