"""The command line: ``python -m bilagrid filter`` and ``python -m bilagrid upsample``."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal


def _interrupted() -> int:
    print("bilagrid: interrupted; files finished so far are kept", file=sys.stderr, flush=True)
    return 130


def _on_interrupt(handler: Any) -> None:
    # A background job of a shell ignores the signal, and goes on doing so.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


if __name__ == "__main__":
    # The imports take seconds, and an exception would be lost in them: some is C++, some catches everything.
    _on_interrupt(lambda *_: os._exit(_interrupted()))

try:
    import numpy as np
    import torch
    import tyro
    from tqdm import tqdm

    import bilagrid
    from bilagrid import images
    from bilagrid.filters import filter_lattice
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


class _RefusalError(Exception):
    """What the user has to change, in one line."""


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

    Files are PNG, TIFF or JPEG, 8 or 16 bits, gray or colour (TIFF: also 32-bit float). Depth, alpha, colour profile and EXIF are kept, and a picture
    that EXIF says is rotated is stored upright. JPEG holds 8 bits and no alpha.

    To try:

    python -m bilagrid filter
        filters a photograph that comes with scikit-image and writes a before/after picture here

    python -m bilagrid filter in.jpg out.jpg --sigma-space 16 --sigma-color 0.1

    python -m bilagrid filter *.png folder --sigma-color 0.05

    python -m bilagrid filter noflash.png out.png --guide flash.png
        the cross filter: edges are those of the guide

    Args:
        paths: one file and the file to write, or files or a folder and the folder to write to. Nothing: a photograph that comes with scikit-image.
        sigma_space: how far smoothing reaches: standard deviation in pixels, above 0. 4 removes fine grain, 16 texture; larger is faster.
        sigma_color: which steps count as edges: standard deviation in brightness, where black is 0 and white 1, above 0. 0.05 keeps faint edges, 0.1 is
            usual, 0.3 blurs most of them.
        guide: a picture of the same size whose edges are kept in place of the input's own.
        overwrite: replace files that exist. The input itself is never replaced.
        skip_existing: leave files that exist as they are and do the rest.
    """
    _check_sigmas(sigma_space, sigma_color)
    if overwrite and skip_existing:
        raise _RefusalError("--overwrite and --skip-existing exclude each other")
    if not paths:
        if guide is not None:
            raise _RefusalError("--guide needs an input of its own: filter IN OUT --guide FILE")
        _demonstrate(sigma_space, sigma_color, overwrite)
        return
    if len(paths) == 1:
        raise _RefusalError(f"OUT is missing: filter {paths[0]} OUT")
    jobs = _jobs(paths[:-1], paths[-1])
    _refuse_same([*(source for source, _ in jobs), *([guide] if guide else [])], [target for _, target in jobs])
    todo = _unwritten(jobs, overwrite, skip_existing)
    guide_picture = None if guide is None else images.read(guide)

    single = len(jobs) == 1 and not paths[0].is_dir()
    failures = []
    for source, target in tqdm(todo, unit="picture", disable=None if len(todo) > 1 else True):
        try:
            picture = images.read(source)
            images.check_target(target, picture.spec)
            if guide_picture is not None and guide_picture.size != picture.size:
                raise _RefusalError(
                    f"{guide}: is {_extent(guide_picture)}, must be as large as {source}, {_extent(picture)}"
                )
            smooth, _ = _smooth(picture, guide_picture, sigma_space, sigma_color)
            target.parent.mkdir(parents=True, exist_ok=True)
            images.write(target, smooth, picture, alpha=picture.alpha)
        except (images.ImageError, _RefusalError, ValueError, OSError) as error:
            if single:
                raise
            named = isinstance(error, (images.ImageError, _RefusalError))
            failures.append(str(error) if named else f"{source}: {error}")
    done = len(todo) - len(failures)
    print(f"wrote {todo[0][1]}" if single and done else f"wrote {done} of {_count(len(jobs), 'picture')}")
    if failures:
        raise _RefusalError("\nbilagrid: ".join(failures))


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
    """Bring the result of an edit, made on a small copy, to the size of the original.

    Shrink HIGH to LOW_IN, edit that into LOW_OUT by any slow means, and get at OUT the edit at full size, with the detail and the edges of HIGH. OUT has
    the depth and metadata of LOW_OUT and the alpha of HIGH, if it has one.

    To try:

    python -m bilagrid upsample photo.png small.png small_edited.png photo_edited.png

    python -m bilagrid upsample photo.png small.png small_edited.png photo_edited.png --fit global
        nearer to the edit, and slower

    python -m bilagrid upsample photo.png small.png small_mask.png mask.png --method jbu --sigma-space 1
        for what is no edit of colours, such as a mask or depth

    Args:
        high: the original at full size.
        low_in: a smaller copy of it, of the same proportions.
        low_out: what became of LOW_IN, of the same size as LOW_IN.
        out: the file to write.
        method: bgu: bilateral guided upsampling (Chen et al., 2016), which learns what the edit does to colours and does it to those of HIGH. jbu: joint
            bilateral upsampling (Kopf et al., 2007), which mixes pixels of LOW_OUT.
        fit: of bgu alone. fast: each cell of the grid by itself, the default. global: all cells at once.
        sigma_space: of jbu alone: standard deviation in pixels of the small pictures, above 0; 0.5 to 2 are usual, the default is 1.
        sigma_color: of jbu alone: standard deviation in brightness, where black is 0 and white 1, above 0; the default is 0.1.
        overwrite: replace OUT if it exists. The inputs are never replaced.
    """
    for other, name, value in (
        ("jbu", "--sigma-space", sigma_space),
        ("jbu", "--sigma-color", sigma_color),
        ("bgu", "--fit", fit),
    ):
        if value is not None and method != other:
            raise _RefusalError(f"{name} belongs to --method {other}, got --method {method}")
    sigma_space, sigma_color = 1.0 if sigma_space is None else sigma_space, 0.1 if sigma_color is None else sigma_color
    _check_sigmas(sigma_space, sigma_color)
    sources = [high, low_in, low_out]
    for source in sources:
        images.probe(source)
    _check_file(out)
    _refuse_same(sources, [out])
    _unwritten([(low_out, out)], overwrite, False)
    large, small, edited = (images.read(source) for source in sources)
    images.check_target(out, edited.spec)
    if large.alpha is not None and out.suffix.lower() in (".jpg", ".jpeg"):
        raise _RefusalError(f"{out}: JPEG has no alpha channel and HIGH has one, choose PNG or TIFF")
    if small.size != edited.size:
        raise _RefusalError(f"LOW_OUT must be as large as LOW_IN, {_extent(small)}, got {_extent(edited)}")
    if any(low > full for low, full in zip(small.size, large.size, strict=True)):
        raise _RefusalError(f"HIGH must be at least as large as LOW_IN, {_extent(small)}, got {_extent(large)}")
    ratios = [full / low for low, full in zip(small.size, large.size, strict=True)]
    # Shrinking rounds each side to whole pixels, by at most one.
    if abs(ratios[0] - ratios[1]) * min(small.size) > max(ratios) + 1e-6:
        raise _RefusalError(f"LOW_IN must have the proportions of HIGH, {_extent(large)}, got {_extent(small)}")
    if method == "bgu":
        full, low, done = (_tensor(picture.pixels) for picture in (large, small, edited))
        if full.shape[1] != low.shape[1]:
            kinds = {1: "gray", 3: "in colour"}
            raise _RefusalError(
                f"LOW_IN must be {kinds[full.shape[1]]} as HIGH is, and is {kinds[low.shape[1]]}; or choose --method jbu"
            )
        result = bilagrid.guided_upsample(full, low, done, method=fit or "fast")
    else:
        result = bilagrid.joint_bilateral_upsample(
            _tensor(edited.pixels), _luma(small), _luma(large), sigma_space=sigma_space, sigma_color=sigma_color
        )
    images.write(out, _array(result), edited, alpha=large.alpha)
    print(f"wrote {out}")


