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
    total, weight = net / 0.03**2, np.full_like(net, 1 / 0.03**2)
    for k in range(3):
        encoded, gain = ldr[k].astype(np.float64), 4.0**-k
        light = encoded**2.2 * gain
        apart = mean(np.abs(mean(law(light) - net, 3)), 5).max(-1, keepdims=True)
        room = np.clip((0.97 - encoded.max(-1, keepdims=True)) / 0.17, 0, 1)
        slope = 5000 / np.log(5001) / (1 + 5000 * light) * 2.2 * np.maximum(encoded, 0.02) ** 1.2 * gain
        certainty = np.exp(-((apart / 0.06) ** 2)) * room * valid[k, ..., None] / ((slope * noises[k]) ** 2 + 1e-6)
        total += certainty * law(light)
        weight += certainty
    return (5001 ** (total / weight) - 1) / 5000


def test_is_its_formula(monkeypatch):
    """Also strip by strip."""
    light = scene()[60:84, 90:112]
    ldr = taken(light, 0.01)
    valid = np.random.default_rng(1).random((3, 24, 22)) < 0.8
    net = unsharp(light)
    wanted = loops(net, ldr, valid, [detail._noise(exposure) for exposure in ldr])
    found = detailed(net, ldr, EV, valid)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-6)
    monkeypatch.setattr(detail, "_STRIP", 7)
    np.testing.assert_array_equal(detailed(net, ldr, EV, valid), found)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_sharpens_what_stands_still(noise):
    light = scene()
    found = detailed(unsharp(light), taken(light, noise), EV)
    assert error(found, light) < (0.7 if noise == 0 else 0.9) * error(unsharp(light), light)


def test_noise_of_the_exposures_makes_nothing_worse():
    """Of a network as good as it is taken for, whose errors are of another kind."""
    light = scene() / 30
    wrong = cv2.GaussianBlur(np.random.default_rng(2).standard_normal(light.shape), (0, 0), 4)
    seen = np.log1p(5000 * light) / np.log(5001) + 0.03 * wrong / wrong.std()
    net = (np.expm1(seen.clip(0, 1) * np.log(5001)) / 5000).astype(np.float32)
    assert error(detailed(net, taken(light, 0.05), EV), light) < 0.9 * error(net, light)


def test_what_moved_is_left_out():
    """A thing that one exposure shows elsewhere leaves no trace where it was, and stays where the network has it."""
    light = scene()
    other = light.copy()
    other[60:140, 80:180] = scene("astronaut")[:80, :100]
    ldr = taken(light)
    ldr[2] = taken(other)[2]
    inside = np.s_[70:130, 90:170]
    without = detailed(unsharp(light), taken(light)[:2], EV[:2])
    assert error(detailed(unsharp(light), ldr, EV), light, inside) < 1.5 * error(without, light, inside)


def test_only_what_is_shown_counts():
    light = scene()
    ldr = taken(light)
    nothing = np.zeros((3, *light.shape[:2]), bool)
    np.testing.assert_allclose(detailed(unsharp(light), ldr, EV, nothing), unsharp(light), rtol=1e-3, atol=1e-6)


def test_black_and_white_stay_finite():
    for value in (0.0, 1.0):
        flat = np.full((3, 5, 4, 3), value, np.float32)
        found = detailed(flat[0], flat, EV)
        np.testing.assert_allclose(found, value, atol=1e-5)


def test_example():
    tried, failed = run_examples(detailed, "detailed", detail)
    assert tried > 0
    assert failed == 0
