"""Slice at points against its reference, what index may be, and the bits that must never change."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import bilagrid
from bilagrid import Lattice
from bilagrid.ops.slice_points import slice_points_, splat_points_
from tests.helpers import STRIDES, TOLERANCE, assert_near, device_of, numpy64, strided
from tests.reference import slice_points as expected

BITS = {"x": 1, "y": 2, "z": 4}
MASKS = ["", "x", "y", "z", "xy", "xz", "yz", "xyz"]


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Banks of grids and places in them: extents of 1, no points, several rows of them, an index that is expanded."""
    extent = st.sampled_from([1, 2, 3, 5])
    return {
        "grids": draw(st.sampled_from([1, 2, 7])),
        "channels": draw(st.sampled_from([1, 2, 3, 12])),
        "size": (draw(st.sampled_from([1, 2, 4])), draw(extent), draw(extent)),
        "leading": draw(st.sampled_from([(), (0,), (1,), (9,), (2, 5), (2, 0), (3, 2, 4), (2, 2, 2, 3)])),
        "given": draw(st.sampled_from(["each", "first", "none"])),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "strides": draw(st.sampled_from(STRIDES)),
        "by": draw(st.sampled_from(MASKS)),
        "seed": draw(st.integers(0, 2**16)),
    }


def drawn(backend: str, case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, np.ndarray]:
    """Grid, points, index, values, and the grid of each point. Points reach beyond the grid, and some lie on its nodes."""
    generator = torch.Generator().manual_seed(case["seed"])
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    if backend == "interpreter":
        # A node costs milliseconds there.
        case = case | {"grids": min(case["grids"], 2), "size": tuple(min(extent, 3) for extent in case["size"])}
    leading, (depth, rows, columns) = case["leading"], case["size"]
    extents = torch.tensor([columns, rows, depth], dtype=torch.float64)
    points = (torch.rand(*leading, 3, generator=generator, dtype=torch.float64) * 1.6 - 0.3) * (extents + 1)
    if leading:
        points[..., ::3, :] = points[..., ::3, :].round()
    grids = case["grids"]
    if case["given"] == "none" or not leading:
        grids = 1 if not leading else leading[0] if case["seed"] % 2 else 1
        index = None
        which = torch.arange(grids).view(-1, *(1,) * (len(leading) - 1)) if leading else torch.tensor(0)
    else:
        shape = leading if case["given"] == "each" else (leading[0], *(1,) * (len(leading) - 1))
        which = torch.randint(grids, shape, generator=generator)
        index = which if case["given"] == "each" else which.flatten()
    place = device_of(backend), case["dtype"]
    grid = strided(draw(grids, case["channels"], depth, rows, columns).to(*place), case["strides"])
    values = strided(draw(*leading, case["channels"]).to(*place), "sparse" if case["strides"] == "sparse" else "")
    points = strided(points.to(*place), "sparse" if case["strides"] == "sparse" else "")
    return grid, points, None if index is None else index.to(place[0]), values, which.expand(leading).flatten().numpy()


@given(case=cases())
def test_equals_reference(backend: str, case: dict[str, Any]) -> None:
    grid, points, index, values, which = drawn(backend, case)
    points.requires_grad_()
    grid.requires_grad_()
    out = bilagrid.slice_points(grid, points, index)
    assert out.dtype == grid.dtype
    assert out.shape == (*points.shape[:-1], grid.shape[1])
    assert out.is_contiguous()
    flat = numpy64(points).reshape(-1, 3)
    wanted = expected.slice_points(numpy64(grid), flat, which)
    assert_near(out, wanted.reshape(out.shape))
    by_grid, by_points = torch.autograd.grad(out, (grid, points), values)
    given_ = numpy64(values).reshape(-1, grid.shape[1])
    size = (grid.shape[0], *grid.shape[2:])
    assert_near(by_grid, expected.slice_points_bwd_grid(given_, flat, which, size))
    assert_near(by_points, expected.slice_points_bwd_points(numpy64(grid), flat, which, given_).reshape(points.shape))


