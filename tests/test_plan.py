"""Plans of the Triton launchers start what the launchers would. No GPU is needed; the checks run in a process of their own, in which Triton compiles."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

from tests.plans import CHECKS
from tests.processes import python


@pytest.fixture(scope="module")
def report() -> dict[str, str]:
    return json.loads(python("-m", "tests.plans"))


@pytest.mark.parametrize("check", CHECKS)
def test_plans(report: dict[str, str], check: str) -> None:
    if report[check]:
        pytest.fail(report[check], pytrace=False)
