"""Plans: what a launcher's call comes to, found once and repeated for tensors that lie alike.

What a launcher allocates and launches depends on how its tensors lie, on its other arguments and on a few switches, never on what the tensors hold. A plan
keeps the allocations, and each compiled kernel with its arguments, in which only addresses are open. The first call of a kind goes the launcher's own way
and leaves the plan; where one cannot be made, every call goes that way.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from bilagrid.gpu import _launch, _regime
from bilagrid.ops._plain import cells

# How Triton starts a compiled kernel, and so do plans: in these words or not at all. So it is in Triton 3.6, 3.7 and 3.9.
_START = (
    "kernel.run(grid_0, grid_1, grid_2, stream, kernel.function, kernel.packed_metadata, launch_metadata, "
    "knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook, *bound_args.values())"
)

# With these, launchers measure or look into tensors.
_SWITCHES = ("BILAGRID_AUTOTUNE", "BILAGRID_DEBUG")

_ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided")

# An address that Triton calls aligned is a multiple of this.
_ALIGNMENT = 16

# On AMD Triton compiles another variant for storage beyond this.
_IS_AMD = torch.version.hip is not None
_NEAR = 2**31 - 1


@dataclass(frozen=True)
class _Start:
    """A compiled kernel as it is started: how many programs along each axis, its arguments, and which of them are whose address."""

    kernel: Any
    programs: tuple[int, int, int]
    arguments: tuple[Any, ...]
    addresses: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Plan:
    """Allocations by size, strides and type; what is started, addresses being of the tensors given and then of those; which of those is returned."""

    device: torch.device
    made: tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]
    starts: tuple[_Start, ...]
    returned: int | list[int]

    def repeat(self, given: list[int]) -> Any:
        """What the launcher would return for tensors at these addresses."""
        made = [torch.empty_strided(size, lie, dtype=dtype, device=self.device) for size, lie, dtype in self.made]
        self.start(given + [tensor.data_ptr() for tensor in made])
        return made[self.returned] if isinstance(self.returned, int) else [made[k] for k in self.returned]

    def start(self, addresses: Sequence[int]) -> None:
        """On the tensors' device and its current stream."""
        driver = triton.runtime.driver.active
        device = driver.get_current_device()
        if self.device.index not in (None, device):
            with _on(self.device):
                return self.start(addresses)
        stream = driver.get_current_stream(device)
        for each in self.starts:
            arguments = list(each.arguments)
            for place, whose in each.addresses:
                arguments[place] = addresses[whose]
            kernel = each.kernel
            kernel.run(*each.programs, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)
        return None


