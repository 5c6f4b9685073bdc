"""Blur against its reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bilagrid
from tests.helpers import Problem, assert_near, device_of, numpy64, problems
from tests.reference import blur as expected

SIGMAS = st.sampled_from([(0.0, 0.0, 0.0), (0.8, 0.8, 0.8), (1.1, 0.0, 0.6), (0.0, 2.5, 0.1), (3.0, 1.0, 0.0)])


@given(problem=problems(), sigma=SIGMAS)
def test_equals_reference(backend: str, problem: Problem, sigma: tuple[float, float, float]) -> None:
    grid, _, _ = problem.on(backend).tensors()
    out = bilagrid.blur(grid, sigma)
    assert out.dtype == problem.dtype
    assert_near(out, expected.blur(numpy64(grid), sigma))


def test_one_number_is_meant_for_every_axis(backend: str) -> None:
    grid = torch.randn(1, 2, 4, 5, 6, device=device_of(backend))
    torch.testing.assert_close(bilagrid.blur(grid, 1.2), bilagrid.blur(grid, (1.2, 1.2, 1.2)), rtol=0, atol=0)


def test_is_its_own_adjoint(backend: str) -> None:
    device = device_of(backend)
    a, b = (torch.randn(1, 2, 4, 5, 6, dtype=torch.float64, device=device) for _ in range(2))
    left, right = (bilagrid.blur(a, 0.9) * b).sum(), (a * bilagrid.blur(b, 0.9)).sum()
    torch.testing.assert_close(left, right)


def test_sums_to_one_away_from_the_border() -> None:
    middle = bilagrid.blur(torch.ones(1, 1, 9, 9, 9, dtype=torch.float64), 1.0)[..., 4, 4, 4]
    assert middle.item() == pytest.approx(1.0)
