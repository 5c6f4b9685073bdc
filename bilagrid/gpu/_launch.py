"""How every kernel is launched: device, one flat grid, configuration, and the arguments kernels have in common."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from bilagrid.gpu._configs import choose_config
from bilagrid.gpu._regime import architecture, override
from bilagrid.lattice import Lattice

# Arguments whose value must not make another variant of a kernel: a compiled kernel serves every image size, batch and origin.
RUNTIME = [
    *("H", "W", "Gh", "Gw", "N", "M", "first_n", "first_row", "top", "left", "strips", "strip_rows", "slots"),
    *("rows", "columns", "first_y", "first_x"),
    *("scale_z", "scale_y", "scale_x", "anchor_z", "anchor_y", "anchor_x"),
    *("per_y", "per_x", "slack_y", "slack_x"),
    *(f"{name}{axis}" for name in ("radius", "taps_scale", "taps_exponent") for axis in ("", "_z", "_y", "_x", "_m")),
    *("nodes", "nodes_m", "count", "size_1", "size_2", "size_3", "size_4"),
    *("stride_out_k", "stride_out_m", "stride_grid_k", "stride_grid_m"),
    *("stride_grid_0", "stride_grid_1", "stride_grid_2", "stride_grid_3", "stride_grid_4"),
    *(
        f"stride_{name}_{axis}"
        for name in ("grid", "guide", "image", "grad", "out", "values", "grad_image", "points", "index")
        for axis in "ncdy"
    ),
]


@dataclass(frozen=True)
class Launch:
    """A kernel, its arguments, and its configurations, of which ``config`` is the one to launch it in; ``dtype`` is what it was chosen by.

    ``count`` tells from a configuration's constants how many programs there are along each axis.
    """

    kernel: Any
    configs: Sequence[triton.Config]
    config: triton.Config
    dtype: torch.dtype
    count: Callable[[dict[str, Any]], tuple[int, ...]] = field(repr=False)
    arguments: dict[str, Any] = field(repr=False)

    @property
    def programs(self) -> int:
        """In all, in the safe configuration."""
        return math.prod(self.count(self.configs[0].kwargs))

    def make(self, config: triton.Config | None = None) -> None:
        """Launch it on the current device."""
        chosen = config or self.config
        self.kernel[self.count(chosen.kwargs)](**self.arguments, **_options(chosen))

    def compile(self) -> Any:
        """Compile it for the current device, without launching it; meta tensors will do."""
        return self.kernel.warmup(**self.arguments, **_options(self.config), grid=self.count(self.config.kwargs))


def _options(config: triton.Config) -> dict[str, Any]:
    """What a configuration adds to a kernel's arguments."""
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": FP_FUSION}
    return config.kwargs | options


class _Record(threading.local):
    launches: list[Launch] | None = None


