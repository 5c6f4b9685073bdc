"""Plans of the Triton launchers start what the launchers would. No GPU is needed; the checks run in a process of their own, in which Triton compiles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.plans import CHECKS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.plans"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("check", CHECKS)
def test_plans(report: dict[str, str], check: str) -> None:
    if report[check]:
        pytest.fail(report[check], pytrace=False)
