"""Blur on the CPU: the three passes of one row of nodes together, while it is in cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bilagrid.cpu._geometry import array, compute_type
from bilagrid.cpu._run import Kernel
from bilagrid.ops._taps import gaussian_taps


def _blur_kernel(start, stop, grid, taps_z, taps_y, taps_x, out):
    """``out = taps_x * (taps_z * (taps_y * grid))``, zero outside; a row of nodes ``(n, c, y)`` an item."""
    channels, depth, rows, columns = grid.shape[1:]
    radius_z, radius_y, radius_x = taps_z.size // 2, taps_y.size // 2, taps_x.size // 2
    along_y = np.empty((depth, columns), out.dtype)
    along_z = np.zeros(columns + 2 * radius_x, out.dtype)
    line = np.empty(columns, out.dtype)
    for item in range(start, stop):
        n, rest = item // (channels * rows), item % (channels * rows)
        c, y = rest // rows, rest % rows
        along_y[:] = 0
        for k in range(max(0, y - radius_y), min(rows, y + radius_y + 1)):
            tap = taps_y[k - y + radius_y]
            for z in range(depth):
                source, sums = grid[n, c, z, k], along_y[z]
                for x in range(columns):
                    sums[x] += tap * source[x]
        for z in range(depth):
            middle = along_z[radius_x : radius_x + columns]
            middle[:] = 0
            for k in range(max(0, z - radius_z), min(depth, z + radius_z + 1)):
                tap, source = taps_z[k - z + radius_z], along_y[k]
                for x in range(columns):
                    middle[x] += tap * source[x]
            line[:] = 0
            for k in range(taps_x.size):
                tap, source = taps_x[k], along_z[k : k + columns]
                for x in range(columns):
                    line[x] += tap * source[x]
            target = out[n, c, z, y]
            for x in range(columns):
                target[x] = line[x]


_blur = Kernel(_blur_kernel)


def blur(grid: Tensor, sigma: tuple[float, float, float]) -> Tensor:
    dtype = compute_type(grid)
    out = torch.empty(grid.shape, dtype=dtype)
    target = out.numpy()
    taps = [gaussian_taps(s).astype(target.dtype) for s in sigma]
    batch, channels, _, rows, _ = grid.shape
    _blur(batch * channels * rows, grid.numel() * sum(t.size for t in taps), array(grid, dtype), *taps, target)
    return out.to(grid.dtype)
