"""The operators as modules."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from bilagrid.lattice import Lattice
from bilagrid.nn._module import Module, OnLattice, checked_size, size_of
from bilagrid.ops import _checks
from bilagrid.ops.blur import blur
from bilagrid.ops.curves import curves
from bilagrid.ops.slice import slice as slice_grid
from bilagrid.ops.slice_apply import slice_apply
from bilagrid.ops.slice_points import slice_points
from bilagrid.ops.splat import splat
from bilagrid.ops.total_variation import total_variation


class Splat(OnLattice):
    """`bilagrid.splat` into grids of one size.

    Args:
        size: nodes ``(D, Gh, Gw)``.
        lattice: ``"cell_centered"``, ``"half_pixel"`` or ``"corner_aligned"``, for images of any size; or a `Lattice`, for images of its size.

    Shapes: values ``(N, C, H, W)`` and guide ``(N, H, W)`` to a grid ``(N, C, D, Gh, Gw)``; with an index ``(N,)`` into a bank of ``count`` grids.

    Example:
        >>> Splat((4, 2, 2))(torch.ones(1, 1, 6, 8), torch.rand(1, 6, 8)).shape
        torch.Size([1, 1, 4, 2, 2])
    """

    options: ClassVar[tuple[str, ...]] = ("size", "lattice")

    def __init__(self, size: tuple[int, int, int], *, lattice: str | Lattice = "cell_centered") -> None:
        super().__init__(lattice)
        self.size = checked_size(size)

    def forward(self, values: Tensor, guide: Tensor, index: Tensor | None = None, count: int | None = None) -> Tensor:
        lattice = self.lattice_for(self.size, guide)
        return splat(values, guide, self.size, lattice=lattice, index=index, count=count)


class Blur(Module):
    """`bilagrid.blur` by a Gaussian of ``sigma`` nodes, one number or ``(z, y, x)``.

    Shapes: a grid ``(N, C, D, Gh, Gw)`` to one of the same.

    Example:
        >>> Blur((0, 1, 1))
        Blur(sigma=(0, 1, 1))
    """

    options: ClassVar[tuple[str, ...]] = ("sigma",)

    def __init__(self, sigma: float | tuple[float, float, float]) -> None:
        super().__init__()
        blur(torch.empty(1, 1, 1, 1, 1, device="meta"), sigma)  # says what is wrong with the sigma
        self.sigma = sigma

    def forward(self, grid: Tensor) -> Tensor:
        return blur(grid, self.sigma)


class Slice(OnLattice):
    """`bilagrid.slice`.

    Args:
        lattice: as in `Splat`.
        sparse: whether the gradient by a bank of grids, read with an index, is a sparse tensor of the chosen ones alone.

    Shapes: a grid ``(N, C, D, Gh, Gw)`` and a guide ``(N, H, W)`` to values ``(N, C, H, W)``; or a bank of grids, and an index ``(N,)``, the grid of each image.

    Example:
        >>> Slice(lattice="half_pixel")(torch.rand(1, 2, 4, 3, 3), torch.rand(1, 6, 8)).shape
        torch.Size([1, 2, 6, 8])
    """

    options: ClassVar[tuple[str, ...]] = ("lattice", "sparse")

    def __init__(self, *, lattice: str | Lattice = "cell_centered", sparse: bool = False) -> None:
        super().__init__(lattice)
        _checks.flag("sparse", sparse)
        self.sparse = sparse

    def forward(self, grid: Tensor, guide: Tensor, index: Tensor | None = None) -> Tensor:
        return slice_grid(
            grid,
            guide,
            lattice=self.lattice_for(size_of(grid), guide),
            index=index,
            sparse=self.sparse and index is not None,
        )


class SliceApply(OnLattice):
    """`bilagrid.slice_apply`.

    Args:
        lattice: as in `Splat`.
        offset: whether the maps have a constant term.
        sparse: as in `Slice`.

    Shapes: a grid ``(N, C_out * (C_in + 1), D, Gh, Gw)``, a guide ``(N, H, W)``, or None for the luma of three channels, and an image ``(N, C_in, H, W)`` to
    one ``(N, C_out, H, W)``; or a bank of grids, and an index ``(N,)``, the grid of each image.

    Example:
        >>> image = torch.rand(1, 3, 48, 64)
        >>> grid = torch.eye(3, 4).reshape(1, 12, 1, 1, 1).expand(1, 12, 8, 16, 16)  # the identity
        >>> torch.testing.assert_close(SliceApply()(grid, None, image), image)
    """

    options: ClassVar[tuple[str, ...]] = ("lattice", "offset", "sparse")

    def __init__(self, *, lattice: str | Lattice = "cell_centered", offset: bool = True, sparse: bool = False) -> None:
        super().__init__(lattice)
        _checks.flag("offset", offset)
        _checks.flag("sparse", sparse)
        self.offset, self.sparse = offset, sparse

    def forward(self, grid: Tensor, guide: Tensor | None, image: Tensor, index: Tensor | None = None) -> Tensor:
        lattice = self.lattice_for(size_of(grid), image)
        return slice_apply(
            grid,
            guide,
            image,
            lattice=lattice,
            offset=self.offset,
            index=index,
            sparse=self.sparse and index is not None,
        )


class SlicePoints(Module):
    """`bilagrid.slice_points`.

    Args:
        sparse: as in `Slice`.

    Shapes: a grid ``(N, C, D, Gh, Gw)``, points ``(..., 3)`` as (x, y, z) in nodes, and an index or None, to values ``(..., C)``.

    Example:
        >>> SlicePoints()(torch.rand(2, 4, 8, 3, 3), torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 1])).shape
        torch.Size([5, 4])
    """

    options: ClassVar[tuple[str, ...]] = ("sparse",)

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        _checks.flag("sparse", sparse)
        self.sparse = sparse

    def forward(self, grid: Tensor, points: Tensor, index: Tensor | None = None) -> Tensor:
        return slice_points(grid, points, index, sparse=self.sparse and index is not None)


class TotalVariation(Module):
    """`bilagrid.total_variation`, as a loss.

    Args:
        sparse: as in `Slice`.

    Shapes: a grid ``(N, C, D, Gh, Gw)``, or a bank of them and the index of those that count, to a scalar.

    Example:
        >>> TotalVariation()(torch.arange(8.0).view(1, 1, 2, 2, 2))
        tensor(21.)
    """

    options: ClassVar[tuple[str, ...]] = ("sparse",)

    def __init__(self, *, sparse: bool = False) -> None:
        super().__init__()
        _checks.flag("sparse", sparse)
        self.sparse = sparse

    def forward(self, grid: Tensor, index: Tensor | None = None) -> Tensor:
        return total_variation(grid, index, sparse=self.sparse and index is not None)


class Curves(Module):
    """`bilagrid.curves` with parameters to be learned: HDRNet's full-size guide, which starts as the mean of the image's channels, clipped to [0, 1].

    Args:
        channels: number of channels of the image.
        knots: number of pieces of each curve; they start evenly over [0, 1].
        mixed: number of curves, by default that of the channels.
        device, dtype: of the parameters.

    Parameters, and how they start:
        matrix ``(mixed, channels)``: the identity, its rows in turn if there are more or fewer curves, plus noise of 1e-4. bias ``(mixed,)``: 0.
        shifts and slopes ``(mixed, knots)``: a slope of 1 from 0 on. mix ``(mixed,)``: 1 / mixed. mix_bias ``()``: 0.

    Shapes: an image ``(N, channels, H, W)`` to a guide ``(N, H, W)``.

    Source: Gharbi et al., "Deep bilateral learning for real-time image enhancement", SIGGRAPH 2017, equations 5 and 6.

    Example:
        >>> Curves(3)(torch.full((1, 3, 4, 4), 0.5)).mean().round(decimals=2)
        tensor(0.5000, grad_fn=<RoundBackward1>)
        >>> Curves(1, knots=8)
        Curves(channels=1, knots=8, mixed=1)
    """

    options: ClassVar[tuple[str, ...]] = ("channels", "knots", "mixed")

    def __init__(
        self,
        channels: int,
        knots: int = 16,
        mixed: int | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        mixed = channels if mixed is None else mixed
        for name, value in (("channels", channels), ("knots", knots), ("mixed", mixed)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
        self.channels, self.knots, self.mixed = channels, knots, mixed

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.matrix, self.bias = parameter(mixed, channels), parameter(mixed)
        self.shifts, self.slopes = parameter(mixed, knots), parameter(mixed, knots)
        self.mix, self.mix_bias = parameter(mixed), parameter()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Starts again, with new noise."""
        turns = -(-self.mixed // self.channels)
        device = self.matrix.device
        identity = torch.eye(self.channels, device=device).repeat(turns, 1)[: self.mixed]
        self.matrix.copy_(identity + 1e-4 * torch.randn(self.mixed, self.channels, device=device))
        self.shifts.copy_(torch.arange(self.knots, device=device).div(self.knots).expand_as(self.shifts))
        self.slopes.zero_()[:, 0] = 1
        self.mix.fill_(1 / self.mixed)
        self.bias.zero_()
        self.mix_bias.zero_()

    def forward(self, image: Tensor) -> Tensor:
        return curves(image, self.matrix, self.bias, self.shifts, self.slopes, self.mix, self.mix_bias)
