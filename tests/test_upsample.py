"""Fits and guided upsampling: what the maps do to colours, and photographs against the other ways of bringing an edit to full size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import bilagrid
from bilagrid import Lattice, fit, guided_upsample
from bilagrid.ops import _backend
from tests.helpers import CONSTRUCTORS, assert_near, device_of, numpy64, off_nodes, psnr

METHODS = ["fast", "global"]
SIZE = (8, 4, 5)


def luma(image: Tensor) -> Tensor:
    return 0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]


def colours(height: int = 96, width: int = 120, batch: int = 1) -> Tensor:
    """An image that holds every colour everywhere."""
    return torch.rand(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def maps(grid: Tensor, channels: int = 3) -> Tensor:
    """``(C_out, C_in + 1, D, Gh, Gw)`` of a batch of one."""
    return grid[0].unflatten(0, (-1, channels + 1))


def at_nodes(grid: Tensor, spread: float = 0.05) -> Tensor:
    """What the map of each node does to colours of about the node's luma: ``(colours, C_out, D, Gh, Gw)``."""
    depth = grid.shape[2]
    gray = (torch.arange(depth, dtype=grid.dtype) + 0.5) / depth
    tints = spread * torch.tensor([[0, 0, 0], [1, 0, -1], [-1, 0.4, 0.5]], dtype=grid.dtype)
    terms = torch.cat([gray[:, None, None] + tints, torch.ones(depth, 3, 1, dtype=grid.dtype)], 2)
    return torch.einsum("oizyx,zki->kozyx", maps(grid), terms)


def spread(values: Tensor, *axes: int) -> float:
    """The root mean square of how far values are from their mean along the axes."""
    return (values - values.mean(axes, keepdim=True)).square().mean().sqrt().item()


