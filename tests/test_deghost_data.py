"""Scenes in folders laid out as published, with real 16-bit TIFF and Radiance files, wrong ones too, and brackets made of photographs."""

import shutil

import numpy as np
import pytest
import torch

from tests.pictures import data, photograph, save  # isort: skip -- it skips where packages are missing

pytest.importorskip("safetensors")

from bilagrid import images
from bilagrid.commands import Refusal
from nets.deghost.data import LAYOUTS, Patches, Scenes, radiance, tensors
from nets.deghost.generator import Generated, Photographs
from nets.deghost.radiance import linearised

# Layout to the names of its files: exposures from the shortest on, their ev, and the truth.
TEXT = {
    "kalantari": (("262A0898.tif", "262A0899.tif", "262A0900.tif"), "exposure.txt", "HDRImg.hdr"),
    "wu": (tuple(f"input_{i}_aligned.tif" for i in (1, 2, 3)), "input_exp.txt", "ref_hdr_aligned.hdr"),
    "tel": (tuple(f"input_{i}.tif" for i in (1, 2, 3)), "exposure.txt", "HDRImg.hdr"),
    "challenge123": (tuple(f"ldr_img_{i}.tif" for i in (1, 2, 3)), "exposure.txt", "hdr_img.hdr"),
}


def truth(height=24, width=32):
    """Radiance (H, W, 3) that differs from channel to channel and from place to place."""
    return (photograph(height, width).astype(np.float32) / 255) ** 2.2 * np.array([1, 0.5, 0.25], np.float32)


def exposed(scene, ev, gamma=2.2, top=65535, kind="uint16"):
    """Three exposures of a scene."""
    ev = np.asarray(ev, np.float64)
    light = [np.clip(scene * 2.0**stops, 0, 1) ** (1 / gamma) for stops in ev - ev.min()]
    return [np.rint(values * top).astype(kind) for values in light]


def write_scene(folder, layout="kalantari", ev=(-2, 0, 2), text="{:.6f}\n{:.6f}\n{:.6f}\n", size=(24, 32)):
    """A scene as it is published."""
    names, exposures, target = TEXT[layout]
    folder.mkdir(parents=True)
    scene = truth(*size)
    for name, values in zip(names, exposed(scene, ev), strict=True):
        save(folder / name, values)
    if layout == "wu":
        for i in (1, 2, 3):
            save(folder / f"ref_{i}_aligned.tif", exposed(scene, ev)[i - 1])
        (folder / "ref_exp.txt").write_text("0\n2\n4\n")
    (folder / exposures).write_text(text.format(*ev))
    save(folder / target, scene)
    return folder


