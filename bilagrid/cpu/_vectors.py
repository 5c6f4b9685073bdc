"""Vectors in LLVM's own words, for the intrinsics of the Numba loops: how they are loaded, multiplied and rearranged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

# What LLVM may do to arithmetic: fuse a multiplication and an addition, and forget the sign of zero. NaN and infinity keep their meaning, sums their order.
FUSED = ("contract", "nsz")
INDEX = ir.IntType(32)


def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """``a b + c``."""
    return builder.fadd(builder.fmul(a, b, flags=FUSED), c, flags=FUSED)


def constant(scalar: ir.Type, values: Sequence[int]) -> ir.Constant:
    """A vector of these numbers."""
    return ir.Constant(ir.VectorType(scalar, len(values)), [ir.Constant(scalar, value) for value in values])


def pick(builder: ir.IRBuilder, vector: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """The vector of these lanes of another."""
    mask = ir.Constant(ir.VectorType(INDEX, len(lanes)), [INDEX(lane) for lane in lanes])
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def broadcast(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """One number in all lanes."""
    first = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    return pick(builder, builder.insert_element(first, value, INDEX(0)), [0] * lanes)


def alignment(context: Any, real: Any) -> int:
    """That of a single number: rows begin anywhere."""
    return context.get_abi_sizeof(context.get_data_type(real))


def pointer(
    context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, offset: ir.Value, lanes: int
) -> ir.Value:
    """Where some elements of a contiguous array begin, as a pointer to a vector of them."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), lanes)
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def load(
    context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, offset: ir.Value, lanes: int
) -> ir.Value:
    """Some elements of a contiguous array, as a vector."""
    address = pointer(context, builder, array_type, array, offset, lanes)
    return builder.load(address, align=alignment(context, array_type.dtype))
