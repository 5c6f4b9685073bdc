"""The filters against the exact ones, on photographs."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import bilagrid
from bilagrid.filters import filter_lattice
from tests.helpers import assert_near, device_of, numpy64, off_nodes, psnr
from tests.reference import filters as exact

data = pytest.importorskip(
    "skimage.data", reason="the photographs come with scikit-image: pip install 'bilagrid[images]'"
)

# What the grid costs against the exact filter, over sigma_space 4 to 16 and sigma_color 0.1 to 0.2.
DECIBELS = 52


def photograph(name: str, crop: int = 96) -> Tensor:
    """A crop of a photograph, (1, C, crop, crop), 0 to 1, in float64."""
    pixels = torch.from_numpy(np.atleast_3d(getattr(data, name)()).astype(np.float64)) / 255
    top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
    return pixels[top : top + crop, left : left + crop].movedim(-1, 0)[None].contiguous()


def luma(image: Tensor) -> Tensor:
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def test_the_exact_filter_weighs_pixel_pairs_as_its_formula_says() -> None:
    """One pixel by its definition, so that the reference is not taken on trust."""
    image, guide = np.random.default_rng(0).random((2, 9, 8)), np.random.default_rng(1).random((9, 8))
    y, x = np.mgrid[:9, :8]
    weight = np.exp(-((y - 3) ** 2 + (x - 5) ** 2) / 2 / 4**2 - (guide - guide[3, 5]) ** 2 / 2 / 0.3**2)
    wanted = (weight * image).sum((1, 2)) / weight.sum()
    np.testing.assert_allclose(exact.bilateral_filter(image, guide, 4, 0.3)[:, 3, 5], wanted)


@pytest.mark.parametrize("name", ["camera", "coins", "brick"])
@pytest.mark.parametrize(("space", "color"), [(4, 0.1), (4, 0.2), (6, 0.2), (8, 0.1), (8, 0.2), (16, 0.1), (16, 0.2)])
def test_gray(name: str, space: float, color: float) -> None:
    image = photograph(name)
    wanted = exact.bilateral_filter(numpy64(image[0]), numpy64(image[0, 0]), space, color)
    for dtype in (torch.float64, torch.float32):
        found = bilagrid.bilateral_filter(image.to(dtype), sigma_space=space, sigma_color=color)
        assert found.dtype == dtype
        assert psnr(found[0], wanted) >= DECIBELS


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
@pytest.mark.parametrize(("space", "color"), [(4, 0.1), (8, 0.15), (16, 0.2)])
def test_colour_is_guided_by_luma(name: str, space: float, color: float) -> None:
    image = photograph(name)
    wanted = exact.bilateral_filter(numpy64(image[0]), numpy64(luma(image)[0]), space, color)
    assert psnr(bilagrid.bilateral_filter(image, sigma_space=space, sigma_color=color)[0], wanted) >= DECIBELS


@pytest.mark.parametrize("color", [0.1, 0.15, 0.2, 1.0])
def test_wide_sigmas_take_sixteen_planes(color: float) -> None:
    """No more than a program of the GPU's fine splat adds up, whatever is rounded on the way."""
    guide = torch.empty(1, 20, 30, device="meta")
    lattice, _ = filter_lattice(guide, 8, color, guide_range=(0.0, 1.0))
    assert lattice.size[0] <= 16


def test_cross_filter() -> None:
    """Five channels under the edges of one of them."""
    image = photograph("astronaut")
    channels = torch.cat([image, image[:, :2]], 1)
    wanted = exact.bilateral_filter(numpy64(channels[0]), numpy64(image[0, 1]), 8, 0.15)
    found = bilagrid.bilateral_filter(channels, image[:, 1], sigma_space=8, sigma_color=0.15)
    assert psnr(found[0], wanted) >= DECIBELS


@pytest.mark.parametrize("given", [True, False])
def test_a_guide_of_high_dynamic_range(given: bool) -> None:
    image = photograph("camera")
    radiance = 1000 * image
    wanted = exact.bilateral_filter(numpy64(image[0]), numpy64(image[0, 0]), 8, 0.1)
    guide_range = (0.0, 1000.0) if given else None
    found = bilagrid.bilateral_filter(radiance, sigma_space=8, sigma_color=100, guide_range=guide_range)
    assert psnr(found[0] / 1000, wanted) >= DECIBELS


def test_a_given_range_equals_the_measured_one() -> None:
    image = torch.rand(1, 1, 9, 11, device="cpu") * 3 - 1
    least, greatest = image.min().item(), image.max().item()
    measured = bilagrid.bilateral_filter(image, sigma_space=3, sigma_color=0.5)
    given = bilagrid.bilateral_filter(image, sigma_space=3, sigma_color=0.5, guide_range=(least, greatest))
    torch.testing.assert_close(given, measured, rtol=0, atol=0)


