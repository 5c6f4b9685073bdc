"""Scenes of three exposures and the radiance of the middle one, in folders laid out as the published data sets are."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import OpenImageIO as oiio  # noqa: N813 -- its own documentation names it so
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bilagrid import images
from bilagrid.commands import Refusal, count
from bilagrid.pictures import dimensions, upright_size
from nets.deghost import align as alignment
from nets.deghost.bracket import FARTHEST
from nets.deghost.radiance import GAMMA

# Memory for scenes that a process keeps at hand, at their own depth: all of Kalantari's 74.
_KEPT_BYTES = 4 * 2**30

# The gamma of NTIRE's exposures and truth.
_NTIRE_GAMMA = 2.24

# Exposures, ev, and the radiance of the middle one: what a network is trained on.
Item = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Layout:
    """What the files of a scene are called. If all begin with ``*``, that stands for the scene's own name."""

    name: str
    frames: tuple[str, ...]
    exposures: str
    truth: str
    ratio: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.frames, self.exposures, self.truth, *((self.ratio,) if self.ratio else ()))

    def __str__(self) -> str:
        three = ", ".join(self.frames) if len(self.frames) == 3 else f"three {self.frames[0]}"
        return f"{self.name} ({', '.join((three, *self.parts[len(self.frames) :]))})"


LAYOUTS = (
    Layout("Wu", ("input_?_aligned.tif",), "input_exp.txt", "ref_hdr_aligned.hdr"),
    Layout("Challenge123", ("ldr_img_?.tif",), "exposure.txt", "hdr_img.hdr"),
    Layout("Kalantari and SCTNet", ("*.tif",), "exposure.txt", "HDRImg.hdr"),
    Layout("NTIRE 2021 by folders", ("[012].png",), "exposures.npy", "gt.png", "alignratio.npy"),
    Layout("NTIRE 2021", ("*_short.png", "*_medium.png", "*_long.png"), "*_exposures.npy", "*_gt.png", "*_alignratio.npy"),
)  # fmt: skip


@dataclass(frozen=True)
class Bracket:
    """Three exposures ``(3, H, W, 3)`` at the depth of their files, from the shortest on, their ``ev`` from 0 on, and the ``truth``: radiance ``(H, W, 3)``.

    Their pixels to the power of ``exponent`` are encoded by gamma 2.2. ``valid (3, H, W)`` says where they show the scene; None means everywhere.
    """

    ldr: np.ndarray
    ev: np.ndarray
    truth: np.ndarray
    exponent: float = 1.0
    valid: np.ndarray | None = None

    def pixels(self, rows: slice = slice(None), columns: slice = slice(None)) -> np.ndarray:
        """The exposures of a window, ``(3, h, w, 3)`` in [0, 1], encoded by gamma 2.2."""
        values = images.scaled(self.ldr[:, rows, columns])
        return values if self.exponent == 1 else values ** np.float32(self.exponent)

    def aligned(self, method: str) -> Bracket:
        """The same with its exposures aligned to the middle one (`nets.deghost.align.align`), as floats."""
        if method == "none":
            return self
        found = alignment.align(self.pixels(), self.ev, 1, method)
        return replace(self, ldr=found.ldr, valid=found.valid, exponent=1.0)


