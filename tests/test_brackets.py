"""Brackets: reading, choosing, aligning and linearising photographs of several exposures, and the merges that know nothing of motion."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.pictures import data, photograph, save  # isort: skip -- it skips where packages are missing

cv2 = pytest.importorskip("cv2")

from bilagrid.commands import Refusal  # noqa: E402
from nets.deghost import align, bracket, classical, response  # noqa: E402

GAMMA = 2.2


def radiance(name: str = "astronaut") -> np.ndarray:
    """Of a photograph, a quarter of its light at white."""
    return (getattr(data, name)().astype(np.float64) / 255) ** GAMMA


def exposed(light: np.ndarray, stops: float, camera=lambda x: x ** (1 / GAMMA)) -> np.ndarray:
    """As a camera stores it: clipped, encoded and rounded to 8 bits."""
    return np.rint(camera(np.clip(light * 2.0**stops, 0, 1)) * 255).astype(np.uint8)


def exposures(light: np.ndarray, ev=(-2, 0, 2), **options) -> np.ndarray:
    return np.stack([exposed(light, stops, **options) for stops in ev]).astype(np.float32) / 255


def taken(folder, light=None, stops=(-2.0, 0.0, 2.0), suffix="jpg", exif=True, iso=100, aperture=8.0):
    """Photographs with the EXIF of a camera whose middle exposure takes 1/100 s."""
    light = radiance()[:120, :160] if light is None else light
    facts = lambda ev: {"ExposureTime": 0.01 * 2**ev, "FNumber": aperture, "Exif:PhotographicSensitivity": iso}  # noqa: E731
    return [
        save(folder / f"{k}.{suffix}", exposed(light, ev), **(facts(ev) if exif else {})) for k, ev in enumerate(stops)
    ]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_a_bracket_is_sorted_by_exposure(tmp_path, suffix, order):
    paths = taken(tmp_path, suffix=suffix)
    found = bracket.read([paths[k] for k in order])
    assert list(found.paths) == paths
    # EXIF stores fractions.
    np.testing.assert_allclose(found.ev, [0, 2, 4], atol=1e-3)
    assert found.ldr.shape == (3, 120, 160, 3)
    assert found.ldr.dtype == np.float32
    assert found.middle == 1
    assert found.like.spec.get_float_attribute("ExposureTime") == pytest.approx(0.01, rel=1e-3)


def test_aperture_and_iso_count(tmp_path):
    light = radiance()[:120, :160]
    for name, stops, iso, aperture in (("a", 0, 100, 8.0), ("b", 2, 400, 8.0), ("c", -2, 100, 16.0)):
        (tmp_path / name).mkdir()
        facts = {"ExposureTime": 0.01, "FNumber": aperture, "Exif:PhotographicSensitivity": iso}
        save(tmp_path / f"{name}.jpg", exposed(light, stops), **facts)
    found = bracket.read([tmp_path / f"{name}.jpg" for name in "abc"])
    assert [path.stem for path in found.paths] == ["c", "a", "b"]
    np.testing.assert_allclose(found.ev, [0, 2, 4], atol=1e-4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("-2\n0\n2\n", [0, 2, 4]), ("1, 3, 6", [0, 2, 5]), ("1/400 1/100 1/25", [0, 2, 4]), ("0.25s 0.5s 2s", [0, 1, 3])],
)
def test_a_file_of_exposures(tmp_path, text, wanted):
    paths = taken(tmp_path, exif=False, suffix="png")
    (tmp_path / "exposure.txt").write_text(text)
    # In the order of the names, whatever the order of the arguments.
    found = bracket.read(paths[::-1])
    assert list(found.paths) == paths
    np.testing.assert_allclose(found.ev, wanted, atol=1e-6)


def test_some_of_the_photographs_that_a_file_of_exposures_speaks_of(tmp_path):
    paths = taken(tmp_path, exif=False, suffix="png")
    (tmp_path / "exposure.txt").write_text("-2 0 3")
    np.testing.assert_allclose(bracket.read([paths[2], paths[0]]).ev, [0, 5])
    np.testing.assert_allclose(bracket.read(paths[1:]).ev, [0, 3])


def test_given_times_come_before_all_others(tmp_path):
    paths = taken(tmp_path)
    (tmp_path / "exposure.txt").write_text("0 1 2")
    np.testing.assert_allclose(bracket.read(paths).ev, [0, 1, 2])
    np.testing.assert_allclose(bracket.read(paths[::-1], ["1/4", "0.125s", "1/16"]).ev, [0, 1, 2])


def test_two_photographs_and_16_bits(tmp_path):
    light = radiance()[:120, :160]
    deep = [np.rint(np.clip(light * scale, 0, 1) ** (1 / GAMMA) * 65535).astype(np.uint16) for scale in (0.25, 1)]
    paths = [save(tmp_path / f"{k}.tif", values, ExposureTime=0.01 * 4**k) for k, values in enumerate(deep)]
    found = bracket.read(paths)
    np.testing.assert_allclose(found.ldr[1], np.clip(light, 0, 1) ** (1 / GAMMA), atol=1 / 65535)
    assert bracket.choose(found) is found


def test_gray_photographs_and_turned_ones(tmp_path):
    light = radiance()[:120, :160, 1:2]
    facts = {"Orientation": 6}
    paths = [
        save(tmp_path / f"{k}.jpg", exposed(light, 2 * k - 2), ExposureTime=0.01 * 4**k, **facts) for k in range(3)
    ]
    assert bracket.read(paths).ldr.shape == (3, 160, 120, 3)


def test_three_of_seven(tmp_path):
    """The best exposed, and neighbours a stop and more away."""
    stops = [-6.0, -4.0, -2.5, -2.0, 0.0, 0.5, 2.0]
    paths = taken(tmp_path, stops=stops)
    whole = bracket.read(paths)
    well = [((bracket_ > 0.1) & (bracket_ < 0.9)).mean() for bracket_ in whole.ldr[..., 1]]
    found = bracket.choose(whole)
    assert whole.middle == int(np.argmax(well[1:-1])) + 1
    assert found.paths[1] == paths[whole.middle]
    assert found.middle == 1
    assert len(found.ev) == len(found.ldr) == 3
    assert (np.diff(found.ev) >= 0.9).all()
    between = [k for k in range(7) if abs(stops[k] - stops[whole.middle]) < 0.9 and k != whole.middle]
    assert not {paths[k] for k in between} & set(found.paths)


def wrong(tmp_path, case):
    """Paths and times of a bracket that is wrong in one way."""
    light = radiance()[:120, :160]
    paths = taken(tmp_path, light)
    times = None
    if case == "size":
        paths = [*paths[:2], *taken(tmp_path / "other", light[:100], (2.0,))]
    elif case == "one":
        paths = paths[:1]
    elif case == "eight":
        paths = taken(tmp_path, light, np.linspace(-3, 3, 8))
    elif case == "no EXIF":
        paths = taken(tmp_path, light, exif=False)
    elif case == "equal":
        times = ["1/60", "1/60", "1/15"]
    elif case == "too few times":
        times = ["1/60", "1/15"]
    elif case == "no time":
        times = ["1/60", "fast", "1/15"]
    elif case == "time zero":
        times = ["1/60", "0", "1/15"]
    elif case == "reversed":
        times = ["1/15", "1/60", "1/250"]
    elif case == "black":
        paths = taken(tmp_path, np.zeros((120, 160, 3)), (-2.0,)) + taken(tmp_path / "other", light, (0.0, 2.0))
    elif case == "white":
        paths = taken(tmp_path / "other", light, (-2.0, 0.0)) + taken(tmp_path, np.ones((120, 160, 3)), (2.0,))
    elif case == "truncated":
        paths[1].write_bytes(paths[1].read_bytes()[:3000])
    elif case == "missing":
        paths[1].unlink()
    elif case == "text":
        paths[1].write_text("no picture at all")
    elif case == "alpha":
        paths[1] = save(tmp_path / "alpha.png", photograph(120, 160, 4))
    elif case == "float":
        paths[1] = save(tmp_path / "float.tif", photograph(120, 160, kind="float"))
    elif case == "ISO of one":
        save(paths[0], exposed(light, -2), ExposureTime=0.0025, FNumber=8.0)
    elif case == "file too short":
        (tmp_path / "exposure.txt").write_text("0 2")
    elif case == "twice":
        paths[1] = tmp_path / "other" / ".." / paths[0].name
    elif case == "time without end":
        times = ["1", "1e999999999", "2"]
    elif case == "far apart":
        times = ["1e-30", "1", "1e30"]
    elif case == "file of words":
        (tmp_path / "exposure.txt").write_text("dark middle bright")
    return paths, times


WRONG = {
    "size": r"0\.jpg: is 160x100, must be as large as .*0\.jpg, 160x120",
    "one": "a bracket has 2 to 7 photographs, got 1",
    "eight": "got 8",
    "no EXIF": r"0\.jpg: has no ExposureTime in its EXIF; give them: --times 1/1000 .* exposure.txt",
    "equal": "have the same exposure, a bracket's must differ; give them: --times",
    "too few times": "--times must give one time for each of 3 photographs, got 2",
    "no time": "expected times in seconds, as 1/250 or 0.004, got 'fast'",
    "time zero": "times must be above 0, got 0",
    "reversed": r"1\.jpg: is darker than .*2\.jpg, but has 2.1 stops more .* in the order of the files",
    "black": r"0\.jpg: is all black",
    "white": r"0\.jpg: is all white",
    "truncated": r"1\.jpg: cannot be read: the file is truncated",
    "missing": r"1\.jpg: no such file",
    "text": r"1\.jpg: cannot be read",
    "alpha": r"alpha\.png: has an alpha channel",
    "float": r"float\.tif: holds float values",
    "ISO of one": r"0\.jpg: has no Exif:PhotographicSensitivity",
    "file too short": r"exposure\.txt: holds 2 values, expected one for each of 3 photographs",
    "twice": r"0\.jpg: is given twice",
    "time without end": "expected times in seconds, as 1/250 or 0.004, got '1e999999999'",
    "far apart": r"0\.jpg and .*2\.jpg are 199\.3 stops apart, no bracket is more than 30; give them",
    "file of words": r"exposure\.txt: expected log2 values, as -2, or times",
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_brackets(tmp_path, case):
    (tmp_path / "other").mkdir()
    paths, times = wrong(tmp_path, case)
    with pytest.raises(Refusal, match=WRONG[case]) as refusal:
        bracket.read(paths, times)
    assert "\n" not in str(refusal.value)
    shutil.rmtree(tmp_path / "other")


MATRIX = np.array([[1.01, 0.02, 6.3], [-0.015, 0.995, -4.2], [2e-5, -1e-5, 1.0]])


def moved(light: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The scene seen by a camera in which a pixel p of the first one lies at ``matrix @ p``."""
    return cv2.warpPerspective(light, matrix, light.shape[1::-1], flags=cv2.INTER_CUBIC).clip(0, 1)


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


