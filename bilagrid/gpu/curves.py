"""`curves` in Triton: a guide from an image, every knot of every curve in one pass over the pixels, and the gradients in another."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from bilagrid.gpu._geometry import widen
from bilagrid.gpu._launch import (
    RUNTIME,
    cdiv,
    launch,
    launch_pixels,
    needs_int64,
    strides,
    triton_dtype,
)
from bilagrid.gpu._pixels import pixel_tile
from bilagrid.ops._dtypes import compute_type, promoted

# Four pixels a thread share the loads of a knot; eight halve them once more.
CURVES_CONFIGS = [
    triton.Config({"BLOCK": 512}, num_warps=4),
    triton.Config({"BLOCK": 1024}, num_warps=4),
    triton.Config({"BLOCK": 256}, num_warps=2),
]

ADD_CONFIGS = [triton.Config({"BLOCK": 1024}, num_warps=4)]

# Numbers of an image's gradient, at most, that a program of the backward holds: more of them spill registers.
_HELD = 1024


def _bwd_configs(channels: int, dtype: torch.dtype) -> list[triton.Config]:
    """One warp, so that a sum over pixels never leaves it, and as many pixels as leave the gradients of all channels in registers.

    BLOCK changes the order of the sums, so it is not tuned.
    """
    numbers = triton.next_power_of_2(channels) * (dtype.itemsize // 4)
    return [triton.Config({"BLOCK": min(max(_HELD // numbers, 32), 256)}, num_warps=1)]


@triton.jit
def _load_mixed(
    image_ptr, stride_image_c, matrix_ptr, bias_ptr, c, mask,
    CHANNELS: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """u_c of some pixels: sum_i matrix[c, i] image[i] + bias[c]."""
    mixed = tl.zeros(mask.shape, ACC) + tl.load(bias_ptr + c).to(ACC)
    for i in range(CHANNELS):
        value = tl.load(image_ptr + widen(i, WIDE) * stride_image_c, mask=mask, other=0.0).to(ACC)
        mixed = tl.fma(value, tl.load(matrix_ptr + c * CHANNELS + i).to(ACC), mixed)
    return mixed


@triton.jit
def _load_guide(
    image_ptr, stride_image_c, matrix_ptr, bias_ptr, shifts_ptr, slopes_ptr, mix_ptr, mix_bias_ptr, knots, mask,
    CHANNELS: tl.constexpr, MIXES: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The guide of some pixels before it is clipped; NaN where a pixel is."""
    guide = tl.zeros(mask.shape, ACC) + tl.load(mix_bias_ptr).to(ACC)
    for c in range(MIXES):
        mixed = _load_mixed(image_ptr, stride_image_c, matrix_ptr, bias_ptr, c, mask, CHANNELS, ACC, WIDE)
        mix = tl.load(mix_ptr + c).to(ACC)
        for k in range(knots):
            shift = tl.load(shifts_ptr + c * knots + k).to(ACC)
            weight = tl.load(slopes_ptr + c * knots + k).to(ACC) * mix
            guide = tl.fma(tl.maximum(mixed - shift, 0.0), weight, guide)
        guide = tl.where(mixed == mixed, guide, mixed)
    return guide


