"""Curves: HDRNet's full-size guide, a colour matrix, piecewise linear curves and their sum, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilagrid.ops import _checks
from bilagrid.ops._dtypes import compute_type, promoted, without_autocast
from bilagrid.ops._function import Function
from bilagrid.ops._plain import once
from bilagrid.ops._register import raw_operator
from bilagrid.ops._vmap import folded, one_by_one


def curves(
    image: Tensor, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor
) -> Tensor:
    """Makes a guide of an image: its channels are mixed, each mixture is bent by a piecewise linear curve, and the curves' sum is clipped to [0, 1]::

        u_c(p) = sum_i matrix[c, i] image[n, i, p] + bias[c]
        guide[n, p] = clip(sum_c mix[c] sum_k slopes[c, k] max(u_c(p) - shifts[c, k], 0) + mix_bias, 0, 1)

    Args:
        image: ``(N, C, H, W)``, any floating type and strides.
        matrix, bias: ``(M, C)`` and ``(M,)``, by which the channels are mixed into the input of each of M curves; HDRNet has M = C = 3.
        shifts, slopes: ``(M, K)``, where each curve has its knots, in any order, and by how much its slope changes there; HDRNet has K = 16.
        mix, mix_bias: ``(M,)``, the weight of each curve in the guide, and ``()`` or ``(1,)``, a constant.

    Returns:
        ``(N, H, W)``, contiguous, in the type that image and parameters promote to. So a half image with float32 parameters gives a float32 guide: rounded to
        half, pixels would change their cell. Computed in float32 (float64 where an argument is float64).

    Raises:
        TypeError: a dtype that is not floating, or an argument of another kind.
        ValueError: shapes or devices that do not fit.

    Gradients: to image and all parameters, of any order in reverse mode; the second order stores each curve for every pixel. At a knot the slope is that on its
    left, and a guide of exactly 0 or 1 still has its gradient, as with torch's clamp. Where a pixel is NaN, so are its guide and its own gradient, and the
    parameters' gradients leave it out. Deterministic.

    Source: Gharbi et al., "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017, section 3.4.1.

    Example:
        >>> ramps = torch.tensor([[0.0, 0.5]]), torch.tensor([[1.0, -1.0]])  # the identity up to 0.5, then flat
        >>> one, zero = torch.ones(1), torch.zeros(1)
        >>> curves(torch.tensor([0.2, 0.5, 0.9]).view(1, 1, 1, 3), one.view(1, 1), zero, *ramps, one, zero)
        tensor([[[0.2000, 0.5000, 0.5000]]])
    """
    _check(image, matrix, bias, shifts, slopes, mix, mix_bias)
    return _Curves.apply(image, matrix, bias, shifts, slopes, mix, mix_bias.reshape(()))


@once
def _check(
    image: Tensor, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor
) -> None:
    """Refuses arguments that do not fit each other."""
    _checks.tensors(image=image, matrix=matrix, bias=bias, shifts=shifts, slopes=slopes, mix=mix, mix_bias=mix_bias)
    _checks.rank("image", image, "(N, C, H, W)")
    _checks.rank("matrix", matrix, "(M, C)")
    mixed = matrix.shape[0]
    _checks.same("matrix", matrix, "(M, C)", (mixed, image.shape[1]), "image")
    _checks.same("bias", bias, "(M,)", (mixed,), "matrix")
    _checks.rank("shifts", shifts, "(M, K)")
    _checks.same("shifts", shifts, "(M, K)", (mixed, shifts.shape[1]), "matrix")
    _checks.same("slopes", slopes, "(M, K)", tuple(shifts.shape), "shifts")
    _checks.same("mix", mix, "(M,)", (mixed,), "matrix")
    if tuple(mix_bias.shape) not in ((), (1,)):
        raise ValueError(f"mix_bias must have shape () or (1,), got {tuple(mix_bias.shape)}")


# The image, and the six parameters.
_Arguments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _fake_curves(image: Tensor, *parameters: Tensor) -> Tensor:
    return image.new_empty((image.shape[0], *image.shape[2:]), dtype=promoted(image, *parameters))


def _fake_curves_bwd(image: Tensor, *rest: Any) -> list[Tensor]:
    *parameters, grad_output, by_image = rest
    count = sum(parameter.numel() for parameter in parameters)
    by_parameters = image.new_empty((count,), dtype=compute_type(image, *parameters, grad_output))
    return [by_parameters, torch.empty_like(image)] if by_image else [by_parameters]


def _vmap_curves(info: Any, in_dims: tuple[Any, ...], image: Tensor, *parameters: Tensor) -> tuple[Tensor, int]:
    """Images mapped alone join the batch; parameters that are mapped have a call each."""
    if any(dim is not None for dim in in_dims[1:]):
        return torch.stack([_raw_curves(*one) for one in one_by_one(info.batch_size, in_dims, (image, *parameters))]), 0
    guide = _raw_curves(folded(image, in_dims[0], info.batch_size), *parameters)
    return guide.unflatten(0, (info.batch_size, -1)), 0


def _vmap_curves_bwd(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[list[Tensor], list[int]]:
    """A call for each item: the parameters' gradients are sums over the batch, so the mapped dimension cannot join it."""
    every = [_raw_curves_bwd(*one) for one in one_by_one(info.batch_size, in_dims, given)]
    stacked = [torch.stack(grads) for grads in zip(*every, strict=True)]
    return stacked, [0] * len(stacked)


_PARAMETERS = "Tensor matrix, Tensor bias, Tensor shifts, Tensor slopes, Tensor mix, Tensor mix_bias"

