"""Image files in and out: 8- and 16-bit PNG, TIFF and JPEG, float TIFF, OpenEXR and Radiance HDR, with alpha, colour profile and EXIF."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bilagrid import metadata
from bilagrid.commands import Refusal, replace

try:
    import OpenImageIO as oiio  # noqa: N813 -- its own documentation names it so
except ImportError as error:
    raise ImportError(
        'image files need OpenImageIO: python -m pip install -c constraints.txt -e ".[images]"'
    ) from error

RADIANCE = (".hdr", ".exr")
_TIFF = (".tif", ".tiff")
_JPEG = (".jpg", ".jpeg")
PICTURES = (".png", *_TIFF, *_JPEG)
SUFFIXES = (*PICTURES, *RADIANCE)
# What can hold floats.
FLOATS = (*RADIANCE, *_TIFF)
_JPEG_QUALITY = 95
_FORMATS = (
    {".png": "png", ".hdr": "hdr", ".exr": "openexr"} | dict.fromkeys(_TIFF, "tiff") | dict.fromkeys(_JPEG, "jpeg")
)
# Formats that are written back and forth, or have no mark at their end, by writers that do not say when the end is missing: these are read again.
_READ_AGAIN = ("tiff", "openexr", "hdr")
# The channels of a picture, of all that OpenEXR can hold.
_EXR_CHANNELS = (("Y",), ("Y", "A"), ("R", "G", "B"), ("R", "G", "B", "A"))
# OpenImageIO writes to named files only; on this system a name can stand for memory.
_MEMORY = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")

# EXIF orientation to the array operation that sets the picture upright.
_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


class ImageError(Refusal):
    """A file that cannot be read or written, in one line for the user."""


@dataclass(frozen=True)
class Picture:
    """An upright picture: gray or colour ``values`` ``(H, W, 1 or 3)`` and alpha at their own depth; the rest, in ``spec``, as it was in the file."""

    values: np.ndarray
    alpha: np.ndarray | None
    spec: Any

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """The values as float32 in [0, 1]; those of float files as they are."""
        return scaled(self.values)


def probe(path: Path) -> Any:
    """The header of a file that `read` can read; an `ImageError` for any other."""
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, an image file was expected")
    if path.suffix.lower() not in SUFFIXES:
        raise ImageError(f"{path}: unknown format, expected one of {' '.join(SUFFIXES)}")
    file = _open(path)
    try:
        spec = file.spec()
        if path.suffix.lower() in (*_TIFF, ".exr") and file.seek_subimage(1, 0):
            raise ImageError(f"{path}: has several pages, only single pictures are read")
    finally:
        file.close()
    if path.suffix.lower() == ".exr":
        _probe_exr(path, spec)
    channels = spec.nchannels
    if channels > 4 or (channels == 4 and spec.alpha_channel != 3) or (channels == 2 and spec.alpha_channel != 1):
        raise ImageError(f"{path}: has {channels} channels, expected gray or colour, with or without alpha")
    if str(spec.format) not in ("uint8", "uint16", "half", "float"):
        raise ImageError(f"{path}: holds {spec.format} values, expected 8 or 16 bits or 16- or 32-bit float")
    return spec


def read(path: Path) -> Picture:
    """Reads a picture, set upright by its EXIF orientation."""
    probe(path)
    if path.suffix.lower() in _JPEG and not _jpeg_complete(path.read_bytes()):
        raise ImageError(f"{path}: cannot be read: the file is truncated")
    file = _open(path)
    try:
        spec = oiio.ImageSpec(file.spec())
        values = file.read_image(oiio.FLOAT if str(spec.format) == "half" else oiio.UNKNOWN)
        fault = file.geterror()
    finally:
        file.close()
    if values is None or fault:
        raise ImageError(f"{path}: cannot be read: {_one_line(fault) or 'the file is damaged or truncated'}")
    if path.suffix.lower() in PICTURES:
        metadata.mend_exif(spec, path)
    values = np.asarray(values).reshape(spec.height, spec.width, spec.nchannels)
    values = np.ascontiguousarray(_UPRIGHT.get(spec.get_int_attribute("Orientation", 1), _UPRIGHT[1])(values))
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise ImageError(f"{path}: holds values that are not finite")
    colours = 3 if spec.nchannels >= 3 else 1
    alpha = values[:, :, colours:] if spec.nchannels > colours else None
    values = values[:, :, :colours]
    if alpha is not None and not spec.get_int_attribute("oiio:UnassociatedAlpha"):
        # Colours are multiplied by alpha in OpenEXR, and in a TIFF that says so.
        values = _divided(values, alpha)
        spec.attribute("oiio:UnassociatedAlpha", 1)
    return Picture(values, alpha, spec)


def _divided(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours divided by the alpha that they were multiplied by, at their own depth; where alpha is 0, as they are."""
    divisor = scaled(alpha)
    return quantised(scaled(values) / np.where(divisor > 0, divisor, 1), values.dtype)


