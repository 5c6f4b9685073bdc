"""Detail that a network's radiance gets from exposures, on photographs whose radiance is known."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pictures import data
from tests.test_docs import run as run_examples

cv2 = pytest.importorskip("cv2")

from nets.deghost import detail  # noqa: E402
from nets.deghost.detail import detailed  # noqa: E402

EV = np.array([-3.0, -1.0, 1.0])


def scene(name: str = "coffee") -> np.ndarray:
    """Radiance of which the middle exposure clips a little and the longest much."""
    return ((getattr(data, name)()[:200, :260] / 255.0) ** 2.2).astype(np.float32) * 0.5


def taken(light: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    exposures = np.stack([np.clip(light * 4.0**i, 0, 1) ** (1 / 2.2) for i in range(3)])
    noisy = exposures + noise * generator.standard_normal(exposures.shape)
    return (np.rint(np.clip(noisy, 0, 1) * 255) / 255).astype(np.float32)


def unsharp(light: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(light, (0, 0), 0.8)


def error(found: np.ndarray, light: np.ndarray, where=np.s_[:]) -> float:
    seen, expected = (np.log1p(5000 * values.astype(np.float64)) / np.log(5001) for values in (found, light))
    return float(np.sqrt(np.square(seen - expected)[where].mean()))


def loops(radiance: np.ndarray, ldr: np.ndarray, valid: np.ndarray, noises: list[float]) -> np.ndarray:
    """Pixel by pixel and in float64, with the windows written out."""
    law = lambda h: np.log(1 + 5000 * h) / np.log(5001)  # noqa: E731
    height, width = radiance.shape[:2]
    mirrored = lambda i, n: -i if i < 0 else 2 * n - 2 - i if i >= n else i  # noqa: E731

    def mean(values, size):
        out = np.zeros_like(values)
        reach = range(-(size // 2), size // 2 + 1)
        for y in range(height):
            for x in range(width):
                out[y, x] = np.mean([values[mirrored(y + i, height), mirrored(x + j, width)] for i in reach for j in reach], 0)  # fmt: skip
        return out

    net = law(radiance.astype(np.float64))
    total = weight = 0
    for k in range(3):
        encoded, gain = ldr[k].astype(np.float64), 4.0**-k
        light = encoded**2.2 * gain
        apart = mean(np.abs(mean(law(light) - net, 3)), 5)
        room = np.clip((0.97 - encoded) / 0.17, 0, 1) * valid[k, ..., None]
        slope = 5000 / np.log(5001) / (1 + 5000 * light) * 2.2 * np.maximum(encoded, 0.02) ** 1.2 * gain
        deviation = slope * noises[k]
        agrees = np.exp(-((np.where(room > 0, apart, 0).max(-1, keepdims=True) / 0.06) ** 2))
        if k == 1:
            least = np.where((encoded >= 0.8) & valid[k, ..., None], law(light), 0)
            believed = (1 - room + room * np.exp(-(apart**2) / 4 / (0.03**2 + deviation**2))) / 0.03**2
            agrees = 1
        certainty = agrees * room / (deviation**2 + 1e-6)
        if k == 1:
            corrected = net.copy()
            for y, x, c in np.ndindex(net.shape):
                sure = certainty[y, x] / (certainty[y, x] + 1 / 0.03**2)
                alike = sure * np.exp(-(((law(light[y, x]) - law(light[y, x, c])) / 0.03) ** 2))
                lack = np.sum(alike * (law(light[y, x]) - net[y, x])) / (np.sum(alike) + 0.1)
                corrected[y, x, c] += (1 - room[y, x, c]) * lack
        total += certainty * law(light)
        weight += certainty
    mean_of_all = (total + believed * corrected) / (weight + believed)
    return (5001 ** np.maximum(mean_of_all, least) - 1) / 5000


def test_is_its_formula(monkeypatch):
    """Also strip by strip."""
    light = scene()[60:84, 90:112]
    ldr = taken(light, 0.01)
    valid = np.random.default_rng(1).random((3, 24, 22)) < 0.8
    net = unsharp(light)
    wanted = loops(net, ldr, valid, [detail._noise(exposure) for exposure in ldr])
    found = detailed(net, ldr, EV, 1, valid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-6)
    monkeypatch.setattr(detail, "_STRIP", 7)
    np.testing.assert_array_equal(detailed(net, ldr, EV, 1, valid), found)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_sharpens_what_stands_still(noise):
    light = scene()
    found = detailed(unsharp(light), taken(light, noise), EV, 1)
    assert error(found, light) < (0.7 if noise == 0 else 0.9) * error(unsharp(light), light)


def test_noise_of_the_exposures_makes_nothing_worse():
    """Of a network as good as it is taken for, whose errors are of another kind."""
    light = scene() / 30
    wrong = cv2.GaussianBlur(np.random.default_rng(2).standard_normal(light.shape), (0, 0), 4)
    seen = np.log1p(5000 * light) / np.log(5001) + 0.03 * wrong / wrong.std()
    net = (np.expm1(seen.clip(0, 1) * np.log(5001)) / 5000).astype(np.float32)
    assert error(detailed(net, taken(light, 0.05), EV, 1), light) < 0.9 * error(net, light)


def test_what_moved_is_left_out():
    """A thing that one exposure shows elsewhere leaves no trace where it was, and stays where the network has it."""
    light = scene()
    other = light.copy()
    other[60:140, 80:180] = scene("astronaut")[:80, :100]
    ldr = taken(light)
    ldr[2] = taken(other)[2]
    inside = np.s_[70:130, 90:170]
    without = detailed(unsharp(light), taken(light)[:2], EV[:2], 1)
    assert error(detailed(unsharp(light), ldr, EV, 1), light, inside) < 1.5 * error(without, light, inside)


def test_the_middle_exposure_is_believed_against_the_network():
    """Where it is well exposed, however wrong the network is; and where it is white, the radiance is no less than that."""
    light = scene()
    ldr = taken(light)
    ldr[[0, 2]] = taken(scene("astronaut") / 30)[[0, 2]]
    found = detailed(np.full_like(light, 0.5), ldr, EV, 1)
    inside = (ldr[1] > 0.1) & (ldr[1] < 0.7)
    assert error(found, light, inside) < 0.01
    bright = np.ones((20, 24, 3), np.float32)
    np.testing.assert_allclose(
        detailed(0.01 * bright, np.stack([0.3 * bright, bright, bright]), EV, 1), 0.25, rtol=1e-5
    )


def test_channels_that_are_white_hide_nothing_of_the_others():
    """Under coloured light one channel of an exposure clips, and the others know as much as before."""
    light = scene() * np.array([1, 1, 0], np.float32) + np.array([0, 0, 0.9], np.float32)
    net = unsharp(light)
    found = detailed(net, taken(light), EV, 1)
    green = np.s_[..., 1]
    assert error(found, light, green) < 0.7 * error(net, light, green)


def test_a_network_that_is_too_bright_colours_nothing():
    """Nearly white in the middle exposure, and white in two of its channels; the others show nothing."""
    ldr = np.zeros((3, 12, 14, 3), np.float32)
    ldr[1] = np.array([0.99, 0.94, 0.99])
    valid = np.zeros((3, 12, 14), bool)
    valid[1] = True
    found = detailed(np.full((12, 14, 3), 0.45, np.float32), ldr, EV, 1, valid)
    assert (found.max(-1) / found.min(-1)).max() < 1.2


def test_only_what_is_shown_counts():
    light = scene()
    ldr = taken(light)
    nothing = np.zeros((3, *light.shape[:2]), bool)
    np.testing.assert_allclose(detailed(unsharp(light), ldr, EV, 1, nothing), unsharp(light), rtol=1e-3, atol=1e-6)


def test_black_and_white_stay_finite():
    for value in (0.0, 1.0):
        flat = np.full((3, 5, 4, 3), value, np.float32)
        found = detailed(flat[0], flat, EV, 1)
        np.testing.assert_allclose(found, value, atol=1e-5)


def test_example():
    tried, failed = run_examples(detailed, "detailed", detail)
    assert tried > 0
    assert failed == 0
