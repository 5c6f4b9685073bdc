"""Plain calls, which reach their launchers without torch's dispatcher, and checks that are made once: what could make either the wrong answer."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bilagrid
from bilagrid import Lattice
from bilagrid.ops import _plain
from bilagrid.ops._plain import is_plain, once


class Dispatches(TorchDispatchMode):
    """Lists our operators as the dispatcher meets them, and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "bilagrid":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Lists our operators as functions of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "namespace", None) == "bilagrid":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


class Wrapped(Tensor):
    """A subclass that torch's functions go by, but not the dispatcher."""


def case(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """A grid, a guide and an image that need gradients."""
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 12, 3, 2, 4), (2, 5, 9), (2, 3, 5, 9)
    return tuple(torch.rand(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes)  # type: ignore[return-value]


CURVES = (torch.eye(3), torch.zeros(3), torch.rand(3, 4), torch.rand(3, 4), torch.ones(3) / 3, torch.zeros(1))
POINTS = torch.rand(2, 7, 3)

CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "splat": lambda grid, guide, image: bilagrid.splat(image, guide, (3, 2, 4)),
    "slice": lambda grid, guide, image: bilagrid.slice(grid, guide),
    "slice_apply": lambda grid, guide, image: bilagrid.slice_apply(grid, guide, image),
    "slice_apply by luma": lambda grid, guide, image: bilagrid.slice_apply(grid, None, image),
    "blur": lambda grid, guide, image: bilagrid.blur(grid, (1.0, 0.0, 0.6)),
    "curves": lambda grid, guide, image: bilagrid.curves(image, *(p.to(image.dtype) for p in CURVES)),
    "total_variation": lambda grid, guide, image: bilagrid.total_variation(grid),
    "slice_points": lambda grid, guide, image: bilagrid.slice_points(grid, POINTS),
    "bilateral_filter": lambda grid, guide, image: bilagrid.bilateral_filter(
        image, guide, sigma_space=3, sigma_color=0.3, guide_range=(0.0, 1.0)
    ),
}


def with_gradients(call: Callable[..., Tensor], given: tuple[Tensor, ...]) -> list[Tensor]:
    """The result and its gradients of both orders."""
    out = call(*given)
    first = torch.autograd.grad(out.square().sum(), given, create_graph=True, allow_unused=True)
    first = [grad for grad in first if grad is not None]
    scalar = sum(grad.square().sum() for grad in first)
    second = torch.autograd.grad(scalar, given, allow_unused=True)
    return [out, *first, *(grad for grad in second if grad is not None)]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_bits_are_those_of_the_dispatched_operators(name: str, dtype: torch.dtype) -> None:
    given = case(dtype)
    plain = with_gradients(CALLS[name], given)
    with Dispatches() as seen:
        dispatched = with_gradients(CALLS[name], given)
    assert seen.names
    for found, wanted in zip(plain, dispatched, strict=True):
        assert torch.equal(found, wanted)
        for trait in (Tensor.stride, Tensor._is_view, lambda t: (t.dtype, t.requires_grad, t.is_leaf)):
            assert trait(found) == trait(wanted)


@pytest.mark.parametrize("name", CALLS)
def test_a_plain_call_reaches_no_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*values: Any, **options: Any) -> None:
        raise AssertionError("dispatched")

    given = case()
    with_gradients(CALLS[name], given)
    monkeypatch.setattr(torch._ops.OpOverload, "__call__", refuse)
    with_gradients(CALLS[name], given)


@contextlib.contextmanager
def tangents() -> Iterator[None]:
    with forward_ad.dual_level():
        yield


@pytest.mark.parametrize("mode", [Dispatches, Functions, FakeTensorMode, torch.profiler.profile, tangents])
def test_who_watches_or_changes_calls_makes_them_not_plain(mode: Callable[[], Any]) -> None:
    grid = case()[0]
    assert is_plain(grid, None, 3, "kind", (1, 2.0))
    with mode():
        assert not is_plain(grid)
    assert is_plain(grid)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta"), torch.enable_grad])
def test_modes_that_have_no_say_leave_calls_plain(mode: Callable[[], Any]) -> None:
    given = case()
    wanted = bilagrid.slice_apply(*given)
    with mode():
        assert is_plain(*given)
        found = bilagrid.slice_apply(*given)
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", CALLS)
def test_defaults_of_factories_leave_results_as_they_are(name: str) -> None:
    given = case()
    wanted = with_gradients(CALLS[name], given)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            found = with_gradients(CALLS[name], given)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip(found, wanted, strict=True):
        assert one.device.type == "cpu"
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_modes_see_operators_after_plain_calls() -> None:
    given = case()
    for _ in range(2):
        bilagrid.slice_apply(*given)
        with Dispatches() as dispatches:
            bilagrid.slice_apply(*given)
        with Functions() as functions:
            bilagrid.slice_apply(*given)
        assert dispatches.names == functions.names == ["slice_apply"]
        with Functions() as functions, torch.device("cpu"):
            bilagrid.slice_apply(*given)
        assert functions.names == ["slice_apply"]


