"""The table of configurations that ships with the package: ``python -m perf.tune``."""

from __future__ import annotations

import csv
import dataclasses
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import triton

from bilagrid.commands import Refusal
from bilagrid.gpu import _configs, _regime, _table
from bilagrid.gpu._launch import Launch
from perf import arguments, static
from perf.arguments import Out
from perf.uses import USES, Use

_ROOT = Path(__file__).parents[1]

# Heights of the images: those of a network's input, of a photograph on a screen, and of one that fills a large GPU.
_HEIGHTS = (256, 1080, 2160)

_MARGIN = 1.03

# A multiprocessor has 64 Ki registers: with more of them a thread, fewer than 16 warps find room.
_MOST_REGISTERS = 128


@dataclass(frozen=True)
class Row:
    """What one configuration of one launch costs.

    Attributes:
        device: the GPU measured on, or "none".
        cost: microseconds, the median of several launches, or predicted instructions a pixel or node, as ``unit`` says.
        low, high: the 20th and 80th percentile of what was measured.
        eligible: whether it may be chosen.
        chosen: whether the table takes it.
    """

    architecture: str
    device: str
    source: str
    kernel: str
    dtype: str
    size_class: str
    use: str
    height: int
    config: str
    cost: float
    low: float
    high: float
    unit: str
    registers: int | None = None
    spills: int | None = None
    eligible: bool = True
    chosen: bool = False

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.architecture, self.kernel, self.dtype, self.size_class


def choose(rows: Sequence[Row]) -> list[Row]:
    """The rows, of which those of the chosen configurations say so."""
    groups: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.key].append(row)
    chosen = {key: _cheapest(group) for key, group in groups.items()}
    return [replace(row, chosen=row.config == chosen[row.key]) for row in rows]


def _cheapest(rows: Sequence[Row]) -> str:
    """The configuration that the rule takes; ``rows`` list the safe one of each use first."""
    safe: dict[tuple[str, int], float] = {}
    ratios: dict[str, list[float]] = defaultdict(list)
    refused = {row.config for row in rows if not row.eligible}
    for row in rows:
        ratios[row.config].append(row.cost / safe.setdefault((row.use, row.height), row.cost))
    costs = {config: statistics.fmean(each) for config, each in ratios.items() if config not in refused}
    if not costs:
        return rows[0].config
    return next(config for config, cost in costs.items() if cost <= min(costs.values()) * _MARGIN)


def predict(architecture: str) -> Iterator[Row]:
    """Rows by what the compiler says, for the first use of each kernel and dtype that fills a GPU, or else for its first: there the safe one is chosen."""
    found: dict[tuple[str, str], tuple[Use, Launch]] = {}
    for use in _at_heights((_HEIGHTS[-1],)):
        for launch in use.launches(architecture):
            variant = launch.kernel.__name__, _configs.dtype_class(launch.dtype)
            if len(launch.configs) > 1 and (variant not in found or _is_small(found[variant][1]) > _is_small(launch)):
                found[variant] = use, launch
    for use, launch in found.values():
        for config in launch.configs:
            row = static.measure_launch(use, launch, config, architecture)
            fits = row.shared_bytes <= row.shared_limit and row.registers <= _MOST_REGISTERS and not row.spills
            yield Row(
                architecture=architecture,
                device="none",
                source="predicted",
                **_about(use, launch),
                config=row.config,
                cost=row.instructions_per_pixel,
                low=row.instructions_per_pixel,
                high=row.instructions_per_pixel,
                unit=f"instructions a {row.unit}",
                registers=row.registers,
                spills=row.spills,
                eligible=fits and (not _is_small(launch) or config is launch.configs[0]),
            )


def _is_small(launch: Launch) -> bool:
    return _configs.size_class(launch.programs) == "few"


def measure() -> Iterator[Row]:
    """Rows by what the current GPU takes, for every use and height."""
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = _regime.architecture(device)
    for use in _at_heights(_HEIGHTS):
        for launch in use.launches(architecture, str(device)):
            for config in launch.configs if len(launch.configs) > 1 else []:
                milliseconds = triton.testing.do_bench(
                    lambda launch=launch, config=config: launch.make(config), quantiles=[0.2, 0.5, 0.8]
                )
                low, median, high = (1e3 * each for each in milliseconds)
                yield Row(
                    architecture=architecture,
                    device=torch.cuda.get_device_name(device),
                    source="measured",
                    **_about(use, launch),
                    config=_configs.label(config),
                    cost=median,
                    low=low,
                    high=high,
                    unit="microseconds",
                )


