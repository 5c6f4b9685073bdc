"""Aligning photographs of several exposures: by a homography, by a translation, by optical flow."""

from __future__ import annotations

import numpy as np
import pytest

from tests.brackets import MATRIX, exposures, moved, radiance  # isort: skip -- it skips where packages are missing

from nets.deghost import align, classical


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    ends = np.concatenate([points, np.ones((len(points), 1))], 1) @ matrix.T
    return ends[:, :2] / ends[:, 2:]


CORNERS = np.array([[0, 0], [511, 0], [511, 511], [0, 511], [255, 255]], np.float64)


@pytest.mark.parametrize("stops", [-2.0, 2.0])
@pytest.mark.parametrize("size", [1, 6])
def test_a_known_homography_is_recovered(stops, size, monkeypatch):
    """To a part of a pixel, between exposures two stops apart, also where features are looked for in a smaller copy."""
    light = radiance()
    if size > 1:
        monkeypatch.setattr(align, "_LARGEST", 340)
    pair = exposures(moved(light, MATRIX), [stops])[0], exposures(light, [0.0])[0]
    found, note = align.homography(*align._same_exposure(*pair, stops))
    assert found is not None, note
    assert np.abs(through(found, CORNERS) - through(MATRIX, CORNERS)).max() < 0.5


def test_alignment_leaves_what_moves_in_the_scene(tmp_path):
    """A third of the picture moves on its own; the background is aligned all the same, and the disagreement is where the thing was and is."""
    light, other = radiance(), radiance("coffee")[:300, :260]
    first, second = light.copy(), light.copy()
    first[150:450, 20:280], second[150:450, 200:460] = other, other
    ldr = np.stack([exposures(moved(first, MATRIX), [-1.5])[0], exposures(second, [0.0])[0]])
    before = align.align(ldr, np.array([0.0, 1.5]), 1, "none")
    after = align.align(ldr, np.array([0.0, 1.5]), 1)
    assert after.notes[1] == "the middle"
    assert "matches agree" in after.notes[0]
    np.testing.assert_array_equal(after.ldr[1], ldr[1])
    background = np.zeros((512, 512), bool)
    background[20:130, 20:-20] = True
    wrong_before, wrong_after = (align.disagreement(aligned, 1)[background].mean() for aligned in (before, after))
    assert wrong_after < wrong_before / 10
    assert align.disagreement(after, 1)[200:400, 60:180].mean() > 10 * wrong_after


def test_what_a_warp_brings_in_is_marked_and_filled():
    light = radiance()
    shift = np.array([[1.0, 0, 40], [0, 1, 0], [0, 0, 1]])
    ldr = np.stack([exposures(moved(light, shift), [-2.0])[0], exposures(light, [0.0])[0]])
    found = align.align(ldr, np.array([0.0, 2.0]), 1)
    assert found.valid[1].all()
    columns = found.valid[0].all(0)
    assert columns[:468].all()
    assert not found.valid[0][:, 475:].any()
    # By the middle one, as the short exposure would have seen it.
    wanted = exposures(light, [-2.0])[0]
    assert np.abs(found.ldr[0] - wanted)[:, 475:].mean() < 0.01
    radiance_found = classical.debevec(found.ldr, np.array([0.0, 2.0]), valid=found.valid)
    assert np.isfinite(radiance_found).all()


def test_a_camera_that_stands_still_is_left_alone():
    ldr = exposures(radiance())
    found = align.align(ldr, np.array([0.0, 2.0, 4.0]), 1)
    np.testing.assert_array_equal(found.ldr, ldr)
    assert all(note.startswith("stands still") for note in found.notes[::2])


def smooth(width: int = 200, height: int = 150) -> np.ndarray:
    """A cloud that has no corners to match."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    cloud = 0.2 + 0.6 * np.exp(-((x - 90) ** 2 + (y - 70) ** 2) / 2 / 30**2)
    return np.repeat(cloud[..., None], 3, 2)


def test_too_little_to_match_falls_back_to_a_translation():
    shift = np.array([[1.0, 0, 7], [0, 1, -4], [0, 0, 1]])
    light = smooth(240, 180)
    ldr = np.stack(
        [exposures(moved(light, shift)[20:-20, 20:-20], [-1.0])[0], exposures(light[20:-20, 20:-20], [0.0])[0]]
    )
    found = align.align(ldr, np.array([0.0, 1.0]), 1)
    assert "too little to match for a homography" in found.notes[0]
    wanted = exposures(light[20:-20, 20:-20], [-1.0])[0]
    inside = np.s_[15:-15, 15:-15]
    assert np.abs(found.ldr[0] - wanted)[inside].mean() < np.abs(ldr[0] - wanted)[inside].mean() / 4


def test_a_motion_that_makes_nothing_agree_better_is_not_believed():
    """Of a flat wall only a thing on it has features, and it moves: the wall stays."""
    light = np.full((400, 500, 3), 0.2)
    light += 0.1 * np.sin(np.arange(500) / 60)[:, None] * np.sin(np.arange(400) / 50)[:, None, None]
    thing = radiance("coffee")[100:240, 100:260]
    scenes = []
    for left in (60, 130):
        scene = light.copy()
        scene[150:290, left : left + 160] = thing
        scenes.append(scene)
    ldr = np.stack([exposures(scenes[0], [-1.0])[0], exposures(scenes[1], [0.0])[0]])
    found = align.align(ldr, np.array([0.0, 1.0]), 1)
    assert "left as it is" in found.notes[0]
    np.testing.assert_array_equal(found.ldr, ldr)


def test_nothing_to_match_is_left_and_said():
    generator = np.random.default_rng(0)
    ldr = generator.random((2, 80, 100, 3)).astype(np.float32)
    found = align.align(ldr, np.array([0.0, 1.0]), 1)
    np.testing.assert_array_equal(found.ldr, ldr)
    assert "too little to match" in found.notes[0]
    assert "left as it is" in found.notes[0]
    flat = np.full((2, 80, 100, 3), 0.5, np.float32)
    assert "left as it is" in align.align(flat, np.array([0.0, 1.0]), 0).notes[1]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3), (17, 33), (2, 900), (40, 65), (64, 64)])
@pytest.mark.parametrize("method", ["homography", "flow"])
def test_small_pictures_are_left_where_they_are(size, method):
    """Also where pictures are too small for features, windows and thresholds."""
    height, width = size
    light = np.tile(smooth(), (1, 5, 1))[:height, :width]
    ldr = exposures(light)
    found = align.align(ldr, np.array([0.0, 2.0, 4.0]), 1, method)
    assert found.ldr.shape == ldr.shape
    np.testing.assert_array_equal(found.ldr[1], ldr[1])
    assert np.isfinite(found.ldr).all()
    assert np.abs(found.ldr - ldr).mean() < 0.02


def test_flow_follows_the_same_homography():
    light = radiance()
    pair = exposures(moved(light, MATRIX), [-1.0])[0], exposures(light, [0.0])[0]
    place = align.flow(*align._same_exposure(*pair, -1.0))
    error = np.linalg.norm(place - align._places(MATRIX, 512, 512), axis=-1)[40:-40, 40:-40]
    assert np.median(error) < 0.5


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be homography, flow or none, got 'ecc'"):
        align.align(np.zeros((2, 8, 8, 3), np.float32), np.array([0.0, 1.0]), 0, "ecc")