@given(case=cases())
@hypothesis.example(case={"grids": 2, "channels": 3, "size": (3, 4, 5), "leading": (2, 5), "given": "each", "dtype": torch.float64, "strides": "interleaved", "by": "xy", "seed": 1})  # fmt: skip
def test_derivatives_equal_reference(backend: str, case: dict[str, Any]) -> None:
    grid, points, index, values, which = drawn(backend, case | {"leading": (2, 3, 2)})
    if index is None:
        index = torch.from_numpy(which.reshape(2, 3, 2).copy()).to(grid.device)
    index = index.view(-1, *(1,) * (3 - index.ndim)).expand(2, 3, 2) if index.ndim < 3 else index
    by = case["by"]
    mask = sum(BITS[name] for name in by)
    flat, given_, size = (
        numpy64(points).reshape(-1, 3),
        numpy64(values).reshape(12, -1),
        (grid.shape[0], *grid.shape[2:]),
    )
    points.requires_grad_()
    out = slice_points_(grid, points, index, mask)
    assert_near(out, expected.slice_points(numpy64(grid), flat, which, by).reshape(out.shape))
    splatted = splat_points_(values, points, index, size, mask)
    assert_near(splatted, expected.slice_points_bwd_grid(given_, flat, which, size, by))
    if by != "xyz":
        (by_points,) = torch.autograd.grad(out, points, values)
        wanted = expected.slice_points_bwd_points(numpy64(grid), flat, which, given_, by)
        assert_near(by_points, wanted.reshape(points.shape))


def test_equals_grid_sample(backend: str) -> None:
    device = device_of(backend)
    grid = torch.randn(2, 5, 6, 4, 3, device=device)
    unit = 2.4 * torch.rand(2, 3, 7, 3, device=device) - 1.2
    sampled = torch.nn.functional.grid_sample(grid, unit[:, None], padding_mode="border", align_corners=True)
    points = (unit + 1) / 2 * torch.tensor([2.0, 3.0, 5.0], device=device)
    assert_near(bilagrid.slice_points(grid, points), sampled[:, :, 0].movedim(1, -1))


@pytest.mark.parametrize("kind", [Lattice.cell_centered, Lattice.half_pixel, Lattice.corner_aligned])
def test_points_of_a_lattice_equal_slice(backend: str, kind: Callable[..., Lattice]) -> None:
    """With gradients, on a photograph's luma."""
    pytest.importorskip("skimage")
    from skimage import data

    photo = torch.from_numpy(data.astronaut()[100:104, 200:207].copy()).double() / 255
    guide = (photo @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64))[None].to(device_of(backend))
    grid = torch.randn(1, 2, 3, 2, 3, dtype=torch.float64, device=guide.device)
    lattice = kind((3, 2, 3), (4, 7))
    (scale_z, scale_y, scale_x), (offset_z, offset_y, offset_x) = lattice.scale, lattice.offset
    y, x = torch.meshgrid(torch.arange(4).double(), torch.arange(7).double(), indexing="ij")
    place = [(x * scale_x + offset_x)[None].to(guide), (y * scale_y + offset_y)[None].to(guide)]

    def at_points(grid: Tensor, guide: Tensor) -> Tensor:
        return bilagrid.slice_points(grid, torch.stack([*place, guide * scale_z + offset_z], -1)).movedim(-1, 1)

    leaves = [t.requires_grad_() for t in (grid, guide)]
    found, wanted = at_points(*leaves), bilagrid.slice(*leaves, lattice=lattice)
    assert_near(found, wanted)
    weights = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(found, leaves, weights), torch.autograd.grad(wanted, leaves, weights), strict=True
    ):
        assert_near(a, b)


@pytest.mark.parametrize("axis", [0, 1, 2], ids="xyz")
@pytest.mark.parametrize(
    ("t", "slope"), [(-1.0, 0.0), (0.0, 0.0), (1.0, 5.0), (2.0, 7.0), (2.5, 7.0), (3.0, 0.0), (4.0, 0.0)]
)
def test_derivative_at_the_kinks(backend: str, axis: int, t: float, slope: float) -> None:
    shape = [1, 1, 1]
    shape[2 - axis] = 4
    grid = torch.tensor([1.0, 4.0, 9.0, 16.0], device=device_of(backend)).view(1, 1, *shape)
    points = torch.zeros(1, 3, device=device_of(backend))
    points[0, axis] = t
    bilagrid.slice_points(grid, points.requires_grad_()).sum().backward()
    assert points.grad is not None
    assert points.grad[0, axis].item() == pytest.approx(slope)