def film(light: np.ndarray) -> np.ndarray:
    """A response that is no gamma: contrast at the ends is lower."""
    return 1.1 * light**0.45 - 0.1 * light**1.2


@pytest.mark.parametrize("moving", [False, True])
def test_the_response_is_found(moving):
    """Better than gamma knows it, from 8-bit photographs, also where a fifth of the picture moves."""
    ldr = exposures(radiance() * 0.9 + 0.002, camera=film)
    if moving:
        ldr[0, 100:330, 100:330] = ldr[0, 250:480, 250:480].copy()
    curve = response.calibrate(ldr, np.array([0.0, 2.0, 4.0]), np.ones(ldr.shape[:3], bool))
    assert curve.shape == (256,)
    assert (np.diff(curve) >= 0).all()
    np.testing.assert_allclose(curve[[0, -1]], [0, 1], atol=1e-12)
    values, light = np.linspace(0, 1, 256), np.linspace(0, 1, 4001)
    truth = np.interp(values, film(light), light) ** (1 / GAMMA)
    error = np.abs(curve ** (1 / GAMMA) - truth)[8:]
    assert error.max() < np.abs(values - truth).max()
    assert error.mean() < 0.5 * np.abs(values - truth)[8:].mean()


def test_linearised_photographs_are_encoded_by_gamma():
    light = radiance()[:60, :80]
    values = np.linspace(0, 1, 256)
    grid = np.linspace(0, 1, 4001)
    curve = np.interp(values, film(grid), grid)
    found = response.linearised(exposures(light, [0.0], camera=film)[0], curve)
    np.testing.assert_allclose(found, light ** (1 / GAMMA), atol=0.02)
    assert found.dtype == np.float32


