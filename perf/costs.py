"""The least that each operator has to do: the bytes it must move, and its arithmetic.

**Bytes**: every input read once and every output written once, in its own type. What at best stays in a cache is not counted: the row tables and partial sums of a
kernel, and a filter's grid, which is small beside its image. A filter reads its image twice, to splat and to slice, since no pixel can be written before all are
read. A backward pass gives the gradients by all tensors.

**Arithmetic**: the additions and multiplications of the formulas as printed, each counted as one: 24 for a pixel's three coordinates and eight weights, 16 for a
channel read from eight nodes or added to them. Kernels may need fewer (the rows of an image share their interpolation in y), or more instructions for indices.
`colorize`, which solves step by step, counts one step: the number of steps depends on the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

_WEIGHTS = 24
_CORNERS = 16
_LUMA = 5
# Three differences, their squares and sums; for the gradient two differences an axis, weighted.
_VARIATION = 9
_VARIATION_BACKWARD = 15

# Bytes of a point.
_POINT = 12

_COLOURS = 3
_KNOTS = 3 * 16
_COEFFICIENTS = 12


@dataclass(frozen=True)
class Sizes:
    """What the costs depend on.

    Attributes:
        pixels: of the image, the batch included; ``low_pixels`` of the small image where there is one.
        channels: of image or values, or of the grid where there is no image.
        item: bytes of a value in the image and guide.
        nodes: of the grid, the batch included and the channels not.
        grid_item: bytes of a value in the grid.
        taps: of the blur's three Gaussians together.
        grids: in the bank that ``nodes`` counts, of which one is read.
    """

    pixels: int
    channels: int
    item: int
    nodes: int
    grid_item: int
    low_pixels: int = 0
    taps: int = 0
    grids: int = 1

    @property
    def plane(self) -> int:
        """Bytes of one channel of the image."""
        return self.pixels * self.item

    @property
    def low_plane(self) -> int:
        """Bytes of one channel of the small image."""
        return self.low_pixels * self.item

    @property
    def grid(self) -> int:
        """Bytes of the grid."""
        return self.nodes * self.channels * self.grid_item

    @property
    def coefficients(self) -> int:
        """Bytes of a grid of 3 x 4 coefficients."""
        return self.nodes * _COEFFICIENTS * self.grid_item


@dataclass(frozen=True)
class Cost:
    """Bytes that must move, and floating-point operations."""

    bytes: int
    flops: int


def taps(sigma: tuple[float, float, float]) -> int:
    """Taps of Gaussians of ``sigma`` nodes, together."""
    return sum(2 * math.ceil(3 * deviation) + 1 for deviation in sigma)


def _blur_flops(s: Sizes, channels: int) -> int:
    return 2 * s.taps * s.nodes * channels


def _filter_flops(s: Sizes) -> int:
    channels = s.channels + 1
    splat = (s.low_pixels or s.pixels) * (_WEIGHTS + _CORNERS * channels)
    return splat + _blur_flops(s, channels) + s.pixels * (_WEIGHTS + _CORNERS * channels + s.channels)


# Of `fit`: the products of t = [r g b 1] with itself, each pair once, and with the target; and the solve of each cell.
_MOMENTS = 10 + 3 * 4
_SOLVE = 4**3 // 3 + 3 * 2 * 4**2
FIT_TAPS = sum(taps((sigma, sigma, sigma)) for sigma in (0.35, 1.0, 2.0))


def _fit_flops(s: Sizes) -> int:
    pixels = s.low_pixels or s.pixels
    return pixels * (_WEIGHTS + (_CORNERS + 1) * _MOMENTS) + _blur_flops(s, _MOMENTS) + s.nodes * _SOLVE


def _guided_flops(s: Sizes) -> int:
    # What the maps leave of the small image is enlarged, from four pixels.
    return _fit_flops(s) + (s.pixels + s.low_pixels) * _APPLY + s.pixels * s.channels * 8


def _tonemap_flops(s: Sizes) -> int:
    one = 2 * s.pixels * (_WEIGHTS + 2 * _CORNERS) + _blur_flops(s, 2)
    return one + s.pixels * (2 * _LUMA + 3 * s.channels)


def _equalize_flops(s: Sizes) -> int:
    histograms = s.pixels * (_WEIGHTS + _CORNERS) + _blur_flops(s, 1) + 3 * s.nodes
    return histograms + s.pixels * (_LUMA + _WEIGHTS + 2 * _CORNERS + 5 * s.channels)


# Of a node and channel in one step of conjugate gradients: the matrix (6 links, each a difference, a product and a sum, and the mass), its diagonal's inverse,
# two dot products and three vectors added up.
_STEP = 6 * 3 + 2 + 1 + 2 * 2 + 3 * 2


def _colorize_flops(s: Sizes) -> int:
    # Strokes of two channels and their weight, and the pixels themselves; two channels of chroma come back.
    pixels = _WEIGHTS + 4 * _CORNERS + _WEIGHTS + 2 * _CORNERS + 2 * _LUMA + 5 * _COLOURS
    return s.pixels * pixels + s.nodes * 2 * _STEP


def _flash_flops(s: Sizes) -> int:
    # Both images are filtered together by the guide of one, and the darker one by its own.
    return _filter_flops(replace(s, channels=2 * s.channels)) + _filter_flops(s) + s.pixels * (_LUMA + 8 * s.channels)


_APPLY = _WEIGHTS + _CORNERS * _COEFFICIENTS + 2 * _COEFFICIENTS
# Slices for the image's and the guide's gradients, each multiplied with the incoming one, and the sum for the grid's.
_APPLY_BACKWARD = _WEIGHTS + 3 * _CORNERS * _COEFFICIENTS + 5 * _COEFFICIENTS

# A 3 x 3 matrix; for each knot a difference, a product and a sum; three curves mixed.
_CURVES = 2 * _COLOURS**2 + 3 * _KNOTS + 2 * _COLOURS
# The guide once more to see what is clipped, for each knot the slope and two sums, and the matrix from both sides.
_CURVES_BACKWARD = _CURVES + 4 * _KNOTS + 4 * _COLOURS**2

_COSTS: dict[tuple[str, str], Callable[[Sizes], tuple[int, int]]] = {
    # Reads values and guide, writes the grid.
    ("splat", "forward"): lambda s: (
        s.plane * (s.channels + 1) + s.grid,
        s.pixels * (_WEIGHTS + _CORNERS * s.channels),
    ),
    # Reads the grid's gradient, values and guide, writes the gradients of values and guide.
    ("splat", "backward"): lambda s: (
        s.grid + 2 * s.plane * (s.channels + 1),
        s.pixels * (_WEIGHTS + (2 * _CORNERS + 2) * s.channels),
    ),
    ("blur", "forward"): lambda s: (2 * s.grid, _blur_flops(s, s.channels)),
    ("blur", "backward"): lambda s: (2 * s.grid, _blur_flops(s, s.channels)),
    # Reads grid and guide, writes the values.
    ("slice", "forward"): lambda s: (
        s.grid + s.plane * (1 + s.channels),
        s.pixels * (_WEIGHTS + _CORNERS * s.channels),
    ),
    # Reads grid, guide and the incoming gradient, writes the gradients of grid and guide.
    ("slice", "backward"): lambda s: (
        2 * s.grid + s.plane * (2 + s.channels),
        s.pixels * (_WEIGHTS + (2 * _CORNERS + 2) * s.channels),
    ),
    # Reads the grid and points of three float32 numbers, writes the values.
    ("slice_points", "forward"): lambda s: (
        s.grid + s.pixels * _POINT + s.plane * s.channels,
        s.pixels * (_WEIGHTS + _CORNERS * s.channels),
    ),
    # Reads grid, points and the incoming gradient, writes the gradients of grid and points; those of x, y and z share the eight corners' sums.
    ("slice_points", "backward"): lambda s: (
        2 * s.grid + 2 * s.pixels * _POINT + s.plane * s.channels,
        s.pixels * (2 * _WEIGHTS + 2 * _CORNERS * s.channels),
    ),
    # Reads grid, guide and image, writes an image: 28 bytes per pixel of float32 beside the grid.
    ("slice_apply", "forward"): lambda s: (s.coefficients + s.plane * 7, s.pixels * _APPLY),
    # Reads grid, guide, image and the incoming gradient, writes three gradients: 44 bytes.
    ("slice_apply", "backward"): lambda s: (2 * s.coefficients + s.plane * 11, s.pixels * _APPLY_BACKWARD),
    # The same with one grid of a bank; the gradient is that of the whole bank.
    ("slice_apply_bank", "forward"): lambda s: (s.coefficients // s.grids + s.plane * 7, s.pixels * _APPLY),
    ("slice_apply_bank", "backward"): lambda s: (
        s.coefficients // s.grids + s.coefficients + s.plane * 11,
        s.pixels * _APPLY_BACKWARD,
    ),
    # Without a guide to read: 24 bytes forward, 36 backward.
    ("slice_apply_luma", "forward"): lambda s: (s.coefficients + s.plane * 6, s.pixels * (_APPLY + _LUMA)),
    ("slice_apply_luma", "backward"): lambda s: (
        2 * s.coefficients + s.plane * 9,
        s.pixels * (_APPLY_BACKWARD + 2 * _LUMA),
    ),
    # Reads an image, writes a guide in the parameters' float32: 16 bytes per pixel of float32, and 28 with the image's gradient.
    ("curves", "forward"): lambda s: (s.plane * _COLOURS + s.pixels * s.grid_item, s.pixels * _CURVES),
    ("curves", "backward"): lambda s: (s.plane * 2 * _COLOURS + s.pixels * s.grid_item, s.pixels * _CURVES_BACKWARD),
    ("total_variation", "forward"): lambda s: (s.grid, s.nodes * s.channels * _VARIATION),
    ("total_variation", "backward"): lambda s: (2 * s.grid, s.nodes * s.channels * _VARIATION_BACKWARD),
    # Reads the image to splat and again to slice, writes it: 12 bytes a gray float32 pixel.
    ("bilateral_filter", "forward"): lambda s: (3 * s.plane * s.channels, _filter_flops(s)),
    # Reads image and incoming gradient to splat and again to slice, writes the image's gradient.
    ("bilateral_filter", "backward"): lambda s: (5 * s.plane * s.channels, 2 * _filter_flops(s)),
    # Reads the small image with its guide, and the large guide; writes the large image.
    ("joint_bilateral_upsample", "forward"): lambda s: (
        s.low_plane * (s.channels + 1) + s.plane * (1 + s.channels),
        _filter_flops(s),
    ),
    # Reads the same and the incoming gradient, writes the gradients of all three.
    ("joint_bilateral_upsample", "backward"): lambda s: (
        2 * s.low_plane * (s.channels + 1) + s.plane * (2 + s.channels),
        2 * _filter_flops(s),
    ),
    # Reads image and target, writes the grid; reads both and the grid's gradient, writes theirs.
    ("fit", "forward"): lambda s: (2 * s.plane * s.channels + s.coefficients, _fit_flops(s)),
    ("fit", "backward"): lambda s: (4 * s.plane * s.channels + s.coefficients, 2 * _fit_flops(s)),
    # Reads the small pair and the large image, writes another; reads them and its gradient, writes theirs. The grid stays between.
    ("guided_upsample", "forward"): lambda s: (2 * (s.low_plane + s.plane) * s.channels, _guided_flops(s)),
    ("guided_upsample", "backward"): lambda s: ((4 * s.low_plane + 3 * s.plane) * s.channels, 2 * _guided_flops(s)),
    # Filters, whose images are read to splat and again to slice.
    ("tonemap", "forward"): lambda s: (3 * s.plane * s.channels, _tonemap_flops(s)),
    ("tonemap", "backward"): lambda s: (5 * s.plane * s.channels, 2 * _tonemap_flops(s)),
    ("equalize_histogram", "forward"): lambda s: (3 * s.plane * s.channels, _equalize_flops(s)),
    ("equalize_histogram", "backward"): lambda s: (5 * s.plane * s.channels, 2 * _equalize_flops(s)),
    ("merge_flash", "forward"): lambda s: (5 * s.plane * s.channels, _flash_flops(s)),
    ("merge_flash", "backward"): lambda s: (8 * s.plane * s.channels, 2 * _flash_flops(s)),
    # Reads a gray image with its strokes and a mask of a byte a pixel, and the image again to slice; writes colours.
    ("colorize", "forward"): lambda s: (s.plane * (2 + 2 * _COLOURS) + s.pixels, _colorize_flops(s)),
    # Reads image and incoming gradient to splat, all four to slice, and writes the gradients by image and strokes.
    ("colorize", "backward"): lambda s: (s.plane * (3 + 4 * _COLOURS) + s.pixels, 2 * _colorize_flops(s)),
}


def cost(operator: str, direction: str, sizes: Sizes) -> Cost:
    """The cost of an operator, ``"forward"`` or ``"backward"``."""
    return Cost(*_COSTS[operator, direction](sizes))
