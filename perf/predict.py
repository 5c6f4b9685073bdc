"""A lower bound of an operator's time on a GPU that need not be there, from its bytes and its instructions.

The operator runs on CPU tensors with its launches recorded instead of made. A launch takes at least as long as its tensors' bytes take at the rate of a copy,
and at least as long as its instructions take to be issued, by every scheduler at every clock; launches follow one another. Latency, conflicts, launch overhead and
what torch's own kernels do in between are left out, so the real time is longer. Each kernel is compiled in the configuration that it would be launched in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perf import problems, rows, timing
from perf.cases import Case, Problem

if TYPE_CHECKING:
    from bilagrid.gpu._launch import Launch
    from perf import disassembly

_SCHEDULERS = 4  # of a multiprocessor, each issuing one instruction of a warp a clock
_WARP = 32


@dataclass(frozen=True)
class Gpu:
    """A GPU by its figures.

    Attributes:
        target: the architecture that its kernels are compiled for.
        bandwidth: bytes a second that a copy reaches.
        cache: bytes of its L2.
        peak: float32 operations a second without tensor cores, of the data sheet.
    """

    target: str
    bandwidth: float
    multiprocessors: int
    clock: float
    cache: float
    peak: float

    @property
    def issue_rate(self) -> float:
        """Warp instructions a second."""
        return self.multiprocessors * _SCHEDULERS * self.clock


GPUS = {
    "H200": Gpu("sm_90", 4.3e12, 132, 1.98e9, 50e6, 67e12),
    "H100": Gpu("sm_90", 3.0e12, 132, 1.98e9, 50e6, 67e12),
    "A100": Gpu("sm_80", 1.7e12, 108, 1.41e9, 40e6, 19.5e12),
    "RTX4090": Gpu("sm_89", 0.92e12, 128, 2.52e9, 72e6, 82.6e12),
}


def row(case: Case, name: str) -> rows.Row:
    """The case's predicted time on the GPU of that name."""
    gpu = GPUS[name]
    problem = problems.problem(case, torch.device("cpu"))
    launches, outside = _record(case, problem, gpu.target)
    seconds = sum(
        max(moved / gpu.bandwidth, _warp_instructions(launch, gpu.target) / gpu.issue_rate)
        for launch, moved in zip(launches, _bytes(launches, outside, gpu.cache), strict=True)
    )
    here = rows.versions()
    machine = rows.Machine(
        device=name, **here, backend="triton", copy_bytes_per_s=gpu.bandwidth, peak_flops_per_s=gpu.peak
    )
    return rows.row_of(case, problem, machine, rows.PREDICTED, timing.Times(seconds, seconds, seconds, repeats=0))


def _record(case: Case, problem: Problem, target: str) -> tuple[list[Launch], set[int]]:
    """What the case would launch, and the storages that it reads or fills which exist before or after it."""
    from bilagrid.gpu import _launch, _regime
    from bilagrid.ops import _backend

    with _backend.override("gpu"), _regime.override(architecture=target), _launch.record() as launches:
        if case.direction == "forward":
            tensors = [*problem.tensors.values(), problem.run(problem.tensors)]
        else:
            leaves = problem.leaves()
            out = problem.run(leaves)
            grad = torch.empty_like(out)
            saved = [tensor for launch in launches for tensor in _tensors(launch)]
            launches.clear()
            tensors = [*saved, grad, *torch.autograd.grad(out, list(leaves.values()), grad)]
    return launches, {_storage(tensor) for tensor in tensors}


def _tensors(launch: Launch) -> list[Tensor]:
    return [value for value in launch.arguments.values() if isinstance(value, Tensor)]


def _sizes(launch: Launch) -> dict[int, int]:
    """Bytes of each storage that a launch goes through: of a bank those of the grids that its index names."""
    sizes = {_storage(tensor): tensor.numel() * tensor.element_size() for tensor in _tensors(launch)}
    bank, index = launch.arguments.get("grid_ptr"), launch.arguments.get("index_ptr")
    if isinstance(bank, Tensor) and isinstance(index, Tensor):
        sizes[_storage(bank)] = bank[0].numel() * bank.element_size() * min(len(bank), index.numel())
    return sizes


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(launches: Sequence[Launch], outside: set[int], cache: float) -> list[int]:
    """What each launch moves from and to memory.

    A tensor that the cache does not hold moves in every launch. Of the smaller ones, those that come from outside or go there move once, and those
    between two launches not at all.
    """
    moved = []
    for launch in launches:
        sizes = _sizes(launch)
        moved.append(sum(size for storage, size in sizes.items() if size > cache or storage in outside))
        outside = outside - {storage for storage, size in sizes.items() if size <= cache}
    return moved


_compiled: dict[str, disassembly.Program] = {}


def _warp_instructions(launch: Launch, target: str) -> float:
    """That a launch issues in all, by the disassembly of its kernel."""
    from perf import disassembly, static

    config = launch.config
    variant = f"{target} {launch.kernel.__name__} {config} {static.specialise(launch)}"
    if variant not in _compiled:
        _compiled[variant] = disassembly.read(static.compile_launch(launch, config, target))
    dealt = static.share(launch, config)
    return dealt.count * dealt.each(_compiled[variant], static.lanes(config, target)) / _WARP
