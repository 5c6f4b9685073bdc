"""What knows nothing of motion: the camera's response, the merge by Debevec and Malik, and Mertens' fusion."""

from __future__ import annotations

import numpy as np
import pytest

from tests.brackets import GAMMA, exposures, radiance  # isort: skip -- it skips where packages are missing

from bilagrid.commands import Refusal
from nets.deghost import classical, response


def film(light: np.ndarray) -> np.ndarray:
    """A response that is no gamma: contrast at the ends is lower."""
    return 1.1 * light**0.45 - 0.1 * light**1.2


@pytest.mark.parametrize("moving", [False, True])
def test_the_response_is_found(moving):
    """Better than gamma knows it, from 8-bit photographs, also where a fifth of the picture moves."""
    ldr = exposures(radiance() * 0.9 + 0.002, camera=film)
    if moving:
        ldr[0, 100:330, 100:330] = ldr[0, 250:480, 250:480].copy()
    curve = response.calibrate(ldr, np.array([0.0, 2.0, 4.0]), np.ones(ldr.shape[:3], bool))
    assert curve.shape == (256,)
    assert (np.diff(curve) >= 0).all()
    np.testing.assert_allclose(curve[[0, -1]], [0, 1], atol=1e-12)
    values, light = np.linspace(0, 1, 256), np.linspace(0, 1, 4001)
    truth = np.interp(values, film(light), light) ** (1 / GAMMA)
    error = np.abs(curve ** (1 / GAMMA) - truth)[8:]
    assert error.max() < np.abs(values - truth).max()
    assert error.mean() < 0.5 * np.abs(values - truth)[8:].mean()


def test_linearised_photographs_are_encoded_by_gamma():
    light = radiance()[:60, :80]
    values = np.linspace(0, 1, 256)
    grid = np.linspace(0, 1, 4001)
    curve = np.interp(values, film(grid), grid)
    found = response.linearised(exposures(light, [0.0], camera=film)[0], curve)
    np.testing.assert_allclose(found, light ** (1 / GAMMA), atol=0.02)
    assert found.dtype == np.float32


def test_no_response_from_pictures_that_share_nothing():
    ldr = np.random.default_rng(0).random((3, 40, 50, 3)).astype(np.float32)
    ldr = -np.sort(-ldr, axis=0)
    with pytest.raises(Refusal, match=r"response cannot be found: .* use --response gamma"):
        response.calibrate(ldr, np.array([0.0, 2.0, 4.0]), np.ones(ldr.shape[:3], bool))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_debevec_recovers_the_radiance(order):
    light = radiance()
    ldr, ev = exposures(light, (0, 2, 4))[list(order)], np.array([-3.0, -1.0, 1.0])[list(order)]
    found = classical.debevec(ldr, ev)
    assert found.dtype == np.float32
    assert found.shape == light.shape
    # Half a step of 8 bits, at white.
    np.testing.assert_allclose(found, light, atol=1.1 / 255)
    # In the dark the longest exposure has steps that are 16 times finer.
    dark = light < 1 / 32
    assert np.abs(found - light)[dark].max() < 1.1 / 255 / 8


def test_debevec_one_pixel_by_its_formula():
    values, ev = np.array([0.3, 0.6, 0.9]), np.array([-1.0, 0.0, 1.5])
    weight = 1 - np.abs(2 * values - 1)
    wanted = (weight * values**1.8 / 2 ** (ev + 1)).sum() / weight.sum()
    found = classical.debevec(values[:, None, None, None] * np.ones((1, 2, 2, 3)), ev, gamma=1.8)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_debevec_where_nothing_is_exposed_well():
    ev = np.array([0.0, 2.0, 4.0])
    assert (classical.debevec(np.ones((3, 2, 2, 3)), ev) == 1).all()
    assert (classical.debevec(np.zeros((3, 2, 2, 3)), ev) == 0).all()
    # White in the longer ones is white in neither sense where the shortest does not show it.
    valid = np.ones((3, 2, 2), bool)
    valid[0] = False
    np.testing.assert_allclose(classical.debevec(np.ones((3, 2, 2, 3)), ev, valid=valid), 1 / 4)
    assert (classical.debevec(np.ones((3, 2, 2, 3)), ev, valid=np.zeros((3, 2, 2), bool)) == 1).all()


def test_mertens_evens_out_what_each_exposure_shows():
    """Of a picture whose light falls off, the quarter that is exposed worst is better than in any one exposure."""
    ldr = exposures(radiance() * np.linspace(0.02, 1, 512)[:, None, None], (0, 2, 4))
    found = classical.mertens(ldr)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    fused, *single = (
        max(abs(picture[top : top + 128].mean() - 0.5) for top in range(0, 512, 128)) for picture in (found, *ldr)
    )
    assert fused < min(single)


@pytest.mark.parametrize(
    ("shape", "ev", "message"),
    [
        ((3, 4, 4), [0, 1, 2], r"ldr must have shape \(K, H, W, 3\)"),
        ((1, 4, 4, 3), [0], "with K at least 2"),
        ((2, 4, 4, 3), [0, 1, 2], "ev must be 2 finite numbers"),
        ((2, 4, 4, 3), [0, np.nan], "ev must be 2 finite numbers"),
    ],
)
def test_merges_refuse_other_shapes(shape, ev, message):
    with pytest.raises(ValueError, match=message):
        classical.debevec(np.zeros(shape), np.array(ev, np.float64))
