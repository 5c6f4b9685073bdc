"""What the command lines share: refusals in one line, files in and files out, a progress bar, and interruption. It imports nothing slow."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import re
import secrets
import signal
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

Job = tuple[Path, Path]

_PACKAGES = ("bilagrid", "nets", "perf")
# By the name that they are imported by, the extra that installs them.
_EXTRAS = {
    "OpenImageIO": "images",
    "tyro": "images",
    "matplotlib": "plots",
    "skimage": "plots",
    "tqdm": "plots",
    "cv2": "nets",
    "ignite": "nets",
    "onnx": "nets",
    "onnxruntime": "nets",
    "onnxscript": "nets",
    "safetensors": "nets",
    "sklearn": "tests",
}
_OUT_OF_MEMORY = "not enough memory for this picture and these options"


class Refusal(Exception):  # noqa: N818 -- it tells the user what to change, not that something broke
    """What the user has to change, in one line."""


def interrupted(name: str = "bilagrid") -> int:
    """Says that the work was interrupted; returns the exit code."""
    print(f"{name}: interrupted; files finished so far are kept", file=sys.stderr, flush=True)
    return 130


def on_interrupt(handler: Any) -> None:
    """Installs a handler of Ctrl-C, unless the process was started to ignore it, as a background job of a shell is."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def starting() -> str:
    """The command of ours that ``python -m`` is about to run, such as ``perf.sweep``, or nothing: it imports the package first, and torch with it."""
    named = next((name for option, name in itertools.pairwise(sys.orig_argv) if option == "-m"), "")
    return named if sys.argv[:1] == ["-m"] and named.partition(".")[0] in _PACKAGES else ""


def end_on_interrupt() -> None:
    """Makes Ctrl-C end the process at once, while modules are imported: code that runs then may be C++ or catch everything, and an exception would be lost."""
    on_interrupt(lambda *_: os._exit(interrupted()))


def end_on_missing() -> None:
    """A package that is not installed ends the command that starts, in one line, where its modules import it: before `exit_code` can say so."""
    name = starting()

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        message = _missing(error)
        if message is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"{name}: {message}", file=sys.stderr, flush=True)
            os._exit(2)

    sys.excepthook = tell


def _missing(error: BaseException) -> str | None:
    """What is not installed, and the remedy; None of any other error."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    package = error.name.partition(".")[0]
    if package in _EXTRAS:
        return f'needs {package}, which is not installed: python -m pip install -c constraints.txt -e ".[{_EXTRAS[package]}]"'
    if package == "triton":
        return "needs triton, which is not installed and comes for Linux: python -m pip install triton"
    return None


def run(prog: str, description: str, commands: dict[str, Callable[..., None]], argv: Sequence[str] | None) -> int:
    """Runs one of ``commands``, whose arguments and help are its function's; returns the exit code: 0 done, 2 refused, 130 interrupted."""
    import tyro

    for command in commands.values():
        # Joined, or tyro would break an argument's help where the source does.
        command.__doc__ = re.sub(r"\n {8,}(?=\S)", " ", inspect.cleandoc(command.__doc__ or ""))

    def one() -> None:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog=prog, description=description, args=argv, config=(tyro.conf.FlagCreatePairsOff,)
        )

    return exit_code(one)


def exit_code(do: Callable[[], int | None], name: str = "bilagrid") -> int:
    """Does a command's work and returns the exit code: its own, or 0 done, 2 refused, 130 interrupted; what ends it is told in one line, after its name."""
    on_interrupt(signal.default_int_handler)
    # A character that the terminal's encoding lacks, in a name or a table, must not end the work.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        return do() or 0
    except KeyboardInterrupt:
        return interrupted(name)
    except (Refusal, ValueError, OverflowError, OSError) as error:
        message = str(error)
    except ImportError as error:
        # Of an operator that lacks its kernels, or of a module that is imported where it is needed.
        told = str(error) if isinstance(error.__cause__, ModuleNotFoundError) else _missing(error)
        if told is None:
            raise
        message = told
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        message = _OUT_OF_MEMORY
    finally:
        # Python ends by the signal where an interrupt came within an `exec` of a text, as of torch while it compiles, though it was caught: until the next text.
        exec("")
    print(f"{name}: {message}", file=sys.stderr)
    return 2


