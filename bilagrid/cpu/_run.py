"""How a loop nest becomes machine code and reaches the cores.

A kernel is a plain function ``kernel(start, stop, *arguments)`` that does the work items from ``start`` to before ``stop``. It is compiled to run without Python's
lock and has no threads of its own; ordinary Python threads are handed the items. So there is one build for each kernel, a fork does no harm, several threads may
call at once, and neither OpenMP nor TBB is needed. Which thread does an item never changes what the item computes, so results do not depend on their number.
"""

from __future__ import annotations

import hashlib
import os
import threading
import types
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch

from bilagrid.cpu._vectors import FUSED

# Below this many multiply-adds the hand-over to other threads costs more than it saves.
_SERIAL_WORK = 200_000
_CHUNKS_PER_THREAD = 16

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": set(FUSED), "error_model": "numpy"}

helper = numba.njit(**_OPTIONS)


@cache
def _sources() -> str:
    """A digest of all that a kernel may be compiled from."""
    here = Path(__file__).parent
    files = [*sorted(here.glob("*.py")), here.parent / "ops" / "_luma.py"]
    return hashlib.blake2s(b"".join(file.read_bytes() for file in files), digest_size=6).hexdigest()


class Kernel:
    """A loop nest, compiled once for each combination of argument types and kept on disk.

    Images and grids are typed by element and rank alone, never by layout, so that a permuted or strided input is neither compiled for again nor copied. Vectors
    are the library's own tables, and contiguous.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        assert isinstance(function, types.FunctionType)
        self._function = function
        self._builds: dict[tuple[Any, ...], Callable[..., None]] = {}
        self._lock = threading.Lock()

    def __call__(self, items: int, work: int, *arguments: Any) -> None:
        """Does ``items`` work items, on as many threads as torch uses if ``work``, the multiply-adds in all, is worth it."""
        if items == 0:
            return
        build = self._build(arguments)
        threads = min(torch.get_num_threads(), items)
        if threads == 1 or work < _SERIAL_WORK:
            build(0, items, *arguments)
            return
        step = -(-items // (threads * _CHUNKS_PER_THREAD))
        chunks = deque((start, min(start + step, items)) for start in range(0, items, step))

        def drain() -> None:
            while True:
                try:
                    start, stop = chunks.popleft()
                except IndexError:
                    return
                build(start, stop, *arguments)

        helpers = [_pool(threads - 1).submit(drain) for _ in range(threads - 1)]
        drain()
        for future in helpers:
            future.result()

    def _build(self, arguments: tuple[Any, ...]) -> Callable[..., None]:
        kinds = tuple((a.dtype.char, a.ndim) if isinstance(a, np.ndarray) else type(a) for a in arguments)
        build = self._builds.get(kinds)
        if build is None:
            with self._lock:
                build = self._builds.get(kinds) or self._compile(arguments)
                self._builds[kinds] = build
        return build

    def _compile(self, arguments: tuple[Any, ...]) -> Callable[..., None]:
        signature = numba.void(numba.intp, numba.intp, *map(_type, arguments))
        function = _renamed(self._function, str(signature))
        try:
            return numba.njit(signature, cache=True, **_OPTIONS)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            return numba.njit(signature, **_OPTIONS)(function)


def _renamed(function: types.FunctionType, signature: str) -> types.FunctionType:
    """The function under a name of its own for these sources and this signature, by which Numba names the files of its cache.

    Numba looks for changes in the function's own file alone, and would miss those of the helpers compiled into it. And where signatures share an index file, two
    processes that compile at once can leave an entry in it that leads to the other's build.
    """
    digest = hashlib.blake2s(f"{_sources()} {signature}".encode(), digest_size=6).hexdigest()
    named = types.FunctionType(function.__code__, function.__globals__, function.__name__, closure=function.__closure__)
    named.__module__, named.__qualname__ = function.__module__, f"{function.__qualname__}-{digest}"
    return named


def _type(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return numba.types.Array(numba.from_dtype(argument.dtype), argument.ndim, "C" if argument.ndim == 1 else "A")
    return numba.typeof(argument)


_executor: ThreadPoolExecutor | None = None
_workers = 0
_executor_lock = threading.Lock()


def _pool(workers: int) -> ThreadPoolExecutor:
    """The shared threads, at least ``workers`` of them."""
    global _executor, _workers
    with _executor_lock:
        if _executor is None or _workers < workers:
            _executor, _workers = ThreadPoolExecutor(workers, thread_name_prefix="bilagrid"), workers
        return _executor


def _forget_pool() -> None:
    """A forked child inherits the pool's bookkeeping but none of its threads."""
    global _executor, _workers, _executor_lock
    _executor, _workers, _executor_lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
