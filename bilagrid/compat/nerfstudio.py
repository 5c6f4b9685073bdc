"""nerfstudio's calls, those of ``nerfstudio.model_components.lib_bilagrid``: the same as in `bilagrid.compat.gsplat`.

Its images are corner-aligned: ``pixel_grid(H, W, kind="corner_aligned")`` replaces the meshgrid of its splatfacto.
"""

from bilagrid.compat.gsplat import (
    BilateralGrid,
    BilateralGridCP4D,
    bilateral_grid_tv_loss,
    color_affine_transform,
    color_correct,
    pixel_grid,
    slice,
    slice4d,
    total_variation_loss,
)

__all__ = [
    "BilateralGrid",
    "BilateralGridCP4D",
    "bilateral_grid_tv_loss",
    "color_affine_transform",
    "color_correct",
    "pixel_grid",
    "slice",
    "slice4d",
    "total_variation_loss",
]
