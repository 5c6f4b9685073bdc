"""Processes that tests start. They are waited for by what they do and not by the clock: a busy machine makes them slow, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Seconds after which a process is taken to hang: a hundred times what the longest needs alone.
PATIENCE = 900.0


def environment(**more: str) -> dict[str, str]:
    """Of a process that imports from this repository and never saw the interpreter, in which nothing compiles and a photograph takes minutes."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def python(*command: object, **variables: str) -> str:
    """What a fresh Python prints, run in the repository to an end without error."""
    done = attempt(*command, **variables)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def attempt(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """As `python`, whatever the end."""
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def launch(folder: Path, *command: object) -> subprocess.Popen[str]:
    """A command line in a process of its own, started in a folder."""
    # A background job of a shell ignores Ctrl-C, and so would all that it starts.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns once something has happened that a process does, or never will since it has ended."""
    while not happened() and process.poll() is None:
        time.sleep(0.02)


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a process prints to its end, to standard output and standard error; one that hangs is ended and fails."""
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
