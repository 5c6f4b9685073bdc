"""The pictures that README shows, drawn again: ``python -m perf.gallery``."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import bilagrid
from bilagrid import commands
from bilagrid.commands import Refusal
from perf import arguments
from perf.arguments import Out

_REMEDY = 'python -m pip install -c constraints.txt -e ".[tests]"'
_ROOT = Path(__file__).parents[1]
_ROWS = Path("perf/results/amd-epyc-2-threads")
_LARGEST = 240_000  # bytes of a JPEG
_QUALITIES = (93, 90, 87, 84, 80, 75, 70)
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]

# A picture (H, W, 3), and what was measured on it.
Drawn = tuple[np.ndarray, dict[str, float]]


@dataclass(frozen=True)
class Entry:
    """A picture under the name that README gives it."""

    name: str
    path: str
    about: str
    draw: Callable[[], Drawn]


def photograph(name: str) -> Tensor:
    """A photograph of scikit-image or scikit-learn, (1, 3, H, W) in [0, 1]."""
    package, folder = ("sklearn", "datasets/images") if name == "china.jpg" else ("skimage", "data")
    if find_spec(package) is None:
        raise Refusal(f"{name} comes with {package}, which is not installed: {_REMEDY}")
    from PIL import Image

    with Image.open(str(resources.files(package) / folder / name)) as file:
        pixels = np.asarray(file.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).movedim(-1, 0)[None].contiguous()


def psnr(found: Tensor, truth: Tensor) -> float:
    return -10 * math.log10((found.clamp(0, 1) - truth).square().mean().item())


def strokes(height: int, width: int, number: int, length: int, seed: int = 0) -> Tensor:
    """Bent lines three pixels wide at random, as a mask (1, height, width)."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(number):
        y, x, angle = generator.uniform((0, 0, 0), (height, width, 2 * np.pi))
        for _ in range(length):
            angle += 0.15 * generator.normal()
            y, x = y + np.sin(angle), x + np.cos(angle)
            top, left = max(int(y) - 1, 0), max(int(x) - 1, 0)
            mask[top : max(int(y) + 2, 0), left : max(int(x) + 2, 0)] = True
    return torch.from_numpy(mask)[None]


def flash_pair(scene: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
    """A photograph as if lit by flash; as if by warm light from one side, with noise; the latter without noise; and the exposure of the first over the second.

    Light is added in linear values. The flash falls off toward the corners, and adds to an eighth of the other light. Noise is Gaussian.
    """
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, extent) for extent in scene.shape[2:]), indexing="ij")
    linear, exposure = scene**2.2, 1 / 8
    ambient = linear * torch.tensor([0.8, 0.58, 0.34])[:, None, None] * (0.6 + 0.4 * x)
    flash = (linear / (1 + 0.8 * (x**2 + y**2)) + exposure * ambient) ** (1 / 2.2)
    truth = ambient ** (1 / 2.2)
    noise = [sigma * torch.randn(truth.shape, generator=generator) for sigma in (0.004, 0.07)]
    return (flash + noise[0]).clamp(0, 1), (truth + noise[1]).clamp(0, 1), truth, exposure


def _filter() -> Drawn:
    before = photograph("coffee.png")
    after = bilagrid.bilateral_filter(before, sigma_space=16, sigma_color=0.1)
    return _sheet([("before", before), ("after", after)]), {}


def _hdrnet(model: str, name: str) -> Drawn:
    from nets import hdrnet
    from nets.hdrnet.operators import OPERATORS

    before = photograph(name)
    truth = _image(OPERATORS[model](_pixels(before)))
    with torch.inference_mode():
        after = hdrnet.load(model)(before)
    row = [("before", before), ("model", after), ("truth", truth)]
    return _sheet(row), {"untouched": psnr(before, truth), "model": psnr(after, truth)}


def _equalize() -> Drawn:
    before = photograph("china.jpg")
    after = bilagrid.equalize_histogram(before, clip_limit=1.5)
    return _sheet([("before", before), ("after", after)]), {}


def _colorize() -> Drawn:
    truth = photograph("coffee.png")
    gray = (truth * _LUMA).sum(1, keepdim=True)
    height, width = truth.shape[2:]
    mask = strokes(height, width, number=60, length=30)
    found = bilagrid.colorize(gray, truth, mask)
    painted = torch.where(mask[:, None], truth, gray)
    row = [("gray, with strokes of colour", painted), ("colorized", found), ("truth", truth)]
    share = mask.float().mean().item()
    facts = {"strokes, %": 100 * share, "gray": psnr(gray.expand_as(truth), truth), "colorized": psnr(found, truth)}
    return _sheet(row), facts


def _flash() -> Drawn:
    flash, noisy, truth, exposure = flash_pair(photograph("coffee.png"))
    found = bilagrid.merge_flash(flash, noisy, exposure=exposure)
    filters = [(space, color) for space in (1, 2, 4, 8) for color in (0.05, 0.1, 0.2, 0.4)]
    filtered = [bilagrid.bilateral_filter(noisy, sigma_space=space, sigma_color=color) for space, color in filters]
    best = max(filtered, key=lambda image: psnr(image, truth))
    crop = np.s_[..., 40:340, 60:460]
    above = [("with flash", flash[crop]), ("without", noisy[crop])]
    below = [("merged", found[crop]), ("the same light without noise", truth[crop])]
    facts = {"without": psnr(noisy, truth), "bilateral": psnr(best, truth), "merged": psnr(found, truth)}
    return _sheet(above, below), facts


