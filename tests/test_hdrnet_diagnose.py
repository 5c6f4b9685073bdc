"""`python -m nets.hdrnet diagnose` on real photographs and what was done to them."""

import numpy as np
import pytest

from tests.pictures import data, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("safetensors")
pytest.importorskip("ignite")

from skimage import filters

from bilagrid import images
from nets.hdrnet.__main__ import main
from tests.commands import CommandLine

run = CommandLine(main)


def hazy(pixels, k):
    """Haze that is thicker farther up, and behind the silhouette of a blob."""
    height, width = pixels.shape[:2]
    noise = filters.gaussian(np.random.default_rng(k).normal(size=(height, width)), min(height, width) / 12)
    depth = 0.15 + 0.5 * np.linspace(1, 0, height)[:, None] + 0.35 * (noise > np.quantile(noise, 0.6))
    through = np.exp(-2.2 * depth)[..., None]
    return pixels * through + 0.85 * (1 - through)


def matte(pixels, k):
    noise = filters.gaussian(np.random.default_rng(k).normal(size=pixels.shape[:2]), min(pixels.shape[:2]) / 12)
    return np.repeat((noise > np.quantile(noise, 0.6))[..., None], 3, axis=2)


def gray(pixels, k):
    return np.repeat(pixels @ np.array([0.299, 0.587, 0.114])[:, None], 3, axis=2)


def relit(pixels, k):
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    return pixels * np.exp(-2 * ((y / y.max() - 0.5) ** 2 + (x / x.max() - 0.5) ** 2))[..., None]


def as_is(pixels, k):
    return pixels


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (as_is, relit, "In reach"),
        (as_is, lambda pixels, k: pixels**0.4, "In reach"),
        (hazy, as_is, "Out of reach: no grid"),
        (as_is, hazy, "Out of reach: no grid"),
        (as_is, matte, "Out of reach: no grid"),
        (gray, as_is, "Out of reach: this is colorisation"),
    ],
    ids=["vignette", "gamma", "dehazing", "haze", "matting", "colorisation"],
)
def test_diagnose_tells_what_is_in_reach(tmp_path, capsys, before, after, expected):
    for side, change in (("input", before), ("output", after)):
        (tmp_path / "pairs" / side).mkdir(parents=True)
        for k, name in enumerate(("coffee", "chelsea")):
            pixels = change(images.scaled(getattr(data, name)()), k)
            save(tmp_path / "pairs" / side / f"{name}.png", images.quantised(pixels, np.dtype(np.uint8)))
    assert run("diagnose", tmp_path / "pairs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("mean")
    assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize("operator", ["tone", "clahe", "contrast", "shadows"])
def test_every_named_operator_is_in_reach(tmp_path, capsys, operator):
    photo = save(tmp_path / "coffee.png", data.coffee())
    assert run("diagnose", photo, "--operator", operator) == 0
    assert "In reach" in capsys.readouterr().out
