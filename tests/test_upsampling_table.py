"""`perf.upsampling`: one row of its table, and what it refuses."""

import csv

import pytest

pytest.importorskip("skimage")
pytest.importorskip("OpenImageIO")

from perf import upsampling


@pytest.fixture(autouse=True)
def one_operator(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(upsampling, "OPERATORS", {"local contrast": upsampling.OPERATORS["local contrast"]})


def test_both_fits_win(tmp_path, capsys):
    assert upsampling.main(["--only", "rocket", "--out", str(tmp_path)]) == 0
    assert "nearer than affine and JBU in 1 of 1 rows" in capsys.readouterr().out
    (row,) = csv.DictReader((tmp_path / "upsampling.csv").read_text().splitlines())
    assert min(float(row["fast"]), float(row["global"])) > max(float(row["affine"]), float(row["jbu"])) + 3
    assert upsampling.main(["--only", "rocket", "--out", str(tmp_path)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_missing_pair_is_refused(tmp_path, capsys):
    assert upsampling.main(["--pair", str(tmp_path / "a.png"), str(tmp_path / "b.png")]) == 2
    assert "no such file" in capsys.readouterr().err
