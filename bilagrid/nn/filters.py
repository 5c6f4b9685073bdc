"""Filters, fits and upsampling as modules."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bilagrid import filters, upsample
from bilagrid.lattice import Lattice
from bilagrid.nn._module import Module, OnLattice, checked_size


class _Filter(Module):
    options: ClassVar[tuple[str, ...]] = ("sigma_space", "sigma_color", "guide_range", "nodes_per_sigma")

    def __init__(
        self,
        sigma_space: float,
        sigma_color: float,
        *,
        guide_range: tuple[float, float] | None = None,
        nodes_per_sigma: tuple[float, float, float] = (1.25, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.sigma_space, self.sigma_color = sigma_space, sigma_color
        self.guide_range, self.nodes_per_sigma = guide_range, nodes_per_sigma
        one = torch.empty(1, 1, 1, device="meta")  # says what is wrong with the options
        filters.filter_lattice(
            one, sigma_space, sigma_color, (0, 1) if guide_range is None else guide_range, nodes_per_sigma
        )


class BilateralFilter(_Filter):
    """`bilagrid.bilateral_filter`.

    Args:
        sigma_space, sigma_color, guide_range, nodes_per_sigma: the function's.

    Shapes: an image ``(N, C, H, W)`` and a guide ``(N, H, W)``, by default the image or its luma, to an image.

    Example:
        >>> BilateralFilter(8, 0.1, guide_range=(0, 1))(torch.rand(1, 3, 48, 64)).shape
        torch.Size([1, 3, 48, 64])
    """

    def forward(self, image: Tensor, guide: Tensor | None = None) -> Tensor:
        return filters.bilateral_filter(image, guide, **self.given())


class JointBilateralUpsample(_Filter):
    """`bilagrid.joint_bilateral_upsample`, whose ``sigma_space`` is in pixels of the small image.

    Args:
        sigma_space, sigma_color, guide_range, nodes_per_sigma: the function's.

    Shapes: a small image ``(N, C, h, w)``, its guide ``(N, h, w)`` and a large guide ``(N, H, W)`` to a large image ``(N, C, H, W)``.

    Example:
        >>> guide = torch.rand(1, 48, 64)
        >>> JointBilateralUpsample(1, 0.1)(torch.rand(1, 2, 12, 16), guide[:, ::4, ::4], guide).shape
        torch.Size([1, 2, 48, 64])
    """

    def forward(self, low: Tensor, guide_low: Tensor, guide_high: Tensor) -> Tensor:
        return filters.joint_bilateral_upsample(low, guide_low, guide_high, **self.given())


class Fit(OnLattice):
    """`bilagrid.fit`.

    Args:
        size: nodes ``(D, Gh, Gw)``.
        lattice: as in `Splat`.
        method: ``"fast"`` or ``"global"``.

    Shapes: an image ``(N, C_in, H, W)``, a target ``(N, C_out, H, W)``, and optionally a guide and a weight ``(N, H, W)`` and noise ``(N, C_in, H, W)``, to a
    grid ``(N, C_out * (C_in + 1), D, Gh, Gw)``.

    Example:
        >>> image = torch.rand(1, 3, 48, 64)
        >>> Fit((8, 3, 4))(image, image.sqrt()).shape
        torch.Size([1, 12, 8, 3, 4])
    """

    options: ClassVar[tuple[str, ...]] = ("size", "lattice", "method")

    def __init__(
        self, size: tuple[int, int, int], *, lattice: str | Lattice = "cell_centered", method: str = "fast"
    ) -> None:
        super().__init__(lattice)
        upsample.check_method(method)
        self.size, self.method = checked_size(size), method

    def forward(
        self,
        image: Tensor,
        target: Tensor,
        guide: Tensor | None = None,
        weight: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        options = self.given() | {"lattice": self.lattice_for(self.size, image)}
        return upsample.fit(image, target, guide, weight=weight, noise=noise, **options)


class GuidedUpsample(Module):
    """`bilagrid.guided_upsample`.

    Args:
        size: nodes ``(D, Gh, Gw)``, by default 8 planes and a node every 16 pixels of the small image.
        method: ``"fast"`` or ``"global"``.

    Shapes: an image ``(N, C_in, H, W)``, a small version of it ``(N, C_in, h, w)``, that edited ``(N, C_out, h, w)``, and both guides or neither, to an image
    ``(N, C_out, H, W)``.

    Example:
        >>> photo, small = torch.rand(1, 3, 96, 128), torch.rand(1, 3, 24, 32)
        >>> GuidedUpsample()(photo, small, small.sqrt()).shape
        torch.Size([1, 3, 96, 128])
    """

    options: ClassVar[tuple[str, ...]] = ("size", "method")

    def __init__(self, *, size: tuple[int, int, int] | None = None, method: str = "fast") -> None:
        super().__init__()
        upsample.check_method(method)
        self.size, self.method = None if size is None else checked_size(size), method

    def forward(
        self,
        image_high: Tensor,
        image_low: Tensor,
        target_low: Tensor,
        guide_high: Tensor | None = None,
        guide_low: Tensor | None = None,
    ) -> Tensor:
        return upsample.guided_upsample(
            image_high, image_low, target_low, guide_high=guide_high, guide_low=guide_low, **self.given()
        )


class Tonemap(Module):
    """`bilagrid.tonemap`.

    Args:
        contrast, sigma_space, sigma_color, gamma: the function's.

    Shapes: radiance ``(N, 3 or 1, H, W)`` to a picture of the same shape.

    Example:
        >>> Tonemap(contrast=8)
        Tonemap(contrast=8, sigma_space=None, sigma_color=0.4, gamma=2.2)
    """

    options: ClassVar[tuple[str, ...]] = ("contrast", "sigma_space", "sigma_color", "gamma")

    def __init__(
        self,
        *,
        contrast: float = 5.0,
        sigma_space: float | None = None,
        sigma_color: float = 0.4,
        gamma: float = 2.2,
    ) -> None:
        super().__init__()
        self.contrast, self.sigma_space, self.sigma_color, self.gamma = contrast, sigma_space, sigma_color, gamma
        self(torch.empty(0, 1, 2, 2, device="meta"))  # says what is wrong with the options

    def forward(self, radiance: Tensor) -> Tensor:
        return filters.tonemap(radiance, **self.given())
