"""`bilagrid.compat` beside the modules that it stands for, run from their own repositories. Opt-in:

    BILAGRID_PEERS=folder python -m pytest tests/test_compat_peers.py

where the folder holds clones of gsplat and nerfstudio (fused-bilagrid's tests compare with the latter's module, and so do its cases here); with tensorly installed.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bilagrid.compat import fused_bilagrid, gsplat, nerfstudio, pixel_grid
from tests.helpers import assert_near
from tests.splatting import corners, half_pixels

FOLDER = os.environ.get("BILAGRID_PEERS", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="BILAGRID_PEERS names no folder of clones")
LIBRARIES = {
    "gsplat": "gsplat/examples/lib_bilagrid.py",
    "nerfstudio": "nerfstudio/nerfstudio/model_components/lib_bilagrid.py",
}


def load(file: str) -> ModuleType:
    """A module of a clone, by itself."""
    path = Path(FOLDER) / file
    if not path.exists():
        pytest.skip(f"no {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    pytest.importorskip("tensorly")
    return load(LIBRARIES[request.param])


def compare(
    library: ModuleType, ours: ModuleType, size: tuple[int, int, int], call: dict, given: Tensor | None, *more
) -> None:
    """Values and all gradients of ``slice`` in float32: ours with ``given`` for xy is as near to theirs in float64 as float32 can be, and near to theirs in float32.

    ``size`` is (grid_X, grid_Y, grid_W).
    """
    torch.manual_seed(1)
    grids = torch.randn(3, 12, *reversed(size))

    def run(module: ModuleType, xy: Tensor | None, dtype: torch.dtype, *more: bool) -> tuple[Tensor, ...]:
        bank = module.BilateralGrid(3, *size)
        bank.load_state_dict(bank.state_dict() | {"grids": grids})
        bank, rgb = bank.to(dtype), call["rgb"].detach().to(dtype).requires_grad_()
        leaves = [bank.grids, rgb]
        if xy is not None and xy.dtype != dtype:
            xy = xy.detach().to(dtype).requires_grad_(xy.requires_grad)
        leaves += [xy] if xy is not None and xy.requires_grad else []
        out = module.slice(bank, xy, rgb, call["grid_idx"], *more)
        weights = torch.linspace(-1, 1, rgb.numel(), dtype=dtype).reshape(rgb.shape)
        maps = [out["rgb_affine_mats"]] if ours is not fused_bilagrid else []
        return (out["rgb"], *maps, *torch.autograd.grad((out["rgb"] * weights).sum(), leaves))

    found = run(ours, given, torch.float32, *more)
    exact, theirs = (run(library, call["xy"], dtype) for dtype in (torch.float64, torch.float32))
    for mine, right, other in zip(found, exact, theirs, strict=True):
        assert mine.shape == other.shape
        assert_near(mine, right)
        # They add up thousands of pixels one after the other.
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-4 * right.abs().max().item())


@pytest.mark.parametrize("kind", ["half_pixel", "corner_aligned"])
@pytest.mark.parametrize(
    "index", [torch.tensor([[2]]), torch.tensor(1), torch.tensor([[2], [0]]), torch.full((2, 45, 78, 1), 1)]
)
def test_images(library: ModuleType, kind: str, index: Tensor) -> None:
    batch = 2 if index.numel() > 1 else 1
    rgb = 1.2 * torch.rand(batch, 45, 78, 3) - 0.1
    xy = (half_pixels if kind == "half_pixel" else corners)(45, 78).expand(batch, -1, -1, -1)
    call = {"xy": xy, "rgb": rgb, "grid_idx": index}
    compare(library, gsplat, (15, 16, 7), call, pixel_grid(45, 78, kind=kind).expand(batch, -1, -1, -1))
    compare(library, nerfstudio, (15, 16, 7), call, xy)


@pytest.mark.parametrize("lead", [(500,), (50, 9), (3, 20, 30)])
@pytest.mark.parametrize("one", [True, False])
def test_places_anywhere(library: ModuleType, lead: tuple[int, ...], one: bool) -> None:
    index = torch.tensor([1]) if one else torch.arange(lead[0]).reshape(-1, *(1,) * len(lead)) % 3
    xy = (1.2 * torch.rand(*lead, 2) - 0.1).requires_grad_()
    call = {"xy": xy, "rgb": torch.rand(*lead, 3), "grid_idx": index}
    compare(library, gsplat, (16, 16, 8), call, xy)
    compare(library, fused_bilagrid, (16, 16, 8), call, xy, True)


def test_cases_of_fused_bilagrid() -> None:
    """Its tests' sizes and draws, against the module of nerfstudio as there."""
    pytest.importorskip("tensorly")
    library = load(LIBRARIES["nerfstudio"])
    index = torch.tensor([0])
    rgb = 0.5 + 0.5 * torch.randn(1, 345, 678, 3)
    uv = (0.5 + 0.5 * torch.randn(1, 345, 678, 2)).requires_grad_()
    compare(library, fused_bilagrid, (15, 16, 7), {"xy": uv, "rgb": rgb, "grid_idx": index}, uv, True)
    compare(library, fused_bilagrid, (15, 16, 7), {"xy": corners(345, 678), "rgb": rgb, "grid_idx": index}, None)
    for shape in ((25, 12, 7, 16, 15), (3, 12, 5, 7, 15), (26, 12, 8, 16, 16)):
        grids = torch.randn(shape, requires_grad=True)
        both = [f(grids) for f in (library.total_variation_loss, fused_bilagrid.total_variation_loss)]
        assert_near(both[1], both[0])
        assert_near(*(torch.autograd.grad(one, grids)[0] for one in reversed(both)))


