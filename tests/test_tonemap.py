"""Tone mapping, its formula and its properties, on scenes made of photographs; Radiance and OpenEXR files; and the command."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.pictures import data, load, oiio, photograph, save  # isort: skip -- it skips where packages are missing

import bilagrid
from bilagrid import images
from bilagrid.__main__ import main
from tests.commands import CommandLine
from tests.helpers import numpy64
from tests.reference import filters as exact


def scene(decades: float = 4.0, height: int = 96, width: int = 120) -> Tensor:
    """A photograph's radiance, (1, 3, height, width), whose right third lies in sunlight that is so much brighter."""
    pixels = torch.from_numpy(data.coffee()[100 : 100 + height, 150 : 150 + width].astype(np.float64) / 255) ** 2.2
    light = torch.ones(width, dtype=torch.float64)
    light[width * 2 // 3 :] = 10.0**decades
    return (pixels * light[:, None]).movedim(-1, 0)[None].float() + 1e-3


def luminance(image: Tensor) -> np.ndarray:
    red, green, blue = numpy64(image[0])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_formula() -> None:
    """By the exact filter, and the ends of its base as they come, but for one pixel in a thousand."""
    radiance = scene(2.5, 60, 80)
    found = bilagrid.tonemap(radiance.double(), contrast=8, sigma_space=5, sigma_color=0.4)
    light = luminance(radiance)
    log = np.log10(light)
    base = exact.bilateral_filter(log[None], log, 5, 0.4)[0]
    least, most = np.quantile(base, [0.001, 0.999], method="nearest")
    mapped = np.log10(8) / (most - least) * (base - most) + log - base
    wanted = np.clip(numpy64(radiance[0]) / light * 10**mapped, 0, 1) ** (1 / 2.2)
    assert np.abs(numpy64(found[0]) - wanted).max() < 0.02
    assert np.abs(numpy64(found[0]) - wanted).mean() < 0.002


def test_both_sides_of_the_window_can_be_seen() -> None:
    """What a plain exposure crushes to black or white keeps its contrast in either light."""
    radiance = scene(4.0)
    found = luminance(bilagrid.tonemap(radiance, contrast=5, gamma=1))
    plain = luminance((radiance / radiance.max()).clamp(0, 1))
    room, outside = slice(0, 70), slice(90, 120)
    assert plain[:, room].max() < 1e-3
    assert found[:, room].mean() > 0.1
    assert 0.3 < found[:, outside].mean() < 1
    # The ratio of neighbours, which is the detail, is kept far better than that of the two lights, a sixth of whose decades is left.
    before, after = (np.abs(np.diff(np.log10(light)[:, room])).mean() for light in (luminance(radiance), found))
    assert after > 3 / 6 * before


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 7.0, 1e30])
def test_the_unit_of_radiance_does_not_matter(factor: float) -> None:
    radiance = scene()
    found, wanted = bilagrid.tonemap(radiance * factor), bilagrid.tonemap(radiance)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_contrast_is_the_base_s() -> None:
    light = torch.tensor([1.0, 1e5]).repeat_interleave(40).expand(1, 1, 60, 80)
    for contrast in (1.0, 5.0, 50.0):
        found = bilagrid.tonemap(light, contrast=contrast, gamma=1)
        assert found.max().item() == pytest.approx(1, abs=1e-4)
        assert found.min().item() == pytest.approx(1 / contrast, rel=1e-3)


