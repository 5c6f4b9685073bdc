"""Which backends this machine can run, and what every test gets: outputs that start as NaN, and one meaning of randomness."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch starts its threads: on a busy machine those that spin while they wait keep others, and so themselves, from working.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hypothesis import HealthCheck, Phase, settings

# Triton reads the flag when a kernel is decorated: the interpreter and a GPU cannot share a process.
HAS_CUDA = torch.cuda.is_available()
if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"

from bilagrid.ops import _backend  # noqa: E402
from tests import interpreter  # noqa: E402

if not HAS_CUDA:
    interpreter.hasten()
    # Now, while the flag is set: a test may take it away, and what is decorated then would ask for a GPU.
    with contextlib.suppress(ImportError):
        for op in Path(_backend.__file__).parent.glob("[!_]*.py"):
            importlib.import_module(f"bilagrid.gpu.{op.stem}")

BACKENDS = ["numba", "cuda" if HAS_CUDA else "interpreter"]

# The backend is the same for every example, which is what the first health check asks to be sure of; the second goes by the clock, as deadlines do.
_COMMON = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
# An interpreted example takes seconds, so a failing one is reported as it is; the thorough profile shrinks it.
settings.register_profile("bilagrid", max_examples=6, phases=[Phase.explicit, Phase.generate], **_COMMON)
settings.register_profile("thorough", max_examples=150, **_COMMON)
settings.load_profile("bilagrid")


def _sent_to(backend: str) -> contextlib.AbstractContextManager[None]:
    return _backend.override("gpu" if backend.startswith("interpreter") else "cpu")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Sends the test's tensors to Numba, to Triton's interpreter or to a GPU."""
    with _sent_to(request.param):
        yield request.param


@pytest.fixture(
    params=BACKENDS if HAS_CUDA else [*BACKENDS, pytest.param("interpreter-in-depth", marks=pytest.mark.slow)]
)
def backend_in_depth(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, and a slow case more: there `Problem.on` leaves interpreted problems as large as they were drawn."""
    with _sent_to(request.param):
        yield request.param


@pytest.fixture(params=BACKENDS[1:])
def triton_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, for what Numba has no counterpart of."""
    with _sent_to(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A test may set torch's number of threads, and commands do."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


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


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the photographs that no model that comes along was trained on."""
    from nets.hdrnet.photographs import photographs

    folder = tmp_path_factory.mktemp("shipped") / "photos"
    photographs(folder)
    return folder / "held_out"
