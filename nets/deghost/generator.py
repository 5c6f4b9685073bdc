"""Brackets of scenes that move, generated from still photographs, with the exact radiance of the middle exposure.

It follows the order of events at a camera: a scene of wide range is lit; between the exposures its objects move, and the camera a little; each exposure gathers
light, is noisy, clips, and is stored in 8, 12 or 16 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from bilagrid import images
from bilagrid.commands import Refusal, pictures_in
from bilagrid.pictures import tensor
from nets.deghost.data import Bracket, Item, tensors
from nets.deghost.radiance import GAMMA

# Memory for photographs that a process keeps at hand, at their own depth.
_KEPT_BYTES = 2**30

# Pixels around a patch from which what moves comes in.
_MARGIN = 16
# The misalignment that is left after aligning by a homography: the typical displacement of a corner, in pixels.
_MISALIGNED = 0.7
# Stops from one exposure to the next: those that cameras offer, and the range of any others.
_STOPS = (1.0, 1.5, 2.0, 2.0, 2.5, 3.0, 3.5)
_RANGE = (0.8, 3.5)
# Standard deviations, in stops, of the difference between an exposure and what it is said to be.
_OFF = (0.0, 0.03, 0.15)
# The shares of brackets of two exposures only, and of brackets of a stage.
_PAIRS, _STAGES = 0.08, 0.35
_MOST_OBJECTS = 4
# Ranges of the variance of shot noise at white and of the deviation of read noise: from base sensitivity in the sun to high sensitivity; and those at night.
_SHOT = (1e-5, 3e-3)
_READ = (1e-4, 1e-2)
_NIGHT = (1e-4, 3e-3), (1e-3, 1e-2)


class Photographs:
    """Photographs, files and folders of them, at their own depth.

    Raises:
        Refusal: none, or one that cannot be read.
    """

    def __init__(self, sources: Sequence[Path]) -> None:
        folders = [pictures_in(source, images.SUFFIXES) if source.is_dir() else [source] for source in sources]
        self._paths = [path for folder in folders for path in folder]
        if not self._paths:
            raise Refusal("--generate needs photographs, got none")
        self.names = [path.stem for path in self._paths]
        largest = max(3 * spec.width * spec.height * spec.format.size() for spec in map(images.probe, self._paths))
        self._read = functools.lru_cache(max(2, _KEPT_BYTES // largest))(lambda k: images.read(self._paths[k]).values)

    def __len__(self) -> int:
        return len(self._paths)

    def tile(self, rng: np.random.Generator, side: int) -> Tensor:
        """A random square of a random photograph, linear: ``(1, 3, side, side)``, enlarged or shrunk by up to 2, or more if the photograph is small."""
        values = self._read(int(rng.integers(len(self))))
        height, width = values.shape[:2]
        extent = min(int(side * 2 ** rng.uniform(-1, 1)), height, width)
        top, left = (int(rng.integers(whole - extent + 1)) for whole in (height, width))
        tile = images.scaled(values[top : top + extent, left : left + extent]) ** np.float32(GAMMA)
        linear = tensor(tile).expand(-1, 3, -1, -1)
        return F.interpolate(linear, size=(side, side), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Generated(Dataset[Item]):
    """An endless list of brackets; item ``i`` depends on ``seed`` and ``i`` alone."""

    photographs: Photographs
    side: int
    seed: int

    def __getitem__(self, item: int) -> Item:
        turns, mirror = _turn(self.seed, item)
        return tensors(self.bracket(item), turns=turns, mirror=mirror)

    def bracket(self, item: int) -> Bracket:
        """Bracket ``item``, ``side`` pixels a side, upright."""
        rng = np.random.default_rng([self.seed, item])
        side = self.side + 2 * _MARGIN
        ev = _exposures(rng)
        white = 2.0 ** -float(ev[1])
        stage = rng.random() < _STAGES
        background = self.photographs.tile(rng, side)
        if stage and rng.random() < 0.5:
            background = _beams(background, int(rng.integers(3, 9)))
        background = _lit(background, rng, white, stage)
        still = rng.random() < 0.25
        views = [background if still or i == 1 else _warped(background, _near_identity(rng, side)) for i in range(3)]
        for _ in range(int(rng.integers(_MOST_OBJECTS + 1))):
            thing = _lit(self.photographs.tile(rng, side), rng, white, stage)
            shape = _blob(rng, side)
            cut = torch.cat([thing * shape, shape], 1)
            for i, place in enumerate(_path(rng, _clipped(views[1], white, rng))):
                moved = _warped(cut, place, border="zeros")
                views[i] = moved[:, :3] + (1 - moved[:, 3:]) * views[i]
        inside = slice(_MARGIN, _MARGIN + self.side)
        scene = torch.cat(views).clamp(0, 1)[..., inside, inside].permute(0, 2, 3, 1).numpy()
        ldr, truth = _photographed(scene, ev, rng, dark=stage), np.ascontiguousarray(scene[1])
        if rng.random() < _PAIRS:
            ldr, ev, truth = _pair(ldr, ev, truth, rng)
        return Bracket(ldr, ev, truth)


def _turn(seed: int, item: int) -> tuple[int, bool]:
    """The quarter turns and mirroring of an item, from random numbers of their own: the upright bracket does not depend on them."""
    rng = np.random.default_rng([seed, item, 1])
    return int(rng.integers(4)), bool(rng.integers(2))


def _pair(
    ldr: np.ndarray, ev: np.ndarray, truth: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A bracket whose shortest or longest exposure is replaced by the middle one, which is how pairs of photographs are merged."""
    if rng.random() < 0.5:
        return ldr[[0, 1, 1]], ev[[0, 1, 1]], truth
    # The middle one is now the shortest, whose white is 1.
    return ldr[[1, 1, 2]], (ev - ev[1]).clip(0), np.minimum(truth * 2 ** ev[1], 1)


