"""The commands equalize, colorize and flash on files, as a user runs them."""

import numpy as np
import pytest
import torch

from tests.pictures import KINDS, load, oiio, photograph, save  # isort: skip -- it skips where packages are missing

import bilagrid
from bilagrid.__main__ import main
from tests.commands import CommandLine

run = CommandLine(main)
refused = run.refused


def tensor(values):
    scale = 1 if values.dtype == np.float32 else np.iinfo(values.dtype).max
    return torch.from_numpy(values.astype(np.float32) / np.float32(scale)).permute(2, 0, 1)[None]


def pixels(image):
    return image[0].permute(1, 2, 0).numpy()


def stroked(values):
    """A copy with two strokes on it, and where they are."""
    painted, mask = np.broadcast_to(values, (*values.shape[:2], 3)).copy(), np.zeros(values.shape[:2], dtype=bool)
    mask[10:14, 10:50] = mask[40:44, 30:70] = True
    painted[10:14, 10:50] = np.array([200, 90, 40])
    painted[40:44, 30:70] = np.array([40, 90, 220])
    return painted, mask


def profile():
    cms = pytest.importorskip("PIL.ImageCms")
    return cms.ImageCmsProfile(cms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_all_keep_depth_and_alpha(tmp_path, suffix, kind, channels):
    if suffix == "jpg" and channels in (2, 4):
        pytest.skip("JPEG has no alpha")
    values = photograph(channels=channels, kind=kind)
    source = save(tmp_path / f"in.{suffix}", values)
    strokes = save(tmp_path / "strokes.png", stroked(photograph())[0])
    mask = save(tmp_path / "mask.png", stroked(photograph())[1][..., None].astype(np.uint8) * 255)
    lit = save(tmp_path / "lit.png", photograph())
    stored, _ = load(source)
    for command, more, colours in (
        (("equalize", source), (), 1 if channels < 3 else 3),
        (("colorize", source, strokes), ("--mask", mask), 3),
        (("flash", lit, source), (), 1 if channels < 3 else 3),
    ):
        target = tmp_path / f"{command[0]}.{suffix}"
        assert run(*command, target, *more) == 0
        result, spec = load(target)
        assert result.dtype == values.dtype
        assert result.shape == (60, 80, colours + (channels in (2, 4)))
        if channels in (2, 4):
            assert spec.alpha_channel == colours
            np.testing.assert_array_equal(result[..., -1], stored[..., -1])


def test_equalize_equals_the_library(tmp_path):
    values = photograph(kind="uint16")
    source = save(tmp_path / "in.png", values)
    for name, words, options in (
        ("a", (), {"clip_limit": 2.5}),
        ("b", ("--clip-limit", "None", "--sigma-space", 9), {"sigma_space": 9.0}),
        ("c", ("--clip-limit", 1, "--sigma-space", "inf"), {"clip_limit": 1.0, "sigma_space": float("inf")}),
    ):
        assert run("equalize", source, tmp_path / f"{name}.png", *words) == 0
        wanted = pixels(bilagrid.equalize_histogram(tensor(values), **options)) * 65535
        np.testing.assert_allclose(load(tmp_path / f"{name}.png")[0], wanted, atol=1.5)


def test_equalize_many(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.jpg", "c.tif"):
        save(tmp_path / "in" / name, photograph())
    assert run("equalize", tmp_path / "in", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.jpg", "c.tif"]
    assert "and 2 more exist" in refused(capsys, "equalize", tmp_path / "in", tmp_path / "out")
    assert run("equalize", tmp_path / "in", tmp_path / "out", "--skip-existing") == 0


def test_equalize_shows_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["equalize"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coffee_before_after.png", "coffee_equalized.png"]
    assert "600x400" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["difference", "opaque", "alpha", "mask"])
def test_colorize_knows_strokes(tmp_path, how):
    values = photograph(channels=1)
    source = save(tmp_path / "gray.png", values)
    painted, mask = stroked(values)
    words = ()
    if how == "opaque":
        painted = np.dstack([painted, np.full_like(values, 255)])
    if how == "alpha":
        painted = np.dstack([painted * mask[..., None], mask.astype(np.uint8) * 255])
    if how == "mask":
        painted = np.where(mask[..., None], painted, 255 - painted).astype(np.uint8)
        words = ("--mask", save(tmp_path / "mask.png", mask[..., None].astype(np.uint8) * 255))
    strokes = save(tmp_path / "strokes.png", painted)
    assert run("colorize", source, strokes, tmp_path / "out.png", *words, "--sigma-space", 3) == 0
    colours = tensor(stroked(values)[0])
    wanted = pixels(bilagrid.colorize(tensor(values), colours, torch.from_numpy(mask)[None], sigma_space=3.0)) * 255
    np.testing.assert_allclose(load(tmp_path / "out.png")[0], wanted, atol=1)


def test_colorize_by_a_jpeg_and_a_coloured_original(tmp_path):
    """What JPEG changes is no stroke; of colours the luma stays."""
    values = photograph(120, 160)
    gray = np.rint(values @ [0.299, 0.587, 0.114])[..., None].astype(np.uint8)
    painted = gray.repeat(3, 2)
    painted[30:40, 20:120] = [200, 90, 40]
    strokes = save(tmp_path / "strokes.jpg", painted, CompressionQuality=90)
    assert run("colorize", save(tmp_path / "in.png", gray), strokes, tmp_path / "a.png") == 0
    a = load(tmp_path / "a.png")[0].astype(float)
    assert (a[..., 0] - a[..., 2]).mean() > 20
    np.testing.assert_allclose(a @ [0.299, 0.587, 0.114], gray[..., 0], atol=1.5)


def test_flash_equals_the_library_and_reads_the_exposure(tmp_path, capsys):
    lit, dark = photograph(), (photograph(kind="uint16") * 0.4).astype(np.uint16)
    wanted = lambda **options: pixels(bilagrid.merge_flash(tensor(lit), tensor(dark), **options)) * 65535  # noqa: E731
    facts = {"ExposureTime": 0.01, "FNumber": 8.0, "Exif:PhotographicSensitivity": 100}
    source = save(tmp_path / "lit.tif", lit, ExposureTime=0.01)
    other = save(tmp_path / "dark.tif", dark, ExposureTime=0.02)
    assert run("flash", source, other, tmp_path / "a.tif") == 0
    assert "exposure 0.5, from EXIF" in capsys.readouterr().out
    np.testing.assert_allclose(load(tmp_path / "a.tif")[0], np.clip(wanted(exposure=0.5), 0, 65535), atol=2)
    # In TIFF, OpenImageIO writes no ISO.
    all_of_it = save(tmp_path / "lit.jpg", lit, **facts)
    more = {"ExposureTime": 0.02, "FNumber": 4.0, "Exif:PhotographicSensitivity": 400}
    assert run("flash", all_of_it, save(tmp_path / "dark.jpg", lit, **more), tmp_path / "d.jpg") == 0
    assert f"exposure {1 / 32:.3g}, from EXIF" in capsys.readouterr().out
    source = save(tmp_path / "said.tif", lit, ExposureTime=0.01, FNumber=8.0)
    half = save(tmp_path / "half.tif", dark, ExposureTime=0.02)
    assert run("flash", source, half, tmp_path / "b.tif") == 0
    assert "exposure unknown" in capsys.readouterr().out
    np.testing.assert_allclose(load(tmp_path / "b.tif")[0], np.clip(wanted(), 0, 65535), atol=2)
    options = {"sigma_space": 3.0, "sigma_color": 0.2, "exposure": 0.5, "gamma": 1.8}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run("flash", source, other, tmp_path / "c.tif", *words) == 0
    np.testing.assert_allclose(load(tmp_path / "c.tif")[0], np.clip(wanted(**options), 0, 65535), atol=2)


def test_metadata_is_kept(tmp_path):
    image = pytest.importorskip("PIL.Image")
    icc = profile()
    for name, values in (("lit", photograph()), ("dark", photograph() // 2), ("strokes", stroked(photograph())[0])):
        image.fromarray(values).save(tmp_path / f"{name}.png", icc_profile=icc)
    lit, dark, strokes = (tmp_path / f"{name}.png" for name in ("lit", "dark", "strokes"))
    for command in (("equalize", dark), ("colorize", lit, strokes), ("flash", lit, dark)):
        out = tmp_path / f"{command[0]}.png"
        assert run(*command, out) == 0
        with image.open(out) as result:
            assert result.info["icc_profile"] == icc
    turned = save(tmp_path / "turned.tif", photograph(), Orientation=6, Artist="somebody")
    assert run("equalize", turned, tmp_path / "upright.tif") == 0
    result, spec = load(tmp_path / "upright.tif")
    assert result.shape == (80, 60, 3)
    assert spec.get_string_attribute("Artist") == "somebody"


def test_refusals(tmp_path, capsys):
    gray, out = save(tmp_path / "gray.png", photograph(channels=1)), tmp_path / "out.png"
    painted = save(tmp_path / "painted.png", stroked(photograph(channels=1))[0])
    other, inverted = (
        save(tmp_path / "other.png", photograph(50, 80)),
        save(tmp_path / "inverted.png", 255 - photograph()),
    )
    bright = save(tmp_path / "bright.exr", 3 * photograph(kind="float"))
    alpha = save(tmp_path / "alpha.png", photograph(channels=4))
    for words, message in (
        (("equalize", gray), "OUT is missing: equalize"),
        (("equalize", gray, out, "--clip-limit=-1"), "--clip-limit must be a number, at least 0, or None, got -1"),
        (("equalize", gray, out, "--clip-limit=nan"), "--clip-limit must be"),
        (("equalize", gray, out, "--sigma-space=0"), "--sigma-space must be a number above 0, got 0"),
        (("equalize", bright, tmp_path / "out.exr"), "holds values from 0 to"),
        (("equalize", bright, tmp_path / "out.exr"), "python -m bilagrid tonemap"),
        (("equalize", tmp_path / "none.png", out), "no such file"),
        (("equalize", gray, gray, "--overwrite"), "is an input"),
        (("colorize", gray, gray, out), "marks no stroke"),
        (("colorize", gray, inverted, out), "differs from"),
        (("colorize", gray, other, out), "SCRIBBLES must be as large as GRAY, 80x60, got 80x50"),
        (("colorize", gray, painted, out, "--mask", other), "--mask must be as large as GRAY"),
        (("colorize", gray, painted, out, "--sigma-color=0"), "--sigma-color must be"),
        (("colorize", gray, painted, painted, "--overwrite"), "is an input"),
        (("colorize", gray, painted, tmp_path / "out.xyz"), "unknown output format '.xyz'"),
        (("colorize", alpha, painted, tmp_path / "out.jpg"), "JPEG has no alpha"),
        (("flash", gray, other, out), "NO_FLASH must be as large as FLASH, 80x60, got 80x50"),
        (("flash", gray, painted, out, "--exposure=0"), "--exposure must be a number above 0, got 0"),
        (("flash", gray, painted, out, "--gamma=-1"), "--gamma must be"),
        (("flash", gray, bright, tmp_path / "out.exr"), "holds values"),
        (("flash", gray, painted, other), "exists; --overwrite replaces it"),
    ):
        assert message in refused(capsys, *words), words
    assert not out.exists()
    assert oiio.ImageBuf(str(other)).spec().height == 50


@pytest.mark.parametrize("command", ["equalize", "colorize", "flash"])
def test_help_teaches(capsys, command):
    with pytest.raises(SystemExit) as stop:
        run(command, "--help")
    assert stop.value.code == 0
    assert f"python -m bilagrid {command} " in " ".join(capsys.readouterr().out.split())
