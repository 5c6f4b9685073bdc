"""Triton's interpreter made faster for the tests: what it works out again and again is kept, and checks whose outcome it drops are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def hasten() -> None:
    """Changes the interpreter of this process, if there is a Triton. Results stay what they are."""
    try:
        import triton.language as tl
        from triton.runtime import interpreter
    except ImportError:
        return
    _patch_once_a_launch(interpreter, tl)
    _keep_numpy_types(interpreter)
    # Each sum and product of integers would be done again in 64 bits to assert that it does not overflow, and the assertion is for debugging only.
    builder = interpreter.interpreter_builder
    if not builder.options.debug:
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


def _patch_once_a_launch(interpreter: Any, tl: Any) -> None:
    """The interpreter replaces Triton's functions by its own at every call of a function that a kernel calls, where once a launch would do."""
    patch: Callable[[Any], Any] = interpreter._patch_lang
    patched: set[int] = set()

    def patch_once(function: Any) -> Any:
        # A module is patched as a whole; the first to be patched in a launch is the kernel's, and only its scope is restored.
        module = id(function.__globals__)
        if module in patched:
            return interpreter._LangPatchScope()
        scope = patch(function)
        # As later versions have it: that of 3.6 makes an int of an array of one number, which NumPy deprecates and from 2.4 on refuses.
        tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        patched.add(module)
        restore = scope.restore

        def forget_and_restore() -> None:
            patched.clear()
            restore()

        scope.restore = forget_and_restore
        return scope

    interpreter._patch_lang = patch_once


def _keep_numpy_types(interpreter: Any) -> None:
    """The interpreter makes a table of all types each time that it looks one up in it."""
    find: Callable[[Any], Any] = interpreter._get_np_dtype
    known: dict[str, Any] = {}

    def find_once(kind: Any) -> Any:
        # A block's is that of its elements.
        name = kind.scalar.name
        if name not in known:
            known[name] = find(kind)
        return known[name]

    interpreter._get_np_dtype = find_once
