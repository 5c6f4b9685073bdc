"""Rows of measurements, and the CSV files that keep them. Plots are drawn from these alone."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from bilagrid import commands
from bilagrid.commands import Refusal
from perf import cases, timing
from perf.cases import Case, Problem

OURS = "bilagrid"
# Stands before a GPU's name in a row whose time was computed, not measured.
PREDICTED = "predicted"


class RowsError(Refusal):
    """A file that does not hold rows."""


@dataclass(frozen=True)
class Machine:
    """Where rows were measured: the device, the versions, and what the device itself reached in that run.

    Attributes:
        peak_flops_per_s: of a float32 matrix product without tensor cores.
    """

    device: str
    python: str
    torch: str
    triton: str
    numba: str
    backend: str
    copy_bytes_per_s: float
    peak_flops_per_s: float

    @property
    def where(self) -> tuple[str, ...]:
        """What a time depends on besides the case: device and versions."""
        return self.device, self.python, self.torch, self.triton, self.numba, self.backend


def this_machine(device: torch.device, *, seconds: float = 0.5) -> Machine:
    """The machine as it is now. Measuring its copies and products takes about a second."""
    return Machine(
        device=timing.device_name(device),
        **versions(),
        backend="triton" if device.type == "cuda" else "numba",
        copy_bytes_per_s=timing.copy(device, seconds=seconds).per_second,
        peak_flops_per_s=timing.arithmetic(device, seconds=seconds).per_second,
    )


def versions() -> dict[str, str]:
    """The versions that rows name; empty for a package that is not installed."""
    found = {"python": platform.python_version()}
    for package in ("torch", "triton", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return found


# Columns that tables of other commands have in common.
WHERE = ("device", "torch", "triton", "numba")
TIMES = ("repeats", "median_s", "q20_s", "q80_s")


def where(device: torch.device) -> tuple[str, ...]:
    """The values for the columns `WHERE`."""
    found = versions()
    return timing.device_name(device), *(found[package] for package in WHERE[1:])


def seconds(times: timing.Times) -> tuple[object, ...]:
    """The values for the columns `TIMES`."""
    return times.repeats, *(f"{value:.6g}" for value in (times.median, times.q20, times.q80))


@dataclass(frozen=True)
class Row(Machine):
    """An operator's time in one direction on one input.

    Attributes:
        implementation: `OURS`, another library's name, or `PREDICTED` and a GPU's name.
        guide: ``none`` where none is read; ``height`` and ``width`` are 0 where there is no image.
        grid: its name, and its nodes along each axis.
        bytes: that must move at the least; ``flops`` are additions and multiplications.
        repeats: 0 where the time is predicted.
        median_s: of the repeats, in seconds, with the quantiles 0.2 and 0.8.
    """

    implementation: str
    operator: str
    direction: str
    dtype: str
    guide: str
    height: int
    width: int
    grid: str
    grid_depth: int
    grid_height: int
    grid_width: int
    bytes: int
    flops: int
    repeats: int
    median_s: float
    q20_s: float
    q80_s: float

    @property
    def bytes_per_s(self) -> float:
        return self.bytes / self.median_s

    @property
    def fraction_of_copy(self) -> float:
        return self.bytes_per_s / self.copy_bytes_per_s

    @property
    def measured(self) -> bool:
        return self.repeats > 0


def row_of(case: Case, problem: Problem, machine: Machine, implementation: str, times: timing.Times) -> Row:
    """The row of a case that took ``times``."""
    cost = cases.cost(case, problem.sizes)
    height, width = case.image
    depth, grid_height, grid_width = problem.grid_size
    return Row(
        **asdict(machine),
        implementation=implementation,
        operator=case.operator,
        direction=case.direction,
        dtype=case.dtype,
        guide=case.guide,
        height=height,
        width=width,
        grid=case.grid,
        grid_depth=depth,
        grid_height=grid_height,
        grid_width=grid_width,
        bytes=cost.bytes,
        flops=cost.flops,
        repeats=times.repeats,
        median_s=times.median,
        q20_s=times.q20,
        q80_s=times.q80,
    )


def case_of(row: Row) -> Case:
    """The case that the row holds a time of."""
    return Case(row.operator, row.direction, row.guide, row.dtype, (row.height, row.width), row.grid)


_FIELDS = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(Row)}
COLUMNS = (*_FIELDS, "bytes_per_s", "fraction_of_copy")


def _line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def write_table(path: Path | None, columns: Iterable[str], table: Iterable[Iterable[object]]) -> None:
    """Writes another command's table as a CSV file, whole or not at all, and says so. Without a path it does nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _line(columns) + "".join(map(_line, table))
    commands.replace(Path(os.path.realpath(path)), text.encode())
    print(f"wrote {path}")


class RowFile:
    """A CSV file to which rows are added as they come, each as a whole line."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Continues the file, unless told to ``overwrite``; a line that an interruption cut off is dropped."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() and not overwrite else b""
        if _line(COLUMNS).encode().startswith(text):
            self.rows = []
            path.write_text(_line(COLUMNS))
        else:
            self.rows = read(path)
            os.truncate(path, text.rfind(b"\n") + 1)

    def add(self, row: Row) -> None:
        values = {**asdict(row), "bytes_per_s": row.bytes_per_s, "fraction_of_copy": row.fraction_of_copy}
        with self.path.open("a", newline="") as file:
            file.write(_line(f"{value:.6g}" if isinstance(value, float) else value for value in values.values()))
        self.rows.append(row)


def read(path: Path) -> list[Row]:
    """The rows of a file; raises `RowsError` where it holds something else. A last line without an end was cut off, and is left out."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise RowsError(f"{path}: cannot be read as CSV: {getattr(error, 'strerror', None) or error}") from None
    table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    if missing := set(_FIELDS) - set(table.fieldnames or ()):
        raise RowsError(f"{path}: must have the columns {', '.join(COLUMNS)}; {', '.join(sorted(missing))} missing")
    rows = []
    for values in table:
        try:
            rows.append(Row(**{name: kind(values[name]) for name, kind in _FIELDS.items()}))
        except (TypeError, ValueError) as error:
            raise RowsError(f"{path}, line {table.line_num}: {error}") from None
    return rows
