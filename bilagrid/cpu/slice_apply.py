"""Slice-and-apply on the CPU: coefficients are interpolated and used pixel by pixel, never stored."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._bank import used
from bilagrid.cpu._geometry import Geometry, array, load_line, locate_row
from bilagrid.cpu._lanes import LANES, apply_four
from bilagrid.cpu._reduction import (
    Bands,
    cells_of_tile,
    close_tile,
    end_of_cells,
    end_row,
    place_row,
    scatter_row,
)
from bilagrid.cpu._run import Kernel, helper
from bilagrid.lattice import Lattice
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._luma import LUMA
from bilagrid.ops._memory import empty_as


@helper
def load_row(image, i, scratch, pixels):
    """Row i of an image (C, H, W) as ``pixels[j, c]``; a channel beyond the image's stays as it is."""
    for c in range(image.shape[0]):
        line = load_line(image[c, i], scratch)
        for j in range(line.size):
            pixels[j, c] = line[j]


@helper
def lerp_rows(grid, row, weight, loaded, below, step, table):
    """The grid interpolated in y at one image row, ``table[x * (D + 1) + z, c]``: what a pixel reads at a corner lies together.

    ``below`` and ``step`` hold a row of nodes and its difference to the next; they are read anew if ``row`` is not the ``loaded`` one. Returns ``row``.
    """
    channels, depth, rows, columns = grid.shape
    if row != loaded:
        above = min(row + 1, rows - 1)
        for c in range(channels):
            for z in range(depth):
                for x in range(columns):
                    node = x * (depth + 1) + z
                    below[node, c] = grid[c, z, row, x]
                    step[node, c] = grid[c, z, above, x] - grid[c, z, row, x]
    flat, start, slope = table.reshape(-1), below.reshape(-1), step.reshape(-1)
    for k in range(flat.size):
        flat[k] = start[k] + weight * slope[k]
    return row


@helper
def load_guide(guide, has_guide, image, i, scratch):
    """Row i of the guide, or of the image's BT.601 luma in its place, as a contiguous vector."""
    if has_guide:
        return load_line(guide[i], scratch)
    real = scratch.dtype.type
    red, green, blue = image[0, i], image[1, i], image[2, i]
    for j in range(scratch.size):
        scratch[j] = red[j] * real(LUMA[0]) + green[j] * real(LUMA[1]) + blue[j] * real(LUMA[2])
    return scratch


@helper
def apply_row(table, places, step_x, step_z, column_weights, upper, pixels, terms, lanes):
    """Computes four outputs of a row of pixels, ``lanes[4 j + output]``. ``places`` are the offsets of these outputs in the table, at each pixel's first corner."""
    one = table.dtype.type(1)
    for j in range(places.size):
        right, high = column_weights[j], upper[j]
        left, low = one - right, one - high
        near = np.intp(places[j])
        far = near + step_x
        corners, weights = (
            (near, near + step_z, far, far + step_z),
            (left * low, left * high, right * low, right * high),
        )
        # For the usual map of three colours and an offset the compiler unrolls the loop.
        if terms == 4:
            apply_four(table, corners, weights, pixels, 4 * j, 4, lanes, LANES * j)
        else:
            apply_four(table, corners, weights, pixels, terms * j, terms, lanes, LANES * j)


