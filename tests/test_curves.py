"""Curves against their reference: every gradient, knots in any order, kinks, what is not finite, and bits that do not change."""

from __future__ import annotations

from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import bilagrid
from tests.helpers import STRIDES, TOLERANCE, assert_near, device_of, numpy64, strided
from tests.reference import curves as expected

NAMES = ("matrix", "bias", "shifts", "slopes", "mix", "mix_bias")


def parameters(channels: int, mixes: int, knots: int, seed: int = 0) -> list[Tensor]:
    """In float64: knots in no order, some twice, over the range of the image, and a guide of which some is clipped at either end."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    shifts = torch.rand(mixes, knots, generator=generator, dtype=torch.float64)
    shifts[:, knots // 2 :] = shifts[:, : knots - knots // 2].flip(1)
    matrix = 1 / channels + 0.2 * draw(mixes, channels)
    return [matrix, 0.1 * draw(mixes), shifts, draw(mixes, knots), draw(mixes), 0.4 + 0.1 * draw(1)]


def off_kinks(image: Tensor, given: list[Tensor]) -> Tensor:
    """1 where a pixel keeps away from every knot and from the ends of the guide, so that rounding moves it to no other side, else 0: (N, H, W), float64."""
    matrix, bias, shifts, slopes, mix, mix_bias = (t.double().cpu() for t in given)
    mixed = torch.einsum("mc,nchw->nmhw", matrix, image.double().cpu()) + bias[:, None, None]
    over = mixed.unsqueeze(2) - shifts[:, :, None, None]
    guide = torch.einsum("m,mk,nmkhw->nhw", mix, slopes, over.relu()) + mix_bias
    near = (over.abs() < 1e-5).any(2).any(1) | (guide.abs() < 1e-5) | ((guide - 1).abs() < 1e-5)
    return (~near).double()


def assert_equals_reference(image: Tensor, given: list[Tensor]) -> None:
    """Value and every gradient. ``image`` and parameters are of the types that are to be tested."""
    leaves = [t.detach().requires_grad_() for t in (image, *given)]
    out = bilagrid.curves(*leaves)
    dtype = image.dtype
    for parameter in given:
        dtype = torch.promote_types(dtype, parameter.dtype)
    assert out.dtype == dtype
    assert out.shape == (image.shape[0], *image.shape[2:])
    assert out.is_contiguous()
    exact = [numpy64(t) for t in given[:-1]] + [numpy64(given[-1]).reshape(())]
    assert_near(out, expected.curves(numpy64(image), *exact))
    grad = torch.randn(out.shape, dtype=torch.float64) * off_kinks(image, given)
    grad = grad.to(out)
    wanted = expected.curves_bwd(numpy64(image), numpy64(grad), *exact)
    found = torch.autograd.grad(out, leaves, grad)
    for leaf, by_leaf, value in zip(leaves, found, wanted, strict=True):
        assert by_leaf.dtype == leaf.dtype
        assert_near(by_leaf, np.asarray(value).reshape(leaf.shape))
    assert found[0].stride() == torch.empty_like(image).stride()


@given(
    batch=st.sampled_from([1, 2, 0]),
    sizes=st.sampled_from([(3, 3, 16), (1, 1, 1), (2, 3, 5), (5, 2, 3)]),
    image_size=st.sampled_from([(1, 1), (3, 7), (2, 65), (9, 4)]),
    dtype=st.sampled_from(list(TOLERANCE)),
    of_parameters=st.sampled_from([torch.float32, None]),
    how=st.sampled_from(STRIDES),
    seed=st.integers(0, 2**16),
)
@hypothesis.example(2, (3, 3, 16), (2, 9), torch.float32, None, "interleaved", 0)
def test_equals_reference_with_every_gradient(
    backend: str,
    batch: int,
    sizes: tuple[int, int, int],
    image_size: tuple[int, int],
    dtype: torch.dtype,
    of_parameters: torch.dtype | None,
    how: str,
    seed: int,
) -> None:
    channels, mixes, knots = sizes
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, channels, *image_size, generator=generator, dtype=torch.float64)
    device = device_of(backend)
    given = [t.to(device, of_parameters or dtype) for t in parameters(channels, mixes, knots, seed)]
    assert_equals_reference(strided(image.to(device, dtype), how), given)


def test_rows_of_several_stretches_and_images_of_several_bands() -> None:
    """On the CPU, where both change how sums are put together; threads take part."""
    assert_equals_reference(torch.rand(1, 3, 9, 700), [t.float() for t in parameters(3, 3, 16)])


def test_rows_of_several_blocks(triton_backend: str) -> None:
    given = [t.float().to(device_of(triton_backend)) for t in parameters(1, 2, 3)]
    assert_equals_reference(torch.rand(1, 1, 2, 530, device=device_of(triton_backend)), given)


def test_the_order_of_knots_does_not_matter(backend: str) -> None:
    device = device_of(backend)
    image = torch.rand(1, 3, 4, 9, dtype=torch.float64, device=device)
    given = [t.to(device) for t in parameters(3, 2, 8)]
    order = torch.tensor([3, 1, 7, 0, 5, 2, 6, 4], device=device)
    other = [*given[:2], given[2][:, order], given[3][:, order], *given[4:]]
    assert_near(bilagrid.curves(image, *other), bilagrid.curves(image, *given))


def test_a_guide_that_is_given_as_curves(backend: str) -> None:
    """A ramp from 0 is the mixed channels themselves: with luma's weights, luma."""
    device = device_of(backend)
    image = torch.rand(2, 3, 5, 7, device=device)
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    weights = torch.tensor([[0.299, 0.587, 0.114]], device=device)
    out = bilagrid.curves(image, weights, zero, zero[:, None], one[:, None], one, zero)
    assert_near(out, (weights[0, :, None, None] * image).sum(1))


