"""`python -m perf.sweep` as a user runs it, on small images; its costs, and its check."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bilagrid
from perf import cases, checks, costs, predict, problems, rows, sweep, timing
from perf.cases import Case, GridSpec
from tests.measured import MACHINE, a_row

needs_matplotlib = pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs matplotlib")

SMALL = ["--resolutions", "20x36", "--dtypes", "float32", "--grids", "4x3x5", "--guides", "random", "--seconds", "0"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests send CPU tensors to Numba themselves, whatever Triton was told."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is known already, and nothing drawn: for tests of what comes between."""
    monkeypatch.setattr(rows, "this_machine", lambda device: MACHINE)
    monkeypatch.setattr(sweep, "_draw", lambda paths, out: None)


def run(out: Path, *more: str, operators: str = "slice_apply") -> int:
    return sweep.main([*SMALL, "--device", "cpu", "--operators", *operators.split(), "--out", str(out), *more])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "rows.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@needs_matplotlib
def test_a_sweep_leaves_rows_and_plots_that_are_drawn_again_from_rows_alone(tmp_path: Path) -> None:
    measured, drawn = tmp_path / "measured", tmp_path / "drawn"
    assert run(measured, "--grids", "sigma4", operators="splat bilateral_filter_gray") == 0
    found = table(measured)
    assert [(row["operator"], row["direction"], row["grid"]) for row in found] == [
        ("splat", "forward", "sigma4"),
        ("splat", "backward", "sigma4"),
        ("bilateral_filter_gray", "forward", "sigma4"),
        ("bilateral_filter_gray", "backward", "sigma4"),
    ]
    assert tuple(found[0]) == rows.COLUMNS
    for row in found:
        assert row["device"].endswith("threads")
        assert (row["backend"], row["height"], row["width"], row["dtype"]) == ("numba", "20", "36", "float32")
        assert row["torch"] == torch.__version__.partition("+")[0] or row["torch"] == torch.__version__
        assert 0 < float(row["q20_s"]) <= float(row["median_s"]) <= float(row["q80_s"])
        speed = int(row["bytes"]) / float(row["median_s"])
        assert float(row["bytes_per_s"]) == pytest.approx(speed, rel=1e-4)
        assert float(row["fraction_of_copy"]) == pytest.approx(speed / float(row["copy_bytes_per_s"]), rel=1e-4)
        assert float(row["peak_flops_per_s"]) > 1e6

    assert sweep.main(["--plot", str(measured / "rows.csv"), "--out", str(drawn)]) == 0
    names = {path.name for path in measured.iterdir()} - {"rows.csv"}
    assert names == {
        f"{kind}_float32_random{suffix}" for kind in ("throughput", "roofline") for suffix in (".png", ".svg")
    }
    import matplotlib.image

    for name in names:
        assert (measured / name).read_bytes() == (drawn / name).read_bytes()
        if name.endswith(".png"):
            height, width, _ = matplotlib.image.imread(drawn / name).shape
            assert min(height, width) > 500


@pytest.mark.parametrize(
    ("operator", "direction", "bytes_a_pixel"),
    [
        ("slice_apply", "forward", 28),
        ("slice_apply", "backward", 44),
        ("slice_apply_luma", "forward", 24),
        ("slice_apply_luma", "backward", 36),
        ("curves", "forward", 16),
        ("curves", "backward", 28),
        ("bilateral_filter", "forward", 12),
        ("slice_apply_bank", "forward", 28),
        ("slice_apply_bank", "backward", 44),
        ("fit", "forward", 24),
        ("fit", "backward", 48),
        ("tonemap", "forward", 36),
        ("merge_flash", "forward", 60),
        ("merge_flash", "backward", 96),
        ("colorize", "forward", 33),
        ("colorize", "backward", 61),
    ],
)
def test_bytes_a_pixel_are_those_of_the_design(operator: str, direction: str, bytes_a_pixel: int) -> None:
    channels = 1 if operator == "bilateral_filter" else 3

    def moved(pixels: int) -> int:
        sizes = costs.Sizes(pixels=pixels, channels=channels, item=4, nodes=2048, grid_item=4)
        return costs.cost(operator, direction, sizes).bytes

    assert moved(1001) - moved(1) == 1000 * bytes_a_pixel


def test_one_pixel_at_a_kink_is_allowed_and_no_more() -> None:
    right = torch.ones(1, 3, 40, 50)
    one, two = right.clone(), right.clone()
    one[..., 7, 9] = two[..., 7, 9] = two[..., 8, 9] = 2
    checks.close("the gradient", one, right, 1e-4, kinks=True)
    for wrong, kinks, size in ((two, True, 6000), (one, False, 6000), (one, True, 500)):
        with pytest.raises(checks.WrongResultError):
            checks.close("the gradient", wrong.flatten()[:size], right.flatten()[:size], 1e-4, kinks=kinks)


