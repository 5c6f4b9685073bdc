"""Raw operators: schema, one implementation a device, a fake and a vmap rule, from one declaration.

The kind of lattice travels as a string and its sizes as ``SymInt[]``: scales computed from shapes would be constants of a graph, one graph an image size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilagrid.lattice import Lattice
from bilagrid.ops import _backend

LATTICE = "str kind, SymInt[] size, SymInt[] image_size, SymInt[] origin, float[] steps, SymInt[] steps_size"

# A lattice on its way into an `autograd.Function`.
Packed = tuple[Any, ...]

_library = torch.library.Library("bilagrid", "DEF")


def pack(lattice: Lattice) -> Packed:
    """A lattice as an `autograd.Function` takes it: numbers one by one, so that symbolic sizes are inputs of a traced graph."""
    return lattice.kind, *lattice.size, *lattice.image_size, *lattice.origin, *lattice.steps, *lattice.steps_size


def unpack(packed: Packed, grid: Tensor) -> Lattice:
    """The lattice again, for a grid at hand: a traced backward knows the symbolic sizes of its own tensors, not those of the forward's."""
    kind, *numbers = packed
    depth, rows, columns = grid.shape[2:]
    sizes = tuple(numbers[3:5]), tuple(numbers[5:7])
    return Lattice(kind, (depth, rows, columns), *sizes, tuple(numbers[7:13]), tuple(numbers[13:]))


def raw(packed: Packed) -> tuple[Any, ...]:
    """A packed lattice as the raw operators take it."""
    kind, *numbers = packed
    return kind, numbers[:3], numbers[3:5], numbers[5:7], numbers[7:13], numbers[13:]


def raw_operator(
    module: str, schema: str, fake: Callable[..., Any], *, vmap: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Registers ``bilagrid::<schema>`` over the launchers of that name in ``bilagrid.cpu.<module>`` and ``bilagrid.gpu.<module>``.

    Args:
        module: the file of the launchers.
        schema: the operator's, with `LATTICE` in it where the launcher takes a lattice and flags as the launcher's keywords.
        fake: called as the launcher is, returns empty outputs.
        vmap: a rule of its own; without one a mapped dimension is folded into the batch.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.bilagrid, name).default
    arguments = [argument.name for argument in operator._schema.arguments]
    first = arguments.index("kind") if "kind" in arguments else len(arguments)

    def arrange(values: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        positional = list(values[:first])
        if first < len(arguments):
            kind, *numbers = values[first : first + 6]
            positional.append(Lattice(kind, *map(tuple, numbers)))
        return positional, dict(zip(arguments[first + 6 :], values[first + 6 :], strict=True))

    def run(device: str) -> Callable[..., Any]:
        def implementation(*values: Any) -> Any:
            positional, flags = arrange(values)
            return _backend.launcher(module, name, device)(*positional, **flags)

        return implementation

    def run_fake(*values: Any) -> Any:
        positional, flags = arrange(values)
        rehearsed = _backend.launcher(module, name, "cuda") if _backend.is_rehearsing() else fake
        return rehearsed(*positional, **flags)

    _library.impl(name, run("cpu"), "CPU")
    _library.impl(name, run("cuda"), "CUDA")
    torch.library.register_fake(f"bilagrid::{name}", run_fake, lib=_library)
    torch.library.register_vmap(f"bilagrid::{name}", vmap or _fold(operator), lib=_library)
    return operator


def _fold(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The vmap rule of an operator whose tensors all begin with the batch: the mapped dimension joins it."""

    def rule(info: Any, in_dims: tuple[Any, ...], *values: Any) -> tuple[Any, Any]:
        def fold(value: Any, dim: int | None) -> Any:
            if not isinstance(value, Tensor):
                return value
            mapped = value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            return mapped.flatten(0, 1)

        outputs = operator(*map(fold, values, in_dims))
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (info.batch_size, -1)), 0
        return [out.unflatten(0, (info.batch_size, -1)) for out in outputs], [0] * len(outputs)

    return rule
