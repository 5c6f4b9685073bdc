"""What every operator asks of its arguments, checked before any kernel starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bilagrid.lattice import Lattice

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def sparse(value: Any, index: Tensor | None) -> None:
    """``sparse`` is a flag, and comes with an index: only then does a gradient have few grids."""
    flag("sparse", value)
    if value and index is None:
        raise ValueError("sparse=True needs an index, which chooses the grids that have a gradient; pass index=(N,)")


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def tensors(*, optional: Tensor | None = None, **named: Tensor) -> None:
    """All named are dense floating-point tensors on one CPU or GPU without a forward-mode tangent; ``optional`` is a guide that may be None."""
    first: tuple[str, torch.device] | None = None
    if optional is not None:
        named["guide"] = optional
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.is_nested:
            raise TypeError(
                f"{name} must be a dense (strided) tensor, got a nested one; pad it, or call once for each size"
            )
        if tensor.layout != torch.strided:
            raise TypeError(f"{name} must be a dense (strided) tensor, got {tensor.layout}; call .to_dense()")
        if tensor.device.type not in ("cpu", "cuda", "meta"):
            raise ValueError(f"{name} must be on a CPU or a CUDA or ROCm GPU, got {tensor.device}")
        if first is None:
            first = name, tensor.device
        elif tensor.device != first[1]:
            raise ValueError(f"{name} must be on {first[1]} as {first[0]} is, got {tensor.device}")
        if not torch.compiler.is_compiling() and _has_tangent(tensor):
            raise NotImplementedError(
                "bilagrid's operators have no forward-mode derivative (jvp, jacfwd, hessian): use reverse mode, for second derivatives "
                "torch.func.jacrev(torch.func.jacrev(f))"
            )


def _has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode differentiates the tensor. One wrapped by an inner transform, as in ``torch.func.hessian``, hides its tangent and counts as well."""
    if forward_ad._current_level < 0:
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        stack = torch._C._functorch.get_interpreter_stack() or []
        if any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack):
            return True
    return forward_ad.unpack_dual(tensor).tangent is not None


def rank(name: str, tensor: Tensor, symbols: str) -> None:
    """``tensor`` has as many dimensions as ``symbols`` names, and none but a leading N is empty."""
    if tensor.ndim != symbols.count(", ") + 1:
        raise ValueError(f"{name} must have shape {symbols}, got {tuple(tensor.shape)}")
    batched = symbols.startswith("(N,")
    for extent in tensor.shape[1 if batched else 0 :]:
        if extent < 1:
            least = "all but N at least 1" if batched else "all at least 1"
            raise ValueError(f"{name} must have shape {symbols} with {least}, got {tuple(tensor.shape)}")


def same(name: str, tensor: Tensor, symbols: str, expected: tuple[Any, ...], other: str) -> None:
    """``tensor`` has the ``expected`` shape, which follows from the argument called ``other``."""
    rank(name, tensor, symbols)
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {symbols} = {expected} to match {other}, got {tuple(tensor.shape)}")


def lattice_for(lattice: Lattice | None, size: Any, image: Tensor, *, what: str) -> Lattice:
    """The lattice to use: the given one where it fits grid and image (``(..., H, W)``), else the cell-centred one."""
    height, width = image.shape[-2:]
    size = tuple(size) if isinstance(size, (tuple, list)) else size
    if lattice is None:
        return Lattice.cell_centered(size, (height, width))
    if not isinstance(lattice, Lattice):
        raise TypeError(f"lattice must be a bilagrid.Lattice, got {type(lattice).__name__}")
    if tuple(lattice.size) != size:
        raise ValueError(f"lattice is for a grid of (D, Gh, Gw) = {tuple(lattice.size)}, but {what} is {size}")
    (rows, columns), (top, left) = lattice.image_size, lattice.origin
    if top + height > rows or left + width > columns:
        raise ValueError(
            f"lattice is for an image of (H, W) = {(rows, columns)} seen from (top, left) = {(top, left)}, but the guide's (H, W) = {(height, width)} "
            "reaches beyond it; for a tile pass lattice.crop(top, left)"
        )
    return lattice
