"""Which backends this machine can run, and what every test gets: outputs that start as NaN, and one meaning of randomness."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

# Triton reads the flag when a kernel is decorated: the interpreter and a GPU cannot share a process.
HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from bilagrid.ops import _backend  # noqa: E402

BACKENDS = ["numba", "cuda" if HAS_CUDA else "interpreter"]

# The backend is the same for every example, which is what the health check asks to be sure of.
_COMMON = {"deadline": None, "derandomize": True, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
# An interpreted example takes seconds, so a failing one is reported as it is; the thorough profile shrinks it.
settings.register_profile("bilagrid", max_examples=6, phases=[Phase.explicit, Phase.generate], **_COMMON)
settings.register_profile("thorough", max_examples=150, **_COMMON)
settings.load_profile("bilagrid")


@pytest.fixture(
    params=["numba", pytest.param(BACKENDS[1], marks=[] if HAS_CUDA else [pytest.mark.slow])], ids=lambda name: name
)
def backend_in_depth(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, for what takes the interpreter seconds a case."""
    with _backend.override("gpu" if request.param == "interpreter" else "cpu"):
        yield request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Sends the test's tensors to Numba, to Triton's interpreter or to a GPU."""
    with _backend.override("gpu" if request.param == "interpreter" else "cpu"):
        yield request.param


@pytest.fixture(autouse=True)
def numba_by_default() -> Iterator[None]:
    with _backend.override("cpu"):
        yield


@pytest.fixture(autouse=True)
def unwritten_outputs_show() -> Iterator[None]:
    """Fresh allocations hold NaN, so an element that no kernel wrote fails the comparison."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if HAS_CUDA:
        terminalreporter.write_line("CUDA and Numba ran; the interpreter did not: CUDA_VISIBLE_DEVICES= pytest tests/")
    else:
        terminalreporter.write_line(
            "Numba and Triton's interpreter ran; no GPU here, so the compiled kernels did not run."
        )
