"""Slice-and-apply against its reference: every gradient, channel counts, layouts, and luma in place of a guide."""

from __future__ import annotations

from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bilagrid
from tests.helpers import (
    COARSE,
    FINE_BLOCKS,
    TOLERANCE,
    Problem,
    assert_near,
    device_of,
    numpy64,
    problems,
    strided,
)
from tests.reference import lattice as reference_lattice
from tests.reference import slice_apply as expected


def off_kinks(image: Tensor, lattice: reference_lattice.Lattice) -> Tensor:
    """1 where luma keeps away from the kinks, so that rounding does not move it to another cell, else 0: (N, 1, H, W), of the image's type."""
    z = expected.luma(numpy64(image)) * lattice.scale[0] + lattice.offset[0]
    return torch.from_numpy(np.abs(z - z.round()) > 1e-3)[:, None].to(image)


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
    if use_luma:
        grad = grad * off_kinks(image, reference)
    leaves = [t.detach().requires_grad_() for t in (grid, guide, image)]
    at = None if use_luma else numpy64(guide)
    with problem.kernels():
        out = bilagrid.slice_apply(
            leaves[0], None if use_luma else leaves[1], leaves[2], lattice=lattice, offset=offset
        )
        out.backward(grad)
    assert out.dtype == image.dtype
    assert_near(out, expected.slice_apply(numpy64(grid), at, numpy64(image), reference, offset))
    wanted = expected.slice_apply_bwd(numpy64(grid), at, numpy64(image), numpy64(grad), reference, offset)
    for leaf, value in zip(leaves, wanted, strict=True):
        if value is None:
            assert leaf.grad is None
        else:
            assert leaf.grad is not None
            assert_near(leaf.grad, value)


@pytest.mark.parametrize("grid_dtype", [torch.float32, None], ids=["grid float32", "grid as the image"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_luma_gradients(backend: str, dtype: torch.dtype, grid_dtype: torch.dtype | None) -> None:
    """The image's gradient has a share through luma, in the image's own type."""
    device, lattice = device_of(backend), reference_lattice.cell_centered((4, 2, 2), (3, 7))
    grid = torch.randn(1, 12, 4, 2, 2, device=device).to(grid_dtype or dtype)
    image = torch.rand(1, 3, 3, 7, device=device).to(dtype)
    grad = torch.randn(1, 3, 3, 7, device=device).to(dtype) * off_kinks(image, lattice)
    leaves = [grid.requires_grad_(), image.requires_grad_()]
    by_grid, by_image = torch.autograd.grad(bilagrid.slice_apply(grid, None, image), leaves, grad)
    assert (by_grid.dtype, by_image.dtype) == (grid.dtype, dtype)
    wanted = expected.slice_apply_bwd(numpy64(grid), None, numpy64(image), numpy64(grad), lattice, True)
    assert_near(by_grid, wanted[0], max(grid.dtype, dtype, key=TOLERANCE.__getitem__))
    assert_near(by_image, wanted[2])
    without = expected.slice_apply_bwd(
        numpy64(grid), expected.luma(numpy64(image)), numpy64(image), numpy64(grad), lattice, True
    )
    assert np.abs(wanted[2] - without[2]).max() > 0.1, "luma has no share in the gradient"


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("use_luma", [True, False])
def test_second_gradients_of_half_types(dtype: torch.dtype, use_luma: bool) -> None:
    """As those of the same numbers in float64: luma and products are rounded at the end alone."""
    draw = torch.Generator().manual_seed(0)
    size = (8, 2, 2)
    image = torch.rand(2, 3, 31, 33, generator=draw).to(dtype)
    guide = torch.rand(2, 31, 33, generator=draw).to(dtype)
    grid = torch.randn(2, 12, *size, generator=draw).to(dtype)
    outward = torch.randn(image.shape, generator=draw).to(dtype)
    if use_luma:
        # Rounded to a half type, luma would leave its cell at some of these pixels; as the kernels have it, at none.
        outward *= off_kinks(image.double(), reference_lattice.cell_centered(size, (31, 33))).to(dtype)

    def second(dtype: torch.dtype) -> list[Tensor]:
        given = [t.to(dtype).requires_grad_() for t in (grid, guide, image)]
        leaves = [given[0], given[2]] if use_luma else given
        out = bilagrid.slice_apply(given[0], None if use_luma else given[1], given[2])
        first = torch.autograd.grad(out, leaves, outward.to(dtype), create_graph=True)
        weights = [torch.linspace(-1, 1, t.numel(), dtype=torch.float64).view(t.shape).to(t.dtype) for t in first]
        return list(torch.autograd.grad(first, leaves, weights))

    for found, wanted in zip(second(dtype), second(torch.float64), strict=True):
        assert_near(found, wanted)