def without_opaque_alpha(picture: Picture) -> Picture:
    """The picture without an alpha channel that hides nothing, which some programs always write."""
    if picture.alpha is None or (scaled(picture.alpha) < 1).any():
        return picture
    spec = oiio.ImageSpec(picture.spec)
    spec.nchannels, spec.alpha_channel = picture.values.shape[2], -1
    return Picture(picture.values, None, spec)


def check_target(path: Path, spec: Any, *, has_alpha: bool | None = None) -> None:
    """Refuses, before any work, a target whose format cannot hold what ``spec`` describes. Whether there is alpha ``has_alpha`` may say otherwise."""
    suffix = path.suffix.lower()
    has_alpha = spec.alpha_channel >= 0 if has_alpha is None else has_alpha
    if suffix not in SUFFIXES:
        raise ImageError(f"{path}: unknown output format '{path.suffix}', expected one of {' '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise ImageError(f"{path}: is not a file, choose another name to write to")
    if suffix in _JPEG and has_alpha:
        raise ImageError(f"{path}: JPEG has no alpha channel, choose PNG or TIFF")
    if suffix == ".hdr" and has_alpha:
        raise ImageError(f"{path}: Radiance has no alpha channel, choose .exr or .tif")
    floating = str(spec.format) in ("half", "float")
    if floating and suffix not in FLOATS:
        raise ImageError(
            f"{path}: float values fit .tif, .exr and .hdr; to make a picture of them: python -m bilagrid tonemap IN {path.name}"
        )
    if not floating and suffix in RADIANCE:
        raise ImageError(f"{path}: holds float values only, got {spec.format} ones, choose .png or .tif")


def write(path: Path, pixels: np.ndarray, like: Picture, *, alpha: np.ndarray | None = None) -> None:
    """Writes pixels ``(H, W, 1 or 3)`` with the metadata of ``like``, whole or not at all. They are in [0, 1] or at the file's `depth`; alpha is of any depth."""
    suffix = path.suffix.lower()
    dtype = depth(path, like)
    values = pixels if pixels.dtype == dtype else quantised(pixels, dtype)
    if suffix == ".hdr":
        if (values < 0).any():
            raise ImageError(f"{path}: Radiance holds no negative values, choose .exr or .tif")
        # The writer rounds down to steps of RGBE. Raised by half a step, values are rounded to the nearest, and no scene darkens.
        most = values.max(2, keepdims=True)
        values = np.where(most > 0, values + np.ldexp(np.float32(0.5), np.frexp(most)[1] - 8), values)
        values = np.broadcast_to(values, (*values.shape[:2], 3))
    if suffix == ".exr" and alpha is not None:
        values = values * alpha
    if alpha is not None:
        values = np.concatenate([values, alpha if alpha.dtype == dtype else quantised(scaled(alpha), dtype)], axis=2)
    spec = _spec(values, like.spec, jpeg=suffix in _JPEG, has_alpha=alpha is not None)
    if suffix == ".exr":
        spec.channelnames = _EXR_CHANNELS[values.shape[2] - 1]
    try:
        replace(Path(os.path.realpath(path)), _encode(path, spec, values))
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from None


def plain(pixels: np.ndarray) -> Picture:
    """A picture of 8 bits without metadata, for `write`."""
    height, width, channels = pixels.shape
    return Picture(quantised(pixels, np.dtype(np.uint8)), None, oiio.ImageSpec(width, height, channels, "uint8"))


def developed(pixels: np.ndarray, radiance: Picture, path: Path) -> Picture:
    """What was made of a radiance to be looked at, for a file of this name: 16 bits in TIFF, else 8; alpha and metadata are the radiance's, except its colour space."""
    dtype = np.dtype(np.uint16 if path.suffix.lower() in _TIFF else np.uint8)
    return Picture(quantised(pixels, dtype), radiance.alpha, _of_other_light(radiance.spec, str(dtype)))


def merged(radiance: np.ndarray, like: Picture) -> Picture:
    """A radiance made of photographs, with the metadata of one of them except its colour space."""
    spec = _of_other_light(like.spec, "float")
    # EXIF's number for "not sRGB": without it, readers take the values of a file with EXIF for encoded ones.
    spec.attribute("Exif:ColorSpace", 65535)
    return Picture(quantised(radiance, np.dtype(np.float32)), None, spec)


def _of_other_light(spec: Any, kind: str) -> Any:
    spec = oiio.ImageSpec(spec)
    spec.set_format(kind)
    spaces = ("ICCProfile", "oiio:ColorSpace", "Exif:ColorSpace", "colorInteropID", "chromaticities", "whiteLuminance")
    for name in spaces:
        spec.erase_attribute(name)
    return spec


def depth(path: Path, like: Picture) -> np.dtype:
    """The depth at which a file of this name holds a picture: 8 bits for JPEG, else the picture's own."""
    return np.dtype(np.uint8) if path.suffix.lower() in _JPEG else like.dtype


def scaled(values: np.ndarray) -> np.ndarray:
    """Values of 8 or 16 bits as float32 in [0, 1]; float values as they are."""
    if values.dtype == np.float32:
        return values
    return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)


