"""Raw operators: a schema, an implementation for each device, a fake and a vmap rule, from one declaration.

The kind of lattice travels as a string and its sizes as ``SymInt[]``. Scales computed from shapes would be constants of a graph: one graph for each image size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import guard_scalar

from bilagrid.lattice import Lattice
from bilagrid.ops import _backend, _index, _vmap
from bilagrid.ops._plain import is_plain

LATTICE = "str kind, SymInt[] size, SymInt[] image_size, SymInt[] origin, float[] steps, SymInt[] steps_size"

# A lattice on its way into an `autograd.Function`.
Packed = tuple[Any, ...]

_library = torch.library.Library("bilagrid", "DEF")


def pack(lattice: Lattice) -> Packed:
    """A lattice as an `autograd.Function` takes it: as single numbers, so that a traced graph has symbolic sizes for inputs and floats for constants."""
    steps = lattice.steps
    if torch.compiler.is_compiling():
        # The floats of a lattice made before a graph break would be inputs, which Dynamo does not hand on to a `Function`.
        steps = tuple(guard_scalar(step) for step in steps)
    return lattice.kind, *lattice.size, *lattice.image_size, *lattice.origin, *steps, *lattice.steps_size


def unpack(packed: Packed, grid: Tensor) -> Lattice:
    """The lattice again, of the size of a ``grid`` at hand: a traced backward knows the symbolic sizes of its own tensors, not the forward's."""
    kind, *numbers = packed
    depth, rows, columns = grid.shape[2:]
    sizes = tuple(numbers[3:5]), tuple(numbers[5:7])
    return Lattice(kind, (depth, rows, columns), *sizes, tuple(numbers[7:13]), tuple(numbers[13:]))


def raw(packed: Packed) -> tuple[Any, ...]:
    """A packed lattice as the raw operators take it."""
    kind, *numbers = packed
    return kind, numbers[:3], numbers[3:5], numbers[5:7], numbers[7:13], numbers[13:]


@functools.lru_cache(256)
def _lattice(packed: Packed) -> Lattice:
    """The lattice again, if its sizes are plain numbers."""
    kind, *sizes = raw(packed)
    return Lattice(kind, *map(tuple, sizes))


def raw_operator(
    module: str, schema: str, fake: Callable[..., Any], *, vmap: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Registers ``bilagrid::<schema>`` over the launchers of that name in ``bilagrid.cpu.<module>`` and ``bilagrid.gpu.<module>``.

    Returns a function of the schema's arguments, with the lattice's packed into one. It calls the launcher directly where all is plain, else the operator.

    Args:
        module: the file of the launchers.
        schema: the operator's. It has `LATTICE` where the launcher takes a lattice, and all that follows that are keywords of the launcher.
        fake: called as the launcher is, returns empty outputs.
        vmap: the operator's own rule; by default a mapped dimension is folded into the batch.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    operator = getattr(torch.ops.bilagrid, name).default
    arguments = operator._schema.arguments
    names = [argument.name for argument in arguments]
    first = names.index("kind") if "kind" in names else len(names)
    takes_lattice = first < len(names)
    after = first + 6 if takes_lattice else first
    # A tensor that is always given, by whose device the launcher is chosen.
    anchor = next(k for k, argument in enumerate(arguments) if isinstance(argument.type, torch.TensorType))

    def arrange(values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positional = values[:first]
        if takes_lattice:
            kind, *numbers = values[first:after]
            # AOTInductor hands an empty list on as None.
            positional = *positional, Lattice(kind, *(tuple(one or ()) for one in numbers))
        return positional, dict(zip(names[after:], values[after:], strict=True))

    def run(device: str) -> Callable[..., Any]:
        def implementation(*values: Any) -> Any:
            positional, flags = arrange(values)
            # A list would be no key of a plan.
            positional = tuple(tuple(value) if isinstance(value, list) else value for value in positional)
            return _backend.operator(module, name, device)(*positional, **flags)

        return implementation

    def run_fake(*values: Any) -> Any:
        positional, flags = arrange(values)
        rehearsed = _backend.launcher(module, name, "cuda") if _backend.is_rehearsing() else fake
        return rehearsed(*positional, **flags)

    def call(*values: Any) -> Any:
        plain = is_plain(*values)
        if takes_lattice:
            packed = values[first]
            place = (_lattice(packed),) if plain else raw(packed)
            values = *values[:first], *place, *values[first + 1 :]
        if not plain:
            return operator(*values)
        found = _backend.operator(module, name, values[anchor].device.type)
        stop = first + takes_lattice
        return found(*values[:stop], **dict(zip(names[after:], values[stop:], strict=True)))

    _library.impl(name, run("cpu"), "CPU")
    _library.impl(name, run("cuda"), "CUDA")
    torch.library.register_fake(f"bilagrid::{name}", run_fake, lib=_library)
    torch.library.register_vmap(f"bilagrid::{name}", vmap or _fold(operator, names), lib=_library)
    return call


def _fold(operator: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """The vmap rule of an operator whose tensors all begin with the batch: the mapped dimension joins it.

    Where there is an index, the first tensor is a bank: one for all items, or those of the items in a row.
    """
    place = names.index("index") if "index" in names else -1

    def rule(info: Any, in_dims: tuple[Any, ...], *values: Any) -> tuple[Any, Any]:
        banked = place >= 0 and values[place] is not None
        if banked:
            banks = None if in_dims[0] is None else values[0].movedim(in_dims[0], 0)
            count = None if banks is None else banks.shape[1]
            index = _index.folded(values[place], in_dims[place], info.batch_size, count)
            bank = values[0] if banks is None else banks.flatten(0, 1)

        def fold(value: Any, dim: int | None) -> Any:
            return _vmap.folded(value, dim, info.batch_size) if isinstance(value, Tensor) else value

        if banked:
            values = tuple(None if k in (0, place) else value for k, value in enumerate(values))
        arguments = list(map(fold, values, in_dims))
        if banked:
            arguments[0], arguments[place] = bank, index
        outputs = operator(*arguments)
        if isinstance(outputs, Tensor):
            return outputs.unflatten(0, (info.batch_size, -1)), 0
        return [out.unflatten(0, (info.batch_size, -1)) for out in outputs], [0] * len(outputs)

    return rule
