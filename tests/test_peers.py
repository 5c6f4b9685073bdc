"""`python -m perf.peers` as a user runs it, on small images; its adapters; `perf/on_gpu.sh` and `perf.gpu_checks` as far as they go without a GPU."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import bilagrid
from perf import adapters, cases, checks, gpu_checks, peers, plots, rows, sweep, timing
from perf.adapters import Peer
from perf.cases import Case, Problem, Tensors
from tests.conftest import HAS_CUDA
from tests.measured import MACHINE

CPU = torch.device("cpu")
SMALL = ["--resolution", "20x36", "--guide", "random", "--repeats", "2", "--device", "cpu"]
SCRIPT = Path(__file__).parents[1] / "perf" / "on_gpu.sh"


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests send CPU tensors to Numba themselves, whatever Triton was told. The machine is known already, and no cache is overwritten."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(timing, "_COPIED_BYTES", {"cpu": 1})
    monkeypatch.setattr(rows, "this_machine", lambda device: MACHINE)


def table(out: Path) -> list[dict[str, str]]:
    with (out / "peers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def named(name: str) -> Peer:
    return next(peer for peer in adapters.PEERS if peer.name == name)


def stand_in(grids: Tensor, places: Tensor | None, rgb: Tensor) -> Tensor:
    """What both libraries of colour grids compute, ``(N, m, H, W, 3)``, by `grid_sample`: at the places, or on the image's corners and between."""
    _, _, height, width, _ = rgb.shape
    if places is None:
        y, x = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
        places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None, None]
    luma = rgb @ torch.tensor([0.299, 0.587, 0.114])
    at = torch.cat([places, luma[..., None]], -1) * 2 - 1
    maps = torch.nn.functional.grid_sample(grids, at, padding_mode="border", align_corners=True)
    maps = maps.permute(0, 2, 3, 4, 1).unflatten(-1, (3, 4))
    return (maps[..., :3] @ rgb[..., None])[..., 0] + maps[..., 3]


class StandInGrid(torch.nn.Module):
    """A grid per photograph, ``(num, 12, W, Y, X)``, called with places, colours and the grid's number."""

    def __init__(self, num: int, grid_x: int, grid_y: int, grid_w: int) -> None:
        super().__init__()
        self.grids = torch.nn.Parameter(torch.zeros(num, 12, grid_w, grid_y, grid_x))

    def forward(self, places: Tensor, rgb: Tensor, index: Tensor) -> Tensor:
        return stand_in(self.grids[index], places[:, None], rgb[:, None])[:, 0]


