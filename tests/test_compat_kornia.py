"""kornia's bilateral filters on the grid: how near they are to kornia's own, on photographs, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bilagrid.compat import kornia as compat
from bilagrid.compat.kornia import bilateral_blur, joint_bilateral_blur
from tests.helpers import assert_near, device_of, numpy64, off_nodes, psnr
from tests.reference import kornia as reference

data = pytest.importorskip(
    "skimage.data", reason="the photographs come with scikit-image: pip install 'bilagrid[images]'"
)


def photograph(name: str, crop: int = 96) -> Tensor:
    """A crop of a photograph, (1, C, crop, crop), 0 to 1."""
    pixels = torch.from_numpy(np.atleast_3d(getattr(data, name)()).astype(np.float32)) / 255
    top, left = (pixels.shape[0] - crop) // 2, (pixels.shape[1] - crop) // 2
    return pixels[top : top + crop, left : left + crop].movedim(-1, 0)[None].contiguous()


def exact(image: Tensor, guidance: Tensor, size: Any, color: float, space: Any, border: str, kind: str) -> np.ndarray:
    pair = size if isinstance(size, tuple) else (size, size)
    each = [
        reference.bilateral_blur(numpy64(one), numpy64(guide), pair, color, space, border, kind)
        for one, guide in zip(image, guidance, strict=True)
    ]
    return np.stack(each)


@pytest.mark.parametrize("border", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_the_loops_are_kornia(border: str, kind: str) -> None:
    """Where kornia is installed, so that what the loops say of it holds."""
    filters = pytest.importorskip("kornia.filters", reason="kornia is not installed: pip install 'bilagrid[peers]'")
    image, guidance = torch.rand(2, 3, 9, 11, dtype=torch.float64), torch.rand(2, 2, 9, 11, dtype=torch.float64)
    given = ((5, 3), 0.3, (1.5, 0.8), border, kind)
    assert_near(filters.joint_bilateral_blur(image, guidance, *given), exact(image, guidance, *given))
    assert_near(filters.bilateral_blur(image, *given), exact(image, image, *given))


# Window, sigma_space, and decibels at least: a window of three sigma to each side, of two, of one or less.
WINDOWS = {
    (13, 2.0): 53, (31, 5.0): 53, (49, 8.0): 53, (7, 1.0): 53, (5, 0.5): 53,
    (21, 5.0): 49, (5, 1.0): 49,
    (3, 1.5): 38, (5, 1.5): 38, (5, 3.0): 38, (9, 3.0): 38, (11, 5.0): 38, (25, 8.0): 38, (3, 10.0): 38,
}  # fmt: skip


@pytest.mark.parametrize("name", ["camera", "coins", "brick", "page"])
@pytest.mark.parametrize(("window", "space"), WINDOWS)
@pytest.mark.parametrize("color", [0.1, 0.2])
def test_accuracy_of_one_channel(name: str, window: int, space: float, color: float) -> None:
    image = photograph(name)
    found = bilateral_blur(image, (window, window), color, (space, space))
    wanted = exact(image, image, window, color, (space, space), "reflect", "l1")
    assert psnr(found, wanted) >= WINDOWS[window, space]


@pytest.mark.parametrize(("name", "least"), [("astronaut", 35), ("coffee", 43), ("chelsea", 43)])
@pytest.mark.parametrize(("window", "space"), [(9, 3.0), (25, 4.0), (49, 8.0)])
@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_accuracy_along_gray(name: str, least: float, window: int, space: float, kind: str) -> None:
    image = photograph(name)
    for color in (0.1, 0.2):
        given = (window, color, (space, space), "reflect", kind)
        found = bilateral_blur(image, *given, gray_distance=True)
        assert psnr(found, exact(image, image, *given)) >= least


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_along_gray_is_exact_for_gray(kind: str) -> None:
    """Three equal channels are as far apart as kornia has them, not as one of them is."""
    image = photograph("camera").expand(1, 3, 96, 96)
    given = (13, 0.2, (2.0, 2.0), "reflect", kind)
    assert psnr(bilateral_blur(image, *given, gray_distance=True), exact(image, image, *given)) >= 53


@pytest.mark.parametrize("border", ["constant", "reflect", "replicate", "circular"])
def test_borders(border: str) -> None:
    """Within a window's reach of the border alone."""
    image = photograph("coffee", 64)
    guidance = image.mean(1, keepdim=True)
    given = ((25, 13), 0.2, (4.0, 2.0), border)
    found = joint_bilateral_blur(image, guidance, *given)
    wanted = exact(image, guidance, *given, "l1")
    for edge in (np.s_[..., :6, :], np.s_[..., -6:, :], np.s_[..., :6], np.s_[..., -6:]):
        assert psnr(found[edge], wanted[edge]) >= 49


