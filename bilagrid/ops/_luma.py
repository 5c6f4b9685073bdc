"""The guide of an image that comes without one: itself if it is gray, its BT.601 luma if it has colours."""

from __future__ import annotations

from torch import Tensor

from bilagrid.ops._dtypes import widened

LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Luma ``(N, H, W)`` of an image ``(N, 3, H, W)``, in float32 for half types as the kernels compute it: rounded to half, a pixel could change its cell.

    It is linear, so it also takes a derivative of the image along a direction to that of its luma.
    """
    red, green, blue = widened(image).unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def own_guide(name: str, image: Tensor) -> Tensor:
    """The guide ``(N, H, W)`` of an image that comes without one. An error calls the image by its ``name``."""
    if image.shape[1] == 1:
        return image[:, 0]
    if image.shape[1] == 3:
        return luma(image)
    raise ValueError(
        f"{name} must have 1 or 3 channels to be its own guide, got {image.shape[1]}; pass guide=(N, H, W)"
    )