def jobs(
    sources: Sequence[Path], out: Path, suffixes: Sequence[str], targets: Sequence[str] | None = None
) -> list[Job]:
    """Pairs of file to read and file to write: from one file and its target, or from files and folders and a folder for the results.

    Files to read have one of the ``suffixes``. Those to write have too, and the same names in a folder, unless ``targets`` gives other suffixes; then files in a
    folder get the first of these.
    """
    written = suffixes if targets is None else targets
    files: list[Path] = []
    for source in sources:
        files += pictures_in(source, suffixes) if source.is_dir() else [source]
    if len(sources) == 1 and not sources[0].is_dir() and not out.is_dir():
        check_file(out, written)
        return [(sources[0], out)]
    if os.path.lexists(out) and not out.is_dir():
        raise Refusal(f"{out}: must be a folder to hold {count(len(files), 'picture')}, is none")
    if not out.is_dir() and out.suffix.lower() in written:
        raise Refusal(f"{out}: must be a folder to hold {count(len(files), 'picture')}, has the name of a file")
    _check_folder(out)
    pairs = [(file, out / (file.name if targets is None else file.stem + targets[0])) for file in files]
    seen: dict[Path, Path] = {}
    for source, target in pairs:
        if target in seen:
            raise Refusal(f"{seen[target]} and {source} would both be written to {target}")
        seen[target] = source
    return pairs


def pictures_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """The files of these suffixes in a folder, sorted; says how many others are left out."""
    if not folder.is_dir():
        raise Refusal(f"{folder}: no such folder")
    inside = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    pictures = [path for path in inside if path.suffix.lower() in suffixes]
    if not pictures:
        raise Refusal(f"{folder}: holds no {' '.join(suffixes)} files")
    if len(pictures) < len(inside):
        others = len(inside) - len(pictures)
        left = f"{count(others, 'other file')} {'is' if others == 1 else 'are'} left out"
        print(f"{folder}: {left}", file=sys.stderr)
    return pictures


def check_file(out: Path, suffixes: Sequence[str]) -> None:
    """Refuses a file to write of an unknown format, in a folder that is missing or may not be written to, or where something that is no file exists."""
    if out.suffix.lower() not in suffixes:
        raise Refusal(f"{out}: unknown output format '{out.suffix}', expected one of {' '.join(suffixes)}")
    if not out.parent.is_dir():
        raise Refusal(f"{out.parent}: no such folder")
    if out.exists() and not out.is_file():
        raise Refusal(f"{out}: is not a file, choose another name to write to")
    if not os.access(out.parent, os.W_OK):
        raise Refusal(f"{out.parent}: may not be written to, choose another folder")


def _check_folder(out: Path) -> None:
    """Refuses a folder for results that may not be written to, or could not be made."""
    there = nearest(out)
    if not there.is_dir():
        raise Refusal(f"{there}: must be a folder to hold {out.relative_to(there)}, is none")
    if not os.access(there, os.W_OK):
        raise Refusal(f"{there}: may not be written to, choose another folder")


def nearest(path: Path) -> Path:
    """The path if it exists, or else the nearest folder above it that does."""
    return next(each for each in (path, *path.parents) if each.exists())


