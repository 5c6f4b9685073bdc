"""What commands show: a photograph that comes with scikit-image before and after, and sheets of labelled pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bilagrid import images
from bilagrid.commands import Refusal, unwritten
from bilagrid.pictures import dimensions

_BAND, _GAP = 28, 8


def photograph() -> Path:
    """The file of a cup of coffee by Rachel Michetti, in the public domain."""
    try:
        import skimage.data
    except ImportError as error:
        raise Refusal(
            f'the example photograph comes with scikit-image: python -m pip install -c constraints.txt -e ".[images]" ({error})'
        ) from None
    return Path(skimage.data.__file__).parent / "coffee.png"


def before_after(
    done: str, process: Callable[[images.Picture], np.ndarray], *, overwrite: bool, facts: dict[str, str]
) -> None:
    """Processes the photograph, writes ``coffee_<done>.png`` and ``coffee_before_after.png`` to the current folder, and prints the facts and the time taken."""
    source, target, comparison = photograph(), Path(f"coffee_{done}.png"), Path("coffee_before_after.png")
    unwritten([(source, target), (source, comparison)], overwrite=overwrite)
    picture = images.read(source)
    for path in (target, comparison):
        images.check_target(path, picture.spec)
    began = time.perf_counter()
    process(picture)
    first = time.perf_counter() - began
    began = time.perf_counter()
    result = process(picture)
    again = time.perf_counter() - began
    images.write(target, result, picture)
    images.write(comparison, sheet([[("before", picture.pixels), ("after", images.scaled(result))]]), picture)
    facts = {
        "picture": f"{dimensions(picture.size)}, {source.name} from scikit-image",
        **facts,
        "time": f"{again * 1e3:.0f} ms; the first call, which loads or compiles the kernels, {first:.1f} s",
    }
    for name, fact in facts.items():
        print(f"{name:<8} {fact}")
    print(f"wrote    {target}\nwrote    {comparison}")


def sheet(rows: Sequence[Sequence[tuple[str, np.ndarray]]]) -> np.ndarray:
    """One picture of many: rows of pictures ``(H, W, 3)`` in [0, 1], each under its label, on white."""
    from PIL import Image, ImageDraw, ImageFont

    widths = [max(row[k][1].shape[1] for row in rows if k < len(row)) for k in range(max(map(len, rows)))]
    heights = [max(pixels.shape[0] for _, pixels in row) for row in rows]
    whole = Image.new(
        "RGB", (sum(widths) + _GAP * (len(widths) - 1), sum(heights) + (_BAND + _GAP) * len(rows) - _GAP), "white"
    )
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for (label, pixels), width in zip(row, widths, strict=False):
            whole.paste(Image.fromarray(images.quantised(pixels, np.dtype(np.uint8))), (left, top + _BAND))
            ImageDraw.Draw(whole).text((left + 4, top + 5), label, fill="black", font=ImageFont.load_default(16))
            left += width + _GAP
        top += height + _BAND + _GAP
    return np.asarray(whole, dtype=np.float32) / 255
