"""What a call costs before its kernels start."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch

pytest.importorskip("triton")

import bilagrid
from perf import overhead


def test_the_least_time_of_a_call_counts() -> None:
    ticks = itertools.accumulate([0.0, 3e-6, 0.0, 1e-6, 0.0, 2e-6])
    assert overhead.microseconds(lambda: None, clock=lambda: next(ticks), calls=1, repeats=3) == 1.0


def test_every_operator_is_measured() -> None:
    functions = {
        "splat",
        "blur",
        "slice",
        "slice_apply",
        "slice_points",
        "curves",
        "total_variation",
        "bilateral_filter",
    }
    assert functions <= set(overhead.USES)


def test_a_call_does_not_work_out_a_signature_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    grid, guide = torch.rand(1, 2, 3, 4, 5), torch.rand(1, 6, 7)
    bilagrid.slice(grid, guide)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a signature was worked out")

    monkeypatch.setattr(inspect, "_signature_from_function", refuse)
    bilagrid.slice(grid, guide)
