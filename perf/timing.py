"""How long something takes, on a CPU or a GPU, and what the machine itself can do: the bandwidth of a copy, the rate of float32 arithmetic."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

Work = Callable[[], object]

# Larger than the last-level cache of any machine here, so that what is copied comes from memory.
_COPIED_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
# Overwritten between runs, which empties the L2 cache, and takes a GPU so long that the host has queued the next run by then: the host's own time stays out.
_FLUSHED_BYTES = 2**30
_MATRIX = {"cpu": 1024, "cuda": 8192}
_MOST_REPEATS = 500


@dataclass(frozen=True)
class Times:
    """Seconds that the repeats of a piece of work took: their median, and the quantiles 0.2 and 0.8."""

    median: float
    q20: float
    q80: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> Times:
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0], len(seconds))
        cuts = statistics.quantiles(seconds, n=5, method="inclusive")
        return cls(statistics.median(seconds), cuts[0], cuts[3], len(seconds))


def measure(work: Work, device: torch.device, *, seconds: float, repeats: int) -> Times:
    """Repeats ``work`` for about ``seconds``, at least ``repeats`` times, after one run that is not counted.

    On a GPU, by events, the L2 cache being overwritten before each run.
    """
    work()
    return Times.of(
        _on_gpu(work, device, seconds, repeats) if device.type == "cuda" else _on_cpu(work, seconds, repeats)
    )


def take_turns(works: dict[str, Work], device: torch.device, repeats: int) -> dict[str, Times]:
    """The times of each work. All take turns in every round, in the opposite order in every second one; a first round is not counted.

    Between any two a cache is overwritten, so that none begins with what the one before it left there.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    rest = _rest()
    for turn in range(repeats + 1):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            if device.type == "cuda":
                run = _once_on_gpu(works[name], device)
            else:
                rest()
                run = _once_on_cpu(works[name])
            if turn:
                taken[name].append(run)
    return {name: Times.of(seconds) for name, seconds in taken.items()}


def _rest() -> Work:
    """Gives a function that overwrites a CPU's caches on one thread, while pools of threads that still spin from the work before come to rest."""
    flushed = np.empty(_COPIED_BYTES["cpu"], dtype=np.int8)
    return lambda: flushed.fill(0)


def finish(device: torch.device) -> None:
    """Waits until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _once_on_cpu(work: Work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _on_cpu(work: Work, seconds: float, repeats: int) -> list[float]:
    taken: list[float] = []
    while len(taken) < repeats or (sum(taken) < seconds and len(taken) < _MOST_REPEATS):
        taken.append(_once_on_cpu(work))
    return taken


def _events(work: Work, flushed: torch.Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Starts one run, and gives the events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flushed.zero_()
    start.record()
    work()
    end.record()
    return start, end


def _once_on_gpu(work: Work, device: torch.device) -> float:
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    start, end = _events(work, flushed)
    torch.cuda.synchronize(device)
    return 1e-3 * start.elapsed_time(end)


def _on_gpu(work: Work, device: torch.device, seconds: float, repeats: int) -> list[float]:
    once = max(_once_on_gpu(work, device), 1e-6)
    count = min(max(repeats, int(seconds / once)), _MOST_REPEATS)
    flushed = torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=device)
    events = [_events(work, flushed) for _ in range(count)]
    torch.cuda.synchronize(device)
    return [1e-3 * start.elapsed_time(end) for start, end in events]


@dataclass(frozen=True)
class Rate:
    """Work done, in bytes or in floating-point operations, and the time it took."""

    amount: int
    times: Times

    @property
    def per_second(self) -> float:
        return self.amount / self.times.median


def copy(device: torch.device, *, seconds: float = 0.5) -> Rate:
    """Bytes read and written by a plain copy from memory to memory."""
    source = torch.zeros(_COPIED_BYTES[device.type], dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    return Rate(2 * source.nbytes, measure(lambda: target.copy_(source), device, seconds=seconds, repeats=5))


def arithmetic(device: torch.device, *, seconds: float = 0.5) -> Rate:
    """Operations of a float32 matrix product without tensor cores: what the machine's ordinary arithmetic reaches (a multiplication and an addition are two)."""
    size = _MATRIX[device.type]
    left, right = (torch.rand(size, size, device=device) for _ in range(2))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        return Rate(2 * size**3, measure(lambda: left @ right, device, seconds=seconds, repeats=5))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def free_memory(device: torch.device) -> int:
    """Bytes that a new tensor may take."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33
