"""``python -m nets.hdrnet eval``: a model beside what it has to beat, and beside the best that a grid could do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol

import numpy as np
import torch
import tyro
from tqdm import tqdm

import bilagrid
from bilagrid import commands, demonstration, images
from bilagrid.commands import Refusal
from bilagrid.pictures import array, tensor
from nets import metrics
from nets.devices import device_of
from nets.hdrnet.enhance import apply, check_channels
from nets.hdrnet.model import HDRNet
from nets.hdrnet.shipped import load
from nets.hdrnet.train import Look, OperatorName, source_of
from nets.tables import Row, as_csv, render, with_means

# What fills a column of the table: it makes a result from a picture before and after.
Maker = Callable[[np.ndarray, np.ndarray], np.ndarray]


def evaluate(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATA [DATA ...]")],
    *,
    weights: str,
    operator: OperatorName | None = None,
    learn_look: Annotated[Look, tyro.conf.arg(name="look")] = None,
    device: str = "auto",
    table: Path | None = None,
    sheet: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Measure a model on pictures it has not seen.

    Prints PSNR and SSIM of each picture: untouched (identity), under the best affine map of colours for that very picture (affine), under the model, and
    under the grid that bilagrid.fit finds for that very pair with the model's own guide (oracle): about the best that a network of this shape can do.

    To try:

    python -m nets.hdrnet eval pairs --weights run/model.safetensors

    python -m nets.hdrnet eval photos --operator contrast --weights contrast --sheet sheet.png

    Args:
        paths: pairs or photographs, as for train.
        weights: what train wrote, or one of the models that come along.
        operator: as for train.
        learn_look: as for train.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        table: a CSV file to write the table to as well.
        sheet: a picture to write: before, model and truth of each picture side by side.
        overwrite: replace the table and the sheet if they exist.
    """
    if not paths:
        raise Refusal("DATA is missing: eval DATA --weights W")
    net = load(weights, device_of(device))
    check_channels(net, weights)
    source = source_of(list(paths), operator, learn_look)
    for path, suffixes in ((table, (".csv",)), (sheet, images.PICTURES)):
        if path is not None:
            commands.check_file(path, suffixes)
            commands.unwritten([(Path(), path)], overwrite=overwrite)
    makers: dict[str, Maker] = {
        "identity": lambda before, after: before,
        "affine": global_affine,
        "model": lambda before, after: apply(net, before, np.dtype(np.float32)),
        "oracle": lambda before, after: oracle(net, before, after),
    }
    rows, shown = measure(source, makers, show="model" if sheet is not None else None)
    print(render(rows))
    if table is not None:
        commands.replace(table, as_csv(rows))
        print(f"wrote {table}")
    if sheet is not None:
        whole = demonstration.sheet(shown)
        images.write(sheet, whole, images.plain(whole))
        print(f"wrote {sheet}")


class Measured(Protocol):
    """Pairs by number, as `data.Source` has them."""

    names: list[str]

    def __len__(self) -> int: ...

    def pair(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Values (H, W, 3) before and after, at any depth."""


def measure(
    source: Measured, makers: dict[str, Maker], *, show: str | None = None
) -> tuple[list[Row], list[list[tuple[str, np.ndarray]]]]:
    """Rows of figures, ``psnr <maker>`` and ``ssim <maker>``, for each picture and then their mean; and rows of pictures if the maker ``show`` is named."""
    rows: list[Row] = []
    shown = []
    for k in tqdm(range(len(source)), unit="picture", disable=None):
        before, after = (images.scaled(values) for values in source.pair(k))
        made = {name: np.clip(make(before, after), 0, 1) for name, make in makers.items()}
        row: Row = {"picture": source.names[k]}
        row |= {f"psnr {name}": metrics.psnr(result, after) for name, result in made.items()}
        row |= {f"ssim {name}": metrics.ssim(result, after) for name, result in made.items()}
        rows.append(row)
        if show is not None:
            figure = f"{show}, {row[f'psnr {show}']:.1f} dB"
            shown.append([(f"{source.names[k]}, before", before), (figure, made[show]), ("truth", after)])
    return with_means(rows), shown


def global_affine(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The picture under the best single 3x4 map of colours for its pair, by least squares."""
    flat = before.reshape(-1, 3).astype(np.float64)
    terms = np.concatenate([flat, np.ones((len(flat), 1))], 1)
    gram, right = terms.T @ terms, terms.T @ after.reshape(-1, 3)
    return (terms @ np.linalg.lstsq(gram, right, rcond=None)[0]).reshape(after.shape)


def oracle(net: HDRNet, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The picture under the grid, of the network's shape and with its guide, that fits its pair best."""
    device = next(net.parameters()).device
    image, target = tensor(before, device), tensor(after, device)
    with torch.inference_mode():
        return array(fitted(image, target, net.guide_of(0)(image), net.config))


def fitted(
    image: torch.Tensor, target: torch.Tensor, guide: torch.Tensor | None, config: dict[str, int]
) -> torch.Tensor:
    """The image under the grid of a network's shape that is fitted to its own pair."""
    size = (config["luma_bins"], config["spatial_bins"], config["spatial_bins"])
    grid = bilagrid.fit(image, target, guide, size=size, method="global")
    return bilagrid.slice_apply(grid, guide, image)
