"""Checks of `bilagrid.gpu._plan` for a process in which Triton compiles: ``python -m tests.plans`` prints, as JSON, how each ended, "" being well.

There is no GPU: a driver stands in, tensors lie in the CPU's memory, and what would be started is written down. Kernels are "compiled" in no time, one
for each of Triton's own keys, except where a check wants the compiler.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.runtime.jit import JITFunction

import bilagrid
from bilagrid import Lattice
from bilagrid.gpu import _launch, _plan, _regime, blur, curves, slice, total_variation
from bilagrid.ops import _backend
from perf.overhead import StandIn
from tests.helpers import STRIDES
from tests.started import Compiled, arranged, precision, repeats, starts, varied, watched
from tests.test_torch_integration import RAW

STATES: tuple[tuple[_regime.Regime, str, str], ...] = (
    ("coarse", "highest", "sm_90"),
    ("fine", "high", "sm_90"),
    ("coarse", "high", "sm_90"),
    ("fine", "highest", "gfx942"),
)
DTYPES = (None, torch.float16, torch.bfloat16, torch.float32, torch.float64)


def plans_start_what_launchers_start() -> None:
    """For every operator, type, way to lie, alignment, regime and precision, at first and when repeated, among all the others' plans."""
    for name in OPERATORS:
        for case in RAW[name]:
            ordinary, by_plan, given, flags = arranged(name, case())
            ways = list(itertools.product(DTYPES, STRIDES, (0, 1, 4)))
            for again in (False, True):
                with repeats() as repeat:
                    for (dtype, how, shift), (regime, exact, architecture) in itertools.product(ways, STATES):
                        values = tuple(varied(value, dtype, how, shift) for value in given)
                        with precision(exact), _regime.override(regime=regime, architecture=architecture):
                            wanted = watched(ordinary, values, flags)
                            found = watched(by_plan, values, flags)
                        assert found == wanted, (name, dtype, how, shift, regime, exact, architecture)
                if again:
                    assert repeat.call_count == len(ways) * len(STATES), (name, repeat.call_count)


def what_depends_on_the_key_is_in_the_key() -> None:
    """The same call with one thing changed is never served by the other's plan: both kinds of answer come up in turns."""
    ordinary, by_plan, given, flags = arranged("slice_apply_bwd_grid", RAW["slice_apply_bwd_grid"][0]())
    kernels = set()
    for exact in ("highest", "high", "highest", "high"):
        with precision(exact), _regime.override(regime="coarse", architecture="sm_90"):
            found = watched(by_plan, given, flags)
            assert found == watched(ordinary, given, flags)
            kernels.add(found[0][0][0])
    assert len(kernels) == 2
    aligned = set()
    for shift in (0, 1, 4, 0, 1, 4):
        moved = tuple(varied(value, None, "contiguous", shift) for value in given)
        found = watched(by_plan, moved, flags)
        assert found == watched(ordinary, moved, flags)
        aligned.add(found[0][0][0])
    assert len(aligned) == 2


def the_same_tensor_twice_is_not_taken_for_one() -> None:
    values = RAW["slice_apply_bwd_pixels"][0]()
    ordinary, by_plan, (grid, guide, image, grad, lattice), flags = arranged("slice_apply_bwd_pixels", values)
    for given in ((grid, guide, image, image), (grid, guide, image, grad), (grid, guide, grad, image)):
        found = watched(by_plan, (*given, lattice), flags)
        assert found == watched(ordinary, (*given, lattice), flags)


GRID = torch.rand(2, 3, 4, 5, 6)


def variation() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """A launcher and the same by plans, which has one for the grid."""
    by_plan = _plan.planned(total_variation.total_variation)
    by_plan(GRID)
    return total_variation.total_variation, by_plan


def assert_starts(call: Callable[[], Any], *, by_plan: bool) -> None:
    with repeats() as repeat:
        starts.clear()
        call()
    assert len(starts) == 2
    assert repeat.call_count == by_plan


def hooks_of_triton_see_launches() -> None:
    _, by_plan = variation()
    assert_starts(lambda: by_plan(GRID), by_plan=True)
    assert starts[0][3] == (None, None, None)
    knobs = triton.knobs.runtime
    for name in ("launch_enter_hook", "launch_exit_hook"):
        chain, hook = getattr(knobs, name), lambda metadata: None
        chain.add(hook)
        try:
            assert_starts(lambda: by_plan(GRID), by_plan=False)
        finally:
            chain.remove(hook)
        assert starts[0][3] == ("metadata", knobs.launch_enter_hook, knobs.launch_exit_hook)
    with mock.patch.object(knobs, "launch_enter_hook", print):
        assert_starts(lambda: by_plan(GRID), by_plan=False)
    assert_starts(lambda: by_plan(GRID), by_plan=True)


