"""Where a pixel lands in the grid: the one statement of the geometry that every operator and backend shares."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from bilagrid._numbers import integer, number, numbers

__all__ = ["Lattice"]

# Nodes beyond either end of the guide's range. They cost little, and keep every pixel of a filter off the border of the grid, where the derivative by the
# guide is 0.
_SIGMA_PADDING = 1

_KINDS = ("cell_centered", "half_pixel", "corner_aligned", "sigma")
_LARGEST_EXTENT = 2**31 - 1
_WHOLE = "in whole numbers"


@dataclass(frozen=True)
class Lattice:
    """An affine map from pixels and guide values to grid coordinates.

    Row ``i``, column ``j`` and guide value ``g`` land at::

        z = g * scale_z + offset_z,   y = i * scale_y + offset_y,   x = j * scale_x + offset_x

    A pixel at ``z`` weighs node ``k`` by the tent ``max(0, 1 - |z - k|)``, and likewise along y and x. Coordinates outside the grid saturate at its border.
    Build a lattice with `cell_centered` (the default of every operator), `half_pixel`, `corner_aligned` or `from_sigma`.

    Attributes:
        kind: the mapping: ``"cell_centered"``, ``"half_pixel"``, ``"corner_aligned"`` or ``"sigma"``.
        size: nodes ``(D, Gh, Gw)``.
        image_size: pixels ``(H, W)`` of the whole image. Operators take a smaller one for the tile that begins at ``origin``, and refuse one that reaches beyond.
        origin: ``(top, left)`` of the tile in the whole image, in pixels.
        steps: for ``"sigma"`` alone, the six numbers scale and offset, each ``(z, y, x)``.
        steps_size: for ``"sigma"`` alone, the image ``(H, W)`` in whose pixels the steps are given; ``image_size`` differs from it after `resize`.

    Example:
        >>> Lattice.cell_centered((8, 16, 16), (1080, 1920)).scale[0]
        8.0
        >>> Lattice.cell_centered((8, 16, 16), (1080, 1920)).crop(540, 960).offset[1:]
        (7.507407407407407, 7.504166666666666)
    """

    kind: str
    size: tuple[int, int, int]
    image_size: tuple[int, int]
    origin: tuple[int, int] = (0, 0)
    steps: tuple[float, ...] = ()
    steps_size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        is_sigma = self.kind == "sigma"
        if len(self.steps) != 6 * is_sigma or len(self.steps_size) != 2 * is_sigma:
            raise ValueError(
                'steps, six numbers, and steps_size, (H, W), belong to the kind "sigma"; build one with Lattice.from_sigma'
            )

    @classmethod
    def cell_centered(cls, size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
        """HDRNet's lattice, and that of ``grid_sample(align_corners=False)``: scale ``(D, Gh/H, Gw/W)``, offset ``(-1/2, Gh/2H - 1/2, Gw/2W - 1/2)``.

        Args:
            size: nodes ``(D, Gh, Gw)`` of the grid.
            image_size: pixels ``(H, W)`` of the image.

        Raises:
            TypeError, ValueError: sizes that are not whole numbers of at least 1.
        """
        return cls("cell_centered", *_sizes(size, image_size))

    @classmethod
    def half_pixel(cls, size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
        """The lattice of gsplat, bilarf and BGU: scale ``(D-1, (Gh-1)/H, (Gw-1)/W)``, offset ``(0, (Gh-1)/2H, (Gw-1)/2W)``.

        Args:
            size: nodes ``(D, Gh, Gw)`` of the grid.
            image_size: pixels ``(H, W)`` of the image.

        Raises:
            TypeError, ValueError: sizes that are not whole numbers of at least 1.
        """
        return cls("half_pixel", *_sizes(size, image_size))

    @classmethod
    def corner_aligned(cls, size: tuple[int, int, int], image_size: tuple[int, int]) -> Lattice:
        """The lattice of nerfstudio and ``align_corners=True``: scale ``(D-1, (Gh-1)/(H-1), (Gw-1)/(W-1))``, 0 where H or W is 1; offset 0.

        Args:
            size: nodes ``(D, Gh, Gw)`` of the grid.
            image_size: pixels ``(H, W)`` of the image.

        Raises:
            TypeError, ValueError: sizes that are not whole numbers of at least 1.
        """
        return cls("corner_aligned", *_sizes(size, image_size))

    @classmethod
    def from_sigma(
        cls,
        sigma_space: float,
        sigma_color: float,
        image_size: tuple[int, int],
        *,
        guide_range: tuple[float, float] = (0.0, 1.0),
        nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
    ) -> tuple[Lattice, tuple[int, int, int]]:
        """The lattice for filtering with Gaussians of ``sigma_space`` pixels and ``sigma_color`` guide units.

        Args:
            sigma_space: standard deviation in pixels, above 0.
            sigma_color: standard deviation in units of the guide, above 0.
            image_size: ``(H, W)``.
            guide_range: ``(least, greatest)`` guide value. The grid reaches one node beyond either end; values farther out saturate there.
            nodes_per_sigma: grid nodes per sigma along ``(z, y, x)``.

        Returns:
            The lattice and its ``size`` ``(D, Gh, Gw)``.

        Raises:
            TypeError: an argument that is not a number, or not as many numbers as it should be.
            ValueError: a sigma, a range or a density that is not finite and positive.

        Example:
            >>> lattice, size = Lattice.from_sigma(16, 0.1, (512, 512))
            >>> size
            (16, 33, 33)
        """
        # Constants of a graph: with dynamic shapes Dynamo takes floats for inputs, on which no size can depend.
        sigma_space, sigma_color = number("sigma_space", sigma_space), number("sigma_color", sigma_color)
        along_z, along_y, along_x = numbers("nodes_per_sigma", "(z, y, x)", nodes_per_sigma)
        low, high = numbers("guide_range", "(least, greatest)", guide_range)
        for name, value in (("sigma_space", sigma_space), ("sigma_color", sigma_color)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        if not all(0 < nodes < math.inf for nodes in (along_z, along_y, along_x)):
            raise ValueError(f"nodes_per_sigma must be three finite numbers above 0, (z, y, x), got {nodes_per_sigma}")
        if not -math.inf < low <= high < math.inf:
            raise ValueError(f"guide_range must be finite, (least, greatest), got {guide_range}")
        _, (height, width) = _sizes((1, 1, 1), image_size)
        scale_z, scale_y, scale_x = along_z / sigma_color, along_y / sigma_space, along_x / sigma_space
        try:
            size = (
                _ceil_product(high - low, scale_z) + 1 + 2 * _SIGMA_PADDING,
                _ceil_product(height - 1, scale_y) + 1,
                _ceil_product(width - 1, scale_x) + 1,
            )
        except (OverflowError, ValueError) as error:
            raise ValueError(
                f"sigma_space {sigma_space} and sigma_color {sigma_color} need a grid without bound; raise them"
            ) from error
        steps = (scale_z, scale_y, scale_x, _SIGMA_PADDING - low * scale_z, 0.0, 0.0)
        return cls("sigma", size, (height, width), (0, 0), steps, (height, width)), size

    def crop(self, top: int, left: int) -> Lattice:
        """The same lattice seen from a tile whose first pixel is ``(top, left)`` of this one: slicing a tile with it equals slicing the whole image and cropping.

        Raises:
            TypeError: a ``top`` or ``left`` that is not an integer.
            ValueError: a negative one, or one beyond the image.

        Example:
            >>> Lattice.half_pixel((8, 16, 16), (1080, 1920)).crop(540, 0).origin
            (540, 0)
        """
        top, left = integer("top", top, _WHOLE), integer("left", left, _WHOLE)
        row, column = self.origin[0] + top, self.origin[1] + left
        if top < 0 or left < 0 or row >= self.image_size[0] or column >= self.image_size[1]:
            raise ValueError(
                f"crop must start within the image of (H, W) = {tuple(self.image_size)}, got (top, left) = {(row, column)}"
            )
        return replace(self, origin=(row, column))

    def resize(self, image_size: tuple[int, int]) -> Lattice:
        """The same grid seen by an image of another size that covers the same area, as a small and a large version of one photograph do.

        Raises:
            TypeError, ValueError: a size that is not ``(H, W)`` in whole pixels.
            ValueError: a lattice seen from a tile.

        Example:
            >>> Lattice.cell_centered((8, 16, 16), (270, 480)).resize((1080, 1920)) == Lattice.cell_centered((8, 16, 16), (1080, 1920))
            True
        """
        if any(self.origin):
            raise ValueError(f"resize takes a lattice of a whole image, got one seen from (top, left) = {self.origin}")
        return replace(self, image_size=_sizes(self.size, image_size)[1])

    @property
    def scale(self) -> tuple[float, float, float]:
        """Nodes per unit of guide, per row and per column: ``(z, y, x)``."""
        (depth, rows, columns), (height, width) = self.size, self.image_size
        if self.kind == "cell_centered":
            return float(depth), rows / height, columns / width
        if self.kind == "half_pixel":
            return float(depth - 1), (rows - 1) / height, (columns - 1) / width
        if self.kind == "corner_aligned":
            per_row = (rows - 1) / (height - 1) if height > 1 else 0.0
            per_column = (columns - 1) / (width - 1) if width > 1 else 0.0
            return float(depth - 1), per_row, per_column
        return self.steps[0], self.steps[1] * self._shrunk[0], self.steps[2] * self._shrunk[1]

    @property
    def anchor(self) -> tuple[float, float, float]:
        """The offset of the whole image, before any crop: ``(z, y, x)``."""
        (_, rows, columns), (height, width) = self.size, self.image_size
        if self.kind == "cell_centered":
            return -0.5, rows / (2 * height) - 0.5, columns / (2 * width) - 0.5
        if self.kind == "half_pixel":
            return 0.0, (rows - 1) / (2 * height), (columns - 1) / (2 * width)
        if self.kind == "corner_aligned":
            return 0.0, 0.0, 0.0
        # Pixels' areas are aligned, so their centres are half a pixel of either size from the border.
        by_row, by_column = self._shrunk
        y = self.steps[4] + self.steps[1] * (by_row - 1) / 2
        return self.steps[3], y, self.steps[5] + self.steps[2] * (by_column - 1) / 2

    @property
    def _shrunk(self) -> tuple[float, float]:
        """How many of the pixels that `steps` are given in make one of the image's, along y and x."""
        return self.steps_size[0] / self.image_size[0], self.steps_size[1] / self.image_size[1]

    @property
    def offset(self) -> tuple[float, float, float]:
        """Grid coordinates of the tile's first pixel at guide 0: ``(z, y, x)``."""
        (_, scale_y, scale_x), (z, y, x) = self.scale, self.anchor
        return z, y + self.origin[0] * scale_y, x + self.origin[1] * scale_x


