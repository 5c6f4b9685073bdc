"""Brackets: reading photographs of several exposures, and choosing among them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from tests.pictures import photograph, save  # isort: skip -- it skips where packages are missing
from tests.brackets import GAMMA, exposed, radiance, taken  # isort: skip -- likewise

from bilagrid.commands import Refusal
from nets.deghost import bracket


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


def test_an_alpha_channel_that_hides_nothing_is_left_out(tmp_path):
    paths = taken(tmp_path, suffix="png", exif=False)
    wanted = bracket.read(paths, ["1/400", "1/100", "1/25"])
    for path, ev in zip(paths, (-2, 0, 2), strict=True):
        values = exposed(radiance()[:120, :160], ev)
        save(path, np.concatenate([values, np.full_like(values[..., :1], 255)], axis=2))
    found = bracket.read(paths, ["1/400", "1/100", "1/25"])
    np.testing.assert_array_equal(found.ldr, wanted.ldr)
    assert found.like.alpha is None
    # So it is for whoever writes a file like it.
    assert (found.like.spec.alpha_channel, found.like.spec.nchannels) == (-1, 3)


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
    "alpha": r"alpha\.png: has transparent pixels",
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