# A command is one line here; its arguments and help are its function's.
_COMMANDS: dict[str, Callable[..., None]] = {"filter": filter_, "upsample": upsample}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 2 refused, 130 interrupted."""
    try:
        tyro.extras.subcommand_cli_from_dict(
            _COMMANDS,
            prog="python -m bilagrid",
            description="Edge-aware image processing with the bilateral grid.",
            args=argv,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except KeyboardInterrupt:
        return _interrupted()
    except (images.ImageError, _RefusalError, ValueError, OverflowError, OSError) as error:
        print(f"bilagrid: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("bilagrid: not enough memory for this picture and these sigmas", file=sys.stderr)
        return 2
    return 0


def _demonstrate(sigma_space: float, sigma_color: float, overwrite: bool) -> None:
    try:
        import skimage.data
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise _RefusalError(
            f'the example photograph comes with scikit-image: python -m pip install -c constraints.txt -e ".[images]" ({error})'
        ) from None
    source = Path(skimage.data.__file__).parent / "coffee.png"
    target, comparison = Path("coffee_filtered.png"), Path("coffee_before_after.png")
    _unwritten([(source, target), (source, comparison)], overwrite, False)
    picture = images.read(source)
    for path in (target, comparison):
        images.check_target(path, picture.spec)
    began = time.perf_counter()
    smooth, _ = _smooth(picture, None, sigma_space, sigma_color)
    first = time.perf_counter() - began
    began = time.perf_counter()
    smooth, grid_size = _smooth(picture, None, sigma_space, sigma_color)
    again = time.perf_counter() - began
    images.write(target, smooth, picture)

    band = 28
    height, width = picture.size
    sheet = Image.new("RGB", (2 * width + 8, height + band), "white")
    for left, label, pixels in ((0, "before", picture.pixels), (width + 8, "after", smooth)):
        sheet.paste(Image.fromarray(np.rint(pixels.clip(0, 1) * 255).astype(np.uint8)), (left, band))
        ImageDraw.Draw(sheet).text((left + 4, 5), label, fill="black", font=ImageFont.load_default(16))
    images.write(comparison, np.asarray(sheet, dtype=np.float32) / 255, picture)
    print(f"picture  {width}x{height}, {source.name} from scikit-image")
    print(f"grid     {' x '.join(map(str, grid_size))} nodes (brightness, rows, columns)")
    print(f"time     {again * 1e3:.0f} ms; the first call, which loads or compiles the kernels, {first:.1f} s")
    print(f"wrote    {target}\nwrote    {comparison}")


def _smooth(
    picture: images.Picture, guide: images.Picture | None, sigma_space: float, sigma_color: float
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The filtered pixels and the size of the grid that made them."""
    luma = _luma(guide or picture)
    result = bilagrid.bilateral_filter(_tensor(picture.pixels), luma, sigma_space=sigma_space, sigma_color=sigma_color)
    lattice, _ = filter_lattice(luma, sigma_space, sigma_color)
    return _array(result), lattice.size


