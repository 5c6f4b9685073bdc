"""Curves on the CPU: a stretch of a row stays in the first-level cache while the loop goes over all knots."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._geometry import array
from bilagrid.cpu._lanes import contiguous
from bilagrid.cpu._ramps import BLOCK, WIDTH, add_products, add_ramps, add_ramps_bwd
from bilagrid.cpu._run import Kernel, helper
from bilagrid.ops._dtypes import compute_type, promoted

# Pixels of a row that are gone through at once, and rows whose sums one item adds up: the order of a sum depends on nothing else.
_STRETCH = 8 * BLOCK
_BAND = 8


@helper
def load(row, line):
    """Copies a stretch of a row to the beginning of ``line``, with zeros after it."""
    if row.strides[0] == row.itemsize:
        line[: row.size] = contiguous(row)
    else:
        line[: row.size] = row
    line[row.size :] = 0


@helper
def store(line, row):
    """Copies the beginning of ``line`` to a stretch of a row."""
    if row.strides[0] == row.itemsize:
        target = contiguous(row)
        target[:] = line[: row.size]
    else:
        row[:] = line[: row.size]


@helper
def add_scaled(weight, line, out):
    """``out += weight line``."""
    for j in range(out.size):
        out[j] += weight * line[j]


@helper
def bend(lines, matrix, bias, shifts, weights, constant, mixed, total):
    """``mixed[c] = sum_i matrix[c, i] lines[i] + bias[c]``, and the sum ``total`` of the curves of these; for as many pixels as ``total`` has."""
    size, knots = total.size, shifts.size // bias.size
    total[:] = constant[0]
    for c in range(bias.size):
        line = mixed[c][:size]
        line[:] = bias[c]
        for i in range(matrix.shape[1]):
            add_scaled(matrix[c, i], lines[i], line)
        add_ramps(line, shifts, weights, c * knots, (c + 1) * knots, total)


@helper
def clip(total, out):
    """``out = clip(total, 0, 1)``, NaN where ``total`` is."""
    zero, one = total.dtype.type(0), total.dtype.type(1)
    for j in range(out.size):
        value = zero if total[j] < zero else total[j]
        out[j] = one if value > one else value


@helper
def keep_inside(total, values):
    """Sets ``values`` to 0 where ``total`` is not within 0 and 1."""
    zero, one = total.dtype.type(0), total.dtype.type(1)
    for j in range(total.size):
        values[j] = values[j] if total[j] >= zero and total[j] <= one else zero


def _curves_kernel(start, stop, image, matrix, bias, shifts, weights, constant, out):
    """``out[n, p] = clip(sum_c sum_k weights[c, k] max(u_c(p) - shifts[c, k], 0) + constant, 0, 1)``, u the mixed channels. An item is a row ``(n, i)``."""
    channels, height, width = image.shape[1:]
    real = out.dtype.type
    lines, mixed = np.empty((channels, _STRETCH), real), np.empty((bias.size, _STRETCH), real)
    totals = np.empty(_STRETCH, real)
    for item in range(start, stop):
        n, row = item // height, item % height
        for first in range(0, width, _STRETCH):
            last = min(first + _STRETCH, width)
            total = totals[: (last - first + BLOCK - 1) // BLOCK * BLOCK]
            for i in range(channels):
                load(image[n, i, row, first:last], lines[i][: total.size])
            bend(lines, matrix, bias, shifts, weights, constant, mixed, total)
            clip(total, contiguous(out[n, row, first:last]))


def _curves_bwd_kernel(
    start, stop, image, matrix, bias, shifts, weights, constant, grad_output, by_image, partial, grad_image
):  # fmt: skip
    """The sums over a band of rows, ``partial[item]``, and where asked for the image's gradient ``sum_c matrix[c, i] grad_c``. An item is a band ``(n, band)``.

    ``grad`` is the gradient by the guide, 0 where that is clipped, and ``grad_c = grad sum_k weights[c, k] step`` that by u_c. The sums are, in this order: of
    ``grad step`` and ``grad max(u_c - shift, 0)`` for every c and k; of ``grad_c image_i`` for every i, and of ``grad_c``, for every c; of ``grad``.
    """
    channels, height, width = image.shape[1:]
    real, knots = weights.dtype.type, shifts.size // bias.size
    bands = (height + _BAND - 1) // _BAND
    # The last line is one of ones: products with it are plain sums.
    lines, mixed = np.ones((channels + 1, _STRETCH), real), np.empty((bias.size, _STRETCH), real)
    totals, grads, slopes = np.empty(_STRETCH, real), np.empty(_STRETCH, real), np.empty(_STRETCH, real)
    by_lines = np.empty((channels, _STRETCH), real)
    sums = np.empty(partial.shape[1] * WIDTH, real)
    for item in range(start, stop):
        n, band = item // bands, item % bands
        sums[:] = 0
        for row in range(band * _BAND, min((band + 1) * _BAND, height)):
            for first in range(0, width, _STRETCH):
                last = min(first + _STRETCH, width)
                size = (last - first + BLOCK - 1) // BLOCK * BLOCK
                total, grad, slope = totals[:size], grads[:size], slopes[:size]
                load(grad_output[n, row, first:last], grad)
                for i in range(channels):
                    load(image[n, i, row, first:last], lines[i][:size])
                bend(lines, matrix, bias, shifts, weights, constant, mixed, total)
                # Pixels that are clipped, infinite or NaN must not reach a sum, not even as 0 times infinity.
                keep_inside(total, grad)
                for i in range(channels):
                    keep_inside(total, lines[i])
                    for j in range(size):
                        by_lines[i, j] = real(0) if total[j] == total[j] else real(np.nan)
                place = 2 * shifts.size * WIDTH
                for c in range(bias.size):
                    slope[:] = 0
                    keep_inside(total, mixed[c])
                    add_ramps_bwd(mixed[c][:size], grad, shifts, weights, c * knots, (c + 1) * knots, slope, sums)
                    for j in range(size):
                        slope[j] *= grad[j]
                    for i in range(channels + 1):
                        add_products(slope, lines[i], sums, place)
                        place += WIDTH
                    for i in range(channels):
                        add_scaled(matrix[c, i], slope, by_lines[i][:size])
                add_products(grad, lines[channels], sums, place)
                if by_image:
                    for i in range(channels):
                        store(by_lines[i], grad_image[n, i, row, first:last])
        for k in range(partial.shape[1]):
            partial[item, k] = sums[k * WIDTH : (k + 1) * WIDTH].sum()


_curves = Kernel(_curves_kernel)
_curves_bwd = Kernel(_curves_bwd_kernel)


def _knots(
    dtype: torch.dtype, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor
) -> tuple[np.ndarray, ...]:
    """The parameters as the kernels take them: slopes multiplied by their curve's weight in the guide, and all but the matrix flat."""
    weights = array(slopes, dtype) * array(mix, dtype)[:, None]
    vectors = array(shifts, dtype).ravel(), weights.ravel(), array(mix_bias, dtype).reshape(1)
    return array(matrix, dtype), *map(np.ascontiguousarray, (array(bias, dtype), *vectors))


