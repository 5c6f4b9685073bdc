"""HDRNet's operators under its own names: against loops written after its CPU code, in value and in every gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import bilagrid
from bilagrid.compat import hdrnet
from bilagrid.compat.hdrnet import bilateral_slice, bilateral_slice_apply
from tests.helpers import TOLERANCE, assert_near, device_of, numpy64, off_nodes
from tests.reference import hdrnet as reference

EPS = 1e-8

# Image (H, W), grid (Gh, Gw, D), C_in, C_out: cells of whole pixels and not, an image smaller than the grid, extents of 1.
SHAPES = {
    "whole cells": ((6, 8), (3, 2, 4), 3, 3),
    "odd": ((5, 7), (2, 3, 3), 2, 1),
    "small image": ((2, 3), (4, 5, 2), 1, 2),
    "one plane": ((4, 5), (2, 2, 1), 3, 2),
    "one cell": ((3, 1), (1, 1, 5), 1, 1),
}


def drawn(
    shape: str, has_offset: bool, device: str = "cpu", dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Grid, guide and image, channels last; the guide reaches beyond the grid and keeps off the kinks."""
    image_size, size, inputs, outputs = SHAPES[shape]
    generator = torch.Generator().manual_seed(3)
    grid = torch.randn(2, *size, outputs * (inputs + has_offset), generator=generator, dtype=torch.float64)
    guide = off_nodes((2, *image_size), size[2], generator)
    image = torch.rand(2, *image_size, inputs, generator=generator, dtype=torch.float64)
    return tuple(tensor.to(device, dtype) for tensor in (grid, guide, image))  # type: ignore[return-value]


def outcome(run: Callable[..., Tensor], given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    out = run(*leaves)
    grad = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out)
    return out.detach(), grad, list(torch.autograd.grad(out, leaves, grad))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [None, EPS, 1e-2])
@pytest.mark.parametrize("shape", SHAPES)
def test_slice_equals_its_reference(shape: str, eps: float | None, dtype: torch.dtype) -> None:
    given = drawn(shape, True, dtype=dtype)[:2]
    out, grad, found = outcome(lambda *tensors: bilateral_slice(*tensors, eps=eps), given)
    arrays = [numpy64(tensor) for tensor in given]
    assert_near(out, reference.bilateral_slice(*arrays, eps or 0.0))
    for gradient, wanted in zip(found, reference.bilateral_slice_bwd(*arrays, numpy64(grad), eps or 0.0), strict=True):
        assert_near(gradient, wanted)


def assert_apply_equals_its_reference(given: tuple[Tensor, ...], has_offset: bool, eps: float | None) -> None:
    out, grad, found = outcome(lambda *tensors: bilateral_slice_apply(*tensors, has_offset, eps=eps), given)
    arrays = [numpy64(tensor) for tensor in given]
    assert_near(out, reference.bilateral_slice_apply(*arrays, has_offset, eps or 0.0))
    wanted = reference.bilateral_slice_apply_bwd(*arrays, numpy64(grad), has_offset, eps or 0.0)
    for gradient, expected in zip(found, wanted, strict=True):
        assert_near(gradient, expected)


@pytest.mark.parametrize("has_offset", [True, False])
@pytest.mark.parametrize("eps", [None, EPS, 1e-2])
@pytest.mark.parametrize("shape", SHAPES)
def test_apply_equals_its_reference(shape: str, eps: float | None, has_offset: bool) -> None:
    assert_apply_equals_its_reference(drawn(shape, has_offset), has_offset, eps)


@pytest.mark.parametrize("eps", [None, EPS])
def test_on_every_backend(eps: float | None, triton_backend: str) -> None:
    assert_apply_equals_its_reference(drawn("small image", True, device_of(triton_backend), torch.float32), True, eps)


@pytest.mark.parametrize("shape", ["whole cells", "odd", "one plane"])
def test_the_published_gradient_by_the_grid_differs_by_what_is_said(shape: str) -> None:
    """It leaves the smoothing out beyond the outermost planes' middles, and is the same elsewhere."""
    grid, guide, _ = drawn(shape, True)
    _, grad, (found, _) = outcome(lambda *tensors: bilateral_slice(*tensors, eps=EPS), (grid, guide))
    wanted = reference.published_bwd_grid(tuple(grid.shape), numpy64(guide), numpy64(grad), EPS)
    mass = reference.published_bwd_grid((*grid.shape[:4], 1), numpy64(guide), np.ones((*guide.shape, 1)), 0.0)
    assert (np.abs(numpy64(found) - wanted) <= EPS**0.5 * mass + 1e-12).all()
    inner = slice(1, -1)
    assert_near(found[:, :, :, inner], wanted[:, :, :, inner])


