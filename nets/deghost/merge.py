"""``python -m nets.deghost merge``: from a user's own bracket of photographs to radiance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
import tyro
from torch import Tensor

import bilagrid
from bilagrid import commands, demonstration, images
from bilagrid.commands import Refusal
from bilagrid.pictures import array, dimensions, tensor
from nets.deghost import align as alignment
from nets.deghost import bracket as brackets
from nets.deghost import classical
from nets.deghost import response as responses
from nets.deghost.align import Aligned
from nets.deghost.bilateral import BilateralDeghost, reduced
from nets.deghost.bracket import Bracket
from nets.deghost.detail import detailed
from nets.deghost.evaluate import agreement
from nets.deghost.model import DeghostNet
from nets.deghost.radiance import compressed
from nets.deghost.shipped import load
from nets.devices import device_of

# The side in pixels of the tiles that a network computes, and by how much more on each side its layers reach. Both are multiples of all its strides.
_TILE, _HALO = 1024, 192

# The contrast of the picture beside the radiance: photographs have less range than the scenes that 5 was published for.
_CONTRAST = 20.0

# Photographs of more pixels are shrunk for the network, by so much.
_LARGE, _REDUCE = 8_000_000, 4

_STEPS = 5  # of the progress bar
_SHOWN = 480  # the width in pixels of a picture on the sheet


def merge(
    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="A B C ... OUT")],
    *,
    weights: str = "deghost",
    times: tuple[str, ...] | None = None,
    align: Literal["homography", "flow", "none"] = "homography",
    response: Literal["gamma", "debevec"] = "gamma",
    method: Literal["net", "debevec", "mertens"] = "net",
    reduce: int | None = None,
    detail: bool = True,
    tone: Literal["bilateral", "mu"] = "bilateral",
    picture: Path | None = None,
    show_steps: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> None:
    """Merge a bracket, two to seven photographs of one scene at several exposures, into its radiance.

    Photographs are PNG, TIFF or JPEG of one size, in any order. The best exposed one is the middle: it says where everything is, and the others, aligned
    to it, say what is too dark or too bright in it. OUT is OpenEXR, Radiance HDR or float TIFF, and a tone-mapped picture is written beside it as OUT.png.
    Printed is how near the result comes to the middle photograph where that is well exposed; ghosts show in this figure.

    To try:

    python -m nets.deghost merge dark.jpg middle.jpg bright.jpg scene.exr

    python -m nets.deghost merge *.jpg scene.exr --show-steps steps.png
        and a sheet of every step on the way

    python -m nets.deghost merge a.png b.png c.png scene.hdr --times 1/1000 1/250 1/60
        for photographs without EXIF

    python -m nets.deghost merge a.jpg b.jpg c.jpg scene.exr --picture look.tif --tone mu
        the picture at 16 bits, by the curve that deghosting papers show results with

    python -m nets.deghost merge a.jpg b.jpg c.jpg scene.exr --method debevec
        without a network: exact for scenes that stand still, ghosts where something moves

    Args:
        paths: two to seven photographs, of which at most the best three are used, and the file to write.
        weights: for --method net: what train wrote, or the model that comes along: deghost.
        times: exposure times in seconds in the order of the photographs, as 1/250 or 0.004. By default those of a file exposure.txt beside them (log2
            values or times, in the order of the names; of all pictures there, if it holds more), else those of EXIF, with its aperture and ISO.
        align: homography: align the background, and leave moving things to the network. flow: align everything, by Lucas and Kanade's optical flow,
            which tears what moves far. none: for photographs from a tripod.
        response: what light pixel values stand for. gamma: their power of 2.2. debevec: found from the photographs themselves (Debevec and Malik, 1997).
        method: net: by a network, without ghosts. debevec: the weighted mean of the radiances. mertens: exposure fusion, a picture and no radiance,
            so that OUT is PNG, TIFF or JPEG.
        reduce: for --method net: the network sees the exposures shrunk by this factor, and a bilateral grid carries its result to full size, in a fraction
            of the time and memory. By default 4 for photographs of more than 8 megapixels, else 1, which is full size.
        detail: for --method net: sharpen the network's radiance by the exposures that agree with it; --no-detail: the network alone.
        tone: how radiance becomes a picture. bilateral: large contrasts are compressed, detail stays (Durand and Dorsey, 2002). mu: log(1 + 5000 H).
        picture: the tone-mapped picture, PNG, JPEG, or TIFF of 16 bits; by default OUT.png.
        show_steps: a picture to write of the photographs, their alignment, what moved, the plain mean with its ghosts, and the result.
        device: auto (a GPU if there is one), cpu, cuda or cuda:1. For the network.
        overwrite: replace files that exist. The photographs are never replaced.
    """
    from tqdm import tqdm

    if len(paths) < 3:
        raise Refusal(f"expected two to seven photographs and OUT, got {commands.count(len(paths), 'file')}")
    *sources, out = paths
    if reduce is not None and (reduce < 1 or method != "net"):
        raise Refusal(f"--reduce must be at least 1 and is for --method net, got {reduce} for --method {method}")
    shown = picture or out.with_suffix(".png")
    targets = _targets(out, method, picture, shown, show_steps)
    commands.refuse_same(sources, targets)
    commands.unwritten([(sources[0], target) for target in targets], overwrite=overwrite)
    net = load(weights, device_of(device)) if method == "net" else None

    steps = _STEPS if net is None else _STEPS - 1
    with tqdm(total=steps, disable=None, unit="step") as progress:
        progress.set_description("read     ")
        bracket = _read(sources, times, progress.write)
        progress.update()
        progress.set_description("align    ")
        aligned = _aligned(bracket, align, progress.write)
        progress.update()
        progress.set_description("linearise")
        linear = _linear(aligned, bracket, response if method != "mertens" else "gamma")
        progress.update()
        progress.set_description("merge    ")
        plain = classical.debevec(linear, bracket.ev, valid=aligned.valid)
        if net is None:
            result = classical.mertens(aligned.ldr) if method == "mertens" else plain
            progress.update()
        else:
            net = _sized(net, reduce, bracket.like.size, progress.write)
            tiles = _tiles(net, *bracket.like.size)
            progress.total += len(tiles)
            result = by_network(net, linear, bracket.ev, bracket.middle, progress.update)
            if detail:
                result = detailed(result, linear, bracket.ev, bracket.middle, aligned.valid)
        if method != "mertens":
            _compare(bracket, linear, result, None if net is None else plain, progress.write)
        progress.set_description("write    ")
        seen = result if method == "mertens" else _toned(result, tone)
        if method == "mertens":
            _write(out, images.developed(seen, bracket.like, out))
        else:
            radiance = images.merged(result, bracket.like)
            _write(out, radiance)
            _write(shown, images.developed(seen, radiance, shown))
        if show_steps is not None:
            _write(show_steps, images.plain(_sheet(bracket, aligned, _toned(plain, tone), seen, method)))
        progress.update()
    for target in targets:
        print(f"wrote {target}")


def _sized(
    net: DeghostNet | BilateralDeghost, reduce: int | None, size: tuple[int, int], tell: Callable[[str], None]
) -> DeghostNet | BilateralDeghost:
    """The network for photographs of a size (H, W); tells if it sees them shrunk."""
    if reduce is None and isinstance(net, DeghostNet):
        reduce = _REDUCE if size[0] * size[1] > _LARGE else 1
    net = net if reduce is None else reduced(net, reduce)
    if isinstance(net, BilateralDeghost):
        shrunk = net.config["reduce"]
        tell(
            f"  the network sees them shrunk by {shrunk}, and a bilateral grid carries its result to full size; --reduce 1: full size"
        )
    return net


def by_network(
    net: Callable[[Tensor, Tensor], Tensor],
    ldr: np.ndarray,
    ev: np.ndarray,
    middle: int,
    done: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """The radiance ``(H, W, 3)`` of a bracket of any size, tile by tile, with a call of ``done`` after each. Of two exposures the middle one is used twice."""
    if len(ldr) == 2:
        ldr, ev = ldr[[0, middle, 1]], ev[[0, middle, 1]]
    height, width = ldr.shape[1:3]
    device = next(net.parameters()).device if isinstance(net, torch.nn.Module) else torch.device("cpu")
    exposures = torch.from_numpy(ev - ev.min()).float()[None].to(device)
    result = np.empty((height, width, 3), np.float32)
    with torch.inference_mode():
        for top, left, bottom, right in _tiles(net, height, width):
            first, start = max(top - _HALO, 0), max(left - _HALO, 0)
            tile = ldr[:, first : bottom + _HALO, start : right + _HALO]
            seen = torch.from_numpy(np.ascontiguousarray(tile)).permute(0, 3, 1, 2)[None].to(device)
            merged = array(net(seen, exposures))
            result[top:bottom, left:right] = merged[top - first : bottom - first, left - start : right - start]
            done()
    return result


def _tiles(net: Callable[[Tensor, Tensor], Tensor], height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The tiles that a network computes at once: top, left, bottom, right."""
    # The grid of a BilateralDeghost is fitted to the whole picture.
    side = max(height, width) if isinstance(net, BilateralDeghost) else _TILE
    corners = itertools.product(range(0, height, side), range(0, width, side))
    return [(top, left, min(top + side, height), min(left + side, width)) for top, left in corners]