@dataclass(frozen=True)
class Scene:
    """The files of one scene."""

    name: str
    layout: Layout
    frames: tuple[Path, ...]
    exposures: Path
    truth: Path
    ratio: Path | None

    def ev(self) -> np.ndarray:
        """The three exposures in stops, as they lie in the file.

        Raises:
            Refusal: not three finite numbers, or two that are equal.
        """
        try:
            if self.exposures.suffix == ".npy":
                values = np.load(self.exposures, allow_pickle=False).astype(np.float64).ravel()
            else:
                values = np.array([float(word) for word in self.exposures.read_text().split()])
        except (ValueError, EOFError, OSError, UnicodeDecodeError) as error:
            raise Refusal(f"{self.exposures}: expected three exposures in stops: {error}") from None
        if values.shape != (3,) or not np.isfinite(values).all():
            raise Refusal(f"{self.exposures}: expected three exposures in stops, got {_listed(values)}")
        if len(set(values)) < 3:
            raise Refusal(f"{self.exposures}: expected three different exposures, got {_listed(values)}")
        if np.ptp(values) > FARTHEST:
            raise Refusal(f"{self.exposures}: expected exposures within {FARTHEST:.0f} stops, got {_listed(values)}")
        return values

    def size(self) -> tuple[int, int]:
        """(H, W) of all its pictures, from their headers.

        Raises:
            Refusal: a picture that cannot be read, or is not as large as the first.
        """
        first, *others = ((path, _size(path)) for path in (*self.frames, self.truth))
        for path, size in others:
            if size != first[1]:
                raise Refusal(
                    f"{path}: must be as large as {first[0].name}, {dimensions(first[1])}, is {dimensions(size)}"
                )
        return first[1]

    def load(self) -> Bracket:
        """The scene, from the shortest exposure to the longest."""
        ev = self.ev()
        order = np.argsort(ev)
        ldr = np.stack([_colour(self.frames[i]) for i in order])
        ev = (ev[order] - ev.min()).astype(np.float32)
        if self.ratio is None:
            return Bracket(ldr, ev, radiance(self.truth))
        try:
            ratio = float(np.load(self.ratio, allow_pickle=False))
        except (ValueError, TypeError, EOFError, OSError) as error:
            raise Refusal(f"{self.ratio}: expected one number: {error}") from None
        if not 0 < ratio < np.inf:
            raise Refusal(f"{self.ratio}: expected a number above 0, got {ratio}")
        # NTIRE's truth is encoded like a picture of the middle exposure. What is too bright even for the shortest is set to its white.
        linear = (_colour(self.truth).astype(np.float64) / ratio) ** _NTIRE_GAMMA / 2.0 ** ev[1]
        return Bracket(ldr, ev, np.minimum(linear, 1).astype(np.float32), _NTIRE_GAMMA / GAMMA)


class Scenes:
    """All scenes in folders and their subfolders, each in one of the `LAYOUTS`.

    Args:
        sources: the folders.
        align: how exposures are aligned to the middle one: the ``method`` of `nets.deghost.align.align`.

    Raises:
        Refusal: folders without a scene, scenes without all of their files, pictures that differ in size, exposures that are not three different numbers.
    """

    def __init__(self, sources: Sequence[Path], align: str = "none") -> None:
        self._align = align
        self._scenes = [scene for source in sources for scene in scenes_in(source)]
        self.names = [scene.name for scene in self._scenes]
        for scene in self._scenes:
            scene.ev()
        self.sizes = [scene.size() for scene in self._scenes]
        # A value of an exposure takes two bytes, one of the truth four.
        largest = max(30 * height * width for height, width in self.sizes)
        self._read = functools.lru_cache(max(2, _KEPT_BYTES // largest))(self._load)

    def __len__(self) -> int:
        return len(self.names)

    def bracket(self, k: int) -> Bracket:
        """Scene k, whole."""
        return self._read(k)

    def _load(self, k: int) -> Bracket:
        bracket = self._scenes[k].load()
        aligned = bracket.aligned(self._align)
        if aligned is bracket:
            return bracket
        return replace(aligned, ldr=images.quantised(aligned.ldr, np.dtype(np.uint16)))

    def preload(self) -> None:
        """Reads as many scenes as are kept in memory, all if they fit."""
        for k in range(min(len(self), self._read.cache_parameters()["maxsize"])):
            self._read(k)


@dataclass(frozen=True)
class Patches(Dataset[Item]):
    """An endless list of random patches of scenes, mirrored and turned; item ``i`` depends on ``seed`` and ``i`` alone."""

    scenes: Scenes
    side: int
    seed: int

    def __getitem__(self, item: int) -> Item:
        rng = np.random.default_rng([self.seed, item])
        k = int(rng.integers(len(self.scenes)))
        top, left = (int(rng.integers(extent - self.side + 1)) for extent in self.scenes.sizes[k])
        window = slice(top, top + self.side), slice(left, left + self.side)
        return tensors(self.scenes.bracket(k), *window, turns=int(rng.integers(4)), mirror=bool(rng.integers(2)))


def tensors(
    bracket: Bracket,
    rows: slice = slice(None),
    columns: slice = slice(None),
    *,
    turns: int = 0,
    mirror: bool = False,
) -> Item:
    """A window of a bracket, turned by quarters and mirrored: ``ldr (3, 3, h, w)``, ``ev (3,)``, ``truth (3, h, w)``."""

    def arranged(values: np.ndarray) -> Tensor:
        values = np.rot90(values, turns, (-3, -2))
        values = values[..., ::-1, :] if mirror else values
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(values, -1, -3)))

    return arranged(bracket.pixels(rows, columns)), torch.from_numpy(bracket.ev), arranged(bracket.truth[rows, columns])