def _slice_apply_kernel(
    start, stop, grid, which, guide, has_guide, image, guide_map, terms, rows, row_weights, columns, column_weights, out
):
    """``out[n, o, p] = sum_i A_oi(p) image[n, i, p] + A_o,offset(p)``, A the sliced grid. An item is a row ``(n, i)``.

    Channels of ``grid`` are ordered (group of four outputs, term, output in the group), see `_by_lanes`.
    """
    depth, width = grid.shape[2], grid.shape[4]
    outputs, height, length = out.shape[1:]
    real, channels = out.dtype.type, grid.shape[1]
    table = np.zeros(((width + 1) * (depth + 1), channels), real)
    below, step = np.zeros_like(table), np.zeros_like(table)
    base, upper, places = np.empty(length, np.int32), np.empty(length, real), np.empty(length, np.int32)
    scratch, lanes = np.empty(length, real), np.empty(LANES * length, real)
    pixels = np.ones((length, terms), real)
    batch, loaded = -1, -1
    for item in range(start, stop):
        n, i = item // height, item % height
        if n != batch:
            batch, loaded = n, -1
        loaded = lerp_rows(grid[which[n]], rows[i], row_weights[i], loaded, below, step, table)
        load_row(image[n], i, scratch, pixels)
        line = load_guide(guide[n], has_guide, image[n], i, scratch)
        locate_row(line, guide_map, depth, False, columns, base, upper)
        for first in range(0, outputs, LANES):
            for j in range(length):
                places[j] = base[j] * np.int32(channels) + np.int32(first * terms)
            step_x = (depth + 1) * channels
            apply_row(
                table.reshape(-1), places, step_x, channels, column_weights, upper, pixels.reshape(-1), terms, lanes
            )
            for o in range(first, min(first + LANES, outputs)):
                target, lane = out[n, o, i], o - first
                for j in range(length):
                    target[j] = lanes[LANES * j + lane]


