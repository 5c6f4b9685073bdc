"""What only a GPU can show of the operators: ``python -m perf.gpu_checks``, each check by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Annotated

import torch
from torch import Tensor

import bilagrid
from bilagrid import Lattice
from bilagrid.commands import Refusal
from perf import arguments, cases, checks, problems, timing
from perf.cases import Case, GridSpec, Problem, Tensors
from perf.inputs import Draw

# Sizes with partial tiles everywhere. Grids of 12 channels are fine on the narrow image and coarse on the wide one.
_ODD = ((37, 61), (5, 1031))
_ODD_GRIDS = ("4x3x5", "sigma4")
_WHOLE = ((1080, 1920),)
_WHOLE_GRIDS = ("16x16x8", "sigma8")
_PROFILED = (2160, 3840)

# Rows and columns: three channels, or twelve channels at half the rows and columns, have more than 2³¹ elements.
_LARGE = 27000
_LARGE_BYTES = 48 * 2**30
_TILE, _STRIP = 500, 1000
_CYCLES = 50_000_000

_NOT_DONE = 77


class NotDoneError(Exception):
    """A check cannot be done here, for what it lacks."""


def _every(
    device: torch.device,
    images: Sequence[tuple[int, int]],
    grids: Sequence[str],
    dtypes: Sequence[str] = ("float32",),
    edits: Sequence[str] = (),
) -> Iterator[tuple[Case, Problem]]:
    """Every operator, and the ``edits`` that are named, on every image with a random guide; backward, which includes forward."""
    specs = [GridSpec.parse(name) for name in grids]
    operators = [name for name in cases.OPERATORS if name not in cases.EDITS or name in edits]
    for case in cases.cases(operators, ("backward",), images, dtypes, specs, ("random",)):
        yield case, problems.problem(case, device)


def _outcome(problem: Problem, grad: Tensor | None = None) -> list[Tensor]:
    """The output, and the gradient by every tensor."""
    leaves = problem.leaves()
    out = problem.run(leaves)
    grads = torch.autograd.grad(out, list(leaves.values()), cases.incoming(out) if grad is None else grad)
    return [out.detach(), *grads]


def _same_bits(case: Case, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if not torch.equal(one, other):
            what = f"gradient {number}" if number else checks.OUTPUT
            raise checks.WrongResultError(f"{case}: {what} has other bits in {int((one != other).sum())} values")


def _others(problem: Problem) -> Tensors:
    """Tensors of the same kind with other values."""
    return {name: torch.rand_like(tensor) for name, tensor in problem.tensors.items()}


def correct(device: torch.device) -> None:
    """every operator and gradient is the float64 reference's, in every type, on odd sizes, coarse and fine"""
    for case, _ in _every(device, _ODD, _ODD_GRIDS, tuple(cases.DTYPES), cases.EDITS):
        checks.check(case, device)


def touched(device: torch.device) -> None:
    """every operator forward and backward on odd sizes, coarse and fine, and nothing else: for a sanitizer"""
    for _, problem in _every(device, _ODD, _ODD_GRIDS):
        _outcome(problem)
    timing.finish(device)


def twice(device: torch.device) -> None:
    """two runs give the same bits"""
    for images, grids in ((_ODD, _ODD_GRIDS), (_WHOLE, _WHOLE_GRIDS)):
        for case, problem in _every(device, images, grids, tuple(cases.DTYPES), cases.EDITS):
            first = _outcome(problem)
            _same_bits(case, _outcome(problem), first)


def stream(device: torch.device) -> None:
    """on a stream of the caller's that is behind the others, nothing is read too early"""
    side = torch.cuda.Stream(device)
    for case, problem in _every(device, _ODD, _ODD_GRIDS):
        expected = _outcome(problem)
        late = replace(problem, tensors=_others(problem))
        grad = cases.incoming(expected[0])
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            torch.cuda._sleep(_CYCLES)
            for name, tensor in late.tensors.items():
                tensor.copy_(problem.tensors[name])
            found = _outcome(late, grad)
        side.synchronize()
        _same_bits(case, found, expected)


