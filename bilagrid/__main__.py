"""The command line: ``python -m bilagrid filter``, ``upsample``, ``tonemap``, ``equalize``, ``colorize`` and ``flash``."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from bilagrid import commands
from bilagrid.commands import Refusal, check_file, refuse_same, unwritten

try:
    import numpy as np
    import tqdm  # noqa: F401 -- `commands` draws the progress bar
    import tyro

    import bilagrid
    from bilagrid import demonstration, edit_commands, images
    from bilagrid.filters import filter_lattice
    from bilagrid.pictures import array, check_positive, dimensions, each, luma, tensor
except ImportError:
    _pip = 'python -m pip install -c constraints.txt -e ".[images]"'
    print(f"bilagrid: the command line needs OpenImageIO, tyro and tqdm: {_pip}", file=sys.stderr)
    sys.exit(2)

_Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IN ... OUT]")]
_High = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="HIGH")]
_LowIn = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOW_IN")]
_LowOut = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LOW_OUT")]
_Sigma = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]
_Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]


def filter_(
    paths: _Paths = (),
    *,
    sigma_space: float = 16.0,
    sigma_color: float = 0.1,
    guide: Path | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> None:
    """Smooth photographs within their edges (bilateral filter).

    Files are PNG, TIFF or JPEG, 8 or 16 bits, gray or colour, or float: TIFF, OpenEXR and Radiance HDR. Depth, alpha, colour profile and EXIF are kept,
    and a picture that EXIF says is rotated is stored upright. JPEG holds 8 bits and no alpha.

    To try:

    python -m bilagrid filter
        filters a photograph that comes with scikit-image and writes a before/after picture here

    python -m bilagrid filter in.jpg out.jpg --sigma-space 16 --sigma-color 0.1

    python -m bilagrid filter *.png folder --sigma-color 0.05

    python -m bilagrid filter noflash.png out.png --guide flash.png
        the cross filter: the edges are those of the guide

    Args:
        paths: one file and the file to write, or files or a folder and the folder to write to. Nothing: a photograph that comes with scikit-image.
        sigma_space: how far smoothing reaches: standard deviation in pixels, above 0. 4 removes fine grain, 16 texture; larger is faster.
        sigma_color: which steps count as edges: standard deviation in brightness, where black is 0 and white 1, above 0. 0.05 keeps faint edges, 0.1 is
            usual, 0.3 blurs most of them.
        guide: a picture of the same size, whose edges are kept in place of the input's own.
        overwrite: replace files that exist. The input itself is never replaced.
        skip_existing: leave files that exist as they are and do the rest.
    """
    check_positive(sigma_space=sigma_space, sigma_color=sigma_color)
    if not paths:
        if guide is not None:
            raise Refusal("--guide needs an input of its own: filter IN OUT --guide FILE")
        _demonstrate(sigma_space, sigma_color, overwrite)
        return
    guide_picture = None if guide is None else images.read(guide)

    def smooth(source: Path, picture: images.Picture) -> np.ndarray:
        if guide_picture is not None and guide_picture.size != picture.size:
            raise Refusal(
                f"{guide}: is {dimensions(guide_picture.size)}, must be as large as {source}, {dimensions(picture.size)}"
            )
        return _smooth(picture, guide_picture, sigma_space, sigma_color)

    read_too = [guide] if guide else []
    each("filter", paths, smooth, read_too=read_too, overwrite=overwrite, skip_existing=skip_existing)


def upsample(
    high: _High,
    low_in: _LowIn,
    low_out: _LowOut,
    out: _Out,
    *,
    method: Literal["bgu", "jbu"] = "bgu",
    fit: Literal["fast", "global"] | None = None,
    sigma_space: _Sigma = None,
    sigma_color: _Sigma = None,
    overwrite: bool = False,
) -> None:
    """Do to a photograph what an edit did to a small copy of it.

    Shrink HIGH to LOW_IN and edit that into LOW_OUT, by any slow means. OUT is the edit at full size, with the detail and the edges of HIGH. It has the
    depth and metadata of LOW_OUT, and the alpha of HIGH if that has one.

    To try:

    python -m bilagrid upsample photo.png small.png small_edited.png photo_edited.png

    python -m bilagrid upsample photo.png small.png small_edited.png photo_edited.png --fit global
        nearer to the edit, and slower

    python -m bilagrid upsample photo.png small.png small_mask.png mask.png --method jbu --sigma-space 1
        for what is not an edit of colours, such as a mask or depth

    Args:
        high: the original at full size.
        low_in: a smaller copy of it, of the same proportions.
        low_out: the edited LOW_IN, of the same size.
        out: the file to write.
        method: bgu: bilateral guided upsampling (Chen et al., 2016), which learns what the edit does to colours and does that to those of HIGH. jbu: joint
            bilateral upsampling (Kopf et al., 2007), which mixes pixels of LOW_OUT.
        fit: for bgu. fast: each cell of the grid by itself, the default. global: all cells at once, nearer to the edit and slower.
        sigma_space: for jbu: standard deviation in pixels of the small pictures, above 0; 0.5 to 2 are usual, the default is 1.
        sigma_color: for jbu: standard deviation in brightness, where black is 0 and white 1, above 0; the default is 0.1.
        overwrite: replace OUT if it exists. The inputs are never replaced.
    """
    for other, name, value in (
        ("jbu", "--sigma-space", sigma_space),
        ("jbu", "--sigma-color", sigma_color),
        ("bgu", "--fit", fit),
    ):
        if value is not None and method != other:
            raise Refusal(f"{name} belongs to --method {other}, got --method {method}")
    sigma_space, sigma_color = 1.0 if sigma_space is None else sigma_space, 0.1 if sigma_color is None else sigma_color
    check_positive(sigma_space=sigma_space, sigma_color=sigma_color)
    sources = [high, low_in, low_out]
    for source in sources:
        images.probe(source)
    check_file(out, images.SUFFIXES)
    refuse_same(sources, [out])
    unwritten([(low_out, out)], overwrite=overwrite)
    large, small, edited = (images.read(source) for source in sources)
    images.check_target(out, edited.spec, has_alpha=large.alpha is not None)
    if small.size != edited.size:
        raise Refusal(f"LOW_OUT must be as large as LOW_IN, {dimensions(small.size)}, got {dimensions(edited.size)}")
    if any(low > full for low, full in zip(small.size, large.size, strict=True)):
        raise Refusal(
            f"HIGH must be at least as large as LOW_IN, {dimensions(small.size)}, got {dimensions(large.size)}"
        )
    ratios = [full / low for low, full in zip(small.size, large.size, strict=True)]
    # Shrinking rounds each side to whole pixels, by at most one.
    if abs(ratios[0] - ratios[1]) * min(small.size) > max(ratios) + 1e-6:
        raise Refusal(
            f"LOW_IN must have the proportions of HIGH, {dimensions(large.size)}, got {dimensions(small.size)}"
        )
    if method == "bgu":
        full, low, done = (tensor(picture.pixels) for picture in (large, small, edited))
        if full.shape[1] != low.shape[1]:
            kinds = {1: "gray", 3: "in colour"}
            raise Refusal(
                f"LOW_IN must be {kinds[full.shape[1]]} as HIGH is, and is {kinds[low.shape[1]]}; or choose --method jbu"
            )
        result = bilagrid.guided_upsample(full, low, done, method=fit or "fast")
    else:
        result = bilagrid.joint_bilateral_upsample(
            tensor(edited.pixels), luma(small), luma(large), sigma_space=sigma_space, sigma_color=sigma_color
        )
    images.write(out, array(result), edited, alpha=large.alpha)
    print(f"wrote {out}")


def tonemap(
    paths: _Paths = (),
    *,
    contrast: float = 5.0,
    sigma_space: float | None = None,
    sigma_color: float = 0.4,
    gamma: float = 2.2,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> None:
    """Make pictures of scenes of high dynamic range: large contrasts are compressed, detail is kept (Durand and Dorsey, 2002).

    The files to read hold linear radiance: Radiance HDR, OpenEXR or float TIFF. Those to write are PNG or JPEG of 8 bits, or TIFF of 16 bits. Alpha and
    EXIF are kept. Values below 0, which some renderers leave, are taken as 0.

    To try:

    python -m bilagrid tonemap scene.hdr picture.png

    python -m bilagrid tonemap scene.exr picture.jpg --contrast 20
        keeps more of the scene's own contrast, for scenes that are less extreme

    python -m bilagrid tonemap *.exr folder
        writes folder/*.png

    Args:
        paths: one file and the file to write, or files or a folder and the folder to write PNG to.
        contrast: how many times as bright as its darkest large part the brightest one may be, in linear light, at least 1. 5 is as published and flat,
            20 to 50 look more natural.
        sigma_space: which parts count as large: standard deviation in pixels, above 0. By default 2 % of the longer side.
        sigma_color: which steps of light are edges: standard deviation in decades (powers of ten), above 0. 0.4 is as published; a smaller one has
            fewer halos and flattens more of the detail.
        gamma: encoding of the picture, above 0: 2.2 for screens.
        overwrite: replace files that exist. The input itself is never replaced.
        skip_existing: leave files that exist as they are and do the rest.
    """
    check_positive(sigma_space=sigma_space, sigma_color=sigma_color)
    for name, value, least in (("--contrast", contrast, 1.0), ("--gamma", gamma, 0.001)):
        if not (math.isfinite(value) and value >= least):
            raise Refusal(f"{name} must be a number, at least {least:g}, got {value:g}")

    def develop(source: Path, target: Path) -> None:
        radiance = images.read(source)
        if radiance.dtype != np.float32:
            raise Refusal(
                f"{source}: is a picture of {radiance.dtype} already, expected float radiance: {' '.join(images.FLOATS)}"
            )
        result = bilagrid.tonemap(
            tensor(np.maximum(radiance.values, 0)),
            contrast=contrast,
            sigma_space=sigma_space,
            sigma_color=sigma_color,
            gamma=gamma,
        )
        picture = images.developed(array(result), radiance, target)
        images.check_target(target, picture.spec)
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, picture.values, picture, alpha=picture.alpha)

    commands.each_file(
        "tonemap", paths, develop, images.FLOATS, images.PICTURES, overwrite=overwrite, skip_existing=skip_existing
    )


# The commands by name; the arguments and help of each are its function's.
_COMMANDS: dict[str, Callable[..., None]] = {
    "filter": filter_,
    "upsample": upsample,
    "tonemap": tonemap,
    "equalize": edit_commands.equalize,
    "colorize": edit_commands.colorize,
    "flash": edit_commands.flash,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 refused, 130 interrupted."""
    return commands.run("python -m bilagrid", "Edge-aware image processing with the bilateral grid.", _COMMANDS, argv)


def _demonstrate(sigma_space: float, sigma_color: float, overwrite: bool) -> None:
    picture = images.read(demonstration.photograph())
    lattice, _ = filter_lattice(luma(picture), sigma_space, sigma_color)
    grid = f"{' x '.join(map(str, lattice.size))} nodes (brightness, rows, columns)"
    demonstration.before_after(
        "filtered",
        lambda picture: _smooth(picture, None, sigma_space, sigma_color),
        overwrite=overwrite,
        facts={"grid": grid},
    )


def _smooth(
    picture: images.Picture, guide: images.Picture | None, sigma_space: float, sigma_color: float
) -> np.ndarray:
    edges = luma(guide or picture)
    result = bilagrid.bilateral_filter(tensor(picture.pixels), edges, sigma_space=sigma_space, sigma_color=sigma_color)
    return array(result)


if __name__ == "__main__":
    sys.exit(main())
