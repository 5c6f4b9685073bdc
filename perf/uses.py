"""The uses of the operators whose kernels are compiled (`perf.static`) and tuned (`perf.tune`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from bilagrid.filters import filter_lattice
from bilagrid.gpu import _bank, _launch, _regime, blur, curves, slice, slice_apply, slice_points, splat, total_variation
from bilagrid.lattice import Lattice

# Of a scene of 3-D Gaussian splatting, each with a grid.
_PHOTOGRAPHS = 256


@dataclass(frozen=True)
class Use:
    """A use of the operators: ``run`` calls launchers on tensors of a dtype, on a device, with images of a height.

    ``precision`` is torch's for matrix products, "highest" or "high".
    """

    name: str
    dtype: torch.dtype
    run: Callable[[torch.dtype, str, int], None]
    precision: str = "highest"
    height: int = 1080

    def launches(self, architecture: str, device: str = "meta") -> list[_launch.Launch]:
        """What the use launches on an architecture, recorded."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            with _regime.override(architecture=architecture), _launch.record() as launches:
                self.run(self.dtype, device, self.height)
        finally:
            torch.set_float32_matmul_precision(before)
        return launches


def _pixels(dtype: torch.dtype, device: str, channels: int, height: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A guide and values of 16:9, random where there is memory for them."""
    width = height * 16 // 9
    guide = torch.rand((1, height, width), dtype=dtype, device=device)
    return guide, torch.rand((1, channels, height, width), dtype=dtype, device=device)


def _affine(
    dtype: torch.dtype,
    device: str,
    height: int,
    *,
    luma: bool = False,
    depth: int = 8,
    pixels_a_cell: int | None = None,
    grids: int | None = None,
) -> None:
    """`slice_apply` of 3 x 4 coefficients and its gradients, the grid in float32 as beside a half image: 16 x 16 cells, or cells of so many pixels.

    With a number of ``grids`` the image's is chosen from a bank of them, and its gradient brought back there.
    """
    guide, image = _pixels(dtype, device, 3, height)
    cells = (16, 16) if pixels_a_cell is None else (height // pixels_a_cell, image.shape[3] // pixels_a_cell)
    lattice = Lattice.cell_centered((depth, *cells), (height, image.shape[3]))
    grid_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    grid = torch.rand((grids or 1, 12, *lattice.size), dtype=grid_dtype, device=device)
    index = None if grids is None else torch.zeros(1, dtype=torch.int64, device=device)
    given = None if luma else guide
    grad = slice_apply.slice_apply(grid, given, image, lattice, offset=True, index=index)
    slice_apply.slice_apply_bwd_pixels(grid, given, image, grad, lattice, offset=True, index=index)
    by_grid = slice_apply.slice_apply_bwd_grid(given, image, grad, lattice, offset=True)
    if index is not None:
        _bank.collect(by_grid, index, grid.shape[0])
        total_variation.total_variation(grid, index)
        total_variation.total_variation_bwd(grid, index)


def _features(dtype: torch.dtype, device: str, height: int, *, channels: int = 12, depth: int = 8) -> None:
    """`splat` and `slice` with the guide's gradient."""
    guide, values = _pixels(dtype, device, channels, height)
    lattice = Lattice.cell_centered((depth, 16, 16), (height, values.shape[3]))
    grid = splat.splat(values, guide, lattice).to(dtype)
    slice.slice(grid, guide, lattice)
    slice.slice_bwd_guide(grid, guide, values, lattice)


def _derivatives(dtype: torch.dtype, device: str, height: int) -> None:
    """`splat` and `slice` differentiated by z."""
    guide, values = _pixels(dtype, device, 12, height)
    lattice = Lattice.cell_centered((8, 16, 16), (height, values.shape[3]))
    slice.slice(splat.splat(values, guide, lattice, dz=True).to(dtype), guide, lattice, dz=True)


def _regularised(dtype: torch.dtype, device: str, height: int) -> None:
    """A grid of coefficients, smoothed, and the regulariser."""
    grid = torch.rand((1, 12, 8, 16, 16), dtype=dtype, device=device)
    blur.blur(grid, (1.0, 1.0, 1.0))
    total_variation.total_variation(grid)
    total_variation.total_variation_bwd(grid)


def _smooth(dtype: torch.dtype, device: str, height: int, *, sigma: float) -> None:
    """A contiguous grid and one with its channels innermost, larger than one program blurs."""
    grid = torch.rand((1, 2, 32, 64, 64), dtype=dtype, device=device)
    blur.blur(grid, (sigma, sigma, sigma))
    blur.blur(grid.permute(0, 4, 3, 1, 2).contiguous().permute(0, 3, 4, 2, 1), (sigma, sigma, sigma))


def _scene(dtype: torch.dtype, device: str, height: int) -> None:
    """The grids of a scene's photographs: all of them smoothed and regularised, and the gradients of a few brought back to them."""
    grids = torch.rand((_PHOTOGRAPHS, 12, 8, 16, 16), dtype=dtype, device=device)
    blur.blur(grids, (1.0, 1.0, 1.0))
    total_variation.total_variation(grids)
    total_variation.total_variation_bwd(grids)
    _bank.collect(grids[:16], torch.arange(16, device=device), _PHOTOGRAPHS)


def _guide(dtype: torch.dtype, device: str, height: int, *, by_image: bool = True) -> None:
    """HDRNet's guide and its gradients: three curves of 16 knots, the parameters in float32 as beside a half image."""
    _, image = _pixels(dtype, device, 3, height)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    shapes = ((3, 3), (3,), (3, 16), (3, 16), (3,), ())
    parameters = [torch.rand(shape, dtype=parameter_dtype, device=device) for shape in shapes]
    grad = curves.curves(image, *parameters)
    curves.curves_bwd(image, *parameters, grad, by_image)


def _points(dtype: torch.dtype, device: str, height: int, *, indexed: bool = False) -> None:
    """As many points as an image has pixels, in one grid of coefficients or in a bank of sixteen, in float32 beside half points, with all gradients."""
    grids, count, size = 16 if indexed else 1, height * (height * 16 // 9), (8, 16, 16)
    points = torch.rand((1, 1, count, 3), dtype=dtype, device=device) * 15
    index = torch.randint(grids, (1, 1, count), device=device) if indexed else None
    grid_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    grid = torch.rand((grids, 12, *size), dtype=grid_dtype, device=device)
    grad = slice_points.slice_points(grid, points, index, 0)
    slice_points.slice_points_bwd_points(grid, points, index, grad, 0)
    slice_points.slice_points_bwd_grid(grad, points, index, [grids, *size], 0)


def _filter(dtype: torch.dtype, device: str, height: int, *, channels: int = 1, sigma_color: float = 0.1) -> None:
    """A bilateral filter, sigma_space 8, and what its gradients slice."""
    guide, values = _pixels(dtype, device, channels, height)
    lattice, sigma = filter_lattice(guide, 8.0, sigma_color, (0.0, 1.0))
    grid = splat.splat_blurred(values, guide, sigma, lattice)
    slice.slice_normalized(grid, guide, lattice)
    slice.slice(grid, guide, lattice)
    slice.slice_bwd_guide(grid, guide, values, lattice, homogeneous=True)


def _filter_gradient(dtype: torch.dtype, device: str, height: int) -> None:
    """The gradient by the filter's grid, which is blurred along all axes."""
    lattice, sigma = filter_lattice(_pixels(dtype, device, 1, height)[0], 8.0, 0.1, (0.0, 1.0))
    blur.blur(torch.rand((1, 2, *lattice.size), dtype=dtype, device=device), sigma)


USES = [
    Use("slice_apply, 3x4, guide", torch.float32, _affine),
    Use("slice_apply, 3x4, guide", torch.float32, _affine, precision="high"),
    Use("slice_apply, 3x4, guide", torch.float16, _affine),
    Use("slice_apply, 3x4, luma", torch.float32, partial(_affine, luma=True)),
    Use("slice_apply, 3x4, fine", torch.float32, partial(_affine, pixels_a_cell=8)),
    Use("slice_apply, 3x4, of a bank", torch.float32, partial(_affine, grids=16)),
    Use("slice_apply, 3x4, of a bank, fine", torch.float32, partial(_affine, grids=16, pixels_a_cell=8)),
    Use("slice_apply, 3x4, int64", torch.float32, partial(_affine, luma=True), height=30240),
    Use("splat and slice, C=12, D=8", torch.float32, _features),
    Use("splat and slice, C=12, D=8", torch.float16, _features),
    Use("splat and slice by z, C=12, D=8", torch.float32, _derivatives),
    Use("blur and total variation, C=12, D=8", torch.float32, _regularised),
    Use("blur by a wide Gaussian, C=2, D=32", torch.float32, partial(_smooth, sigma=4.0)),
    Use("blur and total variation of a scene's grids", torch.float32, _scene),
    Use("filter, C=2 homogeneous, D=16", torch.float32, _filter, height=2160),
    Use("filter, C=2 homogeneous, D=16", torch.float16, _filter, height=2160),
    Use("gradient of a filter, C=2, D=16", torch.float32, _filter_gradient, height=2160),
    Use("curves, 3 of 16 knots", torch.float32, _guide),
    Use("curves, 3 of 16 knots, by parameters", torch.float32, partial(_guide, by_image=False)),
    Use("curves, 3 of 16 knots", torch.float16, _guide),
    Use("slice_points, C=12, one grid", torch.float32, _points),
    Use("slice_points, C=12, a bank of grids", torch.float32, partial(_points, indexed=True)),
    Use("slice_points, C=12, one grid", torch.float16, _points),
    Use("slice_apply, 3x4, guide", torch.float64, _affine),
]


def _tile_use(channels: int, depth: int, regime: _regime.Regime, precision: str = "highest") -> Use:
    def run(dtype: torch.dtype, device: str, height: int) -> None:
        with _regime.override(regime=regime):
            _features(dtype, device, height, channels=channels, depth=depth)

    return Use(f"splat and slice, C={channels}, D={depth}, {regime}", torch.float32, run, precision=precision)


_DEPTHS = (4, 8, 16, 32, 64)

# Every tiling of the products, every loop over channels and curves of every type: their kernels must stay in registers whatever the grid's channels and planes.
TILE_USES = [
    Use("curves, 3 of 16 knots", torch.float64, _guide),
    Use("curves, 3 of 16 knots, int64", torch.float32, _guide, height=30240),
    *(Use(f"blur, {taps} taps to each side", torch.float32, partial(_smooth, sigma=taps / 3)) for taps in (1, 4, 8)),
    Use("blur, 8 taps to each side", torch.float64, partial(_smooth, sigma=8 / 3)),
    *(
        Use(
            f"filter, C={c + 1} homogeneous, sigma_color {s}",
            torch.float32,
            partial(_filter, channels=c, sigma_color=s),
        )
        for c, s in ((1, 0.05), (1, 0.3), (3, 0.1), (3, 0.5))
    ),
    *(Use(f"slice_apply, 3x4, D={depth}", torch.float32, partial(_affine, depth=depth)) for depth in _DEPTHS),
    *(
        Use(f"slice_apply, 3x4, fine, D={depth}", torch.float32, partial(_affine, depth=depth, pixels_a_cell=8))
        for depth in (4, 16)
    ),
    *(_tile_use(c, d, "coarse", "high") for d in _DEPTHS for c in (3, 12, 32)),
    *(_tile_use(c, d, regime) for regime in ("coarse", "fine") for d in _DEPTHS for c in (1, 3, 12, 16, 32)),
]