def test_infinite_points_saturate_and_nan_stays_at_its_point(backend: str) -> None:
    device, inf, nan = device_of(backend), float("inf"), float("nan")
    grid = torch.randn(1, 3, 4, 3, 5, device=device, requires_grad=True)
    points = torch.tensor([[inf, -inf, 9.0], [nan, 1, 1], [1, nan, 1], [1, 1, nan], [1.5, 1.5, 1.5]], device=device)
    points.requires_grad_()
    out = bilagrid.slice_points(grid, points)
    assert_near(out[0], grid[0, :, -1, 0, -1])
    assert out.isnan().any(1).tolist() == [False, True, True, True, False]
    by_grid, by_points = torch.autograd.grad(out, (grid, points), torch.ones_like(out))
    assert by_points.isnan().any(1).tolist() == [False, True, True, True, False]
    calm = points.detach()[[0, 4]]
    (wanted,) = torch.autograd.grad(bilagrid.slice_points(grid, calm).sum(), grid)
    assert_near(by_grid, wanted)


def test_what_index_may_be(backend: str) -> None:
    device = device_of(backend)
    bank = torch.randn(5, 2, 2, 3, 3, device=device)
    points = 3 * torch.rand(2, 3, 4, 3, device=device)
    rows = torch.tensor([[0, 4, 2], [3, 3, 1]], device=device)
    whole = rows[..., None].expand(2, 3, 4)
    wanted = bilagrid.slice_points(bank, points, whole)
    for index in (rows, rows.int(), rows[..., None], whole.contiguous()):
        torch.testing.assert_close(bilagrid.slice_points(bank, points, index), wanted, rtol=0, atol=0)
    each = bilagrid.slice_points(bank, points, rows[:, 0])
    assert_near(each[1], bilagrid.slice_points(bank[3:4], points[1]))
    assert_near(
        bilagrid.slice_points(bank, points, torch.tensor(4, device=device)), bilagrid.slice_points(bank[4:], points)
    )
    assert_near(
        bilagrid.slice_points(bank, points[0, 0, 0], torch.tensor(4, device=device)),
        bilagrid.slice_points(bank[4:], points[0, 0, 0]),
    )
    one_each = bilagrid.slice_points(bank, points[0, 0, :1].expand(5, 3))
    assert_near(one_each[2:3], bilagrid.slice_points(bank[2:3], points[0, 0, :1]))


def test_no_points_and_no_grids(backend: str) -> None:
    device = device_of(backend)
    grid = torch.randn(2, 3, 2, 2, 2, device=device, requires_grad=True)
    out = bilagrid.slice_points(
        grid, torch.empty(0, 3, device=device), torch.empty(0, dtype=torch.int64, device=device)
    )
    assert out.shape == (0, 3)
    (by_grid,) = torch.autograd.grad(out.sum(), grid)
    assert_near(by_grid, torch.zeros_like(grid))
    assert bilagrid.slice_points(grid[:0], torch.empty(0, 7, 3, device=device)).shape == (0, 7, 3)


def test_mixed_dtypes(backend: str) -> None:
    device = device_of(backend)
    grid, points = torch.randn(1, 2, 4, 3, 3, device=device), 2 * torch.rand(6, 3, device=device).half().float()
    assert bilagrid.slice_points(grid, points.half()).dtype == torch.float32
    assert_near(bilagrid.slice_points(grid, points.half()), bilagrid.slice_points(grid, points))
    assert bilagrid.slice_points(grid.half(), points).dtype == torch.float16
    assert_near(bilagrid.slice_points(grid.half(), points.double()), bilagrid.slice_points(grid, points), torch.float16)
    points = points.half().requires_grad_()
    bilagrid.slice_points(grid, points).sum().backward()
    assert points.grad is not None
    assert points.grad.dtype == torch.float16


