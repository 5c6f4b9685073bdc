"""The command lines of `perf`: what a function's signature and docstring become, what is refused, and where they run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pytest

from perf import arguments
from tests.processes import ROOT, attempt

COMMANDS = {
    "deghost": ("safetensors", "cv2", "OpenImageIO", "tyro"),
    "gallery": ("tqdm",),
    "gpu_checks": (),
    "hdrnet": ("safetensors",),
    "overhead": ("triton",),
    "peers": (),
    "splatting": (),
    "static": ("triton",),
    "sweep": (),
    "tune": ("triton",),
    "upsampling": ("tqdm",),
}

_Words = Annotated[list[str] | None, {"nargs": "+", "metavar": "WORD"}]
_Number = Annotated[int, {"type": arguments.count("things")}]


def called(do: Callable[..., int | None] = lambda **options: None) -> Callable[..., int]:
    """The command line of a function that hands on what it is given."""

    def thing(first: str, *, words: _Words = None, number: _Number = 3, loud_: bool = False, to: str = "here") -> int | None:  # fmt: skip
        """Does a thing.

        examples:
          thing it

        Args:
            first: a text
            words: some of them,
                on two lines
            number: how many (default: %(default)s)
            loud_: says so
            to: a place
        """
        return do(first=first, words=words, number=number, loud=loud_, to=to)

    thing.__annotations__ = {**thing.__annotations__, "words": _Words, "number": _Number}
    return arguments.command(thing, "\n\nmore:\n  of it")


def test_arguments_are_those_of_the_signature() -> None:
    found: list[dict[str, object]] = []

    def do(**options: object) -> int:
        found.append(options)
        return 7

    main = called(do)
    assert main(["it"]) == 7
    assert main(["it", "--words", "a", "--words", "b", "c", "--loud", "--number=5", "--to", "there"]) == 7
    assert found == [
        {"first": "it", "words": None, "number": 3, "loud": False, "to": "here"},
        {"first": "it", "words": ["b", "c"], "number": 5, "loud": True, "to": "there"},
    ]


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        called()(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for part in (
        "usage: python -m perf.thing [-h] [--words WORD [WORD ...]]",
        "Does a thing.\n\nexamples:\n  thing it\n\nmore:\n  of it\n",
        "some of them, on two lines",
        "how many (default: 3)",
        "--loud ",
    ):
        assert part in shown
    assert "Args" not in shown


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], "first"), (["it", "--number", "0"], "a number of things, 1 to 9999, got '0'"), (["it", "--lout"], "--lout")],
)
def test_what_is_refused_is_one_line(given: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert called()(given) == 2
    message = capsys.readouterr().err
    assert message.startswith("perf.thing: ")
    assert message.count("\n") == 1
    assert expected in message


def test_a_folder_to_write_to_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert arguments.folder(str(tmp_path / "yet" / "to be made")) == tmp_path / "yet" / "to be made"
    for there in (file, file / "below"):
        with pytest.raises(ArgumentTypeError, match=f"expected a folder, {file} is a file"):
            arguments.folder(str(there))
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(ArgumentTypeError, match=f"{tmp_path} may not be written to"):
        arguments.folder(str(tmp_path / "results"))


@pytest.mark.parametrize("name", ["deghost", "hdrnet", "peers", "splatting", "sweep", "tune"])
def test_every_command_looks_at_its_folder_first(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in COMMANDS[name]:
        pytest.importorskip(package)
    file = tmp_path / "file"
    file.touch()
    assert importlib.import_module(f"perf.{name}").main(["--out", str(file)]) == 2
    message = capsys.readouterr().err
    assert f"perf.{name}: argument --out: expected a folder, {file} is a file\n" == message


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "there"), 2, "No such file or directory: 'there'"),
        (ValueError("sigma must be above 0, got -1"), 2, "sigma must be above 0, got -1"),
        (MemoryError(), 2, "not enough memory"),
    ],
)
def test_what_ends_it_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def do(**options: object) -> None:
        raise error

    assert called(do)(["it"]) == code
    message = capsys.readouterr().err
    assert message.startswith("perf.thing: ")
    assert message.count("\n") == 1
    assert said in message


def test_an_interrupt_while_a_text_is_run_gives_the_exit_code(tmp_path: Path) -> None:
    """Python remembers such an interrupt, although it was caught, and ends the process by the signal."""
    (tmp_path / "thing.py").write_text(
        "import sys; from bilagrid import commands\n"
        "sys.exit(commands.exit_code(lambda: exec('raise KeyboardInterrupt'), 'thing'))"
    )
    done = attempt("-m", "thing", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (130, "thing: interrupted; files finished so far are kept\n")


def test_what_is_no_fault_of_the_user_is_not_hidden() -> None:
    def do(**options: object) -> None:
        raise RuntimeError("a kernel is wrong")

    with pytest.raises(RuntimeError, match="a kernel is wrong"):
        called(do)(["it"])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_teaches_and_refuses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for package in COMMANDS[name]:
        pytest.importorskip(package)
    main = importlib.import_module(f"perf.{name}").main
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: python -m perf.{name} [-h]" in shown
    lines = [line.split() for line in shown.partition("options:\n")[2].splitlines()]
    for words, below in zip(lines, [*lines[1:], []], strict=True):
        if words and words[0].startswith("--"):
            beside = [word for word in words[1:] if not word.isupper() and word[0] not in "[{"]
            assert beside or (below and not below[0].startswith("--")), f"{words[0]} has no help"

    assert main(["--no-such-option"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"perf.{name}: ")
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "package", "remedy"),
    [
        ("perf.static", "triton", "pip install triton"),
        ("perf.tune", "triton", "pip install triton"),
        ("perf.overhead", "triton", "pip install triton"),
        ("perf.hdrnet", "safetensors", '".[nets]"'),
        ("perf.hdrnet", "skimage", '".[plots]"'),
        ("perf.hdrnet", "numba", "pip install numba"),
        ("perf.deghost", "cv2", '".[nets]"'),
        ("perf.gallery", "tqdm", '".[plots]"'),
        ("perf.gpu_checks --device cpu", "numba", "pip install numba"),
        ("bilagrid filter", "numba", "pip install numba"),
    ],
)
def test_what_is_not_installed_is_one_line_with_its_remedy(
    name: str, package: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys; sys.modules[{package!r}] = None")
    done = attempt("-m", *name.split(), PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2, done.stderr[-4000:]
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"{name.split()[0]}: ")
    assert package in message
    assert remedy in message
    assert "Traceback" not in done.stderr


def test_a_module_of_ours_that_is_missing_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['perf.uses'] = None")
    done = attempt("-m", "perf.static", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_commands_for_a_gpu_need_no_more_than_torch() -> None:
    """A GPU that is lent has torch, Triton and NumPy, and nothing can be installed there."""
    lacking = ("tyro", "tqdm", "OpenImageIO", "skimage", "matplotlib", "cv2", "safetensors", "kornia", "halide")
    loads = "import perf.gpu_checks, perf.peers, perf.sweep"
    if importlib.util.find_spec("triton"):
        loads += ", perf.overhead, perf.static, perf.tune"
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); {loads}"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
