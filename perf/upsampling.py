"""How near several methods come that bring an edit of a small image to full size: ``python -m perf.upsampling``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import bilagrid
from bilagrid.commands import Refusal
from perf import arguments, rows
from perf.arguments import Out, Threads

_PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
_FACTOR = 8
_PAIR_FACTORS = (2, 4, 8)


@dataclass(frozen=True)
class Case:
    """A small image ``low`` and its edit ``target``, the large image ``high`` and its edit, the ``truth``."""

    image: str
    operator: str
    factor: int
    low: Tensor
    target: Tensor
    high: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Row:
    """PSNR in dB of each method. It ``wins`` if fast and global are both above affine and jbu."""

    image: str
    operator: str
    factor: int
    affine: float
    jbu: float
    fast: float
    global_: float

    @property
    def wins(self) -> bool:
        return min(self.fast, self.global_) > max(self.affine, self.jbu)


def luma(image: Tensor) -> Tensor:
    """``(1, H, W)``, BT.601 of colours."""
    if image.shape[1] == 1:
        return image[:, 0]
    return 0.299 * image[:, 0] + 0.587 * image[:, 1] + 0.114 * image[:, 2]


def shrink(image: Tensor, factor: int) -> Tensor:
    size = [max(1, round(extent / factor)) for extent in image.shape[2:]]
    return torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)


def _local_contrast(image: Tensor) -> Tensor:
    """Local contrast doubled: what a bilateral filter takes away is added once more."""
    gray = luma(image)[:, None]
    sigma = 0.06 * max(image.shape[2:])
    return image + gray - bilagrid.bilateral_filter(gray, sigma_space=sigma, sigma_color=0.2)


def _tone_mapping(image: Tensor) -> Tensor:
    """Durand and Dorsey's: half the contrast of a bilateral base of log luminance."""
    gray = luma(image)[:, None]
    logarithm = (gray + 0.02).log10()
    sigma = 0.02 * max(image.shape[2:])
    base = bilagrid.bilateral_filter(logarithm, sigma_space=sigma, sigma_color=0.4)
    return image * (10 ** (logarithm - 0.5 * base) - 0.02).clamp(0) / (gray + 1e-4)


def _clahe(image: Tensor) -> Tensor:
    """scikit-image's contrast-limited adaptive histogram equalisation of brightness, in eighths of the image."""
    from skimage import exposure

    pixels = exposure.equalize_adapthist(image[0].movedim(0, -1).numpy(), clip_limit=0.02)
    return torch.from_numpy(np.moveaxis(pixels.astype(np.float32), -1, 0).copy())[None]


def _vignette(image: Tensor) -> Tensor:
    y, x = (torch.linspace(-1, 1, extent) for extent in image.shape[2:])
    return image * (1 - 0.4 * (y[:, None] ** 2 + x**2))


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "local contrast": _local_contrast,
    "tone mapping": _tone_mapping,
    "CLAHE": _clahe,
    "vignette": _vignette,
}


def photographs(names: Sequence[str]) -> Iterator[Case]:
    """Each photograph under each operator."""
    from skimage import data

    for name in names:
        pixels = getattr(data, name)().astype(np.float32) / 255
        high = torch.from_numpy(pixels).movedim(-1, 0)[None].contiguous()
        low = shrink(high, _FACTOR)
        for title, operator in OPERATORS.items():
            yield Case(name, title, _FACTOR, low, operator(low).clamp(0, 1), high, operator(high).clamp(0, 1))


def pair(source: Path, edited: Path) -> Iterator[Case]:
    """An image and its edit, from two files, shrunk by each factor."""
    from bilagrid import images

    pictures = [images.read(path) for path in (source, edited)]
    if pictures[0].size != pictures[1].size:
        sizes = ["{1}x{0}".format(*picture.size) for picture in pictures]
        raise Refusal(f"{edited}: is {sizes[1]}, must be as large as {source}, {sizes[0]}")
    high, truth = (torch.from_numpy(picture.pixels).movedim(-1, 0)[None].contiguous() for picture in pictures)
    for factor in _PAIR_FACTORS:
        yield Case(source.stem, edited.stem, factor, shrink(high, factor), shrink(truth, factor), high, truth)


