"""The command that draws README's pictures: that it knows all of them, and that those in the repository are what it draws."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("OpenImageIO")
pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from perf import gallery
from tests.processes import ROOT, end, launch

Image = pytest.importorskip("PIL.Image")


def shown() -> set[str]:
    """The pictures of this repository that its pages show."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = {(page, link) for page in pages for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}
    return {str((page.parent / link).resolve().relative_to(ROOT)) for page, link in links if "://" not in link}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"), dtype=np.float32)


def test_it_draws_every_picture_that_the_pages_show() -> None:
    plots = {str(path.relative_to(ROOT)) for path in (ROOT / gallery._ROWS).glob("*.png")}
    drawn = {entry.path for entry in gallery.ENTRIES}
    assert shown() <= drawn | plots
    assert drawn <= shown()
    assert all((ROOT / path).stat().st_size < 250_000 for path in drawn)


# The others are slower: by a network, or by sixteen filters beside.
@pytest.mark.parametrize("name", ["filter", "equalize", "colorize", *(pytest.param(name, marks=pytest.mark.slow) for name in ("flash", "tone", "deghost"))])  # fmt: skip
def test_a_picture_in_the_repository_is_what_is_drawn(tmp_path: Path, name: str, capsys) -> None:
    assert gallery.main(["--only", name, "--out", str(tmp_path)]) == 0
    entry = next(entry for entry in gallery.ENTRIES if entry.name == name)
    found, kept = pixels(tmp_path / entry.path), pixels(ROOT / entry.path)
    assert found.shape == kept.shape
    assert np.abs(found - kept).mean() < 1
    assert "wrote" in capsys.readouterr().out


def test_what_is_measured_says_what_the_pages_say() -> None:
    _, facts = gallery._colorize()
    assert facts["strokes, %"] < 3
    assert facts["colorized"] == pytest.approx(31.8, abs=0.2)
    assert f"{facts['colorized']:.1f} dB" in (ROOT / "docs" / "PUBLISHED.md").read_text()


@pytest.mark.slow
def test_the_merge_of_a_flash_says_what_the_pages_say() -> None:
    _, facts = gallery._flash()
    page = (ROOT / "docs" / "PUBLISHED.md").read_text()
    assert facts["merged"] > facts["bilateral"] + 5
    assert all(f"{value:.1f}" in page for value in facts.values())


def test_the_plots_are_drawn_from_the_rows() -> None:
    drawn = dict(gallery.plots())
    assert {path.name for path in drawn} == {path.name for path in (ROOT / gallery._ROWS).glob("*.png")}
    assert all(data.startswith(b"\x89PNG") for data in drawn.values())


def test_refusals(tmp_path: Path, capsys) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "equalize.jpg").write_text("mine")
    assert gallery.main(["--only", "equalize", "--out", str(tmp_path)]) == 2
    assert "equalize.jpg exists: --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "docs" / "equalize.jpg").read_text() == "mine"
    plot = tmp_path / gallery._ROWS / "roofline_float32_photograph.png"
    plot.parent.mkdir(parents=True)
    plot.write_text("mine")
    assert gallery.main(["--only", "plots", "--out", str(tmp_path)]) == 2
    assert "roofline_float32_photograph.png exists: --overwrite replaces it" in capsys.readouterr().err
    assert plot.read_text() == "mine"
    assert gallery.main(["--only", "sunset"]) == 2
    assert "sunset" in capsys.readouterr().err


def test_by_its_name(tmp_path: Path) -> None:
    process = launch(tmp_path, "-m", "perf.gallery", "--only", "filter", "--out", tmp_path)
    out, err = end(process)
    assert process.returncode == 0, err
    assert "before_after.jpg" in out
