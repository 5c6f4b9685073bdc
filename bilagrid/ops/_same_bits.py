"""Sums and powers that have the same bits for any number of threads and in any batch; torch's own on the CPU have not.

Torch divides a sum with a single result among its threads, and the sum over one image is such a sum, while that over each of two images is none. And the last
bit of a power depends on where a number stands in a thread's share of them; that of an exponential or a logarithm does not.
"""

from __future__ import annotations

import math

from torch import Tensor


def summed(values: Tensor, first: int) -> Tensor:
    """The sum over all axes from ``first`` on, which stay with extent 1. One axis at a time: then only the last sum, which is short, has a single result."""
    for axis in range(values.ndim - 1, first - 1, -1):
        values = values.sum(axis, keepdim=True)
    return values


def spread(totals: Tensor, like: Tensor) -> Tensor:
    """``totals`` expanded to the shape of ``like``. Its gradient is a sum, so it too goes one axis at a time, as in `summed`."""
    for axis in range(totals.ndim):
        totals = totals.expand(*like.shape[: axis + 1], *totals.shape[axis + 1 :])
    return totals


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` where the base is above 0."""
    return (exponent * base.log()).exp()


def power_of_ten(exponent: Tensor) -> Tensor:
    """``10 ** exponent``."""
    return (math.log(10) * exponent).exp()