def test_half_images_move_half_the_bytes() -> None:
    full, half = (costs.cost("splat", "backward", costs.Sizes(1000, 3, item, 0, 4)) for item in (4, 2))
    assert full.bytes == 2 * half.bytes
    assert full.flops == half.flops


@pytest.mark.parametrize("operator", cases.OPERATORS)
def test_the_check_passes_what_is_right_and_refuses_what_is_not(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = [GridSpec.parse(name) for name in ("4x3x5", "sigma4")]
    case = cases.cases([operator], ["backward"], [(20, 36)], ["float32"], grids, ["random"])[0]
    checks.check(case, CPU)
    name = re.sub("_(luma|bank|gray|colour)$", "", operator)
    right = getattr(bilagrid, name)

    def off_by(amount: float) -> Callable[..., Tensor]:
        return lambda *given, **named: right(*given, **named) * (1 + amount)

    monkeypatch.setattr(bilagrid, name, off_by(2e-3))
    with pytest.raises(checks.WrongResultError, match="output"):
        checks.check(case, CPU)
    monkeypatch.setattr(bilagrid, name, lambda *given, **named: _with_gradient(right(*given, **named), 1.01))
    checks.check(replace(case, direction="forward"), CPU)
    with pytest.raises(checks.WrongResultError, match="gradient"):
        checks.check(case, CPU)


def _with_gradient(out: Tensor, factor: float) -> Tensor:
    """The same value, its gradient multiplied."""
    return out.detach() + factor * (out - out.detach())


@pytest.mark.parametrize(("operator", "image"), [("total_variation", (0, 0)), ("tonemap", (1, 1))])
def test_the_check_passes_the_smallest_there_is(operator: str, image: tuple[int, int]) -> None:
    guide = "random" if image[0] else "none"
    checks.check(Case(operator, "backward", guide, "float32", image, "1x1x1"), CPU)


def test_the_check_refuses_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("slice", "forward", "random", "float32", (20, 36), "4x3x5")
    monkeypatch.setattr(bilagrid, "slice", lambda *given, **named: torch.full((1, 12, 8, 36), math.nan))
    with pytest.raises(checks.WrongResultError):
        checks.check(case, CPU)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_photographs_pass_the_check_in_every_type(dtype: str) -> None:
    pytest.importorskip("skimage")
    checks.check(Case("slice_apply_luma", "backward", "photograph", dtype, (20, 36), "4x3x5"), CPU)


@pytest.mark.usefixtures("no_plots")
def test_a_wrong_result_is_reported_and_never_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = bilagrid.slice_apply
    monkeypatch.setattr(bilagrid, "slice_apply", lambda *given, **named: _with_gradient(right(*given, **named), 2.0))
    assert run(tmp_path, operators="slice_apply slice") == 1
    assert [(row["operator"], row["direction"]) for row in table(tmp_path)] == [
        ("slice_apply", "forward"),
        ("slice", "forward"),
        ("slice", "backward"),
    ]
    assert "wrong, not timed: slice_apply backward, 20x36" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_an_operator_that_fails_leaves_the_others_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(bilagrid, "slice_apply")
    assert run(tmp_path, "--directions", "forward", operators="slice_apply slice") == 1
    assert [row["operator"] for row in table(tmp_path)] == ["slice"]
    assert "AttributeError" in capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_resume_measures_what_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    assert run(tmp_path) == 0
    first = file.read_text()
    assert run(tmp_path) == 2
    assert "--resume" in capsys.readouterr().err
    assert run(tmp_path, "--resume") == 0
    assert file.read_text() == first

    file.write_text(first[:-20])
    assert run(tmp_path, "--resume") == 0
    lines = file.read_text().splitlines()
    assert lines[:2] == first.splitlines()[:2]
    assert len(lines) == 3
    assert rows.case_of(rows.read(file)[1]).direction == "backward"

    monkeypatch.setattr(rows, "this_machine", lambda device: replace(MACHINE, torch="3"))
    assert run(tmp_path, "--resume") == 0
    assert [row["torch"] for row in table(tmp_path)] == ["2", "2", "3", "3"]
    assert run(tmp_path, "--overwrite") == 0
    assert len(table(tmp_path)) == 2


@pytest.mark.usefixtures("no_plots")
def test_what_takes_steps_by_its_values_is_measured_and_not_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        predict, "row", lambda case, gpu: a_row(operator=case.operator, device=gpu, implementation=rows.PREDICTED)
    )
    assert run(tmp_path, "--predict", "H100", "--directions", "forward", operators="curves colorize") == 0
    assert [row["operator"] for row in table(tmp_path)] == ["curves", "colorize"]
    assert [row.operator for row in rows.read(tmp_path / "predicted_h100.csv")] == ["curves"]


