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

    On a GPU nothing is launched and no memory is taken: the function runs on tensors without data, and the kernels that it would launch are compiled, for
    any image size, batch and origin that asks for the same variants. On the CPU it runs once, on zeros.

    Args:
        function: an operator of this package, or any function or module that calls some; it must not look into its tensors. A filter needs its
            ``guide_range`` given for that.
        arguments: the function's. A tensor stands for one of its shape, strides and dtype, on whichever device it is; a shape, a tuple of integers, for a
            contiguous one of ``dtype``. All else is passed on as it is; so a ``size``, which is no shape, is given as a list.
        dtype: of the tensors given by their shape.
        device: to compile for; by default the current GPU, or the CPU where there is none.
        backward: whether the gradients' kernels are compiled too.

    Raises:
        TypeError: a function that cannot be called.
        ValueError: a device that is neither a CPU nor a CUDA or ROCm GPU, or a GPU where torch sees none; and whatever the function raises for such
            arguments.

    Deterministic: warmed or not, a function gives the same bits.

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
    """The function once, and its gradients by all tensors that have some."""
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
    """Zeros, or on the meta device nothing, that lie as a tensor does or have a shape; anything else as it is."""
    if isinstance(argument, Tensor):
        lying = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device=device)
        return lying.zero_()
    if isinstance(argument, tuple) and all(isinstance(extent, int) for extent in argument):
        return torch.zeros(argument, dtype=dtype, device=device)
    return argument
