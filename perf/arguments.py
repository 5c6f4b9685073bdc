"""What the commands of `perf` have in common: their arguments, refusals in one line, and the device that is measured."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from perf import cases

_T = TypeVar("_T")


class RefusalError(Exception):
    """What the user has to change, in one line."""


class Parser(argparse.ArgumentParser):
    """Refuses as everything else here does, and shows descriptions and examples as they are written."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        raise RefusalError(message)


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


def count(what: str) -> Callable[[str], int]:
    """A whole number of ``what``, 1 or more."""

    @argument
    def parse(text: str) -> int:
        if not re.fullmatch(r"[1-9]\d{0,3}", text):
            raise ValueError(f"expected a number of {what}, 1 or more, got {text!r}")
        return int(text)

    return parse


def new_file(options: argparse.Namespace, name: str) -> Path | None:
    """The file of that name in the folder ``--out``, refused where it exists and nothing says ``--overwrite``; None without ``--out``."""
    path = None if options.out is None else options.out / name
    if path is not None and path.exists() and not options.overwrite:
        raise RefusalError(f"{path} exists: --overwrite replaces it, --out names another")
    return path


def is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def device(name: str | None) -> torch.device:
    """The device asked for, by default a GPU if there is one, with what it needs at hand."""
    found = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RefusalError("--device cuda needs a GPU, and torch sees none; leave it out to measure the CPU")
    if is_interpreted():
        raise RefusalError("TRITON_INTERPRET=1 is set, and the speed of an interpreter says nothing: unset it")
    kernels = "triton" if found.type == "cuda" else "numba"
    if find_spec(kernels) is None:
        raise RefusalError(f"{found.type} tensors need {kernels}: pip install {kernels}")
    return found
