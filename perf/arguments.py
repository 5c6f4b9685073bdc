"""What the commands of `perf` have in common: how a function becomes a command line, what arguments mean, and the device that is measured.

They must run where little more than torch is installed, above all on a borrowed GPU. So argparse reads their arguments, not tyro as for the other commands.
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import torch

from bilagrid import commands
from bilagrid.commands import Refusal
from perf import cases

_T = TypeVar("_T")


def command(function: Callable[..., int | None], more: str = "") -> Callable[..., int]:
    """The command line of a function, as its module's ``main``.

    Its docstring is the description, to which ``more`` is added, and its ``Args`` are the help. An argument annotated ``bool`` is a flag, ``str`` a text; the
    others are ``Annotated`` with what `argparse.ArgumentParser.add_argument` takes. An underscore at the end of a name is left out.
    """
    name = f"perf.{function.__name__}"

    def main(given: Sequence[str] | None = None) -> int:
        """Runs the command line and returns its exit code: the function's, or 0 done, 2 refused, 130 interrupted."""
        return commands.exit_code(lambda: function(**vars(_parser(name, function, more).parse_args(given))), name)

    return main


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refusal(message)


def _parser(name: str, function: Callable[..., object], more: str) -> _Parser:
    about, _, listed = (inspect.getdoc(function) or "").partition("\n\nArgs:\n")
    texts = dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", listed, re.M))
    parser = _Parser(
        prog=f"python -m {name}", description=about + more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    hints = get_type_hints(function, include_extras=True)
    for key, parameter in inspect.signature(function).parameters.items():
        option: dict[str, Any] = {"default": parameter.default}
        option |= {"action": "store_true"} if hints[key] is bool else getattr(hints[key], "__metadata__", ({},))[0]
        if key in texts:
            option["help"] = texts[key]
        if parameter.kind is not parameter.KEYWORD_ONLY:
            parser.add_argument(key, **option)
        else:
            parser.add_argument(f"--{key.rstrip('_')}", dest=key, **option)
    return parser


def argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """``parse`` for argparse, which shows the text of no other exception."""

    def parse_argument(text: str) -> _T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


@argument
def resolution(text: str) -> tuple[int, int]:
    """``(H, W)`` by name or as HEIGHTxWIDTH."""
    if text in cases.RESOLUTIONS:
        return cases.RESOLUTIONS[text]
    if match := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text):
        return int(match[1]), int(match[2])
    raise ValueError(f"expected one of {', '.join(cases.RESOLUTIONS)} or HEIGHTxWIDTH, such as 1200x1600, got {text!r}")


@argument
def folder(text: str) -> Path:
    """A folder to write to, which need not exist yet. It is checked before anything is measured for minutes."""
    path = Path(text)
    there = commands.nearest(path)
    if not there.is_dir():
        raise ValueError(f"expected a folder, {there} is a file")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{there} may not be written to, choose another folder")
    return path


def count(what: str) -> Callable[[str], int]:
    """A whole number of ``what``, 1 to 9999."""

    @argument
    def parse(text: str) -> int:
        if not re.fullmatch(r"[1-9]\d{0,3}", text):
            raise ValueError(f"expected a number of {what}, 1 to 9999, got {text!r}")
        return int(text)

    return parse


Device = Annotated[str | None, {"choices": ("cpu", "cuda"), "help": "default: cuda if there is a GPU"}]
Threads = Annotated[int | None, {"type": count("threads"), "help": "on the CPU (default: torch's choice)"}]
Repeats = Annotated[int, {"type": count("repeats"), "help": "how often each is timed (default: %(default)s)"}]
Resolutions = Annotated[Sequence[tuple[int, int]] | None, {"nargs": "+", "type": resolution, "metavar": "SIZE"}]
Out = Annotated[Path | None, {"type": folder, "metavar": "DIR"}]


def new_file(out: Path | None, name: str, overwrite: bool) -> Path | None:
    """The file of that name in the folder ``--out``, refused where it exists and nothing says ``--overwrite``; None without ``--out``."""
    path = None if out is None else out / name
    if path is not None and path.exists() and not overwrite:
        raise Refusal(f"{path} exists: --overwrite replaces it, --out names another")
    return path


def is_interpreted() -> bool:
    """Whether Triton's kernels are interpreted in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_compiled(why: str) -> None:
    """Refuses to go on where kernels are interpreted, for a reason."""
    if is_interpreted():
        raise Refusal(f"TRITON_INTERPRET=1 is set, and {why}: unset it")


def check_kernels(on: torch.device) -> None:
    """Refuses to go on where the package is missing that the device's kernels are written in."""
    kernels = "triton" if on.type == "cuda" or is_interpreted() else "numba"
    if find_spec(kernels) is None:
        raise Refusal(f"{on.type} tensors need {kernels}: pip install {kernels}")


def device(name: str | None, threads: int | None = None) -> torch.device:
    """The device asked for, by default a GPU if there is one, with what it needs at hand; ``threads`` are torch's from now on."""
    found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.type == "cuda" and not torch.cuda.is_available():
        raise Refusal("--device cuda needs a GPU, and torch sees none; leave it out to measure the CPU")
    check_compiled("the speed of an interpreter says nothing")
    check_kernels(found)
    if threads:
        torch.set_num_threads(threads)
    return found