@triton.jit(do_not_specialize=RUNTIME)
def _curves_kernel(
    image_ptr,
    matrix_ptr,
    bias_ptr,
    shifts_ptr,
    slopes_ptr,
    mix_ptr,
    mix_bias_ptr,
    out_ptr,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    first_n,
    first_row,
    H,
    W,
    CHANNELS: tl.constexpr,
    MIXES: tl.constexpr,
    KNOTS: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: out[n, p] = clip(sum_c mix[c] sum_k slopes[c, k] max(u_c(p) - shifts[c, k], 0) + mix_bias, 0, 1).

    u_c = sum_i matrix[c, i] image_i + bias[c]. image (N, CHANNELS, H, W), matrix (MIXES, CHANNELS), shifts and slopes (MIXES, KNOTS), bias and mix
    (MIXES), mix_bias a scalar, out (N, H, W); all but the image contiguous. The guidance map of Gharbi et al. 2017, section 3.4.1.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + i * stride_image_y + j * stride_image_x
    guide = _load_guide(
        image_ptr, stride_image_c, matrix_ptr, bias_ptr, shifts_ptr, slopes_ptr, mix_ptr, mix_bias_ptr, KNOTS, mask,
        CHANNELS, MIXES, ACC, WIDE,
    )  # fmt: skip
    clipped = tl.where(guide < 0.0, 0.0, tl.where(guide > 1.0, 1.0, guide))
    tl.store(out_ptr + (n * H + i) * W + j, clipped, mask=mask)


@triton.jit(do_not_specialize=[*RUNTIME, "parts", "knots"])
def _curves_bwd_kernel(
    image_ptr,
    matrix_ptr,
    bias_ptr,
    shifts_ptr,
    slopes_ptr,
    mix_ptr,
    mix_bias_ptr,
    grad_ptr,
    partial_ptr,
    grad_image_ptr,
    stride_image_n,
    stride_image_c,
    stride_image_y,
    stride_image_x,
    stride_grad_n,
    stride_grad_y,
    stride_grad_x,
    stride_grad_image_n,
    stride_grad_image_c,
    stride_grad_image_y,
    stride_grad_image_x,
    first_n,
    first_row,
    H,
    W,
    parts,
    knots,
    CHANNELS: tl.constexpr,
    CHANNELS_2: tl.constexpr,
    MIXES: tl.constexpr,
    BY_IMAGE: tl.constexpr,
    ACC: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program owns BLOCK pixels of a row: their part of the parameters' gradients, and where BY_IMAGE the image's there.

    With g the gradient by the guide where it is not clipped, else 0, and step = u_c > shifts[c, k]:

    slopes[c, k]: mix[c] sum_p g max(u_c - shifts[c, k], 0); shifts[c, k]: -mix[c] slopes[c, k] sum_p g step;
    u_c: g_c = g mix[c] sum_k slopes[c, k] step, and from it matrix[c, i]: sum_p g_c image_i; bias[c]: sum_p g_c; image_i: sum_c matrix[c, i] g_c.

    The number of knots is no constant: in a loop that is unrolled, what is loaded for them would take the registers.

    As in `_curves_kernel`; grad (N, H, W), grad_image (N, CHANNELS, H, W), partial (parameters, parts), the parameters in the order of the arguments.
    """
    n, row, offs_x, mask = pixel_tile(first_n, first_row, W, WIDE, BLOCK)
    i = widen(row, WIDE)
    j = widen(offs_x, WIDE)
    image_ptr += n * stride_image_n + i * stride_image_y + j * stride_image_x
    guide = _load_guide(
        image_ptr, stride_image_c, matrix_ptr, bias_ptr, shifts_ptr, slopes_ptr, mix_ptr, mix_bias_ptr, knots, mask,
        CHANNELS, MIXES, ACC, WIDE,
    )  # fmt: skip
    # What is clipped, infinite or NaN is not even read: it may not reach a sum as 0 times infinity.
    inside = mask & (guide >= 0.0) & (guide <= 1.0)
    grad_ptr += n * stride_grad_n + i * stride_grad_y + j * stride_grad_x
    grad = tl.load(grad_ptr, mask=inside, other=0.0).to(ACC)

    part = (n * H + i) * tl.num_programs(0) + tl.program_id(0)
    partial_ptr += part
    step_out = widen(parts, WIDE)
    by_matrix_ptr = partial_ptr
    by_bias_ptr = by_matrix_ptr + MIXES * CHANNELS * step_out
    by_shifts_ptr = by_bias_ptr + MIXES * step_out
    by_slopes_ptr = by_shifts_ptr + MIXES * knots * step_out
    by_mix_ptr = by_slopes_ptr + MIXES * knots * step_out
    by_mix_bias_ptr = by_mix_ptr + MIXES * step_out

    offs_c = tl.arange(0, CHANNELS_2)
    by_image = tl.zeros([CHANNELS_2, BLOCK], ACC)
    for c in range(MIXES):
        mixed = _load_mixed(image_ptr, stride_image_c, matrix_ptr, bias_ptr, c, inside, CHANNELS, ACC, WIDE)
        mix = tl.load(mix_ptr + c).to(ACC)
        by_mix = tl.zeros([], ACC)
        by_bias = tl.zeros([], ACC)
        slope_here = tl.zeros([BLOCK], ACC)
        for k in range(knots):
            knot = c * knots + k
            shift = tl.load(shifts_ptr + knot).to(ACC)
            slope = tl.load(slopes_ptr + knot).to(ACC)
            is_over = mixed > shift
            steps = tl.sum(tl.where(is_over, grad, 0.0), axis=0)
            ramps = tl.sum(tl.maximum(mixed - shift, 0.0) * grad, axis=0)
            slope_here = tl.where(is_over, slope_here + slope, slope_here)
            by_mix = tl.fma(slope, ramps, by_mix)
            by_bias = tl.fma(slope * mix, steps, by_bias)
            tl.store(by_slopes_ptr + knot * step_out, mix * ramps)
            tl.store(by_shifts_ptr + knot * step_out, -slope * mix * steps)
        tl.store(by_mix_ptr + c * step_out, by_mix)
        tl.store(by_bias_ptr + c * step_out, by_bias)
        by_mixed = grad * slope_here * mix
        for channel in range(CHANNELS):
            value = tl.load(image_ptr + widen(channel, WIDE) * stride_image_c, mask=inside, other=0.0).to(ACC)
            tl.store(by_matrix_ptr + (c * CHANNELS + channel) * step_out, tl.sum(by_mixed * value, axis=0))
        if BY_IMAGE:
            weights = tl.load(matrix_ptr + c * CHANNELS + offs_c, mask=offs_c < CHANNELS, other=0.0).to(ACC)
            by_image = tl.fma(weights[:, None], by_mixed[None, :], by_image)
    tl.store(by_mix_bias_ptr, tl.sum(grad, axis=0))
    if BY_IMAGE:
        by_image = tl.where((guide != guide)[None, :], float("nan"), by_image)
        grad_image_ptr += n * stride_grad_image_n + i * stride_grad_image_y
        grad_image_ptr += widen(offs_c, WIDE)[:, None] * stride_grad_image_c + j[None, :] * stride_grad_image_x
        tl.store(grad_image_ptr, by_image, mask=(offs_c < CHANNELS)[:, None] & mask[None, :])


@triton.jit(do_not_specialize=["parts"])
def _add_parts_kernel(partial_ptr, out_ptr, parts, ACC: tl.constexpr, BLOCK: tl.constexpr):
    """A program owns a parameter: out = the sum of its parts, in their order. partial (parameters, parts), out (parameters)."""
    pid = tl.program_id(0).to(tl.int64)
    acc = tl.zeros([BLOCK], ACC)
    for start in range(0, parts, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        acc += tl.load(partial_ptr + pid * parts + offs, mask=offs < parts, other=0.0)
    tl.store(out_ptr + pid, tl.sum(acc, axis=0))


def curves(image: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """The guide of an image: (N, H, W), contiguous, in the promoted type."""
    batch, _, height, width = image.shape
    out = torch.empty((batch, height, width), dtype=promoted(image, *parameters), device=image.device)
    launch_pixels(
        _curves_kernel,
        (batch, height, width),
        CURVES_CONFIGS,
        image,
        **_given(image, parameters, compute_type(image, *parameters)),
        out_ptr=out,
        KNOTS=parameters[2].shape[1],
        WIDE=needs_int64(image, out),
    )
    return out


def curves_bwd(image: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
    """The gradients of `curves` by its parameters, one after another in a vector, and where asked for by the image, which lies as the image does."""
    *parameters, grad_output, by_image = rest
    dtype = compute_type(image, *parameters, grad_output)
    batch, channels, height, width = image.shape
    count = sum(parameter.numel() for parameter in parameters)
    configs = _bwd_configs(channels, dtype)
    parts = batch * height * cdiv(width, configs[0].kwargs["BLOCK"])
    partial = torch.empty((count, parts), dtype=dtype, device=image.device)
    by_parameters = torch.empty(count, dtype=dtype, device=image.device)
    grad_image = torch.empty_like(image) if by_image else None
    launch_pixels(
        _curves_bwd_kernel,
        (batch, height, width),
        configs,
        image,
        **_given(image, tuple(parameters), dtype),
        grad_ptr=grad_output,
        partial_ptr=partial,
        grad_image_ptr=grad_image,
        **strides("grad", grad_output, "nyx"),
        **strides("grad_image", grad_image, "ncyx"),
        parts=parts,
        knots=parameters[2].shape[1],
        CHANNELS_2=triton.next_power_of_2(channels),
        BY_IMAGE=by_image,
        WIDE=needs_int64(image, grad_output, grad_image, partial),
    )
    launch(
        _add_parts_kernel,
        count,
        ADD_CONFIGS,
        image,
        partial_ptr=partial,
        out_ptr=by_parameters,
        parts=parts,
        ACC=triton_dtype(dtype),
    )
    return [by_parameters] if grad_image is None else [by_parameters, grad_image]


def _given(image: torch.Tensor, parameters: tuple[torch.Tensor, ...], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments that tell a kernel of the image and the parameters, of which each is small enough to be copied where it is not contiguous."""
    names = ("matrix", "bias", "shifts", "slopes", "mix", "mix_bias")
    return dict(
        image_ptr=image,
        **{f"{name}_ptr": p.contiguous() for name, p in zip(names, parameters, strict=True)},
        **strides("image", image, "ncyx"),
        H=image.shape[2],
        W=image.shape[3],
        CHANNELS=image.shape[1],
        MIXES=parameters[0].shape[0],
        ACC=triton_dtype(dtype),
    )