def _at_heights(heights: Sequence[int]) -> Iterator[Use]:
    """Every use at these heights, but for those that only an image past 2³¹ elements makes."""
    for use in USES:
        if use.height in _HEIGHTS:
            yield from (replace(use, height=height) for height in heights)


def _about(use: Use, launch: Launch) -> dict[str, Any]:
    """What a row says of a launch: its kernel, the classes of dtype and size that the table knows it by, and its use."""
    return {
        "kernel": launch.kernel.__name__,
        "dtype": _configs.dtype_class(launch.dtype),
        "size_class": _configs.size_class(launch.programs),
        "use": use.name,
        "height": use.height,
    }


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Replace the choices of the rows' architectures in the table: those that are not a kernel's first configuration."""
    safe = {row.key: row.config for row in reversed(rows)}
    tuned = {row.architecture for row in rows}
    entries = {key: config for key, config in _table.CHOSEN.items() if key[0] not in tuned}
    entries |= {row.key: row.config for row in rows if row.chosen and row.config != safe[row.key]}
    lines = [f"    {_quoted(key)}: {_quoted(config)}," for key, config in sorted(entries.items())]
    body = "\n".join(["{", *lines, "}"]) if lines else "{}"
    path.write_text(f'"""{_table.__doc__}"""\n\nCHOSEN: dict[tuple[str, str, str, str], str] = {body}\n')


def _quoted(value: str | tuple[str, ...]) -> str:
    return f"({', '.join(map(_quoted, value))})" if isinstance(value, tuple) else f'"{value}"'


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Replace the rows of the same architectures in the file, as in the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tuned, kept = {row.architecture for row in rows}, list[dict[str, Any]]()
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if row["architecture"] not in tuned]
    lines = kept + [dataclasses.asdict(row) for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda row: row["architecture"]))


_Architectures = Annotated[list[str] | None, {"nargs": "+", "choices": static.TARGETS, "metavar": "ARCH"}]


@arguments.argument
def _table_file(text: str) -> Path:
    """A file that can be written when all is measured."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"expected a file in a folder that exists, got {text}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text} may not be written to, choose another file")
    return path


_Table = Annotated[Path, {"type": _table_file}]


def tune(*, predict_: _Architectures = None, out: Out = None, table: _Table = Path(_table.__file__)) -> None:
    """Makes the table of configurations that ships with the package.

    On a GPU every configuration of every kernel is timed, for each use, in images of several sizes. Without one, configurations are ranked by what the
    compiler says of them, for launches large enough to fill a GPU; for small ones that says nothing, and the safe configuration stays.

    The rule, for each kernel, dtype and size class: a configuration costs what it takes relative to the safe one (time, or predicted instructions), on average
    over uses; the first listed within 3 % of the cheapest is chosen. Predicted ones that spill, want more shared memory than there is, or so many registers that
    a multiprocessor would hold fewer than 16 warps, are not.

    The choices of the architectures at hand replace theirs in the table, and the rows that justify them theirs in a CSV file.

    examples:
      python -m perf.tune
      python -m perf.tune --predict sm_90 gfx942

    Args:
        predict_: rank for architectures that are not here: %(choices)s
        out: folder for the rows (perf/results/static, or by the GPU's name)
        table: the table to rewrite
    """
    arguments.check_compiled("an interpreted kernel cannot be compiled")
    if predict_ is None and not torch.cuda.is_available():
        raise Refusal("there is no GPU here: --predict ARCH ranks configurations without one")
    rows = []
    for row in (row for name in predict_ for row in predict(name)) if predict_ else measure():
        rows.append(row)
        if sys.stderr.isatty():
            print(f"\r{len(rows)} configurations", end="", file=sys.stderr, flush=True)
    rows = choose(rows)
    name = "static" if predict_ else rows[0].device.lower().replace(" ", "-")
    write_rows(rows, (out or _ROOT / "perf" / "results" / name) / "configurations.csv")
    write_table(rows, table)
    for row in rows:
        if row.chosen:
            print(
                f"{row.architecture} {row.kernel} {row.dtype} {row.size_class}: {row.config}, {row.cost:g} {row.unit}"
            )


main = arguments.command(tune)

if __name__ == "__main__":
    sys.exit(main())