def test_kinks_have_the_derivatives_of_torch(backend: str) -> None:
    """At a knot the slope on its left; at a guide of exactly 0 and 1 the gradient passes, beyond it does not."""
    device = device_of(backend)
    image = torch.tensor([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5], device=device).view(1, 1, 1, 6).requires_grad_()
    one, zero = torch.ones(1, device=device), torch.zeros(1, device=device)
    shifts = torch.tensor([[-1.0, 0.25]], device=device).requires_grad_()
    slopes = torch.tensor([[1.0, 0.0]], device=device).requires_grad_()
    out = bilagrid.curves(image, one[:, None], zero, shifts, slopes, one, -one)
    assert_near(out, torch.tensor([[[0.0, 0.0, 0.25, 0.5, 1.0, 1.0]]]))
    by_image, by_shifts, by_slopes = torch.autograd.grad(out.sum(), (image, shifts, slopes))
    assert by_image.flatten().tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    # The pixel on the second knot is not beyond it: what is, is 0.25 and 0.75 beyond.
    assert by_shifts.flatten().tolist() == [-4.0, 0.0]
    assert by_slopes.flatten().tolist() == [1.0 + 1.25 + 1.5 + 2.0, 0.25 + 0.75]


@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_stays_at_its_pixel(backend: str, where: int) -> None:
    device = device_of(backend)
    image = torch.rand(2, 3, 3, 70, device=device)
    given = [t.float().to(device) for t in parameters(3, 3, 4)]
    clean = image.clone()
    clean[1, :, 1, 66] = 0
    image[1, where, 1, 66] = float("nan")
    leaves = [t.requires_grad_() for t in (image, *given)]
    out = bilagrid.curves(*leaves)
    assert out.isnan().nonzero().tolist() == [[1, 1, 66]]
    by_image, *by_parameters = torch.autograd.grad(out, leaves, torch.ones_like(out))
    assert by_image.isnan().nonzero().tolist() == [[1, c, 1, 66] for c in range(3)]
    # The parameters' gradients are those of an image without the pixel.
    weight = torch.ones_like(out.detach())
    weight[1, 1, 66] = 0
    wanted = torch.autograd.grad(bilagrid.curves(clean, *given), given, weight)
    for found, value in zip(by_parameters, wanted, strict=True):
        assert_near(found, value)