def quantised(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Pixels in [0, 1] clipped and rounded to a depth; for float32 neither."""
    if dtype == np.float32:
        return pixels.astype(np.float32)
    top = np.iinfo(dtype).max
    return np.rint(np.clip(pixels.astype(np.float64), 0, 1) * top).astype(dtype)


def _encode(path: Path, spec: Any, values: np.ndarray) -> bytes:
    """The bytes of the whole file, or an `ImageError`.

    It is encoded into memory first: OpenImageIO does not report every short write to a file, and libjpeg ends the process at one.
    """
    kind = _FORMATS[path.suffix.lower()]
    with _sink(kind) as (name, data):
        fault = _emit(name, kind, spec, values)
    encoded = bytes(data)
    if not fault and not _whole(encoded, kind):
        fault = "the encoded picture has no end; is there room for it, and no limit on the size of files (ulimit -f)?"
    if fault:
        raise ImageError(f"{path}: cannot be written: {_one_line(fault)}")
    return encoded


@contextlib.contextmanager
def _sink(kind: str) -> Iterator[tuple[str, bytearray]]:
    """A name to write to, and the bytes that were written to it, complete when the context ends."""
    data = bytearray()
    if not _MEMORY:
        with tempfile.TemporaryDirectory(prefix="bilagrid-") as folder:
            name = Path(folder, f"picture.{kind}")
            yield str(name), data
            data += name.read_bytes() if name.exists() else b""
    elif kind in _READ_AGAIN:
        number = os.memfd_create("bilagrid")
        with open(number, "rb") as file:
            yield f"/proc/self/fd/{number}", data
            data += file.read()
    else:
        # Unlike a file in memory, a pipe has no size to be limited.
        out, number = os.pipe()

        def drain() -> None:
            with open(out, "rb") as file:
                data.extend(file.read())

        reader = threading.Thread(target=drain, daemon=True)
        reader.start()
        try:
            yield f"/proc/self/fd/{number}", data
        finally:
            os.close(number)
        reader.join()


def _emit(name: str, kind: str, spec: Any, values: np.ndarray) -> str:
    """Writes the file ``name``; returns what went wrong, as far as OpenImageIO says."""
    file = oiio.ImageOutput.create(kind)
    if file is None:
        return oiio.geterror() or "unknown format"
    try:
        done = file.open(name, spec) and file.write_image(np.ascontiguousarray(values))
    finally:
        closed = file.close()
    if not (done and closed):
        return file.geterror() or "the encoder stopped"
    if kind in _READ_AGAIN:
        again = oiio.ImageInput.open(name)
        # The directory of a TIFF is written last, so opening it is enough; of the others every row must be there.
        if again is None or (kind != "tiff" and again.read_image(oiio.UNKNOWN) is None):
            fault = oiio.geterror() if again is None else again.geterror()
            return f"the encoded picture cannot be read again: {fault}"
    return ""


def _whole(data: bytes, kind: str) -> bool:
    if kind == "png":
        return data[-8:-4] == b"IEND"
    return kind != "jpeg" or (_jpeg_complete(data) and data.endswith(b"\xff\xd9"))


def _probe_exr(path: Path, spec: Any) -> None:
    """Refuses an OpenEXR file that holds something else than a picture."""
    if spec.deep:
        raise ImageError(f"{path}: holds deep pixels, only flat pictures are read")
    if tuple(spec.channelnames) not in _EXR_CHANNELS:
        names = ", ".join(spec.channelnames[:8]) + (", ..." if spec.nchannels > 8 else "")
        raise ImageError(f"{path}: holds the channels {names}; expected R, G, B or Y alone, with or without A")
    window, whole = (
        (spec.x, spec.y, spec.width, spec.height),
        (spec.full_x, spec.full_y, spec.full_width, spec.full_height),
    )
    if window != whole:
        raise ImageError(
            f"{path}: its data window (x, y, width, height) = {window} is not its display window {whole}, expected the same"
        )


def _open(path: Path) -> Any:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ImageError(f"{path}: cannot be read: its name is not in UTF-8, rename it") from None
    config = oiio.ImageSpec()
    config.attribute("oiio:UnassociatedAlpha", 1)
    file = oiio.ImageInput.open(str(path), config)
    if file is None:
        raise ImageError(f"{path}: cannot be read: {_one_line(oiio.geterror()) or 'not an image'}")
    return file


def _spec(values: np.ndarray, source: Any, *, jpeg: bool, has_alpha: bool) -> Any:
    height, width, channels = values.shape
    spec = oiio.ImageSpec(width, height, channels, "float" if values.dtype == np.float32 else str(values.dtype))
    spec.extra_attribs = source.extra_attribs
    spec.alpha_channel = channels - 1 if has_alpha else -1
    # With these the writer would make CMYK again of what was decoded to RGB.
    inks = ("tiff:ColorSpace", "tiff:PhotometricInterpretation")
    for name in (*inks, "oiio:BitsPerSample", "oiio:ConstantColor", "oiio:AverageColor", "oiio:SHA-1"):
        spec.erase_attribute(name)
    profile = source.getattribute("ICCProfile")
    # CMYK is decoded to RGB, which its profile does not describe.
    if profile is not None and bytes(profile)[16:20] != (b"RGB " if channels - has_alpha == 3 else b"GRAY"):
        spec.erase_attribute("ICCProfile")
    # OpenImageIO's description of the profile, which PNG would hold as texts.
    spec.erase_attribute("ICCProfile:.*")
    # Unless another space is named the writers call any picture sRGB, PNG's even beside a profile.
    if spec.getattribute("ICCProfile") is not None or spec.get_int_attribute("Exif:ColorSpace", 1) != 1:
        spec.attribute("oiio:ColorSpace", "unknown")
    if source.get_int_attribute("Orientation", 1) != 1:
        spec.attribute("Orientation", 1)
    for name, extent in (("Exif:PixelXDimension", width), ("Exif:PixelYDimension", height)):
        if source.get_int_attribute(name, 0):
            spec.attribute(name, extent)
    if jpeg:
        spec.attribute("Compression", f"jpeg:{_JPEG_QUALITY}")
    elif str(spec.getattribute("Compression") or "").startswith("jpeg"):
        spec.erase_attribute("Compression")
    return spec


def _jpeg_complete(data: bytes) -> bool:
    """Whether an end marker follows the first scan. The decoder itself fills a truncated picture with gray and says nothing."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return data.find(b"\xff\xd9", at) >= 0
    return False


def _one_line(text: str) -> str:
    return " ".join(text.split())
