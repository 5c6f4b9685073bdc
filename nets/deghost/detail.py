"""Adds detail to a network's radiance, from the exposures that agree with it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from nets.deghost.radiance import GAMMA, MU, compressed

_CERTAIN = 0.03  # the assumed standard deviation of a network's T(H)
_FLOOR = 1e-3  # the least standard deviation of an exposure's, by its alignment
_FULL = (0.8, 0.97)  # encoded values between which an exposure ceases to count
_LEAST_NOISE = 0.7 / 255
_DARKEST = 0.02  # encoded value below which noise is taken to be as it is there
_ALIKE = 0.03  # difference of T(H) at which two channels cease to be alike
_HARDLY = 0.1  # weight of channels below which they tell nothing
_SEEN = 100  # the least number of pixels from which noise is estimated
_STRIP, _HALO = 512, 4  # rows that are computed at once, and rows beyond them that the windows reach
_KERNEL = np.array(
    [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32
)  # blind to edges and slopes; its squares sum to 36


def detailed(
    radiance: np.ndarray, ldr: np.ndarray, ev: np.ndarray, middle: int, valid: np.ndarray | None = None
) -> np.ndarray:
    """Sharpens and corrects a network's radiance by the exposures that agree with it, each weighed by its noise::

        T(H) = (b T(H_net) / s² + sum_i r_i c_i T(H_i) / s_i²) / (b / s² + sum_i r_i c_i / s_i²)
        c_i = exp(-(d_i / 2s)²), of the middle exposure 1,   b = 1 - r_m (1 - exp(-d_m² / 4(s² + s_m²))), m the middle one

    where T is the μ-law, s the deviation of the network's T(H), and s_i that of T(H_i) by the exposure's noise. r_i in [0, 1] says how far the exposure is from
    white. d_i is how far T(H_i) and T(H_net) are apart around a pixel: for the middle exposure in each channel, for another in the worst channel that is not white.

    So the network says which exposures show the scene as the middle one saw it, and fills in where none does; ghosts are left out as far as the network knows
    them. The middle exposure counts without the network's consent: where they differ, the network is believed only as far as noise explains it, and where the
    middle one is nearly white, H is at least what that shows. In a channel that is white there, T(H_net) is first corrected by its error in channels that are
    about as bright and not white, so that a network that is wrong in all of them does not cause a false colour.

    Args:
        radiance: ``(H, W, 3)`` in [0, 1], where 1 is white in the shortest exposure.
        ldr: ``(K, H, W, 3)`` in [0, 1], aligned, encoded by gamma.
        ev: ``(K,)``, log2 exposures, from any zero.
        middle: the exposure that the others are aligned to.
        valid: ``(K, H, W)``, where each exposure shows the scene; by default everywhere.

    Returns:
        ``(H, W, 3)`` float32 in [0, 1].

    Example:
        >>> light = np.linspace(0.01, 0.2, 64, dtype=np.float32)[:, None, None] * np.ones((1, 64, 3), np.float32)
        >>> ldr = np.stack([light, 4 * light]) ** (1 / 2.2)
        >>> bool(np.abs(detailed(light * 1.03, ldr, np.array([0.0, 2.0]), middle=1) - light).mean() < 0.3 * 0.03 * light.mean())
        True
    """
    gains = 2.0 ** (ev.min() - np.asarray(ev, np.float64))
    noises = [_noise(np.asarray(exposure, np.float32)) for exposure in ldr]
    shown = np.ones(ldr.shape[:3], bool) if valid is None else valid
    result = np.empty(radiance.shape, np.float32)
    height = len(radiance)
    for top in range(0, height, _STRIP):
        first, bottom = max(top - _HALO, 0), min(top + _STRIP, height)
        rows = slice(first, min(bottom + _HALO, height))
        strip = _mean(np.asarray(radiance[rows], np.float32), ldr[:, rows], shown[:, rows], gains, noises, middle)
        result[top:bottom] = strip[top - first : bottom - first]
    return result


def _mean(
    radiance: np.ndarray, ldr: np.ndarray, shown: np.ndarray, gains: np.ndarray, noises: list[float], middle: int
) -> np.ndarray:
    net = compressed(radiance)
    total, weight, least = (np.zeros_like(net) for _ in range(3))
    believed, corrected = np.ones_like(net), net
    for i, (exposure, here, gain, noise) in enumerate(zip(ldr, shown, gains, noises, strict=True)):
        encoded = np.clip(np.asarray(exposure, np.float32), 0, 1)
        light = encoded ** np.float32(GAMMA) * np.float32(gain)
        seen = compressed(light)
        # By the slopes of the gamma and of the μ-law.
        slope = np.maximum(encoded, _DARKEST) ** np.float32(GAMMA - 1) / (1 + np.float32(MU) * light)
        deviation = slope * np.float32(GAMMA * gain * MU / math.log1p(MU) * noise)
        room = np.clip((_FULL[1] - encoded) / (_FULL[1] - _FULL[0]), 0, 1) * here[..., None]
        certainty = room / (deviation**2 + np.float32(_FLOOR**2))
        # Smoothed twice: before, against noise; after, so that what disagrees takes its surroundings along.
        apart = cv2.blur(np.abs(cv2.blur(seen - net, (3, 3))), (5, 5))
        if i == middle:
            believed -= room * (1 - np.exp(-(apart**2) / (4 * (np.float32(_CERTAIN**2) + deviation**2))))
            corrected = net + (1 - room) * _error_of_like_channels(net, seen, certainty)
            least = np.where((encoded >= _FULL[0]) & here[..., None], seen, least)
        else:
            apart = (apart * (room > 0)).max(-1, keepdims=True)
            certainty *= np.exp(-((apart / (2 * _CERTAIN)) ** 2))
        total += certainty * seen
        weight += certainty
    believed /= np.float32(_CERTAIN**2)
    seen = np.maximum((total + believed * corrected) / (weight + believed), least)
    return np.clip(np.expm1(seen * np.float32(math.log1p(MU))) / np.float32(MU), 0, 1)


def _error_of_like_channels(net: np.ndarray, seen: np.ndarray, certainty: np.ndarray) -> np.ndarray:
    """What the network's T(H) lacks in each channel, judged by the channels in which the middle exposure shows about the same and is certain."""
    told = certainty / (certainty + np.float32(1 / _CERTAIN**2))
    lacks = []
    for c in range(3):
        alike = told * np.exp(-(((seen - seen[..., c : c + 1]) / _ALIKE) ** 2))
        lacks.append((alike * (seen - net)).sum(-1) / (alike.sum(-1) + _HARDLY))
    return np.stack(lacks, -1)


def _noise(encoded: np.ndarray) -> float:
    """The standard deviation of a photograph's noise, from the median of what no slope or edge explains."""
    unexplained = cv2.filter2D(encoded, -1, _KERNEL)
    inside = (encoded > _DARKEST) & (encoded < _FULL[1])
    if inside.sum() < _SEEN:
        return _LEAST_NOISE
    return max(float(np.median(np.abs(unexplained[inside]))) / 0.6745 / 6, _LEAST_NOISE)
