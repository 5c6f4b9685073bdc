"""Sums of ramps ``weight max(u - shift, 0)`` in vector registers, and the sums that their gradients need.

Lines are contiguous vectors of a multiple of `BLOCK` numbers. The pixels stay in registers while the loop goes over the knots, so that lines are read once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from bilagrid.cpu._vectors import FUSED, alignment, broadcast, constant, fma, load, pointer

# Lanes of a register, in each of which a sum is kept until the end; and pixels that are gone through at once: four registers hide the latency of a sum.
WIDTH = 16
_REGISTERS = 4
BLOCK = WIDTH * _REGISTERS


@intrinsic
def add_ramps(typingctx: Any, line: Any, shifts: Any, weights: Any, first: Any, last: Any, out: Any) -> Any:
    """``out[j] += sum of weights[k] max(line[j] - shifts[k], 0)`` for ``first <= k < last``; NaN where the line is."""
    signature = types.void(line, shifts, weights, first, last, out)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        memory = _Memory(context, builder, signature.args)
        line_, shifts_, weights_, first_, last_, out_ = arguments

        def block(start: ir.Value) -> None:
            values = memory.read(0, line_, start)
            sums = [cgutils.alloca_once(builder, values[0].type) for _ in values]
            for total, before in zip(sums, memory.read(5, out_, start), strict=True):
                builder.store(before, total)
            with cgutils.for_range_slice(builder, first_, last_, ir.Constant(first_.type, 1), inc=True) as (k, _):
                shift, weight = memory.spread(1, shifts_, k), memory.spread(2, weights_, k)
                for total, value in zip(sums, values, strict=True):
                    over = builder.fsub(value, shift)
                    ramp = builder.select(builder.fcmp_ordered("<", over, memory.zero), memory.zero, over)
                    builder.store(fma(builder, weight, ramp, builder.load(total)), total)
            memory.write(5, out_, start, [builder.load(total) for total in sums])

        memory.over_blocks(0, line_, block)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_ramps_bwd(
    typingctx: Any, line: Any, grad: Any, shifts: Any, weights: Any, first: Any, last: Any, slope: Any, sums: Any
) -> Any:
    """The sums that the gradients of `add_ramps` are made of, with ``step = line[j] > shifts[k]``, for ``first <= k < last``::

        slope[j] += sum over k of weights[k] step
        sums[2 k], sums[2 k + 1] += sum over j of grad[j] step, and of grad[j] max(line[j] - shifts[k], 0)

    ``sums`` is flat and holds `WIDTH` partial sums of each.
    """
    signature = types.void(line, grad, shifts, weights, first, last, slope, sums)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        memory = _Memory(context, builder, signature.args)
        line_, grad_, shifts_, weights_, first_, last_, slope_, sums_ = arguments

        def block(start: ir.Value) -> None:
            values, grads = memory.read(0, line_, start), memory.read(1, grad_, start)
            slopes = [cgutils.alloca_once(builder, values[0].type) for _ in values]
            for total, before in zip(slopes, memory.read(6, slope_, start), strict=True):
                builder.store(before, total)
            with cgutils.for_range_slice(builder, first_, last_, ir.Constant(first_.type, 1), inc=True) as (k, _):
                shift, weight = memory.spread(2, shifts_, k), memory.spread(3, weights_, k)
                place = builder.mul(k, ir.Constant(k.type, 2 * WIDTH))
                steps, ramps = memory.read(7, sums_, place, 2)
                for total, value, grad in zip(slopes, values, grads, strict=True):
                    over = builder.fsub(value, shift)
                    step = builder.fcmp_ordered(">", over, memory.zero)
                    builder.store(memory.add(builder.load(total), builder.select(step, weight, memory.zero)), total)
                    steps = memory.add(steps, builder.select(step, grad, memory.zero))
                    ramps = fma(builder, grad, builder.select(step, over, memory.zero), ramps)
                memory.write(7, sums_, place, [steps, ramps])
            memory.write(6, slope_, start, [builder.load(total) for total in slopes])

        memory.over_blocks(0, line_, block)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_products(typingctx: Any, a: Any, b: Any, sums: Any, place: Any) -> Any:
    """``sums[place : place + WIDTH]`` grows by ``sum over j of a[j] b[j]``, in partial sums."""
    signature = types.void(a, b, sums, place)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        memory = _Memory(context, builder, signature.args)
        a_, b_, sums_, place_ = arguments

        def block(start: ir.Value) -> None:
            (total,) = memory.read(2, sums_, place_, 1)
            for value, other in zip(memory.read(0, a_, start), memory.read(1, b_, start), strict=True):
                total = fma(builder, value, other, total)
            memory.write(2, sums_, place_, [total])

        memory.over_blocks(0, a_, block)
        return context.get_dummy_value()

    return signature, codegen


class _Memory:
    """Reads and writes registers of an intrinsic's arguments, each given by its number and value."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kinds: Any) -> None:
        self._context, self._builder, self._kinds = context, builder, kinds
        self._real = kinds[0].dtype
        self.zero = constant(context.get_data_type(self._real), [0] * WIDTH)

    def over_blocks(self, number: int, line: ir.Value, block: Callable[[ir.Value], None]) -> None:
        """Emits ``block`` in a loop over the line's blocks."""
        length = self._context.make_array(self._kinds[number])(self._context, self._builder, line).nitems
        step = ir.Constant(length.type, BLOCK)
        zero = ir.Constant(length.type, 0)
        with cgutils.for_range_slice(self._builder, zero, length, step, inc=True) as (start, _):
            block(start)

    def read(self, number: int, array: ir.Value, start: ir.Value, registers: int = _REGISTERS) -> list[ir.Value]:
        places = [self._builder.add(start, ir.Constant(start.type, r * WIDTH)) for r in range(registers)]
        return [load(self._context, self._builder, self._kinds[number], array, place, WIDTH) for place in places]

    def write(self, number: int, array: ir.Value, start: ir.Value, registers: list[ir.Value]) -> None:
        for r, register in enumerate(registers):
            place = self._builder.add(start, ir.Constant(start.type, r * WIDTH))
            address = pointer(self._context, self._builder, self._kinds[number], array, place, WIDTH)
            self._builder.store(register, address, align=alignment(self._context, self._real))

    def spread(self, number: int, array: ir.Value, place: ir.Value) -> ir.Value:
        """One number in all lanes."""
        value = load(self._context, self._builder, self._kinds[number], array, place, 1)
        return broadcast(self._builder, self._builder.extract_element(value, ir.Constant(ir.IntType(32), 0)), WIDTH)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self._builder.fadd(a, b, flags=FUSED)
