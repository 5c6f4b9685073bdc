"""Which kernels serve a call: coarse or fine, and whether a matrix product may be rounded to tf32."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Literal

import torch

Regime = Literal["coarse", "fine"]

_regime: Regime | None = None
_architecture: str | None = None


@contextlib.contextmanager
def override(*, regime: Regime | None = None, architecture: str | None = None) -> Iterator[None]:
    """Within it, every call takes ``regime``, and is made as if for ``architecture`` (such as ``"sm_90"`` or ``"gfx942"``). For tests."""
    global _regime, _architecture
    before = _regime, _architecture
    _regime, _architecture = regime or _regime, architecture or _architecture
    try:
        yield
    finally:
        _regime, _architecture = before


def state() -> tuple[object, ...]:
    """All that a launcher's choices depend on besides its arguments."""
    return _regime, _architecture, _allows_tf32()


# Terms beyond these have as many more values in the image, beside which their table is as small.
_TERMS = 12

# Pixels that a cell is wide at least where a reduction is coarse: of narrower ones it spends as much where cells end as within.
_CELL = 24


def choose(outputs: int, terms: int, size: tuple[int, int, int], width: int) -> Regime:
    """Of reading a grid of so many outputs of so many terms each: coarse where one row of it, interpolated in y, is at most twice as long as one row of the
    image, terms counted up to 12.

    Then a table of such rows costs little beside the image.
    """
    depth, _, columns = size
    return _regime or ("coarse" if columns * depth * outputs * min(terms, _TERMS) <= 2 * width else "fine")


def choose_reduction(passes: int, size: tuple[int, int, int], width: int) -> Regime:
    """Of adding up into a grid in so many passes over its channels: coarse where its cells are wide, and wider than it has planes in all passes, or partial
    sums would be many beside the image.

    The batch has no say: it must not change a sum's order.
    """
    depth, _, columns = size
    coarse = columns * max(_CELL, depth * passes) <= width
    return _regime or ("coarse" if coarse else "fine")


def rounds_to_tf32(device: torch.device, *dtypes: torch.dtype) -> bool:
    """Whether a matrix product of these dtypes may round to tf32: torch's own switch decides, half inputs lose nothing by it, and the device must have it.

    sm_75 has none, gfx1100 rejects it, and gfx942 gains nothing that torch promises.
    """
    name = architecture(device)
    half = all(dtype in (torch.float16, torch.bfloat16) for dtype in dtypes)
    return name.startswith("sm_") and name != "sm_75" and (half or _allows_tf32())


def architecture(device: torch.device) -> str:
    """The device's architecture as the compiler calls it; the oldest served where there is no device (the interpreter)."""
    return _architecture or _architecture_of(device)


@functools.cache
def _architecture_of(device: torch.device) -> str:
    if device.type != "cuda":
        return "sm_75"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@functools.cache
def schedulers(device: torch.device) -> int:
    """How many warps the device issues from at a time; an H100's where there is no device (the interpreter)."""
    return 4 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132)


def is_amd(device: torch.device) -> bool:
    """Whether kernels are compiled for an AMD GPU."""
    return architecture(device).startswith("gfx")


def is_wide(device: torch.device) -> bool:
    """Whether a warp has 64 lanes, as on AMD's data-centre GPUs, and not 32."""
    return architecture(device).startswith("gfx9")


def _allows_tf32() -> bool:
    """Whether torch lets a float32 product round its operands to tf32: by the newer setting, or by the older where that was never touched."""
    matmul = torch.backends.cuda.matmul
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:
        return getattr(matmul, "fp32_precision", "ieee") == "tf32"
