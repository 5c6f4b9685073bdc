"""`bilagrid.compat.gsplat` against colour grids composed of torch's operators: values, gradients, layouts, the module, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bilagrid.compat import gsplat, nerfstudio, pixel_grid
from tests.helpers import assert_near, device_of
from tests.splatting import corners, half_pixels, off_kinks, seen_through, smoothness


def module(
    num: int, size: tuple[int, int, int], dtype: torch.dtype = torch.float64, **options: bool
) -> gsplat.BilateralGrid:
    """Random grids near the identity; ``size`` is (D, Gh, Gw)."""
    depth, rows, columns = size
    grids = gsplat.BilateralGrid(num, columns, rows, depth, **options).to(dtype)
    with torch.no_grad():
        grids.grids += 0.5 * torch.randn_like(grids.grids)
    return grids


def compare(
    grids: gsplat.BilateralGrid, given: Tensor, xy: Tensor, rgb: Tensor, grid_idx: Tensor, rows: Tensor
) -> None:
    """`slice` with the places ``given`` equals the composition at ``xy``, row n through grid ``rows[n]``, with the gradients by everything."""
    rgb = rgb.clone().requires_grad_()
    by_place = [given] if given.requires_grad else []
    out = gsplat.slice(grids, given, rgb, grid_idx)
    weights = torch.randn_like(out["rgb"]), torch.randn_like(out["rgb_affine_mats"])
    loss = (out["rgb"] * weights[0]).sum() + (out["rgb_affine_mats"] * weights[1]).sum()
    found = torch.autograd.grad(loss, [grids.grids, rgb, *by_place])

    exact = [t.detach().double().requires_grad_() for t in (grids.grids, rgb, xy)]
    seen, maps = seen_through(exact[0], exact[2], exact[1], rows)
    loss = (seen * weights[0]).sum() + (maps * weights[1]).sum()
    wanted = torch.autograd.grad(loss, [*exact[:2], *exact[2:][: len(by_place)]])
    assert out["rgb"].shape == rgb.shape
    assert out["rgb"].dtype == rgb.dtype
    assert out["rgb_affine_mats"].shape == (*rgb.shape[:-1], 3, 4)
    assert_near(out["rgb"], seen)
    assert_near(out["rgb_affine_mats"], maps)
    for one, other in zip(found, wanted, strict=True):
        assert_near(one, other)


@st.composite
def cases(draw: st.DrawFn) -> dict:
    extent = st.sampled_from([1, 2, 5])
    return {
        "size": (draw(st.sampled_from([1, 2, 7])), draw(extent), draw(extent)),
        "lead": draw(st.sampled_from([(1, 1, 1), (1, 6, 9), (2, 7, 1), (3, 4, 33), (9,), (1,), (4, 5), (12, 1)])),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
        "one": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@given(case=cases())
def test_anywhere_equals_the_composition(case: dict) -> None:
    torch.manual_seed(case["seed"])
    lead, dtype = case["lead"], case["dtype"]
    grids = module(3, case["size"], dtype)
    rgb = off_kinks(lead, case["size"][0]).to(dtype)
    # Some places lie outside, none on a node.
    xy = (1.4 * torch.rand(*lead, 2, dtype=dtype) - 0.2).requires_grad_()
    index = torch.randint(3, (1,) if case["one"] else (lead[0],))
    grid_idx = index.reshape(-1, *(1,) * len(lead))
    compare(grids, xy, xy, rgb, grid_idx, index)


@given(case=cases().filter(lambda case: len(case["lead"]) == 3), kind=st.sampled_from(["half_pixel", "corner_aligned"]))
def test_on_a_lattice_equals_the_composition(case: dict, kind: str) -> None:
    torch.manual_seed(case["seed"])
    lead, dtype = case["lead"], case["dtype"]
    grids = module(3, case["size"], dtype)
    rgb = off_kinks(lead, case["size"][0]).to(dtype)
    index = torch.randint(3, (1,) if case["one"] else (lead[0],))
    xy = (half_pixels if kind == "half_pixel" else corners)(*lead[1:], torch.float64)
    compare(grids, pixel_grid(*lead[1:], kind=kind, dtype=dtype), xy, rgb, index.reshape(-1, 1), index)


def test_on_every_backend(backend: str) -> None:
    device = device_of(backend)
    grids, rgb = module(3, (3, 2, 3), torch.float32).to(device), off_kinks((2, 2, 7), 3).float().to(device)
    index = torch.tensor([2, 0], device=device)
    places = torch.rand(2, 2, 7, 2, device=device, requires_grad=True)
    compare(grids, places, places, rgb, index[:, None], index)
    compare(grids, pixel_grid(2, 7, device=device), half_pixels(2, 7).to(device), rgb, index[:, None], index)


def test_a_lattice_takes_the_fused_operator(monkeypatch) -> None:
    calls = []
    fused = gsplat.transformed.__globals__["slice_apply"]
    monkeypatch.setitem(
        gsplat.transformed.__globals__, "slice_apply", lambda *a, **k: calls.append(k) or fused(*a, **k)
    )
    grids, rgb, which = module(3, (4, 5, 6)), torch.rand(2, 8, 9, 3).double(), torch.tensor([[2], [0]])
    xy = pixel_grid(8, 9)
    fast = gsplat.slice(grids, xy.expand(2, -1, -1, -1), rgb, which)["rgb"]
    assert len(calls) == 1
    slow = gsplat.slice(grids, xy.double().expand(2, -1, -1, -1), rgb, which)["rgb"]
    assert len(calls) == 1
    assert_near(fast, slow, torch.float32)
    # One photograph without a batch, a tile of it, and one index for all.
    assert torch.equal(gsplat.slice(grids, xy[0], rgb[0], 2)["rgb"], fast[0])
    assert_near(gsplat.slice(grids, xy[:, 3:7, 2:], rgb[:1, 3:7, 2:], torch.tensor(2))["rgb"], fast[:1, 3:7, 2:])
    assert len(calls) == 3


def test_indices_of_any_layout() -> None:
    grids, rgb, xy = module(4, (3, 4, 5)), torch.rand(2, 6, 7, 3).double(), pixel_grid(6, 7)
    wanted = gsplat.slice(grids, xy, rgb, torch.tensor([[3], [1]]))["rgb"]
    for index in (
        torch.tensor([3, 1]),
        torch.tensor([3, 1], dtype=torch.int32)[:, None, None],
        torch.tensor([3, 1])[:, None, None, None].expand(2, 6, 7, 1),
    ):
        assert torch.equal(gsplat.slice(grids, xy, rgb, index)["rgb"], wanted)
    one = gsplat.slice(grids, xy, rgb, torch.tensor([[3], [3]]))["rgb"]
    for index in (3, torch.tensor(3), torch.tensor([3]), torch.tensor([[[[3]]]]), torch.tensor([3]).expand(2, 6, 7, 1)):
        assert torch.equal(gsplat.slice(grids, xy, rgb, index)["rgb"], one)


def test_rows_of_rays_by_the_first_index_of_each() -> None:
    grids, rgb, xy = module(4, (3, 4, 5)), torch.rand(6, 7, 3).double(), torch.rand(6, 7, 2).double()
    index = torch.randint(4, (6, 7, 1))
    wanted = seen_through(grids.grids, xy, rgb, index[:, 0, 0])[0]
    assert_near(gsplat.slice(grids, xy, rgb, index)["rgb"], wanted)


@pytest.mark.parametrize("lead", [(3, 5), (3, 2, 5), (3, 2, 4, 5), (3, 1, 4, 5), (3,)])
@pytest.mark.parametrize("regular", [False, True])
def test_forward_of_the_module(lead: tuple[int, ...], regular: bool) -> None:
    grids, rgb = module(3, (4, 5, 6)), off_kinks(lead, 4)
    if regular and len(lead) < 3:
        return
    xy = pixel_grid(*lead[-2:], dtype=torch.float64) if regular else torch.rand(*lead, 2).double()
    index = torch.tensor([2, 0, 1])
    wanted = seen_through(grids.grids, xy.expand(*lead, 2), rgb, index)[1]
    assert_near(grids(xy, rgb, index), wanted)
    assert_near(grids(xy, rgb, index, transform=True), seen_through(grids.grids, xy.expand(*lead, 2), rgb, index)[0])
    assert_near(grids(xy, rgb), seen_through(grids.grids, xy.expand(*lead, 2), rgb, torch.arange(3))[1])


def test_interleaved_views_and_halves_are_taken_as_they_are() -> None:
    grids, xy = module(1, (8, 4, 4), torch.float32), pixel_grid(10, 12)
    wide = torch.rand(1, 10, 12, 4)
    exact = seen_through(
        grids.grids.double(), half_pixels(10, 12, torch.float64), wide[..., :3].double(), torch.tensor([0])
    )[0]
    assert_near(gsplat.slice(grids, xy, wide[..., :3], 0)["rgb"], exact)
    for dtype in (torch.float16, torch.bfloat16):
        rgb = wide[..., :3].to(dtype)
        exact = seen_through(grids.grids.double(), half_pixels(10, 12, torch.float64), rgb.double(), torch.tensor([0]))[
            0
        ]
        for place in (xy, xy.clone()):
            out = gsplat.slice(grids, place, rgb, 0)
            assert out["rgb"].dtype == dtype
            assert_near(out["rgb"], exact)
            assert out["rgb_affine_mats"].dtype == torch.float32


def test_nan_stays_at_its_pixel() -> None:
    grids, rgb = module(1, (4, 3, 3), torch.float32), torch.rand(1, 5, 6, 3)
    rgb[0, 2, 3] = torch.nan
    for xy in (pixel_grid(5, 6), half_pixels(5, 6)):
        bad = gsplat.slice(grids, xy, rgb, 0)["rgb"].isnan().any(-1)
        assert bad[0, 2, 3]
        assert bad.sum() == 1


def test_second_order() -> None:
    torch.manual_seed(1)
    for regular in (True, False):
        grids, rgb = module(2, (3, 2, 2)).grids.detach().requires_grad_(), off_kinks((2, 3, 2), 3).requires_grad_()
        xy = pixel_grid(3, 2, dtype=torch.float64) if regular else torch.rand(2, 3, 2, 2).double().requires_grad_()
        bank = gsplat.BilateralGrid(2, 2, 2, 3).double()

        def run(
            grids: Tensor, rgb: Tensor, *place: Tensor, xy: Tensor = xy, bank: gsplat.BilateralGrid = bank
        ) -> Tensor:
            given = (place[0] if place else xy, rgb, torch.tensor([1, 1]))
            return torch.func.functional_call(bank, {"grids": grids}, given, {"transform": True})

        inputs = (grids, rgb) if regular else (grids, rgb, xy)
        assert torch.autograd.gradcheck(run, inputs)
        if regular:
            assert torch.autograd.gradgradcheck(run, inputs)


def test_grids_start_as_the_identity_and_keep_the_layout() -> None:
    grids = gsplat.BilateralGrid(3, grid_X=5, grid_Y=4, grid_W=2)
    assert (grids.grid_width, grids.grid_height, grids.grid_guidance) == (5, 4, 2)
    assert {name: tuple(t.shape) for name, t in grids.state_dict().items()} == {
        "grids": (3, 12, 2, 4, 5),
        "rgb2gray_weight": (1, 3),
    }
    assert [name for name, _ in grids.named_parameters()] == ["grids"]
    rgb = torch.rand(3, 6, 7, 3)
    out = gsplat.slice(grids, pixel_grid(6, 7), rgb, torch.arange(3)[:, None])
    torch.testing.assert_close(out["rgb"], rgb)
    torch.testing.assert_close(out["rgb_affine_mats"], torch.eye(3, 4).expand(3, 6, 7, 3, 4))
    assert grids.rgb2gray(torch.ones(2, 3)).tolist() == [[1], [1]]
    assert tuple(gsplat.BilateralGrid(1).grids.shape) == (1, 12, 8, 16, 16)
    twin = copy.deepcopy(grids)
    twin.load_state_dict(module(3, (2, 4, 5), torch.float32).state_dict())
    assert not torch.equal(twin.grids, grids.grids)


def test_another_luma_is_refused() -> None:
    grids = gsplat.BilateralGrid(1)
    state = grids.state_dict() | {"rgb2gray_weight": torch.tensor([[0.2126, 0.7152, 0.0722]])}
    with pytest.raises(ValueError, match=r"rgb2gray_weight must be BT\.601's"):
        grids.load_state_dict(state)


@pytest.mark.parametrize(
    "shape",
    [(3, 2), (3, 2, 5), (3, 2, 4, 5), (3, 12, 4, 3, 5), (2, 3, 2, 3, 4, 2), (2, 3, 1, 1), (1, 1, 1, 3), (5, 5, 16, 1)],
)
def test_total_variation(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert_near(gsplat.total_variation_loss(x), smoothness(x))
    if max(shape[2:], default=1) > 1:
        by_ours, by_theirs = (torch.autograd.grad(f(x), x)[0] for f in (gsplat.total_variation_loss, smoothness))
        assert_near(by_ours, by_theirs)


def test_total_variation_of_chosen_grids() -> None:
    grids = module(5, (3, 4, 2))
    for index in (torch.tensor([3]), torch.tensor([[3], [0]]), torch.tensor([1, 1, 4]), 2):
        rows = index.flatten().tolist() if isinstance(index, Tensor) else [index]
        assert_near(grids.tv_loss(index), smoothness(grids.grids[rows]))
        assert_near(gsplat.total_variation_loss(grids.grids, index), smoothness(grids.grids[rows]))
    # Chosen one after the other, they are on average the loss of all.
    each = torch.stack([grids.tv_loss(index) for index in range(5)])
    assert_near(each.mean(), grids.tv_loss())
    by_one = torch.autograd.grad(grids.tv_loss(torch.tensor([[3]])), grids.grids)[0]
    assert not by_one[[0, 1, 2, 4]].any()
    assert by_one[3].any()


def test_loss_over_a_model() -> None:
    class Model:
        bil_grids = (module(2, (3, 4, 2)), module(1, (2, 2, 2)))

    class Config:
        bilgrid_tv_loss_mult = 10.0

    wanted = sum(10 * smoothness(grids.grids) for grids in Model.bil_grids)
    assert_near(gsplat.bilateral_grid_tv_loss(Model, Config), wanted)


def test_color_affine_transform() -> None:
    maps, rgb = torch.randn(4, 5, 3, 4).double(), torch.rand(4, 5, 3).double()
    wanted = torch.einsum("...ij,...j->...i", maps, torch.cat([rgb, torch.ones(4, 5, 1)], -1))
    assert_near(gsplat.color_affine_transform(maps, rgb), wanted)
    assert_near(
        gsplat.color_affine_transform(maps[0, 0], rgb),
        torch.einsum("ij,...j->...i", maps[0, 0, :, :3], rgb) + maps[0, 0, :, 3],
    )
    with pytest.raises(ValueError, match=r"affine_mats must have shape \(..., 3, 4\), got \(4, 3\)"):
        gsplat.color_affine_transform(torch.ones(4, 3), rgb)
    with pytest.raises(ValueError, match=r"rgb must have shape \(..., 3\), got \(4,\)"):
        gsplat.color_affine_transform(maps, torch.ones(4))


def test_nerfstudio_has_the_same() -> None:
    assert nerfstudio.slice is gsplat.slice
    assert nerfstudio.BilateralGrid is gsplat.BilateralGrid
    assert all(hasattr(nerfstudio, name) for name in nerfstudio.__all__)


GRIDS = gsplat.BilateralGrid(3)
RGB, XY = torch.rand(2, 4, 5, 3), torch.rand(2, 4, 5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((GRIDS, XY, RGB[..., :2], 0), ValueError, r"rgb must have shape \(..., 3\) and 2 to 5 dimensions, got \(2, 4, 5, 2\)"),
        ((GRIDS, XY, RGB[None], 0), ValueError, r"rgb must be a tensor \(..., 3\) of 2 to 4 dimensions, got \(1, 2, 4, 5, 3\)"),
        ((GRIDS, XY, "rgb", 0), ValueError, "rgb must be a tensor .* got str"),
        ((GRIDS, XY[:, :3], RGB, 0), ValueError, r"xy must have shape \(..., 2\) = \(2, 4, 5, 2\) to match rgb, got \(2, 3, 5, 2\)"),
        ((GRIDS, XY[..., :1], RGB, 0), ValueError, r"xy must have shape .* got \(2, 4, 5, 1\)"),
        ((GRIDS, pixel_grid(5, 5), RGB, 0), ValueError, r"xy must have shape .* got \(1, 5, 5, 2\)"),
        ((GRIDS, XY.int(), RGB, 0), TypeError, "xy must be float16, bfloat16, float32 or float64, got torch.int32"),
        ((GRIDS, None, RGB, 0), TypeError, "xy must be a torch.Tensor, got NoneType"),
        ((GRIDS, XY, RGB, torch.tensor([0.0])), TypeError, "grid_idx must be a tensor of integers such as int64, got torch.float32"),
        ((GRIDS, XY, RGB, torch.tensor([True])), TypeError, "grid_idx must be a tensor of integers such as int64, got torch.bool"),
        ((GRIDS, XY, RGB, True), TypeError, "grid_idx must be an integer or a tensor of integers, got bool"),
        ((GRIDS, XY, RGB, torch.zeros(3, 1).long()), ValueError, "grid_idx must hold one index, or one for each leading row of rgb, .* N = 2, got 3"),
        ((GRIDS, XY, RGB, torch.zeros(2, 1, 1, 1, 1).long()), ValueError, "grid_idx must have 0 to 4 dimensions"),
        ((GRIDS, XY, RGB, torch.zeros(2, 0).long()), ValueError, r"grid_idx must be a dense \(strided\) tensor with an index in each leading row, got \(2, 0\)"),
        ((GRIDS, XY, RGB, torch.zeros(2, 1).long().to_sparse()), ValueError, "grid_idx must be a dense .* got .* torch.sparse_coo"),
        ((GRIDS, XY, RGB, torch.tensor([3])), IndexError, "3"),
        ((GRIDS.grids, XY, RGB, 0), TypeError, "bil_grids must be a bilagrid.compat.gsplat.BilateralGrid or hold one, got Parameter"),
        ((torch.nn.Linear(1, 1), XY, RGB, 0), TypeError, "bil_grids must be .* got Linear"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        gsplat.slice(*arguments)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gsplat.BilateralGrid(0), ValueError, "num must be at least 1, got 0"),
        (lambda: gsplat.BilateralGrid(1, grid_W=0), ValueError, "grid_W must be at least 1, got 0"),
        (lambda: gsplat.BilateralGrid(1.5), TypeError, "num must be an integer, got 1.5"),
        (lambda: gsplat.BilateralGrid(torch.tensor(2.0)), TypeError, r"num must be an integer, got tensor\(2.\)"),
        (lambda: gsplat.BilateralGrid(1, gauge=1), TypeError, "gauge must be True or False, got 1"),
        (lambda: gsplat.BilateralGrid(1, sparse=None), TypeError, "sparse must be True or False, got None"),
        (lambda: GRIDS(XY, RGB), ValueError, "rgb must have one leading row for each of the 3 grids where no index is given, got 2"),
        (lambda: gsplat.total_variation_loss(torch.ones(3)), ValueError, r"x must have shape \(B, C, ...\) .* got \(3,\)"),
        (lambda: gsplat.total_variation_loss(torch.ones(2, 3, 4, 0, 2)), ValueError, r"x must have shape .* with all but B at least 1, got \(2, 3, 4, 0, 2\)"),
        (lambda: gsplat.total_variation_loss(torch.ones(3, 3), sparse="yes"), TypeError, "sparse must be True or False, got 'yes'"),
        (lambda: gsplat.total_variation_loss(torch.ones(3, 3).int()), TypeError, "x must be float16"),
        (lambda: GRIDS.tv_loss(7), IndexError, "7"),
        (lambda: GRIDS.tv_loss(0.5), TypeError, "idx must be an integer"),
        (lambda: GRIDS(None, RGB, 0), TypeError, "grid_xy must be a torch.Tensor, got NoneType"),
        (lambda: GRIDS(XY, RGB.tolist(), 0), TypeError, "rgb must be a torch.Tensor, got list"),
        (lambda: GRIDS(XY, torch.ones(()), 0), ValueError, r"rgb must have shape \(..., 3\) and 2 to 5 dimensions, got \(\)"),
        (lambda: GRIDS(XY, RGB, 0, transform=1), TypeError, "transform must be True or False, got 1"),
        (lambda: gsplat.BilateralGrid(3, gauge=True)(XY, RGB, -1), IndexError, "index must be from 0 to 2, for 3 grids, got -1"),
        (lambda: gsplat.BilateralGrid(3, gauge=True).effective_grids(3), IndexError, "index must be from 0 to 2, for 3 grids, got 3"),
        (lambda: gsplat.color_affine_transform([[1.0]], RGB), TypeError, "affine_mats must be a torch.Tensor, got list"),
        (lambda: gsplat.color_affine_transform(torch.ones(5, 3, 4), RGB[0, :, 0]), ValueError, r"rgb must have leading dimensions that broadcast with those of affine_mats, \(5,\), got \(4, 3\)"),
    ],
)  # fmt: skip
def test_wrong_uses(make, error, message) -> None:
    with pytest.raises(error, match=message):
        make()
