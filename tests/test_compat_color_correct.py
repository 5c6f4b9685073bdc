"""Colour correction and the low-rank grid of `bilagrid.compat.gsplat` against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bilagrid.compat import gsplat, nerfstudio
from tests.helpers import numpy64


def quadratic(img: np.ndarray, ref: np.ndarray, rounds: int, eps: float) -> np.ndarray:
    """Least squares by NumPy's own solver, a channel at a time."""
    shape, channels = img.shape, img.shape[-1]
    now, wanted = img.reshape(-1, channels), ref.reshape(-1, channels)
    first = now
    inside = lambda v: (v >= eps) & (v <= 1 - eps)  # noqa: E731
    for _ in range(rounds):
        columns = [now[:, a] * now[:, b] for a in range(channels) for b in range(a, channels)]
        terms = np.stack([*columns, *now.T, np.ones(len(now))], 1)
        out = np.empty_like(now)
        for c in range(channels):
            kept = inside(first[:, c]) & inside(now[:, c]) & inside(wanted[:, c])
            found = np.linalg.lstsq(terms[kept], wanted[kept, c], rcond=None)[0]
            out[:, c] = np.clip(terms @ found, 0, 1)
        now = out
    return now.reshape(shape)


def photograph() -> tuple[Tensor, Tensor]:
    """A photograph, and what another exposure, white balance and curve make of it; some of both is clipped."""
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.chelsea()[::3, ::3].astype(np.float64) / 255)
    other = (1.5 * image * torch.tensor([1.1, 1.0, 0.8])).clamp(0, 1) ** 0.8
    return image, other


@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_quadratic_equals_numpy(rounds: int) -> None:
    image, other = photograph()
    wanted = quadratic(numpy64(image), numpy64(other), rounds, 0.5 / 255)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-5)):
        found = gsplat.color_correct(image.to(dtype), other.to(dtype), num_iters=rounds)
        assert found.dtype == dtype
        np.testing.assert_allclose(numpy64(found), wanted, rtol=0, atol=tolerance)


def test_a_batch_shares_one_warp_and_blocks_do_not_matter() -> None:
    image, other = photograph()
    whole = gsplat.color_correct(image.expand(6, *image.shape), other.expand(6, *other.shape), 2)
    assert whole.numel() // 3 > 2 * gsplat.color_correct.__globals__["_ROWS"]
    torch.testing.assert_close(whole[3], gsplat.color_correct(image, other, 2), rtol=0, atol=1e-9)
    gray = image[..., :1]
    torch.testing.assert_close(gsplat.color_correct(gray, gray.square(), 1), gray.square(), rtol=0, atol=1e-9)


def test_it_corrects_what_an_affine_map_cannot() -> None:
    image, other = photograph()
    error = {
        "none": (image - other).square().mean(),
        "affine": (gsplat.color_correct_affine(image, other) - other).square().mean(),
        "quadratic": (gsplat.color_correct(image, other) - other).square().mean(),
    }
    assert error["quadratic"] < error["affine"] < error["none"]


def test_affine_equals_numpy() -> None:
    image, other = photograph()
    pairs = zip(numpy64(image).reshape(-1, 3).T, numpy64(other).reshape(-1, 3).T, strict=True)
    columns = []
    for a, b in pairs:
        slope, offset = np.polyfit(b, a, 1)
        columns.append(np.clip((a - offset) / slope, 0, 1))
    wanted = np.stack(columns, 1).reshape(image.shape)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        found = gsplat.color_correct_affine(image.to(dtype), other.to(dtype))
        np.testing.assert_allclose(numpy64(found), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("correct", [gsplat.color_correct, gsplat.color_correct_affine])
def test_flat_images_stay_finite(correct) -> None:
    flat = torch.full((4, 5, 3), 0.25)
    assert correct(flat, torch.rand(4, 5, 3)).isfinite().all()
    assert correct(torch.rand(4, 5, 3), flat).isfinite().all()
    black = torch.zeros(4, 5, 3)
    assert correct(black, black).isfinite().all()


def test_names() -> None:
    assert gsplat.color_correct is gsplat.color_correct_quadratic is nerfstudio.color_correct


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.ones(4, 5, 3), torch.ones(4, 5, 2)), ValueError, r"ref must have the shape of img, \(..., C\) = \(4, 5, 3\), got \(4, 5, 2\)"),
        ((torch.ones(4, 3), torch.ones(5, 3)), ValueError, "ref must have the shape of img"),
        ((torch.ones(0, 3), torch.ones(0, 3)), ValueError, r"img must hold at least one pixel, got \(0, 3\)"),
        ((torch.full((4, 3), torch.nan), torch.ones(4, 3)), ValueError, "img must be finite"),
        ((torch.ones(4, 3), torch.full((4, 3), torch.inf)), ValueError, "ref must be finite"),
        ((torch.ones(4, 3).byte(), torch.ones(4, 3)), TypeError, "img must be float16"),
        ((torch.ones(4, 3), torch.ones(4, 3), -1), ValueError, "num_iters must be a number of fits, 0 or more, got -1"),
        ((torch.ones(4, 3), torch.ones(4, 3), 5, torch.nan), ValueError, "eps must be finite, got nan"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, error, message) -> None:
    with pytest.raises(error, match=message):
        gsplat.color_correct(*arguments)


