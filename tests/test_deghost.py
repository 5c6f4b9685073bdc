"""The deghosting network against its published layers, and what a user of it relies on."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.pictures import data
from tests.test_docs import run as run_examples

pytest.importorskip("safetensors")

from nets import weights
from nets.deghost import BilateralDeghost, DeghostNet
from nets.deghost.radiance import compressed, linearised, loss

EV = torch.tensor([[-2.0, 0.0, 2.0]])

# Weights of each layer by the published code: 25 or 9 times inputs times outputs, a bias for each output, and two more where it is normalised.
PUBLISHED = {
    "encoders.e1": 3 * (25 * 6 * 64 + 64),
    "encoders.e2": 3 * (25 * 64 * 128 + 3 * 128),
    "merger.e3": 25 * 384 * 256 + 3 * 256,
    "merger.blocks": 9 * 2 * (9 * 256 * 256 + 3 * 256),
    "decoder.d1": 25 * 512 * 128 + 3 * 128,
    "decoder.d2": 25 * 512 * 64 + 3 * 64,
    "decoder.d3": 25 * 256 * 64 + 3 * 64,
    "decoder.out": 25 * 64 * 3 + 3,
}


def bracket(height: int = 40, width: int = 56, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Exposures of photographs whose middle third differs in the outer two, their ev, and the radiance of the middle one."""
    pictures = [getattr(data, name)()[:height, :width] for name in ("coffee", "astronaut", "chelsea")[:batch]]
    truth = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255) ** 2.2
    moved = truth.clone()
    moved[..., width // 3 : 2 * width // 3] = truth.flip(-2)[..., width // 3 : 2 * width // 3]
    ldr = torch.stack([(scene * 4.0**i).clamp(0, 1) for i, scene in enumerate((moved, truth, moved))], 1) ** (1 / 2.2)
    return ldr, EV.expand(batch, 3), truth


def eventful(variant: str = "resnet", width: int = 4) -> DeghostNet:
    """A network whose normalisations have seen something and whose result differs from place to place."""
    torch.manual_seed(1)
    net = DeghostNet(variant=variant, width=width)
    with torch.no_grad():
        net.decoder["out"].conv.weight.mul_(10)
        for _ in range(3):
            net(torch.rand(2, 3, 3, 64, 64), EV.expand(2, 3))
    return net.eval()


def layers(net: nn.Module) -> dict[str, int]:
    counted: dict[str, int] = {}
    for name, parameter in net.named_parameters():
        part, *rest = name.split(".")
        layer = f"{part}.{rest[1] if part == 'encoders' else rest[0]}"
        counted[layer] = counted.get(layer, 0) + parameter.numel()
    return counted


def test_weights_by_layer_are_those_of_the_published_code() -> None:
    assert layers(DeghostNet()) == PUBLISHED


def test_unet_is_as_large_as_published() -> None:
    """About 66 MB, 64 to 512 channels."""
    net = DeghostNet(variant="unet")
    assert round(sum(parameter.numel() for parameter in net.parameters()) * 4 / 1e6) in (66, 67)
    outputs = [layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert (max(outputs), min(outputs)) == (512, 3)
    kernels = {layer.kernel_size for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)}
    assert kernels == {(5, 5)}


def test_normalisation_and_first_weights_are_the_published_ones() -> None:
    torch.manual_seed(0)
    net = DeghostNet(width=16)
    normalised = [layer for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(normalised) == 3 + 1 + 18 + 3
    assert {(layer.momentum, layer.eps) for layer in normalised} == {(0.1, 1e-5)}
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.bias is not None
            assert (layer.bias == 0).all()
            if layer.weight.numel() > 5000:
                # The standard deviation of a normal distribution cut off at two sigmas is 0.88 of its own.
                expected = 0.02 if isinstance(layer, nn.ConvTranspose2d) else 0.0176
                assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_paddings_lean_as_in_the_published_code() -> None:
    """One before and two after, in a convolution by reflection; a transposed one is the transpose of one so padded by zeros."""
    net = DeghostNet(width=2)
    with torch.no_grad():
        first = net.encoders[0].e1
        first.conv.weight.zero_()
        first.conv.bias.zero_()
        first.conv.weight[0, 0, 0, 0] = 1
        x = torch.rand(1, 6, 16, 16)
        found = first(x)[0, 0]
        # Output (i, j) reads input (2i - 1, 2j - 1), and -1 is a reflection of 1.
        expected = x[0, 0, 1::2, 1::2].roll((1, 1), (0, 1))
        torch.testing.assert_close(found[1:, 1:], expected[1:, 1:])
        assert found[0, 0] == x[0, 0, 1, 1]
        up = net.decoder["d3"].conv
        up.bias.zero_()
        small, large = torch.rand(1, 8, 6, 6), torch.rand(1, 2, 12, 12)
        down = nn.functional.conv2d(nn.functional.pad(large, (1, 2, 1, 2)), up.weight, stride=2)
        torch.testing.assert_close((up(small)[..., :-1, :-1] * large).sum(), (small * down).sum())


def test_a_residual_block_carries_its_rectified_input_past() -> None:
    block = DeghostNet(width=2).merger.blocks[0].eval()
    with torch.no_grad():
        block.n2.weight.zero_()
    x = torch.randn(1, 8, 6, 6)
    torch.testing.assert_close(block(x), torch.relu(x))


@pytest.mark.parametrize("variant", ["resnet", "unet"])
def test_skips_lead_to_the_layer_of_their_size(variant: str) -> None:
    """With nothing from below, each layer of the decoder still sees the encoders' layers of its size."""
    net = eventful(variant)
    ldr, ev, _ = bracket(64, 64)
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in net.decoder.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: tuple(given[0].shape[1:])}))
    net(ldr, ev)
    merged = 32 if variant == "resnet" else 48
    assert seen == {"d1": (merged, 8, 8), "d2": (32, 16, 16), "d3": (16, 32, 32), "out": (4, 64, 64)}
    before = net(ldr, ev)
    with torch.no_grad():
        for name in ("d1", "d2"):
            net.decoder[name].norm.weight.zero_()
            net.decoder[name].norm.bias.zero_()
    without = net(ldr, ev)
    assert (without - before).abs().max() > 0
    assert without.std() > 1e-4