def _deghost() -> Drawn:
    """By the commands that README shows, on brackets generated from the photographs that the model was not trained on."""
    from bilagrid import images
    from nets.deghost.__main__ import main as deghost
    from nets.hdrnet.__main__ import main as hdrnet

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        photographs, shown = Path(folder) / "photos", Path(folder) / "sheet.png"
        made = [
            "eval",
            str(photographs / "held_out"),
            "--generate",
            "--scenes",
            "3",
            "--seed",
            "3",
            "--show",
            str(shown),
        ]
        if hdrnet(["photographs", str(photographs)]) or deghost(made):
            raise Refusal("deghost: could not be drawn, for what is said above")
        return images.read(shown).pixels, {}


ENTRIES = (
    Entry("filter", "docs/before_after.jpg", "a cup of coffee under the bilateral filter", _filter),
    Entry("contrast", "docs/hdrnet_contrast.jpg", "HDRNet: local contrast", lambda: _hdrnet("contrast", "coffee.png")),
    Entry("shadows", "docs/hdrnet_shadows.jpg", "HDRNet: lifted shadows", lambda: _hdrnet("shadows", "china.jpg")),
    Entry("tone", "docs/hdrnet_tone.jpg", "HDRNet: a tone curve", lambda: _hdrnet("tone", "rocket.jpg")),
    Entry("deghost", "docs/deghost.jpg", "brackets in which things move, merged without ghosts", _deghost),
    Entry("equalize", "docs/equalize.jpg", "local histogram equalisation", _equalize),
    Entry("colorize", "docs/colorize.jpg", "colours from strokes", _colorize),
    Entry("flash", "docs/flash.jpg", "a photograph cleaned by one with flash, both made from one photograph", _flash),
)
_PLOTS = "plots"


def jpeg(pixels: np.ndarray) -> bytes:
    """The picture ``(H, W, 3)`` in [0, 1] as the best JPEG that is small enough for a page."""
    from PIL import Image

    whole = Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
    for quality in _QUALITIES:
        data = io.BytesIO()
        whole.save(data, "jpeg", quality=quality, optimize=True)
        if data.tell() <= _LARGEST:
            break
    return data.getvalue()


def plots() -> Iterator[tuple[Path, bytes]]:
    """Each plot of the committed rows, under its path in the repository."""
    from perf import plots, rows

    with tempfile.TemporaryDirectory() as folder:
        for path in plots.draw(rows.read(_ROOT / _ROWS / "rows.csv"), Path(folder)):
            if path.suffix == ".png":
                yield _ROWS / path.name, path.read_bytes()


def _sheet(*rows: list[tuple[str, Tensor]]) -> np.ndarray:
    """Rows of images ``(1, C, H, W)``, each under its label."""
    from bilagrid import demonstration

    return demonstration.sheet([[(label, _pixels(image)) for label, image in row] for row in rows])


def _pixels(image: Tensor) -> np.ndarray:
    return image[0].clamp(0, 1).expand(3, -1, -1).movedim(0, -1).numpy()


def _image(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).movedim(-1, 0)[None]


_NAMES = (*(entry.name for entry in ENTRIES), _PLOTS)
_Only = Annotated[Sequence[str], {"nargs": "+", "choices": _NAMES, "metavar": "PICTURE"}]


def gallery(*, only: _Only = _NAMES, out: Out = None, overwrite: bool = False) -> None:
    """Draws the pictures that README shows, from photographs that come with scikit-image and scikit-learn and from the rows committed under perf/results, and
    prints what can be measured on them: PSNR in dB against the truth, values clamped to 0..1.

    examples:
      python -m perf.gallery --overwrite
      python -m perf.gallery --only colorize flash --out somewhere

    Args:
        only: of those above (default: all)
        out: where the pictures get their paths (default: this repository)
        overwrite: replace pictures that exist
    """
    for package in ("matplotlib", "PIL", "OpenImageIO"):
        if find_spec(package) is None:
            raise Refusal(f"pictures need {package}, which is not installed: {_REMEDY}")
    folder = out or _ROOT
    if out is None and not (_ROOT / "README.md").is_file():
        raise Refusal(f"{_ROOT} is no clone of the repository: --out names a folder to draw into")
    if _PLOTS in only and not (_ROOT / _ROWS / "rows.csv").is_file():
        raise Refusal(f"{_ROOT / _ROWS / 'rows.csv'}: no such file; the plots are drawn in a clone of the repository")
    chosen = [entry for entry in ENTRIES if entry.name in only]
    targets = [Path(entry.path) for entry in chosen]
    if _PLOTS in only:
        targets += sorted(path.relative_to(_ROOT) for path in (_ROOT / _ROWS).glob("*.png"))
    for target in targets:
        if (folder / target).exists() and not overwrite:
            raise Refusal(f"{folder / target} exists: --overwrite replaces it, --out names another folder")

    def write(path: Path, data: bytes) -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        commands.replace(folder / path, data)
        progress.write(f"wrote {folder / path}")

    measured = []
    with tqdm(total=len(only), unit="picture", disable=None) as progress:
        for entry in chosen:
            progress.set_postfix_str(entry.name)
            pixels, facts = entry.draw()
            write(Path(entry.path), jpeg(pixels))
            measured += [(entry.name, name, value) for name, value in facts.items()]
            progress.update()
        if _PLOTS in only:
            for path, data in plots():
                write(path, data)
            progress.update()
    for picture, name, value in measured:
        print(f"{picture:10}{name:12}{value:6.1f}")


_LISTED = "".join(f"\n  {entry.name:10}{entry.path}: {entry.about}" for entry in ENTRIES)
_LISTED += f"\n  {_PLOTS:10}{_ROWS}/*.png: throughput and roofline of {_ROWS}/rows.csv"
main = arguments.command(gallery, f"\n\npictures:{_LISTED}")

if __name__ == "__main__":
    sys.exit(main())