def _slice_apply_bwd_pixels_kernel(
    start, stop, grid, which, guide, has_guide, image, grad_output, guide_map, terms, rows, row_weights, columns,
    column_weights, grad_image, grad_guide,
):  # fmt: skip
    """The image's gradient ``sum_o A_oi grad_o`` and the guide's ``scale_z sum_o grad_o (sum_i dA_oi/dz image_i + dA_o,offset/dz)``. An item is a row.

    Without a guide the guide's gradient goes on into the image by the luma weights.
    """
    depth, width = grid.shape[2], grid.shape[4]
    outputs, height, length = grad_output.shape[1:]
    inputs = image.shape[1]
    real = grad_image.dtype.type
    zero = real(0)
    stride = depth + 1
    table = np.zeros(((width + 1) * stride, grid.shape[1]), real)
    below, step = np.zeros_like(table), np.zeros_like(table)
    corners = table.reshape(((width + 1) * stride, grid.shape[1] // LANES, LANES))
    base, upper, slope = np.empty(length, np.int32), np.empty(length, real), np.empty(length, real)
    scratch = np.empty(length, real)
    pixels = np.ones((length, terms), real)
    grads = np.zeros((length, (outputs + LANES - 1) // LANES * LANES), real)
    batch, loaded = -1, -1
    for item in range(start, stop):
        n, i = item // height, item % height
        if n != batch:
            batch, loaded = n, -1
        loaded = lerp_rows(grid[which[n]], rows[i], row_weights[i], loaded, below, step, table)
        load_row(image[n], i, scratch, pixels)
        load_row(grad_output[n], i, scratch, grads)
        line = load_guide(guide[n], has_guide, image[n], i, scratch)
        locate_row(line, guide_map, depth, True, columns, base, slope)
        locate_row(line, guide_map, depth, False, columns, base, upper)
        for j in range(length):
            right = column_weights[j]
            left = real(1) - right
            k = base[j]
            near, near_up, far, far_up = corners[k], corners[k + 1], corners[k + stride], corners[k + stride + 1]
            pixel, grad = pixels[j], grads[j]
            by_guide = zero
            for t in range(terms):
                value, change = zero, zero
                for first in range(0, outputs, LANES):
                    q = (first // LANES) * terms + t
                    low = (left * near[q, 0] + right * far[q, 0]) * grad[first]
                    low += (left * near[q, 1] + right * far[q, 1]) * grad[first + 1]
                    low += (left * near[q, 2] + right * far[q, 2]) * grad[first + 2]
                    low += (left * near[q, 3] + right * far[q, 3]) * grad[first + 3]
                    high = (left * near_up[q, 0] + right * far_up[q, 0]) * grad[first]
                    high += (left * near_up[q, 1] + right * far_up[q, 1]) * grad[first + 1]
                    high += (left * near_up[q, 2] + right * far_up[q, 2]) * grad[first + 2]
                    high += (left * near_up[q, 3] + right * far_up[q, 3]) * grad[first + 3]
                    value += (real(1) - upper[j]) * low + upper[j] * high
                    change += high - low
                if t < inputs:
                    grad_image[n, t, i, j] = value
                by_guide += change * pixel[t]
            by_guide *= guide_map[0] * slope[j]
            if has_guide:
                grad_guide[n, i, j] = by_guide
            else:
                for t in range(3):
                    grad_image[n, t, i, j] += real(LUMA[t]) * by_guide


@helper
def load_products(image, grad_output, terms, inputs, grads, products):
    """``grad_output[o] * term[t]`` of a row of pixels (C, W), as the flat ``products[c // 2, j, c % 2]`` of channels ``c = o * terms + t``.

    ``inputs`` and ``grads`` are scratch; a last line of ones in ``inputs`` stays as it is.
    """
    outputs, width = grad_output.shape
    channels = outputs * terms
    for t in range(image.shape[0]):
        inputs[t, :width] = image[t]
    for o in range(outputs):
        grads[o, :width] = grad_output[o]
    for pair in range(products.size // (2 * width)):
        c, start = 2 * pair, 2 * pair * width
        d = min(c + 1, channels - 1)
        grad, term, next_grad, next_term = grads[c // terms], inputs[c % terms], grads[d // terms], inputs[d % terms]
        for j in range(width):
            products[start + 2 * j] = grad[j] * term[j]
            products[start + 2 * j + 1] = next_grad[j] * next_term[j]


def _slice_apply_bwd_grid_kernel(
    start, stop, guide, has_guide, image, grad_output, guide_map, terms, bands, owners, tiles, tile_columns, rows,
    row_weights, columns, column_weights, grid, aside,
):  # fmt: skip
    """``grid[n, o * terms + t, k] = sum_p w_k(p) grad_output[n, o, p] image[n, t, p]``. An item is a band ``(n, band)``."""
    channels, depth = grid.shape[1:3]
    real = row_weights.dtype
    pairs, count = (channels + 1) // 2, bands.size - 1
    cells = cells_of_tile(tile_columns, depth, pairs, real)
    sums = np.zeros((2, 2 * grid.shape[4] * depth * pairs), real)
    longest = np.diff(tiles).max()
    inputs, grads = np.ones((terms, longest), real), np.empty((channels // terms, longest), real)
    all_products, scratch = np.empty(2 * pairs * longest, real), np.empty(longest, real)
    base, upper, places = np.empty(longest, np.int32), np.empty(longest, real), np.empty(longest, np.int32)
    for item in range(start, stop):
        n, band = item // count, item % count
        side, i = 0, bands[band]
        while i < bands[band + 1]:
            after = end_of_cells(rows, i, bands[band + 1])
            for tile in range(tiles.size - 1):
                first, last = tiles[tile], tiles[tile + 1]
                width = last - first
                by_x, products = column_weights[first:last], all_products[: 2 * pairs * width]
                colours, grad = image[n, :, :, first:last], grad_output[n, :, :, first:last]
                for row in range(i, after):
                    load_products(colours[:, row], grad[:, row], terms, inputs, grads, products)
                    line = load_guide(guide[n, :, first:last], has_guide, colours, row, scratch[:width])
                    locate_row(line, guide_map, depth, False, columns[first:last], base, upper)
                    place_row(base, upper, tile * tile_columns, depth, pairs, cells, places[:width])
                    scatter_row(
                        cells,
                        places[:width],
                        by_x,
                        upper,
                        real.type(1),
                        row_weights[row],
                        products,
                        pairs,
                        tile_columns,
                    )
                close_tile(cells, tile * tile_columns, tile_columns, grid, pairs, sums[side], sums[1 - side])
            side = end_row(n, band, after - 1, bands, rows, owners, pairs, sums, side, grid, aside)
            i = after


_slice_apply = Kernel(_slice_apply_kernel)
_slice_apply_bwd_pixels = Kernel(_slice_apply_bwd_pixels_kernel)
_slice_apply_bwd_grid = Kernel(_slice_apply_bwd_grid_kernel)


def _by_lanes(grid: Tensor, index: Tensor | None, terms: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Grids with their channels ``o * terms + t`` reordered to ``(o // 4, t, o % 4)``, the last group filled up with zeros; and which of them each image reads.

    It copies grids, and only those in use, never an image.
    """
    which = np.arange(grid.shape[0])
    if index is not None:
        grid, which = used(grid, index)
    batch, channels, *nodes = grid.shape
    outputs = channels // terms
    groups = -(-outputs // LANES)
    lanes = grid.new_zeros((batch, groups * LANES, terms, *nodes))
    lanes[:, :outputs] = grid.reshape(batch, outputs, terms, *nodes)
    return array(lanes.unflatten(1, (groups, LANES)).transpose(2, 3).flatten(1, 3), dtype), which


def _guide_array(guide: Tensor | None, image: Tensor, dtype: torch.dtype) -> np.ndarray:
    """The guide, or where luma takes its place an array of the same rank that no loop reads."""
    return array(image[:, 0] if guide is None else guide, dtype)


def slice_apply(
    grid: Tensor, guide: Tensor | None, image: Tensor, lattice: Lattice, *, offset: bool, index: Tensor | None = None
) -> Tensor:
    dtype = compute_type(grid, guide, image)
    terms = image.shape[1] + int(offset)
    batch, _, height, width = image.shape
    at = Geometry(lattice, height, width, dtype)
    out = empty_as(image, grid.shape[1] // terms)
    result = out if out.dtype == dtype else torch.empty_like(out, dtype=dtype)
    _slice_apply(
        batch * height, 5 * grid.shape[1] * batch * height * width,
        *_by_lanes(grid, index, terms, dtype), _guide_array(guide, image, dtype), guide is not None, array(image, dtype),
        at.guide_map, terms, at.rows, at.row_weights, at.columns, at.column_weights, result.numpy(),
    )  # fmt: skip
    return out if result is out else out.copy_(result)


def slice_apply_bwd_pixels(
    grid: Tensor,
    guide: Tensor | None,
    image: Tensor,
    grad_output: Tensor,
    lattice: Lattice,
    *,
    offset: bool,
    index: Tensor | None = None,
) -> list[Tensor]:
    dtype = compute_type(grid, guide, image, grad_output)
    terms = image.shape[1] + int(offset)
    batch, _, height, width = image.shape
    at = Geometry(lattice, height, width, dtype)
    grad_image = torch.empty_like(image)
    by_image = grad_image if image.dtype == dtype else torch.empty_like(image, dtype=dtype)
    by_guide = image.new_empty((batch, height, width) if guide is not None else (0, 0, 0), dtype=dtype)
    _slice_apply_bwd_pixels(
        batch * height, 8 * grid.shape[1] * batch * height * width,
        *_by_lanes(grid, index, terms, dtype), _guide_array(guide, image, dtype), guide is not None, array(image, dtype),
        array(grad_output, dtype), at.guide_map, terms, at.rows, at.row_weights, at.columns, at.column_weights,
        by_image.numpy(), by_guide.numpy(),
    )  # fmt: skip
    grad_image = by_image if by_image is grad_image else grad_image.copy_(by_image)
    return [grad_image] if guide is None else [grad_image, by_guide.to(guide.dtype)]


def slice_apply_bwd_grid(
    guide: Tensor | None, image: Tensor, grad_output: Tensor, lattice: Lattice, *, offset: bool
) -> Tensor:
    dtype = compute_type(guide, image, grad_output)
    terms = image.shape[1] + int(offset)
    batch, _, height, width = image.shape
    at = Geometry(lattice, height, width, dtype)
    channels = grad_output.shape[1] * terms
    grid = image.new_empty((batch, channels, *lattice.size), dtype=dtype)
    bands = Bands(grid, at)
    _slice_apply_bwd_grid(
        bands.items, 8 * channels * batch * height * width,
        _guide_array(guide, image, dtype), guide is not None, array(image, dtype), array(grad_output, dtype),
        at.guide_map, terms, *bands.order, at.rows, at.row_weights, at.columns, at.column_weights,
        grid.numpy(), bands.aside,
    )  # fmt: skip
    bands.add_aside()
    return grid
