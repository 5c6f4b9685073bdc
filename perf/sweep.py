"""Every operator's speed on this machine, beside that of a copy: ``python -m perf.sweep``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch

from bilagrid.commands import Refusal
from perf import arguments, cases, checks, plots, predict, problems, rows, timing
from perf.arguments import Device, Out, Resolutions, Threads, argument
from perf.cases import Case, GridSpec
from perf.inputs import GUIDES
from perf.rows import Machine, Row


@dataclass(frozen=True)
class _Plan:
    """What is measured by default."""

    resolutions: Sequence[tuple[int, int]]
    dtypes: Sequence[str]
    grids: Sequence[GridSpec]
    guides: Sequence[str]
    seconds: float


_QUICK = _Plan(
    resolutions=[cases.RESOLUTIONS[name] for name in ("256", "512", "1080p")],
    dtypes=["float32"],
    grids=[GridSpec.parse(name) for name in ("16x16x8", "sigma8")],
    guides=["photograph"],
    seconds=0.05,
)
_FULL = _Plan(
    resolutions=list(cases.RESOLUTIONS.values()),
    dtypes=list(cases.DTYPES),
    grids=[GridSpec.parse(name) for name in ("16x16x8", "64x64x8", "sigma4", "sigma8")],
    guides=list(GUIDES),
    seconds=0.5,
)
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


_Operators = Annotated[Sequence[str], {"nargs": "+", "choices": cases.OPERATORS, "metavar": "OPERATOR"}]
_Directions = Annotated[Sequence[str], {"nargs": "+", "choices": cases.DIRECTIONS, "metavar": "DIRECTION"}]
_Dtypes = Annotated[list[str] | None, {"nargs": "+", "choices": cases.DTYPES, "metavar": "DTYPE"}]
_Grids = Annotated[list[GridSpec] | None, {"nargs": "+", "type": argument(GridSpec.parse), "metavar": "GRID"}]
_Guides = Annotated[list[str] | None, {"nargs": "+", "choices": GUIDES, "metavar": "GUIDE"}]
_Seconds = Annotated[float | None, {"type": argument(_seconds)}]
_Gpu = Annotated[str | None, {"choices": predict.GPUS, "metavar": "GPU"}]
_Files = Annotated[list[Path] | None, {"nargs": "+", "type": Path, "metavar": "ROWS"}]


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
    problem = problems.problem(case, device)
    times = timing.measure(cases.work(case, problem), device, seconds=seconds, repeats=_LEAST_REPEATS)
    return rows.row_of(case, problem, machine, rows.OURS, times)


def sweep(
    *,
    quick: bool = False,
    operators: _Operators = cases.OPERATORS,
    directions: _Directions = cases.DIRECTIONS,
    resolutions: Resolutions = None,
    dtypes: _Dtypes = None,
    grids: _Grids = None,
    guides: _Guides = None,
    device: Device = None,
    threads: Threads = None,
    seconds: _Seconds = None,
    out: Out = None,
    resume: bool = False,
    overwrite: bool = False,
    predict_: _Gpu = None,
    plot: _Files = None,
) -> int:
    """Measures every operator and filter, forward and backward, on the GPU if there is one and else on the CPU. A function that has several
    methods is measured by its default. Each result is first checked against a plain float64 computation; a wrong one is reported, never timed,
    and the exit code is then 1. A speed is that of the bytes that an operator must move, and stands beside that of a copy in the same run. Measured are all
    combinations of operators, directions, resolutions, dtypes, grids and guides that make sense.

    OUT gets rows.csv, a row as soon as it is measured, and the plots throughput_*.png (against resolution) and roofline_*.png
    (against arithmetic intensity), each also as .svg. Ctrl-C keeps what there is, draws it and exits with 130.

    examples:
      python -m perf.sweep --quick
          a few sizes in float32 on a photograph: under a minute on two cores once the kernels are compiled
      python -m perf.sweep --operators slice_apply --resolutions 1080p 4k 1200x1600 --grids 16x16x8 --dtypes float32 float16
      python -m perf.sweep --resume
          continues an interrupted run
      python -m perf.sweep --quick --predict H100
          also draws dashed lines: what an H100 would need at the least; needs no GPU
      python -m perf.sweep --plot a/rows.csv b/rows.csv --out plots
          draws plots again, from rows alone

    Args:
        quick: measure a representative part; other options still hold
        operators: %(choices)s
        directions: forward; backward: the gradients by every tensor
        resolutions: 256, 512, 1080p, 4k, 8k or HEIGHTxWIDTH; what memory does not hold is left out
        dtypes: %(choices)s
        grids: GWxGHxD with 12 channels, for all but blur and the filters; sigmaN, a filter's grid with a node every N pixels, for those, splat and
            slice (default: 16x16x8 64x64x8 sigma4 sigma8)
        guides: %(choices)s
        seconds: to repeat each case for; at least 3 times (default: 0.5)
        out: default: perf/results/<device>
        resume: keep the rows in OUT and measure what they lack, on this device with these versions
        overwrite: drop the rows in OUT
        predict_: also draw a lower bound of the times on a named GPU, computed without it (none of colorize, whose steps depend on the image): %(choices)s
        plot: measure nothing, only draw the rows of these CSV files into OUT
    """
    if resume and overwrite:
        raise Refusal("--overwrite is not allowed with --resume")
    if predict_ and (arguments.is_interpreted() or find_spec("triton") is None):
        raise Refusal("--predict compiles the kernels: it needs triton, and TRITON_INTERPRET not to be set to 1")
    if plot:
        _plot(plot, out or plot[0].parent, predict_)
        return 0
    named = {"resolutions": resolutions, "dtypes": dtypes, "grids": grids, "guides": guides, "seconds": seconds}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    plan = replace(_QUICK if quick else _FULL, **given)
    on = _device(device, threads, plan.guides)
    every = _cases(operators, directions, plan)
    folder = out or Path("perf/results") / _slug(timing.device_name(on))
    if (folder / "rows.csv").exists() and not overwrite and not resume:
        remedy = "--resume adds what it lacks, --overwrite replaces it, --out names another"
        raise Refusal(f"{folder / 'rows.csv'} exists: {remedy}")
    return _sweep(every, on, plan.seconds, rows.RowFile(folder / "rows.csv", overwrite=overwrite), predict_)


def _sweep(every: Sequence[Case], device: torch.device, seconds: float, file: rows.RowFile, gpu: str | None) -> int:
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
                file.add(time_case(case, machine, device, seconds=seconds))
            except checks.WrongResultError as error:
                wrong.append(str(error))
            except torch.OutOfMemoryError:
                left_out.append(f"{case}: memory ran out")
                torch.cuda.empty_cache()
            except Exception as error:  # one that fails must not cost the others their rows
                wrong.append(f"{case}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        if gpu:
            paths.append(_predict(every, gpu, file.path.parent))
    except KeyboardInterrupt:
        interrupted = True
    for message in left_out:
        print(f"left out: {message}", file=sys.stderr)
    for message in wrong:
        print(f"wrong, not timed: {message}", file=sys.stderr)
    if interrupted:
        print(f"interrupted: {len(file.rows)} rows are kept, --resume goes on", file=sys.stderr)
    _draw(paths, file.path.parent)
    return 130 if interrupted else 1 if wrong else 0


def _device(name: str | None, threads: int | None, guides: Sequence[str]) -> torch.device:
    """The device asked for, with what the cases need at hand."""
    device = arguments.device(name, threads)
    if "photograph" in guides and find_spec("skimage") is None:
        raise Refusal(f"the photograph comes with scikit-image: {_REMEDY}; or --guides random")
    return device


def _cases(operators: Sequence[str], directions: Sequence[str], plan: _Plan) -> list[Case]:
    found = cases.cases(operators, directions, plan.resolutions, plan.dtypes, plan.grids, plan.guides)
    if not found:
        grids = " ".join(spec.name for spec in plan.grids)
        raise Refusal(
            f"none of the operators ({' '.join(operators)}) is used with the grids ({grids}); see --help on --grids"
        )
    return found


def _fits(case: Case, device: torch.device) -> bool:
    return cases.memory(case) <= _MEMORY_SHARE * timing.free_memory(device)


def _plot(files: Sequence[Path], out: Path, gpu: str | None) -> None:
    if find_spec("matplotlib") is None:
        raise Refusal(f"plots need matplotlib: {_REMEDY}")
    found = [row for path in files for row in rows.read(path) if row.direction in cases.DIRECTIONS]
    paths = list(files)
    if gpu:
        paths.append(_predict(list(dict.fromkeys(map(rows.case_of, found))), gpu, out))
    _draw(paths, out)


def _predict(wanted: Sequence[Case], gpu: str, out: Path) -> Path:
    """Writes the predicted rows beside the measured ones."""
    file = rows.RowFile(out / f"predicted_{_slug(gpu)}.csv", overwrite=True)
    wanted = [case for case in wanted if case.operator not in cases.SOLVED and _fits(case, torch.device("cpu"))]
    for case in _progress(wanted, "predicted"):
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


main = arguments.command(sweep)

if __name__ == "__main__":
    sys.exit(main())