def write_ntire(folder, stem="0000_", names=("short", "medium", "long")):
    """A scene of NTIRE 2021: its truth is encoded by 2.24, relative to the middle exposure, and scaled to fill 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    scene, ev = truth(), np.array([-3, -1, 1])
    for name, values in zip(names, exposed(scene, ev, 2.24, 255, "uint8"), strict=True):
        save(folder / f"{stem}{name}.png", values)
    encoded = (scene.astype(np.float64) * 4) ** (1 / 2.24)
    ratio = 65535 / encoded.max()
    save(folder / f"{stem}gt.png", np.rint(encoded * ratio).astype(np.uint16))
    np.save(folder / f"{stem}exposures.npy", ev)
    np.save(folder / f"{stem}alignratio.npy", ratio)


@pytest.mark.parametrize("layout", TEXT)
def test_scenes_as_published(tmp_path, layout):
    write_scene(tmp_path / "Test" / "PAPER" / "BarbequeDay", layout)
    write_scene(tmp_path / "Test" / "EXTRA" / "001", layout, ev=(0, 3, 6))
    scenes = Scenes([tmp_path / "Test"])
    assert scenes.names == ["EXTRA/001", "PAPER/BarbequeDay"]
    assert scenes.sizes == [(24, 32), (24, 32)]
    for k, step in enumerate((3, 2)):
        bracket = scenes.bracket(k)
        assert bracket.ldr.dtype == np.uint16
        assert bracket.ldr.shape == (3, 24, 32, 3)
        assert len(np.unique(bracket.ldr)) > 300
        np.testing.assert_array_equal(bracket.ev, [0, step, 2 * step])
        # What Radiance's shared exponent keeps: 8 bits of the largest channel.
        np.testing.assert_allclose(bracket.truth, truth(), rtol=0, atol=1 / 128)
        ldr, ev, target = tensors(bracket)
        middle = linearised(ldr[None], ev[None])[0, 1]
        unclipped = ldr[1] < 1
        assert (middle - target)[unclipped].abs().max() < 1 / 128
        # Red is the first channel and the strongest.
        assert (target.mean((1, 2)).diff() < 0).all()
        assert (ldr.mean((0, 2, 3)).diff() < 0).all()


def test_exposures_in_any_order_and_notation(tmp_path):
    folder = write_scene(tmp_path / "scene", text="{0:.0f}\r\n{1:.2f} \n {2}\n\n")
    names, exposures, _ = TEXT["kalantari"]
    expected = Scenes([folder]).bracket(0)
    (folder / names[0]).rename(folder / "x.tif")
    (folder / names[2]).rename(folder / names[0])
    (folder / "x.tif").rename(folder / names[2])
    (folder / exposures).write_text("2\n0\n-2")
    found = Scenes([folder]).bracket(0)
    np.testing.assert_array_equal(found.ldr, expected.ldr)
    np.testing.assert_array_equal(found.ev, expected.ev)
    assert Scenes([folder]).names == ["scene"]


@pytest.mark.parametrize("by_folders", [False, True])
def test_ntire_2021(tmp_path, by_folders):
    if by_folders:
        for k in range(2):
            write_ntire(tmp_path / f"00000{k}", "", ("0", "1", "2"))
        expected = ["000000", "000001"]
    else:
        for k in range(2):
            write_ntire(tmp_path / "Train", f"000{k}_")
        expected = ["Train/0000", "Train/0001"]
    scenes = Scenes([tmp_path])
    assert scenes.names == expected
    bracket = scenes.bracket(1)
    assert bracket.ldr.dtype == np.uint8
    np.testing.assert_array_equal(bracket.ev, [0, 2, 4])
    np.testing.assert_allclose(bracket.truth, truth(), rtol=0, atol=1e-4)
    ldr, ev, target = tensors(bracket)
    # Eight bits a picture: half a step times the slope of the power, divided by the exposure.
    assert (linearised(ldr[None], ev[None])[0, 1] - target)[ldr[1] < 1].abs().max() < 0.5 / 255 * 2.24 / 4 * 1.1


def test_scenes_are_aligned_when_asked(tmp_path):
    """The middle exposure stays bit by bit, the others come to its place, and what they do not show is told."""
    light = (data.astronaut()[:300, :300] / 255) ** 2.2
    seen = [np.roll(light, shift, (0, 1)) for shift in ((6, -9), (0, 0), (-5, 7))]
    folder = tmp_path / "scene"
    folder.mkdir()
    for k, one in enumerate(seen):
        encoded = np.clip(one * 4.0**k / 4, 0, 1) ** (1 / 2.2)
        save(folder / f"input_{k + 1}.tif", np.rint(encoded * 65535).astype(np.uint16))
    (folder / "exposure.txt").write_text("-2 0 2")
    save(folder / "HDRImg.hdr", (light / 4).astype(np.float32))
    plain, aligned = (Scenes([folder], align).bracket(0) for align in ("none", "homography"))
    assert aligned.ldr.dtype == np.uint16
    np.testing.assert_array_equal(aligned.ldr[1], plain.ldr[1])
    assert plain.valid is None
    assert aligned.valid[1].all()
    assert 0.9 < aligned.valid[0].mean() < 1
    inside = np.s_[20:-20, 20:-20]
    for k in (0, 2):
        wanted = np.clip(light * 4.0**k / 4, 0, 1) ** (1 / 2.2)
        error, before = (np.abs(b.pixels()[k] - wanted)[inside].mean() for b in (aligned, plain))
        assert error < before / 8
    with pytest.raises(ValueError, match="method must be homography, flow or none"):
        Scenes([folder], "ecc").bracket(0)


def test_patches_depend_on_seed_and_number_alone(tmp_path):
    for k in range(3):
        write_scene(tmp_path / f"{k}", size=(24, 32 + 8 * k))
    scenes = Scenes([tmp_path])
    patches = Patches(scenes, 16, seed=3)
    first = [patches[k] for k in range(12)]
    again = [Patches(Scenes([tmp_path]), 16, seed=3)[k] for k in reversed(range(12))][::-1]
    for one, other in zip(first, again, strict=True):
        for tensor, same in zip(one, other, strict=True):
            torch.testing.assert_close(tensor, same, rtol=0, atol=0)
    assert [tuple(tensor.shape) for tensor in first[0]] == [(3, 3, 16, 16), (3,), (3, 16, 16)]
    assert any((Patches(scenes, 16, seed=4)[k][0] != first[k][0]).any() for k in range(3))
    for ldr, ev, target in first:
        assert ((linearised(ldr[None], ev[None])[0, 1] - target)[ldr[1] < 1]).abs().max() < 1 / 128
        assert all(tensor.is_contiguous() for tensor in (ldr, ev, target))


def test_turned_and_mirrored_alike(tmp_path):
    bracket = Scenes([write_scene(tmp_path / "scene")]).bracket(0)
    upright = tensors(bracket)
    for turns in range(4):
        for mirror in (False, True):
            ldr, _, target = tensors(bracket, turns=turns, mirror=mirror)
            ldr, target = (torch.rot90(x.flip(-1) if mirror else x, -turns, (-2, -1)) for x in (ldr, target))
            torch.testing.assert_close(ldr, upright[0])
            torch.testing.assert_close(target, upright[2])


def read_all(folder):
    scenes = Scenes([folder])
    return [scenes.bracket(k) for k in range(len(scenes))]


def refusal(folder):
    with pytest.raises(Refusal) as caught:
        read_all(folder)
    return str(caught.value)


def test_folders_without_scenes_say_what_was_expected(tmp_path):
    assert "no such folder" in refusal(tmp_path / "none")
    message = refusal(tmp_path)
    assert "holds no scenes" in message
    for layout in LAYOUTS:
        assert str(layout) in message
    save(tmp_path / "photo.png", photograph())
    assert "holds no scenes" in refusal(tmp_path)


@pytest.mark.parametrize("layout", TEXT)
def test_scenes_that_lack_files_say_which(tmp_path, layout):
    names, exposures, target = TEXT[layout]
    whole = write_scene(tmp_path / "whole", layout)
    for missing, expected in (
        ((names[1],), "has 2 exposures; expected"),
        ((exposures,), f"lacks {exposures}; expected"),
        ((target,), f"lacks {target}; expected"),
        ((exposures, target), f"lacks {exposures}, {target}; expected"),
    ):
        folder = tmp_path / "part"
        shutil.copytree(whole, folder)
        for name in missing:
            (folder / name).unlink()
        message = refusal(tmp_path)
        assert expected in message, message
        assert str(folder) in message
        shutil.rmtree(folder)
    save(whole / names[0].replace("1", "4").replace("0898", "0901"), exposed(truth(), (-2, 0, 2))[0])
    assert "has 4 exposures; expected" in refusal(tmp_path)


def test_ntire_scenes_that_lack_files_say_which(tmp_path):
    write_ntire(tmp_path)
    (tmp_path / "0000_alignratio.npy").rename(tmp_path / "kept.npy")
    assert "scene 0000 lacks *_alignratio.npy" in refusal(tmp_path)
    np.save(tmp_path / "0000_alignratio.npy", 0.0)
    assert "0000_alignratio.npy: expected a number above 0, got 0.0" in refusal(tmp_path)
    np.save(tmp_path / "0000_alignratio.npy", np.array([{}]), allow_pickle=True)
    assert "0000_alignratio.npy: expected one number" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0\n2\n", "expected three exposures in stops, got 0, 2"),
        ("0\n2\n4\n6\n", "expected three exposures in stops, got 0, 2, 4, 6"),
        ("", "expected three exposures in stops, got none"),
        ("0\n2\nnan\n", "expected three exposures in stops, got 0, 2, nan"),
        ("0\n2\n2\n", "expected three different exposures, got 0, 2, 2"),
        ("short\nmiddle\nlong\n", "expected three exposures in stops: could not convert"),
    ],
)
def test_wrong_exposures_are_refused(tmp_path, text, expected):
    folder = write_scene(tmp_path / "scene")
    (folder / "exposure.txt").write_text(text)
    message = refusal(folder)
    assert expected in message
    assert "exposure.txt" in message


def test_wrong_pictures_are_refused(tmp_path):
    folder = write_scene(tmp_path / "scene")
    names, _, target = TEXT["kalantari"]
    whole = {name: (folder / name).read_bytes() for name in (*names, target)}

    def trying(name, change):
        change(folder / name)
        message = refusal(folder)
        (folder / name).write_bytes(whole[name])
        assert name in message, message
        return message

    assert "must be as large as 262A0898.tif, 32x24, is 32x20" in trying(names[1], lambda path: save(path, exposed(truth(20, 32), (-2, 0, 2))[1]))  # fmt: skip
    assert "must be as large as" in trying(target, lambda path: save(path, truth(24, 30)))
    assert "is gray" in trying(names[0], lambda path: save(path, exposed(truth(), (-2, 0, 2))[0][..., :1]))
    for name in (names[2], target):
        half = len(whole[name]) // 2
        assert "cannot be read" in trying(name, lambda path, half=half, name=name: path.write_bytes(whole[name][:half]))
        assert "cannot be read" in trying(name, lambda path: path.write_bytes(b"no picture"))
        assert "cannot be read" in trying(name, lambda path: path.write_bytes(b""))
    assert len(Scenes([folder])) == 1


def test_radiance_that_is_none_is_refused(tmp_path):
    """Radiance files cannot hold it; EXR can."""
    for value in (np.nan, np.inf, -1.0):
        values = truth()
        values[3, 4, 1] = value
        with pytest.raises(Refusal, match=r"a\.exr: holds radiance that is negative or not finite"):
            radiance(save(tmp_path / "a.exr", values))
    with pytest.raises(Refusal, match="must hold 3 channels of radiance, holds 1"):
        radiance(save(tmp_path / "b.exr", truth()[..., :1]))
    large = truth() * 1000
    np.testing.assert_array_equal(radiance(save(tmp_path / "c.exr", large)), large)


def test_black_scenes_are_scenes(tmp_path):
    folder = write_scene(tmp_path / "scene")
    for name in TEXT["kalantari"][0]:
        save(folder / name, np.zeros((24, 32, 3), np.uint16))
    save(folder / "HDRImg.hdr", np.zeros((24, 32, 3), np.float32))
    bracket = Scenes([folder]).bracket(0)
    assert not bracket.ldr.any()
    assert not bracket.truth.any()


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        save(folder / f"{name}.png", np.ascontiguousarray(getattr(data, name)()[:200, :220]))
    save(folder / "small.tif", photograph(30, 40, kind="uint16"))
    save(folder / "gray.png", photograph(90, 90, channels=1))
    return Photographs([folder])


def test_generated_brackets_depend_on_seed_and_number_alone(photographs):
    made = Generated(photographs, 48, seed=5)
    first = [made[k] for k in range(4)]
    for k in (2, 0, 3, 1):
        for tensor, same in zip(made[k], first[k], strict=True):
            torch.testing.assert_close(tensor, same, rtol=0, atol=0)
    assert (Generated(photographs, 48, seed=6)[0][0] != first[0][0]).any()
    assert [tuple(tensor.shape) for tensor in first[0]] == [(3, 3, 48, 48), (3,), (3, 48, 48)]
    assert all(tensor.dtype == torch.float32 for tensor in first[0])


def test_generated_brackets_are_what_a_camera_makes_of_the_truth(photographs):
    """The middle exposure is the truth, clipped, noisy and quantised; the others are of the same scene but for what moves."""
    made = Generated(photographs, 64, seed=0)
    clipped, moved, steps, pairs, kinds, unclean = [], [], [], [], set(), []
    for k in range(60):
        bracket = made.bracket(k)
        assert bracket.truth.dtype == np.float32
        assert np.isfinite(bracket.truth).all()
        assert bracket.truth.min() >= 0
        assert bracket.truth.max() <= 1
        assert bracket.ev[0] == 0
        levels = np.unique(bracket.ldr)
        kinds.add("8" if bracket.ldr.dtype == np.uint8 else "12" if (levels % 16 == 0).mean() > 0.5 else "16")
        first, second = np.diff(bracket.ev)
        if min(first, second) == 0:
            pairs.append(first == 0)
            np.testing.assert_array_equal(bracket.ldr[1], bracket.ldr[0 if first == 0 else 2])
        else:
            steps.append((first, second))
        seen = np.clip(bracket.truth * 2 ** bracket.ev[1], 0, 1)
        middle = images.scaled(bracket.ldr[1]) ** 2.2
        inside = seen < 0.8
        # Five sigmas of the strongest noise, and half a step of 8 bits.
        assert np.abs(middle - seen)[inside].max() < 5.5 * np.sqrt(3e-3 + 1e-2**2) + 2.2 / 255
        # Noise below black is cut off.
        lit = inside & (seen > 0.1)
        unclean.append(np.abs((middle - seen)[lit].mean()) if lit.sum() > 1000 else 0.0)
        clipped.append((seen == 1).mean())
        # Where both show it well and noise is no explanation.
        shortest = images.scaled(bracket.ldr[0]) ** 2.2
        moved.append((np.abs(shortest - bracket.truth).max(2) > 0.4).mean())
    assert max(unclean) < 4e-3
    assert 0.05 < np.mean(clipped) < 0.5
    assert min(clipped) == 0
    assert np.mean(moved) > 0.01
    assert min(moved) == 0
    assert kinds == {"8", "12", "16"}
    assert 0 < len(pairs) < 15
    steps = np.array(steps)
    assert steps.min() >= 0.8
    assert steps.max() <= 3.5
    assert 0.1 < (np.abs(steps[:, 0] - steps[:, 1]) > 0.01).mean() < 0.6
    assert (steps[:, 0] < 1.2).any()
    assert (steps[:, 0] > 2.9).any()


def test_generator_refuses_what_is_no_photograph(tmp_path):
    with pytest.raises(Refusal, match="no such file"):
        Photographs([tmp_path / "none.png"])
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(Refusal, match="cannot be read"):
        Photographs([tmp_path])
    with pytest.raises(Refusal, match="--generate needs photographs"):
        Photographs([])