def test_the_module_itself(library: ModuleType) -> None:
    theirs, ours = library.BilateralGrid(2, 5, 4, 3), gsplat.BilateralGrid(2, 5, 4, 3)
    for (name, one), (other_name, other) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    theirs.load_state_dict(ours.state_dict())
    rgb, xy, index = torch.rand(2, 3, 6, 7, 3), torch.rand(2, 3, 6, 7, 2), torch.tensor([1, 0])
    assert_near(ours.rgb2gray(rgb), theirs.rgb2gray(rgb))
    for lead in (0, 1, 2, 3):
        cut = (slice(None), *(0,) * lead)
        assert_near(ours(xy[cut], rgb[cut], index), theirs(xy[cut], rgb[cut], index))
    assert_near(ours(xy, rgb), theirs(xy, rgb))
    maps = torch.randn(2, 3, 6, 7, 3, 4)
    assert_near(gsplat.color_affine_transform(maps, rgb), library.color_affine_transform(maps, rgb))


@pytest.mark.parametrize("learn_gray", [True, False])
def test_low_rank_grid(library: ModuleType, learn_gray: bool) -> None:
    size = {"grid_X": 9, "grid_Y": 8, "grid_Z": 7, "grid_W": 6, "learn_gray": learn_gray}
    theirs, ours = library.BilateralGridCP4D(**size), gsplat.BilateralGridCP4D(**size)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    ours.load_state_dict(theirs.state_dict())
    xyz, rgb = 4.4 * torch.rand(300, 3) - 2.2, torch.rand(300, 3)
    results = []
    for module, slice4d in ((theirs, library.slice4d), (ours, gsplat.slice4d)):
        leaves = {
            "xyz": xyz.clone().requires_grad_(),
            "rgb": rgb.clone().requires_grad_(),
            **dict(module.named_parameters()),
        }
        out = slice4d(module, leaves["xyz"], leaves["rgb"])
        loss = (out["rgb"] * torch.linspace(-1, 1, 900).reshape(300, 3)).sum() + module.tv_loss()
        grads = torch.autograd.grad(loss, [leaves[name] for name in sorted(leaves)])
        results.append((out["rgb"], out["rgb_affine_mats"], module.tv_loss(), *grads))
    for one, other in zip(*results, strict=True):
        assert_near(other, one)


def test_color_correct() -> None:
    data = pytest.importorskip("skimage.data")
    theirs = load("gsplat/gsplat/color_correct.py")
    image = torch.from_numpy(data.coffee() / 255.0)
    other = (1.5 * image * torch.tensor([1.1, 1.0, 0.8])).clamp(0, 1) ** 0.8
    for name, in_float32 in (("color_correct_quadratic", 1e-4), ("color_correct_affine", 2e-6)):
        ours, published = getattr(gsplat, name), getattr(theirs, name)
        exact = published(image, other)
        torch.testing.assert_close(ours(image, other), exact, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours(image.float(), other.float()).double(), exact, rtol=0, atol=1e-6)
        # Theirs solves in the image's own precision.
        torch.testing.assert_close(published(image.float(), other.float()).double(), exact, rtol=0, atol=in_float32)