def edge(image: Tensor) -> Tensor:
    """A local operator: dark on the left, and there a curve of its own."""
    _, _, _, width = image.shape
    left = (torch.arange(width) < width // 2).to(image.dtype)
    return left * image**2 + (1 - left) * image.sqrt()


def vignette(image: Tensor) -> Tensor:
    _, _, height, width = image.shape
    y, x = torch.linspace(-1, 1, height, dtype=image.dtype)[:, None], torch.linspace(-1, 1, width, dtype=image.dtype)
    return image * (1 - 0.3 * (y**2 + x**2))


def around_luma(image: Tensor) -> Tensor:
    """The image with its colours drawn near their luma, so that a map of the luma's cell can meet a curve."""
    return luma(image) + 0.1 * (image - luma(image))


@pytest.mark.parametrize("method", METHODS)
def test_a_global_curve_is_the_same_everywhere(method: str) -> None:
    image = around_luma(colours())
    done = at_nodes(fit(image, image**2, size=SIZE, method=method))[:, :, 1:-1]
    assert spread(done, 3, 4) < 0.01
    assert spread(done, 2) > 0.2
    gray = (torch.arange(1, SIZE[0] - 1, dtype=torch.float64) + 0.5) / SIZE[0]
    assert (done[0].mean((2, 3)) - gray**2).abs().max() < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_a_vignette_is_the_same_at_every_z(method: str) -> None:
    image = colours()
    done = at_nodes(fit(image, vignette(image), size=SIZE, method=method))[0]
    gray = (torch.arange(SIZE[0], dtype=torch.float64) + 0.5) / SIZE[0]
    gains = (done / gray[:, None, None])[:, 1:-1]
    assert spread(gains, 1) < 0.02
    assert spread(gains, 2, 3) > 0.08


@pytest.mark.parametrize("method", METHODS)
def test_a_local_operator_varies_with_both(method: str) -> None:
    image = around_luma(colours())
    done = at_nodes(fit(image, edge(image), size=SIZE, method=method))[:, :, 1:-1]
    assert spread(done, 2) > 0.1
    assert spread(done, 3, 4) > 0.1


@pytest.mark.parametrize("kind", sorted(CONSTRUCTORS))
def test_a_pair_made_by_a_grid_gives_it_back(kind: str) -> None:
    """But for prior and smoothness; where one map made the pair, by both methods."""
    size, extent = (4, 3, 4), (60, 72)
    lattice = CONSTRUCTORS[kind](size, extent)
    image = colours(*extent)
    grid = (0.5 * torch.eye(3, 4, dtype=torch.float64) + 0.1).reshape(1, 12, 1, 1, 1).repeat(1, 1, *size)

    def errors(grid: Tensor, method: str) -> Tensor:
        target = bilagrid.slice_apply(grid, None, image, lattice=lattice)
        found = fit(image, target, size=size, lattice=lattice, method=method)
        return bilagrid.slice_apply(found, None, image, lattice=lattice) - target

    for method in METHODS:
        assert errors(grid, method).abs().max() < 0.01
    generator = torch.Generator().manual_seed(2)
    grid = grid + 0.2 * torch.randn(grid.shape, dtype=grid.dtype, generator=generator)
    assert psnr(errors(grid, "global"), np.zeros(1)) > 40


def test_every_backend(backend: str) -> None:
    low, high = colours(3, 4), colours(4, 5)
    found = guided_upsample(*(t.to(device_of(backend)) for t in (high, low, low.sqrt())), size=(2, 1, 2))
    with _backend.override("cpu"):
        wanted = guided_upsample(high, low, low.sqrt(), size=(2, 1, 2))
    assert_near(found, wanted, torch.float32)


def test_the_global_solve_meets_its_normal_equations() -> None:
    """Written out densely: slice's matrix from the operator, differences as loops of the published weights."""
    size, extent = (4, 2, 3), (12, 18)
    image, guide = colours(*extent)[:, :1], colours(*extent)[:, 1]
    target, weight = image.sqrt(), colours(*extent)[:, 2]
    nodes = int(np.prod(size))
    slices = bilagrid.slice(torch.eye(nodes, dtype=torch.float64).reshape(1, nodes, *size), guide)[0].flatten(1)
    terms = torch.cat([image, torch.ones_like(image)], 1)[0].flatten(1)
    design = numpy64((terms[:, None] * slices).flatten(0, 1)).T
    w = numpy64(weight).ravel()
    by, bx, bz = extent[0] / size[1], extent[1] / size[2], 1 / size[0]
    index = np.arange(nodes).reshape(size)
    rows = []
    for stencil, strength in (
        ((index[:, 1:], index[:, :-1]), bx * bz / by),
        ((index[:, :, 1:], index[:, :, :-1]), by * bz / bx),
        ((index[2:], index[1:-1], index[:-2]), 4e-7 * bx * by / bz**2),
    ):
        taps = (1, -1) if len(stencil) == 2 else (1, -2, 1)
        for places in zip(*(part.ravel() for part in stencil), strict=True):
            row = np.zeros(nodes)
            row[list(places)] = taps
            rows.append(strength * row)
    smooth = np.kron(np.eye(2), np.array(rows).T @ np.array(rows))
    power = np.array([(w * terms[0].numpy() ** 2).sum() / w.sum(), 1.0])
    ridge = 0.01 * np.diag(np.repeat(power, nodes))
    fast = numpy64(fit(image, target, guide, size=size, weight=weight)).ravel()
    right = design.T @ (w * numpy64(target).ravel()) + ridge @ fast
    wanted = np.linalg.solve(design.T @ (w[:, None] * design) + smooth + ridge, right)
    found = fit(image, target, guide, size=size, weight=weight, method="global")
    np.testing.assert_allclose(numpy64(found).ravel(), wanted, atol=1e-8)


def photograph(name: str) -> Tensor:
    data = pytest.importorskip("skimage.data", reason="photographs come with scikit-image")
    return torch.from_numpy(getattr(data, name)().astype(np.float32) / 255).movedim(-1, 0)[None].contiguous()


def shrunk(image: Tensor, factor: int) -> Tensor:
    size = [round(extent / factor) for extent in image.shape[2:]]
    return torch.nn.functional.interpolate(image, size=size, mode="bilinear", antialias=True)


def local_contrast(image: Tensor) -> Tensor:
    gray = luma(image)
    base = bilagrid.bilateral_filter(gray, sigma_space=0.06 * max(image.shape[2:]), sigma_color=0.2)
    return (image + gray - base).clamp(0, 1)


def tone_mapping(image: Tensor) -> Tensor:
    """Durand and Dorsey's: a base of half its contrast, in logarithms."""
    gray = (luma(image) + 0.02).log10()
    base = bilagrid.bilateral_filter(gray, sigma_space=0.02 * max(image.shape[2:]), sigma_color=0.4)
    return (image * (10 ** (gray - 0.5 * base) - 0.02).clamp(0) / (luma(image) + 1e-4)).clamp(0, 1)


def equalised(image: Tensor) -> Tensor:
    """Contrast-limited adaptive histogram equalisation."""
    exposure = pytest.importorskip("skimage.exposure")
    pixels = exposure.equalize_adapthist(image[0].movedim(0, -1).numpy(), clip_limit=0.02)
    return torch.from_numpy(pixels.astype(np.float32)).movedim(-1, 0)[None].contiguous()


def global_affine(high: Tensor, low: Tensor, target: Tensor) -> Tensor:
    homogeneous = lambda image: torch.cat([image, torch.ones_like(image[:, :1])], 1)[0].flatten(1).double()  # noqa: E731
    solution = torch.linalg.lstsq(homogeneous(low).T, target[0].flatten(1).double().T).solution
    return (solution.T @ homogeneous(high)).reshape(high.shape)


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("operator", [local_contrast, tone_mapping, equalised, vignette])
def test_photographs(name: str, operator: Callable[[Tensor], Tensor]) -> None:
    """An operator run at an eighth of the size, against itself at full size."""
    high = photograph(name)
    low = shrunk(high, 8)
    target, wanted = operator(low), numpy64(operator(high))
    guides = luma(low)[:, 0], luma(high)[:, 0]
    upsampled = [
        psnr(bilagrid.joint_bilateral_upsample(target, *guides, sigma_space=space, sigma_color=color), wanted)
        for space in (0.5, 1.0)
        for color in (0.05, 0.1)
    ]
    least = max(*upsampled, psnr(global_affine(high, low, target), wanted))
    for method in METHODS:
        assert psnr(guided_upsample(high, low, target, method=method), wanted) > least + 0.5


@pytest.mark.parametrize("method", METHODS)
def test_gradients(method: str) -> None:
    """To all four, on guides off the kinks of both."""
    image = colours(4, 5)[:, :2].clone().requires_grad_()
    target = colours(4, 5)[:, 1:].sqrt().requires_grad_()
    guide = off_nodes((1, 4, 5), 3, torch.Generator().manual_seed(3)).requires_grad_()
    weight = (0.5 + colours(4, 5)[:, 0]).requires_grad_()

    def run(image: Tensor, target: Tensor, guide: Tensor, weight: Tensor) -> Tensor:
        return fit(image, target, guide, size=(3, 2, 2), weight=weight, method=method)

    assert torch.autograd.gradcheck(run, (image, target, guide, weight), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (image, target, guide, weight), fast_mode=True)


def test_gradients_to_noise() -> None:
    image, target = colours(4, 5)[:, :2], colours(4, 5)[:, 1:].sqrt()
    guide = off_nodes((1, 4, 5), 3, torch.Generator().manual_seed(3)).requires_grad_()
    noise = (0.1 + colours(4, 5)[:, 1:]).requires_grad_()

    def run(guide: Tensor, noise: Tensor) -> Tensor:
        return fit(image, target, guide, size=(3, 2, 2), noise=noise)

    assert torch.autograd.gradcheck(run, (guide, noise), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (guide, noise), fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_upsampling(method: str) -> None:
    # Gray images guide themselves.
    high = off_nodes((1, 1, 6, 7), 3, torch.Generator().manual_seed(4)).requires_grad_()
    low = off_nodes((1, 1, 3, 4), 3, torch.Generator().manual_seed(5)).requires_grad_()
    target = colours(3, 4)[:, :2].clone().requires_grad_()

    def run(high: Tensor, low: Tensor, target: Tensor) -> Tensor:
        return guided_upsample(high, low, target, size=(3, 1, 2), method=method)

    assert torch.autograd.gradcheck(run, (high, low, target), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (high, low, target), fast_mode=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (1, 3), (3, 1), (4, 2)])
def test_channel_counts(method: str, inputs: int, outputs: int) -> None:
    image = torch.rand(2, inputs, 40, 48)
    mix = torch.rand(outputs, inputs)
    target = torch.einsum("oi,nihw->nohw", mix, image) + 0.1
    guide = image[:, 0] if inputs == 4 else None
    grid = fit(image, target, guide, size=(4, 2, 3), method=method)
    assert grid.shape == (2, outputs * (inputs + 1), 4, 2, 3)
    read = guide if inputs != 1 else image[:, 0]
    assert (bilagrid.slice_apply(grid, read, image) - target).abs().max() < 0.02
    options = {} if guide is None else {"guide_high": guide, "guide_low": guide}
    assert (guided_upsample(image, image, target, method=method, **options) - target).abs().max() < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_gray_in_three_channels(method: str) -> None:
    """Colours on a line leave the map open, and float32 hardly can tell."""
    image = torch.rand(1, 1, 512, 512).expand(1, 3, 512, 512)
    grid = fit(image, image.sqrt(), size=(4, 1, 1), method=method)
    assert grid.isfinite().all()
    assert (bilagrid.slice_apply(grid, None, image) - image.sqrt())[image > 0.2].abs().max() < 0.05
    assert fit(torch.zeros_like(image), image, size=(2, 1, 1), method=method).isfinite().all()


def test_the_fast_fit_scales_with_the_image_and_the_target() -> None:
    image = colours(24, 30)
    target = image.sqrt()
    guide = luma(image)[:, 0]
    grid = maps(fit(image, target, guide, size=(4, 2, 2)))
    louder = maps(fit(100 * image, 3 * target, guide, size=(4, 2, 2)))
    torch.testing.assert_close(louder[:, :3] * 100, 3 * grid[:, :3])
    torch.testing.assert_close(louder[:, 3], 3 * grid[:, 3])


@pytest.mark.parametrize("method", METHODS)
def test_the_batch_and_the_run_do_not_matter(method: str) -> None:
    image = colours(40, 48, 3).float()
    target = torch.stack([image[0].sqrt(), image[1] ** 2, vignette(image[2:])[0]])
    together = fit(image, target, size=SIZE, method=method)
    torch.testing.assert_close(fit(image, target, size=SIZE, method=method), together, rtol=0, atol=0)
    for n in range(3):
        alone = fit(image[n : n + 1], target[n : n + 1], size=SIZE, method=method)
        torch.testing.assert_close(alone, together[n : n + 1], rtol=0, atol=0)
    assert fit(image[:0], target[:0], size=SIZE, method=method).shape == (0, 12, *SIZE)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(method: str, dtype: torch.dtype) -> None:
    image = colours(24, 30).to(dtype)
    target = image.double().sqrt().to(dtype)
    grid = fit(image, target, size=(4, 2, 2), method=method)
    assert grid.dtype == torch.float32
    wanted = fit(image.double(), target.double(), size=(4, 2, 2), method=method)
    assert wanted.dtype == torch.float64
    assert (grid - wanted).abs().max() < 1e-3
    high = colours(48, 60).to(dtype)
    found = guided_upsample(high, image, target, method=method)
    assert found.dtype == dtype
    wanted = guided_upsample(high.double(), image.double(), target.double(), method=method)
    assert (found - wanted).abs().max() < 4 * torch.finfo(dtype).eps


def test_compiles() -> None:
    image = colours(24, 30).float()
    run = torch.compile(lambda image, target: fit(image, target, size=(4, 2, 2)), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(image, image.sqrt()), fit(image, image.sqrt(), size=(4, 2, 2)))


@pytest.mark.slow
def test_the_global_fit_breaks_a_graph_and_no_more() -> None:
    image = colours(24, 30).float()
    run = torch.compile(
        lambda image: 2 * fit(image, image.sqrt(), size=(4, 2, 2), method="global"), backend="aot_eager"
    )
    torch.testing.assert_close(run(image), 2 * fit(image, image.sqrt(), size=(4, 2, 2), method="global"))


@pytest.mark.parametrize("method", METHODS)
def test_maps_over_examples(method: str) -> None:
    image = colours(12, 15, 2)
    grid = torch.vmap(lambda image: fit(image[None], image[None].sqrt(), size=(3, 2, 2), method=method)[0])(image)
    torch.testing.assert_close(grid, fit(image, image.sqrt(), size=(3, 2, 2), method=method))


def test_training_through_its_own_size_compiles_with_dynamic_sizes() -> None:
    def run(high: Tensor, low: Tensor) -> Tensor:
        return guided_upsample(high, low, low.square())

    compiled = torch.compile(run, dynamic=True, fullgraph=True, backend="eager")
    for tall, wide in ((14, 18), (72, 100)):
        high, low = torch.rand(1, 3, tall, wide), torch.rand(1, 3, tall // 2, wide // 2).requires_grad_()
        found, wanted = (torch.autograd.grad(f(high, low).sum(), low)[0] for f in (compiled, run))
        assert_near(found, wanted)


def test_what_the_maps_leave_is_brought_up_bilinearly() -> None:
    low, high = colours(32, 48), colours(64, 96)
    target = low.sqrt()
    grid = fit(low, target, size=(8, 2, 3))
    left = target - bilagrid.slice_apply(grid, None, low)
    bilinear = torch.nn.functional.interpolate(left, size=(64, 96), mode="bilinear")
    wanted = bilagrid.slice_apply(grid, None, high) + bilinear
    torch.testing.assert_close(guided_upsample(high, low, target), wanted)


IMAGE = torch.rand(1, 3, 8, 9)
REFUSED = {
    "target": (lambda: fit(IMAGE, IMAGE[..., 1:], size=(2, 2, 2)), r"target must have shape \(N, C_out, H, W\) = \(1, 3, 8, 9\)"),
    "guide": (lambda: fit(IMAGE, IMAGE, IMAGE[:, 0, 1:], size=(2, 2, 2)), r"guide must have shape \(N, H, W\)"),
    "weight": (lambda: fit(IMAGE, IMAGE, size=(2, 2, 2), weight=IMAGE), r"weight must have shape \(N, H, W\)"),
    "noise": (lambda: fit(IMAGE, IMAGE, size=(2, 2, 2), noise=IMAGE[:, 1:]), r"noise must have shape \(N, C_in, H, W\) = \(1, 3, 8, 9\)"),
    "global noise": (lambda: fit(IMAGE, IMAGE, size=(2, 2, 2), noise=IMAGE, method="global"), 'noise is taken by method="fast" alone'),
    "no guide": (lambda: fit(IMAGE[:, :2], IMAGE, size=(2, 2, 2)), "image must have 1 or 3 channels to be its own guide, got 2"),
    "method": (lambda: fit(IMAGE, IMAGE, size=(2, 2, 2), method="slow"), 'method must be "fast" or "global", got \'slow\''),
    "size": (lambda: fit(IMAGE, IMAGE, size=(2, 0, 2)), r"size must be \(D, Gh, Gw\)"),
    "lattice": (lambda: fit(IMAGE, IMAGE, size=(2, 2, 2), lattice=Lattice.half_pixel((2, 2, 2), (4, 4))), "lattice is for an image"),
    "low": (lambda: guided_upsample(IMAGE, IMAGE[:, :2], IMAGE), r"image_low must have shape \(N, C_in, h, w\) = \(1, 3, 8, 9\) to match image_high"),
    "target_low": (lambda: guided_upsample(IMAGE, IMAGE, IMAGE[..., 1:]), "target_low must have shape .* to match image_low"),
    "one guide": (lambda: guided_upsample(IMAGE, IMAGE, IMAGE, guide_low=IMAGE[:, 0]), "both or neither, got guide_low alone"),
    "guide_high": (lambda: guided_upsample(IMAGE, IMAGE, IMAGE, guide_low=IMAGE[:, 0], guide_high=IMAGE[:, 0, 1:]), "guide_high must have shape"),
    "no guides": (lambda: guided_upsample(IMAGE[:, :2], IMAGE[:, :2], IMAGE), "image_low must have 1 or 3 channels"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_what_is_no_float_is_refused() -> None:
    with pytest.raises(TypeError, match="target must be float16"):
        fit(IMAGE, IMAGE.int(), size=(2, 2, 2))
    with pytest.raises(TypeError, match="weight must be float16"):
        fit(IMAGE, IMAGE, size=(2, 2, 2), weight=IMAGE[:, 0].int())
