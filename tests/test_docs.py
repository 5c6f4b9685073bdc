"""The examples in the public docstrings run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import bilagrid


def modules() -> list[str]:
    """The package and all in it that says what is public, but for command lines and what is behind an underscore."""
    inside = [found.name for found in pkgutil.walk_packages(bilagrid.__path__, "bilagrid.")]
    shown = [name for name in inside if not any(part.startswith("_") for part in name.split("."))]
    # A list of names at the left margin: importing all modules to look would load every backend.
    return ["bilagrid", *(name for name in shown if re.search(r"^__all__ = ", source(name), re.MULTILINE))]


def source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_text()


MODULES = [*modules(), *(["nets.hdrnet", "nets.deghost"] if importlib.util.find_spec("safetensors") else [])]
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


FUNCTIONS = sorted(name for name in bilagrid.__all__ if inspect.isfunction(getattr(bilagrid, name)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_help_says_all_that_a_caller_asks(name: str) -> None:
    text = inspect.getdoc(getattr(bilagrid, name)) or ""
    sections = ["Args:", "Raises:", "Example:"]
    if name != "warmup":  # it computes nothing
        sections += ["Returns:", "Gradients:", "Source:"]
        assert "::\n" in text, "no formula"
        assert "Deterministic" in text or "the same bits" in text
    assert [section for section in sections if f"\n{section}" not in text] == []


def test_every_public_name_has_a_docstring() -> None:
    assert [name for name in bilagrid.__all__ if not inspect.getdoc(getattr(bilagrid, name))] == []


def test_every_public_module_is_read() -> None:
    assert {"bilagrid", "bilagrid.nn", "bilagrid.compat.gsplat", "bilagrid.compat.hdrnet"} <= set(MODULES)


def test_the_python_of_the_readme_runs() -> None:
    pytest.importorskip("safetensors")
    text = (Path(__file__).parents[1] / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block, scope)


def test_the_table_of_what_was_published_knows_every_function_and_names_tests_that_exist() -> None:
    root = Path(__file__).parents[1]
    text = (root / "docs" / "PUBLISHED.md").read_text()
    listed = set(
        re.findall(r"`([\w.]+)`", "".join(line.split("|")[1] for line in text.splitlines() if line.startswith("|")))
    )
    assert set(bilagrid.__all__) <= listed
    tests = re.findall(r"`(test_\w+)::(\w+)`", text)
    assert len(tests) > 20
    for file, name in tests:
        assert f"def {name}(" in (root / "tests" / f"{file}.py").read_text(), f"{file}::{name}"


def test_a_wrong_example_fails() -> None:
    def wrong() -> None:
        """
        >>> 1 + 1
        3
        """

    tried, failed = run(wrong, "wrong", importlib.import_module(__name__))
    assert (tried, failed) == (1, 1)