def test_a_scene_of_little_contrast_is_not_stretched() -> None:
    light = torch.tensor([0.5, 1.0]).repeat_interleave(40).expand(1, 3, 60, 80)
    torch.testing.assert_close(bilagrid.tonemap(light, contrast=5, gamma=1), light, rtol=0, atol=1e-4)
    torch.testing.assert_close(
        bilagrid.tonemap(0.3 * torch.ones(1, 3, 8, 9)), torch.ones(1, 3, 8, 9), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("extreme", [0.0, 1e-30, 3e38])
def test_a_few_extreme_pixels_change_little_elsewhere(extreme: float) -> None:
    radiance = scene(3.0)
    changed = radiance.clone()
    changed[..., 10, 10] = extreme
    found, wanted = bilagrid.tonemap(changed), bilagrid.tonemap(radiance)
    assert found.isfinite().all()
    far = torch.ones(96, 120, dtype=torch.bool)
    far[4:17, 4:17] = False
    assert (found - wanted)[..., far].abs().max() < 0.02


def test_black_stays_black_and_finite() -> None:
    black = torch.zeros(2, 3, 8, 9, requires_grad=True)
    found = bilagrid.tonemap(black)
    assert found.count_nonzero() == 0
    found.sum().backward()
    assert black.grad is not None
    assert black.grad.isfinite().all()
    framed = torch.nn.functional.pad(scene(), (30, 30, 30, 30))
    inside = bilagrid.tonemap(framed)[..., 30:-30, 30:-30]
    # The frame is no part of the scene, and does not darken it.
    assert (inside - bilagrid.tonemap(scene(), sigma_space=0.02 * 180)).abs().mean() < 0.02


def test_each_picture_of_a_batch_has_its_own_range() -> None:
    both = torch.cat([scene(4.0), scene(1.0)])
    found = bilagrid.tonemap(both)
    for k in range(2):
        torch.testing.assert_close(found[k : k + 1], bilagrid.tonemap(both[k : k + 1]), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_dtypes(dtype: torch.dtype, channels: int) -> None:
    radiance = scene(2.0, 24, 32)[:, :channels].to(dtype)
    found = bilagrid.tonemap(radiance)
    assert (found.dtype, found.shape) == (dtype, radiance.shape)
    assert found.min() >= 0
    assert found.max() <= 1
    wanted = bilagrid.tonemap(radiance.double())
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=max(torch.finfo(dtype).eps, 1e-4))


def test_an_empty_batch() -> None:
    assert bilagrid.tonemap(torch.zeros(0, 3, 8, 9)).shape == (0, 3, 8, 9)


def test_a_large_picture_is_measured_by_some_of_its_pixels() -> None:
    radiance = scene(3.0, 256, 256).repeat(1, 1, 5, 5)
    small = bilagrid.tonemap(scene(3.0, 256, 256), sigma_space=5)
    assert (bilagrid.tonemap(radiance, sigma_space=5)[..., :230, :230] - small[..., :230, :230]).abs().max() < 0.02


@pytest.mark.parametrize("contrast", [2.0, 1e4])
def test_gradients(contrast: float) -> None:
    radiance = torch.rand(1, 3, 5, 6, dtype=torch.float64).add(0.05).requires_grad_()

    def run(radiance: Tensor) -> Tensor:
        return bilagrid.tonemap(radiance, contrast=contrast, sigma_space=2)

    assert torch.autograd.gradcheck(run, (radiance,), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (radiance,), fast_mode=True)


def test_under_vmap_it_is_not_looked_at() -> None:
    radiance = scene(2.0, 12, 16)
    found = torch.vmap(lambda one: bilagrid.tonemap(one[None])[0])(radiance)
    torch.testing.assert_close(found, bilagrid.tonemap(radiance))


RADIANCE = torch.rand(1, 3, 8, 9)
REFUSED = {
    "negative": (-RADIANCE, {}, ValueError, "radiance must be finite and at least 0, got -"),
    "infinite": (RADIANCE / 0, {}, ValueError, "radiance must be finite"),
    "NaN": (RADIANCE * torch.nan, {}, ValueError, "radiance must be finite"),
    "two channels": (RADIANCE[:, :2], {}, ValueError, "radiance must have 1 or 3 channels, got 2"),
    "no batch": (RADIANCE[0], {}, ValueError, r"radiance must have shape \(N, C, H, W\)"),
    "whole numbers": (RADIANCE.int(), {}, TypeError, "radiance must be float16"),
    "contrast below 1": (RADIANCE, {"contrast": 0.5}, ValueError, "contrast must be a finite number, at least 1, got 0.5"),
    "a text": (RADIANCE, {"contrast": "5"}, TypeError, "contrast must be a number, got '5'"),
    "no gamma": (RADIANCE, {"gamma": 0}, ValueError, "gamma must be"),
    "no space": (RADIANCE, {"sigma_space": 0}, ValueError, "sigma_space must be"),
    "no colour": (RADIANCE, {"sigma_color": float("nan")}, ValueError, "sigma_color must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    radiance, options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        bilagrid.tonemap(radiance, **options)


run = CommandLine(main)
refused = run.refused


def saved(path, channels=3, scale=20.0, kind="float", names=None, **attributes):
    """A file of radiance, written by the library that this project reads with, but not by its code."""
    values = photograph(channels=channels, kind="float") * np.float32(scale)
    if channels in (2, 4):
        values[..., -1] /= scale
    spec = oiio.ImageSpec(values.shape[1], values.shape[0], channels, kind)
    if names:
        spec.channelnames = names
    for name, value in attributes.items():
        setattr(spec, name, value)
    file = oiio.ImageOutput.create(str(path))
    assert file.open(str(path), spec)
    assert file.write_image(np.ascontiguousarray(values))
    assert file.close()
    return path


@pytest.mark.parametrize("kind", ["float", "half"])
@pytest.mark.parametrize("suffix", ["exr", "hdr"])
def test_radiance_files_are_read_and_written(tmp_path, suffix, kind):
    values = photograph(kind="float") * 20
    picture = images.read(saved(tmp_path / f"in.{suffix}", kind=kind))
    # Radiance shares one exponent between the channels; half has 11 bits.
    near = {"rtol": 0, "atol": 20 / 128} if suffix == "hdr" else {"rtol": 0 if kind == "float" else 2**-11, "atol": 0}
    np.testing.assert_allclose(picture.values, values, **near)
    assert picture.dtype == np.float32
    for target in ("out.exr", "out.tif"):
        images.check_target(tmp_path / target, picture.spec)
        images.write(tmp_path / target, picture.values, picture)
        np.testing.assert_array_equal(load(tmp_path / target)[0], picture.values)
    images.write(tmp_path / "out.hdr", picture.values, picture)
    np.testing.assert_allclose(load(tmp_path / "out.hdr")[0], picture.values, rtol=0, atol=20 / 128)


def test_radiance_hdr_is_rounded(tmp_path):
    """RGBE has 256 steps up to the power of two above a pixel's largest channel; what lies on them, black among it, stays as it is."""
    radiance = np.random.default_rng(0).lognormal(0, 3, (64, 64, 3)).astype(np.float32)
    radiance[0] = 0
    radiance[1] = np.float32(255.9 / 256)
    like = images.read(save(tmp_path / "in.tif", radiance))
    images.write(tmp_path / "out.hdr", radiance, like)
    stored = load(tmp_path / "out.hdr")[0]
    step = np.exp2(np.frexp(stored.max(2, keepdims=True))[1] - 8.0)
    error = (stored - radiance) / step
    # Where rounding reaches the next power of two, steps are twice as long as those that the other channels are raised by.
    assert np.abs(error).max() <= 0.751
    assert np.quantile(np.abs(error), 0.99) <= 0.501
    assert abs(error.mean()) < 0.02
    images.write(tmp_path / "again.hdr", stored, like)
    np.testing.assert_array_equal(load(tmp_path / "again.hdr")[0], stored)
    assert not stored[0].any()


def test_gray_radiance(tmp_path):
    picture = images.read(saved(tmp_path / "in.exr", channels=1))
    assert picture.values.shape == (60, 80, 1)
    images.write(tmp_path / "out.exr", picture.values, picture)
    assert load(tmp_path / "out.exr")[1].channelnames == ("Y",)
    # Radiance knows colour only.
    images.write(tmp_path / "out.hdr", picture.values, picture)
    assert load(tmp_path / "out.hdr")[0].shape == (60, 80, 3)


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_in_exr_is_multiplied_in(tmp_path, channels):
    names = ("Y", "A") if channels == 2 else None
    source = saved(tmp_path / "in.exr", channels=channels, names=names)
    stored = load(source)[0]
    picture = images.read(source)
    shown = stored[..., -1:] > 0
    np.testing.assert_allclose(
        (picture.values * picture.alpha)[shown[..., 0]], stored[..., :-1][shown[..., 0]], rtol=1e-6
    )
    images.write(tmp_path / "out.exr", picture.values, picture, alpha=picture.alpha)
    again, spec = load(tmp_path / "out.exr")
    np.testing.assert_allclose(again, np.where(shown, stored, 0), rtol=1e-6)
    assert spec.channelnames == ("R", "G", "B", "A") if channels == 4 else ("Y", "A")
    assert run("tonemap", source, tmp_path / "out.png") == 0
    result, spec = load(tmp_path / "out.png")
    assert (result.shape[2], spec.alpha_channel) == (channels, channels - 1)
    np.testing.assert_allclose(result[..., -1] / 255, stored[..., -1], atol=0.51 / 255)


FOREIGN = {
    "a layer": ({"names": ("diffuse.R", "diffuse.G", "diffuse.B")}, "holds the channels diffuse.R, diffuse.G, diffuse.B; expected R, G, B"),
    "depth": ({"names": ("Z",), "channels": 1}, "holds the channels Z; expected"),
    "many": ({"names": ("R", "G", "B", "Z"), "channels": 4}, "holds the channels R, G, B, Z; expected"),
    "a crop": ({"x": 5, "full_width": 200}, r"data window \(x, y, width, height\) = \(5, 0, 80, 60\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_else_exr_holds_is_named(tmp_path, case):
    options, message = FOREIGN[case]
    with pytest.raises(images.ImageError, match=message):
        images.read(saved(tmp_path / "in.exr", **options))


@pytest.mark.parametrize("suffix", ["exr", "hdr"])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99])
def test_truncated_radiance(tmp_path, suffix, kept):
    source = saved(tmp_path / f"in.{suffix}")
    whole = source.read_bytes()
    source.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(images.ImageError, match=rf"in.{suffix}: cannot be read"):
        images.read(source)


@pytest.mark.parametrize("suffix", ["exr", "hdr"])
@pytest.mark.parametrize("memory", [True, False])
def test_no_room_for_radiance(tmp_path, monkeypatch, suffix, memory):
    """The last buffer, which the writers do not miss."""
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    monkeypatch.setattr(images, "_MEMORY", memory and images._MEMORY)
    picture, out = images.read(saved(tmp_path / f"in.{suffix}")), tmp_path / f"out.{suffix}"
    images.write(out, picture.values, picture)
    before = out.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 50, limits[1]))
        with pytest.raises(images.ImageError, match="cannot be written"):
            images.write(out, picture.values, picture)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f"in.{suffix}", f"out.{suffix}"])


