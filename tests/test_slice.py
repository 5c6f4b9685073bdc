"""Slice against its reference, its gradient by the guide, and what the guide may hold."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import given

import bilagrid
from bilagrid import Lattice
from bilagrid.ops.slice import slice_
from tests.helpers import COARSE, FINE_BLOCKS, Problem, assert_near, device_of, example, numpy64, problems
from tests.reference import lattice as reference
from tests.reference import slice as expected

LARGE_C = example(65, (2, 2, 2), (2, 9), "half_pixel", strides="interleaved")
LARGE_C_COARSE = example(65, (2, 1, 2), (1, 140), "half_pixel")


@pytest.mark.parametrize("dz", [False, True], ids=["value", "by z"])
@given(problem=problems())
@hypothesis.example(problem=COARSE)
@hypothesis.example(problem=FINE_BLOCKS)
@hypothesis.example(problem=LARGE_C)
@hypothesis.example(problem=LARGE_C_COARSE)
def test_equals_reference(backend_in_depth: str, dz: bool, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, _ = problem.tensors()
    with problem.kernels():
        out = slice_(grid, guide, problem.lattice, dz)
    assert out.dtype == problem.dtype
    assert out.is_contiguous()
    assert_near(out, expected.slice(numpy64(grid), numpy64(guide), problem.reference, dz))


@given(problem=problems())
@hypothesis.example(problem=COARSE)
@hypothesis.example(problem=FINE_BLOCKS)
@hypothesis.example(problem=LARGE_C_COARSE)
def test_guide_gradient_equals_reference(backend_in_depth: str, problem: Problem) -> None:
    problem = problem.on(backend_in_depth)
    grid, guide, values = problem.tensors()
    guide.requires_grad_()
    with problem.kernels():
        bilagrid.slice(grid, guide, lattice=problem.lattice).backward(values)
    wanted = expected.slice_bwd_guide(numpy64(grid), numpy64(guide), numpy64(values), problem.reference)
    assert guide.grad is not None
    assert_near(guide.grad, wanted)


def test_sigma_lattice_and_its_crop(backend: str) -> None:
    options = {"guide_range": (-0.3, 1.1), "nodes_per_sigma": (1.25, 1.0, 0.75)}
    lattice, size = Lattice.from_sigma(2.5, 0.4, (9, 11), **options)
    wanted = reference.from_sigma(2.5, 0.4, (9, 11), **options)
    grid = torch.randn(1, 2, *size, device=device_of(backend))
    guide = 2 * torch.rand(1, 9, 11, device=device_of(backend)) - 0.5
    assert_near(bilagrid.slice(grid, guide, lattice=lattice), expected.slice(numpy64(grid), numpy64(guide), wanted))
    out = bilagrid.slice(grid, guide[:, 6:, 4:], lattice=lattice.crop(6, 4))
    assert_near(out, expected.slice(numpy64(grid), numpy64(guide[:, 6:, 4:]), wanted.crop(6, 4)))


def test_equals_grid_sample(backend: str) -> None:
    grid = torch.randn(2, 5, 6, 4, 3, device=device_of(backend))
    guide = 1.4 * torch.rand(2, 9, 11, device=device_of(backend)) - 0.2
    x = (torch.arange(11) + 0.5) / 11 * 2 - 1
    y = (torch.arange(9) + 0.5) / 9 * 2 - 1
    place = torch.stack([x.expand(2, 9, 11), y[:, None].expand(2, 9, 11), guide.cpu() * 2 - 1], -1)[:, None]
    sampled = torch.nn.functional.grid_sample(grid.cpu(), place, padding_mode="border", align_corners=False)
    assert_near(bilagrid.slice(grid, guide), sampled[:, :, 0])


def test_guide_beyond_the_grid_saturates_and_nan_stays_at_its_pixel(backend: str) -> None:
    device = device_of(backend)
    grid = torch.randn(1, 3, 5, 2, 2, device=device)
    guide = torch.rand(1, 4, 6, device=device)
    calm = bilagrid.slice(grid, guide)
    guide[0, 0, :5] = torch.tensor([-7.0, 9.0, float("inf"), -float("inf"), float("nan")])
    out = bilagrid.slice(grid, guide)
    assert_near(out[..., 1:, :], calm[..., 1:, :])
    assert_near(out, expected.slice(numpy64(grid), numpy64(guide), reference.cell_centered((5, 2, 2), (4, 6))))
    assert out.isnan().sum() == 3
    flat = Lattice.half_pixel((1, 2, 2), (4, 6))
    one_plane = bilagrid.slice(grid[:, :, :1], guide, lattice=flat)
    assert one_plane.isnan().sum() == 3


@pytest.mark.parametrize(
    ("z", "slope"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 5.0), (2.0, 7.0), (2.5, 7.0), (3.0, 0.0), (4.0, 0.0)]
)
def test_derivative_at_the_kinks(backend: str, z: float, slope: float) -> None:
    grid = torch.tensor([1.0, 4.0, 9.0, 16.0], device=device_of(backend)).view(1, 1, 4, 1, 1)
    guide = torch.full((1, 1, 1), (z + 0.5) / 4, device=device_of(backend), requires_grad=True)
    bilagrid.slice(grid, guide).sum().backward()
    assert guide.grad is not None
    assert guide.grad.item() == pytest.approx(4 * slope)


def test_mixed_dtypes(backend: str) -> None:
    device = device_of(backend)
    grid, guide = torch.randn(1, 2, 4, 3, 3, device=device), torch.rand(1, 5, 6, device=device)
    assert bilagrid.slice(grid, guide.half()).dtype == torch.float32
    assert bilagrid.slice(grid.half(), guide).dtype == torch.float16
    assert_near(bilagrid.slice(grid.half(), guide.double()), bilagrid.slice(grid, guide), torch.float16)
