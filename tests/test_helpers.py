"""What the other tests rest on: a comparison that can fail, and allocations whose unwritten elements show."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers import STRIDES, TOLERANCE, assert_near, strided


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), "a little"])
def test_a_wrong_answer_fails(dtype: torch.dtype, wrong: float | str) -> None:
    right = torch.ones(4, dtype=dtype)
    assert_near(right, np.ones(4))
    other = right.clone()
    other[2] = 1 + 8 * TOLERANCE[dtype] if wrong == "a little" else wrong
    with pytest.raises(AssertionError):
        assert_near(other, np.ones(4))
    with pytest.raises(AssertionError):
        assert_near(right, other)


def test_a_missing_nan_fails() -> None:
    with pytest.raises(AssertionError):
        assert_near(torch.zeros(2), np.array([0.0, np.nan]))


def test_a_wrong_shape_fails() -> None:
    for expected in (np.ones(4), np.ones((3, 1)), np.ones(())):
        with pytest.raises(AssertionError):
            assert_near(torch.ones(3), expected)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fresh_allocations_hold_nan(dtype: torch.dtype) -> None:
    source = torch.ones(2, 3, 4, 5, dtype=dtype)
    for fresh in (torch.empty(5, dtype=dtype), torch.empty_like(source), source.new_empty((3, 2))):
        assert fresh.isnan().all()


@pytest.mark.parametrize("how", STRIDES)
def test_strided_changes_the_layout_alone(how: str) -> None:
    tensor = torch.rand(2, 3, 4, 5)
    other = strided(tensor, how)
    torch.testing.assert_close(other, tensor, rtol=0, atol=0)
    assert (other.stride() == tensor.stride()) == (how == "contiguous")