@pytest.mark.parametrize("variant", ["resnet", "unet"])
def test_any_size_and_results_are_radiance(variant: str) -> None:
    net = eventful(variant)
    for height, width in ((1, 1), (5, 100), (16, 16), (17, 33), (67, 70)):
        out = net(torch.rand(2, 3, 3, height, width), EV.expand(2, 3))
        assert out.shape == (2, 3, height, width)
        assert out.dtype == torch.float32
        assert out.min() >= 0
        assert out.max() <= 1
        assert out.isfinite().all()


def test_result_is_the_hyperbolic_tangent_of_the_published_range() -> None:
    net = eventful()
    ldr, ev, _ = bracket()
    kept: list[Tensor] = []
    net.decoder["out"].register_forward_hook(lambda _, __, out: kept.append(out))
    out = net(ldr, ev)
    torch.testing.assert_close(out, (1 + torch.tanh(kept[0])) / 2)


def test_padding_is_the_last_row_and_column_again() -> None:
    net = eventful()
    ldr, ev, _ = bracket(37, 50)
    larger = nn.functional.pad(ldr.flatten(1, 2), (0, 6, 0, 3), mode="replicate").unflatten(1, (3, 3))
    torch.testing.assert_close(net(ldr, ev), net(larger, ev)[..., :37, :50])


def test_only_differences_of_exposure_matter() -> None:
    net = eventful()
    ldr, ev, _ = bracket()
    torch.testing.assert_close(net(ldr, ev + 7), net(ldr, ev))
    assert (net(ldr, ev * 1.5) - net(ldr, ev)).abs().max() > 1e-4


def test_every_item_of_a_batch_is_on_its_own() -> None:
    net = eventful()
    ldr, _, _ = bracket(batch=3)
    ev = torch.tensor([[0.0, 1, 2], [0, 2, 4], [-3, 0, 3]])
    together = net(ldr, ev)
    for k in range(3):
        torch.testing.assert_close(net(ldr[k : k + 1], ev[k : k + 1])[0], together[k], rtol=1e-4, atol=1e-5)
    assert net(ldr[:0], ev[:0]).shape == (0, 3, 40, 56)


def test_exposures_of_one_scene_have_one_radiance() -> None:
    truth = torch.rand(2, 3, 8, 9) * 2**-4
    ldr = torch.stack([truth * 4.0**i for i in range(3)], 1) ** (1 / 2.2)
    found = linearised(ldr, torch.tensor([[-2.0, 0, 2], [1, 3, 5]]))
    torch.testing.assert_close(found, truth[:, None].expand_as(found), rtol=1e-4, atol=1e-7)


