"""Blur against its reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

import bilagrid
from bilagrid.ops._memory import empty_grid_as
from tests.helpers import SIGMAS, STRIDES, Problem, assert_near, device_of, numpy64, problems, strided
from tests.reference import blur as expected


@given(problem=problems(), sigma=SIGMAS)
def test_equals_reference(backend: str, problem: Problem, sigma: tuple[float, float, float]) -> None:
    grid, _, _ = problem.on(backend).tensors()
    out = bilagrid.blur(grid, sigma)
    assert out.dtype == problem.dtype
    assert_near(out, expected.blur(numpy64(grid), sigma))


@pytest.mark.parametrize(
    ("dtype", "strides"),
    [
        (torch.float32, "contiguous"),
        (torch.float32, "interleaved"),
        (torch.float64, "sparse"),
        (torch.bfloat16, "interleaved"),
    ],
)
def test_one_launch_and_several_agree(
    triton_backend: str, dtype: torch.dtype, strides: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows so long that along y and z a program owns a tile, and in blocks that end within the grid."""
    blur = pytest.importorskip("bilagrid.gpu.blur")
    grid = strided(torch.randn(2, 2, 3, 5, 70, dtype=torch.float64).to(device_of(triton_backend), dtype), strides)
    sigma = (0.6, 1.1, 0.9)
    whole = blur.blur(grid, sigma)
    monkeypatch.setattr(blur, "_REACH", 0)
    by_pair = blur.blur(grid, sigma)
    monkeypatch.setattr(blur, "_NEAR", 0)
    by_axes = blur.blur(grid, sigma)
    torch.testing.assert_close(whole, by_axes, rtol=0, atol=0)
    assert whole.stride() == by_pair.stride() == by_axes.stride() == empty_grid_as(grid).stride()
    for each in (whole, by_pair):
        assert_near(each, expected.blur(numpy64(grid), sigma))


@pytest.mark.parametrize("strides", [*STRIDES, "as a filter's"])
@pytest.mark.parametrize("sigma", [(0.4, 2.6, 0.9), (2.6, 0.0, 0.3), (0.0, 0.8, 0.8), (0.9, 1.3, 0.0), (0.9, 0.0, 5.0)])
def test_pairs_of_axes(
    triton_backend: str, strides: str, sigma: tuple[float, float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips that begin and end within the grid, or that the taps reach across."""
    blur = pytest.importorskip("bilagrid.gpu.blur")
    monkeypatch.setattr(blur, "_REACH", 0)
    grid = strided(torch.randn(2, 3, 5, 37, 23, dtype=torch.float64).to(device_of(triton_backend)), strides)
    if strides == "as a filter's":
        grid = empty_grid_as(strided(grid, "interleaved")).copy_(grid)
    assert_near(blur.blur(grid, sigma), expected.blur(numpy64(grid), sigma))


def test_a_pair_meets_no_node_beyond_its_reach(triton_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is infinite or NaN reaches as far as the taps do, and no farther."""
    blur = pytest.importorskip("bilagrid.gpu.blur")
    monkeypatch.setattr(blur, "_REACH", 0)
    grid = torch.zeros(1, 1, 40, 9, 12, device=device_of(triton_backend))
    grid[0, 0, 20, 4, 6] = torch.nan
    far = blur.blur(grid, (1.0, 0.6, 0.3)).isnan()
    wanted = torch.zeros_like(far)
    wanted[0, 0, 17:24, 2:7, 5:8] = True
    assert torch.equal(far, wanted)


@pytest.mark.parametrize("sigma", [0.001, 1e-25, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_narrowest_gaussians_leave_the_grid_alone(backend: str, dtype: torch.dtype, sigma: float) -> None:
    grid = torch.randn(1, 2, 4, 5, 6, dtype=dtype, device=device_of(backend))
    torch.testing.assert_close(bilagrid.blur(grid, (sigma, 0.0, sigma)), grid, rtol=0, atol=0)


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