class _Watch(TorchDispatchMode):
    """Lists the tensors allocated within, and notices whatever is done to tensors besides."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self.nothing_else = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "aten" and func._opname in _ALLOCATIONS:
            self.made.append(out)
        elif not func.is_view and any(isinstance(value, Tensor) for value in (out, *args)):
            self.nothing_else = False
        return out


def planned(launcher: Callable[..., Any]) -> Callable[..., Any]:
    """``launcher``, whose arguments are tensors and values that can be keys, by plans."""
    known = cells(256)

    @functools.wraps(launcher)
    def call(*values: Any, **flags: Any) -> Any:
        if not _may_plan():
            return launcher(*values, **flags)
        key: list[Any] = [_regime.state()]
        given = []
        every = *values, *flags.values()
        for value in every:
            if isinstance(value, Tensor):
                address = value.data_ptr()
                given.append(address)
                key += value.shape, value.stride(), value.dtype, value.device, address % _ALIGNMENT
                if _IS_AMD:
                    key.append(value.untyped_storage().nbytes() > _NEAR)
            else:
                key.append(value)
        found = known(*key)
        if found:
            return launcher(*values, **flags) if found[0] is None else found[0].repeat(given)
        with _Watch() as watch, _launch.record() as launches:
            # Each with an identity of its own, though some be the same tensor today.
            twins = [value.detach() if isinstance(value, Tensor) else value for value in every]
            out = launcher(*twins[: len(values)], **dict(zip(flags, twins[len(values) :], strict=True)))
        plan = _plan([twin for twin in twins if isinstance(twin, Tensor)], watch, launches, out)
        found.append(plan)
        if plan is None:
            return launcher(*values, **flags)
        plan.start(given + [tensor.data_ptr() for tensor in watch.made])
        return out

    return call


def _may_plan() -> bool:
    """Whether nobody asked to see launches or more of them than to launch, and Triton is as it was when this was written."""
    hooks = triton.knobs.runtime.launch_enter_hook, triton.knobs.runtime.launch_exit_hook
    return (
        _starts_as_expected()
        and not _launch.is_recording()
        and not any(getattr(hook, "calls", hook) for hook in hooks)
        and not any(os.environ.get(switch) == "1" for switch in _SWITCHES)
    )


@functools.cache
def _starts_as_expected() -> bool:
    if triton.knobs.runtime.interpret:
        return False
    try:
        return _START in " ".join(inspect.getsource(JITFunction.run).split())
    except (OSError, TypeError):
        return False


def _plan(given: Sequence[Tensor], watch: _Watch, launches: Sequence[_launch.Launch], out: Any) -> _Plan | None:
    """The plan of a call that was watched, or None where the launcher did more than allocate and launch."""
    returned = out if isinstance(out, (tuple, list)) else [out]
    # What is returned is allocated as it is returned, the rest as it was made.
    lies = {_storage(tensor): tensor for tensor in (*watch.made, *returned)}
    whole = (
        not t.storage_offset() and t.untyped_storage().nbytes() == t.numel() * t.element_size() for t in lies.values()
    )
    apart = len(lies) == len(watch.made) and len(set(map(_storage, returned))) == len(returned)
    # Triton tells of a tensor on another device, a plan knows addresses alone.
    together = len({tensor.device for tensor in given}) == 1
    if not (watch.nothing_else and together and apart and all(whole)):
        return None
    owners = {_storage(tensor): len(given) + k for k, tensor in enumerate(watch.made)}
    starts = []
    with _on(given[0].device):
        for each in launches:
            if each.programs:
                start = _start(each, given, owners)
                if start is None:
                    return None
                starts.append(start)
    made = tuple((t.shape, t.stride(), t.dtype) for t in lies.values())
    places = [owners[_storage(tensor)] - len(given) for tensor in returned]
    return _Plan(given[0].device, made, tuple(starts), places if returned is out else places[0])


def _start(launch: _launch.Launch, given: Sequence[Tensor], owners: dict[int, int]) -> _Start | None:
    """A recorded launch as a plan makes it; None if it is of an interpreted kernel or takes part of a tensor."""
    values = launch.arguments | launch.config.kwargs
    if not isinstance(launch.kernel, JITFunction) or set(launch.kernel.arg_names) != set(values):
        return None
    addresses = []
    for place, name in enumerate(launch.kernel.arg_names):
        tensor = values[name]
        if isinstance(tensor, Tensor):
            owner = next((k for k, one in enumerate(given) if one is tensor), owners.get(_storage(tensor)))
            if owner is None or (owner >= len(given) and tensor.storage_offset()):
                return None
            addresses.append((place, owner))
            values[name] = None
    kernel = launch.compile()
    x, y, z, *_ = *launch.count(launch.config.kwargs), 1, 1
    return _Start(kernel, (x, y, z), tuple(values[name] for name in launch.kernel.arg_names), tuple(addresses))


def _storage(tensor: Tensor) -> int:
    """Which memory a tensor is of, though it be none."""
    return tensor.untyped_storage()._cdata


def _on(device: torch.device) -> torch.cuda.device:
    return torch.cuda.device(device if device.type == "cuda" else -1)
