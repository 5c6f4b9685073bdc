"""Colours from strokes: the solve against a dense one, and colours of photographs that come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import bilagrid
from tests.helpers import IMAGES, STRIDES, device_of, numpy64, off_nodes, psnr, strided
from tests.reference import editing as exact

data = pytest.importorskip(
    "skimage.data", reason="the photographs come with scikit-image: pip install 'bilagrid[images]'"
)


def photograph(name: str, step: int = 4) -> Tensor:
    """Every so many-th row and column of a photograph, (1, 3, H, W), 0 to 1, in float64."""
    pixels = torch.from_numpy(getattr(data, name)().astype(np.float64) / 255)
    return pixels[::step, ::step].movedim(-1, 0)[None].contiguous()


def luma(image: Tensor) -> Tensor:
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def strokes(height: int, width: int, number: int = 40, length: int = 14, seed: int = 0) -> Tensor:
    """A mask of short bent lines, (1, height, width)."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(number):
        y, x, angle = generator.uniform((0, 0, 0), (height, width, 2 * np.pi))
        for _ in range(length):
            angle += 0.2 * generator.normal()
            y, x = y + np.sin(angle), x + np.cos(angle)
            if 0 <= y < height and 0 <= x < width:
                mask[int(y), int(x)] = True
    return torch.from_numpy(mask)[None]


def test_by_a_dense_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 7, 9, generator=generator, dtype=torch.float64)
    colours = 0.5 + 0.1 * torch.randn(2, 3, 7, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 7, 9, generator=generator, dtype=torch.float64) - 0.6
    options = {"sigma_space": 2.5, "sigma_color": 0.3, "smoothness": 0.05}
    found = bilagrid.colorize(image, colours, mask, **options)
    chroma = colours - luma(colours)[:, None]
    for n in range(2):
        wanted = exact.spread(numpy64(chroma[n]), numpy64(mask[n].clamp(0)), numpy64(image[n, 0]), *options.values())
        inside = numpy64(image[n]) + wanted
        fits = ((inside > 0) & (inside < 1)).all(0)
        assert fits.mean() > 0.5
        np.testing.assert_allclose(numpy64(found[n])[:, fits], inside[:, fits], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["coffee", "astronaut", "chelsea"])
def test_the_colours_of_a_photograph_come_back(name: str) -> None:
    """From 2 to 4 % of them; nearer than from the nearest stroke, by diffusion without edges, and by Levin's optimisation of every pixel."""
    photo = photograph(name)
    mask = strokes(*photo.shape[2:])
    assert mask.double().mean() < 0.06
    found = bilagrid.colorize(luma(photo)[:, None], photo, mask)
    wanted = numpy64(photo)
    torch.testing.assert_close(luma(found), luma(photo), rtol=0, atol=1e-9)
    ours = psnr(found, wanted)
    assert ours > psnr(luma(photo)[:, None].expand_as(photo), wanted) + 6
    assert ours > psnr(nearest(photo, mask), wanted) + 1
    assert ours > psnr(by_pixels(photo, mask, lambda step: np.ones_like(step)), wanted) + 0.3
    assert ours > psnr(by_pixels(photo, mask, lambda step: np.exp(-((step / 0.02) ** 2)) + 1e-6), wanted)


def recoloured(photo: Tensor, chroma: np.ndarray) -> Tensor:
    return (luma(photo)[:, None] + torch.from_numpy(chroma)[None]).clamp(0, 1)


def nearest(photo: Tensor, mask: Tensor) -> Tensor:
    from scipy import ndimage

    rows, columns = ndimage.distance_transform_edt(~mask[0].numpy(), return_distances=False, return_indices=True)
    return recoloured(photo, numpy64((photo - luma(photo)[:, None])[0])[:, rows, columns])


