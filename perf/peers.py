"""Times other implementations beside ours, in one process, on the same inputs: ``python -m perf.peers``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Annotated

import torch
from torch import Tensor

from perf import arguments, cases, checks, problems, rows, timing
from perf.adapters import PEERS, Peer
from perf.arguments import Device, Out, Resolutions, Threads
from perf.cases import BOTH, Case, Problem
from perf.inputs import GUIDES
from perf.rows import Machine

_GRID, _FILTER_GRID = "16x16x8", "sigma8"
# On a GPU the sizes that the goals and fused-bilagrid's published times are for.
_RESOLUTIONS = {"cpu": [cases.RESOLUTIONS["1080p"]], "cuda": [cases.RESOLUTIONS["4k"], (3000, 4000)]}
# The size of Halide's published times, and one for peers that hold every pixel's whole window in memory.
_FILTERED = {"cpu": [(1536, 2560), (256, 256)], "cuda": [(1536, 2560), cases.RESOLUTIONS["1080p"]]}
_FORWARD, _BACKWARD = cases.DIRECTIONS

# In dB below the largest value. Published grids round each pixel to a node and come within 42 dB of the exact filter. A grid's derivative by the guide is
# constant between nodes, and so comes within 29 to 33 dB only.
_LEAST_PSNR, _LEAST_PSNR_OF_GRADIENTS = 40.0, 28.0


@dataclass(frozen=True)
class Comparison:
    """A forward case on a kind of lattice, and the peers that are compared on it."""

    case: Case
    kind: str
    peers: tuple[Peer, ...]

    @property
    def ours(self) -> str:
        """Our name in rows. On another kind of lattice it is not what `perf.sweep` measures, and has another name."""
        return rows.OURS if self.kind == cases.CELL_CENTERED else f"{rows.OURS}-{self.kind}"

    def problem(self, device: torch.device) -> Problem:
        """The case's problem, with the image in the peers' layout if that is (H, W, 3), so that nobody has to copy it."""
        problem = problems.problem(self.case, device, kind=self.kind)
        if self.case.operator != "slice_apply_luma":
            return problem
        image = problem.tensors["image"].permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return replace(problem, tensors={**problem.tensors, "image": image})


def comparisons(
    peers: Sequence[Peer], resolutions: Sequence[tuple[int, int]], filtered: Sequence[tuple[int, int]], guide: str
) -> list[Comparison]:
    """A comparison for each operator, kind of lattice and size that one of the peers is for."""
    found = []
    for operator, kind in dict.fromkeys((peer.operator, peer.kind) for peer in peers):
        here = tuple(peer for peer in peers if (peer.operator, peer.kind) == (operator, kind))
        filters = operator.startswith("bilateral_filter")
        for image in filtered if filters else resolutions:
            case = Case(operator, _FORWARD, guide, "float32", image, _FILTER_GRID if filters else _GRID)
            found.append(Comparison(case, kind, here))
    return found


def agree(peer: Peer, case: Case, theirs: Problem, ours: Problem) -> None:
    """Raises `checks.WrongResultError` if the peer's output is not ours, or its gradients, if it has any."""

    def near(what: str, actual: Tensor, expected: Tensor) -> None:
        is_output = what == checks.OUTPUT
        if peer.exact:
            checks.close(what, actual, expected, checks.TOLERANCE[case.dtype], kinks=not is_output, of="ours")
        else:
            least = _LEAST_PSNR if is_output else _LEAST_PSNR_OF_GRADIENTS
            checks.similar(what, actual, expected, least, of="ours")

    checks.compare(theirs, ours, near, gradients=peer.gradients)


