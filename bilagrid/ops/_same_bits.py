"""Sums and powers that have the same bits for any number of threads and in any batch, where torch's own on the CPU have not.

A sum with a single result torch divides among its threads, and that of one image is such a sum where that of two is none. A power differs in its last bit by
where in a thread's share of the numbers it stands; exponential and logarithm do not.
"""

from __future__ import annotations

import math

from torch import Tensor


def summed(values: Tensor, first: int) -> Tensor:
    """The sum over all axes from ``first`` on, which are kept, of extent 1. An axis at a time: only the last sum, which is short, has a single result."""
    for axis in range(values.ndim - 1, first - 1, -1):
        values = values.sum(axis, keepdim=True)
    return values


def spread(totals: Tensor, like: Tensor) -> Tensor:
    """Expanded to the shape of ``like``. The gradient is a sum, and an axis at a time as `summed` is."""
    for axis in range(totals.ndim):
        totals = totals.expand(*like.shape[: axis + 1], *totals.shape[axis + 1 :])
    return totals


def power(base: Tensor, exponent: float) -> Tensor:
    """``base ** exponent`` where the base is above 0."""
    return (exponent * base.log()).exp()


def power_of_ten(exponent: Tensor) -> Tensor:
    return (math.log(10) * exponent).exp()