_raw_curves = raw_operator("curves", f"curves(Tensor image, {_PARAMETERS}) -> Tensor", _fake_curves, vmap=_vmap_curves)
# Gives the gradients by the parameters, one after another in a vector, and where asked for that by the image.
_raw_curves_bwd = raw_operator(
    "curves",
    f"curves_bwd(Tensor image, {_PARAMETERS}, Tensor grad_output, bool by_image) -> Tensor[]",
    _fake_curves_bwd,
    vmap=_vmap_curves_bwd,
)


class _Curves(Function):
    @staticmethod
    def forward(
        image: Tensor, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor
    ) -> Tensor:
        return _raw_curves(image, matrix, bias, shifts, slopes, mix, mix_bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: _Arguments, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        parameters = given[1:]
        by_parameters, *by_image = _CurvesBwd.apply(*given, grad, ctx.needs_input_grad[0])
        parts = by_parameters.split([parameter.numel() for parameter in parameters])
        grads = (part.view(p.shape).to(p.dtype) for part, p in zip(parts, parameters, strict=True))
        return (by_image[0] if by_image else None, *grads)


class _CurvesBwd(Function):
    """The gradients by the parameters, and where asked for by the image; differentiated once more they fall back on torch's own operators."""

    @staticmethod
    def forward(
        image: Tensor,
        matrix: Tensor,
        bias: Tensor,
        shifts: Tensor,
        slopes: Tensor,
        mix: Tensor,
        mix_bias: Tensor,
        grad_output: Tensor,
        by_image: bool,
    ) -> tuple[Tensor, ...]:
        return tuple(_raw_curves_bwd(image, matrix, bias, shifts, slopes, mix, mix_bias, grad_output, by_image))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:-1])

    @staticmethod
    def backward(ctx: Any, along: Tensor, *along_image: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(along):
            return *_along(ctx.saved_tensors, along, along_image), None


def _along(given: tuple[Tensor, ...], along: Tensor, along_image: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The gradients of ``sum_p grad J``, J the derivative of the guide along the incoming gradients, which are a direction in its arguments.

    With v the direction and v_u that of u: ``J = sum_c v_mix f(u) + mix (sum_k v_slopes relu - slopes v_shifts step + f'(u) v_u) + v_mix_bias``.
    """
    # Theirs is the type that all was computed in.
    image, *parameters, grad = (tensor.to(along.dtype) for tensor in given)
    matrix, bias, shifts, slopes, mix, mix_bias = parameters
    parts = along.split([parameter.numel() for parameter in parameters])
    v_matrix, v_bias, v_shifts, v_slopes, v_mix, v_mix_bias = (
        part.view(parameter.shape) for part, parameter in zip(parts, parameters, strict=True)
    )
    v_image = along_image[0].to(along.dtype) if along_image else torch.zeros_like(image)

    mixed = _mixed(matrix, bias, image)
    over = mixed.unsqueeze(2) - _over_pixels(shifts)
    step = (over > 0).to(over.dtype)
    relu = over.clamp(min=0)
    curved = torch.einsum("mk,nmkhw->nmhw", slopes, relu)
    slope = torch.einsum("mk,nmkhw->nmhw", slopes, step)
    guide = torch.einsum("m,nmhw->nhw", mix, curved) + mix_bias
    inside = ((guide >= 0) & (guide <= 1)).to(guide.dtype)

    v_mixed = _mixed(v_matrix, v_bias, image) + torch.einsum("mc,nchw->nmhw", matrix, v_image)
    v_curved = torch.einsum("mk,nmkhw->nmhw", v_slopes, relu)
    v_curved = v_curved - torch.einsum("mk,nmkhw->nmhw", slopes * v_shifts, step) + slope * v_mixed
    v_guide = torch.einsum("m,nmhw->nhw", v_mix, curved) + torch.einsum("m,nmhw->nhw", mix, v_curved) + v_mix_bias
    v_slope = torch.einsum("mk,nmkhw->nmhw", v_slopes, step)

    grad = (grad * inside).unsqueeze(1)
    by_mixed = grad * (_over_pixels(v_mix) * slope + _over_pixels(mix) * v_slope)
    by_v_mixed = grad * _over_pixels(mix) * slope
    steps = torch.einsum("nhw,nmkhw->mk", grad[:, 0], step)
    by_slopes = v_mix[:, None] * torch.einsum("nhw,nmkhw->mk", grad[:, 0], relu)
    by_slopes = by_slopes + mix[:, None] * (torch.einsum("nmhw,nmkhw->mk", grad * v_mixed, step) - v_shifts * steps)
    grads = (
        torch.einsum("mc,nmhw->nchw", matrix, by_mixed) + torch.einsum("mc,nmhw->nchw", v_matrix, by_v_mixed),
        torch.einsum("nmhw,nchw->mc", by_mixed, image) + torch.einsum("nmhw,nchw->mc", by_v_mixed, v_image),
        by_mixed.sum((0, 2, 3)),
        -(v_mix[:, None] * slopes + mix[:, None] * v_slopes) * steps,
        by_slopes,
        (grad * v_curved).sum((0, 2, 3)),
        torch.zeros_like(mix_bias),
        inside * v_guide,
    )
    return tuple(value.to(t.dtype) for value, t in zip(grads, given, strict=True))


def _over_pixels(parameter: Tensor) -> Tensor:
    """A parameter that meets maps ``(N, M, H, W)`` or ``(N, M, K, H, W)``."""
    return parameter[..., None, None]


def _mixed(matrix: Tensor, bias: Tensor, image: Tensor) -> Tensor:
    """``(N, M, H, W)``: what goes into the curves."""
    return torch.einsum("mc,nchw->nmhw", matrix, image) + _over_pixels(bias)
