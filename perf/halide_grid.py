"""A bilateral grid on the CPU in Halide, for `perf.peers`; importing this needs the package ``halide``.

As Chen, Paris and Durand 2007 describe it: pixels are added, with a weight of one, to the cell that they round to; five taps blur the grid along each axis;
numerator and weight are interpolated and divided.
"""

from __future__ import annotations

from collections.abc import Callable

import halide as hl
import numpy as np


def bilateral_grid(image: np.ndarray, sigma_space: int, sigma_color: float) -> tuple[Callable[[], object], np.ndarray]:
    """A function that filters a gray image ``(H, W)`` in [0, 1], and the array that it fills."""
    x, y, z, c = hl.Var("x"), hl.Var("y"), hl.Var("z"), hl.Var("c")
    source = hl.Buffer(image)
    clamped = hl.BoundaryConditions.repeat_edge(source)
    cell = hl.RDom([hl.Range(0, sigma_space), hl.Range(0, sigma_space)])
    value = hl.clamp(
        clamped[x * sigma_space + cell.x - sigma_space // 2, y * sigma_space + cell.y - sigma_space // 2], 0.0, 1.0
    )
    bin_ = hl.i32(value * (1.0 / sigma_color) + 0.5)
    splatted = hl.Func("splatted")
    splatted[x, y, z, c] = 0.0
    splatted[x, y, bin_, c] += hl.select(c == 0, value, 1.0)

    def five_taps(f: hl.Func, name: str, axis: int) -> hl.Func:
        def at(shift: int) -> hl.Expr:
            place = [x, y, z, c]
            place[axis] = place[axis] + shift
            return f[tuple(place)]

        out = hl.Func(name)
        out[x, y, z, c] = at(-2) + 4.0 * at(-1) + 6.0 * at(0) + 4.0 * at(1) + at(2)
        return out

    along_z = five_taps(splatted, "along_z", 2)
    along_x = five_taps(along_z, "along_x", 0)
    along_y = five_taps(along_x, "along_y", 1)

    guide = hl.clamp(source[x, y], 0.0, 1.0) * (1.0 / sigma_color)
    z0, x0, y0 = hl.i32(guide), x // sigma_space, y // sigma_space
    fz = guide - z0
    fx, fy = hl.f32(x % sigma_space) / sigma_space, hl.f32(y % sigma_space) / sigma_space
    sliced, out = hl.Func("sliced"), hl.Func("out")
    near = hl.lerp(hl.lerp(along_y[x0, y0, z0, c], along_y[x0 + 1, y0, z0, c], fx), hl.lerp(along_y[x0, y0 + 1, z0, c], along_y[x0 + 1, y0 + 1, z0, c], fx), fy)  # fmt: skip
    far = hl.lerp(hl.lerp(along_y[x0, y0, z0 + 1, c], along_y[x0 + 1, y0, z0 + 1, c], fx), hl.lerp(along_y[x0, y0 + 1, z0 + 1, c], along_y[x0 + 1, y0 + 1, z0 + 1, c], fx), fy)  # fmt: skip
    sliced[x, y, c] = hl.lerp(near, far, fz)
    out[x, y] = sliced[x, y, 0] / sliced[x, y, 1]

    along_z.compute_root().reorder(c, z, x, y).parallel(y).vectorize(x, 8).unroll(c, 2)
    splatted.compute_at(along_z, x).reorder(c, z, x, y).vectorize(x, 8).unroll(c, 2)
    splatted.update().reorder(c, cell.x, cell.y, x, y).unroll(c, 2)
    along_x.compute_root().reorder(c, x, y, z).parallel(z).vectorize(x, 8).unroll(c, 2)
    along_y.compute_root().reorder(c, x, y, z).parallel(z).vectorize(x, 8).unroll(c, 2)
    out.parallel(y).vectorize(x, 8)

    filled = np.empty_like(image)
    target = hl.Buffer(filled)
    out.compile_jit()
    return lambda: out.realize(target), filled