def test_a_constant_image_stays(backend: str) -> None:
    image = torch.full((2, 3, 8, 9), 0.7, device=device_of(backend))
    assert_near(bilagrid.bilateral_filter(image, sigma_space=2, sigma_color=0.1), image)


def test_an_empty_batch(backend: str) -> None:
    image = torch.rand(0, 3, 8, 9, device=device_of(backend))
    assert bilagrid.bilateral_filter(image, sigma_space=2, sigma_color=0.1).shape == image.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(dtype: torch.dtype) -> None:
    image = torch.rand(1, 3, 9, 11, device="cpu").to(dtype)
    found = bilagrid.bilateral_filter(image, sigma_space=3, sigma_color=0.3, guide_range=(0.0, 1.0))
    assert found.dtype == dtype
    # The answer is rounded, luma is not.
    wanted = bilagrid.bilateral_filter(image.double(), sigma_space=3, sigma_color=0.3, guide_range=(0.0, 1.0))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.51 * torch.finfo(dtype).eps)


def test_gradients() -> None:
    """A range that puts the guide's values between nodes, as `off_nodes` places them on a lattice of its own."""
    device = "cpu"
    image = torch.rand(1, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    # One node a sigma of 1/4 from 0 puts z = 1 + 4 g, and off_nodes keeps 4 g - 1/2 off the integers.
    guide = (off_nodes((1, 4, 5), 4) - 0.125).clamp(-0.2, 1.2).to(device).requires_grad_()

    def run(image: Tensor, guide: Tensor) -> Tensor:
        options = {"guide_range": (-0.25, 1.25), "nodes_per_sigma": (1.0, 1.0, 1.0)}
        return bilagrid.bilateral_filter(image, guide, sigma_space=2.0, sigma_color=0.25, **options)

    assert torch.autograd.gradcheck(run, (image, guide), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (image, guide), fast_mode=True)


def test_joint_bilateral_upsample() -> None:
    full = photograph("astronaut", 64)
    guide = luma(full)
    low = torch.nn.functional.interpolate(full, scale_factor=0.25, mode="area")
    guide_low = luma(low)
    found = bilagrid.joint_bilateral_upsample(low, guide_low, guide, sigma_space=1.5, sigma_color=0.15)
    wanted = exact.joint_bilateral_upsample(numpy64(low[0]), numpy64(guide_low[0]), numpy64(guide[0]), 1.5, 0.15)
    assert found.shape == full.shape
    # Low-resolution pixels are few and weigh unevenly, so the grid's tents show more than in a filter.
    bilinear = torch.nn.functional.interpolate(low, size=(64, 64), mode="bilinear")
    assert psnr(found[0], wanted) > psnr(bilinear[0], wanted) + 10
    assert psnr(found, numpy64(full)) > psnr(bilinear, numpy64(full))


def test_upsampling_a_constant(backend: str) -> None:
    device = device_of(backend)
    low, guide = torch.full((1, 2, 3, 4), 0.6, device=device), torch.rand(1, 7, 9, device=device)
    found = bilagrid.joint_bilateral_upsample(low, guide[:, :3, :4], guide, sigma_space=1.0, sigma_color=0.1)
    assert_near(found, torch.full_like(found, 0.6))


IMAGE = torch.rand(1, 3, 8, 9)
REFUSED = {
    "a grid that does not fit": ({"sigma_space": 1e-4, "sigma_color": 1e-6}, r"need a grid of \(D, Gh, Gw\) = .*raise sigma_space"),
    "a grid without bound": ({"sigma_space": 1e-320, "sigma_color": 0.1}, "raise them|without bound"),
    "no space": ({"sigma_space": 0, "sigma_color": 0.1}, "sigma_space must be a finite number above 0, got 0"),
    "negative colour": ({"sigma_space": 4, "sigma_color": -0.1}, "sigma_color must be .* got -0.1"),
    "too few nodes": ({"sigma_space": 4, "sigma_color": 0.1, "nodes_per_sigma": (0.5, 1, 1)}, "nodes_per_sigma must be from 0.577"),
    "a negative number of nodes": ({"sigma_space": 4, "sigma_color": 0.1, "nodes_per_sigma": (1, -1, 1)}, "nodes_per_sigma must be from"),
    "too many nodes": ({"sigma_space": 4, "sigma_color": 0.1, "nodes_per_sigma": (1e5, 1, 1)}, "nodes_per_sigma must be from .* to 100"),
    "a grid of astronomical size": ({"sigma_space": 1e-300, "sigma_color": 0.1}, r"need a grid|without bound"),
    "a range that ends before it begins": ({"sigma_space": 4, "sigma_color": 0.1, "guide_range": (1.0, 0.0)}, "guide_range must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        bilagrid.bilateral_filter(IMAGE, **options)


NOT_NUMBERS = {
    "a text": ({"sigma_space": "4", "sigma_color": 0.1}, "sigma_space must be a number, got '4'"),
    "nothing": ({"sigma_space": 4, "sigma_color": None}, "sigma_color must be a number, got None"),
    "a pair": ({"sigma_space": (4, 4), "sigma_color": 0.1}, r"sigma_space must be a number, got \(4, 4\)"),
    "one end of a range": ({"sigma_space": 4, "sigma_color": 0.1, "guide_range": (0.0,)}, r"guide_range must be \(least, greatest\), 2 numbers"),
    "a number for a range": ({"sigma_space": 4, "sigma_color": 0.1, "guide_range": 5}, "guide_range must be .* got 5"),
    "a number for three": ({"sigma_space": 4, "sigma_color": 0.1, "nodes_per_sigma": 1.0}, r"nodes_per_sigma must be \(z, y, x\), 3 numbers, got 1.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_NUMBERS)
def test_what_is_not_a_number_is_refused(case: str) -> None:
    options, message = NOT_NUMBERS[case]
    with pytest.raises(TypeError, match=message):
        bilagrid.bilateral_filter(IMAGE, **options)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_what_is_not_dense_is_refused() -> None:
    nested = torch.nested.nested_tensor([torch.rand(3, 8, 9), torch.rand(3, 7, 9)])
    for image in (IMAGE.to_sparse(), nested):
        with pytest.raises(TypeError, match=r"image must be a dense \(strided\) tensor"):
            bilagrid.bilateral_filter(image, sigma_space=4, sigma_color=0.1)


def test_a_range_cannot_be_measured_under_vmap() -> None:
    def run(image: Tensor) -> Tensor:
        return bilagrid.bilateral_filter(image[None], sigma_space=4, sigma_color=0.1)

    with pytest.raises(ValueError, match="guide_range must be given where guide cannot be looked at"):
        torch.vmap(run)(IMAGE)


@pytest.mark.parametrize("space", [100.0, 1e4, 1e9])
def test_a_sigma_beyond_the_image_smooths_all_of_it(space: float) -> None:
    """Every pixel weighs every other: written out, since the window of the loops has no end."""
    image = photograph("coins", 40)
    values = numpy64(image).ravel()
    place = np.stack(np.mgrid[:40, :40], -1).reshape(-1, 2)
    distance = ((place[:, None] - place) ** 2).sum(-1) / 2 / space**2
    weight = np.exp(-distance - (values[:, None] - values) ** 2 / 2 / 0.15**2)
    wanted = ((weight @ values) / weight.sum(1)).reshape(image.shape)
    assert psnr(bilagrid.bilateral_filter(image, sigma_space=space, sigma_color=0.15), wanted) >= DECIBELS


def test_other_numbers_are_numbers() -> None:
    wanted = bilagrid.bilateral_filter(IMAGE, sigma_space=4, sigma_color=0.5)
    found = bilagrid.bilateral_filter(IMAGE, sigma_space=np.int64(4), sigma_color=np.float32(0.5))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found, wanted = (bilagrid.tonemap(IMAGE, gamma=gamma) for gamma in (Fraction(5, 2), 2.5))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_refusals_by_shape_and_content() -> None:
    with pytest.raises(ValueError, match="image must have 1 or 3 channels to be its own guide, got 2"):
        bilagrid.bilateral_filter(IMAGE[:, :2], sigma_space=4, sigma_color=0.1)
    with pytest.raises(ValueError, match="guide must have shape"):
        bilagrid.bilateral_filter(IMAGE, IMAGE[:, 0, :4], sigma_space=4, sigma_color=0.1)
    with pytest.raises(ValueError, match=r"guide must be finite .* pass guide_range"):
        bilagrid.bilateral_filter(IMAGE, IMAGE[:, 0] / 0, sigma_space=4, sigma_color=0.1)
    with pytest.raises(ValueError, match="guide_low must have shape"):
        bilagrid.joint_bilateral_upsample(IMAGE, IMAGE[:, 0, :4], IMAGE[:, 0], sigma_space=1, sigma_color=0.1)


@pytest.mark.parametrize(
    "call",
    [
        bilagrid.tonemap,
        lambda image: bilagrid.merge_flash(image, image),
        lambda image: bilagrid.colorize(image, image, image[:, 0] > 0.5),
        lambda image: bilagrid.fit(image, image, size=(2, 2, 2), method="global"),
    ],
    ids=["tonemap", "merge_flash", "colorize", "fit"],
)
def test_fake_tensors_are_not_looked_at(call: Callable[[Tensor], Tensor]) -> None:
    image = torch.rand(1, 3, 6, 7)
    wanted = call(image)
    with FakeTensorMode() as mode:
        found = call(mode.from_tensor(image))
    assert isinstance(found, FakeTensor)
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