def by_pixels(photo: Tensor, mask: Tensor, weigh) -> Tensor:
    """Every pixel that is no stroke is the mean of its four neighbours, weighted by the step of luma."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    gray, chroma = numpy64(luma(photo)[0]), numpy64((photo - luma(photo)[:, None])[0])
    index = np.arange(gray.size).reshape(gray.shape)
    known = mask[0].numpy().ravel()
    laplacian = sparse.csr_matrix((gray.size, gray.size))
    for here, there in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        weight = weigh(gray[there] - gray[here]).ravel()
        a, b = index[here].ravel(), index[there].ravel()
        entries = np.concatenate([weight, weight, -weight, -weight])
        places = np.concatenate([a, b, a, b]), np.concatenate([a, b, b, a])
        laplacian = laplacian + sparse.csr_matrix((entries, places), shape=laplacian.shape)
    matrix = sparse.diags((~known).astype(float)) @ laplacian + sparse.diags(known.astype(float))
    solve = splu(matrix.tocsc())
    values = chroma.reshape(3, -1) * known
    return recoloured(photo, np.stack([solve.solve(channel) for channel in values]).reshape(chroma.shape))


def test_strokes_of_one_chroma_colour_all_of_it() -> None:
    photo = photograph("coffee", 8)
    gray = 0.3 + 0.4 * luma(photo)[:, None]
    stroke = torch.tensor([0.6, 0.5, 0.45], dtype=torch.float64)[:, None, None].expand_as(photo)
    mask = strokes(*photo.shape[2:], number=3)
    found = bilagrid.colorize(gray, stroke, mask)
    wanted = gray + stroke - luma(stroke)[:, None]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(bilagrid.colorize(gray.float(), stroke.float(), mask), wanted.float(), rtol=0, atol=1e-4)


def test_an_edge_stops_a_colour_and_a_slope_does_not() -> None:
    """One stroke in each region: a slow ramp of luma takes the colour along, a step does not let it through."""
    ramp = torch.linspace(0.2, 0.45, 60).expand(40, 60)
    gray = torch.cat([ramp, 0.8 * torch.ones(40, 30)], 1)[None, None]
    colours, mask = torch.full((1, 3, 40, 90), 0.5), torch.zeros(1, 40, 90, dtype=torch.bool)
    colours[:, 0, 10:30, 5:8] = 0.6
    colours[:, 2, 10:30, 80:83] = 0.65
    mask[:, 10:30, 5:8] = mask[:, 10:30, 80:83] = True
    found = bilagrid.colorize(gray, colours, mask, sigma_space=2)
    red, blue = found[0, 0] - luma(found)[0], found[0, 2] - luma(found)[0]
    torch.testing.assert_close(red[:, :60], torch.full((40, 60), 0.1 * (1 - 0.299)), rtol=0, atol=0.012)
    torch.testing.assert_close(blue[:, 60:], torch.full((40, 30), 0.15 * (1 - 0.114)), rtol=0, atol=0.012)


def test_colours_that_do_not_fit_lose_saturation_alone() -> None:
    gray = torch.linspace(0, 1, 64).expand(1, 1, 48, 64)
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(1, 3, 48, 64)
    found = bilagrid.colorize(gray, red, torch.ones(1, 48, 64, dtype=torch.bool))
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    torch.testing.assert_close(luma(found), gray[:, 0], rtol=0, atol=1e-6)
    # Where luma is red's own, it is red.
    torch.testing.assert_close(found[0, :, 20, 19], torch.tensor([1.0, 0.0, 0.0]), rtol=0, atol=0.03)
    chroma = found - luma(found)[:, None]
    torch.testing.assert_close(chroma[:, 1], chroma[:, 2], rtol=0, atol=1e-4)


def test_what_is_no_stroke_is_not_read() -> None:
    photo = photograph("coffee", 8)
    mask = strokes(*photo.shape[2:], number=5)
    wanted = bilagrid.colorize(photo, photo, mask)
    for rubbish in (math.nan, math.inf):
        found = bilagrid.colorize(photo, torch.where(mask[:, None], photo, rubbish), mask)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    torch.testing.assert_close(bilagrid.colorize(photo, photo, mask.double()), wanted, rtol=0, atol=0)


def test_a_pixel_that_is_not_a_number_stays_alone() -> None:
    photo = photograph("coffee", 8).float()
    mask = strokes(*photo.shape[2:], number=5)
    gray = luma(photo)[:, None]
    gray[0, 0, 3, 4] = math.nan
    mask[0, 3, 4] = True
    assert bilagrid.colorize(gray, photo, mask)[0].isnan().sum() == 3


@pytest.mark.parametrize(
    ("rubbish", "weight"), [(math.nan, 1.0), (math.inf, 1.0), (0.5, math.inf)], ids=["nan", "inf", "weight"]
)
def test_a_stroke_that_is_not_finite_makes_its_image_nan_and_no_other(rubbish: float, weight: float) -> None:
    photo = photograph("coffee", 8).float()
    mask = strokes(*photo.shape[2:], number=5)[:1]
    row, column = mask[0].nonzero()[0].tolist()
    photos, weights = photo.repeat(2, 1, 1, 1), mask.float().repeat(2, 1, 1)
    photos[0, :, row, column], weights[0, row, column] = rubbish, weight
    found = bilagrid.colorize(photo.repeat(2, 1, 1, 1), photos, weights)
    assert found[0].isnan().all()
    torch.testing.assert_close(found[1:], bilagrid.colorize(photo, photo, mask), rtol=0, atol=0)


def test_strokes_that_contradict_each_other_are_averaged_by_weight() -> None:
    gray = torch.full((1, 1, 16, 16), 0.5, dtype=torch.float64)
    colours = torch.full((1, 3, 16, 16), 0.5, dtype=torch.float64)
    colours[:, 0, :, ::2] = 0.7
    mask = torch.ones(1, 16, 16, dtype=torch.float64)
    mask[..., ::2] = 3
    found = bilagrid.colorize(gray, colours, mask, sigma_space=8, smoothness=1e3)
    torch.testing.assert_close(
        found[0, 0] - luma(found)[0],
        torch.full((16, 16), 0.75 * 0.2 * (1 - 0.299), dtype=torch.float64),
        rtol=0,
        atol=1e-3,
    )


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_strides(dtype: torch.dtype, strides: str) -> None:
    photo = photograph("astronaut", 24)
    mask = strokes(*photo.shape[2:], number=4)
    drawn = strided(photo.to(dtype), strides)
    found = bilagrid.colorize(drawn, drawn, mask)
    assert (found.dtype, found.shape) == (dtype, photo.shape)
    wanted = bilagrid.colorize(drawn.double().contiguous(), drawn.double().contiguous(), mask)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2 * max(torch.finfo(dtype).eps, 1e-4))


@given(**IMAGES)
def test_any_size_and_each_image_by_itself(height: int, width: int, channels: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(height)
    images = torch.rand(batch, channels, height, width, generator=generator)
    colours = torch.rand(batch, 3, height, width, generator=generator)
    mask = torch.rand(batch, height, width, generator=generator) > 0.5
    mask[:, 0, 0] = True
    found = bilagrid.colorize(images, colours, mask)
    assert found.shape == (batch, 3, height, width)
    assert found.isfinite().all()
    for n in range(batch):
        one = slice(n, n + 1)
        torch.testing.assert_close(found[one], bilagrid.colorize(images[one], colours[one], mask[one]), rtol=0, atol=0)


def test_the_same_bits_for_any_number_of_threads() -> None:
    photo = photograph("astronaut").float()
    mask = strokes(*photo.shape[2:])
    torch.set_num_threads(1)
    alone = bilagrid.colorize(photo, photo, mask)
    torch.set_num_threads(2)
    torch.testing.assert_close(bilagrid.colorize(photo, photo, mask), alone, rtol=0, atol=0)


def test_on_every_backend(backend: str) -> None:
    image, colours = torch.rand(1, 1, 4, 5), torch.rand(1, 3, 4, 5)
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[:, ::2, ::2] = True
    options = {"sigma_space": 3.0, "sigma_color": 0.5}
    there = (tensor.to(device_of(backend)) for tensor in (image, colours, mask))
    wanted = bilagrid.colorize(image.double(), colours.double(), mask, **options)
    found = bilagrid.colorize(*there, **options)
    torch.testing.assert_close(found.cpu().double(), wanted, rtol=0, atol=1e-4)


def test_vmap() -> None:
    photos = torch.stack([photograph("astronaut", 24).float(), photograph("astronaut", 24).float().flip(-1)])
    mask = strokes(*photos.shape[3:], number=4)
    found = torch.vmap(lambda photo: bilagrid.colorize(photo, photo, mask))(photos)
    for one, photo in zip(found, photos, strict=True):
        torch.testing.assert_close(one, bilagrid.colorize(photo, photo, mask), rtol=0, atol=1e-4)


def test_gradients() -> None:
    """On luma that keeps off the nodes, which are at multiples of a quarter, and colours that fit."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    image = (off_nodes((1, 1, 4, 5), 2, generator) / 2 + 0.375).requires_grad_()
    colours, mask = (0.5 + 0.05 * draw(1, 3, 4, 5)).requires_grad_(), (0.5 + draw(1, 4, 5)).requires_grad_()

    def run(image: Tensor, colours: Tensor, mask: Tensor) -> Tensor:
        return bilagrid.colorize(image, colours, mask, sigma_space=2.5, sigma_color=0.25, smoothness=0.3)

    z = image.detach() / 0.25
    assert (z - z.round()).abs().min() > 0.05
    assert torch.autograd.gradcheck(run, (image, colours, mask), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (image, colours, mask), fast_mode=True)


