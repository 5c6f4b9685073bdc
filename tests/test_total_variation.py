"""Total variation and its gradient against their references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

import bilagrid
from tests.helpers import TOLERANCE, Problem, assert_near, device_of, numpy64, problems
from tests.reference import total_variation as expected


@given(problem=problems())
def test_equals_reference_with_gradient(backend: str, problem: Problem) -> None:
    grid = problem.on(backend).tensors()[0].detach().requires_grad_()
    value = bilagrid.total_variation(grid)
    assert value.dtype == problem.dtype
    wanted = expected.total_variation(numpy64(grid))
    assert value.item() == pytest.approx(wanted, rel=TOLERANCE[problem.dtype])
    value.backward()
    assert grid.grad is not None
    assert_near(grid.grad, expected.total_variation_bwd(numpy64(grid)))


def test_constant_grid_has_none(backend: str) -> None:
    assert bilagrid.total_variation(torch.ones(2, 3, 4, 5, 6, device=device_of(backend))).item() == 0
