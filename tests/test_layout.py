"""The shape of the source: which way imports point, and one stem for one operator everywhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = {"splat", "slice", "blur", "slice_apply", "slice_points", "curves", "total_variation"}


def stems(folder: str) -> set[str]:
    return {path.stem for path in (ROOT / folder).glob("*.py") if not path.stem.startswith("_")}


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Every module that a file names in an import; with ``at_import`` those outside of functions alone."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if at_import and id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def names(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


# What is made of operators, and what no operator may know of.
ABOVE = (
    "bilagrid.filters",
    "bilagrid.editing",
    "bilagrid.colorization",
    "bilagrid.upsample",
    "bilagrid.nn",
    "bilagrid.compat",
)

# Where -> what must not be imported there.
FORBIDDEN = {
    "bilagrid/gpu/*.py": ("bilagrid.cpu", "numba", *ABOVE, "tests", "perf"),
    "bilagrid/cpu/*.py": ("bilagrid.gpu", "triton", *ABOVE, "tests", "perf"),
    "bilagrid/ops/*.py": ("bilagrid.gpu", "bilagrid.cpu", "triton", "numba", *ABOVE, "tests", "perf"),
    "bilagrid/*.py": ("bilagrid.gpu", "bilagrid.cpu", "bilagrid.compat", "triton", "numba", "tests"),
    "bilagrid/nn/*.py": ("bilagrid.gpu", "bilagrid.cpu", "bilagrid.compat", "triton", "numba", "tests", "perf", "nets"),
    "bilagrid/compat/*.py": ("bilagrid.gpu", "bilagrid.cpu", "triton", "numba", "kornia", "tests", "perf", "nets"),
    "nets/**/*.py": ("bilagrid.ops", "bilagrid.gpu", "bilagrid.cpu", "triton", "numba", "perf", "tests"),
    "tests/reference/*.py": ("bilagrid", "torch", "triton", "numba"),
}


@pytest.mark.parametrize("where", FORBIDDEN)
def test_imports_point_one_way(where: str) -> None:
    files = list(ROOT.glob(where))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module in imports(path)
        for package in FORBIDDEN[where]
        if names(module, package)
    }
    assert not wrong


def test_perf_sees_only_what_is_public() -> None:
    looks_at_kernels = {"static", "predict", "tune", "uses", "overhead"}
    files = [path for path in (ROOT / "perf").glob("*.py") if path.stem not in looks_at_kernels]
    assert files
    inner = ("bilagrid.gpu", "bilagrid.cpu", "bilagrid.ops")
    wrong = {f"{p.name} imports {m}" for p in files for m in imports(p) for package in inner if names(m, package)}
    assert not wrong


@pytest.mark.parametrize("folder", ["bilagrid/ops", "bilagrid/gpu", "bilagrid/cpu"])
def test_one_file_an_operator(folder: str) -> None:
    assert stems(folder) == OPS


def test_every_operator_has_its_reference_and_its_test() -> None:
    assert stems("tests/reference") >= OPS
    assert {stem.removeprefix("test_") for stem in stems("tests")} >= OPS


def test_nothing_is_unpickled() -> None:
    for path in (*(ROOT / "bilagrid").rglob("*.py"), *(ROOT / "nets").rglob("*.py")):
        assert not {m for m in imports(path) if m.split(".")[0] in ("pickle", "dill", "cloudpickle", "joblib")}, path
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"), path


def test_nets_and_operators_agree_on_luma() -> None:
    """Nets may not import the operators' own table, so they have one."""
    tables = (ROOT / "nets" / "luma.py", ROOT / "bilagrid" / "ops" / "_luma.py")
    nets, operators = (re.findall(r"^LUMA = (.+)$", path.read_text(), re.MULTILINE) for path in tables)
    assert len(nets) == 1
    assert nets == operators