def test_infinity_saturates(backend: str) -> None:
    device = device_of(backend)
    image = torch.tensor([0.5, float("inf"), -float("inf")], device=device).view(1, 1, 1, 3).requires_grad_()
    one = torch.ones(1, device=device)
    given = [t.requires_grad_() for t in (one[:, None], 0 * one, 0 * one[:, None], one[:, None], one, -0.25 * one)]
    out = bilagrid.curves(image, *given)
    assert out.flatten().tolist() == [0.25, 1.0, 0.0]
    by_image, *by_parameters = torch.autograd.grad(out.sum(), (image, *given))
    assert by_image.flatten().tolist() == [1.0, 0.0, 0.0]
    assert all(grad.isfinite().all() for grad in by_parameters)


def test_a_half_image_with_float32_parameters_gives_a_float32_guide(backend: str) -> None:
    device = device_of(backend)
    image = torch.rand(1, 3, 3, 5, device=device).half()
    given = [t.float().to(device) for t in parameters(3, 3, 4)]
    out = bilagrid.curves(image, *given)
    assert out.dtype == torch.float32
    assert_near(out, bilagrid.curves(image.float(), *given))


def test_threads_runs_and_the_batch_do_not_change_a_bit() -> None:
    image = torch.rand(2, 3, 61, 653)
    given = [t.float().requires_grad_() for t in parameters(3, 3, 16)]

    def everything(image: Tensor) -> list[Tensor]:
        leaves = [image.clone().requires_grad_(), *given]
        out = bilagrid.curves(*leaves)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]

    torch.set_num_threads(1)
    wanted = everything(image)
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        for found, value in zip(everything(image), wanted, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=0)
    for found, value in zip(everything(image[1:])[:2], wanted, strict=False):
        torch.testing.assert_close(found, value[1:], rtol=0, atol=0)


def test_every_triton_run_gives_the_same_bits(triton_backend: str) -> None:
    device = device_of(triton_backend)
    leaves = [torch.rand(2, 3, 2, 70, device=device), *(t.float().to(device) for t in parameters(3, 3, 4))]
    leaves = [t.requires_grad_() for t in leaves]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad(bilagrid.curves(*leaves).square().sum(), leaves)

    for first, second in zip(gradients(), gradients(), strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)


@pytest.mark.parametrize(
    "mapped", [(0,) + 6 * (None,), (None, 0) + 5 * (None,), (1, None, 0, 1, None, None, 0), 7 * (0,)]
)
def test_vmap_equals_a_loop(mapped: tuple[int | None, ...]) -> None:
    draws = [[torch.rand(2, 3, 4, 5), *(t.float() for t in parameters(3, 2, 4, seed))] for seed in range(3)]
    given = [draws[0][i] if dim is None else torch.stack([d[i] for d in draws], dim) for i, dim in enumerate(mapped)]
    by_all = torch.func.grad(lambda *a: bilagrid.curves(*a).square().sum(), argnums=tuple(range(7)))
    for method in (bilagrid.curves, by_all):
        found = torch.vmap(method, in_dims=mapped)(*given)
        for k in range(3):
            wanted = method(*(t if d is None else t.select(d, k) for t, d in zip(given, mapped, strict=True)))
            pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
            for a, b in pairs:
                assert_near(a[k], b)


