"""Numbers that a caller gives, of Python, NumPy or torch, checked. Under torch.compile real numbers become constants of the graph."""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import guard_scalar


def number(name: str, value: Any) -> float:
    """``value`` if it is a real number; else a TypeError names the argument."""
    if torch.compiler.is_compiling() and isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        return guard_scalar(value)
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, Real):
        return float(value)
    raise TypeError(f"{name} must be a number, got {value!r}")


def numbers(name: str, symbols: str, values: Any) -> tuple[float, ...]:
    """``values`` if they are as many real numbers as ``symbols``, such as "(z, y, x)", has names."""
    if not isinstance(values, (tuple, list)) or len(values) != symbols.count(",") + 1:
        raise TypeError(f"{name} must be {symbols}, {symbols.count(',') + 1} numbers, got {values!r}")
    return tuple(number(name, value) for value in values)


def integer(name: str, value: Any, expected: str = "a whole number") -> int:
    """``value`` if it is a whole number, or a symbolic size."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    # In TorchScript's traces sizes are tensors. Made numbers, they would be those of the first image for every other.
    if torch.jit.is_tracing():
        return value
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be {expected}, got {value!r}")