def _exposures(rng: np.random.Generator) -> np.ndarray:
    """The three exposures in stops, from 0 on, most often in equal steps."""
    even = rng.random() < 0.7
    steps = np.repeat(rng.choice(_STOPS), 2) if even else rng.uniform(*_RANGE, 2)
    return np.array([0, steps[0], steps[0] + steps[1]], np.float32)


def _lit(linear: Tensor, rng: np.random.Generator, white: float, stage: bool) -> Tensor:
    """A photograph as radiance in [0, 1], with another contrast and colour, under uneven, tinted light. The middle exposure clips what is above ``white``.

    A stage is dark, and its light may be so strongly coloured that one or two channels see nothing of it.
    """
    side = linear.shape[-1]
    grey = linear.mean(1, keepdim=True)
    vivid = float(2 ** (rng.uniform(0, 2.5) if stage else rng.uniform(-1, 1)))
    colour = (grey + vivid * (linear - grey)).clamp(min=0)
    strongest = colour.amax(1).flatten()
    bright = strongest.kthvalue(int(rng.uniform(0.5, 1.0) * strongest.numel())).values.clamp(min=1e-3)
    stops = rng.uniform(-4, 0) if stage or rng.random() < 0.2 else rng.uniform(-0.5, 0.5)
    hue = rng.normal(0, 3.0 if stage else 0.3, 3)
    tint = torch.from_numpy((hue - hue.max()).astype(np.float32))[:, None, None]
    uneven = float(rng.uniform(0, 1.2)) * -float(np.log2(white))
    light = _smooth(rng, side, int(rng.integers(1, 6))) * uneven + tint + float(stops)
    return ((colour / bright) ** float(rng.uniform(0.8, 2.0)) * white * torch.exp2(light)).clamp(0, 1)


def _beams(linear: Tensor, nodes: int) -> Tensor:
    """Beams of light: the picture blurred until it varies only over a ``nodes``-th of its side."""
    return F.interpolate(F.adaptive_avg_pool2d(linear, nodes), size=linear.shape[-2:], mode="bicubic").clamp(min=0)


