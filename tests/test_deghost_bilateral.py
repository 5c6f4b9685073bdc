"""A deghosting network at reduced resolution: what the grid carries, and what it learns through it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pictures import data

pytest.importorskip("safetensors")

from nets import weights
from nets.deghost import BilateralDeghost, DeghostNet, load
from nets.deghost.radiance import compressed, expanded, loss

EV = torch.tensor([[-2.0, 0.0, 2.0]])


def bracket(height: int = 128, width: int = 192) -> tuple[Tensor, Tensor]:
    """Three exposures of a photograph that moves in the outer two, and the radiance of the middle one."""
    picture = torch.from_numpy(np.ascontiguousarray(data.coffee()[:height, :width])).permute(2, 0, 1)[None]
    truth = (picture / 255) ** 2.2
    moved = truth.clone()
    inside = (..., slice(height // 4, height // 2), slice(width // 4, width // 2))
    moved[inside] = truth.roll(width // 3, -1)[inside]
    ldr = torch.stack([(scene * 4.0**i).clamp(0, 1) for i, scene in enumerate((moved, truth, moved))], 1) ** (1 / 2.2)
    return ldr, truth


class Oracle(DeghostNet):
    """Knows the truth of what it is shown, by its size."""

    def __init__(self, truth: Tensor) -> None:
        super().__init__(width=1)
        self.truth = truth

    def forward(self, ldr: Tensor, ev: Tensor) -> Tensor:
        return expanded(F.interpolate(compressed(self.truth), size=ldr.shape[-2:], mode="bilinear", antialias=True))


def psnr(result: Tensor, truth: Tensor) -> float:
    return -10 * loss(result, truth).log10().item()


def test_detail_comes_from_the_exposures() -> None:
    """A network that is right at a quarter of the size is far nearer to the truth through the grid than enlarged."""
    ldr, truth = bracket()
    oracle = Oracle(truth)
    carried = BilateralDeghost(oracle, reduce=4)(ldr, EV)
    small = oracle(ldr[..., ::4, ::4], EV)
    enlarged = expanded(F.interpolate(compressed(small), size=truth.shape[-2:], mode="bilinear"))
    assert psnr(carried, truth) > psnr(enlarged, truth) + 6


def test_nothing_is_lost_where_nothing_is_reduced() -> None:
    ldr, truth = bracket(64, 64)
    torch.testing.assert_close(BilateralDeghost(Oracle(truth), reduce=1)(ldr, EV), truth, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("reduce", [1, 2, 4])
def test_any_size_and_results_are_radiance(reduce: int) -> None:
    net = BilateralDeghost(DeghostNet(width=2), reduce=reduce).eval()
    for height, width in ((1, 1), (5, 100), (67, 130)):
        out = net(torch.rand(2, 3, 3, height, width), EV.expand(2, 3))
        assert out.shape == (2, 3, height, width)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1
    for values in (torch.zeros(1, 3, 3, 40, 40), torch.ones(1, 3, 3, 40, 40)):
        assert net(values, EV).isfinite().all()


@pytest.mark.slow
def test_learns_through_the_grid() -> None:
    ldr, truth = bracket(96, 96)
    torch.manual_seed(0)
    net = BilateralDeghost(DeghostNet(width=4), reduce=2)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(40):
        value = loss(net(ldr, EV), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.2 * losses[0]
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert net.guide.weight.grad.abs().max() > 0


def test_saved_and_loaded(tmp_path) -> None:
    torch.manual_seed(0)
    net = BilateralDeghost(DeghostNet(variant="unet", width=2), reduce=3, luma_bins=4, cell=16).eval()
    path = tmp_path / "net.safetensors"
    weights.save_network(path, net)
    loaded = load(path)
    assert loaded.config == net.config
    ldr, _ = bracket(50, 60)
    torch.testing.assert_close(loaded(ldr, EV), net(ldr, EV), rtol=0, atol=0)
    weights.save_network(path, net.net)
    assert isinstance(load(path), DeghostNet)
    weights.save(path, {"a": torch.zeros(1)}, {"kind": "HDRNet"})
    with pytest.raises(ValueError, match="expected a file that holds 'DeghostNet' or 'BilateralDeghost', got 'HDRNet'"):
        load(path)


@pytest.mark.parametrize("name", ["reduce", "luma_bins", "cell"])
def test_refuses_options_that_do_not_fit(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least 1, got 0"):
        BilateralDeghost({"width": 1}, **{name: 0})
    with pytest.raises(ValueError, match="ldr must have shape"):
        BilateralDeghost({"width": 1})(torch.rand(1, 9, 8, 8), EV)


def test_guide_starts_as_the_mean_luma() -> None:
    net = BilateralDeghost({"width": 1})
    assert isinstance(net.guide, nn.Conv2d)
    gray = torch.full((1, 18, 2, 2), 0.7)
    torch.testing.assert_close(net.guide(gray), torch.full((1, 1, 2, 2), 0.7))


@pytest.mark.slow
def test_compiles_into_one_graph() -> None:
    net = BilateralDeghost(DeghostNet(width=2, variant="unet"), reduce=2).eval()
    ldr, _ = bracket(50, 60)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ldr, EV), net(ldr, EV), rtol=1e-4, atol=1e-5)
