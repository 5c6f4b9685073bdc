"""`bilagrid.compat.fused_bilagrid` against colour grids composed of torch's operators: whole images, places anywhere, patches, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bilagrid.compat import fused_bilagrid, gsplat, pixel_grid
from tests.helpers import assert_near
from tests.splatting import corners, half_pixels, off_kinks, seen_through


def module(num: int, size: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> fused_bilagrid.BilateralGrid:
    depth, rows, columns = size
    grids = fused_bilagrid.BilateralGrid(num, columns, rows, depth).to(dtype)
    with torch.no_grad():
        grids.grids += torch.randn_like(grids.grids)
    return grids


def gradients(out: Tensor, *by: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum(), by)


# (N, m, h, w), and one image of one row, column and pixel.
@pytest.mark.parametrize("lead", [(3, 2, 23, 56), (2, 1, 1, 9), (1, 3, 8, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_images(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    grids = torch.randn(lead[0], 12, 5, 7, 15, dtype=dtype, requires_grad=True)
    rgb = off_kinks(lead, 5).to(dtype).requires_grad_()
    out = fused_bilagrid.fused_bilagrid_sample(grids, None, rgb)
    exact = [t.detach().double().requires_grad_() for t in (grids, rgb)]
    places = corners(*lead[2:], torch.float64).expand(*lead, 2)
    wanted = seen_through(exact[0], places, exact[1], torch.arange(lead[0]))[0]
    assert_near(out, wanted)
    for one, other in zip(gradients(out, grids, rgb), gradients(wanted, *exact), strict=True):
        assert_near(one, other)


@pytest.mark.parametrize("lead", [(3, 2, 23, 56), (2, 1, 5, 1)])
def test_places_anywhere(lead: tuple[int, ...]) -> None:
    grids = torch.randn(lead[0], 12, 5, 7, 15, dtype=torch.float64, requires_grad=True)
    rgb = off_kinks(lead, 5).requires_grad_()
    places = (1.4 * torch.rand(*lead, 2, dtype=torch.float64) - 0.2).requires_grad_()
    wanted = seen_through(grids, places, rgb, torch.arange(lead[0]))[0]
    out = fused_bilagrid.fused_bilagrid_sample(grids, places, rgb, compute_coords_grad=True)
    assert_near(out, wanted)
    for one, other in zip(gradients(out, grids, places, rgb), gradients(wanted, grids, places, rgb), strict=True):
        assert_near(one, other)
    out = fused_bilagrid.fused_bilagrid_sample(grids, places, rgb)
    assert torch.autograd.grad(out.sum(), places, allow_unused=True)[0] is None


def test_half_pixels_take_the_lattice_with_and_without_gradients_to_places() -> None:
    grids, rgb = module(2, (4, 5, 6)), off_kinks((1, 8, 9), 4)
    wanted = seen_through(grids.grids, half_pixels(8, 9, torch.float64), rgb, torch.tensor([1]))[0]
    learned = pixel_grid(8, 9, dtype=torch.float64).requires_grad_()
    for xy, compute in ((pixel_grid(8, 9), False), (learned, False), (learned, True)):
        out = fused_bilagrid.slice(grids, xy, rgb, torch.tensor([1]), compute)["rgb"]
        assert_near(out, wanted)
    out.sum().backward()
    assert learned.grad is not None


@pytest.mark.parametrize("lead", [(3, 29, 13, 15), (1, 4, 13, 15), (2, 3, 1, 1)])
def test_patches_equal_the_whole_image_cropped(lead: tuple[int, ...]) -> None:
    count, patches, rows, columns = lead
    height, width = 40, 67
    grids = torch.randn(count, 12, 5, 7, 15, dtype=torch.float64, requires_grad=True)
    whole = off_kinks((count, height, width), 5).requires_grad_()
    x = torch.randint(0, width - columns + 1, (count, patches), dtype=torch.int32)
    y = torch.randint(0, height - rows + 1, (count, patches), dtype=torch.int32)
    cut = [
        torch.stack([image[v : v + rows, u : u + columns] for u, v in zip(us, vs, strict=True)])
        for image, us, vs in zip(whole, x.tolist(), y.tolist(), strict=True)
    ]
    rgb, offsets = torch.stack(cut), torch.stack([x, y], -1)
    out = fused_bilagrid.fused_bilagrid_sample(
        grids, None, rgb, actual_height=height, actual_width=width, patch_offsets=offsets
    )
    seen = seen_through(grids, corners(height, width, torch.float64), whole, torch.arange(count))[0]
    wanted = torch.stack(
        [
            torch.stack([image[v : v + rows, u : u + columns] for u, v in zip(us, vs, strict=True)])
            for image, us, vs in zip(seen, x.tolist(), y.tolist(), strict=True)
        ]
    )
    assert_near(out, wanted)
    for one, other in zip(gradients(out, grids, whole), gradients(wanted, grids, whole), strict=True):
        assert_near(one, other)


def test_patches_through_the_module() -> None:
    grids, rgb = module(4, (3, 4, 5)), off_kinks((2, 6, 7), 3)
    offsets = torch.tensor([[3, 1], [0, 20]])
    size = {"actual_height": 40, "actual_width": 50}
    wanted = fused_bilagrid.fused_bilagrid_sample(
        grids.grids[[2]], None, rgb[None], patch_offsets=offsets[None], **size
    )
    # Patches of one photograph, and one of each of two.
    for shape in ((2, 2), (1, 2, 2), (2, 1, 2)):
        out = fused_bilagrid.slice(grids, None, rgb, torch.tensor([2]), patch_offsets=offsets.reshape(shape), **size)
        assert_near(out["rgb"], wanted[0])
    each = fused_bilagrid.slice(grids, None, rgb, torch.tensor([[2], [0]]), patch_offsets=offsets[:, None], **size)[
        "rgb"
    ]
    assert torch.equal(each[0], wanted[0, 0])
    assert not torch.equal(each[1], wanted[0, 1])


@pytest.mark.parametrize("lead", [(6, 7), (1, 6, 7), (2, 6, 7)])
@pytest.mark.parametrize("index", [torch.tensor([2]), torch.tensor(1), torch.tensor([[2], [0]])])
def test_slice(lead: tuple[int, ...], index: Tensor) -> None:
    if index.numel() > 1 and lead[0] != 2:
        return
    grids, rgb = module(3, (7, 16, 15)), off_kinks(lead, 7)
    rows = index.reshape(-1)
    images = rgb if len(lead) == 3 else rgb[None]
    wanted = seen_through(grids.grids, corners(6, 7, torch.float64), images, rows)[0].reshape(rgb.shape)
    out = fused_bilagrid.slice(grids, None, rgb, index)
    assert list(out) == ["rgb"]
    assert_near(out["rgb"], wanted)
    assert_near(grids(None, rgb, rows), wanted)
    anywhere = fused_bilagrid.slice(
        grids, corners(6, 7, torch.float64).expand(*images.shape[:-1], 2).reshape(*lead, 2), rgb, index
    )
    assert_near(anywhere["rgb"], wanted)


def test_rays() -> None:
    grids, rgb, places = module(5, (3, 4, 5)), off_kinks((50,), 3), torch.rand(50, 2, dtype=torch.float64)
    index = torch.randint(5, (50, 1))
    wanted = seen_through(grids.grids, places, rgb, index[:, 0])[0]
    assert_near(fused_bilagrid.slice(grids, places, rgb, index)["rgb"], wanted)


def test_halves_come_back_in_float32() -> None:
    grids, rgb = module(1, (3, 4, 5), torch.float32), off_kinks((1, 6, 7), 3).half()
    out = fused_bilagrid.slice(grids, None, rgb, 0)["rgb"]
    assert out.dtype == torch.float32
    assert_near(
        out, seen_through(grids.grids.double(), corners(6, 7, torch.float64), rgb.double(), torch.tensor([0]))[0]
    )


def test_a_default_device_has_no_say() -> None:
    grids, given = fused_bilagrid.BilateralGrid(1), {"patch_offsets": torch.tensor([[1, 2]]), **SIZE}
    wanted = fused_bilagrid.slice(grids, None, RGB[:1], 0, **given)["rgb"]
    with torch.device("meta"):
        found = fused_bilagrid.slice(grids, None, RGB[:1], 0, **given)["rgb"]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_module_keeps_the_layout() -> None:
    grids = fused_bilagrid.BilateralGrid(2, 5, 4, 3)
    assert {name: tuple(t.shape) for name, t in grids.state_dict().items()} == {"grids": (2, 12, 3, 4, 5)}
    rgb = torch.rand(2, 6, 7, 3)
    torch.testing.assert_close(grids(None, rgb), rgb)
    assert torch.equal(grids.tv_loss(), gsplat.total_variation_loss(grids.grids))
    assert fused_bilagrid.total_variation_loss is gsplat.total_variation_loss


GRIDS = fused_bilagrid.BilateralGrid(3)
RGB = torch.rand(2, 4, 5, 3)
SIZE = {"actual_height": 9, "actual_width": 9}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB[0, 0], 0), ValueError, r"xy must be given for rgb that is no image \(..., H, W, 3\)"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB[0], torch.zeros(4, 1).long()), ValueError, "xy must be given for rgb that is no image"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, actual_height=9), ValueError, "actual_height, actual_width and patch_offsets must be given together"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=torch.zeros(2, 2), **SIZE), TypeError, "patch_offsets must be a tensor of integers such as int32, got torch.float32"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=[[0, 0]], **SIZE), TypeError, "patch_offsets must be a tensor of integers such as int32, got list"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=torch.zeros(3, 2).int(), **SIZE), ValueError, r"patch_offsets must have shape \(..., 2\) = \(2, 2\), an \(x, y\) for each patch, got \(3, 2\)"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=torch.tensor([[0, 0], [5, 0]]), **SIZE), ValueError, r"patch_offsets must keep patches of \(h, w\) = \(4, 5\) within .* \(9, 9\), got \(x, y\) from \(0, 0\) to \(5, 0\)"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=torch.tensor([[0, 0], [0, -1]]), **SIZE), ValueError, "patch_offsets must keep patches"),
        (lambda: fused_bilagrid.slice(GRIDS, torch.rand(2, 4, 4, 2), RGB, 0), ValueError, "xy must have shape"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, torch.zeros(3, 1).long()), ValueError, "grid_idx must hold one index"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 3), IndexError, "3"),
        (lambda: fused_bilagrid.slice(GRIDS.grids, None, RGB, 0), TypeError, "bil_grids must be .* or a module that calls one, got Parameter"),
        (lambda: fused_bilagrid.slice(GRIDS, None, RGB, 0, patch_offsets=torch.zeros(2, 2).int(), actual_height=9.5, actual_width=9), TypeError, "actual_height must be a whole number of pixels, got 9.5"),
        (lambda: fused_bilagrid.fused_bilagrid_sample(None, None, RGB), TypeError, "bilagrid must be a torch.Tensor, got NoneType"),
        (lambda: fused_bilagrid.slice(GRIDS, None, None, 0), ValueError, "rgb must be a tensor"),
        (lambda: fused_bilagrid.slice(GRIDS, [[0.5, 0.5]], RGB, 0), TypeError, "xy must be a torch.Tensor, got list"),
        (lambda: fused_bilagrid.fused_bilagrid_sample(GRIDS.grids, None, None), TypeError, "rgb must be a torch.Tensor, got NoneType"),
        (lambda: fused_bilagrid.fused_bilagrid_sample(torch.ones(2, 9, 2, 2, 2), None, RGB), ValueError, "grids must have 12 channels, a 3x4 colour map, got 9"),
        (lambda: fused_bilagrid.fused_bilagrid_sample(torch.ones(2, 12, 2, 2), None, RGB), ValueError, r"grids must have shape \(M, C, D, Gh, Gw\), got \(2, 12, 2, 2\)"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
