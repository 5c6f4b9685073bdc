"""What the checks of plans share: a compiler that takes no time, and a record of the kernels that are started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bilagrid.gpu import _plan
from bilagrid.ops import _backend
from tests.helpers import strided

# What is started: the compiled kernel, how many programs, the stream, hooks, and the arguments.
Started = tuple[Any, tuple[int, ...], Any, tuple[Any, ...], tuple[Any, ...]]

starts: list[Started] = []


class Compiled:
    """What Triton's cache of compiled kernels gives for a key."""

    def __init__(self, source: Any, **options: Any) -> None:
        self.parameters = source.fn.params
        self.function, self.packed_metadata = object(), object()

    def launch_metadata(self, *arguments: Any) -> str:
        return "metadata"

    def run(self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
        assert function is self.function
        assert packed is self.packed_metadata
        starts.append((self, (x, y, z), stream, rest[:3], rest[3:]))


def arranged(name: str, values: tuple[Any, ...]) -> tuple[Any, Any, tuple[Any, ...], dict[str, Any]]:
    """For a raw operator's arguments: its launcher, the same by plans, and how they are called."""
    called: list[Any] = []

    def stop(module: str, function: str, device: str) -> Any:
        def note(*positional: Any, **flags: Any) -> None:
            called.extend((module, function, positional, flags))
            raise InterruptedError

        return note

    with mock.patch.object(_backend, "operator", stop), contextlib.suppress(InterruptedError):
        getattr(torch.ops.bilagrid, name).default(*values)
    module, function, positional, flags = called
    return _backend.launcher(module, function, "cuda"), _backend.operator(module, function, "cuda"), positional, flags


def varied(value: Any, dtype: torch.dtype | None, how: str, shift: int) -> Any:
    """A tensor of another type that lies another way and begins so many elements into its memory."""
    if not isinstance(value, Tensor):
        return value
    cast = value.to(dtype) if dtype is not None and value.is_floating_point() else value
    lying = strided(cast, how) if cast.ndim >= 3 else cast
    if lying.storage_offset() or not shift:
        return lying
    span = lying.untyped_storage().nbytes() // lying.element_size()
    return lying.new_zeros(span + shift).as_strided(lying.shape, lying.stride(), shift).copy_(lying)


def watched(call: Callable[..., Any], given: tuple[Any, ...], flags: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """What a call starts and what it returns, memory being named by whose it is."""
    starts.clear()
    with _plan._Watch() as watch:
        out = call(*given, **flags)
    names: dict[int, Any] = {0: "nothing"}
    for k, tensor in enumerate((*given, *flags.values())):
        if isinstance(tensor, Tensor):
            names.setdefault(tensor.data_ptr(), ("given", k))
    for k, tensor in enumerate(watch.made):
        names.setdefault(tensor.data_ptr(), ("made", k, tensor.untyped_storage().nbytes()))

    def named(value: Any, parameter: Any) -> Any:
        address = value.data_ptr() if isinstance(value, Tensor) else value
        return names.get(address, "elsewhere") if parameter.name.endswith("_ptr") and value is not None else value

    listed = [
        (kernel, programs, stream, [*map(named, arguments, kernel.parameters)])
        for kernel, programs, stream, _, arguments in starts
    ]
    outs = out if isinstance(out, (tuple, list)) else [out]
    return listed, [type(out), *((names.get(t.data_ptr()), t.shape, t.stride(), t.dtype, t.device) for t in outs)]


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def repeats() -> Iterator[mock.Mock]:
    """How often plans are repeated within."""
    with mock.patch.object(_plan._Plan, "repeat", autospec=True, side_effect=_plan._Plan.repeat) as repeat:
        yield repeat
