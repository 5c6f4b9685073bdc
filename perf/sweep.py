"""Every operator's speed on this machine, beside that of a copy: ``python -m perf.sweep``."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from perf import arguments, cases, checks, plots, predict, rows, timing
from perf.arguments import Parser, RefusalError, argument
from perf.cases import Case, GridSpec
from perf.inputs import GUIDES
from perf.rows import Machine, Row

_DESCRIPTION = """\
Measures splat, blur, slice, slice_points, slice_apply, curves, total_variation and the filters, forward and backward, on the
GPU if there is one and else on the CPU. Each result is first checked against a plain float64 computation; a wrong one is reported, never timed, and
the exit code is then 1. Speeds are those of the bytes that an operator must move, beside a copy's measured in the same run.

OUT gets rows.csv, a row as soon as it is measured, and the plots throughput_*.png (against resolution) and roofline_*.png
(against arithmetic intensity), each also as .svg. Ctrl-C keeps what there is, draws it and exits with 130.
"""

_EXAMPLES = """\
examples:
  python -m perf.sweep --quick
      a few sizes in float32 on a photograph: under a minute on two cores once the kernels are compiled
  python -m perf.sweep --operators slice_apply --resolutions 1080p 4k 1200x1600 --grids 16x16x8 --dtypes float32 float16
  python -m perf.sweep --resume
      goes on where an interrupted run left off
  python -m perf.sweep --quick --predict H100
      draws beside it, dashed, what an H100 would need at the least; needs no GPU
  python -m perf.sweep --plot a/rows.csv b/rows.csv --out plots
      draws plots again, from rows alone
