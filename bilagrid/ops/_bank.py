"""Grids chosen from a bank: how their gradients get back to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _index, _vmap
from bilagrid.ops._function import Function
from bilagrid.ops._register import raw_operator


def to_bank(parts: Tensor, bank: Tensor, index: Tensor | None, *, sparse: bool = False) -> Tensor:
    """The gradient by ``bank``, where ``parts[n]`` is that by ``bank[index[n]]``; without an index, ``parts`` themselves.

    With ``sparse`` it is a sparse COO tensor of these grids alone, as `torch.nn.Embedding` gives; a grid that several ``n`` name is in it as often.
    """
    if index is None:
        return parts.to(bank.dtype)
    if not sparse:
        return collect_(parts, index, bank.shape[0]).to(bank.dtype)
    refuse_unless_sparse(parts, index)
    valid = (index >= 0) & (index < bank.shape[0])
    kept = torch.where(valid.view(-1, 1, 1, 1, 1), parts, 0).to(bank.dtype)
    return torch.sparse_coo_tensor(torch.where(valid, index, 0)[None], kept, bank.shape, check_invariants=False)


def refuse_unless_sparse(*tensors: Tensor) -> None:
    """Refuses, naming the remedy, where torch has no sparse tensors: under vmap, and in a Dynamo graph that must be whole; another graph breaks here."""
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(
            msg="a gradient with sparse=True breaks a graph; pass sparse=False for fullgraph=True"
        )
    if any(map(_vmap.is_mapped, tensors)):
        raise NotImplementedError(
            "sparse=True has no gradient under torch.vmap, nor under what maps by it such as torch.func.jacrev; pass sparse=False there"
        )


def collect_(parts: Tensor, index: Tensor, count: int) -> Tensor:
    """``bank[m] = sum of parts[n] where index[n] is m``, in the order of n, for a bank of ``count`` grids; an index out of range adds to none."""
    return _Collect.apply(parts, index, count)


def choose_(bank: Tensor, index: Tensor) -> Tensor:
    """The adjoint of `collect_`: a copy of ``bank[index]``, NaN where an index is out of range."""
    return _Choose.apply(bank, index)


def _fake_collect(parts: Tensor, index: Tensor, count: int) -> Tensor:
    return parts.new_empty((count, *parts.shape[1:]))


def _vmap_collect(info: Any, in_dims: tuple[Any, ...], parts: Tensor, index: Tensor, count: int) -> tuple[Tensor, int]:
    """Items that share an index are collected as channels; else there is a bank for each item, one after another."""
    batch = info.batch_size
    if in_dims[1] is None:
        out = raw_collect(parts.movedim(in_dims[0], 1).flatten(1, 2), index, count)
        return out.unflatten(1, (batch, -1)), 1
    index = _index.folded(index, in_dims[1], batch, count)
    out = raw_collect(_vmap.folded(parts, in_dims[0], batch), index, batch * count)
    return out.unflatten(0, (batch, -1)), 0


raw_collect = raw_operator(
    "_bank", "collect(Tensor parts, Tensor index, SymInt count) -> Tensor", _fake_collect, vmap=_vmap_collect
)


class _Collect(Function):
    @staticmethod
    def forward(parts: Tensor, index: Tensor, count: int) -> Tensor:
        return raw_collect(parts, index, count)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return choose_(grad, index), None, None


class _Choose(Function):
    @staticmethod
    def forward(bank: Tensor, index: Tensor) -> Tensor:
        valid = (index >= 0) & (index < bank.shape[0])
        chosen = bank.index_select(0, torch.where(valid, index, 0))
        return torch.where(valid.view(-1, *(1,) * (bank.ndim - 1)), chosen, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        bank, index = inputs
        ctx.count = bank.shape[0]
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (index,) = ctx.saved_tensors
        return collect_(grad, index, ctx.count), None
