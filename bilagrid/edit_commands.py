"""The commands ``equalize``, ``colorize`` and ``flash`` of ``python -m bilagrid``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

import bilagrid
from bilagrid import commands, demonstration, images, pictures
from bilagrid.commands import Refusal
from bilagrid.pictures import array, dimensions, tensor

_Paths = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IN ... OUT]")]
_Gray = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="GRAY")]
_Scribbles = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SCRIBBLES")]
_Flash = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FLASH")]
_NoFlash = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NO_FLASH")]
_Out = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
_Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT")]

# The least difference of a painted pixel from the gray picture: more than what JPEG adds.
_PAINTED = 0.06


def equalize(
    paths: _Paths = (),
    *,
    clip_limit: _Number = 2.5,
    sigma_space: _Number = None,
    overwrite: bool = False,
    skip_existing: bool = False,
) -> None:
    """Bring out the detail of dark, hazy or flat parts (local histogram equalisation).

    Files are as for `filter`; depth, alpha, colour profile and EXIF are kept. Float files must hold values from 0 to 1.

    To try:

    python -m bilagrid equalize
        equalises a photograph that comes with scikit-image and writes a before/after picture here

    python -m bilagrid equalize in.jpg out.jpg

    python -m bilagrid equalize *.png folder --clip-limit 4

    python -m bilagrid equalize xray.png out.png --clip-limit None --sigma-space 40
        all the contrast there is, grain and all

    Args:
        paths: one file and the file to write, or files or a folder and the folder to write to. Nothing: a photograph that comes with scikit-image.
        clip_limit: how much contrast may be raised, at least 0: 0 leaves the picture as it is, 2 to 4 are usual, None does not limit.
        sigma_space: size of the neighbourhoods: standard deviation in pixels, above 0; inf takes the whole picture as one. By default a sixteenth of the
            longer side.
        overwrite: replace files that exist. The input itself is never replaced.
        skip_existing: leave files that exist as they are and do the rest.
    """
    if sigma_space != math.inf:
        pictures.check_positive(sigma_space=sigma_space)
    if clip_limit is not None and not (math.isfinite(clip_limit) and clip_limit >= 0):
        raise Refusal(f"--clip-limit must be a number, at least 0, or None, got {clip_limit:g}")

    def process(source: Path, picture: images.Picture) -> np.ndarray:
        pictures.refuse_radiance(source, picture)
        return array(
            bilagrid.equalize_histogram(tensor(picture.pixels), clip_limit=clip_limit, sigma_space=sigma_space)
        )

    if paths:
        pictures.each("equalize", paths, process, overwrite=overwrite, skip_existing=skip_existing)
    else:
        photograph = demonstration.photograph()
        demonstration.before_after(
            "equalized", lambda picture: process(photograph, picture), overwrite=overwrite, facts={}
        )


def colorize(
    gray: _Gray,
    scribbles: _Scribbles,
    out: _Out,
    *,
    mask: Path | None = None,
    sigma_color: float = 0.05,
    sigma_space: _Number = None,
    overwrite: bool = False,
) -> None:
    """Colour a gray photograph from a few strokes of colour, which spread up to its edges.

    Copy the photograph, paint strokes on the copy with a hard brush, and save it as SCRIBBLES; or paint on a transparent layer and save that alone. OUT
    has the depth, alpha, EXIF and brightness of GRAY: of the strokes, only the colour counts.

    To try:

    python -m bilagrid colorize gray.png gray_with_strokes.png colours.png

    python -m bilagrid colorize gray.jpg strokes.jpg colours.jpg --mask mask.png

    Args:
        gray: the photograph; of one in colour the luma is taken.
        scribbles: the strokes, a picture of the same size. Strokes are where --mask says so; without it, where the picture is not transparent, if it is so
            anywhere; else where it differs from GRAY. A JPEG differs around its strokes too, so that colours fade: save PNG or TIFF, or give --mask.
        out: the file to write.
        mask: a picture of the same size, white where SCRIBBLES has a stroke and black where not; gray counts in part.
        sigma_color: how faint an edge may be to stop a colour: in brightness, where black is 0 and white 1, above 0.
        sigma_space: width in pixels of the cells in which strokes mix, above 0. By default a 48th of the longer side.
        overwrite: replace OUT if it exists. The inputs are never replaced.
    """
    pictures.check_positive(sigma_color=sigma_color, sigma_space=sigma_space)
    sources = [gray, scribbles, *([mask] if mask else [])]
    photograph, strokes, *masks = _read_alike(sources, ["GRAY", "SCRIBBLES", "--mask"], out, overwrite)
    strokes = images.without_opaque_alpha(strokes)
    images.check_target(out, photograph.spec)
    known = _strokes(photograph, strokes, masks)
    if not known.any():
        raise Refusal(f"{mask or scribbles}: marks no stroke; paint some on a copy of {gray}, or give --mask")
    if (known > 0).mean() > 0.9 and not masks and strokes.alpha is None:
        raise Refusal(
            f"{scribbles}: differs from {gray} nearly everywhere, expected a copy of it with strokes; or give --mask"
        )
    result = bilagrid.colorize(
        pictures.luma(photograph)[:, None],
        tensor(strokes.pixels).expand(-1, 3, -1, -1),
        tensor(known[..., None])[:, 0],
        sigma_space=sigma_space,
        sigma_color=sigma_color,
    )
    images.write(out, array(result), photograph, alpha=photograph.alpha)
    print(f"wrote {out}; strokes cover {(known > 0).mean():.1%} of it")


def flash(
    flash: _Flash,
    no_flash: _NoFlash,
    out: _Out,
    *,
    sigma_space: _Number = None,
    sigma_color: float = 0.1,
    exposure: _Number = None,
    gamma: float = 2.2,
    overwrite: bool = False,
) -> None:
    """Clean a noisy photograph by another of the same view with flash, and keep its own light.

    Both must be taken from a tripod, or be aligned. OUT has the depth, alpha and EXIF of NO_FLASH.

    To try:

    python -m bilagrid flash flash.jpg no_flash.jpg out.jpg

    python -m bilagrid flash flash.png no_flash.png out.png --exposure 0.125
        the flash picture was exposed an eighth as long, by which shadows that the flash casts are found

    Args:
        flash: the photograph with flash.
        no_flash: the one without, of the same size.
        out: the file to write.
        sigma_space: what is smaller is detail, and taken from FLASH: standard deviation in pixels, above 0. By default 1 % of the longer side.
        sigma_color: standard deviation in brightness, where black is 0 and white 1, above 0: choose it above the noise of NO_FLASH and below the steps that
            are edges.
        exposure: the exposure of FLASH over that of NO_FLASH (time times ISO over f-number squared), above 0. By default from the EXIF of both; if that is
            missing, shadows of the flash are not looked for.
        gamma: encoding of both, above 0.
        overwrite: replace OUT if it exists. The inputs are never replaced.
    """
    pictures.check_positive(sigma_space=sigma_space, sigma_color=sigma_color, exposure=exposure, gamma=gamma)
    lit, dark = _read_alike([flash, no_flash], ["FLASH", "NO_FLASH"], out, overwrite)
    images.check_target(out, dark.spec)
    if exposure is None:
        exposure = _exposure(lit, dark)
        if exposure is None:
            print("exposure unknown, neither from EXIF nor --exposure: shadows of the flash are not looked for")
        else:
            print(f"exposure {exposure:.3g}, from EXIF")
    result = bilagrid.merge_flash(
        tensor(lit.pixels),
        tensor(dark.pixels),
        sigma_space=sigma_space,
        sigma_color=sigma_color,
        exposure=exposure,
        gamma=gamma,
    )
    images.write(out, array(result), dark, alpha=dark.alpha)
    print(f"wrote {out}")


def _read_alike(sources: list[Path], names: list[str], out: Path, overwrite: bool) -> list[images.Picture]:
    """Reads the pictures, all of the first's size and in [0, 1], after checking that ``out`` can be written."""
    for source in sources:
        images.probe(source)
    commands.check_file(out, images.SUFFIXES)
    commands.refuse_same(sources, [out])
    commands.unwritten([(sources[0], out)], overwrite=overwrite)
    read = [images.read(source) for source in sources]
    for source, name, picture in zip(sources, names, read, strict=False):
        pictures.refuse_radiance(source, picture)
        if picture.size != read[0].size:
            raise Refusal(
                f"{name} must be as large as {names[0]}, {dimensions(read[0].size)}, got {dimensions(picture.size)}"
            )
    return read


def _strokes(photograph: images.Picture, strokes: images.Picture, masks: list[images.Picture]) -> np.ndarray:
    """How much each pixel of the strokes counts, (H, W)."""
    if masks:
        return pictures.luma(masks[0])[0].numpy()
    if strokes.alpha is not None:
        return images.scaled(strokes.alpha)[..., 0]
    return (np.abs(strokes.pixels - photograph.pixels).max(2) > _PAINTED).astype(np.float32)


def _exposure(lit: images.Picture, dark: images.Picture) -> float | None:
    """The exposure of ``lit`` over that of ``dark`` by EXIF: time times ISO over f-number squared; None if EXIF does not tell."""
    ratios = []
    for names in (
        ("ExposureTime",),
        ("Exif:PhotographicSensitivity", "Exif:ISOSpeedRatings"),
        ("FNumber", "Exif:FNumber"),
    ):
        one, other = (max(picture.spec.get_float_attribute(name, 0.0) for name in names) for picture in (lit, dark))
        if (one > 0) != (other > 0) or (names[0] == "ExposureTime" and not one > 0):
            return None
        ratios.append(one / other if one > 0 else 1.0)
    time, sensitivity, aperture = ratios
    return time * sensitivity / aperture**2
