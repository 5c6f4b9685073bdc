"""What HDRNet is trained and measured on: pairs of pictures in folders, or photographs with an operator applied on the fly."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bilagrid import images
from bilagrid.commands import Refusal, count, pictures_in
from bilagrid.pictures import dimensions, upright_size
from nets.hdrnet.operators import Operator

# (H, W, 3) each, at the depth of their files; `images.scaled` gives pixels.
Pair = tuple[np.ndarray, np.ndarray]

# Memory for pictures that a process keeps at hand, at their own depth.
_KEPT_BYTES = 2**30


class Pairs:
    """Folders ``input`` and ``output`` with files of the same names, suffixes aside. The two pictures of a pair have one size.

    Raises:
        Refusal: files without a partner, partners of different sizes, files that are not pictures.
    """

    def __init__(self, folder: Path) -> None:
        sides = folder / "input", folder / "output"
        if folder.exists() and not any(side.exists() for side in sides):
            raise Refusal(f"{folder}: holds no folders input and output; photographs alone need --operator or --look")
        before, after = map(_by_name, sides)
        alone = sorted(before.keys() ^ after.keys())
        if alone:
            raise Refusal(
                f"{folder}: input and output must hold the same names, {count(len(alone), 'file')} of {len(before)} and {len(after)} "
                f"{'has' if len(alone) == 1 else 'have'} no partner: {', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''}"
            )
        self.names = sorted(before)
        self._paths = [(before[name], after[name]) for name in self.names]
        self.sizes = [upright_size(path) for path, _ in self._paths]
        for (path, partner), size in zip(self._paths, self.sizes, strict=True):
            if upright_size(partner) != size:
                raise Refusal(
                    f"{partner}: must be as large as {path}, {dimensions(size)}, is {dimensions(upright_size(partner))}"
                )
        self._read = functools.lru_cache(_kept(self.sizes))(self._load)

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, k: int, variant: int = 0) -> Pair:
        """Pair k, before and after; it has only one variant."""
        return self._read(k)

    def _load(self, k: int) -> Pair:
        before, after = self._paths[k]
        return colour(before), colour(after)

    variants = 1


class Photographs:
    """Photographs, from files and folders, and an operator that is applied to each as a whole.

    Each has a number of ``variants``. The first is the photograph itself; the others are changed in exposure, gamma and white balance before the operator, so
    that few photographs teach more.
    """

    def __init__(self, sources: Sequence[Path], operator: Operator, variants: int = 1) -> None:
        folders = [pictures_in(source, images.SUFFIXES) if source.is_dir() else [source] for source in sources]
        self._paths = [path for folder in folders for path in folder]
        self.names = [path.stem for path in self._paths]
        self.sizes = [upright_size(path) for path in self._paths]
        self.variants = variants
        self._operator = operator
        self._made = functools.lru_cache(_kept(self.sizes))(self._make)

    def __len__(self) -> int:
        return len(self.names)

    def pair(self, k: int, variant: int = 0) -> Pair:
        """Photograph k, before and after the operator."""
        return self._made(k, variant)

    def _make(self, k: int, variant: int) -> Pair:
        pixels = images.scaled(colour(self._paths[k])).clip(0, 1)
        if variant:
            rng = np.random.default_rng([k, variant])
            gain = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.08, 3)).astype(np.float32)
            pixels = np.clip(pixels ** np.float32(np.exp(rng.normal(0, 0.3))) * gain, 0, 1)
        sixteen = np.dtype(np.uint16)
        return images.quantised(pixels, sixteen), images.quantised(self._operator(pixels), sixteen)


Source = Pairs | Photographs


@dataclass(frozen=True)
class Crops(Dataset[tuple[Tensor, Tensor]]):
    """An endless list of random crops at full resolution, turned and mirrored; item ``i`` depends on ``seed`` and ``i`` alone."""

    source: Source
    side: int
    seed: int

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self.seed, item])
        k = int(rng.integers(len(self.source)))
        pair = self.source.pair(k, int(rng.integers(self.source.variants)))
        height, width = pair[0].shape[:2]
        top, left = (int(rng.integers(extent - self.side + 1)) for extent in (height, width))
        turns, mirror = int(rng.integers(4)), bool(rng.integers(2))

        def cut(values: np.ndarray) -> Tensor:
            tile = np.rot90(images.scaled(values[top : top + self.side, left : left + self.side]), turns)
            tile = tile[:, ::-1] if mirror else tile
            return torch.from_numpy(tile.transpose(2, 0, 1).copy())

        return cut(pair[0]), cut(pair[1])


def _by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder by their names, suffixes aside."""
    named: dict[str, Path] = {}
    for path in pictures_in(folder, images.SUFFIXES):
        if path.stem in named:
            raise Refusal(f"{named[path.stem]} and {path}: have one name, suffixes aside; pairs are found by it")
        named[path.stem] = path
    return named


def colour(path: Path) -> np.ndarray:
    """Values (H, W, 3) of a file, gray repeated."""
    values = images.read(path).values
    return values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)


def _kept(sizes: Sequence[tuple[int, int]]) -> int:
    """How many pairs of 16 bits fit in the memory that is kept for them."""
    return max(2, _KEPT_BYTES // max(12 * height * width for height, width in sizes))