def autotuning_and_debugging_launch_in_their_own_way() -> None:
    _, by_plan = variation()
    for switch in ("BILAGRID_AUTOTUNE", "BILAGRID_DEBUG"):
        with mock.patch.dict(os.environ, {switch: "1"}):
            assert_starts(lambda: by_plan(GRID), by_plan=False)
        assert_starts(lambda: by_plan(GRID), by_plan=True)
    _, by_plan, (grid, points, _, derivative), flags = arranged("slice_points", RAW["slice_points"][1]())
    beyond = torch.full(points.shape[:3], len(grid))
    for _ in range(2):
        by_plan(grid, points, beyond, derivative, **flags)
    with mock.patch.dict(os.environ, BILAGRID_DEBUG="1"):
        try:
            by_plan(grid, points, beyond, derivative, **flags)
        except IndexError:
            return
    raise AssertionError("an index out of range was not told")


def another_triton_launches_in_its_own_way() -> None:
    _, by_plan = variation()

    def run(self: Any, *arguments: Any, grid: Any, warmup: Any, **options: Any) -> Any:
        return original(self, *arguments, grid=grid, warmup=warmup, **options)

    original = JITFunction.run
    with mock.patch.object(JITFunction, "run", run):
        _plan._starts_as_expected.cache_clear()
        assert_starts(lambda: by_plan(GRID), by_plan=False)
    with mock.patch.object(JITFunction, "run", max):
        _plan._starts_as_expected.cache_clear()
        assert not _plan._starts_as_expected()
    _plan._starts_as_expected.cache_clear()
    assert_starts(lambda: by_plan(GRID), by_plan=True)


def what_is_recorded_is_not_started() -> None:
    _, by_plan = variation()
    starts.clear()
    with _launch.record() as launches:
        by_plan(GRID)
    assert len(launches) == 2
    assert not starts


def other_threads_launch_while_one_records() -> None:
    ordinary, by_plan = variation()
    with _launch.record() as launches:
        for call in (ordinary, by_plan):
            starts.clear()
            thread = threading.Thread(target=call, args=(GRID,))
            thread.start()
            thread.join()
            assert len(starts) == 2
    assert not launches


def threads_share_plans() -> None:
    ordinary = total_variation.total_variation_bwd
    by_plan = _plan.planned(ordinary)
    grids = [torch.rand(1, 1, 2, 3, 4 + k % 5) for k in range(20)]
    results: list[Tensor] = []
    starts.clear()

    def work() -> None:
        for grid in grids:
            results.append(by_plan(grid))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Of every call, where it read and where it wrote.
    found = [(arguments[0], arguments[2]) for *_, arguments in starts]
    assert len(found) == len(threads) * len(grids)
    assert {address for address, _ in found} == {grid.data_ptr() for grid in grids}
    assert {address for _, address in found} == {result.data_ptr() for result in results}


def what_is_more_than_launches_has_no_plan() -> None:
    by_plan = _plan.planned(blur.blur)
    with repeats() as repeat:
        for _ in range(3):
            assert torch.equal(by_plan(GRID, (0.0, 0.0, 0.0)), GRID)
        assert by_plan(GRID[:0], (0.0, 0.0, 0.0)).shape == (0, 3, 4, 5, 6)
        empty = _plan.planned(total_variation.total_variation)
        assert [empty(GRID[:0]).item() for _ in range(3)] == [0.0] * 3
        image, shifts = torch.rand(1, 3, 4, 5), torch.rand(4, 3).T
        given = image, torch.rand(3, 3), torch.rand(3), shifts, torch.rand(3, 4), torch.rand(3), torch.rand(())
        by_plan = _plan.planned(curves.curves)
        for _ in range(3):
            starts.clear()
            by_plan(*given)
            # A copy of what is not contiguous.
            copied = starts[0][4][3]
            assert torch.equal(copied, shifts)
            assert copied.is_contiguous()
        for name in SORTING:
            ordinary, by_plan, sorted_by_torch, flags = arranged(name, RAW[name][0]())
            kernels = []
            for call in (by_plan, by_plan, ordinary):
                starts.clear()
                call(*sorted_by_torch, **flags)
                kernels.append([kernel for kernel, *_ in starts])
            assert kernels[0] == kernels[1] == kernels[2] != []
    assert not repeat.called


def tensors_of_two_devices_are_left_to_triton() -> None:
    by_plan = _plan.planned(slice.slice)
    grid, guide, lattice = torch.rand(1, 3, 2, 2, 2), torch.rand(1, 4, 5), Lattice.cell_centered((2, 2, 2), (4, 5))
    by_plan(grid, guide, lattice)
    with repeats() as repeat:
        by_plan(grid, guide.to("meta"), lattice)
        by_plan(grid, guide.to("meta"), lattice)
        assert not repeat.called
        by_plan(grid, guide, lattice)
        assert repeat.called


def plans_keep_no_tensor() -> None:
    by_plan = _plan.planned(total_variation.total_variation)
    kept = []
    for _ in range(2):
        grid = torch.rand(1, 1, 2, 3, 5)
        kept += [weakref.ref(grid), weakref.ref(by_plan(grid))]
        del grid
        starts.clear()
    gc.collect()
    assert [reference() for reference in kept] == [None] * 4