def test_a_profiler_sees_the_operator_by_name() -> None:
    given = case()
    bilagrid.slice_apply(*given)
    with torch.profiler.profile() as profile:
        bilagrid.slice_apply(*given)
    assert "bilagrid::slice_apply" in {event.name for event in profile.events()}


def test_fake_tensors_stay_fake_and_traces_symbolic() -> None:
    given = tuple(t.detach() for t in case())
    bilagrid.slice_apply(*given)
    with FakeTensorMode() as mode:
        fakes = tuple(map(mode.from_tensor, given))
        assert isinstance(bilagrid.slice_apply(*fakes), FakeTensor)
    # Without their mode, too.
    assert isinstance(bilagrid.slice_apply(*fakes), FakeTensor)
    traced = make_fx(lambda *values: bilagrid.slice_apply(*values), tracing_mode="symbolic")(*given)
    larger = given[0], torch.rand(2, 7, 11), torch.rand(2, 3, 7, 11)
    torch.testing.assert_close(traced(*larger), bilagrid.slice_apply(*larger), rtol=0, atol=0)


def test_transforms_get_their_operators() -> None:
    given = case()
    wanted = with_gradients(CALLS["slice_apply"], given)
    grads = torch.func.grad(lambda *values: bilagrid.slice_apply(*values).square().sum(), (0, 1, 2))(*given)
    for found, expected in zip(grads, wanted[1:4], strict=True):
        assert torch.equal(found, expected)
    mapped = torch.func.vmap(lambda *values: bilagrid.slice_apply(*(v[None] for v in values))[0])(*given)
    assert torch.equal(mapped, wanted[0])


def test_a_tensor_that_outlives_its_transform_is_itself_again() -> None:
    kept = []

    def keep(grid: Tensor) -> Tensor:
        kept.append(grid)
        return grid.sum()

    grid, guide, _ = case()
    torch.func.grad(keep)(grid)
    assert torch.equal(bilagrid.slice(kept[0], guide), bilagrid.slice(grid, guide))
    bilagrid.total_variation(kept[0]).backward()
    (wanted,) = torch.autograd.grad(bilagrid.total_variation(grid), grid)
    assert torch.equal(grid.grad, wanted)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_within_a_transform_or_a_trace_nothing_is_plain() -> None:
    grid = case()[0].detach()
    plain = []

    def ask(value: Tensor) -> Tensor:
        plain.append(is_plain(grid))
        return bilagrid.blur(value, 1.0)

    torch.func.vmap(ask)(grid[None])
    traced = torch.jit.trace(ask, (grid,), check_trace=False)
    assert plain
    assert not any(plain)
    assert torch.equal(traced(2 * grid), bilagrid.blur(2 * grid, 1.0))


def test_lazily_negated_tensors_are_negated() -> None:
    grid, guide, image = case()
    turned = torch.complex(grid.detach(), grid.detach()).conj().imag
    assert turned.is_neg()
    assert torch.equal(bilagrid.slice(turned, guide), -bilagrid.slice(grid, guide))
    assert torch.equal(
        bilagrid.slice_apply(grid, guide, torch._neg_view(image)), bilagrid.slice_apply(grid, guide, -image)
    )


def test_the_range_of_a_lazily_negated_guide_is_measured() -> None:
    image = torch.rand(1, 1, 9, 8)
    turned = torch.complex(image, -image).conj().imag
    assert turned.is_neg()
    found = bilagrid.bilateral_filter(turned, sigma_space=2, sigma_color=0.1)
    torch.testing.assert_close(found, bilagrid.bilateral_filter(image, sigma_space=2, sigma_color=0.1), rtol=0, atol=0)


def test_subclasses_are_not_plain_and_keep_their_kind() -> None:
    grid, guide, image = case()
    wanted = bilagrid.slice_apply(grid, guide, image)
    wrapped = grid.detach().as_subclass(Wrapped)
    assert not is_plain(guide, wrapped)
    torch.testing.assert_close(bilagrid.slice_apply(wrapped, guide, image).as_subclass(Tensor), wanted, rtol=0, atol=0)


