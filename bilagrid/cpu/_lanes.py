"""Vector registers by hand, where LLVM does not find the form by itself: a pixel's corners for two channels, and four outputs of an affine map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 4
_FUSED = ("contract",)
_INDEX = ir.IntType(32)


@intrinsic
def gather_pair(typingctx: Any, table: Any, near: Any, far: Any, left: Any, right: Any, lower: Any, upper: Any) -> Any:
    """Two channels at one pixel, ``sum over x of (left, right) and z of (lower, upper)``, as a tuple.

    ``table`` holds ``(node, channel)`` pairs; ``near`` and ``far`` are the offsets of the lower corner left and right, the upper corner follows it.
    """
    real = table.dtype
    signature = types.UniTuple(real, 2)(table, near, far, left, right, lower, upper)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        table_, near_, far_, left_, right_, lower_, upper_ = arguments
        at_near, at_far = (_address(context, builder, signature.args[0], table_, k) for k in (near_, far_))
        align = context.get_abi_sizeof(context.get_data_type(real))
        by_left = builder.fmul(_spread(builder, left_), builder.load(at_near, align=align), flags=_FUSED)
        by_right = builder.fmul(_spread(builder, right_), builder.load(at_far, align=align), flags=_FUSED)
        mixed = builder.fadd(by_left, by_right, flags=_FUSED)
        weighted = builder.fmul(_vector(builder, (lower_, lower_, upper_, upper_)), mixed, flags=_FUSED)
        lanes = [builder.extract_element(weighted, _INDEX(lane)) for lane in range(LANES)]
        sums = [builder.fadd(lanes[channel], lanes[channel + 2], flags=_FUSED) for channel in range(2)]
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, codegen


@intrinsic
def scatter_pair(
    typingctx: Any,
    table: Any,
    near: Any,
    far: Any,
    left: Any,
    right: Any,
    lower: Any,
    upper: Any,
    first: Any,
    second: Any,
) -> Any:
    """Adds two channels' values ``first`` and ``second``, with the weights of `gather_pair`, to the cells at offsets ``near`` and ``far``.

    A cell holds its lower corner's pair and its upper corner's pair by itself: were neighbours to share a corner, a load would straddle two stores in
    flight and wait for both.
    """
    signature = types.void(table, near, far, left, right, lower, upper, first, second)
    real = table.dtype

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        table_, near_, far_, left_, right_, lower_, upper_, first_, second_ = arguments
        weights = _vector(builder, (lower_, lower_, upper_, upper_))
        added = builder.fmul(weights, _vector(builder, (first_, second_, first_, second_)), flags=_FUSED)
        align = context.get_abi_sizeof(context.get_data_type(real))
        for offset, share in ((near_, left_), (far_, right_)):
            address = _address(context, builder, signature.args[0], table_, offset)
            part = builder.fmul(_spread(builder, share), added, flags=_FUSED)
            builder.store(builder.fadd(builder.load(address, align=align), part, flags=_FUSED), address, align=align)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def apply_four(typingctx: Any, table: Any, corners: Any, weights: Any, pixel: Any, terms: Any) -> Any:
    """``out[lane] = sum_t pixel[t] sum_k weights[k] table[corners[k] + 4 t + lane]`` for four lanes and four corners, as a tuple.

    ``table`` and ``pixel`` are contiguous vectors of one type, ``corners`` four offsets into the table, ``weights`` four numbers.
    """
    real = table.dtype
    signature = types.UniTuple(real, LANES)(table, corners, weights, pixel, terms)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        table_, corners_, weights_, pixel_, terms_ = arguments
        table_type, _, _, pixel_type, _ = signature.args
        scalar = context.get_data_type(real)
        vector = ir.VectorType(scalar, LANES)
        coefficients = context.make_array(table_type)(context, builder, table_).data
        inputs = context.make_array(pixel_type)(context, builder, pixel_).data
        starts = [builder.gep(coefficients, [builder.extract_value(corners_, k)]) for k in range(LANES)]
        shares = [_spread(builder, builder.extract_value(weights_, k)) for k in range(LANES)]
        total = cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * LANES))
        with cgutils.for_range(builder, terms_) as loop:
            step = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            mixed = ir.Constant(vector, [0.0] * LANES)
            for start, share in zip(starts, shares, strict=True):
                address = builder.bitcast(builder.gep(start, [step]), vector.as_pointer())
                corner = builder.load(address, align=context.get_abi_sizeof(scalar))
                mixed = builder.fadd(mixed, builder.fmul(share, corner, flags=_FUSED), flags=(*_FUSED, "nsz"))
            value = _spread(builder, builder.load(builder.gep(inputs, [loop.index])))
            term = builder.fmul(mixed, value, flags=_FUSED)
            builder.store(builder.fadd(builder.load(total), term, flags=_FUSED), total)
        result = builder.load(total)
        lanes = [builder.extract_element(result, _INDEX(lane)) for lane in range(LANES)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return signature, codegen


def _vector(builder: ir.IRBuilder, lanes: Sequence[ir.Value]) -> ir.Value:
    vector = ir.Constant(ir.VectorType(lanes[0].type, LANES), ir.Undefined)
    for lane, value in enumerate(lanes):
        vector = builder.insert_element(vector, value, _INDEX(lane))
    return vector


def _spread(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    return _vector(builder, (value,) * LANES)


def _address(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, offset: ir.Value) -> ir.Value:
    """Where four elements of a contiguous array begin, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())