def curves(image: Tensor, *parameters: Tensor) -> Tensor:
    dtype = compute_type(image, *parameters)
    batch, _, height, width = image.shape
    out = image.new_empty((batch, height, width), dtype=dtype)
    work = 3 * parameters[2].numel() * out.numel()
    _curves(batch * height, work, array(image, dtype), *_knots(dtype, *parameters), out.numpy())
    return out.to(promoted(image, *parameters))


def curves_bwd(
    image: Tensor, matrix: Tensor, bias: Tensor, shifts: Tensor, slopes: Tensor, mix: Tensor, mix_bias: Tensor,
    grad_output: Tensor, by_image: bool,
) -> list[Tensor]:  # fmt: skip
    parameters = matrix, bias, shifts, slopes, mix, mix_bias
    dtype = compute_type(image, *parameters, grad_output)
    batch, channels, height, _ = image.shape
    mixes, count = matrix.shape[0], shifts.numel()
    items = batch * -(-height // _BAND)
    knots = _knots(dtype, *parameters)
    partial = np.empty((items, 2 * count + mixes * (channels + 1) + 1), knots[0].dtype)
    grad_image = torch.empty_like(image)
    result = grad_image if image.dtype == dtype else torch.empty_like(image, dtype=dtype)
    _curves_bwd(
        items, 8 * count * grad_output.numel(), array(image, dtype), *knots, array(grad_output, dtype), by_image,
        partial, result.numpy(),
    )  # fmt: skip
    # NumPy's sum keeps one order whatever the number of threads; torch's need not.
    sums = partial.sum(0, dtype=np.float64)
    steps, ramps = sums[: 2 * count].reshape(*shifts.shape, 2).transpose(2, 0, 1)
    products = sums[2 * count : -1].reshape(mixes, channels + 1)
    by_mix = (array(slopes, dtype) * ramps).sum(1)
    weights = knots[3].reshape(shifts.shape)
    grads = products[:, :-1], products[:, -1], -weights * steps, array(mix, dtype)[:, None] * ramps, by_mix, sums[-1:]
    by_parameters = torch.from_numpy(np.concatenate([grad.ravel() for grad in grads])).to(dtype)
    if not by_image:
        return [by_parameters]
    return [by_parameters, result if result is grad_image else grad_image.copy_(result)]
