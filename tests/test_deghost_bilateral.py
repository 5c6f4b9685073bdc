"""A deghosting network at reduced resolution: what the grid carries, and what it learns through it."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.pictures import data, save

pytest.importorskip("safetensors")

from nets import weights
from nets.deghost import BilateralDeghost, DeghostNet, load
from nets.deghost.bilateral import reduced
from nets.deghost.classical import debevec
from nets.deghost.data import tensors
from nets.deghost.generator import Generated, Photographs
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


def test_nothing_is_lost_where_nothing_is_reduced_and_the_rest_is_added_whole() -> None:
    ldr, truth = bracket(64, 64)
    net = BilateralDeghost(Oracle(truth), reduce=1)
    assert psnr(net(ldr, EV), truth) > 35
    with torch.no_grad():
        net.rest.fill_(1)
    torch.testing.assert_close(net(ldr, EV), truth, rtol=1e-3, atol=1e-5)


def test_ghosts_do_not_come_back() -> None:
    """Where the outer exposures show something else than the middle one, the result is as near to the truth as elsewhere, but for what it has there less."""
    ldr, truth = bracket(256, 384)
    inside = (..., slice(64, 128), slice(96, 192))
    carried = BilateralDeghost(Oracle(truth), reduce=4)(ldr, EV)[inside]
    ghosts = debevec(ldr[0].permute(0, 2, 3, 1).numpy(), EV[0].numpy() + 2)
    ghost = torch.from_numpy(ghosts).permute(2, 0, 1)[None][inside]
    assert psnr(carried, truth[inside]) > max(30, psnr(ghost, truth[inside]) + 10)


def test_generated_scenes(tmp_path) -> None:
    """Noise, clipping, objects that cross each other, exposures that do not lie where the middle one does: held-out photographs, the ideal small result."""
    save(tmp_path / "coffee.png", data.coffee())
    save(tmp_path / "chelsea.png", data.chelsea())
    made = Generated(Photographs([tmp_path]), 384, seed=5)
    found = []
    for k in range(5):
        ldr, ev, truth = (tensor[None] for tensor in tensors(made.bracket(k)))
        oracle = Oracle(truth)
        net = BilateralDeghost(oracle).eval()
        small = compressed(oracle(net.shrunk(ldr), ev))
        enlarged = expanded(F.interpolate(small, size=truth.shape[-2:], mode="bicubic"))
        with torch.inference_mode():
            found.append((psnr(net(ldr, ev), truth), psnr(enlarged, truth)))
    carried, enlarged = np.mean(found, 0)
    assert carried > max(30, enlarged + 2)


def test_maps_lean_on_the_exposure_of_least_noise() -> None:
    """Of a scene that stands still, the short exposure's shadows are lost in noise that the shrunk exposures hardly show."""
    _, truth = bracket(256, 256)
    truth = truth / 16
    noise = 0.01 * torch.randn(1, 3, *truth.shape[1:], generator=torch.Generator().manual_seed(0))
    ldr = (truth[:, None] * torch.tensor([1.0, 4, 16])[:, None, None, None] + noise).clamp(0, 1) ** (1 / 2.2)
    net = BilateralDeghost(Oracle(truth))
    aware = psnr(net(ldr, EV), truth)
    with torch.no_grad():
        net.log_doubt.fill_(-20)
    assert aware > psnr(net(ldr, EV), truth) + 0.5


@pytest.mark.parametrize(("height", "width"), [(200, 333), (512, 1031), (1031, 300)])
def test_strips_give_what_the_whole_gives(height: int, width: int) -> None:
    torch.manual_seed(0)
    net = BilateralDeghost(DeghostNet(width=2)).eval()
    ldr = torch.rand(2, 3, 3, height, width)
    ev = EV + torch.tensor([[0.0, 0, 0], [0, -0.5, 1]])
    whole = net(ldr, ev)
    assert whole.requires_grad
    with torch.inference_mode():
        strips = net(ldr, ev)
    # Exposures are rounded otherwise in place; the fit of noise and the exponential of the μ-law enlarge that.
    torch.testing.assert_close(strips, whole, rtol=1e-3, atol=1e-6)


def test_half_exposures_give_float_radiance() -> None:
    net = BilateralDeghost(Oracle(bracket()[1])).eval()
    ldr, _ = bracket()
    with torch.no_grad():
        found = net(ldr.half(), EV)
    assert found.dtype == torch.float32
    assert psnr(found, net(ldr, EV)) > 50


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
    for parameter in (net.guide.weight, net.log_doubt, net.rest, net.net.encoders[0].e1.conv.weight):
        assert parameter.grad.abs().max() > 0


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
    with pytest.raises(ValueError, match="ev must have shape"):
        BilateralDeghost({"width": 1})(torch.rand(1, 3, 3, 8, 8), EV[0])


def test_guide_starts_as_a_mean_of_lumas() -> None:
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


@pytest.mark.slow
def test_exports_with_any_size_that_its_network_need_not_pad() -> None:
    torch.manual_seed(0)
    net = BilateralDeghost(DeghostNet(width=2)).eval()
    height, width = (32 * torch.export.Dim(name, min=8) for name in ("rows", "columns"))
    shown = torch.rand(1, 3, 3, 320, 384)
    program = torch.export.export(net, (shown, EV), dynamic_shapes=({3: height, 4: width}, None))
    other = torch.rand(1, 3, 3, 544, 288)
    torch.testing.assert_close(program.module()(other, EV), net(other, EV), rtol=1e-3, atol=1e-5)


def test_the_same_weights_for_another_reduction() -> None:
    torch.manual_seed(0)
    whole = DeghostNet(width=2).eval()
    carried = reduced(whole, 4)
    assert isinstance(carried, BilateralDeghost)
    assert carried.net is whole
    assert not carried.training
    assert reduced(carried, 1) is reduced(whole, 1) is whole
    with torch.no_grad():
        carried.rest.fill_(0.7)
    other = reduced(carried, 3)
    assert other.config == carried.config | {"reduce": 3}
    assert other.rest.item() == pytest.approx(0.7)
