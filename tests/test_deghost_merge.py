"""``python -m nets.deghost merge`` as a user runs it, on brackets made of photographs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from tests.pictures import load, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("cv2")
pytest.importorskip("safetensors")

import bilagrid
from nets.deghost import BilateralDeghost, DeghostNet
from nets.deghost import merge as merging
from nets.deghost.__main__ import main
from nets.weights import save_network
from tests.brackets import MATRIX, exposed, moved, radiance, taken
from tests.commands import CommandLine

run = CommandLine(main)
refused = run.refused


@pytest.mark.parametrize("suffix", ["exr", "hdr", "tif"])
def test_debevec_end_to_end(tmp_path, capsys, suffix):
    light = radiance()[100:340, 100:420]
    paths = taken(tmp_path, light, (0.0, 2.0, 4.0), suffix="tif")
    out = tmp_path / f"scene.{suffix}"
    assert run("merge", *paths[::-1], out, "--method", "debevec") == 0
    text = capsys.readouterr().out
    assert "3 photographs of 320x240" in text
    assert "1.tif: +2.0 stops, the middle" in text
    assert text.count("stands still") == 2
    assert f"wrote {out}\nwrote {tmp_path / 'scene.png'}\n" in text
    found, spec = load(out)
    assert (found.dtype, found.shape) == (np.float32, light.shape)
    # Radiance has 8 bits below its brightest channel, and OpenImageIO cuts the others off.
    np.testing.assert_allclose(found, light, atol=(3 if suffix == "hdr" else 1.5) / 255)
    assert spec.get_float_attribute("ExposureTime") == pytest.approx(0.04, rel=1e-3) or suffix == "hdr"
    picture, _ = load(tmp_path / "scene.png")
    wanted = bilagrid.tonemap(torch.from_numpy(found).permute(2, 0, 1)[None], contrast=20)[0].permute(1, 2, 0).numpy()
    # Made of the radiance itself, of which Radiance keeps less.
    assert np.abs(picture / 255 - wanted).mean() < (0.01 if suffix == "hdr" else 0.002)


def test_a_bracket_from_the_hand_is_aligned(tmp_path):
    light = radiance()
    seen = (moved(light, MATRIX), light, moved(light, np.linalg.inv(MATRIX)))
    paths = [
        save(tmp_path / f"{k}.png", exposed(one, stops)) for k, (one, stops) in enumerate(zip(seen, (0, 2, 4), strict=True))
    ]  # fmt: skip
    errors = {}
    for align in ("none", "flow", "homography"):
        out = tmp_path / f"{align}.exr"
        assert (
            run("merge", *paths, out, "--method", "debevec", "--times", "1/400", "1/100", "1/25", "--align", align) == 0
        )
        errors[align] = np.abs(load(out)[0] - light)[30:-30, 30:-30].mean()
    assert errors["homography"] < errors["none"] / 5
    assert errors["flow"] < errors["none"] / 2


def test_the_sheet_shows_every_step(tmp_path):
    light, thing = radiance()[:240, :320], radiance("coffee")[100:180, 100:180]
    paths = []
    for k, left in enumerate((20, 120, 220)):
        scene = light.copy()
        scene[80:160, left : left + 80] = thing
        paths.append(save(tmp_path / f"{k}.jpg", exposed(scene, 2 * k), ExposureTime=0.0025 * 4**k))
    sheet = tmp_path / "steps.png"
    assert run("merge", *paths, tmp_path / "out.exr", "--method", "debevec", "--show-steps", sheet) == 0
    found, _ = load(sheet)
    # Three rows of three pictures of 320x240, and their labels.
    assert found.shape == (3 * (240 + 28) + 2 * 8, 3 * 320 + 2 * 8, 3)
    motion = found[2 * 276 + 28 :, :320].astype(float).mean(-1)
    assert motion.shape == (240, 320)
    still = np.ones((240, 320), bool)
    still[70:170] = False
    assert motion[90:150, 30:90].mean() > 5 * motion[still].mean()
    assert motion[90:150, 230:290].mean() > 5 * motion[still].mean()


def test_mertens_makes_a_picture(tmp_path, capsys):
    paths = taken(tmp_path, suffix="png", exif=False)
    times = ("--times", "1", "4", "16")
    message = refused(capsys, "merge", *paths, tmp_path / "out.exr", "--method", "mertens", *times)
    assert "Mertens' fusion is a picture, not a radiance" in message
    assert run("merge", *paths, tmp_path / "out.tif", "--method", "mertens", *times) == 0
    assert load(tmp_path / "out.tif")[0].dtype == np.uint16
    assert run("merge", *paths, tmp_path / "out.jpg", "--method", "mertens", *times) == 0
    assert load(tmp_path / "out.jpg")[0].shape == (120, 160, 3)


def test_the_picture_is_what_was_asked_for(tmp_path, capsys):
    """At 16 bits, in another file, by another curve."""
    paths, picture = taken(tmp_path), tmp_path / "look.tif"
    options = ("--method", "debevec", "--tone", "mu", "--picture", picture)
    assert run("merge", *paths, tmp_path / "out.exr", *options) == 0
    assert not (tmp_path / "out.png").exists()
    found, light = load(picture)[0], load(tmp_path / "out.exr")[0]
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found / 65535, np.log(1 + 5000 * light) / np.log(5001), atol=1 / 65535)
    same = ("--picture", tmp_path / "o.tif")
    assert "choose another name" in refused(capsys, "merge", *paths, tmp_path / "o.tif", "--method", "debevec", *same)
    message = refused(capsys, "merge", *paths, tmp_path / "o.png", "--method", "mertens", *same)
    assert "Mertens' fusion is a picture itself" in message
    assert "unknown output format '.exr'" in refused(
        capsys, "merge", *paths, tmp_path / "o.exr", "--method", "debevec", "--picture", tmp_path / "p.exr"
    )


def test_two_and_seven_photographs(tmp_path, capsys):
    light = radiance()[100:340, 100:420]
    paths = taken(tmp_path, light, np.arange(-2.0, 5.0), suffix="png")
    assert run("merge", *paths[2:5:2], tmp_path / "two.exr", "--method", "debevec") == 0
    np.testing.assert_allclose(load(tmp_path / "two.exr")[0], light, atol=2 / 255)
    capsys.readouterr()
    assert run("merge", *paths, tmp_path / "seven.exr", "--method", "debevec") == 0
    text = capsys.readouterr().out
    assert "7 photographs of 320x240" in text
    left = next(line for line in text.splitlines() if "left out" in line)
    assert left.count(".png") == 4
    assert "the others show the most" in left


def test_the_response_can_be_found(tmp_path):
    light = radiance()
    camera = lambda x: 1.1 * x**0.45 - 0.1 * x**1.2  # noqa: E731
    paths = [
        save(tmp_path / f"{k}.png", exposed(light, stops, camera), ExposureTime=2.0**stops)
        for k, stops in enumerate((0, 2, 4))
    ]
    errors = []
    for response in ("gamma", "debevec"):
        out = tmp_path / f"{response}.exr"
        assert run("merge", *paths, out, "--method", "debevec", "--response", response) == 0
        found = load(out)[0]
        errors.append(np.abs(np.log(found + 0.01) - np.log(light + 0.01)).mean())
    assert errors[1] < 0.7 * errors[0]


def test_a_network_sees_tiles_and_gives_the_whole(monkeypatch):
    """Of a network whose layers reach no farther than the halo, tiles change nothing; of two exposures the middle one is given twice."""
    monkeypatch.setattr(merging, "_TILE", 48)
    monkeypatch.setattr(merging, "_HALO", 16)
    seen = []
    layer = torch.nn.Conv2d(9, 3, 9, padding=4)

    def net(ldr, ev):
        seen.append((tuple(ldr.shape), ev.tolist()))
        return layer(ldr.flatten(1, 2))

    ldr = np.random.default_rng(0).random((3, 100, 130, 3)).astype(np.float32)
    found = merging.by_network(net, ldr, np.array([-2.0, 0.0, 2.0]), 1)
    with torch.inference_mode():
        wanted = layer(torch.from_numpy(ldr).permute(0, 3, 1, 2).flatten(0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert len(seen) == 9
    assert seen[0] == ((1, 3, 3, 64, 64), [[0.0, 2.0, 4.0]])
    merging.by_network(net, ldr[:2], np.array([0.0, 2.0]), 1)
    assert seen[-1][1] == [[0.0, 2.0, 2.0]]


def test_large_photographs_are_carried_to_full_size(tmp_path, capsys, monkeypatch):
    """At full size on request, and always where they are small; a network that was trained to be carried keeps to what it was trained for."""
    torch.manual_seed(0)
    plain, carried = tmp_path / "plain.safetensors", tmp_path / "carried.safetensors"
    save_network(plain, DeghostNet(width=2))
    save_network(carried, BilateralDeghost(DeghostNet(width=2), reduce=2))
    paths = taken(tmp_path, radiance()[100:340, 100:420], (0.0, 2.0, 4.0))

    def told(weights, *options):
        capsys.readouterr()
        assert run("merge", *paths, tmp_path / "out.exr", "--overwrite", "--weights", weights, *options) == 0
        return [line for line in capsys.readouterr().out.splitlines() if "bilateral grid" in line]

    assert told(plain) == []
    assert "shrunk by 3, and a bilateral grid carries" in told(plain, "--reduce", 3)[0]
    assert "shrunk by 2" in told(carried)[0]
    assert told(carried, "--reduce", 1) == []
    monkeypatch.setattr(merging, "_LARGE", 320 * 240 - 1)
    assert "shrunk by 4" in told(plain)[0]
    assert told(plain, "--reduce", 1) == []
    assert "--reduce must be at least 1" in refused(capsys, "merge", *paths, tmp_path / "o.exr", "--reduce", 0)
    message = refused(capsys, "merge", *paths, tmp_path / "o.exr", "--reduce", 4, "--method", "debevec")
    assert "is for --method net, got 4 for --method debevec" in message


def test_weights_that_are_none_are_refused(tmp_path, capsys):
    paths = taken(tmp_path)
    message = refused(capsys, "merge", *paths, tmp_path / "out.exr", "--weights", tmp_path / "none.safetensors")
    assert "none.safetensors: no such file, nor one of the models that come along: deghost" in message
    (tmp_path / "text.safetensors").write_text("no weights")
    message = refused(capsys, "merge", *paths, tmp_path / "out.exr", "--weights", tmp_path / "text.safetensors")
    assert "text.safetensors: cannot be read as safetensors" in message
    assert not (tmp_path / "out.exr").exists()


WRONG = {
    "one photograph": (lambda folder, paths: [paths[0], folder / "out.exr"], "expected two to seven photographs and OUT, got 2 files"),
    "eight": (lambda folder, paths: [*paths, *paths, *paths[:2], folder / "out.exr"], "a bracket has 2 to 7 photographs, got 8"),
    "a picture for a radiance": (lambda folder, paths: [*paths, folder / "out.png"], "unknown output format '.png', expected one of .hdr .exr"),
    "a folder": (lambda folder, paths: [*paths, (folder / "f.exr").mkdir() or folder / "f.exr", "--overwrite"], "f.exr: is not a file"),
    "no folder": (lambda folder, paths: [*paths, folder / "none" / "out.exr"], "no such folder"),
    "an input": (lambda folder, paths: [*paths[:2], save(folder / "o.png", load(paths[2])[0]), folder / "o.exr"], "o.png: is an input"),
    "the same sheet": (lambda folder, paths: [*paths, folder / "out.exr", "--show-steps", folder / "out.png"], "choose another name"),
    "no times": (lambda folder, paths: [*[save(folder / f"{k}.png", load(path)[0]) for k, path in enumerate(paths)], folder / "out.exr"], "give them: --times"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_refusals(tmp_path, capsys, case):
    make, message = WRONG[case]
    paths = taken(tmp_path)
    assert message in refused(capsys, "merge", *make(tmp_path, paths), "--method", "debevec")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("existing", ["out.exr", "out.png", "steps.png"])
def test_nothing_is_replaced_unasked(tmp_path, capsys, existing):
    paths = taken(tmp_path)
    (tmp_path / existing).write_text("kept")
    arguments = ("merge", *paths, tmp_path / "out.exr", "--method", "debevec", "--show-steps", tmp_path / "steps.png")
    assert "exists; --overwrite replaces it" in refused(capsys, *arguments)
    assert (tmp_path / existing).read_text() == "kept"
    assert run(*arguments, "--overwrite") == 0
    assert (tmp_path / existing).stat().st_size > 1000


def test_progress_is_shown_and_ends_whole(tmp_path, capsys, monkeypatch):
    paths = taken(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("merge", *paths, tmp_path / "out.exr", "--method", "debevec") == 0
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "5/5" in shown
    assert "align" in shown


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        run("merge", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m nets.deghost merge dark.jpg middle.jpg bright.jpg scene.exr" in text
    assert "A B C ... OUT" in text