def scenes_in(source: Path) -> list[Scene]:
    """The scenes of a folder and of all folders in it, by name.

    Raises:
        Refusal: no such folder, none in it, or one that lacks files.
    """
    if not source.is_dir():
        raise Refusal(f"{source}: no such folder")
    folders = [source, *sorted(path for path in source.rglob("*") if path.is_dir())]
    found = [scene for folder in folders for scene in _scenes_of(folder, source)]
    if not found:
        expected = "; ".join(str(layout) for layout in LAYOUTS)
        raise Refusal(f"{source}: holds no scenes; expected folders laid out as one of: {expected}")
    return found


def radiance(path: Path) -> np.ndarray:
    """The radiance ``(H, W, 3)`` in a float file, as it is.

    Raises:
        Refusal: a file that cannot be read, is not colour, or holds values that are negative or not finite.
    """
    file = _open(path)
    try:
        spec = file.spec()
        values = file.read_image(oiio.FLOAT)
        fault = file.geterror()
    finally:
        file.close()
    if values is None or fault:
        raise Refusal(f"{path}: cannot be read: {' '.join(fault.split()) or 'the file is damaged or truncated'}")
    values = np.asarray(values, np.float32).reshape(spec.height, spec.width, spec.nchannels)
    if spec.nchannels != 3:
        raise Refusal(f"{path}: must hold 3 channels of radiance, holds {spec.nchannels}")
    if not np.isfinite(values).all() or (values < 0).any():
        raise Refusal(f"{path}: holds radiance that is negative or not finite")
    return values


def _scenes_of(folder: Path, source: Path) -> Iterator[Scene]:
    """The scenes whose files lie in a folder itself."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    partial: list[tuple[int, str]] = []
    complete = False
    for layout in LAYOUTS:
        for stem in _stems(layout, names):
            matches = [[name for name in names if _matches(name, part, layout, stem)] for part in layout.parts]
            frames = [name for match in matches[: len(layout.frames)] for name in match]
            rest = matches[len(layout.frames) :]
            if len(frames) == 3 and all(rest):
                exposures, truth, *ratio = (folder / match[0] for match in rest)
                name = str(folder.relative_to(source)) if folder != source else folder.resolve().name
                name = f"{name}/{stem}" if stem else name
                paths = tuple(folder / frame for frame in frames)
                yield Scene(name, layout, paths, exposures, truth, ratio[0] if ratio else None)
                complete = True
            elif any(rest) or len(frames) == 3:
                missing = [part for part, match in zip(layout.parts, matches, strict=True) if not match]
                holds = f"lacks {', '.join(missing)}" if missing else f"has {count(len(frames), 'exposure')}"
                message = f"{folder}: {f'scene {stem} ' if stem else ''}{holds}; expected {layout}"
                partial.append((len(missing), message))
    if partial and not complete:
        raise Refusal(min(partial, key=lambda found: found[0])[1])


def _stems(layout: Layout, names: Sequence[str]) -> list[str]:
    """The names of a folder's scenes, with which their files' names begin; one empty name in a layout with a folder for each scene."""
    if not layout.exposures.startswith("*"):
        return [""]
    ends = [part.removeprefix("*") for part in layout.parts]
    return sorted({name.removesuffix(end) for name in names for end in ends if name.endswith(end)})


def _matches(name: str, part: str, layout: Layout, stem: str) -> bool:
    return name == stem + part.removeprefix("*") if stem else Path(name).match(part)


def _colour(path: Path) -> np.ndarray:
    """Values (H, W, 3) of a picture at its own depth."""
    values = images.read(path).values
    if values.shape[2] != 3:
        raise Refusal(f"{path}: must be a colour picture, is gray")
    return values


def _size(path: Path) -> tuple[int, int]:
    """(H, W) from the header."""
    if path.suffix.lower() in images.SUFFIXES:
        return upright_size(path)
    file = _open(path)
    spec = file.spec()
    file.close()
    return spec.height, spec.width


def _open(path: Path) -> Any:
    file = oiio.ImageInput.open(str(path))
    if file is None:
        raise Refusal(f"{path}: cannot be read: {' '.join(oiio.geterror().split()) or 'not an image'}")
    return file


def _listed(values: np.ndarray) -> str:
    return f"{', '.join(f'{value:g}' for value in values[:5])}{', ...' if len(values) > 5 else ''}" or "none"
