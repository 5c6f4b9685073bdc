"""BT.601 luma, the guide of a colour image that comes without one."""

from __future__ import annotations

from torch import Tensor

from bilagrid.ops._dtypes import widened

LUMA = (0.299, 0.587, 0.114)


def luma(image: Tensor) -> Tensor:
    """Luma ``(N, H, W)`` of an image ``(N, 3, H, W)``, in float32 for half types, as the kernels compute it: rounded, a pixel could change its cell.

    Linear, so also the way a gradient by luma's argument is carried back.
    """
    red, green, blue = widened(image).unbind(1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
