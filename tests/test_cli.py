"""The command line on real photographs, as a user runs it."""

import os
import signal

import numpy as np
import pytest

from tests.pictures import KINDS, album, load, oiio, photograph, save  # isort: skip -- it skips where packages are missing

from bilagrid.__main__ import main
from tests.commands import CommandLine
from tests.processes import launch

run = CommandLine(main)
refused = run.refused


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_filter_keeps_depth_and_alpha(tmp_path, suffix, kind, channels):
    if suffix == "jpg" and channels in (2, 4):
        pytest.skip("JPEG has no alpha")
    values = photograph(channels=channels, kind=kind)
    source, target = save(tmp_path / f"in.{suffix}", values), tmp_path / f"out.{suffix}"
    stored, _ = load(source)
    assert run("filter", source, target, "--sigma-space", 4, "--sigma-color", 0.2) == 0
    result, _ = load(target)
    assert result.dtype == values.dtype
    assert result.shape == values.shape
    if channels in (2, 4):
        np.testing.assert_array_equal(result[..., -1], stored[..., -1])
    colours = 3 if channels > 2 else 1
    before, after = stored[..., :colours].astype(np.float64), result[..., :colours].astype(np.float64)
    assert np.abs(np.diff(after, axis=1)).mean() < 0.8 * np.abs(np.diff(before, axis=1)).mean()
    top = 1.0 if kind == "float" else np.iinfo(kind).max
    assert abs(after.mean() - before.mean()) < 0.02 * top


