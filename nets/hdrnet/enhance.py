"""``python -m nets.hdrnet enhance``, and the application of a network to a whole picture, which other commands use too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

import bilagrid
from bilagrid import commands, demonstration, images
from bilagrid.commands import Refusal
from bilagrid.pictures import array, refuse_radiance, tensor
from nets.devices import device_of
from nets.hdrnet.model import HDRNet
from nets.hdrnet.shipped import load
from nets.luma import LUMA

# Pixels that are computed at once: enough to keep the processor busy, and few beside a photograph's.
_STRIP = 2**20

# Rows beyond a strip that the pyramid variant needs to compute it (`HDRNet.render`).
_HALO = 8


def enhance(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IN ... OUT]")] = (),
    *,
    weights: str = "contrast",
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Apply a learned look to photographs of any size.

    Files are PNG, TIFF or JPEG, 8 or 16 bits, gray or colour, or float from 0 to 1. Depth, alpha, colour profile and EXIF are kept, and a picture that EXIF
    says is rotated is stored upright. A gray picture gets the luma of its result. Large pictures are computed strip by strip.

    To try:

    python -m nets.hdrnet enhance
        enhances a photograph that comes with scikit-image and writes a before/after picture here

    python -m nets.hdrnet enhance in.jpg out.jpg --weights contrast

    python -m nets.hdrnet enhance *.jpg folder --weights run/model.safetensors
        what is in the folder already is left as it is, so that an interrupted run goes on

    torchrun --nproc-per-node 4 -m nets.hdrnet enhance photos folder --weights run/model.safetensors
        shares out the pictures over four GPUs

    Args:
        paths: one file and the file to write, or files or a folder and the folder to write to. Nothing: a photograph that comes with scikit-image.
        weights: what train wrote, or one of the models that come along: contrast, shadows, tone.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1.
        overwrite: replace files that exist. The input itself is never replaced.
    """
    net = load(weights, device_of(device))
    check_channels(net, weights)
    if not paths:
        demonstration.before_after(
            "enhanced",
            lambda picture: apply(net, picture.values, picture.dtype),
            overwrite=overwrite,
            facts={"model": weights},
        )
        return
    if len(paths) == 1:
        raise Refusal(f"OUT is missing: enhance {paths[0]} OUT")
    jobs = commands.jobs(paths[:-1], paths[-1], images.SUFFIXES)
    single = len(jobs) == 1 and not paths[0].is_dir()
    commands.refuse_same([source for source, _ in jobs], [target for _, target in jobs])
    # Shared out before looking at what is done, which changes while the others work.
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    mine = jobs[rank::world]
    todo = commands.unwritten(mine, overwrite=overwrite, skip_existing=not (single or overwrite))

    def enhance_file(source: Path, target: Path) -> None:
        picture = images.read(source)
        images.check_target(target, picture.spec)
        refuse_radiance(source, picture)
        result = apply(net, picture.values, images.depth(target, picture))
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, result, picture, alpha=picture.alpha)

    commands.work(mine, todo, enhance_file, single=single)


def apply(net: HDRNet, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The network's result for a whole picture ``(H, W, 1 or 3)`` of any depth, at the depth ``dtype``.

    The small copy is made channel by channel and the result strip by strip, so that little memory is needed beside the two pictures at their own depths. No
    pixel depends on where strips begin.
    """
    height, width, channels = values.shape
    device = next(net.parameters()).device
    wanted = net.config["in_channels"]
    source = np.broadcast_to(values, (height, width, wanted)) if channels == 1 else values
    result = np.empty((height, width, channels), dtype)
    with torch.inference_mode():
        planes = [torch.from_numpy(images.scaled(values[None, None, ..., c])) for c in range(channels)]
        low = torch.cat([net.shrink(plane.to(device)) for plane in planes], 1).expand(-1, wanted, -1, -1)
        del planes
        grid = net.coefficients(low)
        lattice = bilagrid.Lattice.cell_centered(tuple(grid.shape[2:]), (height, width))  # type: ignore[arg-type]
        halo = _HALO if net.config["levels"] > 1 else 0
        rows = max(_STRIP // width // 4, 4) * 4
        for top in range(0, height, rows):
            bottom, first = min(top + rows, height), max(top - halo, 0)
            tile = tensor(images.scaled(source[first : bottom + halo]), device)
            out = net.render(tile, grid, lattice=lattice.crop(first, 0))
            pixels = array(out[:, :, top - first : bottom - first])
            result[top:bottom] = images.quantised(pixels if channels == 3 else (pixels @ LUMA)[..., None], dtype)
    return result


def check_channels(net: HDRNet, weights: str) -> None:
    """Refuses a network that does not turn pictures into pictures."""
    channels = net.config["in_channels"], net.config["out_channels"]
    if channels != (3, 3):
        raise Refusal(f"{weights}: takes {channels[0]} channels and gives {channels[1]}, pictures have 3")