@pytest.mark.parametrize("indexed", [True, False])
def test_many_points_in_few_nodes(backend: str, indexed: bool) -> None:
    """More points than are added up in one go, on either backend."""
    device = device_of(backend)
    count, size = (5_000, (1, 1, 2)) if backend != "interpreter" else (300, (1, 1, 2))
    points, values = torch.rand(1, count, 3, device=device), torch.randn(1, 1, count, 2, device=device)
    index = torch.arange(count, device=device).view(1, 1, count) % 2 if indexed else None
    which = np.arange(count) % 2 if indexed else np.zeros(count, int)
    found = splat_points_(values, points[:, None], index, (2 if indexed else 1, *size))
    flat, given_ = numpy64(points)[0], numpy64(values)[0, 0]
    assert_near(found, expected.slice_points_bwd_grid(given_, flat, which, (len(found), *size)))


def _everything(bank: Tensor, points: Tensor, index: Tensor | None) -> list[Tensor]:
    leaves = [t.clone().requires_grad_() for t in (bank, points)]
    out = bilagrid.slice_points(*leaves, index)
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


SIZES = {"chunks": (4, 6, 5), "rows": (40, 60, 50)}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("indexed", [True, False])
def test_neither_threads_nor_the_batch_change_a_bit(size: tuple[int, int, int], indexed: bool) -> None:
    """In a grid that is added up in chunks, of which there are several here, and in one that is added up by its rows."""
    bank = torch.randn(3, 5, *size)
    points = torch.rand(3, 9_001, 3) * torch.tensor(size[::-1])
    index = torch.randint(3, (3, 9_001)) if indexed else None
    torch.set_num_threads(1)
    alone = _everything(bank, points, index)
    torch.set_num_threads(3)
    for a, b in zip(_everything(bank, points, index), alone, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    if indexed:
        # A grid's points in the same order, and other grids' among them.
        mine = index == 1
        (by_bank,) = torch.autograd.grad(
            bilagrid.slice_points(leaf := bank[1:2].clone().requires_grad_(), points[mine]).square().sum(), leaf
        )
        torch.testing.assert_close(by_bank[0], alone[1][1], rtol=0, atol=0)
    else:
        for a, b in zip(_everything(bank[1:2], points[1:2], None), alone, strict=True):
            torch.testing.assert_close(a[0], b[1], rtol=0, atol=0)
    double = [t.double() for t in (bank, points)]
    for a, b in zip(alone, _everything(*double, index), strict=True):
        assert_near(a, b, torch.float32)


@pytest.mark.parametrize("mapped", [m for m in itertools.product((0, None), repeat=3) if any(d == 0 for d in m)])
@pytest.mark.parametrize("indexed", [True, False])
def test_vmap_equals_a_loop(mapped: tuple[int | None, ...], indexed: bool) -> None:
    if not indexed and mapped[2] == 0:
        pytest.skip("nothing to map")
    bank = torch.randn(*(3,) * (mapped[0] == 0), 2, 2, 2, 3, 3)
    points = 3 * torch.rand(*(3,) * (mapped[1] == 0), 2, 5, 3)
    index = torch.randint(2, (*(3,) * (mapped[2] == 0), 2, 5)) if indexed else None

    def run(bank: Tensor, points: Tensor, index: Tensor | None) -> Tensor:
        return bilagrid.slice_points(bank, points, index).square().sum()

    for method in (run, torch.func.grad(run, argnums=(0, 1))):
        dims = (*mapped[:2], mapped[2] if indexed else None)
        found = torch.vmap(method, in_dims=dims)(bank, points, index)
        for k in range(3):
            alone = method(
                *(t if d is None or t is None else t[k] for t, d in zip((bank, points, index), dims, strict=True))
            )
            for a, b in zip(
                torch.utils._pytree.tree_leaves(found), torch.utils._pytree.tree_leaves(alone), strict=True
            ):
                assert_near(a[k], b)


def test_jacrev_of_jacrev_and_of_the_bank() -> None:
    bank = torch.randn(2, 1, 3, 3, 3, dtype=torch.float64)
    points = 0.1 + 1.8 * torch.rand(2, 3, dtype=torch.float64)
    index = torch.tensor([1, 0])
    matrix = torch.func.jacrev(lambda g: bilagrid.slice_points(g, points, index))(bank).reshape(2, -1)
    assert_near(matrix @ bank.flatten(), bilagrid.slice_points(bank, points, index).flatten())
    hessian = torch.func.jacrev(torch.func.jacrev(lambda p: bilagrid.slice_points(bank, p, index).sum()))(points)
    square = hessian.reshape(6, 6)
    assert square[0, 1:3].abs().min() > 0
    assert_near(square.diagonal(), torch.zeros(6))
    assert_near(square, square.mT)


def test_compile_has_one_graph_for_any_number_of_points() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(bank: Tensor, points: Tensor, index: Tensor) -> Tensor:
        return bilagrid.slice_points(bank, points, index).square().sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counter)
    for rays in (11, 23, 40):
        given_ = [torch.randn(4, 3, 2, 3, 3).requires_grad_(), (3 * torch.rand(rays, 3)).requires_grad_()]
        index = torch.randint(4, (rays,))
        found, wanted = compiled(*given_, index), run(*given_, index)
        for a, b in zip(torch.autograd.grad(found, given_), torch.autograd.grad(wanted, given_), strict=True):
            assert_near(a, b)
    assert counter.frame_count == 1