def curve(nodes: np.ndarray, place: float) -> np.ndarray:
    """Curves ``(rank, nodes)`` at a place from -1 to 1."""
    at = np.arange(nodes.shape[1])
    x = (place + 1) / 2 * (nodes.shape[1] - 1)
    return np.array([np.interp(x, at, row) for row in nodes])


@pytest.mark.parametrize("learn_gray", [True, False])
def test_low_rank_grid_equals_numpy(learn_gray: bool) -> None:
    grid = gsplat.BilateralGridCP4D(3, 4, 5, 6, rank=2, learn_gray=learn_gray, bound=1.5).double()
    with torch.no_grad():
        for parameter in grid.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    xyz, rgb = 3.6 * torch.rand(7, 2, 3).double() - 1.8, torch.rand(7, 2, 3).double()
    state = {name: numpy64(tensor) for name, tensor in grid.state_dict().items()}
    factors = [(state[f"fac_{axis}"] + state[f"fac_{axis}_init"])[0, :, :, 0] for axis in (1, 2, 3, 4)]
    assert [factor.shape for factor in factors] == [(2, 6), (2, 5), (2, 4), (2, 3)]
    out = gsplat.slice4d(grid, xyz, rgb)
    for point, color, maps, seen in zip(
        numpy64(xyz).reshape(-1, 3),
        numpy64(rgb).reshape(-1, 3),
        numpy64(out["rgb_affine_mats"]).reshape(-1, 3, 4),
        numpy64(out["rgb"]).reshape(-1, 3),
        strict=True,
    ):
        if learn_gray:
            hidden = np.maximum(state["rgb2gray.0.weight"] @ color + state["rgb2gray.0.bias"], 0)
            gray = np.tanh(2 * (state["rgb2gray.2.weight"] @ hidden + state["rgb2gray.2.bias"]))[0]
        else:
            gray = 2 * (color @ [0.299, 0.587, 0.114]) - 1
        places = [*(point / 1.5), gray]
        product = np.prod([curve(factor, place) for factor, place in zip(factors, places, strict=True)], 0)
        wanted = (state["fac_0.weight"] @ product).reshape(3, 4)
        np.testing.assert_allclose(maps, wanted, rtol=0, atol=1e-6)
        np.testing.assert_allclose(seen, wanted[:, :3] @ color + wanted[:, 3], rtol=0, atol=1e-6)


def test_low_rank_grid_starts_as_the_identity_and_learns() -> None:
    grid = gsplat.BilateralGridCP4D()
    xyz, rgb = 4 * torch.rand(64, 3) - 2, torch.rand(64, 3)
    torch.testing.assert_close(gsplat.slice4d(grid, xyz, rgb)["rgb"], rgb, rtol=0, atol=1e-4)
    assert grid.tv_loss().item() == 0
    optimizer = torch.optim.Adam(grid.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (gsplat.slice4d(grid, xyz, rgb)["rgb"] - 0.5 * rgb - 0.1).square().mean() + 1e-3 * grid.tv_loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in grid.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gsplat.BilateralGridCP4D(rank=0), "rank must be an integer of at least 1, got 0"),
        (lambda: gsplat.BilateralGridCP4D(grid_Z=1.5), "grid_Z must be an integer of at least 1, got 1.5"),
        (lambda: gsplat.BilateralGridCP4D(init_noise_scale=-1), "init_noise_scale must be at least 0, got -1"),
        (lambda: gsplat.BilateralGridCP4D(gray_mlp_depth=1), "gray_mlp_depth must be at least 2"),
        (lambda: gsplat.BilateralGridCP4D(bound=0), "bound must be above 0, got 0"),
        (lambda: gsplat.BilateralGridCP4D()(torch.ones(4, 2), torch.ones(4, 3)), r"xyz must have shape \(..., 3\), got \(4, 2\)"),
        (lambda: gsplat.BilateralGridCP4D()(torch.ones(4, 3), torch.ones(5, 3)), r"rgb must have the shape of xyz, \(4, 3\), got \(5, 3\)"),
    ],
)  # fmt: skip
def test_low_rank_grid_refuses(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