def test_filter_equals_the_library(tmp_path):
    import torch

    import bilagrid

    values = photograph(kind="uint16")
    assert run("filter", save(tmp_path / "in.png", values), tmp_path / "out.png", "--sigma-space", 5) == 0
    image = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)[None]
    wanted = bilagrid.bilateral_filter(image, sigma_space=5, sigma_color=0.1)[0].permute(1, 2, 0).numpy() * 65535
    np.testing.assert_allclose(load(tmp_path / "out.png")[0], wanted, atol=1.5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    values = photograph()
    source = save(tmp_path / "in.tif", values, Orientation=orientation)
    assert run("filter", source, tmp_path / "out.tif", "--sigma-space", 3, "--sigma-color", 0.05) == 0
    result, spec = load(tmp_path / "out.tif")
    assert spec.get_int_attribute("Orientation", 1) == 1
    buffer = oiio.ImageBufAlgo.reorient(oiio.ImageBuf(str(source)))
    upright = buffer.get_pixels(oiio.UINT8)
    assert result.shape == upright.shape
    assert np.abs(result.astype(float) - upright).mean() < 12


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png"])
def test_metadata_is_kept(tmp_path, suffix):
    source = save(tmp_path / f"in.{suffix}", photograph(), Copyright="nobody", Artist="somebody")
    assert run("filter", source, tmp_path / f"out.{suffix}") == 0
    before, after = load(source)[1], load(tmp_path / f"out.{suffix}")[1]
    for name in ("Copyright", "Artist"):
        assert after.get_string_attribute(name) == before.get_string_attribute(name)


def test_icc_profile_is_kept(tmp_path):
    cms, image = pytest.importorskip("PIL.ImageCms"), pytest.importorskip("PIL.Image")
    profile = cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()
    for suffix in ("png", "jpg", "tif"):
        image.fromarray(photograph()).save(tmp_path / f"in.{suffix}", icc_profile=profile)
        assert run("filter", tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}") == 0
        with image.open(tmp_path / f"out.{suffix}") as result:
            assert result.info["icc_profile"] == profile


def test_folder(tmp_path, capsys):
    folder = album(tmp_path, "a.png", "b.jpg", "c.tif")
    (folder / "notes.txt").write_text("left out")
    assert run("filter", folder, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg", "c.tif"]
    assert "in: 1 other file is left out" in capsys.readouterr().err
    (tmp_path / "out" / "a.png").unlink()
    kept = (tmp_path / "out" / "b.jpg").stat().st_mtime_ns
    assert "b.jpg exists; --overwrite replaces it" in refused(
        capsys, "filter", folder / "a.png", folder / "b.jpg", tmp_path / "out"
    )
    (folder / "more.txt").write_text("left out")
    assert run("filter", folder, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "in: 2 other files are left out" in message
    assert "b.jpg and 1 more exist; --overwrite replaces them" in message
    assert not (tmp_path / "out" / "a.png").exists()
    assert run("filter", folder, tmp_path / "out", "--skip-existing") == 0
    assert (tmp_path / "out" / "a.png").exists()
    assert (tmp_path / "out" / "b.jpg").stat().st_mtime_ns == kept


def test_cross_filter(tmp_path, capsys):
    source = save(tmp_path / "in.png", photograph())
    guide = save(tmp_path / "guide.png", photograph(channels=1))
    assert run("filter", source, tmp_path / "out.png", "--guide", guide) == 0
    assert load(tmp_path / "out.png")[0].shape == (60, 80, 3)
    other = save(tmp_path / "other.png", photograph(50, 80))
    assert "as large as" in refused(capsys, "filter", source, tmp_path / "two.png", "--guide", other)
    assert "input" in refused(capsys, "filter", source, guide, "--guide", guide, "--overwrite")


@pytest.mark.parametrize(
    "options", [(), ("--fit", "global"), ("--method", "jbu"), ("--method", "bgu", "--fit", "fast")]
)
def test_upsample(tmp_path, options):
    full = photograph(96, 128)
    small = full.reshape(24, 4, 32, 4, 3).mean((1, 3))
    high = save(tmp_path / "high.png", full)
    low_in = save(tmp_path / "low.png", np.rint(small).astype(np.uint8))
    low_out = save(tmp_path / "low_out.png", np.rint(255 - small).astype(np.uint8))
    assert run("upsample", high, low_in, low_out, tmp_path / "out.png", *options) == 0
    result, _ = load(tmp_path / "out.png")
    bilinear = oiio.ImageBufAlgo.resize(oiio.ImageBuf(str(low_out)), "triangle", 0, oiio.ROI(0, 128, 0, 96)).get_pixels(
        oiio.UINT8
    )
    wanted = 255.0 - full
    # Joint bilateral upsampling mixes colours, guided upsampling learns the edit.
    share = 1 if "jbu" in options else 0.1
    assert ((result - wanted) ** 2).mean() < share * ((bilinear - wanted) ** 2).mean()


def test_upsample_keeps_depth_alpha_and_kind(tmp_path):
    high = save(tmp_path / "high.png", photograph(48, 64, channels=4))
    low_in = save(tmp_path / "low.png", photograph(48, 64)[::4, ::4])
    low_out = save(tmp_path / "low_out.png", photograph(48, 64, channels=1, kind="uint16")[::4, ::4])
    assert run("upsample", high, low_in, low_out, tmp_path / "out.png") == 0
    result, _ = load(tmp_path / "out.png")
    assert result.dtype == np.uint16
    assert result.shape == (48, 64, 2)
    assert np.abs(result[..., :1] / 65535 - photograph(48, 64, channels=1) / 255).mean() < 0.02


def test_upsample_has_the_alpha_of_high_alone(tmp_path, capsys):
    """Of an edit whose program always writes alpha, a JPEG can be made; of a transparent HIGH none."""
    high, low = save(tmp_path / "high.png", photograph(48, 64)), photograph(48, 64)[::4, ::4]
    low_in = save(tmp_path / "low.png", low)
    low_out = save(tmp_path / "low_out.png", np.dstack([low, np.full_like(low[..., :1], 255)]))
    assert run("upsample", high, low_in, low_out, tmp_path / "out.jpg") == 0
    assert load(tmp_path / "out.jpg")[0].shape == (48, 64, 3)
    clear = save(tmp_path / "clear.png", photograph(48, 64, channels=4))
    assert "no alpha" in refused(capsys, "upsample", clear, low_in, low_out, tmp_path / "clear.jpg")


@pytest.mark.parametrize("wrong", ["low_out", "larger", "proportions", "exists", "same", "sigma", "fit", "gray"])
def test_upsample_refuses(tmp_path, capsys, wrong):
    high = save(tmp_path / "high.png", photograph(48, 64))
    low = save(tmp_path / "low.png", photograph(12, 16))
    odd = save(tmp_path / "odd.png", photograph(16, 12))
    large = save(tmp_path / "large.png", photograph(96, 128))
    gray = save(tmp_path / "gray.png", photograph(12, 16, channels=1))
    out = tmp_path / "out.png"
    arguments, message = {
        "low_out": ((high, low, odd, out), "LOW_OUT must be as large"),
        "larger": ((high, large, large, out), "at least as large"),
        "proportions": ((high, odd, odd, out), "proportions"),
        "exists": ((high, low, low, large), "exists"),
        "same": ((high, low, low, high, "--overwrite"), "is an input"),
        "sigma": ((high, low, low, out, "--sigma-space", 1), "--sigma-space belongs to --method jbu, got --method bgu"),
        "fit": (
            (high, low, low, out, "--method", "jbu", "--fit", "fast"),
            "--fit belongs to --method bgu, got --method jbu",
        ),
        "gray": ((high, gray, low, out), "LOW_IN must be in colour as HIGH is, and is gray"),
    }[wrong]
    assert message in refused(capsys, "upsample", *arguments)
    assert not out.exists()


@pytest.mark.parametrize("option", ["space=0", "space=-1", "space=inf", "color=0", "color=nan"])
def test_absurd_sigmas(tmp_path, capsys, option):
    source = save(tmp_path / "in.png", photograph())
    wanted = f"--sigma-{option.split('=')[0]} must be a number above 0"
    assert wanted in refused(capsys, "filter", source, tmp_path / "out.png", f"--sigma-{option}")


@pytest.mark.parametrize("sigma", [1e-7, 1e-300])
def test_grid_that_does_not_fit(tmp_path, capsys, sigma):
    source = save(tmp_path / "in.png", photograph())
    refused(capsys, "filter", source, tmp_path / "out.png", "--sigma-color", sigma, "--sigma-space", 0.01)
    assert os.listdir(tmp_path) == ["in.png"]


@pytest.mark.parametrize(
    ("command", "slow"),
    [
        ("bilagrid", "torch"),
        ("bilagrid", "tyro"),
        ("nets.hdrnet", "torch"),
        ("nets.deghost", "tyro"),
        ("perf.sweep", "torch"),
    ],
)
def test_interruption_while_loading(tmp_path, command, slow):
    (tmp_path / f"{slow}.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    with launch(tmp_path, "-m", command) as process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        message = process.stderr.read()
    assert process.returncode == 130, message
    assert message == "bilagrid: interrupted; files finished so far are kept\n"


def test_interruption_of_other_programs_is_their_own(tmp_path):
    package = tmp_path / "another"
    package.mkdir()
    (package / "__init__.py").write_text("import bilagrid, nets, perf")
    (package / "__main__.py").write_text("import signal; print(signal.getsignal(signal.SIGINT))")
    with launch(tmp_path, "-m", "another") as process:
        assert "default_int_handler" in process.stdout.read()


def test_without_input(tmp_path):
    out, message = launch(tmp_path, "-m", "bilagrid", "filter").communicate()
    assert message == ""
    assert " x 51 x 76 nodes" in out
    assert load(tmp_path / "coffee_filtered.png")[0].shape == (400, 600, 3)
    assert load(tmp_path / "coffee_before_after.png")[0].shape == (428, 1208, 3)
    assert "Traceback" not in launch(tmp_path, "-m", "bilagrid", "filter").communicate()[1]


@pytest.mark.parametrize("command", ["filter", "upsample"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m bilagrid" in text
    assert "standard deviation" in text
    if command == "upsample":
        assert "HIGH LOW_IN LOW_OUT OUT" in text
        assert "PATH" not in text