@pytest.mark.parametrize("along", [0, 1])
def test_unequal_sigmas(along: int) -> None:
    image = photograph("camera", 64)
    window, space = ((25, 9), (4.0, 1.5)) if along == 0 else ((3, 25), (0.8, 4.0))
    found = bilateral_blur(image, window, 0.2, space)
    assert psnr(found, exact(image, image, window, 0.2, space, "reflect", "l1")) >= 53


def test_an_image_does_not_depend_on_the_others_of_its_batch() -> None:
    image, guidance = torch.rand(2, 2, 12, 14), torch.rand(2, 1, 12, 14)
    colors, spaces = torch.tensor([0.1, 0.3]), torch.tensor([[1.0, 2.0], [3.0, 1.5]])
    for space in (spaces, spaces[:1]):
        found = joint_bilateral_blur(image, guidance, (5, 7), colors, space, guide_range=(0, 1))
        for n in range(2):
            one = np.s_[n : n + 1]
            alone = joint_bilateral_blur(
                image[one],
                guidance[one],
                (5, 7),
                colors[one],
                space[one] if len(space) > 1 else space,
                guide_range=(0, 1),
            )
            torch.testing.assert_close(found[one], alone, rtol=0, atol=0)
    none = joint_bilateral_blur(image[:0], guidance[:0], 5, colors[:0], spaces[:0], guide_range=(0, 1))
    assert none.shape == (0, 2, 12, 14)


def test_sigmas_for_each_image() -> None:
    images = torch.cat([photograph(name, 64) for name in ("camera", "coins", "brick")])
    colors, spaces = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([[2.0, 2.0], [3.0, 2.0], [1.0, 1.5]])
    found = bilateral_blur(images, (17, 13), colors, spaces)
    same = bilateral_blur(images, (17, 13), colors, spaces[:1].expand(3, 2))
    for n in range(3):
        one = exact(
            images[n : n + 1], images[n : n + 1], (17, 13), colors[n].item(), spaces[n].tolist(), "reflect", "l1"
        )
        assert psnr(found[n : n + 1], one) >= 50
    torch.testing.assert_close(same[0], found[0], rtol=1e-4, atol=1e-4)
    pair = bilateral_blur(images, (17, 13), colors, (2.0, 2.0))
    torch.testing.assert_close(same, pair, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types(dtype: torch.dtype) -> None:
    image = photograph("camera", 48).to(dtype)
    found = bilateral_blur(image, 13, 0.2, (2, 2))
    assert found.dtype == dtype
    wanted = bilateral_blur(image.double(), 13, 0.2, (2, 2))
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.51 * torch.finfo(dtype).eps + 1e-12)


def test_on_every_backend(backend: str) -> None:
    image = torch.rand(1, 1, 3, 4, device=device_of(backend))
    guidance = torch.rand(1, 1, 3, 4, device=device_of(backend))
    given = ((3, 5), 0.4, (1.0, 2.0))
    found = joint_bilateral_blur(image, guidance, *given)
    wanted = joint_bilateral_blur(image.cpu().double(), guidance.cpu().double(), *given)
    assert_near(found, wanted)


