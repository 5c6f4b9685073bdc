"""Compiling ahead of the first call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _backend


def warmup(
    function: Callable[..., Any],
    *arguments: Any,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backward: bool = True,
) -> None:
    """Compiles every kernel that ``function(*arguments)`` and its gradients need, so that the first call is as fast as the next.

    On a GPU nothing is launched and no memory is taken: the function runs on tensors without data, and the kernels that it would launch are compiled. They then
    serve every image size, batch and origin that needs the same variants. On the CPU the function runs once, on zeros.

    Args:
        function: an operator of this package, or any function or module that calls operators. It must not read the values of its tensors: so give a filter
            its ``guide_range``.
        arguments: the function's. A tensor stands for one of its shape, strides and dtype, whatever device it is on; a tuple of integers is a shape and
            stands for a contiguous tensor of ``dtype``. All else is passed on as it is; so give a ``size``, which is no shape, as a list.
        dtype: of the tensors given by a shape.
        device: what to compile for; by default the current GPU, or the CPU where there is none.
        backward: whether the gradients' kernels are compiled too.

    Raises:
        TypeError: a function that cannot be called.
        ValueError: a device that is neither a CPU nor a CUDA or ROCm GPU, or a GPU where torch sees none.

    Whatever the function raises for such arguments is raised too. It makes no difference to results: warmed up or not, a function gives the same bits.

    Example:
        >>> import bilagrid
        >>> warmup(bilagrid.slice_apply, (1, 12, 8, 4, 4), None, (1, 3, 12, 16), device="cpu")
        >>> warmup(bilagrid.splat, (1, 3, 12, 16), (1, 12, 16), [8, 4, 4], device="cpu")
        >>> smooth = lambda image: bilagrid.bilateral_filter(image, sigma_space=4, sigma_color=0.1, guide_range=(0, 1))
        >>> warmup(smooth, (1, 1, 48, 64), device="cpu", backward=False)
    """
    if not callable(function):
        raise TypeError(f"function must be callable, got {type(function).__name__}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.device(device)
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be a CPU or a CUDA or ROCm GPU, got {where}")
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be one that is there, got {where}, and torch sees no GPU")
    if where.type == "cpu":
        _run(function, arguments, dtype, "cpu", backward)
    else:
        compile_launches = _backend.launcher("_launch", "compile_launches", "cuda")
        with _backend.rehearsal():
            compile_launches(lambda: _run(function, arguments, dtype, "meta", backward), where)


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], dtype: torch.dtype, device: str, backward: bool
) -> None:
    """Runs the function once, and its gradients by all tensors that have one."""
    given = [_stand_in(argument, dtype, device) for argument in arguments]
    leaves = [
        value.requires_grad_()
        for value in given
        if backward and isinstance(value, Tensor) and value.is_floating_point()
    ]
    out = function(*given)
    outputs = [value for value in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(value, Tensor)]
    outputs = [value for value in outputs if value.requires_grad]
    if leaves and outputs:
        torch.autograd.grad(outputs, leaves, [torch.zeros_like(value) for value in outputs], allow_unused=True)


def _stand_in(argument: Any, dtype: torch.dtype, device: str) -> Any:
    """Zeros laid out as a tensor, or of a shape; without data on the meta device. Anything else as it is."""
    if isinstance(argument, Tensor):
        lying = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device=device)
        return lying.zero_()
    if isinstance(argument, tuple) and all(isinstance(extent, int) for extent in argument):
        return torch.zeros(argument, dtype=dtype, device=device)
    return argument