# Of each thread its own: what others launch meanwhile is launched.
_record = _Record()
_tuned: dict[int, Any] = {}


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Within it, launchers called from this thread launch nothing and list what they would have; meta tensors will do. For compiling without a GPU."""
    before, _record.launches = _record.launches, []
    try:
        yield _record.launches
    finally:
        _record.launches = before


def is_recording() -> bool:
    return _record.launches is not None


def compile_launches(run: Callable[[], None], device: torch.device) -> None:
    """Compile for ``device`` what ``run`` would launch there, were its meta tensors there."""
    with torch.cuda.device(device):
        device = torch.device("cuda", torch.cuda.current_device())
        with override(architecture=architecture(device)), record() as launches:
            run()
        for each in launches:
            each.compile()


def launch(
    kernel: Any, programs: Any, configs: Sequence[triton.Config], tensor: torch.Tensor, **arguments: Any
) -> None:
    """Launch ``kernel`` on ``tensor``'s device in the configuration chosen for it, or the fastest where ``BILAGRID_AUTOTUNE=1``.

    Args:
        kernel: a function decorated with `triton.jit`.
        programs: how many along each axis, or a function of the configuration's constants that returns this.
        configs: the safe one first. They may differ in nothing that changes the order of a sum.
        tensor: whose device the kernel runs on, and whose dtype the configuration is chosen by.
        arguments: the kernel's, by name.
    """

    def count(meta: dict[str, Any]) -> tuple[int, ...]:
        along = programs(meta) if callable(programs) else programs
        return along if isinstance(along, tuple) else (along,)

    safe = math.prod(count(configs[0].kwargs))
    config = choose_config(kernel.__name__, configs, architecture(tensor.device), tensor.dtype, safe)
    chosen = Launch(kernel, configs, config, tensor.dtype, count, arguments)
    if _record.launches is not None:
        _record.launches.append(chosen)
    elif safe == 0:
        return
    elif tensor.is_cuda:
        with torch.cuda.device(tensor.device):
            if len(configs) > 1 and os.environ.get("BILAGRID_AUTOTUNE") == "1":
                _autotuned(kernel, configs)[count](**arguments, enable_fp_fusion=FP_FUSION)
            else:
                chosen.make()
    else:
        # The interpreter computes in NumPy, which would warn of what a GPU takes for granted, such as 0 times infinity.
        with np.errstate(all="ignore"):
            chosen.make()


def _autotuned(kernel: Any, configs: Sequence[triton.Config]) -> Any:
    """The kernel, which measures its configurations where it meets new constants."""
    if id(kernel) not in _tuned:
        constants = [parameter.name for parameter in kernel.params if parameter.is_constexpr]
        key = [name for name in constants if name not in configs[0].kwargs]
        _tuned[id(kernel)] = triton.autotune(list(configs), key=key, cache_results=True)(kernel)
    return _tuned[id(kernel)]


def launch_pixels(
    kernel: Any, pixels: tuple[int, int, int], configs: Sequence[triton.Config], tensor: torch.Tensor, **arguments: Any
) -> None:
    """`launch` a program for every BLOCK of the ``pixels`` (N, H, W) along their rows: axes x, y and n of programs, so that none divides for its place.

    Where there are more rows or images than an axis holds, launches follow one another, each from ``first_row`` of image ``first_n`` on.
    """
    batch, height, width = pixels
    for first_n in range(0, batch, _LARGEST_AXIS):
        for first_row in range(0, height, _LARGEST_AXIS):
            others = min(height - first_row, _LARGEST_AXIS), min(batch - first_n, _LARGEST_AXIS)

            def programs(meta: dict[str, Any], others: tuple[int, int] = others) -> tuple[int, int, int]:
                return cdiv(width, meta["BLOCK"]), *others

            launch(kernel, programs, configs, tensor, first_n=first_n, first_row=first_row, **arguments)


# Where all axes of a CUDA grid but the first end.
_LARGEST_AXIS = 65535

# Kernels write `tl.fma` where they mean it, so no compiler decides how a coordinate is rounded.
FP_FUSION = False

# No block of a kernel is longer than this.
LARGEST_BLOCK = 1024


def triton_dtype(dtype: torch.dtype) -> tl.dtype:
    """The compute type's name in Triton."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def constant(value: float, dtype: torch.dtype) -> float | int:
    """A number for a kernel that computes in ``dtype``: float64 goes as its bits, because Triton types Python floats float32."""
    return struct.unpack("<q", struct.pack("<d", value))[0] if dtype == torch.float64 else value


@functools.lru_cache(maxsize=256)
def lattice_arguments(lattice: Lattice, dtype: torch.dtype, axes: str = "zyx") -> Mapping[str, Any]:
    """``scale_*``, ``anchor_*`` of ``axes``, and the origin: ``top`` with y, ``left`` with x."""
    arguments: dict[str, Any] = {}
    for axis, scale, anchor in zip("zyx", lattice.scale, lattice.anchor, strict=True):
        if axis in axes:
            arguments[f"scale_{axis}"] = constant(scale, dtype)
            arguments[f"anchor_{axis}"] = constant(anchor, dtype)
    for axis, name, origin in zip("yx", ("top", "left"), lattice.origin, strict=True):
        if axis in axes:
            arguments[name] = int(origin)
    return arguments


def strides(name: str, tensor: torch.Tensor | None, axes: str) -> dict[str, Any]:
    """``stride_<name>_<axis>`` of every axis; zeros for a tensor that is not there."""
    steps = tensor.stride() if tensor is not None else (0,) * len(axes)
    return dict(zip(_stride_names(name, axes), steps, strict=True))


@functools.cache
def _stride_names(name: str, axes: str) -> tuple[str, ...]:
    return tuple(f"stride_{name}_{axis}" for axis in axes)


def cdiv(count: int, each: int) -> int:
    """How many times ``each`` it takes to hold ``count``; `triton.cdiv` is the same in a wrapper that costs more than the rest of a small launch."""
    return -(-count // each)


def needs_int64(*tensors: torch.Tensor | None) -> bool:
    """Whether the offset of some tensor's last element, counted in elements, passes 32 bits, or might in a block that reaches beyond it."""
    return any(t is not None and _last_offset(t) >= 2**31 - LARGEST_BLOCK for t in tensors)


def _last_offset(tensor: torch.Tensor) -> int:
    if tensor.numel() == 0:
        return 0
    steps = tensor.stride()
    return sum(map(operator.mul, tensor.shape, steps)) - sum(steps)