def test_export_with_any_number_of_points() -> None:
    class Rays(torch.nn.Module):
        def forward(self, bank: Tensor, points: Tensor, index: Tensor) -> Tensor:
            return bilagrid.slice_points(bank, points, index)

    rays = torch.export.Dim("rays", min=2)
    given_ = torch.randn(4, 3, 2, 3, 3), torch.rand(8, 3), torch.randint(4, (8,))
    program = torch.export.export(
        Rays(), given_, dynamic_shapes={"bank": None, "points": {0: rays}, "index": {0: rays}}
    )
    other = given_[0], torch.rand(31, 3), torch.randint(4, (31,))
    assert_near(program.module()(*other), Rays()(*other))


GRID, POINTS, INDEX = torch.ones(4, 2, 3, 3, 3), torch.ones(5, 6, 3), torch.zeros(5, 6, dtype=torch.int64)
REFUSED = {
    "points of two numbers": (lambda: bilagrid.slice_points(GRID, POINTS[..., :2], INDEX), ValueError, r"points must have shape \(\.\.\., 3\).*got \(5, 6, 2\)"),
    "rank of the grid": (lambda: bilagrid.slice_points(GRID[0], POINTS), ValueError, "grid must have shape"),
    "other batch": (lambda: bilagrid.slice_points(GRID, POINTS), ValueError, r"points must have shape \(N, \.\.\., 3\) with N = 4 .* pass index"),
    "index of other shape": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX.T), ValueError, r"index must have the dimensions of points, \(5, 6\), .* got \(6, 5\)"),
    "index of more dimensions": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX[..., None]), ValueError, "index must have the dimensions"),
    "index in floats": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX.float()), TypeError, "index must be int64 or int32, got torch.float32"),
    "a number for an index": (lambda: bilagrid.slice_points(GRID, POINTS, 3), TypeError, "index must be a torch.Tensor of int64 or int32, got int"),
    "index elsewhere": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX.to("meta")), ValueError, "index must be on cpu as grid is, got meta"),
    "index past the bank": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX + 4), IndexError, "index must be from 0 to 3, for 4 grids, got 4"),
    "negative index": (lambda: bilagrid.slice_points(GRID, POINTS, INDEX - 2), IndexError, "index must be from 0 to 3, for 4 grids, got -2"),
    "an empty bank": (lambda: bilagrid.slice_points(GRID[:0], POINTS, INDEX), ValueError, "grid must have at least one grid"),
    "points in integers": (lambda: bilagrid.slice_points(GRID, POINTS.int(), INDEX), TypeError, "points must be float16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


def test_an_index_out_of_range_is_refused_in_a_compiled_graph_and_under_vmap() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(bilagrid.slice_points, fullgraph=True, backend="aot_eager")
    with pytest.raises(IndexError, match="index must be from 0 to 3"):
        compiled(GRID, POINTS, INDEX + 4)
    with pytest.raises(IndexError, match="index must be from"):
        torch.vmap(bilagrid.slice_points)(
            GRID.expand(2, *GRID.shape), POINTS.expand(2, 5, 6, 3), (INDEX + 4).expand(2, 5, 6)
        )