@dataclass(frozen=True)
class Session:
    """What all comparisons of a run share; rows go to ``file``."""

    device: torch.device
    machine: Machine
    repeats: int
    file: rows.RowFile | None = None

    def compare(self, comparison: Comparison) -> list[str]:
        """Checks, times and prints a comparison; returns what was wrong."""
        case = comparison.case
        try:
            checks.check(replace(case, direction=_BACKWARD), self.device, kind=comparison.kind)
        except checks.WrongResultError as error:
            return [f"{comparison.ours}: {error}"]
        ours = comparison.problem(self.device)
        agreed, wrong = self._check(comparison, ours)
        for direction in (_FORWARD, BOTH, _BACKWARD):
            peers = {peer: run for peer, run in agreed.items() if peer.gradients or direction == _FORWARD}
            if peers:
                try:
                    self._time(comparison, direction, ours, peers)
                except torch.OutOfMemoryError:
                    wrong.append(f"{replace(case, direction=direction)}: memory ran out")
        return wrong

    def _check(self, comparison: Comparison, ours: Problem) -> tuple[dict[Peer, Problem], list[str]]:
        """The peers that agree with ours, and what was wrong with others."""
        case = comparison.case
        agreed: dict[Peer, Problem] = {}
        wrong = []
        for peer in comparison.peers:
            if reason := peer.too_large(case, self.device):
                print(f"\n{peer.name} is left out of {case}: {reason}")
                continue
            try:
                theirs = replace(ours, run=peer.prepare(case, ours))
                agree(peer, case, theirs, ours)
                agreed[peer] = theirs
            except checks.WrongResultError as error:
                wrong.append(f"{peer.name} disagrees, {case}: {error}")
            except Exception as error:  # one that fails must not cost the others their times
                wrong.append(f"{peer.name} fails, {case}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return agreed, wrong

    def _time(self, comparison: Comparison, direction: str, ours: Problem, peers: dict[Peer, Problem]) -> None:
        case = replace(comparison.case, direction=direction)
        implementations = {comparison.ours: ours} | {peer.name: theirs for peer, theirs in peers.items()}
        works = {
            name: cases.step(problem) if direction == BOTH else cases.work(case, problem)
            for name, problem in implementations.items()
        }
        times = timing.take_turns(works, self.device, self.repeats)
        moved = cases.cost(case, ours.sizes).bytes
        aims = {peer.name: peer.goal(self.device.type, direction, case.image) for peer in peers}
        print(table(str(case), times, moved, self.machine.copy_bytes_per_s, aims))
        if self.file:
            machines = {peer.name: replace(self.machine, backend=peer.version) for peer in peers}
            for name, taken in times.items():
                self.file.add(rows.row_of(case, ours, machines.get(name, self.machine), name, taken))


def table(title: str, times: dict[str, timing.Times], moved: int, copied: float, aims: dict[str, float | None]) -> str:
    """The times in milliseconds, over the first one's, and as a share of the speed of a copy; and the ratio to the first one's that is aimed at."""
    first = next(iter(times.values())).median
    lines = ["", f"{title}: {moved / 1e6:.4g} MB must move"]
    lines.append(f"{'':26}{'median ms':>10}{'0.2 to 0.8 quantile':>24}{'of ours':>10}{'of a copy':>12}  goal")
    for name, taken in times.items():
        low, middle, high = (f"{1e3 * value:.4g}" for value in (taken.q20, taken.median, taken.q80))
        ratio, share = f"{taken.median / first:.2f}x", f"{100 * moved / taken.median / copied:.3g} %"
        aim = aims.get(name)
        goal = "" if aim is None else f"  {aim:.3g}x, {'reached' if taken.median >= aim * first else 'missed'}"
        lines.append(f"{name:26}{middle:>10}{f'{low} to {high}':>24}{ratio:>10}{share:>12}{goal}")
    return "\n".join(lines)


_Only = Annotated[list[str] | None, {"nargs": "+", "choices": [peer.name for peer in PEERS], "metavar": "PEER"}]
_Rounds = Annotated[int, {"type": arguments.count("rounds")}]
_Guide = Annotated[str | None, {"choices": GUIDES}]


def peers(
    *,
    only: _Only = None,
    repeats: _Rounds = 9,
    threads: Threads = None,
    resolution: Resolutions = None,
    guide: _Guide = None,
    device: Device = None,
    out: Out = None,
    overwrite: bool = False,
) -> int:
    """Times other implementations of slice_apply and of the bilateral filter beside ours. Each runs if it is installed. Before
    anything is timed, ours is checked against a plain float64 computation and each peer against ours; a peer that disagrees is
    reported, never timed, and the exit code is then 1. All take turns, in the opposite order in every second round, and a cache is
    overwritten between any two.

    A table for each comparison gives the medians, the quantiles 0.2 and 0.8, each median over ours, the speed of the bytes that
    must move as a share of a copy's in the same run, and the ratio aimed at if there is one. Images are float32, grids 16x16x8 with
    12 channels; filters have a sigma of 8 pixels and 0.1.

    examples:
      python -m perf.peers --threads 2 --repeats 5
      python -m perf.peers --only grid_sample opencv
      PYTHONPATH=gsplat/examples python -m perf.peers --only lib_bilagrid --resolution 840x1296
      python -m perf.peers --out perf/results/a && python -m perf.sweep --plot perf/results/a/*.csv --out perf/results/a
          draws the peers as marks beside what perf.sweep measured

    Args:
        only: leave out the others
        repeats: rounds that are counted (default: %(default)s)
        threads: on the CPU, for all (default: torch's choice)
        resolution: of slice_apply: 256, 512, 1080p, 4k, 8k or HEIGHTxWIDTH (default: 1080p; on a GPU 4k and 3000x4000). The filter's are fixed
        guide: default: photograph, which comes with scikit-image, or random without it
        out: write DIR/peers.csv, which perf.sweep --plot draws
        overwrite: replace DIR/peers.csv
    """
    on = arguments.device(device, threads)
    # Halide reads it when its first function runs.
    os.environ["HL_NUM_THREADS"] = str(torch.get_num_threads())
    path = arguments.new_file(out, "peers.csv", overwrite)
    file = None if path is None else rows.RowFile(path, overwrite=True)
    machine = rows.this_machine(on)
    print(
        f"{machine.device}, torch {machine.torch}, {machine.backend} {getattr(machine, machine.backend)}: "
        f"a copy moves {machine.copy_bytes_per_s / 1e9:.4g} GB/s"
    )
    here = []
    for peer in (peer for peer in PEERS if only is None or peer.name in only):
        if reason := peer.why_not(on):
            print(f"{peer.name} {reason}")
        else:
            here.append(peer)
            print(f"{peer.name}: {peer.version}{f', {note}' if (note := _note(peer)) else ''}")
    session = Session(on, machine, repeats, file)
    guide = guide or ("photograph" if find_spec("skimage") else "random")
    wrong = []
    for each in comparisons(here, resolution or _RESOLUTIONS[on.type], _FILTERED[on.type], guide):
        wrong += session.compare(each)
    for message in wrong:
        print(f"not timed: {message}", file=sys.stderr)
    return 1 if wrong else 0


def _note(peer: Peer) -> str:
    try:
        return peer.note()
    except Exception as error:  # a peer that cannot be imported is reported when it has its turn
        return f"{type(error).__name__}: {error}"


_LISTED = "".join(f"\n  {peer.name:26}{peer.about}{f' ({peer.remedy})' if peer.remedy else ''}" for peer in PEERS)
main = arguments.command(peers, f"\n\npeers:{_LISTED}")

if __name__ == "__main__":
    sys.exit(main())
