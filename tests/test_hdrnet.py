"""HDRNet against the paper's Table 1, and what a user of the network relies on."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import bilagrid
from tests.pictures import data

pytest.importorskip("safetensors")

from nets.hdrnet import HDRNet

# Weights of each layer by the table: outputs * (9 or 1 times inputs), and a bias for each output but those of L2.
TABLE = {
    "S1": 8 * 9 * 3 + 8,
    "S2": 16 * 9 * 8 + 16,
    "S3": 32 * 9 * 16 + 32,
    "S4": 64 * 9 * 32 + 64,
    "L1": 64 * 9 * 64 + 64,
    "L2": 64 * 9 * 64,
    "G1": 64 * 9 * 64 + 64,
    "G2": 64 * 9 * 64 + 64,
    "G3": 256 * 16 * 64 + 256,
    "G4": 128 * 256 + 128,
    "G5": 64 * 128 + 64,
    "head": 96 * 64 + 96,
}


def photographs(*names: str, size: tuple[int, int] = (300, 400)) -> Tensor:
    pixels = [torch.from_numpy(getattr(data, name)()[: size[0], : size[1]]).permute(2, 0, 1) for name in names]
    return torch.stack(pixels).float() / 255


def eventful(**options: object) -> HDRNet:
    """A network whose maps differ from place to place, as those of a trained one do."""
    torch.manual_seed(1)
    net = HDRNet(**options)
    with torch.no_grad():
        net.head.weight.mul_(30)
    return net.eval()


def test_weights_by_layer_are_those_of_the_table() -> None:
    counted: dict[str, int] = {}
    for name, parameter in HDRNet().named_parameters():
        parts = name.split(".")
        if parts[0] != "guide":
            layer = "head" if parts[0] == "head" else parts[1]
            counted[layer] = counted.get(layer, 0) + parameter.numel()
    assert counted == TABLE


def test_width_scales_with_multiplier_and_bins() -> None:
    wide = HDRNet(channel_multiplier=2, luma_bins=4, spatial_bins=32, input_size=128)
    weights = {name: tuple(tensor.shape) for name, tensor in wide.named_parameters()}
    assert weights["splat.S1.conv.weight"] == (8, 3, 3, 3)
    assert weights["splat.S2.conv.weight"] == (16, 8, 3, 3)
    assert weights["local.L1.conv.weight"] == (64, 16, 3, 3)
    assert weights["global_.G4.fc.weight"] == (256, 1024)
    assert weights["head.weight"] == (48, 64, 1, 1)
    assert wide.coefficients(torch.rand(1, 3, 128, 128)).shape == (1, 12, 4, 32, 32)


def test_normalised_layers_have_no_bias_and_four_are_not_normalised() -> None:
    net = HDRNet(batch_norm=True)
    names = dict(net.named_modules())
    normalised = {name.removesuffix(".norm") for name in names if name.endswith(".norm")}
    assert normalised == {f"splat.S{i}" for i in (2, 3, 4)} | {"local.L1"} | {f"global_.G{i}" for i in (1, 2, 3, 4)}
    assert names["splat.S2.conv"].bias is None
    assert names["splat.S1.conv"].bias is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guide": "luma"},
        {"guide": "pointwise"},
        {"levels": 3},
        {"in_channels": 1, "out_channels": 3, "guide": "luma"},
        {"in_channels": 5, "out_channels": 2, "spatial_bins": 8, "input_size": 64, "luma_bins": 3},
    ],
    ids=str,
)
def test_any_size_of_image_and_near_the_identity_at_first(options: dict[str, object]) -> None:
    net = HDRNet(**options)
    inputs, outputs = net.config["in_channels"], net.config["out_channels"]
    for height, width in ((1, 1), (5, 300), (67, 33)):
        image = torch.rand(2, inputs, height, width)
        out = net(image)
        assert out.shape == (2, outputs, height, width)
        same = image.expand(-1, outputs, -1, -1) if inputs == 1 else image[:, :outputs]
        assert (out - same).abs().max() < 0.3
        assert (out - same).abs().mean() < 0.05


def test_the_maps_are_read_in_the_published_order() -> None:
    """Packed channel (term * outputs + output) * bins + z, as in the published weights."""
    net = HDRNet(guide="luma")
    with torch.no_grad():
        net.head.weight.zero_()
        net.head.bias.zero_()
        # Term 1, green, feeds output 0, red, with 0.5 in every bin; the offset of output 2 is 0.25.
        net.head.bias[(1 * 3 + 0) * 8 : (1 * 3 + 0) * 8 + 8] = 0.5
        net.head.bias[(3 * 3 + 2) * 8 : (3 * 3 + 2) * 8 + 8] = 0.25
    image = torch.rand(1, 3, 20, 30)
    expected = torch.stack([image[:, 1] / 2, torch.zeros_like(image[:, 1]), torch.full_like(image[:, 1], 0.25)], 1)
    torch.testing.assert_close(net(image), expected)


def test_coefficients_of_a_small_copy_serve_every_tile() -> None:
    image = photographs("coffee", size=(203, 301))
    net = eventful()
    grid = net.coefficients(net.shrink(image))
    whole = net.render(image, grid)
    lattice = bilagrid.Lattice.cell_centered((8, 16, 16), (203, 301))
    tile = net.render(image[..., 60:130, 99:280], grid, lattice=lattice.crop(60, 99))
    torch.testing.assert_close(tile, whole[..., 60:130, 99:280], rtol=0, atol=1e-5)
    assert (whole - image).abs().max() > 0.1


def test_pyramid_sums_its_levels() -> None:
    """With nothing in the coarser grids the finest level is all there is; with tiles at multiples of 4 all but their border is that of the whole."""
    image = photographs("coffee", size=(204, 300))
    net = eventful(levels=3)
    grid = net.coefficients(net.shrink(image))
    finest = torch.cat([torch.zeros_like(grid[:, :24]), grid[:, 24:]], 1)
    expected = bilagrid.slice_apply(grid[:, 24:].contiguous(), net.guide_of(0)(image), image)
    torch.testing.assert_close(net.render(image, finest), expected)
    lattice = bilagrid.Lattice.cell_centered((8, 16, 16), (204, 300))
    whole, tile = net.render(image, grid), net.render(image[..., 40:, :], grid, lattice=lattice.crop(40, 0))
    torch.testing.assert_close(tile[..., 8:, :], whole[..., 48:, :], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="multiples of"):
        net.render(image[..., 2:, :], grid, lattice=lattice.crop(2, 0))


@pytest.mark.parametrize("guide", ["curves", "luma"])
def test_loss_falls_on_a_real_pair(guide: str) -> None:
    image = photographs("coffee", size=(128, 128))
    target = image**0.5
    torch.manual_seed(0)
    net = HDRNet(guide=guide, input_size=64)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = (net(image) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_half_precision_leaves_the_picture_in_float32() -> None:
    image = photographs("coffee", size=(100, 120))
    net = eventful()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(image)
    assert out.dtype == torch.float32
    assert (out - net(image)).abs().mean() < 0.02


def test_compiles_into_one_graph() -> None:
    net, image = eventful(), torch.rand(1, 3, 70, 90)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), net(image))


@pytest.mark.parametrize("levels", [1, 3])
def test_compiles_into_one_graph_for_all_sizes(levels: int) -> None:
    net, counter = eventful(levels=levels), CompileCounter()
    compiled = torch.compile(net, fullgraph=True, dynamic=True, backend=counter)
    for size in ((64, 48), (33, 71), (101, 54)):
        image = torch.rand(2, 3, *size)
        torch.testing.assert_close(compiled(image), net(image))
    assert counter.frame_count == 1


@pytest.mark.parametrize("levels", [1, 3])
def test_exports_with_any_size_of_image(levels: int) -> None:
    net = eventful(levels=levels)
    height, width = torch.export.Dim("height", min=8), torch.export.Dim("width", min=8)
    program = torch.export.export(net, (torch.rand(1, 3, 64, 80),), dynamic_shapes=({2: height, 3: width},))
    image = torch.rand(1, 3, 90, 51)
    torch.testing.assert_close(program.module()(image), net(image))


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (33, 46), (64, 64)])
def test_pyramid_is_that_of_halved_images_doubled_bilinearly(size: tuple[int, int]) -> None:
    """In torch's own words: of an odd side the last pixel is halved alone, and of a doubled image what is beyond the finer one is left out."""
    net, image = eventful(levels=3), torch.rand(2, 3, *size)
    images = [image]
    for _ in range(2):
        images.append(F.avg_pool2d(images[-1], 2, ceil_mode=True, count_include_pad=False))
    out = torch.zeros(())
    grids = net.coefficients(net.shrink(image)).chunk(3, 1)
    for level, grid in zip((2, 1, 0), grids, strict=True):
        finer = images[level]
        if out.ndim:
            out = F.interpolate(out, scale_factor=2.0, mode="bilinear")[..., : finer.shape[2], : finer.shape[3]]
        out = out + bilagrid.slice_apply(grid, net.guide_of(level)(finer), finer)
    torch.testing.assert_close(net(image), out)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_are_shrunk_on_the_cpu_too(dtype: torch.dtype) -> None:
    image, net = photographs("coffee", size=(100, 120)), eventful()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(image.to(dtype))
    assert out.dtype == dtype
    assert (out.float() - net(image)).abs().mean() < 0.02
    assert net.to(dtype)(image.to(dtype)).dtype == dtype


def test_refuses_a_small_copy_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"low must have shape \(N, 3, 256, 256\), as shrink gives it, got"):
        HDRNet().coefficients(torch.rand(1, 3, 100, 256))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_bins": 12}, "spatial_bins must be a power of two of at least 4, got 12"),
        ({"input_size": 100}, "input_size must be a power of two times spatial_bins = 16"),
        ({"input_size": 16}, "input_size must be a power of two times spatial_bins = 16, and larger"),
        ({"luma_bins": 0}, "luma_bins must be a whole number of at least 1, got 0"),
        ({"channel_multiplier": 1.5}, "channel_multiplier must be a whole number"),
        ({"guide": "chroma"}, "guide must be one of curves, pointwise, luma, got 'chroma'"),
        ({"levels": 2}, "levels must be 1, or 3"),
        ({"levels": 3.0}, "levels must be 1, or 3"),
        ({"guide": ["luma"]}, "guide must be one of"),
        ({"guide": "luma", "in_channels": 5}, 'guide "luma" needs 1 or 3 input channels, got 5'),
    ],
)
def test_refuses_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HDRNet(**options)
