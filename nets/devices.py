"""The device of a command's ``--device``."""

from __future__ import annotations

import os

import torch

from bilagrid.commands import Refusal


def device_of(name: str) -> torch.device:
    """The device called ``name``. ``auto`` is the GPU that torchrun gave this process, or the first one, or else the CPU."""
    if name == "auto":
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise Refusal(f"--device must be auto, cpu, cuda or the like of cuda:1, got {name}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise Refusal(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device