def test_gradients_where_colours_do_not_fit() -> None:
    generator = torch.Generator().manual_seed(2)
    image = (off_nodes((1, 1, 4, 5), 2, generator) / 2 + 0.375).requires_grad_()
    colours = torch.rand(1, 3, 4, 5, generator=generator, dtype=torch.float64).mul(2).requires_grad_()
    mask = torch.ones(1, 4, 5, dtype=torch.bool)

    def run(image: Tensor, colours: Tensor) -> Tensor:
        return bilagrid.colorize(image, colours, mask, sigma_space=2.5, sigma_color=0.25, smoothness=0.3)

    assert torch.autograd.gradcheck(run, (image, colours), fast_mode=True)


IMAGE = torch.rand(2, 1, 8, 9)
COLOURS, MASK = torch.rand(2, 3, 8, 9), torch.ones(2, 8, 9, dtype=torch.bool)
ONE = torch.tensor([True, False])[:, None, None] & MASK
REFUSED = {
    "two channels": ((IMAGE.expand(2, 2, 8, 9), COLOURS, MASK), {}, ValueError, "image must have 1 or 3 channels"),
    "gray strokes": ((IMAGE, IMAGE, MASK), {}, ValueError, r"scribbles must have shape \(N, 3, H, W\) = \(2, 3, 8, 9\) to match image"),
    "a mask with channels": ((IMAGE, COLOURS, MASK[:, None]), {}, ValueError, r"mask must have shape \(N, H, W\)"),
    "a mask of another size": ((IMAGE, COLOURS, MASK[:, :4]), {}, ValueError, r"mask must have shape \(N, H, W\) = \(2, 8, 9\)"),
    "a mask in whole numbers": ((IMAGE, COLOURS, MASK.int()), {}, TypeError, "mask must be float16"),
    "no stroke": ((IMAGE, COLOURS, ONE), {}, ValueError, "mask must mark a stroke in every image, got none in image 1 of the batch"),
    "negative weights": ((IMAGE, COLOURS, -MASK.float()), {}, ValueError, "mask must mark a stroke in every image, got none in image 0"),
    "8 bits": ((255 * IMAGE, COLOURS, MASK), {}, ValueError, "image must hold values from 0 to 1, got .* divide by their white"),
    "strokes of 8 bits": ((IMAGE, 255 * COLOURS, MASK), {}, ValueError, "scribbles must hold values from 0 to 1, got .* divide by their white"),
    "no smoothness": ((IMAGE, COLOURS, MASK), {"smoothness": 0}, ValueError, "smoothness must be a finite number above 0, got 0"),
    "no space": ((IMAGE, COLOURS, MASK), {"sigma_space": 0}, ValueError, "sigma_space must be"),
    "a tiny space": ((IMAGE, COLOURS, MASK), {"sigma_space": 1e-5}, ValueError, "need a grid of"),
    "colour in words": ((IMAGE, COLOURS, MASK), {"sigma_color": "0.1"}, TypeError, "sigma_color must be a number, got '0.1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    arguments, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        bilagrid.colorize(*arguments, **options)
