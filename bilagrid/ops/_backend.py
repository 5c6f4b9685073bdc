"""Which backend serves a tensor's device, and how its launchers are found."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from bilagrid.ops._plain import is_plain

_NEEDS = {
    "cpu": ("numba", "CPU tensors need Numba: pip install numba"),
    "gpu": ("triton", "CUDA and ROCm tensors need Triton: pip install triton"),
}

# Triton reads the flag when a kernel is decorated, so a process sees one meaning of it.
_cpu_backend = "gpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cpu"


@contextmanager
def override(backend: str) -> Iterator[None]:
    """Sends CPU tensors to ``"cpu"`` (Numba) or ``"gpu"`` (Triton's interpreter, where ``TRITON_INTERPRET=1`` was set first)."""
    global _cpu_backend
    before, _cpu_backend = _cpu_backend, backend
    try:
        yield
    finally:
        _cpu_backend = before


_rehearsing = False


@contextmanager
def rehearsal() -> Iterator[None]:
    """Within it, operators on meta tensors run the GPU's launchers, which must be recording, in place of their fakes."""
    global _rehearsing
    before, _rehearsing = _rehearsing, True
    try:
        yield
    finally:
        _rehearsing = before


def is_rehearsing() -> bool:
    return _rehearsing


def launcher(module: str, function: str, device: str) -> Callable[..., Any]:
    """``function`` of ``bilagrid.cpu.<module>`` or ``bilagrid.gpu.<module>``, imported at the first call."""
    return _found(_cpu_backend if device == "cpu" else "gpu", module, function)


def operator(module: str, function: str, device: str) -> Callable[..., Any]:
    """The `launcher` of an operator; on a GPU with its launches kept as a plan (`bilagrid.gpu._plan`)."""
    return _operator(_cpu_backend if device == "cpu" else "gpu", module, function)


@functools.cache
def _operator(backend: str, module: str, function: str) -> Callable[..., Any]:
    found = _found(backend, module, function)
    return found if backend == "cpu" else _found("gpu", "_plan", "planned")(found)


@functools.cache
def _found(backend: str, module: str, function: str) -> Callable[..., Any]:
    package, remedy = _NEEDS[backend]
    try:
        found = importlib.import_module(f"bilagrid.{backend}.{module}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise ImportError(f"{remedy} ({error})") from error
    return getattr(found, function)


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers in a tensor: there are none on the meta device, nor in a fake tensor outside of a compiler."""
    return not (tensor.is_meta or (not torch.compiler.is_compiling() and is_fake(tensor)))


def aminmax(guide: Tensor) -> tuple[float, float]:
    """The least and the greatest value of a guide ``(N, H, W)``, as Python numbers; not finite where a value is not.

    On the CPU by a loop of our own: after an operator of torch its threads spin for a while, on the cores that the next operator needs.
    """
    if guide.device.type == "cpu" and _cpu_backend == "cpu" and is_plain(guide):
        return launcher("_aminmax", "aminmax", "cpu")(guide)
    least, greatest = torch.stack(guide.aminmax()).tolist()
    return least, greatest
