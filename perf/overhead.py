"""What a call costs in Python and torch, whatever its kernels take: ``python -m perf.overhead``."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

import bilagrid
from bilagrid.gpu import _launch, _regime
from bilagrid.ops import _backend
from perf import arguments

# Rows of so many pixels that HDRNet's grid is coarse beside them.
_WIDTH = 768

_TARGET = "sm_90"


def _filter(image: Tensor) -> Tensor:
    return bilagrid.bilateral_filter(image, sigma_space=4, sigma_color=0.2, guide_range=(0.0, 1.0))


_GRID, _GUIDE, _IMAGE = (1, 12, 8, 16, 16), (1, 2, _WIDTH), (1, 3, 2, _WIDTH)

USES: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]] = {
    "splat": (lambda values, guide: bilagrid.splat(values, guide, (8, 16, 16)), (_IMAGE, _GUIDE)),
    "blur": (lambda grid: bilagrid.blur(grid, 1.0), (_GRID,)),
    "slice": (bilagrid.slice, (_GRID, _GUIDE)),
    "slice_apply": (bilagrid.slice_apply, (_GRID, _GUIDE, _IMAGE)),
    "slice_points": (bilagrid.slice_points, (_GRID, (2, _WIDTH, 3))),
    "slice_apply by luma": (bilagrid.slice_apply, (_GRID, None, _IMAGE)),
    "curves": (bilagrid.curves, (_IMAGE, (3, 3), (3,), (3, 16), (3, 16), (3,), (1,))),
    "total_variation": (bilagrid.total_variation, (_GRID,)),
    "bilateral_filter": (_filter, (_IMAGE,)),
}


def microseconds(
    call: Callable[[], Any], *, clock: Callable[[], float] = time.thread_time, calls: int = 50, repeats: int = 40
) -> float:
    """The least time that a call takes, of ``repeats`` times ``calls``."""
    call()
    least = float("inf")
    for _ in range(repeats):
        start = clock()
        for _ in range(calls):
            call()
        least = min(least, (clock() - start) / calls)
    return round(1e6 * least, 1)


def measure(function: Callable[..., Tensor], shapes: tuple[Any, ...]) -> dict[str, float]:
    """Each part of what a call costs, by its name."""

    def caller(device: str) -> Callable[[], Tensor]:
        tensors = [None if shape is None else torch.rand(shape, device=device).requires_grad_() for shape in shapes]
        return lambda: function(*tensors)

    def rehearse() -> None:
        launches.clear()
        call()

    def find_compiled() -> None:
        for launch in launches:
            launch.compile()

    found = {"meta": microseconds(caller("meta"))}
    with _backend.override("gpu"), _regime.override(architecture=_TARGET), _launch.record() as launches:
        call = caller("cpu")
        found["launcher"] = microseconds(rehearse)
    found["triton"] = microseconds(find_compiled)
    found["launches"] = len(launches)
    if not torch.cuda.is_available():
        with _backend.override("gpu"), _regime.override(architecture=_TARGET):
            found["plan"] = microseconds(caller("cpu"))
        found["cpu"] = microseconds(caller("cpu"))
    else:
        found["gpu"] = microseconds(caller("cuda"), clock=time.perf_counter)
        torch.cuda.synchronize()
    return found


class StandIn:
    """A driver for a GPU that need not be there: Triton compiles for it, and ``started`` is called where a kernel would be, its function being its name."""

    def __init__(self, started: Callable[..., Any] = lambda *arguments: None) -> None:
        self.started = started
        self.utils = self

    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)
    get_device_properties = staticmethod(lambda device: {"max_shared_mem": 227 << 10})
    load_binary = staticmethod(lambda name, kernel, shared, device: (None, name, 0, 0, 1024))

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., Any]:
        return self.started


def overhead() -> None:
    """Prints what a call costs in Python and torch, whatever its kernels take, in microseconds.

    Operators are called forward, on tensors that need gradients, of so few pixels that kernels hardly count:

    - meta: on tensors without data, so checks, autograd and dispatch;
    - launcher: the same with the GPU's launcher, whose launches are recorded instead of made;
    - triton: Triton's way from those launches to their compiled kernels, which it goes at every launch. The driver's own part is not in it;
    - plan: the whole call by a plan, on tensors that need gradients, up to the driver; measured where there is no GPU;
    - cpu: on CPU tensors, kernels and all; measured where there is no GPU;
    - gpu: on a GPU where there is one, until the call returns, which is before the GPU is done. The others are the CPU time of this thread.

    Each is the least of several repeats. A CUDA graph takes all of it away.
    """
    arguments.check_compiled("the interpreter is all that would be measured")
    if not torch.cuda.is_available():
        triton.runtime.driver.set_active(StandIn())
    for number, (name, (function, shapes)) in enumerate(USES.items()):
        found = measure(function, shapes)
        if number == 0:
            print("".ljust(20), *(part.rjust(9) for part in found))
        print(name.ljust(20), *(f"{value:9}" for value in found.values()))
        sys.stdout.flush()


main = arguments.command(overhead)

if __name__ == "__main__":
    sys.exit(main())
