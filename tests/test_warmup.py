"""Warming up: the kernels that a call will need, compiled for any device, and nothing launched."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import bilagrid
from bilagrid.ops import _backend
from tests.processes import python

GRID, GUIDE, IMAGE = (2, 12, 4, 3, 3), (2, 9, 30), (2, 3, 9, 30)


def _filter(image: Tensor) -> Tensor:
    return bilagrid.bilateral_filter(image, sigma_space=4, sigma_color=0.2, guide_range=(0.0, 1.0))


USES: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "slice_apply": (bilagrid.slice_apply, (GRID, GUIDE, IMAGE)),
    "slice_apply by luma": (bilagrid.slice_apply, (GRID, None, IMAGE)),
    "slice of splat": (lambda v, g: bilagrid.slice(bilagrid.splat(v, g, (4, 3, 3)), g), (IMAGE, GUIDE)),
    "total_variation of blur": (lambda grid: bilagrid.total_variation(bilagrid.blur(grid, 1.0)), (GRID,)),
    "curves": (bilagrid.curves, (IMAGE, (3, 3), (3,), (3, 16), (3, 16), (3,), ())),
    "bilateral_filter": (_filter, (IMAGE,)),
}


def test_on_the_cpu_the_function_runs_once_on_zeros() -> None:
    seen = []

    def function(image: Tensor, option: str) -> Tensor:
        seen.append((image.shape, image.stride(), image.dtype, image.abs().max().item(), image.requires_grad, option))
        return image

    image = torch.ones(1, 5, 7, 3, dtype=torch.float16).permute(0, 3, 1, 2)
    bilagrid.warmup(function, image, "as it is", device="cpu")
    bilagrid.warmup(function, (2, 3), "as it is", dtype=torch.float64, device="cpu", backward=False)
    assert seen == [
        ((1, 3, 5, 7), image.stride(), torch.float16, 0.0, True, "as it is"),
        ((2, 3), (3, 1), torch.float64, 0.0, False, "as it is"),
    ]


@pytest.mark.parametrize("use", USES)
def test_what_is_compiled_is_what_a_call_launches(use: str) -> None:
    pytest.importorskip("triton")
    from bilagrid.gpu import _launch

    function, shapes = USES[use]
    tensors = [None if shape is None else torch.rand(shape).requires_grad_() for shape in shapes]
    with _backend.override("gpu"), _launch.record() as called:
        out = function(*tensors)
        torch.autograd.grad(out, [t for t in tensors if t is not None], torch.zeros_like(out), allow_unused=True)
    with _backend.rehearsal(), _launch.record() as rehearsed:
        sys.modules["bilagrid.warmup"]._run(function, shapes, torch.float32, "meta", True)
    assert len(called) > 1
    for one, other in zip(called, rehearsed, strict=True):
        assert one.kernel is other.kernel
        for name, value in one.arguments.items():
            if isinstance(value, Tensor):
                assert (value.shape, value.dtype) == (other.arguments[name].shape, other.arguments[name].dtype)
            else:
                assert value == other.arguments[name], name


def test_a_call_finds_what_was_compiled() -> None:
    """In a process of its own, which never saw the interpreter, and with a GPU that is only said to be there."""
    pytest.importorskip("triton")
    program = """
import torch, triton
from triton.backends.compiler import GPUTarget
from bilagrid.gpu import _launch, _regime, blur

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())

def compiled(device):
    grid = torch.empty((1, 2, 3, 4, 5), device=device)
    with _regime.override(architecture="sm_90"), _launch.record() as launches:
        blur.blur(grid, (1.0, 1.0, 1.0))
    for launch in launches:
        launch.compile()
    return len(launches), len(blur._blur_volume_kernel.device_caches[0][0])

print(compiled("meta"), compiled("cpu"))
"""
    assert python("-c", program).strip() == "(1, 1) (1, 1)"


def test_what_cannot_be_warmed_is_refused() -> None:
    with pytest.raises(TypeError, match="function must be callable, got int"):
        bilagrid.warmup(3)
    with pytest.raises(ValueError, match="device must be a CPU or a CUDA or ROCm GPU, got meta"):
        bilagrid.warmup(bilagrid.total_variation, GRID, device="meta")
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        pytest.raises(ValueError, match="got cuda:1, and torch sees no GPU"),
    ):
        bilagrid.warmup(bilagrid.total_variation, GRID, device="cuda:1")
    with pytest.raises(ValueError, match="guide must have shape"):
        bilagrid.warmup(bilagrid.slice_apply, GRID, (2, 9, 31), IMAGE, device="cpu")