def test_no_response_from_pictures_that_share_nothing():
    ldr = np.random.default_rng(0).random((3, 40, 50, 3)).astype(np.float32)
    ldr = -np.sort(-ldr, axis=0)
    with pytest.raises(Refusal, match=r"response cannot be found: .* use --response gamma"):
        response.calibrate(ldr, np.array([0.0, 2.0, 4.0]), np.ones(ldr.shape[:3], bool))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_debevec_recovers_the_radiance(order):
    light = radiance()
    ldr, ev = exposures(light, (0, 2, 4))[list(order)], np.array([-3.0, -1.0, 1.0])[list(order)]
    found = classical.debevec(ldr, ev)
    assert found.dtype == np.float32
    assert found.shape == light.shape
    # Half a step of 8 bits, at white.
    np.testing.assert_allclose(found, light, atol=1.1 / 255)
    # In the dark the longest exposure has steps that are 16 times finer.
    dark = light < 1 / 32
    assert np.abs(found - light)[dark].max() < 1.1 / 255 / 8


def test_debevec_one_pixel_by_its_formula():
    values, ev = np.array([0.3, 0.6, 0.9]), np.array([-1.0, 0.0, 1.5])
    weight = 1 - np.abs(2 * values - 1)
    wanted = (weight * values**1.8 / 2 ** (ev + 1)).sum() / weight.sum()
    found = classical.debevec(values[:, None, None, None] * np.ones((1, 2, 2, 3)), ev, gamma=1.8)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_debevec_where_nothing_is_exposed_well():
    ev = np.array([0.0, 2.0, 4.0])
    assert (classical.debevec(np.ones((3, 2, 2, 3)), ev) == 1).all()
    assert (classical.debevec(np.zeros((3, 2, 2, 3)), ev) == 0).all()
    # White in the longer ones is white in neither sense where the shortest does not show it.
    valid = np.ones((3, 2, 2), bool)
    valid[0] = False
    np.testing.assert_allclose(classical.debevec(np.ones((3, 2, 2, 3)), ev, valid=valid), 1 / 4)
    assert (classical.debevec(np.ones((3, 2, 2, 3)), ev, valid=np.zeros((3, 2, 2), bool)) == 1).all()


def test_mertens_evens_out_what_each_exposure_shows():
    """Of a picture whose light falls off, the quarter that is exposed worst is better than in any one exposure."""
    ldr = exposures(radiance() * np.linspace(0.02, 1, 512)[:, None, None], (0, 2, 4))
    found = classical.mertens(ldr)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    fused, *single = (
        max(abs(picture[top : top + 128].mean() - 0.5) for top in range(0, 512, 128)) for picture in (found, *ldr)
    )
    assert fused < min(single)


@pytest.mark.parametrize(
    ("shape", "ev", "message"),
    [
        ((3, 4, 4), [0, 1, 2], r"ldr must have shape \(K, H, W, 3\)"),
        ((1, 4, 4, 3), [0], "with K at least 2"),
        ((2, 4, 4, 3), [0, 1, 2], "ev must be 2 finite numbers"),
        ((2, 4, 4, 3), [0, np.nan], "ev must be 2 finite numbers"),
    ],
)
def test_merges_refuse_other_shapes(shape, ev, message):
    with pytest.raises(ValueError, match=message):
        classical.debevec(np.zeros(shape), np.array(ev, np.float64))
