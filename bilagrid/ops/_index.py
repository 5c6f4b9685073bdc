"""Choosing grids from a bank of them by an integer tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_index(index: Tensor, like: Tensor, other: str) -> None:
    """``index`` holds integers and lies where ``like``, called ``other``, does."""
    if not isinstance(index, Tensor):
        raise TypeError(f"index must be a torch.Tensor of int64 or int32, got {type(index).__name__}")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index must be int64 or int32, got {index.dtype}; call .long()")
    if index.layout != torch.strided:
        raise TypeError(f"index must be a dense (strided) tensor, got {index.layout}; call .to_dense()")
    if index.device != like.device:
        raise ValueError(f"index must be on {like.device} as {other} is, got {index.device}")


def check_range(index: Tensor | None, count: int) -> None:
    """Every index is one of ``count`` grids. Reads the index, so on a GPU it waits for it."""
    if index is None or index.numel() == 0:
        return
    # What is expanded is read once.
    once = index[tuple(slice(0, 1) if step == 0 else slice(None) for step in index.stride())]
    least, greatest = (int(extreme) for extreme in once.aminmax())
    if least < 0 or greatest >= count:
        wrong = least if least < 0 else greatest
        raise IndexError(f"index must be from 0 to {count - 1}, for {count} grids, got {wrong}")


def along(index: Tensor, leading: Sequence[int]) -> Tensor:
    """``index`` expanded to the dimensions ``leading``, from the first on: those that it lacks at the end are as if of extent 1."""
    padded = index.reshape(*index.shape, *(1,) * (len(leading) - index.ndim))
    return padded.expand(tuple(leading))


def shifted(index: Tensor, count: int, banks: Tensor) -> Tensor:
    """``index`` into banks of ``count`` grids as one into all of them, one after the other; what is out of range stays so."""
    return torch.where((index >= 0) & (index < count), index + banks * count, -1)
