"""Pictures as tensors: between the order of files, (H, W, C), and that of operators, (1, C, H, W); and what commands do with one or many files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bilagrid import commands, images
from bilagrid.commands import Refusal
from bilagrid.ops._luma import own_guide


def tensor(pixels: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """``(H, W, C)`` as ``(1, C, H, W)``."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].to(device)


def array(values: Tensor) -> np.ndarray:
    """``(1, C, H, W)`` as ``(H, W, C)``."""
    return values[0].permute(1, 2, 0).cpu().numpy()


def luma(picture: images.Picture) -> Tensor:
    """``(1, H, W)``: a gray picture itself, else its BT.601 luma, the filters' own guide."""
    return own_guide("picture", tensor(picture.pixels))


def upright_size(path: Path) -> tuple[int, int]:
    """``(H, W)`` of a picture as `images.read` gives it, from its header alone."""
    spec = images.probe(path)
    is_turned = spec.get_int_attribute("Orientation", 1) >= 5
    return (spec.width, spec.height) if is_turned else (spec.height, spec.width)


def dimensions(size: tuple[int, int]) -> str:
    """``WIDTHxHEIGHT`` of a size ``(H, W)``."""
    return f"{size[1]}x{size[0]}"


def check_positive(**options: float | None) -> None:
    """Refuses options that are given and not finite numbers above 0."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise Refusal(f"--{name.replace('_', '-')} must be a number above 0, got {value:g}")


def refuse_radiance(source: Path, picture: images.Picture) -> None:
    """Refuses a picture of float values that are not all in [0, 1]."""
    if picture.dtype != np.float32:
        return
    least, most = picture.values.min(), picture.values.max()
    if least < 0 or most > 1:
        raise Refusal(
            f"{source}: holds values from {least:g} to {most:g}, expected 0 to 1; to make a picture of it: python -m bilagrid tonemap {source} OUT.tif"
        )


def each(
    command: str,
    paths: Sequence[Path],
    process: Callable[[Path, images.Picture], np.ndarray],
    *,
    read_too: Sequence[Path] = (),
    overwrite: bool,
    skip_existing: bool,
) -> None:
    """Writes what ``process`` makes of each picture, with that one's depth, alpha and metadata. The last of the paths is the file or folder to write to."""

    def do(source: Path, target: Path) -> None:
        picture = images.read(source)
        images.check_target(target, picture.spec)
        result = process(source, picture)
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, result, picture, alpha=picture.alpha)

    commands.each_file(
        command, paths, do, images.SUFFIXES, read_too=read_too, overwrite=overwrite, skip_existing=skip_existing
    )
