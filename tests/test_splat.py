"""Splat against its reference, and the types and values it takes."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given

import bilagrid
from bilagrid import Lattice
from bilagrid.ops._memory import empty_grid
from bilagrid.ops.splat import splat_, splat_blurred_
from tests.helpers import (
    COARSE,
    COARSE_STRIPS,
    COARSE_TILES,
    FINE_BLOCKS,
    FINE_PLANES,
    FINE_TILES,
    SIGMAS,
    Problem,
    assert_near,
    device_of,
    numpy64,
    problems,
    rounded_to,
)
from tests.reference import blur as blurred
from tests.reference import lattice as reference
from tests.reference import slice as slice_reference
from tests.reference import splat as expected


@pytest.mark.parametrize("dz", [False, True], ids=["value", "by z"])
@given(problem=problems())
@hypothesis.example(problem=COARSE)
@hypothesis.example(problem=COARSE_TILES)
@hypothesis.example(problem=COARSE_STRIPS)
@hypothesis.example(problem=FINE_BLOCKS)
def test_equals_reference(backend_in_depth: str, dz: bool, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    _, guide, values = problem.tensors()
    with problem.kernels():
        grid = splat_(values, guide, problem.lattice, dz)
    assert grid.dtype == (torch.float64 if problem.dtype == torch.float64 else torch.float32)
    assert grid.is_contiguous()
    assert_near(grid, expected.splat(numpy64(values), numpy64(guide), problem.reference, dz), rounded_to(problem))


@pytest.mark.parametrize("problem", [COARSE, COARSE_TILES], ids=["cells of two blocks", "tiles"])
def test_products_equal_reference(triton_backend: str, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where float32 may be rounded to tf32, of which the interpreter knows nothing; a GPU that has none takes the other way."""
    regime = pytest.importorskip("bilagrid.gpu._regime")
    monkeypatch.setattr(regime, "_allows_tf32", lambda: True)
    _, guide, values = problem.on(triton_backend).tensors()
    with regime.override(architecture="sm_90" if triton_backend == "interpreter" else None):
        grid = splat_(values, guide, problem.lattice)
    rounding = torch.float16 if triton_backend == "cuda" else torch.float32  # tf32 has the digits of a float16
    assert_near(grid, expected.splat(numpy64(values), numpy64(guide), problem.reference), rounding)


@given(problem=problems(), sigma=SIGMAS)
@hypothesis.example(problem=COARSE, sigma=(0.8, 0.8, 0.8))
@hypothesis.example(problem=FINE_BLOCKS, sigma=(1.1, 0.0, 0.6))
@hypothesis.example(problem=FINE_PLANES, sigma=(1.1, 0.6, 0.0))
@hypothesis.example(problem=FINE_TILES, sigma=(1.1, 0.6, 0.0))
def test_blurred_equals_reference(backend_in_depth: str, problem: Problem, sigma: tuple[float, float, float]) -> None:
    """With a channel of ones, whether a program holds all planes of its nodes or not."""
    problem = problem.on(backend_in_depth)
    _, guide, values = problem.tensors()
    homogeneous = numpy64(torch.cat([values, torch.ones_like(values[:, :1])], 1))
    with problem.kernels():
        grid = splat_blurred_(values, guide, problem.lattice, sigma)
    wanted = blurred.blur(expected.splat(homogeneous, numpy64(guide), problem.reference, False), sigma)
    assert grid.stride() == empty_grid(grid, *grid.shape[1:2], grid.shape[2:], grid.dtype, interleaved=True).stride()
    assert_near(grid, wanted, rounded_to(problem))


@given(problem=problems())
@hypothesis.example(problem=COARSE)
def test_gradients_equal_reference(backend_in_depth: str, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, values = problem.tensors()
    values, guide = values.requires_grad_(), guide.requires_grad_()
    with problem.kernels():
        out = bilagrid.splat(values, guide, problem.size, lattice=problem.lattice)
        out.backward(grid.to(out.dtype))
    assert values.grad is not None
    assert guide.grad is not None
    assert_near(values.grad, slice_reference.slice(numpy64(grid), numpy64(guide), problem.reference))
    by_guide = slice_reference.slice_bwd_guide(numpy64(grid), numpy64(guide), numpy64(values), problem.reference)
    assert_near(guide.grad, by_guide)


def test_sigma_lattice_and_its_crop(backend: str) -> None:
    options = {"guide_range": (-0.3, 1.1), "nodes_per_sigma": (1.25, 1.0, 0.75)}
    lattice, size = Lattice.from_sigma(2.5, 0.4, (5, 6), **options)
    wanted = reference.from_sigma(2.5, 0.4, (5, 6), **options)
    values = torch.randn(1, 2, 5, 6, device=device_of(backend))
    guide = 2 * torch.rand(1, 5, 6, device=device_of(backend)) - 0.5
    out = bilagrid.splat(values, guide, size, lattice=lattice)
    assert_near(out, expected.splat(numpy64(values), numpy64(guide), wanted))
    values, guide = values[..., 2:, 3:], guide[:, 2:, 3:]
    out = bilagrid.splat(values, guide, size, lattice=lattice.crop(2, 3))
    assert_near(out, expected.splat(numpy64(values), numpy64(guide), wanted.crop(2, 3)))


def test_sums_do_not_depend_on_the_default_type(triton_backend: str) -> None:
    _, guide, values = COARSE.on(triton_backend).tensors()
    wanted = splat_(values, guide, COARSE.lattice)
    torch.set_default_dtype(torch.float16)
    try:
        found = splat_(values, guide, COARSE.lattice)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_float16_ones_do_not_overflow() -> None:
    ones = torch.ones(1, 1, 300, 300, dtype=torch.float16)
    assert bilagrid.splat(ones, ones[:, 0], (1, 1, 1)).item() == 90_000


def test_a_nan_guide_leaves_its_pixel_out(backend: str) -> None:
    device = device_of(backend)
    values, guide = torch.randn(1, 2, 5, 7, device=device), torch.rand(1, 5, 7, device=device)
    guide[0, 2, 3] = float("nan")
    without = values.clone()
    without[..., 2, 3] = 0
    guide_without = guide.nan_to_num(0.5)
    assert_near(bilagrid.splat(values, guide, (4, 2, 2)), bilagrid.splat(without, guide_without, (4, 2, 2)))
    guide[0, 0, :2] = torch.tensor([float("inf"), -float("inf")])
    assert bilagrid.splat(values, guide, (4, 2, 2)).isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_value_that_is_not_finite_reaches_its_own_columns_alone(backend: str, value: float) -> None:
    """Of nodes, which in a coarse grid lie within a block of the pixels that a program goes through."""
    device = device_of(backend)
    values, guide = torch.ones(1, 1, 4, 60, device=device), torch.full((1, 4, 60), 0.4, device=device)
    values[0, 0, 1, 22] = value
    grid = bilagrid.splat(values, guide, (3, 2, 6))
    finite = grid.isfinite().all(2)[0, 0]
    assert not finite[0, 1:3].any()
    assert finite[:, [0, 3, 4, 5]].all()
