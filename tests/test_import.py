"""Importing the package touches no device and needs neither Triton nor Numba; a call without them says what to install."""

from __future__ import annotations

from tests.processes import python

# None in sys.modules makes an import of that name fail as if it were not installed.
WITHOUT = "import sys; sys.modules.update(numba=None, triton=None)\n"
CALL = """
import torch, bilagrid
try:
    bilagrid.splat(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2), (2, 2, 2))
except ImportError as error:
    print(error)
"""


def test_without_numba_the_error_names_the_remedy() -> None:
    assert "CPU tensors need Numba: pip install numba" in python("-c", WITHOUT + CALL)


def test_without_triton_the_error_names_the_remedy() -> None:
    assert "need Triton: pip install triton" in python("-c", WITHOUT + CALL, TRITON_INTERPRET="1")


def test_importing_loads_no_backend_and_touches_no_device() -> None:
    program = """
import sys, torch, bilagrid
print(torch.cuda.is_initialized(), sorted({"numba", "triton.language", "bilagrid.cpu", "bilagrid.gpu"} & set(sys.modules)))
"""
    before = python("-c", "import sys, torch; print(sorted({'triton.language'} & set(sys.modules)))").strip()
    assert python("-c", program).strip() == f"False {before}"