@needs_matplotlib
def test_an_interruption_keeps_and_draws_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "this_machine", lambda device: MACHINE)
    measure, calls = timing.measure, []

    def interrupted(*given: object, **named: object) -> timing.Times:
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*given, **named)

    monkeypatch.setattr(timing, "measure", interrupted)
    assert run(tmp_path) == 130
    assert [row["direction"] for row in table(tmp_path)] == ["forward"]
    assert (tmp_path / "throughput_float32_random.png").exists()
    assert "1 rows are kept" in capsys.readouterr().err


def test_without_matplotlib_rows_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "this_machine", lambda device: MACHINE)
    monkeypatch.setattr(sweep, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    assert run(tmp_path) == 0
    assert len(table(tmp_path)) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.csv"]
    message = capsys.readouterr().err
    assert "pip install" in message
    assert f"--plot {tmp_path / 'rows.csv'}" in message
    assert sweep.main(["--plot", str(tmp_path / "rows.csv")]) == 2


@pytest.mark.usefixtures("no_plots")
def test_what_memory_does_not_hold_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "free_memory", lambda device: 2**20)
    assert run(tmp_path) == 0
    assert table(tmp_path) == []
    assert "left out: slice_apply forward, 20x36, 4x3x5, float32, random: needs about" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected", "came"),
    [
        (["--dtypes", "float8"], "float16", "float8"),
        (["--operators", "blurr"], "total_variation", "blurr"),
        (["--resolutions", "1080"], "HEIGHTxWIDTH", "1080"),
        (["--resolutions", "0x12"], "HEIGHTxWIDTH", "0x12"),
        (["--grids", "8x8"], "GWxGHxD", "8x8"),
        (["--grids", "sigma0.5"], "1 pixel or more", "sigma0.5"),
        (["--seconds", "long"], "number of seconds", "long"),
        (["--seconds", "nan"], "number of seconds", "nan"),
        (["--threads", "0"], "1 to 9999", "0"),
        (["--threads", "10000"], "1 to 9999", "10000"),
        (["--predict", "H101"], "H100", "H101"),
        (["--operators", "blur", "--grids", "4x4x4"], "grids", "blur"),
        (["--resume", "--overwrite"], "not allowed", "--overwrite"),
        (["--plot", "/nowhere/rows.csv"], "read", "/nowhere/rows.csv"),
        (["--speed"], "arguments", "--speed"),
    ],
)
@pytest.mark.usefixtures("no_plots")
def test_refusals_are_one_line(
    arguments: list[str], expected: str, came: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep.main([*arguments, "--device", "cpu", "--guides", "random", "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("perf.sweep: ")
    assert message.count("\n") == 1
    assert expected in message
    assert came in message
    assert not (tmp_path / "out").exists()


def test_an_interpreter_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert run(tmp_path) == 2
    assert run(tmp_path, "--predict", "H100") == 2
    assert capsys.readouterr().err.count("TRITON_INTERPRET") == 2


def test_a_prediction_counts_what_must_come_from_memory() -> None:
    pytest.importorskip("triton")
    from perf import predict

    size = (1080, 1920)
    for direction, bytes_a_pixel in (("forward", 28), ("backward", 44)):
        case = Case("slice_apply", direction, "random", "float32", size, "16x16x8")
        problem = problems.problem(case, CPU)
        launches, outside = predict._record(case, problem, "sm_90")
        assert "_reduce_columns_kernel" in {launch.kernel.__name__ for launch in launches} or direction == "forward"
        moved = predict._bytes(launches, outside, cache=1e12)
        assert sum(moved) == pytest.approx(cases.cost(case, problem.sizes).bytes, rel=1e-3)
        assert sum(moved) >= bytes_a_pixel * math.prod(size)

    case = Case("slice_apply_bank", "forward", "random", "float32", size, "16x16x8")
    launches, outside = predict._record(case, problems.problem(case, CPU), "sm_90")
    moved = predict._bytes(launches, outside, cache=1e12)
    assert sum(moved) == pytest.approx(28 * math.prod(size), rel=1e-2), "of a bank of 256 grids one is read"