def measure(case: Case) -> Row:
    """Every method's PSNR."""

    def psnr(found: Tensor) -> float:
        return -10 * (found.clamp(0, 1) - case.truth).square().mean().log10().item()

    guides = luma(case.low), luma(case.high)
    jbu = [
        psnr(bilagrid.joint_bilateral_upsample(case.target, *guides, sigma_space=space, sigma_color=color))
        for space in (0.5, 1.0)
        for color in (0.05, 0.1)
    ]
    ours = [
        psnr(bilagrid.guided_upsample(case.high, case.low, case.target, method=method)) for method in ("fast", "global")
    ]
    return Row(case.image, case.operator, case.factor, psnr(_affine(case)), max(jbu), *ours)


def _affine(case: Case) -> Tensor:
    low, high = (
        torch.cat([image, torch.ones_like(image[:, :1])], 1)[0].flatten(1).double() for image in (case.low, case.high)
    )
    solution = torch.linalg.lstsq(low.T, case.target[0].flatten(1).double().T, driver="gelsd").solution
    return (solution.T @ high).unflatten(1, case.high.shape[2:])[None].float()


def table(rows: Sequence[Row]) -> str:
    """In Markdown; the best of a row is bold."""
    lines = ["| image | operator | 1/ | affine | JBU | fast | global |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        values = [row.affine, row.jbu, row.fast, row.global_]
        shown = [f"**{value:.1f}**" if value == max(values) else f"{value:.1f}" for value in values]
        lines.append(f"| {row.image} | {row.operator} | {row.factor} | {' | '.join(shown)} |")
    return "\n".join(lines)


_Only = Annotated[Sequence[str], {"nargs": "+", "choices": _PHOTOGRAPHS, "metavar": "IMAGE"}]
_Pairs = Annotated[
    list[list[Path]] | None, {"nargs": 2, "type": Path, "action": "append", "metavar": ("LOW_IN", "LOW_OUT")}
]


def upsampling(
    *,
    only: _Only = _PHOTOGRAPHS,
    pair_: _Pairs = None,
    threads: Threads = None,
    out: Out = None,
    overwrite: bool = False,
) -> None:
    """Runs local operators on photographs that come with scikit-image shrunk to an eighth, brings the results up to full size,
    and compares them with the operators run there: PSNR in dB, values clamped to 0..1. A pair of your own (--pair) is small and
    large at once: both of its images are shrunk, and what is brought up is compared with the pair itself.

    methods:
      affine    one affine colour map for the whole image, by least squares
      jbu       joint bilateral upsampling, the best of sigmas 0.5 and 1 pixels, 0.05 and 0.1 of brightness, picked by the truth
      fast      bilagrid.guided_upsample(method="fast")
      global    bilagrid.guided_upsample(method="global")

    examples:
      python -m perf.upsampling
      python -m perf.upsampling --only coffee --pair low_res_in.png low_res_out.png --out results

    Args:
        only: of %(choices)s (default: all)
        pair_: also an image and an edit of it, from two files, shrunk by 2, 4 and 8
        out: write DIR/upsampling.csv
        overwrite: replace DIR/upsampling.csv
    """
    arguments.device("cpu", threads)
    if find_spec("skimage") is None:
        raise Refusal('the photographs come with scikit-image: pip install -c constraints.txt -e ".[images]"')
    path = arguments.new_file(out, "upsampling.csv", overwrite)
    pairs = [case for files in pair_ or [] for case in pair(*files)]
    measured = []
    with tqdm(total=len(only) * len(OPERATORS) + len(pairs), unit="row", disable=None) as progress:
        for cases in (photographs(only), pairs):
            for case in cases:
                progress.set_postfix_str(f"{case.image}, {case.operator}")
                measured.append(measure(case))
                progress.update()
    print(table(measured))
    won = sum(row.wins for row in measured)
    print(f"fast and global are both nearer than affine and JBU in {won} of {len(measured)} rows")
    cells = ([f"{v:.3f}" if isinstance(v, float) else v for v in asdict(row).values()] for row in measured)
    rows.write_table(path, [name.rstrip("_") for name in asdict(measured[0])], cells)


main = arguments.command(upsampling)

if __name__ == "__main__":
    sys.exit(main())