def test_mu_law_and_loss() -> None:
    values = np.array([0.0, 1e-4, 0.1, 1.0])
    expected = [math.log(1 + 5000 * value) / math.log(5001) for value in values]
    np.testing.assert_allclose(compressed(values), expected)
    torch.testing.assert_close(compressed(torch.from_numpy(values)), torch.tensor(expected, dtype=torch.float64))
    assert compressed(np.array([-1.0])) == 0
    result, truth = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    # The published loss is of values from -1 to 1.
    published = ((2 * compressed(result) - 1) - (2 * compressed(truth) - 1)).square().mean()
    torch.testing.assert_close(4 * loss(result, truth), published)


@pytest.mark.parametrize("variant", ["resnet", pytest.param("unet", marks=pytest.mark.slow)])
def test_loss_falls_and_every_weight_learns(variant: str) -> None:
    ldr, ev, truth = bracket(64, 64)
    torch.manual_seed(0)
    net = DeghostNet(variant=variant, width=4)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(60):
        value = loss(net(ldr, ev), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.slow
def test_published_network_overfits_one_patch() -> None:
    ldr, ev, truth = bracket(64, 64)
    torch.manual_seed(0)
    net = DeghostNet()
    optimizer = torch.optim.Adam(net.parameters(), 2e-4, betas=(0.5, 0.999))
    for step in range(300):
        # What is left at a constant rate is the optimiser's own noise.
        optimizer.param_groups[0]["lr"] = 1e-4 * (1 + math.cos(math.pi * step / 300))
        value = loss(net(ldr, ev), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        assert -10 * math.log10(loss(net(ldr, ev), truth).item()) > 40


def test_half_precision_keeps_the_dark() -> None:
    net = eventful()
    ldr, ev, _ = bracket()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(ldr, ev)
    assert out.dtype == torch.float32
    assert (compressed(out) - compressed(net(ldr, ev))).abs().mean() < 0.02


def test_black_and_white_frames_are_merged_without_nan() -> None:
    net = eventful()
    for values in (torch.zeros(1, 3, 3, 20, 20), torch.ones(1, 3, 3, 20, 20)):
        values.requires_grad_()
        out = net(values, EV)
        out.sum().backward()
        assert out.isfinite().all()
        assert values.grad.isfinite().all()


@pytest.mark.parametrize("variant", [pytest.param("resnet", marks=pytest.mark.slow), "unet"])
def test_compiles_into_one_graph(variant: str) -> None:
    net, (ldr, ev, _) = eventful(variant), bracket()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(ldr, ev), net(ldr, ev))


@pytest.mark.slow
def test_exports_with_any_size_that_it_need_not_pad() -> None:
    net = eventful()
    height, width = (8 * torch.export.Dim(name, min=8) for name in ("rows", "columns"))
    program = torch.export.export(net, (torch.rand(1, 3, 3, 80, 96), EV), dynamic_shapes=({3: height, 4: width}, None))
    ldr = torch.rand(1, 3, 3, 64, 112)
    torch.testing.assert_close(program.module()(ldr, EV), net(ldr, EV))


def test_saved_and_loaded(tmp_path) -> None:
    net = eventful("unet", 3)
    weights.save_network(tmp_path / "net.safetensors", net)
    loaded = weights.load_network(tmp_path / "net.safetensors", DeghostNet)
    ldr, ev, _ = bracket()
    torch.testing.assert_close(loaded(ldr, ev), net(ldr, ev), rtol=0, atol=0)


@pytest.mark.parametrize("thing", [DeghostNet, BilateralDeghost])
def test_examples(thing: type) -> None:
    tried, failed = run_examples(thing, thing.__name__, sys.modules[thing.__module__])
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "vgg"}, "variant must be one of resnet, unet, got 'vgg'"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"width": 2.5}, "width must be a whole number"),
    ],
)
def test_refuses_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeghostNet(**options)


@pytest.mark.parametrize(
    ("shape", "ev", "message"),
    [
        ((1, 2, 3, 8, 8), (1, 3), r"ldr must have shape \(N, 3, 3, H, W\), exposures before channels, got \(1, 2, 3, 8, 8\)"),
        ((1, 9, 8, 8), (1, 3), "ldr must have shape"),
        ((1, 3, 3, 0, 8), (1, 3), "ldr must have shape"),
        ((2, 3, 3, 8, 8), (3,), r"ev must have shape \(N, 3\) = \(2, 3\) to match ldr, got \(3,\)"),
        ((2, 3, 3, 8, 8), (1, 3), "ev must have shape"),
    ],
)  # fmt: skip
def test_refuses_shapes_that_do_not_fit(shape: tuple[int, ...], ev: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeghostNet(width=1)(torch.rand(shape), torch.zeros(ev))
