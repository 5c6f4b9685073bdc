"""A bracket: photographs of one scene at several exposures, read, checked and sorted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bilagrid import images
from bilagrid.commands import Refusal, count
from bilagrid.pictures import dimensions

# Files beside the photographs with one value for each, in the order of their names.
_TIMES_FILES = ("exposure.txt", "input_exp.txt", "ev.txt")
_HOW = f"give them: --times 1/1000 1/250 1/60, or a file {_TIMES_FILES[0]} beside the photographs"

_FEWEST, _MOST = 2, 7
_APART = 0.1  # stops; exposures closer than that count as equal
FARTHEST = 30.0  # the most stops from the first to the last
_STEP = 0.9  # the least stops from the middle to a neighbour that adds something
WELL_EXPOSED = (0.1, 0.9)  # encoded values between which a pixel counts as well exposed
_USEFUL = 0.01  # the least share of well-exposed pixels


@dataclass(frozen=True)
class Bracket:
    """Photographs from the shortest exposure to the longest.

    Args:
        paths: where they were read.
        ldr: ``(K, H, W, 3)`` float32 in [0, 1], as the camera encoded them.
        ev: ``(K,)``, log2 of the light that each gathered, the least 0.
        middle: the number of the one that the others are aligned to: of three or more neither the first nor the last.
        like: the middle one as it was read, for its metadata.
    """

    paths: tuple[Path, ...]
    ldr: np.ndarray
    ev: np.ndarray
    middle: int
    like: images.Picture


def read(paths: Sequence[Path], times: Sequence[str] | None = None) -> Bracket:
    """Reads two to seven photographs with their exposures, sorted by these.

    Args:
        paths: PNG, TIFF or JPEG, 8 or 16 bits, all of one size; an alpha channel that hides nothing is left out.
        times: exposure times in seconds in the order of ``paths``, as ``1/250`` or ``0.004``. By default those of a file ``exposure.txt`` beside the
            photographs, else those of EXIF, with its aperture and ISO. The file holds log2 values, or times if one is written as ``1/250`` or ``0.5s``, in
            the order of the names of these photographs or of all pictures in their folder.

    Raises:
        Refusal: files that cannot be read, differ in size or are no photographs; exposures that are missing, equal, or contradicted by the pictures.
    """
    if not _FEWEST <= len(paths) <= _MOST:
        raise Refusal(f"a bracket has {_FEWEST} to {_MOST} photographs, got {len(paths)}")
    for k, path in enumerate(paths):
        if any(path.resolve() == other.resolve() for other in paths[:k]):
            raise Refusal(f"{path}: is given twice, a bracket's photographs must differ")
    pictures = [images.without_opaque_alpha(images.read(path)) for path in paths]
    for path, picture in zip(paths, pictures, strict=True):
        _check_picture(path, picture, paths[0], pictures[0])
    ev = _exposures(paths, pictures, times)
    order = np.argsort(ev, kind="stable")
    paths, pictures = [paths[k] for k in order], [pictures[k] for k in order]
    ev = ev[order] - ev.min()
    for k in range(1, len(ev)):
        if ev[k] - ev[k - 1] < _APART:
            raise Refusal(f"{paths[k - 1]} and {paths[k]} have the same exposure, a bracket's must differ; {_HOW}")
    if ev[-1] > FARTHEST:
        raise Refusal(
            f"{paths[0]} and {paths[-1]} are {ev[-1]:.4g} stops apart, no bracket is more than {FARTHEST:.0f}; {_HOW}"
        )
    ldr = np.stack([np.broadcast_to(picture.pixels, (*picture.size, 3)) for picture in pictures])
    _check_exposed(paths, ldr, ev)
    middle = _middle(ldr)
    return Bracket(tuple(paths), ldr, ev, middle, pictures[middle])


def choose(bracket: Bracket) -> Bracket:
    """The best three: the one with the most well-exposed pixels, and on either side of it the nearest that is about a stop away and shows something."""
    if len(bracket.ev) <= 3:
        return bracket
    well = _well_exposed(bracket.ldr)
    middle = bracket.middle

    def neighbour(candidates: list[int]) -> int:
        """The first useful one of ``candidates``, which go from the nearest to the farthest."""
        far = [k for k in candidates if abs(bracket.ev[k] - bracket.ev[middle]) >= _STEP] or candidates[-1:]
        return next((k for k in far if well[k] >= _USEFUL), far[0])

    kept = [neighbour([*range(middle - 1, -1, -1)]), middle, neighbour([*range(middle + 1, len(well))])]
    ev = bracket.ev[kept]
    return replace(
        bracket, paths=tuple(bracket.paths[k] for k in kept), ldr=bracket.ldr[kept], ev=ev - ev.min(), middle=1
    )


def _middle(ldr: np.ndarray) -> int:
    """The number of the best exposed one; of three or more not one at the ends."""
    well = _well_exposed(ldr)
    return int(np.argmax(well[1:-1])) + 1 if len(well) > 2 else int(np.argmax(well))


def _well_exposed(ldr: np.ndarray) -> np.ndarray:
    """The share of well-exposed pixels of each photograph."""
    green = ldr[:, ::2, ::2, 1]
    return ((green > WELL_EXPOSED[0]) & (green < WELL_EXPOSED[1])).mean((1, 2))


def _check_picture(path: Path, picture: images.Picture, first_path: Path, first: images.Picture) -> None:
    if picture.dtype == np.float32:
        raise Refusal(f"{path}: holds float values, a photograph of 8 or 16 bits was expected")
    if picture.alpha is not None:
        raise Refusal(f"{path}: has transparent pixels, a photograph without was expected")
    if picture.size != first.size:
        raise Refusal(
            f"{path}: is {dimensions(picture.size)}, must be as large as {first_path}, {dimensions(first.size)}"
        )


def _check_exposed(paths: Sequence[Path], ldr: np.ndarray, ev: np.ndarray) -> None:
    means = ldr.mean((1, 2, 3))
    for k, path in enumerate(paths):
        if np.quantile(ldr[k, ::4, ::4].max(-1), 0.999) < 4 / 255:
            raise Refusal(f"{path}: is all black, leave it out")
        if np.quantile(ldr[k, ::4, ::4].min(-1), 0.001) > 251 / 255:
            raise Refusal(f"{path}: is all white, leave it out")
        if k and means[k] < 0.95 * means[k - 1]:
            raise Refusal(
                f"{path}: is darker than {paths[k - 1]}, but has {ev[k] - ev[k - 1]:.1f} stops more by its exposure; are the times in the order of the files?"
            )


def _exposures(paths: Sequence[Path], pictures: Sequence[images.Picture], times: Sequence[str] | None) -> np.ndarray:
    """Log2 exposures, from any zero."""
    if times is not None:
        if len(times) != len(paths):
            raise Refusal(f"--times must give one time for each of {len(paths)} photographs, got {len(times)}")
        return np.array([math.log2(_time("--times", time)) for time in times])
    for name in _TIMES_FILES:
        file = paths[0].parent / name
        if file.is_file() and all(path.parent == paths[0].parent for path in paths):
            return _from_file(file, paths)
    return _from_exif(paths, pictures)


def _from_file(file: Path, paths: Sequence[Path]) -> np.ndarray:
    words = file.read_text(errors="replace").replace(",", " ").split()
    names = sorted(path.name for path in paths)
    if len(words) != len(names):
        # These are only some of the folder's photographs, and the file is of all.
        names = sorted(path.name for path in file.parent.iterdir() if path.suffix.lower() in images.PICTURES)
    if len(words) != len(names):
        raise Refusal(
            f"{file}: holds {count(len(words), 'value')}, expected one for each of {len(paths)} photographs; or give --times 1/1000 1/250 1/60"
        )
    if any("/" in word or word.endswith("s") for word in words):
        values = [math.log2(_time(str(file), word)) for word in words]
    else:
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise Refusal(f"{file}: expected log2 values, as -2, or times, as 1/250 or 0.5s; got {words}") from None
    if not np.isfinite(values).all():
        raise Refusal(f"{file}: expected finite values, got {words}")
    by_name = dict(zip(names, values, strict=True))
    return np.array([by_name[path.name] for path in paths])


def _time(source: str, word: str) -> float:
    try:
        above, *below = (float(number) for number in word.removesuffix("s").split("/", 1))
        seconds = above / below[0] if below else above
        if not math.isfinite(seconds):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise Refusal(f"{source}: expected times in seconds, as 1/250 or 0.004, got {word!r}") from None
    if seconds <= 0:
        raise Refusal(f"{source}: times must be above 0, got {word}")
    return seconds


def _from_exif(paths: Sequence[Path], pictures: Sequence[images.Picture]) -> np.ndarray:
    """Log2 of t ISO / N²: of the exposure time, and of aperture and ISO if all photographs have them."""

    def all_of(*names: str) -> list[float] | None:
        found = [max(picture.spec.get_float_attribute(name, 0.0) for name in names) for picture in pictures]
        missing = [path for path, value in zip(paths, found, strict=True) if not (math.isfinite(value) and value > 0)]
        if missing and (names[0] == "ExposureTime" or len(missing) < len(paths)):
            raise Refusal(f"{missing[0]}: has no {names[0]} in its EXIF; {_HOW}")
        return None if missing else found

    ev = np.log2(np.array(all_of("ExposureTime")))
    apertures, isos = (
        all_of("FNumber", "Exif:FNumber"),
        all_of("Exif:PhotographicSensitivity", "Exif:ISOSpeedRatings"),
    )
    if apertures is not None:
        ev -= 2 * np.log2(apertures)
    if isos is not None:
        ev += np.log2(isos)
    return ev
