"""`perf.hdrnet` at a size that takes no time."""

import csv

import pytest

pytest.importorskip("safetensors")
pytest.importorskip("skimage")

from perf import hdrnet


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(hdrnet, "_RESOLUTIONS", {"tiny": (40, 60)})


def test_times_the_whole_and_its_stages(tmp_path, capsys):
    assert hdrnet.main(["--device", "cpu", "--repeats", "2", "--out", str(tmp_path)]) == 0
    assert "images/s; shrink" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "hdrnet.csv").read_text().splitlines()))
    assert [row["stage"] for row in rows] == ["whole", "shrink", "network", "guide", "slicing"]
    assert all(float(row["median_s"]) > 0 and row["repeats"] == "2" for row in rows)
    assert hdrnet.main(["--device", "cpu", "--repeats", "2", "--out", str(tmp_path)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
