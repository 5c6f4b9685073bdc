"""Other implementations beside ours, in one process, on the same inputs: ``python -m perf.peers``.

Each runs if its package is installed, is checked against ours first, and takes turns with it; the table gives medians and their ratio.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

import bilagrid

Work = Callable[[], object]


def grid_sample_apply(grid: Tensor, guide: Tensor, image: Tensor) -> Tensor:
    """``slice_apply`` composed from 5-D ``grid_sample`` and an affine map: what people write without an operator."""
    batch, channels, height, width = image.shape
    x = (torch.arange(width, dtype=grid.dtype) + 0.5) / width * 2 - 1
    y = (torch.arange(height, dtype=grid.dtype) + 0.5) / height * 2 - 1
    plane = (batch, height, width)
    place = torch.stack([x.expand(plane), y[:, None].expand(plane), guide * 2 - 1], -1)[:, None]
    maps = torch.nn.functional.grid_sample(grid, place, padding_mode="border", align_corners=False)
    maps = maps.view(batch, -1, channels + 1, height, width)
    return (maps[:, :, :-1] * image[:, None]).sum(2) + maps[:, :, -1]


def halide_bilateral_grid(image: np.ndarray, sigma_space: int, sigma_color: float) -> tuple[Work, np.ndarray]:
    """Halide's bilateral grid of a gray image on the CPU: a function that runs it, and the array that it fills.

    As Chen, Paris and Durand 2007 describe it: pixels are added, with a weight of one, to the cell that they round to; five taps blur the grid along each
    axis; numerator and weight are interpolated and divided.
    """
    import halide as hl

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


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(-10 * np.log10(np.mean((actual.astype(np.float64) - expected) ** 2)))


def take_turns(works: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each work, one after another in every round, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if turn:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def report(title: str, times: dict[str, list[float]]) -> None:
    """Medians with the quartiles, and each peer's over ours."""
    print(f"\n{title}\n{'':28s}{'median ms':>10s}{'quartiles':>18s}{'of ours':>9s}")
    ours = statistics.median(times["bilagrid"])
    for name, all_times in times.items():
        low, middle, high = statistics.quantiles(all_times, n=4)
        print(f"{name:28s}{middle:10.1f}{f'{low:.1f} to {high:.1f}':>18s}{middle / ours:8.1f}x")


def compare_slice_apply(repeats: int) -> None:
    height, width = 1080, 1920
    leaves = [torch.randn(1, 12, 8, 16, 16), torch.rand(1, height, width), torch.rand(1, 3, height, width)]
    grad = torch.randn(1, 3, height, width)
    torch.testing.assert_close(bilagrid.slice_apply(*leaves), grid_sample_apply(*leaves), rtol=1e-4, atol=1e-4)
    forward: dict[str, Work] = {
        "bilagrid": lambda: bilagrid.slice_apply(*leaves),
        "grid_sample and affine": lambda: grid_sample_apply(*leaves),
    }
    report("slice_apply forward, 1080p, 16x16x8x12, float32", take_turns(forward, repeats))
    trained = [leaf.clone().requires_grad_() for leaf in leaves]
    both: dict[str, Work] = {
        "bilagrid": lambda: torch.autograd.grad(bilagrid.slice_apply(*trained), trained, grad),
        "grid_sample and affine": lambda: torch.autograd.grad(grid_sample_apply(*trained), trained, grad),
    }
    report("slice_apply forward and backward (grid, guide, image)", take_turns(both, repeats))


def compare_bilateral_filter(repeats: int) -> None:
    height, width, sigma_space, sigma_color = 1536, 2560, 8, 0.1
    rows, columns = np.mgrid[:height, :width]
    waves = 0.5 + 0.3 * np.sin(rows / 97) * np.cos(columns / 61) + 0.15 * np.sign(np.sin(columns / 211 + rows / 173))
    noise = 0.02 * np.random.default_rng(0).standard_normal((height, width))
    gray = np.clip(waves + noise, 0, 1).astype(np.float32)
    image = torch.from_numpy(gray)[None, None]
    ours = bilagrid.bilateral_filter(image, sigma_space=sigma_space, sigma_color=sigma_color)[0, 0].numpy()
    works: dict[str, Work] = {
        "bilagrid": lambda: bilagrid.bilateral_filter(image, sigma_space=sigma_space, sigma_color=sigma_color)
    }
    if find_spec("halide"):
        works["Halide bilateral grid"], filled = halide_bilateral_grid(gray, sigma_space, sigma_color)
        works["Halide bilateral grid"]()
        print(
            f"Halide's result agrees with ours to {psnr(filled, ours):.1f} dB (its blur is five taps, its splat rounds)"
        )
    if find_spec("cv2"):
        import cv2

        works["OpenCV, window 1.5 sigma"] = lambda: cv2.bilateralFilter(
            gray, 2 * round(1.5 * sigma_space) + 1, sigma_color, sigma_space
        )
    report(f"bilateral filter of a gray {height}x{width}, sigma 8 and 0.1, float32", take_turns(works, repeats))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.peers", description=__doc__)
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="threads of torch and of ours (Halide: HL_NUM_THREADS)",
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds that are counted")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numba", "halide") if find_spec(name))
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads; {packages}")
    compare_slice_apply(options.repeats)
    compare_bilateral_filter(options.repeats)


if __name__ == "__main__":
    main()