def _targets(out: Path, method: str, picture: Path | None, shown: Path, show_steps: Path | None) -> list[Path]:
    if method == "mertens":
        if picture is not None:
            raise Refusal(f"--picture {picture}: Mertens' fusion is a picture itself, leave it out")
        if out.suffix.lower() in images.RADIANCE:
            raise Refusal(f"{out}: Mertens' fusion is a picture, not a radiance, choose .png, .tif or .jpg")
        commands.check_file(out, images.PICTURES)
        targets = [out]
    else:
        commands.check_file(out, images.FLOATS)
        commands.check_file(shown, images.PICTURES)
        if shown == out:
            raise Refusal(f"--picture {shown}: is where the radiance goes, choose another name")
        targets = [out, shown]
    if show_steps is not None:
        commands.check_file(show_steps, images.PICTURES)
        if show_steps in targets:
            raise Refusal(f"--show-steps {show_steps}: is where the radiance or its picture goes, choose another name")
        targets.append(show_steps)
    return targets


def _read(sources: list[Path], times: tuple[str, ...] | None, tell: Callable[[str], None]) -> Bracket:
    whole = brackets.read(sources, times)
    bracket = brackets.choose(whole)
    tell(f"{commands.count(len(whole.paths), 'photograph')} of {dimensions(bracket.like.size)}")
    if len(bracket.paths) < len(whole.paths):
        left = [path.name for path in whole.paths if path not in bracket.paths]
        tell(f"  left out: {', '.join(left)}; the others show the most")
    for k, (path, ev) in enumerate(zip(bracket.paths, bracket.ev, strict=True)):
        note = ", the middle" if k == bracket.middle else ""
        tell(f"  {path.name}: {ev:+.1f} stops{note}")
    return bracket


