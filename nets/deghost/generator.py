"""Brackets of scenes that move, made of any still photographs, with the exact radiance of the middle exposure.

What a camera would do is done in its order: a scene of wide range is lit, its objects move between the exposures and the camera by a little, and each exposure
gathers light, is noisy, clips, and is stored in 8 bits.
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
from nets.deghost.data import Bracket, Item, tensors
from nets.deghost.radiance import GAMMA

# Memory for photographs that a process keeps at hand, at their own depth.
_KEPT_BYTES = 2**30

# Pixels around a patch from which what moves comes in.
_MARGIN = 16
# What homographies of a static scene leave over: typical displacement of a corner, in pixels.
_MISALIGNED = 0.7
_STOPS = (1.0, 1.5, 2.0, 2.5, 3.0)
_MOST_OBJECTS = 3


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
        """A random square of a random photograph, linear: ``(1, 3, side, side)``, at its own size or shrunk by up to 2, enlarged only where it is smaller."""
        values = self._read(int(rng.integers(len(self))))
        height, width = values.shape[:2]
        extent = min(int(side * rng.uniform(1, 2)), height, width)
        top, left = (int(rng.integers(whole - extent + 1)) for whole in (height, width))
        tile = images.scaled(values[top : top + extent, left : left + extent]) ** np.float32(GAMMA)
        linear = torch.from_numpy(tile).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
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
        step = float(rng.choice(_STOPS))
        ev = np.array([0, step, 2 * step], np.float32)
        background = _lit(self.photographs.tile(rng, side), rng, step)
        views = [_warped(background, _near_identity(rng, side)), background, _warped(background, _near_identity(rng, side))]  # fmt: skip
        for _ in range(int(rng.integers(_MOST_OBJECTS + 1))):
            thing = _lit(self.photographs.tile(rng, side), rng, step)
            shape = _blob(rng, side)
            cut = torch.cat([thing * shape, shape], 1)
            for i, place in enumerate(_path(rng)):
                moved = _warped(cut, place, border="zeros")
                views[i] = moved[:, :3] + (1 - moved[:, 3:]) * views[i]
        inside = slice(_MARGIN, _MARGIN + self.side)
        scene = torch.cat(views).clamp(0, 1)[..., inside, inside].permute(0, 2, 3, 1).numpy()
        return Bracket(_photographed(scene, ev, rng), ev, np.ascontiguousarray(scene[1]))


def _turn(seed: int, item: int) -> tuple[int, bool]:
    """Quarter turns and mirroring of an item: from a stream of their own, so that a bracket is the same upright."""
    rng = np.random.default_rng([seed, item, 1])
    return int(rng.integers(4)), bool(rng.integers(2))


def _lit(linear: Tensor, rng: np.random.Generator, step: float) -> Tensor:
    """Radiance in [0, 1] of which the middle exposure clips some: a photograph with its contrast raised, under uneven light."""
    side = linear.shape[-1]
    strongest = linear.amax(1).flatten()
    bright = strongest.kthvalue(int(rng.uniform(0.6, 1.0) * strongest.numel())).values.clamp(min=1e-3)
    radiance = (linear / bright) ** float(rng.uniform(1.0, 1.8))
    light = _smooth(rng, side, int(rng.integers(2, 5))) * float(rng.uniform(0, 1.2)) * step
    return (radiance * 2.0**-step * torch.exp2(light)).clamp(0, 1)


def _smooth(rng: np.random.Generator, side: int, nodes: int) -> Tensor:
    """A random field ``(1, 1, side, side)`` of mean about 0 and spread about 1 that varies over a ``nodes``-th of the side."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, nodes + 1, nodes + 1)).astype(np.float32))
    return F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)


def _blob(rng: np.random.Generator, side: int) -> Tensor:
    """The shape of an object, ``(1, 1, side, side)`` in [0, 1]: an ellipse about the middle whose outline is uneven, its edge hard or soft."""
    axis = torch.linspace(-1, 1, side)
    radii = rng.uniform(0.12, 0.6, 2)
    inside = 1 - torch.hypot(axis[:, None] / float(radii[0]), axis / float(radii[1]))
    outline = inside + 0.25 * _smooth(rng, side, int(rng.integers(3, 9)))
    sharp = float(np.exp(rng.uniform(np.log(4), np.log(60))))
    return (0.5 + sharp * outline).clamp(0, 1)


def _path(rng: np.random.Generator) -> list[Tensor]:
    """Where an object is in each exposure: affine maps from places in the picture to places in the object, in [-1, 1]."""
    middle, step = rng.uniform(-0.8, 0.8, 2), rng.normal(0, 0.25, 2)
    angle, turn = rng.uniform(-np.pi, np.pi), rng.normal(0, 0.15)
    maps = []
    for time in (-1, 0, 1):
        # Nothing moves quite evenly.
        at = middle + time * step * rng.uniform(0.5, 1.5)
        phi, size = angle + time * turn, float(np.exp(0.1 * time * rng.normal()))
        rotation = np.array([[np.cos(phi), -np.sin(phi)], [np.sin(phi), np.cos(phi)]]) / size
        matrix = np.eye(3)
        matrix[:2, :2], matrix[:2, 2] = rotation, -rotation @ at
        maps.append(torch.from_numpy(matrix))
    return maps


def _near_identity(rng: np.random.Generator, side: int) -> Tensor:
    """A homography that moves corners by about `_MISALIGNED` pixels, now and then by several."""
    reach = _MISALIGNED * float(np.exp(rng.normal(0, 0.8))) * 2 / side
    return torch.from_numpy(np.eye(3) + rng.normal(0, reach, (3, 3)) * np.array([[1, 1, 1], [1, 1, 1], [0.5, 0.5, 0]]))


def _warped(picture: Tensor, matrix: Tensor, border: str = "reflection") -> Tensor:
    """``(1, C, S, S)``, each place read where the homography of [-1, 1] sends it."""
    side = picture.shape[-1]
    axis = (torch.arange(side, dtype=torch.float64) * 2 + 1) / side - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ matrix.T
    grid = (places[..., :2] / places[..., 2:]).float()[None]
    return F.grid_sample(picture, grid, mode="bilinear", padding_mode=border, align_corners=False)


def _photographed(scene: np.ndarray, ev: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera makes of radiance ``(3, H, W, 3)``: shot and read noise, clipping, gamma and 8 bits."""
    gathered = scene * np.exp2(ev)[:, None, None, None]
    shot, read = np.exp(rng.uniform(np.log(1e-5), np.log(1e-3))), np.exp(rng.uniform(np.log(2e-4), np.log(4e-3)))
    noise = rng.standard_normal(gathered.shape, np.float32) * np.sqrt(shot * gathered + read**2).astype(np.float32)
    return images.quantised(np.clip(gathered + noise, 0, 1) ** (1 / GAMMA), np.dtype(np.uint8))
