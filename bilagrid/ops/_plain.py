"""Plain calls: eager ones that nothing else of torch watches or changes. They need no dispatcher, and what was found out about their arguments can be kept."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import (
    DispatchKey,
    DispatchKeySet,
    _are_functorch_transforms_active,
    _dispatch_keys,
    _get_function_stack_at,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch.autograd import _profiler_enabled, forward_ad
from torch.nn import Parameter
from torch.utils._device import DeviceContext

Found = TypeVar("Found")

# The dispatch keys of an ordinary tensor in a CPU's or a GPU's memory (ROCm goes by the name of CUDA). A tensor with any other key is not simply its numbers:
# meta and sparse tensors, lazily negated ones, wrappers of functorch.
_KEYS = ("CPU", "CUDA", "ADInplaceOrView", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA")
_OTHERS = ~functools.reduce(int.__or__, (DispatchKeySet(getattr(DispatchKey, key)).raw_repr() for key in _KEYS))


def is_plain(*values: Any) -> bool:
    """Whether a call runs right now, with no mode, transform, tracer or profiler to see it, on ordinary tensors in memory among ``values``.

    Then its launcher may be called directly; in any other case the dispatcher decides what becomes of the call.
    """
    if (
        torch.compiler.is_compiling()
        or _are_functorch_transforms_active()
        or _len_torch_dispatch_stack()
        or (_len_torch_function_stack() and _is_watched())
        or _get_tracing_state() is not None
        or _profiler_enabled()
        or forward_ad._current_level >= 0
    ):
        return False
    for value in values:
        if isinstance(value, Tensor):
            if type(value) is not Tensor and type(value) is not Parameter:
                return False
            if _dispatch_keys(value).raw_repr() & _OTHERS:
                return False
    return True


def _is_watched() -> bool:
    """Whether there is a function mode other than that of a default device, which launchers do not depend on."""
    return any(type(_get_function_stack_at(k)) is not DeviceContext for k in range(_len_torch_function_stack()))


def cells(limit: int) -> Callable[..., list[Any]]:
    """A table that all threads share: called with hashable values, it gives the list kept for them, empty at first. The ``limit`` keys used last are kept."""
    return functools.lru_cache(limit, typed=True)(lambda *key: [])


def once(check: Callable[..., Found]) -> Callable[..., Found]:
    """``check``, run once for the same tensors' shapes, dtypes and devices and the same other values, on which alone its answer must depend.

    What raises is run again each time.
    """
    known = cells(256)

    @functools.wraps(check)
    def remembered(*values: Any) -> Found:
        if not is_plain(*values):
            return check(*values)
        key: list[Any] = []
        for value in values:
            if isinstance(value, Tensor):
                key += value.shape, value.dtype, value.device
            else:
                # 4 and 4.0 are the same key, but not the same argument.
                key += (value, *map(type, value)) if isinstance(value, tuple) else (value,)
        try:
            found = known(*key)
        except TypeError:
            return check(*values)
        if not found:
            found.append(check(*values))
        return found[0]

    return remembered
