"""The deghosting model that comes along, on scenes made of photographs that it was not trained on."""

from pathlib import Path

import numpy as np
import pytest

from tests.pictures import data, load, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("cv2")
pytest.importorskip("safetensors")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from nets import deghost, weights
from nets.deghost import evaluate, shipped
from nets.deghost.__main__ import main
from nets.deghost.generator import Generated, Photographs
from tests.brackets import exposed
from tests.test_docs import run as run_examples


def test_beats_the_naive_merge_by_3_db(held_out, tmp_path, capsys):
    table = tmp_path / "table.csv"
    arguments = ["eval", held_out, "--generate", "--scenes", "6", "--crop", "128", "--seed", "5", "--table", table]
    assert main([str(argument) for argument in arguments]) == 0
    columns, *_, mean = (line.split(",") for line in table.read_text().splitlines())
    found = dict(zip(columns, mean, strict=True))
    assert float(found["PSNR-μ model"]) > float(found["PSNR-μ debevec"]) + 3
    assert float(found["PSNR-μ model"]) > float(found["PSNR-μ mertens"]) + 3


def test_comes_first_where_nothing_is_said_and_leaves_no_ghost(tmp_path, capsys):
    """A card crosses the picture between the exposures: it is where the middle one saw it, and the other places show what is behind it."""
    scene, card = (
        (getattr(data, name)()[:240, :320].astype(np.float64) / 255) ** 2.2 for name in ("coffee", "astronaut")
    )
    paths = []
    for k, left in enumerate((20, 120, 220)):
        moved = scene.copy()
        moved[80:160, left : left + 70] = card[:80, 60:130]
        # Of half a stop more than the middle exposure holds.
        paths.append(save(tmp_path / f"{k}.png", exposed(moved * 0.35, 2 * k), ExposureTime=0.0025 * 4**k))
    assert main(["merge", *map(str, paths), str(tmp_path / "out.exr")]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "agrees with 1.png" in line)
    near, plain = (float(part.split(" dB")[0]) for part in said.split(" to ")[1:])
    assert near > plain + 3
    assert main(["merge", *map(str, paths), str(tmp_path / "alone.exr"), "--no-detail"]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if "agrees with 1.png" in line)
    assert near > float(said.split(" to ")[1].split(" dB")[0]) + 3
    result, _ = load(tmp_path / "out.exr")
    middle = scene.copy()
    middle[80:160, 120:190] = card[:80, 60:130]
    seen, expected = (np.log1p(5000 * values) / np.log(5001) for values in (result, middle * 0.35))
    for place in (np.s_[80:160, 20:90], np.s_[80:160, 120:190], np.s_[80:160, 220:290]):
        assert np.abs(seen - expected)[place].mean() < 0.04


def test_says_how_it_was_made():
    assert deghost.SHIPPED == ("deghost",)
    path = Path(deghost.__file__).parent / "weights" / "deghost.safetensors"
    assert path.stat().st_size < 4_000_000
    _, facts = weights.load(path, "DeghostNet")
    assert facts["settings"]["generate"]
    assert {"seed", "lr", "batch", "scenes", "crop"} <= facts["settings"].keys()
    assert facts["seconds"] > 0


def test_example():
    tried, failed = run_examples(deghost.load, "load", shipped)
    assert tried > 0
    assert failed == 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="nor one of the models that come along: deghost"):
        deghost.load("ghost")


def test_agreement_is_of_what_the_photograph_shows_well():
    bracket = Generated(Photographs([Path(data.__file__).parent / "coffee.png"]), 64, seed=3).bracket(0)
    light = np.random.default_rng(0).uniform(0, 1, (20, 30, 3)).astype(np.float32)
    picture = np.clip(light * 4, 0, 1) ** (1 / 2.2)
    assert evaluate.agreement(light, picture, 2.0) > 100
    wrong = light.copy()
    # White in the photograph may be anything.
    wrong[(picture >= 0.9).any(-1)] = 0
    assert evaluate.agreement(wrong, picture, 2.0) > 100
    off = ((picture + 0.01) ** 2.2 / 4).astype(np.float32)
    assert evaluate.agreement(off, picture, 2.0) == pytest.approx(40, abs=0.01)
    assert np.isnan(evaluate.agreement(light, np.ones_like(picture), 2.0))
    assert np.isfinite(evaluate.agreement(bracket.truth, bracket.pixels()[1], float(bracket.ev[1])))
