"""The command line of the deghosting network on generated brackets, as a user runs it."""

import csv
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pictures import data, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("ignite")
pytest.importorskip("cv2")
safetensors = pytest.importorskip("safetensors.torch")

from bilagrid import images  # noqa: E402
from nets.deghost import BilateralDeghost, DeghostNet, load  # noqa: E402
from nets.deghost.__main__ import main  # noqa: E402
from nets.deghost.data import Scenes, tensors  # noqa: E402
from nets.deghost.evaluate import figures, fused, merge  # noqa: E402
from nets.deghost.generator import Generated, Photographs  # noqa: E402
from nets.deghost.radiance import compressed  # noqa: E402
from nets.weights import save_network  # noqa: E402
from tests.commands import CommandLine  # noqa: E402
from tests.processes import end, launch, wait_until  # noqa: E402

# A network and patches so small that a step takes milliseconds.
SMALL = ("--width", 2, "--crop", 32, "--batch", 2, "--workers", 0, "--lr", 1e-3)


run = CommandLine(main, quiet=False)
refused = run.refused


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "chelsea"):
        save(folder / f"{name}.png", np.ascontiguousarray(getattr(data, name)()[:150, :160]))
    return folder


@pytest.fixture
def scenes(tmp_path, photos):
    """Scenes as SCTNet's data are laid out."""
    made = Generated(Photographs([photos]), 48, seed=9)
    for k in range(2):
        folder, bracket = tmp_path / "scenes" / f"{k}", made.bracket(k)
        folder.mkdir(parents=True)
        for i in range(3):
            save(folder / f"input_{i + 1}.tif", images.quantised(images.scaled(bracket.ldr[i]), np.dtype(np.uint16)))
        (folder / "exposure.txt").write_text("\n".join(f"{stops:.2f}" for stops in bracket.ev - 1))
        save(folder / "HDRImg.hdr", bracket.truth)
    return tmp_path / "scenes"


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / "net.safetensors", DeghostNet(width=2))
    return tmp_path / "net.safetensors"


