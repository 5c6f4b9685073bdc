"""The camera's response: finds what light each pixel value stands for, and encodes photographs anew by a plain gamma, as the merges expect them."""

from __future__ import annotations

import cv2
import numpy as np

from bilagrid.commands import Refusal
from nets.deghost.radiance import GAMMA

_SAMPLES = 16  # a curve is found from the square of that many pixels
_CANDIDATES = 40_000
_BINS = 16  # of brightness, from which pixels are drawn evenly
_SMOOTHNESS = 100.0
_ROUNDS = 3  # of finding the curve and leaving out the pixels that disagree with it
_FEWEST = 30
# The values at either end that are extrapolated, and those whose gamma they continue.
_DARK = slice(0, 16), slice(16, 48)
_BRIGHT = slice(232, 256), slice(200, 232)


def calibrate(ldr: np.ndarray, ev: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The inverse response by which the exposures agree best, where they show the same thing.

    There is one for all three channels, as cameras have it, so that what is gray stays gray. Pixels are drawn evenly over the brightness, from flat places that
    only grow brighter with exposure. Moving things are left out: by the curve found so far they disagree more than the others.

    Args:
        ldr: ``(K, H, W, 3)`` in [0, 1], aligned, as the camera encoded them, from the shortest exposure on.
        ev: ``(K,)``, their log2 exposures.
        valid: ``(K, H, W)``, where each shows the scene.

    Returns:
        ``(256,)``, the light of each 8-bit value, rising from 0 to 1.

    Raises:
        Refusal: too few pixels that stand still.

    Source: Debevec and Malik, "Recovering high dynamic range radiance maps from photographs", SIGGRAPH 1997, as OpenCV has it.
    """
    times = (2.0 ** (ev - ev.min())).astype(np.float32)
    pixels = _still(ldr, valid)
    generator = np.random.default_rng(0)
    curve = np.linspace(0, 1, 256) ** GAMMA
    for _ in range(_ROUNDS):
        if pixels.shape[1] < _FEWEST:
            raise Refusal(
                f"the camera's response cannot be found: {pixels.shape[1]} pixels stand still over the exposures, expected at least {_FEWEST}; use "
                "--response gamma"
            )
        disagreement = _disagreement(pixels, ev, curve)
        pixels = pixels[:, disagreement <= max(2.5 * float(np.median(disagreement)), 0.02)]
        curve = _fit(_drawn(pixels, generator), times)
    return curve


def linearised(ldr: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """Photographs ``(..., 3)`` in [0, 1] encoded anew by gamma 2.2: the light of the curve to the power of 1 / 2.2."""
    return np.interp(ldr, np.linspace(0, 1, 256), curve ** (1 / GAMMA)).astype(np.float32)


def _still(ldr: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Pixels ``(K, n, 3)`` of 8 bits that grow brighter with exposure, among the flattest, which noise and misalignment change least."""
    height, width = ldr.shape[1:3]
    step = max(int(np.sqrt(height * width / _CANDIDATES)), 1)
    # Smoothed before it is sampled, so that a pixel stands for its place.
    smooth = np.stack([cv2.blur(picture, (3, 3))[::step, ::step] for picture in ldr])
    rough = sum(cv2.Laplacian(picture[..., 1], cv2.CV_32F)[::step, ::step] ** 2 for picture in ldr)
    rising = (np.diff(smooth, axis=0) > -1 / 255).all((0, 3))
    inside = ((smooth[..., 1] > 4 / 255) & (smooth[..., 1] < 250 / 255)).sum(0) >= 2
    usable = rising & inside & valid[:, ::step, ::step].all(0)
    if usable.any():
        usable &= rough <= np.quantile(rough[usable], 0.6)
    return smooth[:, usable] * 255


def _disagreement(pixels: np.ndarray, ev: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """By how many decades exposures disagree on the light of each pixel, in green, by the curve, where two in a row see it well."""
    green = pixels[..., 1]
    light = np.log10(np.maximum(np.interp(green, np.arange(256), curve), 1e-6)) - np.log10(2) * ev[:, None]
    well = (green > 8) & (green < 247)
    apart = np.abs(np.diff(light, axis=0)) * (well[1:] & well[:-1])
    return apart.max(0)


def _drawn(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many pixels as a fit takes, evenly over the brightness of the middle exposure."""
    middle = pixels[len(pixels) // 2, :, 1]
    bins = np.digitize(middle, np.linspace(0, 255, _BINS + 1)[1:-1])
    counts = np.bincount(bins, minlength=_BINS)
    chosen = generator.choice(
        pixels.shape[1],
        _SAMPLES**2,
        replace=pixels.shape[1] < _SAMPLES**2,
        p=(1 / counts[bins]) / (1 / counts[bins]).sum(),
    )
    return pixels[:, chosen]


def _fit(pixels: np.ndarray, times: np.ndarray) -> np.ndarray:
    square = np.rint(pixels).astype(np.uint8).reshape(len(pixels), _SAMPLES, _SAMPLES, 3)
    curves = cv2.createCalibrateDebevec(_SAMPLES**2, _SMOOTHNESS, False).process([*square], times)[:, 0]
    log = np.log(np.maximum(curves.astype(np.float64), 1e-12)).mean(1)
    values = np.log(np.maximum(np.arange(256), 0.5))
    # Few pixels tell of the ends, and with little weight: these continue the gamma of what is next to them.
    for end, inner in (_DARK, _BRIGHT):
        slope, offset = np.polyfit(values[inner], log[inner], 1)
        log[end] = slope * values[end] + offset
    curve = np.maximum.accumulate(np.exp(log))
    curve[0] = 0
    return curve / curve[-1]
