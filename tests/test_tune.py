"""How `perf.tune` chooses, and that what it writes is what it read."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bilagrid.gpu import _configs, _table
from perf import static, tune
from perf.uses import USES, Use

ROOT = Path(__file__).parents[1]


def row(config: str, cost: float, use: str = "a use", **more: Any) -> tune.Row:
    about = {"architecture": "sm_90", "device": "none", "source": "predicted", "kernel": "_kernel", "dtype": "float32"}
    given = about | {"size_class": "many", "use": use, "height": 1080, "low": cost, "high": cost, "unit": "us"} | more
    return tune.Row(config=config, cost=cost, **given)


def chosen(*rows: tune.Row) -> set[str]:
    return {each.config for each in tune.choose(rows) if each.chosen}


def test_the_cheapest_is_chosen_and_the_first_of_equals() -> None:
    assert chosen(row("safe", 100), row("other", 90), row("third", 89)) == {"other"}
    assert chosen(row("safe", 100), row("other", 98)) == {"safe"}


def test_uses_count_alike_whatever_they_take() -> None:
    long = [row("safe", 1000, "long"), row("other", 1010, "long")]
    short = [row("safe", 10, "short"), row("other", 8, "short")]
    assert chosen(*long, *short) == {"other"}


def test_what_spills_is_not_chosen() -> None:
    assert chosen(row("safe", 100), row("other", 50, eligible=False)) == {"safe"}
    assert chosen(row("safe", 100, eligible=False), row("other", 120)) == {"other"}
    assert chosen(row("safe", 100, eligible=False)) == {"safe"}


def test_dtypes_and_sizes_are_chosen_for_by_themselves() -> None:
    rows = [row("safe", 1), row("other", 2), row("safe", 2, dtype="half"), row("other", 1, dtype="half")]
    assert [each.config for each in tune.choose(rows) if each.chosen] == ["safe", "other"]


def test_only_the_tuned_architectures_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {("sm_80", "_kernel", "half", "few"): "kept", ("sm_90", "_kernel", "half", "few"): "forgotten"}
    monkeypatch.setattr(_table, "CHOSEN", before)
    path = tmp_path / "table.py"
    tune.write_table(tune.choose([row("safe", 2), row("other", 1), row("safe", 1, dtype="half")]), path)
    scope: dict[str, Any] = {}
    exec(path.read_text(), scope)
    assert scope["CHOSEN"] == {
        ("sm_80", "_kernel", "half", "few"): "kept",
        ("sm_90", "_kernel", "float32", "many"): "other",
    }


def test_rows_of_other_architectures_stay(tmp_path: Path) -> None:
    path = tmp_path / "configurations.csv"
    tune.write_rows([row("safe", 1, architecture="sm_80"), row("safe", 3)], path)
    tune.write_rows(tune.choose([row("safe", 2), row("other", 1)]), path)
    assert [(r["architecture"], r["config"], r["cost"]) for r in _read(path)] == [
        ("sm_80", "safe", "1"),
        ("sm_90", "safe", "2"),
        ("sm_90", "other", "1"),
    ]


def test_every_choice_of_a_kernel_has_its_rows() -> None:
    rows = _read(ROOT / "perf" / "results" / "static" / "configurations.csv")
    found = {(r["architecture"], r["kernel"], r["dtype"], r["config"]) for r in rows}
    launches = [launch for use in USES for launch in use.launches("sm_90") if len(launch.configs) > 1]
    wanted = {
        (ln.kernel.__name__, _configs.dtype_class(ln.dtype), _configs.label(c)) for ln in launches for c in ln.configs
    }
    assert len({name for name, *_ in wanted}) > 10
    for architecture in static.TARGETS:
        assert {(architecture, *each) for each in wanted} <= found


def test_every_kernel_with_a_choice_is_tuned() -> None:
    def kernels(uses: Iterable[Use]) -> set[str]:
        return {ln.kernel.__name__ for use in uses for ln in use.launches("sm_90") if len(ln.configs) > 1}

    assert kernels(tune._at_heights(tune._HEIGHTS)) == kernels(tune._at_heights(tune._HEIGHTS[-1:])) == kernels(USES)


def test_committed_rows_justify_the_table() -> None:
    rows = [line for path in (ROOT / "perf" / "results").glob("*/configurations.csv") for line in _read(path)]
    justified = {
        (r["architecture"], r["kernel"], r["dtype"], r["size_class"], r["config"])
        for r in rows
        if r["chosen"] == "True"
    }
    assert {(*key, config) for key, config in _configs.CHOSEN.items()} <= justified


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_that_cannot_be_written_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "predict", lambda architecture: pytest.fail("compiles"))
    for table in (tmp_path, tmp_path / "nowhere" / "table.py"):
        assert tune.main(["--predict", "sm_90", "--table", str(table)]) == 2
        message = capsys.readouterr().err
        assert message == f"perf.tune: argument --table: expected a file in a folder that exists, got {table}\n"
    monkeypatch.setattr(tune.os, "access", lambda path, mode: False)
    assert tune.main(["--predict", "sm_90", "--table", str(tmp_path / "table.py")]) == 2
    assert "table.py may not be written to" in capsys.readouterr().err