def test_train_on_scenes_then_measure(tmp_path, scenes, capsys):
    out, table = tmp_path / "run", tmp_path / "table.csv"
    assert run("train", scenes, out, *SMALL, "--steps", 12, "--log-every", 4, "--save-every", 6) == 0
    assert {"model.safetensors", "state.safetensors"} <= set(os.listdir(out))
    assert any(name.startswith("events.out") for name in os.listdir(out))
    capsys.readouterr()
    weights = out / "model.safetensors"
    assert run("eval", scenes, "--weights", weights, "--table", table, "--no-detail", "--align", "none") == 0
    printed = capsys.readouterr().out
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scene"] for row in rows] == ["0", "1", "mean"]
    columns = [f"{figure} {name}" for name in ("model", "debevec", "mertens") for figure in ("PSNR-μ", "PSNR-L", "SSIM-μ")]  # fmt: skip
    assert list(rows[0]) == ["scene", *columns]
    for column in columns:
        values = [float(row[column]) for row in rows]
        assert np.isfinite(values).all()
        assert values[2] == pytest.approx(np.mean(values[:2]), abs=1e-4)
        assert f"{values[2]:.{4 if column.startswith('SSIM') else 2}f}"[:5] in printed
    # What the table says of the model is what the network and the measure give.
    bracket = Scenes([scenes]).bracket(0)
    ldr, ev, _ = tensors(bracket)
    net = load(weights)
    with torch.no_grad():
        made = net(ldr[None], ev[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(merge(net, bracket, detail=False), made, rtol=0, atol=1e-6)
    assert float(rows[0]["PSNR-L model"]) == pytest.approx(-10 * np.log10(np.square(made - bracket.truth).mean()), abs=1e-3)  # fmt: skip
    assert "exists" in refused(capsys, "eval", scenes, "--weights", weights, "--table", table)


def test_train_goes_on_from_a_start(tmp_path, photos, model, capsys):
    """A network that was trained at full size is the start of one that is carried, and that of another."""
    out, more = tmp_path / "run", tmp_path / "more"
    arguments = (*SMALL[2:4], "--crop", 64, *SMALL[4:], "--generate", "--reduce", 2, "--steps", 1)
    assert run("train", photos, out, *arguments, "--start", model, "--lr", 1e-9) == 0
    begun = load(out / "model.safetensors")
    assert isinstance(begun, BilateralDeghost)
    assert begun.config["net"] == load(model).config
    for name, value in load(model).named_parameters():
        torch.testing.assert_close(begun.net.get_parameter(name), value, rtol=0, atol=1e-6)
    assert run("train", photos, more, *arguments, "--start", out / "model.safetensors") == 0
    assert load(more / "model.safetensors").config == begun.config
    message = refused(capsys, "train", photos, tmp_path / "other", *arguments, "--reduce", 4, "--start", out / "model.safetensors")  # fmt: skip
    assert "was trained with --reduce 2, got --reduce 4" in message
    assert "no such file" in refused(capsys, "train", photos, tmp_path / "other", *arguments, "--start", "none.safetensors")  # fmt: skip
    assert run("train", photos, more, *arguments, "--steps", 2, "--resume", "--start", out / "model.safetensors") == 0


def test_figures_are_of_all_pixels_unclipped():
    truth = np.random.default_rng(0).uniform(0, 1, (30, 40, 3)).astype(np.float32)
    off = truth.copy()
    off[0, 0] += 1.5
    found = figures(off, truth)
    assert found["PSNR-L"] == pytest.approx(-10 * np.log10(1.5**2 / 1200), abs=1e-3)
    seen, expected = (np.log(1 + 5000 * values.astype(np.float64)) / np.log(5001) for values in (off, truth))
    assert found["PSNR-μ"] == pytest.approx(-10 * np.log10(np.square(seen - expected).mean()), abs=1e-3)
    assert figures(truth, truth) == {"PSNR-μ": np.inf, "PSNR-L": np.inf, "SSIM-μ": 1.0}


def test_fusion_is_read_at_the_exposure_nearest_to_the_truth(photos):
    bracket = Generated(Photographs([photos]), 48, seed=9).bracket(0)
    best = np.square(fused(bracket) - bracket.truth).mean()
    for factor in (0.9, 1.1):
        assert np.square(fused(bracket) * factor - bracket.truth).mean() > best


def test_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path, photos):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = ("--generate", *SMALL)
    assert run("train", photos, whole, *options, "--steps", 7) == 0
    assert run("train", photos, parts, *options, "--steps", 3) == 0
    assert run("train", photos, parts, *options, "--steps", 7, "--resume", "--workers", 1) == 0
    for name in ("model.safetensors", "state.safetensors"):
        one, other = safetensors.load_file(whole / name), safetensors.load_file(parts / name)
        assert one.keys() == other.keys()
        for key, tensor in one.items():
            torch.testing.assert_close(tensor, other[key], rtol=0, atol=0)


def test_runs_are_not_mixed_up(tmp_path, photos, scenes, capsys):
    out = tmp_path / "run"
    options = ("train", photos, out, "--generate", *SMALL)
    assert run(*options, "--steps", 1) == 0
    assert "holds a run; --resume goes on with it" in refused(capsys, *options)
    assert "width = 2" in refused(capsys, *options, "--width", 3, "--resume")
    assert "variant = resnet" in refused(capsys, *options, "--variant", "unet", "--resume")
    assert "generate = True" in refused(capsys, "train", scenes, out, *SMALL, "--resume")
    assert "has 1 steps already" in refused(capsys, *options, "--steps", 1, "--resume")


def test_bad_data_is_refused(tmp_path, photos, scenes, model, capsys):
    out = tmp_path / "run"
    assert "holds no scenes; expected folders laid out as one of" in refused(capsys, "train", photos, out, *SMALL)
    align = ("--align", "none")
    assert run("train", scenes, out, *SMALL, *align, "--steps", 1) == 0
    assert "align = none" in refused(capsys, "train", scenes, out, *SMALL, "--steps", 2, "--resume")
    shutil.rmtree(out)
    assert "RUN is missing" in refused(capsys, "train", photos)
    assert "--crop must be at least 16 and --reduce at least 1, got 8 and 1" in refused(
        capsys, "train", photos, out, "--generate", "--crop", 8
    )
    (scenes / "1" / "HDRImg.hdr").unlink()
    assert "lacks HDRImg.hdr" in refused(capsys, "train", scenes, out, *SMALL)
    assert "lacks HDRImg.hdr" in refused(capsys, "eval", scenes, "--weights", model)
    assert "no such file" in refused(capsys, "eval", scenes, "--weights", tmp_path / "none.safetensors")
    assert "--scenes must be at least 1" in refused(
        capsys, "eval", photos, "--generate", "--scenes", 0, "--weights", model
    )
    assert not out.exists()


def test_patches_are_as_large_as_the_smallest_scene(tmp_path, scenes, capsys):
    assert run("train", scenes, tmp_path / "run", *SMALL, "--crop", 64, "--steps", 1, "--variant", "unet") == 0
    assert "patches are 48x48" in capsys.readouterr().out


def test_train_at_reduced_resolution(tmp_path, photos, scenes, capsys):
    out = tmp_path / "run"
    options = ("train", photos, out, "--generate", *SMALL, "--reduce", 2, "--crop", 64)
    assert run(*options, "--steps", 2) == 0
    assert run(*options, "--steps", 3, "--resume") == 0
    assert "reduce = 2" in refused(capsys, *options, "--reduce", 4, "--steps", 4, "--resume")
    assert run("eval", scenes, "--weights", out / "model.safetensors") == 0
    assert isinstance(load(out / "model.safetensors"), BilateralDeghost)


def test_a_run_starts_from_a_model(tmp_path, photos, model, capsys):
    """Its first step changes that model's weights, whatever width is asked for; a run that goes on keeps to its start."""
    out = tmp_path / "run"
    options = ("train", photos, out, "--generate", *SMALL, "--width", 3, "--lr", 1e-6)
    assert run(*options, "--start", model, "--steps", 1) == 0
    begun, gone = load(model), load(out / "model.safetensors")
    assert gone.config == begun.config
    pairs = [*zip(begun.parameters(), gone.parameters(), strict=True)]
    assert max(float((one - other).detach().abs().max()) for one, other in pairs) <= 1.1e-6
    assert any((one != other).any() for one, other in pairs)
    other = Path(shutil.copy(model, tmp_path / "other.safetensors"))
    assert "start = " in refused(capsys, *options, "--start", other, "--steps", 2, "--resume")
    none = tmp_path / "none.safetensors"
    assert "none.safetensors: no such file" in refused(
        capsys, *options[:2], tmp_path / "b", *options[3:], "--start", none
    )
    assert not (tmp_path / "b").exists()


def test_eval_on_photographs(photos, model, capsys):
    assert run("eval", photos, "--generate", "--scenes", 2, "--crop", 32, "--weights", model) == 0
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()[1:]] == ["0", "1", "mean"]
    assert run("eval", photos, "--generate", "--scenes", 2, "--crop", 32, "--weights", model) == 0
    assert capsys.readouterr().out == first


