"""Grids chosen from a bank by an index: as if they were copied, for every operator, with every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import gradcheck, gradgradcheck

import bilagrid
from bilagrid.ops import _backend
from bilagrid.ops._bank import choose_, collect_
from tests.helpers import STRIDES, TOLERANCE, assert_near, device_of, off_nodes, strided

COUNT, SIZE = 5, (3, 2, 3)
NAN = float("nan")

# Each: the operator of bank, guide, image and index, and whether its result has a part for each image.
CASES: dict[str, Callable[..., Tensor]] = {
    "slice": lambda bank, guide, image, index: bilagrid.slice(bank, guide, index=index),
    "slice_apply": lambda bank, guide, image, index: bilagrid.slice_apply(bank, guide, image, index=index),
    "slice_apply by luma": lambda bank, guide, image, index: bilagrid.slice_apply(bank, None, image, index=index),
    "slice_apply without offset": lambda bank, guide, image, index: bilagrid.slice_apply(
        bank, guide, image, offset=False, index=index
    ),
    "total_variation": lambda bank, guide, image, index: bilagrid.total_variation(bank, index),
}
# Images of which operators take the fine kernels, and the coarse ones.
WIDTHS = {"fine": 5, "coarse": 60}


def problem(backend: str, width: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Bank, guide, image and index, in which one grid comes twice."""
    generator = torch.Generator().manual_seed(1)
    bank = torch.randn(COUNT, 12, *SIZE, generator=generator)
    guide = 1.4 * torch.rand(3, 2, width, generator=generator) - 0.2
    image = torch.rand(3, 3, 2, width, generator=generator)
    device = device_of(backend)
    return *(t.to(device, dtype) for t in (bank, guide, image)), torch.tensor([4, 1, 4], device=device)


