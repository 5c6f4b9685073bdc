"""Compositions of torch's own operators: neither threads nor the batch change a bit, at sizes that torch divides among its threads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bilagrid
from bilagrid.compat.kornia import bilateral_blur
from bilagrid.ops._same_bits import power, power_of_ten, spread, summed

# No multiple of a register's numbers, and more pixels than torch leaves to one thread.
SIZE = (187, 211)
# As many nodes.
NODES = (8, 60, 70)

CASES: dict[str, tuple[Callable[..., Tensor], int]] = {
    "tonemap": (lambda image: bilagrid.tonemap(10 * image), 3),
    "tonemap of gray": (lambda image: bilagrid.tonemap(10 * image), 1),
    "merge_flash": (lambda image: bilagrid.merge_flash(image, 0.95 * image, exposure=1, sigma_space=3), 3),
    "fit": (lambda image: bilagrid.fit(image, image.square(), size=NODES), 1),
    "fit, global": (lambda image: bilagrid.fit(image, image.square(), size=NODES, method="global"), 1),
    "sigma_color of each image": (
        lambda image: bilateral_blur(image, 9, 0.1 + image[:, 0, 0, 0], (2.0, 2.0), guide_range=(0, 1)),
        1,
    ),
}


def derived(function: Callable[..., Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and a gradient that is of each image by itself."""
    image = image.clone().requires_grad_()
    out = function(image)
    weights = torch.linspace(-1, 2, out[0].numel()).view(1, *out.shape[1:]).expand(out.shape)
    return out.detach(), torch.autograd.grad(out, image, weights)[0]


@pytest.mark.parametrize("case", CASES)
def test_neither_threads_nor_the_batch_change_a_bit(case: str) -> None:
    function, channels = CASES[case]
    images = torch.rand(2, channels, *SIZE, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(1)
    together = derived(function, images)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        for alone, both in zip(derived(function, images[1:]), together, strict=True):
            torch.testing.assert_close(alone, both[1:], rtol=0, atol=0)


def test_equal_torchs_own() -> None:
    values = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(summed(values, 1), values.sum((1, 2, 3), keepdim=True))
    torch.testing.assert_close(spread(values[:, :1, :1, :1], values), values[:, :1, :1, :1].expand(values.shape))
    torch.testing.assert_close(power(values, 2.2), values**2.2)
    torch.testing.assert_close(power_of_ten(values), 10**values)
    assert torch.autograd.gradgradcheck(lambda v: spread(summed(v, 2), v) * v, (values,), fast_mode=True)
