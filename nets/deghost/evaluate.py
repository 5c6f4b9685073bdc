"""``python -m nets.deghost eval``: a model beside the merges that know nothing of motion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import tyro
from tqdm import tqdm

from bilagrid import commands
from bilagrid.commands import Refusal
from nets import metrics
from nets.deghost.bilateral import BilateralDeghost
from nets.deghost.classical import debevec, mertens
from nets.deghost.data import Bracket, Scenes, tensors
from nets.deghost.generator import Generated, Photographs
from nets.deghost.model import DeghostNet
from nets.deghost.radiance import GAMMA, compressed
from nets.deghost.shipped import load
from nets.hdrnet.enhance import device_of
from nets.hdrnet.evaluate import Row, as_csv

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
    device: str = "auto",
    table: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Measure a model on scenes it has not seen.

    Prints PSNR-μ, PSNR-L and SSIM-μ of each scene and their means: of the model, of the merge by Debevec and Malik, which takes the scene for still, and of
    Mertens' fusion, whose picture is read as one exposure, the one that brings it nearest to the truth. All pixels count, as they are; the peak is 1.

    To try:

    python -m nets.deghost eval Test --weights run/model.safetensors

    python -m nets.deghost eval photos --generate --scenes 20 --table table.csv

    Args:
        paths: folders of scenes or photographs, as for train.
        weights: what train wrote, or the model that comes along: deghost.
        generate: make brackets of photographs.
        scenes: with --generate: how many.
        crop: with --generate: their side in pixels.
        seed: with --generate: decides every bracket; train's is 0, so that another seed gives others.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        table: a CSV file to write the table to as well.
        overwrite: replace the table if it exists.
    """
    if not paths:
        raise Refusal("DATA is missing: eval DATA")
    if scenes < 1 or crop < 16 or seed < 0:
        raise Refusal(f"--scenes must be at least 1, --crop 16 and --seed 0, got {scenes}, {crop} and {seed}")
    net = load(weights, device_of(device))
    if table is not None:
        commands.check_file(table, (".csv",))
        commands.unwritten([(Path(), table)], overwrite=overwrite)
    source: Source = _Made(list(paths), scenes, crop, seed) if generate else Scenes(paths)
    makers: dict[str, Maker] = {
        "model": lambda bracket: merge(net, bracket),
        "debevec": lambda bracket: debevec(bracket.pixels(), bracket.ev),
        "mertens": fused,
    }
    rows = measure(source, makers)
    print(render(rows))
    if table is not None:
        commands.replace(table, as_csv(rows))


def merge(net: DeghostNet | BilateralDeghost, bracket: Bracket) -> np.ndarray:
    """The network's radiance ``(H, W, 3)`` of a whole bracket."""
    device = next(net.parameters()).device
    ldr, ev, _ = tensors(bracket)
    with torch.inference_mode():
        return net(ldr[None].to(device), ev[None].to(device))[0].permute(1, 2, 0).cpu().numpy()


def fused(bracket: Bracket) -> np.ndarray:
    """Mertens' picture taken for one exposure, the one that brings it nearest to the truth by least squares."""
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
    columns = [name for name in rows[0] if name != "scene"]
    return [*rows, {"scene": "mean"} | {name: float(np.mean([row[name] for row in rows])) for name in columns}]  # type: ignore[arg-type]


def figures(result: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PSNR-μ, PSNR-L and SSIM-μ of radiance: peak 1, all pixels, nothing clipped."""
    seen, expected = compressed(result), compressed(truth)
    return {
        "PSNR-μ": metrics.psnr(seen, expected),
        "PSNR-L": metrics.psnr(result, truth),
        "SSIM-μ": metrics.ssim(seen, expected),
    }


def render(rows: Sequence[Row]) -> str:
    """The table, to read."""
    columns = [name for name in rows[0] if name != "scene"]
    width = max(len(str(row["scene"])) for row in rows)
    lines = [" " * width + "".join(f"  {name:>14}" for name in columns)]
    for row in rows:
        values = (f"{row[name]:14.4f}" if name.startswith("SSIM") else f"{row[name]:14.2f}" for name in columns)
        lines.append(f"{row['scene']:<{width}}" + "".join(f"  {value}" for value in values))
    return "\n".join(lines)


class _Made:
    """The first brackets that a seed makes of photographs."""

    def __init__(self, paths: Sequence[Path], scenes: int, crop: int, seed: int) -> None:
        self.names = [f"{k}" for k in range(scenes)]
        self._made = Generated(Photographs(paths), crop, seed)

    def bracket(self, k: int) -> Bracket:
        return self._made.bracket(k)
