"""The examples in the public docstrings run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

MODULES = [
    "bilagrid",
    "bilagrid.compat.fused_bilagrid",
    "bilagrid.compat.gsplat",
    "bilagrid.compat.hdrnet",
    "bilagrid.compat.kornia",
    "bilagrid.nn",
]
PUBLIC = [
    pytest.param(module, name, id=f"{module}.{name}".removeprefix("bilagrid."))
    for module in map(importlib.import_module, MODULES)
    for name in module.__all__
    if callable(getattr(module, name))
]


def run(thing: object, name: str, module: object) -> tuple[int, int]:
    """Examples tried, and failed."""
    runner = doctest.DocTestRunner()
    scope = {"torch": torch, **vars(module)}
    for test in doctest.DocTestFinder().find(thing, name, module, globs=scope):
        runner.run(test)
    return runner.tries, runner.failures


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_examples(module: ModuleType, name: str) -> None:
    thing = getattr(module, name)
    tried, failed = run(thing, name, importlib.import_module(inspect.getmodule(thing).__name__))
    assert tried > 0, f"{name} shows no example"
    assert failed == 0


def test_example_of_hdrnet() -> None:
    pytest.importorskip("safetensors")
    model = importlib.import_module("nets.hdrnet.model")
    tried, failed = run(model.HDRNet, "HDRNet", model)
    assert tried > 0
    assert failed == 0


def test_the_python_of_the_readme_runs() -> None:
    pytest.importorskip("safetensors")
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)


def test_a_wrong_example_fails() -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    tried, failed = run(wrong, "wrong", importlib.import_module(__name__))
    assert (tried, failed) == (1, 1)
