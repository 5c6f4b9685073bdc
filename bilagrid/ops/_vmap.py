"""What the rules of `torch.vmap` share: a mapped dimension joins the batch, or each item gets a call of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether `torch.vmap` maps the tensor, perhaps within other transforms."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if torch._C._functorch.is_batchedtensor(tensor):
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return False


def mapped(tensor: Tensor, dim: int | None, items: int) -> Tensor:
    """The tensor with the mapped dimension first, repeated for each of the ``items`` where it is not mapped."""
    return tensor.expand(items, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def folded(tensor: Tensor, dim: int | None, items: int) -> Tensor:
    """``items`` tensors ``(N, ...)`` as one ``(items * N, ...)``."""
    return mapped(tensor, dim, items).flatten(0, 1)


def one_by_one(items: int, in_dims: tuple[Any, ...], values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The arguments of a call for each item."""
    columns = [
        (value,) * items if dim is None else value.unbind(dim) for value, dim in zip(values, in_dims, strict=True)
    ]
    return list(zip(*columns, strict=True))
