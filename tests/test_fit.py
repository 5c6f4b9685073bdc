"""`fit` where pixels are masked, noisy, few or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import bilagrid
from bilagrid import fit
from tests.helpers import assert_near, numpy64, psnr
from tests.test_upsample import METHODS, colours, luma, maps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_weight_masks(method: str, garbage: float) -> None:
    image = colours(24, 30)
    target, guide = image.sqrt(), luma(image)[:, 0]
    weight = (torch.arange(24) % 3 > 0)[None, :, None].expand(1, 24, 30).double()
    wanted = fit(image, target, guide, size=(4, 2, 2), weight=weight, method=method)
    if method == "fast":
        noise = torch.where(weight[:, None] > 0, torch.zeros_like(image), garbage)
        torch.testing.assert_close(fit(image, target, guide, size=(4, 2, 2), weight=weight, noise=noise), wanted)
    for tensor in (image, target, guide):
        tensor[..., ::3, :] = garbage
    image.requires_grad_()
    found = fit(image, target, guide, size=(4, 2, 2), weight=weight, method=method)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    masked = fit(image, target, guide, size=(4, 2, 2), weight=weight > 0, method=method)
    torch.testing.assert_close(masked, wanted, rtol=0, atol=0)
    (by_image,) = torch.autograd.grad(found.square().sum(), image)
    assert (by_image[:, :, ::3] == 0).all()
    assert by_image.isfinite().all()


def test_noise_is_a_ridge() -> None:
    """In a grid of one cell, the least squares of pixels and, for each of their channels, a row of the noise's standard deviation whose target is 0."""
    image, guide = colours(40, 50)[:, :2], colours(40, 50)[:, 2]
    target, weight = colours(40, 50)[:, 1:].sqrt(), 0.5 + guide
    noise = 0.05 * colours(80, 50)[:, :2, 40:]
    w = numpy64(weight).ravel()
    terms = np.concatenate([numpy64(image)[0].reshape(2, -1), np.ones((1, w.size))])
    rows = [np.sqrt(w)[:, None] * terms.T]
    for channel in range(2):
        row = np.zeros((w.size, 3))
        row[:, channel] = np.sqrt(w * numpy64(noise)[0, channel].ravel())
        rows.append(row)
    wanted = np.concatenate([np.sqrt(w)[:, None] * numpy64(target)[0].reshape(2, -1).T, np.zeros((2 * w.size, 2))])
    solution = np.linalg.lstsq(np.concatenate(rows), wanted, rcond=None)[0].T
    found = fit(image, target, guide, size=(1, 1, 1), weight=weight, noise=noise)
    # The prior weighs as a tenth of a pixel.
    np.testing.assert_allclose(numpy64(maps(found, 2))[..., 0, 0, 0], solution, atol=2e-3)


def test_noise_is_what_maps_will_meet() -> None:
    """Of two channels that show the same, of which one is noisy at full size: the map is far better there for having been told."""
    clean = colours(64, 64)[:, :1]
    noisy = clean + 0.2 * torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    image, met = torch.cat([clean, clean], 1), torch.cat([noisy, clean], 1)
    noise = torch.tensor([0.04, 0.0], dtype=torch.float64)[None, :, None, None].expand(1, 2, 64, 64)
    guide = clean[:, 0]
    errors = [
        psnr(bilagrid.slice_apply(fit(image, clean, guide, size=(4, 2, 2), noise=told), guide, met), numpy64(clean))
        for told in (None, noise)
    ]
    assert errors[1] > errors[0] + 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_without_any_pixel_the_fit_is_the_identity(method: str, outputs: int) -> None:
    image = torch.rand(1, 3, 9, 11)
    grid = fit(image, image[:, :outputs], size=(4, 2, 2), weight=torch.zeros(1, 9, 11), method=method)
    wanted = torch.eye(3, 4) if outputs == 3 else torch.tensor([1.0, 1, 1, 0]).div(3).expand(outputs, 4)
    assert_near(maps(grid), wanted[:, :, None, None, None].expand_as(maps(grid)))


@pytest.mark.parametrize("method", METHODS)
def test_sparse_cells_stay_near_the_prior(method: str) -> None:
    """A gray image of gain 2 with one red and one blue pixel: what lies beyond the data must not become red or blue."""
    image = 0.3 + 0.1 * torch.rand(1, 1, 32, 32).expand(1, 3, 32, 32).clone()
    image[0, :, 3, 3], image[0, :, 28, 28] = torch.tensor([0.9, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.9])
    grid = fit(image, 2 * image, size=(8, 4, 4), method=method)
    assert grid.isfinite().all()
    assert (maps(grid) - 2 * torch.eye(3, 4)[:, :, None, None, None]).abs().max() < 0.02
    # A colour that was not there once.
    noise = 0.02 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(6))
    grid = fit(image, 2 * image + noise, size=(8, 4, 4), method=method)
    assert (maps(grid)[:, :3].sum(1) - 2).abs().max() < 1
    bright = torch.full((1, 3, 32, 32), 0.95)
    shown = bilagrid.slice_apply(grid, None, bright)
    assert (shown.amax(1) - shown.amin(1)).max() < 0.2


def test_sparse_cells_get_more_of_the_prior() -> None:
    """The same noisy inversion, seen by ever fewer pixels, goes over to the gain times the identity."""
    image = colours(64, 64)
    weights = [1.0, 1e-3, 1e-6]
    grids = [maps(fit(image, 1 - image, size=(1, 1, 1), weight=torch.full((1, 64, 64), w).double())) for w in weights]
    off = [(grid[0, 0] - grid[0, 1]).item() for grid in grids]
    assert off[0] == pytest.approx(-1, abs=0.05)
    assert -1 < off[1] < 0
    gain = ((1 - image) * image).sum() / image.square().sum()
    assert off[2] == pytest.approx(gain.item(), abs=0.05)