def unwritten(pairs: list[Job], *, overwrite: bool, skip_existing: bool = False) -> list[Job]:
    """The jobs left to do. Refuses targets that exist, unless the user said what to do with them."""
    if overwrite and skip_existing:
        raise Refusal("--overwrite and --skip-existing exclude each other")
    # A broken link exists too.
    existing = [target for _, target in pairs if os.path.lexists(target)]
    one = len(existing) == 1
    if existing and skip_existing:
        left = "exists and is left as it is" if one else "exist and are left as they are"
        print(f"{count(len(existing), 'file')} {left}", file=sys.stderr)
        return [job for job in pairs if job[1] not in existing]
    if existing and not overwrite:
        what = (
            "exists; --overwrite replaces it"
            if one
            else f"and {len(existing) - 1} more exist; --overwrite replaces them"
        )
        raise Refusal(f"{existing[0]} {what}")
    return pairs


def refuse_same(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    """Refuses a target that is one of the sources, by whatever name."""
    taken = {identity for source in sources for identity in _identities(source)}
    for target in targets:
        if not taken.isdisjoint(_identities(target)):
            raise Refusal(f"{target}: is an input, choose another name to write to")


def each_file(
    command: str,
    paths: Sequence[Path],
    do: Callable[[Path, Path], None],
    suffixes: Sequence[str],
    targets: Sequence[str] | None = None,
    *,
    read_too: Sequence[Path] = (),
    overwrite: bool,
    skip_existing: bool,
) -> None:
    """Does ``do(source, target)`` for each file of ``paths``, of which the last is the file or folder to write to; ``suffixes`` and ``targets`` as for `jobs`.

    No target may be a source, nor a file that is ``read_too``.
    """
    if len(paths) < 2:
        raise Refusal(
            f"OUT is missing: {command} {paths[0]} OUT" if paths else f"IN and OUT are missing: {command} IN OUT"
        )
    pairs = jobs(paths[:-1], paths[-1], suffixes, targets)
    refuse_same([*(source for source, _ in pairs), *read_too], [target for _, target in pairs])
    todo = unwritten(pairs, overwrite=overwrite, skip_existing=skip_existing)
    work(pairs, todo, do, single=len(pairs) == 1 and not paths[0].is_dir())


def work(pairs: list[Job], todo: list[Job], do: Callable[[Path, Path], None], *, single: bool) -> None:
    """Does each job in ``todo`` under a progress bar, and says how many of all ``pairs`` were written. A job that fails is told at the end, after the others."""
    from tqdm import tqdm

    failures = []
    for source, target in tqdm(todo, unit="picture", disable=None if len(todo) > 1 else True):
        try:
            do(source, target)
        except (Refusal, ValueError, OSError) as error:
            if single:
                raise
            failures.append(str(error) if isinstance(error, Refusal) else f"{source}: {error}")
        except (MemoryError, RuntimeError) as error:
            if single or not _is_out_of_memory(error):
                raise
            failures.append(f"{source}: {_OUT_OF_MEMORY}")
    done = len(todo) - len(failures)
    print(f"wrote {todo[0][1]}" if single and done else f"wrote {done} of {count(len(pairs), 'picture')}")
    if failures:
        raise Refusal("\nbilagrid: ".join(failures))


def replace(target: Path, data: bytes) -> None:
    """Puts ``data`` at ``target``, whole or not at all; a file that was there keeps its mode."""
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    # Not derived from the target's name, which may already be as long as a name can be.
    temporary = target.with_name(f".{secrets.token_hex(6)}.tmp")
    file = open(  # noqa: SIM115 -- it is closed below, before it is moved
        temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else 0o600)
    )
    try:
        with file:
            if mode is not None:
                temporary.chmod(mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def count(number: int, noun: str) -> str:
    """``3 pictures``, ``1 picture``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on a CPU (torch: "can't allocate memory") or a GPU ("CUDA out of memory")."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in ("allocate memory", "out of memory"))


def _identities(path: Path) -> list[object]:
    """What two names of one file share: the place that they lead to, or, for hard links, its number."""
    where = os.path.normcase(os.path.realpath(path))
    if not path.exists():
        return [where]
    status = path.stat()
    return [where, (status.st_dev, status.st_ino)]
