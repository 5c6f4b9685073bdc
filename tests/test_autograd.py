"""First and second derivatives of every operator by every argument, in float64, against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import bilagrid
from bilagrid import Lattice
from bilagrid.ops.slice import slice_, slice_bwd_guide_, slice_normalized_
from bilagrid.ops.slice_points import slice_points_, splat_points_
from bilagrid.ops.splat import splat_, splat_blurred_
from tests.conftest import BACKENDS
from tests.helpers import device_of, off_nodes

SIZE, IMAGE = (3, 2, 2), (3, 4)
LATTICE = Lattice.cell_centered(SIZE, IMAGE)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _guide() -> Tensor:
    """Off the kinks, where finite differences mean nothing."""
    return off_nodes((1, *IMAGE), SIZE[0])


def _image() -> Tensor:
    """Three equal channels, whose luma is off the kinks as the guide is; each moves luma by less than it moves."""
    return _guide()[:, None].repeat(1, 3, 1, 1)


def _parameters() -> tuple[Tensor, ...]:
    """Two curves of three knots, of which no pixel of an image in [0, 1] comes near enough for a finite difference to pass it, nor clips."""
    return (
        torch.tensor([[0.4, 0.3], [0.2, 0.5]], dtype=torch.float64),
        torch.tensor([0.1, 0.2], dtype=torch.float64),
        torch.tensor([[0.3, -1.0, 0.5], [0.4, 0.4, 2.0]], dtype=torch.float64),
        torch.tensor([[0.5, 0.2, -0.3], [0.7, -0.2, 1.0]], dtype=torch.float64),
        torch.tensor([0.6, 0.5], dtype=torch.float64),
        torch.tensor(0.2, dtype=torch.float64),
    )


def _points() -> Tensor:
    """Off the kinks and around the grid of `SIZE`, which has more than one cell along z alone; as images of one row."""
    along = [off_nodes((5,), nodes) * nodes - 0.5 for nodes in reversed(SIZE)]
    return torch.stack(along, -1).view(1, 1, 5, 3)


def _apply(offset: bool, **options: None) -> Callable[..., Tensor]:
    if options:
        return lambda grid, image: bilagrid.slice_apply(grid, None, image, offset=offset)
    return lambda grid, guide, image: bilagrid.slice_apply(grid, guide, image, offset=offset)


INDEX = torch.tensor([1, 0, 1, 1, 0]).view(1, 1, 5)

# Each: the function, its arguments, and whether it is differentiable twice by all of them.
CASES: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Tensor, ...]]]] = {
    "splat": (lambda v, g: bilagrid.splat(v, g, SIZE), lambda: (_random(1, 2, *IMAGE), _guide())),
    "splat_blurred": (
        lambda v, g: splat_blurred_(v, g, LATTICE, (0.7, 0.0, 1.2)),
        lambda: (_random(1, 2, *IMAGE), _guide()),
    ),
    "splat_dz": (lambda v, g: splat_(v, g, LATTICE, True), lambda: (_random(1, 2, *IMAGE), _guide())),
    "slice": (bilagrid.slice, lambda: (_random(1, 2, *SIZE), _guide())),
    "slice_dz": (lambda grid, g: slice_(grid, g, LATTICE, True), lambda: (_random(1, 2, *SIZE), _guide())),
    "slice_normalized": (
        lambda grid, g: slice_normalized_(grid, g, LATTICE),
        # The last channel divides, so it stays away from 0.
        lambda: (torch.cat([_random(1, 2, *SIZE), 2 + _random(1, 1, *SIZE).tanh()], 1), _guide()),
    ),
    "slice_bwd_guide": (
        lambda grid, g, v: slice_bwd_guide_(grid, g, v, LATTICE),
        lambda: (_random(1, 2, *SIZE), _guide(), _random(1, 2, *IMAGE)),
    ),
    "slice_bwd_guide homogeneous": (
        lambda grid, g, v: slice_bwd_guide_(grid, g, v, LATTICE, True),
        lambda: (_random(1, 3, *SIZE), _guide(), _random(1, 2, *IMAGE)),
    ),
    "blur": (lambda grid: bilagrid.blur(grid, (0.7, 0.0, 1.2)), lambda: (_random(1, 2, *SIZE),)),
    "curves": (bilagrid.curves, lambda: (_random(1, 2, *IMAGE).sigmoid(), *_parameters())),
    "slice_points": (bilagrid.slice_points, lambda: (_random(1, 2, *SIZE), _points())),
    "slice_points indexed": (
        lambda grid, p: bilagrid.slice_points(grid, p, INDEX.to(p.device)),
        lambda: (_random(2, 2, *SIZE), _points()),
    ),
    "slice_points by y": (
        lambda grid, p: slice_points_(grid, p, INDEX.to(p.device), 2),
        lambda: (_random(2, 2, *SIZE), _points()),
    ),
    "splat_points by x": (
        lambda v, p: splat_points_(v, p, INDEX.to(p.device), (2, *SIZE), 1),
        lambda: (_random(1, 1, 5, 2), _points()),
    ),
    "total_variation": (bilagrid.total_variation, lambda: (_random(2, 2, *SIZE),)),
    "slice_apply": (_apply(True), lambda: (_random(1, 8, *SIZE), _guide(), _random(1, 3, *IMAGE))),
    "slice_apply without offset": (_apply(False), lambda: (_random(1, 6, *SIZE), _guide(), _random(1, 3, *IMAGE))),
    "slice_apply by luma": (_apply(True, guide=None), lambda: (_random(1, 4, *SIZE), _image())),
    "slice_apply by luma without offset": (_apply(False, guide=None), lambda: (_random(1, 6, *SIZE), _image())),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients(backend: str, case: str) -> None:
    function, arguments = CASES[case]
    leaves = [t.to(device_of(backend)).requires_grad_() for t in arguments()]
    assert gradcheck(function, leaves, fast_mode=True)


# The other operators' second derivatives are compositions of these two and cost the interpreter up to ten seconds each.
QUICK = ("slice", "splat")


@pytest.mark.parametrize(
    ("backend", "case"),
    [
        pytest.param(backend, case, marks=[pytest.mark.slow] if backend == "interpreter" and case not in QUICK else [])
        for backend in BACKENDS
        for case in CASES
    ],
    indirect=["backend"],
)
def test_second_gradients(backend: str, case: str) -> None:
    function, arguments = CASES[case]
    leaves = [t.to(device_of(backend)).requires_grad_() for t in arguments()]
    assert gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("case", CASES)
def test_each_argument_by_itself(case: str) -> None:
    """A gradient that only one argument asks for takes another way through the backward."""
    function, arguments = CASES[case]
    given = arguments()
    every = [t.clone().requires_grad_() for t in given]
    wanted = torch.autograd.grad(function(*every).square().sum(), every, materialize_grads=True)
    for k, expected in enumerate(wanted):
        alone = [t.clone().requires_grad_(i == k) for i, t in enumerate(given)]
        out = function(*alone)
        if not out.requires_grad:
            torch.testing.assert_close(expected, torch.zeros_like(expected))
            continue
        (found,) = torch.autograd.grad(out.square().sum(), [alone[k]], materialize_grads=True)
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_entry_of_the_jacobian(case: str) -> None:
    function, arguments = CASES[case]
    leaves = [t.requires_grad_() for t in arguments()]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)
