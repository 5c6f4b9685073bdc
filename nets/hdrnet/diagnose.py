"""``python -m nets.hdrnet diagnose``: from pairs alone, before any training, whether what was done to them is in reach of an HDRNet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import tyro

from bilagrid import images
from bilagrid.commands import Refusal, count
from bilagrid.pictures import array, tensor
from nets.devices import device_of
from nets.hdrnet.data import Source
from nets.hdrnet.evaluate import fitted, global_affine, measure
from nets.hdrnet.train import Look, OperatorName, source_of
from nets.tables import render

# Larger pictures are shrunk to this longer side: what a grid misses depends on how many pixels a cell has.
_SIDE = 640

# A bound between the oracle's mean PSNR for operators that HDRNets learned (tone 51, shadows 55, contrast 45, CLAHE 42 dB) and that for haze added (34) or taken
# away (36), colours for gray pictures (34), sharpening (27) and mattes (17), on photographs of this size.
_WITHIN_REACH = 38.0

# The mean difference of the channels from their own mean below which a picture is gray, and above which it is colourful.
_GRAY, _COLOURFUL = 0.005, 0.02


def diagnose(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...]")],
    *,
    operator: OperatorName | None = None,
    learn_look: Annotated[Look, tyro.conf.arg(name="look")] = None,
    luma_bins: int = 8,
    spatial_bins: int = 16,
    device: str = "auto",
) -> None:
    """Tell from pairs alone whether an HDRNet can learn what was done to them.

    An HDRNet maps colours affinely, by a map that varies smoothly over the picture and with brightness. Here the best such maps are fitted to each pair
    itself (oracle): what they miss, no training can find. Haze, matting and colorisation are out of reach; curves, relighting and local contrast are not.

    Prints a verdict, and PSNR and SSIM of each picture, shrunk to 640 pixels: untouched (identity), under its best affine map of colours (affine) and under
    its own grid (oracle).

    To try:

    python -m nets.hdrnet diagnose pairs

    python -m nets.hdrnet diagnose photos --operator clahe

    Args:
        paths: pairs or photographs, as for train.
        operator: as for train.
        learn_look: as for train.
        luma_bins: depth of the grid.
        spatial_bins: rows and columns of the grid.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
    """
    if not paths:
        raise Refusal("DATA is missing: diagnose DATA")
    where = device_of(device)
    shape = {"luma_bins": luma_bins, "spatial_bins": spatial_bins}
    if min(shape.values()) < 1:
        raise Refusal(f"--luma-bins and --spatial-bins must be at least 1, got {luma_bins} and {spatial_bins}")
    source = _Shrunk(source_of(list(paths), operator, learn_look))

    def oracle(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return array(fitted(tensor(before, where), tensor(after, where), None, shape))

    rows, _ = measure(source, {"identity": lambda before, after: before, "affine": global_affine, "oracle": oracle})
    print(render(rows))
    print("\n".join(verdict(float(rows[-1]["psnr oracle"]), float(rows[-1]["psnr affine"]), coloured(source))))


class _Shrunk:
    """A source whose larger pictures are shrunk to `_SIDE`, by averaging over areas."""

    def __init__(self, source: Source) -> None:
        self._source, self.names = source, source.names

    def __len__(self) -> int:
        return len(self._source)

    def pair(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        before, after = self._source.pair(k)
        return _shrunk(before), _shrunk(after)


def _shrunk(values: np.ndarray) -> np.ndarray:
    pixels = images.scaled(values)
    height, width = pixels.shape[:2]
    factor = _SIDE / max(height, width)
    if factor >= 1:
        return pixels
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    return array(F.interpolate(tensor(pixels), size=size, mode="area"))


def verdict(oracle: float, affine: float, invented: int) -> list[str]:
    """What the mean PSNR of the oracle and of the affine map say, and the number of gray pictures that became colourful: lines to print, the verdict first."""
    if invented:
        return [
            "Out of reach: this is colorisation.",
            f"{count(invented, 'picture')} came gray and left colourful; which colour a gray pixel gets is not in its brightness and place.",
        ]
    if oracle < _WITHIN_REACH:
        return [
            "Out of reach: no grid of this shape does this, whatever is learned.",
            f"Even fitted to each pair by itself it reaches {oracle:.1f} dB; {_WITHIN_REACH:.0f} dB and more were seen of operators that can be learned.",
            "What is done to a pixel must depend smoothly on its place and brightness: haze, mattes, blur and shifted pictures do not.",
        ]
    lines = [
        "In reach: grids of this shape do this.",
        f"Fitted to each pair by itself a grid reaches {oracle:.1f} dB, about the best that training can come to.",
    ]
    if oracle - affine < 3:
        lines.append(
            f"One affine map of colours for each picture reaches {affine:.1f} dB already: a network adds little."
        )
    return lines


def coloured(source: _Shrunk) -> int:
    """How many pictures are gray before and not after."""
    found = 0
    for k in range(len(source)):
        before, after = (_colourfulness(pixels) for pixels in source.pair(k))
        found += before < _GRAY and after > _COLOURFUL
    return found


def _colourfulness(pixels: np.ndarray) -> float:
    return float(np.abs(pixels - pixels.mean(2, keepdims=True)).mean())