def derived(function: Callable[..., Tensor], leaves: list[Tensor], index: Tensor | None) -> list[Tensor]:
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    out = function(*leaves, index)
    weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=out.device).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, leaves, weights, materialize_grads=True, allow_unused=True)]


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_equals_copies_of_the_grids(backend: str, case: str, width: int) -> None:
    *leaves, index = problem(backend, width)
    found = derived(CASES[case], leaves, index)
    bank = leaves[0].index_select(0, index)
    wanted = derived(CASES[case], [bank, *leaves[1:]], None)
    by_bank = torch.zeros_like(leaves[0])
    for n, m in enumerate(index.tolist()):
        by_bank[m] += wanted[1][n]
    wanted[1] = by_bank
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.dtype == b.dtype
        if k == 1:
            assert_near(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("case", ["slice_apply", "total_variation"])
def test_dtypes_and_strides(case: str, how: str, dtype: torch.dtype) -> None:
    """On the CPU: what kernels of a GPU make of an index does not depend on either."""
    bank, guide, image, index = problem("numba", dtype=dtype)
    wanted = derived(CASES[case], [t.double() for t in (bank, guide, image)], index)
    found = derived(CASES[case], [strided(bank, how), guide, strided(image, how)], index.int())
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == dtype
        assert_near(a, b)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    bank = torch.randn(3, 12, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    guide = off_nodes((2, 2, 3), 2)
    image = guide[:, None].repeat(1, 3, 1, 1).requires_grad_()
    leaves = [bank, guide.requires_grad_(), image]
    index = torch.tensor([2, 2])
    assert gradcheck(lambda *t: CASES[case](*t, index), leaves, fast_mode=True)
    assert gradgradcheck(lambda *t: CASES[case](*t, index), leaves, fast_mode=True)


def test_grids_that_are_not_chosen_are_not_read(backend: str) -> None:
    bank, guide, image, index = problem(backend)
    bank[[0, 2, 3]] = NAN
    for case in ("slice", "slice_apply", "total_variation"):
        function = CASES[case]
        out, *grads = derived(function, [bank, guide, image], index)
        assert out.isfinite().all()
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("case", [name for name in CASES if name != "total_variation"])
def test_the_batch_does_not_change_a_bit(case: str) -> None:
    bank, guide, image, _ = problem("numba")
    index = torch.tensor([3, 1, 3], device=bank.device)
    together = derived(CASES[case], [bank, guide, image], index)
    leaves = [t.clone().requires_grad_() for t in (bank, guide[1:2], image[1:2])]
    alone = CASES[case](*leaves, index[1:2])
    torch.testing.assert_close(alone[0], together[0][1], rtol=0, atol=0)
    again = derived(CASES[case], [bank, guide, image], index)
    for a, b in zip(again, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_out_of_range_is_refused_on_the_cpu(case: str) -> None:
    *leaves, index = problem("numba")
    for wrong, named in ((5, 5), (-1, -1)):
        index[1] = wrong
        with pytest.raises(IndexError, match=f"index must be from 0 to 4, for 5 grids, got {named}"):
            CASES[case](*leaves, index)


@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("case", CASES)
def test_out_of_range_is_nan_on_a_gpu(
    triton_backend: str, case: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    *leaves, index = problem(triton_backend, width)
    for wrong in (5, -1, 2**40)[: 3 if case == "slice" and width == 5 else 1]:
        index[1] = wrong
        out, by_bank, by_guide, by_image = derived(CASES[case], leaves, index)
        if case == "total_variation":
            assert out.isnan()
            continue
        assert out.isnan().flatten(1).all(1).tolist() == [False, True, False]
        assert not out[[0, 2]].isnan().any()
        for grad in (by_guide, by_image):
            assert not grad[[0, 2]].isnan().any()
        kept = [leaves[0], leaves[1][[0, 2]], leaves[2][[0, 2]]]
        kept = [t.clone().requires_grad_() for t in kept]
        weights = torch.linspace(-1, 2, out.numel(), dtype=torch.float64, device=out.device).view(out.shape)[[0, 2]]
        (wanted,) = torch.autograd.grad(CASES[case](*kept, index[[0, 2]]), kept[:1], weights.to(out.dtype))
        torch.testing.assert_close(by_bank, wanted, rtol=0, atol=0)
    monkeypatch.setenv("BILAGRID_DEBUG", "1")
    with pytest.raises(IndexError, match="index must be from 0 to 4"):
        CASES[case](*leaves, index)


def test_points_out_of_range_are_nan_on_a_gpu(triton_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_of(triton_backend)
    bank = torch.randn(2, 3, 2, 2, 2, device=device, requires_grad=True)
    points = torch.rand(5, 3, device=device, requires_grad=True)
    index = torch.tensor([0, 2, 1, -1, 1], device=device)
    out = bilagrid.slice_points(bank, points, index)
    assert out.isnan().all(1).tolist() == [False, True, False, True, False]
    by_bank, by_points = torch.autograd.grad(out, (bank, points), torch.ones_like(out))
    assert by_points.isnan().all(1).tolist() == [False, True, False, True, False]
    kept = [0, 2, 4]
    (wanted,) = torch.autograd.grad(bilagrid.slice_points(bank, points[kept], index[kept]).sum(), bank)
    assert_near(by_bank, wanted)
    monkeypatch.setenv("BILAGRID_DEBUG", "1")
    with pytest.raises(IndexError, match="index must be from 0 to 1, for 2 grids, got -1"):
        bilagrid.slice_points(bank, points, index)


def test_collect_and_choose_are_adjoint(backend: str) -> None:
    device = device_of(backend)
    index = torch.tensor([2, 0, 2, 2], device=device)
    parts = torch.randn(4, 2, 2, 2, 3, dtype=torch.float64, device=device)
    bank = torch.randn(3, 2, 2, 2, 3, dtype=torch.float64, device=device)
    collected = collect_(parts, index, 3)
    assert collected[1].eq(0).all()
    assert_near(collected[2], parts[0] + parts[2] + parts[3])
    assert_near((collected * bank).sum(), (parts * choose_(bank, index)).sum())


def test_no_images(backend: str) -> None:
    bank, guide, image, index = problem(backend)
    for name in ("slice", "slice_apply", "total_variation"):
        function = CASES[name]
        out, by_bank, *_ = derived(function, [bank, guide[:0], image[:0]], index[:0])
        assert out.numel() == (1 if name == "total_variation" else 0)
        assert_near(by_bank, torch.zeros_like(bank))


@pytest.mark.parametrize("mapped", [(0, 0, 0), (0, None, 0), (None, 0, 0), (None, None, 0), (0, 0, None)])
@pytest.mark.parametrize("case", CASES)
def test_vmap_equals_a_loop(case: str, mapped: tuple[int | None, ...]) -> None:
    bank, guide, image, index = problem("numba")
    dims = (mapped[0], mapped[1], mapped[1], mapped[2])
    given = [
        t if dim is None else torch.stack([t, t.flip(0), t.roll(1, 0)])
        for t, dim in zip((bank, guide, image, index), dims, strict=True)
    ]

    def loss(*t: Tensor) -> Tensor:
        return CASES[case](*t).square().sum()

    for method in (loss, torch.func.grad(loss, argnums=(0, 1, 2))):
        found = torch.vmap(method, in_dims=dims)(*given)
        for k in range(3):
            alone = method(*(t if d is None else t[k] for t, d in zip(given, dims, strict=True)))
            for a, b in zip(
                torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(alone), strict=True
            ):
                assert_near(a[k], b)


def everything(bank: Tensor, guide: Tensor, image: Tensor, index: Tensor) -> Tensor:
    sliced = bilagrid.slice(bank, guide, index=index)
    applied = bilagrid.slice_apply(bank, guide, image, index=index)
    return sliced.square().sum() + applied.square().sum() + bilagrid.total_variation(bank, index)


def test_one_graph_for_every_image_size_and_bank() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(everything, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for count, batch, height, width in ((9, 7, 8, 11), (10, 4, 13, 9), (5, 6, 10, 14)):
        bank, guide = torch.randn(count, 12, *SIZE), torch.rand(batch, height, width)
        leaves = [t.requires_grad_() for t in (bank, guide, torch.rand(batch, 3, height, width))]
        index = torch.randint(count, (batch,))
        found, wanted = compiled(*leaves, index), everything(*leaves, index)
        assert_near(found, wanted)
        for a, b in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True):
            assert_near(a, b)
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 3


def test_export_with_dynamic_sizes() -> None:
    class Everything(torch.nn.Module):
        def forward(self, bank: Tensor, guide: Tensor, image: Tensor, index: Tensor) -> Tensor:
            return everything(bank, guide, image, index)

    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    shapes = {"bank": None, "guide": {1: height, 2: width}, "image": {2: height, 3: width}, "index": None}
    index = torch.tensor([4, 0])

    def given(height: int, width: int) -> tuple[Tensor, ...]:
        return torch.ones(5, 12, *SIZE), torch.rand(2, height, width), torch.rand(2, 3, height, width), index

    program = torch.export.export(Everything(), given(4, 6), dynamic_shapes=shapes)
    other = given(9, 5)
    assert_near(program.module()(*other), everything(*other))


BANK, GUIDE, IMAGE, INDEX = (
    torch.ones(5, 12, 3, 2, 2),
    torch.ones(2, 4, 6),
    torch.ones(2, 3, 4, 6),
    torch.tensor([0, 1]),
)
REFUSED = {
    "index of another length": (lambda: bilagrid.slice(BANK, GUIDE, index=INDEX[:1]), ValueError, r"index must have shape \(N,\) = \(2,\) to match guide, got \(1,\)"),
    "index of two dimensions": (lambda: bilagrid.slice_apply(BANK, GUIDE, IMAGE, index=INDEX[None]), ValueError, r"index must have shape .* to match image, got \(1, 2\)"),
    "index in floats": (lambda: bilagrid.slice(BANK, GUIDE, index=INDEX.float()), TypeError, "index must be int64 or int32"),
    "index as a list": (lambda: bilagrid.slice(BANK, GUIDE, index=[0, 1]), TypeError, "index must be a torch.Tensor of int64 or int32, got list"),
    "index elsewhere": (lambda: bilagrid.slice_apply(BANK, GUIDE, IMAGE, index=INDEX.to("meta")), ValueError, "index must be on cpu as image is, got meta"),
    "an empty bank": (lambda: bilagrid.slice(BANK[:0], GUIDE, index=INDEX), ValueError, "grid must have at least one grid"),
    "other batch without an index": (lambda: bilagrid.slice_apply(BANK, GUIDE, IMAGE), ValueError, "pass index"),
    "index of a variation": (lambda: bilagrid.total_variation(BANK, INDEX[None]), ValueError, r"index must have shape \(K,\), got \(1, 2\)"),
    "sparse without an index": (lambda: bilagrid.slice(BANK[:2], GUIDE, sparse=True), ValueError, "sparse=True needs an index"),
    "sparse that is a number": (lambda: bilagrid.total_variation(BANK, INDEX, sparse=1), TypeError, "sparse must be True or False, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str) -> None:
    call, error, message = REFUSED[case]
    with _backend.override("cpu"), pytest.raises(error, match=message):
        call()