@pytest.mark.parametrize("has_offset", [True, False])
def test_second_derivatives(has_offset: bool) -> None:
    given = tuple(tensor.requires_grad_() for tensor in drawn("odd", has_offset))
    for check in (gradcheck, gradgradcheck):
        assert check(lambda *t: bilateral_slice_apply(*t, has_offset, eps=1e-2), given, fast_mode=True)
        assert check(lambda *t: bilateral_slice(*t, eps=1e-2), given[:2], fast_mode=True)


def test_at_the_middle_of_a_cell() -> None:
    """There the published weights sum to 1 - sqrt(eps), and the guide has no gradient of that cell's."""
    grid = torch.tensor([2.0, 3.0, 5.0, 7.0], dtype=torch.float64).view(1, 1, 1, 4, 1)
    guide = torch.full((1, 1, 1), 0.375, dtype=torch.float64, requires_grad=True)
    out = bilateral_slice(grid, guide, eps=EPS)
    assert_near(out, np.full((1, 1, 1, 1), 3 * (1 - 1e-4)))
    out.sum().backward()
    assert guide.grad is not None
    assert guide.grad.item() == 0


@pytest.mark.parametrize("eps", [None, EPS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype, eps: float | None) -> None:
    given = drawn("odd", True, dtype=dtype)
    arrays = [numpy64(tensor) for tensor in given]
    found = bilateral_slice_apply(*given, True, eps=eps)
    assert found.dtype == dtype
    assert_near(found, reference.bilateral_slice_apply(*arrays, True, eps or 0.0))
    assert_near(bilateral_slice(*given[:2], eps=eps), reference.bilateral_slice(*arrays[:2], eps or 0.0))


@pytest.mark.parametrize("eps", [None, EPS])
def test_a_guide_that_is_no_number(eps: float | None) -> None:
    """NaN in is NaN out at that pixel alone; infinite values saturate, and have no gradient."""
    grid, guide, image = drawn("odd", True)
    guide[0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    out, _, gradients = outcome(lambda *tensors: bilateral_slice_apply(*tensors, eps=eps), (grid, guide, image))
    assert out.isnan().sum() == out.shape[3]
    assert out[0, 0, 0].isnan().all()
    beyond = guide.clone()
    beyond[0, 0, :3] = torch.tensor([0.5, 2.0, -2.0])
    assert_near(out[0, 0, 1:], bilateral_slice_apply(grid, beyond, image)[0, 0, 1:], torch.bfloat16)
    assert gradients[0].isfinite().all()
    assert gradients[1].isnan().sum() == 1
    assert (gradients[1][0, 0, 1:3] == 0).all()


def test_grids_of_six_dimensions() -> None:
    """As HDRNet's layers take them: outputs, then terms."""
    grid, guide, image = drawn("whole cells", True)
    maps = grid.unflatten(4, (3, 4))
    for eps in (None, EPS):
        sliced = bilateral_slice(grid, guide, eps=eps)
        assert_near(bilateral_slice(maps, guide, eps=eps), sliced.unflatten(3, (3, 4)))
        wanted = bilateral_slice_apply(grid, guide, image, eps=eps)
        assert_near(bilateral_slice_apply(maps, guide, image, eps=eps), wanted)


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators get views of what was given, and what they return is viewed in turn."""
    seen: list[Tensor] = []

    def noting(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*given: Any, **options: Any) -> Tensor:
            out = operator(*given, **options)
            seen.extend((*given, out))
            return out

        return run

    monkeypatch.setattr(hdrnet, "slice_grid", noting(bilagrid.slice))
    monkeypatch.setattr(hdrnet, "slice_apply", noting(bilagrid.slice_apply))
    grid, guide, image = drawn("whole cells", True)
    applied = bilateral_slice_apply(grid, guide, image)
    sliced = bilateral_slice(grid, guide)
    assert len(seen) == 7
    for tensor, whole in zip(seen, (grid, guide, image, applied, grid, guide, sliced), strict=True):
        assert tensor.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert applied.is_contiguous()


def test_the_smoothed_tent_stores_no_corners() -> None:
    """Beside the image, what it takes is a few times its output."""
    grid, guide, image = torch.rand(1, 4, 4, 8, 12), torch.rand(1, 64, 96), torch.rand(1, 64, 96, 3)
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **kwargs or {})
            largest = max(largest, *(t.numel() for t in (out if isinstance(out, list) else [out])))
            return out

    leaves = [tensor.requires_grad_() for tensor in (grid, guide, image)]
    with Largest():
        bilateral_slice_apply(*leaves, eps=EPS).sum().backward()
    assert largest == image.numel()


def test_compiled_mapped_and_transformed() -> None:
    grid, guide, image = drawn("odd", True)

    def run(*given: Tensor) -> Tensor:
        return bilateral_slice_apply(*given, eps=EPS).square().sum()

    wanted = torch.func.grad(run, argnums=(0, 1, 2))(grid, guide, image)
    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    leaves = [tensor.clone().requires_grad_() for tensor in (grid, guide, image)]
    for gradient, expected in zip(torch.autograd.grad(compiled(*leaves), leaves), wanted, strict=True):
        assert_near(gradient, expected)
    mapped = torch.vmap(lambda *given: bilateral_slice_apply(*(t[None] for t in given), eps=EPS)[0])(grid, guide, image)
    assert_near(mapped, bilateral_slice_apply(grid, guide, image, eps=EPS))


def test_positions_of_arguments_and_the_label() -> None:
    grid, guide, image = drawn("odd", False)
    assert_near(
        bilateral_slice_apply(grid, guide, image, False, "slice"),
        bilateral_slice_apply(grid, guide, input_image=image, has_offset=False),
    )
    assert_near(bilateral_slice(grid, guide, "slice"), bilateral_slice(grid, guide))
    assert_near(bilateral_slice(grid, guide, eps=0), bilateral_slice(grid, guide))


GRID, GUIDE, IMAGE = torch.rand(1, 2, 3, 4, 12), torch.rand(1, 5, 7), torch.rand(1, 5, 7, 3)
REFUSED: dict[str, tuple[Callable[[], Tensor], type[Exception], str]] = {
    "channels first": (lambda: bilateral_slice_apply(GRID.permute(0, 4, 3, 1, 2), GUIDE, IMAGE), ValueError, r"grid must have shape .* terms = C_in \+ 1 = 4"),
    "no offset in the grid": (lambda: bilateral_slice_apply(GRID, GUIDE, IMAGE[..., :2], has_offset=False, eps=2.0), ValueError, "eps must be at least 0 and less than 1"),
    "terms that do not divide": (lambda: bilateral_slice_apply(GRID[..., :9], GUIDE, IMAGE), ValueError, "terms = C_in .* = 4 for has_offset=True, got"),
    "maps of other terms": (lambda: bilateral_slice_apply(GRID.unflatten(4, (4, 3)), GUIDE, IMAGE), ValueError, "terms = C_in .* = 4"),
    "an image of another size": (lambda: bilateral_slice_apply(GRID, GUIDE, IMAGE[:, :4]), ValueError, r"input_image must have shape \(N, H, W, C_in\) = \(1, 5, 7, 3\) to match guide"),
    "an image channels first": (lambda: bilateral_slice_apply(GRID, GUIDE, IMAGE.movedim(3, 1)), ValueError, "grid must have shape"),
    "a guide with a channel": (lambda: bilateral_slice(GRID, GUIDE[..., None]), ValueError, r"guide must have shape \(N, H, W\), got"),
    "another batch": (lambda: bilateral_slice(GRID, GUIDE.expand(2, 5, 7)), ValueError, "guide must have shape .* to match grid"),
    "a grid of four dimensions": (lambda: bilateral_slice(GRID[0], GUIDE), ValueError, r"grid must have shape \(N, Gh, Gw, D, C\), got"),
    "no grid": (lambda: bilateral_slice_apply(torch.tensor(1.0), GUIDE, IMAGE), ValueError, "grid must have shape"),
    "integers": (lambda: bilateral_slice(GRID.int(), GUIDE), TypeError, "grid must be float16"),
    "an array": (lambda: bilateral_slice(GRID.numpy(), GUIDE), TypeError, "grid must be a torch.Tensor, got ndarray"),
    "a flag": (lambda: bilateral_slice_apply(GRID, GUIDE, IMAGE, "slice"), TypeError, "has_offset must be True or False, got 'slice'"),
    "a negative eps": (lambda: bilateral_slice(GRID, GUIDE, eps=-1e-8), ValueError, "eps must be at least 0"),
    "an eps that is no number": (lambda: bilateral_slice(GRID, GUIDE, eps=float("nan")), ValueError, "eps must be at least 0"),
    "a text for eps": (lambda: bilateral_slice(GRID, GUIDE, eps="1e-8"), TypeError, "eps must be a number, got '1e-8'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


def test_the_tolerance_shows_the_smoothing() -> None:
    """The comparison with loops would fail without eps: it is no vacuous one."""
    grid, guide, _ = drawn("whole cells", True)
    wanted = reference.bilateral_slice(numpy64(grid), numpy64(guide), 1e-2)
    error = np.abs(numpy64(bilateral_slice(grid, guide)) - wanted).max()
    assert error > 1e3 * TOLERANCE[torch.float32]