def _aligned(bracket: Bracket, method: str, tell: Callable[[str], None]) -> Aligned:
    aligned = alignment.align(bracket.ldr, bracket.ev, bracket.middle, method)
    for k, (path, note) in enumerate(zip(bracket.paths, aligned.notes, strict=True)):
        if k != bracket.middle:
            tell(f"  {path.name}: {note}")
    return aligned


def _linear(aligned: Aligned, bracket: Bracket, method: str) -> np.ndarray:
    if method == "gamma":
        return aligned.ldr
    return responses.linearised(aligned.ldr, responses.calibrate(aligned.ldr, bracket.ev, aligned.valid))


def _compare(
    bracket: Bracket, linear: np.ndarray, result: np.ndarray, plain: np.ndarray | None, tell: Callable[[str], None]
) -> None:
    """Tells how near the merged radiance comes to the middle photograph, and how near the plain mean of the exposures' radiances does."""
    middle, stops = linear[bracket.middle], float(bracket.ev[bracket.middle])
    found = agreement(result, middle, stops)
    if math.isnan(found):
        return
    beside = "" if plain is None else f"; the plain mean of the radiances to {agreement(plain, middle, stops):.1f} dB"
    tell(f"  agrees with {bracket.paths[bracket.middle].name}, where that is well exposed, to {found:.1f} dB{beside}")


def _toned(radiance: np.ndarray, tone: str) -> np.ndarray:
    if tone == "mu":
        return compressed(radiance)
    return array(bilagrid.tonemap(tensor(radiance), contrast=_CONTRAST))


def _write(path: Path, picture: images.Picture) -> None:
    images.check_target(path, picture.spec)
    images.write(path, picture.values, picture)


def _sheet(bracket: Bracket, aligned: Aligned, plain: np.ndarray, result: np.ndarray, method: str) -> np.ndarray:
    """The steps in rows: the photographs, the same aligned, and what became of them."""

    def small(picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        size = min(_SHOWN, width), max(math.ceil(height * min(_SHOWN / width, 1)), 1)
        return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)

    moved = alignment.disagreement(aligned, bracket.middle)
    names = {"net": "the network's result", "debevec": "result: the same", "mertens": "exposure fusion"}
    labels = [f"{path.name}, {ev:+.1f} stops" for path, ev in zip(bracket.paths, bracket.ev, strict=True)]
    return demonstration.sheet(
        [
            [(label, small(picture)) for label, picture in zip(labels, bracket.ldr, strict=True)],
            [(f"aligned: {note.split(' (')[0]}", small(picture)) for note, picture in zip(aligned.notes, aligned.ldr, strict=True)],
            [
                ("what moved", small(np.repeat(moved[..., None], 3, 2))),
                ("plain mean of the radiances", small(plain)),
                (names[method], small(result)),
            ],
        ]
    )  # fmt: skip
