"""Photographs of one scene in several exposures, as a camera that moves would take them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pictures import data, save

cv2 = pytest.importorskip("cv2")

GAMMA = 2.2


def radiance(name: str = "astronaut") -> np.ndarray:
    """Of a photograph, a quarter of its light at white."""
    return (getattr(data, name)().astype(np.float64) / 255) ** GAMMA


def exposed(light: np.ndarray, stops: float, camera=lambda x: x ** (1 / GAMMA)) -> np.ndarray:
    """As a camera stores it: clipped, encoded and rounded to 8 bits."""
    return np.rint(camera(np.clip(light * 2.0**stops, 0, 1)) * 255).astype(np.uint8)


def exposures(light: np.ndarray, ev=(-2, 0, 2), **options) -> np.ndarray:
    return np.stack([exposed(light, stops, **options) for stops in ev]).astype(np.float32) / 255


def taken(folder, light=None, stops=(-2.0, 0.0, 2.0), suffix="jpg", exif=True, iso=100, aperture=8.0):
    """Photographs with the EXIF of a camera whose middle exposure takes 1/100 s."""
    light = radiance()[:120, :160] if light is None else light
    facts = lambda ev: {"ExposureTime": 0.01 * 2**ev, "FNumber": aperture, "Exif:PhotographicSensitivity": iso}  # noqa: E731
    return [
        save(folder / f"{k}.{suffix}", exposed(light, ev), **(facts(ev) if exif else {})) for k, ev in enumerate(stops)
    ]


MATRIX = np.array([[1.01, 0.02, 6.3], [-0.015, 0.995, -4.2], [2e-5, -1e-5, 1.0]])


def moved(light: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The scene seen by a camera in which a pixel p of the first one lies at ``matrix @ p``."""
    return cv2.warpPerspective(light, matrix, light.shape[1::-1], flags=cv2.INTER_CUBIC).clip(0, 1)
