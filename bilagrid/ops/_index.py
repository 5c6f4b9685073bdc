"""Choosing grids from a bank of them by an integer tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bilagrid.ops import _vmap


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
    """Every index is one of ``count`` grids. It reads the index, for which the host waits for a GPU."""
    if index is None or index.numel() == 0:
        return
    # What is expanded is read once.
    once = index[tuple(slice(0, 1) if step == 0 else slice(None) for step in index.stride())]
    least, greatest = (int(extreme) for extreme in once.aminmax())
    if least < 0 or greatest >= count:
        wrong = least if least < 0 else greatest
        raise IndexError(f"index must be from 0 to {count - 1}, for {count} grids, got {wrong}")


def for_images(index: Tensor | None, images: Tensor, what: str, bank: Tensor | None = None) -> None:
    """An ``index (N,)`` fits the ``images``, called ``what``, and the ``bank`` that they read, if they read one."""
    if index is None:
        return
    check_index(index, images, what)
    if tuple(index.shape) != (images.shape[0],):
        raise ValueError(f"index must have shape (N,) = ({images.shape[0]},) to match {what}, got {tuple(index.shape)}")
    if bank is not None:
        check_bank(bank, images)


def check_bank(bank: Tensor, images: Tensor) -> None:
    """The bank has a grid to choose, if there are images (or points) at all."""
    if bank.shape[0] == 0 and images.numel() > 0:
        raise ValueError(f"grid must have at least one grid to choose from, got {tuple(bank.shape)}")


def folded(index: Tensor, dim: int | None, batch: int, count: int | None = None) -> Tensor:
    """For vmap: the index ``(N, ...)`` of ``batch`` items as one ``(batch * N, ...)``: into one bank for all, or with ``count`` into a bank of that many grids for each."""
    mapped = _vmap.mapped(index, dim, batch)
    if count is not None:
        mapped = shifted(mapped, count, torch.arange(batch, device=index.device).view(-1, *(1,) * (mapped.ndim - 1)))
    return mapped.flatten(0, 1)


def along(index: Tensor, leading: Sequence[int]) -> Tensor:
    """``index`` expanded to the dimensions ``leading``, of which it may lack some at the end."""
    padded = index.reshape((*index.shape, *(1,) * (len(leading) - index.ndim)))
    return padded.expand(tuple(leading))


def shifted(index: Tensor, count: int, banks: Tensor) -> Tensor:
    """An index into each of several ``banks`` of ``count`` grids as one into all of them in a row; what is out of range stays so."""
    return torch.where((index >= 0) & (index < count), index + banks * count, -1)