def test_eval_shows_the_first_scenes(photos, model, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    options = ("eval", photos, "--generate", "--scenes", 2, "--crop", 32, "--weights", model, "--show", sheet)
    assert run(*options) == 0
    picture = images.read(sheet).values
    # Two rows of six pictures, and their labels.
    assert picture.shape == (2 * (32 + 28) + 8, 6 * 32 + 5 * 8, 3)
    truth = compressed(Generated(Photographs([photos]), 32, seed=1).bracket(0).truth)
    np.testing.assert_allclose(picture[28:60, -32:] / 255, truth, atol=0.6 / 255)
    assert "exists" in refused(capsys, *options)
    assert "unknown output format" in refused(capsys, *options[:-1], tmp_path / "sheet.exr")


@pytest.mark.slow
def test_interrupted_run_goes_on(tmp_path, photos):
    out = tmp_path / "run"
    options = ("train", photos, out, "--generate", *SMALL, "--log-every", 1)
    with launch(tmp_path, "-m", "nets.deghost", *options, "--steps", 100000, "--save-every", 1) as process:
        wait_until((out / "state.safetensors").exists, process)
        process.send_signal(signal.SIGINT)
        text, message = end(process)
    assert process.returncode == 130, message
    assert "--resume goes on from there" in text
    step = int(text.split("at step ")[1].split(";")[0])
    assert run(*options, "--steps", step + 2, "--resume") == 0


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    assert f"python -m nets.deghost {command}" in " ".join(capsys.readouterr().out.split())