"""

_GRIDS = ("16x16x8", "64x64x8", "sigma4", "sigma8")
_QUICK = {
    "resolutions": [cases.RESOLUTIONS[name] for name in ("256", "512", "1080p")],
    "dtypes": ["float32"],
    "grids": [GridSpec.parse(name) for name in ("16x16x8", "sigma8")],
    "guides": ["photograph"],
    "seconds": 0.05,
}
_FULL = {
    "resolutions": list(cases.RESOLUTIONS.values()),
    "dtypes": list(cases.DTYPES),
    "grids": [GridSpec.parse(name) for name in _GRIDS],
    "guides": list(GUIDES),
    "seconds": 0.5,
}
_LEAST_REPEATS = 3

# Leaves something to the rest of the system.
_MEMORY_SHARE = 0.8

_REMEDY = 'python -m pip install -c constraints.txt -e ".[plots]"'


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ValueError(f"expected a number of seconds, 0 to 3600, got {text!r}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = Parser("python -m perf.sweep", _DESCRIPTION, _EXAMPLES)
    what = parser.add_argument_group("what is measured (all combinations that mean something)")
    what.add_argument("--quick", action="store_true", help="a representative part; what is named besides still holds")
    what.add_argument("--operators", nargs="+", choices=cases.OPERATORS, default=cases.OPERATORS, metavar="OPERATOR", help=", ".join(cases.OPERATORS))  # fmt: skip
    what.add_argument("--directions", nargs="+", choices=cases.DIRECTIONS, default=cases.DIRECTIONS, metavar="DIRECTION", help="forward; backward: the gradients by every tensor")  # fmt: skip
    what.add_argument("--resolutions", nargs="+", type=arguments.resolution, metavar="SIZE", help=f"{', '.join(cases.RESOLUTIONS)} or HEIGHTxWIDTH; what memory does not hold is left out")  # fmt: skip
    what.add_argument("--dtypes", nargs="+", choices=cases.DTYPES, metavar="DTYPE", help=", ".join(cases.DTYPES))
    what.add_argument("--grids", nargs="+", type=argument(GridSpec.parse), metavar="GRID", help=f"GWxGHxD with 12 channels, for all but blur and the filters; sigmaN, a filter's grid with a node every N pixels, for all but slice_apply and total_variation (default: {' '.join(_GRIDS)})")  # fmt: skip
    what.add_argument("--guides", nargs="+", choices=GUIDES, metavar="GUIDE", help=", ".join(GUIDES))
    how = parser.add_argument_group("how")
    how.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is a GPU")
    how.add_argument("--threads", type=arguments.count("threads"), help="on the CPU (default: torch's choice)")
    how.add_argument("--seconds", type=argument(_seconds), help=f"to repeat each case for; at least {_LEAST_REPEATS} times (default: 0.5)")  # fmt: skip
    out = parser.add_argument_group("where to")
    out.add_argument("--out", type=Path, metavar="DIR", help="default: perf/results/<device>")
    there = out.add_mutually_exclusive_group()
    there.add_argument("--resume", action="store_true", help="keep the rows in OUT and measure what they lack, on this device with these versions")  # fmt: skip
    there.add_argument("--overwrite", action="store_true", help="drop the rows in OUT")
    out.add_argument("--predict", choices=predict.GPUS, metavar="GPU", help=f"also draw a lower bound of the times on a named GPU, computed without it: {', '.join(predict.GPUS)}")  # fmt: skip
    out.add_argument("--plot", nargs="+", type=Path, metavar="ROWS", help="measure nothing, draw the rows of these CSV files into OUT")  # fmt: skip
    return parser


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _progress(todo: list[Case], verb: str) -> Iterable[Case]:
    """A bar on standard error, where that is a terminal and tqdm is installed."""
    if find_spec("tqdm") is None:
        return todo
    from tqdm import tqdm

    return tqdm(todo, desc=verb, unit="case", disable=None, file=sys.stderr)


def time_case(case: Case, machine: Machine, device: torch.device, *, seconds: float) -> Row:
    """Checks the case, then times it; raises `checks.WrongResultError` before anything is timed."""
    checks.check(case, device)
    problem = cases.problem(case, device)
    times = timing.measure(cases.work(case, problem), device, seconds=seconds, repeats=_LEAST_REPEATS)
    return rows.row_of(case, problem, machine, rows.OURS, times)


def _sweep(options: argparse.Namespace) -> int:
    device, every = _device(options), _cases(options)
    if options.threads:
        torch.set_num_threads(options.threads)
    out = options.out or Path("perf/results") / _slug(timing.device_name(device))
    file = _open(out / "rows.csv", options)
    if find_spec("matplotlib") is None:
        print(f"no plots will be drawn, only rows written: plots need matplotlib: {_REMEDY}", file=sys.stderr)
    machine = rows.this_machine(device)
    print(
        f"{machine.device}: a copy moves {machine.copy_bytes_per_s / 1e9:.4g} GB/s, a float32 matrix product does "
        f"{machine.peak_flops_per_s / 1e9:.4g} GFLOP/s; rows go to {file.path}",
        file=sys.stderr,
    )
    have = {rows.case_of(row) for row in file.rows if row.where == machine.where and row.implementation == rows.OURS}
    todo = [case for case in every if case not in have]
    if len(todo) < len(every):
        print(f"{len(every) - len(todo)} of {len(every)} cases are there already", file=sys.stderr)
    paths, left_out, wrong = [file.path], list[str](), list[str]()
    interrupted = False
    try:
        for case in _progress(todo, "measured"):
            if not _fits(case, device):
                left_out.append(f"{case}: needs about {cases.memory(case) / 2**30:.1f} GiB")
                continue
            try:
                file.add(time_case(case, machine, device, seconds=options.seconds))
            except checks.WrongResultError as error:
                wrong.append(str(error))
            except torch.OutOfMemoryError:
                left_out.append(f"{case}: memory ran out")
                torch.cuda.empty_cache()
            except Exception as error:  # one that fails must not cost the others their rows
                wrong.append(f"{case}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        if options.predict:
            paths.append(_predict(every, options.predict, out))
    except KeyboardInterrupt:
        interrupted = True
    for message in left_out:
        print(f"left out: {message}", file=sys.stderr)
    for message in wrong:
        print(f"wrong, not timed: {message}", file=sys.stderr)
    if interrupted:
        print(f"interrupted: {len(file.rows)} rows are kept, --resume goes on", file=sys.stderr)
    _draw(paths, out)
    return 130 if interrupted else 1 if wrong else 0


def _device(options: argparse.Namespace) -> torch.device:
    """The device asked for, with what the cases need at hand."""
    device = arguments.device(options.device)
    if "photograph" in options.guides and find_spec("skimage") is None:
        raise RefusalError(f"the photograph comes with scikit-image: {_REMEDY}; or --guides random")
    return device


def _open(path: Path, options: argparse.Namespace) -> rows.RowFile:
    if path.exists() and not options.overwrite and not options.resume:
        raise RefusalError(f"{path} exists: --resume adds what it lacks, --overwrite replaces it, --out names another")
    return rows.RowFile(path, overwrite=options.overwrite)


def _cases(options: argparse.Namespace) -> list[Case]:
    found = cases.cases(
        options.operators, options.directions, options.resolutions, options.dtypes, options.grids, options.guides
    )
    if not found:
        asked = " ".join(options.operators), " ".join(spec.name for spec in options.grids)
        raise RefusalError(
            f"none of the operators ({asked[0]}) is used with the grids ({asked[1]}); see --help on --grids"
        )
    return found


def _fits(case: Case, device: torch.device) -> bool:
    return cases.memory(case) <= _MEMORY_SHARE * timing.free_memory(device)


def _plot(options: argparse.Namespace) -> int:
    if find_spec("matplotlib") is None:
        raise RefusalError(f"plots need matplotlib: {_REMEDY}")
    found = [row for path in options.plot for row in rows.read(path)]
    out = options.out or options.plot[0].parent
    paths = list(options.plot)
    if options.predict:
        paths.append(_predict(list(dict.fromkeys(map(rows.case_of, found))), options.predict, out))
    _draw(paths, out)
    return 0


def _predict(wanted: Sequence[Case], gpu: str, out: Path) -> Path:
    """Writes the predicted rows beside the measured ones."""
    file = rows.RowFile(out / f"predicted_{_slug(gpu)}.csv", overwrite=True)
    for case in _progress([case for case in wanted if _fits(case, torch.device("cpu"))], "predicted"):
        file.add(predict.row(case, gpu))
    return file.path


def _draw(paths: Sequence[Path], out: Path) -> None:
    """Draws what the files hold, so that drawing it again gives the same; where matplotlib is missing, says how to."""
    found = [row for path in paths for row in rows.read(path)]
    if not found:
        print("there are no rows to draw", file=sys.stderr)
    elif find_spec("matplotlib") is None:
        files = " ".join(map(str, paths))
        print(f"no plots: {_REMEDY}, then python -m perf.sweep --plot {files} --out {out}", file=sys.stderr)
    else:
        for path in plots.draw(found, out):
            print(path)


def main(given: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code: 0 done, 1 a wrong result, 2 refused, 130 interrupted."""
    try:
        options = _parser().parse_args(given)
        for name, value in (_QUICK if options.quick else _FULL).items():
            if getattr(options, name) is None:
                setattr(options, name, value)
        if options.predict and (arguments.is_interpreted() or find_spec("triton") is None):
            raise RefusalError(
                "--predict compiles the kernels: it needs triton, and TRITON_INTERPRET not to be set to 1"
            )
        return _plot(options) if options.plot else _sweep(options)
    except KeyboardInterrupt:
        print("perf.sweep: interrupted", file=sys.stderr)
        return 130
    except (RefusalError, rows.RowsError, OSError) as error:
        print(f"perf.sweep: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
