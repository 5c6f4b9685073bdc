"""Local equalisation and flash merging: their formulas in NumPy, on photographs, and what defines them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bilagrid
from tests.helpers import IMAGES, STRIDES, assert_near, device_of, numpy64, off_nodes, psnr, strided
from tests.reference import editing as exact

data = pytest.importorskip(
    "skimage.data", reason="the photographs come with scikit-image: pip install 'bilagrid[images]'"
)

# How far a grid's window is from the Gaussian on these photographs, as a share of its pixels.
WINDOW = 0.015


def photograph(name: str, height: int = 36, width: int = 44, top: int = 120, left: int = 120, step: int = 1) -> Tensor:
    """A part of a photograph, (1, C, height, width), 0 to 1, in float64."""
    pixels = torch.from_numpy(np.atleast_3d(getattr(data, name)()).astype(np.float64)) / 255
    rows, columns = (slice(start, start + step * extent, step) for start, extent in ((top, height), (left, width)))
    return pixels[rows, columns].movedim(-1, 0)[None].contiguous()


def luma(image: np.ndarray) -> np.ndarray:
    """Of (C, H, W)."""
    return image[0] if len(image) == 1 else 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]


# Equalisation


@pytest.mark.parametrize("name", ["camera", "moon", "brick"])
@pytest.mark.parametrize(("space", "bins"), [(4, 64), (6, 256), (12, 32)])
def test_equalisation_lies_within_two_bins_of_the_exact_one(name: str, space: float, bins: int) -> None:
    image = photograph(name)
    values = numpy64(image[0, 0])
    least, most = (exact.share_below(values, space, shift) for shift in (-2 / bins, 2 / bins))
    for dtype in (torch.float64, torch.float32):
        found = bilagrid.equalize_histogram(image.to(dtype), sigma_space=space, bins=bins)
        assert found.dtype == dtype
        assert (numpy64(found[0, 0]) >= least - WINDOW).all()
        assert (numpy64(found[0, 0]) <= most + WINDOW).all()


@pytest.mark.parametrize(("space", "most"), [(5.0, 0.05), (9.0, 0.05), (16.0, 0.02)])
def test_the_window_of_equalisation(space: float, most: float) -> None:
    """Which pixels count how much is read off images of two values, one column each: the sum of the differences bounds what any image can show."""
    extent = math.ceil(4 * space)
    columns = torch.eye(extent, dtype=torch.float64)[:, None, None].expand(-1, 1, 3, -1)
    # The share of a white pixel is a half, and half of what the black column weighs.
    seen = bilagrid.equalize_histogram(1 - columns, sigma_space=space, bins=16)[:, 0, 1]
    found = numpy64(2 * (seen - 0.5) * (1 - columns[:, 0, 1]))
    place = np.arange(extent)
    wanted = np.exp(-((place[:, None] - place) ** 2) / (2 * space**2))
    off = np.abs(found - (wanted / wanted.sum(0)) * (1 - np.eye(extent))).sum(0) / 2
    # Of a window in the plane, twice that of one along a line, at the most.
    assert off.max() <= most / 2


def test_fine_bins_come_near_to_the_exact_one() -> None:
    image = photograph("camera")
    wanted = exact.share_below(numpy64(image[0, 0]), 6)
    assert psnr(bilagrid.equalize_histogram(image, sigma_space=6, bins=255)[0, 0], wanted) > 38
    untouched = psnr(image[0, 0], wanted)
    assert untouched < 20


@pytest.mark.parametrize(("space", "within"), [(math.inf, 1e-6), (1e5, 2e-5)])
def test_a_window_without_end_is_global_equalisation(space: float, within: float) -> None:
    """A photograph of 8 bits has its values on the nodes of 255 bins: then a bin is a value, but for the tent that slices it."""
    image = photograph("coins")
    values = numpy64(image[0, 0])
    ranks = ((values[..., None, None] > values).sum((2, 3)) + (values[..., None, None] >= values).sum((2, 3))) / 2
    found = bilagrid.equalize_histogram(image, sigma_space=space, bins=255)[0, 0]
    np.testing.assert_allclose(numpy64(found), ranks / values.size, rtol=0, atol=within)
    np.testing.assert_allclose(ranks / values.size, exact.share_below(values, 1e9), atol=1e-6)


@pytest.mark.parametrize("limit", [0.5, 2.0, 6.0])
@pytest.mark.parametrize("bins", [32, 100])
def test_clipping(limit: float, bins: int) -> None:
    image = photograph("camera")
    wanted = exact.clipped_share(numpy64(image[0, 0]), bins, limit)
    found = bilagrid.equalize_histogram(image, sigma_space=math.inf, clip_limit=limit, bins=bins)
    np.testing.assert_allclose(numpy64(found[0, 0]), wanted, rtol=0, atol=1e-6)


@given(limit=st.floats(0, 20), space=st.sampled_from([2.0, 9.0, math.inf]), seed=st.integers(0, 2**16))
def test_clipping_limits_the_slope(limit: float, space: float, seed: int) -> None:
    """A column of the photograph is a ramp: what it becomes there, between neighbours of one histogram, rises by no more than the limit and one."""
    image = torch.rand(1, 1, 12, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    options = {"sigma_space": space, "clip_limit": limit, "bins": 64}
    found = bilagrid.equalize_histogram(image, **options)
    if space == math.inf:
        order = image.flatten().argsort()
        rise, run = found.flatten()[order].diff(), image.flatten()[order].diff()
        assert (rise >= -1e-12).all()
        assert (rise <= (limit + 1) * run + 1e-9).all()
    untouched = bilagrid.equalize_histogram(image, **(options | {"clip_limit": 0}))
    torch.testing.assert_close(untouched, image, rtol=0, atol=1e-9)
    unlimited = bilagrid.equalize_histogram(image, **(options | {"clip_limit": 1e9}))
    torch.testing.assert_close(unlimited, bilagrid.equalize_histogram(image, sigma_space=space, bins=64))


def test_faint_detail_in_either_light_comes_out() -> None:
    """What a global equalisation cannot do: two halves of one texture, dark and light, get the same contrast."""
    texture = photograph("brick", 48, 64)
    image = 0.1 * texture + torch.where(torch.arange(64) > 31, 0.8, 0.1)
    found = bilagrid.equalize_histogram(image, sigma_space=6)
    for half in (slice(0, 20), slice(44, 64)):
        assert found[..., half].std() > 8 * image[..., half].std()


def test_colours_keep_hue_and_get_the_luma() -> None:
    image = photograph("coffee", 60, 80)
    found = bilagrid.equalize_histogram(image, sigma_space=8, clip_limit=3)
    assert found.min() >= -1e-12
    assert found.max() <= 1 + 1e-12
    before, after = luma(numpy64(image[0])), luma(numpy64(found[0]))
    gray = bilagrid.equalize_histogram(torch.from_numpy(before)[None, None], sigma_space=8, clip_limit=3)
    np.testing.assert_allclose(after, numpy64(gray[0, 0]), atol=1e-9)
    # Chroma points where it did: no channel changes its order among the three.
    chroma = numpy64(image[0]) - before, numpy64(found[0]) - after
    cosine = (chroma[0] * chroma[1]).sum(0) / np.maximum(
        np.linalg.norm(chroma[0], axis=0) * np.linalg.norm(chroma[1], axis=0), 1e-9
    )
    assert cosine[(np.abs(chroma[0]).max(0) > 0.02) & (np.abs(chroma[1]).max(0) > 0.02)].min() > 1 - 1e-6


def test_value_range_scales_all() -> None:
    image = photograph("camera")
    found = bilagrid.equalize_histogram(image * 100 - 30, sigma_space=5, clip_limit=2, value_range=(-30.0, 70.0))
    wanted = bilagrid.equalize_histogram(image, sigma_space=5, clip_limit=2)
    torch.testing.assert_close((found + 30) / 100, wanted, rtol=0, atol=1e-9)


def test_values_beyond_the_range_count_as_its_ends() -> None:
    image = 3 * photograph("camera") - 1
    found = bilagrid.equalize_histogram(image, sigma_space=5, bins=64)
    assert found.min() >= 0
    assert found.max() <= 1
    # A bin beyond the ends takes what lies farther, so all of it has one value where the window has.
    everywhere = bilagrid.equalize_histogram(image, sigma_space=math.inf, bins=64)
    assert everywhere[image < -0.1].std() < 1e-6


def test_a_pixel_that_is_not_a_number_stays_alone() -> None:
    image = photograph("camera").float()
    image[0, 0, 5, 7] = math.nan
    found = bilagrid.equalize_histogram(image, sigma_space=3)
    assert found.isnan().sum() == 1
    assert found[0, 0, 5, 7].isnan()


# Flash


def flash_pair(name: str, noise: float = 0.06, **part: int) -> tuple[Tensor, Tensor, Tensor]:
    """A photograph with flash, the same by warm light from one side and with noise, and that without: (1, 3, H, W) each, in float64."""
    scene = photograph(name, **part)
    generator = torch.Generator().manual_seed(0)
    height, width = scene.shape[2:]
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    linear = scene**2.2
    truth = (linear * torch.tensor([0.8, 0.58, 0.34])[:, None, None] * (0.6 + 0.4 * x)) ** (1 / 2.2)
    flash = (linear / (1 + 0.8 * (x**2 + y**2)) + truth**2.2 / 8) ** (1 / 2.2)
    noisy = truth + noise * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    return flash.clamp(0, 1), noisy.clamp(0, 1), truth


@pytest.mark.parametrize("exposure", [None, 0.125])
@pytest.mark.parametrize(("lit", "dark"), [(3, 3), (1, 3), (1, 1)])
def test_flash_merge_by_the_exact_filters(exposure: float | None, lit: int, dark: int) -> None:
    flash, noisy, _ = flash_pair("coffee", height=48, width=56)
    flash, noisy = flash[:, :lit], noisy[:, :dark]
    found = bilagrid.merge_flash(flash, noisy, sigma_space=4, sigma_color=0.15, exposure=exposure)
    wanted = exact.merge_flash(numpy64(flash[0]), numpy64(noisy[0]), luma, 4, 0.15, exposure)
    assert psnr(found[0], wanted) > 45


def test_a_gray_picture_takes_the_detail_of_colours() -> None:
    flash, noisy, truth = flash_pair("coffee", height=48, width=56)
    found = bilagrid.merge_flash(flash, noisy[:, 1:2], sigma_space=3)
    assert found.shape == (1, 1, 48, 56)
    assert psnr(found, numpy64(truth[:, 1:2])) > psnr(noisy[:, 1:2], numpy64(truth[:, 1:2])) + 6


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea"])
@pytest.mark.parametrize("noise", [0.03, 0.08])
def test_flash_merge_is_nearer_to_the_truth_than_any_filter_of_the_noisy_picture(name: str, noise: float) -> None:
    flash, noisy, truth = flash_pair(name, noise, height=150, width=150, top=80, left=130)
    clean = numpy64(truth)
    filtered = max(
        psnr(bilagrid.bilateral_filter(noisy, sigma_space=space, sigma_color=color), clean)
        for space in (1, 2, 4, 8)
        for color in (0.05, 0.1, 0.2, 0.4)
    )
    found = psnr(bilagrid.merge_flash(flash, noisy, sigma_space=4), clean)
    assert found > psnr(noisy, clean) + 7
    assert found > filtered + 2


def test_flash_gives_its_detail_and_none_of_its_light() -> None:
    flash, noisy, truth = flash_pair("coffee", 0.04, height=150, width=150, top=80, left=130)
    found = bilagrid.merge_flash(flash, noisy, sigma_space=4)
    # Differences of neighbours: nearer to the truth's than those of a filter that hides the noise.
    smooth = bilagrid.bilateral_filter(noisy, sigma_space=4, sigma_color=0.15)
    detail = [image.diff(1, 3).square().mean().sqrt() for image in (truth, found, smooth)]
    assert detail[1] / detail[0] == pytest.approx(1, abs=0.12)
    assert detail[2] / detail[0] < 0.8
    assert (found.mean((2, 3)) - truth.mean((2, 3))).abs().max() < 0.01


def test_shadows_and_highlights_of_the_flash_stay_out() -> None:
    _, noisy, truth = flash_pair("coffee", 0.03, height=90, width=120, top=80, left=130)
    flash = truth.clone()
    spot, shadow = np.s_[..., 20:30, 20:30], np.s_[..., 50:80, 60:100]
    flash = ((flash**2.2) * 0.1 + 0.5 * photograph("coffee", 90, 120, 80, 130) ** 2.2) ** (1 / 2.2)
    flash[shadow] = (truth**2.2 * 0.1)[shadow] ** (1 / 2.2)
    flash[spot] = 1.0
    known = bilagrid.merge_flash(flash, noisy, sigma_space=4, exposure=0.1)
    # There the result is the filtered picture's own, whatever the flash shows.
    own = bilagrid.bilateral_filter(noisy, sigma_space=4, sigma_color=0.1, guide_range=(0.0, 1.0))
    torch.testing.assert_close(known[spot], own[spot])
    inner = np.s_[..., 54:76, 64:96]
    assert psnr(known[inner], numpy64(own[inner])) > 45
    assert psnr(known[shadow], numpy64(truth[shadow])) > psnr(noisy[shadow], numpy64(truth[shadow]))


# Both


def edits(image: Tensor) -> list[Tensor]:
    return [
        bilagrid.equalize_histogram(image, sigma_space=3, clip_limit=4, bins=64),
        bilagrid.merge_flash(image, image, sigma_space=2, exposure=0.5),
    ]


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_strides(dtype: torch.dtype, strides: str) -> None:
    image = strided(photograph("astronaut", 13, 17).to(dtype), strides)
    for found, wanted in zip(edits(image), edits(image.double().contiguous()), strict=True):
        assert (found.dtype, found.shape) == (dtype, image.shape)
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2 * max(torch.finfo(dtype).eps, 1e-5))


@given(**IMAGES)
def test_any_size_and_each_image_by_itself(height: int, width: int, channels: int, batch: int) -> None:
    images = torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(height))
    for k, found in enumerate(edits(images)):
        assert found.shape == images.shape
        assert found.isfinite().all()
        for n in range(batch):
            torch.testing.assert_close(found[n : n + 1], edits(images[n : n + 1])[k], rtol=0, atol=0)


def test_the_same_bits_for_any_number_of_threads() -> None:
    image = photograph("astronaut", 90, 120).float()
    torch.set_num_threads(1)
    alone = edits(image)
    torch.set_num_threads(2)
    for one, two in zip(alone, edits(image), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_on_every_backend(backend: str) -> None:
    """Small, since the interpreter takes a millisecond for each pixel of a node."""
    image = torch.rand(1, 1, 3, 5)
    there = image.to(device_of(backend))
    wanted = bilagrid.equalize_histogram(image.double(), sigma_space=4, bins=16)
    assert_near(bilagrid.equalize_histogram(there, sigma_space=4, bins=16), wanted, torch.float32)
    options = {"sigma_space": 4.0, "sigma_color": 0.4, "exposure": 0.5}
    wanted = bilagrid.merge_flash(image.double(), image.double() ** 2, **options)
    assert_near(bilagrid.merge_flash(there, there**2, **options), wanted, torch.float32)


def test_vmap() -> None:
    images = photograph("astronaut", 12, 16).float().expand(2, -1, -1, -1)
    for k, found in enumerate(
        torch.vmap(lambda one: torch.stack([edit[0] for edit in edits(one[None])]))(images).unbind(1)
    ):
        torch.testing.assert_close(found, edits(images)[k])


@pytest.mark.parametrize("space", [4.0, math.inf])
def test_exports_with_any_size(space: float) -> None:
    class Edits(torch.nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
            equal = bilagrid.equalize_histogram(image, sigma_space=space, clip_limit=2)
            return equal, bilagrid.merge_flash(image, equal, sigma_space=4, exposure=0.5)

    sizes = {2: torch.export.Dim("height", min=8, max=4096), 3: torch.export.Dim("width", min=8, max=4096)}
    program = torch.export.export(Edits(), (torch.rand(1, 3, 40, 52),), dynamic_shapes=(sizes,)).module()
    image = torch.rand(1, 3, 70, 33)
    for found, wanted in zip(program(image), Edits()(image), strict=True):
        torch.testing.assert_close(found, wanted)


def test_gradients() -> None:
    """On values that keep off the nodes: 32 bins from 0 to 1 put z at 32 v + 1."""
    value = ((off_nodes((1, 1, 4, 5), 4) + 0.5 / 4) / 8 + 0.25).requires_grad_()

    def equalize(value: Tensor) -> Tensor:
        return bilagrid.equalize_histogram(value, sigma_space=2, bins=32, clip_limit=1.3)

    assert torch.autograd.gradcheck(equalize, (value,), fast_mode=True)
    assert torch.autograd.gradgradcheck(equalize, (value,), fast_mode=True)
    generator = torch.Generator().manual_seed(3)
    flash, noisy = (
        (0.2 + 0.6 * torch.rand(1, 1, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(2)
    )

    def merge(flash: Tensor, noisy: Tensor) -> Tensor:
        return bilagrid.merge_flash(flash, noisy, sigma_space=2, sigma_color=0.2, exposure=0.7)

    assert torch.autograd.gradcheck(merge, (flash, noisy), fast_mode=True)
    assert torch.autograd.gradgradcheck(merge, (flash, noisy), fast_mode=True)


IMAGE = torch.rand(1, 3, 8, 9)
REFUSED = {
    "two channels": (bilagrid.equalize_histogram, (IMAGE[:, :2],), {}, ValueError, "image must have 1 or 3 channels to be its own guide, got 2"),
    "no batch": (bilagrid.equalize_histogram, (IMAGE[0],), {}, ValueError, r"image must have shape \(N, C, H, W\)"),
    "whole numbers": (bilagrid.equalize_histogram, (IMAGE.byte(),), {}, TypeError, "image must be float16"),
    "an array": (bilagrid.equalize_histogram, (IMAGE.numpy(),), {}, TypeError, "image must be a torch.Tensor"),
    "no window": (bilagrid.equalize_histogram, (IMAGE,), {"sigma_space": 0}, ValueError, "sigma_space must be .* got 0"),
    "a window that is no number": (bilagrid.equalize_histogram, (IMAGE,), {"sigma_space": math.nan}, ValueError, "sigma_space must be"),
    "a tiny window": (bilagrid.equalize_histogram, (IMAGE,), {"sigma_space": 1e-5}, ValueError, "need a grid of .* raise sigma_space"),
    "few bins": (bilagrid.equalize_histogram, (IMAGE,), {"bins": 3}, ValueError, "bins must be at least 16, got 3"),
    "bins in a tensor of floats": (bilagrid.equalize_histogram, (IMAGE,), {"bins": torch.tensor(64.0)}, TypeError, "bins must be a whole number, got tensor"),
    "a bin that is a flag": (bilagrid.equalize_histogram, (IMAGE,), {"bins": True}, TypeError, "bins must be a whole number, got True"),
    "half a bin": (bilagrid.equalize_histogram, (IMAGE,), {"bins": 64.5}, TypeError, "bins must be a whole number, got 64.5"),
    "a negative limit": (bilagrid.equalize_histogram, (IMAGE,), {"clip_limit": -1}, ValueError, "clip_limit must be a finite number, at least 0, or None, got -1"),
    "a text": (bilagrid.equalize_histogram, (IMAGE,), {"clip_limit": "3"}, TypeError, "clip_limit must be a number, got '3'"),
    "an empty range": (bilagrid.equalize_histogram, (IMAGE,), {"value_range": (1, 1)}, ValueError, r"value_range must be .* got \(1, 1\)"),
    "one end": (bilagrid.equalize_histogram, (IMAGE,), {"value_range": 1}, TypeError, "value_range must be .* 2 numbers, got 1"),
    "flash of another size": (bilagrid.merge_flash, (IMAGE, IMAGE[..., :4]), {}, ValueError, "no_flash must have shape .* to match flash"),
    "flash of two channels": (bilagrid.merge_flash, (IMAGE[:, :2], IMAGE), {}, ValueError, "flash must have 1 or 3 channels, got 2"),
    "no_flash of two": (bilagrid.merge_flash, (IMAGE, IMAGE[:, :2]), {}, ValueError, "no_flash must have 1 or 3 channels, got 2"),
    "8 bits": (bilagrid.merge_flash, (IMAGE, 255 * IMAGE), {}, ValueError, "no_flash must hold values from 0 to 1, got .* divide by their white"),
    "no exposure": (bilagrid.merge_flash, (IMAGE, IMAGE), {"exposure": 0}, ValueError, "exposure must be a finite number above 0, got 0"),
    "no gamma": (bilagrid.merge_flash, (IMAGE, IMAGE), {"gamma": math.nan}, ValueError, "gamma must be"),
    "gamma left out": (bilagrid.merge_flash, (IMAGE, IMAGE), {"gamma": None}, TypeError, "gamma must be a number, got None"),
    "no colour": (bilagrid.merge_flash, (IMAGE, IMAGE), {"sigma_color": -1}, ValueError, "sigma_color must be"),
    "an exposure in words": (bilagrid.merge_flash, (IMAGE, IMAGE), {"exposure": "1/8"}, TypeError, "exposure must be a number, got '1/8'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    function, arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        function(*arguments, **options)
