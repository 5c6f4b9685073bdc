"""``python -m nets.hdrnet photographs``: real photographs to try the other commands on."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Annotated

import tyro

from bilagrid.commands import Refusal, count

# Packages, their folders of pictures, and the names of these. No network is measured on what it was trained on.
TRAIN = (
    ("skimage", "data", ("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coins.png", "grass.png", "gravel.png")),
    ("skimage", "data", ("hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png", "retina.jpg")),
    ("sklearn", "datasets/images", ("flower.jpg",)),
    ("matplotlib", "mpl-data/sample_data", ("grace_hopper.jpg",)),
)  # fmt: skip
HELD_OUT = (("skimage", "data", ("coffee.png", "rocket.jpg")), ("sklearn", "datasets/images", ("china.jpg",)))


def photographs(out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]) -> None:
    """Copy photographs that came with scikit-image, scikit-learn and matplotlib into FOLDER/train and FOLDER/held_out.

    They are few and small, enough to try the other commands; the models that come along were trained on the first and measured on the second.

    To try:

    python -m nets.hdrnet photographs photos

    python -m nets.hdrnet train photos/train run --operator tone --variants 8 --crop 300 --steps 1000 --lr 1e-3

    Args:
        out: a folder that does not exist yet.
    """
    if out.exists():
        raise Refusal(f"{out}: exists, choose another name")
    sources = {}
    for part, listed in (("train", TRAIN), ("held_out", HELD_OUT)):
        sources[part] = [path for package, folder, names in listed for path in _paths(package, folder, names)]
    for part, paths in sources.items():
        (out / part).mkdir(parents=True)
        for path in paths:
            shutil.copyfile(path, out / part / path.name)
        print(f"{out / part}: {count(len(paths), 'photograph')}")


def _paths(package: str, folder: str, names: tuple[str, ...]) -> list[Path]:
    try:
        root = Path(str(resources.files(package))) / folder
    except ModuleNotFoundError:
        remedy = 'python -m pip install -c constraints.txt -e ".[tests]"'
        raise Refusal(f"photographs come with {package}, which is not installed: {remedy}") from None
    missing = [name for name in names if not (root / name).is_file()]
    if missing:
        raise Refusal(f"{root}: lacks {', '.join(missing)}")
    return [root / name for name in names]
