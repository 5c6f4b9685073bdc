"""Inner loops in vector registers by hand, where LLVM does not vectorise well by itself: a pixel's corners for pairs of channels, an affine map, a row's taps.

A pixel's weights along an axis come from one number, the weight ``upper`` of the farther node: ``(unit - upper, upper)``. ``unit`` is 1, or 0 where the
weights are derivatives. ``right`` and ``above`` are the same number along x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic

from bilagrid.cpu._vectors import FUSED, INDEX, alignment, broadcast, constant, fma, load, pick, pointer

# The outputs of `apply_four`; and the numbers that a pair of channels has in a cell: two nodes each along x, z and y, two channels.
LANES = 4
CELL = 16

# What `weigh_rows` computes at a time: four registers of 16 numbers hide the latency of a multiply-add.
_WIDTH = 16
_REGISTERS = 4


@intrinsic
def contiguous(typingctx: Any, row: Any) -> Any:
    """The same array, typed as contiguous; its stride must have been checked."""
    signature = row.copy(layout="C")(row)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return impl_ret_borrowed(context, builder, signature.return_type, arguments[0])

    return signature, codegen


@intrinsic
def gather_pair(typingctx: Any, table: Any, near: Any, far: Any, right: Any, above: Any, upper: Any, unit: Any) -> Any:
    """Two channels at one pixel, ``sum over x, y and z of w_x w_y w_z table``, as a tuple.

    ``table`` holds ``(node, y, channel)``, with two y and two channels. ``near`` and ``far`` are the offsets of the left and the right corner below in z; the
    corner above follows each.
    """
    real = table.dtype
    signature = types.UniTuple(real, 2)(table, near, far, right, above, upper, unit)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        table_, near_, far_, right_, above_, upper_, unit_ = arguments
        one = ir.Constant(context.get_data_type(real), 1)
        lane = range(8)
        at_left, at_right = (load(context, builder, signature.args[0], table_, k, 8) for k in (near_, far_))
        difference = builder.fsub(at_right, at_left, flags=FUSED)
        mixed = fma(builder, broadcast(builder, right_, 8), difference, at_left)
        by_y = _pair_of_weights(builder, above_, one, [k // 2 % 2 for k in lane])
        by_yz = _pair_of_weights(builder, upper_, unit_, [k // 4 for k in lane], by_y)
        weighted = builder.fmul(by_yz, mixed, flags=FUSED)
        for half in (4, 2):
            first, second = (pick(builder, weighted, range(start, start + half)) for start in (0, half))
            weighted = builder.fadd(first, second, flags=FUSED)
        lanes = [builder.extract_element(weighted, INDEX(lane)) for lane in range(2)]
        return context.make_tuple(builder, signature.return_type, lanes)

    return signature, codegen


@intrinsic
def scatter_pairs(
    typingctx: Any,
    cells: Any,
    place: Any,
    right: Any,
    upper: Any,
    unit: Any,
    above: Any,
    values: Any,
    start: Any,
    step: Any,
    pairs: Any,
) -> Any:
    """Adds ``w_x w_z w_y values[start + step pair + channel]`` to a cell: ``cells[place + 16 pair + lane]``, lanes ``(x, z, y, channel)``.

    Each cell has its own eight corners. If neighbours shared them, a load would straddle two stores in flight and wait for both.
    """
    real = cells.dtype
    signature = types.void(cells, place, right, upper, unit, above, values, start, step, pairs)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        cells_, place_, right_, upper_, unit_, above_, values_, start_, step_, pairs_ = arguments
        one = ir.Constant(context.get_data_type(real), 1)
        # Lanes (z, y, channel), once for x below and once for x above: no weight has to change its lane.
        half = range(CELL // 2)
        by_x = [broadcast(builder, weight, CELL // 2) for weight in (builder.fsub(one, right_), right_)]
        by_y = _pair_of_weights(builder, above_, one, [k // 2 % 2 for k in half])
        by_z = _pair_of_weights(builder, upper_, unit_, [k // 4 for k in half])
        with cgutils.for_range(builder, pairs_) as loop:
            pair = builder.add(start_, builder.mul(loop.index, step_))
            cell = builder.add(place_, builder.mul(loop.index, ir.Constant(loop.index.type, CELL)))
            value = load(context, builder, signature.args[6], values_, pair, 2)
            value = builder.fmul(by_y, pick(builder, value, [k % 2 for k in half]), flags=FUSED)
            value = builder.fmul(by_z, value, flags=FUSED)
            for x, weight in enumerate(by_x):
                corners = builder.add(cell, ir.Constant(cell.type, x * CELL // 2))
                address = pointer(context, builder, signature.args[0], cells_, corners, CELL // 2)
                before = builder.load(address, align=alignment(context, real))
                builder.store(fma(builder, weight, value, before), address, align=alignment(context, real))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def close_node(
    typingctx: Any, cells: Any, offset: Any, below: Any, left: Any, lower: Any, upper: Any, place: Any
) -> Any:
    """Adds up the four cells around a node: ``lower[place + channel]`` grows by the sum for y below, ``upper[...]`` is set to that for y above.

    ``offset`` is that of the node's own cell; its neighbours in z and in x lie ``below`` and ``left`` before it.
    """
    real = cells.dtype
    signature = types.void(cells, offset, below, left, lower, upper, place)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        cells_, offset_, below_, left_, lower_, upper_, place_ = arguments
        beside = builder.sub(offset_, left_)
        corners = [offset_, builder.sub(offset_, below_), beside, builder.sub(beside, below_)]
        total = None
        for number, corner in enumerate(corners):
            lanes = builder.add(corner, ir.Constant(corner.type, LANES * number))
            part = load(context, builder, signature.args[0], cells_, lanes, LANES)
            total = part if total is None else builder.fadd(total, part, flags=FUSED)
        address = pointer(context, builder, signature.args[4], lower_, place_, 2)
        before = builder.load(address, align=alignment(context, real))
        after = builder.fadd(before, pick(builder, total, [0, 1]), flags=FUSED)
        builder.store(after, address, align=alignment(context, real))
        address = pointer(context, builder, signature.args[5], upper_, place_, 2)
        builder.store(pick(builder, total, [2, 3]), address, align=alignment(context, real))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def weigh_rows(typingctx: Any, rows: Any, step: Any, taps: Any, first: Any, last: Any, out: Any, length: Any) -> Any:
    """``out[i] = sum of taps[k] rows[k step + i]`` for ``first <= k < last`` and ``i < length``, reading past the end of the contiguous vector ``rows``."""
    signature = types.void(rows, step, taps, first, last, out, length)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        rows_, step_, taps_, first_, last_, out_, length_ = arguments
        scalar = context.get_data_type(rows.dtype)
        weights = context.make_array(signature.args[2])(context, builder, taps_).data
        block = ir.Constant(length_.type, _WIDTH * _REGISTERS)
        whole = builder.sub(length_, builder.srem(length_, block))

        def weigh(start: ir.Value, width: int, registers: int) -> None:
            vector = ir.VectorType(scalar, width)
            zero = constant(scalar, [0] * width)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(registers)]
            for total in sums:
                builder.store(zero, total)
            with cgutils.for_range_slice(builder, first_, last_, ir.Constant(first_.type, 1), inc=True) as (k, _):
                weight = broadcast(builder, builder.load(builder.gep(weights, [k])), width)
                here = builder.add(start, builder.mul(k, step_))
                for number, total in enumerate(sums):
                    place = builder.add(here, ir.Constant(here.type, number * width))
                    part = load(context, builder, signature.args[0], rows_, place, width)
                    builder.store(fma(builder, weight, part, builder.load(total)), total)
            for number, total in enumerate(sums):
                place = builder.add(start, ir.Constant(start.type, number * width))
                address = pointer(context, builder, signature.args[5], out_, place, width)
                assert address.type.pointee == vector
                builder.store(builder.load(total), address, align=alignment(context, rows.dtype))

        with cgutils.for_range_slice(builder, ir.Constant(whole.type, 0), whole, block, inc=True) as (start, _):
            weigh(start, _WIDTH, _REGISTERS)
        with cgutils.for_range_slice(builder, whole, length_, ir.Constant(whole.type, 1), inc=True) as (start, _):
            weigh(start, 1, 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def extremes(typingctx: Any, line: Any, length: Any) -> Any:
    """The least and the greatest of the first ``length`` numbers of a contiguous vector, and 0, or NaN if one is not finite, as a tuple."""
    real = line.dtype
    signature = types.UniTuple(real, 3)(line, length)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        line_, length_ = arguments
        scalar = context.get_data_type(real)

        def lesser(a: ir.Value, b: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        def greater(a: ir.Value, b: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def fault(value: ir.Value, before: ir.Value) -> ir.Value:
            return builder.fadd(builder.fmul(value, builder.fsub(value, value)), before)

        width = _WIDTH * 2
        rules = (lesser, greater, fault)
        first = broadcast(
            builder,
            builder.extract_element(
                load(context, builder, signature.args[0], line_, ir.Constant(length_.type, 0), 1), INDEX(0)
            ),
            width,
        )
        found = [cgutils.alloca_once_value(builder, start) for start in (first, first, constant(scalar, [0] * width))]
        step = ir.Constant(length_.type, width)
        whole = builder.sub(length_, builder.srem(length_, step))
        zero, one = ir.Constant(length_.type, 0), ir.Constant(length_.type, 1)
        with cgutils.for_range_slice(builder, zero, whole, step, inc=True) as (start, _):
            value = load(context, builder, signature.args[0], line_, start, width)
            for rule, place in zip(rules, found, strict=True):
                builder.store(rule(value, builder.load(place)), place)
        results = []
        for rule, place in zip((*rules[:2], builder.fadd), found, strict=True):
            total = builder.load(place)
            for half in (16, 8, 4, 2, 1):
                total = rule(*(pick(builder, total, range(begin, begin + half)) for begin in (0, half)))
            results.append(cgutils.alloca_once_value(builder, builder.extract_element(total, INDEX(0))))
        with cgutils.for_range_slice(builder, whole, length_, one, inc=True) as (start, _):
            value = builder.extract_element(load(context, builder, signature.args[0], line_, start, 1), INDEX(0))
            for rule, place in zip(rules, results, strict=True):
                builder.store(rule(value, builder.load(place)), place)
        return context.make_tuple(builder, signature.return_type, [builder.load(place) for place in results])

    return signature, codegen


@intrinsic
def apply_four(
    typingctx: Any, table: Any, corners: Any, weights: Any, pixels: Any, start: Any, terms: Any, out: Any, place: Any
) -> Any:
    """``out[place + lane] = sum_t pixels[start + t] sum_k weights[k] table[corners[k] + 4 t + lane]`` for four lanes and four corners.

    ``table``, ``pixels`` and ``out`` are contiguous vectors of one type, ``corners`` four offsets into the table, ``weights`` four numbers.
    """
    real = table.dtype
    signature = types.void(table, corners, weights, pixels, start, terms, out, place)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        table_, corners_, weights_, pixels_, start_, terms_, out_, place_ = arguments
        table_type, pixels_type, out_type = signature.args[0], signature.args[3], signature.args[6]
        zero = constant(context.get_data_type(real), [0] * LANES)
        starts = [builder.extract_value(corners_, k) for k in range(LANES)]
        shares = [broadcast(builder, builder.extract_value(weights_, k), LANES) for k in range(LANES)]
        total = cgutils.alloca_once_value(builder, zero)
        builder.store(zero, total)
        with cgutils.for_range(builder, terms_) as loop:
            step = builder.mul(loop.index, ir.Constant(loop.index.type, LANES))
            mixed = zero
            for corner, share in zip(starts, shares, strict=True):
                value = load(context, builder, table_type, table_, builder.add(corner, step), LANES)
                mixed = fma(builder, share, value, mixed)
            value = load(context, builder, pixels_type, pixels_, builder.add(start_, loop.index), 1)
            value = pick(builder, value, [0] * LANES)
            builder.store(fma(builder, mixed, value, builder.load(total)), total)
        address = pointer(context, builder, out_type, out_, place_, LANES)
        builder.store(builder.load(total), address, align=alignment(context, real))
        return context.get_dummy_value()

    return signature, codegen


def _pair_of_weights(
    builder: ir.IRBuilder, upper: ir.Value, unit: ir.Value, sides: Sequence[int], by: ir.Value | None = None
) -> ir.Value:
    """``unit - upper`` in the lanes of side 0 and ``upper`` in those of side 1, times ``by``. By a multiply-add of constants; selecting would take shuffles."""
    signs: ir.Value = constant(upper.type, [2 * side - 1 for side in sides])
    is_lower = constant(upper.type, [1 - side for side in sides])
    start = builder.fmul(broadcast(builder, unit, len(sides)), is_lower, flags=FUSED)
    if by is not None:
        signs, start = (builder.fmul(part, by, flags=FUSED) for part in (signs, start))
    return fma(builder, broadcast(builder, upper, len(sides)), signs, start)