def graph(device: torch.device) -> None:
    """a CUDA graph captures forward and backward, and replays them on other inputs"""
    for case, problem in _every(device, _ODD, _ODD_GRIDS):
        expected = _outcome(problem)
        grad = cases.incoming(expected[0])
        held = replace(problem, tensors=_others(problem))
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            _outcome(held, grad)
        torch.cuda.current_stream(device).wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            found = _outcome(held, grad)
        for name, tensor in held.tensors.items():
            tensor.copy_(problem.tensors[name])
        captured.replay()
        timing.finish(device)
        _same_bits(case, found, expected)


def compiled(device: torch.device) -> None:
    """torch.compile takes every operator whole, and gives what eager does"""
    for case, problem in _every(device, _ODD[:1], _ODD_GRIDS):
        whole = replace(problem, run=torch.compile(problem.run, fullgraph=True))

        def near(what: str, actual: Tensor, expected: Tensor, case: Case = case) -> None:
            tolerance = checks.TOLERANCE[case.dtype]
            checks.close(f"{case}: {what}", actual, expected, tolerance, kinks=what != checks.OUTPUT, of="eager's")

        checks.compare(whole, problem, near, gradients=True)


def large(device: torch.device) -> None:
    """tensors of more than 2³¹ elements: slice_apply and its gradients, slice, splat, beside tiles of them"""
    if timing.free_memory(device) < _LARGE_BYTES:
        raise NotDoneError(f"needs {_LARGE_BYTES / 2**30:g} GiB of free memory")
    _large_slice_apply(device)
    _large_slice_and_splat(device)


def _ends(extent: int, tile: int) -> tuple[int, int]:
    return 0, extent - tile


def _large_slice_apply(device: torch.device) -> None:
    draw = Draw.on(device)
    lattice = Lattice.cell_centered((8, 16, 16), (_LARGE, _LARGE))
    grid = draw.normal(1, 12, *lattice.size)
    image, guide = draw.uniform(1, 3, _LARGE, _LARGE), draw.uniform(1, _LARGE, _LARGE)
    assert image.numel() > 2**31

    def whole(rows: slice, columns: slice, at: Lattice) -> tuple[Tensor, list[Tensor]]:
        leaves = [grid, guide[:, rows, columns].contiguous(), image[..., rows, columns].contiguous()]
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        out = bilagrid.slice_apply(*leaves, lattice=at)
        return out.detach(), list(torch.autograd.grad(out, leaves, torch.ones((), device=device).expand(out.shape)))

    everything = slice(None)
    out, (by_grid, by_guide, by_image) = whole(everything, everything, lattice)
    for top in _ends(_LARGE, _TILE):
        for left in _ends(_LARGE, _TILE):
            rows, columns = slice(top, top + _TILE), slice(left, left + _TILE)
            tile, (_, guide_tile, image_tile) = whole(rows, columns, lattice.crop(top, left))
            _near("slice_apply", out[..., rows, columns], tile)
            _near("slice_apply by guide", by_guide[:, rows, columns], guide_tile)
            _near("slice_apply by image", by_image[..., rows, columns], image_tile)
    del out, by_guide, by_image
    total = torch.zeros_like(by_grid, dtype=torch.float64)
    for top in range(0, _LARGE, _STRIP):
        total += whole(slice(top, top + _STRIP), everything, lattice.crop(top, 0))[1][0].double()
    _near("slice_apply by grid", by_grid, total)