def _sizes(size: tuple[int, int, int], image_size: tuple[int, int]) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Both sizes as tuples. Refuses what is not (D, Gh, Gw) and (H, W) in integers of at least 1."""
    sizes = []
    for name, symbols, value in (("size", "(D, Gh, Gw)", size), ("image_size", "(H, W)", image_size)):
        count = symbols.count(",") + 1
        if not isinstance(value, (tuple, list)):
            raise TypeError(f"{name} must be {symbols}, {count} integers, got {value!r}")
        whole = tuple(integer(name, extent, _WHOLE) for extent in value)
        # A bound on a symbolic extent would become a bound of the exported program.
        bounded = torch.compiler.is_compiling() or all(extent <= _LARGEST_EXTENT for extent in whole)
        if len(whole) != count or not (bounded and all(extent >= 1 for extent in whole)):
            raise ValueError(f"{name} must be {symbols}, each from 1 to 2**31 - 1, got {tuple(value)}")
        sizes.append(whole)
    (depth, rows, columns), (height, width) = sizes
    return (depth, rows, columns), (height, width)


def _ceil_product(extent: float, step: float) -> int:
    """``ceil(extent * step)`` of a product that is not negative, less a tolerance: what rounding puts just above an integer needs no further node.

    A last pixel less than a billionth beyond a node saturates there. Computed by trunc, since torch.export cannot write a symbolic ceil to a file. The number
    stands here because a compiler with dynamic shapes would take a float of the module for an input.
    """
    return math.trunc(extent * step + (1 - 1e-9))
