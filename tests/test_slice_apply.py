"""Slice-and-apply against its reference: every gradient, channel counts, layouts, and luma in place of a guide."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bilagrid
from tests.helpers import COARSE, FINE_BLOCKS, Problem, assert_near, device_of, numpy64, problems, strided
from tests.reference import lattice as reference_lattice
from tests.reference import slice_apply as expected

CHANNELS = st.sampled_from([(3, 3), (1, 1), (2, 5), (7, 3), (4, 2)])


@given(problem=problems(), channels=CHANNELS, offset=st.booleans(), use_luma=st.booleans())
@hypothesis.example(problem=COARSE, channels=(3, 3), offset=True, use_luma=False)
@hypothesis.example(problem=COARSE, channels=(3, 3), offset=True, use_luma=True)
@hypothesis.example(problem=COARSE, channels=(2, 5), offset=False, use_luma=False)
@hypothesis.example(problem=FINE_BLOCKS, channels=(1, 1), offset=True, use_luma=False)
def test_equals_reference_with_every_gradient(
    backend_in_depth: str, problem: Problem, channels: tuple[int, int], offset: bool, use_luma: bool
) -> None:
    outputs, inputs = channels
    if use_luma:
        inputs = 3
    problem = problem.on(backend_in_depth)
    lattice, reference = problem.lattice, problem.reference
    grid, guide, _ = replace(problem, channels=outputs * (inputs + offset)).tensors()
    image = replace(problem, channels=inputs, seed=problem.seed + 1).tensors()[2].abs().fmod(1.0)
    grad = replace(problem, channels=outputs, seed=problem.seed + 2).tensors()[2]
    leaves = [t.detach().requires_grad_() for t in (grid, guide, image)]
    out = bilagrid.slice_apply(leaves[0], None if use_luma else leaves[1], leaves[2], lattice=lattice, offset=offset)
    assert out.dtype == image.dtype
    at = None if use_luma else numpy64(guide)
    assert_near(out, expected.slice_apply(numpy64(grid), at, numpy64(image), reference, offset))
    out.backward(grad)
    wanted = expected.slice_apply_bwd(numpy64(grid), at, numpy64(image), numpy64(grad), reference, offset)
    for leaf, value in zip(leaves, wanted, strict=True):
        if value is None:
            assert leaf.grad is None
        elif not (use_luma and problem.dtype in (torch.float16, torch.bfloat16, torch.float32) and leaf is leaves[2]):
            assert leaf.grad is not None
            assert_near(leaf.grad, value)


def test_luma_gradient_in_float32(backend: str) -> None:
    """Away from the kinks, where float32 luma and float64 luma lie in the same cell."""
    device = device_of(backend)
    grid, image = torch.randn(1, 12, 4, 2, 2, device=device), torch.rand(1, 3, 6, 9, device=device)
    z = 4 * (0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]) - 0.5
    away = ((z - z.round()).abs() > 1e-3)[:, None]
    image.requires_grad_()
    grad = away * torch.randn(1, 3, 6, 9, device=device)
    bilagrid.slice_apply(grid, None, image).backward(grad)
    lattice = reference_lattice.cell_centered((4, 2, 2), (6, 9))
    wanted = expected.slice_apply_bwd(numpy64(grid), None, numpy64(image), numpy64(grad), lattice, True)
    assert image.grad is not None
    assert_near(image.grad, wanted[2])


@pytest.mark.parametrize("outputs", [3, 5])
def test_interleaved_image_gives_interleaved_output(backend: str, outputs: int) -> None:
    device = device_of(backend)
    image = strided(torch.rand(2, 3, 5, 7, device=device), "interleaved").requires_grad_()
    grid = torch.randn(2, outputs * 4, 4, 2, 2, device=device)
    out = bilagrid.slice_apply(grid, torch.rand(2, 5, 7, device=device), image)
    assert out.is_contiguous(memory_format=torch.channels_last)
    (by_image,) = torch.autograd.grad(out.sum(), image)
    assert by_image.stride() == image.stride()


def test_half_image_with_float32_grid(backend: str) -> None:
    device = device_of(backend)
    grid, image = torch.randn(1, 12, 4, 2, 2, device=device), torch.rand(1, 3, 5, 7, device=device)
    mixed = bilagrid.slice_apply(grid, None, image.bfloat16())
    assert mixed.dtype == torch.bfloat16
    assert_near(mixed, bilagrid.slice_apply(grid, None, image.bfloat16().float()))


def test_nan_in_the_guide_stays_at_its_pixel(backend: str) -> None:
    device = device_of(backend)
    grid, guide = torch.randn(1, 12, 4, 2, 2, device=device), torch.rand(1, 5, 7, device=device)
    guide[0, 1, 2] = float("nan")
    leaves = [t.requires_grad_() for t in (grid, guide, torch.rand(1, 3, 5, 7, device=device))]
    out = bilagrid.slice_apply(*leaves)
    assert out.isnan().sum() == 3
    by_grid, by_guide, by_image = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert by_grid.isfinite().all()
    assert by_guide.isnan().sum() == 1
    assert by_image.isnan().sum() == 3