def _large_slice_and_splat(device: torch.device) -> None:
    draw = Draw.on(device)
    lattice = Lattice.cell_centered((8, 16, 16), (_LARGE // 2, _LARGE // 2))
    grid, guide = draw.normal(1, 12, *lattice.size), draw.uniform(1, *lattice.image_size)
    sliced = bilagrid.slice(grid, guide, lattice=lattice)
    assert sliced.numel() > 2**31
    splatted = bilagrid.splat(sliced, guide, lattice.size, lattice=lattice)
    total = torch.zeros_like(splatted, dtype=torch.float64)
    for top in range(0, guide.shape[1], _STRIP):
        rows, at = slice(top, top + _STRIP), lattice.crop(top, 0)
        strip = bilagrid.slice(grid, guide[:, rows].contiguous(), lattice=at)
        _near("slice", sliced[:, :, rows], strip)
        total += bilagrid.splat(strip, guide[:, rows].contiguous(), lattice.size, lattice=at).double()
    _near("splat", splatted, total)


def _near(what: str, actual: Tensor, expected: Tensor) -> None:
    # A tile does not change a pixel's z, so no pixel changes its side of a kink.
    checks.close(f"large {what}", actual, expected, checks.TOLERANCE["float32"], kinks=False, of="tiles'")


def _profiled(device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """The operators that matter most, on a photograph at 4K."""
    guide = "photograph" if find_spec("skimage") else "random"
    for operator, grid in (
        ("slice_apply", "16x16x8"),
        ("slice", "16x16x8"),
        ("splat", "16x16x8"),
        ("bilateral_filter_gray", "sigma8"),
    ):
        for direction in cases.DIRECTIONS:
            case = Case(operator, direction, guide, "float32", _PROFILED, grid)
            yield str(case), cases.work(case, problems.problem(case, device))


def profile(device: torch.device) -> None:
    """each kernel's share of the time at 4K, by torch.profiler"""
    for name, work in _profiled(device):
        work()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as taken:
            for _ in range(10):
                work()
            timing.finish(device)
        total = timing.measure(work, device, seconds=0.05, repeats=5)
        print(f"\n{name}: {1e6 * total.median:.1f} us by events")
        events = [event for event in taken.key_averages() if event.self_device_time_total]
        for event in sorted(events, key=lambda event: -event.self_device_time_total):
            each = event.self_device_time_total / 10
            print(f"  {each:9.1f} us a call, {event.count / 10:g} launches  {event.key[:100]}")
        if not events:
            raise NotDoneError("torch.profiler saw no kernels; the times by events stand in the log")


def traced(device: torch.device) -> None:
    """one call of each at 4K between cudaProfilerStart and Stop: for ncu --profile-from-start off"""
    works = dict(_profiled(device))
    for work in works.values():
        work()
    timing.finish(device)
    torch.cuda.profiler.start()
    for work in works.values():
        work()
    timing.finish(device)
    torch.cuda.profiler.stop()


CHECKS = {check.__name__: check for check in (correct, twice, stream, graph, compiled, large, profile, touched, traced)}
ON_CPU = ("correct", "twice", "compiled", "touched")


@arguments.argument
def _name(text: str) -> str:
    if text not in CHECKS:
        raise ValueError(f"expected one of {', '.join(CHECKS)}, got {text!r}")
    return text


_Names = Annotated[Sequence[str], {"nargs": "*", "type": _name, "metavar": "CHECK"}]
_Device = Annotated[str, {"choices": ("cpu", "cuda")}]


def gpu_checks(names: _Names = (), *, device: _Device = "cuda") -> int:
    """Runs the checks that are named, or all of them. The exit code is 0 if all hold, 1 if one fails, 77 if none fails and one could
    not be done.

    Args:
        names: default: all
        device: cpu: only correct, twice, compiled, touched
    """
    on = torch.device(device)
    if on.type == "cuda" and not torch.cuda.is_available():
        raise Refusal("torch sees no GPU here; --device cpu does those that need none")
    arguments.check_kernels(on)
    failed = lacking = False
    for name in names or CHECKS:
        try:
            if on.type == "cpu" and name not in ON_CPU:
                raise NotDoneError("needs a GPU")
            CHECKS[name](on)
            print(f"{name}: ok", flush=True)
        except (NotDoneError, torch.OutOfMemoryError) as error:
            lacking = True
            print(f"{name}: not done: {str(error).partition(chr(10))[0]}", flush=True)
        except Exception as error:  # one that fails must not keep the others from running
            failed = True
            print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
    return 1 if failed else _NOT_DONE if lacking else 0


_LISTED = "".join(f"\n  {name:10}{check.__doc__}" for name, check in CHECKS.items())
main = arguments.command(gpu_checks, f"\n\nchecks:{_LISTED}")

if __name__ == "__main__":
    sys.exit(main())
