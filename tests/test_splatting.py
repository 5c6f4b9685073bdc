"""A splatting-like training loop: one scene learned from many photographs of it, a colour grid each, with our module and with a composition of torch's operators."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("skimage")

from skimage import data

from bilagrid.compat import fused_bilagrid, gsplat
from perf import splatting
from perf.splatting import COMPOSED, Loop

COUNT, SIZE = 6, (4, 5, 3)


@pytest.fixture(scope="module")
def image() -> Tensor:
    """A real photograph, (H, W, 3) in [0, 1]."""
    return torch.from_numpy(data.astronaut()[8:392:8, 40:424:6].astype(np.float32) / 255)


@pytest.fixture(scope="module")
def photos(image: Tensor) -> Tensor:
    return splatting.photographs(image, COUNT)


def loop(photos: Tensor, library=gsplat, **how) -> Loop:
    return Loop(photos, library, size=SIZE, **how)


def error(scene: Tensor, image: Tensor) -> float:
    return (scene.detach() - image).square().mean().sqrt().item()


def test_photographs_differ_in_exposure_and_white_balance(image: Tensor, photos: Tensor) -> None:
    assert photos.shape == (COUNT, *image.shape)
    assert 0 <= photos.min() <= photos.max() <= 1
    means = photos.mean((1, 2))
    assert means.mean(1).max() > 1.8 * means.mean(1).min()
    assert (means[:, 0] / means[:, 2]).std() > 0.02


# Adam makes a full step of a gradient that is rounding and nothing else: so errors here are a thousand times those of one call.
@pytest.mark.parametrize(("dtype", "of_losses", "of_scene"), [(torch.float32, 2e-4, 2e-3), (torch.float64, 1e-8, 1e-7)])
@pytest.mark.parametrize("library", [gsplat, fused_bilagrid], ids=["gsplat", "fused_bilagrid"])
def test_the_same_losses_as_the_composition(
    photos: Tensor, library, dtype: torch.dtype, of_losses: float, of_scene: float
) -> None:
    steps = 10 * COUNT
    ours, theirs = loop(photos.to(dtype), library), loop(photos.to(dtype), COMPOSED)
    np.testing.assert_allclose(ours.losses(steps), theirs.losses(steps), rtol=of_losses)
    torch.testing.assert_close(ours.scene, theirs.scene, rtol=0, atol=of_scene)
    torch.testing.assert_close(ours.grids.grids, theirs.grids.grids, rtol=0, atol=of_scene)


def test_it_learns(photos: Tensor) -> None:
    losses = loop(photos).losses(40 * COUNT)
    first, last = losses[:COUNT], losses[-COUNT:]
    assert sum(last) < 0.1 * sum(first)


def test_the_same_bits_again_and_with_other_threads(photos: Tensor) -> None:
    first = loop(photos)
    losses, threads = first.losses(2 * COUNT), torch.get_num_threads()
    again = loop(photos)
    torch.set_num_threads(1 if threads > 1 else 2)
    # Adam and the mean over the scene are torch's; the gradients of the grids are ours.
    assert again.losses(2 * COUNT) == pytest.approx(losses, rel=1e-6)
    torch.set_num_threads(threads)
    assert loop(photos).losses(2 * COUNT) == losses


def test_total_variation_over_the_grids_of_the_step(photos: Tensor) -> None:
    everywhere, active = loop(photos), loop(photos, active=True)
    for one in (everywhere, active):
        one.losses(30 * COUNT)
    torch.testing.assert_close(active.scene, everywhere.scene, rtol=0, atol=0.1)
    rough = [one.grids.tv_loss().item() for one in (everywhere, active)]
    assert rough[1] < 3 * rough[0]


def test_frozen_grids(photos: Tensor) -> None:
    trained = loop(photos)
    trained.losses(10 * COUNT)
    trained.grids.requires_grad_(False)
    kept, scene = trained.grids.grids.clone(), trained.scene.detach().clone()
    trained.losses(COUNT)
    assert torch.equal(trained.grids.grids, kept)
    assert trained.grids.grids.grad is None or not trained.grids.grids.grad.any()
    assert not torch.equal(trained.scene, scene)


@pytest.mark.parametrize("library", [gsplat, fused_bilagrid], ids=["gsplat", "fused_bilagrid"])
@pytest.mark.parametrize("regular", [True, False])
def test_sparse_gradients_are_the_dense_ones(library, regular: bool) -> None:
    rgb, index = torch.rand(3, 6, 7, 3), torch.tensor([[3], [1], [3]])
    xy = gsplat.pixel_grid(6, 7) if regular else torch.rand(3, 6, 7, 2)
    grads = []
    for sparse in (False, True):
        torch.manual_seed(3)
        grids = library.BilateralGrid(5, 3, 4, 5, sparse=sparse)
        with torch.no_grad():
            grids.grids += torch.randn_like(grids.grids)
        loss = library.slice(grids, xy, rgb, index)["rgb"].square().mean() + grids.tv_loss(index)
        grads.append(torch.autograd.grad(loss, grids.grids)[0])
    assert grads[1].is_sparse
    assert set(grads[1].coalesce().indices()[0].tolist()) == {1, 3}
    torch.testing.assert_close(grads[1].to_dense(), grads[0])
    with pytest.raises(ValueError, match="gauge must be False where sparse is True"):
        library.BilateralGrid(5, gauge=True, sparse=True)


def test_sparse_training(photos: Tensor) -> None:
    trained = loop(photos, active=True, options={"sparse": True})
    trained.optimizer = torch.optim.SparseAdam(trained.grids.parameters(), lr=2e-3)
    losses = trained.losses(20 * COUNT)
    assert sum(losses[-COUNT:]) < 0.5 * sum(losses[:COUNT])


def mean_drift(grids: Tensor) -> float:
    return (grids.mean(0) - torch.eye(3, 4).reshape(12, 1, 1, 1)).abs().max().item()


class Tinted(Loop):
    """A loop whose scene begins pink: the grids can make up for it, and nothing in the loss calls the scene back."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with torch.no_grad():
            self.scene *= torch.tensor([1.15, 0.85, 1.05])


