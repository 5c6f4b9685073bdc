"""``python -m nets.deghost eval``: a model beside merges that do not know of motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
import tyro
from tqdm import tqdm

from bilagrid import commands, demonstration, images
from bilagrid.commands import Refusal
from bilagrid.pictures import array
from nets import metrics
from nets.deghost.bilateral import BilateralDeghost
from nets.deghost.bracket import WELL_EXPOSED
from nets.deghost.classical import debevec, mertens
from nets.deghost.data import Bracket, Scenes, tensors
from nets.deghost.detail import detailed
from nets.deghost.generator import Generated, Photographs
from nets.deghost.model import DeghostNet
from nets.deghost.radiance import GAMMA, compressed
from nets.deghost.shipped import load
from nets.devices import device_of
from nets.tables import Row, as_csv, render, with_means

_SHOWN = 6  # scenes on a sheet

# From a bracket to what a method makes of it, radiance (H, W, 3).
Maker = Callable[[Bracket], np.ndarray]


class Source(Protocol):
    """Brackets by number, each with a name."""

    names: list[str]

    def bracket(self, k: int) -> Bracket: ...


def evaluate(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...]")],
    *,
    weights: str = "deghost",
    generate: bool = False,
    scenes: int = 16,
    crop: int = 256,
    seed: int = 1,
    align: Literal["homography", "flow", "none"] = "homography",
    detail: bool = True,
    device: str = "auto",
    table: Path | None = None,
    show: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Measure a model on scenes it has not seen.

    Prints PSNR-μ, PSNR-L and SSIM-μ of each scene and their means: of the model, of the merge by Debevec and Malik, which takes the scene for still, and of
    Mertens' fusion, whose picture is scaled as a whole to come nearest to the truth. All three merge the same aligned exposures. All pixels count, as they
    are; the peak is 1.

    To try:

    python -m nets.deghost eval Test --weights run/model.safetensors

    python -m nets.deghost eval photos --generate --scenes 20 --table table.csv

    Args:
        paths: folders of scenes or photographs, as for train.
        weights: what train wrote, or the model that comes along: deghost.
        generate: generate brackets from photographs.
        scenes: with --generate: the number of brackets.
        crop: with --generate: their side in pixels.
        seed: with --generate: decides every bracket; train's seed is 0, so another one gives other brackets.
        align: how exposures are aligned to the middle one, as in merge.
        detail: measure what merge gives, the network's radiance with the detail of exposures that agree with it; --no-detail: the network alone.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        table: a CSV file to write the table to as well.
        show: a picture to write of the first scenes, each in a row: exposures, naive merge, result and truth.
        overwrite: replace files that exist.
    """
    if not paths:
        raise Refusal("DATA is missing: eval DATA")
    if scenes < 1 or crop < 16 or seed < 0:
        raise Refusal(f"--scenes must be at least 1, --crop 16 and --seed 0, got {scenes}, {crop} and {seed}")
    net = load(weights, device_of(device))
    for target, suffixes in ((table, (".csv",)), (show, images.PICTURES)):
        if target is not None:
            commands.check_file(target, suffixes)
            commands.unwritten([(Path(), target)], overwrite=overwrite)
    source: Source = _Made(list(paths), scenes, crop, seed, align) if generate else Scenes(paths, align)
    makers: dict[str, Maker] = {
        "model": lambda bracket: merge(net, bracket, detail=detail),
        "debevec": lambda bracket: naive(bracket),
        "mertens": fused,
    }
    rows = measure(source, makers)
    print(render(rows))
    if table is not None:
        commands.replace(table, as_csv(rows))
        print(f"wrote {table}")
    if show is not None:
        picture = images.plain(_sheet(source, makers["model"]))
        images.check_target(show, picture.spec)
        images.write(show, picture.values, picture)
        print(f"wrote {show}")


def merge(net: DeghostNet | BilateralDeghost, bracket: Bracket, *, detail: bool) -> np.ndarray:
    """The network's radiance ``(H, W, 3)`` of a whole bracket, alone or with `detailed`."""
    device = next(net.parameters()).device
    ldr, ev, _ = tensors(bracket)
    with torch.inference_mode():
        radiance = array(net(ldr[None].to(device), ev[None].to(device)))
    return detailed(radiance, bracket.pixels(), bracket.ev, 1, bracket.valid) if detail else radiance


def naive(bracket: Bracket) -> np.ndarray:
    """The merge that takes the scene for still."""
    return debevec(bracket.pixels(), bracket.ev, valid=bracket.valid)


def agreement(radiance: np.ndarray, picture: np.ndarray, stops: float) -> float:
    """How near radiance, exposed again, comes to a photograph where that is well exposed: PSNR in dB of encoded values; NaN if it is so nowhere.

    Args:
        radiance: ``(H, W, 3)``, where 1 is white in an exposure of 0 stops.
        picture: ``(H, W, 3)`` in [0, 1], encoded by gamma 2.2.
        stops: its exposure.
    """
    well = ((picture > WELL_EXPOSED[0]) & (picture < WELL_EXPOSED[1])).all(-1)
    if not well.any():
        return float("nan")
    again = np.clip(radiance[well] * np.float32(2.0**stops), 0, 1) ** np.float32(1 / GAMMA)
    return metrics.psnr(again, picture[well])


def fused(bracket: Bracket) -> np.ndarray:
    """Mertens' picture as radiance, scaled to come nearest to the truth by least squares."""
    linear = mertens(bracket.pixels()) ** GAMMA
    power = float(np.square(linear, dtype=np.float64).sum())
    return linear * (float((linear * bracket.truth).sum(dtype=np.float64)) / power if power else 0.0)


def measure(source: Source, makers: dict[str, Maker]) -> list[Row]:
    """A row of figures for each scene, with their means as the last."""
    rows: list[Row] = []
    for k in tqdm(range(len(source.names)), unit="scene", disable=None):
        bracket = source.bracket(k)
        row: Row = {"scene": source.names[k]}
        row |= {f"{figure} {name}": value for name, make in makers.items() for figure, value in figures(make(bracket), bracket.truth).items()}  # fmt: skip
        rows.append(row)
    return with_means(rows)


def figures(result: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR-μ, PSNR-L and SSIM-μ of radiance: peak 1, all pixels, nothing clipped."""
    seen, expected = compressed(result), compressed(truth)
    return {
        "PSNR-μ": metrics.psnr(seen, expected),
        "PSNR-L": metrics.psnr(result, truth),
        "SSIM-μ": metrics.ssim(seen, expected),
    }


def _sheet(source: Source, model: Maker) -> np.ndarray:
    """The first scenes, a row each; radiance by the μ-law."""
    rows = []
    for k in range(min(len(source.names), _SHOWN)):
        bracket = source.bracket(k)
        merged = [("naive merge", naive(bracket)), ("result", model(bracket)), ("truth", bracket.truth)]
        exposures = zip(("short", "middle", "long"), bracket.pixels(), strict=True)
        rows.append([*exposures, *((name, compressed(radiance)) for name, radiance in merged)])
    return demonstration.sheet(rows)


class _Made:
    """The first brackets that are generated from photographs with a seed, aligned."""

    def __init__(self, paths: Sequence[Path], scenes: int, crop: int, seed: int, align: str) -> None:
        self.names = [f"{k}" for k in range(scenes)]
        self._made, self._align = Generated(Photographs(paths), crop, seed), align

    def bracket(self, k: int) -> Bracket:
        return self._made.bracket(k).aligned(self._align)