@pytest.mark.parametrize("double", [0, 3, 6])
def test_second_derivatives_where_one_argument_is_float64(double: int) -> None:
    exact = [torch.rand(1, 3, 4, 5).double(), *(t.float().double() for t in parameters(3, 2, 4))]
    weight = torch.rand(1, 4, 5)

    def second(leaves: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad((weight * bilagrid.curves(*leaves)).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(grad.double().square().sum() for grad in first), leaves)

    mixed = [t if k == double else t.float() for k, t in enumerate(exact)]
    found, wanted = (second([t.detach().requires_grad_() for t in given]) for given in (mixed, exact))
    for grad, leaf, value in zip(found, mixed, wanted, strict=True):
        assert grad.dtype == leaf.dtype
        assert_near(grad, value, torch.float32)


def test_jacrev_and_second_derivatives_of_func() -> None:
    given = parameters(1, 2, 3)
    image = torch.rand(1, 1, 2, 2, dtype=torch.float64)

    def loss(slopes: Tensor) -> Tensor:
        return bilagrid.curves(image, *given[:3], slopes, *given[4:]).square().sum()

    leaf = given[3].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    assert_near(torch.func.jacrev(loss)(given[3]), first)
    rows = [torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in first.flatten()]
    assert_near(torch.func.jacrev(torch.func.jacrev(loss))(given[3]).flatten(0, 1), torch.stack(rows))


IMAGE = torch.ones(2, 3, 4, 6)
GIVEN = dict(zip(NAMES, (torch.ones(2, 3), torch.ones(2), torch.ones(2, 5), torch.ones(2, 5), torch.ones(2), torch.ones(1)), strict=True))  # fmt: skip


def _with(**changed: object) -> Callable[[], Tensor]:
    return lambda: bilagrid.curves(**({"image": IMAGE} | GIVEN | changed))


REFUSED = {
    "rank of the image": (_with(image=IMAGE[0]), ValueError, r"image must have shape \(N, C, H, W\), got \(3, 4, 6\)"),
    "matrix of other channels": (_with(matrix=torch.ones(2, 4)), ValueError, r"matrix must have shape \(M, C\) = \(2, 3\) to match image, got \(2, 4\)"),
    "matrix of nothing": (_with(matrix=torch.ones(0, 3)), ValueError, r"matrix must have shape \(M, C\) with all at least 1, got \(0, 3\)"),
    "bias": (_with(bias=torch.ones(3)), ValueError, r"bias must have shape \(M,\) = \(2,\) to match matrix, got \(3,\)"),
    "rank of the bias": (_with(bias=torch.ones(2, 1)), ValueError, r"bias must have shape \(M,\), got \(2, 1\)"),
    "shifts": (_with(shifts=torch.ones(3, 5)), ValueError, r"shifts must have shape \(M, K\) = \(2, 5\) to match matrix, got \(3, 5\)"),
    "no knots": (_with(shifts=torch.ones(2, 0)), ValueError, r"shifts must have shape \(M, K\) with all at least 1, got \(2, 0\)"),
    "slopes": (_with(slopes=torch.ones(2, 4)), ValueError, r"slopes must have shape \(M, K\) = \(2, 5\) to match shifts, got \(2, 4\)"),
    "mix": (_with(mix=torch.ones(1)), ValueError, r"mix must have shape \(M,\) = \(2,\) to match matrix, got \(1,\)"),
    "mix_bias": (_with(mix_bias=torch.ones(2)), ValueError, r"mix_bias must have shape \(\) or \(1,\), got \(2,\)"),
    "a number": (_with(mix_bias=0.0), TypeError, "mix_bias must be a torch.Tensor, got float"),
    "integers": (_with(slopes=torch.ones(2, 5).int()), TypeError, "slopes must be float16.* got torch.int32"),
    "two devices": (_with(mix=torch.ones(2, device="meta")), ValueError, "mix must be on cpu as image is, got meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str) -> None:
    call, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("channels", [4, 5, 70])
def test_many_channels_take_fewer_pixels_at_once(channels: int) -> None:
    """A program of the backward holds the gradients of all channels: its blocks shrink so that these stay in registers."""
    pytest.importorskip("triton")
    from bilagrid.gpu.curves import _bwd_configs

    (config,) = _bwd_configs(channels, torch.float32)
    assert config.kwargs["BLOCK"] == {4: 256, 5: 128, 70: 32}[channels]