def test_gauge_keeps_the_colours_of_the_scene(photos: Tensor, image: Tensor) -> None:
    steps = 60 * COUNT
    mean = photos.mean(0)
    free = Tinted(photos, gsplat, size=SIZE)
    held = Tinted(photos, gsplat, size=SIZE, options={"gauge": True})
    losses = [sum(one.losses(steps)[-COUNT:]) for one in (free, held)]
    # Both fit the photographs, and only one has the scene's own colours: the photographs' mean white balance.
    assert losses[1] < 1.5 * losses[0]
    tint = [(one.scene.detach()[0].mean((0, 1)) / mean.mean((0, 1)) - 1).abs().max().item() for one in (free, held)]
    assert tint[1] < 0.5 * tint[0]
    assert mean_drift(held.grids.effective_grids()) < 1e-5
    assert mean_drift(free.grids.grids) > 0.02
    torch.testing.assert_close(held.grids.mean_grid()[0], torch.eye(3, 4).reshape(12, 1, 1, 1).expand(12, 3, 5, 4))


def test_centering_now_and_then(photos: Tensor) -> None:
    trained = Tinted(photos, gsplat, size=SIZE)
    for _ in range(10):
        trained.losses(COUNT)
        assert trained.grids.center_() is trained.grids
        assert mean_drift(trained.grids.grids) < 1e-6
    losses = trained.losses(40 * COUNT)
    assert sum(losses[-COUNT:]) < sum(losses[:COUNT])


@pytest.mark.parametrize("library", [gsplat, fused_bilagrid], ids=["gsplat", "fused_bilagrid"])
def test_gauge_and_centering_agree(library) -> None:
    grids = library.BilateralGrid(4, 3, 4, 5, gauge=True)
    with torch.no_grad():
        grids.grids += torch.randn_like(grids.grids)
    rgb, index = torch.rand(2, 6, 7, 3), torch.tensor([[3], [1]])
    xy = gsplat.pixel_grid(6, 7)
    before, smooth = library.slice(grids, xy, rgb, index)["rgb"], grids.tv_loss(index)
    grids.center_()
    torch.testing.assert_close(library.slice(grids, xy, rgb, index)["rgb"], before, rtol=0, atol=1e-5)
    torch.testing.assert_close(grids.tv_loss(index), smooth)
    plain = library.BilateralGrid(4, 3, 4, 5)
    plain.load_state_dict(grids.state_dict())
    torch.testing.assert_close(library.slice(plain, xy, rgb, index)["rgb"], before, rtol=0, atol=1e-5)
    one = library.slice(grids, xy, rgb, index[:1])["rgb"]
    torch.testing.assert_close(one[0], before[0], rtol=0, atol=1e-5)
    assert "gauge=True" in repr(grids)


def test_gradient_through_the_gauge() -> None:
    grids = gsplat.BilateralGrid(3, 2, 2, 2, gauge=True).double()
    rgb, xy = torch.rand(1, 3, 4, 3).double(), gsplat.pixel_grid(3, 4)
    bank = torch.randn_like(grids.grids).requires_grad_()

    def run(bank: Tensor) -> Tensor:
        inputs = (xy, rgb, torch.tensor([1]))
        return torch.func.functional_call(grids, {"grids": bank}, inputs, {"transform": True})

    assert torch.autograd.gradcheck(run, bank)
    # What all grids have in common does not count.
    assert torch.autograd.grad(run(bank).sum(), bank)[0].sum(0).abs().max() < 1e-12


def test_perf_times_the_loops(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    command = [
        "--device",
        "cpu",
        "--resolution",
        "20x30",
        "--photographs",
        "3",
        "--repeats",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert splatting.main(command) == 0
    assert "losses of 8 steps agree" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "splatting.csv").read_text().splitlines()))
    assert [row["loop"] for row in rows][:3] == ["bilagrid", "bilagrid, active TV", "grid_sample"]
    assert all(float(row["median_s"]) > 0 and row["repeats"] == "2" for row in rows)
    assert splatting.main(command) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err


def test_perf_times_nothing_wrong(monkeypatch, capsys) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(splatting, "_TV_WEIGHT", float("nan"))
    assert splatting.main(["--device", "cpu", "--resolution", "20x30", "--photographs", "3"]) == 1
    assert "the losses differ" in capsys.readouterr().err