def plans_start_on_their_tensors_device_and_its_stream() -> None:
    current = [0]

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        before, current[0] = current[0], device.index
        yield
        current[0] = before

    driver = StandIn()
    driver.get_current_device = lambda: current[0]  # type: ignore[method-assign, assignment]
    driver.get_current_stream = lambda device: 100 + device  # type: ignore[method-assign, assignment]
    kernel = Compiled(types.SimpleNamespace(fn=types.SimpleNamespace(params=())))
    start = _plan._Start(kernel, (1, 2, 3), ("a", None, "b", None), ((1, 1), (3, 0)))
    with mock.patch.object(_plan, "_on", on), mock.patch.object(triton.runtime.driver, "_active", driver):
        for device, stream in (("cuda:1", 101), ("cuda:0", 100), ("cpu", 100)):
            starts.clear()
            _plan._Plan(torch.device(device), (), (start,), []).repeat([7, 8])
            assert starts == [(kernel, (1, 2, 3), stream, (None, None, None), ("a", 8, "b", 7))]
            assert current == [0]


def no_program_is_started_for_an_empty_batch() -> None:
    for name in OPERATORS:
        for case in RAW[name]:
            ordinary, by_plan, given, flags = arranged(name, case())
            # Parameters of curves have no batch, points of a bank their own.
            empty = tuple(v[:0] if isinstance(v, Tensor) and v.ndim >= 3 else v for v in given)
            for _ in range(2):
                found = watched(by_plan, empty, flags)
                assert found == watched(ordinary, empty, flags), name


def public_calls_go_by_plans_forward_and_backward() -> None:
    shapes = (2, 12, 3, 2, 4), (2, 5, 9), (2, 3, 5, 9)
    given = [torch.rand(shape).requires_grad_() for shape in shapes]

    def run() -> None:
        bilagrid.slice_apply(*given).sum().backward()

    run()
    with repeats() as repeat:
        run()
        assert repeat.call_count == 3
        with torch.profiler.profile() as profile:
            run()
        assert repeat.call_count == 6
    assert "bilagrid::slice_apply" in {event.name for event in profile.events()}


def compiled_kernels_are_started_as_triton_does() -> None:
    """By Triton's own compiler and its `CompiledKernel`."""
    for kernel in (total_variation._sum_differences_kernel, total_variation._total_kernel):
        kernel.device_caches.clear()
    seen: list[tuple[Any, ...]] = []
    driver = StandIn(lambda *arguments: seen.append(arguments))
    by_plan = _plan.planned(total_variation.total_variation)
    with mock.patch.object(triton.runtime.driver, "_active", driver), _regime.override(architecture="sm_90"):
        for call in (by_plan, by_plan, total_variation.total_variation):
            call(GRID)
    first, repeated, ordinary = seen[:2], seen[2:4], seen[4:]
    for found in (first, repeated):
        for by, wanted in zip(found, ordinary, strict=True):
            # Programs, stream, function and metadata.
            assert by[:6] == wanted[:6]
            assert by[4] in ("_sum_differences_kernel", "_total_kernel")
            assert by[6:9] == (None, None, None)
            fixed = [not isinstance(value, Tensor) for value in wanted[9:]]
            assert list(itertools.compress(by[9:], fixed)) == list(itertools.compress(wanted[9:], fixed))
    assert first[0][9] == GRID.data_ptr()


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (
        plans_start_what_launchers_start,
        what_depends_on_the_key_is_in_the_key,
        the_same_tensor_twice_is_not_taken_for_one,
        hooks_of_triton_see_launches,
        autotuning_and_debugging_launch_in_their_own_way,
        another_triton_launches_in_its_own_way,
        what_is_recorded_is_not_started,
        other_threads_launch_while_one_records,
        threads_share_plans,
        what_is_more_than_launches_has_no_plan,
        tensors_of_two_devices_are_left_to_triton,
        plans_keep_no_tensor,
        plans_start_on_their_tensors_device_and_its_stream,
        no_program_is_started_for_an_empty_batch,
        public_calls_go_by_plans_forward_and_backward,
        compiled_kernels_are_started_as_triton_does,
    )
}
# In these Triton's own compiler compiles.
COMPILED = (compiled_kernels_are_started_as_triton_does,)
# These have torch sort, and so no plan.
SORTING = ("slice_points_bwd_grid",)
# These copy what is not contiguous, and then have none either.
COPYING = ("collect",)
OPERATORS = [name for name in RAW if name not in SORTING + COPYING]


def outcome(check: Callable[[], None]) -> str:
    compiler = contextlib.nullcontext() if check in COMPILED else mock.patch("triton.compiler.compile", Compiled)
    try:
        with compiler:
            check()
    except Exception:
        return traceback.format_exc()
    return ""


def main() -> None:
    triton.runtime.driver.set_active(StandIn())
    with _backend.override("gpu"):
        print(json.dumps({name: outcome(check) for name, check in CHECKS.items()}))


if __name__ == "__main__":
    main()
