"""The models that come with the package, by name, and any other by its file."""

from __future__ import annotations

from pathlib import Path

import torch

from nets import weights
from nets.hdrnet.model import HDRNet

_FOLDER = Path(__file__).parent / "weights"

SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob("*.safetensors")))


def load(name: str | Path, device: str | torch.device = "cpu") -> HDRNet:
    """A trained network: one of `SHIPPED` by name, or a file that ``python -m nets.hdrnet train`` wrote.

    Raises:
        ValueError: a name that is neither, or a file that does not hold an HDRNet.
    """
    path = _FOLDER / f"{name}.safetensors" if str(name) in SHIPPED else Path(name)
    if not path.is_file():
        raise ValueError(f"{name}: no such file, nor one of the models that come along: {', '.join(SHIPPED)}")
    return weights.load_network(path, HDRNet, device)