def test_targets_that_do_not_fit_the_values(tmp_path, capsys):
    radiance, picture = saved(tmp_path / "in.exr"), save(tmp_path / "in.png", photograph())
    assert "python -m bilagrid tonemap IN out.png" in refused(capsys, "filter", radiance, tmp_path / "out.png")
    assert "holds float values only, got uint8 ones" in refused(capsys, "filter", picture, tmp_path / "out.exr")
    assert "Radiance has no alpha" in refused(
        capsys, "filter", saved(tmp_path / "alpha.exr", channels=4), tmp_path / "out.hdr"
    )
    assert run("filter", radiance, tmp_path / "out.hdr", "--sigma-color", 2) == 0
    like = images.read(radiance)
    with pytest.raises(images.ImageError, match="no negative values"):
        images.write(tmp_path / "negative.hdr", -like.values, like)


def test_values_that_are_not_finite_are_refused(tmp_path, capsys):
    values = photograph(kind="float")
    values[3, 4] = np.nan
    source = save(tmp_path / "in.exr", values)
    assert "not finite" in refused(capsys, "tonemap", source, tmp_path / "out.png")


@pytest.mark.parametrize(("target", "kind"), [("out.png", "uint8"), ("out.jpg", "uint8"), ("out.tif", "uint16")])
def test_command_equals_the_library(tmp_path, target, kind):
    source = saved(tmp_path / "in.exr")
    options = {"contrast": 3.0, "sigma_space": 4.0, "sigma_color": 0.2, "gamma": 1.8}
    arguments = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert run("tonemap", source, tmp_path / target, *arguments) == 0
    radiance = torch.from_numpy(load(source)[0]).permute(2, 0, 1)[None]
    wanted = bilagrid.tonemap(radiance, **options)[0].permute(1, 2, 0).numpy()
    found, spec = load(tmp_path / target)
    assert found.dtype == kind
    assert np.abs(found / np.iinfo(kind).max - wanted).mean() < (0.02 if target == "out.jpg" else 0.002)
    # A viewer must not take it for linear light.
    assert "lin" not in spec.get_string_attribute("oiio:ColorSpace")


