"""`perf.deghost` at a size that takes no time."""

import csv

import numpy as np
import pytest
import torch

pytest.importorskip("safetensors")
pytest.importorskip("cv2")

from nets.deghost import BilateralDeghost, DeghostNet
from nets.weights import save_network
from perf import deghost
from tests.pictures import data, save


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    save_network(tmp_path / "net.safetensors", DeghostNet(width=2))
    return tmp_path / "net.safetensors"


def run(*arguments):
    return deghost.main([str(argument) for argument in arguments])


@pytest.mark.slow
def test_time_memory_and_what_is_lost(tmp_path, model, capsys):
    photograph = save(tmp_path / "chelsea.png", np.ascontiguousarray(data.chelsea()[:120, :150]))
    arguments = (
        "--weights",
        model,
        "--device",
        "cpu",
        "--size",
        "600x800",
        "--repeats",
        2,
        "--scenes",
        2,
        "--side",
        64,
    )
    assert run(photograph, *arguments, "--out", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "network" in printed.splitlines()[3]
    rows = list(csv.DictReader((tmp_path / "deghost.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["network", "carried", "enlarged"]
    for row in rows:
        assert (row["weights"], row["carried_weights"], row["reduce"], row["scenes"]) == ("net", "net", "4", "2")
        assert (row["height"], row["width"], row["scene_height"]) == ("600", "800", "64")
        assert float(row["median_s"]) > 0
        assert 5 < float(row["psnr_mu_db"]) < 60
        # Exposures and result at the least.
        assert int(row["peak_bytes"]) > 600 * 800 * 3 * 4 * 4
    network, carried, _ = (int(row["peak_bytes"]) for row in rows)
    assert network > carried
    assert run(photograph, *arguments, "--out", tmp_path) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_refusals(tmp_path, model, capsys):
    carried = tmp_path / "carried.safetensors"
    save_network(carried, BilateralDeghost(DeghostNet(width=2)))
    for arguments, message in (
        (("--weights", "none"), "none: no such file"),
        (("--weights", carried), "must hold a network for full size"),
        (("--weights", model, "--reduce", 1), "--reduce must be at least 2"),
        (("--weights", model, tmp_path / "none.png"), "none.png: no such file or folder"),
    ):
        assert run(*arguments, "--device", "cpu") == 2
        found = capsys.readouterr().err
        assert found.startswith("perf.deghost: ")
        assert message in found
        assert found.count("\n") == 1