def _smooth(rng: np.random.Generator, side: int, nodes: int) -> Tensor:
    """A random field ``(1, 1, side, side)`` of mean about 0 and spread about 1 that varies over a ``nodes``-th of the side."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, nodes + 1, nodes + 1)).astype(np.float32))
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)


def _blob(rng: np.random.Generator, side: int) -> Tensor:
    """The shape of an object, ``(1, 1, side, side)`` in [0, 1]: an ellipse in the middle with an uneven outline and a hard or soft edge."""
    axis = torch.linspace(-1, 1, side)
    radii = np.exp(rng.uniform(np.log(0.08), np.log(0.9), 2))
    inside = 1 - torch.hypot(axis[:, None] / float(radii[0]), axis / float(radii[1]))
    outline = inside + float(rng.uniform(0.1, 0.7)) * _smooth(rng, side, int(rng.integers(3, 9)))
    sharp = float(np.exp(rng.uniform(np.log(3), np.log(80))))
    return (0.5 + sharp * outline).clamp(0, 1)


def _clipped(view: Tensor, white: float, rng: np.random.Generator) -> np.ndarray | None:
    """A place (x, y) in [-1, 1] that the middle exposure clips, if there is one."""
    places = (view.amax(1)[0] > white).nonzero()
    if not len(places):
        return None
    return (places[int(rng.integers(len(places)))].flip(0).numpy() * 2 + 1) / view.shape[-1] - 1


def _path(rng: np.random.Generator, clipped: np.ndarray | None) -> list[Tensor]:
    """Where an object is in each exposure: affine maps from places in the picture to places in the object, in [-1, 1].

    About every other object is, in the exposure before or after, at a place that the middle one clips, where another exposure would be needed.
    """
    speed = float(np.exp(rng.uniform(np.log(0.02), np.log(1.2))))
    middle, step = rng.uniform(-0.9, 0.9, 2), rng.normal(0, speed, 2)
    if clipped is not None and rng.random() < 0.5:
        middle = clipped - step * rng.choice([-1, 1])
    angle, turn = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.2)
    maps = []
    for time in (-1, 0, 1):
        # Motion is not quite even.
        at = middle + time * step * rng.uniform(0.5, 1.5)
        phi, size = angle + time * turn, float(np.exp(0.1 * time * rng.normal()))
        rotation = np.array([[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]]) / size
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = rotation, -rotation @ at
        maps.append(torch.from_numpy(matrix))
    return maps


def _near_identity(rng: np.random.Generator, side: int) -> Tensor:
    """A homography that moves corners by about `_MISALIGNED` pixels, sometimes by several times that."""
    reach = _MISALIGNED * float(np.exp(rng.normal(0, 1))) * 2 / side
    return torch.from_numpy(np.eye(3) + rng.normal(0, reach, (3, 3)) * np.array([[1, 1, 1], [1, 1, 1], [0.5, 0.5, 0]]))


def _warped(picture: Tensor, matrix: Tensor, border: str = "reflection") -> Tensor:
    """The picture ``(1, C, S, S)``, read for each pixel where a homography of [-1, 1] sends that."""
    side = picture.shape[-1]
    axis = (torch.arange(side) * 2 + 1) / side - 1
    to = matrix.float()
    places = axis[:, None, None] * to[:, 1] + axis[:, None] * to[:, 0] + to[:, 2]
    grid = places[None, ..., :2] / places[None, ..., 2:]
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode=border, align_corners=False)


def _photographed(scene: np.ndarray, ev: np.ndarray, rng: np.random.Generator, dark: bool) -> np.ndarray:
    """What a camera makes of radiance ``(3, H, W, 3)``: exposure, shot and read noise, clipping, gamma, and 8, 12 or 16 bits; more noise in the dark."""
    # Shutter times are not exact. Radiance is measured by the middle exposure, which therefore has no error.
    error = rng.normal(0, rng.choice(_OFF), 3) * np.array([1, 0, 1])
    gathered = scene * np.exp2(ev + error).astype(np.float32)[:, None, None, None]
    shot, read = (np.float32(np.exp(rng.uniform(*np.log(span)))) for span in (_NIGHT if dark else (_SHOT, _READ)))
    noise = rng.standard_normal(gathered.shape, np.float32) * np.sqrt(shot * gathered + read**2)
    # Some sensors saturate below the white of their files.
    full = rng.uniform(0.9, 1) if rng.random() < 0.25 else 1.0
    encoded = np.clip(gathered + noise, 0, full) ** np.float32(1 / GAMMA)
    bits = int(rng.choice([8, 8, 8, 12, 16]))
    if bits == 12:
        encoded = images.scaled((images.quantised(encoded, np.dtype(np.uint16)) >> 4) * np.uint16(16))
    return images.quantised(encoded, np.dtype(np.uint8 if bits == 8 else np.uint16))
