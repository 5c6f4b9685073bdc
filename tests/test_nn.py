"""The modules: each is its function with the options of its constructor, and whatever a `torch.nn.Module` is expected to survive."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bilagrid
from bilagrid import Lattice
from bilagrid import nn as modules
from tests.helpers import assert_near

SIZE, IMAGE, SMALL = (4, 3, 5), (9, 11), (3, 4)


def _image(channels: int = 3, size: tuple[int, int] = IMAGE) -> Tensor:
    return torch.rand(2, channels, *size)


def _guide(size: tuple[int, int] = IMAGE) -> Tensor:
    return torch.rand(2, *size)


def _grid(channels: int = 12) -> Tensor:
    return torch.randn(2, channels, *SIZE)


HALF_PIXEL = Lattice.half_pixel(SIZE, IMAGE)


def _bank() -> Tensor:
    return torch.cat([_grid(), _grid()])


FILTER = {"sigma_space": 2.0, "sigma_color": 0.2, "guide_range": (0.0, 1.0), "nodes_per_sigma": (1.0, 1.0, 1.0)}
POINTS = torch.rand(6, 3), torch.tensor([0, 1, 1, 0, 1, 0])

# Each: a module, its arguments, and the same by the function.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor | None, ...]], Callable[..., Tensor]]] = {
    "Splat": (lambda: modules.Splat(SIZE), lambda: (_image(), _guide()), lambda v, g: bilagrid.splat(v, g, SIZE)),
    "Splat half_pixel": (
        lambda: modules.Splat(list(SIZE), lattice="half_pixel"),  # type: ignore[arg-type]
        lambda: (_image(), _guide()),
        lambda v, g: bilagrid.splat(v, g, SIZE, lattice=HALF_PIXEL),
    ),
    "Blur": (lambda: modules.Blur((0, 0.7, 1)), lambda: (_grid(),), lambda g: bilagrid.blur(g, (0, 0.7, 1))),
    "Slice": (lambda: modules.Slice(), lambda: (_grid(), _guide()), bilagrid.slice),
    "Slice on a lattice": (
        lambda: modules.Slice(lattice=HALF_PIXEL),
        lambda: (_grid(), _guide()),
        lambda grid, guide: bilagrid.slice(grid, guide, lattice=HALF_PIXEL),
    ),
    "SliceApply": (lambda: modules.SliceApply(), lambda: (_grid(), _guide(), _image()), bilagrid.slice_apply),
    "SliceApply luma": (lambda: modules.SliceApply(), lambda: (_grid(), None, _image()), bilagrid.slice_apply),
    "SliceApply corner_aligned": (
        lambda: modules.SliceApply(lattice="corner_aligned", offset=False),
        lambda: (_grid(), _guide(), _image()),
        lambda *given: bilagrid.slice_apply(*given, lattice=Lattice.corner_aligned(SIZE, IMAGE), offset=False),
    ),
    "Splat into a bank": (
        lambda: modules.Splat(SIZE, lattice="half_pixel"),
        lambda: (_image(), _guide(), torch.tensor([2, 0]), 3),
        lambda v, g, index, count: bilagrid.splat(v, g, SIZE, lattice=HALF_PIXEL, index=index, count=count),
    ),
    "Slice from a bank": (
        lambda: modules.Slice(sparse=True),
        lambda: (_bank(), _guide(), torch.tensor([2, 0])),
        lambda grid, guide, index: bilagrid.slice(grid, guide, index=index),
    ),
    "SliceApply from a bank": (
        lambda: modules.SliceApply(sparse=True),
        lambda: (_bank(), None, _image(), torch.tensor([2, 0])),
        lambda grid, guide, image, index: bilagrid.slice_apply(grid, guide, image, index=index),
    ),
    "TotalVariation of a bank": (
        lambda: modules.TotalVariation(sparse=True),
        lambda: (_bank(), torch.tensor([2, 0])),
        bilagrid.total_variation,
    ),
    "SlicePoints": (lambda: modules.SlicePoints(), lambda: (_grid(), *POINTS), bilagrid.slice_points),
    "TotalVariation": (lambda: modules.TotalVariation(), lambda: (_grid(),), bilagrid.total_variation),
    "BilateralFilter": (
        lambda: modules.BilateralFilter(**FILTER),
        lambda: (_image(), _guide()),
        lambda *given: bilagrid.bilateral_filter(*given, **FILTER),
    ),
    "BilateralFilter of itself": (
        lambda: modules.BilateralFilter(2, 0.2),
        lambda: (_image(),),
        lambda image: bilagrid.bilateral_filter(image, sigma_space=2, sigma_color=0.2),
    ),
    "JointBilateralUpsample": (
        lambda: modules.JointBilateralUpsample(**FILTER),
        lambda: (_image(2, SMALL), _guide(SMALL), _guide()),
        lambda *given: bilagrid.joint_bilateral_upsample(*given, **FILTER),
    ),
    "Fit": (
        lambda: modules.Fit(SIZE, lattice="half_pixel"),
        lambda: (_image(), _image(2), _guide(), _guide()),
        lambda x, y, g, w: bilagrid.fit(x, y, g, size=SIZE, lattice=HALF_PIXEL, weight=w),
    ),
    "Fit with noise": (
        lambda: modules.Fit(SIZE),
        lambda: (_image(), _image(), None, None, _image()),
        lambda x, y, g, w, noise: bilagrid.fit(x, y, size=SIZE, noise=noise),
    ),
    "GuidedUpsample": (
        lambda: modules.GuidedUpsample(size=SIZE, method="global"),
        lambda: (_image(), _image(3, SMALL), _image(3, SMALL)),
        lambda *given: bilagrid.guided_upsample(*given, size=SIZE, method="global"),
    ),
    "GuidedUpsample by guides": (
        lambda: modules.GuidedUpsample(),
        lambda: (_image(), _image(3, SMALL), _image(3, SMALL), _guide(), _guide(SMALL)),
        lambda a, b, c, high, low: bilagrid.guided_upsample(a, b, c, guide_high=high, guide_low=low),
    ),
    "Tonemap": (
        lambda: modules.Tonemap(contrast=3, sigma_space=2, gamma=1),
        lambda: (100 * _image(),),
        lambda x: bilagrid.tonemap(x, contrast=3, sigma_space=2, gamma=1),
    ),
    "EqualizeHistogram": (
        lambda: modules.EqualizeHistogram(clip_limit=3, bins=64),
        lambda: (_image(),),
        lambda x: bilagrid.equalize_histogram(x, clip_limit=3, bins=64),
    ),
    "Colorize": (
        lambda: modules.Colorize(sigma_space=2, sigma_color=0.2),
        lambda: (_image(1), _image(), _guide()),
        lambda *given: bilagrid.colorize(*given, sigma_space=2, sigma_color=0.2),
    ),
    "MergeFlash": (
        lambda: modules.MergeFlash(sigma_space=2, exposure=0.5),
        lambda: (_image(), _image()),
        lambda *given: bilagrid.merge_flash(*given, sigma_space=2, exposure=0.5),
    ),
}


def test_every_module_is_tried() -> None:
    assert {name.partition(" ")[0] for name in CASES} | {"Curves"} == set(modules.__all__)


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_its_function(name: str) -> None:
    make, draw, function = CASES[name]
    module, given = make(), draw()
    wanted = function(*given)
    for one in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(one(*given), wanted, rtol=0, atol=0)
    assert module.state_dict() == {}
    scope = {**vars(modules), "Lattice": Lattice}
    again = eval(repr(module), scope)
    torch.testing.assert_close(again(*given), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Slice half_pixel", "Slice corner_aligned"])
def test_a_kind_of_lattice_serves_every_size(name: str) -> None:
    kind = name.partition(" ")[2]
    module, grid = modules.Slice(lattice=kind), _grid(2)
    for size in ((9, 11), (4, 30)):
        guide = _guide(size)
        lattice = getattr(Lattice, kind)(SIZE, size)
        assert_near(module(grid, guide), bilagrid.slice(grid, guide, lattice=lattice))


@pytest.mark.parametrize("sparse", [True, False])
def test_the_gradient_by_a_bank_is_as_sparse_as_asked_for(sparse: bool) -> None:
    index, image = torch.tensor([2, 0]), _image()
    for module, more in (
        (modules.SliceApply, (None, image)),
        (modules.Slice, (_guide(),)),
        (modules.TotalVariation, ()),
    ):
        bank = _bank().requires_grad_()
        module(sparse=sparse)(bank, *more, index).square().sum().backward()
        assert bank.grad is not None
        assert bank.grad.is_sparse == sparse
        assert (bank.grad.to_dense()[[1, 3]] == 0).all()


def parameters(module: modules.Curves) -> tuple[Tensor, ...]:
    return module.matrix, module.bias, module.shifts, module.slopes, module.mix, module.mix_bias


def test_curves_are_learned() -> None:
    module, image = modules.Curves(3, knots=4, mixed=5), _image()
    assert [tuple(p.shape) for p in module.parameters()] == [(5, 3), (5,), (5, 4), (5, 4), (5,), ()]
    out = module(image)
    assert_near(out, bilagrid.curves(image, *parameters(module)))
    # Five curves of three channels: the first two of them twice.
    assert_near(out, (image[:, [0, 1, 2, 0, 1]].mean(1)), torch.bfloat16)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_curves_start_as_the_mean_and_can_start_again() -> None:
    image = _image()
    module = modules.Curves(3)
    assert_near(module(image), image.mean(1), torch.float16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    torch.manual_seed(1)
    module.reset_parameters()
    torch.manual_seed(1)
    for found, wanted in zip(module.parameters(), modules.Curves(3).parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_curves_keep_through_files_copies_and_devices() -> None:
    module, image = modules.Curves(3), _image()
    wanted = module(image)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = modules.Curves(3, device="meta")
    assert other.matrix.is_meta
    other = other.to_empty(device="cpu")
    other.load_state_dict(torch.load(file, weights_only=True))
    for one in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(one(image), wanted, rtol=0, atol=0)
    double = copy.deepcopy(module).double()
    assert double(image.double()).dtype == torch.float64
    assert_near(double(image.double()), wanted, torch.float32)
    assert modules.Curves(3, dtype=torch.float64).matrix.dtype == torch.float64
    found = torch.func.functional_call(module, dict(other.named_parameters()), (image,))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_modules_hold_together() -> None:
    """A guide's curves, a grid of one's own and its regulariser, trained as any module."""

    class Enhance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.guide, self.apply_maps, self.variation = (
                modules.Curves(3),
                modules.SliceApply(),
                modules.TotalVariation(),
            )
            self.grid = nn.Parameter(torch.eye(3, 4).reshape(1, 12, 1, 1, 1).repeat(1, 1, *SIZE))

        def forward(self, image: Tensor) -> Tensor:
            return self.apply_maps(self.grid.expand(len(image), -1, -1, -1, -1), self.guide(image), image)

    module, image = Enhance(), _image()
    target = image.sqrt()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (module(image) - target).square().mean() + 1e-4 * module.variation(module.grid)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    shown = repr(module)
    assert "(guide): Curves(channels=3, knots=16, mixed=3)" in shown
    assert "SliceApply(lattice='cell_centered', offset=True, sparse=False)" in shown


REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "a lattice of no kind": (lambda: modules.Slice(lattice="sigma"), ValueError, "lattice must be one of cell_centered, half_pixel, corner_aligned"),
    "a list for a lattice": (lambda: modules.SliceApply(lattice=[]), ValueError, "lattice must be one of"),  # type: ignore[arg-type]
    "two numbers of nodes": (lambda: modules.Splat((4, 2)), ValueError, r"size must be \(D, Gh, Gw\)"),  # type: ignore[arg-type]
    "a number of nodes": (lambda: modules.Fit(4), TypeError, r"size must be \(D, Gh, Gw\)"),  # type: ignore[arg-type]
    "no nodes": (lambda: modules.GuidedUpsample(size=(4, 0, 2)), ValueError, r"size must be \(D, Gh, Gw\)"),
    "a method": (lambda: modules.Fit(SIZE, method="exact"), ValueError, 'method must be "fast" or "global"'),
    "a negative sigma": (lambda: modules.Blur(-1), ValueError, "sigma must be between 0"),
    "no sigma": (lambda: modules.BilateralFilter(0, 0.1), ValueError, "sigma_space must be a finite number above 0"),
    "a range the wrong way": (lambda: modules.JointBilateralUpsample(1, 0.1, guide_range=(1, 0)), ValueError, "guide_range must be finite"),
    "too few nodes a sigma": (lambda: modules.BilateralFilter(1, 0.1, nodes_per_sigma=(0.1, 1, 1)), ValueError, "nodes_per_sigma must be from"),
    "a contrast below 1": (lambda: modules.Tonemap(contrast=0.5), ValueError, "contrast must be"),
    "sizes for a grid": (lambda: modules.Slice()((1.5, 3, 3), torch.rand(1, 5, 6)), TypeError, "grid must be a torch.Tensor, got tuple"),  # type: ignore[arg-type]
    "a flag": (lambda: modules.SliceApply(offset=1), TypeError, "offset must be True or False"),  # type: ignore[arg-type]
    "no channels": (lambda: modules.Curves(0), ValueError, "channels must be a whole number, at least 1, got 0"),
    "half a knot": (lambda: modules.Curves(3, knots=0.5), ValueError, "knots must be a whole number"),  # type: ignore[arg-type]
    "an array": (lambda: modules.Slice()(_grid().numpy(), _guide()), TypeError, "grid must be a torch.Tensor, got ndarray"),
    "an image of no rows": (lambda: modules.SliceApply(lattice="half_pixel")(_grid(), None, _image(3, (0, 4))), ValueError, "image must have shape"),
    "a grid of four dimensions": (lambda: modules.Slice(lattice="half_pixel")(_grid()[0], _guide()), ValueError, "grid must have shape"),
    "a lattice for another size": (lambda: modules.Slice(lattice=HALF_PIXEL)(_grid(2)[:, :, :3], _guide()), ValueError, "lattice is for a grid of"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("name", ["Tonemap", "BilateralFilter", "Blur", "Fit", "Splat"])
def test_a_module_is_made_without_memory(name: str) -> None:
    with torch.device("meta"):
        CASES[name][0]()


def test_curves_are_made_where_they_are_asked_for() -> None:
    with torch.device("meta"):
        made = modules.Curves(2, device="cpu")
    assert made(torch.full((1, 2, 1, 1), 0.5)).sub(0.5).abs().item() < 1e-3
