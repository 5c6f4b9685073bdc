"""Splat into a bank, and sparse gradients of chosen grids: with `torch.optim.SparseAdam`, and equal to the dense ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import bilagrid
from tests.helpers import assert_near, off_nodes
from tests.test_index import COUNT, SIZE, problem

# Each: the operator of bank, guide, image, index and whether its gradient is sparse.
CASES: dict[str, Callable[..., Tensor]] = {
    "slice": lambda bank, guide, image, index, sparse: bilagrid.slice(bank, guide, index=index, sparse=sparse),
    "slice_apply": lambda bank, guide, image, index, sparse: bilagrid.slice_apply(
        bank, guide, image, index=index, sparse=sparse
    ),
    "total_variation": lambda bank, guide, image, index, sparse: bilagrid.total_variation(bank, index, sparse=sparse),
    "slice_points": lambda bank, guide, image, index, sparse: bilagrid.slice_points(
        bank, 2 * image.movedim(1, -1), index, sparse=sparse
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_sparse_gradients_equal_dense_ones(backend: str, case: str) -> None:
    bank, guide, image, index = problem(backend)
    grads = []
    for sparse in (True, False):
        leaves = [t.clone().requires_grad_() for t in (bank, guide, image)]
        out = CASES[case](*leaves, index, sparse)
        weights = torch.linspace(-1, 2, out.numel(), device=out.device).view(out.shape)
        grads.append(torch.autograd.grad(out, leaves, weights, allow_unused=True))
    assert grads[0][0].layout == torch.sparse_coo
    named = grads[0][0]._indices()[0].tolist()
    assert named == ([1, 4] if case == "slice_points" else [4, 1, 4])
    assert_near(grads[0][0].to_dense(), grads[1][0])
    for a, b in zip(grads[0][1:], grads[1][1:], strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_sparse_gradients_name_no_grid_that_is_not_there(triton_backend: str, case: str) -> None:
    bank, guide, image, index = problem(triton_backend)
    index[0] = COUNT
    bank.requires_grad_()
    (by_bank,) = torch.autograd.grad(CASES[case](bank, guide, image, index, True).nansum(), bank)
    assert by_bank._indices().min() >= 0
    assert by_bank._indices().max() < COUNT
    if case != "total_variation":
        assert not by_bank.to_dense().isnan().any()


@pytest.mark.parametrize("case", CASES)
def test_sparse_adam_moves_the_chosen_grids_alone(case: str) -> None:
    bank, guide, image, index = problem("numba")
    before = bank.clone()
    optimizer = torch.optim.SparseAdam([bank.requires_grad_()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        CASES[case](bank, guide, image, index, True).square().mean().backward()
        optimizer.step()
    moved = (bank.detach() != before).flatten(1).any(1).tolist()
    assert moved == [False, True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_a_bank_larger_than_any_memory_is_read_as_it_lies(case: str, dtype: torch.dtype) -> None:
    """Its grids are one grid seen many times; a copy of them would take terabytes."""
    bank, guide, image, _ = problem("numba")
    bank = bank.to(dtype)
    index = torch.tensor([999_999_999, 5, 999_999_999])
    many = bank[:1].expand(1_000_000_000, -1, -1, -1, -1).requires_grad_()
    out = CASES[case](many, guide, image, index, True)
    torch.testing.assert_close(out, CASES[case](bank[:1], guide, image, 0 * index, False), rtol=0, atol=0)
    (by_bank,) = torch.autograd.grad(out.sum(), many)
    assert by_bank.shape == many.shape
    assert sorted(set(by_bank._indices()[0].tolist())) == [5, 999_999_999]


@pytest.mark.parametrize("case", CASES)
def test_sparse_gradients_under_transforms(case: str) -> None:
    bank, guide, image, index = problem("numba")

    def loss(bank: Tensor, sparse: bool = True) -> Tensor:
        return CASES[case](bank, guide, image, index, sparse).square().sum()

    def length(bank: Tensor, sparse: bool = True) -> Tensor:
        by_bank = torch.func.grad(loss)(bank, sparse)
        return (by_bank.to_dense() if sparse else by_bank).square().sum()

    found, wanted = torch.func.grad(loss)(bank), torch.func.grad(loss)(bank, False)
    assert found.is_sparse
    assert_near(found.to_dense(), wanted)
    found, wanted = torch.func.grad(length)(bank), torch.func.grad(length)(bank, False)
    assert_near(found.to_dense(), wanted)

    banks = torch.stack([bank, -bank])
    assert_near(torch.func.vmap(loss)(banks), torch.stack([loss(bank), loss(-bank)]))
    mapped: list[Callable[[], object]] = [
        lambda: torch.func.vmap(torch.func.grad(loss))(banks),
        lambda: torch.func.jacrev(lambda bank: loss(bank).expand(2))(bank),
        lambda: torch.func.vmap(torch.func.grad(lambda bank, scale: scale * loss(bank)), (None, 0))(bank, bank[:2, 0, 0, 0, 0]),
    ]  # fmt: skip
    for call in mapped:
        with pytest.raises(NotImplementedError, match=r"sparse=True has no gradient under torch\.vmap.*pass sparse=False"):  # fmt: skip
            call()


# Dynamo looks at what a break hands on; where warnings are errors it cannot hide its own.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("case", CASES)
def test_sparse_gradients_break_a_compiled_graph(case: str) -> None:
    bank, guide, image, index = problem("numba")

    def loss(bank: Tensor) -> Tensor:
        return CASES[case](bank, guide, image, index, True).square().sum()

    wanted = torch.func.grad(loss)(bank)
    leaf = bank.clone().requires_grad_()
    torch._dynamo.reset()
    (found,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(leaf), leaf)
    assert found.is_sparse
    assert_near(found.to_dense(), wanted.to_dense())
    torch._dynamo.reset()
    whole = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_near(whole(bank), loss(bank))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="sparse=True breaks a graph; pass sparse=False"):
        whole(leaf)


def test_sparse_and_dense_gradients_add_up() -> None:
    bank, guide, _, index = problem("numba")
    bank.requires_grad_()
    loss = bilagrid.slice(bank, guide, index=index, sparse=True).square().sum() + bilagrid.total_variation(bank)
    loss.backward()
    assert bank.grad is not None
    dense = bank.detach().clone().requires_grad_()
    (bilagrid.slice(dense, guide, index=index).square().sum() + bilagrid.total_variation(dense)).backward()
    assert dense.grad is not None
    found = bank.grad.to_dense() if bank.grad.is_sparse else bank.grad
    assert_near(found, dense.grad)


def test_splat_to_a_bank_adds_images_of_one_grid(backend: str) -> None:
    _, guide, image, index = problem(backend)
    found = bilagrid.splat(image, guide, SIZE, index=index, count=COUNT)
    each = bilagrid.splat(image, guide, SIZE)
    assert found.shape == (COUNT, 3, *SIZE)
    assert found[[0, 2, 3]].eq(0).all()
    torch.testing.assert_close(found[1], each[1], rtol=0, atol=0)
    torch.testing.assert_close(found[4], each[0] + each[2], rtol=0, atol=0)


def test_splat_to_a_bank_is_the_adjoint_of_slice_from_it(backend: str) -> None:
    bank, guide, image, index = problem(backend, dtype=torch.float64)
    splatted = bilagrid.splat(image, guide, SIZE, index=index.int(), count=COUNT)
    assert_near((splatted * bank[:, :3]).sum(), (image * bilagrid.slice(bank[:, :3], guide, index=index)).sum())


def test_gradients_of_splat_to_a_bank() -> None:
    guide = off_nodes((3, 2, 3), 2).requires_grad_()
    values = torch.randn(3, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2])

    def run(values: Tensor, guide: Tensor) -> Tensor:
        return bilagrid.splat(values, guide, (2, 2, 2), index=index, count=3)

    assert gradcheck(run, (values, guide), fast_mode=True)
    assert gradgradcheck(run, (values, guide), fast_mode=True)


def test_an_image_without_a_grid_is_splatted_nowhere(triton_backend: str) -> None:
    _, guide, image, index = problem(triton_backend)
    index[0] = COUNT
    leaves = [image.requires_grad_(), guide.requires_grad_()]
    found = bilagrid.splat(*leaves, SIZE, index=index, count=COUNT)
    torch.testing.assert_close(found[4], bilagrid.splat(image, guide, SIZE)[2], rtol=0, atol=0)
    by_values, by_guide = torch.autograd.grad(found.square().sum(), leaves)
    for grad in (by_values, by_guide):
        assert grad.isnan().flatten(1).all(1).tolist() == [True, False, False]


def test_splat_to_a_bank_compiles_and_is_mapped() -> None:
    _, guide, image, index = problem("numba")

    def run(image: Tensor, guide: Tensor, index: Tensor) -> Tensor:
        return bilagrid.splat(image, guide, SIZE, index=index, count=COUNT)

    torch._dynamo.reset()
    wanted = run(image, guide, index)
    assert_near(torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")(image, guide, index), wanted)
    indices = torch.stack([index, index.flip(0)])
    images = torch.stack([image, 2 * image])
    for dims in ((0, None, None), (0, None, 0), (None, None, 0)):
        given = (images if dims[0] == 0 else image, guide, indices if dims[2] == 0 else index)
        found = torch.vmap(run, in_dims=dims)(*given)
        for k in range(2):
            assert_near(found[k], run(*(t if d is None else t[k] for t, d in zip(given, dims, strict=True))))


GUIDE, IMAGE, INDEX = torch.ones(2, 4, 6), torch.ones(2, 3, 4, 6), torch.tensor([0, 1])
REFUSED = {
    "index without a count": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, index=INDEX), ValueError, "index and count go together"),
    "count without an index": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, count=3), ValueError, "index and count go together"),
    "a count of nothing": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, index=INDEX, count=0), ValueError, "count must be .* got 0"),
    "a count in floats": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, index=INDEX, count=2.0), ValueError, "count must be .* got 2.0"),
    "index past the bank": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, index=INDEX, count=1), IndexError, "index must be from 0 to 0, for 1 grids, got 1"),
    "index of another length": (lambda: bilagrid.splat(IMAGE, GUIDE, SIZE, index=INDEX[:1], count=3), ValueError, r"index must have shape \(N,\) = \(2,\) to match values"),
    "sparse points without an index": (lambda: bilagrid.slice_points(torch.ones(1, 1, 2, 2, 2), torch.ones(2, 3), sparse=True), ValueError, "sparse=True needs an index"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()