def test_parameters_and_their_copies_are_plain() -> None:
    grid, guide, image = case()
    parameter = torch.nn.Parameter(grid.detach())
    wanted = bilagrid.slice_apply(grid, guide, image)
    for given in (parameter, copy.deepcopy(parameter), torch.nn.Buffer(grid.detach())):
        assert is_plain(given)
        found = bilagrid.slice_apply(given, guide, image)
        assert torch.equal(found, wanted)
    twin = copy.deepcopy(parameter)
    bilagrid.slice_apply(twin, guide, image).sum().backward()
    assert twin.grad is not None
    assert parameter.grad is None


@pytest.mark.parametrize(
    "tensor",
    [
        torch.rand(3, device="meta"),
        torch.rand(3).to_sparse(),
        torch._efficientzerotensor(3),
        torch._neg_view(torch.rand(3)),
    ],
    ids=["meta", "sparse", "zero", "negated"],
)
def test_what_does_not_lie_in_memory_as_it_is_is_not_plain(tensor: Tensor) -> None:
    assert not is_plain(tensor)
    assert not is_plain(torch.rand(3), tensor)


def test_threads_share_what_is_known() -> None:
    given = tuple(t.detach() for t in case())
    wanted = {name: call(*given) for name, call in CALLS.items()}
    wrong = []

    def work(names: list[str]) -> None:
        for _ in range(20):
            wrong.extend(name for name in names if not torch.equal(CALLS[name](*given), wanted[name]))

    threads = [threading.Thread(target=work, args=(sorted(CALLS, reverse=k % 2 == 1),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors_are_raised_again_and_after_success() -> None:
    grid, guide, image = case()
    bilagrid.slice_apply(grid, guide, image)
    for _ in range(2):
        with pytest.raises(TypeError, match="offset must be True or False, got 1"):
            bilagrid.slice_apply(grid, guide, image, offset=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="guide must be float16"):
            bilagrid.slice_apply(grid, guide.int(), image)
        with pytest.raises(ValueError, match="batch size"):
            bilagrid.slice_apply(grid[:1], guide, image)
        with pytest.raises(ValueError, match="beyond it"):
            bilagrid.slice_apply(grid, guide, image, lattice=Lattice.cell_centered((3, 2, 4), (5, 8)))
        with pytest.raises(TypeError, match="Lattice, got list"):
            bilagrid.slice(grid, guide, lattice=[3, 2, 4])  # type: ignore[arg-type]
    bilagrid.splat(image, guide, (4, 2, 4))
    for _ in range(2):
        with pytest.raises(TypeError, match="whole numbers"):
            bilagrid.splat(image, guide, (4.0, 2, 4))  # type: ignore[arg-type]
    assert bilagrid.splat(image, guide, [4, 2, 4]).shape == (2, 3, 4, 2, 4)  # type: ignore[arg-type]
    assert bilagrid.splat(image, guide, (np.int64(4), 2, 4)).shape == (2, 3, 4, 2, 4)


def test_forward_mode_is_refused_after_plain_calls() -> None:
    grid, guide, _ = (t.detach() for t in case())
    bilagrid.slice(grid, guide)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(grid, torch.ones_like(grid))
        with pytest.raises(NotImplementedError, match="reverse mode"):
            bilagrid.slice(dual, guide)


def test_each_answer_is_kept_for_its_own_key_and_not_forever() -> None:
    asked: list[tuple[Any, ...]] = []

    @once
    def answer(*values: Any) -> int:
        asked.append(values)
        return len(asked)

    tensor = torch.rand(2, 3)
    keys = [
        (tensor,),
        (tensor.double(),),
        (tensor.T,),
        (tensor, None),
        (tensor, True),
        (tensor, 1),
        (tensor, (1, 2)),
        (tensor, (1, 2.0)),
        (tensor, torch.Size((1, 2))),
        (None, tensor),
    ]
    found = [answer(*key) for key in keys]
    assert found == list(range(1, len(keys) + 1))
    assert [answer(*key) for key in keys] == found
    assert answer(torch.zeros(2, 3)) == 1
    with Dispatches():
        answer(tensor)
    assert len(asked) == len(keys) + 1
    for width in range(10_000):
        answer(width)
    asked.clear()
    answer(tensor)
    assert len(asked) == 1


def test_what_cannot_be_a_key_is_checked_each_time() -> None:
    asked = []
    check = once(lambda *values: asked.append(values))
    check([1, 2])
    check([1, 2])
    assert len(asked) == 2


def test_an_error_of_the_key_is_not_taken_for_one_of_the_check() -> None:
    calls = []

    @once
    def check(value: int) -> None:
        calls.append(value)
        raise TypeError("the check's own")

    with pytest.raises(TypeError, match="own"):
        check(1)
    assert calls == [1]


def test_a_table_keeps_what_was_used_last() -> None:
    known = _plain.cells(2)
    known("a").append(1)
    known("b").append(2)
    known("a")
    known("c")
    assert known("a") == [1]
    assert known("b") == []
