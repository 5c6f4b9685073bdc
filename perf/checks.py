"""Results are checked before anything is timed: an operator against `perf.references`, or any two ways to do the same against each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from perf import cases, problems
from perf.cases import Case, Problem

# How many rows of an image, and how many grids of a batch, are checked. The width is that of the image that is timed, since it decides which kernels run.
_CHECKED_ROWS, _CHECKED_BATCH = 8, 16

# Relative to the largest magnitude. float32 sums thousands of terms; half types are rounded at the end.
TOLERANCE = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 3e-2}
# Gradients by a guide jump where its grid coordinate is a whole number, and rounding may put a pixel on the other side. So this share of the values may differ,
# and in a problem of thousands of values the three channels of one pixel in any case.
_KINKS, _PIXEL, _THOUSANDS = 1e-4, 3, 2000

OUTPUT = "the output"


class WrongResultError(Exception):
    """An operator's result is not the reference's."""


def check(case: Case, device: torch.device, *, kind: str = cases.CELL_CENTERED) -> None:
    """Compares output and gradients with the reference's, on a few rows of the case's own width; raises `WrongResultError` if they differ."""
    rows = min(case.image[0], _CHECKED_ROWS)
    small = problems.problem(replace(case, image=(rows, case.image[1])), device, kind=kind)
    small = replace(small, tensors={name: tensor[:_CHECKED_BATCH] for name, tensor in small.tensors.items()})
    exact = replace(
        small, tensors={name: tensor.double() for name, tensor in small.tensors.items()}, run=small.reference
    )

    tolerance = TOLERANCE[case.dtype] * small.magnified

    def near(what: str, actual: Tensor, expected: Tensor) -> None:
        close(f"{case}: {what}", actual, expected, tolerance, kinks=what != OUTPUT)

    compare(small, exact, near, gradients=case.direction == "backward")


def compare(
    actual: Problem, expected: Problem, near: Callable[[str, Tensor, Tensor], None], *, gradients: bool
) -> None:
    """Calls ``near`` with a name and two tensors, for the output and, if asked for, for the gradient by each tensor of two ways to do the same."""
    ours, theirs = actual.leaves(), expected.leaves()
    with torch.set_grad_enabled(gradients):
        out, right = actual.run(ours), expected.run(theirs)
    near(OUTPUT, out.detach(), right.detach())
    if not gradients:
        return
    grad = cases.incoming(out)
    found = torch.autograd.grad(out, list(ours.values()), grad)
    wanted = torch.autograd.grad(right, list(theirs.values()), grad.to(right.dtype))
    for name, one, other in zip(ours, found, wanted, strict=True):
        near(f"the gradient by {name}", one, other)


def close(
    what: str, actual: Tensor, expected: Tensor, tolerance: float, *, kinks: bool, of: str = "the reference's"
) -> None:
    """Raises `WrongResultError` if the two differ by more than ``tolerance`` of the largest value; where there are ``kinks`` a few values may."""
    _same_shape(what, actual, expected, of)
    error = (actual.double() - expected.double()).abs() / expected.double().abs().max().clamp(min=1e-30)
    off = ~(error <= tolerance)
    allowed = max(_KINKS * off.numel(), _PIXEL if off.numel() >= _THOUSANDS else 0) if kinks else 0
    if off.sum().item() > allowed:
        raise WrongResultError(
            f"{what} differs from {of} in {int(off.sum())} of {off.numel()} values, by up to {error.max().item():.2g} of its largest; "
            f"{tolerance:g} is allowed"
        )


def similar(what: str, actual: Tensor, expected: Tensor, least: float, *, of: str) -> None:
    """Raises `WrongResultError` if the mean squared difference is not at least ``least`` dB below the square of the largest value."""
    _same_shape(what, actual, expected, of)
    expected = expected.double()
    error = (actual.double() - expected).square().mean() / expected.square().max().clamp(min=1e-30)
    psnr = -10 * math.log10(max(error.item(), 1e-30))
    if not psnr >= least:
        raise WrongResultError(f"{what} comes to {psnr:.1f} dB of {of}; at least {least:g} dB are wanted")


def _same_shape(what: str, actual: Tensor, expected: Tensor, of: str) -> None:
    if actual.shape != expected.shape:
        raise WrongResultError(f"{what} has shape {tuple(actual.shape)}, {of} is {tuple(expected.shape)}")
