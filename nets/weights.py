"""Networks and training states in safetensors files: tensors, and a header that says what they are. Nothing in them is ever run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from bilagrid import commands

Facts = dict[str, Any]
Net = TypeVar("Net", bound="Network")


class Network(nn.Module):
    """A network that keeps its arguments in ``config``, so that a file can say how to build it."""

    config: dict[str, Any]


def check_counts(**counts: Any) -> None:
    """Refuses arguments of a network that are not whole numbers of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {count!r}")


def save(path: Path, tensors: dict[str, Tensor], facts: Facts) -> None:
    """Writes tensors and facts (anything that JSON can hold), whole or not at all."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(stored, {"facts": json.dumps(facts)})
    commands.replace(Path(os.path.realpath(path)), data)


def load(path: Path, *kinds: str) -> tuple[dict[str, Tensor], Facts]:
    """The tensors and facts of a file that is of one of these ``kinds`` by its facts.

    Raises:
        ValueError: a file that is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {}).get("facts", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
    except (safetensors.SafetensorError, OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as safetensors: {error}") from None
    if not isinstance(facts, dict) or facts.get("kind") not in kinds:
        found = facts.get("kind") if isinstance(facts, dict) else None
        expected = " or ".join(repr(kind) for kind in kinds)
        raise ValueError(f"{path}: expected a file that holds {expected}, got {found!r}")
    return tensors, facts


def save_network(path: Path, net: Network, **facts: Any) -> None:
    """Writes a network with its arguments and further facts."""
    save(path, net.state_dict(), {"kind": type(net).__name__, "config": net.config, **facts})


def names_in(folder: Path) -> tuple[str, ...]:
    """The names of the networks in a folder of the package."""
    return tuple(sorted(path.stem for path in folder.glob("*.safetensors")))


def found(name: str | Path, folder: Path) -> Path:
    """The file of a network: one of `names_in` the folder, or any other file.

    Raises:
        ValueError: a name that is neither.
    """
    names = names_in(folder)
    path = folder / f"{name}.safetensors" if str(name) in names else Path(name)
    if not path.is_file():
        raise ValueError(f"{name}: no such file, nor one of the models that come along: {', '.join(names)}")
    return path


def load_network(path: Path, build: type[Net] | tuple[type[Net], ...], device: str | torch.device = "cpu") -> Net:
    """The network of a file of `save_network`, in evaluation mode; ``build`` is its class, or several of which it may be one.

    Raises:
        ValueError: a file that does not hold such a network, whole and finite.
    """
    builds = {each.__name__: each for each in (build if isinstance(build, tuple) else (build,))}
    tensors, facts = load(path, *builds)
    kind = facts["kind"]
    try:
        # On the meta device: a file's arguments may ask for more memory than there is.
        with torch.device("meta"):
            net = builds[kind](**facts["config"])
    # Arguments beyond all measure end in any of these.
    except (KeyError, TypeError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: holds no arguments that {kind} takes: {reason}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{path}: holds values that are not finite, in {name}")
    dtypes = {name: tensor.dtype for name, tensor in net.state_dict().items()}
    tensors = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in tensors.items()}
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: does not fit {kind}: {' '.join(str(error).split())}") from None
    return net.to(device).eval()