def test_gradients() -> None:
    """To input and guidance against finite differences; to sigma_color by the chain rule, since a step of it would move the grid's nodes."""
    image = torch.rand(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    # Over this range there are two nodes a sigma of 1, and off_nodes keeps twice the guidance off the integers.
    guidance = ((off_nodes((2, 1, 4, 5), 6) * 6 - 0.5) / 2).detach().requires_grad_()
    color = torch.ones(2, dtype=torch.float64, requires_grad=True)

    def run(image: Tensor, guidance: Tensor) -> Tensor:
        return joint_bilateral_blur(image, guidance, 3, color, (1.0, 1.0), guide_range=(-1.0, 6.0))

    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(run, (image, guidance), fast_mode=True)
    by_guidance, by_color = torch.autograd.grad(run(image, guidance).square().sum(), (guidance, color))
    assert by_color.abs().min() > 0
    torch.testing.assert_close(by_color, -(by_guidance * guidance).sum((1, 2, 3)) / color)


def test_modules() -> None:
    image, guidance = photograph("coffee", 48), photograph("coffee", 48).mean(1, keepdim=True)
    given = ((13, 13), 0.1, (2.0, 2.0), "replicate", "l2")
    module = compat.BilateralBlur(*given, gray_distance=True)
    wanted = bilateral_blur(image, *given, gray_distance=True)
    torch.testing.assert_close(copy.deepcopy(module)(image), wanted, rtol=0, atol=0)
    joint = compat.JointBilateralBlur(*given)
    torch.testing.assert_close(joint(image, guidance), joint_bilateral_blur(image, guidance, *given), rtol=0, atol=0)
    assert "kernel_size=(13, 13), sigma_color=0.1, sigma_space=(2.0, 2.0), border_type='replicate'" in repr(joint)


def test_mapped_and_compiled() -> None:
    images = torch.rand(3, 1, 1, 16, 18)

    def run(image: Tensor) -> Tensor:
        return bilateral_blur(image, 7, 0.2, (2.0, 2.0), guide_range=(0.0, 1.0))

    wanted = torch.stack([run(image) for image in images])
    assert_near(torch.vmap(run)(images), wanted)
    assert_near(torch.compile(run, fullgraph=True, backend="aot_eager")(images[0]), wanted[0])


IMAGE, GRAY = torch.rand(2, 3, 16, 18), torch.rand(2, 1, 16, 18)
REFUSED: dict[str, tuple[Callable[[], Tensor], type[Exception], str]] = {
    "colours": (lambda: bilateral_blur(IMAGE, 5, 0.1, (1, 1)), ValueError, "input must have 1 channel for a grid to measure its distances, got 3: pass gray_distance=True"),
    "a guidance of colours": (lambda: joint_bilateral_blur(GRAY, IMAGE, 5, 0.1, (1, 1)), ValueError, "guidance must have 1 channel"),
    "an even window": (lambda: bilateral_blur(GRAY, (5, 4), 0.1, (1, 1)), ValueError, r"kernel_size must be odd and at least 3 along y and x, got \(5, 4\)"),
    "a window of one pixel": (lambda: bilateral_blur(GRAY, 1, 0.1, (1, 1)), ValueError, "kernel_size must be odd and at least 3"),
    "half a pixel": (lambda: bilateral_blur(GRAY, 5.5, 0.1, (1, 1)), TypeError, "kernel_size must be"),  # type: ignore[arg-type]
    "three windows": (lambda: bilateral_blur(GRAY, (3, 3, 3), 0.1, (1, 1)), TypeError, "kernel_size must be"),  # type: ignore[arg-type]
    "a window beyond the mirror": (lambda: bilateral_blur(GRAY, 33, 0.1, (9, 9)), ValueError, r'one pixel less than the image.* = \(16, 18\) for border_type "reflect"'),
    "a window beyond the circle": (lambda: bilateral_blur(GRAY, 35, 0.1, (9, 9), "circular"), ValueError, "at most as far as the image"),
    "a border": (lambda: bilateral_blur(GRAY, 5, 0.1, (1, 1), "mirror"), ValueError, "border_type must be one of constant, reflect, replicate, circular, got 'mirror'"),
    "a distance": (lambda: bilateral_blur(GRAY, 5, 0.1, (1, 1), "reflect", "l3"), ValueError, 'color_distance_type must be "l1" or "l2"'),
    "one sigma in space": (lambda: bilateral_blur(GRAY, 5, 0.1, 1.0), TypeError, r"sigma_space must be \(y, x\), 2 numbers"),  # type: ignore[arg-type]
    "no sigma in space": (lambda: bilateral_blur(GRAY, 5, 0.1, (1, 0)), ValueError, "sigma_space must be finite numbers above 0"),
    "a learned sigma in space": (lambda: bilateral_blur(GRAY, 5, 0.1, torch.ones(2, 2, requires_grad=True)), ValueError, "sigma_space must have no gradient"),
    "sigmas in space for others": (lambda: bilateral_blur(GRAY, 5, 0.1, torch.ones(3, 2)), ValueError, r"sigma_space must have shape \(2,\) or \(B, 2\)"),
    "no sigma of colour": (lambda: bilateral_blur(GRAY, 5, 0.0, (1, 1)), ValueError, "sigma_color must be a finite number above 0"),
    "a negative sigma of colour": (lambda: bilateral_blur(GRAY, 5, torch.tensor([0.1, -1]), (1, 1)), ValueError, "sigma_color must be above 0 for every image"),
    "sigmas of colour for others": (lambda: bilateral_blur(GRAY, 5, torch.ones(3), (1, 1)), ValueError, r"sigma_color must be a number or have shape \(B,\) = \(2,\)"),
    "whole sigmas of colour": (lambda: bilateral_blur(GRAY, 5, torch.ones(2, dtype=torch.int32), (1, 1)), TypeError, "sigma_color must be floating"),
    "mapped sigmas of colour": (lambda: torch.vmap(lambda sigma: bilateral_blur(GRAY, 5, sigma, (1, 1), guide_range=(0, 1)))(torch.ones(3, 2)), ValueError, "sigma_color must be a number where a tensor's values cannot be looked at"),
    "mapped sigmas in space": (lambda: torch.vmap(lambda sigma: bilateral_blur(GRAY, 5, 0.1, sigma))(torch.ones(3, 2)), ValueError, r"sigma_space must be \(y, x\), two numbers, where a tensor's"),
    "sigmas without values": (lambda: bilateral_blur(GRAY, 5, 0.1, torch.ones(2, device="meta")), ValueError, r"sigma_space must be \(y, x\), two numbers"),
    "a guidance of another size": (lambda: joint_bilateral_blur(IMAGE, GRAY[:, :, :9], 5, 0.1, (1, 1)), ValueError, "guidance must have shape .* to match input"),
    "a guidance of none": (lambda: joint_bilateral_blur(IMAGE, torch.ones(()), 5, 0.1, (1, 1)), ValueError, r"guidance must have shape \(N, C, H, W\), got \(\)"),
    "three dimensions": (lambda: bilateral_blur(GRAY[0], 5, 0.1, (1, 1)), ValueError, "input must have shape"),
    "integers": (lambda: bilateral_blur(GRAY.int(), 5, 0.1, (1, 1)), TypeError, "input must be float16"),
    "not finite": (lambda: bilateral_blur(GRAY / 0, 5, 0.1, (1, 1)), ValueError, "input must be finite for its range to be measured"),
    "a flag": (lambda: bilateral_blur(GRAY, 5, 0.1, (1, 1), gray_distance=1), TypeError, "gray_distance must be True or False"),  # type: ignore[arg-type]
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    call, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
