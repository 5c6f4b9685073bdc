"""Blur on the CPU: each row of nodes goes through all three passes while it is in cache."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bilagrid.cpu._geometry import array
from bilagrid.cpu._lanes import contiguous, weigh_rows
from bilagrid.cpu._run import Kernel, helper
from bilagrid.ops._dtypes import compute_type
from bilagrid.ops._memory import empty_grid_as
from bilagrid.ops._taps import gaussian_taps


@helper
def copy_runs(source, source_step, target, target_step, count, length):
    """Copies ``count`` runs of ``length`` numbers that lie a step apart in source and in target. Assigning slices would cost more than the copying."""
    for run in range(count):
        start, end = np.uintp(run * source_step), np.uintp(run * target_step)
        for k in range(length):
            at = np.uintp(k)
            target[end + at] = source[start + at]


def _blur_kernel(start, stop, grid, nodes_a, nodes_b, channels, taps_y, taps_a, taps_b, out):
    """``out = taps_b * (taps_a * (taps_y * grid))``, zero outside. An item is a row of nodes ``(n, o, y)``.

    grid and out are ``(N, O, Gh, segments, length)``. The last two dimensions hold nodes ``(a, b, channels)``, which are blurred along a and b.
    """
    outer, rows, segments, length = grid.shape[1:]
    radius_y, radius_a, radius_b = taps_y.size // 2, taps_a.size // 2, taps_b.size // 2
    # Along a and b the row lies between zeros: before and after all of it, and between one run of b and the next.
    step_a, step_b = nodes_b * channels, channels
    padded_b = (nodes_b + radius_b) * channels
    by_y = np.zeros((nodes_a + 2 * radius_a) * step_a, out.dtype)
    by_a = np.empty(nodes_a * step_a, out.dtype)
    between = np.zeros(nodes_a * padded_b + 2 * radius_b * channels, out.dtype)
    by_b = np.empty(nodes_a * padded_b, out.dtype)
    middle = by_y[radius_a * step_a : (radius_a + nodes_a) * step_a]
    for item in range(start, stop):
        n, rest = item // (outer * rows), item % (outer * rows)
        o, y = rest // rows, rest % rows
        first, last = max(0, y - radius_y), min(rows, y + radius_y + 1)
        for s in range(segments):
            nearest = grid[n, o, first, s]
            target = middle[s * length : (s + 1) * length]
            if nearest.strides[0] == nearest.itemsize:
                step = grid.strides[2] // grid.itemsize
                taps = taps_y[first - y + radius_y :]
                weigh_rows(contiguous(nearest), step, taps, 0, last - first, target, length)
            else:
                target[:] = 0
                for k in range(first, last):
                    source = grid[n, o, k, s]
                    for j in range(length):
                        target[j] += taps_y[k - y + radius_y] * source[j]
        weigh_rows(by_y, step_a, taps_a, 0, taps_a.size, by_a, by_a.size)
        copy_runs(by_a, step_a, between[radius_b * channels :], padded_b, nodes_a, step_a)
        weigh_rows(between, step_b, taps_b, 0, taps_b.size, by_b, by_b.size)
        if segments == 1 and out.strides[4] == out.itemsize:
            copy_runs(by_b, padded_b, contiguous(out[n, o, y, 0]), step_a, nodes_a, step_a)
        else:
            for s in range(segments):
                out[n, o, y, s] = by_b[s * padded_b : s * padded_b + length]


_blur = Kernel(_blur_kernel)


def blur(grid: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    dtype = compute_type(grid)
    out = empty_grid_as(grid, dtype)
    batch, channels, depth, rows, columns = grid.shape
    taps_z, taps_y, taps_x = (gaussian_taps(s).astype(out.numpy().dtype) for s in sigma)
    if _is_interleaved(grid) and _is_interleaved(out):
        shape = columns, depth, channels
        by_memory = batch, 1, rows, 1, columns * depth * channels
        source, target = (t.permute(0, 3, 4, 2, 1).view(by_memory) for t in (grid, out))
        taps_a, taps_b = taps_x, taps_z
    else:
        shape = depth, columns, 1
        source, target = (t.permute(0, 1, 3, 2, 4) for t in (grid, out))
        taps_a, taps_b = taps_z, taps_x
    _blur(
        source.shape[0] * source.shape[1] * rows, grid.numel() * (taps_z.size + taps_y.size + taps_x.size),
        array(source, dtype), *shape, taps_y, taps_a, taps_b, target.numpy(),
    )  # fmt: skip
    return out.to(grid.dtype)


def _is_interleaved(grid: Tensor) -> bool:
    """Whether each row of nodes is one piece of memory, ``(Gw, D, C)``."""
    return grid[:1, :, :, :1].permute(0, 3, 4, 2, 1).is_contiguous()