def test_command_on_folders(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.hdr", "b.exr", "c.tif"):
        saved(tmp_path / "in" / name)
    assert run("tonemap", tmp_path / "in", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    assert "a.png and 2 more exist" in refused(capsys, "tonemap", tmp_path / "in", tmp_path / "out")
    assert run("tonemap", tmp_path / "in", tmp_path / "out", "--skip-existing") == 0
    saved(tmp_path / "in" / "a.exr")
    assert "would both be written to" in refused(capsys, "tonemap", tmp_path / "in", tmp_path / "out", "--overwrite")


def test_command_refuses(tmp_path, capsys):
    source, picture = saved(tmp_path / "in.exr"), save(tmp_path / "in.png", photograph())
    out = tmp_path / "out.png"
    assert "IN and OUT are missing" in refused(capsys, "tonemap")
    assert "OUT is missing" in refused(capsys, "tonemap", source)
    assert "is a picture of uint8 already" in refused(capsys, "tonemap", picture, out)
    assert "unknown output format '.exr'" in refused(capsys, "tonemap", source, tmp_path / "out.exr")
    for option in ("contrast=0.5", "contrast=nan", "gamma=0", "sigma-space=0", "sigma-color=-1"):
        assert f"--{option.split('=')[0]} must be" in refused(capsys, "tonemap", source, out, f"--{option}")
    assert not out.exists()


def test_negative_values_of_renderers_are_taken_as_0(tmp_path):
    assert run("tonemap", saved(tmp_path / "in.exr", scale=-1.0), tmp_path / "out.png") == 0
    assert load(tmp_path / "out.png")[0].max() == 0


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        run("tonemap", "--help")
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "python -m bilagrid tonemap scene.hdr picture.png" in text
    assert "[IN ... OUT]" in text