def _jobs(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path]]:
    """Pairs of file to read and file to write."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
            pictures = [path for path in inside if path.suffix.lower() in images.SUFFIXES]
            if not pictures:
                raise _RefusalError(f"{source}: holds no {' '.join(images.SUFFIXES)} files")
            if len(pictures) < len(inside):
                others = len(inside) - len(pictures)
                left = f"{_count(others, 'other file')} {'is' if others == 1 else 'are'} left out"
                print(f"{source}: {left}", file=sys.stderr)
            files += pictures
        else:
            files.append(source)
    if len(sources) == 1 and not sources[0].is_dir() and not out.is_dir():
        _check_file(out)
        return [(sources[0], out)]
    if os.path.lexists(out) and not out.is_dir():
        raise _RefusalError(f"{out}: must be a folder to hold {_count(len(files), 'picture')}, is none")
    if not out.is_dir() and out.suffix.lower() in images.SUFFIXES:
        raise _RefusalError(f"{out}: must be a folder to hold {_count(len(files), 'picture')}, has the name of a file")
    jobs = [(file, out / file.name) for file in files]
    seen: dict[Path, Path] = {}
    for source, target in jobs:
        if target in seen:
            raise _RefusalError(f"{seen[target]} and {source} would both be written to {target}")
        seen[target] = source
    return jobs


def _check_file(out: Path) -> None:
    if out.suffix.lower() not in images.SUFFIXES:
        raise _RefusalError(f"{out}: unknown output format '{out.suffix}', expected one of {' '.join(images.SUFFIXES)}")
    if not out.parent.is_dir():
        raise _RefusalError(f"{out.parent}: no such folder")


def _unwritten(jobs: list[tuple[Path, Path]], overwrite: bool, skip_existing: bool) -> list[tuple[Path, Path]]:
    # A link that leads nowhere exists too.
    existing = [target for _, target in jobs if os.path.lexists(target)]
    one = len(existing) == 1
    if existing and skip_existing:
        left = "exists and is left as it is" if one else "exist and are left as they are"
        print(f"{_count(len(existing), 'file')} {left}", file=sys.stderr)
        return [job for job in jobs if job[1] not in existing]
    if existing and not overwrite:
        what = (
            "exists; --overwrite replaces it"
            if one
            else f"and {len(existing) - 1} more exist; --overwrite replaces them"
        )
        raise _RefusalError(f"{existing[0]} {what}")
    return jobs


def _refuse_same(sources: Sequence[Path], targets: Sequence[Path]) -> None:
    taken = {identity for source in sources for identity in _identities(source)}
    for target in targets:
        if not taken.isdisjoint(_identities(target)):
            raise _RefusalError(f"{target}: is an input, choose another name to write to")


def _identities(path: Path) -> list[object]:
    """What two names of one file have in common: where it lies, and, for hard links, its number."""
    where = os.path.normcase(os.path.realpath(path))
    if not path.exists():
        return [where]
    status = path.stat()
    return [where, (status.st_dev, status.st_ino)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_sigmas(sigma_space: float, sigma_color: float) -> None:
    for name, value in (("--sigma-space", sigma_space), ("--sigma-color", sigma_color)):
        if not (math.isfinite(value) and value > 0):
            raise _RefusalError(f"{name} must be a number above 0, got {value:g}")


def _extent(picture: images.Picture) -> str:
    height, width = picture.size
    return f"{width}x{height}"


def _tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]


def _array(values: torch.Tensor) -> np.ndarray:
    return values[0].permute(1, 2, 0).numpy()


def _luma(picture: images.Picture) -> torch.Tensor:
    """BT.601, as the filters compute it: (1, H, W)."""
    values = _tensor(picture.pixels)
    if values.shape[1] == 1:
        return values[:, 0]
    return values.mul(torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)


if __name__ == "__main__":
    _on_interrupt(signal.default_int_handler)
    sys.exit(main())
