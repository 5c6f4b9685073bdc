"""Local equalisation, colours from strokes and the merging of flash photographs as modules."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from bilagrid import colorization, editing
from bilagrid.nn._module import Module


class EqualizeHistogram(Module):
    """`bilagrid.equalize_histogram`.

    Args:
        sigma_space, clip_limit, bins, value_range: the function's.

    Shapes: an image ``(N, 1 or 3, H, W)`` to one of the same shape.

    Example:
        >>> EqualizeHistogram(clip_limit=3)(torch.rand(1, 3, 24, 32)).shape
        torch.Size([1, 3, 24, 32])
    """

    options: ClassVar[tuple[str, ...]] = ("sigma_space", "clip_limit", "bins", "value_range")

    def __init__(
        self,
        *,
        sigma_space: float | None = None,
        clip_limit: float | None = None,
        bins: int = 256,
        value_range: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.sigma_space, self.clip_limit, self.bins, self.value_range = sigma_space, clip_limit, bins, value_range
        self(torch.empty(0, 1, 2, 2, device="meta"))  # says what is wrong with the options

    def forward(self, image: Tensor) -> Tensor:
        return editing.equalize_histogram(image, **self.given())


class Colorize(Module):
    """`bilagrid.colorize`.

    Args:
        sigma_space, sigma_color, smoothness: the function's.

    Shapes: an image ``(N, 1 or 3, H, W)``, strokes ``(N, 3, H, W)`` and their mask ``(N, H, W)`` to an image ``(N, 3, H, W)``.

    Example:
        >>> gray, mask = torch.rand(1, 1, 24, 32), torch.rand(1, 24, 32) > 0.9
        >>> Colorize()(gray, torch.rand(1, 3, 24, 32), mask).shape
        torch.Size([1, 3, 24, 32])
    """

    options: ClassVar[tuple[str, ...]] = ("sigma_space", "sigma_color", "smoothness")

    def __init__(
        self, *, sigma_space: float | None = None, sigma_color: float = 0.05, smoothness: float = 0.01
    ) -> None:
        super().__init__()
        self.sigma_space, self.sigma_color, self.smoothness = sigma_space, sigma_color, smoothness
        nothing = torch.empty(0, 3, 2, 2, device="meta")
        self(nothing, nothing, nothing[:, 0])  # says what is wrong with the options

    def forward(self, image: Tensor, scribbles: Tensor, mask: Tensor) -> Tensor:
        return colorization.colorize(image, scribbles, mask, **self.given())


class MergeFlash(Module):
    """`bilagrid.merge_flash`.

    Args:
        sigma_space, sigma_color, exposure, gamma: the function's.

    Shapes: the photograph with flash and the one without, ``(N, 1 or 3, H, W)``, to an image of the shape of the second.

    Example:
        >>> MergeFlash(exposure=0.125)(torch.rand(1, 3, 24, 32), torch.rand(1, 3, 24, 32)).shape
        torch.Size([1, 3, 24, 32])
    """

    options: ClassVar[tuple[str, ...]] = ("sigma_space", "sigma_color", "exposure", "gamma")

    def __init__(
        self,
        *,
        sigma_space: float | None = None,
        sigma_color: float = 0.1,
        exposure: float | None = None,
        gamma: float = 2.2,
    ) -> None:
        super().__init__()
        self.sigma_space, self.sigma_color, self.exposure, self.gamma = sigma_space, sigma_color, exposure, gamma
        nothing = torch.empty(0, 1, 2, 2, device="meta")
        self(nothing, nothing)  # says what is wrong with the options

    def forward(self, flash: Tensor, no_flash: Tensor) -> Tensor:
        return editing.merge_flash(flash, no_flash, **self.given())