def stand_in_slice(grids: Callable[..., Tensor], places: Tensor, rgb: Tensor, index: Tensor) -> dict[str, Tensor]:
    return {"rgb": grids(places, rgb, torch.unique(index))}


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the libraries of colour grids, under their names and signatures."""
    for name, holds in (
        ("lib_bilagrid", {"BilateralGrid": StandInGrid, "slice": stand_in_slice}),
        ("fused_bilagrid", {"fused_bilagrid_sample": stand_in}),
    ):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**holds))


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    "name",
    [
        "grid_sample",
        pytest.param("grid_sample-compiled", marks=pytest.mark.slow),
        "lib_bilagrid",
        "fused_bilagrid-irregular",
        "fused_bilagrid-uniform",
        *(
            pytest.param(name, marks=pytest.mark.skipif(not find_spec(module), reason=f"needs {module}"))
            for name, module in (("halide", "halide"), ("opencv", "cv2"), ("kornia", "kornia"))
        ),
    ],
)
def test_adapters_agree_with_ours(name: str) -> None:
    peer = named(name)
    (comparison,) = peers.comparisons([peer], [(20, 36)], [(64, 96)], "random")
    ours = comparison.problem(CPU)
    peers.agree(peer, comparison.case, replace(ours, run=peer.prepare(comparison.case, ours)), ours)


def a_peer(prepare: Callable[[Case, Problem], Callable[[Tensors], Tensor]], **changes: object) -> Peer:
    return replace(Peer("other", "slice_apply", "torch", "", "", prepare), **changes)


def off_by(amount: float, *, gradient: float = 0.0) -> Callable[[Case, Problem], Callable[[Tensors], Tensor]]:
    """Ours, the value and its gradient multiplied."""

    def prepare(case: Case, problem: Problem) -> Callable[[Tensors], Tensor]:
        def run(t: Tensors) -> Tensor:
            out = problem.run(t)
            return (1 + amount) * (out.detach() + (1 + gradient) * (out - out.detach()))

        return run

    return prepare


def failing(case: Case, problem: Problem) -> Callable[[Tensors], Tensor]:
    raise ImportError("no such library\nand more")


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        (a_peer(off_by(1e-3)), "other disagrees, slice_apply forward, 20x36, 16x16x8, float32, random: the output"),
        (a_peer(off_by(0, gradient=0.01)), "the gradient by grid differs from ours"),
        (a_peer(off_by(0.1), exact=False), "dB of ours; at least 40 dB"),
        (a_peer(off_by(0, gradient=2.0), exact=False), "the gradient by grid comes to"),
        (a_peer(lambda case, problem: lambda t: problem.run(t)[..., 1:]), "has shape"),
        (
            a_peer(failing),
            "other fails, slice_apply forward, 20x36, 16x16x8, float32, random: ImportError: no such lib",
        ),
    ],
)
def test_a_peer_that_disagrees_is_reported_and_not_timed(
    peer: Peer, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = a_peer(off_by(0), name="right", gradients=False)
    monkeypatch.setattr(adapters, "PEERS", (peer, right))
    monkeypatch.setattr(peers, "PEERS", (peer, right))
    assert peers.main([*SMALL, "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert [(row["implementation"], row["direction"]) for row in table(tmp_path)] == [
        ("bilagrid", "forward"),
        ("right", "forward"),
    ]


def test_ours_is_checked_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = bilagrid.slice_apply
    monkeypatch.setattr(bilagrid, "slice_apply", lambda *given, **named: 1.01 * right(*given, **named))
    assert peers.main([*SMALL, "--only", "grid_sample"]) == 1
    shown = capsys.readouterr()
    assert "not timed: bilagrid: slice_apply backward" in shown.err
    assert "median" not in shown.out


def test_a_comparison_prints_ratios_and_leaves_rows_that_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main([*SMALL, "--only", "grid_sample", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for direction in ("forward", "forward and backward", "backward"):
        assert f"slice_apply {direction}, 20x36, 16x16x8, float32, random: " in shown
    # A peer may take as long as we do, or eleven times.
    assert len(re.findall(r"^bilagrid .* 1\.00x ", shown, re.MULTILINE)) == 3
    found = table(tmp_path)
    assert tuple(found[0]) == rows.COLUMNS
    assert [(row["implementation"], row["direction"]) for row in found] == [
        ("bilagrid", "forward"),
        ("grid_sample", "forward"),
        ("bilagrid", "forward and backward"),
        ("grid_sample", "forward and backward"),
        ("bilagrid", "backward"),
        ("grid_sample", "backward"),
    ]
    assert (found[0]["backend"], found[1]["backend"]) == ("numba", f"torch {torch.__version__}")
    for row in found:
        assert 0 < float(row["q20_s"]) <= float(row["median_s"]) <= float(row["q80_s"])
    forward, both, backward = (int(row["bytes"]) for row in found[::2])
    assert both == forward + backward

    assert peers.main([*SMALL, "--only", "grid_sample", "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    drawn: list[rows.Row] = []
    monkeypatch.setattr(sweep, "_draw", lambda paths, out: drawn.extend(r for path in paths for r in rows.read(path)))
    if find_spec("matplotlib"):
        assert sweep.main(["--plot", str(tmp_path / "peers.csv")]) == 0
        assert [row.implementation for row in drawn] == [row["implementation"] for row in found]
        names = {path.name for path in plots.draw(drawn, tmp_path)}
        assert names == {
            f"{kind}_float32_random.{suffix}" for kind in ("throughput", "roofline") for suffix in ("png", "svg")
        }


@pytest.mark.skipif(HAS_CUDA, reason="says what lacks without a GPU")
def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    assert peers.main([*SMALL, "--only", "lib_bilagrid", "fused_bilagrid-uniform", "halide"]) == 0
    shown = capsys.readouterr().out
    assert "lib_bilagrid is not installed: put gsplat's folder examples on PYTHONPATH" in shown
    assert "fused_bilagrid-uniform runs only on cuda" in shown
    assert 'halide is not installed: python -m pip install -c constraints.txt -e ".[peers]"' in shown
    assert "median" not in shown


def test_a_window_that_memory_does_not_hold_is_left_out() -> None:
    kornia = named("kornia")
    case = Case("bilateral_filter_gray", "forward", "random", "float32", (1536, 2560), "sigma8")
    assert "needs about 73.2 GiB" in kornia.too_large(case, CPU)
    assert not kornia.too_large(replace(case, image=(64, 64)), CPU)


@pytest.mark.parametrize(
    ("arguments", "expected", "came"),
    [
        (["--only", "cornea"], "kornia", "cornea"),
        (["--repeats", "0"], "1 to 9999", "0"),
        (["--threads", "two"], "number of threads", "two"),
        (["--resolution", "1080"], "HEIGHTxWIDTH", "1080"),
        (["--guide", "painting"], "photograph", "painting"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], expected: str, came: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("perf.peers: ")
    assert message.count("\n") == 1
    assert expected in message
    assert came in message


def test_works_take_turns() -> None:
    order: list[str] = []
    works: dict[str, timing.Work] = {name: lambda name=name: order.append(name) for name in "abc"}  # type: ignore[misc]
    times = timing.take_turns(works, CPU, 3)
    assert "".join(order) == "abccbaabccba"
    assert [taken.repeats for taken in times.values()] == [3, 3, 3]


def test_the_table_says_whether_goals_are_reached() -> None:
    taken = {
        name: timing.Times(median, median, median, 3) for name, median in (("ours", 1e-3), ("a", 30e-3), ("b", 9e-3))
    }
    lines = peers.table("a case", taken, 10**6, 1e9, {"a": 20.0, "b": 10.0}).splitlines()
    assert lines[-2].endswith("20x, reached")
    assert lines[-1].endswith("10x, missed")
    assert named("grid_sample").goal("cuda", "backward", (2160, 3840)) == 20
    assert named("fused_bilagrid-uniform").goal("cuda", "backward", (2160, 3840)) == 10
    assert named("grid_sample").goal("cpu", "forward", (20, 36)) is None


def on_gpu(*arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": path or f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_the_script_wants_one_folder() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    for arguments in ((), ("a", "b"), ("--help",), ("",)):
        found = on_gpu(*arguments)
        assert found.returncode == 2
        assert found.stderr == "usage: bash perf/on_gpu.sh OUT\n"


@pytest.mark.skipif(HAS_CUDA, reason="says that there is no GPU")
def test_the_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    found = on_gpu(str(tmp_path / "out"))
    assert found.returncode == 2
    assert "sees no GPU" in found.stderr
    assert not (tmp_path / "out").exists()


# Stands in for Python where there is a GPU, nothing but torch is installed, one check fails and another cannot be done.
PYTHON = """#!/bin/bash
case "$*" in
*importlib.util*) exit 1 ;;
*"perf.gpu_checks twice") echo "twice: failed: other bits"; exit 1 ;;
*"perf.gpu_checks large") echo "large: not done: needs 48 GiB"; exit 77 ;;
esac
"""


def test_the_script_goes_on_after_a_failure_and_ends_in_a_table(tmp_path: Path) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(PYTHON)
    python.chmod(0o755)
    found = on_gpu(str(out), path=f"{tmp_path}:/usr/bin:/bin")
    assert found.returncode == 1
    lines = found.stdout.rpartition("\n\n")[2].splitlines()
    assert lines == (out / "summary.txt").read_text().splitlines()
    results = {line.split()[0]: line.split(maxsplit=2)[2] for line in lines[1:]}
    assert results.pop("twice") == "failed: other bits"
    assert results.pop("large") == "not done: needs 48 GiB"
    assert results.pop("tests") == "not done: needs pytest, hypothesis and numba"
    assert results.pop("plots") == "not done: needs matplotlib"
    assert results.pop("hdrnet") == "not done: needs safetensors and scikit-image"
    assert results.pop("calibration") == "not done: fused_bilagrid is not installed"
    for tool in ("memcheck", "racecheck", "counters"):
        assert results.pop(tool).startswith(("not done: ", "ok"))
    assert results == dict.fromkeys(
        ("sweep", "peers", "overhead", "profile", "correct", "stream", "graph", "compiled"), "ok"
    )
    assert (out / "sweep.log").exists()

    python.write_text(PYTHON.replace('exit 1 ;;\n*"perf.gpu_checks large', 'exit 0 ;;\n*"perf.gpu_checks large'))
    assert on_gpu(str(out), path=f"{tmp_path}:/usr/bin:/bin").returncode == 0


@pytest.mark.parametrize("name", gpu_checks.ON_CPU)
def test_gpu_checks_that_a_cpu_can_do(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cases, "OPERATORS", ("slice",))
    monkeypatch.setattr(gpu_checks, "_WHOLE", ())
    monkeypatch.setattr(torch, "compile", lambda run, fullgraph: run)
    assert gpu_checks.main([name, "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"{name}: ok\n"

    right, calls = bilagrid.slice, []

    def other_each_time(*given: object, **named: object) -> Tensor:
        calls.append(given)
        return right(*given, **named) + len(calls)

    monkeypatch.setattr(bilagrid, "slice", other_each_time)
    assert gpu_checks.main([name, "--device", "cpu"]) == (0 if name == "touched" else 1)


def test_gpu_checks_tell_what_failed_from_what_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(device: torch.device) -> None:
        raise checks.WrongResultError("other bits")

    assert gpu_checks.main(["graph", "--device", "cpu"]) == 77
    assert capsys.readouterr().out == "graph: not done: needs a GPU\n"
    monkeypatch.setitem(gpu_checks.CHECKS, "twice", fails)
    assert gpu_checks.main(["graph", "twice", "--device", "cpu"]) == 1
    assert "twice: failed: WrongResultError: other bits" in capsys.readouterr().out
    assert gpu_checks.main(["grahp"]) == 2
    assert "expected one of correct, twice, stream, graph" in capsys.readouterr().err
    if not HAS_CUDA:
        assert gpu_checks.main(["graph"]) == 2
        needs = "perf.gpu_checks: torch sees no GPU here; --device cpu does those that need none\n"
        assert capsys.readouterr().err == needs
